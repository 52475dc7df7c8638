"""A simulated drug screen whose drugs have features: what a drug does is a smooth function of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdfm.data.conditions import CONTROL
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


def simulate_drugs(
    n_genes: int = 100,
    n_drugs: int = 40,
    n_features: int = 4,
    shuffled: bool = False,
    cells_per_condition: int = 40,
    n_controls: int = 400,
    responders: float = 1.0,
    depth: float = 1000.0,
    dropout: float = 0.3,
    n_programs: int = 5,
    truth_cells: int = 1000,
    seed: int = 0,
) -> AnnData:
    """Simulate drugs, with controls, whose program activity is 1.5·tanh(z·W) of their features z ~ N(0, I).

    shuffled: the features are handed to other drugs, so that they say nothing; cells and effects stay the same bits.

    Returned as by `simulate`, with obs["drug"], uns["features"] (drug × feature, for `features.table`) and
    uns["true_effects"] (drug × gene: log fold change). Same arguments, same bits.
    """
    options = dict(locals())
    require(options, {"n_drugs": (2, math.inf), "n_features": (1, math.inf)} | common_bounds())
    rng = numpy_rng(seed, "simulate drugs", "truth")
    programs, base = gene_programs(rng, n_programs, n_genes), base_rates(rng, n_genes)
    width = len(str(n_drugs))
    drugs = [f"drug{number:0{width}d}" for number in range(1, n_drugs + 1)]
    features = rng.standard_normal((n_drugs, n_features))
    weights = rng.standard_normal((n_features, n_programs)) / np.sqrt(n_features)
    effects = 1.5 * np.tanh(features @ weights) @ programs
    populations = [
        Population(CONTROL, {"drug": CONTROL}, n_controls, base, np.zeros(n_genes)),
        *(
            Population(drug, {"drug": drug}, cells_per_condition, base, effect)
            for drug, effect in zip(drugs, effects, strict=True)
        ),
    ]
    genes = gene_names(n_genes)
    adata = measured(populations, Measurement(programs, responders, depth, dropout, seed), genes, truth_cells)
    if shuffled:
        # One place on in a random circle: no drug keeps its own.
        circle = numpy_rng(seed, "simulate drugs", "shuffle").permutation(n_drugs)
        features[circle] = features[np.roll(circle, 1)]
    columns = [f"feature{number}" for number in range(1, n_features + 1)]
    adata.uns["features"] = pd.DataFrame(features, index=drugs, columns=columns)
    adata.uns["true_effects"] = pd.DataFrame(effects, index=drugs, columns=genes)
    adata.uns["simulation"] = options
    return adata
