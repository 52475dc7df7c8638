"""Censored Gaussian genes: there and back, against simulation, and what stands behind a zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from scdfm.prior.censored import latent_mean, latent_scale
from scdfm.prior.start import uncensored


@pytest.mark.parametrize("mu", [-2.0, -0.5, 0.0, 0.8, 30.0])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_moments(mu: float, sigma: float) -> None:
    """The mean and the variance of the clipped cells lead back to μ and σ."""
    x = np.maximum(0, mu + sigma * norm.ppf((np.arange(400_000) + 0.5) / 400_000))
    mean, variance = np.array([x.mean()]), np.array([x.var()])
    if mean[0] > 1e-6:
        assert latent_mean(mean, np.array([sigma]))[0] == pytest.approx(mu, abs=0.01)
    if mu / sigma > -3.5:  # else no cell of 100,000 is seen
        found = latent_scale(mean, variance)
        assert found[0] == pytest.approx(sigma, rel=0.01)
        assert latent_mean(mean, found)[0] == pytest.approx(mu, abs=0.03)


def test_a_gene_never_seen() -> None:
    scale = latent_scale(np.zeros((3, 1)), np.zeros((3, 1)))
    assert (scale == 0).all()
    assert np.isfinite(latent_mean(np.zeros((3, 1)), scale + 0.02)).all()
    rare = latent_scale(np.full(1, 1e-9), np.full(1, 1e-9))
    assert np.isfinite(rare).all()


def test_zeros_stand_for_draws_below_zero() -> None:
    """Expression above 0 stays; zeros become N(μ, σ²) below 0, so that all together are N(μ, σ²) again."""
    rng = torch.Generator().manual_seed(1)
    centre, scale = torch.full((20_000, 1), 0.3), torch.full((20_000, 1), 0.8)
    latent = centre + scale * torch.randn((20_000, 1), generator=rng)
    cells = latent.clamp(min=0)
    again = uncensored(cells, centre, scale, torch.rand((20_000, 1), generator=rng))
    assert torch.equal(again[cells > 0], cells[cells > 0])
    assert (again[cells == 0] <= 0).all()
    assert kstest(again.numpy().ravel(), "norm", args=(0.3, 0.8)).pvalue > 0.01
