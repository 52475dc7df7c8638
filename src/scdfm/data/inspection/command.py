"""The `scdfm fit` line that follows from an inspection."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from scdfm.config import Config
from scdfm.data.conditions import CONTROL, CONTROL_SPELLINGS, covariates, parse, targets
from scdfm.data.design import Design
from scdfm.data.inspection.columns import Guess
from scdfm.data.kinds import Matrix
from scdfm.data.naming import Naming
from scdfm.data.splits import make_split
from scdfm.errors import ScdfmError


def fit_line(
    file: str,
    perturbation: Guess,
    naming: Naming,
    design: Design,
    matrix: Matrix,
    smiles: Guess | None,
    sizes: Counter[str],
    drugs: bool,
) -> tuple[str, ...] | None:
    """The words of the command; options that are as by default are left out. None where nothing can be held out.

    The preset is `instant`: seconds bring a model and its score, which training has to beat.
    """
    line = ["scdfm", "fit", file, "--out", "run", "--preset", "instant"]
    if perturbation.column != "perturbation":
        line += ["--perturbation-key", perturbation.column]
    line += naming_words(naming)
    line += matrix.options or ()
    if matrix.n_empty:
        line += ["--min-genes", "1"]
    if design.covariates:
        line += ["--covariates", ",".join(design.covariates)]
    if design.dose_key:
        line += ["--dose-key", design.dose_key]
    if design.dose_unit_key:
        line += ["--dose-unit-key", design.dose_unit_key]
    if design.time_key:
        line += ["--time-key", design.time_key]
    sizes = Counter({name: size for name, size in sizes.items() if name != CONTROL})
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
    split = _split(sorted(sizes), design, smiles is not None, not drugs)
    return None if split is None else (*line, *split)


def naming_words(naming: Naming) -> list[str]:
    """The options that say how a file names genes and conditions."""
    several = () if set(naming.control) <= CONTROL_SPELLINGS else naming.control
    words = [word for label in several for word in ("--control", label)]
    words += [word for label in naming.exclude for word in ("--exclude", label)]
    words += [] if naming.separator is None else ["--separator", naming.separator]
    words += [word for pattern in naming.guides for word in ("--guides", pattern)]
    words += [] if naming.genes is None else ["--gene-column", naming.genes]
    return words + (["--gene-versions", "drop"] if naming.gene_versions == "drop" else [])


def _split(conditions: list[str], design: Design, described: bool, genes: bool) -> list[str] | None:
    """The first that can be made of: unseen combinations, described drugs, pairs with a covariate, doses, genes."""
    for options, words in _proposals(conditions, design, described, genes):
        try:
            make_split(conditions, Config().updated({"split": options}).split)
        except ScdfmError:
            continue
        return words
    return None


def _proposals(
    conditions: list[str], design: Design, described: bool, genes: bool
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Options of a split, and the words of the command that ask for it."""
    yield {"kind": "additive"}, ["--split", "additive"]
    alone = {targets(name) for name in conditions if len(targets(name)) == 1}
    held = max(1, min(12, len(alone) // 5))
    unseen = (
        {"kind": "holdout", "held_out_targets": held},
        ["--split", "holdout", "--set", f"split.held_out_targets={held}"],
    )
    if described:
        yield unseen
    for column in design.covariates:
        yield {"kind": "covariate", "covariate": column}, ["--split", f"covariate:{column}"]
        value = covariates(conditions[0])[column]
        whole = {"kind": "covariate", "covariate": column, "value": value}
        yield whole, ["--split", f"covariate:{column}={value}"]
    if between := _doses_between(conditions):
        settings = ["split.kind=named", f"split.test={json.dumps(between, ensure_ascii=False)}"]
        yield {"kind": "named", "test": between}, [word for text in settings for word in ("--set", text)]
    if genes:
        yield unseen


def _doses_between(conditions: list[str], most: int = 12) -> list[str]:
    """For up to `most` targets the condition of the middle one of their doses, where there are three or more."""
    measured: dict[str, list[tuple[float, str]]] = {}
    for name in conditions:
        perturbations = parse(name).perturbations
        if len(perturbations) == 1 and perturbations[0].dose:
            measured.setdefault(perturbations[0].target, []).append((perturbations[0].dose, name))
    several = [sorted(pairs) for pairs in measured.values() if len({dose for dose, _ in pairs}) > 2]
    return [pairs[len(pairs) // 2][1] for pairs in several[: min(most, (len(several) + 1) // 2)]]
