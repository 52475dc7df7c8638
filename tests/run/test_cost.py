"""What a prediction is said to take: true of a clock that runs as fast as told, and nothing else changes."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import pytest

import scdfm
import small
from scdfm.config import SamplingConfig
from scdfm.jobs import duration
from scdfm.run import cost, predict, shards
from scdfm.run.cost import Cost, evaluations_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> scdfm.Run:
    screen = small.screen(n_genes=30, n_targets=4, cells_per_condition=8, n_controls=20, truth_cells=8)
    return small.run(tmp_path_factory.mktemp("cost") / "run", scdfm.read_cells(screen))


class Machine:
    """Predictions that take `call` seconds each time, and `cell` seconds for each cell."""

    def __init__(self, cell: float, call: float = 0.0) -> None:
        self.cell, self.call, self.now = cell, call, 0.0

    def drive(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cost, "clock", lambda: self.now)
        for module in (shards, predict):
            monkeypatch.setattr(module, "populations", self.timed(module.populations))

    def timed(self, populations):
        def work(run, names, table, n_cells, *given, **more) -> ad.AnnData:
            self.now += self.call + self.cell * n_cells * len(names)
            return populations(run, names, table, n_cells, *given, **more)

        return work


@pytest.mark.parametrize(
    ("cell", "call", "n_cells"), [(2.0, 0.0, 12), (0.5, 1.0, 30), (0.03, 0.1, 200), (0.001, 3.0, 100)]
)
def test_it_takes_what_was_said(
    run: scdfm.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: float, call: float, n_cells: int
) -> None:
    machine, said, names = Machine(cell, call), [], run.manifest.targets[:4]
    monkeypatch.setattr(shards, "SHARD_CELLS", n_cells)  # a call for each condition
    machine.drive(monkeypatch)
    told_at = []
    run.predict_to(
        tmp_path / "p.h5ad", names, n_cells=n_cells,
        say=lambda line: (said.append(line), told_at.append(machine.now)),
    )  # fmt: skip
    takes = 4 * (call + cell * n_cells)
    assert machine.now - told_at[0] == pytest.approx(takes)
    (line,) = said
    what = f"estimate: 4 conditions × {n_cells} cells × {len(run.genes)} genes, "
    assert line.startswith(what + f"{evaluations_of(run.config.sampling)} evaluations a cell: about ")
    assert line.endswith(f": about {duration(takes)}")


def test_short_predictions_say_nothing(run: scdfm.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(0.001).drive(monkeypatch)
    said: list[str] = []
    run.predict_to(tmp_path / "p.h5ad", run.manifest.targets[:2], n_cells=50, say=said.append)
    run.predict_to(tmp_path / "q.h5ad", run.manifest.targets[:2], n_cells=3, say=said.append)
    assert said == []


def test_the_log_has_the_same_line_and_numbers_stay(
    run: scdfm.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names, plain = run.manifest.targets[:3], run.predict(run.manifest.targets[:3], n_cells=20)
    machine, said = Machine(1.0), []
    machine.drive(monkeypatch)
    with caplog.at_level(logging.INFO, logger="scdfm.predict"):
        run.predict_to(tmp_path / "p.h5ad", names, n_cells=20, say=said.append)
        told = run.predict(names, n_cells=20)
    assert [record.getMessage() for record in caplog.records] == said * 2
    for found in (ad.read_h5ad(tmp_path / "p.h5ad"), told):
        assert (found.X != plain.X).nnz == 0
    before = machine.now
    run.predict(names, n_cells=20)  # nobody listens: nothing is probed
    assert machine.now - before == 60


def test_words() -> None:
    assert str(Cost(300, 400, 18533, 8, 7200)) == (
        "300 conditions × 400 cells × 18,533 genes, 8 evaluations a cell: about 2.0 h"
    )
    assert "as many evaluations as dopri5 needs" in str(Cost(1, 1, 1, None, 1))
    assert "no flow to solve" in str(Cost(1, 1, 1, 0, 1))
    assert evaluations_of(SamplingConfig(solver="midpoint", steps=3, guidance=2.0)) == 12
    assert evaluations_of(SamplingConfig(solver="dopri5")) is None
