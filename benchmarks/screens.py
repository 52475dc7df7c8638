"""What the benchmarks of covariates, doses and drugs share: their sizes, one table of several benchmarks, the page."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import scdfm
from scdfm.benchmarking.tables import clustered, summarise
from scdfm.evaluation import CEILING, DUPLICATE, LOWER_IS_BETTER, interval
from scdfm.files import write_text
from scdfm.report import markdown

RESULTS = Path(__file__).parent / "results"
METRICS = ("l2", "mse", "mae", "pearson_delta", "ds", "de_spearman", "pearson_delta_hat", "energy")
# Minutes on one core: enough to see every part work, too little for the figures to mean much.
SMALL: dict[str, Any] = {
    "panel": {"n_genes": 150}, "graph": {"k": 10},
    "model": {"width": 32, "layers": 1, "gene_heads": 4},
    "flow": {"genes_per_step": 64},
    "training": {"max_steps": 250, "validate_every": 250, "validation_cells": 16, "warmup_steps": 20, "ema_decay": 0.98},
    "sampling": {"cells": 50, "steps": 2},
}  # fmt: skip


def parser(doc: str | None, name: str, seeds: int = 3) -> argparse.ArgumentParser:
    """The options that every one of them has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", type=Path)
    made.add_argument("--size", choices=("full", "small"), default="full")
    made.add_argument("--seeds", type=int, default=seeds, help="fits with seeds 0, 1, ... (small: one)")
    made.add_argument("--max-steps", type=int, help="training steps instead of the size's")
    made.add_argument("--out", type=Path, help=f"folder of the pieces, continued; without it runs/{name}-SIZE")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    return made


def sized(args: argparse.Namespace, name: str, **more: Any) -> tuple[dict[str, Any], int, Path]:
    """Options over the preset, number of seeds and folder that the arguments ask for."""
    options = scdfm.Config().updated(SMALL if args.size == "small" else {}).updated(more)
    if args.max_steps:
        options = options.updated({"training": {"max_steps": args.max_steps}})
    seeds = 1 if args.size == "small" else args.seeds
    return options.model_dump(exclude={"seed", "split"}), seeds, args.out or Path(f"runs/{name}-{args.size}")


def pooled(scores: Sequence[pd.DataFrame], models: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Summary and paired differences of `models` over the scores of several benchmarks, each a fold."""
    joined = pd.concat([table.assign(fold=number) for number, table in enumerate(scores)], ignore_index=True)
    joined = joined[joined["beside"] == ""]
    return summarise(joined), gaps(joined, models)


def gaps(scores: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    """Each of `models` against every other row but ceiling and duplicate, paired by fold and condition.

    `improvement` is the mean difference, positive where the model is better, with its 95% interval over conditions.
    """
    rows = []
    means = scores.groupby(["metric", "fold", "condition", "model"], sort=False)["value"].mean()
    for metric, part in means.groupby("metric", sort=False):
        wide = part.droplevel("metric").unstack()  # noqa: PD010
        sign = -1 if metric in LOWER_IS_BETTER else 1
        for model in models:
            for other in [
                name for name in wide if name not in (CEILING, DUPLICATE, *models[: models.index(model) + 1])
            ]:
                gap = (sign * (wide[model] - wide[other])).dropna().rename("value").reset_index()
                if len(gap):
                    mean, spread = clustered(gap)
                    rows.append((model, metric, other, mean, *interval(spread), len(spread)))
    columns = ["model", "metric", "against", "improvement", "low", "high", "n_conditions"]
    return pd.DataFrame(rows, columns=columns)


def heading(title: str) -> list[str]:
    """The first lines of a page: its title, the command that made it, with names of files for where they lie, the day."""
    given = [Path(text).name if Path(text).exists() else text for text in sys.argv[1:]]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given])
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return [f"# {title}", "", f"`{command}` (scdfm {scdfm.__version__}, {day})", ""]


def write_page(
    args: argparse.Namespace, name: str, title: str, text: str, summary: pd.DataFrame, paired: pd.DataFrame
) -> Path:
    """Write RESULTS/NAME.md (NAME_small.md) with the command, the table and the differences; print it too."""
    metrics = [metric for metric in METRICS if metric in set(summary["metric"])]
    page = "\n".join(
        [
            *heading(title), text, "",
            markdown(summary, metrics, intervals=True), "",
            "Paired by condition; positive is better:", "", gaps_table(paired, metrics), "",
        ]
    )  # fmt: skip
    path = args.results / f"{name}{'' if args.size == 'full' else '_small'}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    print(page)
    return path


def gaps_table(paired: pd.DataFrame, metrics: Sequence[str]) -> str:
    """Paired differences as a Markdown table: one row per pair, one column per metric."""
    lines = ["| model | against | " + " | ".join(metrics) + " |", "|---|---|" + "---:|" * len(metrics)]
    for (model, other), part in paired.groupby(["model", "against"], sort=False):
        found = part.set_index("metric")
        texts = [_gap(found.loc[metric]) if metric in found.index else "" for metric in metrics]
        lines.append(f"| {model} | {other} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _gap(row: pd.Series) -> str:
    between = "" if pd.isna(row["low"]) else f" ({row['low']:.3g} to {row['high']:.3g})"
    return f"{row['improvement']:.3g}{between}"
