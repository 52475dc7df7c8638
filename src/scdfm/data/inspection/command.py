"""The `scdfm fit` line that follows from an inspection."""

from __future__ import annotations

from collections import Counter
from typing import Any

from scdfm.config import Config
from scdfm.data.conditions import CONTROL, CONTROL_SPELLINGS, targets
from scdfm.data.design import Design
from scdfm.data.inspection.columns import Guess
from scdfm.data.inspection.values import Matrix
from scdfm.data.splits import make_split
from scdfm.errors import ScdfmError

TARGET_SUM = "10000"


def fit_line(
    file: str,
    perturbation: Guess,
    design: Design,
    matrix: Matrix,
    smiles: Guess | None,
    names: Any,
    drugs: bool,
) -> tuple[str, ...] | None:
    """The words of the command; options that are as by default are left out. None where nothing can be held out."""
    line = ["scdfm", "fit", file, "--out", "run"]
    if perturbation.column != "perturbation":
        line += ["--perturbation-key", perturbation.column]
    if str(perturbation.value) not in CONTROL_SPELLINGS:
        line += ["--control", str(perturbation.value)]
    if matrix.layer is not None:
        line += ["--layer", matrix.layer]
    if matrix.kind == "counts":
        line += ["--target-sum", TARGET_SUM]
    if design.covariates:
        line += ["--covariates", ",".join(design.covariates)]
    if design.dose_key:
        line += ["--dose-key", design.dose_key]
    if design.time_key:
        line += ["--time-key", design.time_key]
    sizes = Counter(names.tolist())
    sizes.pop(CONTROL, None)
    several = [name for name, size in sizes.items() if size > 1]
    if len(several) < len(sizes) / 2:
        line += ["--set", "training.min_cells=1"]
    elif len(several) < len(sizes):
        line += ["--min-cells", "2"]
        sizes = Counter(several)
    if drugs:
        line += ["--set", "model.perturbation=drugs"]
    if smiles is not None:
        line += ["--features", f"smiles:{smiles.column}"]
    split = _split(sorted(sizes), design, smiles is not None or not drugs)
    return None if split is None else (*line, *split)


def _split(conditions: list[str], design: Design, unseen_targets: bool) -> list[str] | None:
    """The first of the splits that such a screen can make: unseen combinations, settings, then targets."""
    singles = {targets(name) for name in conditions if len(targets(name)) == 1}
    held = max(1, min(12, len(singles) // 5))
    proposals: list[tuple[dict[str, Any], list[str]]] = [({"kind": "additive"}, ["--split", "additive"])]
    if design.covariates:
        proposals.append(({"kind": "covariate"}, ["--split", "covariate"]))
    if unseen_targets:
        words = ["--split", "holdout", "--set", f"split.held_out_targets={held}"]
        proposals.append(({"kind": "holdout", "held_out_targets": held}, words))
    for options, words in proposals:
        try:
            make_split(conditions, Config().updated({"split": options}).split)
        except ScdfmError:
            continue
        return words
    return None
