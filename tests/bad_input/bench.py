"""What a table of malformed inputs is made of: a case, and the good files that it spoils."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file

import scdfm
from scdfm.files import file_digest
from scdfm.run import Run

SMALL = [
    "panel.n_genes=12", "graph.k=3", "model.width=16", "model.gene_heads=2", "model.layers=1", "flow.genes_per_step=8",
    "training.validate_every=2", "training.validation_cells=4", "training.cells_per_condition=4",
    "training.conditions_per_batch=2", "training.warmup_steps=1", "training.accelerator=cpu", "sampling.steps=1",
    "training.max_steps=2", "sampling.cells=4", "split.test_fraction=0.5",
]  # fmt: skip
OPTIONS = [word for setting in SMALL for word in ("--set", setting)]
DESIGN = ("--covariates", "cell_type", "--dose-key", "dose", "--time-key", "time")
"""The columns of the designed screen."""


@dataclass(frozen=True)
class Bench:
    """Good files (read only, shared by all cases) and an empty folder of the case's own."""

    screen: Path
    run: Path
    other_run: Path
    predicted: Path
    designed: Path
    """The screen with two cell types, doses and a time."""
    designed_run: Path
    """A fit of it, with features."""
    screened: Path
    """A finished `scdfm screen` of the run."""
    folder: Path

    def fit(self, *more: Any, data: Path | None = None, out: Any = None) -> list[Any]:
        """A command line that fits `data` (None: the good screen)."""
        return ["fit", data or self.screen, "--out", out or self.folder / "out", "--quiet", *OPTIONS, *more]

    def predict(self, *more: Any, run: Path | None = None) -> list[Any]:
        """A command line that predicts the test conditions of `run`."""
        chosen = [] if {"--conditions", "--all-pairs-of"} & set(map(str, more)) else ["--test"]
        return ["predict", run or self.run, "--out", self.folder / "p.h5ad", "--quiet", *chosen, *more]

    def evaluate(self, *more: Any, predicted: Path | None = None, real: Path | None = None) -> list[Any]:
        """A command line that evaluates."""
        paths = [predicted or self.predicted, real or self.screen]
        return ["evaluate", *paths, "--out", self.folder / "score", "--quiet", *more]

    @property
    def targets(self) -> list[str]:
        """Targets of the screen."""
        return Run.load(self.run).manifest.targets

    def file(self, name: str, content: str | bytes) -> Path:
        """A file of the case's own."""
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def screen_with(self, change: Callable[[ad.AnnData], Any], source: Path | None = None) -> Path:
        """A copy of the good screen (or of `source`) after `change`, which may return another AnnData."""
        adata = ad.read_h5ad(source or self.screen)
        changed = change(adata)
        adata = adata if changed is None else changed
        path = self.folder / "changed.h5ad"
        adata.write_h5ad(path)
        return path

    def screen_edited(self, change: Callable[[h5py.File], Any], source: Path | None = None) -> Path:
        """A copy of the good screen (or of `source`) whose HDF5 was edited by hand."""
        path = Path(shutil.copy(source or self.screen, self.folder / "edited.h5ad"))
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    def run_copy(self, source: Path | None = None) -> Path:
        """The good run (or `source`), to be spoilt."""
        return Path(shutil.copytree(source or self.run, self.folder / "run"))

    def run_with(self, change: Callable[[Path], Any], sign: bool = False, source: Path | None = None) -> Path:
        """A copy of the good run after `change`; with `sign` its manifest vouches for the files as they are then."""
        run = self.run_copy(source)
        change(run)
        return signed(run) if sign else run

    def manifest_with(self, change: Callable[[dict[str, Any]], Any], source: Path | None = None) -> Path:
        """A copy of the good run with an edited manifest."""

        def edit(run: Path) -> None:
            values = json.loads((run / "manifest.json").read_text())
            change(values)
            (run / "manifest.json").write_text(json.dumps(values))

        return self.run_with(edit, source=source)

    def weights_with(
        self, change: Callable[[dict[str, Any]], Any], file: str = "weights.safetensors", source: Path | None = None
    ) -> Path:
        """A copy of the good run with other tensors that its manifest vouches for."""

        def edit(run: Path) -> None:
            tensors = load_file(run / file)
            change(tensors)
            save_file(tensors, run / file)

        return self.run_with(edit, sign=True, source=source)


@dataclass(frozen=True)
class Case:
    """A command line and what must come of it: `words` (a regular expression of the one line), or success (None)."""

    name: str
    command: Callable[[Bench], Sequence[Any]]
    words: str | None
    code: int = 2


def signed(run: Path) -> Path:
    """`run` after its manifest took the digests of the files as they are."""
    values = json.loads((run / "manifest.json").read_text())
    values["digests"] = {name: file_digest(run / name) for name in values["digests"] if (run / name).is_file()}
    (run / "manifest.json").write_text(json.dumps(values))
    return run


def truncated(path: Path, share: float = 0.5) -> None:
    """Cut a file short."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def simulated(seed: int) -> ad.AnnData:
    """A screen of seconds: 14 genes, 3 singles, 3 doubles."""
    adata = scdfm.simulate(n_genes=14, n_targets=3, cells_per_condition=6, n_controls=10, truth_cells=2, seed=seed)
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 2, "odd", "even")
    adata.obs["part"] = ["test" if "+" in name else "train" for name in adata.obs["perturbation"].astype(str)]
    return adata


def designed(seed: int) -> ad.AnnData:
    """The screen of `simulated` with two cell types, one name holding a comma, two doses and a time."""
    adata = simulated(seed)
    perturbed = (adata.obs["perturbation"].astype(str) != "control").to_numpy()
    turn = np.arange(adata.n_obs) % 2
    adata.obs["cell_type"] = np.where(turn, "A, B", "C")
    adata.obs["dose"] = np.where(perturbed, 0.5, 0.0)
    adata.obs["time"] = np.where(perturbed, 24.0, 0.0)
    return adata


def conditions(adata: ad.AnnData) -> list[str]:
    """Names of the perturbed conditions."""
    return sorted(set(adata.obs["perturbation"].astype(str)) - {"control"})


def relabelled(names: dict[str, Any]) -> Callable[[ad.AnnData], None]:
    """A change that renames the n-th perturbed condition (sorted; `control` by its name)."""

    def change(adata: ad.AnnData) -> None:
        known = conditions(adata)
        mapping = {known[int(key)] if key.isdecimal() else key: value for key, value in names.items()}
        labels = adata.obs["perturbation"].astype(object)
        adata.obs["perturbation"] = pd.Series([mapping.get(label, label) for label in labels], adata.obs.index)

    return change
