"""What training can gain, known beforehand: clear where genes of a cell answer together as no prior says, else not."""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist

import scdfm
import small
from scdfm.data import Split
from scdfm.run.manifest import Headroom
from scdfm.seeds import numpy_rng
from scdfm.training import headroom as module
from scdfm.training.headroom import told

GENES, TARGETS = 16, 5
INSTANT = {"graph": {"k": 5}, "training": {"max_steps": 0}}


def screen(seed: int, hidden: bool) -> ad.AnnData:
    """Singles and pairs of five targets. Four genes tell a state; cells of one state answer, or with `hidden` False any."""
    rng = numpy_rng(seed, "law")
    names = [f"G{place:02d}" for place in range(GENES)]
    moved = {
        name: np.r_[np.zeros(4), rng.choice([-1, 1], GENES - 4) * rng.uniform(0.6, 1.1, GENES - 4)] for name in names
    }
    conditions = [(), *((name,) for name in names[-TARGETS:]), *combinations(names[-TARGETS:], 2)]
    labels, blocks = [], []
    for members in conditions:
        n = 120 if members else 300
        in_state = rng.random(n) < 0.5
        cells = 2.5 + 0.2 * rng.normal(size=(n, GENES)) + np.outer(in_state, [1, -1, 1, -1, *[0] * (GENES - 4)])
        answers = in_state if hidden else np.ones(n)
        cells += np.outer(answers, sum((moved[name] for name in members), np.zeros(GENES)))
        labels += ["+".join(members) or "control"] * n
        blocks.append(cells.clip(0).astype(np.float32))
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{place}" for place in range(len(labels))])
    return ad.AnnData(np.concatenate(blocks), obs=obs, var=pd.DataFrame(index=names))


def split_of(cells: scdfm.CellTable) -> Split:
    names = [name for name in cells.conditions if name != "control"]
    doubles = [name for name in names if "+" in name]
    return Split(
        "named", 0, tuple(name for name in names if name not in doubles[:4]), tuple(doubles[2:4]), tuple(doubles[:2])
    )


def found(data: ad.AnnData, out: Path, **over: object) -> Headroom:
    """The headroom of a fit of no training."""
    cells = scdfm.read_cells(data)
    config = scdfm.Config().updated(INSTANT).updated(over)
    run = scdfm.fit(cells, split_of(cells), config, out=out, progress=False)
    assert run.manifest.headroom is not None
    return run.manifest.headroom


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_clear_where_a_hidden_state_answers_and_only_there(seed: int, tmp_path: Path) -> None:
    """The same law but for who answers."""
    hidden, seen = (found(screen(seed, hidden=state), tmp_path / str(state)) for state in (True, False))
    assert hidden.low > 0.1 * hidden.energy > 0
    assert str(told(hidden)).endswith("; training can pay")
    assert seen.low < 0
    assert abs(seen.gain) < 0.1 * hidden.gain
    assert str(told(seen)).endswith("; the preset instant is enough")


def test_it_is_the_energy_distance_that_another_order_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out in numpy, of the populations that are compared."""
    compared: list[tuple[np.ndarray, np.ndarray]] = []
    real = module.energy

    def listening(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        compared.append((x.numpy(), y.numpy()))
        return real(x, y)

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        n, m = len(x), len(y)
        return float(2 * cdist(x, y).mean() - cdist(x, x).sum() / (n * (n - 1)) - cdist(y, y).sum() / (m * (m - 1)))

    monkeypatch.setattr(module, "energy", listening)
    result = found(screen(0, hidden=True), tmp_path / "run")
    each = module.DRAWS + 2
    assert len(compared) == each * result.conditions
    gains, alone = [], []
    for first in range(0, len(compared), each):
        *independent, (prior, other), (ordered, again) = compared[first : first + each]
        np.testing.assert_array_equal(other, again)
        # Gene by gene the values are the same; only which go together differs.
        np.testing.assert_allclose(np.sort(prior, 0), np.sort(ordered, 0), atol=1e-5)
        gains.append(distance(prior, other) - distance(ordered, other))
        alone.append(np.mean([distance(*pair) for pair in independent]))
    interval = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    expected = (np.mean(gains), interval.low, interval.high, np.mean(alone))
    np.testing.assert_allclose((result.gain, result.low, result.high, result.energy), expected, atol=1e-4)


def test_the_half_that_orders_does_not_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of the ordered cells and of the judging ones have nothing in common; those of one half were the same."""
    compared: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = module.energy
    monkeypatch.setattr(module, "energy", lambda x, y: compared.append((x, y)) or real(x, y))
    found(screen(0, hidden=True), tmp_path / "run")
    common = []
    for ordered, other in compared[module.DRAWS + 1 :: module.DRAWS + 2]:
        common += [stats.spearmanr(ordered[:, gene], other[:, gene]).statistic for gene in range(GENES)]
    assert abs(np.mean(common)) < 0.1


def lines(n_lines: int, sizes: dict[str, int], joint: float, seed: int) -> ad.AnnData:
    """Cells without any effect: genes are independent, but for two factors of each line that are `joint` strong."""
    rng, blocks, obs = np.random.default_rng(seed), [], []
    for line in range(n_lines):
        factors = 0.3 * joint * rng.normal(size=(2, GENES))
        for name, n in sizes.items():
            cells = 2.5 + 0.3 * rng.normal(size=(n, GENES)) + rng.normal(size=(n, 2)) @ factors
            blocks.append(cells.clip(0).astype(np.float32))
            obs += [(name, f"line{line:02d}")] * n
    table = pd.DataFrame(obs, columns=["perturbation", "line"], index=[f"c{place}" for place in range(len(obs))])
    return ad.AnnData(
        np.concatenate(blocks), obs=table, var=pd.DataFrame(index=[f"G{place:02d}" for place in range(GENES)])
    )


@pytest.mark.parametrize(
    ("n_lines", "sizes", "joint"),
    [
        (4, {"control": 60, "G00": 260, "G01": 16}, 0.0),
        (40, {"control": 20, "G00": 24, "G01": 24, "G02": 24}, 1.5),
        (12, {"control": 30, "G00": 48}, 1.5),
        (12, {"control": 60, "G00": 60, "G01": 60}, 1.5),
    ],
    ids=["unequal sizes", "many lines", "a condition a line", "equal sizes"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_the_prior_of_a_setting_has_is_no_headroom(n_lines, sizes, joint, seed, tmp_path: Path) -> None:
    """The prior starts from cells of the same line; few such cells, or conditions, make no more of it."""
    cells = scdfm.read_cells(lines(n_lines, sizes, joint, seed), covariates=["line"])
    split = Split("named", 0, tuple(name for name in cells.conditions if not name.startswith("control")), (), ())
    config = scdfm.Config().updated(INSTANT).updated({"seed": seed})
    manifest = scdfm.fit(cells, split, config, out=tmp_path / "run", progress=False).manifest
    if len(sizes) == 2:
        assert manifest.headroom is None
    else:
        assert manifest.headroom is not None
        assert manifest.headroom.low < 0
        assert str(told(manifest.headroom)).rsplit("; ", 1)[1] != "training can pay"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_a_joint_law_there_is_none(seed: int, tmp_path: Path) -> None:
    """The control: values of each gene dealt anew among the cells of a condition."""
    data, rng = screen(seed, hidden=True), np.random.default_rng(seed)
    for name in data.obs["perturbation"].unique():
        rows = (data.obs["perturbation"] == name).to_numpy()
        data.X[rows] = rng.permuted(data.X[rows], axis=0)
    result = found(data, tmp_path / "run")
    error = (result.high - result.low) / 2 / stats.t.ppf(0.975, result.conditions - 1)
    assert abs(result.gain) < 3 * error
    assert abs(result.gain) < 0.02 * result.energy


def test_test_and_validation_cells_take_no_part(tmp_path: Path) -> None:
    data = screen(1, hidden=True)
    split = split_of(scdfm.read_cells(data))
    changed = data.copy()
    held = changed.obs["perturbation"].isin([*split.test, *split.validation]).to_numpy()
    changed.X[held] = changed.X[held][:, ::-1]
    trained = changed.copy()
    inside = trained.obs["perturbation"].isin(split.train[:1]).to_numpy()
    trained.X[inside] = trained.X[inside][:, ::-1]
    panel = {"panel": {"n_genes": GENES}}
    before, after, other = (found(each, tmp_path / str(n), **panel) for n, each in enumerate((data, changed, trained)))
    assert before == after
    assert before != other


def test_it_comes_from_the_seed_and_is_not_part_of_what_a_fit_is(tmp_path: Path) -> None:
    data = screen(0, hidden=True)
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = scdfm.Config().updated(INSTANT).updated({"seed": seed})
        cells = scdfm.read_cells(data)
        runs[name] = scdfm.fit(cells, split_of(cells), config, out=tmp_path / name, progress=False).manifest
    assert runs["a"].headroom == runs["b"].headroom != runs["c"].headroom
    assert runs["a"].model_copy(update={"headroom": None}).identity == runs["a"].identity


@pytest.mark.parametrize(
    ("over", "cells"),
    [({}, 15), ({"flow": {"source": "gaussian", "genes_per_step": 24}, "sampling": {"steps": 1, "cells": 5}}, 40)],
)
def test_where_it_cannot_be_known_nothing_is_said(
    over: dict[str, dict[str, object]], cells: int, tmp_path: Path
) -> None:
    """Conditions of too few cells for two halves, and a flow from noise."""
    said: list[str] = []
    data = small.screen(cells_per_condition=cells)
    run = scdfm.fit(
        scdfm.read_cells(data), config=small.config(**over), out=tmp_path / "run", progress=False, say=said.append
    )
    assert run.manifest.headroom is None
    assert told(None) is None
    assert not any("headroom" in text for text in said)


def test_a_fit_that_trains_says_it_beforehand(tmp_path: Path) -> None:
    said: list[str] = []
    cells = scdfm.read_cells(small.screen(cells_per_condition=16))
    run = scdfm.fit(cells, config=small.config(), out=tmp_path / "run", progress=False, say=said.append)
    assert told(run.manifest.headroom) in said
    assert scdfm.Run.load(tmp_path / "run").manifest.headroom == run.manifest.headroom
    instant = small.config(training={"max_steps": 0})
    said.clear()
    alone = scdfm.fit(cells, config=instant, out=tmp_path / "instant", progress=False, say=said.append)
    assert alone.manifest.headroom == run.manifest.headroom
    assert not any("headroom" in text for text in said)


@pytest.mark.parametrize(
    ("gain", "low", "high", "verdict", "advice"),
    [
        (0.05, 0.02, 0.08, "clear", "training can pay"),
        (0.01, 0.002, 0.018, "clear", "the preset instant is enough"),
        (0.015, -0.01, 0.019, "not clear", "the preset instant is enough"),
        (0.05, -0.01, 0.11, "not clear", "whether training pays, validation says"),
        (0.019, 0.01, 0.028, "clear", "whether training pays, validation says"),
    ],
)
def test_what_follows_from_it(gain: float, low: float, high: float, verdict: str, advice: str) -> None:
    """A tenth of the prior's distance is worth the steps."""
    assert told(Headroom(gain=gain, low=low, high=high, energy=0.2, conditions=9)) == (
        f"headroom of training, 9 training conditions: {gain} ({low} to {high}, {verdict}) of the prior's energy distance "
        f"to real cells of 0.2; {advice}"
    )


@pytest.mark.parametrize("energy", [0.0, -0.1])
def test_where_the_prior_is_no_further_than_chance_a_clear_gain_alone_says_that_training_can_pay(energy: float) -> None:
    """The distance of few cells falls below 0 by chance, in two seeds of three on screens where training halves it."""
    found = Headroom(gain=0.01, low=0.005, high=0.015, energy=energy, conditions=3)
    assert str(told(found)).endswith(f" to real cells, which few cells put at {energy:.2g}; training can pay")
    unclear = Headroom(gain=0.01, low=-0.001, high=0.021, energy=energy, conditions=3)
    assert str(told(unclear)).endswith("; the preset instant is enough")


def test_equal_cells_leave_nothing_to_gain(tmp_path: Path) -> None:
    data = screen(0, hidden=True)
    data.X[:] = 1.5
    result = found(data, tmp_path / "run")
    assert (result.gain, result.low, result.high) == (0, 0, 0)
    assert str(told(result)).endswith("; the preset instant is enough")


def test_of_one_gene_no_order_can_gain(tmp_path: Path) -> None:
    """What rounding leaves is no gain."""
    result = found(screen(0, hidden=True), tmp_path / "run", training={"max_steps": 0, "validation_genes": 1})
    assert (result.gain, result.low, result.high) == pytest.approx((0, 0, 0), abs=1e-6)
    assert result.energy > 0
    assert str(told(result)).endswith("; the preset instant is enough")


def test_equal_values_come_in_any_order_and_others_in_theirs() -> None:
    """Zeros in the order of their rows would make genes of a cell go together that do not."""
    rng = torch.Generator().manual_seed(0)
    cells = torch.rand((300, 6), generator=rng) * (torch.rand((300, 6), generator=rng) < 0.2)
    scores = module._scores(cells, rng).numpy()
    for gene in range(6):
        above = cells[:, gene].numpy() > 0
        assert scores[above, gene].min() > scores[~above, gene].max()
        assert stats.spearmanr(scores[above, gene], cells[above, gene].numpy()).statistic == pytest.approx(1)
        assert abs(np.corrcoef(scores[~above, gene], np.flatnonzero(~above))[0, 1]) < 4 / np.sqrt((~above).sum())


def test_every_draw_is_of_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one start: cells, lenders and populations."""
    given: list[tuple[Any, ...]] = []
    fit = sys.modules["scdfm.training.fit"]
    monkeypatch.setattr(fit, "headroom", lambda *args: given.append(args) or module.headroom(*args))
    result = found(screen(0, hidden=True), tmp_path / "run")
    *rest, config = given[0]
    assert module.headroom(*rest, config) == result
    assert module.headroom(*rest, config.updated({"seed": 1})) != result


def test_the_cells_that_judge_do_not_stand_for_the_prior(tmp_path: Path) -> None:
    """Three conditions of independent genes: a sixth of the prior's donors are the cells that judge. Populations begun by
    these would be nearer, and the gain of the right order, which is any, below 0."""
    gains = []
    for seed in range(6):
        cells = scdfm.read_cells(lines(1, {"control": 60, "G00": 60, "G01": 60, "G02": 60}, 0.0, seed))
        split = Split("named", 0, ("G00", "G01", "G02"), (), ())
        config = scdfm.Config().updated(INSTANT).updated({"seed": seed})
        manifest = scdfm.fit(cells, split, config, out=tmp_path / str(seed), progress=False).manifest
        assert manifest.headroom is not None
        gains.append(manifest.headroom.gain)
    assert abs(np.mean(gains)) < 3 * stats.sem(gains)
