"""How good a field is on validation conditions: whole populations beside the real ones.

The checkpoint that is kept is that of the smallest `val_energy`, which sees means, spreads and what genes have in common.
Whether it is better than the prior alone, `scdfm.training.judge` says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scdfm.config import Config
from scdfm.flow import Start, energy, generate, wasserstein
from scdfm.model import VelocityField
from scdfm.seeds import torch_rng
from scdfm.training.steps import ValidationBatch

MONITOR = "val_energy"
SCORES = (MONITOR, "val_wasserstein", "val_l2", "val_pearson_delta")
JUDGED = SCORES[:3]
"""Scores that decide between trained and untrained weights: smaller is better."""


def validate(
    field: VelocityField, batch: ValidationBatch, config: Config, genes: Tensor, start: Start
) -> Tensor:
    """SCORES [4] of one generated validation condition; `genes` [G] are the panel's tokens, as many as `start` has.

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
    """SCORES [4] of a population: distance of whole cells, of genes, of means; correlation of shifts."""
    mean, target, real = cells.mean(0), batch.target_mean.cpu(), batch.target.cpu()
    shifts = torch.stack([mean, target]) - batch.control_mean.cpu()
    length = torch.linalg.vector_norm(mean - target)
    return torch.stack([energy(cells, real), wasserstein(cells, real), length, torch.corrcoef(shifts)[0, 1]])
