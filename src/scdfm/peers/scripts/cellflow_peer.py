# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["cellflow-tools==0.0.9", "requests"]
# ///
"""CellFlow: flow matching from control cells in 50 principal components, conditioned on the targets' one-hot vectors."""

from __future__ import annotations

import anndata as ad
import cellflow
import diffrax
import jax
import numpy as np
import optax
import pandas as pd
from contract import CONTROL, Task, clock

PROBE, BATCH, AXES = 50, 256, 50


def prepared(task: Task, latent: np.ndarray) -> ad.AnnData:
    """Training cells with a column of a target for each slot, `control` where there is none."""
    obs = slots(task, list(task.labels)).assign(is_control=task.labels == CONTROL)
    adata = ad.AnnData(task.X, obs=obs, obsm={"X_pca": latent})
    one_hot = np.eye(len(task.trained_targets), dtype=np.float32)
    vectors = {target: one_hot[place] for place, target in enumerate(task.trained_targets)}
    adata.uns["target_rep"] = vectors | {CONTROL: np.zeros(len(vectors), np.float32)}
    return adata


def slots(task: Task, names: list[str]) -> pd.DataFrame:
    """The targets of conditions, a column a slot."""
    rows = [[*task.targets[name], *[CONTROL] * (task.n_slots - len(task.targets[name]))] for name in names]
    columns = [f"t{place}" for place in range(task.n_slots)]
    frame = pd.DataFrame(rows, columns=columns, index=[str(i) for i in range(len(names))])
    return frame.astype(pd.CategoricalDtype([CONTROL, *task.trained_targets]))


def model(task: Task, adata: ad.AnnData, steps: int) -> cellflow.model.CellFlow:
    """A model of a size for one core, whose learning rate falls to 0 at `steps`."""
    flow = cellflow.model.CellFlow(adata, solver="otfm")
    columns = tuple(f"t{place}" for place in range(task.n_slots))
    flow.prepare_data("X_pca", "is_control", {"target": columns}, {"target": "target_rep"}, null_value=0.0)
    flow.prepare_model(
        condition_embedding_dim=64, cond_output_dropout=0.5, time_freqs=64, time_encoder_dims=(256, 256),
        hidden_dims=(256, 256), decoder_dims=(512, 512), optimizer=optax.adam(optax.cosine_decay_schedule(1e-3, steps)),
        seed=task.seed,
    )  # fmt: skip
    return flow


def main() -> None:
    """Probe the speed, train as many steps as the budget holds, predict."""
    task = Task()
    np.random.seed(task.seed)
    mean = task.X.mean(axis=0)
    axes = np.linalg.svd(np.cov((task.X - mean).T.astype(np.float64)))[2][:AXES].astype(np.float32)
    adata = prepared(task, (task.X - mean) @ axes.T)
    later = 3 + 0.6 * len(task.predict) * max(1, task.cells / 100)
    flow = model(task, adata, PROBE)
    flow.train(1, batch_size=BATCH, valid_freq=10**9)
    begun = clock()
    flow.train(min(PROBE, task.most_steps), batch_size=BATCH, valid_freq=10**9)
    each = (clock() - begun) / min(PROBE, task.most_steps)
    steps = task.steps(each, later + 10)
    flow = model(task, adata, steps)
    np.random.seed(task.seed)
    flow.train(steps, batch_size=BATCH, valid_freq=10**9)
    predicted = {}
    for name in task.predict:
        rows = task.controls()
        source = adata[rows].copy()
        condition = slots(task, [name]).assign(condition=name, is_control=False)
        latent = flow.predict(
            source, condition, condition_id_key="condition",
            stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-3),
        )  # fmt: skip
        predicted[name] = np.asarray(latent[name]) @ axes + mean
    weights = jax.tree_util.tree_leaves(flow.solver.vf_state.params)
    task.answer(predicted, "whole cells", steps=steps, parameters=int(sum(leaf.size for leaf in weights)))


if __name__ == "__main__":
    main()
