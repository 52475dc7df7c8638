"""Conditions as tensors: what data encodes, the sampler carries and the velocity field reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ConditionShape:
    """What the conditions of a screen hold beside their targets; decides which parts a velocity field has."""

    dose: bool = False
    time: bool = False
    covariates: int = 0
    """Known covariate values, all columns together."""
    features: int = 0
    """F, numbers that describe a perturbation."""
    null: bool = False
    """Whether conditions are left out at random in training (classifier-free guidance)."""


@dataclass(frozen=True, eq=False)
class ConditionTensors:
    """C conditions of up to P targets; None where no condition of the screen has such a thing.

    Doses and times are in units of the screen's reference, so 1 is its usual one, and 0 is control.
    """

    tokens: Tensor
    """Token ids int64 [C, P]."""
    identified: Tensor | None = None
    """bool [C, P]: the slot's own vector (learned, or of the gene encoder) counts; None: all do."""
    features: Tensor | None = None
    """float32 [C, P, F], standardised; 0 where a slot has none."""
    described: Tensor | None = None
    """bool [C, P]: the slot has features."""
    dose: Tensor | None = None
    """float32 [C, P]; NaN where none is given."""
    time: Tensor | None = None
    """float32 [C]; NaN where none is given."""
    covariates: Tensor | None = None
    """int64 [C, K], places among the known values of all K columns."""
    dropped: Tensor | None = None
    """bool [C]: perturbation, dose and time are left out, the covariates stay; None: none is."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Tensor) -> ConditionTensors:
        """Some of the conditions, in the order of `rows`."""
        return self.changed(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ConditionTensors:
        """The conditions on another device."""
        return self.changed(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def changed(self, change: Callable[[Tensor], Tensor]) -> ConditionTensors:
        """The conditions with each of their tensors changed."""
        tensors = {name: change(value) for name, value in vars(self).items() if value is not None}
        return replace(self, **tensors)

    def unconditional(self) -> ConditionTensors:
        """The same conditions with everything but their covariates left out."""
        return replace(self, dropped=torch.ones(len(self), dtype=torch.bool, device=self.tokens.device))

    def thinned(self, rng: torch.Generator, conditions: float = 0.0, identities: float = 0.0) -> ConditionTensors:
        """A share of the conditions dropped, and of the described slots' identities, as training does it.

        Where a target's own vector is sometimes hidden, its features must learn to speak alone.
        """
        thinned, device = self, self.tokens.device
        if conditions:
            dropped = torch.rand(len(self), generator=rng) < conditions
            thinned = replace(thinned, dropped=dropped.to(device))
        if identities and self.described is not None:
            hidden = (torch.rand(self.tokens.shape, generator=rng) < identities).to(device) & self.described
            whole = torch.ones_like(hidden) if self.identified is None else self.identified
            thinned = replace(thinned, identified=whole & ~hidden)
        return thinned


def as_conditions(perturbation: Tensor | ConditionTensors) -> ConditionTensors:
    """Token ids [C, P] as conditions that hold nothing else."""
    return perturbation if isinstance(perturbation, ConditionTensors) else ConditionTensors(perturbation)
