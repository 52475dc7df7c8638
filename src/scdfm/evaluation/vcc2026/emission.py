"""Cells for predictors that know means only: real control cells, drawn anew and scaled gene by gene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import scipy.sparse as sp

from scdfm.data.conditions import CONTROL
from scdfm.evaluation.pseudobulk import Floats
from scdfm.evaluation.vcc2026.counts import Counts
from scdfm.evaluation.vcc2026.metrics import own_genes
from scdfm.evaluation.vcc2026.side import Side
from scdfm.seeds import numpy_rng

MEAN_RESPONSE: Final = "mean response"


def mean_response(counts: Counts, seed: int) -> Counts:
    """The zero of the scale: the mean count profile of the real conditions themselves, the same for all of them.

    A gene's mean leaves out the conditions that target it. The draws are those of cell-eval2's baseline of this seed.
    """
    names = sorted(counts.conditions, key=lambda name: counts.spelling[name])
    means = np.array([counts.sums(counts.rows[name])[0] / len(counts.rows[name]) for name in names])
    kept = ~own_genes(names, counts.genes)
    n = kept.sum(axis=0)
    left_out = np.where(n > 0, (means * kept).sum(axis=0) / np.maximum(n, 1), means.mean(axis=0))
    control = counts.sums(counts.rows[CONTROL])[0] / len(counts.rows[CONTROL])
    scale = np.divide(left_out, control, out=np.zeros_like(control), where=control > 0)
    rng = np.random.default_rng(seed)
    parts, rows, start = [], {}, 0
    for name in names:
        size = len(counts.rows[name])
        parts.append(_scaled(counts, scale, size, rng))
        rows[name] = np.arange(start, start + size)
        start += size
    return replace(counts, X=sp.csr_matrix(sp.vstack(parts, format="csr")), rows=rows)


def emitted(counts: Counts, real: Side, profile: Mapping[str, Floats], seed: int) -> Counts:
    """As many cells of each condition as there are real ones, whose expected profile is `profile` [A].

    `profile` is log1p of counts brought to 50,000, as `Side.profile`; a gene without control counts stays at 0. The
    control cells drawn depend on the seed and the condition, not on the predictor.
    """
    control = np.expm1(real.control_profile)
    parts, rows, start = [], {}, 0
    for name, wanted in profile.items():
        linear = np.expm1(np.maximum(wanted, 0))
        scale = np.divide(linear, control, out=np.zeros_like(control), where=control > 0)
        size = len(counts.rows[name])
        parts.append(_scaled(counts, scale, size, numpy_rng(seed, "emission", name)))
        rows[name] = np.arange(start, start + size)
        start += size
    return replace(counts, X=sp.csr_matrix(sp.vstack(parts, format="csr")), rows=rows)


def _scaled(counts: Counts, scale: Floats, size: int, rng: np.random.Generator) -> sp.csr_matrix:
    """`size` control cells drawn with replacement, their counts times `scale` [A]; rounded to float32, as published."""
    control = counts.rows[CONTROL]
    cells = counts.X[control[rng.integers(0, len(control), size=size)]]
    cells.data = (cells.data * scale[cells.indices]).astype(np.float32).astype(np.float64)
    cells.eliminate_zeros()
    return cells
