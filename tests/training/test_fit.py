"""A fit learns, repeats itself to the bit, resumes to the bit, and refuses what it cannot use."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from importlib import metadata

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import scdfm
import small
from scdfm.errors import DataError, DiskFullError, InterruptedFitError, RunError, TrainingError
from scdfm.prior.shrink import NOT_FOLLOWED
from scdfm.training import checkpoint
from scdfm.training.module import FlowModule

SMALL = small.options(
    panel={"n_genes": 40},
    model={"dropout": 0.1},
    training={"max_steps": 12, "warmup_steps": 2, "validate_every": 4, "cells_per_condition": 6, "validation_cells": 6},
    sampling={"steps": 2},
)


@pytest.fixture(scope="module")
def config() -> scdfm.Config:
    return scdfm.Config().updated(SMALL)


@pytest.fixture(scope="module")
def cells() -> scdfm.CellTable:
    return scdfm.read_cells(small.screen())


@pytest.fixture(scope="module")
def run(cells, config, tmp_path_factory) -> scdfm.Run:
    return scdfm.fit(cells, config=config, out=tmp_path_factory.mktemp("fit") / "run", progress=False)


def weights(run: scdfm.Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "weights.safetensors")


def assert_equal_weights(a: scdfm.Run, b: scdfm.Run) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


class InterruptedStepError(Exception):
    pass


def raises(error: BaseException):
    """A function that raises `error`, whatever it is called with."""

    def raising(*_, **__):
        raise error

    return raising


def interrupt_at(monkeypatch, step: int) -> None:
    """Let the training step of number `step` die."""
    real = FlowModule.training_step

    def dying(self, batch, batch_idx):
        if self.global_step == step:
            raise InterruptedStepError
        return real(self, batch, batch_idx)

    monkeypatch.setattr(FlowModule, "training_step", dying)


def test_same_seed_gives_the_same_bits_whatever_the_global_generators_hold(cells, config, run, tmp_path):
    torch.manual_seed(99)
    np.random.seed(99)
    again = scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    assert_equal_weights(run, again)
    pd.testing.assert_frame_equal(run.log, again.log)


def test_another_seed_gives_other_weights(cells, config, run, tmp_path):
    other = scdfm.fit(cells, split=run.split, config=config.updated({"seed": 1}), out=tmp_path / "run", progress=False)
    assert not torch.equal(*(next(iter(weights(r).values())) for r in (run, other)))


def test_a_fit_leaves_the_callers_generator_alone(cells, config, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    scdfm.fit(cells, config=config.updated({"training": {"max_steps": 1}}), out=tmp_path / "run", progress=False)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("step", [2, 4, 7, 11])
def test_an_interrupted_fit_resumes_to_the_same_weights_and_curves(cells, config, run, tmp_path, step):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedStepError):
        interrupt_at(patch, step)
        scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    with pytest.raises(RunError, match="not finished; continue it with fit --resume"):
        scdfm.Run.load(tmp_path / "run")
    resumed = scdfm.fit(cells, config=config, out=tmp_path / "run", resume=True, progress=False)
    assert_equal_weights(run, resumed)
    pd.testing.assert_frame_equal(run.log, resumed.log)


def terminate_at(monkeypatch, step: int) -> None:
    """Let SIGTERM arrive in the training step of number `step`."""
    real = FlowModule.training_step

    def terminated(self, batch, batch_idx):
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(FlowModule, "training_step", terminated)


@pytest.mark.parametrize("step", [0, 3, 6, 10])
@pytest.mark.parametrize("validated", [True, False])
def test_sigterm_saves_the_step_says_how_to_go_on_and_resumes_to_the_bit(cells, config, run, tmp_path, step, validated):
    before = signal.getsignal(signal.SIGTERM)
    if not validated:
        config = config.updated({"split": {"validation_fraction": 0.0}})
        run = scdfm.fit(cells, config=config, out=tmp_path / "whole", progress=False)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedFitError) as stopped:
        terminate_at(patch, step)
        scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    assert f"holds the checkpoint of step {step + 1}: continue it with --resume" in str(stopped.value)
    assert stopped.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = scdfm.fit(cells, config=config, out=tmp_path / "run", resume=True, progress=False)
    assert_equal_weights(run, resumed)
    pd.testing.assert_frame_equal(run.log, resumed.log)


def test_sigterm_stops_a_fit_that_validates_at_every_step(cells, config, tmp_path):
    config = config.updated({"training": {"validate_every": 1, "max_steps": 4}})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedFitError, match="checkpoint of step 2"):
        terminate_at(patch, 1)
        scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)


def test_a_fit_killed_before_its_inputs_were_written_resumes(cells, config, run, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedStepError):
        patch.setattr("scdfm.training.prepared.write_csv", raises(InterruptedStepError()))
        scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["graph.safetensors", "manifest.json"]
    assert_equal_weights(run, scdfm.fit(cells, config=config, out=tmp_path / "run", resume=True, progress=False))


def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_what_is_needed(cells, config, run, tmp_path):
    real, saved = checkpoint.save_file, []

    def full_at_the_third(tensors, path, **options):
        saved.append(sum(tensor.nbytes for tensor in tensors.values()))
        if len(saved) == 3:
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(DiskFullError) as full:
        patch.setattr(checkpoint, "save_file", full_at_the_third)
        scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    needed = int(re.search(r"([\d,]+) bytes are needed", str(full.value))[1].replace(",", ""))
    assert saved[-1] < needed < 2 * saved[-1]
    assert "the file of that name is still the one before; free some space" in str(full.value)
    assert checkpoint.read_checkpoint(tmp_path / "run/checkpoints/last.safetensors")["global_step"] == 4
    assert {p.name for p in (tmp_path / "run/checkpoints").iterdir()} <= {
        "last.safetensors",
        "best.safetensors",
        "start.safetensors",
    }
    assert_equal_weights(run, scdfm.fit(cells, config=config, out=tmp_path / "run", resume=True, progress=False))


def test_without_validation_and_average_the_last_weights_are_kept_and_resumed(cells, config, tmp_path):
    raw = config.updated({"training": {"ema_decay": 0.0}, "split": {"validation_fraction": 0.0}})
    whole = scdfm.fit(cells, config=raw, out=tmp_path / "whole", progress=False)
    assert whole.manifest.result == {"step": 12}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedStepError):
        interrupt_at(patch, 9)
        scdfm.fit(cells, config=raw, out=tmp_path / "run", progress=False)
    assert_equal_weights(whole, scdfm.fit(cells, config=raw, out=tmp_path / "run", resume=True, progress=False))


def test_resuming_a_finished_run_returns_it_and_an_absent_one_starts(cells, config, run, tmp_path):
    again = scdfm.fit(cells, config=config, out=run.path, resume=True, progress=False)
    assert again.manifest == run.manifest
    assert_equal_weights(run, scdfm.fit(cells, config=config, out=tmp_path / "new", resume=True, progress=False))


def test_resume_refuses_other_options_and_other_cells(cells, config, run):
    with pytest.raises(RunError, match=r"started with other config; repeat the options"):
        scdfm.fit(cells, config=config.updated({"mmd": {"weight": 0.1}}), out=run.path, resume=True, progress=False)
    other = scdfm.read_cells(small.screen(seed=4))
    with pytest.raises(RunError, match="started with other .*data"):
        scdfm.fit(other, config=config, out=run.path, resume=True, progress=False)


def test_an_output_folder_that_holds_something_is_refused(cells, config, tmp_path):
    (tmp_path / "precious.txt").write_text("work of years")
    with pytest.raises(DataError, match="exists and is not empty; choose another --out"):
        scdfm.fit(cells, config=config, out=tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_a_condition_of_one_cell_is_refused_before_anything_is_written(config, tmp_path):
    adata = small.screen()
    lonely = adata.obs["perturbation"].astype(str).to_numpy() == adata.obs["perturbation"].iloc[-1]
    drop = np.flatnonzero(lonely)[1:]
    adata = adata[np.setdiff1d(np.arange(adata.n_obs), drop)].copy()
    cells = scdfm.read_cells(adata)
    split = scdfm.make_split(cells, config.split)
    kept = scdfm.Split(
        "made", 0, tuple(c for c in split.conditions if c != cells.conditions[1]), (), (cells.conditions[1],)
    )
    if str(adata.obs["perturbation"].iloc[-1]) in kept.train:
        with pytest.raises(DataError, match="1 cell"):
            scdfm.fit(cells, kept, config, out=tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()
    else:
        pytest.fail("the lonely condition should train")


def test_a_diverging_fit_stops_with_the_step_and_the_remedy(cells, config, tmp_path, monkeypatch):
    real = FlowModule._path

    def poisoned(self, *given):
        *rest, target = real(self, *given)
        return (*rest, target * math.nan if self.global_step == 3 else target)

    monkeypatch.setattr(FlowModule, "_path", poisoned)
    with pytest.raises(
        TrainingError,
        match=r"step 3: the loss is nan; the fit diverged at training.learning_rate 0.002, and in .* no checkpoint was "
        r"written before: lower the learning rate or lower training.clip_norm \(now 1\), and fit into another --out",
    ):
        scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)


def test_the_run_holds_no_test_cell_and_says_where_it_comes_from(cells, run):
    means = run.means
    assert list(means.index) == ["control", *run.split.train, *run.split.validation]
    expected = cells.means(["control"])[run.genes].to_numpy()[0]
    np.testing.assert_allclose(means.loc["control"].to_numpy(), expected, rtol=1e-12)
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["split"]["digest"] == run.split.digest
    assert manifest["data"]["digest"] == cells.digest()
    assert manifest["versions"]["torch"] == metadata.version("torch")
    assert set(run.log.columns) >= {"step", "loss", "cfm", "mmd", "val_wasserstein", "val_l2", "val_pearson_delta"}
    assert list(run.log.dropna(subset=["val_l2"])["step"]) == [4, 8, 12]


def test_test_cells_change_nothing_of_a_fit(cells, config, run, tmp_path):
    """Genes, graph and weights are the same when every test cell is replaced by noise."""
    adata = cells.to_adata()
    tested = adata.obs[cells.perturbation_key].isin(run.split.test).to_numpy()
    dense = adata.X.toarray()
    dense[tested] = np.random.default_rng(0).gamma(1.0, 1.0, dense[tested].shape)
    adata.X = dense
    noisy = scdfm.fit(scdfm.read_cells(adata), run.split, config, out=tmp_path / "run", progress=False)
    assert noisy.genes == run.genes
    assert_equal_weights(run, noisy)


def test_the_loss_falls(cells, config, tmp_path):
    longer = config.updated(
        {
            "flow": {"source": "gaussian"},  # from the prior there is little left to learn
            "training": {"max_steps": 150, "learning_rate": 3e-3},
            "split": {"validation_fraction": 0.0},
        }
    )
    log = scdfm.fit(cells, config=longer, out=tmp_path / "run", progress=False).log
    assert log["loss"].iloc[-3:].mean() < 0.8 * log["loss"].iloc[0]


def test_how_far_means_are_believed_is_found_from_the_prior(cells, config, tmp_path):
    """Whatever weights are kept; not where it is switched off, and not from noise. Without validation not at all."""
    none = {"split": {"validation_fraction": 0.0}}
    for name, options, found in (
        ("last", {}, True),
        ("off", {"sampling": {"shrink": False}}, False),
        ("none", none, True),
        ("noise", {"flow": {"source": "gaussian"}}, False),
    ):
        run = scdfm.fit(cells, config=config.updated(options), out=tmp_path / name, progress=False)
        assert (run.manifest.shrinkage is not None) == found, name
        if name == "none":
            assert run.manifest.shrinkage == NOT_FOLLOWED


def test_half_precision_fits_too(cells, config, tmp_path):
    """Gradients are clipped there as well, and bfloat16 gives other weights."""
    half = config.updated({"training": {"precision": "bf16", "max_steps": 2, "keep": "last"}})
    whole = config.updated({"training": {"max_steps": 2, "keep": "last"}})
    a, b = (
        scdfm.fit(cells, config=c, out=tmp_path / name, progress=False)
        for c, name in ((half, "half"), (whole, "whole"))
    )
    assert any(not torch.equal(weights(a)[name], value) for name, value in weights(b).items())


@pytest.mark.parametrize(("patience", "warmup"), [(1, 0), (3, 0), (1, 6)])
def test_early_stopping_ends_after_so_many_validations_without_a_gain(cells, config, tmp_path, patience, warmup):
    """Those of the warm-up, the last of which is at its end, do not count."""
    options = {"patience": patience, "learning_rate": 1e-30, "min_learning_rate": 0.0, "max_steps": 40}
    stuck = config.updated({"training": options | {"validate_every": 2, "warmup_steps": warmup}})
    log = scdfm.fit(cells, config=stuck, out=tmp_path / "run", progress=False).log
    assert log["val_predicted"].count() == warmup // 2 + 1 + patience


@pytest.mark.parametrize(("steps", "judged"), [(6, [3, 6]), (7, [3, 6, 7]), (2, [2])])
def test_the_last_step_is_validated(cells, config, tmp_path, steps, judged):
    """And may be kept: else the steps since the last full interval would be thrown away."""
    options = {"validate_every": 3, "max_steps": steps, "keep": "best"}
    odd = config.updated({"training": options, "flow": {"source": "gaussian"}})
    run = scdfm.fit(cells, config=odd, out=tmp_path / "run", progress=False)
    validated = run.log.dropna(subset="val_predicted").set_index("step")["val_predicted"]
    assert validated.index.tolist() == judged
    assert run.manifest.result["step"] == validated.idxmin()


def test_a_fit_that_had_stopped_early_does_not_go_on(cells, config, tmp_path, monkeypatch):
    """It was killed while it was judged: the weights are those of the fit that was not."""
    options = {"patience": 1, "learning_rate": 1e-30, "min_learning_rate": 0.0, "warmup_steps": 0, "validate_every": 2,
               "max_steps": 40, "keep": "last"}  # fmt: skip
    stuck = config.updated({"training": options})
    whole = scdfm.fit(cells, config=stuck, out=tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch, pytest.raises(InterruptedStepError):
        patch.setattr("scdfm.training.validation.Kept.last", raises(InterruptedStepError()))
        scdfm.fit(cells, config=stuck, out=tmp_path / "killed", progress=False)
    again = scdfm.fit(cells, config=stuck, out=tmp_path / "killed", progress=False, resume=True)
    pd.testing.assert_frame_equal(again.log, whole.log)
    assert_equal_weights(again, whole)
