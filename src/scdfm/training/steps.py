"""What each step and each validation sees, addressed by number: step s is the same batch in any process, ever.

Since a batch depends on (seed, step) alone, a resumed fit needs no saved state of the data, and the
thread that assembles it ahead changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from scdfm.condition_tensors import ConditionTensors
from scdfm.config import TrainingConfig
from scdfm.data import Batch, CellTable, ConditionSampler, GenePanel, Split
from scdfm.data.encoding import ConditionEncoder
from scdfm.seeds import numpy_rng
from scdfm.training.inputs import Inputs

LEAST_CELLS = 4
"""Cells generated for a validation condition of fewer real ones."""


class StepBatches:
    """Item s is the share of process `rank` of `world` in the batch of training step s.

    The batch is the same whatever the number of processes.
    """

    def __init__(self, sampler: ConditionSampler, seed: int, n_steps: int, rank: int = 0, world: int = 1) -> None:
        self.sampler, self.seed, self.n_steps = sampler, seed, n_steps
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.n_steps

    def __getitem__(self, step: int) -> Batch:
        batch = self.sampler.sample(numpy_rng(self.seed, "batch", step, 0))
        return batch if self.world == 1 else batch.share(self.rank, self.world)


class Prefetched:
    """The batches of steps `first` to the last, the next ones assembled by a thread while a step runs.

    Its length counts all steps, so that progress and time left stay those of the whole fit. `ahead` batches wait at
    most; `pin` puts them into page-locked memory, from where a GPU fetches them without stopping.
    """

    def __init__(self, batches: StepBatches, first: int = 0, *, ahead: int = 2, pin: bool = False) -> None:
        self.batches, self.first, self.ahead, self.pin = batches, first, ahead, pin

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self.first, len(self.batches))
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            waiting: deque[Future[Batch]] = deque()
            try:
                for step in steps:
                    waiting.append(thread.submit(self._assembled, step))
                    if len(waiting) > self.ahead:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                thread.shutdown(wait=False, cancel_futures=True)

    def _assembled(self, step: int) -> Batch:
        batch = self.batches[step]
        return batch.pinned() if self.pin else batch


def place(turn: int, n: int, rank: int, world: int) -> int:
    """Which of n places is process `rank`'s at `turn`."""
    return (turn * world + rank) % n


@dataclass
class ValidationBatch:
    """One validation condition: control cells to start from, and the real cells and mean to reach."""

    name: str
    places: torch.Tensor
    """[g] which genes of the panel these are."""
    control: torch.Tensor
    """[M, g] log1p."""
    target: torch.Tensor
    """[n, g] real cells, at most M."""
    perturbation: ConditionTensors
    """The condition encoded."""
    control_mean: torch.Tensor
    """[g]"""
    target_mean: torch.Tensor
    """[g] of all its cells."""
    n_cells: int
    """How many these are."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ValidationBatch:
        """The batch on another device."""
        names = ("places", "control", "target", "perturbation", "control_mean", "target_mean")
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names}
        return replace(self, **moved)


class ValidationConditions(Dataset[ValidationBatch]):
    """Validation conditions with a fixed draw of genes, of matching control cells and of their own cells each.

    The options say how many: drawn by the seed, conditions of which `encoder` knows too little left out, such as a drug
    that no training condition holds.
    """

    def __init__(
        self, cells: CellTable, panel: GenePanel, encoder: ConditionEncoder, names: tuple[str, ...],
        options: TrainingConfig, seed: int,
    ) -> None:  # fmt: skip
        conditions = [name for name in names if encoder.knows(name)]
        order = [conditions[place] for place in numpy_rng(seed, "validation conditions").permutation(len(conditions))]
        sizes = [min(options.validation_cells, max(cells.n_cells(name), LEAST_CELLS)) for name in order]
        n_cells = dict(zip(order[: _affordable(sizes, options.validation_budget)], sizes, strict=False))
        places = genes_to_judge(cells, panel, options, seed)
        self.batches = [
            _validation_batch(cells, panel, encoder, name, n_cells[name], places, seed)
            for name in conditions
            if name in n_cells
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> ValidationBatch:
        return self.batches[index]


def genes_to_judge(cells: CellTable, panel: GenePanel, options: TrainingConfig, seed: int) -> npt.NDArray[np.int64]:
    """Places in the panel of the genes that populations are judged by, ascending: `validation_genes` drawn by the seed.

    Of several screens that are fitted together, genes that all of them measured: their conditions are judged together.
    """
    genes = numpy_rng(seed, "validation genes").permutation(len(panel.genes))
    if cells.measured:
        common = np.logical_and.reduce(list(cells.measured.values()))[cells.columns(panel.genes)]
        genes = genes[common[genes]]
    return np.sort(genes[: options.validation_genes])


def _affordable(sizes: Sequence[int], budget: int) -> int:
    """How many of the first `sizes` come to the budget at most; at least one."""
    return max(1, int((np.cumsum(sizes) <= budget).sum()))


def _validation_batch(
    cells: CellTable, panel: GenePanel, encoder: ConditionEncoder, name: str, n_cells: int,
    places: npt.NDArray[np.int64], seed: int,
) -> ValidationBatch:  # fmt: skip
    columns = cells.columns([panel.genes[place] for place in places])
    rng = numpy_rng(seed, "validation", name)
    rows = rng.choice(cells.control_rows(name), n_cells, p=cells.control_shares(name))
    own = rng.permutation(cells.rows(name))[:n_cells]
    return ValidationBatch(
        name=name,
        places=torch.from_numpy(places),
        control=torch.from_numpy(cells.X[rows][:, columns].toarray()),
        target=torch.from_numpy(cells.X[own][:, columns].toarray()),
        perturbation=encoder.encode([name]),
        control_mean=torch.from_numpy(cells.control_mean(name)[columns].astype(np.float32)),
        target_mean=torch.from_numpy(cells.means([name]).to_numpy(np.float32)[0, columns]),
        n_cells=cells.n_cells(name),
    )


class Dealt:
    """Validation conditions dealt in turn to `world` processes, the same number to each: the last may come twice."""

    def __init__(self, conditions: ValidationConditions, rank: int, world: int) -> None:
        self.conditions, self.rank, self.world = conditions, rank, world

    def __iter__(self) -> Iterator[ValidationBatch]:
        for turn in range(len(self)):
            yield self.conditions[place(turn, len(self.conditions), self.rank, self.world)]

    def __len__(self) -> int:
        return -(-len(self.conditions) // self.world)


class StepData(L.LightningDataModule):
    """The batches of a fit, and its validation conditions."""

    def __init__(self, cells: CellTable, split: Split, inputs: Inputs, first_step: int) -> None:
        super().__init__()
        config, controls = inputs.manifest.config, inputs.manifest.control_populations
        options = config.training
        self.cells, self.split, self.inputs = cells, split, inputs
        self.config, self.first_step = config, first_step
        columns = cells.columns(inputs.panel.genes)
        self.measured = {name: torch.from_numpy(np.flatnonzero(own[columns])) for name, own in cells.measured.items()}
        self.gene_ids = torch.from_numpy(inputs.vocabulary.gene_ids(inputs.panel.genes))
        self.sampler = ConditionSampler(
            cells, split, inputs.panel, numpy_rng(config.seed, "sampler"), encoder=inputs.encoder,
            n_conditions=min(options.conditions_per_batch, len(split.train) + len(controls)),
            n_cells=options.cells_per_condition, n_drawn=config.drawn_cells, weights=options.sampling,
            control_populations=controls, screen_weights=options.screen_weights,
        )  # fmt: skip
        self.validation = ValidationConditions(
            cells, inputs.panel, inputs.encoder, split.validation, options, config.seed
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of the fit it belongs to."""
        return {"fit": self.inputs.manifest.identity}

    def train_dataloader(self) -> Prefetched:
        """Steps still to take, of each the share of this process."""
        assert self.trainer is not None
        steps = StepBatches(
            self.sampler, self.config.seed, self.config.training.max_steps,
            self.trainer.global_rank, self.trainer.world_size,
        )  # fmt: skip
        return Prefetched(steps, self.first_step, pin=self.trainer.strategy.root_device.type == "cuda")

    def val_dataloader(self) -> Dealt:
        """This process's share of the validation conditions."""
        assert self.trainer is not None
        return Dealt(self.validation, self.trainer.global_rank, self.trainer.world_size)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; names stay."""
        return batch.to(device, non_blocking=True)
