"""Does a screen's uncertainty say how wrong it is? Test doubles, whose cells no fit has seen.

    python benchmarks/uncertainty.py SCREEN.h5ad [--members 3] [--fold 0] [--runs DIR] [--cells 128] [--max-steps N]

Runs of one split and different seeds (DIR/seed<i> of --runs, else fits of a small setting) predict the test doubles of the
additive split; uncertainty is calibrated on their validation conditions. Printed for the ensemble and for its first run
alone: Spearman correlation of uncertainty and error (L2 of the mean) with a 95 % bootstrap interval, the root mean square
of error / uncertainty (1 is calibrated), and the share of doubles whose error is below the uncertainty.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import scdfm
from accuracy import NARROW
from scdfm.seeds import numpy_rng

RESULTS = Path(__file__).parent / "results"


def member(cells: scdfm.CellTable, split: scdfm.Split, seed: int, args: argparse.Namespace) -> scdfm.Run:
    """The run of a seed: given, or fitted."""
    if args.runs:
        return scdfm.Run.load(args.runs / f"seed{seed}")
    config = scdfm.Config().updated({**NARROW, "seed": seed})
    if args.max_steps:
        config = config.updated({"training": {"max_steps": args.max_steps, "validate_every": args.max_steps}})
    return scdfm.fit(cells, split, config, out=args.out / f"seed{seed}", resume=True)


def row(cells: scdfm.CellTable, runs: list[scdfm.Run], out: Path, n_cells: int) -> str:
    """One line of the table."""
    tests = list(runs[0].split.test)
    screen = scdfm.screen(runs, out=out, conditions=tests, cells=n_cells, resume=True, progress=True)
    table = screen.table.set_index("condition").loc[tests]
    truth = cells.means(tests)[screen.genes].to_numpy()
    error = np.linalg.norm(screen.means(tests).to_numpy() - truth, axis=1)
    doubt = table["uncertainty"].to_numpy(np.float64)
    ratio = np.sqrt(np.mean(np.square(error / doubt)))
    text = (
        f"{ratio:.2f} | {np.mean(error <= doubt):.0%} | {screen.calibration['n']} {screen.calibration['conditions']} |"
    )
    if np.ptp(doubt) == 0:
        return f"– (the spread says nothing) | {text}"
    rng = numpy_rng(0, "uncertainty")
    draws = [rng.integers(len(tests), size=len(tests)) for _ in range(1000)]
    low, high = np.nanpercentile([spearmanr(error[at], doubt[at]).statistic for at in draws], [2.5, 97.5])
    return f"{spearmanr(error, doubt).statistic:.2f} [{low:.2f}, {high:.2f}] | {text}"


def main() -> None:
    """Fit what is missing, screen, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/uncertainty"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cells = scdfm.read_cells(args.screen)
    # One split for all: a condition that validates one run must train none of the others.
    split = scdfm.additive_split(cells, fold=args.fold)
    runs = [member(cells, split, seed, args) for seed in range(args.members)]
    lines = [
        "| screen | Spearman | rms of error / uncertainty | error ≤ uncertainty | calibrated on |",
        "|---" * 5 + "|",
    ]
    for label, several in (("ensemble", runs), ("one run", runs[:1])):
        lines.append(f"| {label} | {row(cells, several, args.out / label.replace(' ', '_'), args.cells)}")
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "uncertainty.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
