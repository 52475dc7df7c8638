"""Time and memory of protocol vcc2026 beside cell-eval2 0.20.0 on the same counts, and the difference of their values.

    python benchmarks/vcc2026.py --cell-eval PYTHON [--cells 24000 --genes 5000 --conditions 100] [--out FILE.md]

PYTHON is an interpreter that has cell-eval2 0.20.0 with pdex 0.3.0. Both read the same two files, one after the
other, each in a process of its own, and give what a scaled score needs: the metrics of the prediction, the mean
response and the replicate anchor (five splits). scdfm also scores `no change`. Wall and processor seconds include
reading and compiling; memory is the peak of the process.
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

USAGE = """
def used(start, **more):
    import json, resource, time
    usage = resource.getrusage(resource.RUSAGE_SELF)
    status = open("/proc/self/status").read()  # ru_maxrss would count the parent's memory before exec
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    wall = time.perf_counter() - start
    print(json.dumps({"wall": wall, "processor": usage.ru_utime + usage.ru_stime, "memory": peak, **more}))
"""
OURS = (
    """
import time
start = time.perf_counter()
from scdfm.evaluation import evaluate
table = evaluate("pred.h5ad", "real.h5ad", "non-targeting", "vcc2026", perturbation_key="target")
table.to_csv("ours.csv", index=False)
"""
    + USAGE
    + "used(start)"
)
THEIRS = (
    """
import time
start = time.perf_counter()
import anndata
from cell_eval2.anchor import compute_replicate_anchor
from cell_eval2.baseline import build_generic_baseline
from cell_eval2.config import EvalConfig
from cell_eval2.run import aggregate_metrics, compute_metrics
config = EvalConfig.from_preset("vcc2026")
predicted, real = anndata.read_h5ad("pred.h5ad"), anndata.read_h5ad("real.h5ad")
results = compute_metrics(predicted, real, config=config)
scored = time.perf_counter() - start
results.write_csv("theirs.csv")
build_generic_baseline(real, config=config, allow_degenerate=True).results.write_csv("theirs_baseline.csv")
compute_replicate_anchor(real, config=config)[1].write_csv("theirs_anchor.csv")
"""
    + USAGE
    + "used(start, scored=scored)"
)


def cells(rng: np.random.Generator, rate: np.ndarray, n: int) -> sparse.csr_matrix:
    """Counts of `n` over-dispersed cells [n, G] of mean `rate` [G]."""
    spread = rng.lognormal(0, 0.35, (n, 1)) * rng.gamma(4, 0.25, (n, len(rate)))
    return sparse.csr_matrix(rng.poisson(rate * spread).astype(np.float32))


def write_pair(folder: Path, n_cells: int, n_genes: int, n_conditions: int, seed: int = 0) -> int:
    """A sixth of the cells are controls; the prediction misses a part of each effect. Returns the stored values."""
    rng = np.random.default_rng(seed)
    base = rng.lognormal(-1.2, 1.5, n_genes)
    genes = [f"G{i:05d}" for i in range(n_genes)]
    targets = rng.choice(n_genes, n_conditions, replace=False)
    effects = rng.normal(0, 1.0, (n_conditions, n_genes)) * (rng.random((n_conditions, n_genes)) < 0.1)
    effects[np.arange(n_conditions), targets] = -2
    wrong = rng.normal(0, 0.5, effects.shape) * (rng.random(effects.shape) < 0.03)
    n_controls = n_cells // 6
    each = (n_cells - n_controls) // n_conditions
    labels = ["non-targeting"] * n_controls + [genes[t] for t in targets for _ in range(each)]
    stored = 0
    for name, shift in (("real", effects), ("pred", 0.6 * effects + wrong)):
        rates = [base * np.exp(one) for one in shift]
        X = sparse.vstack([cells(rng, base, n_controls), *(cells(rng, rate, each) for rate in rates)], format="csr")
        obs = pd.DataFrame({"target": labels}, index=[f"c{i}" for i in range(len(labels))])
        ad.AnnData(X, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(folder / f"{name}.h5ad")
        stored += X.nnz
    return stored


def run(python: str, script: str, folder: Path) -> dict[str, float]:
    """The last line that `script` printed, as JSON."""
    done = subprocess.run(
        [python, "-W", "ignore", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def difference(folder: Path) -> float:
    """The largest absolute difference between the two, over every value of prediction and mean response."""
    ours = pd.read_csv(folder / "ours.csv")
    worst = 0.0
    for model, file in (("model", "theirs.csv"), ("mean response", "theirs_baseline.csv")):
        theirs = pd.read_csv(folder / file).set_index(["perturbation", "metric"])["value"]
        own = ours[ours["model"] == model].set_index(["condition", "metric"])["value"].reindex(theirs.index)
        if not (own.isna() == theirs.isna()).all():
            raise SystemExit(f"{model}: other values are undefined")
        worst = max(worst, float((own - theirs).abs().max()))
    anchor = pd.read_csv(folder / "theirs_anchor.csv").set_index("metric")["replicate"]
    own = ours[ours["model"] == "replicate"].set_index("metric")["value"].reindex(anchor.index)
    return max(worst, float((own - anchor).abs().max()))


def main() -> None:
    """Write the pair, run both, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell-eval", required=True, help="interpreter with cell-eval2 0.20.0")
    parser.add_argument("--cells", type=int, default=24_000)
    parser.add_argument("--genes", type=int, default=5_000)
    parser.add_argument("--conditions", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = write_pair(folder, options.cells, options.genes, options.conditions)
        found = {
            "scdfm": run(sys.executable, OURS, folder),
            "cell-eval2 0.20.0": run(options.cell_eval, THEIRS, folder),
        }
        gap = difference(folder)
    ours, theirs = found.values()
    lines = [
        f"{options.cells:,} cells × {options.genes:,} genes × {options.conditions} perturbations a side, "
        f"{stored / 1e6:.0f} million counts in both",
        "",
        "| | wall s | processor s | peak memory GiB |",
        "|---|---:|---:|---:|",
        *(
            f"| {tool} | {row['wall']:.0f} | {row['processor']:.0f} | {row['memory'] / 2**30:.2f} |"
            for tool, row in found.items()
        ),
        f"| ratio | {theirs['wall'] / ours['wall']:.1f} | {theirs['processor'] / ours['processor']:.1f} "
        f"| {theirs['memory'] / ours['memory']:.1f} |",
        "",
        f"cell-eval2 had the prediction's own metrics after {theirs['scored']:.0f} s.",
        f"Largest difference of a value: {gap:.1e}.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
