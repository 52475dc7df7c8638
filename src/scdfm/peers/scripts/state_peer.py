# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["torch==2.13.0", "arc-state==0.11.1"]
# ///
"""STATE: a transformer over sets of cells, trained by its own command; multi-hot vectors tell the targets of a label."""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from contract import CONTROL, Task, clock
from state.__main__ import main as state

CELLS, SETS, WIDTH = 32, 8, 128
DATA = """[datasets]
screen = "{folder}"
[training]
screen = "train"
[zeroshot]
[fewshot."screen.cells"]
val = {validation}
test = []
"""


class Timed(pl.Trainer):
    """Lightning's trainer, which stops when the budget of CPU seconds is used, and counts its steps."""

    task: Task
    later = 0.0
    facts: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, **options: object) -> None:
        super().__init__(**options | {"callbacks": [*options["callbacks"], Budget()], "enable_progress_bar": False})


class Budget(pl.Callback):
    """Stops a fit whose time is up."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
        Timed.facts = {"steps": trainer.global_step, "parameters": sum(p.numel() for p in module.parameters())}
        trainer.should_stop = Timed.task.left(Timed.later) < 0


def table(X: np.ndarray, labels: list[str], genes: list[str]) -> ad.AnnData:
    """Cells as STATE reads them."""
    obs = pd.DataFrame({"gene": labels, "cell_type": "cells", "gem_group": "one"}).astype("category")
    obs.index = obs.index.astype(str)
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=pd.Index(genes)), obsm={"X_hvg": X})


def train(task: Task, run: Path) -> None:
    """Write the files that STATE trains from, and call its command."""
    folder = Path.cwd() / "screen"
    folder.mkdir(exist_ok=True)
    table(task.X, list(task.labels), task.genes).write_h5ad(folder / "screen.h5ad")
    features = {name: torch.from_numpy(task.multi_hot(name)) for name in (*task.train, *task.predict, CONTROL)}
    torch.save(features, "features.pt")
    doubles = [name for name in task.train if len(task.targets[name]) > 1] or task.train
    validation = [str(name) for name in task.rng.choice(doubles, 1)]
    Path("data.toml").write_text(DATA.format(folder=folder, validation=validation))
    most = min(task.most_steps, 10**6)
    options = {
        "data.kwargs.toml_config_path": Path("data.toml").absolute(), "data.kwargs.embed_key": "X_hvg",
        "data.kwargs.output_space": "gene", "data.kwargs.num_workers": 0, "data.kwargs.pin_memory": "false",
        "data.kwargs.batch_col": "gem_group", "data.kwargs.pert_col": "gene", "data.kwargs.cell_type_key": "cell_type",
        "data.kwargs.control_pert": CONTROL, "data.kwargs.perturbation_features_file": Path("features.pt").absolute(),
        "training.max_steps": most, "training.val_freq": most, "training.ckpt_every_n_steps": most,
        "training.batch_size": SETS, "training.lr": 3e-4, "training.train_seed": task.seed, "model": "state_sm",
        "model.kwargs.cell_set_len": CELLS, "model.kwargs.hidden_dim": WIDTH,
        "model.kwargs.transformer_backbone_kwargs.intermediate_size": 4 * WIDTH,
        "model.kwargs.transformer_backbone_kwargs.num_attention_heads": 4,
        "model.kwargs.transformer_backbone_kwargs.num_key_value_heads": 4,
        "model.kwargs.transformer_backbone_kwargs.head_dim": WIDTH // 4,
        "use_wandb": "false", "output_dir": run.parent, "name": run.name, "overwrite": "true",
    }  # fmt: skip
    call("train", *(f"{name}={value}" for name, value in options.items()))


def predict(task: Task, run: Path) -> dict[str, np.ndarray]:
    """Hand STATE control cells under the label of each condition; what it makes of them."""
    rows = {name: task.controls() for name in task.predict}
    own = task.controls()  # the cells of the label control, which it maps from
    X = task.X[np.concatenate([own, *rows.values()])]
    labels = [CONTROL] * len(own) + [name for name in rows for _ in range(task.cells)]
    table(X, labels, task.genes).write_h5ad("query.h5ad")
    call("infer", "--model-dir", run, "--adata", "query.h5ad", "--embed-key", "X_hvg", "--pert-col", "gene",
         "--output", "out.h5ad", "--seed", task.seed, "--quiet")  # fmt: skip
    out = ad.read_h5ad("out.h5ad")
    expression, named = np.asarray(out.obsm["X_hvg"]), out.obs["gene"].astype(str).to_numpy()
    return {name: expression[named == name] for name in task.predict}


def call(*words: object) -> None:
    """One of STATE's own commands, in this process."""
    sys.argv = ["state", "tx", *map(str, words)]
    state()


def main() -> None:
    """Train until the budget is used, and predict."""
    task = Task()  # which changes into the work folder
    run = Path.cwd() / "run"
    Timed.task, Timed.later = task, 5 + 0.004 * len(task.predict) * task.cells
    pl.Trainer = Timed
    train(task, run)
    begun = clock()
    predicted = predict(task, run)
    task.answer(predicted, "whole cells", **Timed.facts, predicting=round(clock() - begun, 1))


if __name__ == "__main__":
    main()
