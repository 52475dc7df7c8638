"""Wide screens, one after the other: does everything from reading to scores still run, how long, in how much memory?

    python benchmarks/wide.py [--cases conditions,genes,few,norman,challenge] [--predicted 300] [--steps 20] [--out FOLDER]

conditions: 3,000 conditions × 50 cells, 1,000 genes. genes: 30,000 genes, 5,000 of them in the panel, 60 conditions × 50
cells. few: 2,000 conditions of 3 cells each, 2,000 genes. Cells are Poisson counts around gene means with a fold change for
each target; doubles add up. Each of these runs in a process of its own, on one thread, with a small model: read, fit a few
steps, predict four test conditions, evaluate them against the whole screen. norman: 105 singles and 131 doubles × 420
cells, 5,000 genes, all in the panel, the same from the preset `instant`. challenge: 150 conditions × 100 cells and all
of 18,533 genes, preset `instant`; then 400 cells of each of 300 conditions, of which half or more are targets that nobody
measured, to a file. Written: wide.csv and wide.md, seconds, processor seconds and peak resident memory of each stage;
cases that are not run again stay.
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
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scdfm
from scdfm.evaluation import CEILING, DUPLICATE
from scdfm.seeds import numpy_rng
from screens import heading
from speed import hardware

CASES = {  # singles, doubles, cells of each, genes, genes of the panel
    "conditions": (600, 2400, 50, 1000, 500),
    "genes": (30, 30, 50, 30_000, 5000),
    "few": (400, 1600, 3, 2000, 1000),
    "norman": (105, 131, 420, 5000, 5000),
    "challenge": (150, 0, 100, 18_533, 18_533),
}
EXPRESSED = {"norman": 0.3, "challenge": 0.3}
"""Mean count of a gene in a cell; .08 where nothing is said."""
PREDICTED = 4
POPULATION = 400
"""Cells of a condition of the challenge."""


def screen(case: str) -> ad.AnnData:
    """log1p counts of a case, with 500 control cells."""
    singles, doubles, n_cells, n_genes, _ = CASES[case]
    rng = numpy_rng(0, "wide", case)
    means = rng.gamma(0.2, EXPRESSED.get(case, 0.08) / 0.2, n_genes)
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
    """A small model that sees the case's panel, or none at all."""
    if case == "norman":
        return scdfm.Config.preset("instant").updated({"panel": {"n_genes": CASES[case][4]}})
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


def teller(case: str) -> Callable[[str], None]:
    """Prints a JSON line for each stage when it is over."""
    begun = [time.monotonic(), time.process_time()]

    def tell(stage: str) -> None:
        now = [time.monotonic(), time.process_time()]
        seconds, processor = (round(after - before, 1) for after, before in zip(now, begun, strict=True))
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        row = {"case": case, "stage": stage, "seconds": seconds, "processor_s": processor, "peak_mib": peak}
        print(json.dumps(row), flush=True)
        begun[:] = now

    return tell


def run_challenge(folder: Path, n_conditions: int) -> None:
    """Whole populations of all genes from the preset `instant`, in this process; prints one JSON line for each stage."""
    tell = teller("challenge")
    cells = scdfm.read_cells(folder / "screen.h5ad")
    tell(f"read {cells.n:,} cells × {len(cells.genes):,} genes")
    genes = CASES["challenge"][4]
    config = scdfm.Config.preset("instant").updated({"panel": {"n_genes": genes}, "split": {"kind": "none"}})
    run = scdfm.fit(cells, config=config, out=folder / "run", progress=False)
    tell(f"fit instant, {len(run.genes):,} genes, {len(run.split.train):,} conditions")
    measured = list(run.split.train)[: n_conditions // 2]
    unseen = [gene for gene in run.genes if gene not in set(run.split.train)][: n_conditions - len(measured)]
    predicted = run.predict_to(folder / "predicted.h5ad", [*measured, *unseen], n_cells=POPULATION)
    assert len(predicted.conditions) == n_conditions
    assert predicted.n_genes == genes
    size = (folder / "predicted.h5ad").stat().st_size / 1e9
    tell(f"predict {n_conditions} conditions × {POPULATION} cells × {genes:,} genes, {size:.1f} GB")


def run_case(case: str, folder: Path, steps: int) -> None:
    """All stages in this process; prints one JSON line for each."""
    tell = teller(case)
    cells = scdfm.read_cells(folder / "screen.h5ad")
    tell(f"read {cells.n:,} cells × {len(cells.genes):,} genes")
    run = scdfm.fit(cells, config=config(case, steps), out=folder / "run", progress=False)
    how = "instant" if not run.config.training.max_steps else f"{steps} steps"
    tell(f"fit {how}, {len(run.genes):,} genes, {len(run.split.train):,} conditions")
    asked = run.split.test[:PREDICTED]
    predicted = run.predict(asked)
    tell(f"predict {len(asked)} conditions × {predicted.n_obs // len(asked)} cells")
    table = scdfm.evaluate(predicted, cells, training=run, conditions=asked)
    scored = table[(table["metric"] == "l2") & ~table["model"].isin([CEILING, DUPLICATE])]  # three cells have no half
    assert np.isfinite(scored["value"]).all(), scored[~np.isfinite(scored["value"])]
    tell(f"evaluate {len(asked)} conditions")


def main() -> None:
    """Make each screen, run it in a child, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--predicted", type=int, default=300, help="conditions of the challenge")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        case, folder = args.child[0], Path(args.child[1])
        if case == "challenge":
            run_challenge(folder, args.predicted)
        else:
            run_case(case, folder, args.steps)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    kept, cases = args.out / "wide.csv", args.cases.split(",")
    rows = pd.read_csv(kept).to_dict("records") if kept.is_file() else []
    rows = [row for row in rows if row["case"] not in cases]
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="wide-") as folder:
            screen(case).write_h5ad(Path(folder) / "screen.h5ad")
            options = ["--steps", str(args.steps), "--predicted", str(args.predicted)]
            command = [sys.executable, __file__, *options, "--child", case, folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows += [json.loads(line) for line in done.stdout.splitlines()]
        print(done.stdout, flush=True)
    pd.DataFrame(rows).to_csv(kept, index=False)
    lines = [*heading("Wide screens"), f"{hardware('cpu')}.", ""]
    lines += ["| case | stage | seconds | processor s | peak resident MiB |", "|---|---|---:|---:|---:|"]
    lines += [
        f"| {r['case']} | {r['stage']} | {r['seconds']:.1f} | {r['processor_s']:.1f} | {r['peak_mib']:,} |"
        for r in rows
    ]
    (args.out / "wide.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
