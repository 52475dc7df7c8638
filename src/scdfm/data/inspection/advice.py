"""What follows from an inspection: what it decided, what could go wrong (one sentence each), and the `scdfm fit` line."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scdfm.config import Config
from scdfm.data.conditions import CONTROL, CONTROL_SPELLINGS, SEPARATOR, covariates, near, parse, targets
from scdfm.data.design import Design
from scdfm.data.inspection.columns import Candidate, Guess
from scdfm.data.inspection.labels import Genes
from scdfm.data.kinds import MEANING, OPTIONS, Matrix
from scdfm.data.labels import listed
from scdfm.data.naming import NONE, Naming
from scdfm.data.source import Source
from scdfm.data.splits import make_split
from scdfm.errors import ScdfmError

FEW_CELLS, FEW_CONTROLS = 30, 100
HUGE_GB = 8.0


def label_pitfalls(labels: Sequence[str], naming: Naming, genes: Sequence[str]) -> Iterator[str]:
    """Labels whose signs scdfm reads otherwise than they may be meant."""
    control = naming.control[0]
    for sign, means in (
        ("|", "begins a covariate where KEY=VALUE follows"),
        ("@", "begins a dose where a number follows"),
    ):
        odd = [label for label in labels if sign in label and sign != naming.separator]
        if odd:
            yield f"{len(odd)} labels hold '{sign}' (first: '{odd[0]}'), which {means}; rename them if it is not meant so"
    inside = [label for label in labels if re.search(r"\([^)]*\+", label)]
    if inside:
        yield f"'{inside[0]}': the '+' within brackets is taken for a part of the name"
    names = {label for label in labels if label != control} | set(genes)
    for sign in ("_", "&", ",", ";", "-"):
        joined = [
            label
            for label in labels
            if sign != naming.separator and label not in set(genes) and sign in label and SEPARATOR not in label
            and all(part.strip() in names | {control, "ctrl"} for part in label.split(sign))
        ]  # fmt: skip
        if joined:
            yield (
                f"{len(joined)} labels look like combinations joined by '{sign}' (first: '{joined[0]}'), but scdfm "
                f"joins by '+': replace '{sign}' by '+' in the column, or each is taken for a target of its own"
            )


def size_pitfalls(cells: Mapping[str, int]) -> Iterator[str]:
    """Conditions and controls of too few `cells`."""
    sizes = pd.Series(dict(cells), dtype=np.int64)
    n_controls = int(sizes.get(CONTROL, 0))
    if n_controls < FEW_CONTROLS:
        yield f"only {n_controls} control cells; every shift is measured from them, {FEW_CONTROLS} or more are better"
    sizes = sizes.drop(index=CONTROL, errors="ignore")
    few = sizes[sizes < FEW_CELLS]
    if len(few):
        yield (
            f"{len(few)} of {len(sizes)} conditions have fewer than {FEW_CELLS} cells (fewest: {sizes.min()}); their "
            "means are noise in good part: --min-cells leaves them out, fewer covariates pool them"
        )


def target_pitfalls(
    conditions: Sequence[str], genes: Sequence[str], drugs: bool, aliases: Mapping[str, str]
) -> Iterator[str]:
    """Combinations whose targets were never perturbed alone, and targets that are no measured genes.

    aliases: genes of the file by other names of theirs that its columns tell.
    """
    alone = {targets(name)[0] for name in conditions if len(targets(name)) == 1}
    combined = {target for name in conditions if len(targets(name)) > 1 for target in targets(name)}
    if lacking := sorted(combined - alone):
        yield (
            f"targets of combinations that were never perturbed alone: {len(lacking)} (first: '{lacking[0]}'); what they "
            "do is learned from their combinations, and the additive baseline is undefined there"
        )
    if drugs:
        return
    every = alone | combined
    unmeasured = sorted(every - set(genes))
    if renamed := [name for name in unmeasured if name in aliases]:
        yield (
            f"targets that are genes of this file by another name: {', '.join(f'{n} is {aliases[n]}' for n in renamed[:5])}"
            f"{f' and {len(renamed) - 5} more' if len(renamed) > 5 else ''}; rename them in the perturbation column, or "
            "nothing but their cells describes them"
        )
    if unmeasured := [name for name in unmeasured if name not in aliases]:
        yield (
            f"targets that are no genes of this file: {len(unmeasured)} of {len(every)} (first: '{unmeasured[0]}'"
            f"{near(unmeasured[0], genes)}); nothing but their cells describes them: they are not measured, or have "
            "another name here"
        )


def file_pitfalls(source: Source, density: float, layer: str | None, column: str | None) -> Iterator[str]:
    """Repeated genes, where the index of var names them and no `column` of it, and memory."""
    repeated = pd.Index(source.genes).duplicated()
    if repeated.any() and column is None:
        yield (
            f"gene '{source.genes[repeated][0]}' stands more than once in var ({int(repeated.sum())} repeats), which "
            "scdfm refuses: adata.var_names_make_unique(), or sum the repeats, and write the file anew"
        )
    gigabytes = source.n_cells * len(source.genes) * density * 8 / 1e9
    if gigabytes > HUGE_GB:
        where = "X" if layer is None else f"layer '{layer}'"
        yield (
            f"{where} takes about {gigabytes:.0f} GB as sparse rows, which are kept on disk while they are used; see that "
            "the folder for temporary files has room, or read part of the cells with --subset"
        )


def matrix_pitfalls(matrices: Sequence[Matrix], used: Matrix | None) -> Iterator[str]:
    """What the numbers of a file are, where it is not what one would take them for, and what reads them."""
    for part in matrices:
        meaning = MEANING.get(part.kind)
        if part is used and meaning:
            options = " ".join(OPTIONS[part.kind])
            yield f"{part.name} holds {meaning} ({part.evidence}); {options} brings them to log1p values"
        elif part.layer is None and meaning and used is not None:
            yield f"X holds {meaning} ({part.evidence}), so {used.name} is used: {used.kind} ({used.evidence})"
        elif part.layer is None and part.kind == "unreadable" and used is not None:
            yield f"X {part.evidence}, so {used.name} is used: {used.kind} ({used.evidence})"
        elif part.layer is None and meaning:
            yield (
                f"X holds {meaning} ({part.evidence}); nothing brings them back: store the counts, or log1p values from "
                "before, as X or as a layer"
            )
    if used is None:
        return
    for part in matrices:
        if part is not used and part.n_genes > used.n_genes and part.options:
            yield (
                f"{part.name} holds {part.kind} of {part.n_genes:,} genes, more than the {used.n_genes:,} of {used.name}: "
                f"{' '.join(part.options)} reads it"
            )
    if used.n_empty:
        yield (
            f"{used.n_empty} cells of those seen have no gene above 0 and would pull means toward 0: --min-genes 1 leaves "
            "such cells out"
        )


def nothing_to_hold_out(drugs: bool) -> str:
    """Why no fit line can be proposed for conditions that can be read."""
    remedy = (
        "give features of the perturbations (--features FILE.csv with SMILES or numbers by name) and --split holdout, or "
        "name test conditions of your own (--split FILE.toml), or test nothing (--split none)"
    )
    what = "combinations, covariates, three doses" + ("" if drugs else ", or enough single genes")
    return f"nothing can be held out that could also be predicted, without {what}; {remedy}"


def decisions(
    best: Candidate, others: Sequence[Candidate], genes: Genes, counts: Counter[str], obs: pd.DataFrame
) -> Iterator[str]:
    """Why this column, what is control, what is left out, what joins targets, and where genes are named so.

    counts: the cells of each label of the column.
    """
    meant, naming, column = best.meaning, best.meaning.naming, best.column
    yield from _column(best, others, obs)
    cells = sum(counts[label] for label in meant.controls)
    if len(meant.controls) > 1 or not CONTROL_SPELLINGS & set(meant.controls):
        yield f"control cells are the {cells:,} labelled {listed(meant.controls, 5)}; name others with --control"
    if meant.unassigned:
        gone = sum(counts[label] for label in meant.unassigned)
        yield (
            f"the {gone:,} cells labelled {listed(meant.unassigned, 5)} look unassigned (no label that names a "
            "perturbation) and are left out by --exclude: they are neither controls nor perturbed"
        )
    if best.lists:
        yield (
            f"the labels of obs['{column}'] list drugs and amounts ('{obs[column].dropna().iloc[0]}'): they are read as "
            f"'{next(label for label in counts if '@' in label)}', amounts in uM or ug/ml"
        )
    if naming.separator == NONE:
        yield f"no label joins targets ('{next(one for one in counts if SEPARATOR in one)}' is one): --separator none"
    elif naming.separator is not None:
        joined = [
            label for label in counts if naming.separator in label and label not in {*meant.controls, *meant.unassigned}
        ]
        yield (
            f"{len(joined)} labels look like combinations joined by '{naming.separator}' (first: '{joined[0]}'): "
            "--separator splits them"
        )
    if naming.guides:
        n = meant.n_perturbed
        yield (
            f"the labels of obs['{column}'] are guides: {n} of them are pooled to {len(meant.targets)} genes by their "
            f"names ({', '.join(naming.guides)})"
        )
    if naming.gene_versions == "drop":
        yield (
            f"{len(meant.measured)} of {len(meant.targets)} targets are genes of this file but for the version of their "
            "ids: --gene-versions drop"
        )
    if naming.genes is not None:
        inside = len(meant.targets & genes[None])
        yield (
            f"genes are named by var['{naming.genes}'], where {len(meant.measured)} of {len(meant.targets)} targets are "
            f"found, and not by the index, where {inside} are: --gene-column {naming.genes}"
        )


def _column(best: Candidate, others: Sequence[Candidate], obs: pd.DataFrame) -> Iterator[str]:
    if SEPARATOR in best.column and best.column not in obs.columns:
        first, second = best.column.split(SEPARATOR)
        yield f"obs['{first}'] and obs['{second}'] name combinations together and are read as one: {best.column}"
    usual = [
        other for other in others if other.rank < best.rank or other.meaning.n_perturbed > best.meaning.n_perturbed
    ]
    if usual:
        why = (
            "whose targets are genes of this file"
            if best.meaning.genetic
            else "which says most of what was done to each cell"
        )
        yield (
            f"the perturbation is obs['{best.column}'] ({len(best.meaning.targets)} targets), {why}, and not "
            f"obs['{usual[0].column}'] ({usual[0].meaning.n_perturbed} labels beside control)"
        )


def aliases(
    best: Candidate, genes: Genes, var: pd.DataFrame, names: Sequence[str], obs: pd.DataFrame
) -> dict[str, str]:
    """Genes by other names: those that another column of var has for them, and those of which a column of obs beside the
    perturbation has the id that var has."""
    unmeasured = best.meaning.targets - best.meaning.measured
    if not unmeasured or not best.meaning.measured:
        return {}
    gene_of: dict[str, str] = {}
    for column in map(str, var.columns):
        if list(var.columns).count(column) > 1 or pd.api.types.is_numeric_dtype(var[column]):
            continue
        for text, name in zip(var[column].astype(str), names, strict=True):
            for part in text.replace(",", "|").replace(";", "|").split("|"):
                if part.strip() in unmeasured:
                    gene_of.setdefault(part.strip(), name)
    return gene_of | _by_id(
        best.column, unmeasured - set(gene_of), dict(zip(var.index.astype(str), names, strict=True)), obs
    )


def _by_id(key: str, unmeasured: frozenset[str], genes: Mapping[str, str], obs: pd.DataFrame) -> dict[str, str]:
    """Targets whose cells all have one id, in some column of obs, that is the index of a gene."""
    if key not in obs.columns or not unmeasured:
        return {}
    firsts = obs.loc[obs[key].astype(str).isin(unmeasured).to_numpy()].drop_duplicates(key)
    gene_of: dict[str, str] = {}
    for column in map(str, obs.columns):
        if column != key and list(obs.columns).count(column) == 1:
            for target, text in zip(firsts[key].astype(str), firsts[column].astype(str), strict=True):
                if text in genes and genes[text] != target:
                    gene_of.setdefault(target, genes[text])
    return gene_of


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
