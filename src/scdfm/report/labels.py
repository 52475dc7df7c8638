"""What the report calls things, and what it says they mean."""

from __future__ import annotations

from scdfm.evaluation.metrics import LOWER_IS_BETTER, NEUTRAL

TITLES: dict[str, str] = {
    "l2": "L2",
    "mse": "MSE",
    "mae": "MAE",
    "pearson_delta": "Pearson Δ",
    "ds": "DS",
    "ds_signed": "DS signed",
    "de_spearman": "DE Spearman",
    "pearson_delta_hat": "Pearson Δ\u0302",
    "pearson_delta_hat_20": "Pearson Δ\u0302₂₀",
    "mse_weighted": "weighted MSE",
    "pearson_delta_weighted": "weighted Pearson Δ",
    "r2_delta_weighted": "weighted R² Δ",
    "mse_corrected": "MSE less noise",
    "pearson_delta_split": "Pearson Δ, split controls",
    "ds_cosine": "DS cosine",
    "centroid_accuracy": "centroid accuracy",
    "transpose_rank": "transpose rank",
    "de_recall": "DE recall",
    "de_precision": "DE precision",
    "de_direction": "DE direction",
    "energy": "energy distance",
    "mmd": "MMD²",
    "wasserstein": "Wasserstein",
    "variance_error": "variance error",
    "zero_fraction_error": "zero-fraction error",
    "pds_cosine": "PDS cosine",
    "expr_mse_unbiased_capped_norm": "expression error",
    "de_wilcoxon_direction_fidelity_yield_raw": "direction fidelity",
    "de_wilcoxon_direction_reach_raw": "direction reach",
    "de_wilcoxon_sig_jaccard": "DE Jaccard",
    "de_wilcoxon_lfc_nmae": "fold-change error",
    "expr_mse_unbiased_capped": "error, numerator",
    "expr_distance_unbiased": "error, denominator",
    "expr_mse_unbiased": "error, uncapped",
    "expr_real_mass_ratio": "mass ratio",
    "avg_score": "score",
}

MEANINGS: dict[str, str] = {
    "l2": "Length of the difference between predicted and real mean expression over all genes.",
    "mse": "Mean square of that difference per gene.",
    "mae": "Mean absolute difference per gene.",
    "pearson_delta": "Correlation over genes of predicted and real shift from control. "
    "A prediction of the average perturbation already scores well here.",
    "ds": "Discrimination: how close the prediction lies to its own condition among all real ones, by the absolute "
    "shift. 1 is closest of all, about 0.5 is chance.",
    "ds_signed": "The same with signed shifts: up and down are told apart.",
    "de_spearman": "Rank correlation of fold changes over the genes that truly respond (FDR < 0.05).",
    "pearson_delta_hat": "Correlation over genes of what sets this condition apart from the average training "
    "perturbation. The average scores nothing here.",
    "pearson_delta_hat_20": "The same over the 20 genes that respond most.",
    "mse_weighted": "Mean square of the difference, each gene weighed by how surely it responds.",
    "pearson_delta_weighted": "Correlation of predicted and real shift, genes weighed likewise.",
    "r2_delta_weighted": "Share of the weighted variance of the real shift that the predicted one explains; below 0 is "
    "worse than its mean.",
    "mse_corrected": "Mean square of the difference without what sampling noise adds to it; may be negative.",
    "pearson_delta_split": "Pearson Δ where prediction and truth subtract different halves of the control cells. Controls "
    "in common lift a correlation by their noise.",
    "ds_cosine": "Share of the other conditions that point further away than the true one, no target gene counted; 0.5 is "
    "chance.",
    "centroid_accuracy": "Share of the other conditions whose real mean is farther from the prediction than its own.",
    "transpose_rank": "Share of the other predictions that are farther from a condition's real mean than its own.",
    "de_recall": "Share of the real responders (FDR < 0.05) that the predicted cells show too.",
    "de_precision": "Share of the responders of the predicted cells that are real.",
    "de_direction": "Share of the responders that both have in which both move the same way.",
    "energy": "Energy distance between predicted and real cells on principal components: whole populations, not means.",
    "mmd": "Squared maximum mean discrepancy between predicted and real cells on principal components.",
    "wasserstein": "1-Wasserstein distance of predicted and real cells, gene by gene, averaged.",
    "variance_error": "How far the spread of each gene over cells is missed.",
    "zero_fraction_error": "How far the share of cells without the gene is missed.",
    "pds_cosine": "How close the predicted profile lies to its own condition among all, by the angle of shifts: 1 is "
    "closest of all, 0.5 is chance. Target genes are left out.",
    "expr_mse_unbiased_capped_norm": "Squared error of the profiles over the squared size of the real shifts, "
    "sampling noise taken off both: 0 is perfect, 1 is no change. One number for all conditions.",
    "de_wilcoxon_direction_fidelity_yield_raw": "Share of genes called with the right sign, of those called or those "
    "there are to be called, whichever are more.",
    "de_wilcoxon_direction_reach_raw": "How far down the prediction's ranking of the real responders nine signs in "
    "ten stay right.",
    "de_wilcoxon_sig_jaccard": "Overlap of the predicted and the real responding genes: shared over either.",
    "de_wilcoxon_lfc_nmae": "Error of log fold changes over the real responders, as a share of their size; 1 is no change.",
}

PAPER_NOTE = (
    "Scored by the published protocol (paper): genes are chosen on test cells, and the ceiling compares half of the "
    "cells with all of them. Its scores do not compare with those of protocol scdfm."
)

MODELS: dict[str, str] = {
    "no change": "every condition looks like control",
    "training mean": "every condition shifts like the average training perturbation",
    "additive": "the shifts of the single perturbations, added up",
    "ridge": "ridge regression of shifts on targets, its penalty chosen on training conditions",
    "low-rank linear": "a linear model on principal components, which reaches unseen genes",
    "covariance": "an unseen target moves the genes that go with it in control cells",
    "prior": "what the same run predicts before training, in closed form; what the model adds to it is what training added",
    "duplicate": "half of the real cells, with the training mean where a gene shows no response: a positive control",
    "ceiling": "half of the real cells predicts the others",
    "mean response": "every condition has the mean profile of the real conditions themselves: the zero of the scale",
    "replicate": "half of the real cells scored against the other, each with its own controls: the one of the scale",
}


def title(metric: str) -> str:
    """The name of `metric` for readers."""
    return TITLES.get(metric, metric)


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of `metric` is better."""
    return metric not in LOWER_IS_BETTER


def heading(metric: str) -> str:
    """The name of `metric` with the direction of better."""
    direction = "" if metric in NEUTRAL else " ↑" if higher_is_better(metric) else " ↓"
    return title(metric) + direction


def number(value: float, decimals: int) -> str:
    """`value` with a true minus sign, which a zero has not; a dash where it is undefined."""
    return "–" if value != value else f"{value:z.{decimals}f}".replace("-", "−")


def percent(value: float) -> str:
    """A share in whole percent; a dash where it is undefined."""
    return "–" if value != value else f"{value:.0%}".replace("%", " %").replace("-", "−")


def count(n: int, noun: str) -> str:
    """`n` and its noun, in the plural where it belongs: 1 condition, 2 conditions."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
