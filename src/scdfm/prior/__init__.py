"""What is known of an unseen condition before any network is trained: the mean shift that measured conditions imply.

`EffectPrior` predicts it in closed form, with its uncertainty; the velocity field learns what it leaves.
"""

from scdfm.prior.effects import EffectPrior
from scdfm.prior.frame import fit_frame
from scdfm.prior.learn import LearnedPrior, learn_prior
from scdfm.prior.origins import Origins
from scdfm.prior.shrink import Shrinkage
from scdfm.prior.start import Frame, PriorStart, gaussian_velocity

__all__ = [
    "EffectPrior",
    "Frame",
    "LearnedPrior",
    "Origins",
    "PriorStart",
    "Shrinkage",
    "fit_frame",
    "gaussian_velocity",
    "learn_prior",
]
