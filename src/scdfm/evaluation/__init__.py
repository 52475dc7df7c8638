"""Scores of predicted populations, for anybody's predictions, beside simple rules and the data's own ceiling."""

from scdfm.evaluation.baselines import BASELINES
from scdfm.evaluation.ceiling import CEILING, DUPLICATE
from scdfm.evaluation.comparison import evaluate_against
from scdfm.evaluation.evaluate import evaluate
from scdfm.evaluation.hits import hits
from scdfm.evaluation.metrics import DISTRIBUTION, LOWER_IS_BETTER, METRICS, POINTWISE
from scdfm.evaluation.prior import PRIOR
from scdfm.evaluation.summary import calibration, differences, harm, interval, position, stratified, summarise
from scdfm.evaluation.vcc2026.counts import Counts, read_counts
from scdfm.evaluation.vcc2026.score import scaled

__all__ = [
    "BASELINES", "CEILING", "DISTRIBUTION", "DUPLICATE", "LOWER_IS_BETTER", "METRICS", "POINTWISE", "PRIOR",
    "Counts", "calibration", "differences", "evaluate", "evaluate_against", "harm", "hits", "interval", "position",
    "read_counts", "scaled", "stratified", "summarise",
]  # fmt: skip
