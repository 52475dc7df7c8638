"""Whole populations from control cells: genes in chunks, cells in batches, noise and chunks from one seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scdfm.condition_tensors import ConditionTensors, as_conditions
from scdfm.config import SamplingConfig
from scdfm.errors import TrainingError
from scdfm.flow.path import Noise, Start
from scdfm.flow.solve import solve

CPU_BYTES = 1 << 30
"""Memory for one batch of cells on the CPU..."""
CPU_VALUES = 1 << 16
"""... and most of its values: some seconds of work."""
Keep: TypeAlias = Callable[[str, Callable[[], Tensor]], Tensor]
"""`keep(name, solve)` returns the block `name`, some cells × some genes, as it was kept or as it is solved."""


@runtime_checkable
class Field(Protocol):
    """A velocity field as `generate` uses it: constants once, then the velocity at each solver step."""

    training: bool

    @property
    def is_zero(self) -> bool: ...
    def context(
        self, control: Tensor, genes: Tensor, perturbation: Any, condition: Tensor, expected: Tensor | None = None
    ) -> Any: ...
    def velocity(self, x_t: Tensor, t: Tensor, context: Any) -> Tensor: ...
    def bytes_per_cell(self, n_genes: int) -> int: ...
    def parameters(self) -> Iterator[Any]: ...
    def train(self, mode: bool = True) -> Any: ...


@torch.no_grad()
def generate(
    field: Field,
    control: Float[Tensor, "M G"],
    perturbation: Int[Tensor, "C P"] | ConditionTensors,
    condition: Int[Tensor, " M"],
    genes: Int[Tensor, " G"],
    sampling: SamplingConfig,
    genes_per_step: int | None,
    rng: torch.Generator,
    *,
    start: Start | None = None,
    batch_cells: int | None = None,
    keep: Keep | None = None,
) -> Float[Tensor, "M G"]:
    """Perturbed cells (log1p) on the CPU, one for each control cell; row m is of condition[m].

    start: where the flow of the conditions starts (`scdfm.flow.Start`); by default the paper's Gaussian `Noise`.

    `genes` are the token ids of the panel. With sampling.genes "chunks" they are solved in random sets of
    `genes_per_step`, the law of training; with "joint", all at once. `rng` decides chunks and noise before
    any cell is batched, so results don't depend on `batch_cells` (by default sized to memory), except with
    "dopri5", which chooses steps for a batch together, and with sampling.dropout. Negative values are cut to
    0 if sampling.clamp. Raises TrainingError when values come out non-finite.

    keep: is asked for the end of each block, cells of a batch × genes of a chunk, and may know it from before. Not with
        sampling.dropout, where a block depends on those before it.
    """
    start = start or Noise(len(genes))
    chunks = gene_chunks(len(genes), genes_per_step if sampling.genes == "chunks" else None, rng)
    begin = start.population(condition.cpu(), rng, sampling.noise == "stratified")
    if field.is_zero:  # nothing to solve, to the bit
        end = begin
    else:
        inputs = (control, genes, perturbation, condition)
        end = _flowed(field, begin, inputs, chunks, sampling, start, rng, batch_cells, keep)
    cells = _checked(start.to("cpu").cells(_checked(end), begin, condition.cpu()))
    return cells.clamp_(min=0) if sampling.clamp else cells


def _flowed(
    field: Field, begin: Tensor, inputs: tuple[Any, ...], chunks: list[tuple[Tensor, int]],
    sampling: SamplingConfig, start: Start, rng: torch.Generator, batch_cells: int | None, keep: Keep | None,
) -> Tensor:  # fmt: skip
    """The end [M, G] of the flow from `begin`, on the CPU: batch by batch of cells, chunk by chunk of genes."""
    control, genes, perturbation, condition = inputs
    device = next(field.parameters()).device
    batch_cells = batch_cells or cells_per_batch(
        field, len(chunks[0][0]), device, contexts=1 if sampling.guidance == 1 else 2
    )
    end = torch.empty(control.shape)
    if keep is None or sampling.dropout:
        keep = _solved
    was_training = field.training
    field.train(sampling.dropout)

    def block(rows: Tensor, present: Tensor, local: Tensor, began: Start, chunk: Tensor, n_own: int) -> Tensor:
        chunk_inputs = (control[rows][:, chunk], genes[chunk], perturbation[present], local)
        cells = begin[rows][:, chunk].to(device)
        moved = tuple(x.to(device) for x in chunk_inputs)
        ended = _solve(field, cells, moved, sampling, began.on(chunk).to(device))
        return ended[:, :n_own].float().cpu()

    try:
        with torch.random.fork_rng(enabled=sampling.dropout):
            if sampling.dropout:
                torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
            for first in range(0, len(control), batch_cells):
                rows = torch.arange(first, min(first + batch_cells, len(control)))
                present, local = torch.unique(condition[rows], return_inverse=True)
                batch = (rows, present, local, start.at(present.cpu()))
                for number, (chunk, n_own) in enumerate(chunks):
                    name = f"cells {first}-{first + len(rows)}, genes {number}"
                    ended = keep(name, functools.partial(block, *batch, chunk, n_own))
                    end[rows[:, None], chunk[:n_own]] = ended
    finally:
        field.train(was_training)
    return end


def _solved(name: str, solve: Callable[[], Tensor]) -> Tensor:
    """A block of which nothing is kept."""
    return solve()


def gene_chunks(n_genes: int, size: int | None, rng: torch.Generator) -> list[tuple[Tensor, int]]:
    """A random partition of 0..n_genes−1 into sets of `size`, each with how many of its genes to keep.

    The last set is filled up with genes of other sets (solved for company only), since training never sees a
    smaller one. `size` none or ≥ n_genes: one set, in order.
    """
    if size is None or size >= n_genes:
        return [(torch.arange(n_genes), n_genes)]
    order = torch.randperm(n_genes, generator=rng)
    *whole, last = (order[start : start + size] for start in range(0, n_genes, size))
    company = order[torch.randperm(n_genes - len(last), generator=rng)[: size - len(last)]]
    return [*((chunk, size) for chunk in whole), (torch.cat([last, company]), len(last))]


def cells_per_batch(field: Field, n_genes: int, device: torch.device, contexts: int = 1) -> int:
    """How many cells of `n_genes` are solved at once: 1 GiB or CPU_VALUES on the CPU, a third of a GPU's free memory.

    `contexts` of them are held together: two where the flow is guided.
    """
    memory = torch.cuda.mem_get_info(device)[0] // 3 if device.type == "cuda" else CPU_BYTES
    fitting = memory // (contexts * field.bytes_per_cell(n_genes))
    return max(1, fitting if device.type == "cuda" else min(fitting, CPU_VALUES // n_genes))


def _solve(field: Field, begin: Tensor, inputs: tuple[Any, ...], sampling: SamplingConfig, start: Start) -> Tensor:
    """The end of the flow; with guidance w its velocity is v_null + w·(v − v_null), null the condition left out."""
    control, genes, perturbation, condition = inputs
    perturbations = [perturbation]
    if sampling.guidance != 1:
        perturbations.append(as_conditions(perturbation).unconditional())

    def contexts() -> list[Any]:
        return [field.context(control, genes, conditions, condition, **start.inputs()) for conditions in perturbations]

    fixed = None if field.training else contexts()

    def output(t: Tensor, x: Tensor) -> Tensor:
        # With dropout live every evaluation draws anew, the constants' dropout included.
        velocities = [field.velocity(x, t.expand(len(x)), context) for context in fixed or contexts()]
        return velocities[0] if len(velocities) == 1 else torch.lerp(velocities[1], velocities[0], sampling.guidance)

    return start.solve(output, begin, lambda f, x: solve(f, x, sampling.solver, sampling.steps, sampling.tolerance))


def _checked(cells: Tensor) -> Tensor:
    wrong = ~cells.isfinite().all(dim=1)
    if wrong.any():
        raise TrainingError(
            f"generated expression is not finite in {int(wrong.sum())} of {len(cells)} cells; "
            "the fit diverged: lower training.learning_rate, or give the solver more steps"
        )
    return cells
