"""The frame finds deviations, factors and strength of response that made the cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scdfm.prior import Frame, Origins, fit_frame


def fitted(values: np.ndarray, codes: np.ndarray, means: np.ndarray, controls: np.ndarray) -> Frame:
    return fit_frame(values, codes, means, controls, torch.Generator().manual_seed(0))


def scales(frame: Frame, means: np.ndarray) -> np.ndarray:
    """σ [C, G] of conditions with these means."""
    shifts = {str(row): np.zeros_like(mean) for row, mean in enumerate(means)}
    origins = Origins.around(
        frame, {str(row): mean for row, mean in enumerate(means)}, shifts, dict.fromkeys(shifts, 0.0)
    )
    return origins.scale.numpy()


def screen(
    level: float, spread: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Censored cells of five conditions around `level`, with two common factors."""
    rng = np.random.default_rng(0)
    n, genes = 4000, 120
    loadings = rng.normal(size=(genes, 2)) * np.array([0.5, 0.3])
    loadings *= np.minimum(1, 0.9 / np.linalg.norm(loadings, axis=1, keepdims=True))
    sigma = rng.uniform(0.2, 1.0, genes)
    controls = np.full(genes, level)
    shifts = 0.5 * rng.normal(size=(5, genes))
    codes = rng.integers(5, size=n)
    standard = rng.normal(size=(n, 2)) @ loadings.T
    standard += rng.normal(size=(n, genes)) * np.sqrt(1 - (loadings**2).sum(1))
    strength = 1 + spread * rng.normal(size=(n, 1))
    values = np.maximum(controls + strength * shifts[codes] + sigma * standard, 0)
    means = np.stack([values[codes == code].mean(0) for code in range(5)])
    return values, codes, means, controls, sigma


def test_deviations_and_factors() -> None:
    """High expression, nothing censored: deviations and correlations of the cells themselves."""
    values, codes, means, controls, sigma = screen(level=8.0)
    frame = fitted(values, codes, means, controls)
    residuals = values - means[codes]
    assert frame.size == pytest.approx(np.sqrt((residuals**2).mean()), rel=1e-5)
    np.testing.assert_allclose(scales(frame, means), np.tile(sigma, (5, 1)), rtol=0.1)
    np.testing.assert_allclose(frame.size * frame.deviation, residuals.std(0), rtol=0.01)
    assert frame.loadings.shape == (120, 2)
    made = (frame.loadings @ frame.loadings.T + (frame.unique**2).diag()).numpy()
    np.testing.assert_allclose(np.diag(made), 1, atol=1e-5)
    np.testing.assert_allclose(made, np.corrcoef(residuals.T), atol=0.1)
    assert frame.spread < 0.05


def test_latent_deviations_behind_zeros() -> None:
    """Low expression, half of it zeros: the latent deviation is found, not that of what is left of it."""
    values, codes, means, controls, sigma = screen(level=0.1)
    frame = fitted(values, codes, means, controls)
    assert (values == 0).mean() > 0.4
    found = scales(frame, means)
    assert np.median(np.abs(found / sigma - 1)) < 0.25
    assert (frame.size * frame.deviation.numpy() < 0.9 * found).mean() > 0.8


def test_variances_follow_the_mean() -> None:
    """Counts of one law: genes that a condition switches on get the spread of genes that are on, not of silent ones."""
    rng = np.random.default_rng(4)
    base = rng.gamma(0.3, 2.0, size=400)
    rates = np.stack([base, base, base])
    rates[2, :20], base_on = 40.0, base[:20] < 1.0
    codes = np.repeat([0, 1, 2], [800, 800, 800])
    counts = rng.poisson(rng.gamma(5, rates[codes] / 5))
    values = np.log1p(counts)
    means = np.stack([values[codes == code].mean(0) for code in range(3)])
    known = codes < 2
    frame = fitted(values[known], codes[known], means[:2], means[:2])
    on = scales(frame, means)[2, :20][base_on]
    assert base_on.sum() >= 5
    np.testing.assert_allclose(
        np.median(on), np.median(values[codes == 2][:, :20][:, base_on].std(0)), rtol=0.4
    )
    unseen = np.array([values[codes == 2][:, gene].var() for gene in range(20, 400)])
    assert np.median(np.abs(made_variances(frame, means[2])[20:] / np.maximum(unseen, 1e-3) - 1)) < 0.25
    assert frame.highest == pytest.approx(values[known].max())


def test_factors_of_genes_that_are_mostly_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four values are zeros: the factor is as strong as it was made, and far weaker where draws ignore it."""
    rng = np.random.default_rng(6)
    n, genes, strength = 4000, 100, 0.6
    latent = strength * rng.normal(size=(n, 1)) + np.sqrt(1 - strength**2) * rng.normal(size=(n, genes))
    values = np.maximum(latent - 0.7, 0)
    codes, means = np.zeros(n, int), values.mean(0)[None]
    assert (values == 0).mean() > 0.7

    def found() -> float:
        return float(np.median(np.linalg.norm(fitted(values, codes, means, means).loadings, axis=1)))

    assert found() == pytest.approx(strength, abs=0.05)
    monkeypatch.setattr("scdfm.prior.frame.SWEEPS", 0)
    assert found() < 0.8 * strength


def test_a_gene_expected_silent_may_yet_be_on() -> None:
    """A gene that one condition switches on, expected silent there: its cells lie within some deviations."""
    rng = np.random.default_rng(5)
    values = np.maximum(0, rng.normal(3, 1, size=(400, 60)))
    values[:200, 0] = 0
    codes = np.repeat([0, 1], 200)
    means = np.stack([values[codes == code].mean(0) for code in range(2)])
    frame = fitted(values, codes, means, means[[0, 0]])
    start = Origins.around(frame, {"A": means[0]}, {"A": np.zeros(60)}, {"A": 0.0}).of(["A"])
    on, condition = torch.from_numpy(values[200:]).float(), torch.zeros(200, dtype=torch.long)
    residuals = start.to_flow(on, condition, torch.rand(on.shape)) / frame.deviation
    assert residuals.abs().max() < 20
    made = start.latent(
        start.source(torch.randn((2000, start._width)), condition.repeat(10)), condition.repeat(10)
    )
    assert (made[:, 0] > 0).float().mean() < 0.002  # and yet nearly nothing of it is generated


def made_variances(frame: Frame, mean: np.ndarray) -> np.ndarray:
    """Variances of cells drawn around a mean by the frame alone."""
    start = Origins.around(frame, {"A": mean}, {"A": np.zeros_like(mean)}, {"A": 0.0}).of(["A"])
    drawn = torch.randn((4000, start._width), generator=torch.Generator().manual_seed(1))
    condition = torch.zeros(4000, dtype=torch.long)
    return start.latent(start.source(drawn, condition), condition).clamp(min=0).var(0).numpy()


def test_generated_cells_have_mean_and_variance() -> None:
    """Without any network the population has the expected means, and the variances of the training cells."""
    values, codes, means, controls, _ = screen(level=0.4)
    frame = fitted(values, codes, means, controls)
    start = Origins.around(frame, {"A": controls}, {"A": means[1] - controls}, {"A": 0.0}).of(["A"])
    drawn = torch.randn((20_000, start._width), generator=torch.Generator().manual_seed(1))
    condition = torch.zeros(20_000, dtype=torch.long)
    cells = start.latent(start.source(drawn, condition), condition).clamp(min=0).numpy()
    np.testing.assert_allclose(cells.mean(0), means[1], atol=0.05)
    assert np.median(np.abs(cells.var(0) / values[codes == 1].var(0) - 1)) < 0.25


def test_strength_of_response() -> None:
    values, codes, means, controls, _ = screen(level=8.0, spread=0.25)
    assert fitted(values, codes, means, controls).spread == pytest.approx(0.25, abs=0.05)


def test_noise_has_no_factors() -> None:
    rng = np.random.default_rng(1)
    values = 5 + rng.normal(size=(2000, 80))
    frame = fitted(values, np.zeros(2000, int), values.mean(0)[None], np.full((1, 80), 5.0))
    assert frame.loadings.shape[1] <= 1
    assert frame.spread < 0.5


def test_silent_genes_keep_a_readable_spread() -> None:
    rng = np.random.default_rng(2)
    values = np.abs(rng.normal(size=(200, 10))) * (np.arange(10) > 4)
    frame = fitted(values, np.zeros(200, int), values.mean(0)[None], np.ones((1, 10)))
    assert frame.deviation.min() == pytest.approx(0.02)
    for part in (frame.excess, frame.peak, frame.trend, frame.loadings, frame.unique):
        assert torch.isfinite(part).all()


def test_cells_without_any_expression() -> None:
    frame = fitted(np.zeros((50, 8)), np.zeros(50, int), np.zeros((1, 8)), np.zeros((1, 8)))
    assert (scales(frame, np.zeros((1, 8))) > 0).all()
    assert np.isfinite(made_variances(frame, np.zeros(8))).all()
