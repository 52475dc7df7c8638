"""A run carried to a second draw of its screen: error against the number of measured conditions.

    python benchmarks/finetune.py FIRST.h5ad SECOND.h5ad [--seeds 3] [--measured 10,20,40] [--out DIR]

FIRST and SECOND are two draws of norman-like: the same effects, other cells.
The first run is fitted on half of the targets, alone and together. The second screen has a random 60% of the first one's
genes and as many others, and a few measured conditions, singles and doubles of any target. Scored are 150 conditions of
the second screen that nobody measured there, on the genes of both, against the means of its cells: a fresh fit, a fit
--from the first run, and the first run as it is, with the second screen's control cells. Preset instant: no network is
trained. Fits are kept in --out, so the command can be repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import scdfm
from scdfm.data import CONTROL, CellTable, Split, targets
from scdfm.data.stored import in_memory, subset
from scdfm.files import write_text
from scdfm.run.extrapolation import unknown
from scdfm.seeds import numpy_rng
from screens import RESULTS, heading

SCORED, CELLS = 150, 64
FRESH, CARRIED, AS_IT_IS, NO_CHANGE = "fresh fit", "fit --from", "the first run as it is", "no change"
Row = tuple[int, int, str, str, float, float]
"""Measured conditions, seed, model, condition, L2, Pearson Δ."""


def of_genes(cells: CellTable, genes: list[str]) -> CellTable:
    """The table on some genes."""
    columns = np.sort(cells.columns(genes))
    return replace(cells, X=in_memory(subset(cells.X, None, columns)), genes=cells.genes[columns])


def fitted(
    cells: CellTable, train: list[str], config: scdfm.Config, out: Path, start: scdfm.Run | None = None
) -> scdfm.Run:
    """The run in `out`, fitted on the conditions `train` unless it is there."""
    kept = cells.select([CONTROL, *train])
    split = Split("named", 0, tuple(train), (), ())
    return scdfm.fit(kept, split, config, out=out, resume=True, progress=False, start_from=start)


def errors(
    run: scdfm.Run, names: list[str], cells: CellTable, genes: list[str], seed: int
) -> dict[str, tuple[float, float]]:
    """By condition that the run can predict from the controls of `cells`: L2 of means, correlation of shifts."""
    asked = [name for name in names if name not in unknown(run.encoder, names)]
    table = of_genes(cells.select([CONTROL]), [gene for gene in run.genes if gene in set(cells.genes.tolist())])
    lacking = not set(run.genes) <= set(table.genes.tolist())
    found = run.predict(asked, table, n_cells=CELLS, seed=seed, fill_genes=lacking)
    columns = cells.columns(genes)
    control, scored = cells.mean(CONTROL)[columns], {}
    for name in asked:
        mean = np.asarray(found[found.obs[run.manifest.perturbation_key] == name, genes].X.mean(0)).ravel()
        real = cells.mean(name)[columns]
        scored[name] = (float(np.linalg.norm(mean - real)), float(np.corrcoef(mean - control, real - control)[0, 1]))
    return scored


def table(rows: list[Row]) -> str:
    """Means over conditions, then over seeds, with the deviation between seeds."""
    frame = pd.DataFrame(rows, columns=["measured", "seed", "model", "condition", "l2", "pearson"])
    lines = ["| measured conditions | model | L2 ↓ | Pearson Δ ↑ | conditions |", "|---:|---|---:|---:|---:|"]
    for (measured, model), part in frame.groupby(["measured", "model"], sort=False):
        by_seed = part.groupby("seed")[["l2", "pearson"]].mean()
        n = part.groupby("seed").size().mean()
        lines.append(
            f"| {measured} | {model} | {by_seed['l2'].mean():.3f} ± {by_seed['l2'].std():.3f} | "
            f"{by_seed['pearson'].mean():.3f} ± {by_seed['pearson'].std():.3f} | {n:.0f} |"
        )
    return "\n".join(lines)


def _shared(n_genes: int) -> int:
    """Genes that two screens of `n_genes` share: 60%."""
    return n_genes - round(0.4 * n_genes)


def one_seed(seed: int, both: Sequence[scdfm.CellTable], args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """The errors of every model for each number of measured conditions, and what the earlier means were worth."""
    rng = numpy_rng(seed, "finetune")
    config = scdfm.Config.preset("instant").updated(
        {"seed": seed, "graph": {"enabled": False}, "panel": {"n_genes": args.genes}}
    )
    drawn = rng.permutation(both[0].genes)[: 2 * args.genes - _shared(args.genes)].tolist()
    firsts, seconds = drawn[: args.genes], drawn[args.genes - _shared(args.genes) :]
    shared = [gene for gene in firsts if gene in set(seconds)]
    first, second = of_genes(both[0], firsts), of_genes(both[1], seconds)
    names = [name for name in first.conditions if name != CONTROL]
    every = sorted({target for name in names for target in targets(name)})
    known = set(rng.permutation(every)[: len(every) // 2].tolist())
    trained = [name for name in names if known.issuperset(targets(name))]
    start = fitted(first, trained, config, args.out / f"first_{seed}")
    order = rng.permutation(names).tolist()
    scored, rest = sorted(order[:SCORED]), order[SCORED:]
    control = second.mean(CONTROL)[second.columns(shared)]
    rows: list[Row] = []
    worth: list[str] = []
    for measured in map(int, args.measured.split(",")):
        chosen = sorted(rest[:measured])
        runs = {
            FRESH: fitted(second, chosen, config, args.out / f"fresh_{seed}_{measured}"),
            CARRIED: fitted(second, chosen, config, args.out / f"carried_{seed}_{measured}", start),
            AS_IT_IS: start,
        }
        found = {model: errors(run, scored, second, shared, seed) for model, run in runs.items()}
        common = sorted(set.intersection(*map(set, found.values())))
        for model, by_name in found.items():
            rows += [(measured, seed, model, name, *by_name[name]) for name in common]
        for name in common:
            real = second.mean(name)[second.columns(shared)]
            rows.append((measured, seed, NO_CHANGE, name, float(np.linalg.norm(real - control)), np.nan))
        worth.append(f"{runs[CARRIED].manifest.lineage[0].worth:g}")
    return rows, worth


def main() -> None:
    """Fit, carry, score; write one page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("first", type=Path)
    options.add_argument("second", type=Path)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--measured", default="10,20,40")
    options.add_argument("--genes", type=int, default=600, help="genes of each screen, drawn from the file")
    options.add_argument("--out", type=Path, default=Path("runs/finetune"))
    options.add_argument("--results", type=Path, default=RESULTS)
    args = options.parse_args()
    both = [scdfm.read_cells(path) for path in (args.first, args.second)]
    rows: list[Row] = []
    worth: list[str] = []
    for seed in range(args.seeds):
        scored, carried = one_seed(seed, both, args)
        rows += scored
        worth += carried
    text = (
        f"{args.genes} genes each, {_shared(args.genes)} of them in both; the first run knows half of the targets. Mean "
        f"over the conditions that all three can predict, of {SCORED} that the second screen did not measure, on the genes "
        "of both; ± is the deviation between seeds. Preset instant. Cells that an earlier mean was worth at most, by "
        f"seed and number of measured conditions: {', '.join(worth)} (1e+09: all of its own)."
    )
    page = "\n".join([*heading("A run carried to a second draw of its screen"), text, "", table(rows), ""])
    args.results.mkdir(parents=True, exist_ok=True)
    write_text(args.results / "finetune.md", page)
    print(page)


if __name__ == "__main__":
    main()
