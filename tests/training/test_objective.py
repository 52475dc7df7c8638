"""One training step is the objective of docs/method.md: beside equations written out in numpy, and where the best is known.

Two of the tests need no second implementation. Where the data are the frame's own Gaussian, the velocity is
v(r, t) = (2t − 1)/(t² + (1 − t)²)·r, nothing can be corrected, and E(x₁ − x₀ − v)² = s²/(t² + (1 − t)²), whose mean over
t is s²·π/2. Where the data are that Gaussian moved by m, the correction is m·(1 − t)/(t² + (1 − t)²), whatever r.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.utils.data import DataLoader

import golden
import reference
from scdfm.config import Config, SamplingConfig
from scdfm.data import Batch
from scdfm.encoded import EncodedConditions
from scdfm.flow import generate
from scdfm.prior import Frame, Origins
from scdfm.seeds import torch_rng
from scdfm.training.module import FlowModule

# Lightning's, of a loop as short as these, and of torch.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{words}")
    for words in ("LeafSpec", "does not have many", "val_dataloader")
]

SEED, NAMES = 5, ("A", "B", "A+B", "C")
TOKENS = torch.tensor([[7, 3], [9, 3], [7, 9], [11, 3]])
GENES, CELLS = 12, 5
# Weights stay where they are: a step of 1e-12 is less than the last digit of 1.
STILL = {
    "learning_rate": 1e-12,
    "min_learning_rate": 0.0,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "ema_decay": 0.0,
}


class Spoken(nn.Module):
    """A network in which every input has its say."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def context(
        self, control: Tensor, genes: Tensor, perturbation: EncodedConditions, condition: Tensor,
        expected: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        tokens = perturbation.tokens.float()
        if perturbation.identified is not None:
            tokens = tokens * perturbation.identified
        own = tokens @ torch.tensor([0.03, 0.011])
        if perturbation.dropped is not None:
            own = own * ~perturbation.dropped
        spoken = 0.1 * control + 0.02 * genes + own[condition][:, None]
        return spoken if expected is None else spoken + 0.3 * expected[condition]

    def velocity(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.one * (0.2 * x_t.sin() + 0.5 * t[:, None] + context)


class Basis(nn.Module):
    """Σ wₖ·fₖ(x_t, t) per gene, with weights w [K, G]; `seen` are the gradients of the losses by them."""

    is_zero = False

    def __init__(self, weights: Tensor, functions: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> None:
        super().__init__()
        self.functions = functions
        self.weights = nn.Parameter(weights)
        self.seen: list[Tensor] = []
        self.weights.register_hook(lambda grad: self.seen.append(grad.clone()))

    def context(self, *_: Any, **__: Any) -> None:
        return None

    def velocity(self, x_t: Tensor, t: Tensor, context: None) -> Tensor:
        terms = [w * f(x_t, t[:, None]) for w, f in zip(self.weights, self.functions, strict=True)]
        return torch.stack(terms).sum(0)

    def bytes_per_cell(self, n_genes: int) -> int:
        return n_genes


def frame(n_genes: int, spread: float = 0.4) -> Frame:
    rng = torch.Generator().manual_seed(0)
    loadings = 0.5 * torch.randn((n_genes, 2), generator=rng)
    unique = (1 - loadings.square().sum(1)).clamp(min=0.05).sqrt()
    deviation = torch.rand(n_genes, generator=rng) + 0.5
    flat = torch.ones(n_genes)
    return Frame(
        0.6, deviation, flat, flat, torch.tensor([[0.0], [1.0]]), loadings, unique, spread, highest=50.0
    )


def origins(n_genes: int = GENES, lowest: float = 0.0, strength: float = 1.0) -> Origins:
    """The expected means of all conditions, at least `lowest`."""
    rng = torch.Generator().manual_seed(1)
    centre, scale = (
        lowest + torch.rand((4, n_genes), generator=rng),
        0.5 + torch.rand((4, n_genes), generator=rng),
    )
    shift = strength * torch.randn((4, n_genes), generator=rng)
    return Origins(frame(n_genes), NAMES, centre, scale, shift, torch.zeros(4))


def batch_of(target: Tensor, places: Sequence[int]) -> Batch:
    rng = torch.Generator().manual_seed(3)
    return Batch(
        control=torch.rand(target.shape, generator=rng),
        target=target,
        perturbation=EncodedConditions(TOKENS[list(places)], described=TOKENS[list(places)] != 3),
        condition=torch.arange(len(places)).repeat_interleave(len(target) // len(places)),
        conditions=tuple(NAMES[place] for place in places),
    )


def batches(n: int, places: Sequence[int] = (2, 0, 3)) -> list[Batch]:
    """Cells of whom two of five values are 0."""
    rng = torch.Generator().manual_seed(2)
    shape = (n, len(places) * CELLS, GENES)
    return [batch_of(x, places) for x in (torch.rand(shape, generator=rng) * 2.5 - 1).clamp(min=0)]


def config(**sections: Any) -> Config:
    return Config.preset("default").updated({"seed": SEED, "training": STILL} | sections)


def module_of(field: nn.Module, config: Config, start: Origins | None, n_genes: int = GENES) -> FlowModule:
    tokens, rates = torch.arange(n_genes) + 20, torch.full((n_genes,), 1.5)
    return FlowModule(field, config, tokens, rates, origins=start)  # type: ignore[arg-type]


def steps(module: FlowModule, batches: Sequence[Batch]) -> list[dict[str, float]]:
    """The losses of a step on each batch."""
    trainer = L.Trainer(
        max_steps=len(batches), accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with golden.watched() as losses:
        trainer.fit(module, DataLoader(list(batches), batch_size=None))  # type: ignore[arg-type]
    return losses


def written_out(batch: Batch, step: int, config: Config, start: Origins | None) -> dict[str, float]:
    """L = E‖v − (x₁ − x₀)‖² + γ·MMD²(x̂₁, x₁) of one step, every draw from the stream (seed, "flow", step, 0)."""
    rng, n = torch_rng(SEED, "flow", step, 0), len(batch.target)
    wanted = config.flow.genes_per_step or GENES
    chosen = torch.randperm(GENES, generator=rng)[:wanted].numpy() if wanted < GENES else np.arange(GENES)
    uniform, x = torch.rand(n, generator=rng).numpy(), batch.target.numpy().astype(float)[:, chosen]
    t = uniform
    if config.flow.time == "stratified":
        t = (torch.randperm(n, generator=rng).numpy() + uniform) / n
    t = t[:, None].astype(float)
    c = np.repeat(np.arange(len(batch.conditions)), CELLS)
    hiding, options = torch_rng(SEED, "hidden conditions", step, 0), config.training
    tokens = batch.perturbation.tokens.numpy()
    if options.condition_dropout:
        tokens = (
            tokens * (torch.rand(len(tokens), generator=hiding).numpy() >= options.condition_dropout)[:, None]
        )
    hidden = torch.rand(tokens.shape, generator=hiding).numpy() < options.id_dropout
    tokens = np.where(hidden & (batch.perturbation.tokens.numpy() != 3), 0, tokens)
    if start is None:
        x1, centre, d = x, 0.0, 1.0
        x0, known = torch.randn((n, len(chosen)), generator=rng).numpy().astype(float), 0.0
    else:
        whole, place = start.frame, [NAMES.index(name) for name in batch.conditions]
        centre, scale, shift = (
            y.numpy()[place][:, chosen].astype(float)[c] for y in (start.centre, start.scale, start.shift)
        )
        d, loadings, unique = (
            y.numpy()[chosen].astype(float) for y in (whole.deviation, whole.loadings, whole.unique)
        )
        drawn = torch.randn((n, 2 + len(chosen) + 1), generator=rng).numpy().astype(float)
        f, eps, eta = drawn[:, :2], drawn[:, 2:-1], drawn[:, -1:]
        x0 = d * (f @ loadings.T + unique * eps + whole.spread * eta * shift / scale)
        hidden = torch.rand((n, len(chosen)), generator=rng).numpy() * norm.cdf(-centre / scale)
        latent = np.where(x > 0, x, np.minimum(0, centre + scale * norm.ppf(np.clip(hidden, 1e-6, 1 - 1e-6))))
        x1 = d * (latent - centre) / scale
        known = (2 * t - 1) / (t**2 + (1 - t) ** 2)
    x_t = (1 - t) * x0 + t * x1
    own = (tokens @ np.array([0.03, 0.011]))[c][:, None]
    control = batch.control.numpy()[:, chosen]
    spoken = 0.2 * np.sin(x_t / d) + 0.5 * t + 0.1 * control + 0.02 * (chosen + 20) + own + 0.3 * centre
    v = d * spoken + known * x_t
    cfm = ((v - (x1 - x0)) ** 2).mean()
    end, mmd = x_t + (1 - t) * v, []
    for which in range(len(batch.conditions)):
        a, b = (torch.from_numpy(y[c == which]) for y in (end, x1))
        widths = reference.median_bandwidths(b, config.mmd.scales)
        if (
            config.mmd.bandwidths is not None
        ):  # given in log1p, where residuals are in units of the frame's size
            widths = torch.tensor(config.mmd.bandwidths, dtype=b.dtype) / (
                1 if start is None else start.frame.size
            )
        mmd.append(float(reference.mmd2(a, b, widths)))
    return {"cfm": cfm, "mmd": float(np.mean(mmd)), "loss": cfm + config.mmd.weight * float(np.mean(mmd))}


@pytest.mark.parametrize(
    ("sections", "start"),
    [
        ({}, True),
        ({"flow": {"genes_per_step": 7}}, True),
        ({"training": STILL | {"condition_dropout": 0.4, "id_dropout": 0.2}}, True),
        ({"flow": {"time": "uniform"}, "mmd": {"weight": 2.0, "bandwidths": [0.3, 1.0]}}, True),
        ({"flow": {"source": "gaussian", "genes_per_step": 7}, "mmd": {"scales": [1.0]}}, False),
    ],
    ids=["default", "some genes", "conditions hidden", "uniform, bandwidths", "published"],
)  # fmt: skip
def test_a_step_s_loss_is_the_one_written_out(sections: dict[str, Any], start: bool) -> None:
    options, given = config(**sections), origins() if start else None
    seen = batches(3)
    found = steps(module_of(Spoken(), options, given), seen)
    for step, batch in enumerate(seen):
        expected = written_out(batch, step, options, given)
        for term, value in expected.items():
            assert found[step][term] == pytest.approx(value, rel=1e-5, abs=1e-6), f"step {step}, {term}"


def test_shares_of_a_batch_add_up_to_its_loss() -> None:
    """Every process draws for the whole batch, and counts by its conditions."""
    whole = batches(1)[0]
    found = [
        steps(module_of(Spoken(), config(), origins()), [part])[0]
        for part in (whole, whole.share(0, 2), whole.share(1, 2))
    ]
    for term in golden.TERMS:
        assert found[0][term] == pytest.approx(found[1][term] + found[2][term], rel=1e-5), term


def mean_and_error(values: Sequence[float] | Tensor) -> tuple[Any, Any]:
    """Mean over steps, and its standard error."""
    found = torch.as_tensor(values) if not isinstance(values, Tensor) else values
    return found.double().mean(0), found.double().std(0) / math.sqrt(len(found))


def gaussian_cells(start: Origins, places: Sequence[int], n: int, moved: float, seed: int) -> Tensor:
    """Cells of the frame's law around the expected means; `moved`: by so many deviations. All lie above 0."""
    rng, condition = torch.Generator().manual_seed(seed), torch.arange(len(places)).repeat_interleave(n)
    begin = start.of([NAMES[place] for place in places])
    residuals = begin.source(begin.draw(len(condition), rng), condition)
    cells = begin.latent(residuals + moved * start.frame.deviation, condition)
    assert (cells > 0).all()
    return cells


def watched_steps(
    field: Basis, moved: float, n_steps: int = 40, n_genes: int = 6
) -> tuple[list[dict[str, float]], Tensor, Tensor]:
    """Losses and gradients of steps on cells of the frame's law `moved` by so many deviations; E s² of each gene."""
    start, places = origins(n_genes, lowest=15.0, strength=0.5), (0, 1, 2, 3)
    seen = [batch_of(gaussian_cells(start, places, 100, moved, seed), places) for seed in range(n_steps)]
    options = config(mmd={"weight": 0.0}, training=STILL | {"clip_norm": 0.0})
    losses = steps(module_of(field, options, start, n_genes), seen)
    part = start.frame
    strength = (start.shift / start.scale).square().mean(0)
    law = part.loadings.square().sum(1) + part.unique.square() + part.spread**2 * strength
    return losses, torch.stack(field.seen), part.deviation.square() * law


# What a correction can be made of: a shift, one that changes in time, a spread that does, a third power.
FUNCTIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, t: torch.ones_like(x),
    lambda x, t: (2 * t - 1) * torch.ones_like(x),
    lambda x, t: (2 * t - 1) * x,
    lambda x, t: x**3,
)


def answer(x: Tensor, t: Tensor) -> Tensor:
    """What m is multiplied with in the correction of a Gaussian moved by m."""
    return (1 - t) / (t**2 + (1 - t) ** 2) * torch.ones_like(x)


def test_nothing_is_left_to_correct_in_the_frame_s_own_gaussian() -> None:
    losses, gradients, variance = watched_steps(Basis(torch.zeros(4, 6), FUNCTIONS), moved=0.0)
    loss, error = mean_and_error([step["cfm"] for step in losses])
    assert loss == pytest.approx(float(variance.mean()) * math.pi / 2, abs=4 * float(error))
    assert error < 0.01 * loss
    slope, error = mean_and_error(gradients)
    assert (slope.abs() < 4 * error).all(), slope / error


def test_a_gaussian_that_is_moved_is_corrected_by_its_shift() -> None:
    """The loss of no correction is larger by m²·∫((1 − t)/(t² + (1 − t)²))² dt; the known one leaves nothing to gain."""
    deviation = frame(6).deviation
    ts = (np.arange(10_000) + 0.5) / 10_000
    more = 0.5**2 * float((((1 - ts) / (ts**2 + (1 - ts) ** 2)) ** 2).mean() * deviation.square().mean())
    silent, slopes, variance = watched_steps(Basis(torch.zeros(1, 6), (answer,)), moved=0.5)
    best = float(variance.mean()) * math.pi / 2
    loss, error = mean_and_error([step["cfm"] for step in silent])
    assert loss == pytest.approx(best + more, abs=4 * float(error))
    assert 4 * error < more
    slope, error = mean_and_error(slopes)
    assert (slope < -4 * error).all()
    weights = torch.cat([torch.full((1, 6), 0.5), torch.zeros(4, 6)])
    corrected, slopes, _ = watched_steps(Basis(weights, (answer, *FUNCTIONS)), moved=0.5)
    loss, error = mean_and_error([step["cfm"] for step in corrected])
    assert loss == pytest.approx(best, abs=4 * float(error))
    slope, error = mean_and_error(slopes)
    assert (slope.abs() < 4 * error).all(), slope / error


def test_that_correction_generates_the_moved_gaussian() -> None:
    """Each cell ends where it began, m further: its genes solved in chunks, the Gaussian part exactly."""
    start = origins(6, lowest=15.0, strength=0.5)
    condition = torch.tensor([0, 1]).repeat_interleave(150)
    options = SamplingConfig(solver="rk4", steps=12)

    def population(moved: float) -> Tensor:
        return generate(
            Basis(torch.full((1, 4), moved), (lambda x, t: answer(x[:, :1], t),)), control=torch.zeros(300, 6),
            perturbation=TOKENS[:2], condition=condition, genes=torch.arange(6), sampling=options, genes_per_step=4,
            rng=torch.Generator().manual_seed(1), start=start.of(NAMES[:2]),
        )  # fmt: skip

    further = population(0.5) - population(0.0)
    scale = torch.stack([start.scale[0], start.scale[1]])[condition]
    torch.testing.assert_close(further, 0.5 * scale, rtol=1e-3, atol=1e-3)
