"""Two cell states that no column tells, of which one responds: who answers, with and without the network's response.

    python benchmarks/hidden_states.py [--seeds 3] [--steps 1000,3000] [--set section.key=value ...] [--out DIR]

Each seed is a screen of 60 genes, 8 targets and all pairs, Poisson counts of cells of varying depth; 15 genes tell the
states, and targets move genes of cells in one of them. Additive fold 0, scored on as many further cells of the true law
as are generated. Rows: `prior`, no training; `default`, after each number of --steps; `random pairs`, the first of these
with any start going to any cell (`flow.pairing`); `among six`, with pairs sought, and the MMD taken, among the cells alone
that the network sees (`flow.pairing_cells`); `no response`, without `Response`, the number a cell that says how far
it takes part; `room`, true cells moved to the means that the prior expects, gene by gene: what a flow that keeps these
can reach; `again`, a second draw of true cells. `kept`: the step whose weights the fit keeps by its own rule, 0 where
that is the prior. The other columns: `population_scores.compare`, of cells that are drawn independently
(`sampling.noise`), as true cells are: of evenly drawn ones the energy distance comes out too small.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import torch

import scdfm
from population_scores import compare, moved
from scdfm.data import Split
from scdfm.files import write_text
from scdfm.model.layers import Response
from scdfm.seeds import numpy_rng
from screens import RESULTS, heading

GENES, STATE_GENES, TARGETS = 60, 15, 8
CELLS, CONTROLS = 100, 600
OTHER_PAIRS: dict[str, dict[str, Any]] = {"random pairs": {"pairing": "random"}, "among six": {"pairing_cells": 6}}
MANY = 2000
"""Cells that tell a true mean."""
DRAWS = 3
"""Populations that a row is judged by."""
TOTAL = 100.0
"""Counts that cells are brought to."""
COLUMNS = ("l2", "energy", "wasserstein", "responders", "response", "correlation", "energy=", "wasserstein=")


class Law(NamedTuple):
    """The truth: log rates of a cell, by its state and targets."""

    base: npt.NDArray[np.float64]
    state: npt.NDArray[np.float64]
    effects: dict[str, npt.NDArray[np.float64]]

    @classmethod
    def drawn(cls, seed: int) -> Law:
        """The law of one seed."""
        rng = numpy_rng(seed, "law")
        base, state = rng.normal(0.5, 1.0, GENES), np.zeros(GENES)
        state[:STATE_GENES] = rng.choice([-1.5, 1.5], STATE_GENES)
        moved = (rng.random((TARGETS, GENES)) < 0.3) * (np.arange(GENES) >= STATE_GENES)
        effects = moved * rng.normal(0, 1.2, (TARGETS, GENES))
        return cls(base, state, {f"T{place}": row for place, row in enumerate(effects)})

    def counts(self, condition: str, n: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Counts [n, G] of cells of a condition; half of them answer."""
        answers = rng.random(n) < 0.5
        rates = self.base + np.outer(answers - 0.5, self.state)
        for target in condition.split("+") if condition != "control" else ():
            rates = rates + answers[:, None] * self.effects[target]
        depth = rng.lognormal(0, 0.25, (n, 1))
        return rng.poisson(np.exp(rates) * depth).astype(np.float32)


def table(law: Law, sizes: dict[str, int], rng: np.random.Generator) -> scdfm.CellTable:
    """Cells of some conditions."""
    counts = np.concatenate([law.counts(name, n, rng) for name, n in sizes.items()])
    obs = pd.DataFrame({"perturbation": np.repeat(list(sizes), list(sizes.values()))})
    obs.index = obs.index.astype(str)
    var = pd.DataFrame(index=[f"G{place}" for place in range(GENES)])
    return scdfm.read_cells(ad.AnnData(sp.csr_matrix(counts), obs=obs, var=var), target_sum=TOTAL)


def measured(law: Law, seed: int) -> scdfm.CellTable:
    """The screen of one seed: controls, every target alone and every pair."""
    targets = list(law.effects)
    pairs = [f"{a}+{b}" for place, a in enumerate(targets) for b in targets[place + 1 :]]
    sizes = {"control": CONTROLS, **dict.fromkeys([*targets, *pairs], CELLS)}
    return table(law, sizes, numpy_rng(seed, "cells"))


@contextmanager
def without_response() -> Iterator[None]:
    """Networks whose cells all take part alike, as far as the decoder does not say otherwise."""

    def none(self: Response, *read: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(read[-1])

    with mock.patch.object(Response, "forward", none):
        yield


def options(seed: int, steps: int, **flow: Any) -> scdfm.Config:
    """The preset at the size of these screens."""
    return scdfm.Config.preset("default").updated(
        {"seed": seed, "model": {"width": 32, "heads": 2, "layers": 2, "perturbation": "drugs"},
         "graph": {"enabled": False}, "flow": flow, "panel": {"n_genes": GENES},
         "training": {"max_steps": steps, "validate_every": 250, "ema_decay": 0.99}}
    )  # fmt: skip


def fitted(
    cells: scdfm.CellTable, split: Split, seed: int, args: argparse.Namespace, out: Path, steps: int, **flow: Any
) -> scdfm.Run:  # fmt: skip
    """One fit, which keeps what validation says."""
    return scdfm.fit(cells, split, options(seed, steps, **flow).with_settings(args.set), out=out, resume=True)


def one_seed(seed: int, args: argparse.Namespace) -> pd.DataFrame:
    """Scores of every row, means over test conditions."""
    law = Law.drawn(seed)
    cells = measured(law, seed)
    split = scdfm.additive_split(cells, fold=0, seed=seed)
    truth = table(law, {"control": CONTROLS, **dict.fromkeys(split.test, CELLS)}, numpy_rng(seed, "truth"))
    again = table(law, {"control": CONTROLS, **dict.fromkeys(split.test, CELLS)}, numpy_rng(seed, "again"))
    rows: dict[str, Any] = {"prior": fitted(cells, split, seed, args, args.out / f"{seed}-prior", 0)}
    for steps in args.steps:
        rows[f"default {steps}"] = fitted(cells, split, seed, args, args.out / f"{seed}-{steps}", steps)
    for row, flow in OTHER_PAIRS.items():
        rows[row] = fitted(cells, split, seed, args, args.out / f"{seed}-{row.split()[0]}", args.steps[0], **flow)
    scores = {name: judged(run, truth, split) for name, run in rows.items()}
    with without_response():
        rows["no response"] = run = fitted(cells, split, seed, args, args.out / f"{seed}-without", args.steps[0])
        scores["no response"] = judged(run, truth, split)
    scores["room"] = {
        name: _compared(there, truth, name) for name, there in room(rows["prior"], law, again, split, seed)
    }
    scores["again"] = {name: _compared(_of(again, name), truth, name) for name in split.test}
    found = {row: pd.DataFrame(values).T.mean() for row, values in scores.items()}
    kept = {name: run.manifest.result["step"] for name, run in rows.items()}
    means = pd.DataFrame(found).T[list(COLUMNS)].rename_axis("row").reset_index()
    return means.assign(seed=seed, kept=[str(kept.get(row, "–")) for row in means["row"]])


def judged(run: scdfm.Run, truth: scdfm.CellTable, split: Split) -> dict[str, dict[str, float]]:
    """Scores of a run's populations, by test condition: means over DRAWS draws of independent cells, as true ones are."""
    config = run.config.updated({"sampling": {"noise": "independent"}})
    independent = scdfm.Run(run.path, run.manifest.model_copy(update={"config": config}))
    genes, found = [str(gene) for gene in truth.genes], {}
    draws = [independent.predict(list(split.test), n_cells=CELLS, seed=seed, genes=genes) for seed in range(DRAWS)]
    for name in split.test:
        scores = [_compared(cells[cells.obs["perturbation"] == name].X.toarray(), truth, name) for cells in draws]
        found[name] = {metric: float(np.mean([one[metric] for one in scores])) for metric in COLUMNS}
    return found


def room(
    run: scdfm.Run, law: Law, cells: scdfm.CellTable, split: Split, seed: int
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """True `cells` of each test condition, moved as far as the prior's mean is off the true one."""
    many = table(law, {"control": MANY, **dict.fromkeys(split.test, MANY)}, numpy_rng(seed, "many"))
    columns = [run.genes.index(str(gene)) for gene in cells.genes]
    for name in split.test:
        expected = run.means.loc["control"].to_numpy() + run.knowing([name]).predict([name])[0]
        off = np.maximum(expected, 0)[columns] - _of(many, name).mean(0)
        own = _of(cells, name)
        yield name, moved(own, own.mean(0) + off).astype(np.float32)


def _of(cells: scdfm.CellTable, name: str) -> npt.NDArray[np.float32]:
    return np.asarray(cells.X[cells.rows(name)].toarray())


def _compared(generated: npt.NDArray[np.float32], truth: scdfm.CellTable, name: str) -> dict[str, float]:
    return compare(generated, _of(truth, name), _of(truth, "control"), classify=False)


def page(scores: pd.DataFrame) -> str:
    """One row a seed and row, as Markdown."""
    lines = ["| seed | row | kept | " + " | ".join(COLUMNS) + " |", "|---:|---|---:|" + "---:|" * len(COLUMNS)]
    for _, row in scores.iterrows():
        values = " | ".join(f"{row[name]:.3f}" for name in COLUMNS)
        lines.append(f"| {row['seed']} | {row['row']} | {row['kept']} | {values} |")
    return "\n".join([*heading("Two hidden states, one of which responds"), *lines, ""])


def main() -> None:
    """Fit, score, write the page."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--seeds", type=int, default=3)
    asked.add_argument("--steps", type=lambda text: [int(part) for part in text.split(",")], default=[1000])
    asked.add_argument("--set", action="append", default=[], metavar="section.key=value")
    asked.add_argument("--out", type=Path, default=Path("runs/hidden_states"))
    asked.add_argument("--results", type=Path, default=RESULTS)
    args = asked.parse_args()
    scores = pd.concat([one_seed(seed, args) for seed in range(args.seeds)], ignore_index=True)
    text = page(scores)
    args.results.mkdir(parents=True, exist_ok=True)
    write_text(args.results / "hidden_states.md", text)
    print(text)


if __name__ == "__main__":
    main()
