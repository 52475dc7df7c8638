"""Where cells come from: one view on `.h5ad` files, `.zarr` stores and AnnData objects.

obs and var are read at once; a matrix stays on disk until its rows are asked for.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from scdfm.data.conditions import near
from scdfm.errors import DataError

# What h5py, zarr and anndata raise on files that are truncated, of another kind or of another version.
READ_ERRORS: Final = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Source:
    """An opened screen: obs, var, gene names, and access to its matrices by layer (None: X)."""

    name: str
    path: Path | None
    obs: pd.DataFrame
    var: pd.DataFrame
    genes: npt.NDArray[np.str_]
    layers: tuple[str, ...]
    open_matrix: Callable[[str | None], Any]
    seed: int | None = None
    """Of a prediction that scdfm made, the seed it was made with."""

    def matrix(self, layer: str | None) -> Any:
        """X, or the layer asked for; DataError names the layers there are."""
        if layer is not None and layer not in self.layers:
            known = ", ".join(self.layers) or "none"
            raise DataError(
                f"{self.name}: no layer '{layer}'; its layers are {known}{near(layer, self.layers)}"
            )
        try:
            matrix = self.open_matrix(layer)
            found = getattr(matrix, "shape", None)
        except READ_ERRORS as error:
            raise _unreadable(self.path or self.name, error) from error
        if matrix is None:
            raise DataError(
                f"{self.name} has no X; name one of its layers: {', '.join(self.layers) or 'none'}"
            )
        shape = (len(self.obs), len(self.genes))
        if found is not None and tuple(found) != shape:
            raise DataError(
                f"{self.name}: the matrix has shape {tuple(found)}, expected {shape}; write it anew"
            )
        return matrix


@contextlib.contextmanager
def open_source(path_or_adata: Any) -> Iterator[Source]:
    """The screen at a path, or in an AnnData, for as long as the block lasts."""
    if isinstance(path_or_adata, str | Path):
        path = Path(path_or_adata)
        with _open_group(path) as group:
            yield _from_group(group, path)
        return
    if not all(hasattr(path_or_adata, name) for name in ("obs", "var_names", "layers", "X")):
        raise DataError(f"cells: expected a path or an AnnData, found a {type(path_or_adata).__name__}")
    yield _from_adata(path_or_adata)


def _from_adata(adata: Any) -> Source:
    return Source(
        name="AnnData",
        path=None,
        obs=adata.obs,
        var=adata.var if hasattr(adata, "var") else pd.DataFrame(index=adata.var_names),
        genes=np.asarray(adata.var_names.astype(str), dtype=np.str_),
        layers=tuple(adata.layers.keys()),
        open_matrix=lambda layer: adata.X if layer is None else adata.layers[layer],
        seed=_seed({"uns": getattr(adata, "uns", {})}),
    )


def _seed(root: Any) -> int | None:
    """The seed that `scdfm.run.predict` left in uns; None where nobody did, or it is no seed."""
    try:
        value = root["uns"]["scdfm"]["seed"]
        seed = np.asarray(value[()] if hasattr(value, "shape") else value)
    except (*READ_ERRORS, IndexError):
        return None
    return int(seed) if seed.shape == () and seed.dtype.kind in "iu" and seed >= 0 else None


@contextlib.contextmanager
def _open_group(path: Path) -> Iterator[Any]:
    """The root group of an h5ad file or a zarr store."""
    try:
        found = path.exists()
    except (OSError, ValueError):  # no name that this file system could have
        found = False
    if not found:
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

    if not h5py.is_hdf5(path):
        raise DataError(f"{path} is not an h5ad (HDF5) file; expected one written by AnnData.write_h5ad")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        yield file


def _from_group(group: Any, path: Path) -> Source:
    from anndata.io import read_elem, sparse_dataset

    try:
        keys = set(group.keys())
        layers = tuple(group["layers"].keys()) if "layers" in keys else ()
        with warnings.catch_warnings(action="ignore"):  # on old or odd files, which are read or refused below
            tables = [read_elem(group[name]) for name in ("obs", "var") if name in keys]
    except Exception as error:
        # The error for an encoding that this anndata does not know is private to anndata.
        if isinstance(error, READ_ERRORS) or type(error).__name__ == "IORegistryError":
            raise _unreadable(path, error) from error
        raise
    if len(tables) < 2:
        raise DataError(
            f"{path} is not an AnnData file: it has no obs and var; write it with AnnData.write_h5ad"
        )
    obs, var = tables
    if not isinstance(obs, pd.DataFrame) or not isinstance(var, pd.DataFrame):
        raise DataError(
            f"{path}: obs and var are not tables; read it with anndata and write it anew (write_h5ad)"
        )

    def open_matrix(layer: str | None) -> Any:
        if layer is None and "X" not in keys:
            return None
        element = group["X"] if layer is None else group[f"layers/{layer}"]
        return sparse_dataset(element) if hasattr(element, "keys") else element

    genes = np.asarray(var.index.astype(str), dtype=np.str_)
    return Source(path.name, path, obs, var, genes, layers, open_matrix, _seed(group))


def reason(error: BaseException) -> str:
    """The kind of a library's error and the start of its text, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _unreadable(path: Path | str, error: BaseException) -> DataError:
    return DataError(f"{path} cannot be read as AnnData ({reason(error)}); write it anew (write_h5ad)")
