"""What training can gain over the prior, screen by screen: what a fit of no training says, in seconds.

    python benchmarks/headroom.py DATA NORMAN_LIKE.h5ad [--seeds 3] [--out DIR]

DATA is the folder of papalexi.h5ad and perturbench_devel.h5ad; NORMAN_LIKE as in accuracy.py. Screens: two hidden states of
which one answers (hidden_states.py); the demo's; norman-like, additive fold 0, 300 genes; and three real ones, all their
conditions training. Each row is one seed of `fit` with the preset `instant`; the last column is the control: the same
where values of each gene are dealt anew among the cells of a condition, so that nothing goes together any more.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import pandas as pd
import scipy.sparse as sp

import scdfm
from hidden_states import Law, measured
from populations import SCREENS
from scdfm.data import CONTROL, Split
from scdfm.files import write_text
from scdfm.run.manifest import Headroom
from scdfm.seeds import numpy_rng
from scdfm.training.headroom import told
from screens import RESULTS, heading

REAL = ("papalexi", "norman", "mcfaline")
"""Kang's has one condition."""


def screens(args: argparse.Namespace, seed: int) -> Iterator[tuple[str, scdfm.CellTable, Split, int | None]]:
    """Name, cells, split and number of genes (None: the preset's) of each screen."""
    hidden = measured(Law.drawn(seed), seed)
    yield "hidden states", hidden, scdfm.additive_split(hidden, fold=0, seed=seed), None
    demo = scdfm.read_cells(scdfm.simulate(seed=seed))
    yield "demo", demo, scdfm.additive_split(demo, fold=0, seed=seed), None
    like = scdfm.read_cells(args.norman_like)
    yield "norman-like", like, scdfm.additive_split(like, fold=0, seed=seed), 300
    for name in REAL:
        cells = SCREENS[name](args.data)
        yield name, cells, Split("all", 0, tuple(name for name in cells.conditions if name != CONTROL), (), ()), None


def dealt(cells: scdfm.CellTable, seed: int) -> scdfm.CellTable:
    """The same values of each gene in each condition, whose cells have nothing in common any more."""
    rng, blocks, labels = numpy_rng(seed, "dealt"), [], []
    for name in cells.conditions:
        values = cells.X[cells.rows(name)].toarray()
        blocks.append(sp.csr_matrix(rng.permuted(values, axis=0)))
        labels += [name] * len(values)
    obs = pd.DataFrame({"perturbation": labels}, index=[str(place) for place in range(len(labels))])
    var = pd.DataFrame(index=[str(gene) for gene in cells.genes])
    return scdfm.read_cells(ad.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=var), values="log1p")


def found(cells: scdfm.CellTable, split: Split, n_genes: int | None, seed: int, out: Path) -> Headroom:
    """What the manifest of a fit of no training says."""
    config = scdfm.Config.preset("instant").updated({"seed": seed})
    if n_genes:
        config = config.updated({"panel": {"n_genes": n_genes}})
    run = scdfm.fit(cells, split, config, out=out, resume=True, progress=False)
    assert run.manifest.headroom is not None
    return run.manifest.headroom


def row(name: str, seed: int, real: Headroom, control: Headroom) -> str:
    """A line of the table."""
    advice = str(told(real)).rsplit("; ", 1)[1]
    spans = [f"{one.gain:.4f} ({one.low:.4f} to {one.high:.4f})" for one in (real, control)]
    return f"| {name} | {seed} | {real.conditions} | {real.energy:.3f} | {spans[0]} | {advice} | {spans[1]} |"


def main() -> None:
    """Fit, and write the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path)
    options.add_argument("norman_like", type=Path)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--out", type=Path, default=Path("runs/headroom"))
    options.add_argument("--results", type=Path, default=RESULTS)
    args = options.parse_args()
    lines = {}
    for seed in range(args.seeds):
        for name, cells, split, n_genes in screens(args, seed):
            real = found(cells, split, n_genes, seed, args.out / f"{name} {seed}")
            control = found(dealt(cells, seed), split, n_genes, seed, args.out / f"{name} {seed} dealt")
            lines[name, seed] = row(name, seed, real, control)
            print(lines[name, seed], flush=True)
    head = [
        "| screen | seed | conditions | prior's energy distance | headroom | fit says | cells dealt anew |",
        "|---|---:|---:|---:|---|---|---|",
    ]
    order = sorted(lines, key=lambda key: list(dict.fromkeys(name for name, _ in lines)).index(key[0]))
    write_text(
        args.results / "headroom.md",
        "\n".join([*heading("Headroom of training"), *head, *(lines[key] for key in order), ""]),
    )


if __name__ == "__main__":
    main()
