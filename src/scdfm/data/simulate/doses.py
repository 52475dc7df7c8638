"""A simulated dose–response screen: each drug's effect follows a Hill curve of its own, which is stored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

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
