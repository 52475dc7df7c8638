"""Conditions that share a target start each other where that is clearly better."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from scdfm.errors import RunError
from scdfm.flow import energy
from scdfm.prior import PriorStart, Spread, fit_spread
from scdfm.prior.lenders import FEWEST_JUDGED, with_lenders
from scdfm.prior.spread import LEAST_SHARING
from scdfm.prior.start import correlation_of_pairs

GENES, STATE_GENES, EACH = 16, 4, 80
TARGETS = "ABCDEF"
NAMES = [*TARGETS, *("+".join(pair) for pair in combinations(TARGETS, 2))]
UNSEEN = ["A+B", "C+D", "E+F"]


def law(seed: int) -> dict[str, npt.NDArray[np.float64]]:
    """Log rates that a target adds, of some genes that tell no state."""
    rng = np.random.default_rng(seed)
    moved = rng.random((len(TARGETS), GENES)) < 0.4
    moved[:, :STATE_GENES] = False
    return dict(zip(TARGETS, moved * rng.choice([-1.5, 1.5], (len(TARGETS), GENES)), strict=True))


def drawn(name: str, seed: int, n: int, states: bool) -> npt.NDArray[np.float64]:
    """Cells [n, G], log1p; with `states` half of them are of another state and do not respond, else all half respond."""
    rng = np.random.default_rng([seed, n, *name.encode()])
    effect = sum((law(seed)[target] for target in name.split("+")), np.zeros(GENES))
    of = rng.random(n) < 0.5
    state = np.where(np.arange(GENES) < STATE_GENES, 1.5, 0.0)
    respond = of if states else np.full(n, 0.5)
    rates = np.exp(1 + np.outer(of, state) + np.outer(respond, effect))
    return np.log1p(rng.poisson(rates)).astype(np.float64)


def spread_of(seed: int, states: bool, names: list[str] | None = None) -> Spread:
    """The spread of training conditions, each lender at first, then as `with_lenders` decides."""
    names = [name for name in NAMES if name not in UNSEEN] if names is None else names
    parts = [drawn(name, seed, EACH, states) for name in names]
    cells, conditions = np.concatenate(parts), np.repeat(np.arange(len(names)), EACH)
    means = np.stack([part.mean(0) for part in parts])
    rng = torch.Generator().manual_seed(seed)
    spread = fit_spread(cells, conditions, means, ["control"] * len(names), rng, names)
    return with_lenders(spread, cells, conditions, means, torch.Generator().manual_seed(seed))


def started(spread: Spread, name: str, mean: npt.NDArray[np.float64], n: int, seed: int) -> torch.Tensor:
    """Cells [n, G] of a condition at its mean, by independent donors."""
    start = PriorStart.around(spread, [name], mean[None], mean[None], np.zeros(1))
    condition = torch.zeros(n, dtype=torch.long)
    begin = start.population(condition, torch.Generator().manual_seed(seed), stratified=False)
    return start.cells(begin, begin, condition)


@pytest.mark.parametrize("seed", range(4))
def test_where_one_of_two_states_responds_those_lend_that_share_a_target(seed: int) -> None:
    spread = spread_of(seed, states=True)
    assert spread.lenders == tuple(name for name in NAMES if name not in UNSEEN)
    lending = {spread.lenders[place] for place in spread.lender[spread.sharing("A+B")]}
    assert lending == {"A", "B", "A+C", "A+D", "A+E", "A+F", "B+C", "B+D", "B+E", "B+F"}


def test_where_cells_differ_by_chance_alone_all_start_all() -> None:
    """One in forty by the interval: of twelve screens at most one."""
    kept = [bool(spread_of(seed, states=False).lenders) for seed in range(12)]
    assert sum(kept) <= 1


def test_unseen_pairs_are_nearer_with_them() -> None:
    """Energy distance to cells of the law, at the true mean, over screens and pairs: better by 3 standard errors."""
    gains = []
    for seed in range(4):
        spread = spread_of(seed, states=True)
        everyone = replace(spread, lenders=(), lender=None)
        for name in UNSEEN:
            truth = drawn(name, seed, 1000, states=True)
            real = torch.from_numpy(truth.astype(np.float32))
            near, far = (started(one, name, truth.mean(0), 1000, seed) for one in (spread, everyone))
            gains.append((energy(far, real) - energy(near, real)).item())
    assert np.mean(gains) > 3 * stats.sem(gains)
    assert np.mean(gains) > 0.02


def test_a_condition_never_lends_itself_cells_nor_other_settings() -> None:
    names = ["A|line=x", "A+B|line=x", "A+C|line=x", "A+C|line=y", "D|line=x"]
    spread = replace(spread_of(0, True), lenders=tuple(names), lender=torch.arange(5).repeat_interleave(120).int())

    def lending(name: str) -> set[str]:
        return {names[place] for place in spread.lender[spread.sharing(name)]}

    assert lending("A+B|line=x") == {"A|line=x", "A+C|line=x"}
    assert lending("A+B|line=y") == {"A+C|line=y"}
    assert lending("B@2|line=x") == {"A+B|line=x"}  # whatever the dose
    assert lending("E|line=x") == lending("A|line=z") == lending("control|line=x") == set()


def test_too_few_donors_do_not_lend() -> None:
    spread = spread_of(0, True)
    few = replace(spread, lender=torch.where(torch.arange(len(spread.donors)) < LEAST_SHARING - 1, 0, 5).int())
    assert len(few.sharing("A+B")) == 0
    enough = replace(spread, lender=torch.where(torch.arange(len(spread.donors)) < LEAST_SHARING, 0, 5).int())
    assert torch.equal(enough.sharing("A+B"), torch.arange(LEAST_SHARING))


def test_few_conditions_decide_nothing() -> None:
    names = ["A", "B", "A+B", "A+C"][: FEWEST_JUDGED - 1]
    assert spread_of(0, True, names).lenders == ()


def test_a_population_starts_with_their_cells_alone() -> None:
    spread = spread_of(0, True)
    lent = {tuple(row) for row in spread.donors[spread.sharing("A+B")].tolist()}
    flat = np.ones((2, GENES))
    start = PriorStart.around(spread, ["A+B", "control"], flat, flat, np.zeros(2)).at(torch.tensor([0, 1]))
    condition = torch.tensor([0, 1]).repeat_interleave(500)
    rows = [tuple(row) for row in (start._scores(torch.rand(1000, 1), condition)).half().tolist()]
    assert set(rows[:500]) <= lent
    assert not set(rows[500:]) <= lent


def test_pairs_of_a_step_are_of_the_same_lenders() -> None:
    """Two lenders whose donors lie far apart: pairs among the donors of one correlate less than pairs of both would."""
    spread = spread_of(0, True)
    apart = torch.where(spread.lender % 2 == 0, 3.0, -3.0)[:, None].half() + spread.donors
    names = tuple("AB"[place % 2] + f"+{place}" for place in range(len(spread.lenders)))
    lent, mixed = (
        correlation_of_pairs(one, 8, GENES, torch.Generator().manual_seed(0))
        for one in (
            replace(spread, donors=apart, lenders=names),
            replace(spread, donors=apart, lenders=(), lender=None),
        )
    )
    assert (lent > 0.8).all()  # all of one side
    assert not torch.equal(lent, mixed)


def test_a_file_keeps_them_and_damage_is_told(tmp_path: Path) -> None:
    spread, path = spread_of(0, True), tmp_path / "spread.safetensors"
    spread.save(path)
    again = Spread.load(path, GENES)
    assert again.lenders == spread.lenders
    assert torch.equal(again.lender, spread.lender)
    for damaged, words in (
        (spread.lender[1:], "'lender' is torch.int32"),
        (spread.lender.long(), "'lender' is torch.int64"),
        (spread.lender + 1, "beyond the 'lenders'"),
    ):
        replace(spread, lender=damaged).save(path)
        with pytest.raises(RunError, match=words):
            Spread.load(path, GENES)


def test_the_same_seed_decides_and_draws_the_same() -> None:
    one, two = spread_of(1, True), spread_of(1, True)
    assert torch.equal(one.lender, two.lender)
    assert one.lenders == two.lenders


def test_in_a_new_setting_its_controls_are_the_donors() -> None:
    controls = drawn("A", 0, 200, True)
    home = spread_of(0, True).at_home(controls, "control|line=new", torch.Generator().manual_seed(0))
    assert home.lender is None
    assert len(home.sharing("A+B|line=new")) == 0
