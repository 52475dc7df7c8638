"""What lies in a run folder: the names of its files, each written whole and checked when it is read.

    manifest.json         config, vocabulary, panel, split, scale, versions, seed
    weights.safetensors   the weights that predict
    graph.safetensors     edges of the co-expression graph over the vocabulary
    means.csv             mean log1p expression of control and of each training and validation condition
    prior.safetensors     what measured conditions let expect of others, where the flow starts from that
    training_prior.safetensors  likewise, what training conditions alone do, where there are validation conditions
    spread.safetensors    how cells differ around the mean of their condition, likewise
    controls.h5ad         control cells, so that the run predicts alone (unless training.keep_controls is 0)
    counts.safetensors    the dispersion of training cells' counts, where their values are those of counts
    features.safetensors  features of perturbations, where the fit had some
    log.csv               the training curves
    checkpoints/          last and best, for --resume
Nothing in it is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from scdfm.data import CellTable
from scdfm.data.features import FeatureTable, Standardiser
from scdfm.errors import RunError
from scdfm.files import write_h5ad, written_whole
from scdfm.run.manifest import Manifest

FILES = WEIGHTS, GRAPH, MEANS, PRIOR, TRAINING_PRIOR, SPREAD, CONTROLS, COUNTS, FEATURES = (
    "weights.safetensors", "graph.safetensors", "means.csv", "prior.safetensors", "training_prior.safetensors",
    "spread.safetensors", "controls.h5ad", "counts.safetensors", "features.safetensors",
)  # fmt: skip
"""What the manifest keeps digests of."""
LOG = "log.csv"
REMEDY = "restore it or fit again"


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write named tensors as safetensors, whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with written_whole(path, sum(value.nbytes for value in tensors.values())) as temporary:
        save_file(tensors, temporary)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Named tensors of a safetensors file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch maps the file in a way of its own
        raise RunError(f"{path} cannot be read as safetensors ({error}); restore it or fit again") from error


def write_graph(path: Path, graph: np.ndarray) -> None:
    """Store a graph bool [V, V] (True = may attend) as its edges, int32 [2, E]."""
    write_tensors(path, {"edges": torch.from_numpy(np.stack(np.nonzero(graph)).astype(np.int32))})


def read_graph(path: Path, n_tokens: int) -> torch.Tensor:
    """The graph bool [V, V] of `write_graph`."""
    edges = edges_of(read_tensors(path), n_tokens, path)
    graph = torch.zeros(n_tokens, n_tokens, dtype=torch.bool)
    graph[edges[0], edges[1]] = True
    return graph


def write_features(path: Path, features: FeatureTable, standardise: Standardiser) -> None:
    """Store features as they were given, and what brings them to one scale."""
    assert features.known is not None
    arrays = {"values": features.values, "centre": standardise.centre, "factor": standardise.factor}
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    write_tensors(path, tensors | {"known": torch.from_numpy(features.known)})


def read_features(path: Path, manifest: Manifest) -> tuple[FeatureTable, Standardiser]:
    """The features of `write_features`, under the names of the manifest."""
    assert manifest.features is not None
    source = manifest.features
    widths = [part.width for part in source.parts]
    values, centre, factor, known = described_by(read_tensors(path), len(source.names), widths, path)
    table = FeatureTable(tuple(source.names), values, source.kind, source.parts, known)
    return table, Standardiser(centre, factor)


def read_means(path: Path) -> pd.DataFrame:
    """The means of `files.write_csv` with its index, names kept as text."""
    # A converter keeps names such as 007 or NA as they are; a mean that was not measured is empty.
    return read_table(
        path, index_col=0, converters={0: str}, float_precision="round_trip", keep_default_na=False, na_values=[""]
    )


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    try:
        table: pd.DataFrame = pd.read_csv(path, **options)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise RunError(f"{path} cannot be read as a table ({error}); {REMEDY}") from error
    return table


def write_cells(path: Path, cells: CellTable, rows: np.ndarray, columns: np.ndarray, expression: Any) -> None:
    """Store some cells on the panel's genes as .h5ad, whole or not at all, with the columns of their design.

    expression: CSR [n, G] of these cells and genes.
    """
    import anndata as ad

    obs_columns = dict.fromkeys((cells.perturbation_key, *cells.covariates, *cells.design.match))
    obs = cells.obs[list(obs_columns)].iloc[rows].copy()
    obs[cells.perturbation_key] = obs[cells.perturbation_key].astype(str)
    genes = pd.Index(cells.genes[columns].astype(object), name="gene")
    adata = ad.AnnData(expression, obs=obs, var=pd.DataFrame(index=genes))
    write_h5ad(path, adata)


def own_file(folder: Path, name: str) -> Path:
    """The file `name` of the run in `folder`; RunError where it is missing, or a link that leads out of the folder."""
    path = folder / name
    if not path.is_file():
        raise RunError(f"run {folder} is incomplete: {name} is missing; {REMEDY}")
    if path.resolve().parent != folder.resolve():
        raise RunError(f"run {folder}: {name} is a link that leads out of the run folder; copy the file into it")
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
        model_tensor = expected[name]
        if tensor.shape != model_tensor.shape or tensor.dtype != model_tensor.dtype:
            raise RunError(
                f"{path} does not fit the manifest's model: tensor '{name}' is {tensor.dtype} {list(tensor.shape)}, "
                f"expected {model_tensor.dtype} {list(model_tensor.shape)}; {REMEDY}"
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
    tensors: dict[str, torch.Tensor], n_names: int, widths: list[int], path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Features [n_names, F], their centre [F] and factor [F], float32 and finite, and what each part of some `widths` knows
    (bool [n_names, parts]; of older runs None: everything); RunError for anything else."""
    tensors = dict(tensors)
    values, known = tensors.get("values"), tensors.pop("known", None)
    n_features = values.shape[1] if values is not None and values.ndim == 2 else 0
    shapes = {"values": [n_names, n_features], "centre": [n_features], "factor": [n_features]}
    if odd := sorted(tensors.keys() - shapes.keys()):
        raise RunError(f"{path}: tensor '{odd[0]}' is unknown; {REMEDY}")
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise RunError(f"{path}: tensor '{name}' is missing; {REMEDY}")
        if tensor.dtype != torch.float32 or list(tensor.shape) != shape or not tensor.numel():
            raise RunError(
                f"{path}: tensor '{name}' is {tensor.dtype} {list(tensor.shape)}, expected numbers (torch.float32) of "
                f"the {n_names} names of the manifest; {REMEDY}"
            )
        if not tensor.isfinite().all():
            raise RunError(f"{path}: tensor '{name}' holds values that are not finite; {REMEDY}")
    if widths and sum(widths) != n_features:
        raise RunError(f"{path}: {n_features} features, expected {sum(widths)} as the manifest says; {REMEDY}")
    if known is not None and (known.dtype != torch.bool or list(known.shape) != [n_names, max(len(widths), 1)]):
        raise RunError(
            f"{path}: tensor 'known' is {known.dtype} {list(known.shape)}, expected truths (torch.bool) of the {n_names} "
            f"names and {max(len(widths), 1)} parts of the manifest; {REMEDY}"
        )
    return (
        tensors["values"].numpy(),
        tensors["centre"].numpy(),
        tensors["factor"].numpy(),
        None if known is None else known.numpy(),
    )


def means_of(table: pd.DataFrame, genes: list[str], path: Path, masked: bool = False) -> pd.DataFrame:
    """Means of the run's `genes`, every one finite, or where `masked` NaN; RunError for anything else."""
    if list(table.columns) != genes:
        raise RunError(f"{path}: its columns are not the {len(genes)} genes of the run; {REMEDY}")
    numeric = all(np.issubdtype(kind, np.number) for kind in table.dtypes)
    values = table.to_numpy(np.float64) if numeric else np.full(1, np.inf)
    if table.empty or not (np.isfinite(values) | (masked & np.isnan(values))).all():
        raise RunError(f"{path}: expected a finite number for each condition and gene; {REMEDY}")
    return table
