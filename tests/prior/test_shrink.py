"""How far a flow's means are believed: the weights are those of least squares, and means arrive where they are sent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from scdfm.prior.shrink import Shrinkage, shift_to, shrunk


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(n: int, follows: float, errs: float, length: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What a prior misses of n conditions and what a flow adds, [n, 50]."""
    missed = torch.randn((n, 50), generator=rng(1)) * (length / 50) ** 0.5
    return missed, follows * missed + torch.randn((n, 50), generator=rng(2)) * (errs / 50) ** 0.5


def test_what_is_fitted_is_what_was_drawn() -> None:
    missed, added = drawn(400, follows=0.4, errs=2.0, length=3.0)
    noise = torch.randn((400, 50), generator=rng(3)) * 0.1  # of measuring real means
    expected = torch.rand((400, 50), generator=rng(4))
    found = Shrinkage.fitted(
        expected,
        expected + added,
        expected + missed + noise,
        torch.full((400,), 0.5),
        torch.full((400,), 1.5),
    )
    assert found.follows == pytest.approx(0.4, abs=0.02)
    assert found.errs == pytest.approx(2.0, abs=0.1)
    assert found.missed == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("length", [0.3, 3.0, 30.0])
def test_weights_are_those_of_least_squares(length: float) -> None:
    """Conditions of which the prior misses more follow the flow more: as a regression of r on d would tell."""
    missed, added = drawn(2000, follows=0.4, errs=1.0, length=length)
    slope = float((missed * added).sum() / (added**2).sum())
    shrinkage = Shrinkage(follows=0.4, errs=1.0, missed=1.0)
    assert float(shrinkage.weights(torch.tensor([length]))) == pytest.approx(min(slope, 1), abs=0.02)


def test_weights_at_the_ends() -> None:
    sure_and_not = torch.tensor([0.0, 1e-9, 1e9])
    found = Shrinkage(follows=0.5, errs=1.0, missed=1.0).weights(sure_and_not)
    assert found[0] == 0
    assert found[1] < 1e-8
    assert found[2] == 1  # 1/λ = 2 would go beyond the flow
    useless = Shrinkage(follows=0.0, errs=0.0, missed=1.0)
    assert torch.equal(useless.weights(sure_and_not), torch.zeros(3))


def test_a_flow_that_points_away_or_a_prior_that_misses_nothing_is_not_followed() -> None:
    missed, added = drawn(5, follows=0.8, errs=0.1, length=1.0)
    zero, doubt = torch.zeros(5), torch.ones(5)
    away = Shrinkage.fitted(torch.zeros_like(missed), -added, missed, zero, doubt)
    assert away.follows == 0
    right = Shrinkage.fitted(missed, missed + added, missed, zero, doubt)
    assert not right.weights(doubt).any()


def test_a_shift_brings_expression_to_its_mean() -> None:
    cells = torch.randn((40, 6), generator=rng(5)) + torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, -9.0])
    wanted = torch.tensor([0.5, 0.0, 2.0, 0.01, 3.0, 0.2])
    shift = shift_to(cells, cells.clamp(min=0).mean(0), wanted)
    torch.testing.assert_close((cells + shift).clamp(min=0).mean(0), wanted, rtol=1e-5, atol=1e-6)
    for gene in (0, 2, 3, 4, 5):
        z = cells[:, gene].double().numpy()
        exact = brentq(lambda d, z=z, m=float(wanted[gene]): np.maximum(z + d, 0).mean() - m, -20, 20)
        assert float(shift[gene]) == pytest.approx(exact, abs=1e-5)


def test_populations_arrive_between_start_and_end_and_keep_their_shape() -> None:
    start, end = torch.randn((60, 4), generator=rng(6)) + 1, torch.randn((60, 4), generator=rng(7)) * 2
    condition = torch.arange(3).repeat(20)
    moved = shrunk(end, start, condition, torch.tensor([0.0, 0.25, 1.0]))
    for place, weight in enumerate((0.0, 0.25, 1.0)):
        rows = condition == place
        began, ended, found = (x[rows].clamp(min=0).mean(0) for x in (start, end, moved))
        torch.testing.assert_close(found, torch.lerp(began, ended, weight))
        shift = moved[rows] - end[rows]
        torch.testing.assert_close(shift, shift[:1].expand_as(shift))
    assert torch.equal(moved[condition == 2], end[condition == 2])


def test_a_silent_gene_stays_as_it_is() -> None:
    cells = torch.full((5, 1), -2.0)
    assert torch.equal(shrunk(cells, cells - 1, torch.zeros(5, dtype=torch.long), torch.zeros(1)), cells)
