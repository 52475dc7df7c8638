"""How far a flow's means are believed: the weights are those of least squares, and means arrive where they are sent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from scdfm.prior.shrink import Shrinkage, moved_to, share_of_values


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
        expected, expected + added, expected + missed + noise, torch.full((400,), 0.5), torch.full((400,), 1.5)
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


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_cells_are_moved_to_a_mean_each_gene_by_one_number(scale: float) -> None:
    """Against a root found by scipy; a gene whose mean is as wanted stays as it is, to the bit; genes of any spread."""
    cells = torch.randn((40, 6), generator=rng(5)) + torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, -9.0])
    found = cells.clamp(min=0).mean(0)
    wanted = torch.tensor([0.5, 0.0, 2.0, 0.01, 3.0, 0.2])
    wanted[4] = found[4]
    moved = moved_to(scale * cells, found, wanted, scale * torch.ones(6), lambda x: (x / scale).clamp(min=0))
    torch.testing.assert_close(moved.mean(0), wanted, rtol=1e-3, atol=1e-4)
    assert torch.equal(moved[:, 4], (scale * cells[:, 4] / scale).clamp(min=0))
    for gene in (0, 2, 3, 5):
        z = cells[:, gene].double().numpy()
        exact = brentq(lambda d, z=z, m=float(wanted[gene]): np.maximum(z + d, 0).mean() - m, -20, 20)
        np.testing.assert_allclose(moved[:, gene].numpy(), np.maximum(z + exact, 0), atol=2e-4)


def test_where_a_mean_jumps_the_nearer_side_is_taken() -> None:
    """A cell that leaves 0 has 4 at once, so a mean is off by half of its 4 / 40 at most, and the goals that some
    number of cells reaches are reached."""

    def expression(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, 4.0, 0.0)

    cells = torch.randn((40, 200), generator=rng(3))
    goals = torch.linspace(0.05, 3.95, 200)
    moved = moved_to(cells, expression(cells).mean(0), goals, torch.ones(200), expression)
    assert (moved.mean(0) - goals).abs().max() <= 0.5 * 4 / 40 + 1e-5
    reached = torch.round(goals * 10) / 10
    again = moved_to(cells, expression(cells).mean(0), reached, torch.ones(200), expression)
    torch.testing.assert_close(again.mean(0), reached)


@pytest.mark.parametrize("n", [1, 2])
def test_few_conditions_tell_nothing(n: int) -> None:
    """However well a flow's means fit them; of three they can tell."""
    missed, added = drawn(3, follows=0.9, errs=0.01, length=1.0)
    found = [Shrinkage.fitted(torch.zeros(k, 50), added[:k], missed[:k], torch.zeros(k), torch.ones(k)) for k in (n, 3)]
    assert found[0].follows == 0
    assert found[1].follows == pytest.approx(0.9, abs=0.1)


def test_a_flow_that_knows_nothing_is_hardly_ever_followed() -> None:
    """Of 60 flows whose means are chance half would seem to point the right way; those that point it follow."""
    followed = {0.0: 0, 0.5: 0}
    for seed in range(60):
        missed, chance = torch.randn((2, 6, 50), generator=rng(seed)) / 50**0.5
        for share in followed:
            found = Shrinkage.fitted(torch.zeros(6, 50), share * missed + chance, missed, torch.zeros(6), torch.ones(6))
            followed[share] += found.follows > 0
    assert followed[0.0] <= 6
    assert followed[0.5] >= 54


def test_values_follow_the_flow_as_far_as_real_cells_do() -> None:
    """Of real values that lie a share of the way from the prior's to the flow's that share, whatever the order of cells."""
    prior = [torch.randn((n, 8), generator=rng(n)) for n in (40, 60)]
    flow = [cells.sort(dim=0).values * 1.5 for cells in prior]
    for share in (0.0, 0.3, 1.0):
        real = [torch.lerp(p.sort(dim=0).values, s, share).flip(0) for p, s in zip(prior, flow, strict=True)]
        assert share_of_values(prior, flow, real) == pytest.approx(share, abs=1e-6)
    assert share_of_values(prior, prior, flow) == 0.0  # a flow that changes no value
    beyond = [2.0 * cells for cells in flow]
    assert share_of_values(prior, flow, beyond) == 1.0
    assert share_of_values(prior, flow, [0.5 * cells for cells in prior]) == 0.0


def test_values_of_a_flow_that_says_nothing_new_are_hardly_followed() -> None:
    """Its values differ from those drawn evenly by chance, as a sample's do. A flow that rightly widens a gene is."""
    even = torch.special.ndtri((torch.arange(64.0) + 0.5) / 64)[:, None].expand(-1, 50)
    found = [
        share_of_values([even], *([torch.randn((64, 50), generator=rng(seed + start))] for start in (0, 1000)))
        for seed in range(20)
    ]
    wider = [
        share_of_values([even], *([2 * torch.randn((64, 50), generator=rng(seed + start))] for start in (0, 1000)))
        for seed in range(20)
    ]
    assert np.mean(found) < 0.1
    assert np.mean(wider) > 0.8
