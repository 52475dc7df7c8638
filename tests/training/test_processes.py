"""Several processes of one fit: batch, loss and weights of one; one that dies, or is told to stop, ends them all."""

from __future__ import annotations

import importlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import scdfm
import small
from scdfm import processes
from scdfm.data import ConditionSampler, Vocabulary, make_split, select_genes, targets
from scdfm.errors import ConfigError
from scdfm.run import shards
from scdfm.seeds import numpy_rng
from scdfm.training.checkpoint import read_checkpoint
from scdfm.training.steps import StepBatches, place

SETTINGS = {
    "panel.n_genes": 40, "graph.k": 5, "model.width": 16, "model.heads": 2, "model.gene_heads": 2,
    "model.layers": 1, "flow.genes_per_step": 24, "training.max_steps": 6, "training.warmup_steps": 2,
    "training.validate_every": 3, "training.conditions_per_batch": 3, "training.cells_per_condition": 4,
    "training.validation_cells": 6, "training.accelerator": "cpu", "training.timeout": 60, "sampling.steps": 1,
    "training.keep": "last",
    "split.validation_fraction": 0.3,
}  # fmt: skip
SECONDS = 120
"""Within which a job must have ended: starting Python twice on a busy machine is most of it."""
PART = 8
"""Cells of a part of a prediction."""

# Parts of a prediction are small here. What a process does at a step, where the environment asks it to; then the command
# line as it is.
SCRIPT = """
import os, signal
from scdfm.run import shards
from scdfm.training.module import FlowModule
shards.SHARD_CELLS = %d
whole = FlowModule.training_step
def step(self, batch, batch_idx):
    if f"{self.global_step} {self.global_rank}" == os.environ.get("AT"):
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
    return whole(self, batch, batch_idx)
FlowModule.training_step = step
from scdfm.cli import main
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    screen = small.screen()
    screen.write_h5ad(folder / "screen.h5ad")
    (folder / "scdfm_told.py").write_text(SCRIPT % PART)
    return folder


def config() -> scdfm.Config:
    return scdfm.Config().with_settings([f"{key}={value}" for key, value in SETTINGS.items()])


@pytest.fixture(scope="module")
def alone(folder) -> scdfm.Run:
    cells = scdfm.read_cells(folder / "screen.h5ad")
    return scdfm.fit(cells, config=config(), out=folder / "alone", progress=False)


def assert_close_weights(alone: scdfm.Run, several: scdfm.Run) -> None:
    """Equal but for the order in which gradients were added.

    The bias of the keys is left out: softmax does not see it, its gradient is 0 but for rounding, of which Adam
    makes steps of full length.
    """
    left, right = (load_file(run.path / "weights.safetensors") for run in (alone, several))
    assert left.keys() == right.keys()
    for name in left:
        kept = torch.ones_like(left[name], dtype=torch.bool)
        if name == "gene_encoder.query_key_value.bias":
            width = alone.config.model.width
            kept[width : 2 * width] = False
        torch.testing.assert_close(left[name][kept], right[name][kept], rtol=1e-4, atol=1e-5)


OPTIONS = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {"PYTHONPATH": str(Path(scdfm.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def begin(folder, monkeypatch):
    """Begins a command in `folder`: what returns its exit code and everything it said."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    forked = importlib.import_module("forked")

    def started(*words: str, log: str = "log.txt", **environment: str):
        path = folder / log
        path.unlink(missing_ok=True)
        given = (folder / "scdfm_told.py", words, ENVIRONMENT | environment)
        process = forked.forked(forked.program, *given, folder=folder, log=path)

        def ended() -> tuple[int, str]:
            process.join(SECONDS)
            assert process.exitcode is not None, path.read_text()
            return process.exitcode, path.read_text()

        return ended

    return started


def test_two_processes_of_torchrun_make_the_weights_of_one(folder, alone):
    job = [*TORCHRUN, str(folder / "scdfm_told.py"), "fit", "screen.h5ad", "--out", "two", "--quiet", *OPTIONS]
    done = subprocess.run(
        job, cwd=folder, text=True, timeout=SECONDS, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("run two: 40 genes") == 1  # the first process speaks, the other is silent
    two = scdfm.Run.load(folder / "two")
    assert two.manifest.config == alone.manifest.config
    assert two.manifest.result["step"] == alone.manifest.result["step"]
    assert_close_weights(alone, two)
    pd.testing.assert_frame_equal(alone.log, two.log, rtol=1e-4, atol=1e-5)


def test_two_processes_share_a_prediction_and_write_the_file_of_one(folder, alone, begin, monkeypatch):
    """With the environment that torchrun gives to each."""
    names = list(alone.split.train[:3])
    monkeypatch.setattr(shards, "SHARD_CELLS", PART)
    alone.predict_to(folder / "alone.h5ad", names, n_cells=PART)
    asked = ("--conditions", ",".join(names), "--cells", str(PART), "--quiet")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    job = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
           "MASTER_PORT": port}  # fmt: skip
    both = [
        begin(
            "predict", "alone", "--out", "shared.h5ad", *asked, log=f"log{rank}.txt", RANK=rank, LOCAL_RANK=rank, **job
        )
        for rank in "01"
    ]
    (first, said), (second, silence) = (ended() for ended in both)
    assert (first, second) == (0, 0), said + silence
    assert (said.count("shared.h5ad: 24 cells × 40 genes, 3 conditions"), silence) == (1, "")
    assert (folder / "shared.h5ad").read_bytes() == (folder / "alone.h5ad").read_bytes()
    assert not (folder / "shared.h5ad.parts").exists()


def test_a_process_that_dies_ends_the_job_and_what_is_left_resumes(folder, alone, begin):
    """Lightning's own launcher here; torchrun would end its other processes itself."""
    fit = ("fit", "screen.h5ad", "--out", "dies", "--quiet", *OPTIONS, "--set", "training.devices=2")
    code, said = begin(*fit, AT="4 1", SIGNAL="SIGKILL")()
    assert code not in (0, 75)
    assert "another process of this job has stopped or cannot be reached" in said or code == -signal.SIGKILL
    assert read_checkpoint(folder / "dies/checkpoints/last.safetensors")["global_step"] == 3
    code, said = begin(*fit, "--resume", AT="4 1", SIGNAL="SIGTERM")()
    assert code == 75, said
    assert len(re.findall("error: fit stopped at step 5; .*dies holds the checkpoint of step 5", said)) == 1
    code, said = begin(*fit, "--resume")()
    assert code == 0, said
    assert_close_weights(alone, scdfm.Run.load(folder / "dies"))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_shares_make_up_the_batch_of_one_process(folder, world):
    cells = scdfm.read_cells(folder / "screen.h5ad")
    split = make_split(cells, config().split)
    panel = select_genes(cells, split, config().panel)
    vocabulary = Vocabulary.build(panel.genes, {t for c in split.conditions for t in targets(c)})
    sampler = ConditionSampler(cells, split, panel, numpy_rng(0, "s"), vocabulary=vocabulary, n_conditions=4, n_cells=3)
    whole = StepBatches(sampler, 5, 10)[7]
    shares = [StepBatches(sampler, 5, 10, rank, world)[7] for rank in range(world)]
    assert tuple(name for share in shares for name in share.conditions) == whole.conditions
    assert torch.equal(torch.cat([share.target for share in shares]), whole.target)
    assert torch.equal(torch.cat([share.control for share in shares]), whole.control)
    assert torch.equal(torch.cat([share.condition + share.first for share in shares]), whole.condition)
    assert max(len(share.conditions) for share in shares) - min(len(s.conditions) for s in shares) <= 1


@pytest.mark.parametrize(("n", "world"), [(1, 1), (1, 3), (5, 2), (6, 3), (2, 4)])
def test_every_validation_condition_is_some_process_turn_and_all_have_as_many(n, world):
    turns = -(-n // world)
    dealt = [[place(turn, n, rank, world) for turn in range(turns)] for rank in range(world)]
    assert set(np.concatenate(dealt)) == set(range(n))


def test_more_processes_than_conditions_of_a_step_are_refused(folder, tmp_path):
    cells = scdfm.read_cells(folder / "screen.h5ad")
    many = config().updated({"training": {"devices": 2, "nodes": 2}})
    with pytest.raises(ConfigError, match="4 processes share the 3 conditions of a step, expected at least one"):
        scdfm.fit(cells, config=many, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_place_of_a_process_comes_from_torchrun_or_lightning(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert processes.launched() is None
    assert processes.is_first()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not processes.is_first()
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "4", "WORLD_SIZE": "6", "LOCAL_RANK": "0",
                        "LOCAL_WORLD_SIZE": "2"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = processes.launched()
    assert found == processes.Place(rank=4, world=6, local_rank=0, local_world=2)
    assert found.nodes == 3
    assert not processes.is_first()
    assert processes.world_size(scdfm.Config().training) == 6
    with pytest.raises(ConfigError, match="benchmark: expected one process, found 6; run it without torchrun"):
        processes.require_one("benchmark")
