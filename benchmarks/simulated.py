"""The default preset on simulated screens with strong interactions, beside every baseline.

    python benchmarks/simulated.py [--seeds 3] [--max-steps 800] [--out DIR]

Each seed is another screen, another fold and another fit. The CPU budget is stated in steps, since machines differ;
the seconds of each fit are printed. Finished fits are kept, so the command can be repeated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd

import scdfm
from norman_subset import show


def one_seed(seed: int, max_steps: int, out: Path) -> pd.DataFrame:
    """The long table of one screen and fit."""
    cells = scdfm.read_cells(scdfm.simulate(interaction="strong", seed=seed))
    split = scdfm.additive_split(cells, fold=seed, seed=seed)
    config = scdfm.Config.preset("default").updated({"seed": seed, "training": {"max_steps": max_steps}})
    start = time.perf_counter()
    run = scdfm.fit(cells, split, config, out=out / f"run{seed}", resume=True)
    print(f"seed {seed}: {max_steps} steps in {time.perf_counter() - start:.0f} s, {len(split.test)} test doubles")
    predicted = run.predict(n_cells=100, seed=seed, progress=True)
    return scdfm.evaluate(predicted, cells, training=run, name="scdfm", seed=seed).assign(seed=seed)


def main() -> None:
    """Fit and score every seed; print one row per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=800)
    parser.add_argument("--out", type=Path, default=Path("runs/simulated"))
    args = parser.parse_args()
    show(pd.concat([one_seed(seed, args.max_steps, args.out) for seed in range(args.seeds)]), args.out / "metrics.csv")


if __name__ == "__main__":
    main()
