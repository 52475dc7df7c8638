"""The folder of a screen: shards written whole or not at all, so that a screen stopped anywhere goes on.

screen.json         what was asked: runs, conditions, cells, seed
means/00000.h5ad    mean predicted expression, condition × gene, of the first shard, its numbers in obs
cells/00000.h5ad    the predicted cells of that shard, where they are kept
table.parquet       one row a condition, best first
calibration.json    how uncertainty was calibrated
proposed.csv        the conditions to measure next, where asked for
screen.html         the page
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import anndata as ad
import numpy as np
import pandas as pd

from scdfm.data.tables import READ_ERRORS
from scdfm.errors import ConditionError, RunError
from scdfm.evaluation.pseudobulk import Floats
from scdfm.files import made, read_text, written_whole
from scdfm.jobs import Parts
from scdfm.screening.effect import Effect

RECORD: Final = "screen.json"
TABLE: Final = "table.parquet"
CALIBRATION: Final = "calibration.json"
PROPOSED: Final = "proposed.csv"
PAGE: Final = "screen.html"
MEANS, CELLS = "means", "cells"
NUMBERS: Final = ("energy", "genes_shifted", "shift", "spread")


@dataclass(frozen=True)
class Shard:
    """The conditions of one file and what was found of them: `means` [k, G], `rows` [k] of NUMBERS, `points` [k, n, 2]."""

    names: tuple[str, ...]
    means: Floats
    rows: pd.DataFrame
    points: Floats


@dataclass(frozen=True)
class Store(Parts):
    """The shards of a screen over `genes`; what says that one is complete is the file of its means."""

    pattern: str = f"{MEANS}/{{:05d}}.h5ad"
    genes: tuple[str, ...] = ()

    def cells(self, shard: int) -> Path:
        """Where the cells of a shard are, if they are kept."""
        return self.folder / CELLS / self.path(shard).name

    def write(self, shard: int, effects: Sequence[Effect], cells: ad.AnnData | None) -> None:
        """Write a shard; its means come last, since their file says that the shard is complete."""
        if cells is not None:
            _write(self.cells(shard), cells)
        obs = pd.DataFrame(
            {name: [getattr(effect, name) for effect in effects] for name in NUMBERS},
            index=pd.Index(self.conditions(shard), name="condition", dtype=object),
        )
        var = pd.DataFrame(index=pd.Index(self.genes, name="gene", dtype=object))
        means = ad.AnnData(np.stack([effect.mean for effect in effects]).astype(np.float32), obs=obs, var=var)
        points = np.stack([effect.points for effect in effects]).astype(np.float32)
        means.obsm["points"] = points.reshape(len(effects), -1)
        _write(self.path(shard), means)

    def read(self, shard: int) -> Shard:
        """A shard that is complete; RunError where its file is damaged or of other conditions."""
        path = self.path(shard)
        try:
            adata = ad.read_h5ad(path)
        except FileNotFoundError:
            raise RunError(
                f"screen {self.folder} is not complete: {len(self.missing())} of {len(self)} shards are missing; "
                "finish it with --resume"
            ) from None
        except READ_ERRORS as error:
            raise RunError(f"screen: {path} cannot be read ({error}); remove it and go on with --resume") from error
        names = tuple(map(str, adata.obs_names))
        if names != self.conditions(shard) or tuple(map(str, adata.var_names)) != self.genes:
            raise RunError(
                f"screen: {path} holds other conditions or genes than {RECORD} says; remove it, go on with --resume"
            )
        points = np.asarray(adata.obsm["points"], dtype=np.float64).reshape(len(names), -1, 2)
        return Shard(names, np.asarray(adata.X, dtype=np.float64), adata.obs[list(NUMBERS)], points)

    def shards(self) -> Iterator[Shard]:
        """Every shard in order."""
        return (self.read(shard) for shard in range(len(self)))

    def means(self, names: Sequence[str]) -> pd.DataFrame:
        """Mean predicted log1p expression, condition × gene, of some of the store's conditions; each shard is read once."""
        place = {name: at for at, name in enumerate(self.names)}
        values = np.empty((len(names), len(self.genes)))
        by_shard: dict[int, list[int]] = {}
        for row, name in enumerate(names):
            by_shard.setdefault(place[name] // self.size, []).append(row)
        for shard, rows in by_shard.items():
            values[rows] = self.read(shard).means[[place[names[row]] % self.size for row in rows]]
        return pd.DataFrame(values, index=pd.Index(names, name="condition"), columns=list(self.genes))


def _write(path: Path, adata: ad.AnnData) -> None:
    made(path.parent)
    with written_whole(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")


class Screen:
    """A finished screen, opened with `Screen.load(path)`: its `table`, and the means and cells behind it."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record

    @classmethod
    def load(cls, path: str | Path) -> Screen:
        """Open the folder of a screen; RunError where it is none."""
        path = Path(path).absolute()  # the working folder may change before its files are read
        try:
            record = dict(json.loads(read_text(path / RECORD)))
            record["names"], record["genes"], record["shard"]
        except FileNotFoundError:
            raise RunError(
                f"{path} is not the folder of a screen: {RECORD} is missing; give the --out of scdfm screen"
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path / RECORD} cannot be read ({error!r}); screen again") from error
        return cls(path, record)

    @cached_property
    def store(self) -> Store:
        """The shards."""
        record = self.record
        return Store(self.path, tuple(record["names"]), int(record["shard"]), genes=tuple(record["genes"]))

    @property
    def is_complete(self) -> bool:
        """Whether every shard and the table are there."""
        return (self.path / TABLE).is_file() and not self.store.missing()

    @property
    def genes(self) -> list[str]:
        """The predicted genes."""
        return list(self.store.genes)

    @property
    def conditions(self) -> list[str]:
        """The conditions asked for, in the order of the shards."""
        left_out = set(self.record["calibrating"])
        return [name for name in self.store.names if name not in left_out]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a condition, best first; its columns are explained in docs/screening.md."""
        try:
            return pd.read_parquet(self.path / TABLE)
        except FileNotFoundError:
            raise RunError(
                f"screen {self.path} is not complete: {len(self.store.missing())} of {len(self.store)} shards "
                "are missing; finish it with --resume"
            ) from None

    @cached_property
    def calibration(self) -> dict[str, Any]:
        """How uncertainty was calibrated."""
        return dict(json.loads(read_text(self.path / CALIBRATION)))

    @property
    def proposed(self) -> list[str]:
        """The conditions to measure next, first first; empty where none were asked for."""
        path = self.path / PROPOSED
        if not path.is_file():
            return []
        return [str(name) for name in pd.read_csv(path, keep_default_na=False)["condition"]]

    def means(self, conditions: Sequence[str] | None = None) -> pd.DataFrame:
        """Mean predicted log1p expression, condition × gene, of `conditions` (None: all that were asked for)."""
        names = self.conditions if conditions is None else list(conditions)
        self._require(names)
        return self.store.means(names)

    def cells(self, condition: str) -> ad.AnnData:
        """The predicted cells of `condition`; RunError where the screen did not keep cells."""
        if not self.record["keep_cells"]:
            raise RunError(f"screen {self.path} kept no cells; screen with --keep-cells, or predict them")
        self._require([condition])
        cells = ad.read_h5ad(self.store.cells(self.store.names.index(condition) // self.store.size))
        return cells[(cells.obs["condition"] == condition).to_numpy()].copy()

    def _require(self, names: Sequence[str]) -> None:
        held = set(self.store.names)
        if unknown := [name for name in names if name not in held]:
            raise ConditionError(
                f"condition '{unknown[0]}' is not part of screen {self.path}; screen it, or ask for another"
            )

    def __repr__(self) -> str:
        return f"Screen({str(self.path)!r}, {len(self.conditions)} conditions, {len(self.genes)} genes)"
