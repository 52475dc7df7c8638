"""Wide screens, one after the other: does everything from reading to scores still run, how long, in how much memory?

    python benchmarks/wide.py [--cases conditions,genes,few] [--steps 20] [--out benchmarks/results]

conditions: 3,000 conditions × 50 cells, 1,000 genes. genes: 30,000 genes, 5,000 of them in the panel, 60 conditions × 50
cells. few: 2,000 conditions of 3 cells each, 2,000 genes. Cells are Poisson counts around gene means with a fold change for
each target; doubles add up. Each case runs in a process of its own, on one thread, with a small model: read, fit a few
steps, predict four test conditions, evaluate them against the whole screen. Written: wide.csv and wide.md, seconds and
peak resident memory of each stage.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scdfm
from scdfm.evaluation import CEILING, DUPLICATE
from scdfm.seeds import numpy_rng

CASES = {  # singles, doubles, cells of each, genes, genes of the panel
    "conditions": (600, 2400, 50, 1000, 500),
    "genes": (30, 30, 50, 30_000, 5000),
    "few": (400, 1600, 3, 2000, 1000),
}
EXPRESSED = 0.08
"""Share of genes that a cell shows, nearly."""
PREDICTED = 4


def screen(case: str) -> ad.AnnData:
    """log1p counts of a case, with 500 control cells."""
    singles, doubles, n_cells, n_genes, _ = CASES[case]
    rng = numpy_rng(0, "wide", case)
    means = rng.gamma(0.2, EXPRESSED / 0.2, n_genes)
    names = [f"G{i:05d}" for i in range(n_genes)]
    targets = rng.choice(n_genes, singles, replace=False)
    changed = {int(t): (rng.choice(n_genes, 20), rng.normal(1.0, 0.5, 20)) for t in targets}
    pairs = list(itertools.combinations(sorted(changed), 2))
    chosen = [pairs[i] for i in rng.choice(len(pairs), doubles, replace=False)]
    conditions: list[tuple[int, ...]] = [(), *((t,) for t in sorted(changed)), *chosen]
    blocks, labels = [], []
    for condition in conditions:
        log_fold = np.zeros(n_genes)
        for target in condition:
            np.add.at(log_fold, changed[target][0], changed[target][1])
        n = n_cells if condition else 500
        counts = rng.poisson(means * np.exp(log_fold), (n, n_genes))
        blocks.append(sp.csr_matrix(np.log1p(counts).astype(np.float32)))
        labels += ["+".join(names[t] for t in condition) or "control"] * n
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=pd.DataFrame(index=names))


def config(case: str, steps: int) -> scdfm.Config:
    """A small model that sees the case's panel."""
    return scdfm.Config().updated(
        {
            "panel": {"n_genes": CASES[case][4]},
            "model": {"width": 32, "layers": 1},
            "flow": {"genes_per_step": 256},
            "training": {
                "max_steps": steps, "validate_every": steps, "validation_cells": 8, "accelerator": "cpu",
                "warmup_steps": 2,
            },
            "sampling": {"steps": 2, "cells": 32},
            "split": {"validation_fraction": 0.001},
        }
    )  # fmt: skip


def run_case(case: str, folder: Path, steps: int) -> None:
    """All stages in this process; prints one JSON line for each."""
    path = folder / "screen.h5ad"

    def tell(stage: str, begun: float) -> float:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = time.monotonic() - begun
        print(
            json.dumps({"case": case, "stage": stage, "seconds": round(seconds, 1), "peak_mib": round(peak)})
        )
        return time.monotonic()

    begun = time.monotonic()
    cells = scdfm.read_cells(path)
    begun = tell(f"read {cells.n:,} cells × {len(cells.genes):,} genes", begun)
    run = scdfm.fit(cells, config=config(case, steps), out=folder / "run", progress=False)
    begun = tell(f"fit {steps} steps, {len(run.genes):,} genes, {len(run.split.train):,} conditions", begun)
    asked = run.split.test[:PREDICTED]
    predicted = run.predict(asked)
    begun = tell(f"predict {len(asked)} conditions × {predicted.n_obs // len(asked)} cells", begun)
    table = scdfm.evaluate(predicted, cells, training=run, conditions=asked)
    scored = table[
        (table["metric"] == "l2") & ~table["model"].isin([CEILING, DUPLICATE])
    ]  # three cells have no half
    assert np.isfinite(scored["value"]).all(), scored[~np.isfinite(scored["value"])]
    tell(f"evaluate {len(asked)} conditions", begun)


def main() -> None:
    """Make each screen, run it in a child, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_case(args.child[0], Path(args.child[1]), args.steps)
        return
    rows = []
    for case in args.cases.split(","):
        with tempfile.TemporaryDirectory(prefix="wide-") as folder:
            screen(case).write_h5ad(Path(folder) / "screen.h5ad")
            command = [sys.executable, __file__, "--steps", str(args.steps), "--child", case, folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows += [json.loads(line) for line in done.stdout.splitlines()]
        print(done.stdout, flush=True)
    table = pd.DataFrame(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "wide.csv", index=False)
    lines = ["| case | stage | seconds | peak resident MiB |", "|---|---|---:|---:|"]
    lines += [f"| {r['case']} | {r['stage']} | {r['seconds']:.1f} | {r['peak_mib']:,} |" for r in rows]
    (args.out / "wide.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
