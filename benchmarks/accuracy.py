"""The presets beside their prior and every simple rule, on screens and splits that decide: means, and paired gains.

    python benchmarks/accuracy.py NORMAN_LIKE.h5ad [--norman PERTURBENCH.h5ad] [--size small] [--parts additive,holdout]

NORMAN_LIKE is a screen of singles and doubles, log1p, obs column `perturbation`; PERTURBENCH holds real Norman cells
(`dataset == "norman19"`). Parts: additive (folds 0-4), additive-paper (the same under protocol `paper`; small: fold
0), holdout (12 unseen targets, 3 draws; small: 1), combinations (folds 0-1; small: 0), norman (real cells, five
composed doubles), simulated (three screens with strong interactions; small: two). Every fit is a piece that is kept in
--out, and an interrupted one goes on: repeat the command, or give it --parts and --seeds, in pieces as short as they have
to be. --jobs runs as many parts at once, each on one thread (`--size small` on two cores: --jobs 2).
`--size small` has 300 genes, a narrow model, 300 steps and populations of 64 cells, solved in 4 evaluations. `paper` is
left out there: 300 steps are a starved fit of the published objective, which says nothing of the method.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

import scdfm
from norman_subset import TEST
from scdfm.benchmarking import Benchmark, Contender
from scdfm.data import named_split
from scdfm.data.conditions import targets
from scdfm.evaluation import LOWER_IS_BETTER
from scdfm.files import write_text
from scdfm.report import markdown
from scdfm.seeds import numpy_rng
from screens import RESULTS, gaps, gaps_table, pooled

METRICS = (
    "l2", "mse", "mae", "pearson_delta", "ds", "de_spearman", "pearson_delta_hat", "pearson_delta_hat_20", "energy",
    "variance_error", "zero_fraction_error", "wasserstein",
)  # fmt: skip
NARROW: dict[str, Any] = {
    "panel": {"n_genes": 300},
    "model": {"width": 32, "heads": 2, "layers": 2},
    "flow": {"genes_per_step": 100},
    "training": {"max_steps": 300, "validate_every": 100},
    "sampling": {"cells": 64, "steps": 1},
}


def contenders(size: str, max_steps: int | None) -> list[Contender]:
    """The presets `default` and `paper` at a size; at `small`, `default` alone."""
    presets = {name: scdfm.Config.preset(name) for name in ("default", "paper")}
    if size == "small":
        presets = {"default": presets["default"].updated(NARROW)}
    if max_steps:
        over = {"training": {"max_steps": max_steps, "validate_every": max_steps}}
        presets = {name: config.updated(over) for name, config in presets.items()}
    return [Contender(name, config) for name, config in presets.items()]


def studies(args: argparse.Namespace, models: list[Contender]) -> dict[str, Callable[[], list[Benchmark]]]:
    """What each part runs."""
    small = args.size == "small"

    def on(cells: Any, split: Any, folds: Sequence[int], name: str, protocol: Any = "scdfm") -> Benchmark:
        return scdfm.benchmark(
            cells, split, folds, range(args.seeds), out=args.out / name, models=models, protocol=protocol, resume=True
        )

    def simulated() -> list[Benchmark]:
        return [
            on(scdfm.read_cells(scdfm.simulate(interaction="strong", seed=seed)), "additive", [0], f"simulated{seed}")
            for seed in range(3 - small)
        ]

    def holdout() -> list[Benchmark]:
        cells = scdfm.read_cells(args.screen)
        return [on(cells, unseen_targets(cells, draw), [0], f"holdout{draw}") for draw in range(3 - 2 * small)]

    def norman() -> list[Benchmark]:
        if args.norman is None:
            sys.exit("part 'norman' needs the real cells: --norman PERTURBENCH.h5ad")
        cells = scdfm.read_cells(args.norman, subset={"dataset": "norman19"})
        return [on(cells, named_split(cells, TEST), [0], "norman")]

    return {
        "additive": lambda: [on(args.screen, "additive", range(5), "additive")],
        "additive-paper": lambda: [on(args.screen, "additive", range(5 - 4 * small), "additive-paper", "paper")],
        "holdout": holdout,
        "combinations": lambda: [on(args.screen, "combinations", range(2 - small), "combinations")],
        "norman": norman,
        "simulated": simulated,
    }


def unseen_targets(cells: scdfm.CellTable, draw: int) -> scdfm.Split:
    """12 targets held out with all their conditions, drawn among the measured genes; a tenth of the rest validates.

    Of a target that is no measured gene nothing is known, without features, unless some of its conditions train.
    """
    names, genes = [name for name in cells.conditions if name != "control"], set(cells.genes)
    candidates = sorted({part for name in names for part in targets(name)} & genes)
    held = set(numpy_rng(draw, "held out").choice(candidates, 12, replace=False).tolist())
    rest = [name for name in names if held.isdisjoint(targets(name))]
    told = held | {part for name in rest for part in targets(name)}
    test = tuple(name for name in names if name not in rest and set(targets(name)) <= told)
    sure = [name for name in rest if set(targets(name)) <= genes]
    kept = numpy_rng(draw, "validation").choice(sure, len(rest) // 10, replace=False).tolist()
    train = tuple(name for name in rest if name not in kept)
    return scdfm.Split("unseen targets", draw, train, tuple(kept), test)


def section(name: str, found: list[Benchmark]) -> str:
    """One part as Markdown: means with intervals, then paired differences, positive where the preset is better."""
    models = [contender.name for contender in found[0].plan.contenders]
    if len(found) == 1:
        summary = found[0].summary[found[0].summary["part"] == "all"]
        paired = gaps(found[0].scores[found[0].scores["beside"] == ""], models)
    else:
        summary, paired = pooled([one.scores for one in found], models)
    metrics = [metric for metric in METRICS if metric in set(summary["metric"])]
    return "\n".join(
        [f"## {name}", "", markdown(summary, metrics, intervals=True), "", "Paired by condition; positive is better:", "",
         gaps_table(paired, metrics), "", half_way(summary, metrics), ""]
    )  # fmt: skip


def half_way(summary: pd.DataFrame, metrics: Sequence[str]) -> str:
    """How far `default` stands between ridge (0) and the ceiling (1), by metric."""
    means = summary.pivot_table(index="model", columns="metric", values="mean")
    if not {"default", "ridge", "ceiling"} <= set(means.index):
        return ""
    way = (means.loc["default"] - means.loc["ridge"]) / (means.loc["ceiling"] - means.loc["ridge"])
    shares = ", ".join(f"{metric} {way[metric]:.2f}" for metric in metrics if pd.notna(way.get(metric)))
    return f"Way of `default` from ridge (0) to the ceiling (1): {shares}."


def side_by_side(parts: Sequence[str], jobs: int, out: Path) -> None:
    """Fit what the parts need in processes of one thread each, `jobs` at a time; their pages are scratch."""

    def one(part: str) -> int:
        command = [sys.executable, *sys.argv, "--jobs", "1", "--parts", part, "--results", str(out / "pages" / part)]
        return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode

    with ThreadPoolExecutor(jobs) as pool:
        failed = [part for part, code in zip(parts, pool.map(one, parts), strict=True) if code]
    if failed:
        sys.exit(f"part '{failed[0]}' failed, see above; what is finished is kept: repeat the command")


def main() -> None:
    """Run the parts asked for; write one page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("screen", type=Path)
    options.add_argument("--norman", type=Path)
    options.add_argument("--size", choices=("full", "small"), default="full")
    options.add_argument("--parts", help="parts, separated by commas (default: all)")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--max-steps", type=int)
    options.add_argument("--jobs", type=int, default=1, help="parts at once, each on one thread")
    options.add_argument("--out", type=Path)
    options.add_argument("--results", type=Path, default=RESULTS)
    args = options.parse_args()
    args.out = args.out or Path(f"runs/accuracy-{args.size}")
    models = contenders(args.size, args.max_steps)
    known = studies(args, models)
    parts = args.parts.split(",") if args.parts else [name for name in known if name != "norman" or args.norman]
    if unknown := [name for name in parts if name not in known]:
        options.error(f"part '{unknown[0]}': expected some of {', '.join(known)}")
    if args.jobs > 1:
        side_by_side(parts, args.jobs, args.out)
    args.results.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", "benchmarks/accuracy.py", *sys.argv[1:]])
    arrows = ", ".join(f"{metric} {'down' if metric in LOWER_IS_BETTER else 'up'}" for metric in METRICS)
    pages = [f"# Accuracy ({args.size})\n\n`{command}` (scdfm {scdfm.__version__})\n\nBetter is: {arrows}.\n"]
    for name in parts:
        pages.append(section(name, known[name]()))
        write_text(args.results / f"accuracy_{args.size}.md", "\n".join(pages))
    print("\n".join(pages))


if __name__ == "__main__":
    main()
