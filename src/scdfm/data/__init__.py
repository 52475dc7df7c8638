"""From a screen's file to batches: cells, conditions, splits, gene panel, co-expression graph, sampler, simulator."""

from scdfm.data.cells import CellTable, read_cells
from scdfm.data.conditions import CONTROL, Vocabulary, canonical, targets
from scdfm.data.graph import coexpression_graph, vocabulary_graph
from scdfm.data.panel import GenePanel, select_genes
from scdfm.data.sampler import Batch, ConditionSampler
from scdfm.data.simulate import simulate
from scdfm.data.splits import (
    Split,
    additive_split,
    column_split,
    combinations_split,
    file_split,
    holdout_split,
    make_split,
)
from scdfm.data.values import Scale

__all__ = [
    "CONTROL",
    "Batch",
    "CellTable",
    "ConditionSampler",
    "GenePanel",
    "Scale",
    "Split",
    "Vocabulary",
    "additive_split",
    "canonical",
    "coexpression_graph",
    "column_split",
    "combinations_split",
    "file_split",
    "holdout_split",
    "make_split",
    "read_cells",
    "select_genes",
    "simulate",
    "targets",
    "vocabulary_graph",
]
