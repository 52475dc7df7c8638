"""How cost grows with the number of conditions, and of genes: processor seconds and peak memory of each stage.

    python benchmarks/conditions.py [--conditions 100 300 1000] [--genes 500] [--stages prior fit predict evaluate screen]
    python benchmarks/conditions.py --conditions 20 --genes 1000 4000 18533

A tenth of the cells' values are above 0. Every size runs in a process of its own, with one thread. Fits are of the preset
`instant`: half of the conditions are single targets, half pairs of them, each of 10 cells; 4 cells a condition are
predicted. An evaluation scores pairs beside the rules of half as many trained singles: files of as many measured and
predicted cells (`--cells`), all default metrics, tables and report, as `scdfm evaluate` does. A screen holds the pairs of
measured singles.
Writes conditions.md; what is measured is kept in conditions.json: repeat the command to go on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scdfm
from scdfm.files import write_json, write_text
from scdfm.prior import learn_prior
from scdfm.report import evaluate_files
from scdfm.seeds import numpy_rng
from speed import hardware

RESULTS = Path(__file__).resolve().parent / "results"
STAGES = ("prior", "fit", "predict", "evaluate", "screen")
CELLS, PREDICTED = 10, 4


def names_of(n: int) -> list[str]:
    """Half singles, half pairs of neighbours."""
    singles = [f"g{i}" for i in range(-(-n // 2))]
    return singles + [f"{a}+{b}" for a, b in zip(singles, singles[1:] + singles[:1], strict=True)][: n // 2]


def table(n: int, n_genes: int) -> scdfm.CellTable:
    """Random cells of control and n conditions."""
    labels = ["control"] * 200 + [name for name in names_of(n) for _ in range(CELLS)]
    return scdfm.read_cells(labelled(labels, n_genes, 0), "perturbation")


def labelled(labels: list[str], n_genes: int, seed: int) -> ad.AnnData:
    """Random cells with these labels, made a few at a time, so that the peak of memory is not theirs."""
    rng = numpy_rng(seed, "conditions", "cells")
    blocks = []
    for start in range(0, len(labels), 512):
        shape = min(512, len(labels) - start), n_genes
        kept = rng.random(shape, dtype=np.float32) < 0.1
        blocks.append(sp.csr_matrix(np.where(kept, rng.random(shape, dtype=np.float32), 0)))
    X = sp.vstack(blocks, format="csr")
    obs = pd.DataFrame({"perturbation": labels}, index=np.arange(len(labels)).astype(str))
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


def targets_of(n: int, n_genes: int) -> list[str]:
    """Targets, most of which are genes, but never more than half of them: some metrics look at the others alone."""
    return [f"g{i}" if i < n_genes // 2 else f"t{i}" for i in range(n)]


def written(path: Path, labels: list[str], n_genes: int, seed: int) -> Path:
    """A file of random cells with these labels."""
    labelled(labels, n_genes, seed).write_h5ad(path)
    return path


def evaluated(n: int, n_genes: int, cells: int, out: Path) -> dict[str, dict[str, float]]:
    """The cost of scoring n pairs beside the rules of the singles' means."""
    singles = targets_of(max(n // 2, 5), n_genes)
    ahead = np.roll(singles, -1), np.roll(singles, -2)
    pairs = [f"{a}+{b}" for other in ahead for a, b in zip(singles, other, strict=True)][:n]
    labels = [name for name in pairs for _ in range(cells)]
    real = written(out / "real.h5ad", ["control"] * 200 + labels, n_genes, 0)
    predicted = written(out / "predicted.h5ad", labels, n_genes, 1)
    means = numpy_rng(0, "conditions").gamma(1, 0.05, (len(singles) + 1, n_genes))
    training = pd.DataFrame(means, index=["control", *singles], columns=[f"g{i}" for i in range(n_genes)])
    return {
        "evaluate": timed(
            lambda: evaluate_files(predicted, scdfm.read_cells(real, "perturbation"), out / "scores", training=training)
        )
    }


def screened(n: int, n_genes: int, cells: int, out: Path) -> dict[str, dict[str, float]]:
    """The cost of screening all pairs of measured singles, at least n conditions together."""
    singles = targets_of(int(np.ceil(np.sqrt(2 * n))), n_genes)
    labels = ["control"] * 200 + [name for name in singles for _ in range(10 * cells)]
    run = fitted(written(out / "real.h5ad", labels, n_genes, 0), n_genes, out)
    return {"screen": timed(lambda: scdfm.screen(run, out=out / "screen", targets=singles, cells=PREDICTED))}


def fitted(cells: Any, n_genes: int, out: Path) -> scdfm.Run:
    """A run of the preset `instant` on every condition."""
    config = scdfm.Config.preset("instant").updated({"panel": {"n_genes": n_genes}, "split": {"kind": "none"}})
    if isinstance(cells, Path):
        cells = scdfm.read_cells(cells, "perturbation")
    scdfm.fit(cells, config=config, out=out / "run", progress=False)
    return scdfm.Run.load(out / "run")


def measured(stage: str, n: int, n_genes: int, n_cells: int) -> dict[str, dict[str, float]]:
    """Processor seconds of a stage and of those that it needs, each with the peak memory of this process."""
    if stage == "prior":
        rng = numpy_rng(0, "conditions")
        shifts = rng.standard_normal((n, 30)) @ rng.standard_normal((30, n_genes)) * 0.1
        shifts += rng.standard_normal(shifts.shape) * 0.1
        genes = [f"g{i}" for i in range(n_genes)]
        return {stage: timed(lambda: learn_prior(names_of(n), shifts, [CELLS] * n, np.full(n_genes, 0.1), genes))}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if stage in ("evaluate", "screen"):
            return (evaluated if stage == "evaluate" else screened)(n, n_genes, n_cells, out)
        cells = table(n, n_genes)
        found = {"fit": timed(lambda: fitted(cells, n_genes, out))}
        if stage == "predict":
            run = scdfm.Run.load(out / "run")
            found[stage] = timed(lambda: run.predict_to(out / "p.h5ad", names_of(n), n_cells=PREDICTED))
        return found


def timed(work: Any) -> dict[str, float]:
    """Processor seconds, seconds and GiB at the peak."""
    begun, clock = time.process_time(), time.perf_counter()
    work()
    seconds = {"cpu": time.process_time() - begun, "seconds": time.perf_counter() - clock}
    return seconds | {"GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def row(stage: str, sizes: list[tuple[int, float, float]], what: str) -> str:
    """A row of the page: costs, the exponent over all points and of the last two, and memory."""
    x, seconds, memory = (np.array(column) for column in zip(*sizes, strict=True))
    slope = last = "–"
    if len(x) > 1:
        logs = np.log(x), np.log(np.maximum(seconds, 1e-3))
        slope = f"{np.polyfit(*logs, 1)[0]:.2f}"
        last = f"{(logs[1][-1] - logs[1][-2]) / (logs[0][-1] - logs[0][-2]):.2f}"
    shown = [", ".join(f"{size:,}" for size in x)]
    shown += [", ".join(f"{value:,.4g}" for value in column) for column in (seconds, memory)]
    return f"| {stage}, {what} | " + " | ".join([*shown, slope, last]) + " |"


def page(found: dict[str, dict[str, float]]) -> str:
    """Growth in conditions for each number of genes, and in genes for each number of conditions."""
    points = []
    for key, cost in found.items():
        name, n, genes, *cells = key.split()
        points.append((name + (f", {cells[0]} cells" if cells else ""), int(n), int(genes), cost))
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [f"# Growth in conditions and genes\n{hardware('cpu')}, one thread; {date}. Processor seconds; memory is the "
             "peak of the whole process.\n", "| stage | sizes | seconds | GiB | **exponent** | of the last two |",
             "|---|---|---|---|---:|---:|"]  # fmt: skip
    for stage in sorted({name for name, *_ in points}, key=lambda name: (STAGES.index(name.split(",")[0]), name)):
        own = [tuple(rest) for name, *rest in points if name == stage]
        groups = [
            [[point for point in own if point[at] == other] for other in sorted({point[at] for point in own})]
            for at in (1, 0)
        ]
        together = [point for group in groups[1] if len(group) > 1 for point in group]
        for group in groups[0]:
            if len(group) > 1 or group[0] not in together:
                lines.append(row(stage, sorted((n, c["cpu"], c["GiB"]) for n, _, c in group), f"{group[0][1]:,} genes"))
        for group in groups[1]:
            if len(group) > 1:
                sizes = sorted((genes, c["cpu"], c["GiB"]) for _, genes, c in group)
                lines.append(row(stage, sizes, f"{group[0][0]:,} conditions"))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, each in a process of its own, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conditions", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--genes", type=int, nargs="+", default=[500])
    parser.add_argument("--cells", type=int, default=CELLS, help="cells of a condition, of evaluate and screen")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        stage, n, genes, *cells = args.one.split()
        warnings.filterwarnings("ignore")
        print(json.dumps(measured(stage, int(n), int(genes), int(cells[0]) if cells else CELLS)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / "conditions.json"
    found: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    end = "" if args.cells == CELLS else f" {args.cells}"
    for key in (f"{stage} {n} {genes}{end}" for genes in args.genes for n in args.conditions for stage in args.stages):
        if key not in found:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
            command = [sys.executable, __file__, "--one", key]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            _, *size = key.split()
            for stage, cost in json.loads(done.stdout.splitlines()[-1]).items():
                found.setdefault(" ".join([stage, *size]), cost)
                print(stage, *size, cost, flush=True)
            write_json(record, found)
            write_text(args.out / "conditions.md", page(found))


if __name__ == "__main__":
    main()
