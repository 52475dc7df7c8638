"""A screen as work: what is asked, what it will cost, its shards, and the folder that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm.auto import tqdm

from scdfm.data.conditions import CONTROL
from scdfm.data.stored import in_memory, subset
from scdfm.errors import ConfigError, DataError
from scdfm.evaluation.pseudobulk import Floats
from scdfm.files import write_json, written_whole
from scdfm.jobs import begun, duration, part_size, seconds_per_item
from scdfm.processes import Place, place
from scdfm.run.shards import conditions_at_once
from scdfm.screening.effect import Effect, Reference, Untreated
from scdfm.screening.ensemble import Calibration, Ensemble, calibrating
from scdfm.screening.interaction import GENES, interaction
from scdfm.screening.page import write_page
from scdfm.screening.proposal import proposed
from scdfm.screening.ranking import Ranking, Tabulator
from scdfm.screening.space import chosen, members
from scdfm.screening.store import CALIBRATION, PROPOSED, RECORD, TABLE, Screen, Store
from scdfm.seeds import numpy_rng

if TYPE_CHECKING:
    from anndata import AnnData

    from scdfm.data import CellTable
    from scdfm.run import Run


@dataclass(frozen=True)
class Estimate:
    """Seconds to predict `conditions`, and to score `pairs` afterwards."""

    conditions: int
    seconds_per_condition: float
    pairs: int = 0
    seconds_per_pair: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.conditions * self.seconds_per_condition + self.pairs * self.seconds_per_pair

    def __str__(self) -> str:
        return f"{self.conditions:,} conditions at {self.seconds_per_condition:.3g} s: about {duration(self.seconds)}"


SHARD = 32
"""Most conditions of one shard; fewer where a flow would take more than a minute for them."""


def screen(
    runs: Run | Sequence[Run],
    *,
    out: str | Path,
    targets: Sequence[str] | None = None,
    order: int = 2,
    conditions: Sequence[str] | None = None,
    setting: str = "",
    genome: bool = False,
    cells: int = 128,
    rank_by: str = "effect",
    propose: int = 0,
    keep_cells: bool = False,
    controls: CellTable | AnnData | str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: bool = False,
    say: Callable[[str], object] | None = None,
    shard: int | None = None,
) -> Screen:
    """Predict every combination of up to `order` of the `targets`, and leave means, table and page in the folder `out`.

    runs: one run, or several whose disagreement becomes the uncertainty.
    targets: None takes all that the run was trained on; with a dose where wanted ("JQ1@0.5"). setting: covariates and time
        of every combination, e.g. "cell_line=K562|time=24". conditions: names to predict instead of combinations.
    genome: every gene of the run too, as a single, those that nobody perturbed with the uncertainty that the prior has.
    cells: cells generated for each condition (by each run).
    rank_by: effect, interaction, uncertainty, toward:CELLS.h5ad or signature:UP.txt,DOWN.txt.
    propose: how many conditions to propose for the next experiment (`scdfm.screening.proposal`).
    keep_cells: keep the predicted cells too, not only their means.
    controls: control cells to start from; None takes those stored with the (first) run.
    resume: go on in `out`, or rank a finished screen anew. say: is told the cost before the work starts, after a short
        probe; None does without both.
    shard: conditions of one file, which a stop may lose; None takes at most 32, and about a minute's. Processes with RANK
        and WORLD_SIZE share the shards; who ends last writes the table.

    Each condition draws from streams of its own: a screen killed and resumed, or shared, ends in the same bits on a CPU.
    """
    folder = Path(out).absolute()  # the working folder may change before its files are read
    if cells < 2:
        raise DataError(f"cells per condition: expected at least 2, found {cells}")
    if propose < 0 or (shard is not None and shard < 1):
        raise ConfigError(f"propose {propose}, shard {shard}: expected at least 0 and at least 1")
    ensemble = Ensemble.of(runs)
    screen_conditions = chosen(ensemble.first, targets, order, conditions, setting, genome)
    ensemble.check(screen_conditions)
    ranking = Ranking.of(rank_by, ensemble)
    table = ensemble.control_table(controls)
    calibrate, calibrated_by = calibrating(ensemble, seed)
    names = tuple(dict.fromkeys([*screen_conditions, *calibrate]))
    if shard is None:
        shard = (part_size(folder / RECORD) if resume else None) or _at_once(ensemble, cells)
    record = {
        "runs": [run.manifest.digests["weights.safetensors"] for run in ensemble.runs],
        "names": list(names), "calibrating": sorted(set(names) - set(screen_conditions)), "cells": cells, "seed": seed,
        "keep_cells": keep_cells, "controls": table.digest(), "shard": shard, "genes": list(ensemble.genes),
    }  # fmt: skip
    here = place()
    store = Store(begun(folder, RECORD, record, resume, here), names, shard, genes=ensemble.genes)
    job = Job(
        ensemble, table, untreated(ensemble, table, seed), store, here, ranking, frozenset(screen_conditions),
        tuple(calibrate), calibrated_by, cells, propose, keep_cells, seed,
    )  # fmt: skip
    if say is not None:
        said = job.estimate()
        say("every condition is predicted" if said is None else f"estimate: {said}")
    job.run(progress)
    return job.finished()


@dataclass(frozen=True)
class Job:
    """A screen under way: what to predict, with what, and where it goes."""

    ensemble: Ensemble
    table: CellTable
    untreated: Untreated
    store: Store
    place: Place
    ranking: Ranking
    asked: frozenset[str]
    calibrating: tuple[str, ...]
    calibrated_by: str
    cells: int
    propose: int
    keep_cells: bool
    seed: int

    @property
    def mine(self) -> list[int]:
        """The shards that this process has left to do."""
        return self.place.mine(self.store.missing())

    def estimate(self) -> Estimate | None:
        """What is left for this process, measured on a few conditions; None where nothing is left."""
        left = [name for shard in self.mine for name in self.store.conditions(shard)]
        if not left:
            return None
        seconds = seconds_per_item(self.effects, left, self.store.size)
        pairs = sum(len(members(name)) == 2 for name in self.store.names)
        per_pair = seconds_per_item(self._one_pair, ["pair"] * 3, 1) if pairs else 0.0
        return Estimate(len(left), seconds, pairs, per_pair)

    def _one_pair(self, names: Sequence[str]) -> None:
        rng = numpy_rng(self.seed, "screen", "probe")
        for _ in names:
            a, b, ab = rng.standard_normal((3, min(GENES, len(self.store.genes))))
            interaction(a, b, ab)

    def effects(self, names: Sequence[str]) -> list[Effect]:
        """The effects of `names`, in their order."""
        predictions = self.ensemble.populations(names, self.cells, self.seed, self.table)
        return [Effect.of(populations, self.untreated.of(name)) for name, populations in predictions]

    def run(self, progress: bool) -> None:
        """Predict the shards that are left to this process."""
        mine = self.mine
        total = sum(len(self.store.conditions(shard)) for shard in mine)
        done = len(self.store.names) - total if self.place.world == 1 else 0
        with tqdm(total=total + done, initial=done, desc="screen", unit="condition", disable=not progress) as bar:
            for shard in mine:
                effects, blocks = [], []
                names = self.store.conditions(shard)
                for name, populations in self.ensemble.populations(names, self.cells, self.seed, self.table):
                    effects.append(Effect.of(populations, self.untreated.of(name)))
                    blocks += [(name, run, cells) for run, cells in enumerate(populations)] * self.keep_cells
                self.store.write(shard, effects, _cells(blocks, self.store.genes) if blocks else None)
                bar.update(len(names))

    def finished(self) -> Screen:
        """Write table, proposals and page once every shard is there (whoever ends last), and open the screen."""
        partial = Screen.load(self.store.folder)
        if self.store.missing():
            return partial
        calibration = self._calibration()
        tabulator = Tabulator(self.store, self.ensemble, self.untreated, self.asked, calibration)
        table = tabulator.table(self.ranking)
        picked = []
        if self.propose:
            picked = proposed(table, self.store, self.ensemble, self.untreated, self.propose)
        turn = {name: at + 1 for at, name in enumerate(picked)}
        table["proposed"] = [turn.get(name, 0) for name in table["condition"]]
        write_json(self.store.folder / CALIBRATION, asdict(calibration))
        (self.store.folder / PROPOSED).unlink(missing_ok=True)
        if picked:
            with written_whole(self.store.folder / PROPOSED) as path:
                table.set_index("condition").loc[picked].reset_index().to_csv(path, index=False)
        with written_whole(self.store.folder / TABLE) as path:
            table.to_parquet(path, index=False)
        write_page(self.store, table, self.ensemble, self.untreated, calibration)
        return Screen.load(self.store.folder)

    def _calibration(self) -> Calibration:
        """How far predictions of measured conditions are off, against their spread."""
        spread, error = [], []
        for shard in self.store.shards():
            for row, name in enumerate(shard.names):
                if name in self.calibrating:
                    measured = self.ensemble.measured.loc[name].to_numpy(np.float64)
                    spread.append(float(shard.rows["spread"].iloc[row]))
                    error.append(float(np.linalg.norm(shard.means[row] - measured)))
        return Calibration.fitted(np.array(spread), np.array(error), self.calibrated_by)


def untreated(ensemble: Ensemble, table: CellTable, seed: int, genes: Sequence[str] | None = None) -> Untreated:
    """The control cells of `table` over `genes` (None: the ensemble's), which effects are measured against."""
    genes = list(ensemble.genes if genes is None else genes)
    measured, columns = ensemble.measured[genes], table.columns(genes)
    shifts = np.empty((0, len(genes)))
    if CONTROL in measured.index:
        perturbed = [name for name in measured.index if members(str(name))]
        shifts = measured.loc[perturbed].to_numpy(np.float64) - measured.loc[CONTROL].to_numpy(np.float64)
    return Untreated(table, columns, Reference.of(in_memory(subset(table.X, None, columns)), shifts, seed), seed)


def _cells(blocks: Sequence[tuple[str, int, Floats]], genes: Sequence[str]) -> ad.AnnData:
    """Predicted cells with their condition and the number of the run that predicted them."""
    lengths = [len(cells) for _, _, cells in blocks]
    obs = pd.DataFrame(
        {
            "condition": np.repeat([name for name, _, _ in blocks], lengths),
            "run": np.repeat([run for _, run, _ in blocks], lengths),
        },
        index=pd.Index([f"{name}_{run}_{at}" for name, run, cells in blocks for at in range(len(cells))], name="cell"),
    )
    X: Any = sp.vstack([sp.csr_matrix(cells) for _, _, cells in blocks], format="csr")
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=pd.Index(list(genes), name="gene")))


def _at_once(ensemble: Ensemble, cells: int) -> int:
    """Conditions that all runs together predict in a minute or so, SHARD at most."""
    each = cells * len(ensemble.runs)
    return min(SHARD, *(conditions_at_once(run, each, len(ensemble.genes)) for run in ensemble.runs))


__all__ = ["SHARD", "Job", "screen", "untreated"]
