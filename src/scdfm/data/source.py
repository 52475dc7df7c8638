"""Where cells come from: one view on `.h5ad` and `.h5mu` files, `.zarr` stores and AnnData objects.

obs and var are read at once; a matrix stays on disk until its rows are asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from scdfm.data.conditions import near
from scdfm.data.tables import (
    MANY,
    READ_ERRORS,
    UNSEEN,
    distinct,
    is_read_error,
    read_distinct,
    read_table,
    reason,
    tidied,
    unreadable,
)
from scdfm.errors import DataError, ScdfmError

RAW: Final = "raw"
"""Name that the matrix and the genes of `.raw` are read by, as if it were a layer."""
MODALITIES: Final = ("rna", "gex", "gene expression", "expression")
"""What the modality of genes is called in a MuData file, in any case."""


@dataclass(frozen=True)
class Source:
    """An opened screen: obs, var, gene names, and access to its matrices by layer (None: X).

    `open_raw` gives the matrix of `.raw`, whose table of genes is `raw_var`; `notes` say what of the file is read.
    `counts` is the number of cells that each row of obs stands for, where it holds each kind of cells once.
    """

    name: str
    path: Path | None
    obs: pd.DataFrame
    var: pd.DataFrame
    genes: npt.NDArray[np.str_]
    layers: tuple[str, ...]
    open_matrix: Callable[[str | None], Any]
    raw_var: pd.DataFrame | None = None
    open_raw: Callable[[], Any] | None = None
    notes: tuple[str, ...] = ()
    counts: pd.Series[int] | None = None
    seed: int | None = None
    """Of a prediction that scdfm made, the seed it was made with."""
    drawn_evenly: bool = False
    """Of such a prediction, whether its cells are no independent draws (`sampling.noise` "stratified")."""

    @property
    def n_cells(self) -> int:
        """The number of cells."""
        return len(self.obs) if self.counts is None else int(self.counts.sum())

    @property
    def readable(self) -> tuple[str, ...]:
        """What can be read instead of X: the layers, and `raw`."""
        return self.layers if self.raw_var is None or RAW in self.layers else (*self.layers, RAW)

    def at(self, layer: str | None) -> Source:
        """This source with the genes that `layer` is measured on: those of `.raw` for `raw`, if no layer is called so."""
        if layer != RAW or RAW in self.layers or self.raw_var is None or self.open_raw is None:
            return self
        open_raw = self.open_raw
        return replace(
            self, var=self.raw_var, genes=_genes(self.raw_var), layers=(RAW,), open_matrix=lambda _: open_raw(),
            raw_var=None, open_raw=None,
        )  # fmt: skip

    def matrix(self, layer: str | None) -> Any:
        """X, or the layer asked for; DataError names the layers there are."""
        layer = None if layer == "X" and layer not in self.layers else layer
        if layer is not None and layer not in self.layers:
            layers = ", ".join(self.readable) or "none"
            raise DataError(
                f"{self.name}: no layer '{layer}'; its layers are {layers}{near(layer, self.readable)}: name one "
                "of them with layer (--layer), X for the matrix itself"
            )
        try:
            matrix = self.open_matrix(layer)
            matrix_shape = getattr(matrix, "shape", None)
        except READ_ERRORS as error:
            raise _unreadable(self.path or self.name, error) from error
        if matrix is None:
            what = "X" if layer is None else f"values in layer '{layer}'"
            others = [name for name in self.readable if name != layer]
            raise DataError(
                f"{self.name} has no {what}; name one of its layers with --layer (layer=...): {', '.join(others)}"
                if others
                else f"{self.name} has no {what}, no other layer and no .raw; store the expression of its cells as X"
            )
        shape = (self.n_cells, len(self.genes))
        if matrix_shape is not None and tuple(matrix_shape) != shape:
            raise DataError(f"{self.name}: the matrix has shape {tuple(matrix_shape)}, expected {shape}; write it anew")
        return matrix


@contextlib.contextmanager
def open_source(path_or_adata: Any, rank: Callable[[str], int] | None = None) -> Iterator[Source]:
    """The screen at a path, or in an AnnData or MuData, for as long as the block lasts.

    rank: given, obs of many cells holds each kind of them once, with its number of cells, which is enough to look at;
    columns of low rank tell kinds apart first (`tables.distinct`).
    """
    if isinstance(path_or_adata, str | Path):
        path = Path(path_or_adata)
        with _open_group(path) as group:
            yield _from_group(group, path, rank)
        return
    if isinstance(modalities := getattr(path_or_adata, "mod", None), Mapping):
        name = _modality(modalities, "MuData")
        others = {other: tidied(part.obs) for other, part in modalities.items() if other != name}
        yield _with_shared(_from_adata(modalities[name], None), tidied(path_or_adata.obs), others, name)
        return
    if not all(hasattr(path_or_adata, name) for name in ("obs", "var_names", "layers", "X")):
        raise DataError(f"cells: expected a path or an AnnData, found a {type(path_or_adata).__name__}")
    yield _from_adata(path_or_adata, rank)


def _from_adata(adata: Any, rank: Callable[[str], int] | None) -> Source:
    raw = getattr(adata, "raw", None)
    var = tidied(adata.var) if hasattr(adata, "var") else pd.DataFrame(index=adata.var_names)
    obs, counts = tidied(adata.obs), None
    if rank is not None and len(obs) > MANY:
        obs, counts = distinct(
            [(name, partial(obs.iloc.__getitem__, (slice(None), at))) for at, name in enumerate(obs)], len(obs), rank
        )
    return Source(
        name="AnnData",
        path=None,
        obs=obs,
        var=var,
        genes=_genes(var),
        layers=tuple(adata.layers.keys()),
        open_matrix=lambda layer: adata.X if layer is None else adata.layers[layer],
        seed=_seed({"uns": getattr(adata, "uns", {})}),
        drawn_evenly=_drawn_evenly({"uns": getattr(adata, "uns", {})}),
        raw_var=None if raw is None else tidied(raw.var),
        open_raw=None if raw is None else lambda: raw.X,
        notes=_unseen(obs),
        counts=counts,
    )


def _seed(root: Any) -> int | None:
    """The seed that `scdfm.run.predict` left in uns; None where nobody did, or it is no seed."""
    seed = _said(root, "seed")
    if seed is None or seed.shape != () or seed.dtype.kind not in "iu":
        return None
    return int(seed) if seed >= 0 else None


def _drawn_evenly(root: Any) -> bool:
    """Whether `scdfm.run.predict` says in uns that it drew evenly."""
    text = _said(root, "sampling")
    try:
        options = json.loads(text.item()) if text is not None and text.shape == () else {}
        return bool(options["noise"] == "stratified")
    except (TypeError, ValueError, KeyError):
        return False


def _said(root: Any, key: str) -> npt.NDArray[Any] | None:
    """What uns holds of how scdfm made a prediction; None where nobody left it."""
    try:
        value = root["uns"]["scdfm"][key]
        return np.asarray(value[()] if hasattr(value, "shape") else value)
    except (*READ_ERRORS, IndexError):
        return None


@contextlib.contextmanager
def _open_group(path: Path) -> Iterator[Any]:
    """The root group of an h5ad file or a zarr store."""
    try:
        exists = path.exists()
    except (OSError, ValueError):  # no name that this file system could have
        exists = False
    if not exists:
        raise DataError(f"{path} does not exist; expected an .h5ad file or a .zarr store: check the path")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} cannot be read (permission denied); ask its owner for the right to read it")
    if path.is_dir():
        import zarr

        try:
            group = zarr.open_group(path, mode="r")
        except (*READ_ERRORS, zarr.errors.BaseZarrError) as error:
            raise _unreadable(path, error) from error
        yield group
        return
    import h5py

    try:
        if not h5py.is_hdf5(path):
            raise DataError(f"{path} is not an h5ad (HDF5) file; expected one written by AnnData.write_h5ad")
        file = h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    with file:
        yield file


def _from_group(group: Any, path: Path, rank: Callable[[str], int] | None) -> Source:
    try:
        keys = set(group.keys())
        if "mod" in keys and "X" not in keys:
            return _from_modalities(group, path)
        layers = tuple(group["layers"].keys()) if "layers" in keys else ()
        counts = None
        tables = [read_table(group[name]) for name in ("var",) if name in keys]
        if "obs" in keys:
            obs, counts = (read_table(group["obs"]), None) if rank is None else read_distinct(group["obs"], rank)
            tables.insert(0, obs)
        raw = _raw_of(group, keys)
        raw_var = None if raw is None else read_table(raw[1])
    except ScdfmError:
        raise
    except Exception as error:
        if is_read_error(error):
            raise _unreadable(path, error) from error
        raise
    if len(tables) < 2:
        raise DataError(f"{path} is not an AnnData file: it has no obs and var; write it with AnnData.write_h5ad")
    obs, var = tables
    if not isinstance(obs, pd.DataFrame) or not isinstance(var, pd.DataFrame):
        raise DataError(f"{path}: obs and var are not tables; read it with anndata and write it anew (write_h5ad)")

    def open_matrix(layer: str | None) -> Any:
        if layer is None and "X" not in keys:
            return None
        return _opened(group["X"] if layer is None else group[f"layers/{layer}"])

    notes = tuple(f"obs['{column}'] cannot be read and is left out ({why})" for column, why in unreadable(obs).items())
    notes += _unseen(obs)
    return Source(
        path.name, path, obs, var, _genes(var), layers, open_matrix, raw_var,
        None if raw is None else lambda: _opened(raw[0]), notes, counts, _seed(group),
        _drawn_evenly(group),
    )  # fmt: skip


def _genes(var: pd.DataFrame) -> npt.NDArray[np.str_]:
    """The names of the genes, without blanks around them."""
    names = np.asarray(var.index.astype(str), dtype=np.str_)
    return np.char.strip(names) if len(names) else names


def _unseen(obs: pd.DataFrame) -> tuple[str, ...]:
    """Which columns of many cells are not looked at."""
    unseen = obs.attrs.get(UNSEEN, [])
    return (f"of so many cells these columns of obs are not looked at: {', '.join(unseen)}",) if unseen else ()


def _raw_of(group: Any, keys: set[str]) -> tuple[Any, Any] | None:
    """The elements of the matrix and the genes of `.raw`, also where an old file has them at its root."""
    places = (("raw/X", "raw/var"), ("raw.X", "raw.var"))
    first = {"raw", "raw.X"} & keys
    pairs = [pair for pair in places if first and all(name in group for name in pair)]
    return (group[pairs[0][0]], group[pairs[0][1]]) if pairs else None


def _opened(element: Any) -> Any:
    """A matrix on disk; None where the file says that there is none."""
    from anndata.io import sparse_dataset

    if element.attrs.get("encoding-type") == "null" or getattr(element, "shape", ()) is None:
        return None
    return sparse_dataset(element) if hasattr(element, "keys") else element


def _from_modalities(group: Any, path: Path) -> Source:
    """The genes' modality of a MuData file, with what the whole file and its other modalities say of the cells."""
    name = _modality(group["mod"], str(path))
    source = _from_group(group[f"mod/{name}"], path, None)
    others = {
        str(other): read_table(group[f"mod/{other}/obs"])
        for other in group["mod"]
        if other != name and "obs" in group[f"mod/{other}"]
    }
    return _with_shared(source, read_table(group["obs"]) if "obs" in group else None, others, name)


def _modality(modalities: Any, where: str) -> str:
    names = [str(name) for name in modalities]
    named = [name for name in names if name.strip().lower() in MODALITIES]
    if len(candidates := named[:1] or names) != 1:
        raise DataError(
            f"{where} is a MuData file of the modalities {', '.join(names) or 'none'}; expected one called rna: take yours "
            f"out, in Python: anndata.io.read_elem(h5py.File('{where}')['mod/NAME']).write_h5ad('NAME.h5ad')"
        )
    return candidates[0]


def _with_shared(source: Source, shared: Any, others: Mapping[str, Any], modality: str) -> Source:
    """`source` with the columns that the whole MuData has of its cells, and those of the `others` as `NAME:column`."""
    obs = source.obs
    tables = [(shared, lambda column: column.removeprefix(f"{modality}:"))]
    tables += [(table, lambda column, name=name: f"{name}:{column}") for name, table in others.items()]  # type: ignore[misc]
    for table, named in tables:
        if not isinstance(table, pd.DataFrame) or not table.index.is_unique:
            continue
        renamed = table.rename(columns=named)
        further = renamed.columns.difference(obs.columns, sort=False).unique()
        further = further[[list(renamed.columns).count(column) == 1 for column in further]]
        obs = obs.join(renamed[further]) if len(further) else obs
    notes = (f"this is a MuData file: its modality '{modality}' is read", *source.notes)
    return replace(source, obs=obs, notes=notes)


def _unreadable(path: Path | str, error: BaseException) -> DataError:
    return DataError(f"{path} cannot be read as AnnData ({reason(error)}); write it anew (write_h5ad)")
