"""An official checkpoint becomes a run folder that predicts.

A checkpoint holds parameters alone. What else a run needs comes from the vocabulary file and, where it is given,
from the data it was trained on: control cells, the scale, means and the split. Without data a run predicts from
control cells that the user gives, and says that it does not know what it was trained on. Files are read;
none of them is run.
"""

from __future__ import annotations

import json
import pickle  # its error is caught, nothing is unpickled  # nosec B403
import struct  # likewise
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scdfm.config import Config, GraphConfig
from scdfm.data import CONTROL, CellTable, Scale, Split, Vocabulary, coexpression_graph, targets, vocabulary_graph
from scdfm.data.split import UNKNOWN
from scdfm.data.stored import subset
from scdfm.errors import ConfigError, DataError, RunError
from scdfm.files import file_digest, new_folder, write_csv
from scdfm.official.parameters import Sizes, never_read, sizes, velocity_field
from scdfm.run import Run, folder
from scdfm.run.manifest import FORMAT, Manifest, versions
from scdfm.seeds import numpy_rng

STATE_KEYS: Final = ("model_state_dict", "state_dict", "model")
"""Where checkpoints keep the parameters, the official place first."""
PREFIXES: Final = ("module.", "_orig_mod.", "state.")
_NOT_TORCH: Final = (
    RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, struct.error,
)  # fmt: skip
"""What torch's reader raises of bytes that are none of its own."""


def load_plain(path: Path) -> Any:
    """The tensors and plain values of a file of torch.save; RunError for anything else, before it could run."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # refused below, where it matters
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{path} is no torch file of tensors and plain values alone, so it is refused and nothing of it was run; "
            "check the path, or save it again as torch.save(model.state_dict(), ...)"
        ) from error
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except _NOT_TORCH as error:
        raise RunError(f"{path} is not a file of torch.save; check the path") from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """The parameters of a checkpoint in float32, prefixes of wrappers dropped, and the step it was saved at."""
    loaded = load_plain(path)
    state = next((loaded[key] for key in STATE_KEYS if isinstance(loaded, dict) and key in loaded), loaded)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise RunError(
            f"{path}: expected the parameters of a model, by name, under '{STATE_KEYS[0]}' or at the top; "
            "check that it is a checkpoint"
        )
    tensors = {_bare(str(name)): value for name, value in state.items()}
    step = loaded.get("iteration") if state is not loaded else None
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}, (
        step if isinstance(step, int) else None
    )


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def read_vocabulary(path: Path) -> Vocabulary:
    """The official vocabulary: a JSON object of names and ids, which must be 0, 1, 2, ..."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"vocabulary {path} cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"vocabulary {path} is not JSON ({error}); check the path") from error
    if not isinstance(values, dict) or sorted(map(str, values.values())) != sorted(map(str, range(len(values)))):
        raise DataError(
            f"vocabulary {path}: expected an object of names with the ids 0, 1, 2, ... once each; check the file"
        )
    return Vocabulary(tuple(sorted(values, key=lambda name: int(values[name]))))


def read_mask(path: Path) -> Tensor:
    """The official mask [V, V]: True where a token may NOT attend."""
    mask = load_plain(path)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
        raise RunError(f"graph {path}: expected one square tensor, True where a token may not attend; check the file")
    return mask.bool()


GENE_TABLE: Final = "encoder.embedding.weight"
DRUG_TABLE: Final = "perturbation_embedder.embedding.weight"
SAFE_SAMPLING: Final[dict[str, Any]] = {"genes": "chunks", "dropout": False}
"""What a converted run samples otherwise than the official code: `--set sampling.genes=joint`, `sampling.dropout=true`
bring that back."""


@dataclass(frozen=True)
class Conversion:
    """The run folder made, and what the user should know of it."""

    run: Run
    notes: tuple[str, ...]


def convert(
    checkpoint: str | Path,
    vocab: str | Path,
    out: str | Path,
    *,
    graph: str | Path | None = None,
    cells: CellTable | None = None,
    split: Split | None = None,
    perturbation: Literal["genes", "drugs"] = "genes",
    heads: int | None = None,
    settings: Sequence[str] = (),
) -> Conversion:
    """Write the run folder `out` from an official `checkpoint` (.pt) and its `vocab` (.json).

    graph: the official mask (.pt); without it the graph is built from the training cells of `split` in `cells`.
    cells, split: the data and split of training. Drugs need `cells`: the official ids are places among their names.
    heads: of the blocks, read from the parameters where they tell. settings: `section.key=value` over the published
    options. Raises RunError where a tensor is missing, unknown or of a wrong shape, or a file is not what it should be.
    """
    if graph is None and (cells is None or split is None):
        raise ConfigError("convert: expected the official mask (--graph MASK.pt) or the data (--data FILE)")
    tensors, step = read_checkpoint(Path(checkpoint))
    network = sizes(tensors, heads)
    genes = read_vocabulary(Path(vocab))
    _check_vocabulary(genes, tensors, Path(vocab))
    vocabulary = _with_drugs(genes, cells) if perturbation == "drugs" else genes
    config = _config(network, perturbation, split, settings)
    may_attend = _graph(genes, vocabulary, config.graph, graph, cells, split)
    prepared = dict(tensors)
    prepared[GENE_TABLE] = _padded(tensors[GENE_TABLE][: len(genes)], len(vocabulary))
    if perturbation == "drugs":
        prepared[DRUG_TABLE] = _drug_rows(tensors, vocabulary, cells)
    field = velocity_field(
        prepared, ~may_attend, n_heads=network.heads, n_layers=network.layers, backbone=network.backbone,
        perturbation=perturbation,
    )  # fmt: skip
    manifest = _manifest(config, vocabulary, genes, cells, split, Path(checkpoint), step)
    out = new_folder(out)
    folder.write_tensors(out / folder.WEIGHTS, field.state_dict())
    folder.write_graph(out / folder.GRAPH, may_attend.numpy())
    if cells is not None:
        _write_data(out, manifest, cells, split)
    digests = {name: file_digest(out / name) for name in folder.FILES if (out / name).is_file()}
    manifest.model_copy(update={"digests": digests}).save(out)
    return Conversion(Run.load(out), _notes(tensors, network, perturbation, graph, cells, split))


def _check_vocabulary(genes: Vocabulary, tensors: dict[str, Tensor], path: Path) -> None:
    rows = len(tensors[GENE_TABLE])
    if len(genes) > rows:
        raise RunError(
            f"vocabulary {path} has {len(genes)} tokens, but the checkpoint's table has {rows} rows; "
            "give the vocabulary of this checkpoint"
        )


def _drug_names(cells: CellTable | None) -> list[str]:
    """The official order of drug ids: all names of the data, `control` among them, sorted."""
    if cells is None:
        raise ConfigError("convert: drugs need the data (--data FILE), whose sorted drug names are the official ids")
    return sorted({CONTROL, *(name for condition in cells.conditions for name in targets(condition))})


def _with_drugs(genes: Vocabulary, cells: CellTable | None) -> Vocabulary:
    drugs = [name for name in _drug_names(cells) if name not in genes]
    return Vocabulary((*genes.tokens, *drugs))


def _padded(table: Tensor, rows: int) -> Tensor:
    """`table` with rows of zeros after it: tokens that no gene attends to."""
    return torch.cat([table, torch.zeros(rows - len(table), table.shape[1], dtype=table.dtype)])


def _drug_rows(tensors: dict[str, Tensor], vocabulary: Vocabulary, cells: CellTable | None) -> Tensor:
    """The official drug table in the order of our tokens; zeros where a token is no drug."""
    names = _drug_names(cells)
    if DRUG_TABLE not in tensors or len(tensors[DRUG_TABLE]) < len(names):
        raise RunError(
            f"official parameters: expected '{DRUG_TABLE}' with at least {len(names)} rows, one for each drug of the "
            "data; check perturbation and data against the checkpoint"
        )
    official = tensors[DRUG_TABLE]
    table = torch.zeros(len(vocabulary), official.shape[1], dtype=official.dtype)
    table[torch.from_numpy(vocabulary.gene_ids(names))] = official[: len(names)]
    return table


def _graph(
    genes: Vocabulary, vocabulary: Vocabulary, options: GraphConfig, path: str | Path | None, cells: CellTable | None,
    split: Split | None,
) -> Tensor:  # fmt: skip
    """bool [V, V], True where a token may attend."""
    if path is not None:
        mask = read_mask(Path(path))
        if len(mask) != len(genes):
            raise RunError(f"graph {path} is of {len(mask)} tokens, but the vocabulary has {len(genes)}; give its own")
        may_attend = torch.eye(len(vocabulary), dtype=torch.bool)
        may_attend[: len(genes), : len(genes)] = ~mask
        return may_attend
    assert cells is not None
    assert split is not None
    return torch.from_numpy(_built_graph(genes, vocabulary, options, cells, split))


def _built_graph(
    genes: Vocabulary, vocabulary: Vocabulary, options: GraphConfig, cells: CellTable, split: Split
) -> npt.NDArray[np.bool_]:
    """The graph of the training cells, genes in the order of the data as in the official code."""
    panel = set(_panel(genes, cells))
    names = [gene for gene in cells.genes.tolist() if gene in panel]
    rows = np.sort(np.concatenate([cells.rows(name) for name in (CONTROL, *split.train, *split.validation)]))
    graph = coexpression_graph(
        subset(cells.X, rows, cells.columns(names)), k=options.k, negative_edges=options.negative_edges,
        faithful=options.faithful,
    )  # fmt: skip
    return vocabulary_graph(graph, names, vocabulary)


def _panel(genes: Vocabulary, cells: CellTable | None) -> list[str]:
    """The genes of the vocabulary, all of which the data must have measured."""
    names = list(genes.tokens[len(Vocabulary.SPECIAL) :])
    if cells is not None:
        missing = sorted(set(names) - set(cells.genes.tolist()))
        if missing:
            raise DataError(
                f"convert: {len(missing)} of the {len(names)} genes of the vocabulary are not in the data "
                f"(first: {', '.join(missing[:3])}); give the data of this checkpoint"
            )
    return names


def _config(network: Sizes, perturbation: str, split: Split | None, settings: Sequence[str]) -> Config:
    model = {
        "backbone": network.backbone, "perturbation": perturbation, "width": network.width, "heads": network.heads,
        "layers": network.layers,
    }  # fmt: skip
    config = Config.preset("paper").updated({"model": model, "sampling": SAFE_SAMPLING})
    if split is not None and split.kind in ("additive", "holdout", "combinations"):
        config = config.updated({"split": {"kind": split.kind, "fold": split.fold}})
    return config.with_settings(list(settings))


def _manifest(
    config: Config, vocabulary: Vocabulary, genes: Vocabulary, cells: CellTable | None, split: Split | None,
    checkpoint: Path, step: int | None,
) -> Manifest:  # fmt: skip
    training_split = Split(UNKNOWN, 0, (), (), ()) if split is None else split
    data: dict[str, Any] = {"path": None, "digest": "", "n_cells": 0, "n_genes": 0}
    if cells is not None:
        path = None if cells.source is None else str(cells.source)
        data = {"path": path, "digest": cells.digest(), "n_cells": cells.n, "n_genes": len(cells.genes)}
    return Manifest(
        format=FORMAT,
        seed=config.seed,
        config=config,
        vocabulary=list(vocabulary.tokens),
        panel=_panel(genes, cells),
        targets=sorted({name for condition in training_split.train for name in targets(condition)}),
        split=training_split.to_dict(),
        scale=(Scale() if cells is None else cells.scale).to_dict(),
        perturbation_key="perturbation" if cells is None else cells.perturbation_key,
        control=CONTROL if cells is None else cells.control,
        names={} if cells is None else cells.naming.to_dict(),
        data=data | {"checkpoint": checkpoint.name, "checkpoint_sha256": file_digest(checkpoint)},
        versions=versions(),
        result={"step": step},
    )


def _write_data(out: Path, manifest: Manifest, cells: CellTable, split: Split | None) -> None:
    """Control cells and, where the split is known, the means of its training conditions."""
    columns = cells.columns(manifest.panel)
    most = manifest.config.training.keep_controls
    rows = numpy_rng(manifest.seed, "kept controls").permutation(cells.rows(CONTROL))[:most]
    if len(rows):
        folder.write_cells(out / folder.CONTROLS, cells, np.sort(rows), columns, cells.X[np.sort(rows)][:, columns])
    if split is not None:
        means = cells.means([CONTROL, *split.train, *split.validation])[manifest.panel]
        write_csv(out / folder.MEANS, means, index=True)


def _notes(
    tensors: dict[str, Tensor], network: Sizes, perturbation: str, graph: str | Path | None, cells: CellTable | None,
    split: Split | None,
) -> tuple[str, ...]:  # fmt: skip
    unread = [name for name in tensors if name.startswith(never_read(perturbation))]
    notes = [
        f"{len(tensors)} tensors: {len(tensors) - len(unread)} read, {len(unread)} that the official forward pass never "
        f"reads ({', '.join(unread) or 'none'})",
        f"{network.backbone}, width {network.width}, {network.layers} layers, {network.heads} heads"
        + (" (heads taken as published: no tensor tells them)" if network.backbone == "perceiver" else ""),
    ]
    if graph is None:
        assert split is not None
        notes.append(
            f"graph built from the training cells of split {split.kind}, fold {split.fold}: where the checkpoint is of "
            "another split, name it, or give its own mask"
        )
    if cells is None:
        notes.append("no data given: predict needs --controls, and the training conditions are unknown")
    notes.append(
        "samples genes in chunks and without dropout; --set sampling.genes=joint, sampling.dropout=true undo it"
    )
    return tuple(notes)
