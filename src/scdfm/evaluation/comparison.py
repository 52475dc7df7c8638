"""Two models on the same conditions and genes, pair by pair, and what the gain of one over the other says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from scdfm.data.cells import CellTable
from scdfm.data.conditions import CONTROL
from scdfm.data.reading import read_cells
from scdfm.data.stored import subset as chosen_cells
from scdfm.errors import ConditionError, ConfigError
from scdfm.evaluation.alignment import Cells, Pair, align
from scdfm.evaluation.evaluate import evaluate
from scdfm.evaluation.summary import once

Outcome = Literal["better", "unclear", "worse", "undefined"]
OUTCOMES: Final[dict[Outcome, str]] = {
    "better": "better",
    "unclear": "not told apart",
    "worse": "worse",
    "undefined": "no interval",
}
"""What an interval can say, as readers are told it."""


@dataclass(frozen=True)
class Comparison:
    """Mean paired gain of `model` over the row `baseline` on one metric, with its 95 % interval, over `n` conditions.

    A gain is positive where the model is better, whatever the metric's direction.
    """

    model: str
    metric: str
    baseline: str
    gain: float
    low: float
    high: float
    n: int

    @property
    def outcome(self) -> Outcome:
        """Better or worse only where the whole interval says so."""
        if math.isnan(self.low) or math.isnan(self.high):
            return "undefined"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "unclear"

    @property
    def none(self) -> bool:
        """Whether nothing differs on any condition."""
        return self.gain == self.low == self.high == 0


def comparisons(differences: pd.DataFrame) -> list[Comparison]:
    """The rows of `scdfm.differences`, or of a benchmark's table of differences, in their order."""
    return [
        Comparison(
            str(row["model"]), str(row["metric"]), str(row["baseline"]), float(row["improvement"]),
            float(row["low"]), float(row["high"]), int(row["n"]),
        )
        for row in differences.to_dict("records")
    ]  # fmt: skip


def by_outcome(entries: Iterable[Comparison]) -> dict[Outcome, list[str]]:
    """The metrics of each outcome that there is, in the order of OUTCOMES."""
    metrics: dict[Outcome, list[str]] = {outcome: [] for outcome in OUTCOMES}
    for one in entries:
        metrics[one.outcome].append(one.metric)
    return {outcome: names for outcome, names in metrics.items() if names}


def evaluate_against(
    predicted: Cells,
    against: Cells,
    real: Cells,
    control: str = CONTROL,
    training: Any = None,
    *,
    name: str = "model",
    against_name: str = "other",
    perturbation_key: str | None = None,
    predicted_key: str | None = None,
    subset: Mapping[str, str] | None = None,
    conditions: Sequence[str] | None = None,
    check_scale: bool = True,
    backed: bool | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Score two predictions on the conditions and genes that both hold; references are scored once.

    predicted, against: as `predicted` of `evaluate`, called `name` and `against_name` in the table. Where `training` is
    None, the real conditions that neither predicts make the simple rules. The other options: `evaluate`; protocol
    vcc2026, whose scores of one prediction depend on no other, is not among them.

    Returns the long table of `evaluate` with both models. `differences(table, against=against_name)` gives the paired
    difference of each metric with its interval. Raises what `evaluate` raises, ConditionError where the two share no
    measured condition, ConfigError where they have one name.
    """
    if name == against_name:
        raise ConfigError(f"name '{name}' is that of both models; expected two: choose another for one of them")
    if options.get("protocol") == "vcc2026":
        raise ConfigError(
            "protocol vcc2026 compares no two predictions at once; score each by itself, or choose scdfm or paper"
        )
    given: dict[str, Any] = {
        "control": control, "perturbation_key": perturbation_key, "predicted_key": predicted_key, "backed": backed,
    }  # fmt: skip
    if not isinstance(real, CellTable):
        real = read_cells(real, perturbation_key or "perturbation", control, subset=subset, backed=backed)
        subset = None
    pairs = [align(cells, real, conditions=conditions, check_scale=False, **given) for cells in (predicted, against)]
    other = set(pairs[1].conditions)
    common = [c for c in pairs[0].conditions if c in other]
    if not common:
        raise ConditionError(
            f"{name} and {against_name} share no measured condition ({name}: {pairs[0].conditions[0]}, ...; "
            f"{against_name}: {pairs[1].conditions[0]}, ...); expected predictions of the same conditions"
        )
    measured = set(pairs[1].real.genes.tolist())
    genes = [gene for gene in pairs[0].real.genes.tolist() if gene in measured]
    columns = real.columns(genes)
    both = replace(real, X=chosen_cells(real.X, None, columns), genes=np.asarray(real.genes)[columns])
    trained = _unpredicted(real, pairs) if training is None else training
    given |= {"training": trained, "conditions": common, "check_scale": check_scale, **options}
    first = evaluate(predicted, both, name=name, **given)
    second = evaluate(against, both, name=against_name, **(given | {"references": False, "on_cells": None}))
    table = once(pd.concat([first, second], ignore_index=True))
    table.attrs = dict(first.attrs)
    note = (
        f"{name} and {against_name} are compared on the {len(common)} conditions and {len(genes)} genes that both hold"
    )
    table.attrs["notes"] = [*first.attrs["notes"], note]
    return table


def _unpredicted(real: CellTable, pairs: Sequence[Pair]) -> pd.DataFrame:
    """Means of control and of the real conditions that neither of the two predicts."""
    predicted = {c for pair in pairs if pair.predicted is not None for c in pair.predicted.rows} | {CONTROL}
    return real.means([CONTROL, *(c for c in real.conditions if c not in predicted)])
