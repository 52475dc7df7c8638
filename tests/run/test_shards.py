"""Predictions written as they come: the numbers of `predict`, whatever interrupts them, and never half a file."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scdfm
import small
from scdfm.errors import ConditionError, DataError, RunError, StorageError
from scdfm.run import shards
from scdfm.run.shards import Blocks

generating = importlib.import_module("scdfm.flow.generate")  # the package has a function of this name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> scdfm.Run:
    screen = small.screen(n_genes=40, n_targets=4, cells_per_condition=8, n_controls=20, truth_cells=8)
    out = tmp_path_factory.mktemp("shards") / "run"
    return small.run(out, scdfm.read_cells(screen), training={"keep_controls": 20})


@pytest.fixture(scope="module")
def asked(run: scdfm.Run) -> list[str]:
    a, b, c, d = run.manifest.targets[:4]
    return [f"{a}+{b}", c, f"{a}+{d}", b, f"{c}+{d}"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_CELLS", 12)  # two conditions of five cells


def read(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


def same(found: ad.AnnData, expected: ad.AnnData) -> None:
    assert (found.X != expected.X).nnz == 0
    assert found.X.has_sorted_indices
    assert found.var_names.tolist() == expected.var_names.tolist()
    pd.testing.assert_frame_equal(found.obs.astype(str), expected.obs.astype(str))
    assert list(found.obs["perturbation"].cat.categories) == list(expected.obs["perturbation"].cat.categories)
    said, wanted = found.uns["scdfm"], expected.uns["scdfm"]
    assert set(said) == set(wanted)
    for key, value in wanted.items():
        assert np.all(np.asarray(said[key]) == np.asarray(value)), key


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_the_file_is_what_predict_returns(run: scdfm.Run, asked: list[str], tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    written = run.predict_to(out, asked, seed=3)
    assert (written.path, written.n_cells, written.n_genes) == (out, 25, len(run.genes))
    assert written.conditions == tuple(asked)
    assert list(written.extrapolated) == list(run.predict(asked).uns["scdfm"]["extrapolated"])
    same(read(out), run.predict(asked, seed=3))
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert scdfm.read_cells(run.predict(asked), control=asked[0]).n == 25  # a form that scdfm reads too


def test_genes_controls_and_number_of_cells(run: scdfm.Run, asked: list[str], tmp_path: Path) -> None:
    options = {"controls": run.controls, "n_cells": 3, "genes": run.genes[4:9], "seed": 1}
    run.predict_to(tmp_path / "out.h5ad", asked, **options)  # type: ignore[arg-type]
    found = read(tmp_path / "out.h5ad")
    assert found.shape == (3 * len(asked), 5)
    same(found, run.predict(asked, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_an_interrupted_prediction_goes_on(
    run: scdfm.Run, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, done: int
) -> None:
    out, calls = tmp_path / f"out{suffix}", []
    predict = shards.populations

    def stopping(*given: object, **options: object) -> ad.AnnData:
        calls.append(given)
        if len(calls) > done:
            raise KeyboardInterrupt
        return predict(*given, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(shards, "populations", stopping)
        if done == 3:  # all shards are there: it stops while they are joined
            patch.setattr(shards.Shards, "_join", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.predict_to(out, asked)
    assert not out.exists()
    with pytest.raises(DataError, match="holds an unfinished prediction; continue it with --resume"):
        run.predict_to(out, asked)
    calls.clear()
    monkeypatch.setattr(shards, "populations", lambda *given, **options: calls.append(1) or predict(*given, **options))
    run.predict_to(out, asked, resume=True)
    assert len(calls) == 3 - done
    same(read(out), run.predict(asked))
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_joining_that_fails_leaves_no_scratch_file(
    run: scdfm.Run, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    out, write = tmp_path / f"out{suffix}", shards.Shards._join

    def failing(work: shards.Shards, group: object) -> None:
        write(work, group)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "_join", failing)
        with pytest.raises(StorageError, match=rf"out{suffix} cannot be written \(Input/output error\); .*--resume"):
            run.predict_to(out, asked)
    parts = [path.name for path in (tmp_path / f"out{suffix}.parts").iterdir()]
    assert sorted(parts) == ["000000.h5ad", "000001.h5ad", "000002.h5ad", "request.json"]
    run.predict_to(out, asked, resume=True)
    same(read(out), run.predict(asked))


def test_another_request_is_not_resumed(
    run: scdfm.Run, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "join", lambda *given: None)
        run.predict_to(tmp_path / "out.h5ad", asked)
    for other, what in (({"seed": 1}, "seed"), ({"n_cells": 2}, "cells"), ({"conditions": asked[1:]}, "conditions")):
        with pytest.raises(RunError, match=rf"started with other {what}( \(\S+, not \S+\))?; repeat the options"):
            run.predict_to(tmp_path / "out.h5ad", **({"conditions": asked} | other), resume=True)  # type: ignore[arg-type]


def test_any_process_may_take_any_shard(run: scdfm.Run, asked: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.h5ad"
    first = shards.shards_of(run, out, asked, None, None, None, 0, resume=False)
    second = shards.shards_of(run, out, asked, None, None, None, 0, resume=True)
    second.predict([2, 0])
    assert first.missing() == [1]
    first.predict(first.missing())
    second.join(out)
    same(read(out), run.predict(asked))


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_processes_of_an_array_share_a_prediction(
    run: scdfm.Run, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    out = tmp_path / "out.h5ad"
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in order:
        assert not out.exists()
        monkeypatch.setenv("RANK", str(rank))
        written = run.predict_to(out, asked, seed=3)
        assert written.complete == (rank == order[-1])
    same(read(out), run.predict(asked, seed=3))
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_who_joins_late_finds_it_done(run: scdfm.Run, asked: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.h5ad"
    first, late = (shards.shards_of(run, out, asked, None, None, None, 0, resume=resume) for resume in (False, True))
    first.predict(first.missing())
    written = first.join(out)
    assert late.join(out) == written
    same(read(out), run.predict(asked))


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("left", ["everything", "all parts", "some parts", "the word alone"])
def test_a_stop_after_the_file_has_its_name_is_finished(
    run: scdfm.Run, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, left: str
) -> None:
    out, parts = tmp_path / f"out{suffix}", tmp_path / f"out{suffix}.parts"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_clear", lambda *given: None)
        run.predict_to(out, asked)
    assert {path.name for path in parts.iterdir()} == {
        "finished.json", "000000.h5ad", "000001.h5ad", "000002.h5ad"
    }  # fmt: skip
    if left == "everything":  # the word that it is complete was not written yet
        (parts / "finished.json").rename(parts / "request.json")
    for number in {"some parts": [0, 2], "the word alone": [0, 1, 2]}.get(left, []):
        (parts / f"{number:06d}.h5ad").unlink()
    monkeypatch.setattr(shards, "populations", lambda *given, **options: pytest.fail("nothing is left to predict"))
    with pytest.raises(RunError, match="started with other seed"):
        run.predict_to(out, asked, seed=1, resume=True)
    written = run.predict_to(out, asked, resume=True)
    assert (written.n_cells, written.conditions) == (25, tuple(asked))
    monkeypatch.undo()
    same(read(out), run.predict(asked))
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_the_rest_of_a_finished_prediction_stands_in_no_ones_way(
    run: scdfm.Run, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.h5ad"
    for again, options in ((asked[:1], {"overwrite": True}), (asked[1:], {"resume": True})):
        with monkeypatch.context() as patch:
            patch.setattr(shards, "_clear", lambda *given: None)
            run.predict_to(out, asked, overwrite=True)
        if "resume" in options:
            out.unlink()  # by the user, who wants it anew
        run.predict_to(out, again, **options)
        assert read(out).n_obs == 5 * len(again)
        assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_broken_shard_is_named(run: scdfm.Run, asked: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.h5ad"
    started = shards.shards_of(run, out, asked, None, None, None, 0, resume=False)
    started.predict([0, 1, 2])
    started.path(1).write_bytes(started.path(2).read_bytes())
    with pytest.raises(RunError, match=r"000001.h5ad holds 5 cells, expected 10 .* remove it and repeat"):
        run.predict_to(out, asked, resume=True)
    assert not list(started.folder.glob("joined*"))
    started.path(1).unlink()
    run.predict_to(out, asked, resume=True)
    same(read(out), run.predict(asked))


def test_refusals(run: scdfm.Run, asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "there.h5ad").touch()
    with pytest.raises(DataError, match="exists; choose another name, or pass --overwrite"):
        run.predict_to(tmp_path / "there.h5ad", asked)
    with pytest.raises(DataError, match=r"ends in \.h5ad or \.zarr"):
        run.predict_to(tmp_path / "out.csv", asked)
    with pytest.raises(DataError, match="does not exist; create it first"):
        run.predict_to(tmp_path / "no" / "out.h5ad", asked)
    with pytest.raises(ConditionError, match="NOBODY"):
        run.predict_to(tmp_path / "out.h5ad", ["NOBODY"])
    with pytest.raises(DataError, match="expected at least 1, found 0"):
        run.predict_to(tmp_path / "out.h5ad", asked, n_cells=0)
    assert [path.name for path in tmp_path.iterdir()] == ["there.h5ad"]
    run.predict_to(tmp_path / "there.h5ad", asked[:1], overwrite=True)
    assert read(tmp_path / "there.h5ad").n_obs == 5
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr" / "notes.txt").touch()
    with pytest.raises(DataError, match="is a folder that holds no zarr store; choose another name"):
        run.predict_to(tmp_path / "folder.zarr", asked[:1], overwrite=True)
    run.predict_to(tmp_path / "there.zarr", asked[:1])
    run.predict_to(tmp_path / "there.zarr", asked[:2], overwrite=True)
    assert read(tmp_path / "there.zarr").n_obs == 10


@pytest.mark.parametrize("kind", ["flow", "prior"])
@pytest.mark.parametrize(("n_cells", "n_genes"), [(128, 500), (400, 18_533), (10, 40), (4, 18_533), (1, 2)])
def test_a_stop_loses_a_bounded_number_of_values(
    run: scdfm.Run, monkeypatch: pytest.MonkeyPatch, kind: str, n_cells: int, n_genes: int
) -> None:
    monkeypatch.setattr(shards, "SHARD_CELLS", 4096)
    asked = run if kind == "flow" else run.untrained()
    assert asked is not None
    size = shards.conditions_at_once(asked, n_cells, n_genes)
    values, cells = {"flow": 2**18, "prior": 2**23}[kind], n_cells * size
    assert size == 1 or (cells <= 4096 and cells * n_genes <= values)
    assert cells + n_cells > 4096 or (cells + n_cells) * n_genes > values  # one more were too many


@pytest.mark.parametrize("broken", [False, True])
def test_a_stop_within_a_shard_loses_one_block(
    run: scdfm.Run, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """Every block is kept at once here: what was solved before the stop is not solved again, and the bits are the same."""
    assert not run.field.is_zero
    monkeypatch.setattr(shards, "SECONDS", 0.0)
    monkeypatch.setattr(generating, "CPU_VALUES", 60)
    solve, solved = generating._solve, []
    stop_after = 7

    def counted(*given: object) -> torch.Tensor:
        if len(solved) == stop_after:
            raise KeyboardInterrupt
        solved.append(given)
        return solve(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(generating, "_solve", counted)
    with pytest.raises(KeyboardInterrupt):
        run.predict_to(tmp_path / "out.h5ad", asked)
    kept = sorted((tmp_path / "out.h5ad.parts").glob("*.blocks/*"))
    assert kept
    if broken:
        kept[-1].write_bytes(kept[-1].read_bytes()[:40])
    done, stop_after = len(solved), -1
    run.predict_to(tmp_path / "out.h5ad", asked, resume=True)
    resumed, stop_after = len(solved) - done, -1
    solved.clear()
    run.predict_to(tmp_path / "whole.h5ad", asked)
    assert done + resumed == len(solved) + broken
    same(read(tmp_path / "out.h5ad"), read(tmp_path / "whole.h5ad"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5ad", "whole.h5ad"]


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the clock shows."""
    now = [0.0]
    monkeypatch.setattr(shards, "clock", lambda: now[0])
    return now


def test_blocks_are_written_now_and_then_and_found_by_their_names(tmp_path: Path, time: list[float]) -> None:
    solved: list[float] = []

    def solve(value: float) -> torch.Tensor:
        solved.append(value)
        return torch.full((2, 3), value)

    first = Blocks(tmp_path / "s.blocks")
    first.of("A/B")("x", lambda: solve(1))
    assert not first.folder.exists()  # nothing is written of a shard that takes no time
    time[0] = 30.0
    first.of("A/B")("y", lambda: solve(2))
    first.of("A/B")("z", lambda: solve(3))  # after the last file: lost
    again = Blocks(tmp_path / "s.blocks")
    found = [again.of("A/B")(name, lambda: solve(4)) for name in "xyz"]
    assert torch.equal(torch.stack(found)[:, 0, 0], torch.tensor([1.0, 2.0, 4.0]))
    assert float(again.of("A+B")("x", lambda: solve(5))[0, 0]) == 5.0
    assert solved == [1, 2, 3, 4, 5]
    again.remove()
    assert not again.folder.exists()


def test_another_process_may_finish_the_shard_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its blocks are gone and nobody needs these; a disk that fails is told all the same."""

    def failing(*_: object) -> None:
        raise StorageError("cannot be written")

    late = Blocks(tmp_path / "s.blocks")
    late.of("A")("x", lambda: torch.zeros(1))
    monkeypatch.setattr(shards, "write_tensors", failing)
    with pytest.raises(StorageError):
        late.write()
    monkeypatch.setattr(shards, "write_tensors", lambda *_: (shutil.rmtree(late.folder), failing()))
    late.write()
    assert not late.folder.exists()
