"""Is the backbone whose cost is linear in genes as accurate as the published one?

    python benchmarks/backbones.py SCREEN.h5ad [--size minimal|small|large] [--seeds 3] [--folds 0] [--out DIR]

SCREEN is a screen of singles and doubles, log1p, obs column `perturbation`. Both backbones see the same folds, seeds
and steps, and predict the test doubles, scored beside all baselines. Prints means over test conditions with 95%
intervals, and each other backbone against the published one, paired by fold, seed and condition; writes both to
benchmarks/results/backbones.md. `small` takes two cores about a quarter of an hour, `large` wants a GPU. Finished
pieces are kept: repeat the command to go on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import scdfm
from ablation import METRICS, against, scores
from scdfm.benchmarking import Contender, benchmark
from scdfm.files import write_text
from screens import heading

PUBLISHED = "published"
BACKBONES: dict[str, dict[str, Any]] = {
    PUBLISHED: {},
    "linear": {"model": {"backbone": "linear"}},
    "linear 8 tokens": {"model": {"backbone": "linear", "latents": 8}},
}
_SMALL: dict[str, Any] = {
    "panel": {"n_genes": 300},
    "model": {"width": 32, "heads": 2, "layers": 2},
    "flow": {"genes_per_step": 128},
    "training": {
        "max_steps": 1000, "conditions_per_batch": 8, "cells_per_condition": 4, "warmup_steps": 50,
        "validate_every": 1000, "ema_decay": 0.99,
    },
    "sampling": {"cells": 32},
    "split": {"validation_fraction": 0.0},
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "minimal": {
        **_SMALL, "panel": {"n_genes": 60}, "flow": {"genes_per_step": 40},
        "training": {**_SMALL["training"], "max_steps": 40, "warmup_steps": 5, "validate_every": 40},
        "sampling": {"cells": 8, "steps": 2},
    },
    "small": _SMALL,
    "large": {
        "model": {"width": 256, "heads": 8, "layers": 4},
        "flow": {"genes_per_step": 1000},
        "training": {
            "max_steps": 20_000, "conditions_per_batch": 8, "cells_per_condition": 12, "learning_rate": 5e-4,
            "warmup_steps": 500, "validate_every": 20_000, "precision": "bf16",
        },
        "split": {"validation_fraction": 0.0},
    },
}  # fmt: skip


def main() -> None:
    """Run every piece that is not there yet; print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="folder of the pieces; by default runs/backbones-SIZE")
    parser.add_argument("--table", type=Path, default=Path(__file__).parent / "results" / "backbones.md")
    args = parser.parse_args()
    base = scdfm.Config().updated(SIZES[args.size])
    result = benchmark(
        args.screen, "additive", args.folds, args.seeds, out=args.out or Path(f"runs/backbones-{args.size}"),
        metrics=METRICS, resume=True,
        models=[Contender(name, base.updated(over)) for name, over in BACKBONES.items()],
    )  # fmt: skip
    others = [name for name in BACKBONES if name != PUBLISHED]
    text = "\n\n".join(
        [
            "\n".join(heading("Backbones"))
            + f"\nSize {args.size}: {base.training.max_steps} steps, width {base.model.width}, "
            f"{base.flow.genes_per_step} genes a step, folds {args.folds}, {args.seeds} seeds. Means over test "
            "conditions with 95% intervals.",
            scores(result),
            against(result.scores, PUBLISHED, others),
        ]
    )
    args.table.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.table, text)
    print(text)


if __name__ == "__main__":
    main()
