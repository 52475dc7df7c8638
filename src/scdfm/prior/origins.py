"""Where the flow of each condition starts: the expected means of a run's conditions, and the frame of their residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from scdfm.errors import ConditionError
from scdfm.prior.censored import latent_mean
from scdfm.prior.frame import latent
from scdfm.prior.kernel import Floats
from scdfm.prior.shrink import Shrinkage
from scdfm.prior.start import Frame, PriorStart

TENSORS = ("centre", "scale", "shift", "doubt")


@dataclass(frozen=True, eq=False)
class Origins:
    """Latent means, deviations and shifts of named conditions, float32 [K, G], over the genes of `frame`; doubts [K]."""

    frame: Frame
    names: tuple[str, ...]
    centre: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor
    doubt: torch.Tensor

    @classmethod
    def around(
        cls,
        frame: Frame,
        controls: Mapping[str, Floats],
        shifts: Mapping[str, Floats],
        doubts: Mapping[str, float],
    ) -> Origins:
        """Each condition at the mean of its controls [G] plus its expected shift [G]; expression is never below 0.

        doubts: squared length of the error that is expected of each shift.
        """
        control = np.stack([controls[name] for name in shifts])
        expected = np.maximum(control + np.stack(list(shifts.values())), 0)
        law = (x.numpy().astype(np.float64) for x in (frame.trend, frame.excess, frame.peak))
        centre, scale = latent(expected, frame.size, *law)
        shift = centre - latent_mean(control, scale)
        doubt = np.array([doubts[name] for name in shifts])
        tensors = (torch.from_numpy(x.astype(np.float32)) for x in (centre, scale, shift, doubt))
        return cls(frame, tuple(shifts), *tensors)

    def to(self, device: torch.device | str) -> Origins:
        """The origins on another device."""
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in ("frame", *TENSORS)}
        return replace(self, **moved)

    def of(self, conditions: Sequence[str], shrinkage: Shrinkage | None = None) -> PriorStart:
        """The origin of some of the conditions, in this order."""
        places = {name: place for place, name in enumerate(self.names)}
        if missing := [name for name in conditions if name not in places]:
            raise ConditionError(
                f"condition '{missing[0]}' has no expected mean; expected one of the {len(places)} conditions of the fit"
            )
        rows = torch.tensor([places[name] for name in conditions], device=self.centre.device)
        return PriorStart(self.frame, *(getattr(self, name)[rows] for name in TENSORS), shrinkage)
