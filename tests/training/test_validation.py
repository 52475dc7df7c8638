"""The keep rule: trained weights only where they are clearly better than the prior alone, on means and populations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import scdfm
import small
from scdfm.data import CONTROL, Split, targets
from scdfm.prior.shrink import Shrinkage
from scdfm.training import module, validation
from scdfm.training.checkpoint import BEST, CHECKPOINTS, read_checkpoint
from scdfm.training.validation import JUDGED, Gain, gains_of, monitored, summary, worth_keeping

WILD = {
    "panel": {"n_genes": 25}, "graph": {"k": 5}, "model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 1},
    "training": {"max_steps": 8, "warmup_steps": 0, "validate_every": 4, "validation_cells": 24, "accelerator": "cpu",
                 "cells_per_condition": 4, "learning_rate": 0.1, "ema_decay": 0.0},
    "flow": {"genes_per_step": 16}, "sampling": {"steps": 1}, "split": {"validation_fraction": 0.4},
}  # fmt: skip


def gain(low: float, high: float) -> Gain:
    return Gain((low + high) / 2, low, high)


BETTER, UNCLEAR, WORSE = gain(0.1, 0.3), gain(-0.1, 0.3), gain(-0.3, -0.1)


def test_the_interval_is_student_s() -> None:
    differences = torch.tensor([0.3, -0.1, 0.5, 0.2, 0.4], dtype=torch.float64)
    found = Gain.of(differences)
    expected = stats.ttest_1samp(differences.numpy(), 0).confidence_interval(0.95)
    np.testing.assert_allclose(found, (0.26, expected.low, expected.high))
    alone = Gain.of(differences[:1])
    assert alone.verdict == "unclear"
    assert alone.mean == pytest.approx(0.3)


@pytest.mark.parametrize("n", [3, 9])
def test_no_difference_is_called_clear_more_often_than_the_level_says(n: int) -> None:
    """Null draws of n conditions: one in twenty, within three standard errors."""
    draws = torch.randn((4000, n), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clear = np.mean([Gain.of(row).verdict != "unclear" for row in draws])
    assert abs(clear - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 4000)


def test_of_fits_that_gain_nothing_one_in_forty_is_kept_at_most() -> None:
    """Three scores of nine conditions, apart by chance. Where each of them could keep weights it was one in fourteen."""
    draws = torch.randn((4000, len(JUDGED), 9), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gains = [{name: Gain.of(row) for name, row in zip(JUDGED, scores, strict=True)} for scores in draws]
    kept = np.mean([worth_keeping(each, own=BETTER) for each in gains])
    assert kept < 0.025 + 3 * np.sqrt(0.025 / 4000)
    assert kept > 0.01


def test_rounding_is_no_difference() -> None:
    """Equal values in another order have means that differ in their last digits, all to one side by chance."""
    before = torch.tensor([[0.1, 0.2, 0.6, 0.9]]).repeat(5, 1)
    worse = 1 + torch.tensor([1e-6, 2e-6, 1e-6, 3e-6, 2e-6])[:, None]
    assert {gain.verdict for gain in gains_of(before, before * worse).values()} == {"unclear"}
    assert {gain.verdict for gain in gains_of(before, before * worse**100).values()} == {"worse"}


@pytest.mark.parametrize(
    ("energy", "wasserstein", "l2", "own", "kept"),
    [
        (BETTER, UNCLEAR, UNCLEAR, BETTER, True),
        (UNCLEAR, BETTER, UNCLEAR, BETTER, False),
        (UNCLEAR, UNCLEAR, BETTER, BETTER, False),
        (BETTER, WORSE, UNCLEAR, BETTER, False),
        (UNCLEAR, UNCLEAR, UNCLEAR, BETTER, False),
        (BETTER, BETTER, WORSE, BETTER, False),
        (WORSE, BETTER, BETTER, BETTER, False),
        (BETTER, BETTER, BETTER, gain(-0.1, 0.1), True),
        (BETTER, BETTER, BETTER, gain(-0.3, 0.1), False),
        (BETTER, BETTER, BETTER, WORSE, False),
    ],
)
def test_weights_are_kept_if_clearly_nearer_and_worse_in_nothing(energy, wasserstein, l2, own, kept) -> None:
    """`own`: what their populations gain in energy distance before they take the prior's values."""
    gains = {"val_energy": energy, "val_wasserstein": wasserstein, "val_l2": l2}
    assert worth_keeping(gains, own) is kept


PRIOR = torch.tensor([0.5, 0.6, 0.4])
"""Energy distances of the prior's populations."""


@pytest.mark.parametrize(
    ("own", "at_prior", "untrained", "expected"),
    [
        (-0.1, -0.2, PRIOR, 0.3),  # its means are worse than the prior's, and would not be predicted
        (-0.1, -0.05, PRIOR, 0.4),  # they are better
        (0.1, -0.2, PRIOR, 0.6),  # its own populations are worse than the prior's: it would not be kept
        (0.1, -0.2, None, 0.6),  # from noise nothing else is predicted
    ],
)
def test_what_chooses_is_what_would_be_predicted_and_kept(own, at_prior, untrained, expected) -> None:
    """Energy distances beside the prior's: of the flow's own populations, and with the prior's values."""
    noise = torch.tensor([0.01, -0.01, 0.0])
    scores = torch.stack([PRIOR + own + noise, *torch.ones(3, 3), PRIOR + at_prior + noise], dim=1)
    for other in (PRIOR + 1, PRIOR + at_prior):  # of two that may be predicted the better
        assert monitored(torch.cat([scores, other[:, None]], dim=1), untrained) == pytest.approx(expected)


def test_populations_that_are_worse_by_a_point_are_put_behind() -> None:
    """Of three conditions one worse and two as good: not clear, and not kept either."""
    scores = torch.stack([PRIOR + torch.tensor([0.2, 0.0, 0.0]), *torch.ones(3, 3), PRIOR - 0.1, PRIOR], dim=1)
    assert monitored(scores, PRIOR) == pytest.approx((PRIOR.sum().item() + 0.2) / 3)


@pytest.mark.parametrize(("source", "shrink"), [("prior", True), ("prior", False), ("gaussian", True)])
def test_the_best_checkpoint_is_the_one_that_is_monitored(
    tmp_path: Path, source: str, shrink: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside_prior: set[bool] = set()

    def seen(scores: torch.Tensor, untrained: torch.Tensor | None) -> float:
        beside_prior.add(untrained is not None)
        return monitored(scores, untrained)

    monkeypatch.setattr(module, "monitored", seen)
    steps = {"max_steps": 10, "validate_every": 2, "keep": "best"}
    options = {"flow": {"source": source}, "training": steps, "sampling": {"shrink": shrink}}
    config = small.config().updated(options)
    run = scdfm.fit(scdfm.read_cells(small.screen()), config=config, out=tmp_path / "run", progress=False)
    log = run.log.dropna(subset=["val_predicted"])
    assert len(log) == 5
    if source == "gaussian":
        assert (log["val_predicted"] == log["val_energy"]).all()
    assert beside_prior == {source == "prior"}
    chosen = read_checkpoint(tmp_path / "run" / CHECKPOINTS / BEST)["global_step"]
    assert chosen == log.loc[log["val_predicted"].idxmin(), "step"]


@pytest.mark.parametrize("pairing_cells", [4, 48])
@pytest.mark.parametrize("seed", range(5))
def test_steps_far_too_long_leave_the_prior(tmp_path: Path, seed: int, pairing_cells: int) -> None:
    """Whatever the seed: the field that corrects nothing is kept, and predicts the prior's means and populations."""
    cells = scdfm.read_cells(scdfm.simulate(n_genes=30, n_targets=5, cells_per_condition=20, n_controls=40, seed=seed))
    config = scdfm.Config().updated(WILD).updated({"seed": seed, "flow": {"pairing_cells": pairing_cells}})
    run = scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    assert run.manifest.result["step"] == 0
    assert run.field.is_zero
    if pairing_cells == 4:  # a step of so few cells learns nothing but noise; one of more may be ahead by chance
        best = run.log[["val_energy", "val_wasserstein"]].min()
        assert run.manifest.result["val_energy"] <= best["val_energy"]
        assert run.manifest.result["val_wasserstein"] <= best["val_wasserstein"]
    instant = scdfm.fit(
        cells, run.split, config.updated({"training": {"max_steps": 0}}), out=tmp_path / "instant", progress=False
    )
    np.testing.assert_array_equal(run.predict(seed=1).X.toarray(), instant.predict(seed=1).X.toarray())


@pytest.mark.parametrize(("budget", "judged"), [(384, 3), (48, 2)])
def test_a_fit_says_how_many_conditions_judged(tmp_path: Path, budget: int, judged: int) -> None:
    """Of three that validate, as many as the budget of cells holds."""
    cells = scdfm.read_cells(scdfm.simulate(n_genes=30, n_targets=5, cells_per_condition=20, n_controls=40, seed=0))
    doubles = [name for name in cells.conditions if "+" in name]
    train = [name for name in cells.conditions if name != CONTROL and name not in doubles[:4]]
    split = Split("named", 0, tuple(train), tuple(doubles[1:4]), (doubles[0],))
    config = scdfm.Config().updated(WILD).updated({"training": {"validation_budget": budget}})
    run = scdfm.fit(cells, split, config, out=tmp_path / "run", progress=False)
    assert run.manifest.result["gain_conditions"] == judged


def test_the_line_at_the_end() -> None:
    result = {"step": 250, "val_energy": 0.1}
    assert summary(result, 3) is None
    for name, low, high in (("energy", 0.01, 0.03), ("wasserstein", -0.01, 0.02), ("l2", -0.3, -0.1)):
        result |= {f"gain_{name}": (low + high) / 2, f"gain_{name}_low": low, f"gain_{name}_high": high}
    assert summary(result, 3) == (
        "training over the prior, 3 validation conditions: energy +0.02 (0.01 to 0.03, clear), "
        "wasserstein +0.005 (-0.01 to 0.02, not clear), l2 -0.2 (-0.3 to -0.1, clearly worse); trained weights are kept"
    )
    assert str(summary(result | {"gain_conditions": 1}, 3)).startswith(
        "training over the prior, 1 of 3 validation conditions: "
    )
    result |= {"step": 0, "gain_l2_low": None}
    assert summary(result, 1).endswith("l2 -0.2 (no interval); the prior alone is kept")
    assert str(summary({"step": 40}, 0)).startswith("no condition validates: the weights of the last step are kept")
    assert summary({"step": 0}, 0) is None


@pytest.mark.parametrize(("keep", "step"), [("best", 0), ("last", 8)])
def test_where_no_validation_condition_can_be_predicted_the_prior_is_kept_and_said(tmp_path, keep, step) -> None:
    """What validates is a target that no training condition holds and no gene describes."""
    screen = small.screen()
    alone = targets(next(name for name in scdfm.read_cells(screen).conditions if name != CONTROL))[0]
    screen.obs["perturbation"] = [str(name).replace(alone, "odd") for name in screen.obs["perturbation"]]
    cells = scdfm.read_cells(screen)
    names = [name for name in cells.conditions if name != CONTROL]
    train = [name for name in names if "odd" not in targets(name)]
    split = scdfm.Split(kind="file", fold=0, train=train, validation=["odd"], test=[])
    said: list[str] = []
    config = scdfm.Config().updated(WILD).updated({"training": {"keep": keep}})
    run = scdfm.fit(cells, split, config, out=tmp_path / "run", progress=False, say=said.append)
    assert run.manifest.result == {"step": step}
    assert any("1 of 1 validation conditions cannot be predicted" in text for text in said)
    assert (keep == "best") == any("the prior alone will be kept" in text for text in said)


@pytest.mark.parametrize("steps", [0, 8])
def test_what_nothing_else_tells_of_trains_and_does_not_validate(tmp_path, steps) -> None:
    """Drugs that were measured once: of one that validates nothing would be known. Nothing judges; the prior is kept."""
    screen = small.screen()
    screen.var_names = [f"gene{place}" for place in range(screen.n_vars)]
    names = [name for name in scdfm.read_cells(screen).conditions if len(targets(name)) == 1]
    screen = screen[screen.obs["perturbation"].isin(["control", *names])].copy()
    cells = scdfm.read_cells(screen)
    config = scdfm.Config().updated(WILD).updated({"split": {"kind": "none"}, "training": {"max_steps": steps}})
    said: list[str] = []
    assert scdfm.data.make_split(cells, config.split, config.seed).validation
    run = scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False, say=said.append)
    assert (set(run.split.train), run.split.validation) == (set(names), ())
    assert run.manifest.result == {"step": 0}
    assert said[0].startswith("2 of 2 validation conditions are in training instead")
    assert any("the prior alone will be kept" in text for text in said) == bool(steps)
    assert run.predict(names, n_cells=2).n_obs == 2 * len(names)
    again = scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False, resume=True)
    assert again.manifest == run.manifest


@pytest.mark.parametrize("n", [1, 4])
def test_where_nothing_validates_means_are_the_prior_s(tmp_path: Path, n: int) -> None:
    """Values are those of the last weights, moved; with long steps their own means are off. One condition or four."""
    cells = scdfm.read_cells(scdfm.simulate(n_genes=30, n_targets=5, cells_per_condition=20, n_controls=40, seed=0))
    train = [name for name in cells.conditions if name != CONTROL and "+" not in name][:n]
    split = Split("named", 0, tuple(train), (), ())
    config = scdfm.Config().updated(WILD).updated({"training": {"learning_rate": 0.03, "max_steps": 40}})
    run = scdfm.fit(cells, split, config, out=tmp_path / "run", progress=False)
    assert run.manifest.result["step"] == 40
    prior = run.untrained().predict(train, n_cells=40, seed=1).X.toarray()
    made = run.predict(train, n_cells=40, seed=1).X.toarray()
    for rows in np.split(np.arange(len(made)), n):
        # The mean jumps where a cell leaves 0, by its lowest value: the nearer side is off by half of that at most.
        jump = np.where(made[rows] > 0, made[rows], np.inf).min(0) / len(rows)
        assert (np.abs(made[rows].mean(0) - prior[rows].mean(0)) <= jump / 2 + 0.002).all()
    assert not np.allclose(made, prior)
    own = config.updated({"sampling": {"shrink": False}})
    wild = scdfm.fit(cells, split, own, out=tmp_path / "own", progress=False).predict(train, n_cells=40, seed=1)
    assert np.abs(wild.X.toarray().mean(0) - prior.mean(0)).max() > 0.1


def test_the_flow_s_values_are_believed_by_a_share(tmp_path: Path, monkeypatch) -> None:
    """The share of least squares is what is judged and predicted: nearer to the prior's values than the flow's own are."""
    cells = scdfm.read_cells(scdfm.simulate(n_genes=30, n_targets=5, cells_per_condition=20, n_controls=40, seed=0))
    config = scdfm.Config().updated(WILD).updated({"training": {"learning_rate": 0.01, "max_steps": 40}})
    runs = []
    for share, worth in ((1.0, True), (0.25, True), (0.25, False)):
        monkeypatch.setattr(validation, "share_of_values", lambda *_, share=share: share)
        monkeypatch.setattr(validation, "worth_keeping", lambda *_, worth=worth: worth)
        runs.append(scdfm.fit(cells, config=config, out=tmp_path / f"{len(runs)}", progress=False))
    whole, part, neither = runs
    assert (whole.manifest.shrinkage.values, part.manifest.shrinkage.values) == (1.0, 0.25)
    assert neither.manifest.result["step"] == 0
    made = [run.predict(seed=1).X.toarray() for run in runs]
    assert len({cells.tobytes() for cells in made}) == 3
    prior, far, near = (np.sort(cells[:20], axis=0) for cells in (made[2], made[0], made[1]))
    assert np.abs(near - prior).mean() < np.abs(far - prior).mean()


def test_means_are_believed_by_the_noise_of_all_cells_that_measured_them(tmp_path, monkeypatch) -> None:
    """Eight cells of each condition are looked at, thirty measured its mean."""
    asked: list[tuple[torch.Tensor, ...]] = []
    fitted = Shrinkage.fitted

    def seen(*parts: torch.Tensor) -> Shrinkage:
        asked.append(parts)
        return fitted(*parts)

    monkeypatch.setattr(Shrinkage, "fitted", seen)
    cells = scdfm.read_cells(small.screen(cells_per_condition=30))
    config = small.config(training={"validation_cells": 8, "keep": "last"})
    run = scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    names = run.split.validation
    assert {cells.n_cells(name) for name in names} == {30}
    columns = cells.columns(run.genes)
    whole = [float(cells.X[cells.rows(name)][:, columns].toarray().var(0).sum()) for name in names]
    assert asked[-1][3].sum().item() == pytest.approx(sum(whole) / 30, rel=0.3)
