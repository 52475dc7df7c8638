"""A screen: log1p expression of single cells, sparse, in memory or on disk, with the condition of every cell."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scdfm.data.conditions import CONTROL, SCREEN, Condition, control_of, near, parse
from scdfm.data.conditions import covariates as covariates_of
from scdfm.data.design import Design
from scdfm.data.labels import listed
from scdfm.data.naming import Naming
from scdfm.data.stored import BLOCK_ROWS, Matrix, content_digest, in_memory
from scdfm.data.stored import subset as matrix_subset
from scdfm.data.values import Scale
from scdfm.errors import ConditionError, DataError

if TYPE_CHECKING:
    from anndata import AnnData


class Stratum(NamedTuple):
    """Rows of a condition's cells in one matching group, rows of the control cells they are compared with, and how many
    cells the condition has in the group where its rows are not here."""

    rows: npt.NDArray[np.int64]
    controls: npt.NDArray[np.int64]
    elsewhere: int = 0

    @property
    def n_cells(self) -> int:
        """Cells of the condition, wherever they are."""
        return len(self.rows) + self.elsewhere


@dataclass(frozen=True, eq=False)
class CellTable:
    """Cells of a screen: N cells × A genes, K conditions with `control` first, the others sorted.

    Treat it as read-only. `X` is CSR float32 [N, A], or a StoredMatrix of such rows on disk, log1p of counts per
    `scale.target_sum`; `obs` has one row a cell, with the canonical condition as a categorical in column
    `perturbation_key`; `codes` [N] are places in `conditions`; `spelling` maps a condition to its label in the file,
    whose words are those of `naming`; `notes` say what was left out, or read otherwise than its owner may think.
    `subset` and `min_genes` chose the cells of the file, as `read_cells` was asked.
    All untreated cells are the one condition `control`; `match` [N] is the code of each cell's control-matching group.
    """

    X: Matrix
    genes: npt.NDArray[np.str_]
    obs: pd.DataFrame
    conditions: tuple[str, ...]
    codes: npt.NDArray[np.int64]
    scale: Scale
    perturbation_key: str
    spelling: dict[str, str]
    match: npt.NDArray[np.int64]
    naming: Naming = field(default_factory=Naming)
    source: Path | None = None
    design: Design = field(default_factory=Design)
    notes: tuple[str, ...] = ()
    subset: dict[str, str] = field(default_factory=dict)
    min_genes: int = 0
    filled: tuple[str, ...] = ()
    """Genes that the file lacks, whose values are those of other cells."""
    measured: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    """By screen, which genes [A] it measured, where several are joined on the genes of any; none: all cells have all.
    What is 0 in `X` of a gene that was not measured means nothing; it is NaN among means."""
    elsewhere: dict[str, dict[int, int]] = field(default_factory=dict)
    """Of conditions whose cells are not here, how many they have in each matching group, by its code."""

    @property
    def control(self) -> str:
        """The first of the labels that untreated cells have in the file."""
        return self.naming.control[0]

    @property
    def covariates(self) -> tuple[str, ...]:
        """The columns of obs that the names of perturbed conditions hold, `|column=value`."""
        return self.design.covariates

    @property
    def n(self) -> int:
        """N, the number of cells."""
        return len(self.codes)

    def columns(self, genes: Sequence[str]) -> npt.NDArray[np.int64]:
        """Where `genes` stand among the columns of X; DataError names the first that is missing."""
        places = self._columns
        missing = [gene for gene in genes if gene not in places]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(genes)} genes are not in the data (first: '{missing[0]}'); "
                f"expected all of them: give data measured on the same genes{near(missing[0], places)}"
            )
        return np.array([places[gene] for gene in genes], dtype=np.int64)

    def measures(self, condition: str) -> npt.NDArray[np.bool_]:
        """Which genes [A] the screen of a condition, or of `control|screen=NAME`, measured."""
        own = self.measured.get(covariates_of(condition).get(SCREEN, ""))
        return np.ones(len(self.genes), dtype=bool) if own is None else own

    def cells_measuring(self, conditions: Sequence[str]) -> npt.NDArray[np.int64]:
        """How many cells [C, A] of each condition measured each gene."""
        numbers = np.zeros((len(conditions), len(self.genes)), dtype=np.int64)
        for at, rows in enumerate(map(self.rows, conditions)):
            for screen, cells in self.obs[SCREEN].iloc[rows].value_counts().items():
                numbers[at] += int(cells) * self.measured[str(screen)]
        return numbers

    def measured_alike(
        self, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        """Places among `rows` of the cells of each screen, and which genes at `columns` it measured; none where all did."""
        screens = self.obs[SCREEN].iloc[rows] if self.measured else None
        return [(np.flatnonzero(screens == name), own[columns]) for name, own in self.measured.items()]

    def require_all_measured(self, what: str) -> None:
        """Raise DataError, of `what`, where screens were joined on genes that not all of them measured."""
        if self.measured:
            raise DataError(
                f"{what}: these screens are joined on genes that not all of them measured, which only a fit can read; "
                "expected cells that have every gene: join them on the genes of all (genes='intersection'), or give one "
                "screen alone"
            )

    def rows(self, condition: str) -> npt.NDArray[np.int64]:
        """The rows of a condition's cells, ascending."""
        place = self._place(condition)
        return self._order[self._starts[place] : self._starts[place + 1]]

    def population(self, condition: str) -> npt.NDArray[np.int64]:
        """The rows of a condition's cells; of `control|KEY=VALUE…`, those of the control cells of these covariates."""
        parsed = parse(condition)
        if parsed.perturbations or not parsed.covariates:
            return self.rows(condition)
        rows = self.rows(CONTROL)
        for key, value in parsed.covariates:
            rows = rows[(self.obs[key].iloc[rows] == value).to_numpy()]
        return rows

    def n_cells(self, condition: str) -> int:
        """The number of cells of a condition."""
        return len(self.rows(condition))

    def control_rows(self, condition: str) -> npt.NDArray[np.int64]:
        """The rows of the control cells that a condition, measured or not, is compared with, ascending.

        Those of the matching groups that its cells belong to, here or `elsewhere`; of an unmeasured condition, those with
        its covariates.
        """
        return np.unique(np.concatenate([stratum.controls for stratum in self.control_strata(condition)]))

    def control_strata(self, condition: str) -> tuple[Stratum, ...]:
        """The matching groups that a condition's cells belong to, each with its own control cells.

        Without matching, and for an unmeasured condition, there is one. A group without control cells takes all of
        them where `control_fallback` allows it, else it is left out.
        """
        controls = self.rows(CONTROL)
        measured = condition in self._places
        rows = self.rows(condition) if measured else controls[:0]
        if not self.design.match:
            return (Stratum(rows, controls),)
        of_controls = self.match[controls]
        if not measured and condition in self.elsewhere:
            groups = self.elsewhere[condition].items()
            strata = [Stratum(rows, controls[of_controls == k], n) for k, n in sorted(groups)]
        elif not measured:
            own = controls[np.isin(of_controls, self._groups_of(control_of(condition)))]
            strata = [Stratum(rows, own)]
        else:
            of_cells = self.match[rows]
            strata = [Stratum(rows[of_cells == k], controls[of_controls == k]) for k in np.unique(of_cells)]
        if self.design.control_fallback == "all":
            return tuple(one if len(one.controls) else one._replace(controls=controls) for one in strata)
        if controlled_strata := tuple(one for one in strata if len(one.controls)):
            return controlled_strata
        raise ConditionError(
            f"condition '{condition}' has no control cells of its own; expected some, as for "
            f"{listed(self.control_conditions)}: read them too, or read the cells with control_fallback='all'"
        )

    def control_shares(self, condition: str) -> npt.NDArray[np.float64] | None:
        """How much each of a condition's `control_rows` counts [n], 1 together; None where all count alike.

        Each cell is compared with the controls of its own group, so a group's controls count together as its cells do.
        """
        strata = self.control_strata(condition)
        if len(strata) == 1:
            return None
        rows, n_cells = self.control_rows(condition), sum(one.n_cells for one in strata)
        shares = np.zeros(len(rows))
        for one in strata:
            shares[np.searchsorted(rows, one.controls)] += one.n_cells / n_cells / len(one.controls)
        return shares

    def groups(self) -> dict[str, dict[str, int]]:
        """By perturbed condition its number of cells in each matching group (`batch=1, line=A`); nothing where controls are
        matched by covariates alone, which names of conditions hold."""
        if set(self.design.match) <= set(self.covariates):
            return {}
        labels = self._group_labels
        pairs, counts = np.unique(np.stack([self.codes, self.match]), axis=1, return_counts=True)
        found: dict[str, dict[str, int]] = {}
        for code, group, n in zip(*pairs.tolist(), counts.tolist(), strict=True):
            if self.conditions[code] != CONTROL:
                found.setdefault(self.conditions[code], {})[labels[group]] = n
        return found

    def with_groups(self, groups: Mapping[str, Mapping[str, int]]) -> CellTable:
        """This table knowing of `groups` of conditions whose cells are not here."""
        codes = {label: code for code, label in self._group_labels.items()}
        here = {name: {codes[group]: n for group, n in of.items() if group in codes} for name, of in groups.items()}
        return replace(self, elsewhere={name: of for name, of in here.items() if of})

    @cached_property
    def _group_labels(self) -> dict[int, str]:
        """The values of the columns that controls are matched by, in each matching group."""
        codes, firsts = np.unique(self.match, return_index=True)
        values = self.obs[list(self.design.match)].iloc[firsts].astype(str)
        named = (", ".join(f"{key}={value}" for key, value in row.items()) for _, row in values.iterrows())
        return dict(zip(codes.tolist(), named, strict=True))

    def control_mean(self, condition: str) -> npt.NDArray[np.float64]:
        """Mean log1p expression [A] of a condition's `control_rows`, by their `control_shares`, in float64."""
        strata = self.control_strata(condition)
        weights = np.array([one.n_cells for one in strata], dtype=np.float64)
        if len(strata) == 1:
            return self._control_mean(strata[0].controls)
        return np.average([self._control_mean(one.controls) for one in strata], axis=0, weights=weights)

    def _control_mean(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        key = rows.tobytes()
        if key not in self._control_means:
            self._control_means[key] = self.take(rows).mean(CONTROL)
        return self._control_means[key]

    @cached_property
    def control_conditions(self) -> tuple[str, ...]:
        """`control|key=value` of every setting of the covariates that has control cells; `control` without covariates."""
        columns = [self.obs[key].iloc[self.rows(CONTROL)] for key in self.covariates]
        settings = {pairs for pairs in zip(*columns, strict=True) if not any(map(pd.isna, pairs))}
        named = {str(Condition((), tuple(zip(self.covariates, pairs, strict=True)))) for pairs in settings}
        return tuple(sorted(named)) if self.covariates else (CONTROL,)

    def mean(self, condition: str) -> npt.NDArray[np.float64]:
        """Mean log1p expression [A] of a condition's cells (its pseudobulk), accumulated in float64."""
        return np.asarray(self.means([condition]).to_numpy()[0])

    def means(self, conditions: Sequence[str] | None = None) -> pd.DataFrame:
        """Mean log1p expression, conditions (default: all) × genes, accumulated in float64 in one pass."""
        names = list(self.conditions if conditions is None else conditions)
        condition_places = np.array([self._place(name) for name in names], dtype=np.int64)
        places, row = np.unique(condition_places, return_inverse=True)
        sums = np.zeros((len(places), len(self.genes)))
        # Blocks of the table, whatever is asked: the sums of a condition come in one order, on disk or in memory.
        for start in range(0, self.n, BLOCK_ROWS):
            rows = np.flatnonzero(np.isin(self.codes[start : start + BLOCK_ROWS], places))
            if len(rows):
                block_places, codes = np.unique(self.codes[start + rows], return_inverse=True)
                member = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
                sums[np.searchsorted(places, block_places)] += (member @ self.X[start + rows]).toarray()
        if self.measured:
            cells = self.cells_measuring([self.conditions[place] for place in places])
            means = np.where(cells > 0, sums / np.maximum(cells, 1), np.nan)[row]
        else:
            means = (sums / np.maximum(np.diff(self._starts)[places], 1)[:, None])[row]
        return pd.DataFrame(means, index=pd.Index(names), columns=pd.Index(self.genes))

    def select(self, conditions: Iterable[str]) -> CellTable:
        """The cells of some conditions, in the order of this table."""
        places = {self._place(condition) for condition in conditions}
        return self.take(np.flatnonzero(np.isin(self.codes, sorted(places))))

    def take(self, rows: npt.NDArray[np.int64] | Sequence[int]) -> CellTable:
        """The cells of some rows, in the order given; conditions left without a cell go."""
        rows = np.asarray(rows, dtype=np.int64)
        places, codes = np.unique(self.codes[rows], return_inverse=True)
        conditions = tuple(self.conditions[place] for place in places)
        obs = self.obs.iloc[rows].copy()
        obs[self.perturbation_key] = pd.Categorical.from_codes(codes.tolist(), categories=pd.Index(conditions))
        return replace(
            self,
            X=matrix_subset(self.X, rows),
            obs=obs,
            conditions=conditions,
            codes=codes.astype(np.int64),
            spelling={name: self.spelling[name] for name in conditions},
            match=self.match[rows],
        )

    def require_cells(self, conditions: Iterable[str], at_least: int = 2) -> None:
        """Raise ConditionError unless each condition has `at_least` cells."""
        for condition in conditions:
            if (n_cells := self.n_cells(condition)) < at_least:
                raise ConditionError(
                    f"condition '{condition}' has {n_cells} cell{'s' * (n_cells != 1)}, expected at least {at_least}; "
                    "leave it out of the data, or read them with min_cells"
                )

    def to_adata(self) -> AnnData:
        """The table as an AnnData in memory: X, obs, and the genes as var_names."""
        from anndata import AnnData

        self.require_all_measured("a file")
        return AnnData(
            X=in_memory(self.X), obs=self.obs.copy(), var=pd.DataFrame(index=pd.Index(self.genes.astype(object)))
        )

    def digest(self) -> str:
        """sha256 of values, genes, cell names, conditions and matched groups: equal digests mean equal data."""
        hasher = hashlib.sha256(content_digest(self.X))
        for texts in (self.genes, self.obs.index, self.conditions):
            hasher.update("\n".join(map(str, texts)).encode() + b"\0")
        hasher.update(self.codes.astype("<i8").tobytes())
        if self.design.match:
            hasher.update(np.unique(self.match, return_inverse=True)[1].astype("<i8").tobytes())
        for screen, genes in sorted(self.measured.items()):
            hasher.update(screen.encode() + b"\0" + genes.tobytes())
        return hasher.hexdigest()

    def _place(self, condition: str) -> int:
        if condition not in self._places:
            raise ConditionError(
                f"condition '{condition}' is not measured; expected one of the {len(self.conditions)} conditions "
                f"of the data{near(condition, self.conditions)}"
            )
        return self._places[condition]

    def _groups_of(self, control: str) -> npt.NDArray[np.int64]:
        """The matching groups of the control cells with the covariates of a name such as `control|key=value`."""
        given = covariates_of(control)
        if set(given) != set(self.covariates):
            expected = ", ".join(self.covariates) or "none"
            raise ConditionError(
                f"condition '{control}' holds the covariates {', '.join(given) or 'none'}; expected {expected}: "
                f"write it as {listed(self.control_conditions)}"
            )
        return np.unique(self.match[self.population(control)])

    @cached_property
    def _control_means(self) -> dict[bytes, npt.NDArray[np.float64]]:
        return {}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.conditions)}

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {str(gene): column for column, gene in enumerate(self.genes)}

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        return np.argsort(self.codes, kind="stable").astype(np.int64)

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        lengths = np.bincount(self.codes, minlength=len(self.conditions))
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
