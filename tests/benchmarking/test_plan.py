"""Names of models become contenders, and a plan its pieces in order; what cannot be is refused."""

from __future__ import annotations

import pytest

import scdfm
from scdfm.benchmarking import Contender, Piece, make_plan
from scdfm.config import SplitConfig
from scdfm.errors import ConfigError


def test_names_become_contenders():
    plan = make_plan(models=["tiny,file:CPA=a b.h5ad", "baselines", Contender("mine", scdfm.Config())])
    assert [contender.name for contender in plan.contenders] == ["tiny", "CPA", "mine"]
    assert plan.contenders[0].config == scdfm.Config.preset("tiny")
    assert plan.contenders[1].predictions == "a b.h5ad"
    assert make_plan(models="baselines").contenders == ()


def test_references_and_files_come_before_fits_and_seeds_are_outermost():
    plan = make_plan(folds=[0, 2], seeds=2, models="tiny,file:CPA=p.h5ad,file:GEARS=g{fold}_{seed}.h5ad")
    labels = [piece.label for piece in plan.pieces()]
    quick = [
        label
        for fold in (0, 2)
        for label in (
            f"fold {fold}, references",
            f"fold {fold}, CPA",
            f"fold {fold}, GEARS, seed 0",
            f"fold {fold}, GEARS, seed 1",
        )
    ]
    fits = [f"fold {fold}, tiny, seed {seed}" for seed in (0, 1) for fold in (0, 2)]
    assert labels == quick + fits
    gears = plan.contenders[2]
    assert str(gears.path(2, 1)) == "g2_1.h5ad"


def test_a_piece_has_the_config_of_the_same_fit():
    options = ["split.test_fraction=0.5", "split.validation_fraction=0.2", "training.max_steps=7"]
    plan = make_plan("additive", [3], [5], "tiny", options=options)
    config = plan.config(Piece(3, plan.contenders[0], 5))
    expected = scdfm.Config.preset("tiny").with_settings([*options, "split.fold=3", "seed=5"])
    assert config == expected


def test_options_may_be_nested():
    plan = make_plan(models="tiny", options={"training": {"max_steps": 3}})
    assert plan.contenders[0].config.training.max_steps == 3


def test_a_split_without_folds_has_fold_0():
    assert make_plan("obs:part", models="baselines").folds == (0,)
    split = scdfm.Split("mine", 0, ("A",), (), ("B",))
    assert make_plan(split, models="baselines").folds == (0,)
    assert make_plan(models="baselines").folds == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": "tinny"}, "model 'tinny': expected default, instant, paper, tiny, file:NAME=PRED.h5ad, command:"),
        ({"models": "file:CPA"}, "model 'file:CPA': expected"),
        ({"models": "file:ridge=a.h5ad"}, "model name 'ridge' is taken by the references"),
        ({"models": "file:Prior=a.h5ad"}, "model name 'Prior' is taken by the references"),
        ({"models": "file:prior (tiny)=a.h5ad"}, r"model name 'prior \(tiny\)': expected up to 60 letters"),
        ({"models": "file:a/b=a.h5ad"}, "model name 'a/b': expected up to 60 letters"),
        ({"models": "tiny,"}, "models: expected a preset, .* found nothing"),
        ({"models": "tiny,file:Tiny=a_{seed}.h5ad"}, "models: two have the same name"),
        ({"split": "random"}, "split 'random': expected additive, holdout, combinations, covariate:NAME, "),
        ({"split": "covariate:line=a", "folds": [0, 1]}, r"folds \[0, 1\]: split 'covariate' has one fold, 0"),
        ({"split": "obs:part", "folds": [0, 1]}, r"folds \[0, 1\]: split 'column' has one fold, 0"),
        ({"folds": [1, 1]}, r"folds \[1, 1\]: expected one or more different numbers"),
        ({"seeds": 0}, r"seeds \[\]: expected one or more"),
        ({"protocol": "published"}, "protocol 'published': expected scdfm or paper"),
        ({"n_cells": 1}, "cells 1: expected at least 2"),
        ({"options": ["training.steps=3"]}, "--set: unknown key 'training.steps'"),
    ],
)  # fmt: skip
def test_refusals(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(**arguments)


def test_a_contender_is_a_config_or_a_file():
    with pytest.raises(ConfigError, match="either a config, a file of predictions or a command"):
        Contender("both", scdfm.Config(), "a.h5ad")


def test_a_split_config_keeps_its_options():
    plan = make_plan(SplitConfig(kind="holdout", held_out_targets=3), models="tiny")
    config = plan.config(Piece(1, plan.contenders[0], 0))
    assert (config.split.kind, config.split.held_out_targets, config.split.fold) == ("holdout", 3, 1)
