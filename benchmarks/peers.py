"""The page of the benchmark with published methods live: scores, paired differences, cost beside accuracy.

    python benchmarks/peers.py NAME=FOLDER [NAME=FOLDER ...]

Each FOLDER is that of a finished `scdfm benchmark` with peers; the page says the commands. One that was left before its
end is read by repeating its command with --resume and the models that are done.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from scdfm.benchmarking.tables import cost_markdown
from scdfm.files import read_text, write_text, written_whole
from scdfm.report import markdown
from screens import RESULTS, gaps, gaps_table

METRICS = (
    "l2", "mse", "mae", "pearson_delta", "ds", "de_spearman", "pearson_delta_hat", "energy", "wasserstein",
    "variance_error", "zero_fraction_error",
)  # fmt: skip
OURS = "scdfm"
FIGURE = "peers.png"


def section(name: str, folder: Path) -> str:
    """One benchmark as Markdown: scores with intervals, what models cost, each model's gain over ours."""
    summary, scores = pd.read_csv(folder / "summary.csv"), scores_of(folder)
    summary = summary[summary["part"] == "all"]
    paired = gaps(scores, [OURS])
    metrics = [metric for metric in METRICS if metric in set(summary["metric"])]
    return "\n".join([
        f"## {name}", "", markdown(summary, metrics, intervals=True), "### Cost", "", cost_markdown(costs_of(folder)),
        "### scdfm against each, paired by condition; positive: scdfm is better", "", gaps_table(paired, metrics), "",
        "### What the benchmark noted", "", *noted(folder), "",
    ])  # fmt: skip


def scores_of(folder: Path) -> pd.DataFrame:
    """The long table of a benchmark, without references scored again for one model."""
    scores = pd.read_csv(folder / "scores.csv", keep_default_na=False, na_values={"value": [""]})
    return scores[scores["beside"] == ""]


def costs_of(folder: Path) -> pd.DataFrame:
    """What models cost in a benchmark."""
    return pd.read_csv(folder / "costs.csv", keep_default_na=False, na_values=[""])


def noted(folder: Path) -> list[str]:
    """The notes of a benchmark."""
    return [line for line in read_text(folder / "benchmark.md").splitlines() if line.startswith("- ")]


def figure(folders: dict[str, Path], path: Path) -> None:
    """L2 error beside CPU seconds, a panel for each benchmark; rules that cost nothing are lines."""
    drawn, axes = plt.subplots(1, len(folders), figsize=(5.2 * len(folders), 4), squeeze=False, layout="constrained")
    for ax, (name, folder) in zip(axes[0], folders.items(), strict=True):
        means = scores_of(folder).query("metric == 'l2'").groupby("model")["value"].mean()
        seconds = costs_of(folder).groupby("model")["cpu"].mean()
        for place, model in enumerate(means[means.index.intersection(seconds.index)].sort_values().index):
            away: dict[str, Any] = (
                {"xytext": (6, 4)} if place % 2 or model == OURS else {"xytext": (-6, 4), "ha": "right"}
            )
            ax.plot(seconds[model], means[model], "o", color="C1" if model == OURS else "C0")
            ax.annotate(model, (seconds[model], means[model]), textcoords="offset points", fontsize=8, **away)
        for rule in means.index.intersection(["no change", "additive", "ridge", "ceiling"]):
            ax.axhline(means[rule], color="0.7", linewidth=0.8, zorder=0)
            ax.text(0.01, means[rule], rule, transform=ax.get_yaxis_transform(), fontsize=7, color="0.4", va="bottom")
        ax.set(xlabel="CPU seconds", ylabel="L2 error (lower is better)", title=name, yscale="log")
        ax.set_xlim(0, 1.6 * seconds.max())
    with written_whole(path) as temporary:
        drawn.savefig(temporary, dpi=110)


def main() -> None:
    """Write the page and its figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    folders = {name: Path(folder) for name, _, folder in (text.partition("=") for text in args.benchmarks)}
    path = args.results / "peers.md"
    words = read_text(path).partition("<!-- tables -->")[0] if path.is_file() else "# Published methods, live\n\n"
    pages = [section(name, folder) for name, folder in folders.items()]
    write_text(path, words + "\n".join(["<!-- tables -->", f"![L2 error beside CPU seconds]({FIGURE})", "", *pages]))
    figure(folders, args.results / FIGURE)


if __name__ == "__main__":
    main()
