"""Marginals at any mean: closed forms of the Poisson law, means to the digit, values there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, poisson

from scdfm.prior import Marginals

N = 4000


def uniform(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def counts(rate: float, n: int = N, seed: int = 0) -> np.ndarray:
    return np.log1p(np.random.default_rng(seed).poisson(rate, (n, 1))).astype(np.float64)


def spread_evenly(n: int, n_genes: int) -> torch.Tensor:
    share = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.special.ndtri(share).float().unsqueeze(1).expand(n, n_genes)


def mixed(seed: int = 0) -> np.ndarray:
    """Genes of every kind: rare, common, always on, never on, one value alone."""
    rng = np.random.default_rng(seed)
    cells = np.log1p(rng.poisson([0.02, 0.5, 4.0, 60.0, 0.0, 1.0], (N, 6)) * rng.uniform(0.7, 1.4, (N, 1)))
    cells[:, 5] = np.where(cells[:, 5] > 0, 1.25, 0)
    return cells


@pytest.mark.parametrize("factor", [0.2, 0.6, 1.0, 1.5, 4.0])
def test_a_mean_brings_its_distribution(factor: float) -> None:
    """Means lie where they were asked to be, whatever the gene and the factor, unless no rate reaches them."""
    cells = mixed()
    law = Marginals.fitted(cells)
    wanted = torch.from_numpy(cells.mean(0) * factor).unsqueeze(0)
    wanted[:, 4] = 0.001
    wanted[:, 3] = cells[:, 3].mean() * min(factor, 1.5)
    scores = spread_evenly(20_000, 6)
    values = law.expression(scores, law.rates(wanted).expand(len(scores), -1))
    torch.testing.assert_close(values.double().mean(0), wanted[0], rtol=0.01, atol=2e-4)


@pytest.mark.parametrize(("rate", "factor"), [(0.3, 3.0), (0.3, 0.3), (1.0, 2.0), (3.0, 0.4)])
def test_counts_of_another_rate_have_their_zeros(rate: float, factor: float) -> None:
    """Moved to the mean of Poisson(ρλ), counts of Poisson(λ) have its zeros, e^−ρλ. Cells all shifted do not."""
    law = Marginals.fitted(counts(rate))
    other = counts(rate * factor, 100_000, seed=1)
    mean = torch.tensor([[other.mean()]])
    values = law.expression(spread_evenly(20_000, 1), law.rates(mean).expand(20_000, 1)).numpy()
    zeros, expected = float((values == 0).mean()), float(poisson.pmf(0, rate * factor))
    assert zeros == pytest.approx(expected, abs=0.06)
    here = counts(rate)
    shifted = np.maximum(here + (other.mean() - here.mean()), 0)
    assert abs(zeros - expected) < abs(float((shifted == 0).mean()) - expected)


def test_values_there_and_back() -> None:
    cells = mixed(1)
    law = Marginals.fitted(cells)
    x = torch.from_numpy(cells[:500].astype(np.float32))
    for shift in (-0.5, 0.0, 0.8):
        rates = torch.full_like(x, shift)
        scores = law.scores(x, rates, uniform(tuple(x.shape)))
        assert scores.isfinite().all()
        back = law.expression(scores, rates)
        # What lies beyond the moved range is brought to its end.
        lowest, highest = (
            torch.log1p(torch.expm1(law.values[:, k]) * torch.exp(shift * (1 - law.zeros))) for k in (0, -1)
        )
        inside = (scores.abs() < 4) & (x >= 1.02 * lowest) & (x <= 0.98 * highest)
        assert inside.float().mean() > 0.2
        torch.testing.assert_close(back[inside], x[inside], rtol=2e-3, atol=2e-3)
        assert (back[x == 0] == 0).all()


def test_scores_of_the_cells_themselves_are_standard_normal() -> None:
    cells = mixed(2)
    law = Marginals.fitted(cells)
    scores = law.scores(torch.from_numpy(cells.astype(np.float32)), torch.zeros((N, 6)), uniform((N, 6), 3))
    for gene in (0, 1, 2, 3, 5):
        assert kstest(scores[:, gene].numpy(), "norm").pvalue > 0.001, gene


def test_expression_rises_with_score_and_with_rate() -> None:
    law = Marginals.fitted(mixed())
    scores = spread_evenly(400, 6)
    rates = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    tables = torch.stack([law.expression(scores, torch.full_like(scores, float(r))) for r in rates])
    assert (tables.diff(dim=1) >= 0).all()
    assert (tables.diff(dim=0) >= -1e-6).all()
    assert (tables[-1] >= 0).all()


def test_a_mean_out_of_reach_ends_at_the_last_rate() -> None:
    law = Marginals.fitted(mixed())
    found = law.rates(torch.tensor([[0.0] * 6, [1e6] * 6]))
    assert (found[0] <= -5.9).all()
    assert (found[1] == 6).all()


def test_a_part_of_the_genes_is_the_part_of_the_whole() -> None:
    law, some = Marginals.fitted(mixed()), torch.tensor([3, 1])
    scores, rates = torch.randn((7, 6), generator=torch.Generator().manual_seed(0)), torch.zeros((7, 6))
    whole = law.expression(scores, rates)
    torch.testing.assert_close(law.on(some).expression(scores[:, some], rates[:, some]), whole[:, some])


def test_cells_without_any_expression() -> None:
    law = Marginals.fitted(np.zeros((50, 3)))
    scores = spread_evenly(50, 3)
    assert (law.expression(scores, law.rates(torch.zeros((1, 3))).expand(50, 3)) == 0).all()
