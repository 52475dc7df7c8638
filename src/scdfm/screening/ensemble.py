"""The runs that a screen asks: one, or several whose disagreement is its uncertainty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdfm.data.conditions import CONTROL, targets
from scdfm.data.split import PARTS, UNKNOWN
from scdfm.errors import DataError, RunError
from scdfm.run.extrapolation import extrapolated
from scdfm.screening.correlation import Floats

if TYPE_CHECKING:
    from anndata import AnnData

    from scdfm.data import CellTable
    from scdfm.run import Run


@dataclass(frozen=True)
class Ensemble:
    """Runs that predict the same conditions over `genes`, those that every run models, in the order of the first."""

    runs: tuple[Run, ...]
    genes: tuple[str, ...]

    @classmethod
    def of(cls, runs: Run | Sequence[Run]) -> Ensemble:
        """The ensemble of one run or several; RunError where two are one, or where their values do not compare."""
        several = tuple(runs) if isinstance(runs, (list, tuple)) else (runs,)
        if not several:
            raise RunError("screen: no run given; give the --out folder of a fit")
        weights = [run.manifest.digests["weights.safetensors"] for run in several]
        if len(set(weights)) < len(weights):
            twice = next(run for at, run in enumerate(several) if weights[at] in weights[:at])
            raise RunError(
                f"run {twice.path} has the weights of another run of the ensemble, which would agree with "
                "itself; give runs of different seeds"
            )
        first = several[0]
        for run in several[1:]:
            if run.manifest.scale != first.manifest.scale:
                raise RunError(
                    f"run {run.path} was fitted at scale {run.manifest.scale}, run {first.path} at "
                    f"{first.manifest.scale}; give runs of one scale"
                )
        shared = set.intersection(*(set(run.genes) for run in several))
        genes = tuple(gene for gene in first.genes if gene in shared)
        if not genes:
            raise RunError(f"runs {first.path} and {several[1].path} share no gene; give runs of one screen")
        return cls(several, genes)

    @property
    def first(self) -> Run:
        """The run whose controls and measured means the screen compares with."""
        return self.runs[0]

    def check(self, conditions: Sequence[str]) -> None:
        """Raise ConditionError for a target that a run does not know, before any work is done."""
        for run in self.runs:
            run.encoder.encode(list(conditions))

    def populations(
        self, conditions: Sequence[str], n_cells: int, seed: int, controls: CellTable | None = None
    ) -> Iterator[tuple[str, list[Floats]]]:
        """Each condition with its predicted cells [n_cells, G] by every run."""
        shared = list(self.genes)
        predicted = [
            run.predict(
                conditions, _start_of(run, controls), n_cells=n_cells,
                genes=None if run.genes == shared else shared, seed=seed,
            )
            for run in self.runs
        ]  # fmt: skip
        keys = [run.manifest.perturbation_key for run in self.runs]
        labels = [found.obs[key].astype(str).to_numpy() for found, key in zip(predicted, keys, strict=True)]
        for name in conditions:
            yield (
                name,
                [
                    np.asarray(found.X[of == name].toarray(), dtype=np.float32)
                    for found, of in zip(predicted, labels, strict=True)
                ],
            )

    @cached_property
    def measured(self) -> pd.DataFrame:
        """Mean log1p expression, condition × G, of everything a run stores means of, control first; empty if none does."""
        found: dict[str, Floats] = {}
        for run in self.runs:
            if "means.csv" in run.manifest.digests:
                table = run.means[list(self.genes)]
                for name, row in zip(table.index, table.to_numpy(np.float64), strict=True):
                    found.setdefault(str(name), row)
        return pd.DataFrame.from_dict(found, orient="index", columns=list(self.genes), dtype=np.float64)

    @cached_property
    def held_out(self) -> list[str]:
        """Measured conditions that no run trained on: validation conditions that calibrate. Sorted."""
        trained = {name for run in self.runs for name in run.split.train}
        return sorted(name for name in set(self.measured.index) - trained if targets(name))

    @cached_property
    def trained(self) -> list[str]:
        """Measured conditions that some run trained on, sorted."""
        return sorted(name for name in set(self.measured.index) - set(self.held_out) if targets(name))

    def part(self, condition: str) -> str:
        """What the data of the runs hold `condition` for: train (any run), validation, test; empty where unmeasured."""
        for part in PARTS:
            if any(condition in getattr(run.split, part) for run in self.runs):
                return part
        return ""

    def targets_seen(self, condition: str) -> float:
        """How many targets of `condition` every run was trained on; NaN where nobody recorded the training."""
        if any(run.split.kind == UNKNOWN for run in self.runs):
            return float("nan")
        known = set.intersection(*(set(run.manifest.targets) for run in self.runs))
        return float(sum(target in known for target in targets(condition)))

    def extrapolated(self, conditions: Sequence[str]) -> dict[str, str]:
        """Condition → why its prediction is an extrapolation of some run, of those that are."""
        found: dict[str, str] = {}
        for run in self.runs:
            found |= extrapolated(run, conditions)
        return found

    def control_table(self, controls: CellTable | AnnData | str | Path | None) -> CellTable:
        """The control cells to start from: `controls`, or those stored with the first run."""
        if controls is None:
            return self.first.controls
        from scdfm.data import CellTable
        from scdfm.run.controls import read_controls

        table = controls if isinstance(controls, CellTable) else read_controls(controls, self.first.manifest)
        modelled = {gene for run in self.runs for gene in run.genes}
        missing = sorted(modelled - set(map(str, table.genes)))
        if missing:
            raise DataError(
                f"controls: {len(missing)} of the runs' {len(modelled)} genes are missing (first: '{missing[0]}'); "
                "give control cells measured on the genes of the training data"
            )
        return table.select([CONTROL])


def _start_of(run: Run, controls: CellTable | None) -> CellTable | None:
    """`controls`, or the run's own: those stored with the first run have no other genes than that run models."""
    shared = controls is None or set(run.genes) <= set(map(str, controls.genes))
    return controls if shared else run.controls
