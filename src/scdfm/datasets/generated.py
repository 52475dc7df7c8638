"""Small made-up screens in the very formats of the published files, so that a whole experiment can be tried in seconds.

The values mean nothing; names, columns, labels and layers are those of the files on figshare.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scdfm.datasets.screens import TEST
from scdfm.seeds import numpy_rng

if TYPE_CHECKING:
    from anndata import AnnData

GENES: Final = 60
TARGETS: Final = 14
PAIRS: Final = 24
CELLS: Final = 12
CONTROLS: Final = 40
TOTAL: Final = 1e4

DRUG_TRAINING: Final = (
    "control+Givinostat", "control+Panobinostat", "control+SRT2104", "control+Dasatinib",
    "Dacinostat+Danusertib", "Dacinostat+PCI-34051", "Givinostat+Crizotinib", "Givinostat+Curcumin",
    "Givinostat+SRT1720", "Givinostat+Sorafenib", "Panobinostat+Alvespimycin", "Panobinostat+SRT2104",
)  # fmt: skip
"""Some of the published training conditions; every tested drug is in one."""


def generated_norman(seed: int = 0) -> AnnData:
    """As figshare 43390776: `condition` (`A+ctrl`, `A+B`, `ctrl`), `control` 0/1, X log1p, no layer."""
    from anndata import AnnData

    genes = [f"GENE{number:02d}" for number in range(GENES)]
    named = genes[:: GENES // TARGETS][:TARGETS]
    rng = numpy_rng(seed, "generated norman")
    pairs = list(itertools.combinations(named, 2))
    measured_pairs = [pairs[place] for place in sorted(rng.choice(len(pairs), PAIRS, replace=False))]
    # The file spells some pairs against the alphabet.
    doubles = ["+".join(pair if place % 3 else reversed(pair)) for place, pair in enumerate(measured_pairs)]
    counts, labels = _cells(["ctrl", *(f"{name}+ctrl" for name in named), *doubles], "ctrl", rng)
    obs = pd.DataFrame({"condition": pd.Categorical(labels), "control": (labels == "ctrl").astype(int)})
    obs["condition_name"] = "K562_" + obs["condition"].astype(str)
    obs.index = pd.Index([f"cell{row}" for row in range(len(obs))])
    return AnnData(_log1p(counts), obs=obs, var=pd.DataFrame({"gene_name": genes}, index=pd.Index(genes)))


def generated_combosciplex(seed: int = 0) -> AnnData:
    """As figshare 44229635: `condition`, `Drug1`, `Drug2`, layer `counts`, and X at another scale (10,000)."""
    from anndata import AnnData

    genes = [f"GENE{number:02d}" for number in range(GENES)]
    rng = numpy_rng(seed, "generated combosciplex")
    counts, labels = _cells(["control+control", *DRUG_TRAINING, *TEST], "control", rng)
    drugs = pd.Series(labels).str.split("+", expand=True)
    obs = pd.DataFrame({"condition": pd.Categorical(labels), "Drug1": drugs[0], "Drug2": drugs[1]})
    obs.index = pd.Index([f"cell{row}" for row in range(len(obs))])
    var = pd.DataFrame({"gene_short_name": genes}, index=pd.Index(genes))
    return AnnData(_log1p(counts), obs=obs, var=var, layers={"counts": sp.csc_matrix(counts)})


def _log1p(counts: sp.csr_matrix) -> sp.csr_matrix:
    """log1p of counts per 10,000."""
    totals = np.asarray(counts.sum(axis=1)).ravel()
    return sp.csr_matrix((sp.diags(TOTAL / totals) @ counts).log1p().astype(np.float32))


def _cells(labels: Sequence[str], absent: str, rng: np.random.Generator) -> tuple[sp.csr_matrix, np.ndarray]:
    """Poisson counts of CELLS cells a label (CONTROLS of the first), with an effect for each target that adds up."""
    names = {name for label in labels for name in label.split("+")} - {absent}
    effects = {name: rng.normal(0.0, 0.6, GENES) * (rng.random(GENES) < 0.3) for name in sorted(names)}
    base = rng.normal(0.5, 1.0, GENES)
    blocks, cells = [], []
    for place, label in enumerate(labels):
        n = CELLS if place else CONTROLS
        shift = sum((effects[name] for name in label.split("+") if name != absent), np.zeros(GENES))
        depth = rng.lognormal(0.0, 0.3, (n, 1))
        blocks.append(rng.poisson(np.exp(base + shift) * depth) + (np.arange(GENES) == 0))
        cells += [label] * n
    return sp.csr_matrix(np.concatenate(blocks).astype(np.float32)), np.array(cells)
