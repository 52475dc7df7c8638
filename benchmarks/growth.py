"""How cost grows: measured exponents in cells N, genes A, genes of a step T, cells of a batch B, and conditions.

    python benchmarks/growth.py [--curves T B ...] [--repeats 3] [--fresh]

Each curve doubles one size and leaves the others; its points are measured in turns, and the slope of log cost on
log size is given, over all points and between the two largest. Writes benchmarks/results/growth.md; finished curves are
kept: repeat the command to go on, `--fresh` begins anew. Sizes are small, so that it takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from scdfm.config import GraphConfig, ModelConfig, PanelConfig, SamplingConfig
from scdfm.data import ConditionSampler, coexpression_graph, select_genes
from scdfm.files import write_json, write_text
from scdfm.flow import flow_loss, generate
from scdfm.model import VelocityField
from scdfm.seeds import numpy_rng, torch_rng
from screens import RESULTS, heading
from speed import hardware
from speed_worker import made_table

TOKENS = 2100
WIDTH, LAYERS, HEADS = 64, 2, 2


def field(backbone: str) -> VelocityField:
    """A small field over 2,100 tokens."""
    torch.manual_seed(0)
    config = ModelConfig(backbone=backbone, width=WIDTH, layers=LAYERS, heads=HEADS)
    return VelocityField(config, None, TOKENS)


def inputs(cells: int, genes: int, conditions: int = 1) -> dict[str, torch.Tensor]:
    """Random arguments of a field."""
    rng = torch_rng(0, "growth")
    return {
        "x_t": torch.randn(cells, genes, generator=rng), "t": torch.rand(cells, generator=rng),
        "control": torch.rand(cells, genes, generator=rng), "genes": torch.arange(4, genes + 4),
        "perturbation": torch.randint(4, TOKENS, (conditions, 2), generator=rng),
        "condition": torch.arange(conditions).repeat_interleave(cells // conditions),
    }  # fmt: skip


def step(backbone: str, cells: int, genes: int) -> Callable[[], Any]:
    """A training step without its optimiser."""
    of, batch = field(backbone), inputs(cells, genes)

    def taken() -> None:
        loss = flow_loss(of(**batch), batch["control"] - batch["x_t"], batch["x_t"], batch["control"], batch["t"])
        loss.total.backward()

    return taken


def counted(backbone: str, genes: int) -> float:
    """GFLOP of one evaluation of one cell."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        field(backbone)(**{name: value.to("meta") for name, value in inputs(1, genes).items()})
    return float(counter.get_total_flops()) / 1e9


def set_up(n_cells: int, n_genes: int) -> Callable[[], Any]:
    """What a fit does once before its first step: panel, graph, means."""
    cells, split = made_table(n_cells, n_genes)

    def taken() -> None:
        panel = select_genes(cells, split, PanelConfig(n_genes=500))
        coexpression_graph(cells.X[:, cells.columns(panel.genes)], k=GraphConfig().k)
        cells.means(["control", *split.train])

    return taken


def batch(n_cells: int, n_genes: int) -> Callable[[], Any]:
    """A batch of 48 cells × 500 genes out of the table."""
    cells, split = made_table(n_cells, n_genes)
    panel = select_genes(cells, split, PanelConfig(n_genes=500))
    sampler = ConditionSampler(cells, split, panel, numpy_rng(0, "growth"), n_conditions=8, n_cells=6)
    return sampler.sample


def population(conditions: int) -> Callable[[], Any]:
    """16 cells of each of so many conditions, as `generate` solves them."""
    of, given = field("differential_perceiver"), inputs(16 * conditions, 200, conditions)
    known = {name: given[name] for name in ("control", "perturbation", "condition", "genes")}
    return lambda: generate(of, **known, sampling=SamplingConfig(), genes_per_step=100, rng=torch_rng(0, "growth"))


BACKBONES = {"published": "differential_perceiver", "linear": "linear"}
SIZES = {"T": (250, 500, 1000, 2000), "B": (6, 12, 24, 48), "N": (5000, 10_000, 20_000, 40_000),
         "A": (1000, 2000, 4000, 8000), "conditions": (1, 2, 4, 8)}  # fmt: skip
CURVES: dict[str, tuple[str, Callable[[int], Callable[[], Any]]]] = {
    **{f"T step {name}": ("T", lambda n, kind=kind: step(kind, 2, n)) for name, kind in BACKBONES.items()},
    "B step": ("B", lambda n: step("differential_perceiver", n, 100)),
    "N batch": ("N", lambda n: batch(n, 1000)),
    "N set-up": ("N", lambda n: set_up(n, 1000)),
    "A batch": ("A", lambda n: batch(2000, n)),
    "A set-up": ("A", lambda n: set_up(2000, n)),
    "conditions sampling": ("conditions", population),
}
COUNTS = {f"T GFLOP {name}": ("T", kind) for name, kind in BACKBONES.items()}


def measured(make: Callable[[int], Callable[[], Any]], sizes: tuple[int, ...], repeats: int) -> list[float]:
    """Median processor seconds at each size, the sizes in turns."""
    acts = [make(size) for size in sizes]
    for act in acts:
        act()
    times: list[list[float]] = [[] for _ in sizes]
    for _ in range(repeats):
        for act, column in zip(acts, times, strict=True):
            start = time.process_time()
            act()
            column.append(time.process_time() - start)
    return [statistics.median(column) for column in times]


def exponents(sizes: tuple[int, ...], costs: list[float]) -> tuple[float, float]:
    """Slopes of log cost on log size: of all points, and between the two largest."""
    x, y = np.log(sizes), np.log(costs)
    return float(np.polyfit(x, y, 1)[0]), float((y[-1] - y[-2]) / (x[-1] - x[-2]))


def main() -> None:
    """Measure the curves that are missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", nargs="+", choices=(*COUNTS, *CURVES), default=(*COUNTS, *CURVES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / "growth.json"
    found: dict[str, Any] = {} if args.fresh or not record.is_file() else json.loads(record.read_text())
    for name in args.curves:
        if name in found:
            continue
        print(f"{name} …", flush=True)
        if name in COUNTS:
            letter, kind = COUNTS[name]
            costs = [counted(kind, size) for size in SIZES[letter]]
        else:
            letter, make = CURVES[name]
            costs = measured(make, SIZES[letter], args.repeats)
        whole, last = exponents(SIZES[letter], costs)
        found[name] = {"sizes": SIZES[letter], "costs": costs, "exponent": whole, "last": last}
        write_json(record, found)
    first = [
        *heading("How cost grows"),
        f"{hardware('cpu')}. Processor seconds, or GFLOP of one cell's evaluation.",
        "",
        "",
    ]
    text = "\n".join(first)
    text += "| cost | sizes | costs | **exponent** | of the last doubling |\n|---|---|---|---:|---:|\n"
    for name, curve in found.items():
        sizes, costs = (", ".join(map(str, curve["sizes"])), ", ".join(f"{cost:.3g}" for cost in curve["costs"]))
        text += f"| {name} | {sizes} | {costs} | {curve['exponent']:.2f} | {curve['last']:.2f} |\n"
    write_text(args.out / "growth.md", text)
    print(text)


if __name__ == "__main__":
    main()
