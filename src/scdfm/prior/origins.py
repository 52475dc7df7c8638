"""Where the flow of each condition starts: the expected means of a run's conditions, and the frame of their residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from scdfm.errors import ConditionError
from scdfm.flow import Frame, Origin
from scdfm.prior.censored import latent_mean
from scdfm.prior.kernel import Floats


@dataclass(frozen=True, eq=False)
class Origins:
    """Latent means and shifts of named conditions, float32 [K, G], over the genes of `frame`."""

    frame: Frame
    names: tuple[str, ...]
    centre: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def around(cls, frame: Frame, controls: Mapping[str, Floats], shifts: Mapping[str, Floats]) -> Origins:
        """Each condition at the mean of its controls [G] plus its expected shift [G]; expression is never below 0."""
        scale = frame.scale.numpy().astype(np.float64)
        control = np.stack([controls[name] for name in shifts])
        expected = np.maximum(control + np.stack(list(shifts.values())), 0)
        centre = latent_mean(expected, scale)
        shift = centre - latent_mean(control, scale)
        return cls(frame, tuple(shifts), *(torch.from_numpy(x.astype(np.float32)) for x in (centre, shift)))

    def to(self, device: torch.device | str) -> Origins:
        """The origins on another device."""
        return replace(
            self, frame=self.frame.to(device), centre=self.centre.to(device), shift=self.shift.to(device)
        )

    def of(self, conditions: Sequence[str]) -> Origin:
        """The origin of some of the conditions, in this order."""
        places = {name: place for place, name in enumerate(self.names)}
        if missing := [name for name in conditions if name not in places]:
            raise ConditionError(
                f"condition '{missing[0]}' has no expected mean; expected one of the {len(places)} conditions of the fit"
            )
        rows = torch.tensor([places[name] for name in conditions], device=self.centre.device)
        return Origin(self.frame, self.centre[rows], self.shift[rows])
