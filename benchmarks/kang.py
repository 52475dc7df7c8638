"""Real PBMC under interferon β, a cell type held out: its stimulated cells are predicted from its own controls.

    python benchmarks/kang.py ../shared/data/kang_pbmc.h5ad [--size small] [--types "B cells,CD8 T cells"] [--out DIR]

DATA holds counts with obs columns `cluster_id` (cell type) and `group_id` (ctrl, stim). For each cell type, every
seed fits on the stimulated cells of the other types and on all control cells, and predicts `stim|cluster_id=TYPE`.
Finished pieces are kept in --out, so the command can be repeated.
"""

from __future__ import annotations

from pathlib import Path

import scdfm
from scdfm.config import SplitConfig
from screens import parser, pooled, sized, write_page

KEY = "cluster_id"


def read(path: Path) -> scdfm.CellTable:
    """The screen, with the cell type as a covariate."""
    return scdfm.read_cells(path, "group_id", "ctrl", target_sum=10_000, covariates=[KEY])


def types(cells: scdfm.CellTable) -> list[str]:
    """The cell types, by name."""
    return sorted(cells.obs[KEY].astype(str).unique())


def main() -> None:
    """Hold out each cell type in turn; write one page."""
    options = parser(__doc__, "kang")
    options.add_argument(
        "--types", help="cell types that are held out, separated by commas (default: each; small: two)"
    )
    args = options.parse_args()
    cells = read(args.data)
    chosen = args.types.split(",") if args.types else types(cells)[: 2 if args.size == "small" else None]
    settings, seeds, out = sized(args, "kang", model={"perturbation": "drugs"})
    scores = [
        scdfm.benchmark(
            cells, SplitConfig(kind="covariate", covariate=KEY, value=held), (0,), seeds, options=settings,
            out=out / held.replace(" ", "_"), resume=True,
        ).scores
        for held in chosen
    ]  # fmt: skip
    text = (
        f"Each of {len(chosen)} cell types held out in turn ({', '.join(chosen)}), {seeds} seeds, "
        f"{settings['training']['max_steps']} steps. One condition is scored to a cell type, so that ranks among "
        "conditions (ds) say nothing and intervals are over cell types."
    )
    write_page(args, "kang", "Kang: the interferon response of an unseen cell type", text, *pooled(scores, ["default"]))


if __name__ == "__main__":
    main()
