"""Do 95% intervals of a paired difference hold the true difference in about 95% of test sets?

    python benchmarks/intervals.py [--draws 200] [--targets 40] [--seed 0]

One simulated screen with strong interactions holds every pair of its targets. The true difference between two
predictors is the mean over all pairs of the difference of their scores; a test set is a random draw of pairs, and
its interval is the one that `differences` gives. Ridge stands for the model, against additive and the training mean;
both trained on the singles.
"""

from __future__ import annotations

import argparse

from scdfm.data import read_cells, simulate
from scdfm.evaluation import differences, evaluate
from scdfm.seeds import numpy_rng

METRICS = ("l2", "mse", "pearson_delta", "pearson_delta_hat_20", "de_spearman")


def main() -> None:
    """Score all pairs once, then draw test sets and count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--targets", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pairs = args.targets * (args.targets - 1) // 2
    cells = read_cells(
        simulate(
            n_targets=args.targets, n_doubles=pairs, cells_per_condition=40, truth_cells=1, seed=args.seed
        )
    )
    doubles = [c for c in cells.conditions if "+" in c]
    singles = [c for c in cells.conditions if "+" not in c and c != "control"]
    table = evaluate(None, cells, training=cells.means(singles), conditions=doubles, metrics=METRICS)
    print(f"{len(doubles)} pairs of {len(singles)} targets, {args.draws} test sets each")
    print(f"{'metric':22s}{'against':16s}" + "".join(f"{f'{n} pairs':>10s}" for n in (8, 15, 30, 60)))
    for baseline in ("additive", "training mean"):
        duel = table[table["model"].isin(["ridge", baseline])].replace({"model": {"ridge": "model"}})
        truth = differences(duel, n_bootstrap=2).set_index("metric")["improvement"]
        held = {n: count(duel, doubles, truth, n, args.draws, args.seed) for n in (8, 15, 30, 60)}
        for metric in truth.index:
            shares = "".join(f"{held[n][metric] / args.draws:10.3f}" for n in held)
            print(f"{metric:22s}{baseline:16s}{shares}")


def count(duel, doubles: list[str], truth, n: int, draws: int, seed: int) -> dict[str, int]:  # type: ignore[no-untyped-def]
    """Of `draws` test sets of `n` pairs, those whose interval holds the true difference, by metric."""
    held = dict.fromkeys(truth.index, 0)
    by_condition = duel.set_index("condition")
    for draw in range(draws):
        chosen = numpy_rng(seed, "test set", n, draw).choice(doubles, n, replace=False)
        found = differences(by_condition.loc[chosen].reset_index()).set_index("metric")
        for metric in held:
            held[metric] += found.loc[metric, "low"] <= truth[metric] <= found.loc[metric, "high"]
    return held


if __name__ == "__main__":
    main()
