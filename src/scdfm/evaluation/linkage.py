"""What control cells alone say of a target: how other genes go with it from cell to cell."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from scdfm.data.conditions import CONTROL, targets
from scdfm.data.stored import in_memory
from scdfm.evaluation.pseudobulk import Floats, Population, taken

MOST_CELLS = 2000
"""Control cells that are looked at, evenly over their order."""


def linked(real: Population, trained: Iterable[str], scored: Iterable[str]) -> dict[str, Floats]:
    """Of each target that is a gene, the covariance [A] of all genes with it over control cells, in its deviations.

    Nothing where no gene among the targets of the `scored` conditions is new: of what was `trained`, more is known.
    """
    seen = {target for condition in trained for target in targets(condition)}
    asked = {target for condition in scored for target in targets(condition)}
    place = {str(gene): column for column, gene in enumerate(real.genes)}
    names = sorted(name for name in seen | asked if name in place)
    if (asked - seen).isdisjoint(place) or len(real.rows[CONTROL]) < 2:
        return {}
    rows = real.rows[CONTROL]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_CELLS)).astype(np.int64))]
    cells = in_memory(taken(real.X, rows)).astype(np.float64).tocsc()
    own = cells[:, [place[name] for name in names]]
    mean, own_mean = (np.asarray(some.mean(axis=0)).ravel() for some in (cells, own))
    products = np.asarray((own.T @ cells).todense()) / len(rows) - np.outer(own_mean, mean)
    spread = np.sqrt(np.maximum(products[np.arange(len(names)), [place[name] for name in names]], 0))
    return {name: row / size for name, row, size in zip(names, products, spread, strict=True) if size > 0}
