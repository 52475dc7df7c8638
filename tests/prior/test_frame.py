"""The frame finds deviations, factors and strength of response that made the residuals."""

from __future__ import annotations

import numpy as np
import pytest

from scdfm.prior import fit_frame


def residuals(seed: int = 0, spread: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n, genes = 3000, 120
    loadings = rng.normal(size=(genes, 2)) * np.array([0.5, 0.3])
    deviation = rng.uniform(0.2, 1.0, genes)
    shifts = rng.normal(size=(5, genes))
    codes = rng.integers(5, size=n)
    standard = rng.normal(size=(n, 2)) @ loadings.T
    standard += rng.normal(size=(n, genes)) * np.sqrt(1 - np.minimum((loadings**2).sum(1), 0.9))
    values = standard * deviation + spread * rng.normal(size=(n, 1)) * shifts[codes]
    return values, codes, shifts, deviation


def test_deviations_and_factors() -> None:
    values, codes, shifts, _ = residuals()
    frame = fit_frame(values, codes, shifts)
    assert frame.size == pytest.approx(np.sqrt((values**2).mean()))
    np.testing.assert_allclose(frame.size * frame.deviation, values.std(0), rtol=0.01)
    assert frame.loadings.shape == (120, 2)
    made = (frame.loadings @ frame.loadings.T + (frame.unique**2).diag()).numpy()
    np.testing.assert_allclose(np.diag(made), 1, atol=1e-5)
    np.testing.assert_allclose(made, np.corrcoef(values.T), atol=0.09)
    assert frame.spread < 0.03


def test_strength_of_response() -> None:
    values, codes, shifts, _ = residuals(spread=0.25)
    assert fit_frame(values, codes, shifts).spread == pytest.approx(0.25, abs=0.05)


def test_noise_has_no_factors() -> None:
    rng = np.random.default_rng(1)
    frame = fit_frame(rng.normal(size=(2000, 80)), np.zeros(2000, int), np.zeros((1, 80)))
    assert frame.loadings.shape[1] <= 1
    assert frame.spread == 0


def test_silent_genes_keep_a_readable_spread() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(200, 10)) * (np.arange(10) > 4)
    frame = fit_frame(values, np.zeros(200, int), np.ones((1, 10)))
    assert frame.deviation.min() == pytest.approx(0.02)
    assert np.isfinite(frame.loadings.numpy()).all()
