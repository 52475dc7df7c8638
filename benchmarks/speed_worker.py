"""One form of the velocity field in a process of its own, told by lines of JSON what to do and time.

    python benchmarks/speed_worker.py '{"form": "plain", "case": {...}, "device": "cpu"}'

`benchmarks/speed.py` starts two of these, the plain formulation of scdfm.model.reference and scdfm's own, and lets them
take turns; a process each, so that each one's peak memory is its own. Both hold the same parameters and see
the same numbers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scdfm.config import SamplingConfig
from scdfm.data import Batch, CellTable, ConditionSampler, GenePanel, Split, Vocabulary, read_cells
from scdfm.flow import flow_loss, generate, sample_normal, solve
from scdfm.model import VelocityField, reference
from scdfm.official import velocity_field
from scdfm.seeds import numpy_rng, torch_rng
from scdfm.training.module import compile_layers
from scdfm.training.steps import Prefetched, StepBatches

BACKBONE = "differential_perceiver"
NEIGHBOURS = 30
SPECIAL = 4
"""Tokens of a vocabulary that are no genes."""


@dataclass(frozen=True)
class Case:
    """Sizes of one measurement: V tokens, T genes, B cells of C conditions, width d, H heads, L layers."""

    tokens: int
    genes: int
    cells: int
    width: int
    heads: int
    layers: int
    conditions: int = 1


class Inputs:
    """Random numbers of the right shapes, the same in every process; sub-batches are its first cells."""

    def __init__(self, case: Case, device: str) -> None:
        rng = torch_rng(0, "speed")
        self.case, self.device = case, device
        shape = (case.cells, case.genes)
        self.noise, self.control, self.target = (
            torch.randn(shape, generator=rng),
            *torch.rand((2, *shape), generator=rng),
        )
        self.t = torch.rand(case.cells, generator=rng)
        self.genes = torch.randperm(case.tokens - SPECIAL, generator=rng)[: case.genes] + SPECIAL
        self.perturbation = torch.randint(1, case.tokens, (case.conditions, 2), generator=rng)
        self.graph = torch.rand(case.tokens, case.tokens, generator=rng) < NEIGHBOURS / case.tokens
        self.graph |= self.graph.T | torch.eye(case.tokens, dtype=torch.bool)

    def batch(self, cells: int) -> dict[str, Tensor]:
        """The arguments of a velocity field for the first `cells` cells."""
        conditions = min(self.case.conditions, cells // 2)
        x_t = torch.lerp(self.noise, self.target, self.t[:, None])
        given = {
            "x_t": x_t[:cells], "t": self.t[:cells], "control": self.control[:cells], "genes": self.genes,
            "perturbation": self.perturbation[:conditions],
            "condition": torch.arange(conditions).repeat_interleave(cells // conditions),
        }  # fmt: skip
        return {name: value.to(self.device) for name, value in given.items()}

    def ends(self, cells: int) -> tuple[Tensor, Tensor]:
        """Noise and target of the first `cells` cells."""
        return self.noise[:cells].to(self.device), self.target[:cells].to(self.device)

    def noise_stream(self) -> torch.Generator:
        """What a population starts from."""
        return torch_rng(0, "speed", "noise")


class Plain:
    """The plain formulation in float32, with the official optimiser."""

    def __init__(self, inputs: Inputs, options: dict[str, Any]) -> None:
        self.sizes = {"n_heads": inputs.case.heads, "n_layers": inputs.case.layers, "backbone": BACKBONE}
        state = random_state(inputs.case)
        self.state = {name: value.to(inputs.device).requires_grad_() for name, value in state.items()}
        self.masked = (~inputs.graph).to(inputs.device)
        self.optimizer = torch.optim.Adam(self.state.values(), lr=5e-5)

    def velocity(self, batch: dict[str, Tensor]) -> Tensor:
        """One evaluation."""
        return reference.velocity(self.state, self.masked, **batch, **self.sizes)

    def loss(self, batch: dict[str, Tensor], noise: Tensor, target: Tensor) -> Tensor:
        """The loss of a step."""
        predicted = self.velocity(batch)
        n_conditions = len(batch["perturbation"])
        return reference.flow_loss(predicted, batch["x_t"], batch["t"], noise, target, n_conditions, 0.5)

    def on_meta(self) -> Callable[[dict[str, Tensor]], Tensor]:
        """The same evaluation on shapes alone."""
        state = {name: value.detach().to("meta").requires_grad_() for name, value in self.state.items()}
        masked = self.masked.to("meta")
        return lambda batch: reference.velocity(state, masked, **batch, **self.sizes)

    @torch.no_grad()
    def population(self, batch: dict[str, Tensor], rng: torch.Generator, sampling: SamplingConfig) -> Tensor:
        """The end of the flow [B, T]; everything anew at each evaluation."""
        noise = sample_normal(tuple(batch["control"].shape), rng).to(batch["control"].device)

        def velocity(t: Tensor, x: Tensor) -> Tensor:
            return self.velocity({**batch, "x_t": x, "t": t.expand(len(x))})

        return solve(velocity, noise, sampling.solver, sampling.steps).cpu()


class Own:
    """scdfm's velocity field as a fit runs it."""

    def __init__(self, inputs: Inputs, options: dict[str, Any]) -> None:
        case = inputs.case
        self.n_tokens = case.tokens
        self.field: VelocityField = velocity_field(
            random_state(case), ~inputs.graph, case.heads, case.layers, BACKBONE, "genes"
        ).to(inputs.device)
        self.field.train()
        compile_layers(self.field, options.get("compile", "off"), torch.device(inputs.device))
        self.bf16 = options.get("precision") == "bf16"
        self.device_type = torch.device(inputs.device).type
        self.optimizer = torch.optim.Adam(self.field.parameters(), lr=5e-5, fused=True)

    def precision(self) -> torch.autocast:
        """bfloat16 where it was asked for, else float32."""
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.bf16)

    def velocity(self, batch: dict[str, Tensor]) -> Tensor:
        """One evaluation."""
        with self.precision():
            predicted: Tensor = self.field(**batch)
        return predicted

    def on_meta(self) -> Callable[[dict[str, Tensor]], Tensor]:
        """The same evaluation on shapes alone."""
        field = VelocityField(self.field.config, None, self.n_tokens, pad=None)
        return lambda batch: field(**batch)

    def loss(self, batch: dict[str, Tensor], noise: Tensor, target: Tensor) -> Tensor:
        """The loss of a step."""
        n_conditions = len(batch["perturbation"])
        return flow_loss(self.velocity(batch), target - noise, batch["x_t"], target, batch["t"], n_conditions).total

    def population(self, batch: dict[str, Tensor], rng: torch.Generator, sampling: SamplingConfig) -> Tensor:
        """The end of the flow [B, T], as a prediction solves it."""
        given = {name: batch[name] for name in ("control", "perturbation", "condition", "genes")}
        with self.precision():
            return generate(self.field, **given, sampling=sampling, genes_per_step=None, rng=rng)


FORMS: dict[str, Callable[[Inputs, dict[str, Any]], Plain | Own]] = {"plain": Plain, "scdfm": Own}


class Worker:
    """Does and times what it is told."""

    def __init__(self, form: str, case: Case, device: str, options: dict[str, Any]) -> None:
        self.inputs = Inputs(case, device)
        self.form = FORMS[form](self.inputs, options)
        self.device = torch.device(device)
        self.before = resident()

    def step(self, cells: int) -> dict[str, float]:
        """One optimiser step on the first `cells` cells: its time and the loss before it."""
        batch, (noise, target) = self.inputs.batch(cells), self.inputs.ends(cells)
        with timed(self.device) as taken:
            self.form.optimizer.zero_grad(set_to_none=True)
            loss = self.form.loss(batch, noise, target)
            loss.backward()
            self.form.optimizer.step()
            value = loss.item()
        return {"seconds": taken[0], "loss": value}

    def assemble(self, cells: int) -> dict[str, float]:
        """A batch from the table of cells: the median time of some."""
        times = []
        for step in range(5):
            with timed(self.device) as taken:
                self.batches[step]
            times += taken
        return {"seconds": statistics.median(times)}

    def fed(self, cells: int) -> dict[str, float]:
        """One optimiser step on a batch that was assembled beside the step before, waiting for it included."""
        with timed(self.device) as taken:
            fed = next(self.feed).to(self.device, non_blocking=True)
            chosen = self.inputs.genes.to(self.device) - SPECIAL
            batch = self.inputs.batch(cells) | {
                "control": fed.control[:, chosen], "perturbation": fed.perturbation.tokens, "condition": fed.condition
            }  # fmt: skip
            self.form.optimizer.zero_grad(set_to_none=True)
            loss = self.form.loss(batch, self.inputs.ends(cells)[0], fed.target[:, chosen])
            loss.backward()
            self.form.optimizer.step()
            loss.item()
        return {"seconds": taken[0]}

    @functools.cached_property
    def batches(self) -> StepBatches:
        """Training batches of a made table of cells."""
        return StepBatches(table_sampler(self.inputs.case), seed=0, n_steps=10_000)

    @functools.cached_property
    def feed(self) -> Iterator[Batch]:
        """The same, assembled ahead."""
        return iter(Prefetched(self.batches, pin=self._cuda))

    def generate(self, cells: int, solver: str, steps: int, out: str) -> dict[str, float]:
        """A population of the first `cells` cells, kept in the file `out`: its time."""
        batch = self.inputs.batch(cells)
        # Both forms draw the same noise, so that their ends can be compared.
        sampling = SamplingConfig(solver=solver, steps=steps, clamp=False, genes="joint", noise="independent")
        with timed(self.device) as taken:
            population = self.form.population(batch, self.inputs.noise_stream(), sampling)
        np.save(out, population.numpy())
        return {"seconds": taken[0]}

    def peak(self, bf16: bool = False) -> dict[str, float]:
        """The machine's matrix product at its best, in GFLOP/s."""
        n, dtype = (8192, torch.bfloat16 if bf16 else torch.float32) if self._cuda else (2048, torch.float32)
        a, b = torch.rand(2, n, n, device=self.device, dtype=dtype)
        times = []
        for _ in range(12):
            with timed(self.device) as taken:
                a @ b
            times += taken
        return {"gflops": 2 * n**3 / min(times[2:]) / 1e9}

    def count(self, cells: int) -> dict[str, float]:
        """GFLOP of the matrix products of one evaluation, and of one with its gradients; nothing is computed."""
        batch = {name: value.to("meta") for name, value in self.inputs.batch(cells).items()}
        with torch.device("meta"):
            velocity = self.form.on_meta()
            with FlopCounterMode(display=False) as forward:
                predicted = velocity(batch)
            with FlopCounterMode(display=False) as backward:
                predicted.sum().backward()
        once = forward.get_total_flops() / 1e9
        return {"forward": once, "step": once + backward.get_total_flops() / 1e9}

    def memory(self) -> dict[str, float]:
        """Peak memory in GB beyond what parameters and data take."""
        if self._cuda:
            return {"gb": torch.cuda.max_memory_allocated() / 1e9}
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"gb": largest * 1024 / 1e9 - self.before}

    @property
    def _cuda(self) -> bool:
        return self.device.type == "cuda"


def resident() -> float:
    """Memory of this process in GB (0 where the system does not tell)."""
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.is_file() else 0
    return pages * resource.getpagesize() / 1e9


@contextlib.contextmanager
def timed(device: torch.device) -> Iterator[list[float]]:
    """Seconds on the clock, appended at the end, with all queued work done."""
    taken: list[float] = []
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    yield taken
    if device.type == "cuda":
        torch.cuda.synchronize()
    taken.append(time.perf_counter() - start)


def random_state(case: Case) -> dict[str, Tensor]:
    """Random parameters of these sizes under their official names."""
    return reference.random_state(
        BACKBONE, n_tokens=case.tokens, width=case.width, n_heads=case.heads, n_layers=case.layers
    )


def made_table(n_cells: int, n_genes: int) -> tuple[CellTable, Split]:
    """A table of random cells, a tenth of the values not 0, of 100 training conditions and control."""
    X = sp.random(n_cells, n_genes, density=0.1, format="csr", dtype=np.float32, random_state=0)
    conditions = ["control", *(f"g{i}" for i in range(100))]
    labels = np.resize(conditions, n_cells)
    obs = pd.DataFrame({"perturbation": labels}, index=np.arange(n_cells).astype(str))
    adata = ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    split = Split("named", 0, train=tuple(conditions[1:]), validation=(), test=())
    return read_cells(adata, "perturbation"), split


def table_sampler(case: Case) -> ConditionSampler:
    """A sampler over 20,000 made cells × (V − 4) genes."""
    n_genes = case.tokens - SPECIAL
    cells, split = made_table(20_000, n_genes)
    genes = list(cells.genes)
    return ConditionSampler(
        cells, split, GenePanel(tuple(genes), n_genes), numpy_rng(0, "speed"), vocabulary=Vocabulary.build(genes, []),
        n_conditions=case.conditions, n_cells=case.cells // case.conditions,
    )  # fmt: skip


def main() -> None:
    """Read a line, do it, answer with a line; memory that cannot be had is an answer too."""
    task = json.loads(sys.argv[1])
    if task.get("limit"):
        resource.setrlimit(resource.RLIMIT_DATA, (task["limit"], task["limit"]))
    if task["device"] == "cuda":
        # Both forms are on the device at once, and torch keeps the memory that it once had.
        torch.cuda.set_per_process_memory_fraction(0.72 if task["form"] == "plain" else 0.24)
    worker = Worker(task["form"], Case(**task["case"]), task["device"], task.get("options", {}))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(worker, order.pop("do"))(**order)
        except (RuntimeError, MemoryError) as error:
            if "memory" not in str(error) and not isinstance(error, MemoryError):
                raise
            answer = {"error": "memory"}
            if task["device"] == "cuda":
                torch.cuda.empty_cache()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
