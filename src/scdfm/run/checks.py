"""Files of a run folder are taken for what they are, not for what their names say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from scdfm.errors import RunError

REMEDY = "restore it or fit again"


def own_file(folder: Path, name: str) -> Path:
    """The file `name` of the run in `folder`; RunError where it is missing, or a link that leads out of the folder."""
    path = folder / name
    if not path.is_file():
        raise RunError(f"run {folder} is incomplete: {name} is missing; {REMEDY}")
    if path.resolve().parent != folder.resolve():
        raise RunError(
            f"run {folder}: {name} is a link that leads out of the run folder; copy the file into it"
        )
    return path


def fitting(weights: dict[str, torch.Tensor], field: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    """`weights` if they are those of `field` by name, shape and type, all finite; RunError names the first that is not."""
    expected = field.state_dict()
    if odd := sorted(expected.keys() ^ weights.keys()):
        what = "is missing" if odd[0] in expected else "is unknown"
        raise RunError(
            f"{path} does not fit the manifest's model: tensor '{odd[0]}' {what} ({len(odd)} such); {REMEDY}"
        )
    for name, tensor in weights.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise RunError(
                f"{path} does not fit the manifest's model: tensor '{name}' is {tensor.dtype} {list(tensor.shape)}, "
                f"expected {wanted.dtype} {list(wanted.shape)}; {REMEDY}"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise RunError(f"{path}: tensor '{name}' holds values that are not finite; {REMEDY}")
    return weights


def edges_of(tensors: dict[str, torch.Tensor], n_tokens: int, path: Path) -> torch.Tensor:
    """The edges int [2, E] of a graph over `n_tokens` tokens; RunError for anything else."""
    edges = tensors.get("edges")
    if edges is None or edges.ndim != 2 or len(edges) != 2 or edges.is_floating_point() or edges.is_complex():
        raise RunError(f"{path}: expected the tensor 'edges', whole numbers of shape [2, E]; {REMEDY}")
    edges = edges.long()
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < n_tokens:
        raise RunError(f"{path}: an edge leads to a token beyond the {n_tokens} of the vocabulary; {REMEDY}")
    return edges


def described_by(
    tensors: dict[str, torch.Tensor], n_names: int, path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [n_names, F], their centre [F] and factor [F], float32 and finite; RunError for anything else."""
    values = tensors.get("values")
    n_features = values.shape[1] if values is not None and values.ndim == 2 else 0
    shapes = {"values": [n_names, n_features], "centre": [n_features], "factor": [n_features]}
    if odd := sorted(tensors.keys() - shapes.keys()):
        raise RunError(f"{path}: tensor '{odd[0]}' is unknown; {REMEDY}")
    for name, shape in shapes.items():
        found = tensors.get(name)
        if found is None:
            raise RunError(f"{path}: tensor '{name}' is missing; {REMEDY}")
        if found.dtype != torch.float32 or list(found.shape) != shape or not found.numel():
            raise RunError(
                f"{path}: tensor '{name}' is {found.dtype} {list(found.shape)}, expected numbers (torch.float32) of "
                f"the {n_names} names of the manifest; {REMEDY}"
            )
        if not found.isfinite().all():
            raise RunError(f"{path}: tensor '{name}' holds values that are not finite; {REMEDY}")
    return tensors["values"].numpy(), tensors["centre"].numpy(), tensors["factor"].numpy()


def means_of(table: pd.DataFrame, genes: list[str], path: Path) -> pd.DataFrame:
    """Means of the run's `genes`, every one finite; RunError for anything else."""
    if list(table.columns) != genes:
        raise RunError(f"{path}: its columns are not the {len(genes)} genes of the run; {REMEDY}")
    numeric = all(np.issubdtype(kind, np.number) for kind in table.dtypes)
    if table.empty or not numeric or not np.isfinite(table.to_numpy(np.float64)).all():
        raise RunError(f"{path}: expected a finite number for each condition and gene; {REMEDY}")
    return table
