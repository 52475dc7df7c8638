"""Does a long fit stay the size it was? Memory and open files of a fit, sampled for hours, with the slope.

    nice -n 19 python benchmarks/soak.py [--minutes 120] [--every 5] [--work FOLDER] [--out benchmarks/results]

A small screen is simulated and fitted in a process of its own, on one thread, with a validation and a checkpoint every
200 small steps. The package is copied first, so that the sources may change meanwhile. At the end the fit gets SIGTERM
and must leave with code 75 and a checkpoint. Written: soak.csv (seconds, resident MiB, open files, step of the last
checkpoint), soak.png, and soak.md with the slope of the memory after the first tenth and its 95% interval. A slope is
fitted to the means of 20 stretches, whose errors are nearly independent as those of neighbouring samples are not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

import scdfm
from scdfm.plots.style import INK, PREDICTED, REAL, house_style, new_figure, render
from screens import heading

STRETCHES = 20
SETTINGS = (
    "panel.n_genes=100", "graph.k=5", "model.width=16", "model.heads=2", "model.gene_heads=2", "model.layers=1",
    "model.dropout=0.1", "flow.genes_per_step=50", "training.conditions_per_batch=4", "training.max_steps=100000000",
    "training.validate_every=200", "training.validation_cells=8", "training.accelerator=cpu", "sampling.steps=2",
)  # fmt: skip


def main() -> None:
    """Run the soak and write its three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--every", type=float, default=5, help="Seconds between samples.")
    parser.add_argument("--work", type=Path, help="Folder for sources and run; without it a temporary one.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-", dir=args.work) as folder:
        samples, code = soak(Path(folder), args.minutes * 60, args.every)
    args.out.mkdir(parents=True, exist_ok=True)
    samples.to_csv(args.out / "soak.csv", index=False)
    text = "\n".join([*heading("Two hours of training: memory and open files"), report(samples, code)])
    (args.out / "soak.md").write_text(text, encoding="utf-8")
    (args.out / "soak.png").write_bytes(figure(samples))
    print(text)
    if code != 75:
        sys.exit(f"the fit left with code {code}, expected 75")


def soak(folder: Path, seconds: float, every: float) -> tuple[pd.DataFrame, int]:
    """The samples of a fit of `seconds` in `folder`, and the code it left with after SIGTERM."""
    sources = folder / "src"
    shutil.copytree(Path(scdfm.__file__).parent, sources / "scdfm", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1"}
    scdfm_command = [sys.executable, "-m", "scdfm"]
    simulate = [*scdfm_command, "simulate", "screen.h5ad", "--genes", "150", "--targets", "6"]
    subprocess.run(simulate, cwd=folder, env=environment, check=True)
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    fit = [*scdfm_command, "fit", "screen.h5ad", "--out", "run", "--quiet", *options]
    with (folder / "fit.log").open("w") as log:
        process = subprocess.Popen(fit, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            rows = watch(process, folder / "run" / "log.csv", seconds, every)
            process.send_signal(signal.SIGTERM)
            code = process.wait(120)
        finally:
            process.kill()
    print((folder / "fit.log").read_text()[-2000:], file=sys.stderr)
    return pd.DataFrame(rows), code


def watch(process: subprocess.Popen[bytes], curves: Path, seconds: float, every: float) -> list[dict[str, float]]:
    """One row each `every` seconds from the first validation on, until `seconds` are over or the process ends."""
    while not curves.exists() and process.poll() is None:
        time.sleep(0.2)
    begun, rows = time.monotonic(), []
    while process.poll() is None and time.monotonic() - begun < seconds:
        at = time.monotonic() - begun
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        rows.append({"seconds": at, "resident_mib": mib, "open_files": files, "step": last_step(curves)})
        time.sleep(every)
    return rows


def last_step(curves: Path) -> int:
    """The step of the last line of log.csv."""
    with curves.open("rb") as handle:
        handle.seek(max(0, curves.stat().st_size - 400))
        return int(handle.read().decode().splitlines()[-1].split(",")[0])


def slope(samples: pd.DataFrame) -> tuple[float, float, float]:
    """MiB an hour after the first tenth, with the ends of its 95% interval."""
    settled = samples[samples["seconds"] >= samples["seconds"].max() / 10]
    stretch = np.arange(len(settled)) * STRETCHES // len(settled)
    means = settled.groupby(stretch)[["seconds", "resident_mib"]].mean()
    line = stats.linregress(means["seconds"] / 3600, means["resident_mib"])
    half = stats.t.ppf(0.975, len(means) - 2) * line.stderr
    return line.slope, line.slope - half, line.slope + half


def report(samples: pd.DataFrame, code: int) -> str:
    """One Markdown table."""
    middle, low, high = slope(samples)
    settled = samples[samples["seconds"] >= samples["seconds"].max() / 10]
    memory, files = settled["resident_mib"], settled["open_files"]
    rows = {
        "time watched": f"{samples['seconds'].max() / 60:.1f} min, {len(samples)} samples",
        "steps": f"{samples['step'].iloc[-1]:,.0f}",
        "resident memory after the first tenth": f"{memory.min():.1f} to {memory.max():.1f} MiB",
        "its slope [95% interval]": f"{middle:+.2f} [{low:+.2f}, {high:+.2f}] MiB an hour",
        "open files, least and most": f"{files.min():.0f} and {files.max():.0f}; {files.iloc[0]:.0f} at the beginning, "
                                      f"{files.iloc[-1]:.0f} at the end",
        "exit code after SIGTERM": f"{code}",
    }  # fmt: skip
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def figure(samples: pd.DataFrame) -> bytes:
    """Memory and open files against time, as PNG."""
    with house_style():
        drawn = new_figure(6.4, 3.4)
        above, below = drawn.subplots(2, 1, sharex=True)
        minutes = samples["seconds"] / 60
        above.plot(minutes, samples["resident_mib"], color=PREDICTED, lw=1)
        above.set_ylim(0, samples["resident_mib"].max() * 1.15)
        above.set_title("resident memory, MiB")
        below.step(minutes, samples["open_files"], color=REAL, lw=1)
        below.set_ylim(0, samples["open_files"].max() * 1.3)
        below.set_title("open files")
        below.set_xlabel("minutes", color=INK)
    return render(drawn, "png")


if __name__ == "__main__":
    main()
