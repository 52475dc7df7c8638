"""Censored Gaussian genes: there and back, against simulation, and what stands behind a zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from scdfm.flow import uncensored
from scdfm.prior.censored import latent_mean, latent_scale, variance


@pytest.mark.parametrize("mu", [-2.0, -0.5, 0.0, 0.8, 30.0])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_moments(mu: float, sigma: float) -> None:
    x = np.maximum(0, mu + sigma * norm.ppf((np.arange(400_000) + 0.5) / 400_000))
    mean, scale = np.array([x.mean()]), np.array([sigma])
    if mean[0] > 1e-6:
        assert latent_mean(mean, scale)[0] == pytest.approx(mu, abs=0.01)
    assert variance(mean, scale)[0] == pytest.approx(x.var(), abs=1e-3)


def test_scale_is_found_from_means_and_variance() -> None:
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.2, 2.0, 30)
    means = np.abs(rng.normal(size=(8, 30)))
    found = latent_scale(means, variance(means, sigma).mean(0))
    np.testing.assert_allclose(found, sigma, rtol=1e-3)


def test_a_gene_never_seen() -> None:
    scale = latent_scale(np.zeros((3, 1)), np.zeros(1))
    assert np.isfinite(latent_mean(np.zeros((3, 1)), scale)).all()


def test_zeros_stand_for_draws_below_zero() -> None:
    """Expression above 0 stays; zeros become N(μ, σ²) below 0, so that all together are N(μ, σ²) again."""
    rng = torch.Generator().manual_seed(1)
    centre, scale = torch.full((20_000, 1), 0.3), torch.tensor([0.8])
    latent = centre + scale * torch.randn((20_000, 1), generator=rng)
    cells = latent.clamp(min=0)
    again = uncensored(cells, centre, scale, torch.rand((20_000, 1), generator=rng))
    assert torch.equal(again[cells > 0], cells[cells > 0])
    assert (again[cells == 0] <= 0).all()
    assert kstest(again.numpy().ravel(), "norm", args=(0.3, 0.8)).pvalue > 0.01
