"""Which starts go to which cells: the least of all orders, and what that tells a velocity."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from scdfm.flow import interpolate, paired


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_pairs_are_the_nearest_of_all_orders_in_each_condition() -> None:
    source, target = drawn(3 * 4, 7, seed=1), drawn(3 * 4, 7, seed=2)
    found = paired(source, target, 3).view(3, 4, 7)
    for mine, x0, x1 in zip(found, source.view(3, 4, 7), target.view(3, 4, 7), strict=True):
        orders = [list(order) for order in permutations(range(4))]
        best = min(orders, key=lambda order: float((x0[order] - x1).square().sum()))
        assert torch.equal(mine, x0[best])


def test_one_cell_of_a_condition_keeps_its_start() -> None:
    source = drawn(5, 3, seed=1)
    assert torch.equal(paired(source, drawn(5, 3, seed=2), 5), source)


def test_pairs_keep_their_state_so_that_the_middle_of_a_path_tells_it() -> None:
    """Two states, of which one answers by moving a gene that says nothing of the state. Halfway the state of a cell, and
    with it whether it is to answer, is told by x_t; of random pairs half change state on the way, and it is not."""
    n = 200
    state = torch.cat([torch.ones(n // 2), -torch.ones(n // 2)])
    source = torch.stack([4 * state, torch.zeros(n)], dim=1) + 0.3 * drawn(n, 2, seed=1)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    target = torch.stack([4 * state, (state > 0).float()], dim=1)[shuffled] + 0.3 * drawn(n, 2, seed=2)

    def unexplained(start: Tensor) -> float:
        """Share of the variance of the answering gene's velocity that the state at t = 1/2 leaves over."""
        x_t, velocity = interpolate(start, target, torch.full((n,), 0.5))
        told, answer = x_t[:, 0].sign(), velocity[:, 1]
        within = torch.stack([answer[told == side].var() for side in (-1, 1)]).mean()
        return float(within / answer.var())

    assert unexplained(paired(source, target, 1)) < 0.5
    assert unexplained(source) > 0.7
