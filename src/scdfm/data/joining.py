"""Several screens as one: the cells of all on the genes that all measured, or that any did, the screen a covariate of
every condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scdfm.data.cells import CellTable
from scdfm.data.conditions import CONTROL, SCREEN, parse
from scdfm.data.design import Design
from scdfm.data.labels import label_cells, listed
from scdfm.data.naming import Naming
from scdfm.data.stored import BLOCK_ROWS, Matrix, blocks, gathered, stacked, subset
from scdfm.data.values import Scale
from scdfm.errors import ConfigError, DataError

KEY: Final = "perturbation"
FEWEST_GENES: Final = 10
OTHER_SCALE: Final = 30.0
"""Normalised counts of control cells, over the genes of all screens, differ by less between kinds of cells (9 between K562
and glioblastoma cells on 500 genes); counts per million are 100 times those per 10,000."""


def join_screens(
    screens: Mapping[str, CellTable], genes: Literal["intersection", "union"] = "intersection"
) -> CellTable:
    """The cells of several screens, each under its name, on the genes that all of them measured.

    genes: "union" takes the genes that any of them measured. What a screen did not measure is masked (`measured` of the
    table), and a fit is all that such a table serves for.

    The names become the covariate `screen` of every perturbed condition (`A|screen=norman`), and each screen's cells are
    compared with its own controls, matched within it as they were. Conditions stand under their canonical names. The
    expression stays on disk where that of one of the screens does.

    Raises ConfigError for other `genes`, DataError for fewer than two screens, the same cells twice, scales that differ,
    covariates or columns of matched controls that not all of them have, and fewer than 10 genes in common.

    >>> joined = join_screens({"a": first, "b": second})  # doctest: +SKIP
    """
    if genes not in ("intersection", "union"):
        raise ConfigError(f"genes of joined screens '{genes}': expected intersection or union")
    _check(screens)
    tables = list(screens.values())
    common = set.intersection(*(set(one.genes.tolist()) for one in tables))
    gene_names = [gene for gene in tables[0].genes.tolist() if gene in common]
    if len(gene_names) < FEWEST_GENES:
        raise DataError(
            f"{_all(screens)} have {len(gene_names)} genes in common, expected at least {FEWEST_GENES}; read them with "
            "names of one kind (genes=COLUMN, gene_versions='drop')"
        )
    parts = {name: subset(one.X, np.arange(one.n), one.columns(gene_names)) for name, one in screens.items()}
    _require_one_scale(screens, parts)
    measured: dict[str, npt.NDArray[np.bool_]] = {}
    if genes == "union" and any(len(one.genes) > len(gene_names) for one in tables):
        gene_names = list(dict.fromkeys(gene for one in tables for gene in one.genes.tolist()))
        measured = {name: np.isin(gene_names, one.genes) for name, one in screens.items()}
        parts = {name: _widened(one, gene_names) for name, one in screens.items()}
    return _under_names(screens, parts, gene_names, measured)


def as_screen(cells: CellTable, name: str) -> CellTable:
    """The cells of one screen under its name, as `join_screens` gives them: to compare with a fit of several.

    DataError for cells that have a covariate of that kind already.
    """
    _require_unnamed(cells)
    return _under_names({name: cells}, {name: cells.X}, cells.genes.tolist(), {})


def _under_names(
    screens: Mapping[str, CellTable],
    parts: Mapping[str, Matrix],
    genes: Sequence[str],
    measured: dict[str, npt.NDArray[np.bool_]],
) -> CellTable:
    """The cells of screens, of the expression `parts` [n, genes], whose names become a covariate."""
    first = next(iter(screens.values())).design
    match = None if first.match == first.covariates else (*first.match, SCREEN)
    design = Design((*first.covariates, SCREEN), None, None, match, first.control_fallback)
    obs = _obs(screens, design)
    labelled = label_cells(obs, np.arange(len(obs)), KEY, Naming(), design, _all(screens), 1)
    conditions = (CONTROL, *sorted(set(labelled.names) - {CONTROL}))
    obs[KEY] = pd.Categorical(labelled.names, categories=pd.Index(conditions))
    for column, values in labelled.columns.items():
        obs[column] = values
    return CellTable(
        X=stacked(*parts.values()),
        genes=np.array(genes, dtype=np.str_),
        obs=obs,
        conditions=conditions,
        codes=obs[KEY].cat.codes.to_numpy().astype(np.int64),
        scale=Scale(),
        perturbation_key=KEY,
        spelling={name: name for name in conditions},
        match=labelled.match,
        design=design,
        notes=(_told(screens, genes, measured),) if len(screens) > 1 else (),
        measured=measured,
    )


def _widened(cells: CellTable, genes: Sequence[str]) -> Matrix:
    """The expression of `cells` in the columns of `genes`, some of which it does not have."""
    place = {gene: column for column, gene in enumerate(genes)}
    column = np.array([place[gene] for gene in cells.genes.tolist()], dtype=np.int32)

    def wide(block: sp.csr_matrix) -> sp.csr_matrix:
        moved = sp.csr_matrix((block.data, column[block.indices], block.indptr), shape=(block.shape[0], len(genes)))
        moved.sort_indices()
        return moved

    return gathered(map(wide, blocks(cells.X)), like=cells.X, width=len(genes))


def _check(screens: Mapping[str, CellTable]) -> None:
    if len(screens) < 2:
        raise DataError(f"{len(screens)} screens to join, expected at least two; give more files, or fit the one")
    designs = {name: one.design for name, one in screens.items()}
    first, *others = designs
    for other in others:
        for what in ("covariates", "match", "control_fallback"):
            one, two = (getattr(designs[name], what) for name in (first, other))
            if one != two:
                raise DataError(
                    f"screens '{first}' and '{other}' are read with other {what} ({_words(one)}; {_words(two)}), expected "
                    "the same; give each its columns under one name, or leave them out"
                )
    for one in screens.values():
        _require_unnamed(one)
    digests = {name: one.digest() for name, one in screens.items()}
    for at, (name, digest) in enumerate(digests.items()):
        for other in list(digests)[:at]:
            if digests[other] == digest:
                raise DataError(f"screens '{other}' and '{name}' are the same cells; leave one of them out")


def _require_unnamed(cells: CellTable) -> None:
    if SCREEN in cells.covariates:
        raise DataError(
            f"covariate '{SCREEN}' is to hold the names of the screens; rename that column of theirs, or leave it out"
        )


def _require_one_scale(screens: Mapping[str, CellTable], parts: Mapping[str, Matrix]) -> None:
    """Refuse screens whose declared totals differ, or whose control cells' totals do by far."""
    sums = {name: one.scale.target_sum for name, one in screens.items() if one.scale.target_sum is not None}
    if len(set(sums.values())) > 1:
        (low, one), (high, two) = min((v, k) for k, v in sums.items()), max((v, k) for k, v in sums.items())
        raise DataError(
            f"screen '{one}' is log1p of counts per {low:g}, '{two}' per {high:g}; read both with one target_sum"
        )
    totals = {}
    for name, cells in screens.items():
        rows = cells.rows(CONTROL)[:BLOCK_ROWS]
        totals[name] = float(np.expm1(parts[name][rows].data.astype(np.float64)).sum() / max(len(rows), 1))
    least, most = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
    if totals[most] > OTHER_SCALE * max(totals[least], 1e-9):
        times = totals[most] / max(totals[least], 1e-9)
        raise DataError(
            f"control cells of screen '{most}' hold {times:.3g} times the counts of those of '{least}' over "
            f"the genes of both: another scale; give counts with one target_sum, or log1p per one total"
        )


def _obs(screens: Mapping[str, CellTable], design: Design) -> pd.DataFrame:
    """One row a cell of all screens, under the screen's and its own name, with its label and the columns of the design."""
    parts = []
    for name, one in screens.items():
        labels = {c: str(replace(parse(c), covariates=())) for c in one.conditions}
        own = one.obs.drop(columns=[KEY, SCREEN], errors="ignore")
        own = own.astype({c: object for c in own.columns if isinstance(own[c].dtype, pd.CategoricalDtype)})
        own.insert(0, KEY, [labels[one.conditions[code]] for code in one.codes])
        own.insert(1, SCREEN, name)
        own.index = pd.Index([f"{name}:{cell}" for cell in own.index], dtype=object)
        parts.append(own)
    joined = pd.concat(parts)
    for column in design.match:
        if column in joined.columns and joined[column].isna().any():
            raise DataError(
                f"obs column '{column}', by which controls are matched, is missing in some of {_all(screens)}"
            )
    return joined


def _told(screens: Mapping[str, CellTable], genes: Sequence[str], measured: Mapping[str, npt.NDArray[np.bool_]]) -> str:
    own = ", ".join(f"{name} ({one.n} cells, {len(one.genes)} genes)" for name, one in screens.items())
    lost = [name for name, one in screens.items() if SCREEN in one.obs.columns]
    replaced = f"; the column '{SCREEN}' that {listed(lost)} had is replaced" if lost else ""
    number = f"{len(screens)} screens as covariate '{SCREEN}': {own}"
    if not measured:
        return f"{number}; joined on the {len(genes)} genes that all have{replaced}"
    common = np.logical_and.reduce(list(measured.values())).sum()
    return f"{number}; joined on the {len(genes)} genes that any has, {common} of which all have{replaced}"


def _all(screens: Mapping[str, CellTable]) -> str:
    return f"screens {listed(list(screens))}"


def _words(value: object) -> str:
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)
