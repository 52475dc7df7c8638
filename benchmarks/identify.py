"""Does the search backwards find the perturbation? Real cells of held-out doubles, among every pair of targets.

    python benchmarks/identify.py SCREEN.h5ad [--run RUN] [--fold 0] [--doubles N] [--few 16] [--cells 128] [--out DIR]
    python benchmarks/identify.py perturbench_devel.h5ad --norman-subset [--run RUN] [--max-steps N]

The first form takes test doubles of the additive split's fold and searches among all pairs of the singles trained on
(5,356 for 104 targets); the second holds out the five composed doubles of the real Norman subset, among all pairs of their
targets. RUN is a run folder of that split; without it a small setting is fitted. Pairs are screened once with `--few`
cells each (resumable; 5,356 pairs take hours on a CPU), the shortlist is compared with `--cells`. Printed: how often the
true pair is first and among the first five, with 95 % Wilson intervals, beside chance; the mean probability given to the
answer; and, as references, the same search by the run at step 0, which is its prior, and by distance of ridge's means.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

import scdfm
from accuracy import NARROW
from scdfm.evaluation import PRIOR, baselines
from scdfm.screening import Candidates
from screens import RESULTS, heading

COMPOSED = ("MAP2K3+MAP2K6", "KLF1+MAP2K6", "KLF1+TGFBR2", "MAPK1+TGFBR2", "MAP2K3+SLC38A2")


def run_of(cells: scdfm.CellTable, split: scdfm.Split, args: argparse.Namespace) -> scdfm.Run:
    """The run given, or a fit of the small setting."""
    if args.run:
        return scdfm.Run.load(args.run)
    config = scdfm.Config().updated(NARROW)
    if args.max_steps:
        config = config.updated({"training": {"max_steps": args.max_steps, "validate_every": args.max_steps}})
    return scdfm.fit(cells, split, config, out=args.out / "run", resume=True)


def ridge_place(run: scdfm.Run, names: list[str], mean: np.ndarray, answer: str) -> int:
    """Rank (from 1) of `answer` by distance of ridge's predicted means to the observed `mean`."""
    known = run.means
    trained = [name for name in run.split.train if name in known.index]
    training = baselines.Training(
        tuple(trained), known.loc[trained].to_numpy(), known.loc["control"].to_numpy(), tuple(run.genes)
    )
    distance = np.linalg.norm(baselines.ridge(training, names) - mean, axis=1)
    return int((distance < distance[names.index(answer)]).sum()) + 1


def searched(cells: scdfm.CellTable, run: scdfm.Run, tests: list[str], args: argparse.Namespace) -> pd.DataFrame:
    """One row for each test double: its rank and probability, by the prior too, ridge's rank, number of candidates."""
    targets = sorted({part for name in tests for part in name.split("+")})
    if not args.norman_subset:
        targets = sorted(name for name in run.split.train if "+" not in name)
    names = [scdfm.data.canonical("+".join(pair)) for pair in itertools.combinations(targets, 2)]
    searches = {"": candidates(run, names, args.out / "screen", args)}
    if untrained := run.untrained():
        searches[f"{PRIOR} "] = candidates(untrained, names, args.out / "screen_prior", args)
    rows = []
    for name in tests:
        mean = cells.mean(name)[cells.columns(run.genes)]
        row = {"condition": name, "ridge": ridge_place(run, names, mean, name), "candidates": len(names)}
        for which, among in searches.items():
            table = among.identify(cells.select([name]), shortlist=args.shortlist).table
            found = table.set_index("condition").loc[name]
            row |= {f"{which}rank": int(found["rank"]), f"{which}probability": float(found["probability"])}
        rows.append(row)
        print(row, flush=True)
    return pd.DataFrame(rows)


def candidates(run: scdfm.Run, names: list[str], out: Path, args: argparse.Namespace) -> Candidates:
    """What a search of the run looks among: `names`, screened once in the folder `out`."""
    screen = scdfm.screen(run, out=out, conditions=names, cells=args.few, resume=True, progress=True, say=print)
    return Candidates.of(run, conditions=names, screen=screen, cells=args.cells)


def wilson(hits: int, n: int) -> str:
    """A share with its 95 % Wilson interval."""
    z, p = 1.96, hits / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return f"{p:.3f} [{(middle - half) / (1 + z * z / n):.3f}, {(middle + half) / (1 + z * z / n):.3f}]"


def markdown(table: pd.DataFrame) -> str:
    """Accuracy beside prior, ridge and chance."""
    n, candidates = len(table), int(table["candidates"].iloc[0])
    lines = [f"{n} doubles among {candidates:,} candidates", "", "| search | top 1 | top 5 |", "|---|---|---|"]
    shown = {"scdfm": "rank", PRIOR: f"{PRIOR} rank", "ridge, by mean": "ridge"}
    for label, column in ((label, column) for label, column in shown.items() if column in table):
        hits = [wilson(int((table[column] <= k).sum()), n) for k in (1, 5)]
        lines.append(f"| {label} | {hits[0]} | {hits[1]} |")
    lines.append(f"| chance | {1 / candidates:.2g} | {min(1.0, 5 / candidates):.2g} |")
    given = table["probability"].mean()
    said = "undefined, no candidate has a known answer" if np.isnan(given) else f"{given:.3g}"
    return "\n".join(lines) + f"\n\nmean probability given to the answer: {said}\n"


def main() -> None:
    """Fit if need be, screen, search, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--norman-subset", action="store_true")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--doubles", type=int)
    parser.add_argument("--few", type=int, default=16)
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument("--shortlist", type=int, default=20)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/identify"))
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.norman_subset:
        cells = scdfm.read_cells(args.screen, subset={"dataset": "norman19"})
        rest = [name for name in cells.conditions if name not in ("control", *COMPOSED)]
        doubles = [name for name in rest if "+" in name]
        split = scdfm.Split("composed doubles", 0, tuple(set(rest) - {doubles[0]}), (doubles[0],), COMPOSED)
    else:
        cells = scdfm.read_cells(args.screen)
        split = scdfm.additive_split(cells, fold=args.fold)
    run = run_of(cells, split, args)
    singles = {name for name in run.split.train if "+" not in name}
    tests = [name for name in run.split.test if set(name.split("+")) <= singles][: args.doubles]
    text = "\n".join([*heading("Which perturbation made these cells?"), markdown(searched(cells, run, tests, args))])
    print(text)
    name = "identify_norman_subset" if args.norman_subset else "identify"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
