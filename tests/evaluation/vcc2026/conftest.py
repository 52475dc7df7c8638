"""A small screen of counts, and a prediction of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

GENES = [f"G{i:03d}" for i in range(90)]
TARGETS = GENES[3:10]


def counted(rates: dict[str, np.ndarray], n: int, seed: int) -> AnnData:
    """`n` cells of each label, over-dispersed counts around its rates [A]."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(list(rates), n)
    rate = np.repeat(list(rates.values()), n, axis=0)
    X = rng.poisson(rate * rng.gamma(3, 1 / 3, rate.shape) * rng.lognormal(0, 0.3, (len(rate), 1)))
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
    return AnnData(sparse.csr_matrix(X.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="session")
def rates() -> dict[str, np.ndarray]:
    """Rates of control and seven knock-downs, each with effects of its own."""
    rng = np.random.default_rng(5)
    base = rng.lognormal(0.5, 1, len(GENES))
    found = {"control": base}
    for k, target in enumerate(TARGETS):
        effect = rng.normal(0, 1, len(GENES)) * (rng.random(len(GENES)) < 0.3)
        effect[GENES.index(target)] = -1.5
        found[target] = base * np.exp(effect * (1 if k < 5 else 0.3))
    return found


@pytest.fixture(scope="session")
def real(rates: dict[str, np.ndarray]) -> AnnData:
    """60 cells of each."""
    return counted(rates, 60, 0)


@pytest.fixture(scope="session")
def predicted(rates: dict[str, np.ndarray]) -> AnnData:
    """30 cells of each knock-down, whose effects are right in part, without control."""
    rng = np.random.default_rng(6)
    made = {t: rates["control"] ** 0.5 * rates[t] ** 0.5 * np.exp(rng.normal(0, 0.3, len(GENES))) for t in TARGETS}
    return counted(made, 30, 1)
