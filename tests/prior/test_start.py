"""The flow from the prior: its closed-form velocity, its coordinates, and draws that are spread evenly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from scdfm.flow import sample_normal, solve
from scdfm.prior import Frame, PriorStart, gaussian_velocity
from scdfm.prior.start import straightened


def frame(n_genes: int = 6, spread: float = 0.3) -> Frame:
    rng = torch.Generator().manual_seed(0)
    loadings = torch.randn((n_genes, 2), generator=rng) * 0.4
    unique = (1 - (loadings**2).sum(1)).clamp(min=0.05).sqrt()
    deviation, excess, peak = torch.rand((3, n_genes), generator=rng) + 0.5
    trend = torch.tensor([[0.0], [1.0]])
    return Frame(0.5, deviation, excess, peak, trend, loadings, unique, spread, highest=9.0)


def origin(n_conditions: int = 3) -> PriorStart:
    rng = torch.Generator().manual_seed(1)
    centre, scale = torch.rand((2, n_conditions, 6), generator=rng)
    shift = torch.randn((n_conditions, 6), generator=rng)
    return PriorStart(frame(), centre, scale + 0.5, shift, torch.ones(n_conditions))


def test_velocity_is_the_expectation_of_the_path() -> None:
    """v(x, t) = E[x₁ − x₀ | x_t = x] for independent ends of one Gaussian law: the slope of a regression."""
    rng = torch.Generator().manual_seed(2)
    start, end = torch.randn((2, 200_000, 1), generator=rng) * 1.7
    for t in (0.1, 0.35, 0.5, 0.8):
        x = (1 - t) * start + t * end
        slope = float((x * (end - start)).mean() / (x * x).mean())
        assert float(gaussian_velocity(torch.ones(1, 1), torch.tensor([t]))) == pytest.approx(slope, abs=0.01)


def test_a_field_of_zero_moves_nothing() -> None:
    """Without a correction u stays, so the population at t = 1 is the source itself, in any number of steps."""
    r = torch.randn((5, 4), generator=torch.Generator().manual_seed(3))
    end = solve(straightened(lambda t, x: torch.zeros_like(x)), r, "rk4", 1, 1e-4)
    torch.testing.assert_close(end, r)


def test_straightened_is_the_same_flow() -> None:
    """The solution of v = Gaussian part + correction, by many steps of the plain equation."""

    def correction(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return 0.3 * torch.sin(x) + t

    def whole(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return correction(t, x) + gaussian_velocity(x, t.expand(len(x)))

    r = torch.randn((8, 3), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    exact = solve(whole, r, "rk4", 400, 1e-4)
    torch.testing.assert_close(
        solve(straightened(correction), r, "rk4", 40, 1e-4), exact, atol=1e-6, rtol=1e-6
    )


def test_coordinates_there_and_back() -> None:
    """Expression above 0 comes back; a zero comes back as something at or below 0."""
    rng, start, condition = torch.Generator().manual_seed(5), origin(), torch.tensor([0, 2, 1, 2])
    cells = (torch.rand((4, 6), generator=rng) - 0.3).clamp(min=0)
    uniform = torch.rand((4, 6), generator=rng)
    residuals = start.to_flow(cells, condition, uniform)
    back = start.latent(residuals, condition)
    torch.testing.assert_close(back.clamp(min=0), cells)
    assert (back[cells == 0] <= 1e-6).all()
    some = torch.tensor([1, 4])
    part = start.on(some).to_flow(cells[:, some], condition, uniform[:, some])
    torch.testing.assert_close(part, residuals[:, some])


def test_nothing_lies_above_the_highest_training_cell() -> None:
    start = origin()
    far = start.latent(torch.full((2, 6), 1e6), torch.tensor([0, 1]))
    assert (far == 9.0).all()


def test_noise_has_the_frame_s_law() -> None:
    """Covariance of the residuals: ddᵀ ⊙ (ΛΛᵀ + ψ² + τ² · shift shiftᵀ / σσᵀ)."""
    start, n = origin(1), 200_000
    drawn = sample_normal((n, start._width), torch.Generator().manual_seed(6))
    r = start.source(drawn, torch.zeros(n, dtype=torch.long)).double()
    f = start.frame
    shift = start.shift[0] / start.scale[0]
    expected = f.loadings @ f.loadings.T + (f.unique**2).diag() + f.spread**2 * torch.outer(shift, shift)
    expected = torch.outer(f.deviation, f.deviation) * expected
    np.testing.assert_allclose(np.cov(r.numpy().T), expected.numpy(), atol=0.05)
    np.testing.assert_allclose(r.mean(0).numpy(), 0, atol=0.02)


def test_stratified_draws() -> None:
    """One draw in each of n equal pieces of the normal law, per column and stratum; columns independent; seeded."""
    strata = torch.tensor([0] * 40 + [7] * 25)
    drawn = sample_normal((65, 300), torch.Generator().manual_seed(7), strata)
    for rows in (slice(0, 40), slice(40, 65)):
        part = drawn[rows].numpy()
        pieces = np.sort(np.floor(norm.cdf(part) * len(part)).astype(int), axis=0)
        np.testing.assert_array_equal(pieces, np.tile(np.arange(len(part))[:, None], (1, 300)))
    assert kstest(drawn.numpy().ravel(), "norm").pvalue > 0.01
    correlation = np.corrcoef(drawn[:40].numpy().T)[np.triu_indices(300, 1)]
    assert abs(correlation.mean()) < 0.01
    assert correlation.std() == pytest.approx(1 / np.sqrt(39), rel=0.1)
    again = sample_normal((65, 300), torch.Generator().manual_seed(7), strata)
    assert torch.equal(drawn, again)


def test_stratified_means_vary_less() -> None:
    rng = torch.Generator().manual_seed(8)
    strata = torch.zeros(64, dtype=torch.long)
    spread = sample_normal((64, 500), rng, strata).mean(0).std()
    assert spread < 0.1 * sample_normal((64, 500), rng).mean(0).std()
