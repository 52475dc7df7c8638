"""Predicted counts beside real ones, and what they cost the scores of log1p cells.

    python benchmarks/counts.py SCREEN.h5ad --out benchmarks/results/counts_NAME.md [--perturbation-key perturbation]
        [--layer counts --target-sum 10000] [--test 6] [--steps 50] [--cells 200] [--seed 0]

One run is fitted; `--test` of the conditions are kept for the test (combinations first). They are predicted twice from
one seed: as log1p values, and as counts. First table: totals, variance and share of zeros per gene of the counts beside
those of the real test cells on the same genes, and of the log1p values rounded to counts (what one would do by hand).
Second: every metric of the log1p prediction, of the log1p of the counts, and the loss, positive where counts score worse.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scdfm
from scdfm.data.kinds import size_factors
from scdfm.evaluation import LOWER_IS_BETTER, evaluate
from scdfm.seeds import numpy_rng
from screens import heading


def main() -> None:
    """Fit, predict twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--perturbation-key", default="perturbation")
    parser.add_argument("--layer")
    parser.add_argument("--target-sum", type=float)
    parser.add_argument("--test", type=int, default=6)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="further options of the fit: section.key=value")
    args = parser.parse_args()
    cells = scdfm.read_cells(
        args.screen, args.perturbation_key, target_sum=args.target_sum, layer=args.layer, min_cells=20
    )
    test = held_out(cells, args.test, args.seed)
    rest = [name for name in cells.conditions if name not in (*test, "control")]
    split = scdfm.Split("by hand", 0, tuple(rest), (), tuple(test))
    settings = [f"training.max_steps={args.steps}", "training.keep=last", f"seed={args.seed}", *args.set]
    with tempfile.TemporaryDirectory() as folder:
        config = scdfm.Config.preset("default").with_settings(settings)
        run = scdfm.fit(cells, split, config, out=Path(folder) / "run", progress=False)
        logged, counted = (
            run.predict(test, n_cells=args.cells, seed=args.seed, counts=counts) for counts in (False, True)
        )
        shutil.rmtree(Path(folder) / "run")
    text = "\n".join([
        *heading(f"Predicted counts: {args.screen.stem}"),
        f"{cells.n:,} cells, {len(run.genes):,} genes of the panel, {len(test)} test conditions ({', '.join(test)}), "
        f"{args.cells} predicted cells each, {args.steps} training steps; {counted.uns['scdfm']['counts']}.",
        "",
        real_and_predicted(cells, logged, counted, test),
        "",
        losses(cells, logged, counted, run, args.seed),
        "",
    ])  # fmt: skip
    args.out.write_text(text, encoding="utf-8")
    print(text)


def held_out(cells: scdfm.CellTable, n: int, seed: int) -> list[str]:
    """`n` conditions for the test: combinations of trained singles where there are some, else measured genes."""
    names = [name for name in cells.conditions if name != "control"]
    pairs = [name for name in names if "+" in name]
    known = [name for name in names if name in set(cells.genes)] or names
    return sorted(numpy_rng(seed, "test").permutation(pairs or known)[:n].tolist())


def back_to_log1p(counted: ad.AnnData) -> ad.AnnData:
    """log1p of the counts, normalised by each cell's factor."""
    found = counted.copy()
    X = sp.csr_matrix(found.X).astype(np.float64)
    X.data = np.log1p(X.data * np.repeat(found.obs["size_factor"].to_numpy(), np.diff(X.indptr)))
    found.X = X.astype(np.float32)
    return found


def real_and_predicted(cells: scdfm.CellTable, logged: ad.AnnData, counted: ad.AnnData, test: list[str]) -> str:
    """Rows of the first table, averaged over the test conditions."""
    columns = cells.columns(list(counted.var_names))
    rows = []
    for name in test:
        X = cells.X[cells.rows(name)]
        factor = size_factors(X)
        known = np.isfinite(factor)
        real = np.rint(np.expm1(X[known][:, columns].toarray()) / factor[known, None])
        mine = (counted.obs.iloc[:, 0] == name).to_numpy()
        predicted = counted.X[mine].toarray()
        by_hand = np.rint(np.expm1(logged.X[mine].toarray()) / counted.obs["size_factor"].to_numpy()[mine, None])
        for what, found in (("counts", predicted), ("log1p values, rounded", by_hand)):
            rows.append({
                "": what,
                "mean total": found.sum(1).mean() / real.sum(1).mean(),
                "sd of totals": found.sum(1).std() / real.sum(1).std(),
                "variance per gene": gene_ratio(found.var(0), real.var(0)),
                "variance / mean": gene_ratio(fano(found), fano(real)),
                "zeros, real": (real == 0).mean(),
                "zeros, predicted": (found == 0).mean(),
                "zeros per gene, off by": np.abs((found == 0).mean(0) - (real == 0).mean(0)).mean(),
            })  # fmt: skip
    table = pd.DataFrame(rows).groupby("", sort=False).mean()
    head = "Predicted over real (1 is right; medians over genes with a real mean above 0.1), and shares of zeros:\n\n"
    return head + markdown(table, 3)


def fano(counts: np.ndarray) -> np.ndarray:
    """Variance over mean of each gene."""
    return np.asarray(counts.var(0) / counts.mean(0).clip(1e-9))


def gene_ratio(found: np.ndarray, real: np.ndarray) -> float:
    """Median over genes of predicted over real, those with counts on both sides."""
    both = (real > 0.1) & (found > 0)
    return float(np.median(found[both] / real[both]))


def markdown(table: pd.DataFrame, decimals: int) -> str:
    """The table with its index as the first column."""
    lines = [["", *map(str, table.columns)], ["---"] + ["---:"] * len(table.columns)]
    lines += [
        [str(name), *(f"{value:.{decimals}f}" for value in row)]
        for name, row in zip(table.index, table.to_numpy(), strict=True)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def losses(cells: scdfm.CellTable, logged: ad.AnnData, counted: ad.AnnData, run: scdfm.Run, seed: int) -> str:
    """The second table."""
    scored = {}
    for what, prediction in (("log1p", logged), ("log1p of counts", back_to_log1p(counted))):
        table = evaluate(prediction, cells, training=run, references=False, seed=seed, check_scale=False)
        scored[what] = table.groupby("metric", sort=False)["value"].mean()
    table = pd.DataFrame(scored)
    sign = np.array([1 if metric in LOWER_IS_BETTER else -1 for metric in table.index])
    table["loss"] = sign * (table["log1p of counts"] - table["log1p"])
    table["loss, %"] = 100 * table["loss"] / table["log1p"].abs()
    return (
        "Scores against the real cells, means over conditions; a positive loss means that counts score worse:\n\n"
        + (markdown(table, 4))
    )


if __name__ == "__main__":
    main()
