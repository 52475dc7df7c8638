"""What the scripts of all peers share: the task of a folder, the clock of one core, and the answer.

A peer takes combinations of targets. The command line is `SCRIPT FOLDER`; docs/peers.md describes the folder.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

CONTROL = "control"
SPARE = 0.1
"""Share of a budget that is kept for writing and for steps that took longer than expected."""


def clock() -> float:
    """CPU seconds that this process and its children that have ended took, from its start."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Task:
    """The task of the folder that the command line names.

    `labels` [cells] are conditions, `X` [cells × genes] is log1p; `predict` are conditions whose targets all trained, or
    with `unseen` all that are asked for.
    """

    def __init__(self, unseen: bool = False) -> None:
        self.folder = Path(sys.argv[1]).absolute()
        self.entries = json.loads((self.folder / "task.json").read_text(encoding="utf-8"))
        self.adata = ad.read_h5ad(self.folder / "train.h5ad")
        self.key, self.seed, self.cells = (self.entries[name] for name in ("perturbation_key", "seed", "cells"))
        self.labels = self.adata.obs[self.key].astype(str).to_numpy()
        self.genes = [str(gene) for gene in self.adata.var_names]
        self.X = np.asarray(self.adata.X.todense(), dtype=np.float32)
        parts = self.entries["conditions"]
        if any(part["covariates"] or part["time"] or any(part["doses"]) for part in parts.values()):
            sys.exit("takes combinations of targets alone; this task has doses, times or covariates")
        self.targets = {name: tuple(part["targets"]) for name, part in parts.items()} | {CONTROL: ()}
        self.train = list(self.entries["train"])
        self.trained_targets = sorted({target for name in self.train for target in self.targets[name]})
        conditions = self.entries["predict"]
        self.predict = [name for name in conditions if unseen or set(self.targets[name]) <= set(self.trained_targets)]
        self.left_out = [name for name in conditions if name not in self.predict]
        if not self.predict:
            sys.exit("can predict none of the conditions: each has a target that no training condition has")
        self.rng = np.random.default_rng(self.seed)
        self.most_steps = self.entries.get("steps", 10**9)
        self.begun = clock()
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        os.chdir(work)

    @property
    def n_slots(self) -> int:
        """The largest number of targets of a condition."""
        return max(map(len, self.targets.values()))

    def left(self, later: float = 0.0) -> float:
        """CPU seconds that are left for training, where `later` are needed for predicting."""
        return self.entries["budget"] * (1 - SPARE) - later - clock()

    def steps(self, seconds_each: float, later: float = 0.0) -> int:
        """How many steps of `seconds_each` the budget still holds, 1 at least."""
        return int(max(1, min(self.most_steps, self.left(later) / seconds_each)))

    def multi_hot(self, name: str) -> np.ndarray:
        """[targets]: 1 at each target of a condition that trained."""
        return np.isin(self.trained_targets, self.targets[name]).astype(np.float32)

    def controls(self, n: int | None = None) -> np.ndarray:
        """Rows of `n` control cells (default: those wanted of a condition), each once where there are enough."""
        rows, n = np.flatnonzero(self.labels == CONTROL), n or self.cells
        return self.rng.permutation(rows)[:n] if n <= len(rows) else self.rng.choice(rows, n)

    def counts(self) -> np.ndarray:
        """Raw counts [cells × genes]: the layer, else whole numbers whose smallest positive value in each cell is one."""
        if "counts" in self.adata.layers:
            return np.asarray(self.adata.layers["counts"].todense(), dtype=np.float32)
        linear = np.expm1(self.X)
        one = np.where(linear > 0, linear, np.inf).min(axis=1, keepdims=True)
        return np.round(linear / np.where(np.isfinite(one), one, 1)).astype(np.float32)

    def units(self, counts: np.ndarray) -> np.ndarray:
        """What one count is worth in each cell [cells × 1], on the scale of expm1(X)."""
        return np.expm1(self.X).sum(axis=1, keepdims=True) / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def pairs(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `n` control cells, and of perturbed ones, whose conditions are drawn alike."""
        names = self.rng.choice(self.train, n)
        return self.controls(n), np.array([self.rng.choice(np.flatnonzero(self.labels == name)) for name in names])

    def answer(self, predicted: dict[str, np.ndarray], populations: str, **facts: object) -> None:
        """Write predicted.h5ad of log1p values [cells × genes] by condition, and facts.json."""
        names = list(predicted)
        obs = pd.DataFrame({self.key: np.repeat(names, [len(predicted[name]) for name in names])})
        obs.index = obs.index.astype(str)
        cells = np.concatenate([predicted[name] for name in names]).astype(np.float32)
        made = ad.AnnData(cells, obs=obs, var=pd.DataFrame(index=self.genes))
        made.write_h5ad(self.folder / "predicted.h5ad")
        facts = {"populations": populations, "cpu_seconds": round(clock(), 1), "not_predicted": self.left_out, **facts}
        if self.left_out:
            facts["notes"] = [f"{len(self.left_out)} conditions have a target that no training condition has"]
        (self.folder / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        os.chdir(self.folder)
        shutil.rmtree(self.folder / "work", ignore_errors=True)


def fit(
    task: Task, model: Any, loss: Callable[[], Any], rate: float, later: float, probe: int = 20, **options: Any
) -> int:
    """Train a torch `model` as many steps as the budget holds, which the first `probe` steps tell; their number.

    loss: of a new batch. rate: the largest learning rate of Adam, with a short warm-up, falling to 0 as a cosine. later:
    CPU seconds that predicting takes.
    """
    import torch

    torch.set_num_threads(1)
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate, **options)
    model.train()
    begun, total, step = clock(), min(probe, task.most_steps), 0
    while step < total:
        share = step / total if total > probe else 0.0
        optimiser.param_groups[0]["lr"] = rate * min(1, (step + 1) / probe) * (1 + np.cos(np.pi * share)) / 2
        optimiser.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        if step == probe < task.most_steps:
            total = probe + min(task.steps((clock() - begun) / probe, later), task.most_steps - probe)
    model.eval()
    return step


def size(model: Any) -> int:
    """Parameters of a torch model."""
    return sum(one.numel() for one in model.parameters())
