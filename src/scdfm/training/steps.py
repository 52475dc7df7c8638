"""What each step and each validation sees, addressed by number: step s is the same batch in any process, ever.

Since a batch depends on (seed, step, rank) alone, a resumed fit needs no saved state of the data, and the
number of workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from scdfm.data import CONTROL, Batch, CellTable, ConditionSampler, GenePanel, Vocabulary
from scdfm.seeds import numpy_rng


class StepBatches(Dataset[Batch]):
    """Item s is the batch of training step s."""

    def __init__(self, sampler: ConditionSampler, seed: int, n_steps: int, rank: int = 0) -> None:
        self.sampler, self.seed, self.n_steps, self.rank = sampler, seed, n_steps, rank

    def __len__(self) -> int:
        return self.n_steps

    def __getitem__(self, step: int) -> Batch:
        return self.sampler.sample(numpy_rng(self.seed, "batch", step, self.rank))


class StepsFrom(Sampler[int]):
    """Steps from `first` on; its length counts all steps, so that progress and time left stay those of the whole fit."""

    def __init__(self, first: int, n_steps: int) -> None:
        self.first, self.n_steps = first, n_steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.n_steps))

    def __len__(self) -> int:
        return self.n_steps


@dataclass
class ValidationBatch:
    """One validation condition: control cells to start from and the real mean to reach."""

    name: str
    control: torch.Tensor
    """[M, G] log1p."""
    perturbation: torch.Tensor
    """[1, P] token ids."""
    control_mean: torch.Tensor
    """[G]"""
    target_mean: torch.Tensor
    """[G]"""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ValidationBatch:
        """The batch on another device."""
        tensors = (self.control, self.perturbation, self.control_mean, self.target_mean)
        return ValidationBatch(
            self.name, *(tensor.to(device, non_blocking=non_blocking) for tensor in tensors)
        )


class ValidationConditions(Dataset[ValidationBatch]):
    """The validation conditions with a fixed draw of control cells each."""

    def __init__(
        self, cells: CellTable, panel: GenePanel, vocabulary: Vocabulary, names: tuple[str, ...],
        n_cells: int, seed: int,
    ) -> None:  # fmt: skip
        means = cells.means([CONTROL, *names])[list(panel.genes)]
        control_rows = cells.rows(CONTROL)
        columns = cells.columns(panel.genes)
        self.batches = []
        for i, name in enumerate(names):
            rows = numpy_rng(seed, "validation", name).choice(control_rows, n_cells)
            self.batches.append(
                ValidationBatch(
                    name=name,
                    control=torch.from_numpy(cells.X[rows][:, columns].toarray()),
                    perturbation=torch.from_numpy(vocabulary.encode([name], slots=None)),
                    control_mean=torch.from_numpy(means.iloc[0].to_numpy(np.float32)),
                    target_mean=torch.from_numpy(means.iloc[1 + i].to_numpy(np.float32)),
                )
            )

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> ValidationBatch:
        return self.batches[index]


def unbatched(
    dataset: Dataset[Batch] | Dataset[ValidationBatch], sampler: Sampler[int] | None = None
) -> DataLoader[object]:
    """A loader whose items are batches already."""
    return DataLoader(dataset, batch_size=None, sampler=sampler)
