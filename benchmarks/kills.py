"""Does any work get lost or bent when a process dies? SIGKILL at random moments, resume, compare bits.

    python benchmarks/kills.py [--kills 30] [--seed 0] [--work FOLDER] [--out benchmarks/results]

fit, predict and benchmark take turns on a small simulated screen. Each is run once undisturbed; then, for each kill, it is
started anew, killed at a moment drawn uniformly from its working time (every second kill waits from there for the next
file in writing, since these moments are short), every file under a final name is read to its end, and the same command is
given again, with --resume where it has one. The files that it leaves must be those of the undisturbed run, byte for byte. A
process that ended before its moment is counted apart and drawn again. The processes are forked from one that has imported
what the commands need: an import loses no work. Written: kills.csv, one row for each kill, and kills.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from forked import forked, scdfm
from scdfm.seeds import numpy_rng
from screens import heading

SETTINGS = (
    "panel.n_genes=24", "graph.k=5", "model.width=16", "model.heads=2", "model.gene_heads=2", "model.layers=1",
    "model.dropout=0.1", "flow.genes_per_step=16", "training.max_steps=30", "training.warmup_steps=2",
    "training.validate_every=5", "training.conditions_per_batch=2", "training.validation_cells=6",
    "training.accelerator=cpu", "training.keep=last", "sampling.steps=1",
)  # fmt: skip
NAMES = ("fit", "predict", "benchmark")
PAIRED = "G010,G011,G045"
"""Targets of the screen whose pairs are predicted."""
CELLS = 2100
"""Predicted cells of each condition, of which a part of a prediction holds one."""


@dataclass(frozen=True)
class Command:
    """A command that writes `out`, how it goes on, and the files of it that must be the same."""

    name: str
    arguments: tuple[str, ...]
    out: str
    again: tuple[str, ...]
    kept: tuple[str, ...]


def commands() -> list[Command]:
    """fit, predict (of the undisturbed fit) and benchmark."""
    options = tuple(part for setting in SETTINGS for part in ("--set", setting))
    tables = ("scores.csv", "summary.csv", "differences.csv", "benchmark.md")
    files = ("manifest.json", "weights.safetensors", "graph.safetensors", "means.csv", "controls.h5ad", "log.csv")
    scored = ("--models", "tiny", "--folds", "0,1", "--seeds", "1", "--cells", "20", "--metrics", "l2,mae")
    return [
        Command("fit", ("fit", "screen.h5ad", "--quiet", *options), "run", ("--resume",), files),
        Command(
            "predict", ("predict", "fit/run", "--all-pairs-of", PAIRED, "--cells", str(CELLS), "--quiet"),
            "made.h5ad", ("--resume",), ("",),
        ),
        Command("benchmark", ("benchmark", "screen.h5ad", "--quiet", *scored, *options), "bench", ("--resume",), tables),
    ]  # fmt: skip


class Bench:
    """A folder with a screen and the undisturbed result of each command, beside which they are killed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.begun: dict[str, float] = {}
        self.took: dict[str, float] = {}
        self.expected: dict[str, dict[str, str]] = {}
        screen = ("simulate", "screen.h5ad", "--genes", "50", "--targets", "5", "--cells", "12", "--controls", "30")
        self.finish(screen)

    def start(self, arguments: tuple[str, ...]) -> ForkServerProcess:
        """`scdfm ARGUMENTS` in the folder."""
        return forked(scdfm, arguments, folder=self.folder, log=self.folder / "log.txt")

    def finish(self, arguments: tuple[str, ...]) -> None:
        """Run to the end."""
        process = self.start(arguments)
        process.join()
        if process.exitcode:
            sys.exit(f"scdfm {' '.join(arguments)}: {(self.folder / 'log.txt').read_text()[-2000:]}")

    def undisturbed(self, command: Command) -> None:
        """Run once, and note the time of the first file and of the end."""
        out = self.folder / command.name / command.out
        out.parent.mkdir()
        begun = time.monotonic()
        process = self.start((*command.arguments, "--out", f"{command.name}/{command.out}"))
        while process.is_alive():
            if command.name not in self.begun and has_begun(out):
                self.begun[command.name] = time.monotonic() - begun
            time.sleep(0.02)
        self.took[command.name] = time.monotonic() - begun
        self.expected[command.name] = digests(out, command)

    def kill(self, command: Command, number: int) -> dict[str, object]:
        """Start anew, kill, check every file, go on, compare; a row of the table."""
        rng = numpy_rng(self.seed, "kill", command.name, number)
        first, end = self.begun[command.name], self.took[command.name]
        moment = float(rng.uniform(first, end))
        where = f"{command.name}-{number}"
        out = self.folder / where / command.out
        out.parent.mkdir()
        arguments = (*command.arguments, "--out", f"{where}/{command.out}")
        process = self.start(arguments)
        # A fit works from its folder's appearance on; how long it imports before varies with the machine's load.
        begun = time.monotonic()
        while not has_begun(out) and process.is_alive():
            time.sleep(0.01)
        waited = time.monotonic() - begun
        process.join(moment - first)
        aimed = bool(number // len(NAMES) % 2)
        while aimed and process.is_alive() and not any(map(is_part, out.parent.rglob("*"))):
            pass
        late = not process.is_alive()
        if not late:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        left = sorted(str(path.relative_to(out.parent)) for path in out.parent.rglob("*") if path.is_file())
        broken = [name for name in left if not is_whole(out.parent / name)]
        if command.name != "predict" or not out.exists() or parts_of(out).exists():
            self.finish((*arguments, *command.again))
        found = digests(out, command)
        parts = sum(is_part(out.parent / name) for name in left)
        differing = [name for name, value in self.expected[command.name].items() if found[name] != value]
        row: dict[str, object] = {
            "command": command.name, "aimed": aimed, "second": round(waited + moment - first, 2),
            "ended_before": late, "files_left": len(left), "of_them_parts": parts, "broken": " ".join(broken),
            "differing": " ".join(differing),
        }  # fmt: skip
        shutil.rmtree(out.parent)
        return row


def parts_of(out: Path) -> Path:
    """Where a prediction grows."""
    return out.with_name(f"{out.name}.parts")


def has_begun(out: Path) -> bool:
    """Whether a command has begun to write."""
    return out.exists() or parts_of(out).exists()


def digests(out: Path, command: Command) -> dict[str, str]:
    """sha256 of each kept file, and the names of all files."""
    found = {
        name or out.name: hashlib.sha256((out / name if name else out).read_bytes()).hexdigest()
        for name in command.kept
    }
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return {**found, "names of the files": " ".join(names)}


def is_part(path: Path) -> bool:
    """Whether the name says that the file is not finished."""
    hidden = path.name.startswith(".") and ".part" in path.name
    return hidden or (path.parent.name.endswith(".parts") and path.stem == "joined")


def is_whole(path: Path) -> bool:
    """Whether a file under a final name can be read to its end."""
    if is_part(path):
        return True
    try:
        match path.suffix:
            case ".safetensors":
                load_file(path)
            case ".h5ad":
                ad.read_h5ad(path)
            case ".json":
                json.loads(path.read_text())
            case ".csv":
                pd.read_csv(path)
                return path.read_bytes().endswith(b"\n")
            case ".html":
                return path.read_text().rstrip().endswith("</html>")
    except Exception:  # whatever a reader says of a broken file
        return False
    return True


def run(folder: Path, kills: int, seed: int, names: tuple[str, ...] = NAMES) -> pd.DataFrame:
    """One row for each of `kills` kills, the commands of `names` in turn."""
    bench = Bench(folder, seed)
    turns = [command for command in commands() if command.name in names]
    rows: list[dict[str, object]] = []
    for command in commands():
        if command in turns or command.name == "fit":  # predict needs the fit
            bench.undisturbed(command)
    drawn = 0
    while sum(not row["ended_before"] for row in rows) < kills and drawn < 3 * kills:
        rows.append(bench.kill(turns[drawn % len(turns)], drawn))
        print(rows[-1], file=sys.stderr, flush=True)
        drawn += 1
    return pd.DataFrame(rows)


def report(table: pd.DataFrame) -> str:
    """One Markdown row for each command."""
    lines = [
        "| command | kills | ended before its kill | killed in writing a file | broken files | other bits after resuming |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, part in table.groupby("command", sort=False):
        killed = part[~part["ended_before"].astype(bool)]
        counts = (
            len(killed), len(part) - len(killed), int((killed["of_them_parts"] > 0).sum()),
            int((part["broken"] != "").sum()), int((part["differing"] != "").sum()),
        )  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the kills, write table and summary, fail where anything was broken or differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(NAMES), help="Those that are killed, separated by commas.")
    parser.add_argument("--work", type=Path, help="Folder to work in; without it a temporary one.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-", dir=args.work) as folder:
        table = run(Path(folder), args.kills, args.seed, tuple(args.commands.split(",")))
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "kills.csv", index=False)
    text = "\n".join([*heading("Kills and resumed work"), report(table)])
    (args.out / "kills.md").write_text(text, encoding="utf-8")
    print(text)
    if np.any((table["broken"] != "") | (table["differing"] != "")):
        sys.exit("a kill broke a file or changed a result")


if __name__ == "__main__":
    main()
