"""The values of the pointwise metrics, for a table of predicted means against a standard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scdfm.evaluation import pointwise, weighted
from scdfm.evaluation.discrimination import centroid_accuracy, discrimination, ds_cosine, transpose_rank
from scdfm.evaluation.expression import de_spearman
from scdfm.evaluation.pseudobulk import Floats


@dataclass(frozen=True)
class Standard:
    """What predicted means are scored against, K conditions over A genes.

    `real` [K, A] with its mean sampling variance over genes `noise` [K]; `control` [A], the real one, or [K, A], each
    condition's own; `centre` (likewise), Systema's O (NaN where nothing trained); `scored` [G], columns of the
    pointwise metrics; `top` [K, 20] and `significant` [K, G], places within the scored genes; `weight` [K, G];
    `targeted` [A], genes that a condition targets; `apart`, the control means that prediction and truth subtract where
    they must not share one, each as `control`. `groups`: places of conditions with the same control, where there are
    several.
    """

    real: Floats
    control: Floats
    centre: Floats
    scored: NDArray[np.int64]
    top: NDArray[np.int64]
    significant: NDArray[np.bool_]
    noise: Floats
    weight: Floats
    targeted: NDArray[np.bool_]
    apart: tuple[Floats, Floats]
    groups: tuple[list[int], ...] | None = None


def score_means(
    predicted: Floats,
    standard: Standard,
    metrics: Iterable[str],
    predicted_control: Floats | None = None,
    *,
    noise: Floats | float = 0.0,
    apart: Floats | None = None,
) -> dict[str, Floats]:
    """Values [K] of the pointwise `metrics` for `predicted` means [K, A]; rows of NaN give NaN.

    `predicted_control` [A]: the origin of predicted shifts where it is not the real control (protocol paper). `noise`
    [K]: mean sampling variance of the prediction. `apart` [K, A]: what a rule predicts from one half of the control cells.
    """
    origin = standard.control if predicted_control is None else predicted_control
    columns = standard.scored
    one, two = (half[..., columns] for half in standard.apart)
    free = ~standard.targeted
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
        "mse_weighted": lambda: weighted.mse_weighted(p, r, standard.weight),
        "pearson_delta_weighted": lambda: weighted.pearson_weighted(
            p - origin[..., columns], r - control, standard.weight
        ),
        "r2_delta_weighted": lambda: weighted.r2_weighted(p - control, r - control, standard.weight),
        "mse_corrected": lambda: pointwise.mse(p, r) - np.minimum(noise, standard.noise) - standard.noise,
        "pearson_delta_split": lambda: pointwise.pearson_delta(
            p if apart is None else apart[:, columns], r, one, two
        ),
        "ds_cosine": lambda: ds_cosine(shifts[0][:, free], shifts[1][:, free], standard.groups),
        "centroid_accuracy": lambda: centroid_accuracy(p, r, standard.groups),
        "transpose_rank": lambda: transpose_rank(p, r, standard.groups),
    }
    return {name: values[name]() for name in metrics if name in values}
