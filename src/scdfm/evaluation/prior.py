"""What a run adds to the scores of its prediction, training means and the row `prior`; what controls say of targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm.auto import tqdm

from scdfm.data.cells import CellTable
from scdfm.data.conditions import CONTROL, canonical, control_of, targets
from scdfm.data.source import open_source
from scdfm.data.stored import gathered, in_memory
from scdfm.errors import ConditionError, ConfigError, DataError, RunError
from scdfm.evaluation.alignment import Cells, Pair
from scdfm.evaluation.baselines import Training
from scdfm.evaluation.pseudobulk import Floats, Population, Rows, moments, taken
from scdfm.files import system_words

if TYPE_CHECKING:
    from anndata import AnnData

PRIOR: Final = "prior"
BLOCK_CELLS: Final = 4096
"""Cells that are predicted together at most, or those of one condition."""
EVEN_CELLS: Final = 1000
"""Cells of a condition from which being drawn evenly makes no more than a fiftieth (docs/evaluation.md)."""
UNBIASED: Final = ("energy", "mmd", "mse_corrected")
"""Metrics of cells that take off what chance adds where the cells are independent."""
NO_PRIOR: Final = f"no row '{PRIOR}': the flow of this run starts from noise, which predicts nothing before training"

NO_RUN: Final = f"no row '{PRIOR}': that of the run; give it (--run RUN, training=run)"


class Predictor(Protocol):
    """What predicts whole populations: cells [conditions · n_cells, genes] (log1p), condition after condition."""

    def predict(self, conditions: Sequence[str], *, n_cells: int, genes: Sequence[str], seed: int) -> AnnData: ...


@runtime_checkable
class Fitted(Protocol):
    """A run, as far as scores need it: its training means, and the same run before training, if that predicts."""

    @property
    def means(self) -> pd.DataFrame: ...
    def untrained(self) -> Predictor | None: ...


def prior_of(training: Fitted | pd.DataFrame | None) -> tuple[Predictor | None, list[str]]:
    """What predicts the row `prior` where `training` is a run, and a note where there is no run or it has none."""
    if training is None or isinstance(training, pd.DataFrame):
        return None, [NO_RUN] if training is None else []
    prior = training.untrained()
    return prior, [NO_PRIOR] if prior is None else []


def prior_population(
    prior: Predictor, predicted: Cells, pair: Pair, seed: int, progress: bool = False
) -> tuple[Population | None, list[str]]:
    """Cells of `prior` over the genes of `pair`: of each condition as many as are predicted, with the same seed.

    The seed is the one that `predicted` was made with, where it says so, else `seed`. A condition that `prior` cannot
    predict has no cells; the notes tell. None where that is all of them.
    """
    assert pair.predicted is not None
    options = {"genes": pair.real.genes.tolist(), "seed": _seed(predicted, seed)}
    rows: dict[str, Rows] = {name: np.empty(0, dtype=np.int64) for name in pair.conditions}
    failed: dict[str, str] = {}

    def parts() -> Iterator[sp.csr_matrix]:
        done = 0
        blocks = list(_blocks(pair))
        for names, n in tqdm(blocks, "prior", unit="block", disable=not progress):
            for name, cells in _predicted(prior, names, n, options):
                if isinstance(cells, str):
                    failed[name] = cells
                    continue
                rows[name] = np.arange(done, done + n)
                done += n
                yield cells

    X = gathered(parts(), pair.predicted.X)
    if len(failed) == len(pair.conditions):
        return None, [f"no row '{PRIOR}': {next(iter(failed.values()))}"]
    return Population(X, pair.real.genes, rows), _told(failed)


def notes_of_even_cells(predicted: Cells, pair: Pair, metrics: Iterable[str]) -> Iterator[str]:
    """A note where scdfm drew the predicted cells evenly, and too few of them for UNBIASED."""
    told = [name for name in UNBIASED if name in metrics]
    if not told or pair.predicted is None or isinstance(predicted, CellTable):
        return
    with open_source(predicted) as source:
        evenly = source.drawn_evenly
    least = min(pair.predicted.n_cells(name) for name in pair.conditions)
    if evenly and least < EVEN_CELLS:
        yield (
            f"the predicted cells are drawn evenly, so beside methods that draw them independently {', '.join(told)} of "
            f"{least} cells come out too small; predict more, or fit with sampling.noise=independent (docs/evaluation.md)"
        )


def _seed(predicted: Cells, default: int) -> int:
    if isinstance(predicted, CellTable):
        return default
    with open_source(predicted) as source:
        return default if source.seed is None else source.seed


def _blocks(pair: Pair) -> Iterator[tuple[list[str], int]]:
    """Conditions that are predicted together, and their number of cells."""
    assert pair.predicted is not None
    by_size: dict[int, list[str]] = {}
    for name in pair.conditions:
        by_size.setdefault(pair.predicted.n_cells(name), []).append(name)
    for n, names in by_size.items():
        size = max(1, BLOCK_CELLS // n)
        yield from ((names[start : start + size], n) for start in range(0, len(names), size))


def _predicted(
    prior: Predictor, names: Sequence[str], n_cells: int, options: dict[str, Any]
) -> Iterator[tuple[str, sp.csr_matrix | str]]:
    """Each of `names` with its cells, or with why it has none."""
    try:
        X = sp.csr_matrix(prior.predict(names, n_cells=n_cells, **options).X)
    except (ConditionError, DataError, RunError) as error:
        if system_words(error) is not None:  # the disk fails, not the run
            raise
        if len(names) == 1:
            yield names[0], str(error)
            return
        for name in names:
            yield from _predicted(prior, [name], n_cells, options)
        return
    yield from ((name, X[k * n_cells : (k + 1) * n_cells]) for k, name in enumerate(names))


def _told(failed: dict[str, str]) -> list[str]:
    if not failed:
        return []
    name, why = next(iter(failed.items()))
    return [f"{PRIOR}: undefined for {len(failed)} conditions that this run cannot predict (first: {name}: {why})"]


def given_means(training: Fitted | pd.DataFrame | None) -> pd.DataFrame | None:
    """The table of means that is given, or that a run holds; ConfigError for anything else."""
    if training is None or isinstance(training, pd.DataFrame):
        return training
    if isinstance(training, Fitted):
        return training.means
    raise ConfigError(
        f"training: expected None, a Run or a table of means (conditions × genes), found {type(training).__name__}"
    )


def training_control_of(training: Fitted | pd.DataFrame | None) -> pd.Series[float] | None:
    """The control row of a table of training means, if there is one."""
    table = given_means(training)
    if table is None or CONTROL not in table.index:
        return None
    return pd.Series(table.to_numpy()[table.index == CONTROL][0], index=table.columns)


def training_means(training: Fitted | pd.DataFrame | None, pair: Pair, control: Floats) -> tuple[Training, list[str]]:
    """The training conditions' means over the aligned genes, and notes on where they come from."""
    genes, table = pair.real.genes.tolist(), given_means(training)
    if table is None:
        predicted = set(pair.conditions) | (set(pair.predicted.rows) if pair.predicted else set())
        names = tuple(c for c in pair.measured if c not in predicted)
        note = f"training not given: taken as the {len(names)} real conditions that are not predicted"
        matched = _matched_means(pair, names, {})
        means, links = moments(pair.real, names).mean, linked(pair.real, names, pair.conditions)
        return Training(names, means, control, tuple(genes), matched, links), [note]
    columns, scored = set(table.columns.astype(str)), set(pair.conditions)
    lacking = [gene for gene in genes if gene not in columns]
    if lacking:
        raise DataError(
            f"training: {len(lacking)} of the {len(genes)} scored genes are not among its columns (first: {lacking[0]}); "
            "give means over all predicted genes"
        )
    table = table.rename(index=lambda label: canonical(str(label)), columns=str)
    named = [str(c) for c in table.index if targets(str(c))]
    leaked = [c for c in named if c in scored]
    whole = table[genes].notna().all(axis=1)
    conditions = tuple(c for c in named if c not in scored and whole[c])
    notes = (
        [
            f"{len(leaked)} scored conditions were left out of the training means (no score of a model that learned from "
            f"them is a test): {', '.join(leaked[:5])}"
        ]
        if leaked
        else []
    )
    if not whole.all():
        notes.append(
            f"{int((~whole).sum())} rows of the training means are of screens that lack a scored gene, and left out"
        )
    means = table.loc[list(conditions), genes].to_numpy(dtype=np.float64)
    own = {
        str(c): table.loc[c, genes].to_numpy(dtype=np.float64) for c in table.index if not targets(str(c)) and whole[c]
    }
    matched = _matched_means(pair, conditions, own)
    astray = [c for c in conditions if matched and c not in matched and control_of(c) not in matched]
    if astray:
        notes.append(
            f"{len(astray)} training conditions have no control cells of their own: all stand in for them; "
            f"a row `{control_of(astray[0])}` of the training means would tell (first: {astray[0]})"
        )
    links = linked(pair.real, conditions, pair.conditions)
    return Training(conditions, means, control, tuple(genes), matched, links, tuple(leaked)), notes


def _matched_means(pair: Pair, names: Sequence[str], own: Mapping[str, Floats]) -> dict[str, Floats]:
    """Control means by condition, or by `control|key=value`, of the real cells; of groups that they lack, the
    training's `own`. Nothing where controls are not matched."""
    real = pair.real
    if not real.matched:
        return {}
    lacking = {control_of(name) for name in names if control_of(name) not in real.matched}
    means = {name: own[name] for name in lacking & set(own)}
    conditions = [*real.matched]
    for places in real.control_groups(conditions).values():
        mean = real.control_mean(conditions[places[0]])
        means |= {conditions[k]: mean for k in places}
    return means


MOST_CELLS = 2000
"""Control cells that are looked at, evenly over their order."""


def linked(real: Population, trained: Iterable[str], scored: Iterable[str]) -> dict[str, Floats]:
    """Of each target that is a gene, the covariance [A] of all genes with it over control cells, in its deviations.

    Nothing where no gene among the targets of the `scored` conditions is new: of what was `trained`, more is known.
    """
    trained_targets = {target for condition in trained for target in targets(condition)}
    scored_targets = {target for condition in scored for target in targets(condition)}
    place = {str(gene): column for column, gene in enumerate(real.genes)}
    names = sorted(name for name in trained_targets | scored_targets if name in place)
    if (scored_targets - trained_targets).isdisjoint(place) or len(real.rows[CONTROL]) < 2:
        return {}
    rows = real.rows[CONTROL]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_CELLS)).astype(np.int64))]
    cells = in_memory(taken(real.X, rows)).astype(np.float64).tocsc()
    own = cells[:, [place[name] for name in names]]
    mean, own_mean = (np.asarray(some.mean(axis=0)).ravel() for some in (cells, own))
    products = np.asarray((own.T @ cells).todense()) / len(rows) - np.outer(own_mean, mean)
    spread = np.sqrt(np.maximum(products[np.arange(len(names)), [place[name] for name in names]], 0))
    return {name: row / size for name, row, size in zip(names, products, spread, strict=True) if size > 0}
