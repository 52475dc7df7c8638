"""From the vectors of a condition's targets to its one vector e_p: features, dose, time, pooling, covariates."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scdfm.condition_tensors import ConditionShape, ConditionTensors
from scdfm.errors import ConfigError

LOWEST_HALF, HIGHEST_HALF = 0.03, 3.0
"""Half-effect doses, in units of the reference, that the dimensions start from."""


class HillCurve(nn.Module):
    """s(x) = (1 + c)·x / (x + c), a sigmoid of log dose log x − log c scaled to s(1) = 1.

    s(0) = 0 exactly, and s rises with x and saturates at 1 + c whatever c is. Each dimension learns its own
    half-effect dose c; they start spread over two decades, so that a target can mix steep and late answers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.log_half = nn.Parameter(torch.linspace(math.log(LOWEST_HALF), math.log(HIGHEST_HALF), width))

    def forward(self, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """s of each dimension; 1 where x is NaN, which means that none was given."""
        half = self.log_half.exp()
        given = x.nan_to_num(nan=1.0).unsqueeze(-1)
        # 1 exactly where nothing is given: rounding must not move a target without a dose.
        return torch.where(x.isnan().unsqueeze(-1), 1.0, given * (1 + half) / (given + half))


class FeatureProjection(nn.Sequential):
    """Standardised features of a perturbation → d: Linear, GELU, Linear."""

    def __init__(self, n_features: int, width: int) -> None:
        super().__init__(nn.Linear(n_features, width), nn.GELU(), nn.Linear(width, width))


class Conditioning(nn.Module):
    """e_p of each condition from its targets' own vectors.

    A slot's target vector u is its own vector plus that of its features, as far as it has them; dose and time move
    it on the line from control, e = e_control + s·(u − e_control). `pooling` "mean" is the mean over slots, absent
    targets of the first two being control (published); "sum" adds the targets' shifts e − e_control to e_control;
    "attention" adds their weighted mean, weights exp(score(e)) times how much of the dose is there.
    The vector learned for "no condition" replaces the result where a condition is dropped; covariates are added last.
    """

    def __init__(self, width: int, pooling: str, shape: ConditionShape) -> None:
        super().__init__()
        self.pooling, self.shape = pooling, shape
        self.dose = HillCurve(width) if shape.dose else None
        self.time = HillCurve(width) if shape.time else None
        self.features = FeatureProjection(shape.features, width) if shape.features else None
        self.covariates = nn.Embedding(shape.covariates, width) if shape.covariates else None
        self.score = nn.Linear(width, 1) if pooling == "attention" else None
        self.null = nn.Parameter(torch.zeros(width)) if shape.null else None

    @property
    def reads_control(self) -> bool:
        """Whether e_control is needed beside the slots."""
        return self.pooling != "mean" or self.shape.dose or self.shape.time

    def forward(
        self,
        own: Float[Tensor, "C P d"],
        control: Float[Tensor, " d"] | None,
        conditions: ConditionTensors,
        present: Bool[Tensor, "C P"] | None,
        target: Bool[Tensor, "C P"],
    ) -> Float[Tensor, "C d"]:
        """e_p, given the slots' own vectors and e_control.

        `present` slots (None: all) count in the mean; `target` is True where a slot holds a target.
        """
        self._check(conditions)
        vectors = self._targets(own, conditions)
        strength = self._strength(conditions)
        if strength is not None:
            assert control is not None
            # lerp is exact at both ends: dose 0 is e_control, no dose is u.
            vectors = torch.lerp(control.expand_as(vectors), vectors, strength.to(vectors.dtype))
        pooled = self._pool(vectors, strength, control, present, target)
        if conditions.dropped is not None:
            assert self.null is not None
            pooled = torch.where(conditions.dropped.unsqueeze(-1), self.null.to(pooled.dtype), pooled)
        if self.covariates is not None:
            assert conditions.covariates is not None
            pooled = pooled + self.covariates(conditions.covariates).sum(dim=1)
        return pooled

    def _targets(self, own: Tensor, conditions: ConditionTensors) -> Tensor:
        """u: the targets' own vectors and those of their features, as far as each slot has them."""
        if conditions.identified is not None:
            own = own * conditions.identified.unsqueeze(-1)
        if self.features is None:
            return own
        assert conditions.features is not None
        assert conditions.described is not None
        described: Tensor = self.features(conditions.features.to(own.dtype))
        return own + described.to(own.dtype) * conditions.described.unsqueeze(-1)

    def _strength(self, conditions: ConditionTensors) -> Tensor | None:
        """s of dose times s of time [C, P, d], None where conditions have neither."""
        strength = None
        if self.dose is not None and conditions.dose is not None:
            strength = self.dose(conditions.dose)
        if self.time is not None and conditions.time is not None:
            of_time = self.time(conditions.time).unsqueeze(1)
            strength = of_time.expand(-1, conditions.tokens.shape[1], -1) if strength is None else strength * of_time
        return strength

    def _pool(
        self, vectors: Tensor, strength: Tensor | None, control: Tensor | None, present: Tensor | None, target: Tensor
    ) -> Tensor:
        if self.pooling == "mean":
            if present is None:
                return vectors.mean(dim=1)
            counts = present.unsqueeze(-1).to(vectors.dtype)
            return (vectors * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
        assert control is not None
        weight = target.unsqueeze(-1).to(vectors.dtype)
        if self.score is not None:
            score = self.score(vectors).to(vectors.dtype).masked_fill(~target.unsqueeze(-1), -math.inf)
            largest = score.amax(dim=1, keepdim=True).detach().nan_to_num(neginf=0.0)
            weight = (score - largest).exp()
            if strength is not None:
                weight = weight * strength.mean(dim=-1, keepdim=True).to(weight.dtype)
            weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        return control + (weight * (vectors - control)).sum(dim=1)

    def _check(self, conditions: ConditionTensors) -> None:
        """Conditions hold what this module was built for, no more and no less."""
        has = {name: getattr(conditions, name) is not None for name in ("dose", "time", "covariates", "features")}
        for name, present in has.items():
            built = bool(getattr(self.shape, name))
            if present != built and not (name in ("dose", "time") and not present):
                raise ConfigError(
                    f"conditions {'hold' if present else 'lack'} {name}, but the model was built "
                    f"{'without' if present else 'for'} them; encode them with the schema of the model's run"
                )
        if conditions.dropped is not None and not self.shape.null:
            raise ConfigError(
                "conditions are left out, but the model was trained with all of them; "
                "set training.condition_dropout above 0, or sampling.guidance to 1"
            )
