"""Time and memory of one full evaluation, beside cell-eval 0.8.2's profile `full` on the same cells.

    python benchmarks/evaluation.py [--cells 24000 --genes 5000 --conditions 100] [--cell-eval PYTHON]

PYTHON is an interpreter that has cell-eval 0.8.2 (and igraph and leidenalg, which its full profile needs). Both run
on the same two files, one after the other, each in a process of its own; wall and processor seconds include
reading. `data` is the size of both sparse matrices in memory. scdfm's run is its default: 14 metrics, five
baselines from a table of training means, ceiling and duplicate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

OURS = """
import json, resource, sys, time
start = time.perf_counter()
import anndata
from scdfm.evaluation import evaluate
table = evaluate("predicted.h5ad", "real.h5ad", training=anndata.read_h5ad("training.h5ad").to_df())
wall, usage = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
status = open("/proc/self/status").read()  # ru_maxrss would count the parent's memory before exec
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps({"wall": wall, "processor": usage.ru_utime + usage.ru_stime, "memory": peak,
                  "values": len(table)}))
"""
THEIRS = """
import json, resource, sys, time
start = time.perf_counter()
from cell_eval import MetricsEvaluator
evaluator = MetricsEvaluator(adata_pred="predicted.h5ad", adata_real="real.h5ad", control_pert="control",
                             pert_col="perturbation", num_threads=-1, outdir="cell-eval")
results, _ = evaluator.compute(profile="full")
wall, usage = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
status = open("/proc/self/status").read()  # ru_maxrss would count the parent's memory before exec
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps({"wall": wall, "processor": usage.ru_utime + usage.ru_stime, "memory": peak,
                  "values": results.height * (results.width - 1)}))
"""


def cells(rng: np.random.Generator, rate: np.ndarray, n: int) -> sparse.csr_matrix:
    """`n` over-dispersed cells [n, G] of mean `rate`, log1p of counts per 10,000."""
    spread = rng.lognormal(0, 0.35, (n, 1)) * rng.gamma(4, 0.25, (n, len(rate)))
    counts = rng.poisson(rate * spread).astype(np.float32)
    scaled = sparse.csr_matrix(np.log1p(counts * (1e4 / counts.sum(1, keepdims=True))), dtype=np.float32)
    return scaled


def write_screen(folder: Path, n_cells: int, n_genes: int, n_conditions: int, seed: int = 0) -> int:
    """Real and predicted cells of `n_conditions` doubles, and training means; returns the matrices' bytes."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(0.35, 1.0, n_genes)
    base *= 4000 / base.sum()
    n_control = n_cells // 6
    each = (n_cells - n_control) // n_conditions
    genes = [f"G{i:04d}" for i in range(n_genes)]
    names = [f"G{2 * k:04d}+G{2 * k + 1:04d}" for k in range(n_conditions)]
    effects = rng.normal(0, 0.5, (2 * n_conditions, n_genes)) * (rng.random((2 * n_conditions, n_genes)) < 0.1)
    labels = ["control"] * n_control + [name for name in names for _ in range(each)]
    size = 0
    for file, strength in (("real", 1.0), ("predicted", 0.6)):
        shifts = [strength * (effects[2 * k] + effects[2 * k + 1]) for k in range(n_conditions)]
        blocks = [cells(rng, base, n_control), *(cells(rng, base * np.exp(shift), each) for shift in shifts)]
        X = sparse.csr_matrix(sparse.vstack(blocks))
        size += X.data.nbytes + X.indices.nbytes + X.indptr.nbytes
        obs = pd.DataFrame({"perturbation": pd.Categorical(labels)}, index=[f"c{i}" for i in range(len(labels))])
        ad.AnnData(X, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(folder / f"{file}.h5ad")
    singles = [np.asarray(cells(rng, base * np.exp(effect), 50).mean(0)).ravel() for effect in effects]
    obs = pd.DataFrame(index=[f"G{k:04d}" for k in range(2 * n_conditions)])
    ad.AnnData(np.array(singles), obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(folder / "training.h5ad")
    return size


def measured(python: str, script: str, folder: Path) -> dict[str, float]:
    """What `script` prints in its last line, run by `python` in `folder`."""
    run = subprocess.run([python, "-c", script], cwd=folder, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    return dict(json.loads(run.stdout.splitlines()[-1]))


def main() -> None:
    """Write the screen, run both, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("cells", 24_000), ("genes", 5_000), ("conditions", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cell-eval", help="interpreter with cell-eval 0.8.2; left out: scdfm alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_screen(folder, args.cells, args.genes, args.conditions)
        print(f"{args.cells} cells x {args.genes} genes x {args.conditions} conditions, data {size / 1e9:.2f} GB")
        runs = {"scdfm": measured(sys.executable, OURS, folder)}
        if args.cell_eval:
            runs["cell-eval 0.8.2 full"] = measured(args.cell_eval, THEIRS, folder)
    for name, run in runs.items():
        print(
            f"{name:22s} wall {run['wall']:7.1f} s  processor {run['processor']:7.1f} s  "
            f"memory {run['memory'] / 1e9:5.2f} GB ({run['memory'] / size:.2f} x data)  {run['values']:.0f} values"
        )
    if len(runs) == 2:
        ours, theirs = runs.values()
        print(
            f"wall ratio {theirs['wall'] / ours['wall']:.1f}, processor ratio {theirs['processor'] / ours['processor']:.1f}"
        )


if __name__ == "__main__":
    main()
