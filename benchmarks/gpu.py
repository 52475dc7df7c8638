"""What a GPU makes of scdfm, part by part, the most wanted first, within so many seconds; `benchmarks/gpu.sh` calls it.

    python benchmarks/gpu.py [--device cuda|cpu] [--seconds 470] [--out benchmarks/results]

train: a step at the published size (B 96), bf16 and float32, compiled and not, beside the plain formulation, with the share
of the measured best matrix product and peak memory; sample: at equal accuracy; demo: the whole of it on the device;
equality: the same weights and noise on device and CPU; seeds: two fits of one seed. With `--device cpu` sizes are small.
Parts that are done are kept (gpu.json); those for which no time is left are named.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import scdfm
from scdfm.files import write_json, write_text
from speed import GPU_SAMPLING, GPU_TRAINING, hardware, sampling, training
from speed_tables import SAMPLING_COLUMNS, STEP_COLUMNS, table
from speed_worker import Case

RESULTS = Path(__file__).resolve().parent / "results"
SMALL = Case(tokens=104, genes=64, cells=8, width=32, heads=2, layers=1)
FORMS = {
    "bf16, compiled": {"precision": "bf16", "compile": "on"},
    "bf16": {"precision": "bf16"},
    "float32": {},
    "float32, compiled": {"compile": "on"},
}
FIRST = "train bf16, compiled"
EXPECTED = {FIRST: 150, "sample": 90, "demo": 100, "equality": 20, "seeds": 30}
"""Seconds that a part may take; the others take about those that the first took."""
TARGETS = """Targets: a step at least 8 times as fast as the plain formulation in float32, 40% of the best bfloat16 product,
a quarter of its memory, sampling 20 times as fast at equal accuracy."""


def settings(seconds: float) -> Namespace:
    """What `speed.training` and `speed.sampling` ask for."""
    return Namespace(repeats=3, minutes=seconds / 120)


def step(form: str, device: str, seconds: float) -> dict[str, Any]:
    """A training step in one form, beside the plain formulation in the same precision."""
    options = (
        FORMS[form] if device == "cuda" else {key: value for key, value in FORMS[form].items() if key != "compile"}
    )
    case = GPU_TRAINING["train-published"] if device == "cuda" else SMALL
    return {"case": vars(case), **training(case, device, options, settings(seconds))}


def populations(device: str, seconds: float) -> dict[str, Any]:
    """Sampling, at 16 evaluations and at the plain formulation's 76."""
    case = GPU_SAMPLING["sample"] if device == "cuda" else SMALL
    options = FORMS["bf16, compiled"] if device == "cuda" else {}
    return {"case": vars(case), **sampling(case, device, options, settings(seconds))}


def config(device: str, steps: int, **training: Any) -> scdfm.Config:
    """The preset `default` for so many steps on the device."""
    options = {
        "max_steps": steps,
        "validate_every": steps,
        "accelerator": "gpu" if device == "cuda" else "cpu",
        **training,
    }
    small = {} if device == "cuda" else {"model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 1}}
    return scdfm.Config.preset("default").updated({"training": options, **small})


def screen(device: str) -> scdfm.CellTable:
    """A simulated screen: that of the demo, or a small one."""
    if device == "cuda":
        return scdfm.read_cells(scdfm.simulate(n_genes=120, n_targets=10, seed=0))
    return scdfm.read_cells(scdfm.simulate(n_genes=40, n_targets=4, cells_per_condition=12, seed=0))


def demo(device: str, seconds: float) -> dict[str, Any]:
    """Fit, predict and evaluate; seconds of each."""
    cells, took = screen(device), {}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        run = scdfm.fit(
            cells, config=config(device, 1000 if device == "cuda" else 4), out=f"{folder}/run", progress=False
        )
        took["fit_s"], begun = time.perf_counter() - begun, time.perf_counter()
        predicted = run.predict(device=device)
        took["predict_s"], begun = time.perf_counter() - begun, time.perf_counter()
        scores = scdfm.evaluate(predicted, cells, training=run, name="scdfm")
        took["evaluate_s"] = time.perf_counter() - begun
    means = scdfm.summarise(scores).pivot(index="model", columns="metric", values="mean")
    return took | {"l2": float(means.loc["scdfm", "l2"]), "l2 of additive": float(means.loc["additive", "l2"])}


def equality(device: str, seconds: float) -> dict[str, Any]:
    """Largest difference of predictions on the device from those on the CPU, of one run."""
    with tempfile.TemporaryDirectory() as folder:
        run = scdfm.fit(screen(device), config=config(device, 20, keep="last"), out=f"{folder}/run", progress=False)
        here, there = (
            scdfm.Run.load(run.path).predict(n_cells=32, device=name).X.toarray() for name in (device, "cpu")
        )
    return {"largest difference": float(np.abs(here - there).max()), "largest value": float(there.max())}


def seeds(device: str, seconds: float) -> dict[str, Any]:
    """How far the weights of two fits of one seed lie apart; equal to the bit on a CPU, not promised on a GPU."""
    cells, options = screen(device), config(device, 20, keep="last")
    with tempfile.TemporaryDirectory() as folder:
        runs = [scdfm.fit(cells, config=options, out=f"{folder}/{turn}", progress=False) for turn in "ab"]
        fits = [run.field.state_dict() for run in runs]
    return {"largest difference": max(float((fits[0][name] - fits[1][name]).abs().max()) for name in fits[0])}


PARTS: dict[str, Callable[[str, float], dict[str, Any]]] = {
    FIRST: functools.partial(step, "bf16, compiled"),
    "sample": populations,
    "demo": demo,
    "equality": equality,
    "seeds": seeds,
    **{f"train {form}": functools.partial(step, form) for form in list(FORMS)[1:]},
}


def page(found: dict[str, Any], device: str, left: list[str]) -> str:
    """The page: card, date, tables, and what no time was left for."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    failed = {name: row for name, row in found.items() if "failed" in row}
    found = {name: row for name, row in found.items() if name not in failed}
    small = "" if device == "cuda" else " Small sizes on a CPU: these numbers test the script alone."
    parts = [f"# On a GPU\n{hardware(device)}; torch {torch.__version__}; {date}.{small}\n\n{TARGETS}"]
    for head, first, columns in (("A training step", "train", STEP_COLUMNS), ("Sampling", "sample", SAMPLING_COLUMNS)):
        if chosen := {name: row for name, row in found.items() if name.startswith(first)}:
            parts.append(f"## {head}\n{table(chosen, columns)}")
    for name in ("demo", "equality", "seeds"):
        if name in found:
            said = ", ".join(f"{key} {value:.4g}" for key, value in found[name].items() if key != "took")
            parts.append(f"## {name.capitalize()}\n{(PARTS[name].__doc__ or '').strip()} {said}.")
    for name, row in failed.items():
        parts.append(f"{name.capitalize()} failed: {row['failed']}.")
    if left:
        parts.append(f"No time was left for: {', '.join(left)}.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Do what is missing while there is time, and write the page after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=470)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu: torch finds no CUDA device here; DEVICE=cpu tests the script")
    end = time.monotonic() + args.seconds
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / f"gpu-{args.device}.json"
    found: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    left: list[str] = []
    for name in args.parts:
        spare = end - time.monotonic()
        needed = EXPECTED.get(name) or found.get(FIRST, {}).get("took", EXPECTED[FIRST])
        if "took" in found.get(name, {}):
            continue
        if spare < (needed if args.device == "cuda" else 1):
            left.append(name)
            continue
        begun = time.monotonic()
        try:
            found[name] = PARTS[name](args.device, needed)
            found[name]["took"] = time.monotonic() - begun
            print(f"{name}: {found[name]['took']:.0f} s", flush=True)
        except (SystemExit, RuntimeError, scdfm.ScdfmError) as error:  # the other parts still have their time
            found[name] = {"failed": str(error).splitlines()[0] if str(error) else type(error).__name__}
            print(f"{name} failed: {error}", flush=True)
        write_json(record, found)
        write_text(args.out / ("gpu.md" if args.device == "cuda" else "gpu-cpu.md"), page(found, args.device, left))
    print(page(found, args.device, left))


if __name__ == "__main__":
    main()
