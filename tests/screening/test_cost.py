"""The estimate's logic, with a clock that is told what things take."""

from __future__ import annotations

import pytest

from scdfm.jobs import seconds_per_item
from scdfm.screening.job import Estimate


class Work:
    """Work that takes `start` once, then `call` each time and `item` for each item."""

    def __init__(self, item: float, call: float = 0.0, start: float = 0.0) -> None:
        self.item, self.call, self.left, self.now, self.sizes = item, call, start, 0.0, []

    def __call__(self, names) -> None:
        self.sizes.append(len(names))
        self.now += self.left + self.call + self.item * len(names)
        self.left = 0.0

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize("item", [0.001, 0.05, 3.0, 40.0])
@pytest.mark.parametrize("call", [0.0, 0.5])
def test_within_a_fifth_of_what_it_takes(item, call):
    """A slow start, a cost of each call, fast and slow items: the estimate is right for shards of 32."""
    if call > item and item > 1:
        pytest.skip("no such work")
    n, shard = 5460, 32
    work = Work(item, call, start=30.0)
    names = [f"c{at}" for at in range(n)]
    found = Estimate(n, seconds_per_item(work, names, shard, work.clock)).seconds
    takes = n * item + -(-n // shard) * call
    assert found == pytest.approx(takes, rel=0.2)
    assert work.now - 30 < max(0.05 * takes, 3 * item + 4 * call + 10)


def test_the_probe_is_a_small_share_of_a_small_screen():
    work = Work(1.0)
    seconds_per_item(work, [f"c{at}" for at in range(20)], 32, work.clock)
    assert work.sizes == [1, 1]


def test_pairs_are_part_of_it():
    assert Estimate(10, 2.0, pairs=100, seconds_per_pair=0.1).seconds == pytest.approx(30)
    assert str(Estimate(1200, 0.5)) == "1,200 conditions at 0.5 s: about 10 min"
