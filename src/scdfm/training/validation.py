"""How good a field is on validation conditions: whole populations beside the real ones.

The weights that are kept are those of the smallest `val_wasserstein`, a score of each gene's mean and spread together.
Where a flow starts from a prior they are kept only if they make validation populations better than the field that corrects
nothing: shapes gained may not cost more of the means than they are worth (`mistake`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scdfm.config import Config
from scdfm.flow import Origin, generate, wasserstein
from scdfm.model import VelocityField
from scdfm.prior import Origins
from scdfm.seeds import torch_rng
from scdfm.training.steps import ValidationBatch, ValidationConditions

MONITOR = "val_wasserstein"
SCORES = (MONITOR, "val_l2", "val_pearson_delta")
JUDGED = SCORES[:2]
"""Scores that decide between trained and untrained, see `mistake`."""


def validate(
    field: VelocityField, batch: ValidationBatch, config: Config, genes: Tensor, rates: Tensor, origin: Origin | None
) -> Tensor:  # fmt: skip
    """SCORES [3] of one generated validation condition: mean distance of genes, distance of means, correlation of shifts.

    `genes` and `rates` [G] are the panel's tokens and source rates. Raises TrainingError for cells that are no numbers.
    """
    cells = generate(
        field, control=batch.control, perturbation=batch.perturbation,
        condition=torch.zeros(len(batch.control), dtype=torch.long, device=batch.control.device),
        genes=genes, sampling=config.sampling, genes_per_step=config.flow.genes_per_step,
        rng=torch_rng(config.seed, "validation noise", batch.name), source=config.flow.source, rates=rates, origin=origin,
    )  # fmt: skip
    mean, target = cells.mean(0), batch.target_mean.cpu()
    shifts = torch.stack([mean, target]) - batch.control_mean.cpu()
    distance = wasserstein(cells, batch.target.cpu())
    return torch.stack([distance, torch.linalg.vector_norm(mean - target), torch.corrcoef(shifts)[0, 1]])


def mistake(scores: Mapping[str, Any]) -> float:
    """Distance of the genes' distributions times distance of the means: relative changes of either count alike."""
    return math.prod(float(scores[name]) for name in JUDGED)


def untrained_scores(
    field: VelocityField, conditions: ValidationConditions, config: Config, genes: Tensor, rates: Tensor, origins: Origins
) -> dict[str, float]:  # fmt: skip
    """The mean SCORES of a `field` that corrects nothing yet."""
    scores = [
        validate(field, batch, config, genes, rates, origins.of([batch.name])) for batch in conditions.batches
    ]
    means = torch.stack(scores).mean(0).tolist()
    return dict(zip(SCORES, means, strict=True))
