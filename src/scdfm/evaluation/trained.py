"""What a model was trained on, as the means that the simple rules learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from scdfm.data.conditions import CONTROL, canonical, control_of, targets
from scdfm.errors import ConfigError, DataError
from scdfm.evaluation.alignment import Pair
from scdfm.evaluation.baselines import Training
from scdfm.evaluation.prior import Fitted
from scdfm.evaluation.pseudobulk import Floats, moments


def _given_means(training: Fitted | pd.DataFrame | None) -> pd.DataFrame | None:
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
    table = _given_means(training)
    if table is None or CONTROL not in table.index:
        return None
    return pd.Series(table.to_numpy()[table.index == CONTROL][0], index=table.columns)


def training_means(
    training: Fitted | pd.DataFrame | None, pair: Pair, control: Floats
) -> tuple[Training, list[str]]:
    """The training conditions' means over the aligned genes, and notes on where they come from."""
    genes, table = pair.real.genes.tolist(), _given_means(training)
    if table is None:
        predicted = set(pair.conditions) | (set(pair.predicted.rows) if pair.predicted else set())
        names = tuple(c for c in pair.measured if c not in predicted)
        note = f"training not given: taken as the {len(names)} real conditions that are not predicted"
        matched = _matched_means(pair, names, {})
        return Training(names, moments(pair.real, names).mean, control, tuple(genes), matched), [note]
    lacking = [gene for gene in genes if gene not in set(table.columns.astype(str))]
    if lacking:
        raise DataError(
            f"training: {len(lacking)} of the {len(genes)} scored genes are not among its columns (first: {lacking[0]}); "
            "give means over all predicted genes"
        )
    table = table.rename(index=lambda label: canonical(str(label)), columns=str)
    named = [str(c) for c in table.index if targets(str(c))]
    leaked = [c for c in named if c in set(pair.conditions)]
    kept = tuple(c for c in named if c not in set(leaked))
    notes = (
        [f"{len(leaked)} scored conditions were left out of the training means: {', '.join(leaked[:5])}"]
        if leaked
        else []
    )
    means = table.loc[list(kept), genes].to_numpy(dtype=np.float64)
    own = {str(c): table.loc[c, genes].to_numpy(dtype=np.float64) for c in table.index if not targets(str(c))}
    matched = _matched_means(pair, kept, own)
    astray = [c for c in kept if matched and c not in matched and control_of(c) not in matched]
    if astray:
        notes.append(
            f"{len(astray)} training conditions have no control cells of their own: all stand in for them"
        )
    return Training(kept, means, control, tuple(genes), matched), notes


def _matched_means(pair: Pair, names: Sequence[str], own: Mapping[str, Floats]) -> dict[str, Floats]:
    """Control means by condition, or by `control|key=value`, of the real cells; of groups that they lack, the
    training's `own`. Nothing where controls are not matched."""
    real = pair.real
    if not real.matched:
        return {}
    lacking = {control_of(name) for name in names if control_of(name) not in real.matched}
    found = {name: own[name] for name in lacking & set(own)}
    known = [*real.matched]
    for places in real.control_groups(known).values():
        mean = real.control_mean(known[places[0]])
        found |= {known[k]: mean for k in places}
    return found
