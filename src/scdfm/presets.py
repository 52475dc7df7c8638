"""The presets, as what each changes of the defaults in `scdfm.config`: default, instant, paper, tiny."""

from __future__ import annotations

from typing import Any

# The published settings, every one that decides a number (docs/differences.md says where scdfm's own differ).
# Test cells still never choose checkpoints: nothing validates, the last weights are kept.
PAPER: dict[str, Any] = {
    "panel": {"n_genes": 5000, "flavor": "seurat", "cells": "all"},
    "graph": {"enabled": True, "k": 30, "negative_edges": True, "faithful": True},
    "model": {
        "backbone": "differential_perceiver", "attention": "differential", "width": 512, "heads": 8,
        "gene_heads": 8, "layers": 4, "dropout": 0.1,
    },
    "flow": {
        "source": "gaussian", "prior_means": "leave_one_out", "pairing": "random", "time": "uniform",
        "genes_per_step": 1000,
    },
    "mmd": {"weight": 0.5, "scales": [0.5, 1.0, 2.0, 4.0]},
    "training": {
        "max_steps": 100_000, "conditions_per_batch": 1, "cells_per_condition": 96, "sampling": "condition",
        "optimizer": "adam", "learning_rate": 5e-5, "min_learning_rate": 1e-6, "warmup_steps": 0,
        "weight_decay": 0.0, "clip_norm": 0.0, "ema_decay": 0.0, "precision": "32", "validate_every": 5000,
        "keep": "last",
        "keep_controls": 10_000,
    },
    "sampling": {
        "cells": 128, "solver": "rk4", "steps": 19, "genes": "joint", "clamp": True, "dropout": True,
        "noise": "independent", "shrink": False,
    },
    "split": {"test_fraction": 0.3, "validation_fraction": 0.0},
}  # fmt: skip

# For a first look on any machine: minutes on two cores.
TINY: dict[str, Any] = {
    "panel": {"n_genes": 200},
    "graph": {"k": 10},
    "flow": {"genes_per_step": 128},
    "training": {"max_steps": 450, "ema_decay": 0.99, "validate_every": 150},
}

# No training: the closed-form prior and its populations, in seconds. The network that is never asked stays small.
INSTANT: dict[str, Any] = {
    "graph": {"enabled": False},
    "model": {"width": 8, "heads": 1, "gene_heads": 1, "layers": 1},
    "training": {"max_steps": 0},
}

PRESETS: dict[str, dict[str, Any]] = {"default": {}, "instant": INSTANT, "paper": PAPER, "tiny": TINY}
