"""The metrics by name: what each needs, which direction is good, and the values of a table of means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scdfm.data.conditions import near
from scdfm.errors import ConfigError
from scdfm.evaluation import pointwise
from scdfm.evaluation.discrimination import discrimination
from scdfm.evaluation.expression import de_spearman
from scdfm.evaluation.pseudobulk import Floats

POINTWISE: Final = (
    "l2",
    "mse",
    "mae",
    "pearson_delta",
    "ds",
    "ds_signed",
    "de_spearman",
    "pearson_delta_hat",
    "pearson_delta_hat_20",
)
DISTRIBUTION: Final = ("energy", "mmd", "wasserstein", "variance_error", "zero_fraction_error")
METRICS: Final = (*POINTWISE, *DISTRIBUTION)
LOWER_IS_BETTER: Final = frozenset({"l2", "mse", "mae", "mse_delta", "mae_delta", *DISTRIBUTION})
NEUTRAL: Final = frozenset({"de_nsig_counts_real", "de_nsig_counts_pred"})
"""Counts without a better or worse."""
_CORRELATIONS: Final = ("pearson_delta", "pearson_delta_hat", "pearson_delta_hat_20", "de_spearman")
RANGES: Final[dict[str, tuple[float, float]]] = {
    **dict.fromkeys(LOWER_IS_BETTER - {"energy", "mmd"}, (0.0, np.inf)),
    **dict.fromkeys(_CORRELATIONS, (-1.0, 1.0)),
    **dict.fromkeys(("ds", "ds_signed", "zero_fraction_error"), (0.0, 1.0)),
}
"""Where the values of a metric can lie; a metric without an entry may lie anywhere (unbiased distances fall below 0)."""


def checked(metrics: Iterable[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """`metrics` in the order of `known`, or all of them; ConfigError on an unknown name."""
    if metrics is None:
        return known
    asked = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in asked:
        if name not in known:
            raise ConfigError(f"metric '{name}': expected some of {', '.join(known)}{near(name, known)}")
    if not asked:
        raise ConfigError("metrics is empty; name at least one, or leave it out for all")
    return tuple(name for name in known if name in asked)


@dataclass(frozen=True)
class Standard:
    """What predicted means are scored against, K conditions over A genes.

    `real` [K, A]; `control` [A], the real one, or [K, A], each condition's own; `centre` (likewise), Systema's O (NaN
    where nothing trained); `scored` [G], columns of the pointwise metrics; `top` [K, 20] and `significant` [K, G],
    places within the scored genes. `groups`: places of conditions with the same control, where there are several.
    """

    real: Floats
    control: Floats
    centre: Floats
    scored: NDArray[np.int64]
    top: NDArray[np.int64]
    significant: NDArray[np.bool_]
    groups: tuple[list[int], ...] | None = None


def score_means(
    predicted: Floats, standard: Standard, metrics: Iterable[str], predicted_control: Floats | None = None
) -> dict[str, Floats]:
    """Values [K] of the pointwise `metrics` for `predicted` means [K, A]; rows of NaN give NaN.

    `predicted_control` [A]: the origin of predicted shifts where it is not the real control (protocol paper).
    """
    origin = standard.control if predicted_control is None else predicted_control
    columns = standard.scored
    p, r, o = predicted[:, columns], standard.real[:, columns], standard.centre[..., columns]
    control, shifts = standard.control[..., columns], (predicted - origin, standard.real - standard.control)
    on_top = o[standard.top] if o.ndim == 1 else pointwise.on_top(o, standard.top)
    values: dict[str, Callable[[], Floats]] = {
        "l2": lambda: pointwise.l2(p, r),
        "mse": lambda: pointwise.mse(p, r),
        "mae": lambda: pointwise.mae(p, r),
        "pearson_delta": lambda: pointwise.pearson_delta(p, r, origin[..., columns], control),
        "ds": lambda: discrimination(*shifts, signed=False, groups=standard.groups),
        "ds_signed": lambda: discrimination(*shifts, signed=True, groups=standard.groups),
        "de_spearman": lambda: de_spearman(p, r, control, standard.significant),
        "pearson_delta_hat": lambda: pointwise.pearson_delta(p, r, o, o),
        "pearson_delta_hat_20": lambda: pointwise.pearson_delta(
            pointwise.on_top(p, standard.top),
            pointwise.on_top(r, standard.top),
            on_top,
            on_top,
        ),
    }
    return {name: values[name]() for name in metrics if name in values}
