"""What a fit makes of its cells before the first step: in memory for training, in the run folder for prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import torch

from scdfm.data import CONTROL, CellTable, Split, coexpression_graph, vocabulary_graph
from scdfm.data.conditions import SCREEN, control_of
from scdfm.data.stored import in_memory, subset
from scdfm.files import write_csv
from scdfm.prior import EffectPrior, PriorStart
from scdfm.run import folder
from scdfm.run.counts import learned_law
from scdfm.seeds import numpy_rng
from scdfm.training.inputs import Inputs
from scdfm.training.start import prior_start


@dataclass(frozen=True)
class Prepared:
    """What training needs beside its cells and inputs."""

    graph: torch.Tensor | None
    """bool [V, V] over the vocabulary, where the model has one."""
    means: pd.DataFrame
    """Mean log1p expression, condition × G, of control, training and validation conditions, and of their own controls."""
    start: PriorStart | None
    """Where the flow starts, unless from noise."""
    inputs: Inputs
    """Those given, without descriptions of targets that tell nothing."""
    silent: frozenset[str] = frozenset()
    """These descriptions."""

    @classmethod
    def load_or_make(cls, cells: CellTable, split: Split, inputs: Inputs, out: Path) -> Prepared:
        """Read what `out` holds of it, and make and write what it lacks: of several processes the first makes all.

        Beside what training needs these are the cells, the law of counts and the features that prediction needs.
        """
        config, columns = inputs.manifest.config, cells.columns(inputs.panel.genes)
        graph = _graph(cells, split, inputs, out / folder.GRAPH) if config.graph.enabled else None
        means = _means(cells, split, inputs, out / folder.MEANS)
        if config.training.keep_controls and not (out / folder.CONTROLS).is_file():
            rows = kept_controls(cells, config.training.keep_controls, config.seed)
            folder.write_cells(
                out / folder.CONTROLS, cells, rows, columns, lent(cells, rows, columns, config.seed)
            )
        if not (out / folder.COUNTS).is_file():
            law = learned_law(cells, split, columns, config.seed)
            if law is not None:
                folder.write_tensors(out / folder.COUNTS, law.tensors())
        start = prior_start(cells, split, inputs, out) if config.flow.source == "prior" else None
        judged = inputs.features is not None and start is not None
        silent = EffectPrior.load(out / folder.PRIOR).silent if judged else frozenset()
        read = inputs.without(silent)
        if read.features is not None and not (out / folder.FEATURES).is_file():
            assert read.standardise is not None
            folder.write_features(out / folder.FEATURES, read.features, read.standardise)
        return cls(graph, means, start, read, silent)


def _graph(cells: CellTable, split: Split, inputs: Inputs, path: Path) -> torch.Tensor:
    """The co-expression graph of control and training cells."""
    if path.is_file():
        return folder.read_graph(path, len(inputs.vocabulary.tokens))
    options, genes = inputs.manifest.config.graph, inputs.panel.genes
    training = np.concatenate([cells.rows(name) for name in (CONTROL, *split.train)])
    rows, columns = np.sort(training), cells.columns(genes)
    adjacency = coexpression_graph(
        subset(cells.X, rows, columns), k=options.k,
        negative_edges=options.negative_edges, faithful=options.faithful, parts=cells.measured_alike(rows, columns),
    )  # fmt: skip
    graph = vocabulary_graph(adjacency, genes, inputs.vocabulary)
    folder.write_graph(path, graph)
    return torch.from_numpy(graph)


def _means(cells: CellTable, split: Split, inputs: Inputs, path: Path) -> pd.DataFrame:
    if path.is_file():
        return folder.read_means(path)
    genes, names = list(inputs.panel.genes), (*split.train, *split.validation)
    means = cells.means([CONTROL, *names])[genes]
    settings = {control_of(name) for name in names} & set(cells.control_conditions) - {CONTROL}
    columns = cells.columns(genes)
    own = {name: cells.control_mean(name)[columns] for name in sorted(settings)}
    if own:
        means = pd.concat([means, pd.DataFrame.from_dict(own, orient="index", columns=genes)])
    write_csv(path, means, index=True)
    return means


def kept_controls(cells: CellTable, most: int, seed: int) -> np.ndarray:
    """Rows of up to `most` control cells, ascending: as even over the matching groups as their sizes let it be."""
    shuffled = numpy_rng(seed, "kept controls").permutation(cells.rows(CONTROL))
    turn = pd.Series(cells.match[shuffled]).groupby(cells.match[shuffled]).cumcount().to_numpy()
    return np.sort(shuffled[np.argsort(turn, kind="stable")[:most]])


def lent(
    cells: CellTable, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], seed: int
) -> sp.csr_matrix:
    """Expression [n, G] of some control cells.

    Genes that a cell's screen did not measure take the values of a control cell, drawn at random, of the screen that did
    whose control means are nearest on the genes of all.
    """
    own = in_memory(subset(cells.X, rows, columns))
    if not cells.measured:
        return own
    dense, controls = own.toarray(), cells.rows(CONTROL)
    screens = cells.obs[SCREEN].to_numpy()
    of = {name: controls[screens[controls] == name] for name in cells.measured}
    common = np.logical_and.reduce(list(cells.measured.values()))
    means = {
        name: cells.take(screen_rows).mean(CONTROL)[common]
        for name, screen_rows in of.items()
        if len(screen_rows)
    }
    for name, measured in cells.measured.items():
        mine, lacking = np.flatnonzero(screens[rows] == name), ~measured[columns]
        near = sorted(set(means) - {name}, key=lambda other: float(((means[other] - means[name]) ** 2).sum()))
        for other in near if len(mine) else ():
            genes = np.flatnonzero(lacking & cells.measured[other][columns])
            drawn = numpy_rng(seed, "lent", name, other).choice(of[other], len(mine))
            dense[np.ix_(mine, genes)] = in_memory(subset(cells.X, drawn, columns[genes])).toarray()
            lacking[genes] = False
    return sp.csr_matrix(dense)
