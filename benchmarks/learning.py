"""Learning curves at the small size: how far each source gets with its steps, beside additive, ridge, prior and ceiling.

    python benchmarks/learning.py NORMAN_LIKE.h5ad [--real PERTURBENCH.h5ad] [--screens norman-like,norman,mcfaline]
        [--sources gaussian,prior] [--ablation] [--seeds 3] [--steps 12000] [--patience 0] [--set section.key=value ...]
        [--out DIR] [--show] [--jobs N [--seconds S]]

Screens: norman-like (additive fold 0), and of PERTURBENCH the real Norman cells (five composed doubles held out) and three
glioblastoma lines (30% of the pairs of a line and a gene held out). `gaussian` is the published objective: from noise, as
much of it as the size allows; `prior` is the preset default. Both at 300 genes, width 64, 2 layers, 100 genes a step, 8
conditions × 6 cells. Each seed is one long fit that is validated every 500 steps; its best weights predict the test.
A curve is of one cosine of the learning rate, so its middle is worse than a fit of so many steps would be.
--ablation adds the published objective without MMD, without graph, and with softmax attention. --patience N stops a fit
after N validations without a better one. --set puts options over those of every fit; give them an --out of their own.
An interrupted fit goes on where it was: repeat the command. --show fits nothing and writes the page of what is there,
unfinished curves too. --jobs N first fits N pieces at once, in a process each (a GPU has room for many of this size);
with --seconds these fits are stopped after so long, and nothing is scored: repeat the command without it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

import mcfaline
import scdfm
from accuracy import METRICS
from norman_subset import TEST
from scdfm.benchmarking import Contender, Piece, Plan
from scdfm.benchmarking.pieces import RECORD, RUN, SCORES, fitted
from scdfm.benchmarking.plan import BASELINES_ALONE
from scdfm.benchmarking.tables import summarise
from scdfm.config import SplitConfig
from scdfm.data import CellTable, Split, named_split
from scdfm.evaluation.baselines import ADDITIVE, RIDGE
from scdfm.files import write_text
from scdfm.report import markdown
from scdfm.reproduction import VARIANTS
from scdfm.run.folder import LOG
from scdfm.training.validation import SCORES as VALIDATED
from screens import RESULTS, gaps, gaps_table, heading

SIZE: dict[str, Any] = {
    "panel": {"n_genes": 300},
    "model": {"width": 64, "heads": 2, "layers": 2},
    "flow": {"genes_per_step": 100},
    "training": {
        "conditions_per_batch": 8, "cells_per_condition": 6, "learning_rate": 2e-3, "warmup_steps": 50,
        "ema_decay": 0.999, "validate_every": 500, "validation_cells": 32, "validation_budget": 384,
    },
    "sampling": {"cells": 64, "steps": 2},
}  # fmt: skip
"""Pinned, so that a curve stays what it is when presets move on."""
SOURCES: dict[str, dict[str, Any]] = {
    "gaussian": {"flow": {"source": "gaussian", "pairing": "random"}, "sampling": {"steps": 4, "shrink": False}},
    "prior": {"flow": {"source": "prior"}},
}
ALONE = "prior alone"
"""The closed-form prior, no step taken."""
SCREENS = ("norman-like", "norman", "mcfaline")


def contenders(sources: list[str], args: argparse.Namespace) -> list[Contender]:
    """What is fitted: a source each, and the ablations of the published objective."""
    length = {"training": {"max_steps": args.steps, "patience": args.patience}}
    size = scdfm.Config.preset("default").updated(SIZE).updated(length).with_settings(args.set)
    alone = size.updated(SOURCES["prior"]).updated({"training": {"max_steps": 0}})
    made = [Contender(f"source {source}", size.updated(SOURCES[source])) for source in sources]
    made.append(Contender(ALONE, alone))
    published = size.updated(SOURCES["gaussian"])
    without = {name: over for name, over in VARIANTS.items() if over} if args.ablation else {}
    return made + [Contender(f"gaussian {name}", published.updated(over)) for name, over in without.items()]


def read(screen: str, args: argparse.Namespace) -> tuple[CellTable, SplitConfig | Split]:
    """A screen's cells, and what of them is held out."""
    if screen == "norman-like":
        return scdfm.read_cells(args.screen), SplitConfig(kind="additive")
    if screen == "norman":
        cells = scdfm.read_cells(args.real, subset={"dataset": "norman19"})
        return cells, named_split(cells, TEST)
    return mcfaline.read(args.real), SplitConfig(kind="covariate", covariate=mcfaline.KEY)


def fit_one(screen: str, name: str, seed: int, models: list[Contender], folder: Path, args: argparse.Namespace) -> None:
    """The fit of one piece, left where `run` looks for it."""
    cells, split = read(screen, args)
    model = next(one for one in models if one.name == name)
    piece = Piece(0, model, seed)
    fitted(Plan(split, (0,), (seed,), (model,)), piece, cells, folder / piece.folder / RUN)


def fit_beside(screens: list[str], models: list[Contender], args: argparse.Namespace) -> None:
    """Every fit in a process of its own, `--jobs` at once; after `--seconds` they stop and keep their state."""
    for screen in screens:  # the benchmark begins its folder, with what needs no fit
        run(screen, BASELINES_ALONE, args.out / f"{screen}-{args.steps}", args)
    end = time.monotonic() + (float("inf") if args.seconds is None else args.seconds)
    todo = [(screen, model.name, seed) for screen in screens for seed in range(args.seeds) for model in models]
    running: dict[subprocess.Popen[bytes], str] = {}
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    while (todo or running) and time.monotonic() < end:
        while todo and len(running) < args.jobs:
            piece = "|".join(map(str, todo.pop(0)))
            command = [sys.executable, __file__, *sys.argv[1:], "--piece", piece]
            running[subprocess.Popen(command, env=one_thread)] = piece
        for process in [one for one in running if one.poll() is not None]:
            print(f"{running.pop(process)}: ended with {process.returncode}", flush=True)
        time.sleep(0.2)
    for process in running:
        process.terminate()
    for process, piece in running.items():
        print(f"{piece}: stopped with {process.wait()}", flush=True)


def run(screen: str, models: list[Contender] | str, folder: Path, args: argparse.Namespace) -> None:
    """Fit and score one screen, or go on with it."""
    cells, split = read(screen, args)
    scdfm.benchmark(cells, split, [0], args.seeds, out=folder, models=models, metrics=METRICS, resume=True)


def curves(folder: Path) -> pd.DataFrame:
    """The validations of every fit in a benchmark's folder, finished or not: model, seed, step, scores."""
    found = [pd.DataFrame(columns=["model", "seed", "step", *VALIDATED])]
    for path in sorted(folder.glob(f"fold0/*-seed*/{RUN}/{LOG}")):
        name, _, seed = path.parents[1].name.rpartition("-seed")
        # A fit of an older version lacks scores that came later.
        log = pd.read_csv(path).reindex(columns=["step", *VALIDATED]).dropna(subset=VALIDATED, how="all")
        found.append(log.assign(model=name.replace("_", " "), seed=int(seed)))
    return pd.concat([table for table in found if len(table)] or found, ignore_index=True)


def curves_table(table: pd.DataFrame) -> str:
    """Scores at steps 500 · 2ⁿ and at each fit's last validation, means over the seeds that got there."""
    lines = ["| model | step | seeds | " + " | ".join(VALIDATED) + " |", "|---|---:|---:|" + "---:|" * len(VALIDATED)]
    for model, part in table.groupby("model", sort=False):
        last = part["step"].max()
        shown = [step for step in sorted(part["step"].unique()) if _is_double(int(step)) or step == last]
        for step in shown:
            at = part[part["step"] == step]
            values = " | ".join(f"{at[name].mean():.4g}".replace("nan", "–") for name in VALIDATED)
            lines.append(f"| {model} | {int(step):,} | {len(at)} | {values} |")
    return "\n".join(lines)


def parts_table(table: pd.DataFrame) -> str:
    """What each part of the published objective is worth in validation: without it less with it, paired by seed.

    Mean and standard error over the seeds that have both, at steps 500 · 2ⁿ and the last that all of them reached. Empty
    where nothing was left out.
    """
    named = table.set_index(["model", "seed", "step"])[list(VALIDATED)]
    without = [name for name in table["model"].unique() if name.startswith("gaussian ")]
    if not without or "source gaussian" not in set(table["model"]):
        return ""
    whole = named.loc["source gaussian"]
    lines = ["| without | step | seeds | " + " | ".join(VALIDATED) + " |", "|---|---:|---:|" + "---:|" * len(VALIDATED)]
    for name in without:
        paired = (named.loc[name] - whole).dropna()
        reached = paired.groupby(level="step").size()
        last = reached.index[reached == reached.max()].max()
        for step in (step for step in reached.index if step <= last and (_is_double(step) or step == last)):
            at = paired.xs(step, level="step")
            values = " | ".join(f"{at[score].mean():+.4f} ± {at[score].sem():.4f}" for score in VALIDATED)
            lines.append(f"| {name.removeprefix('gaussian ')} | {step:,} | {len(at)} | {values} |")
    return "\n".join(lines)


def _is_double(step: int) -> bool:
    rounds = step // SIZE["training"]["validate_every"]
    return step % SIZE["training"]["validate_every"] == 0 and rounds & (rounds - 1) == 0


def tested(folder: Path) -> pd.DataFrame:
    """The long table of the finished pieces of a benchmark's folder."""
    found = [path.parent / SCORES for path in sorted(folder.glob(f"fold0/*/{RECORD}"))]
    options: dict[str, Any] = {"keep_default_na": False, "na_values": {"value": [""]}}
    tables = [pd.read_csv(path, **options) for path in found]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def section(screen: str, folder: Path, models: list[str], steps: int) -> str:
    """One screen as Markdown: curves, test scores, paired differences, and what is not finished."""
    table, scores = curves(folder), tested(folder)
    reached = table.groupby(["model", "seed"])["step"].max()
    done = set(zip(scores["model"], scores["seed"], strict=True)) if len(scores) else set()
    missing = [f"{model}, seed {seed}: {int(step):,} of {steps:,} steps" for (model, seed), step in reached.items()
               if (model, seed) not in done]  # fmt: skip
    lines = [f"## {screen}", "", "Validation:", "", curves_table(table), ""]
    if parts := parts_table(table):
        lines += ["Without a part less with it, paired by seed, mean ± standard error:", "", parts, ""]
    if missing:
        lines += ["Not finished: " + "; ".join(missing) + ".", ""]
    if len(scores):
        scores = scores[scores["beside"] == ""]
        summary = summarise(scores)
        metrics = [metric for metric in METRICS if metric in set(summary["metric"])]
        lines += ["Test:", "", markdown(summary, metrics, intervals=True), ""]
        if fitted := [name for name in models if name in set(scores["model"])]:
            paired = gaps_table(telling(gaps(scores, fitted)), metrics)
            lines += ["Paired by condition; positive is better:", "", paired, ""]
    return "\n".join(lines)


def telling(paired: pd.DataFrame) -> pd.DataFrame:
    """Sources, the prior and the rules that are hard to beat; ablations beside the published objective alone."""
    ablated = paired["against"].str.startswith("gaussian ")
    rivals = paired["against"].isin([ADDITIVE, RIDGE, ALONE, *(f"source {name}" for name in SOURCES)])
    source = paired["model"].str.startswith("source ") | (paired["model"] == ALONE)
    return paired[(source & rivals) | ((paired["model"] == "source gaussian") & ablated)]


def main() -> None:
    """Fit what is missing; write one page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("screen", type=Path)
    options.add_argument("--real", type=Path, help="perturbench_devel.h5ad")
    options.add_argument("--screens", help=f"some of {','.join(SCREENS)} (default: those whose file is given)")
    options.add_argument("--sources", default=",".join(SOURCES), help="empty: the prior alone")
    options.add_argument("--ablation", action="store_true")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--steps", type=int, default=12_000)
    options.add_argument("--patience", type=int, default=0)
    options.add_argument("--set", action="append", default=[], metavar="section.key=value")
    options.add_argument("--out", type=Path, default=Path("runs/learning"))
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--show", action="store_true", help="fit nothing, write the page of what is there")
    options.add_argument("--jobs", type=int, default=0, help="fit so many pieces at once before they are scored")
    options.add_argument("--seconds", type=float, help="with --jobs: stop all fits after so long, score nothing")
    options.add_argument("--piece", help=argparse.SUPPRESS)
    args = options.parse_args()
    screens = args.screens.split(",") if args.screens else SCREENS[: 3 if args.real else 1]
    sources = args.sources.split(",") if args.sources else []
    for what, names, known in (("screen", screens, SCREENS), ("source", sources, SOURCES)):
        if unknown := [name for name in names if name not in known]:
            options.error(f"{what} '{unknown[0]}': expected some of {', '.join(known)}")
    if args.real is None and set(screens) - {"norman-like"}:
        options.error("screens 'norman' and 'mcfaline' need the real cells: --real PERTURBENCH.h5ad")
    models = contenders(sources, args)
    if args.piece:
        screen, name, seed = args.piece.split("|")
        return fit_one(screen, name, int(seed), models, args.out / f"{screen}-{args.steps}", args)
    if args.jobs:
        fit_beside(screens, models, args)
        if args.seconds is not None:
            return None
    pages = ["\n".join(heading("Learning curves"))]
    args.results.mkdir(parents=True, exist_ok=True)
    for screen in screens:
        folder = args.out / f"{screen}-{args.steps}"
        if not args.show:
            run(screen, models, folder, args)
        pages.append(section(screen, folder, [model.name for model in models], args.steps))
        write_text(args.results / "learning.md", "\n".join(pages))
    print("\n".join(pages))
    return None


if __name__ == "__main__":
    main()
