"""What every model of a fold is scored on: the same test conditions, cells and genes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd

from scdfm.benchmarking.plan import Piece, Plan
from scdfm.data import CONTROL, CellTable, Split, select_genes
from scdfm.data.conditions import near
from scdfm.data.source import open_source
from scdfm.data.splits import published_order
from scdfm.errors import DataError
from scdfm.evaluation.alignment import predicted_genes, predicted_names


@dataclass(frozen=True)
class Fold:
    """One fold: `conditions` are scored on `cells` (theirs and control), over the genes that all models predict.

    `training` [condition × gene] holds the means of control and of every condition but the test's. `apart` are
    groups of the conditions that are scored by themselves, as ranks among a group; none: all are one group.
    """

    number: int
    split: Split
    conditions: tuple[str, ...]
    cells: CellTable
    training: pd.DataFrame
    apart: tuple[tuple[str, ...], ...] = ()

    @property
    def genes(self) -> list[str]:
        """The scored genes, in the order of the screen."""
        return [str(gene) for gene in self.cells.genes]

    @property
    def digest(self) -> str:
        """sha256 of the names of scored conditions and genes, and of groups."""
        names = [*self.conditions, "", *self.genes, *(name for group in self.apart for name in ("", *group))]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def groups(self, conditions: Sequence[str]) -> list[tuple[str, ...]]:
        """`conditions` by groups; those that hold none are left out."""
        groups = [tuple(name for name in group if name in conditions) for group in self.apart or (conditions,)]
        return [group for group in groups if group]


class Folds:
    """The folds of a plan, made when they are asked for; the last one is kept."""

    def __init__(self, plan: Plan, cells: CellTable) -> None:
        self.plan, self.cells = plan, cells
        self.fold = lru_cache(maxsize=1)(self._fold)
        self.scored_genes = lru_cache(maxsize=None)(self._scored_genes)
        self._panels: dict[str, tuple[str, ...]] = {}

    def _fold(self, number: int) -> Fold:
        """The fold of a number; every condition that it does not test trains (validation conditions too)."""
        split = self.plan.fold_split(self.cells, number)
        split.check(self.cells.conditions)
        genes = self.scored_genes(number)
        trained = [CONTROL, *sorted((*split.train, *split.validation))]
        conditions = scored_conditions(self.plan, self.cells, split)
        return Fold(
            number,
            split,
            conditions,
            _restricted(self.cells.select([CONTROL, *conditions]), genes),
            self.cells.means(trained)[list(genes)],
        )

    def _scored_genes(self, number: int) -> tuple[str, ...]:
        """Genes of the screen that fits and files of this fold predict, whatever the seed: commands are asked for them."""
        common = set(self.cells.genes.tolist())
        for piece in self.plan.pieces():
            if piece.fold == number and piece.contender is not None and piece.contender.command is None:
                fitted = piece.contender.config is not None
                common &= set(self._panel(piece) if fitted else predicted_in(piece, self.cells)[0])
                if len(common) < 2:
                    raise DataError(
                        f"{piece.label}: fewer than 2 genes are left that the screen and all models up to this one "
                        "share, expected the same gene names; give predictions of the screen's genes"
                    )
        return tuple(gene for gene in self.cells.genes.tolist() if gene in common)

    def _panel(self, piece: Piece) -> tuple[str, ...]:
        """The genes a fit of `piece` will choose."""
        panel, split = self.plan.config(piece).panel, self.plan.piece_split(self.cells, piece)
        key = f"{split.digest} {panel.model_dump_json()}"
        if key not in self._panels:
            self._panels[key] = select_genes(self.cells, split, panel).genes
        return self._panels[key]


def scored_conditions(plan: Plan, cells: CellTable, split: Split) -> tuple[str, ...]:
    """The test conditions that are scored, in the order in which the references draw.

    The published additive table (protocol `paper`) takes test combinations whose targets were all measured
    alone, in the order of its shuffle; otherwise all test conditions are scored.
    """
    if not split.test:
        raise DataError(f"split '{split.kind}' keeps no test condition, expected some to score; choose another split")
    if plan.protocol == "paper" and split.kind == "additive":
        composed = set(split.composed())
        conditions = tuple(name for name in published_order(cells, split.fold) if name in composed)
        if not conditions:
            raise DataError(
                f"fold {split.fold}: no test combination has all its targets measured alone, expected some for the "
                "published additive table; use protocol 'scdfm'"
            )
        return conditions
    return split.test


def predicted_in(piece: Piece, cells: CellTable) -> tuple[list[str], set[str]]:
    """Genes and canonical conditions of a file of predictions, without reading its values."""
    path = prediction_path(piece)
    with open_source(path) as source:
        if cells.perturbation_key not in source.obs.columns:
            columns = [str(column) for column in source.obs.columns]
            raise DataError(
                f"{piece.label}: {path} has no obs column '{cells.perturbation_key}', expected the condition of each "
                f"cell as in the screen; its columns are {', '.join(columns) or 'none'}"
                f"{near(cells.perturbation_key, columns)}"
            )
        obs = source.obs[source.obs[cells.perturbation_key].notna()]
        names = predicted_names(obs, cells.perturbation_key, cells.naming, cells, f"{piece.label}: {path}")
        genes = predicted_genes(source, cells.naming, piece.label).names.tolist()
        return genes, set(names) - {CONTROL}


def prediction_path(piece: Piece) -> Path:
    """The file of predictions of a piece."""
    assert piece.contender is not None
    return piece.contender.path(piece.fold, piece.seed)


def _restricted(cells: CellTable, genes: Sequence[str]) -> CellTable:
    if len(genes) == len(cells.genes):
        return cells
    columns = cells.columns(genes)
    return replace(cells, X=cells.X[:, columns], genes=cells.genes[columns])
