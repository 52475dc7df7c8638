"""Batches assembled ahead are those of their steps, bit for bit, and nothing is left running."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

import scdfm
from scdfm.data import Batch, ConditionSampler, Vocabulary, make_split, select_genes, targets
from scdfm.data.encoding import ConditionEncoder
from scdfm.seeds import numpy_rng
from scdfm.training.inputs import prepare
from scdfm.training.steps import LEAST_CELLS, Prefetched, StepBatches, StepData, ValidationConditions


@pytest.fixture(scope="module")
def batches() -> StepBatches:
    cells = scdfm.read_cells(scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=8, n_controls=20, seed=3))
    split = make_split(cells, scdfm.Config().split, seed=0)
    sampler = ConditionSampler(
        cells, split, select_genes(cells, split), numpy_rng(0, "unused"), n_conditions=2, n_cells=5
    )
    return StepBatches(sampler, seed=1, n_steps=7)


def parts(batch: Batch) -> list[Any]:
    """All that a batch holds, the tensors of its conditions too."""
    held = vars(batch) | vars(batch.perturbation)
    return [value for name, value in held.items() if name != "perturbation"]


def equal(one: Batch, other: Batch) -> bool:
    pairs = zip(parts(one), parts(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize(("flow", "n_drawn"), [({}, 48), ({"pairing_cells": 9}, 9), ({"pairing": "random"}, 6)])
def test_a_fit_draws_the_cells_among_which_it_seeks_pairs(flow: dict[str, Any], n_drawn: int) -> None:
    cells = scdfm.read_cells(scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=8, n_controls=20, seed=3))
    split = make_split(cells, scdfm.Config().split, seed=0)
    config = scdfm.Config().updated({"training": {"conditions_per_batch": 2}, "flow": flow})
    batch = StepData(cells, split, prepare(cells, split, config, None), 0).sampler.sample()
    assert (len(batch.control), len(batch.condition), len(batch.target)) == (12, 12, 2 * n_drawn)


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
@pytest.mark.parametrize("first", [0, 4])
def test_a_thread_changes_no_bit(batches: StepBatches, first: int, ahead: int) -> None:
    fed = Prefetched(batches, first, ahead=ahead)
    found = list(fed)
    assert len(fed) == 7  # of the whole fit
    assert len(found) == 7 - first
    assert all(equal(batch, batches[step]) for step, batch in enumerate(found, start=first))
    assert not equal(found[0], found[1])


def test_the_next_batches_are_assembled_while_a_step_runs(batches: StepBatches) -> None:
    done = threading.Event()
    seen: list[tuple[int, str]] = []

    class Noted(StepBatches):
        def __getitem__(self, step: int) -> Batch:
            seen.append((step, threading.current_thread().name))
            if step == 2:
                done.set()
            return super().__getitem__(step)

    others = set(threading.enumerate())  # of earlier tests, whose feeds nobody has closed yet
    fed = iter(Prefetched(Noted(batches.sampler, 1, 7), ahead=2))
    next(fed)
    assert done.wait(timeout=30)  # step 2 is there before anybody asked for step 1
    assert [step for step, _ in seen] == [0, 1, 2]
    assert all(name.startswith("batches") for _, name in seen)
    fed.close()
    assert not any(thread.name.startswith("batches") for thread in set(threading.enumerate()) - others)


def test_an_error_of_the_thread_reaches_the_fit(batches: StepBatches) -> None:
    class Broken(StepBatches):
        def __getitem__(self, step: int) -> Batch:
            if step == 3:
                raise scdfm.errors.DataError("cells are gone")
            return super().__getitem__(step)

    fed = iter(Prefetched(Broken(batches.sampler, 1, 7)))
    assert [next(fed) is not None for _ in range(3)] == [True] * 3
    with pytest.raises(scdfm.errors.DataError, match="cells are gone"):
        next(fed)


def test_a_batch_moves_whole(batches: StepBatches) -> None:
    batch = batches[0]
    moved = batch.to("meta")
    assert all(value.is_meta for value in parts(moved) if isinstance(value, torch.Tensor))
    assert moved.conditions == batch.conditions
    assert equal(replace(batch), batch.to("cpu"))


def validated(cells: scdfm.CellTable, names: tuple[str, ...], **options: int) -> ValidationConditions:
    panel = select_genes(cells, scdfm.Split("by hand", 0, names, (), ()))
    asked = {target for name in cells.conditions for target in targets(name)}
    encoder = ConditionEncoder(Vocabulary((*Vocabulary.SPECIAL, *sorted({*map(str, cells.genes), *asked}))))
    config = scdfm.Config().updated({"training": options})
    return ValidationConditions(cells, panel, encoder, names, config.training, seed=4)


def test_validation_looks_at_as_many_genes_and_cells_as_it_may() -> None:
    cells = scdfm.read_cells(scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=9, n_controls=20, seed=3))
    names = tuple(name for name in cells.conditions if name != "control")
    whole = validated(cells, names, validation_cells=50).batches
    assert [batch.name for batch in whole] == list(names)
    assert {len(batch.control) for batch in whole} == {9}  # as many as are real
    some = validated(cells, names, validation_cells=6, validation_budget=20, validation_genes=7).batches
    assert len(some) == 3  # 6 cells each
    assert {batch.name for batch in some} < set(names)
    for batch in some:
        assert batch.places.tolist() == sorted(set(batch.places.tolist()))
        assert batch.control.shape == batch.target.shape == (6, 7)
        matching = next(other for other in whole if other.name == batch.name)
        torch.testing.assert_close(batch.target_mean, matching.target_mean[batch.places])
        assert batch.n_cells == 9
    assert len(validated(cells, names, validation_cells=6, validation_budget=2).batches) == 1  # never none


def test_few_real_cells_are_faced_by_a_few_more() -> None:
    cells = scdfm.read_cells(scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=2, n_controls=20, seed=3))
    names = tuple(name for name in cells.conditions if name != "control")[:3]
    for batch in validated(cells, names).batches:
        assert (len(batch.control), len(batch.target)) == (LEAST_CELLS, 2)


def test_validation_draws_its_cells() -> None:
    """A file may be sorted, by depth or batch: its first cells are no sample."""
    cells = scdfm.read_cells(scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=40, n_controls=40, seed=3))
    names = tuple(name for name in cells.conditions if name != "control")
    columns = cells.columns(select_genes(cells, scdfm.Split("by hand", 0, names, (), ())).genes)
    found = []
    for batch in validated(cells, names, validation_cells=10).batches:
        own = torch.from_numpy(cells.X[cells.rows(batch.name)][:, columns[batch.places]].toarray())
        rows = [int((own == cell).all(1).nonzero()[0, 0]) for cell in batch.target]
        assert len(set(rows)) == 10
        found += rows
    # Uniform over the 40 cells of a condition: (n² − 1) / 12 is their variance.
    error = ((40**2 - 1) / 12 / len(found)) ** 0.5
    assert abs(sum(found) / len(found) - 19.5) < 4 * error
