"""One training step is the objective of docs/method.md: beside equations written out in numpy, and where the best is known.

Three of the tests need no second implementation. Where cells have standard normal scores around the expected means, as
their donors have, and any donor goes to any cell, the velocity is v(x, t) = (2t − 1)/(t² + (1 − t)²)·x, nothing can be
corrected, and E(x₁ − x₀ − v)² is d²/(t² + (1 − t)²), whose mean over t is d²·π/2. Where their scores are moved by m, the
correction is m·(1 − t)/(t² + (1 − t)²), whatever x, and generates them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.utils.data import DataLoader

import golden
from scdfm.condition_tensors import ConditionTensors
from scdfm.config import Config, SamplingConfig
from scdfm.data import Batch
from scdfm.flow import generate
from scdfm.model import reference
from scdfm.prior import PriorStart, Spread
from scdfm.prior.marginals import N_KNOTS, Levels, Marginals
from scdfm.prior.spread import normal_scores
from scdfm.seeds import torch_rng
from scdfm.training.module import FlowModule

# Lightning's, of a loop as short as these, and of torch.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{words}") for words in ("LeafSpec", "does not have many", "val_dataloader")
]

SEED, NAMES = 5, ("A", "B", "A+B", "C")
TOKENS = torch.tensor([[7, 3], [9, 3], [7, 9], [11, 3]])
GENES, CELLS = 12, 5
# Weights stay where they are: a step of 1e-12 is less than the last digit of 1.
STILL = {"learning_rate": 1e-12, "min_learning_rate": 0.0, "warmup_steps": 0, "weight_decay": 0.0, "ema_decay": 0.0}


class Spoken(nn.Module):
    """A network in which every input has its say."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def context(
        self, control: Tensor, genes: Tensor, perturbation: ConditionTensors, condition: Tensor,
        expected: Tensor | None = None, shift: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        tokens = perturbation.tokens.float()
        if perturbation.identified is not None:
            tokens = tokens * perturbation.identified
        own = tokens @ torch.tensor([0.03, 0.011])
        if perturbation.dropped is not None:
            own = own * ~perturbation.dropped
        spoken = 0.1 * control + 0.02 * genes + own[condition][:, None]
        if expected is None or shift is None:
            return spoken
        return spoken + 0.3 * expected[condition] + 0.4 * shift[condition]

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


def start_of(n_genes: int = GENES, zeros: float = 0.4, n_donors: int = 60) -> PriorStart:
    """A start whose genes are 0 in up to `zeros` of the cells, with donors of standard normal scores."""
    rng = torch.Generator().manual_seed(0)
    values = 0.2 + torch.rand((n_genes, N_KNOTS), generator=rng).cumsum(1) / 10
    marginals = Marginals(zeros * torch.rand(n_genes, generator=rng), values)
    deviation = 0.5 + torch.rand(n_genes, generator=rng)
    donors = normal_scores(torch.randn((n_donors, n_genes), generator=rng)).half()
    spread = Spread(Levels.single(marginals), 0.6, deviation, donors, {"control": (0, n_donors)})
    expected = values.mean(1) * (0.6 + 0.5 * torch.rand((4, n_genes), generator=rng))
    start = PriorStart.around(spread, NAMES, expected, 0.8 * values.mean(1).expand(4, -1), torch.zeros(4))
    part = n_donors // 3
    return replace(start, donors=torch.tensor([[0, n_donors], [part, part], [0, part], [part, 2 * part]]))


def law(start: PriorStart) -> Marginals:
    """The one law of `start_of`."""
    return start.spread.marginals.at(start.expected[0])


def batch_of(target: Tensor, places: Sequence[int], n_seen: int | None = None) -> Batch:
    """Of each condition the network sees `n_seen` of the cells drawn, by default all."""
    rng, n = torch.Generator().manual_seed(3), n_seen or len(target) // len(places)
    return Batch(
        control=torch.rand((n * len(places), target.shape[1]), generator=rng),
        target=target,
        perturbation=ConditionTensors(TOKENS[list(places)], described=TOKENS[list(places)] != 3),
        condition=torch.arange(len(places)).repeat_interleave(n),
        conditions=tuple(NAMES[place] for place in places),
    )


def batches(n: int, places: Sequence[int] = (2, 0, 3), n_drawn: int = CELLS) -> list[Batch]:
    """Cells of whom two of five values are 0; of each condition CELLS of `n_drawn` are seen."""
    rng = torch.Generator().manual_seed(2)
    shape = (n, len(places) * n_drawn, GENES)
    return [batch_of(x, places, CELLS) for x in (torch.rand(shape, generator=rng) * 2.5 - 1).clamp(min=0)]


def config(**sections: Any) -> Config:
    return Config.preset("default").updated({"seed": SEED, "training": STILL} | sections)


def module_of(field: nn.Module, config: Config, start: PriorStart | None, n_genes: int = GENES) -> FlowModule:
    tokens, rates = torch.arange(n_genes) + 20, torch.full((n_genes,), 1.5)
    return FlowModule(field, config, tokens, rates, start=start)  # type: ignore[arg-type]


def steps(module: FlowModule, batches: Sequence[Batch]) -> list[dict[str, float]]:
    """The losses of a step on each batch."""
    trainer = L.Trainer(
        max_steps=len(batches), accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with golden.watched() as losses:
        trainer.fit(module, DataLoader(list(batches), batch_size=None))  # type: ignore[arg-type]
    return losses


def scored(
    x: np.ndarray, marginals: Marginals, rates: np.ndarray, uniform: np.ndarray, genes: np.ndarray
) -> np.ndarray:
    """Scores of cells: Φ⁻¹(π + (1 − π)·u) of the value at the place u, Φ⁻¹(π·uniform) of a zero; π = π₀^(e^θ)."""
    knots, found = (1 - np.cos(np.linspace(0, np.pi, N_KNOTS))) / 2, np.empty_like(x)
    for column, gene in enumerate(genes):
        theta, never = rates[:, gene].astype(float), float(marginals.zeros[gene])
        zeros = never ** np.exp(theta)
        value = np.log1p(np.expm1(x[:, column]) * np.exp(-theta * (1 - never)))
        place = np.interp(value, marginals.values[gene].numpy().astype(float), knots).clip(1e-4)
        above, behind = norm.isf((1 - zeros) * (1 - place)), norm.ppf(zeros * uniform[:, column])
        found[:, column] = np.where(x[:, column] > 0, above, behind).clip(-4.5, 4.5)
    return found


def shifted(start: PriorStart, places: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """By how much control cells at 15 even places lie lower, in scores, where the condition's mean is expected."""
    scores, found = norm.ppf((np.arange(15) + 0.5) / 15), np.empty((len(places), len(genes)))
    knots, marginals = (1 - np.cos(np.linspace(0, np.pi, N_KNOTS))) / 2, law(start)
    for row, place in enumerate(places):
        for column, gene in enumerate(genes):
            theta = float(start.control_rates[place, gene])
            never, values = float(marginals.zeros[gene]), marginals.values[gene].numpy().astype(float)
            at = 1 - norm.sf(scores) / (1 - never ** np.exp(theta))
            value = np.interp(at, knots, values)
            value = np.where(at > 0, np.log1p(np.expm1(value) * np.exp(theta * (1 - never))), 0)
            within = np.where(value > 0, 0.5, norm.cdf(scores) / never ** np.exp(theta))[:, None]
            before, after = (
                scored(value[:, None], marginals, np.full((15, GENES), float(rate)), within, np.array([gene]))
                for rate in (theta, start.rates[place, gene])
            )
            found[row, column] = (before - after).mean()
    return found


def least(x0: np.ndarray, x1: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of all orders of some rows of x₀ the one whose squared distances to those of x₁ have the smallest sum."""
    orders = (rows[list(order)] for order in permutations(range(len(rows))))
    return min(orders, key=lambda order: float(((x0[order] - x1[rows]) ** 2).sum()))


def written_out(batch: Batch, step: int, config: Config, start: PriorStart | None) -> dict[str, float]:
    """L = E‖v − (x₁ − x₀)‖² + γ·MMD²(x̂₁, x₁) of one step, every draw from the stream (seed, "flow", step, 0)."""
    rng, n, drawn = torch_rng(SEED, "flow", step, 0), len(batch.control), len(batch.target)
    wanted = config.flow.genes_per_step or GENES
    chosen = torch.randperm(GENES, generator=rng)[:wanted].numpy() if wanted < GENES else np.arange(GENES)
    uniform, x = torch.rand(n, generator=rng).numpy(), batch.target.numpy().astype(float)[:, chosen]
    t = uniform
    if config.flow.time == "stratified":
        t = (torch.randperm(n, generator=rng).numpy() + uniform) / n
    t = t[:, None].astype(float)
    c = np.repeat(np.arange(len(batch.conditions)), CELLS)
    of = np.repeat(np.arange(len(batch.conditions)), drawn // len(batch.conditions))
    hiding, options = torch_rng(SEED, "hidden conditions", step, 0), config.training
    tokens = batch.perturbation.tokens.numpy()
    if options.condition_dropout:
        tokens = tokens * (torch.rand(len(tokens), generator=hiding).numpy() >= options.condition_dropout)[:, None]
    hidden = torch.rand(tokens.shape, generator=hiding).numpy() < options.id_dropout
    tokens = np.where(hidden & (batch.perturbation.tokens.numpy() != 3), 0, tokens)
    if start is None:
        x1, told, d = x, 0.0, 1.0
        x0, known = torch.randn((drawn, len(chosen)), generator=rng).numpy().astype(float), 0.0
    else:
        donor = torch.rand((drawn, 1), generator=rng).numpy()[:, 0]
        place = np.array([NAMES.index(name) for name in batch.conditions])[of]
        first, count = start.donors.numpy()[place].T
        d = start.spread.deviation.numpy()[chosen].astype(float)
        x0 = d * start.spread.donors.numpy().astype(float)[first + (donor * count).astype(int)][:, chosen]
        uniform = torch.rand((drawn, len(chosen)), generator=rng).numpy()
        x1 = d * scored(x, law(start), start.rates.numpy()[place], uniform, chosen)
        which = [NAMES.index(name) for name in batch.conditions]
        told = 0.3 * start.expected.numpy().astype(float)[which][:, chosen][c]
        told = told + 0.4 * shifted(start, np.array(which), chosen)[c]
        known = (2 * t - 1) / (t**2 + (1 - t) ** 2)
    if config.flow.pairing == "optimal":
        x0 = x0[np.concatenate([least(x0, x1, np.flatnonzero(of == which)) for which in range(len(batch.conditions))])]
    seen = np.concatenate([np.flatnonzero(of == which)[:CELLS] for which in range(len(batch.conditions))])
    x0, real, x1 = x0[seen], x1, x1[seen]
    x_t = (1 - t) * x0 + t * x1
    own = (tokens @ np.array([0.03, 0.011]))[c][:, None]
    control = batch.control.numpy()[:, chosen]
    spoken = 0.2 * np.sin(x_t / d) + 0.5 * t + 0.1 * control + 0.02 * (chosen + 20) + own + told
    v = d * spoken + known * x_t
    cfm = ((v - (x1 - x0)) ** 2).mean()
    end, mmd = x_t + (1 - t) * v, []
    for which in range(len(batch.conditions)):
        a, b = torch.from_numpy(end[c == which]), torch.from_numpy(real[of == which])
        widths = reference.median_bandwidths(b, config.mmd.scales)
        if config.mmd.bandwidths is not None:
            # Given in log1p, where flow space has a unit of its own.
            unit = 1 if start is None else start.spread.size
            widths = torch.tensor(config.mmd.bandwidths, dtype=b.dtype) / unit
        mmd.append(float(reference.mmd2(a, b, widths)))
    return {"cfm": cfm, "mmd": float(np.mean(mmd)), "loss": cfm + config.mmd.weight * float(np.mean(mmd))}


@pytest.mark.parametrize(
    ("sections", "start"),
    [
        ({}, True),
        ({"flow": {"genes_per_step": 7}}, True),
        ({"training": STILL | {"condition_dropout": 0.4, "id_dropout": 0.2}}, True),
        ({"flow": {"time": "uniform"}, "mmd": {"weight": 2.0, "bandwidths": [0.3, 1.0]}}, True),
        ({"flow": {"pairing": "random"}}, True),
        ({"flow": {"source": "gaussian", "pairing": "random", "genes_per_step": 7}, "mmd": {"scales": [1.0]}}, False),
        ({"flow": {"source": "gaussian"}}, False),
    ],
    ids=["default", "some genes", "conditions hidden", "uniform, bandwidths", "random pairs", "published", "from noise"],
)  # fmt: skip
def test_a_step_s_loss_is_the_one_written_out(sections: dict[str, Any], start: bool) -> None:
    options, given = config(**sections), start_of() if start else None
    seen = batches(3)
    found = steps(module_of(Spoken(), options, given), seen)
    assert found == expected(seen, options, given)


def expected(seen: Sequence[Batch], options: Config, start: PriorStart | None) -> list[Any]:
    """The terms of each step's loss, to rounding."""
    terms = [written_out(batch, step, options, start) for step, batch in enumerate(seen)]
    return [pytest.approx(values, rel=1e-5, abs=1e-6) for values in terms]


@pytest.mark.parametrize("start", [True, False], ids=["default", "from noise"])
def test_pairs_are_sought_among_more_cells_than_are_seen(start: bool) -> None:
    options, given = (config(), start_of()) if start else (config(flow={"source": "gaussian"}), None)
    seen = batches(3, n_drawn=CELLS + 2)
    assert steps(module_of(Spoken(), options, given), seen) == expected(seen, options, given)


@pytest.mark.parametrize("n_drawn", [CELLS, CELLS + 3])
def test_shares_of_a_batch_add_up_to_its_loss(n_drawn: int) -> None:
    """Every process draws for the whole batch, and counts by its conditions."""
    whole = batches(1, n_drawn=n_drawn)[0]
    found = [
        steps(module_of(Spoken(), config(), start_of()), [part])[0]
        for part in (whole, whole.share(0, 2), whole.share(1, 2))
    ]
    for term in golden.TERMS:
        assert found[0][term] == pytest.approx(found[1][term] + found[2][term], rel=1e-5), term


def mean_and_error(values: Sequence[float] | Tensor) -> tuple[Any, Any]:
    """Mean over steps, and its standard error."""
    found = torch.as_tensor(values) if not isinstance(values, Tensor) else values
    return found.double().mean(0), found.double().std(0) / math.sqrt(len(found))


def gaussian_cells(start: PriorStart, places: Sequence[int], n: int, moved: float, seed: int) -> Tensor:
    """Cells of standard normal scores around the expected means, moved by so many deviations."""
    rng, condition = torch.Generator().manual_seed(seed), torch.tensor(list(places)).repeat_interleave(n)
    scores = torch.randn((len(condition), len(start.spread.deviation)), generator=rng) + moved
    return law(start).expression(scores, start.rates[condition])


def watched_steps(
    field: Basis, moved: float, n_steps: int = 40, n_genes: int = 6
) -> tuple[list[dict[str, float]], Tensor]:
    """Losses and gradients of steps on cells whose scores are `moved` by so many deviations."""
    start, places = start_of(n_genes, zeros=0.0, n_donors=3000), (0, 1, 2, 3)
    seen = [batch_of(gaussian_cells(start, places, 100, moved, seed), places) for seed in range(n_steps)]
    options = config(mmd={"weight": 0.0}, flow={"pairing": "random"}, training=STILL | {"clip_norm": 0.0})
    losses = steps(module_of(field, options, start, n_genes), seen)
    return losses, torch.stack(field.seen)


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


WEIGHT = float(start_of(6).spread.deviation.square().mean())
"""Mean d²."""


def test_nothing_is_left_to_correct_where_cells_are_as_their_donors() -> None:
    losses, gradients = watched_steps(Basis(torch.zeros(4, 6), FUNCTIONS), moved=0.0)
    loss, error = mean_and_error([step["cfm"] for step in losses])
    assert loss == pytest.approx(WEIGHT * math.pi / 2, abs=4 * float(error))
    assert error < 0.01 * loss
    slope, error = mean_and_error(gradients)
    assert (slope.abs() < 4 * error).all(), slope / error


def test_cells_that_are_moved_are_corrected_by_their_shift() -> None:
    """The loss of no correction is larger by m²·∫((1 − t)/(t² + (1 − t)²))² dt; the known one leaves nothing to gain."""
    ts = (np.arange(10_000) + 0.5) / 10_000
    more, best = (0.5**2 * WEIGHT * float((((1 - ts) / (ts**2 + (1 - ts) ** 2)) ** 2).mean()), WEIGHT * math.pi / 2)
    silent, slopes = watched_steps(Basis(torch.zeros(1, 6), (answer,)), moved=0.5)
    loss, error = mean_and_error([step["cfm"] for step in silent])
    assert loss == pytest.approx(best + more, abs=4 * float(error))
    assert 4 * error < more
    slope, error = mean_and_error(slopes)
    assert (slope < -4 * error).all()
    weights = torch.cat([torch.full((1, 6), 0.5), torch.zeros(4, 6)])
    corrected, slopes = watched_steps(Basis(weights, (answer, *FUNCTIONS)), moved=0.5)
    loss, error = mean_and_error([step["cfm"] for step in corrected])
    assert loss == pytest.approx(best, abs=4 * float(error))
    slope, error = mean_and_error(slopes)
    assert (slope.abs() < 4 * error).all(), slope / error


def test_that_correction_generates_them() -> None:
    """Each cell ends where it began, m further: its genes solved in chunks, the Gaussian part exactly."""
    start = start_of(6, zeros=0.0, n_donors=3000)
    condition = torch.tensor([0, 1]).repeat_interleave(150)

    def scores(moved: float) -> Tensor:
        cells = generate(
            Basis(torch.full((1, 4), moved), (lambda x, t: answer(x[:, :1], t),)), control=torch.zeros(300, 6),
            perturbation=TOKENS[:2], condition=condition, genes=torch.arange(6),
            sampling=SamplingConfig(solver="rk4", steps=12), genes_per_step=4,
            rng=torch.Generator().manual_seed(1), start=start.of(NAMES[:2]),
        )  # fmt: skip
        return law(start).scores(cells, start.rates[condition], torch.zeros(cells.shape))

    still, moved = scores(0.0), scores(0.5)
    kept = still.abs() < 2.5
    assert kept.float().mean() > 0.95
    torch.testing.assert_close((moved - still)[kept], torch.full((int(kept.sum()),), 0.5), rtol=0, atol=0.01)


def test_values_that_a_screen_did_not_measure_count_for_nothing() -> None:
    """Whatever stands there the losses are the same to the bit; with the mask taken out they are not."""
    names = tuple(f"{name}|screen=a" for name in NAMES)
    start, places = replace(start_of(), names=names), torch.arange(0, GENES, 2)
    field, losses = Spoken(), {}
    for masked in (True, False):
        for junk in (0.0, 9.0):
            seen = []
            for batch in batches(2):
                control, target = batch.control.clone(), batch.target.clone()
                control[:, 1::2], target[:, 1::2] = junk, junk
                own = tuple(f"{name}|screen=a" for name in batch.conditions)
                seen.append(replace(batch, control=control, target=target, conditions=own))
            module = module_of(field, config(flow={"genes_per_step": 7}), start)
            module.measured = {"a": places} if masked else {}
            losses[masked, junk] = steps(module, seen)
    assert losses[True, 0.0] == losses[True, 9.0]
    assert losses[False, 0.0] != losses[False, 9.0]
