"""Do chosen experiments teach more than random ones? A simulated campaign on a screen whose doubles are all measured.

    python benchmarks/campaign.py SCREEN.h5ad [--seeds 10] [--rounds 3] [--batch 10] [--max-steps 0] [--out DIR]

SCREEN holds singles and doubles (log1p, obs column `perturbation`). For each seed a third of the doubles is the fixed test,
of which nobody knows anything. Training starts with every single and `batch` random doubles of the rest; each round refits
and adds `batch` more, chosen by `scdfm screen --propose` out of what is not measured yet, or at random. All fits have the
same genes, the most variable of the singles' cells. The table gives the error of the test doubles' means (L2) after each
round, of the model, of its prior (step 0) and of ridge fitted on the same cells, and the paired difference chosen − random
with its 95 % interval over seeds. Without steps (preset `instant`) model and prior are one. 10 seeds of 3 further rounds
are 70 fits. Finished rounds are kept: repeat the command.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

import scdfm
from accuracy import NARROW
from scdfm.evaluation import baselines
from scdfm.files import write_json
from scdfm.seeds import numpy_rng
from screens import RESULTS, heading

ARMS = ("chosen", "random")
MEASURES = ("model", "prior", "ridge")


def narrow(path: Path) -> scdfm.CellTable:
    """The cells of a screen on the genes that vary most among singles."""
    whole = ad.read_h5ad(path)
    cells = scdfm.read_cells(whole)
    singles = tuple(name for name in cells.conditions if name != "control" and "+" not in name)
    genes = scdfm.data.select_genes(
        cells, scdfm.Split("campaign", 0, singles, (), ()), scdfm.Config().updated(NARROW).panel
    )
    return scdfm.read_cells(whole[:, list(genes.genes)].copy())


def designed(cells: scdfm.CellTable, seed: int, batch: int) -> tuple[list[str], list[str], list[str]]:
    """Doubles of the test, those to start with, and those that may be measured later; every single is measured."""
    singles = {name for name in cells.conditions if "+" not in name}
    doubles = sorted(name for name in cells.conditions if "+" in name and set(name.split("+")) <= singles)
    order = [doubles[at] for at in numpy_rng(seed, "campaign", "design").permutation(len(doubles))]
    n = len(order) // 3
    return sorted(order[:n]), sorted(order[n : n + batch]), sorted(order[n + batch :])


def one_round(
    cells: scdfm.CellTable, measured: list[str], test: list[str], pool: list[str], folder: Path, seed: int,
    args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """Fit on singles and `measured`, score the test doubles, and propose the next of `pool`; kept in round.json."""
    path = folder / "round.json"
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    singles = [name for name in cells.conditions if name != "control" and "+" not in name]
    known = [*singles, *measured]
    # Of a target that is no measured gene nothing is known but by training on it.
    sure = [name for name in known if set(name.split("+")) <= set(cells.genes)]
    validation = tuple(numpy_rng(seed, "campaign", "validation", len(measured)).choice(sure, 6, replace=False).tolist())
    train = tuple(name for name in known if name not in validation)
    split = scdfm.Split("campaign", 0, train, validation, ())
    steps = {"training": {"max_steps": args.max_steps, "validate_every": max(args.max_steps, 1)}, "seed": seed}
    config = scdfm.Config.preset("default" if args.max_steps else "instant").updated(NARROW).updated(steps)
    config = config.updated({"panel": {"n_genes": len(cells.genes)}})
    # The data hold what is measured so far alone, so that nothing else can be seen.
    table = cells.select(["control", *known])
    run = scdfm.fit(table, split, config, out=folder / "run", resume=True, progress=False)
    truth = cells.means(test)[run.genes].to_numpy()
    ridge = baselines.ridge(
        baselines.Training(
            tuple(known), table.means(known)[run.genes].to_numpy(), table.mean("control")[table.columns(run.genes)],
            tuple(run.genes),
        ),
        test,
    )  # fmt: skip
    proposals: list[str] = []
    if len(pool) >= args.batch:
        screen = scdfm.screen(
            run, out=folder / "screen", conditions=pool, cells=args.cells, propose=args.batch, seed=seed, resume=True
        )
        proposals = [name for name in screen.proposed if name in pool]
    found = {
        "doubles": len(measured), "proposed": proposals,
        "model": error(run, test, truth, seed, args.cells),
        "prior": error(run.untrained(), test, truth, seed, args.cells),
        "ridge": float(np.linalg.norm(ridge - truth, axis=1).mean()),
    }  # fmt: skip
    write_json(path, found)
    return found


def error(run: scdfm.Run, test: list[str], truth: np.ndarray, seed: int, n_cells: int) -> float:
    """Mean L2 of the means that the run predicts for the conditions `test`."""
    predicted = run.predict(test, n_cells=n_cells, seed=seed)
    labels = predicted.obs["perturbation"].to_numpy()
    means = np.stack([np.asarray(predicted.X[labels == name].mean(axis=0)).ravel() for name in test])
    return float(np.linalg.norm(means - truth, axis=1).mean())


def campaign(cells: scdfm.CellTable, seed: int, arm: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rounds of one seed and arm; both arms share the first."""
    test, measured, pool = designed(cells, seed, args.batch)
    rows = []
    for number in range(args.rounds + 1):
        name = "start" if number == 0 else f"{arm}{number}"
        found = one_round(cells, measured, test, pool, args.out / f"seed{seed}" / name, seed, args)
        rows.append({"seed": seed, "arm": arm, **{key: found[key] for key in ("doubles", *MEASURES)}})
        print(rows[-1], flush=True)
        if number == args.rounds:
            break
        picked = found["proposed"]
        if arm == "random":
            rng = numpy_rng(seed, "campaign", "random", number)
            picked = rng.choice(pool, args.batch, replace=False).tolist()
        measured = sorted([*measured, *picked])
        pool = [name for name in pool if name not in picked]
    return rows


def markdown(table: pd.DataFrame) -> str:
    """Error after each round, and the paired difference of the arms."""
    lines = ["| doubles | measure | chosen | random | chosen − random (95 % interval) |", "|---|---|---|---|---|"]
    for score in MEASURES:
        wide = table.pivot_table(index=["doubles", "seed"], columns="arm", values=score)
        for doubles, part in wide.groupby("doubles"):
            gap = (part["chosen"] - part["random"]).to_numpy()
            rng = numpy_rng(0, "campaign", "interval", score, int(doubles))
            low, high = np.percentile(rng.choice(gap, (2000, len(gap))).mean(axis=1), [2.5, 97.5])
            interval = f" [{low:.3f}, {high:.3f}]" if len(gap) > 1 else ""
            lines.append(
                f"| {doubles} | L2 of {score} | {part['chosen'].mean():.3f} | {part['random'].mean():.3f} | "
                f"{gap.mean():.3f}{interval} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run every round that is not there yet; print and keep the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--max-steps", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/campaign"))
    args = parser.parse_args()
    cells = narrow(args.screen)
    rows = [row for seed in range(args.seeds) for arm in ARMS for row in campaign(cells, seed, arm, args)]
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "campaign.csv", index=False)
    text = "\n".join([*heading("Choosing the next doubles"), markdown(table)])
    print(text)
    (RESULTS / "campaign.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
