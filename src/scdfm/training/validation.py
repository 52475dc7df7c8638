"""How good a field is on validation conditions: whole populations beside the real ones.

The weights that are kept are those of the smallest `val_wasserstein`, a score of each gene's mean and spread together.
Where a flow starts from a prior its means are believed as far as validation says (`Jury.shrinkage`), and weights are kept
only if they make validation populations better than the field that corrects nothing: shapes gained may not cost more of
the means than they are worth (`mistake`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scdfm.config import Config
from scdfm.flow import Start, generate, wasserstein
from scdfm.model import VelocityField
from scdfm.prior import PriorStart, Shrinkage
from scdfm.seeds import torch_rng
from scdfm.training.steps import ValidationBatch

MONITOR = "val_wasserstein"
SCORES = (MONITOR, "val_l2", "val_pearson_delta")
JUDGED = SCORES[:2]
"""Scores that decide between trained and untrained, see `mistake`."""


def validate(
    field: VelocityField, batch: ValidationBatch, config: Config, genes: Tensor, start: Start
) -> Tensor:
    """SCORES [3] of one generated validation condition; `genes` [G] are the panel's tokens, as many as `start` has.

    Raises TrainingError for cells that are no numbers.
    """
    return score(population(field, batch, config, genes, start), batch)


def population(
    field: VelocityField, batch: ValidationBatch, config: Config, genes: Tensor, start: Start
) -> Tensor:
    """Cells [M, g] of one validation condition; of one condition with the same noise, whatever the field."""
    return generate(
        field, control=batch.control, perturbation=batch.perturbation,
        condition=torch.zeros(len(batch.control), dtype=torch.long, device=batch.control.device),
        genes=genes[batch.places], sampling=config.sampling, genes_per_step=config.flow.genes_per_step,
        rng=torch_rng(config.seed, "validation noise", batch.name), start=start.on(batch.places.cpu()),
    )  # fmt: skip


def score(cells: Tensor, batch: ValidationBatch) -> Tensor:
    """SCORES [3] of a population: mean distance of genes, distance of means, correlation of shifts."""
    mean, target = cells.mean(0), batch.target_mean.cpu()
    shifts = torch.stack([mean, target]) - batch.control_mean.cpu()
    distance = wasserstein(cells, batch.target.cpu())
    return torch.stack([distance, torch.linalg.vector_norm(mean - target), torch.corrcoef(shifts)[0, 1]])


def mistake(scores: Mapping[str, Any]) -> float:
    """Distance of the genes' distributions times distance of the means: relative changes of either count alike."""
    return math.prod(float(scores[name]) for name in JUDGED)


@dataclass(frozen=True)
class Jury:
    """The validation conditions of a finished fit that started from the prior; `genes` [G] as in `validate`."""

    batches: Sequence[ValidationBatch]
    config: Config
    genes: Tensor
    start: PriorStart

    def populations(self, field: VelocityField, shrinkage: Shrinkage | None = None) -> list[Tensor]:
        """Cells [M, g] of each condition."""
        return [
            population(
                field,
                batch,
                self.config,
                self.genes,
                replace(self.start.of([batch.name]), shrinkage=shrinkage),
            )
            for batch in self.batches
        ]

    def scores(self, populations: Sequence[Tensor]) -> dict[str, float]:
        """The mean SCORES of `populations`."""
        scores = [score(cells, batch) for cells, batch in zip(populations, self.batches, strict=True)]
        return dict(zip(SCORES, torch.stack(scores).mean(0).tolist(), strict=True))

    def shrinkage(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> Shrinkage:
        """How far means follow the flow that made `after` of `before`.

        Means are of the genes that validate, doubts of all: κ takes their share, in validation as in prediction.
        """
        expected, flowed = (torch.stack([cells.mean(0) for cells in each]) for each in (before, after))
        real = torch.stack([batch.target_mean for batch in self.batches])
        variances = torch.stack([batch.target.var(0, correction=0).sum() for batch in self.batches])
        sampling = variances / torch.tensor([batch.n_cells for batch in self.batches])
        doubt = self.start.of([batch.name for batch in self.batches]).doubt
        return Shrinkage.fitted(expected, flowed, real, sampling, doubt)
