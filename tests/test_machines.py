"""Sequences of what users do, drawn by hypothesis: a run folder, shards of two writers, screens ranked anew, a benchmark.

Each machine knows what every step must give, from undisturbed work done once. The suite draws a few sequences, always the
same ones; SCDFM_MACHINES=200 pytest tests/test_machines.py draws so many for each machine, anew, and says how many steps.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import scdfm
import small
from scdfm.benchmarking import pieces
from scdfm.errors import DataError, RunError
from scdfm.run import folder, shards
from scdfm.screening.store import Store

LONG = int(os.environ.get("SCDFM_MACHINES", "0"))
STEPS: Counter[str] = Counter()
SEEDS, NAMES = st.sampled_from([0, 1]), st.sampled_from(["a", "b"])
PLACE = Path(tempfile.mkdtemp(prefix="machines-"))


@pytest.fixture(scope="module", autouse=True)
def place() -> Iterator[None]:
    yield
    shutil.rmtree(PLACE, ignore_errors=True)
    if LONG:
        print(f"\nsteps: {dict(STEPS)}, {sum(STEPS.values())} in all")


@functools.cache
def cells() -> scdfm.CellTable:
    screen = small.screen(n_genes=24, n_targets=4, cells_per_condition=8, n_controls=20, truth_cells=4)
    return scdfm.read_cells(screen)


def config(seed: int) -> scdfm.Config:
    options = {name: small.OPTIONS[name] for name in ("model", "sampling")}
    return scdfm.Config.preset("instant").updated(options | {"seed": seed})


@functools.cache
def reference(seed: int) -> scdfm.Run:
    return scdfm.fit(cells(), config=config(seed), out=PLACE / f"reference{seed}", progress=False)


@functools.cache
def names() -> list[str]:
    a, b, c, d = reference(0).manifest.targets
    return [f"{a}+{b}", c, f"{a}+{d}", b]


@functools.cache
def predicted(seed: int) -> np.ndarray:
    return reference(seed).predict(names()[:1], n_cells=3).X.toarray()


class Machine(RuleBasedStateMachine):
    """One that has a folder of its own and counts its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=PLACE))

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @invariant()
    def counted(self) -> None:
        STEPS[type(self).__name__] += 1
        assert not list(self.folder.rglob(".*.part*"))


class RunFolder(Machine):
    """Two folders in which runs of two seeds are fitted, killed, gone on with, overwritten and moved; older objects too."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: dict[str, int] = {}
        self.finished: set[str] = set()
        self.held: list[tuple[scdfm.Run, int]] = []

    def fit(self, name: str, seed: int, **options: Any) -> None:
        run = scdfm.fit(cells(), config=config(seed), out=self.folder / name, progress=False, **options)
        self.seeds[name] = seed
        self.finished.add(name)
        self.held.append((run, seed))

    @rule(name=NAMES, seed=SEEDS)
    def fit_anew(self, name: str, seed: int) -> None:
        if name in self.seeds:
            with pytest.raises(DataError, match="exists and is not empty"):
                self.fit(name, seed)
        else:
            self.fit(name, seed)

    @rule(name=NAMES, seed=SEEDS)
    def overwrite(self, name: str, seed: int) -> None:
        self.fit(name, seed, overwrite=True)

    @rule(name=NAMES, seed=SEEDS, at=st.integers(0, 3))
    def kill(self, name: str, seed: int, at: int) -> None:
        """Stopped before one of the files is written."""
        if name in self.seeds:
            return
        calls = Counter[str]()
        write = folder.write_tensors

        def stops(*given: Any) -> None:
            calls["all"] += 1
            if calls["all"] > at:
                raise KeyboardInterrupt
            write(*given)

        try:
            with mock.patch.object(folder, "write_tensors", stops):
                self.fit(name, seed)
        except KeyboardInterrupt:
            self.seeds[name] = seed

    @rule(name=NAMES, seed=SEEDS)
    def resume(self, name: str, seed: int) -> None:
        if self.seeds.get(name, seed) != seed:
            with pytest.raises(RunError):
                self.fit(name, seed, resume=True)
        else:
            self.fit(name, seed, resume=True)

    @rule(name=NAMES)
    def load(self, name: str) -> None:
        if name not in self.finished:
            with pytest.raises(RunError):
                scdfm.Run.load(self.folder / name)
        else:
            run, seed = scdfm.Run.load(self.folder / name), self.seeds[name]
            np.testing.assert_array_equal(run.predict(names()[:1], n_cells=3).X.toarray(), predicted(seed))
            self.held.append((run, seed))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def predict_from_an_older_object(self, data: st.DataObject) -> None:
        """Its own numbers, or a refusal; never those of the run that stands there now."""
        run, seed = data.draw(st.sampled_from(self.held))
        try:
            found = run.predict(names()[:1], n_cells=3).X.toarray()
        except RunError:
            assert self.seeds.get(run.path.name) != seed or run.path.name not in self.finished
        else:
            np.testing.assert_array_equal(found, predicted(seed))

    @precondition(lambda self: len(self.seeds) == 1)
    @rule()
    def move(self) -> None:
        ((name, seed),) = self.seeds.items()
        other = "b" if name == "a" else "a"
        (self.folder / name).rename(self.folder / other)
        self.seeds = {other: seed}
        self.finished = {other} if self.finished else set()


class TwoWriters(Machine):
    """A prediction of four parts, which two writers do in any order, lose, and join."""

    @initialize()
    def begin(self) -> None:
        self.out = self.folder / "out.h5ad"
        self.joined = False
        with mock.patch.object(shards, "SHARD_CELLS", 3):
            asked = (reference(0), self.out, names(), None, 3, None, 0)
            self.writers = [shards.shards_of(*asked, resume=resume) for resume in (False, True)]

    @rule(writer=st.integers(0, 1), number=st.integers(0, 3))
    def write(self, writer: int, number: int) -> None:
        if not self.joined:
            self.writers[writer].predict([number])

    @rule(number=st.integers(0, 3))
    def lose(self, number: int) -> None:
        if not self.joined:
            self.writers[0].path(number).unlink(missing_ok=True)

    @rule(writer=st.integers(0, 1))
    def join(self, writer: int) -> None:
        if self.writers[writer].missing() and not self.joined:
            with pytest.raises(RunError, match="cannot be read"):
                self.writers[writer].join(self.out)
            return
        self.writers[writer].join(self.out)
        self.joined = True

    @invariant()
    def whole_or_not_there(self) -> None:
        if not hasattr(self, "out") or not self.joined:
            assert not (self.folder / "out.h5ad").exists()
            return
        found = ad.read_h5ad(self.out)
        expected = reference(0).predict(names(), n_cells=3)
        np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
        assert found.obs["source_control"].tolist() == expected.obs["source_control"].tolist()
        assert [path.name for path in self.folder.iterdir()] == ["out.h5ad"]


@functools.cache
def ranked() -> pd.DataFrame:
    return screened(PLACE / "ranked").table.set_index("condition")


def screened(out: Path, **options: Any) -> scdfm.Screen:
    return scdfm.screen(reference(0), out=out, targets=reference(0).manifest.targets[:3], cells=3, shard=3, **options)


class RankedAnew(Machine):
    """A screen that is stopped, loses parts, and is ranked anew."""

    def screen(self, **options: Any) -> None:
        found, expected = screened(self.folder / "s", resume=True, **options), ranked()
        table = found.table.set_index("condition")
        columns = ["energy", "shift", "spread", "departure", "uncertainty"]
        pd.testing.assert_frame_equal(table.loc[expected.index, columns], expected[columns])
        assert table["score"].dropna().is_monotonic_decreasing
        assert len(found.proposed) == options.get("propose", 0)

    @rule(rank_by=st.sampled_from(["effect", "interaction", "uncertainty"]), propose=st.integers(0, 2))
    def rank(self, rank_by: str, propose: int) -> None:
        self.screen(rank_by=rank_by, propose=propose)

    @rule(at=st.integers(0, 2))
    def stop(self, at: int) -> None:
        write, done = Store.write, []

        def stops(*given: Any) -> None:
            done.append(1)
            if len(done) > at:
                raise KeyboardInterrupt
            write(*given)

        with mock.patch.object(Store, "write", stops):
            try:
                self.screen()
            except KeyboardInterrupt:
                assert len(done) == at + 1

    @rule(number=st.integers(0, 2))
    def lose(self, number: int) -> None:
        (self.folder / "s" / "means" / f"{number:05d}.h5ad").unlink(missing_ok=True)


def scored(out: Path, folds: list[int], resume: bool = True) -> pd.DataFrame:
    found = scdfm.benchmark(
        cells(), out=out, folds=folds, seeds=1, models="baselines", metrics=["l2"], resume=resume, progress=False
    )
    return found.scores


@functools.cache
def scores() -> pd.DataFrame:
    return scored(PLACE / "bench", [0, 1, 2])


class Pieces(Machine):
    """A benchmark whose folds come one after the other, are stopped, lost and damaged."""

    @rule(folds=st.sets(st.integers(0, 2), min_size=1))
    def score(self, folds: set[int]) -> None:
        self.check(folds)

    def check(self, folds: set[int]) -> None:
        found, expected = scored(self.folder / "b", sorted(folds)), scores()
        pd.testing.assert_frame_equal(found, expected[expected["fold"].isin(folds)].reset_index(drop=True))

    @rule(folds=st.sets(st.integers(0, 2), min_size=1))
    def stop(self, folds: set[int]) -> None:
        with mock.patch.object(pieces, "write_piece", side_effect=KeyboardInterrupt):
            try:
                self.check(folds)
            except KeyboardInterrupt:
                return

    @rule(fold=st.integers(0, 2), name=st.sampled_from([pieces.SCORES, pieces.RECORD]), damage=st.booleans())
    def lose(self, fold: int, name: str, damage: bool) -> None:
        for path in (self.folder / "b").glob(f"fold{fold}/*/{name}"):
            path.write_text(path.read_text()[:-20]) if damage else path.unlink()


SIZES = [(RunFolder, 4, 8), (TwoWriters, 6, 10), (RankedAnew, 3, 5), (Pieces, 3, 5)]


@pytest.mark.parametrize(("machine", "examples", "steps"), SIZES)
def test_whatever_comes_after_what(machine: type[Machine], examples: int, steps: int) -> None:
    profile = settings(
        max_examples=LONG or examples, stateful_step_count=25 if LONG else steps, deadline=None, derandomize=not LONG,
        database=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=profile)
    assert STEPS[machine.__name__] > 1
