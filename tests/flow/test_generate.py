"""Generation: every gene of every cell in its place, one result whatever the batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scdfm.condition_tensors import ConditionTensors
from scdfm.config import ModelConfig, SamplingConfig
from scdfm.errors import TrainingError
from scdfm.flow import Noise, gene_chunks, generate, sample_normal
from scdfm.model import VelocityField

M, G = 13, 30


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Places:
    """A field with constant velocity control + 10·gene id + 1000·Σ perturbation: the end tells where it was."""

    training = True
    is_zero = False

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.modes: list[bool] = []

    def context(self, control: Tensor, genes: Tensor, perturbation: Tensor, condition: Tensor) -> Tensor:
        self.seen.append(len(genes))
        self.modes.append(self.training)
        return control + 10 * genes + 1000 * perturbation[condition].sum(-1, keepdim=True)

    def velocity(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return context

    def bytes_per_cell(self, n_genes: int) -> int:
        return 1

    def parameters(self) -> Iterator[Any]:
        return iter([torch.zeros(1)])

    def train(self, mode: bool = True) -> None:
        self.training = mode


def inputs() -> dict[str, Any]:
    return {
        "control": torch.rand(M, G, generator=rng(1)),
        "perturbation": torch.tensor([[4, 5], [6, 3], [7, 7]]),
        "condition": torch.tensor([2, 0, 0, 2, 1, 2, 2, 0, 1, 1, 2, 0, 2]),
        "genes": torch.randperm(G, generator=rng(2)) + 4,
    }


def real_field(**options: Any) -> VelocityField:
    torch.manual_seed(0)
    return VelocityField(ModelConfig(width=16, heads=2, layers=2, **options), None, G + 4)


@pytest.mark.parametrize("batch_cells", [None, 1, 4, 100])
@pytest.mark.parametrize("genes", ["chunks", "joint"])
def test_every_value_is_in_its_place(genes: str, batch_cells: int | None) -> None:
    given = inputs()
    field = Places()
    sampling = SamplingConfig(genes=genes, steps=2, clamp=False, noise="independent")
    out = generate(field, **given, sampling=sampling, genes_per_step=8, rng=rng(), batch_cells=batch_cells)
    end = field.context(given["control"], given["genes"], given["perturbation"], given["condition"])
    stream = rng()
    gene_chunks(G, 8 if genes == "chunks" else None, stream)
    torch.testing.assert_close(out, end + sample_normal((M, G), stream), rtol=1e-6, atol=1e-3)
    assert set(field.seen[:-1]) == {8 if genes == "chunks" else G}


@dataclass(frozen=True)
class Told(Noise):
    """Noise that tells the network a mean [C, G] of each condition."""

    means: Tensor = field(default_factory=lambda: torch.zeros(0))

    def at(self, conditions: Tensor) -> Told:
        return replace(self, means=self.means[conditions])

    def on(self, genes: Tensor | slice) -> Told:
        return replace(self, n_genes=len(self.means[0, genes]), means=self.means[:, genes])

    def inputs(self) -> dict[str, Tensor]:
        return {"expected": self.means}


class Expecting(Places):
    """A field whose velocity is what it is told of the condition."""

    def context(self, *inputs: Tensor, expected: Tensor) -> Tensor:  # type: ignore[override]
        return expected[inputs[-1]]


@pytest.mark.parametrize("batch_cells", [None, 1, 2, 5])
def test_the_network_is_told_the_start_of_its_own_condition(batch_cells: int | None) -> None:
    """Batches that lack the first conditions, too."""
    given, sampling = inputs(), SamplingConfig(steps=2, clamp=False, noise="independent")
    start = Told(G, means=torch.rand(3, G, generator=rng(5)) * 100)
    out = generate(
        Expecting(), **given, sampling=sampling, genes_per_step=8, rng=rng(), start=start, batch_cells=batch_cells
    )  # fmt: skip
    stream = rng()
    gene_chunks(G, 8, stream)
    noise = sample_normal((M, G), stream)
    torch.testing.assert_close(out, start.means[given["condition"]] + noise, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 8, 10, 29])
def test_chunks_partition_the_genes_and_are_all_full(size: int) -> None:
    chunks = gene_chunks(G, size, rng())
    assert all(len(chunk) == size == len(set(chunk.tolist())) for chunk, _ in chunks)
    kept = torch.cat([chunk[:n] for chunk, n in chunks])
    assert sorted(kept.tolist()) == list(range(G))
    assert kept.tolist() != list(range(G))


@pytest.mark.parametrize("size", [None, G, G + 1])
def test_one_chunk_when_all_genes_fit(size: int | None) -> None:
    ((chunk, kept),) = gene_chunks(G, size, rng())
    assert chunk.tolist() == list(range(G))
    assert kept == G


def test_result_does_not_depend_on_batches_and_repeats_to_the_bit() -> None:
    field, sampling = real_field(), SamplingConfig(steps=3)
    whole, again = (generate(field, **inputs(), sampling=sampling, genes_per_step=12, rng=rng()) for _ in range(2))
    assert torch.equal(whole, again)
    other = generate(field, **inputs(), sampling=sampling, genes_per_step=12, rng=rng(1))
    assert not torch.allclose(whole, other)
    for batch_cells in (1, 5):
        parts = generate(field, **inputs(), sampling=sampling, genes_per_step=12, rng=rng(), batch_cells=batch_cells)
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_clamp() -> None:
    field = real_field()
    free = generate(field, **inputs(), sampling=SamplingConfig(steps=2, clamp=False), genes_per_step=None, rng=rng())
    cut = generate(field, **inputs(), sampling=SamplingConfig(steps=2), genes_per_step=None, rng=rng())
    assert (free < 0).any()
    assert torch.equal(cut, free.clamp(min=0))


def test_dropout_is_off_unless_asked_for_and_the_mode_comes_back() -> None:
    field = Places()
    for dropout in (False, True):
        sampling = SamplingConfig(steps=1, dropout=dropout)
        generate(field, **inputs(), sampling=sampling, genes_per_step=None, rng=rng())
        assert set(field.modes) == {dropout}
        assert field.training
        field.modes.clear()


def test_live_dropout_draws_anew_at_every_evaluation_and_from_the_seed() -> None:
    field = real_field(dropout=0.3)
    still, live = (SamplingConfig(steps=2, dropout=dropout) for dropout in (False, True))
    before = torch.get_rng_state()
    one, two = (generate(field, **inputs(), sampling=live, genes_per_step=None, rng=rng()) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(one, generate(field, **inputs(), sampling=still, genes_per_step=None, rng=rng()))
    places = Places()
    generate(
        places,
        **inputs(),
        sampling=SamplingConfig(solver="midpoint", steps=5, dropout=True),
        genes_per_step=None,
        rng=rng(),
    )
    assert len(places.seen) == 10  # the constants are drawn again at each of 2 · 5 evaluations


def test_poisson_source_reaches_the_solver() -> None:
    class Still(Places):
        def velocity(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return torch.zeros_like(x_t)

    rates = torch.linspace(0.1, 3, G)
    out = generate(
        Still(), **inputs(), sampling=SamplingConfig(), genes_per_step=None, rng=rng(), start=Noise(G, "poisson", rates)
    )
    assert torch.equal(out, Noise(G, "poisson", rates).draw(M, rng()))


def test_values_that_are_not_finite_are_told() -> None:
    field = real_field()
    nn.init.constant_(field.decoder.out.bias, float("nan"))
    with pytest.raises(TrainingError, match=rf"not finite in {M} of {M} cells; the fit diverged"):
        generate(field, **inputs(), sampling=SamplingConfig(steps=1), genes_per_step=None, rng=rng())


def test_no_cells_give_an_empty_table() -> None:
    given = inputs() | {"control": torch.empty(0, G), "condition": torch.empty(0, dtype=torch.long)}
    out = generate(real_field(), **given, sampling=SamplingConfig(), genes_per_step=8, rng=rng())
    assert out.shape == (0, G)


def test_guidance_follows_its_equation() -> None:
    """A field constant in x and t ends at x₀ + v, so v = v_null + w·(v − v_null) can be read off."""

    class Guided(Places):
        def context(self, control: Tensor, genes: Tensor, perturbation: Any, condition: Tensor) -> Tensor:
            if isinstance(perturbation, Tensor):
                return super().context(control, genes, perturbation, condition)
            assert perturbation.dropped.all()
            return -control

    noise = sample_normal((M, G), rng())
    still = SamplingConfig(steps=1, clamp=False, noise="independent")

    def end(weight: float) -> Tensor:
        sampling = still.model_copy(update={"guidance": weight})
        return generate(Guided(), **inputs(), sampling=sampling, genes_per_step=None, rng=rng()) - noise

    given = inputs()
    conditional, null = end(1.0), -given["control"]
    torch.testing.assert_close(end(0.0), null, rtol=1e-5, atol=1e-3)
    for weight in (0.5, 2.5):
        torch.testing.assert_close(end(weight), null + weight * (conditional - null), rtol=1e-5, atol=2e-2)


def test_conditions_may_carry_more_than_tokens() -> None:
    given = inputs()
    plain = generate(real_field(), **given, sampling=SamplingConfig(), genes_per_step=8, rng=rng())
    given["perturbation"] = ConditionTensors(given["perturbation"])
    again = generate(real_field(), **given, sampling=SamplingConfig(), genes_per_step=8, rng=rng())
    assert torch.equal(plain, again)
