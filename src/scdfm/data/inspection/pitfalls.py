"""What could go wrong with a screen, each as one sentence with its remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from scdfm.data.conditions import CONTROL, SEPARATOR, near, targets
from scdfm.data.kinds import MEANING, OPTIONS, Matrix
from scdfm.data.naming import Naming
from scdfm.data.source import Source

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
