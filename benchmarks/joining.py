"""Two screens in one fit: what joining gains or costs each of them.

    python benchmarks/joining.py DATA [--seeds 3] [--share 0.25] [--results DIR]

DATA is the folder of perturbench_devel.h5ad (Norman's activation screen of K562, McFaline's of three glioblastoma lines)
and papalexi.h5ad. Of each screen a share of the perturbed conditions is the test, drawn anew for each seed. Each pair
of screens is fitted together (`scdfm.join_screens`, preset instant), and each screen alone, on the genes that both have
and with the same test. Rows are the prior's populations, `no change` and `training mean` of the screen alone. A pair
that cannot be joined is told with the reason.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

import scdfm
from scdfm.data import parse
from scdfm.seeds import numpy_rng
from screens import heading

METRICS = ("l2", "pearson_delta", "energy", "wasserstein")
OPTIONS = {"panel": {"n_genes": 2000}, "sampling": {"cells": 100}}


def main() -> None:
    """Fit, score, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    screens = read(options.data)
    parts, refused = [], {}
    for seed in range(options.seeds):
        tests = {name: chosen(cells, name, options.share, seed) for name, cells in screens.items()}
        for pair in itertools.combinations(screens, 2):
            try:
                parts.append(compared({name: screens[name] for name in pair}, tests, seed))
            except scdfm.ScdfmError as error:
                print(error)
                refused[" + ".join(pair)] = str(error)
            print(f"seed {seed}: {' + '.join(pair)}", flush=True)
    lines = [*heading("Two screens in one fit"), *page(pd.concat(parts, ignore_index=True))]
    lines += ["", *(f"Not joined: {pair} ({why})." for pair, why in refused.items())]
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "joining.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, scdfm.CellTable]:
    """The three screens; conditions of fewer than 20 cells are left out."""
    both = folder / "perturbench_devel.h5ad"
    own: dict[str, Any] = {"min_cells": 20, "covariates": ["cell_type"]}
    papalexi = ad.read_h5ad(folder / "papalexi.h5ad")
    papalexi.obs["cell_type"] = "THP-1"
    return {
        "norman": scdfm.read_cells(both, subset={"dataset": "norman19"}, **own),
        "mcfaline": scdfm.read_cells(both, subset={"dataset": "mcfaline23"}, **own),
        "papalexi": scdfm.read_cells(papalexi, target_sum=1e4, **own),
    }


def chosen(cells: scdfm.CellTable, name: str, share: float, seed: int) -> set[str]:
    """The test conditions of a screen."""
    names = sorted(set(cells.conditions) - {"control"})
    n = max(2, round(share * len(names)))
    return set(numpy_rng(seed, "test", name).choice(names, n, replace=False).tolist())


def compared(screens: dict[str, scdfm.CellTable], tests: dict[str, set[str]], seed: int) -> pd.DataFrame:
    """Scores of each screen's test conditions, fitted together and alone: one row a condition, model and metric."""
    joined = scdfm.join_screens(screens)
    parts = []
    for name in screens:
        rows = np.flatnonzero((joined.obs["screen"] == name).to_numpy())
        for model, cells in (("together", joined), ("alone", joined.take(rows))):
            table = scored(cells, tests, name, seed)
            models = [model] if model == "together" else ["model", "no change", "training mean"]
            table = table[table["model"].isin(["model", *models])].replace({"model": {"model": model}})
            parts.append(table.assign(screen=name, pair=" + ".join(screens), seed=seed))
    return pd.concat(parts, ignore_index=True)


def scored(cells: scdfm.CellTable, tests: dict[str, set[str]], name: str, seed: int) -> pd.DataFrame:
    """A fit of `cells` without any screen's test conditions, scored on those of one screen."""

    def is_test(condition: str) -> bool:
        asked = parse(condition)
        own = tuple(pair for pair in asked.covariates if pair[0] != "screen")
        return str(replace(asked, covariates=own)) in tests[dict(asked.covariates)["screen"]]

    perturbed = [one for one in cells.conditions if one != "control"]
    test = tuple(one for one in perturbed if is_test(one) and one.endswith(f"screen={name}"))
    split = scdfm.Split("named", seed, tuple(one for one in perturbed if not is_test(one)), (), test)
    config = scdfm.Config.preset("instant").updated({**OPTIONS, "seed": seed})
    with tempfile.TemporaryDirectory() as folder:
        run = scdfm.fit(cells, split, config, out=Path(folder) / "run", progress=False)
        known = [one for one in test if run.knows(one)]
        predicted = run.predict(known, n_cells=100, seed=seed)
        return scdfm.evaluate(predicted, cells, training=run, metrics=METRICS, seed=seed)


def page(table: pd.DataFrame) -> list[str]:
    """Means over conditions and seeds, and the gain of together over alone, condition by condition."""
    lines = [
        "Preset instant; test conditions of each screen are drawn anew for each seed. `gain` is together against",
        "alone, paired by condition and seed, positive is better, with the standard error over conditions. Seeds that",
        "score one condition are averaged first, in all rows.",
        "",
        "| screen | fitted with | model | conditions | " + " | ".join(METRICS) + " |",
        "|---|---|---|---:|" + "---:|" * len(METRICS),
    ]
    for (screen, pair), part in table.groupby(["screen", "pair"]):
        other = next(name for name in str(pair).split(" + ") if name != screen)
        values = part.pivot_table(index=["condition", "seed"], columns=["model", "metric"], values="value")
        by_condition = values.groupby("condition").mean()
        for model in ("no change", "training mean", "alone", "together"):
            means = [by_condition.get((model, metric), pd.Series(dtype=float)).mean() for metric in METRICS]
            told = " | ".join("–" if np.isnan(mean) else f"{mean:.4g}" for mean in means)
            lines.append(f"| {screen} | {other} | {model} | {len(by_condition)} | {told} |")
        gains = []
        for metric in METRICS:
            gain = values["alone", metric] - values["together", metric]
            gain = (-gain if metric == "pearson_delta" else gain).groupby("condition").mean().dropna()
            gains.append(f"{gain.mean():.3g} ± {gain.std() / np.sqrt(max(len(gain), 1)):.2g}")
        lines.append(f"| {screen} | {other} | gain | {len(by_condition)} | {' | '.join(gains)} |")
    return lines


if __name__ == "__main__":
    main()
