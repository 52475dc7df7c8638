"""What each published experiment is: its data, its split, what is fitted, and the rows it is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scdfm.benchmarking import Contender
from scdfm.config import Config, SplitConfig
from scdfm.data import CellTable
from scdfm.datasets import combosciplex, norman
from scdfm.datasets.generated import generated_combosciplex, generated_norman
from scdfm.datasets.screens import TEST
from scdfm.errors import ConfigError
from scdfm.files import write_h5ad

if TYPE_CHECKING:
    from anndata import AnnData

SCORED_GENES: Final = 1000
"""Genes of the published scores: the most variable ones of the panel over test and control cells."""

VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "full": {},
    "no MMD": {"mmd": {"weight": 0.0}},
    "no graph": {"graph": {"enabled": False}},
    "softmax attention": {"model": {"attention": "softmax"}},
}
"""The ablation: options over those of the full model."""

SMOKE: Final[dict[str, Any]] = {
    "panel": {"n_genes": 45},
    "graph": {"k": 5},
    "model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 1},
    "flow": {"genes_per_step": 16},
    "training": {
        "max_steps": 3, "conditions_per_batch": 1, "cells_per_condition": 6, "warmup_steps": 0, "validate_every": 3,
        "validation_cells": 4, "accelerator": "cpu",
    },
    "sampling": {"cells": 6, "steps": 2},
}  # fmt: skip
"""Sizes with which the whole chain runs in seconds; its figures mean nothing."""
SMOKE_GENES: Final = 30
SMOKE_FOLDS: Final = 1


@dataclass(frozen=True)
class Experiment:
    """One published experiment.

    `published` names data set and split of its rows (`scdfm.datasets.published()`), `parts` maps each published
    part to a part of the benchmark's tables. `apart`: singles and doubles are ranked among themselves.
    """

    name: str
    read: Callable[[Any], CellTable]
    generate: Callable[[], AnnData]
    file: str
    published: tuple[str, str]
    parts: Mapping[str, str]
    split: SplitConfig
    folds: tuple[int, ...]
    apart: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})

    def contenders(self, preset: str, smoke: bool, settings: Sequence[str] = ()) -> tuple[Contender, ...]:
        """The models that are fitted, as `preset` has them; `settings` are `section.key=value` texts over it all.

        The published panel has 5,000 variable genes, from which those of the scores are chosen: other presets take
        as many, of training cells alone where the preset says so.
        """
        panel = {"panel": {"n_genes": Config.preset("paper").panel.n_genes}}
        base = Config.preset(preset).updated(panel).updated(self.options).updated(SMOKE if smoke else {})
        return tuple(
            Contender(name or f"scdfm {preset}", base.updated(over).with_settings(list(settings)))
            for name, over in self.variants.items()
        )

    def table(self, data: str | Path | None, smoke: bool, folder: Path) -> CellTable:
        """The cells of the file `data`, of a small made-up one in its format, or of the download."""
        if smoke and data is None:
            path = folder / self.file
            if not path.is_file():
                write_h5ad(path, self.generate(), compression=None)
            return self.read(path)
        return self.read(data)


_DOUBLES: Final = {"double": "all"}
_ADDITIVE: Final[dict[str, Any]] = {
    "read": norman, "generate": generated_norman, "file": "norman.h5ad", "published": ("norman", "additive"),
    "parts": _DOUBLES, "split": SplitConfig(kind="additive"),
}  # fmt: skip

EXPERIMENTS: Final = {
    experiment.name: experiment
    for experiment in (
        Experiment("norman-additive", folds=(0, 1, 2, 3, 4), **_ADDITIVE),
        # The published rows are those of the split called `combinations`: their DS of the Control row, 0.5217 =
        # 1/2 + 1/(2·23), is that of 23 singles, which folds 0 and 3 of `combinations` have and 12 unseen genes never.
        Experiment(
            "norman-holdout", norman, generated_norman, "norman.h5ad", ("norman", "holdout"),
            {"single": "single", "double": "double"}, SplitConfig(kind="combinations"), (0, 1, 2, 3, 4), apart=True,
        ),
        Experiment(
            "combosciplex", combosciplex, generated_combosciplex, "combosciplex.h5ad", ("combosciplex", "published"),
            {"all": "all"}, SplitConfig(kind="named", test=TEST), (0,), options={"model": {"perturbation": "drugs"}},
        ),
        Experiment("ablation", folds=(0,), variants=VARIANTS, **_ADDITIVE),
    )
}  # fmt: skip


def experiment_named(name: str, unseen: bool = False) -> Experiment:
    """The experiment called `name`; with `unseen`, norman-holdout takes the split whose test targets never train."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"experiment '{name}': expected one of {', '.join(EXPERIMENTS)}")
    experiment = EXPERIMENTS[name]
    if not unseen:
        return experiment
    if name != "norman-holdout":
        raise ConfigError(f"--unseen goes with norman-holdout, found experiment '{name}'; leave it out")
    return replace(experiment, split=SplitConfig(kind="holdout"))
