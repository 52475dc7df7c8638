"""A simulated screen in several cell types: a perturbation does to all of them partly the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from scdfm.data.conditions import CONTROL, Condition, Perturbation
from scdfm.data.simulate.screen import (
    Measurement,
    Population,
    base_rates,
    common_bounds,
    gene_names,
    gene_programs,
    measured,
    require,
)
from scdfm.seeds import numpy_rng

if TYPE_CHECKING:
    from anndata import AnnData

_TYPE_SPREAD: Final = 0.8  # spread between cell types of a gene's log rate


def simulate_cell_types(
    n_genes: int = 100,
    n_targets: int = 8,
    n_types: int = 4,
    shared: float = 0.8,
    cells_per_condition: int = 40,
    n_controls: int = 100,
    responders: float = 1.0,
    depth: float = 1000.0,
    dropout: float = 0.3,
    n_programs: int = 5,
    truth_cells: int = 1000,
    seed: int = 0,
) -> AnnData:
    """Simulate every target in every cell type, with `n_controls` controls of each type.

    A cell type has expression of its own. A target's program activity in a type is √shared · a + √(1 − shared) · b,
    with a of the target in all types and b of the target in this type, both N(0, I): `shared` is the share of
    variance in common.

    Returned as by `simulate`, with obs["perturbation"], obs["cell_type"], uns["true_means"] by condition
    (`G001|cell_type=type1`, `control|cell_type=type1`) and uns["true_effects"] (condition × gene: log fold change). Same
    arguments, same bits.
    """
    options = dict(locals())
    bounds = common_bounds() | {"n_targets": (1, n_genes), "n_types": (1, math.inf), "shared": (0, 1)}
    require(options, bounds)
    rng = numpy_rng(seed, "simulate cell types", "truth")
    programs, base = gene_programs(rng, n_programs, n_genes), base_rates(rng, n_genes)
    genes = gene_names(n_genes)
    chosen = sorted(genes[place] for place in rng.choice(n_genes, n_targets, replace=False))
    common = rng.standard_normal((n_targets, n_programs))
    populations = []
    for number in range(1, n_types + 1):
        name = f"type{number}"
        own_base = base + _TYPE_SPREAD * rng.standard_normal(n_genes)
        own = rng.standard_normal((n_targets, n_programs))
        activity = np.sqrt(shared) * common + np.sqrt(1 - shared) * own
        for target, shift in zip(
            (CONTROL, *chosen), (np.zeros(n_genes), *(activity @ programs)), strict=True
        ):
            done = () if target == CONTROL else (Perturbation(target),)
            populations.append(
                Population(
                    str(Condition(done, (("cell_type", name),))),
                    {"perturbation": target, "cell_type": name},
                    cells_per_condition if done else n_controls,
                    own_base,
                    np.asarray(shift),
                )
            )
    adata = measured(populations, Measurement(programs, responders, depth, dropout, seed), genes, truth_cells)
    adata.var["target"] = np.isin(genes, chosen)
    adata.uns["true_effects"] = pd.DataFrame(
        [part.shift for part in populations], index=[part.name for part in populations], columns=genes
    )
    adata.uns["simulation"] = options
    return adata
