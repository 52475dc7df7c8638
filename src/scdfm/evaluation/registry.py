"""The metrics by name: which there are, which direction is good, and where their values can lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from scdfm.data.conditions import near
from scdfm.errors import ConfigError

POINTWISE: Final = (
    "l2", "mse", "mae", "pearson_delta", "ds", "ds_signed", "de_spearman", "pearson_delta_hat",
    "pearson_delta_hat_20", "mse_weighted", "pearson_delta_weighted", "r2_delta_weighted", "mse_corrected",
    "pearson_delta_split", "ds_cosine", "centroid_accuracy", "transpose_rank",
)  # fmt: skip
WEIGHTED: Final = ("mse_weighted", "pearson_delta_weighted", "r2_delta_weighted")
"""Pointwise metrics that weigh genes by their test against control."""
DISTRIBUTION: Final = ("energy", "mmd", "wasserstein", "variance_error", "zero_fraction_error")
METRICS: Final = (*POINTWISE, *DISTRIBUTION)
RESPONDERS: Final = ("de_recall", "de_precision", "de_direction")
"""Differential expression of predicted cells; as long again as everything else, so scored where it is asked for."""
PDS: Final = "pds_cosine"
ERROR: Final = "expr_mse_unbiased_capped_norm"
FIDELITY: Final = "de_wilcoxon_direction_fidelity_yield_raw"
REACH: Final = "de_wilcoxon_direction_reach_raw"
JACCARD: Final = "de_wilcoxon_sig_jaccard"
FOLD_ERROR: Final = "de_wilcoxon_lfc_nmae"
VCC_SCORED: Final = (PDS, ERROR, FIDELITY, REACH, JACCARD, FOLD_ERROR)
"""The six metrics of the Virtual Cell Challenge 2026."""
NUMERATOR, DENOMINATOR = "expr_mse_unbiased_capped", "expr_distance_unbiased"
VCC_DIAGNOSTICS: Final = (NUMERATOR, DENOMINATOR, "expr_mse_unbiased", "expr_real_mass_ratio")
"""Parts of `expr_mse_unbiased_capped_norm`, and checks of it; not scored by themselves."""
VCC_METRICS: Final = (*VCC_SCORED, *VCC_DIAGNOSTICS)
LOWER_IS_BETTER: Final = frozenset({
    "l2", "mse", "mae", "mse_delta", "mae_delta", "mse_weighted", "mse_corrected", *DISTRIBUTION, ERROR, FOLD_ERROR,
})  # fmt: skip
NEUTRAL: Final = frozenset({"de_nsig_counts_real", "de_nsig_counts_pred", *VCC_DIAGNOSTICS})
"""Counts and parts of other metrics, without a better or worse."""
_CORRELATIONS: Final = (
    "pearson_delta",
    "pearson_delta_hat",
    "pearson_delta_hat_20",
    "pearson_delta_weighted",
    "pearson_delta_split",
    "de_spearman",
)
_SHARES: Final = (
    "ds", "ds_signed", "ds_cosine", "centroid_accuracy", "transpose_rank", "zero_fraction_error", *RESPONDERS, PDS,
    REACH, FIDELITY, JACCARD,
)  # fmt: skip
_UNBIASED: Final = ("energy", "mmd", "mse_corrected", ERROR)
RANGES: Final[dict[str, tuple[float, float]]] = {
    **dict.fromkeys(LOWER_IS_BETTER - set(_UNBIASED), (0.0, np.inf)),
    **dict.fromkeys(_CORRELATIONS, (-1.0, 1.0)),
    **dict.fromkeys(_SHARES, (0.0, 1.0)),
    "r2_delta_weighted": (-np.inf, 1.0),
}
"""Where the values of a metric can lie; one without an entry may lie anywhere (unbiased distances fall below 0)."""


def checked(metrics: Iterable[str] | None, choices: tuple[str, ...]) -> tuple[str, ...]:
    """`metrics` in the order of `choices`, or all of them; ConfigError on an unknown name."""
    if metrics is None:
        return choices
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        if name not in choices:
            raise ConfigError(f"metric '{name}': expected some of {', '.join(choices)}{near(name, choices)}")
    if not names:
        raise ConfigError("metrics is empty; name at least one, or leave it out for all")
    return tuple(name for name in choices if name in names)
