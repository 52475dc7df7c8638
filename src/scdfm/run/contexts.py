"""A run in contexts that training never had, such as a cell line of which only untreated cells were measured.

The prior places a new context by the mean of its control cells, and the flow starts from these cells. The network reads, in
place of a vector of the context's own, the mean of the trained ones, weighted by how alike their control cells are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from scdfm.data import CONTROL, CellTable
from scdfm.data.conditions import control_of, covariates, parse
from scdfm.data.stored import in_memory, subset
from scdfm.errors import ConditionError, DataError
from scdfm.model import VelocityField
from scdfm.prior.kernel import Floats
from scdfm.run import folder
from scdfm.run.trained import Trained
from scdfm.seeds import numpy_rng

R = TypeVar("R", bound=Trained)
FEWEST_GENES: Final = 0.5
"""Share of the run's genes that control cells must have measured for the others to be filled in."""


def in_contexts(run: R, table: CellTable) -> R:
    """`run` as it predicts from the control cells `table`: it also knows the values of covariates that these have.

    Its `contexts` tell of each setting that training never had. The same run where there is none.
    """
    covariate_values = run.manifest.conditions.covariates
    settings = {name: covariates(name) for name in table.control_conditions} if covariate_values else {}
    trained = trained_settings(run) if settings else {}
    if not (new := [name for name in settings if name not in trained]):
        return run
    require_genes(run, table, run.genes)
    columns = table.columns(run.genes)
    means = {name: table.control_mean(name)[columns] for name in new}
    made = copy.copy(run)  # with all that was read already, but for what depends on the contexts
    made.contexts = {name: _told(mean, trained) for name, mean in means.items()}
    added: dict[str, dict[str, Floats]] = {
        key: {settings[name][key]: mean for name, mean in means.items() if settings[name][key] not in values}
        for key, values in covariate_values.items()
    }
    if any(added.values()):
        longer = {key: (*values, *added[key]) for key, values in covariate_values.items()}
        schema = run.manifest.conditions.model_copy(update={"covariates": longer})
        made.manifest = run.manifest.model_copy(update={"conditions": schema})
        vars(made).pop("encoder", None)
        made.field = _with_vectors(run, added, trained)
    return made


def require_genes(run: Trained, table: CellTable, genes: Sequence[str]) -> None:
    """Raise DataError unless the control cells `table` are measured on all of `genes` of the run."""
    there = set(map(str, table.genes))
    if missing := sorted(set(genes) - there):
        raise DataError(
            f"controls: {len(missing)} of the run's {len(run.genes)} genes are missing (first: {', '.join(missing[:3])}); "
            "give control cells measured on the genes of the training data, or have these genes filled in from stored "
            "control cells (--fill-genes, fill_genes=True)"
        )


def _with_vectors(
    run: Trained, new: Mapping[str, Mapping[str, Floats]], trained: Mapping[str, Floats]
) -> VelocityField:
    """The field of `run` with a vector for each new value: the mean of the key's trained ones by their likeness."""
    field = copy.deepcopy(run.field)
    table = field.conditioning.covariates
    assert table is not None
    rows, first = [], 0
    for key, values in run.manifest.conditions.covariates.items():
        own = table.weight.detach()[first : first + len(values)]
        rows += [own, *(_shares(run, mean, key, values, trained).to(own) @ own for mean in new[key].values())]
        first += len(values)
    whole = torch.cat([row.reshape(-1, table.embedding_dim) for row in rows])
    field.conditioning.covariates = nn.Embedding(whole.shape[0], whole.shape[1], _weight=whole)
    return field.eval()


def _shares(run: Trained, mean: Floats, key: str, values: Sequence[str], trained: Mapping[str, Floats]) -> torch.Tensor:
    """How much each value of a covariate counts for a context of this control `mean`, 1 together."""
    far = np.full(len(values), np.inf)
    for name, other in trained.items():
        place = values.index(covariates(name)[key])
        far[place] = min(far[place], float(((mean - other) ** 2).sum()))
    if not np.isfinite(far).any():
        return torch.full((len(values),), 1 / len(values))
    length2 = run.prior.kernel.controls_length2 if run.config.flow.source == "prior" else far.min()
    likeness = np.exp((far.min() - far) / max(length2, 1e-12))
    return torch.from_numpy((likeness / likeness.sum()).astype(np.float32))


def trained_settings(run: Trained) -> dict[str, Floats]:
    """Control mean [G] of each setting of the covariates that training perturbed, as far as the run keeps them."""
    settings = {control_of(name) for name in run.split.train}
    if run.config.flow.source == "prior" and run.prior.kernel.settings:
        kernel = run.prior.kernel
        return dict(zip(kernel.settings, kernel.controls, strict=True))
    if folder.CONTROLS not in run.manifest.digests or not run.manifest.conditions.covariates:
        return {}
    stored = run.controls
    columns = stored.columns(run.genes)
    return {name: stored.control_mean(name)[columns] for name in stored.control_conditions if name in settings}


def _told(mean: Floats, trained: Mapping[str, Floats]) -> str:
    """How far the control cells of this `mean` lie from the trained settings (L2 of log1p means), in words."""
    said = "context known by its control cells alone"
    far = {name: float(np.linalg.norm(mean - other)) for name, other in trained.items()}
    if not far:
        return said
    nearest = min(far, key=lambda name: far[name])
    said += f"; nearest trained: {setting_text(nearest)}, {far[nearest]:.3g} away"
    rows = [*trained.values()]
    between = [float(np.linalg.norm(one - other)) for at, one in enumerate(rows) for other in rows[:at]]
    typical = float(np.median(between)) if between else 0.0
    return f"{said}, {far[nearest] / typical:.2g} times what trained ones are from one another" if typical else said


def filled(run: Trained, table: CellTable, seed: int) -> CellTable:
    """Control cells with all genes of the run: each takes those that its file lacks from a stored control cell of the
    trained setting whose means are nearest on the genes of both. `filled` of the table names them."""
    there = set(map(str, table.genes))
    missing = [gene for gene in run.genes if gene not in there]
    shared = [gene for gene in run.genes if gene in there]
    if not missing:
        return table
    if len(shared) < FEWEST_GENES * len(run.genes):
        raise DataError(
            f"controls: {len(shared)} of the run's {len(run.genes)} genes are measured (first missing: '{missing[0]}'), "
            f"expected at least {FEWEST_GENES:.0%} to fill in the others; give control cells measured on more of them, or "
            "names of genes as the training data have them"
        )
    stored = run.controls
    means = {name: stored.control_mean(name)[stored.columns(shared)] for name in stored.control_conditions}
    own = table.mean(CONTROL)[table.columns(shared)]
    nearest = min(means, key=lambda name: float(((means[name] - own) ** 2).sum()))
    rows = stored.control_rows(nearest)
    drawn = rows[numpy_rng(seed, "filled genes").integers(len(rows), size=table.n)]
    X = sp.hstack([in_memory(table.X), in_memory(subset(stored.X, drawn, stored.columns(missing)))], format="csr")
    return replace(
        table, X=X, genes=np.concatenate([table.genes, np.array(missing, dtype=np.str_)]), filled=tuple(missing)
    )


def cells_in(table: CellTable, context: Mapping[str, str]) -> CellTable:
    """The cells of a table that are of a context; DataError where it has none, or not its columns."""
    mask = np.ones(table.n, dtype=bool)
    for key, value in context.items():
        if key not in table.covariates:
            raise DataError(
                f"controls: the context's '{key}' is none of the table's covariates "
                f"({', '.join(table.covariates) or 'none'}); read them with covariates=['{key}'], or give the file"
            )
        mask &= (table.obs[key] == value).to_numpy()
    if not mask.any():
        named = ", ".join(f"{key}={value}" for key, value in context.items())
        raise DataError(f"controls: no cell of the table is of the context {named}; name one that it has")
    return table.take(np.flatnonzero(mask))


def in_context(name: str, context: Mapping[str, str]) -> str:
    """The name of a condition with the covariates of a context, where it does not say them; ConditionError if others."""
    condition = parse(name)
    own = dict(condition.covariates)
    for key, value in context.items():
        if own.setdefault(key, value) != value:
            raise ConditionError(
                f"condition '{name}' is not of the context {key}={value}; leave its covariate out, or name that context"
            )
    return str(replace(condition, covariates=tuple(own.items())))


def every_condition(run: Trained, context: Mapping[str, str]) -> list[str]:
    """Every condition of the run's split, sorted: in a context what was measured in any, once."""
    named = [parse(name) for name in run.split.conditions]
    moved = [replace(one, covariates=tuple((dict(one.covariates) | dict(context)).items())) for one in named]
    return sorted({str(one) for one in moved if one.perturbations})


def setting_text(name: str) -> str:
    """`cell_line A549, donor 1` of `control|cell_line=A549|donor=1`."""
    return ", ".join(f"{key} {value}" for key, value in parse(name).covariates) or CONTROL
