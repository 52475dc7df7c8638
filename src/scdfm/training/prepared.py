"""What a fit makes of its cells before the first step: in memory for training, in the run folder for prediction.

Graph, means, control cells, and where the flow starts from the prior, which training conditions alone teach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import torch

from scdfm.data import CONTROL, CellTable, Split, coexpression_graph, vocabulary_graph
from scdfm.data.conditions import SCREEN, control_of
from scdfm.data.stored import in_memory, subset
from scdfm.files import made, write_csv
from scdfm.prior import EffectPrior, LearnedPrior, PriorStart, Spread, filled_shifts, fit_spread, learn_prior
from scdfm.prior.kernel import Floats, every_target
from scdfm.prior.spread import LEAST_DONORS, variances_around
from scdfm.prior.start import correlation_of_pairs
from scdfm.run import folder
from scdfm.run.counts import learned_law
from scdfm.run.manifest import Ancestor, Manifest
from scdfm.seeds import numpy_rng, torch_rng
from scdfm.training.checkpoint import CHECKPOINTS
from scdfm.training.inputs import Inputs
from scdfm.training.transfer import WORTH, Earlier, Joined, best_of

SPREAD_CELLS = 4000
"""Training cells whose spread is learned."""
FEW = 4
"""Cells that a condition needs to tell their spread by itself."""
ENOUGH_CELLS, ENOUGH_EACH = 1000, 30
"""Training cells that tell their spread without control cells, in all or of each condition on average."""
START = "start.safetensors"
JUDGED = ("worth", "error", "fresh_error")
"""What is kept of a prior of two screens."""


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
            folder.write_cells(out / folder.CONTROLS, cells, rows, columns, lent(cells, rows, columns, config.seed))
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


def lent(cells: CellTable, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], seed: int) -> sp.csr_matrix:
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
        name: cells.take(screen_rows).mean(CONTROL)[common] for name, screen_rows in of.items() if len(screen_rows)
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


def prior_start(cells: CellTable, split: Split, inputs: Inputs, out: Path) -> PriorStart:
    """The start of the fit's conditions: read where it was learned before, else learned and written.

    The prior that is kept for prediction knows the validation conditions too; they start from what the training
    conditions alone let expect, here as whenever they are predicted.
    """
    names = (*split.train, *split.validation, *inputs.manifest.control_populations)
    if (out / CHECKPOINTS / START).is_file():
        tensors = folder.read_tensors(out / CHECKPOINTS / START)
        spread = Spread.load(out / folder.SPREAD, len(inputs.panel.genes))
        return PriorStart.around(spread, names, *(tensors[name] for name in ("expected", "controls", "doubt")))
    sample = _spread_sample(cells, split.train, inputs)
    spread = fit_spread(
        sample.cells, sample.conditions, sample.means, sample.settings, torch_rng(inputs.manifest.seed, "zeros")
    )
    spread = _with_correlation(spread, inputs.manifest)
    spread.save(out / folder.SPREAD)
    variances = sample.variances()
    learned = _learned(cells, split.train, variances, inputs)
    earlier, worth, verdict = None, 0.0, {}
    if (before := _earlier(inputs, cells)) is not None:
        earlier, joined = _joined(cells, split, variances, inputs, learned, before)
        learned, worth = joined.learned, joined.worth
        verdict = {name: torch.tensor(getattr(joined, name)) for name in JUDGED}
    final = learned
    if split.validation:
        final = _learned(cells, (*split.train, *split.validation), variances, inputs, earlier, worth)
        learned.prior.save(out / folder.TRAINING_PRIOR)
    final.prior.save(out / folder.PRIOR)
    expected, controls, doubts = (torch.as_tensor(part).float() for part in _expected(cells, split, inputs, learned))
    made(out / CHECKPOINTS)
    tensors = {"expected": expected, "controls": controls, "doubt": doubts} | verdict
    folder.write_tensors(out / CHECKPOINTS / START, tensors)
    return PriorStart.around(spread, names, expected, controls, doubts)


def _with_correlation(spread: Spread, manifest: Manifest) -> Spread:
    """The spread with the correlation of training's pairs, where like goes to like."""
    config = manifest.config
    if config.flow.pairing == "random" or not config.training.max_steps:
        return spread
    n_genes = config.flow.genes_per_step or len(spread.deviation)
    rng = torch_rng(manifest.seed, "pairs")
    return replace(spread, correlation=correlation_of_pairs(spread, config.drawn_cells, n_genes, rng))


def _learned(
    cells: CellTable,
    names: Sequence[str],
    variances: Floats,
    inputs: Inputs,
    earlier: Earlier | None = None,
    worth: float = 0.0,
) -> LearnedPrior:
    """The prior of some conditions, and of those of an `earlier` screen, whose means are worth so many cells at most."""
    shifts, controls = _shifts(cells, names, cells.columns(inputs.panel.genes))
    counts = np.array([cells.n_cells(name) for name in names], dtype=np.float64)
    described, genes = inputs.encoder.descriptions, inputs.panel.genes
    if np.isnan(shifts).any():
        shifts = filled_shifts(names, shifts, counts, variances, genes, described, controls)
    if earlier is not None and worth:
        names = (*names, *earlier.names)
        shifts, controls = np.vstack([shifts, earlier.shifts]), np.vstack([controls, earlier.controls])
        counts = np.concatenate([counts, 1 / (1 / np.maximum(earlier.cells, 1) + 1 / worth)])
    return learn_prior(names, shifts, counts.tolist(), variances, genes, described, controls)


def _earlier(inputs: Inputs, cells: CellTable) -> Earlier | None:
    """The measured means of the run that the fit starts from; none of the same cells, or where it keeps none."""
    parent = inputs.parent
    if parent is None or folder.MEANS not in parent.manifest.digests:
        return None
    if parent.manifest.data["digest"] == inputs.manifest.data["digest"]:
        return None
    earlier = Earlier.of(parent, inputs.panel.genes)
    return earlier if earlier.names else None


def _joined(
    cells: CellTable, split: Split, variances: Floats, inputs: Inputs, fresh: LearnedPrior, earlier: Earlier
) -> tuple[Earlier, Joined]:
    """The prior of both screens, as far as it expects left-out training conditions better, and validation ones no worse.

    Genes that the earlier screen lacks take the shifts that the new screen lets expect of its conditions.
    """
    columns = cells.columns(inputs.panel.genes)
    control = cells.mean(CONTROL)[columns]
    settings = {
        control_of(name): np.where(np.isnan(row), control, row)
        for name, row in zip(earlier.names, earlier.controls, strict=True)
    }
    descriptions = inputs.encoder.descriptions
    wide = fresh.prior.knowing(every_target(earlier.names), descriptions, settings)
    earlier = earlier.filled(wide.predict(earlier.names), control)
    shifts, _ = _shifts(cells, split.train, columns)
    joint = [(worth, _learned(cells, split.train, variances, inputs, earlier, worth)) for worth in WORTH]
    best = best_of(fresh, joint, shifts)
    if best.worth and split.validation:
        real, controls = _shifts(cells, split.validation, columns)
        both, alone = (
            np.square(_validated(one, split, inputs, controls).predict(split.validation) - real).sum()
            for one in (best.learned, fresh)
        )
        if both > alone:
            best = best._replace(learned=fresh, worth=0.0, error=best.fresh_error)
    return earlier, best


def _shifts(cells: CellTable, names: Sequence[str], columns: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Measured mean shifts [C, G], and means [C, G] of the control cells that they are from.

    A shift is NaN of a gene that was not measured.
    """
    means, controls = cells.means(names).to_numpy()[:, columns], _control_means(cells, names, columns)
    return np.asarray(means - controls), controls


def _control_means(cells: CellTable, names: Sequence[str], columns: npt.NDArray[np.int64]) -> Floats:
    """Means [C, G] of the conditions' control cells; of genes that their screen did not measure, of all that did."""
    return _at_home(cells, np.stack([cells.control_mean(name)[columns] for name in names]), columns)


def _at_home(cells: CellTable, means: Floats, columns: npt.NDArray[np.int64]) -> Floats:
    """`means` [C, G] of control cells, with those of all control cells in the place of NaN."""
    lacking = np.isnan(means)
    return np.where(lacking, cells.mean(CONTROL)[columns], means) if lacking.any() else means


def _validated(learned: LearnedPrior, split: Split, inputs: Inputs, controls: Floats) -> EffectPrior:
    """The prior of training conditions, with places for what validation conditions hold; `controls` [C, G] are theirs."""
    settings = {control_of(name): row for name, row in zip(split.validation, controls, strict=True)}
    return learned.prior.knowing(every_target(split.validation), inputs.encoder.descriptions, settings)


def lineage_of(manifest: Manifest, out: Path) -> list[Ancestor]:
    """The lineage of a finished fit in `out`, with what the earlier run's means were worth."""
    start = out / CHECKPOINTS / START
    tensors = folder.read_tensors(start) if start.is_file() else {}
    if not manifest.lineage or not set(JUDGED) <= tensors.keys():
        return manifest.lineage
    values = {name: float(tensors[name]) for name in JUDGED}
    return [manifest.lineage[0].model_copy(update=values), *manifest.lineage[1:]]


def _expected(cells: CellTable, split: Split, inputs: Inputs, learned: LearnedPrior) -> tuple[Floats, Floats, Floats]:
    """Means [C, G], means of their control cells [C, G] and doubts [C] of training, validation and control conditions."""
    options, columns = inputs.manifest.config.flow, cells.columns(inputs.panel.genes)
    names, n = (*split.train, *split.validation), len(split.train)
    # A single condition has no others: where it would start from nothing, what is learned fits no prediction.
    left_out = options.prior_means == "leave_one_out" and n > 1
    own = learned.left_out if left_out else learned.prior.predict(split.train)
    controls = _control_means(cells, names, columns)
    validated = _validated(learned, split, inputs, controls[n:])
    untouched = [
        _at_home(cells, cells.take(cells.population(name)).mean(CONTROL)[None, columns], columns)[0]
        for name in inputs.manifest.control_populations
    ]
    means = np.stack([*(controls + np.vstack([own, validated.predict(split.validation)])), *untouched])
    doubts = [np.zeros(n), validated.doubt(split.validation), np.zeros(len(untouched))]
    return means, np.stack([*controls, *untouched]), np.concatenate(doubts)


class SpreadSample(NamedTuple):
    """Training cells [n, G] whose spread is learned, the condition of each, means [C, G] and control populations [C].

    Cells and means are NaN of genes that were not measured.
    """

    cells: Floats
    conditions: npt.NDArray[np.int64]
    means: Floats
    settings: list[str]
    within: npt.NDArray[np.int64]
    """The condition itself of each cell, where those of small ones are taken together."""

    def variances(self) -> Floats:
        """Variance of each gene [G] around the means, unbiased within each condition.

        Where small conditions are taken together it is that within each of them, as far as they have two cells: what tells
        conditions apart is no noise of their means.
        """
        counts = np.bincount(self.conditions)
        n, n_within = len(self.cells), len(np.unique(self.within))
        if n_within == len(counts) or n - n_within < LEAST_DONORS:
            unbiased = n / max(n - len(counts), 1)
            return np.asarray(variances_around(self.cells, self.means[self.conditions]) * unbiased)
        _, places, sizes = np.unique(self.within, return_inverse=True, return_counts=True)
        member = sp.csr_matrix((np.ones(n), (places, np.arange(n))))
        own = np.asarray(member @ self.cells) / sizes[:, None]
        return np.asarray(variances_around(self.cells, own[places]) * n / (n - n_within))


def _spread_sample(cells: CellTable, names: Sequence[str], inputs: Inputs) -> SpreadSample:
    """As many training cells of each condition as come to SPREAD_CELLS, drawn by the config's seed.

    The mean of a condition of fewer than FEW cells follows these, so that they seem to spread less than they do: cells of
    such conditions are taken together, by setting. Where there are fewer than ENOUGH_CELLS in all, and ENOUGH_EACH of
    each, control cells tell it too.
    """
    rng = numpy_rng(inputs.manifest.seed, "spread")
    columns = cells.columns(inputs.panel.genes)
    groups = _told_together(cells, names)
    populations = [np.concatenate([cells.rows(name) for name in group]) for group in groups]
    centres = _centres(cells.means(names).iloc[:, columns], groups, cells)
    n_told, n_names = sum(map(len, populations)), sum(map(len, groups))
    most = [max(2, SPREAD_CELLS * len(group) // n_names) for group in groups]
    if n_told < min(ENOUGH_CELLS, ENOUGH_EACH * len(names)):
        matched = _one_of_each_control(cells, names)
        matched = [name for name in matched if len(cells.control_rows(name)) >= FEW] if groups else matched
        groups += [[name] for name in matched]
        populations += [cells.control_rows(name) for name in matched]
        centres += [cells.control_mean(name)[columns] for name in matched]
        most += [(SPREAD_CELLS - n_told) // max(len(matched), 1)] * len(matched)
    rows = [rng.permutation(one)[:n] for one, n in zip(populations, most, strict=True)]
    drawn = np.concatenate(rows)
    values = in_memory(subset(cells.X, drawn, columns)).toarray().astype(np.float64)
    conditions = np.repeat(np.arange(len(rows)), [len(one) for one in rows])
    if cells.measured:
        values[~np.stack([cells.measures(group[0])[columns] for group in groups])[conditions]] = np.nan
    single = all(len(group) == 1 for group in groups)
    within = conditions if single else cells.codes[drawn].astype(np.int64)
    return SpreadSample(values, conditions, np.stack(centres), [control_of(group[0]) for group in groups], within)


def _centres(means: pd.DataFrame, groups: Sequence[list[str]], cells: CellTable) -> list[Floats]:
    """The mean of the cells of each group, from those of their conditions."""
    own = [means.loc[group].to_numpy() for group in groups]
    weights = [[cells.n_cells(name) for name in group] for group in groups]
    return [
        np.average(part, axis=0, weights=n) if len(n) > 1 else part[0] for part, n in zip(own, weights, strict=True)
    ]


def _told_together(cells: CellTable, names: Sequence[str]) -> list[list[str]]:
    """The conditions whose cells tell their spread: each by itself, those of fewer than FEW cells by setting."""
    groups = [[name] for name in names if cells.n_cells(name) >= FEW]
    few: dict[str, list[str]] = {}
    for name in names:
        if cells.n_cells(name) < FEW:
            few.setdefault(control_of(name), []).append(name)
    return groups + [group for group in few.values() if sum(map(cells.n_cells, group)) > 1]


def _one_of_each_control(cells: CellTable, names: Sequence[str]) -> list[str]:
    """The first condition of each population of control cells."""
    return list({cells.control_rows(name).tobytes(): name for name in reversed(names)}.values())
