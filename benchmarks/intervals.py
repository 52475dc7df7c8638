"""Do 95% intervals hold what they should, and leave zero out of a difference that is none as seldom as they should?

    python benchmarks/intervals.py [--draws 200] [--targets 24] [--seed 0] [--out benchmarks/results/intervals.md]

Laws: draws of n values from laws like those of scores (symmetric, skewed, bounded, with ties); the share of intervals that
hold the true mean, of the two rules that `interval` takes the wider of, and its own.

Screen: one simulated screen with strong interactions holds every pair of its targets. The true difference between two
predictors is the mean over all pairs of the difference of their scores; a test set is a random draw of pairs, and its
interval is the one that `differences` gives. Ridge stands for the model, against additive and the training mean; all
train on the singles. Null: two models of equal worth, the real means with noise of one law; the share of test sets where
the interval leaves out the difference 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import stats

from scdfm.data import CellTable, read_cells, simulate
from scdfm.evaluation import differences, evaluate, interval
from scdfm.seeds import numpy_rng
from screens import heading

METRICS = ("l2", "mse", "pearson_delta", "ds", "de_spearman")
SIZES = (3, 4, 5, 6, 8, 10, 15, 30, 60)
LAWS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "exponential": (lambda rng, n: rng.gamma(1, 1, n), 1.0),
    "log-normal 0.8": (lambda rng, n: np.exp(0.8 * rng.normal(size=n)), float(np.exp(0.32))),
    "beta(9, 1), at most 1": (lambda rng, n: rng.beta(9, 1, n), 0.9),
    "Student's t, 3 degrees": (lambda rng, n: rng.standard_t(3, n), 0.0),
    "ranks: 1 in 7 of 10, else 0.5 to 1": (
        lambda rng, n: np.where(rng.random(n) < 0.7, 1.0, rng.integers(10, 20, n) / 20),
        0.7 + 0.3 * 14.5 / 20,
    ),
}


def main() -> None:
    """Count over draws, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--targets", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    parts = [
        "\n".join(heading("Intervals of the mean over conditions")).rstrip(),
        f"Shares of {5 * args.draws} draws (laws) and {args.draws} test sets (screen); 0.950 and 0.050 are right. A dash: "
        "no interval is given in any draw. Where some draws get none (fewer than ten equal values), shares are of the "
        "intervals given.",
        laws(5 * args.draws, args.seed),
        screen(args.targets, args.draws, args.seed),
    ]
    text = "\n\n".join(parts) + "\n"
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    print(text)


def laws(draws: int, seed: int) -> str:
    """Coverage of each rule on each law, n by n."""
    rows = []
    for name, (draw, mean) in LAWS.items():
        held: dict[str, list[float]] = {rule: [] for rule in ("Student's t", "bootstrap-t", "interval")}
        for n in SIZES:
            rng = numpy_rng(seed, "laws", name, n)
            values = [draw(rng, n) for _ in range(draws)]
            held["Student's t"].append(share([t_interval(v) for v in values], mean))
            held["bootstrap-t"].append(share([bootstrap_t(v, rng) for v in values], mean))
            held["interval"].append(share([interval(v, n_bootstrap=400) for v in values], mean))
        rows += [[name if rule == "Student's t" else "", rule, *map(written, found)] for rule, found in held.items()]
    return "## Coverage by law\n\n" + markdown(["law", "rule", *(f"n = {n}" for n in SIZES)], rows)


def share(ends: list[tuple[float, float]], mean: float) -> float:
    """Of the intervals that are given, those that hold `mean`."""
    given = [(low, high) for low, high in ends if not np.isnan(low)]
    return float(np.mean([low <= mean <= high for low, high in given])) if given else np.nan


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's, for comparison."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    width = stats.t.ppf(0.975, len(values) - 1) * error
    return values.mean() - width, values.mean() + width


def bootstrap_t(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The bootstrap-t alone, for comparison."""
    n, mean = len(values), values.mean()
    error = values.std(ddof=1) / np.sqrt(n)
    draws = values[rng.integers(0, n, (400, n))]
    errors = draws.std(axis=1, ddof=1) / np.sqrt(n)
    kept = errors > 1e-9 * max(error, 1e-300)
    if error <= 1e-12 or not kept.any():
        return mean, mean
    low, high = np.quantile((draws.mean(axis=1)[kept] - mean) / errors[kept], [0.025, 0.975])
    return mean - high * error, mean - low * error


def screen(targets: int, draws: int, seed: int) -> str:
    """Coverage of paired differences, and how often a difference that is none is called one."""
    pairs = targets * (targets - 1) // 2
    cells = read_cells(
        simulate(n_genes=150, n_targets=targets, n_doubles=pairs, cells_per_condition=30, truth_cells=1, seed=seed)
    )
    doubles = [c for c in cells.conditions if "+" in c]
    singles = [c for c in cells.conditions if "+" not in c and c != "control"]
    table = evaluate(None, cells, training=cells.means(singles), conditions=doubles, metrics=METRICS)
    rows = []
    for baseline in ("additive", "training mean"):
        duel = table[table["model"].isin(["ridge", baseline])].replace({"model": {"ridge": "model"}})
        truth = differences(duel, n_bootstrap=2, against=baseline).set_index("metric")["improvement"]
        rows += counted(duel, baseline, truth, doubles, draws, seed)
    head = ["metric", "against", *(f"n = {n}" for n in SIZES)]
    null = equal_models(cells, doubles, seed)
    zero = pd.Series(0.0, index=null["metric"].unique())
    rejected = [
        [metric, other, *(cell if cell == "–" else f"{1 - float(cell):.3f}" for cell in found)]
        for metric, other, *found in counted(null, "twin", zero, doubles, draws, seed)
    ]
    return (
        f"## Coverage of paired differences\n\n{len(doubles)} pairs of {len(singles)} targets.\n\n"
        f"{markdown(head, rows)}\n\n## A difference that is none, called clear\n\n{markdown(head, rejected)}"
    )


def equal_models(cells: CellTable, doubles: list[str], seed: int) -> pd.DataFrame:
    """Scores of two models: the real means of `doubles` with noise of one law, drawn anew for each."""
    means = cells.means(doubles).to_numpy()
    parts = []
    for model in ("model", "twin"):
        rng = numpy_rng(seed, "equal", model)
        size = 0.3 * rng.gamma(2, 0.5, (len(doubles), 1))  # some conditions are harder than others
        noisy = np.maximum(means + size * rng.normal(size=means.shape), 0).astype(np.float32)
        obs = pd.DataFrame({"perturbation": doubles}, index=[f"p{i}" for i in range(len(doubles))])
        prediction = ad.AnnData(noisy, obs=obs, var=pd.DataFrame(index=cells.genes.astype(object)))
        parts.append(evaluate(prediction, cells, name=model, metrics=METRICS, references=False, check_scale=False))
    return pd.concat(parts, ignore_index=True)


def counted(
    duel: pd.DataFrame, against: str, truth: pd.Series, doubles: list[str], draws: int, seed: int
) -> list[list[str]]:
    """For each metric the shares of test sets, size by size, whose interval holds the true difference."""
    by_condition = duel.set_index("condition")
    held: dict[str, list[str]] = {str(metric): [] for metric in truth.index}
    for n in SIZES:
        ends: dict[str, list[tuple[float, float]]] = {metric: [] for metric in held}
        for draw in range(draws):
            chosen = numpy_rng(seed, "test set", n, draw).choice(doubles, n, replace=False)
            found = differences(by_condition.loc[chosen].reset_index(), against=against)
            for metric, low, high in zip(found["metric"], found["low"], found["high"], strict=True):
                ends[metric].append((low, high))
        for metric in held:
            held[metric].append(written(share(ends[metric], float(truth[metric]))))
    return [[metric, against, *found] for metric, found in held.items()]


def written(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
