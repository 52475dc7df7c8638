"""What is known of an unseen condition before any network is trained: the mean that measured conditions imply, and how
real cells differ around a mean.

`EffectPrior` predicts the mean shift in closed form, with its uncertainty; `Spread` holds the marginals of genes and real
cells as donors; `PriorStart` makes populations of both, from which a flow may start.
"""

from scdfm.prior.effects import EffectPrior
from scdfm.prior.learn import LearnedPrior, learn_prior
from scdfm.prior.marginals import Marginals
from scdfm.prior.missing import filled_shifts
from scdfm.prior.shrink import Shrinkage
from scdfm.prior.spread import Spread, fit_spread
from scdfm.prior.start import PriorStart, gaussian_velocity

__all__ = [
    "EffectPrior", "LearnedPrior", "Marginals", "PriorStart", "Shrinkage", "Spread", "filled_shifts", "fit_spread",
    "gaussian_velocity", "learn_prior",
]  # fmt: skip
