"""The reasons to use scdfm: its prior is better than ridge where doubles interact, and its network sees what no mean tells.

The prior knows the mean of a condition and how training cells differ, gene by gene and together, but not that only some
of the cells answer. Three screens whose means add up, so that the prior is right about them:
- `states`: two cell states that no column tells; only cells of one of them answer;
- `escapers`: a share of the cells answers, the others are as control;
- `switch`: a program that no single moves, and that a pair switches on in a share of the cells.
Trained populations beat those of the prior there; a network that learned nothing does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scdfm
from scdfm.data import Batch, Split
from scdfm.evaluation import LOWER_IS_BETTER
from scdfm.flow import energy
from scdfm.prior import marginals
from scdfm.seeds import numpy_rng
from scdfm.training.module import FlowModule

SEEDS = (0, 1, 2)
TARGETS = 5
GENES = 14 + TARGETS
"""Four that tell the states, eight of the program, two that do nothing, and the targets."""
SHARE = 0.35
"""Of the cells of a condition, those that answer."""
STEPS = 220


def screen(kind: str, seed: int, n_cells: int, stream: str = "screen") -> ad.AnnData:
    """Cells (log1p) of all singles and pairs; `obs["answers"]` is the truth. Another stream: other cells of this law."""
    rng = numpy_rng(seed, kind)
    base, state, sign = rng.uniform(2, 3, GENES), np.zeros(GENES), np.zeros(GENES)
    state[:4], sign[4:12] = [1, -1, 1, -1], [1, 1, 1, 1, -1, 1, -1, 1]
    names = [f"G{place:02d}" for place in range(GENES)]
    targets = names[-TARGETS:]
    sizes = sign * rng.uniform(0.6, 1.1, (TARGETS, GENES))
    if kind == "states":
        sizes *= rng.choice([-1, 1], (TARGETS, GENES))
    effects = dict(zip(targets, sizes, strict=True))
    conditions = [(), *((name,) for name in targets), *combinations(targets, 2)]
    labels, answers, blocks = [], [], []
    rng = numpy_rng(seed, kind, stream)
    for members in conditions:
        n = n_cells if members else 3 * n_cells
        chosen = rng.random(n) < SHARE
        cells = base + 0.2 * rng.normal(size=(n, GENES))
        if kind == "states":
            cells += chosen[:, None] * state
        if kind != "switch" or len(members) == 2:
            cells += chosen[:, None] * sum((effects[name] for name in members), np.zeros(GENES))
        labels += ["+".join(members) or "control"] * n
        answers.append(chosen)
        blocks.append(cells.clip(0).astype(np.float32))
    obs = pd.DataFrame(
        {"perturbation": labels, "answers": np.concatenate(answers)}, index=[f"c{i}" for i in range(len(labels))]
    )
    return ad.AnnData(np.concatenate(blocks), obs=obs, var=pd.DataFrame(index=names))


class Scores(NamedTuple):
    """Errors of predicted populations, means over test conditions."""

    energy: float
    """Energy distance to further cells of the same law (log1p)."""
    responders: float
    """Error of the share of cells that have gone three quarters of the way from those that do not answer."""


def fitted(kind: str, seed: int, out: Path, steps: int = STEPS) -> scdfm.Run:
    """A small fit; of 0 steps: the prior alone."""
    data = screen(kind, seed, 100)
    perturbed = [name for name in data.obs["perturbation"].unique() if name != "control"]
    doubles = [name for name in perturbed if "+" in name]
    test, validation = doubles[::4], doubles[1::4]
    train = [name for name in perturbed if name not in (*test, *validation)]
    config = scdfm.Config.preset("default").updated(
        {"graph": {"k": 5}, "model": {"width": 32, "heads": 2, "gene_heads": 2, "layers": 1},
         "training": {"max_steps": steps, "validate_every": max(steps, 1), "validation_cells": 32, "accelerator": "cpu",
                      "keep": "last", "learning_rate": 4e-3, "cells_per_condition": 12, "ema_decay": 0.99}}
    )  # fmt: skip
    split = Split("named", 0, tuple(train), tuple(validation), tuple(test))
    return scdfm.fit(scdfm.read_cells(data), split, config, out=out, progress=False)


def judged(kind: str, runs: Sequence[scdfm.Run], seed: int = 1) -> list[Scores]:
    """Of each seed's run the populations of its test conditions, beside cells that it never saw; means over conditions."""
    return [_scores(run, screen(kind, place, 300, "truth"), seed) for place, run in zip(SEEDS, runs, strict=True)]


def _scores(run: scdfm.Run, truth: ad.AnnData, seed: int) -> Scores:
    predicted = run.predict(n_cells=300, seed=seed)
    found = []
    for name in run.split.test:
        real = truth[truth.obs["perturbation"] == name]
        cells = predicted[predicted.obs["perturbation"] == name].to_df()[list(truth.var_names)].to_numpy()
        answers = real.obs["answers"].to_numpy()
        near, far = real.X[~answers].mean(0), real.X[answers].mean(0)
        shares = [((x - near) @ (far - near) > 0.75 * ((far - near) ** 2).sum()).mean() for x in (cells, real.X)]
        distance = float(energy(torch.from_numpy(cells), torch.from_numpy(real.X)))
        found.append((distance, abs(shares[0] - shares[1])))
    return Scores(*np.mean(found, axis=0))


def beats(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether errors are smaller by 3 standard errors of their paired differences."""
    gain = np.subtract(theirs, ours)
    return bool(gain.mean() > 3 * gain.std(ddof=1) / np.sqrt(len(gain)))


LEARNED = ("states", "switch")
"""Screens whose response the prior cannot express."""
KINDS = (*LEARNED, "escapers")


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[scdfm.Run]]:
    """The prior alone, by screen."""
    folder = tmp_path_factory.mktemp("prior")
    return {kind: [fitted(kind, seed, folder / f"{kind}{seed}", steps=0) for seed in SEEDS] for kind in KINDS}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[scdfm.Run]]:
    """The same after training."""
    folder = tmp_path_factory.mktemp("trained")
    return {kind: [fitted(kind, seed, folder / f"{kind}{seed}") for seed in SEEDS] for kind in LEARNED}


def assert_beats(ours: Sequence[Scores], theirs: Sequence[Scores]) -> None:
    for metric in Scores._fields:
        pair = [[getattr(scores, metric) for scores in each] for each in (ours, theirs)]
        assert beats(*pair), f"{metric}: {pair[0]} against the prior's {pair[1]}"


@pytest.mark.parametrize("kind", LEARNED)
def test_training_recovers_who_answers(
    kind: str, prior: dict[str, list[scdfm.Run]], trained: dict[str, list[scdfm.Run]]
) -> None:
    assert_beats(judged(kind, trained[kind]), judged(kind, prior[kind]))


def test_the_prior_tells_who_escapes(
    prior: dict[str, list[scdfm.Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its marginals go with a gene's mean. One law for all means does not tell."""
    monkeypatch.setattr(marginals, "MOST_LEVELS", 1)
    one_law = [fitted("escapers", seed, tmp_path / f"{seed}", steps=0) for seed in SEEDS]
    assert_beats(judged("escapers", prior["escapers"]), judged("escapers", one_law))


@pytest.mark.parametrize("kind", KINDS)
def test_the_prior_does_not_beat_itself(kind: str, prior: dict[str, list[scdfm.Run]]) -> None:
    """Other draws of the same populations: what the margin is for."""
    again, before = judged(kind, prior[kind], seed=2), judged(kind, prior[kind])
    with pytest.raises(AssertionError, match="against the prior's"):
        assert_beats(again, before)


def test_a_loss_against_random_targets_recovers_nothing(
    prior: dict[str, list[scdfm.Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FlowModule.training_step

    def misled(self: FlowModule, batch: Batch, batch_idx: int) -> Any:
        rng = torch.Generator().manual_seed(self.global_step)
        other = batch.target.max() * torch.rand(batch.target.shape, generator=rng)
        return real(self, replace(batch, target=other), batch_idx)

    monkeypatch.setattr(FlowModule, "training_step", misled)
    found = [fitted("states", seed, tmp_path / f"{seed}", steps=30) for seed in SEEDS]
    with pytest.raises(AssertionError, match="against the prior's"):
        assert_beats(judged("states", found), judged("states", prior["states"]))


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory) -> pd.Series:
    """Mean score of the prior and of simple rules on held-out doubles that interact; all learn from the same cells."""
    data = scdfm.simulate(n_genes=80, n_targets=14, cells_per_condition=80, interaction="strong", seed=3)
    cells = scdfm.read_cells(data)
    split = scdfm.additive_split(cells, fold=0, seed=0)
    out = tmp_path_factory.mktemp("instant") / "run"
    run = scdfm.fit(cells, split, scdfm.Config.preset("instant"), out=out, progress=False)
    table = scdfm.evaluate(run.predict(n_cells=60), cells, training=run, name="scdfm")
    return table.groupby(["metric", "model"])["value"].mean()


@pytest.mark.parametrize("metric", ["l2", "mse", "mae", "pearson_delta_hat", "energy", "variance_error"])
def test_the_prior_beats_ridge(means: pd.Series, metric: str) -> None:
    better = means[metric]["scdfm"] - means[metric]["ridge"]
    assert (better < 0) == (metric in LOWER_IS_BETTER), f"{metric}: {means[metric].to_dict()}"
