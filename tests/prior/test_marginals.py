"""Marginals at any mean: closed forms of the Poisson law, means to the digit, values there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import f_oneway, kstest, poisson, wasserstein_distance

from scdfm.prior import Marginals
from scdfm.prior.marginals import DIFFER, N_KNOTS, Levels

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


def of_levels(n: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four conditions of 4 genes. Gene 0: a share of cells answers, the larger the mean; 1: all move alike; 2: none moves;
    3: on in the last condition alone."""
    rng = np.random.default_rng(seed)
    conditions = np.repeat(np.arange(4), n)
    answers = rng.random(4 * n) < np.array([0.0, 0.1, 0.3, 0.5])[conditions]
    x = rng.uniform(1.0, 1.4, (4 * n, 4))
    x[:, 0] += 3 * answers
    x[:, 1] += 0.5 * conditions
    x[:, 3] = np.where(conditions == 3, x[:, 3], 0)
    return x, conditions, np.stack([x[conditions == c].mean(0) for c in range(4)])


def test_a_gene_at_some_mean_has_the_law_of_conditions_there() -> None:
    """Values of each condition's own cells; one law for all is far from those where the spread goes with the mean."""
    x, conditions, means = of_levels()
    levels, pooled, scores = Levels.fitted(x, conditions, means, 4), Marginals.fitted(x), spread_evenly(2000, 4)
    rates, wide = levels.rates(torch.tensor(means).float()), pooled.rates(torch.tensor(means).float())
    assert rates[:, :3].abs().max() < 0.06  # what moves them is in the levels
    distances = np.empty((2, 4, 3))
    for c in range(4):
        own = levels.at(torch.tensor(means[c]).float()).expression(scores, rates[c].expand(2000, -1)).numpy()
        mixed = pooled.expression(scores, wide[c].expand(2000, -1)).numpy()
        for which, made in enumerate((own, mixed)):
            distances[which, c] = [wasserstein_distance(made[:, g], x[conditions == c, g]) for g in (0, 1, 3)]
    assert distances[0].max() < 0.1
    assert (distances[1].mean(0)[:2] > 3 * distances[0].mean(0)[:2]).all()


def test_a_gene_that_conditions_do_not_move_has_one_law() -> None:
    """And of genes that nothing moves, as many levels as chance says: DIFFER of them."""
    x, conditions, means = of_levels()
    levels = Levels.fitted(x, conditions, means, 4)
    assert torch.equal(levels.values[:, 2], Marginals.fitted(x).values[2].expand(4, -1))
    rng = np.random.default_rng(5)
    still = rng.poisson(1.0, (2000, 1500)).astype(float)
    own = np.stack([still[conditions == c].mean(0) for c in range(4)])
    found = Levels.fitted(still, conditions, own, 4)
    share = float((found.means != 0).any(0).float().mean())
    assert abs(share - DIFFER) < 4 * (DIFFER / 1500) ** 0.5


def test_the_test_of_means_is_scipy_s() -> None:
    verdicts = []
    for seed in range(6):
        x, conditions, _ = of_levels(30, seed)
        x[:, 2] += 0.015 * conditions
        means = np.stack([x[conditions == c].mean(0) for c in range(4)])
        has_levels = (Levels.fitted(x, conditions, means, 4).means != 0).any(0)
        for gene in range(3):
            pvalue = f_oneway(*(x[conditions == c, gene] for c in range(4))).pvalue
            assert has_levels[gene] == (pvalue < DIFFER)
            verdicts.append(bool(pvalue < DIFFER))
    assert {True, False} <= set(verdicts[2::3])


def test_levels_that_nothing_fills_are_as_their_neighbours() -> None:
    """More levels than conditions; a gene that one condition did not measure; one law where there is one condition."""
    x, conditions, means = of_levels()
    x[conditions == 3, 1], means[3, 1] = np.nan, np.nan
    levels = Levels.fitted(x, conditions, means, 8)
    assert levels.means.isfinite().all()
    assert levels.values.isfinite().all()
    assert (levels.means.diff(dim=0) >= 0).all()
    torch.testing.assert_close(levels.means[-1, 1], torch.tensor(means[2, 1]).float())
    alone = Levels.fitted(x[:500], conditions[:500], means[:1])
    assert len(alone.means) == 1
    assert torch.equal(alone.at(torch.zeros(4)).values, Marginals.fitted(x[:500]).values)


def test_sorting_levels_together_is_sorting_each() -> None:
    x, conditions, means = of_levels(100)
    levels = Levels.fitted(x, conditions, means, 4)
    for c in range(4):
        own = Marginals.fitted(x[conditions == c])
        torch.testing.assert_close(levels.values[c, 0], own.values[0])
        torch.testing.assert_close(levels.zeros[c, [0, 1, 3]], own.zeros[[0, 1, 3]])


def test_moved_marginals_are_those_of_the_rate() -> None:
    """Read at rate 0 they give what the law gives at the rate, but for what lies between two knots."""
    law = Marginals.fitted(mixed())
    wanted = law.means.unsqueeze(0) * 1.4
    rates = law.rates(wanted)
    moved = law.at_rates(rates[0])
    scores = spread_evenly(2000, 6)
    torch.testing.assert_close(
        moved.expression(scores, torch.zeros(2000, 6)),
        law.expression(scores, rates.expand(2000, -1)),
        rtol=1e-3,
        atol=1e-3,
    )
    reached = [0, 1, 2, 5]
    torch.testing.assert_close(moved.means[reached], wanted[0, reached], rtol=2e-3, atol=1e-4)


def test_ordered_values_are_the_quantiles_at_the_mean() -> None:
    cells = mixed()
    levels, mean = Levels.single(Marginals.fitted(cells)), torch.from_numpy(cells.mean(0)).float()
    values = levels.ordered(mean, 500)
    assert (values.diff(dim=0) >= 0).all()
    places = (np.arange(500) + 0.5) / 500
    for gene in (1, 2, 3):
        assert np.abs(values[:, gene].numpy() - np.quantile(cells[:, gene], places)).mean() < 0.02


def test_levels_go_towards_others_at_the_same_mean() -> None:
    """Share 0 leaves them, share 1 has the other's shape and the own mean; between lies between."""
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(3, 0.2, (N, 1)), rng.normal(2.5, 0.8, (N, 1)).clip(min=0)
    own, other = (Levels.single(Marginals.fitted(cells)) for cells in (narrow, wide))
    mean, scores = torch.tensor([3.0]), spread_evenly(4000, 1)
    deviations = []
    for share in (0.0, 0.5, 1.0):
        found = own.towards(other, share)
        values = found.at(mean).expression(scores, found.rates(mean[None]).expand(4000, -1))
        assert float(values.mean()) == pytest.approx(3.0, abs=0.01)
        deviations.append(float(values.std()))
    there = other.at(mean).expression(scores, other.rates(mean[None]).expand(4000, -1))
    assert deviations[0] == pytest.approx(0.2, rel=0.05)
    assert deviations[2] == pytest.approx(float(there.std()), rel=0.02)
    assert deviations[0] + 0.15 < deviations[1] < deviations[2] - 0.15


def test_a_law_that_no_rate_brings_there_leaves_it_to_the_other() -> None:
    """Of a gene that few cells of other lines hold nothing is known where all hold it: there it is as its own cells say."""
    rng = np.random.default_rng(0)
    rare = np.where(rng.random((N, 1)) < 0.02, 1 + 0.1 * rng.random((N, 1)), 0)
    own = rng.normal(2.5, 0.3, (N, 1))
    basis, other = (Levels.single(Marginals.fitted(cells)) for cells in (rare, own))
    found, mean, scores = basis.towards(other, 0.5), torch.tensor([2.5]), spread_evenly(4000, 1)
    values = found.at(mean).expression(scores, found.rates(mean[None]).expand(4000, -1))
    assert float(values.mean()) == pytest.approx(2.5, abs=0.01)
    assert float(values.std()) == pytest.approx(0.3, rel=0.05)
    back = other.towards(basis, 0.5)
    again = back.at(mean).expression(scores, back.rates(mean[None]).expand(4000, -1))
    torch.testing.assert_close(again, values, atol=0.01, rtol=0)


def test_a_gene_moved_to_next_to_nothing_is_still_seen() -> None:
    """Shares of zeros stay below 1, which a file of them needs, however seldom the gene and low the mean."""
    law = Marginals(torch.tensor([1 - 1e-5]), torch.linspace(0.5, 2, N_KNOTS).unsqueeze(0))
    assert (law.at_rates(torch.tensor([-6.0])).zeros < 1).all()
