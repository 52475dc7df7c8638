"""Predictions of many conditions, written as they come: shards of a few conditions, joined when all are there.

OUT.parts/request.json    what was asked; a resumed prediction must ask the same
OUT.parts/000000.h5ad     the populations of the first conditions, and so on; each whole or not there
OUT.parts/000000.blocks/  what a flow has solved of them so far, where they take long
OUT.parts/finished.json   what request.json becomes when OUT is complete; then the parts go, and it last
OUT                       .h5ad or .zarr, under its name only when it is complete; the parts then go
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from scdfm.data import CellTable
from scdfm.data.tables import READ_ERRORS, reason
from scdfm.errors import DataError, RunError, StorageError
from scdfm.files import becoming, made, remove, require_place, written_whole
from scdfm.flow import Keep
from scdfm.jobs import Parts, begun, part_size
from scdfm.processes import Place, launched, place, together, wait_for_all
from scdfm.run.columns import joined
from scdfm.run.cost import foretell
from scdfm.run.counts import Counter
from scdfm.run.extrapolation import extrapolated
from scdfm.run.folder import write_tensors
from scdfm.run.predict import condition_names, device_of, populations, starting
from scdfm.run.trained import Trained

SHARD_CELLS: Final = 4096
"""Most predicted cells of one shard, or one condition's where these are more..."""
SHARD_VALUES: Final = {"prior": 1 << 23, "flow": 1 << 18}
"""... and most of its values, which take about a minute on one core. Of a condition of more values blocks are kept."""
LONGEST_WAIT: Final = 86_400.0
"""Seconds that a process waits for another's shards."""
REQUEST, FINISHED, SUFFIXES = "request.json", "finished.json", (".h5ad", ".zarr")
STORES: Final = ("zarr.json", ".zgroup")
"""What stands at the root of a zarr store."""


@dataclass(frozen=True)
class PredictedFile:
    """What a finished prediction holds; `extrapolated` are the conditions that leave what training has seen, and why.

    `counts`: where whole counts have their library sizes and dispersion from; empty for log1p values. `complete`: whether
    the file is there, or only what this process had to do of it.
    """

    path: Path
    n_cells: int
    n_genes: int
    conditions: tuple[str, ...]
    extrapolated: dict[str, str]
    counts: str = ""
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class Shards(Parts):
    """The shards of one request."""

    pattern: str = "{:06d}.h5ad"
    run: Trained
    controls: CellTable | None
    n_cells: int
    genes: tuple[str, ...] | None
    seed: int
    counts: bool = False
    device: str = "auto"

    @property
    def joined(self) -> bool:
        """Whether all of them stand in the output, and only the parts are left to go."""
        return (self.folder / FINISHED).is_file()

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there yet, though they are needed."""
        return [] if self.joined else super().missing()

    def predict(self, numbers: Iterable[int], progress: bool = False) -> None:
        """Write the shards of `numbers`, which any process may do for any of them."""
        for number in tqdm(list(numbers), desc="predict", unit="shard", disable=not progress):
            blocks = Blocks(self.path(number).with_suffix(".blocks"))
            predicted = self._populations(self.conditions(number), self.n_cells, blocks.of)
            with written_whole(self.path(number)) as temporary:
                predicted.write_h5ad(temporary)
            blocks.remove()

    def foretell(self, numbers: Iterable[int], say: Callable[[str], object] | None) -> None:
        """Tell `say` and the log what the shards of `numbers` will take."""
        names = [name for number in numbers for name in self.conditions(number)]
        foretell(self.run, names, self.n_cells, self._n_genes, self.size, self._populations, say)

    @property
    def _n_genes(self) -> int:
        return len(self.run.genes if self.genes is None else self.genes)

    def _populations(self, names: Sequence[str], n_cells: int, keep: Callable[[str], Keep] | None = None) -> ad.AnnData:
        return populations(
            self.run, names, self.controls or self.run.controls, n_cells, self.genes, self.counts, self.seed, False,
            self.device, stored=self.controls is None, keep=keep,
        )  # fmt: skip

    def described(self, out: Path) -> PredictedFile:
        """What `out` holds when all shards are joined in it."""
        said = ""
        if self.counts:
            said = Counter.of(self.run.count_law, self.run.genes, self.controls or self.run.controls, []).told
        n_cells, beyond = len(self.names) * self.n_cells, extrapolated(self.run, self.names)
        return PredictedFile(out, n_cells, self._n_genes, self.names, beyond, said)

    def join(self, out: Path) -> PredictedFile:
        """Write all shards, one in memory at a time, as `out`, and remove them.

        Two processes may do so at once: the bytes are the same, and the one that comes late finds it done.
        """
        try:
            if not self.joined:
                whole = self.folder / f"joined-{platform.node()}-{os.getpid()}{out.suffix}"
                remove(whole)
                with becoming(out, whole), _opened(whole) as group:
                    self._join(group)
                (self.folder / REQUEST).replace(self.folder / FINISHED)
            _clear(self.folder)
        except (OSError, RunError):
            if not out.exists() or (self.folder / REQUEST).is_file():
                raise
        return self.described(out)

    def _read(self, number: int) -> ad.AnnData:
        """A shard that may have come from an earlier process."""
        path, n_cells = self.path(number), len(self.conditions(number)) * self.n_cells
        try:
            shard = ad.read_h5ad(path)
        except READ_ERRORS as error:
            raise RunError(f"{path} cannot be read ({reason(error)}); remove it and repeat with --resume") from error
        if shard.n_obs != n_cells or "scdfm" not in shard.uns:
            raise RunError(
                f"{path} holds {shard.n_obs} cells, expected {n_cells} predicted ones; remove it and repeat with --resume"
            )
        return shard

    def _join(self, group: Any) -> None:
        """Write the elements of an AnnData."""
        from anndata.io import sparse_dataset, write_elem

        obs: list[pd.DataFrame] = []
        reasons: dict[str, str] = {}
        in_hdf5 = type(group).__module__.startswith("h5py")
        for number in range(len(self)):
            shard = self._read(number)
            X = sp.csr_matrix(shard.X)
            if number == 0:
                first = shard
                X.indptr = X.indptr.astype(np.int64)  # the whole may hold more values than 32 bits count
                write_elem(group, "X", X, dataset_kwargs={"compression": "gzip"} if in_hdf5 else {})
            else:
                sparse_dataset(group["X"]).append(X)
            obs.append(shard.obs)
            said = shard.uns["scdfm"]
            reasons |= dict(zip(said["extrapolated"], said["extrapolated_because"], strict=True))
        table = joined(obs)
        key = self.run.manifest.perturbation_key
        table[key] = pd.Categorical(table[key], categories=pd.Index(self.names))
        write_elem(group, "obs", table)
        write_elem(group, "var", first.var)
        texts = {"extrapolated": reasons, "extrapolated_because": reasons.values()}
        beyond = {key: np.array(list(values), dtype=object) for key, values in texts.items()}
        write_elem(group, "uns", {"scdfm": first.uns["scdfm"] | beyond})
        for name in ("layers", "obsm", "obsp", "varm", "varp"):
            write_elem(group, name, {})
        group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


def predict_to(
    run: Trained,
    out: str | Path,
    conditions: Sequence[str] | None = None,
    controls: CellTable | ad.AnnData | str | Path | None = None,
    n_cells: int | None = None,
    genes: Sequence[str] | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    counts: bool = False,
    context: Mapping[str, str] | None = None,
    fill_genes: bool = False,
    device: str = "auto",
    say: Callable[[str], object] | None = None,
) -> PredictedFile:
    """Write what `predict` returns to `out` (.h5ad or .zarr), a few conditions in memory at a time.

    resume: go on with the prediction that was interrupted in `OUT.parts`; the file is that of an uninterrupted one.
    overwrite: replace `out` where it exists. say: is told what it will take before it starts, after a short probe
        (`scdfm.run.cost`); the log "scdfm.predict" is told too. The other options are those of `predict`.

    Several processes (`processes.place`) share the shards, and the one that ends last joins them: until then `out` is not
    there. Under `torchrun` all wait for that, and the first joins. Besides one shard, memory holds the labels of all
    predicted cells (some 200 bytes each). Raises DataError where `out` or its parts exist, or
    `resume` meets another request (RunError), and what `predict` raises.
    """
    out, here, grouped = Path(out).absolute(), place(), launched() is not None
    request = (run, out, conditions, controls, n_cells, genes, seed)
    more = (counts, context, fill_genes, device)
    with together(not torch.cuda.is_available(), LONGEST_WAIT):
        if here.rank == 0:
            _check(out, resume, overwrite)
            shards = shards_of(*request, resume, *more)
        wait_for_all()
        if here.rank > 0:
            shards = shards_of(*request, True, *more, here)
        mine = here.mine(shards.missing())
        shards.foretell(mine, say if here.rank == 0 else None)
        shards.predict(mine, progress and here.rank == 0)
        wait_for_all()
        ends = here.rank == 0 if grouped else not shards.missing()
        written = shards.join(out) if ends else replace(shards.described(out), complete=grouped)
        wait_for_all()
    return written


def shards_of(
    run: Trained,
    out: Path,
    conditions: Sequence[str] | None,
    controls: CellTable | ad.AnnData | str | Path | None,
    n_cells: int | None,
    genes: Sequence[str] | None,
    seed: int,
    resume: bool,
    counts: bool = False,
    context: Mapping[str, str] | None = None,
    fill_genes: bool = False,
    device: str = "auto",
    place: Place | None = None,
) -> Shards:
    """The shards of a request, in a folder beside `out` that is new, or with `resume` that of the same request."""
    device_of(device)
    n_cells = run.config.sampling.cells if n_cells is None else n_cells
    if n_cells < 1:
        raise DataError(f"cells per condition: expected at least 1, found {n_cells}")
    run, started = starting(run, controls, context, fill_genes, seed)
    table = None if controls is None else started
    names = condition_names(run, conditions, context)
    record = {
        "weights": run.manifest.digests["weights.safetensors"],
        "conditions": names,
        "controls": None if table is None else table.digest(),
        "cells": n_cells,
        "genes": None if genes is None else list(genes),
        "seed": seed,
        "counts": counts,
    }
    parts = _parts(out)
    before = (part_size(parts / REQUEST) or part_size(parts / FINISHED)) if resume else None
    size = before or conditions_at_once(run, n_cells, len(run.genes if genes is None else genes))
    record["shard"] = size
    finished = (parts / FINISHED).is_file() and out.exists()
    folder = begun(parts, FINISHED if finished else REQUEST, record, resume, place)
    return Shards(
        folder=folder, names=tuple(names), size=size, run=run, controls=table, n_cells=n_cells,
        genes=None if genes is None else tuple(genes), seed=seed, counts=counts, device=device,
    )  # fmt: skip


def conditions_at_once(run: Trained, n_cells: int, n_genes: int) -> int:
    """Conditions of one shard: as many as a stop may lose, but one at least."""
    values = SHARD_VALUES["prior" if run.field.is_zero else "flow"]
    return max(1, min(SHARD_CELLS, values // n_genes) // n_cells)


def _parts(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def _check(out: Path, resume: bool, overwrite: bool) -> None:
    """Raise DataError unless `out` can be written to."""
    if out.suffix not in SUFFIXES:
        raise DataError(f"output {out}: expected a name that ends in .h5ad or .zarr; rename it")
    if not out.absolute().parent.is_dir():
        raise DataError(f"output {out}: the folder {out.absolute().parent} does not exist; create it first")
    if out.suffix == ".h5ad" or not out.is_dir():  # a store is a folder, and may be replaced as one
        require_place(out)
    parts = _parts(out)
    if (parts / FINISHED).is_file() and not (resume and out.exists()):
        _clear(parts)
    unfinished, finished = ((parts / name).is_file() for name in (REQUEST, FINISHED))
    if out.exists() and not overwrite and not (resume and (unfinished or finished)):
        raise DataError(f"output {out} exists; choose another name, or pass --overwrite")
    if out.is_dir() and not any((out / name).is_file() for name in STORES):
        raise DataError(f"output {out} is a folder that holds no zarr store; choose another name")
    if unfinished and not resume:
        raise DataError(
            f"output {out}: {parts} holds an unfinished prediction; continue it with --resume, or remove it"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The root group of a new h5ad file or zarr store."""
    if path.suffix == ".h5ad":
        import h5py

        with h5py.File(path, "w") as file:
            yield file
        return
    import zarr

    with ad.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        yield zarr.open_group(path, mode="w", zarr_format=3)


def _clear(parts: Path) -> None:
    """Remove the parts of a complete output, what says so last."""
    for path in parts.iterdir():
        if path.name != FINISHED:
            remove(path)
    shutil.rmtree(parts)


SECONDS: Final = 20.0
"""Between two files of blocks."""
clock: Callable[[], float] = time.monotonic


class Blocks:
    """The blocks of one shard in `folder`, files of some of them by name; what an earlier process left is found again.

    A block is the end of some genes of some cells of one condition, named by all of them (`scdfm.flow.generate`).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {name: path for path in sorted(folder.glob("*.safetensors")) for name in _names(path)}
        self.fresh: dict[str, torch.Tensor] = {}
        self.written = clock()

    def of(self, condition: str) -> Keep:
        """What `generate` asks for the blocks of a condition."""

        def kept(block: str, solve: Callable[[], torch.Tensor]) -> torch.Tensor:
            name = f"{condition}/{block}"
            if name in self.files:
                with contextlib.suppress(SafetensorError, OSError), safe_open(self.files[name], "pt") as file:
                    cells: torch.Tensor = file.get_tensor(name)
                    return cells
            solved = self.fresh[name] = solve().contiguous()
            if clock() - self.written >= SECONDS:
                self.write()
            return solved

        return kept

    def write(self) -> None:
        """Write what was solved since the last file; another process may do the same shard."""
        number = len(set(self.files.values()))
        path = made(self.folder) / f"{number:06d}-{platform.node()}-{os.getpid()}.safetensors"
        try:
            write_tensors(path, self.fresh)
        except StorageError:
            if self.folder.is_dir():  # else the other process has finished the shard
                raise
        self.files |= dict.fromkeys(self.fresh, path)
        self.fresh, self.written = {}, clock()

    def remove(self) -> None:
        """The shard is whole: its blocks go, at the latest with all parts."""
        with contextlib.suppress(OSError):
            remove(self.folder)


def _names(path: Path) -> list[str]:
    """The blocks in a file; none where it cannot be read, and they are solved again."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError):
        remove(path)
        return []
