"""Fit, predict and evaluate on files larger than memory: resident memory, reading rate, time of a step.

    python benchmarks/large.py --cells 100000 1000000 --folder SCRATCH [--genes 5000] [--steps 100]

For each size a screen is generated (5% of values stored, 200 perturbed conditions of 20 targets, cells in random order;
uncompressed CSR, 8 bytes a stored value: 2 GB for 1,000,000 × 5,000), then each stage runs in a process of its own, and
its peak resident memory is what the system says of that process. Disk: the screen, a prediction of its size, and as much
scratch space for each; files go when a size is done (--keep: they stay). Writes benchmarks/results/large.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scdfm.seeds import numpy_rng

TARGETS, CONDITIONS, CONTROLS, DENSITY, BLOCK = 20, 200, 0.05, 0.05, 10_000
RESULTS = Path(__file__).parent / "results" / "large.md"


def condition_names() -> list[str]:
    """Singles of 20 targets, then doubles, 200 in all."""
    names = [f"G{i:05d}" for i in range(TARGETS)]
    pairs = [f"{a}+{b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    return [*names, *pairs][:CONDITIONS]


def generate(path: Path, n_cells: int, n_genes: int, seed: int) -> None:
    """Write a screen block by block; each target shifts genes of its own."""
    import h5py
    from anndata.io import sparse_dataset, write_elem

    names = ["control", *condition_names()]
    codes = numpy_rng(seed, "labels").integers(1, len(names), n_cells)
    codes[numpy_rng(seed, "controls").random(n_cells) < CONTROLS] = 0
    base = numpy_rng(0, "genes").gamma(0.5, 2 * DENSITY, n_genes)
    shift = np.exp(numpy_rng(0, "shifts").normal(0, 0.5, (TARGETS, n_genes)))
    chance = np.array([base * np.prod([shift[int(t[1:])] for t in name.split("+") if t[0] == "G"], axis=0)
                       for name in names])  # fmt: skip
    chance = (chance * (DENSITY / chance.mean())).clip(0, 0.9).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        labels = pd.Categorical.from_codes(codes, categories=pd.Index(names))
        index = pd.Index([f"c{i}" for i in range(n_cells)])
        write_elem(file, "obs", pd.DataFrame({"perturbation": labels}, index=index))
        write_elem(file, "var", pd.DataFrame(index=[f"G{i:05d}" for i in range(n_genes)]))
        for start in range(0, n_cells, BLOCK):
            rng = numpy_rng(seed, "block", start)
            stored = (
                rng.random((min(BLOCK, n_cells - start), n_genes), dtype=np.float32)
                < chance[codes[start : start + BLOCK]]
            )
            block = sp.csr_matrix(stored, dtype=np.float32)
            block.data = np.log1p(5 * rng.standard_exponential(block.nnz, dtype=np.float32))
            if start == 0:
                write_elem(file, "X", block)
            else:
                sparse_dataset(file["X"]).append(block)


def fit_stage(folder: Path, steps: int) -> dict[str, Any]:
    """Read on disk, fit; the time of reading, of preparing, of a step, and of a batch."""
    import scdfm
    from scdfm.training.module import FlowModule

    start = time.perf_counter()
    cells = scdfm.read_cells(folder / "screen.h5ad", backed=True)
    read, moments = time.perf_counter() - start, []
    step = FlowModule.training_step
    FlowModule.training_step = lambda *given: (moments.append(time.perf_counter()), step(*given))[1]  # type: ignore[assignment]
    config = scdfm.Config.preset("default").with_settings(
        [f"training.max_steps={steps}", f"training.validate_every={steps}", "training.validation_cells=8",
         "split.validation_fraction=0.01"]
    )  # fmt: skip
    run = scdfm.fit(cells, config=config, out=folder / "run", progress=False)
    rate, batch = _batches(cells, run, config)
    gigabytes = (folder / "screen.h5ad").stat().st_size / 1e9
    return {"read s": read, "read GB/s": gigabytes / read, "prepare s": moments[0] - start - read,
            "step ms": 1e3 * float(np.median(np.diff(moments))), "batch ms": batch, "cells/s": rate}  # fmt: skip


def _batches(cells: Any, run: Any, config: Any, n: int = 200) -> tuple[float, float]:
    """Cells a second, and the milliseconds of a batch, that the sampler alone gives."""
    from scdfm.data import ConditionSampler, GenePanel

    sampler = ConditionSampler(
        cells, run.split, GenePanel(tuple(run.genes), 0), np.random.default_rng(0), vocabulary=run.vocabulary,
        n_conditions=config.training.conditions_per_batch, n_cells=config.training.cells_per_condition,
    )  # fmt: skip
    times = []
    for _ in range(n):
        start = time.perf_counter()
        batch = sampler.sample()
        times.append(time.perf_counter() - start)
    seconds = float(np.median(times))
    return 2 * len(batch.condition) / seconds, 1e3 * seconds


def predict_stage(folder: Path, conditions: int) -> dict[str, Any]:
    """Predict combinations of the targets to a file as they come, with a model and solver that cost next to nothing."""
    import itertools

    import scdfm

    if not (folder / "small" / "weights.safetensors").is_file():
        screen = scdfm.simulate(n_genes=2000, n_targets=TARGETS, n_doubles=0, cells_per_condition=8, truth_cells=8)
        config = scdfm.Config.preset("tiny").with_settings(
            ["training.max_steps=1", "training.warmup_steps=0", "panel.n_genes=2000", "graph.enabled=false",
             "model.width=8", "model.heads=1", "model.gene_heads=1", "model.layers=1", "flow.genes_per_step=100",
             "sampling.genes=chunks", "sampling.solver=euler", "sampling.steps=1", "split.kind=holdout",
             "split.held_out_targets=2"]
        )  # fmt: skip
        scdfm.fit(scdfm.read_cells(screen), config=config, out=folder / "small", progress=False)
    run = scdfm.Run.load(folder / "small")
    names = run.manifest.targets
    asked = ["+".join(chosen) for n in (2, 3, 4) for chosen in itertools.combinations(names, n)][:conditions]
    out = folder / f"predicted{conditions}.h5ad"
    start = time.perf_counter()
    written = run.predict_to(out, asked, n_cells=64, overwrite=True)
    seconds = time.perf_counter() - start
    return {"cells": written.n_cells, "file GB": out.stat().st_size / 1e9, "cells/s": written.n_cells / seconds}


def evaluate_stage(folder: Path) -> dict[str, Any]:
    """Score a prediction as large as the screen."""
    import scdfm

    start = time.perf_counter()
    table = scdfm.evaluate(folder / "claim.h5ad", folder / "screen.h5ad", backed=True, check_scale=False)
    return {"evaluate s": time.perf_counter() - start, "scores": len(table)}


def run_stage(arguments: list[str]) -> dict[str, Any]:
    """A stage in a process of its own: what it reports, its peak resident memory and its time."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report | {"wall s": time.perf_counter() - start}


def measure(n_cells: int, args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Every stage at one size."""
    folder = args.folder / f"large-{n_cells}"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "run", ignore_errors=True)
    rows = []
    for name, seed in (("screen", 0), ("claim", 1)):
        wanted = name == "screen" or "evaluate" in args.stages
        if wanted and not (folder / f"{name}.h5ad").is_file():
            generate(folder / f"{name}.h5ad", n_cells, args.genes, seed)
    stages = {"fit": [["--steps", str(args.steps)]], "predict": [["--conditions", str(n)] for n in args.conditions],
              "evaluate": [[]]}  # fmt: skip
    for stage in args.stages:
        for options in stages[stage]:
            found = run_stage(["--stage", stage, "--folder", str(folder), *options])
            rows.append((" ".join([stage, *options]).replace("--", ""), found))
            print(n_cells, rows[-1], flush=True)
    if not args.keep:
        shutil.rmtree(folder)
    return rows


def main() -> None:
    """Measure every size and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--genes", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--conditions", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", default=["fit", "predict", "evaluate"])
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--stage", choices=["fit", "predict", "evaluate"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        os.environ.setdefault("TMPDIR", str(args.folder))
        found = (fit_stage(args.folder, args.steps) if args.stage == "fit" else
                 predict_stage(args.folder, args.conditions[0]) if args.stage == "predict" else
                 evaluate_stage(args.folder))  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"peak GiB": peak, **found}))
        return
    lines = [f"# Files larger than memory\n{datetime.date.today()}, {platform.processor() or platform.machine()}, "
             f"{os.cpu_count()} shared cores. `python benchmarks/large.py`, {args.genes} genes, {args.steps} steps.\n",
             "| cells | stage | peak resident GiB | wall s | more |\n|---:|---|---:|---:|---|"]  # fmt: skip
    for n_cells in args.cells:
        for stage, found in measure(n_cells, args):
            more = ", ".join(f"{name} {value:.3g}" for name, value in found.items()
                             if name not in ("peak GiB", "wall s"))  # fmt: skip
            lines.append(f"| {n_cells:,} | {stage} | {found['peak GiB']:.2f} | {found['wall s']:.0f} | {more} |")
            args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
