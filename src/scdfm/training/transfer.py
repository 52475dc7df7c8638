"""A fit that starts from a run: what it has learned is carried to another screen, or trained on for longer.

Genes, targets and values of covariates are matched by name. Weights, features and the units of dose and time come from the
run; tokens it does not know start at the mean of their neighbours in the new graph. The prior learns from both screens: the
means of the earlier one take part as far as they let left-out conditions of the new one be expected better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scdfm.config import Config, PanelConfig
from scdfm.data import CONTROL, CellTable, targets
from scdfm.data.conditions import control_of
from scdfm.data.encoding import ConditionEncoder, ConditionSchema
from scdfm.data.features import FeatureTable, Standardiser
from scdfm.errors import ConfigError, DataError, RunError
from scdfm.model import VelocityField
from scdfm.prior import LearnedPrior
from scdfm.prior.kernel import Floats
from scdfm.run import folder
from scdfm.run.manifest import Ancestor, Manifest
from scdfm.run.trained import Trained

SLOWER: Final = 0.3
"""The learning rate of a fit that starts from a run, relative to the run's own."""
MOST: Final = 1e9
WORTH: Final = (MOST, 30.0, 5.0)
"""Cells that the mean of an earlier condition may be worth at most; the best by left-out conditions, or none, is taken."""
TOKENS: Final = ("gene_encoder.table.weight", "drug_table.table.weight")
COVARIATES: Final = "conditioning.covariates.weight"


def tuned(run: Trained) -> Config:
    """The config of a fit that starts from `run`: its own, with a learning rate that is smaller by SLOWER."""
    rate = run.config.training.learning_rate * SLOWER
    least = min(run.config.training.min_learning_rate, rate)
    return run.config.updated({"training": {"learning_rate": rate, "min_learning_rate": least}}, where="--from")


def require_kin(run: Trained, cells: CellTable, config: Config) -> None:
    """Refuse a screen, or options, that the run's weights cannot be carried to."""
    for section in ("model", "flow"):
        own, options = getattr(run.config, section), getattr(config, section)
        differing = [name for name in type(own).model_fields if getattr(own, name) != getattr(options, name)]
        conflicts = [
            name for name in differing if (section, name) not in (("model", "features"), ("flow", "genes_per_step"))
        ]
        if conflicts:
            raise ConfigError(
                f"--from {run.path}: {section}.{conflicts[0]} is {getattr(options, conflicts[0])!r}, but the run was "
                f"fitted with {getattr(own, conflicts[0])!r}; leave it out, or fit without --from"
            )
    total = run.manifest.scale["target_sum"]
    if cells.scale.target_sum != total:
        raise DataError(
            f"--from {run.path}: the run was fitted at {_scale(total)}, these cells are {_scale(cells.scale.target_sum)}; "
            "expected one scale: read them at the run's (--target-sum, --values)"
        )
    shared = set(run.genes).intersection(map(str, cells.genes))
    if not shared:
        raise DataError(
            f"--from {run.path}: none of the run's {len(run.genes)} genes is measured here (first of the run: "
            f"'{run.genes[0]}', of the file: '{cells.genes[0]}'); expected names of one kind: name the column of var that "
            "has them (--gene-column), or fit without --from"
        )
    own_keys = set(run.manifest.conditions.covariates)
    if own_keys != set(cells.covariates):
        raise DataError(
            f"--from {run.path}: the run has the covariates {', '.join(sorted(own_keys)) or 'none'}, these cells "
            f"{', '.join(sorted(cells.covariates)) or 'none'}; expected the same: read them so (--covariates)"
        )
    named = {target for condition in cells.conditions for target in targets(condition)}
    run_targets = {*run.manifest.targets, *(run.genes if config.model.perturbation == "genes" else ())}
    run_targets |= set(run.manifest.features.names if run.manifest.features else ())
    if named and not named & run_targets:
        raise DataError(
            f"--from {run.path}: none of the {len(named)} targets of these cells (first: '{min(named)}') is a target"
            f"{', a gene' if config.model.perturbation == 'genes' else ''} or described in the run; a run of another kind "
            "of perturbation has nothing to carry over: fit without --from"
        )


def _scale(total: float | None) -> str:
    return "log1p values of no declared total" if total is None else f"log1p of counts per {total:g}"


def ancestors(run: Trained, cells: CellTable) -> list[Ancestor]:
    """The chain of runs that a fit from `run` starts from, the last one first."""
    shared = set(run.genes).intersection(map(str, cells.genes))
    first = Ancestor(
        path=str(run.path), weights=run.manifest.digests[folder.WEIGHTS], data=run.manifest.data["digest"],
        targets=run.manifest.targets, n_genes=len(shared),
    )  # fmt: skip
    return [first, *run.manifest.lineage]


def carried_panel(run: Trained, cells: CellTable, config: PanelConfig) -> PanelConfig:
    """The options of a panel that also takes every gene of the run that the cells have."""
    shared = set(run.genes).intersection(map(str, cells.genes))
    return config.model_copy(update={"include": tuple(sorted(shared.union(config.include)))})


def carried_schema(run: Trained, own: ConditionSchema) -> ConditionSchema:
    """The schema of the new conditions, with the doses and times of the run as units."""
    before = run.manifest.conditions
    units = {
        name: getattr(before, name)
        for name in ("dose_reference", "time_reference")
        if getattr(before, name) is not None and getattr(own, name) is not None
    }
    return own.model_copy(update=units)


def carried_features(run: Trained, given: FeatureTable | None) -> tuple[FeatureTable | None, Standardiser | None]:
    """The features of a fit and what brings them to one scale: the run's, or those given where they are of one kind."""
    if run.manifest.features is None:
        return given, None
    assert run.features is not None
    own, standardise = run.features
    if given is None:
        return own, standardise
    if given.n_features != own.n_features:
        raise RunError(
            f"--from {run.path}: features of {given.n_features} numbers are given, but the run was fitted with "
            f"{own.n_features} ({own.kind}); give the same descriptions of the new targets, or fit without --from"
        )
    return given, standardise


def carried_weights(
    run: Trained, field: VelocityField, encoder: ConditionEncoder, graph: Tensor | None
) -> dict[str, Tensor]:
    """The state of `field`, with what `run` has learned in the place of its random start."""
    before, state = run.field.state_dict(), field.state_dict()
    for name, fresh in state.items():
        if name not in before:
            continue
        if name in TOKENS:
            state[name] = _rows(before[name], run.vocabulary.tokens, fresh, encoder.vocabulary.tokens, graph)
        elif name == COVARIATES:
            old, new = (_values(one) for one in (run.manifest.conditions, encoder.schema))
            state[name] = _rows(before[name], old, fresh, new, None)
        elif before[name].shape == fresh.shape:
            state[name] = before[name].clone()
    return state


def _values(schema: ConditionSchema) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, values in schema.covariates.items() for value in values)


def _rows(before: Tensor, old: Sequence[str], fresh: Tensor, new: Sequence[str], graph: Tensor | None) -> Tensor:
    """Rows of a table by name; of new names the mean of their known neighbours, else that of all known rows."""
    place = {name: at for at, name in enumerate(old)}
    rows = fresh.clone()
    known = torch.tensor([name in place for name in new])
    rows[known] = before[[place[name] for name in new if name in place]]
    for at in torch.nonzero(~known).flatten().tolist():
        near = known & graph[at] if graph is not None else torch.zeros_like(known)
        rows[at] = rows[near].mean(0) if near.any() else rows[known].mean(0) if known.any() else fresh[at]
    return rows


class Earlier(NamedTuple):
    """Measured means of an earlier screen, as the prior takes them: names, shifts [n, G], cells [n], control means [n, G].

    Genes that the earlier screen lacks are NaN.
    """

    names: tuple[str, ...]
    shifts: Floats
    cells: Floats
    controls: Floats

    @classmethod
    def of(cls, run: Trained, genes: Sequence[str]) -> Earlier:
        """The conditions that `run` keeps means of, on `genes`."""
        means = run.means.reindex(columns=list(genes))
        names = [str(name) for name in means.index if targets(str(name))]
        settings = [control_of(name) if control_of(name) in means.index else CONTROL for name in names]
        own = means.loc[settings].to_numpy(np.float64)
        typical = run.manifest.data["n_cells"] / max(len(means), 1)
        counts = np.array([run.manifest.n_cells.get(name, typical) for name in names], dtype=np.float64)
        return cls(tuple(names), means.loc[names].to_numpy(np.float64) - own, counts, own)

    def filled(self, expected: Floats, control: Floats) -> Earlier:
        """With `expected` shifts [n, G] and `control` means [G] where the earlier screen has no gene."""
        lacking = np.isnan(self.shifts)
        shifts, controls = np.where(lacking, expected, self.shifts), np.where(lacking, control, self.controls)
        return self._replace(shifts=shifts, controls=controls)


class Joined(NamedTuple):
    """A prior of both screens, or of the new one alone: cells that an earlier mean is worth at most (0: none takes part),
    and the squared error of left-out new conditions, with and without the earlier ones."""

    learned: LearnedPrior
    worth: float
    error: float
    fresh_error: float


def best_of(fresh: LearnedPrior, joint: Sequence[tuple[float, LearnedPrior]], shifts: Floats) -> Joined:
    """Of the priors of both screens the one that expects left-out conditions best, unless that of the new one alone is
    better by more than a standard error: of few conditions chance decides, and who names a run believes that it helps.

    shifts [n, G] are those of the new conditions, which stand first among those of every prior.
    """
    n = len(shifts)

    def errors(learned: LearnedPrior) -> Floats:
        return np.asarray(((learned.left_out[:n] - shifts) ** 2).sum(1))

    alone = errors(fresh)
    worth, best = min(joint, key=lambda pair: float(errors(pair[1]).mean()))
    loss = errors(best) - alone
    unsure = float(loss.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    if loss.mean() > unsure:
        return Joined(fresh, 0.0, float(alone.mean()), float(alone.mean()))
    prior = best._replace(left_out=best.left_out[:n])
    return Joined(prior, worth, float(errors(best).mean()), float(alone.mean()))


def told(manifest: Manifest) -> str | None:
    """What the earlier run's measured means were worth, in one sentence; none without an earlier run."""
    if not manifest.lineage or manifest.lineage[0].worth is None:
        return None
    one = manifest.lineage[0]
    if not one.worth:
        return (
            f"conditions of {one.path} take no part in the prior: with them conditions of this screen that are left out, "
            "or validate, are expected worse than by a fresh fit; its weights are carried over"
        )
    assert one.error is not None
    assert one.fresh_error is not None
    most = "as measured" if one.worth == MOST else f"as means of {one.worth:g} cells at most"
    gain = 1 - one.error / max(one.fresh_error, 1e-12)
    than = f"{abs(gain):.0%} {'smaller' if gain >= 0 else 'larger, not clearly,'} than of a fresh fit"
    return (
        f"conditions of {one.path} take part in the prior, {most}: the squared error of left-out conditions of this "
        f"screen is {than}" + ("" if gain >= 0 else " (fit without --from for that)")
    )
