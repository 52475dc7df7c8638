"""Real glioblastoma lines, CRISPRi: (cell line × gene) pairs held out.

    python benchmarks/mcfaline.py ../shared/data/perturbench_devel.h5ad [--size small] [--folds 3] [--out DIR]

DATA has obs columns `dataset`, `perturbation` and `cell_type`; its cells with dataset `mcfaline23` are three lines with
nine genes and controls each. A fold holds out 30% of the pairs; each gene and each line stays in training elsewhere.
Finished pieces are kept in --out, so the command can be repeated.
"""

from __future__ import annotations

from pathlib import Path

import scdfm
from scdfm.config import SplitConfig
from screens import parser, pooled, sized, write_page

KEY = "cell_type"


def read(path: Path) -> scdfm.CellTable:
    """The three lines, the line as a covariate."""
    return scdfm.read_cells(path, subset={"dataset": "mcfaline23"}, covariates=[KEY])


def main() -> None:
    """Benchmark every fold; write one page."""
    options = parser(__doc__, "mcfaline")
    options.add_argument("--folds", type=int, default=3, help="draws of held-out pairs (small: one)")
    args = options.parse_args()
    cells = read(args.data)
    folds = 1 if args.size == "small" else args.folds
    settings, seeds, out = sized(args, "mcfaline")
    done = scdfm.benchmark(
        cells, SplitConfig(kind="covariate", covariate=KEY), range(folds), seeds, options=settings, out=out, resume=True
    )
    text = (
        f"{len(cells.conditions) - 1} pairs of a line and a gene, 30% of them held out in each of {folds} folds, {seeds} "
        f"seeds, {settings['training']['max_steps']} steps. None of the nine genes is among the 500 that are measured."
    )
    parts = [done.scores[done.scores["fold"] == fold] for fold in range(folds)]
    write_page(args, "mcfaline", "McFaline-Figueroa: unseen pairs of line and gene", text, *pooled(parts, ["default"]))


if __name__ == "__main__":
    main()
