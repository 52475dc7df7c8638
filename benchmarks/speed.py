"""Time, memory and equality of scdfm's velocity field beside the plain formulation of the same equations.

    python benchmarks/speed.py [--rows train-wide sample ...] [--device cpu|cuda] [--repeats 3] [--minutes 5] [--fresh]

The plain formulation (tests/reference.py) and scdfm run in a process each and take turns, so that what else the
machine does meets both; given are medians, their ratio, peak memory beyond parameters and data, the floating
point operations of the matrix products, and the share of the machine's own best matrix product that scdfm reaches.
Losses are compared in the same steps. Finished rows are kept in benchmarks/results/: repeat the command to go on,
`--fresh` begins anew. With `--device cuda` the rows of a GPU (bfloat16, compiled) run instead.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scdfm.files import write_json, write_text
from speed_tables import tables
from speed_worker import Case

HERE = Path(__file__).resolve().parent
TRAINING = {
    "train-tiny": Case(tokens=215, genes=128, cells=48, width=64, heads=2, layers=2, conditions=8),
    "train-default": Case(tokens=2015, genes=100, cells=48, width=64, heads=2, layers=2, conditions=8),
    "train-published": Case(tokens=5033, genes=1000, cells=4, width=512, heads=8, layers=4),
    "train-wide": Case(tokens=5000, genes=500, cells=48, width=256, heads=8, layers=4),
}
SAMPLING = {"sample": Case(tokens=5000, genes=1000, cells=4, width=256, heads=8, layers=4)}
GPU_TRAINING = {"train-published": Case(tokens=5033, genes=1000, cells=96, width=512, heads=8, layers=4)}
GPU_SAMPLING = {"sample": Case(tokens=5033, genes=1000, cells=64, width=512, heads=8, layers=4)}
PUBLISHED, DEFAULT, PAPER = ("rk4", 19), ("rk4", 4), ("euler", 100)
SAME = 0.02
"""How far apart the ends of the same solver may lie, as a share of their norm (bfloat16 included)."""
SPARE = 1.5e9
"""Bytes left to the rest of the machine."""


class Worker:
    """One form in a process of its own."""

    def __init__(self, form: str, case: Case, device: str, options: dict[str, Any], limit: int | None) -> None:
        task = {"form": form, "case": asdict(case), "device": device, "options": options, "limit": limit}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "speed_worker.py"), json.dumps(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer()

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """What it answers; a process killed for its memory answers with that error."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": "memory"}
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        if self.process.wait() in (-9, 137):
            return {"error": "memory"}
        raise SystemExit(f"the worker ended with code {self.process.returncode}; its message is above")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def both(case: Case, device: str, options: dict[str, Any]) -> Iterator[tuple[Worker, Worker]]:
    """The plain form and scdfm's; neither may take all memory."""
    limit = None if device == "cuda" else int(available() - SPARE)
    workers = [Worker(form, case, device, options, limit) for form in ("plain", "scdfm")]
    try:
        yield workers[0], workers[1]
    finally:
        for worker in workers:
            worker.close()


def available() -> float:
    """Bytes of memory that can be had."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return 1024 * float(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


def training(case: Case, device: str, options: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Steps in turns. Where the plain form does not fit, it steps on fewer cells and times are per cell."""
    with both(case, device, options) as (plain, own):
        bf16 = options.get("precision") == "bf16"
        peaks = [own.ask("peak", bf16=bf16)["gflops"]]
        plain_cells, first = fitting(plain, case)
        assert first is not None, f"the plain form does not fit at {plain_cells} cells either"
        losses = [(first["loss"], own.ask("step", cells=plain_cells)["loss"])]
        own.ask("step", cells=case.cells) if plain_cells < case.cells else None
        times: list[tuple[float, float]] = []
        start = time.monotonic()
        while len(times) < args.repeats and (not times or time.monotonic() - start < 60 * args.minutes):
            answers = plain.ask("step", cells=plain_cells), own.ask("step", cells=case.cells)
            times.append((answers[0]["seconds"] / plain_cells, answers[1]["seconds"] / case.cells))
            if plain_cells == case.cells:
                losses.append((answers[0]["loss"], answers[1]["loss"]))
        peaks.append(own.ask("peak", bf16=bf16)["gflops"])
        counts = [worker.ask("count", cells=case.cells)["step"] for worker in (plain, own)]
        memory = [worker.ask("memory")["gb"] for worker in (plain, own)]
    peak = max(peaks)  # the machine may have been busy with something else at one of them
    plain_time, own_time = (case.cells * statistics.median(column) for column in zip(*times, strict=True))
    return {
        "plain_s": plain_time, "scdfm_s": own_time, "ratio": plain_time / own_time, "steps": len(times),
        "ratios": [a / b for a, b in times], "plain_cells": plain_cells,
        "loss_difference": max(abs(a - b) / abs(a) for a, b in losses),
        "plain_gb": memory[0], "scdfm_gb": memory[1], "plain_gflop": counts[0], "scdfm_gflop": counts[1],
        "peak_gflops": peak, "share_of_peak": counts[1] / own_time / peak,
        "roofline_ratio": plain_time / (counts[1] / peak),
    }  # fmt: skip


def fitting(plain: Worker, case: Case) -> tuple[int, dict[str, Any] | None]:
    """The largest of B, B/2, B/4 … cells whose plain step fits in memory, and that step."""
    cells = case.cells
    while cells >= 2:
        answer = plain.ask("step", cells=cells)
        if "error" not in answer:
            return cells, answer
        print(f"  the plain form needs more memory than there is at {cells} cells", flush=True)
        cells //= 2
    return cells, None


def sampling(case: Case, device: str, options: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Populations in turns; all errors are distances to the plain form's end at 76 evaluations."""
    with tempfile.TemporaryDirectory() as folder, both(case, device, options) as (plain, own):

        def ask(worker: Worker, solver: tuple[str, int], name: str) -> float:
            answer = worker.ask(
                "generate", cells=case.cells, solver=solver[0], steps=solver[1], out=f"{folder}/{name}.npy"
            )
            return float(answer["seconds"])

        own.ask("generate", cells=case.cells, solver="euler", steps=1, out=f"{folder}/warm.npy")
        plain.ask("generate", cells=case.cells, solver="euler", steps=1, out=f"{folder}/warm.npy")
        times: list[tuple[float, float, float]] = []
        start = time.monotonic()
        while len(times) < args.repeats and (not times or time.monotonic() - start < 60 * args.minutes):
            times.append((ask(plain, PUBLISHED, "plain"), ask(own, DEFAULT, "own"), ask(own, PUBLISHED, "same")))
        ask(own, PAPER, "euler")
        ends = {name: np.load(f"{folder}/{name}.npy") for name in ("plain", "own", "same", "euler")}
        memory = [worker.ask("memory")["gb"] for worker in (plain, own)]
    plain_time, own_time, same_time = (statistics.median(column) for column in zip(*times, strict=True))
    error = {name: float(np.linalg.norm(end - ends["plain"], axis=1).mean()) for name, end in ends.items()}
    norm = float(np.linalg.norm(ends["plain"], axis=1).mean())
    if error["same"] > SAME * norm:
        raise SystemExit(
            f"sampling: both forms end {error['same']:g} apart by the same solver (norm {norm:g}): not the same"
        )
    return {
        "plain_s": plain_time, "scdfm_s": own_time, "same_solver_s": same_time, "ratio": plain_time / own_time,
        "same_solver_ratio": plain_time / same_time, "rounds": len(times), "error_default": error["own"],
        "error_same_solver": error["same"], "error_euler_100": error["euler"],
        "norm": norm, "plain_gb": memory[0], "scdfm_gb": memory[1],
    }  # fmt: skip


def data(case: Case, device: str, options: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The time to assemble a batch, and of steps with and without data, in turns."""
    limit = None if device == "cuda" else int(available() - SPARE)
    own = Worker("scdfm", case, device, options, limit)
    try:
        own.ask("step", cells=case.cells)
        own.ask("fed", cells=case.cells)
        rounds = []
        for _ in range(args.repeats):
            still, fed = (own.ask("step", cells=case.cells)["seconds"], own.ask("fed", cells=case.cells)["seconds"])
            rounds.append((own.ask("assemble", cells=case.cells)["seconds"], still, fed))
    finally:
        own.close()
    assemble, still, fed = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {"assemble_s": assemble, "still_s": still, "fed_s": fed, "share": assemble / still}


def hardware(device: str) -> str:
    """The machine's name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text(encoding="utf-8").splitlines() if "model name" in line]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"


Measure = Callable[[Case, str, dict[str, Any], argparse.Namespace], dict[str, Any]]


def rows(device: str) -> dict[str, tuple[Measure, Case]]:
    """What is measured on `device`, by name."""
    trained, sampled = (TRAINING, SAMPLING) if device == "cpu" else (GPU_TRAINING, GPU_SAMPLING)
    assembled = {name.replace("train", "data"): case for name, case in trained.items()}
    return (
        {name: (training, case) for name, case in trained.items()}
        | {name: (sampling, case) for name, case in sampled.items()}
        | {name: (data, case) for name, case in assembled.items()}
    )


def main() -> None:
    """Measure the rows that are missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=3.0, help="no new round of a row after this")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("skipped: no CUDA device here; run the same command on a machine that has one")
        return
    known = rows(args.device)
    unknown = sorted(set(args.rows or ()) - set(known))
    if unknown:
        parser.error(f"--rows {unknown[0]}: expected some of {', '.join(known)}")
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / f"speed-{args.device}.json"
    found: dict[str, Any] = {} if args.fresh or not record.is_file() else json.loads(record.read_text())
    options = {"precision": "bf16", "compile": "on"} if args.device == "cuda" else {}
    for name in args.rows or known:
        if name not in found:
            print(f"{name} …", flush=True)
            measure, case = known[name]
            measured = measure(case, args.device, options, args)
            stamp = {"hardware": hardware(args.device), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
            found[name] = {"case": asdict(case), **stamp, "torch": torch.__version__, **measured}
            write_json(record, found)
    text = tables(found)
    write_text(args.out / f"speed-{args.device}.md", text)
    print(text)


if __name__ == "__main__":
    main()
