"""The flow from the prior: its closed-form velocity, its coordinates, and draws that are spread evenly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm, spearmanr

from scdfm.config import ModelConfig, SamplingConfig
from scdfm.errors import ConditionError
from scdfm.flow import generate, sample_normal, solve
from scdfm.model import VelocityField
from scdfm.prior import PriorStart, Shrinkage, Spread, fit_spread, gaussian_velocity
from scdfm.prior.shrink import NOT_FOLLOWED, REORDERED
from scdfm.prior.start import correlation_of_pairs, reordered, straightened

G = 6
NAMES = ("A", "B", "C")


def spread(n: int = 900) -> Spread:
    """Three conditions of log1p counts; what a cell's genes have in common is its depth."""
    rng = np.random.default_rng(0)
    conditions = np.repeat(np.arange(3), n // 3)
    means = np.array([[0.2, 1, 3, 8, 0.5, 2]]) * np.array([[1.0], [2.0], [0.5]])
    depth = rng.lognormal(0, 0.5, (n, 1))
    cells = np.log1p(rng.poisson(means[conditions] * depth))
    own = np.stack([cells[conditions == c].mean(0) for c in range(3)])
    return fit_spread(cells, conditions, own, ["control"] * 3, torch.Generator().manual_seed(0))


def start(factor: float = 1.0) -> PriorStart:
    expected = np.array(
        [[0.2, 0.7, 1.2, 2.0, 0.4, 1.0], [0.4, 0.9, 1.5, 2.3, 0.6, 1.3], [0.1, 0.4, 0.9, 1.6, 0.2, 0.7]]
    )
    return PriorStart.around(spread(), NAMES, expected * factor, expected[[0, 0, 0]], np.ones(3))


@pytest.mark.parametrize("rho", [None, 0.4, 0.9])
def test_velocity_is_the_expectation_of_the_path(rho: float | None) -> None:
    """v(x, t) = E[x₁ − x₀ | x_t = x] for ends of one Gaussian law, correlated or not: the slope of a regression."""
    rng = torch.Generator().manual_seed(2)
    start, other = torch.randn((2, 200_000, 1), generator=rng) * 1.7
    end = other if rho is None else rho * start + math.sqrt(1 - rho**2) * other
    correlation = None if rho is None else torch.tensor([rho])
    for t in (0.1, 0.35, 0.5, 0.8):
        x = (1 - t) * start + t * end
        slope = float((x * (end - start)).mean() / (x * x).mean())
        assert float(gaussian_velocity(torch.ones(1, 1), torch.tensor([t]), correlation)) == pytest.approx(
            slope, abs=0.01
        )


@pytest.mark.parametrize(("n", "expected"), [(1, 0.0), (2, 1 / math.pi), (3, 0.75 * 2 / math.pi)])
def test_pairs_of_one_gene_are_as_alike_as_order_statistics(n: int, expected: float) -> None:
    """With one gene the smallest goes to the smallest: the mean square of the expected order statistics of n normals,
    ±1/√π of two, ±3/(2√π) and 0 of three."""
    donors = torch.randn((60_000, 1), generator=torch.Generator().manual_seed(1)).half()
    alone = replace(spread().on(slice(0, 1)), donors=donors, settings={"control": (0, len(donors))})
    draws = [correlation_of_pairs(alone, n, 1, torch.Generator().manual_seed(seed)).item() for seed in range(60)]
    assert np.mean(draws) == pytest.approx(expected, abs=max(4 * np.std(draws) / math.sqrt(60), 0.03))


def test_genes_that_tell_a_state_are_alike_in_pairs_and_others_are_not() -> None:
    """Half of the genes tell a state of the cell; pairs of equals keep it. Donors of two settings never meet."""
    rng, n = torch.Generator().manual_seed(2), 400
    state = torch.where(torch.rand((n, 1), generator=rng) < 0.5, -1.0, 1.0)
    donors = torch.randn((n, 6), generator=rng)
    donors[:, :3] = 0.95 * state + 0.3 * donors[:, :3]
    whole = replace(spread(), donors=donors.half(), deviation=torch.ones(6), settings={"control": (0, n)})
    found = correlation_of_pairs(whole, 8, 6, torch.Generator().manual_seed(0))
    assert found[:3].min() > found[3:].max() + 0.1
    assert torch.equal(found, correlation_of_pairs(whole, 8, 6, torch.Generator().manual_seed(0)))
    apart = torch.argsort(state.flatten(), stable=True)
    n_low = int((state < 0).sum())
    halves = {"a": (0, n_low), "b": (n_low, n - n_low)}
    own = replace(whole, donors=whole.donors[apart], settings=halves)
    assert (correlation_of_pairs(own, 1, 6, torch.Generator().manual_seed(0))[:3] > 0.6).all()


@pytest.mark.parametrize("correlation", [None, torch.tensor([0.0, 0.3, 0.6, 0.9])])
def test_a_field_of_zero_moves_nothing(correlation: torch.Tensor | None) -> None:
    """Without a correction u stays, so the population at t = 1 is the source itself, in any number of steps."""
    r = torch.randn((5, 4), generator=torch.Generator().manual_seed(3))
    end = solve(straightened(lambda t, x: torch.zeros_like(x), correlation), r, "rk4", 1, 1e-4)
    torch.testing.assert_close(end, r)


@pytest.mark.parametrize("correlation", [None, torch.tensor([0.0, 0.5, 0.9])])
def test_straightened_is_the_same_flow(correlation: torch.Tensor | None) -> None:
    """The solution of v = Gaussian part + correction, by many steps of the plain equation."""

    def correction(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return 0.3 * torch.sin(x) + t

    def whole(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return correction(t, x) + gaussian_velocity(x, t.expand(len(x)), correlation)

    r = torch.randn((8, 3), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    exact = solve(whole, r, "rk4", 400, 1e-4)
    found = solve(straightened(correction, correlation), r, "rk4", 40, 1e-4)
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-6)


def test_cells_there_and_back() -> None:
    """Expression above 0 comes back; a zero stays a zero; a part of the genes is the part of the whole."""
    begin, condition = start(), torch.tensor([0, 2, 1, 2])
    rng = torch.Generator().manual_seed(5)
    cells = begin.cells(begin.population(condition, rng, False), torch.empty(0), condition)
    uniform = torch.rand(cells.shape, generator=rng)
    x = begin.to_flow(cells, condition, uniform)
    torch.testing.assert_close(begin.cells(x, x, condition), cells, rtol=2e-3, atol=2e-3)
    some = torch.tensor([1, 4])
    torch.testing.assert_close(begin.on(some).to_flow(cells[:, some], condition, uniform[:, some]), x[:, some])


@pytest.mark.parametrize("n_cells", [16, 128])
def test_a_population_has_the_expected_means(n_cells: int) -> None:
    """Means of few cells: stratified ones come near to what is expected, independent ones as near as so many cells can."""
    begin = start()
    condition = torch.arange(3).repeat_interleave(n_cells)
    errors = {}
    for stratified in (True, False):
        gaps = []
        for seed in range(8):
            x = begin.population(condition, torch.Generator().manual_seed(seed), stratified)
            means = begin.cells(x, x, condition).view(3, n_cells, G).mean(1)
            gaps.append((means - begin.expected).square().sum(1))
        errors[stratified] = float(torch.stack(gaps).mean().sqrt())
    assert errors[True] < 0.3 * errors[False]


def test_a_population_keeps_what_genes_of_a_cell_have_in_common() -> None:
    """Depth makes all genes of these cells rise together; donors bring that along, also when spread evenly."""
    begin, condition = start(), torch.zeros(400, dtype=torch.long)
    x = begin.population(condition, torch.Generator().manual_seed(0), True) / begin.spread.deviation
    own, donors = (np.corrcoef(values.numpy().T) for values in (x, begin.spread.donors.float()))
    np.testing.assert_allclose(own, donors, atol=4 / np.sqrt(400))
    assert own[2, 3] > 0.3


def test_donors_are_repeated_only_where_there_are_too_few() -> None:
    begin = start()
    n = len(begin.spread.donors)
    condition = torch.zeros(n, dtype=torch.long)
    drawn = (torch.randperm(n, generator=torch.Generator().manual_seed(0)) + 0.5) / n
    assert len(torch.unique(begin.source(drawn.unsqueeze(1), condition), dim=0)) == len(
        torch.unique(begin.spread.donors, dim=0)
    )


def test_means_between_start_and_flow() -> None:
    """With weights of 0, 1 and between: the mean expected, the flow's own to the bit, and one on the way."""
    begin, n = start(), 200
    condition = torch.zeros(n, dtype=torch.long)
    x = begin.population(condition, torch.Generator().manual_seed(1), True)
    end = x + 0.5
    first, last = begin.cells(x, x, condition).mean(0), begin.cells(end, x, condition).mean(0)

    def mean(follows: float, errs: float) -> torch.Tensor:
        found = replace(begin, shrinkage=Shrinkage(follows=follows, errs=errs, missed=1.0))
        return found.cells(end, x, condition).mean(0)

    torch.testing.assert_close(mean(0.0, 1.0), first, rtol=1e-4, atol=1e-4)
    assert torch.equal(mean(1.0, 0.0), last)
    torch.testing.assert_close(mean(1.0, 1.0), (first + last) / 2, rtol=1e-3, atol=5e-3)


def test_genes_of_large_spread_come_back_to_the_mean_that_is_expected() -> None:
    """A gene moved by three of its own deviations, be these 25 times the run's unit."""
    begin, n = start(), 200
    wide = replace(begin, spread=replace(begin.spread, deviation=25 * begin.spread.deviation))
    wide = replace(wide, shrinkage=Shrinkage(follows=0.0, errs=0.0, missed=0.0))
    condition = torch.zeros(n, dtype=torch.long)
    x = wide.population(condition, torch.Generator().manual_seed(1), True)
    found = wide.cells(x + 3 * wide.spread.deviation, x, condition).mean(0)
    expected = replace(wide, shrinkage=None).cells(x, x, condition).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_shift_is_how_far_control_cells_lie_below_their_condition() -> None:
    """In scores: control cells, scored where the condition is expected, are moved there by it on average."""
    begin, n = start(), 4000
    first = begin.expected[:1]
    assert PriorStart.around(begin.spread, NAMES[:1], first, first, np.ones(1)).shift().abs().max() < 1e-6
    rng = torch.Generator().manual_seed(1)
    condition = torch.zeros(n, dtype=torch.long)
    law = begin.spread.marginals.at(begin.expected[1])
    cells = law.expression(torch.randn((n, G), generator=rng), begin.control_rates[condition + 1])
    before, after = (
        law.scores(cells, rates[condition + 1], torch.rand((n, G), generator=rng))
        for rates in (begin.control_rates, begin.rates)
    )
    lost = before - after
    error = lost.std(0) / n**0.5
    assert ((lost.mean(0) - begin.shift()[1]).abs() < 4 * error + 0.05).all()
    assert (begin.shift()[1] > 0.2).all()
    torch.testing.assert_close(begin.on(torch.tensor([3, 1])).shift(), begin.shift()[:, [3, 1]])
    torch.testing.assert_close(begin.of(["C", "A"]).shift(), begin.shift()[[2, 0]])


def test_conditions_by_name() -> None:
    begin = start()
    assert begin.of(["C", "A"]).names == ("C", "A")
    with pytest.raises(ConditionError, match="condition 'D' has no expected mean"):
        begin.of(["D"])


def test_a_field_that_corrects_nothing_is_not_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as by solving, but for rounding, without a single evaluation; a trained field is solved."""
    field = VelocityField(ModelConfig(width=16, heads=2, gene_heads=2, layers=1), None, G + 4, expects=True)
    assert field.is_zero
    condition = torch.tensor([2, 0, 0, 2, 1, 2])

    def populations() -> torch.Tensor:
        return generate(
            field, control=torch.rand((6, G)), perturbation=torch.tensor([[4, 5], [6, 3], [7, 7]]),
            condition=condition, genes=torch.arange(G) + 4, sampling=SamplingConfig(steps=3), genes_per_step=4,
            rng=torch.Generator().manual_seed(0), start=start(),
        )  # fmt: skip

    calls: list[int] = []
    velocity = VelocityField.velocity
    monkeypatch.setattr(VelocityField, "velocity", lambda *rest: calls.append(1) or velocity(*rest))
    skipped = populations()
    assert not calls
    monkeypatch.setattr(VelocityField, "is_zero", False)
    torch.testing.assert_close(populations(), skipped, rtol=1e-5, atol=1e-5)
    assert calls
    monkeypatch.undo()
    torch.nn.init.constant_(field.decoder.out.bias, 0.1)
    assert not field.is_zero
    assert (populations() - skipped).abs().max() > 0.01


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


def test_stratified_draws_reach_the_tails() -> None:
    drawn = sample_normal((1000, 20), torch.Generator().manual_seed(3), torch.zeros(1000, dtype=torch.long)).numpy()
    pieces = np.sort(np.floor(norm.cdf(drawn.astype(float)) * 1000).astype(int), axis=0)
    assert (np.abs(pieces - np.arange(1000)[:, None]) <= 1).all()  # the last digit may fall into the next piece
    assert (np.abs(drawn).max(0) > 3).all()


def test_stratified_means_vary_less() -> None:
    rng = torch.Generator().manual_seed(8)
    strata = torch.zeros(64, dtype=torch.long)
    spread = sample_normal((64, 500), rng, strata).mean(0).std()
    assert spread < 0.1 * sample_normal((64, 500), rng).mean(0).std()


def test_in_the_flow_s_order_the_prior_says_which_values_and_the_flow_what_goes_together() -> None:
    """A gene's values are those of the start, to the bit; ranks of cells, so correlations, are those of the flow."""
    begin = replace(start(), shrinkage=REORDERED)
    condition = torch.zeros(400, dtype=torch.long)
    x = begin.population(condition, torch.Generator().manual_seed(1), True)
    latent = torch.randn(400, 1, generator=torch.Generator().manual_seed(2))
    end = 0.8 * latent * x.std(0) + 0.3 * x.flip(0) + 0.7  # one factor, other means and spreads
    made, own = begin.cells(end, x, condition), replace(begin, shrinkage=None)
    assert torch.equal(made.sort(dim=0).values, own.cells(x, x, condition).sort(dim=0).values)
    assert spearmanr(made[:, 3], end[:, 3]).statistic > 0.95  # a gene that is on nearly everywhere
    assert spearmanr(x[:, 3], end[:, 3]).statistic < 0.5
    assert torch.equal(begin.cells(x, x, condition), own.cells(x, x, condition))  # a flow that moves nothing


def test_values_lie_between_the_prior_s_and_the_flow_s_and_means_stay() -> None:
    """Cell by cell in the flow's order; the spread of a gene that is never 0 grows with the share."""
    plain = start()
    condition = torch.zeros(400, dtype=torch.long)
    x = plain.population(condition, torch.Generator().manual_seed(1), True)
    end = 2 * x.flip(0)
    mean = plain.cells(x, x, condition).mean(0)
    spreads = []
    for share in (0.0, 0.5, 1.0):
        made = replace(plain, shrinkage=NOT_FOLLOWED.model_copy(update={"values": share})).cells(end, x, condition)
        torch.testing.assert_close(made.mean(0), mean, rtol=1e-2, atol=2e-3)
        assert spearmanr(made[:, 3], end[:, 3]).statistic > 0.95
        spreads.append(made[:, 3].std().item())
    assert spreads[0] < spreads[1] < spreads[2]
    assert spreads[1] == pytest.approx((spreads[0] + spreads[2]) / 2, rel=0.1)


def test_reordering_is_by_rank() -> None:
    values, order = (
        torch.tensor([[1.0, 9.0], [2.0, 7.0], [3.0, 8.0]]),
        torch.tensor([[0.3, 5.0], [0.1, 6.0], [0.2, 4.0]]),
    )
    assert torch.equal(reordered(values, order), torch.tensor([[3.0, 8.0], [1.0, 9.0], [2.0, 7.0]]))
