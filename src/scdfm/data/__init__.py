"""From a screen's file to batches: cells, conditions, splits, gene panel, graph, sampler, simulator.

The sampler, which needs torch, is imported when it is first used: scoring and splitting do without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scdfm.data.cells import CellTable
from scdfm.data.conditions import (
    CONTROL,
    Condition,
    Perturbation,
    Vocabulary,
    canonical,
    control_of,
    covariates,
    doses,
    parse,
    perturbation_of,
    targets,
)
from scdfm.data.design import Design
from scdfm.data.graph import coexpression_graph, vocabulary_graph
from scdfm.data.joining import join_screens
from scdfm.data.panel import GenePanel, select_genes
from scdfm.data.reading import read_cells
from scdfm.data.simulate import simulate, simulate_cell_types, simulate_doses, simulate_drugs
from scdfm.data.split import Split
from scdfm.data.splits import (
    additive_split,
    column_split,
    combinations_split,
    covariate_split,
    file_split,
    holdout_split,
    make_split,
    named_split,
)
from scdfm.data.values import Scale

if TYPE_CHECKING:
    from scdfm.data.sampler import Batch, ConditionSampler

__all__ = [
    "CONTROL",
    "Batch",
    "CellTable",
    "Condition",
    "ConditionSampler",
    "Design",
    "GenePanel",
    "Perturbation",
    "Scale",
    "Split",
    "Vocabulary",
    "additive_split",
    "canonical",
    "coexpression_graph",
    "column_split",
    "combinations_split",
    "control_of",
    "covariate_split",
    "covariates",
    "doses",
    "file_split",
    "holdout_split",
    "join_screens",
    "make_split",
    "named_split",
    "parse",
    "perturbation_of",
    "read_cells",
    "select_genes",
    "simulate",
    "simulate_cell_types",
    "simulate_doses",
    "simulate_drugs",
    "targets",
    "vocabulary_graph",
]


def __getattr__(name: str) -> Any:
    if name in ("Batch", "ConditionSampler"):
        return getattr(importlib.import_module("scdfm.data.sampler"), name)
    raise AttributeError(f"module 'scdfm.data' has no attribute '{name}'")
