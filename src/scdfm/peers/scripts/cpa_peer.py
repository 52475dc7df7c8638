# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = [
#   "torch==2.13.0", "scvi-tools==0.20.3", "numpy<2", "anndata<0.11", "scipy<1.13", "pandas<2.3", "jax<0.4.24",
#   "jaxlib<0.4.24", "lightning<2.3", "adjustText", "gdown", "rdkit", "seaborn", "scanpy", "setuptools<80", "pip",
# ]
# [tool.scdfm]
# without-dependencies = ["cpa-tools==0.8.8"]
# ///
"""CPA on counts: a cell's state without its perturbation, plus embeddings of targets, decoded to a negative binomial."""

from __future__ import annotations

import sys
import types

import anndata as ad
import numpy as np
import pandas as pd
import torch
from contract import CONTROL, Task, clock, size
from pytorch_lightning.callbacks import Callback

# Its search of settings imports ray, and nothing else needs it.
_tuner = types.ModuleType("cpa._tuner")
_tuner.run_autotune = None
sys.modules["cpa._tuner"] = _tuner

import cpa  # noqa: E402

BATCH, NTH, MOST = 128, 20, 2000
PLAN = {
    "lr": 1e-3, "n_epochs_pretrain_ae": 5, "n_epochs_adv_warmup": 10, "n_epochs_kl_warmup": 5, "reg_adv": 0.5,
    "pen_adv": 0.5, "adv_steps": 3, "n_epochs_verbose": 10**6, "step_size_lr": 10**6,
}  # fmt: skip


class Budget(Callback):
    """Stops a fit whose time is up."""

    def __init__(self, task: Task) -> None:
        self.task, self.steps = task, 0

    def on_train_batch_end(self, trainer: object, *_: object) -> None:
        self.steps += 1
        if self.task.left(10) < 0 or self.steps >= self.task.most_steps:
            trainer.should_stop = True


def registered(task: Task, counts: np.ndarray, queries: dict[str, np.ndarray]) -> ad.AnnData:
    """Training cells, and control cells under the label of each condition to predict, which CPA wants to know before."""
    rows = np.concatenate([np.arange(len(task.labels)), *queries.values()])
    names = [*task.labels, *(name for name, own in queries.items() for _ in own)]
    parts = np.where(np.arange(len(task.labels)) % NTH == 0, "test", "train")  # its word for validation
    obs = pd.DataFrame({"condition": names, "cell_type": "cells"})
    obs["part"] = [*parts, *["ood"] * (len(rows) - len(parts))]
    obs.index = obs.index.astype(str)
    return ad.AnnData(counts[rows], obs=obs, var=pd.DataFrame(index=task.genes))


def main() -> None:
    """Train until the budget is used, and draw counts around the predicted means."""
    task = Task()
    torch.manual_seed(task.seed)
    torch.set_num_threads(1)
    counts = task.counts()
    units = task.units(counts)
    queries = {name: task.controls() for name in task.predict}
    cells = registered(task, counts, queries)
    cells.X[cells.X.sum(axis=1) == 0, 0] = 1  # the logarithm of their number is an input
    cpa.CPA.setup_anndata(
        cells, perturbation_key="condition", control_group=CONTROL, categorical_covariate_keys=["cell_type"],
        is_count_data=True, max_comb_len=task.n_slots,
    )  # fmt: skip
    model = cpa.CPA(
        cells, split_key="part", recon_loss="nb", doser_type="linear", n_latent=64, n_hidden_encoder=256,
        n_layers_encoder=2, n_hidden_decoder=256, n_layers_decoder=2, seed=task.seed,
    )  # fmt: skip
    budget, begun = Budget(task), clock()
    model.train(
        max_epochs=MOST, use_gpu=False, batch_size=BATCH, plan_kwargs=PLAN, check_val_every_n_epoch=5,
        early_stopping_patience=MOST, save_path=False, callbacks=[budget], enable_progress_bar=False,
    )  # fmt: skip
    spent = clock() - begun
    model.predict(cells, n_samples=1)
    dispersion = model.module.px_r.detach().exp().numpy()
    predicted, place = {}, len(task.labels)
    for name, rows in queries.items():
        mean = np.maximum(cells.obsm["CPA_pred"][place : place + len(rows)], 1e-8)
        drawn = task.rng.negative_binomial(dispersion, dispersion / (dispersion + mean))
        predicted[name] = np.log1p(drawn * units[rows])
        place += len(rows)
    task.answer(
        predicted,
        "counts drawn around means",
        steps=budget.steps,
        parameters=size(model.module),
        training=round(spent, 1),
    )


if __name__ == "__main__":
    main()
