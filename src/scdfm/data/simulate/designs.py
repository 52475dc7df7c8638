"""Simulated screens of other designs: dose–response curves, drugs with features, several cell types.

Each drug's effect follows a Hill curve of its own, which is stored; what a drug does is a smooth function of its
features; a perturbation does to all cell types partly the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from scdfm.data.conditions import CONTROL, Condition, Perturbation
from scdfm.data.simulate.screen import (
    Float,
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


def hill(dose: float | Float, ec50: float | Float, slope: float | Float) -> Float:
    """The share dose^h / (EC50^h + dose^h) of the full effect: 0 without drug, ½ at the dose EC50."""
    dose = np.asarray(dose, dtype=np.float64)
    return np.asarray(dose**slope / (np.asarray(ec50) ** slope + dose**slope))


def simulate_doses(
    n_genes: int = 100,
    n_drugs: int = 6,
    n_doses: int = 7,
    cells_per_condition: int = 60,
    n_controls: int = 400,
    responders: float = 1.0,
    depth: float = 1000.0,
    dropout: float = 0.3,
    n_programs: int = 5,
    truth_cells: int = 1000,
    seed: int = 0,
) -> AnnData:
    """Simulate drugs at `n_doses` doses each, evenly spaced in log dose from 0.01 to 10, with controls.

    A drug at dose d shifts log expression by hill(d; EC50, slope) times its full effect, a sum of gene programs. EC50
    is drawn log-uniformly from 0.05 to 2, the slope from 1 to 2.5. Returned as by `simulate`, with obs["drug"],
    obs["dose"] (0 in controls), uns["true_means"] by condition (`drug1@0.1`), uns["true_curves"] (drug × ec50, slope) and
    uns["true_effects"] (drug × gene: log fold change at full effect). Same arguments, same bits.
    """
    options = dict(locals())
    require(options, {"n_drugs": (1, math.inf), "n_doses": (2, math.inf)} | common_bounds())
    rng = numpy_rng(seed, "simulate doses", "truth")
    programs, base = gene_programs(rng, n_programs, n_genes), base_rates(rng, n_genes)
    drugs = [f"drug{number}" for number in range(1, n_drugs + 1)]
    activity = rng.uniform(0.6, 1.4, (n_drugs, n_programs)) * rng.choice([-1, 0, 1], (n_drugs, n_programs))
    activity[np.arange(n_drugs), rng.integers(n_programs, size=n_drugs)] = 1.4  # none is without effect
    effects = activity @ programs
    ec50 = np.exp(rng.uniform(np.log(0.05), np.log(2.0), n_drugs))
    slope = rng.uniform(1.0, 2.5, n_drugs)
    doses = [float(f"{dose:.3g}") for dose in np.geomspace(0.01, 10.0, n_doses)]
    populations = [
        Population(CONTROL, {"drug": CONTROL, "dose": 0.0}, n_controls, base, np.zeros(n_genes)),
        *(
            Population(
                str(Condition((Perturbation(drug, dose),))),
                {"drug": drug, "dose": dose},
                cells_per_condition,
                base,
                hill(dose, ec50[place], slope[place]) * effects[place],
            )
            for place, drug in enumerate(drugs)
            for dose in doses
        ),
    ]
    genes = gene_names(n_genes)
    adata = measured(populations, Measurement(programs, responders, depth, dropout, seed), genes, truth_cells)
    adata.uns["true_curves"] = pd.DataFrame({"ec50": ec50, "slope": slope}, index=drugs)
    adata.uns["true_effects"] = pd.DataFrame(effects, index=drugs, columns=genes)
    adata.uns["simulation"] = options
    return adata


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
    targets = sorted(genes[place] for place in rng.choice(n_genes, n_targets, replace=False))
    common = rng.standard_normal((n_targets, n_programs))
    populations = []
    for number in range(1, n_types + 1):
        name = f"type{number}"
        own_base = base + _TYPE_SPREAD * rng.standard_normal(n_genes)
        own = rng.standard_normal((n_targets, n_programs))
        activity = np.sqrt(shared) * common + np.sqrt(1 - shared) * own
        for target, shift in zip(
            (CONTROL, *targets), (np.zeros(n_genes), *(activity @ programs)), strict=True
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
    adata.var["target"] = np.isin(genes, targets)
    adata.uns["true_effects"] = pd.DataFrame(
        [part.shift for part in populations], index=[part.name for part in populations], columns=genes
    )
    adata.uns["simulation"] = options
    return adata
