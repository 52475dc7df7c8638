# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["torch==2.13.0", "cell-gears==0.1.2", "torch_geometric", "scipy<1.15"]
# ///
"""GEARS: a graph network over genes that share GO terms, which moves control cells by the effect of the targets."""

from __future__ import annotations

import itertools
import pickle  # nosec B403
import sys
from pathlib import Path

import anndata as ad
import gears
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from contract import CONTROL, Task, fit, size
from gears.utils import create_cell_graph_dataset_for_prediction, loss_fct
from torch_geometric.data import Batch

BATCH, SIMILAR, PASSES = 32, 0.1, 10


def label(task: Task, name: str) -> str:
    """A condition as GEARS writes it."""
    targets = task.targets[name]
    return "ctrl" if not targets else "+".join(targets if len(targets) > 1 else (*targets, "ctrl"))


def go_graph(task: Task) -> None:
    """Leave the GO terms of genes where GEARS looks for them, and the edges of genes that share them (Jaccard)."""
    named = {target for name in (*task.train, *task.predict) for target in task.targets[name]}
    go_terms = task.entries.get("terms") or sys.exit("needs the GO terms of genes")
    # A target without terms would train as if nothing was done; it gets a term of its own.
    terms = {gene: set(go_terms.get(gene, [f"alone {gene}"])) for gene in {*go_terms, *named}}
    Path("data").mkdir(exist_ok=True)
    # GEARS reads pickled files; they are written here, and none is read.
    Path("gene2go_all.pkl").write_bytes(pickle.dumps(terms))
    genes = sorted(gene for gene in terms if gene in named | set(task.genes))
    words = {term: place for place, term in enumerate(sorted({term for gene in genes for term in terms[gene]}))}
    has = sp.lil_matrix((len(genes), len(words)), dtype=np.float32)
    for row, gene in enumerate(genes):
        has[row, [words[term] for term in terms[gene]]] = 1
    shared = (has.tocsr() @ has.tocsr().T).toarray()
    of = shared.diagonal()
    jaccard = shared / (of[:, None] + of[None, :] - shared)
    source, target = np.nonzero(jaccard > SIMILAR)
    edges = {"source": np.array(genes)[source], "target": np.array(genes)[target]}
    pd.DataFrame(edges | {"importance": jaccard[source, target]}).to_csv("data/go_essential_screen.csv", index=False)


def screen(task: Task) -> ad.AnnData:
    """Training cells as GEARS reads them; of large screens as many of each condition as PASSES over them fit."""
    most = task.entries["budget"] * 200 * 500 / len(task.genes) / PASSES
    each = max(10, int(most / (len(task.train) + 1)))
    rows = [task.rng.permutation(np.flatnonzero(task.labels == name)) for name in task.train]
    subsample = np.sort(np.concatenate([np.flatnonzero(task.labels == CONTROL), *(one[:each] for one in rows)]))
    names = [label(task, name) for name in task.labels[subsample]]
    obs = pd.DataFrame({"condition": names, "cell_type": "cells"}).astype("category")
    obs.index = obs.index.astype(str)
    return ad.AnnData(
        sp.csr_matrix(task.X[subsample]), obs=obs, var=pd.DataFrame({"gene_name": task.genes}, index=task.genes)
    )


def main() -> None:
    """Train until the budget is used, and predict."""
    task = Task(unseen=True)
    torch.manual_seed(task.seed)
    np.random.seed(task.seed)
    go_graph(task)
    data = gears.PertData(str(Path.cwd()), default_pert_graph=False)
    data.new_data_process("screen", screen(task))
    names = [label(task, name) for name in task.train]
    Path("split.pkl").write_bytes(pickle.dumps({"train": [*names, "ctrl"], "val": names[:1], "test": []}))
    data.prepare_split("custom", split_dict_path="split.pkl")
    data.split = "no_test"
    data.get_dataloader(batch_size=BATCH)
    method = gears.GEARS(data, device="cpu")
    method.model_initialize(hidden_size=64)
    batches = itertools.chain.from_iterable(itertools.repeat(data.dataloader["train_loader"]))

    def loss() -> torch.Tensor:
        batch = next(batches)
        return loss_fct(
            method.model(batch), batch.y, batch.pert, ctrl=method.ctrl_expression, dict_filter=method.dict_filter,
            direction_lambda=method.config["direction_lambda"],
        )  # fmt: skip

    later = 5 + 2.5e-3 * task.cells * len(task.predict) * len(task.genes) / 500
    steps = fit(task, method.model, loss, 1e-3, later, weight_decay=5e-4)
    predicted = {}
    for name in task.predict:
        cells = create_cell_graph_dataset_for_prediction(
            list(task.targets[name]), method.ctrl_adata, method.pert_list, "cpu", task.cells
        )
        with torch.no_grad():
            predicted[name] = method.model(Batch.from_data_list(cells)).numpy()
    task.answer(predicted, "control cells plus a shift", steps=steps, parameters=size(method.model))


if __name__ == "__main__":
    main()
