"""Is work lost or bent when a disk fails? The k-th file operation fails, k = 1, 2, … until a command goes through.

    python benchmarks/faults.py [--commands fit,predict] [--every 1] [--shift 0] [--work FOLDER] [--out benchmarks/results]

Each command runs on a screen of a few cells, in a process forked from this one, with faults.c loaded before every library
(so a C compiler and Linux are needed): open, read, write, fsync, rename and mkdir are counted whoever calls them, HDF5,
Arrow and safetensors too. The k-th fails as a full disk (which stays full for what writes), a broken one (EIO) or one
without the right (EACCES), in turn; `--shift` 1 and 2 begin the turn elsewhere. Then must hold:

- the command ended in one line of a ScdfmError, or went through with the very files of an undisturbed one;
- no part of a file, no scratch file, and no file under a final name that cannot be read to its end;
- repeated, with --resume where it has one, it leaves the files of an undisturbed one, byte for byte, or refuses in one
  line with a remedy; with that followed (the folder removed), the same bytes.

Written: faults.md, with the points tried and what was found. Points of other commands stay (faults.json).
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHIM = "SCDFM_FAULTS"
MODULES = ("scdfm.cli", "scdfm.training", "scdfm.report", "scdfm.screening", "scdfm.benchmarking", "lightning",
           "scanpy", "matplotlib.pyplot", "anndata.io", "zarr", "h5py", "pyarrow.parquet", "illico", "sklearn.neighbors",
           "torchdiffeq", "statsmodels.api", "kills")  # fmt: skip
SETTINGS = ("panel.n_genes=20", "graph.k=3", "model.width=16", "model.heads=2", "model.gene_heads=2", "model.layers=1",
            "flow.genes_per_step=16", "training.validate_every=1", "training.validation_cells=4", "sampling.cells=4",
            "training.cells_per_condition=4", "training.max_steps=2", "training.conditions_per_batch=2",
            "training.warmup_steps=1", "training.accelerator=cpu", "sampling.steps=1")  # fmt: skip
SMALL = tuple(word for setting in SETTINGS for word in ("--set", setting))
SCREEN = ("--genes", "24", "--targets", "4", "--cells", "8", "--controls", "20")
ENOUGH = 100_000
"""More operations than any command does."""


@dataclass(frozen=True)
class Command:
    """A command that writes `out`, and what is added when it goes on."""

    arguments: tuple[str, ...]
    out: str
    again: tuple[str, ...] = ()
    every: int = 1
    """Only every so-many-th operation fails: a zarr store is hundreds of small files."""
    timed: tuple[str, ...] = ()
    """Ends of the names of files that say how long something took, which are not compared."""


COMMANDS = {
    "fit": Command(("fit", "screen.h5ad", "--preset", "instant", "--quiet"), "run", ("--resume",)),
    "fit steps": Command(("fit", "screen.h5ad", "--quiet", *SMALL), "run", ("--resume",)),
    "predict": Command(("predict", "fitted", "--all", "--cells", "4", "--quiet"), "p.h5ad", ("--resume",)),
    "predict zarr": Command(("predict", "fitted", "--test", "--cells", "4", "--quiet"), "p.zarr", ("--resume",),
                            every=13),
    "screen": Command(("screen", "fitted", "--all", "--cells", "4", "--propose", "1", "--keep-cells", "--quiet"), "found",
                      ("--resume",)),
    "evaluate": Command(("evaluate", "predicted.h5ad", "screen.h5ad", "--run", "fitted", "--quiet"), "score"),
    "benchmark": Command(("benchmark", "screen.h5ad", "--models", "instant,command:copy=sh answer.sh", "--folds", "0",
                          "--seeds", "1", "--metrics", "l2,mae", "--quiet"), "bench", ("--resume",), every=20,
                         timed=("piece.json", "costs.csv", "benchmark.md", "benchmark.html")),
    "peers": Command(("benchmark", "screen.h5ad", "--models", "command:copy=sh answer.sh", "--folds", "0", "--seeds", "1",
                      "--metrics", "l2", "--quiet"), "peer", ("--resume",), every=8,
                     timed=("piece.json", "costs.csv", "benchmark.md", "benchmark.html")),
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a process ended: its code, what it said, operations it did, and the one that failed."""

    code: int
    said: str
    operations: int
    failed: str

    @property
    def one_line(self) -> bool:
        """Whether it refused as every ScdfmError does; Lightning's and torch's own lines would count."""
        return self.code == 2 and self.said.count("\n") == 1 and self.said.startswith("error: ")


class Bench:
    """A folder with a small screen, its run and prediction, in which commands are disturbed; see the module."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trial = folder, folder / "trial"
        self.shim = ctypes.CDLL(os.environ[SHIM])
        self.shim.faults_told.restype = ctypes.c_char_p
        self.shim.faults_count.restype = ctypes.c_long
        (folder / "tmp").mkdir()
        self.run(("simulate", "screen.h5ad", *SCREEN))
        self.run(("fit", "screen.h5ad", "--preset", "instant", "--quiet", "--out", "fitted"))
        self.run(("predict", "fitted", "--test", "--cells", "6", "--quiet", "--out", "predicted.h5ad"))
        (folder / "answer.sh").write_text('cp predicted.h5ad "$1/predicted.h5ad"\n')

    def run(self, arguments: tuple[str, ...], k: int = ENOUGH, shift: int = 0) -> Ended:
        """`scdfm ARGUMENTS` in a process of its own, whose k-th operation under the folder fails."""
        ours, theirs = os.pipe()
        log = self.folder.with_name(f"{self.folder.name}.log")
        if not (child := os.fork()):
            self._child(arguments, k, shift, theirs, log)
        os.close(theirs)
        with os.fdopen(ours, encoding="utf-8") as pipe:
            told = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        operations, _, failed = told.partition(" ")
        ended = Ended(code, log.read_text(), int(operations or 0), failed)
        if k == ENOUGH and code:
            sys.exit(f"scdfm {' '.join(arguments)}: undisturbed it left with {code}: {ended.said[-2000:]}")
        return ended

    def _child(self, arguments: tuple[str, ...], k: int, shift: int, pipe: int, log: Path) -> None:
        code = 1
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(handle, 2)
            os.chdir(self.folder)
            tempfile.tempdir = str(self.folder / "tmp")
            sys.argv = ["scdfm", *arguments]
            from scdfm.cli import main

            self.shim.faults_arm(str(self.folder).encode(), ctypes.c_long(k), shift)
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            sys.stderr.flush()
            told = f"{self.shim.faults_count()} {self.shim.faults_told().decode()}"
            self.shim.faults_arm(b"", ctypes.c_long(0), 0)
            os.write(pipe, told.encode())
            os._exit(code)

    def undisturbed(self, command: Command) -> tuple[dict[str, str], int]:
        """Digests of the files of two undisturbed runs, where they agree (else empty), and the operations of one."""
        found = []
        for _ in range(2):
            self.clear()
            ended = self.run((*command.arguments, "--out", f"trial/{command.out}"))
            found.append(digests(self.trial))
        first, second = found
        same = {name: second.get(name) == value and not name.endswith(command.timed) for name, value in first.items()}
        return {name: value * same[name] for name, value in first.items()}, ended.operations

    def clear(self) -> None:
        """An empty folder to write into."""
        shutil.rmtree(self.trial, ignore_errors=True)
        self.trial.mkdir()

    def disturbed(self, command: Command, expected: dict[str, str], k: int, shift: int) -> tuple[str, str, list[str]]:
        """What failed, how it went on, and what must not be: empty where the command endured it."""
        self.clear()
        line = (*command.arguments, "--out", f"trial/{command.out}")
        ended = self.run(line, k, shift)
        wrong = [] if ended.one_line or ended.code == 0 else [f"left with {ended.code}: {ended.said[-600:]}"]
        wrong += self._left()
        how = "went through"
        if ended.code or digests(self.trial).keys() != expected.keys():  # parts that could not be cleared away
            how = "goes on"
            if (again := self.run((*line, *command.again), ENOUGH - 1)).code:
                how = "refused, then done anew"
                wrong += (
                    [] if again.one_line and "remove" in again.said else [f"again: {again.code}: {again.said[-600:]}"]
                )
                self.clear()
                self.run(line)
        found = digests(self.trial)
        names = sorted(found.keys() ^ expected.keys())
        names += [name for name, value in expected.items() if value and found.get(name, value) != value]
        return ended.failed, how, wrong + [f"other bytes ({how}): {name}" for name in names] + self._left()

    def _left(self) -> list[str]:
        """Scratch files, parts, and files under a final name that cannot be read."""
        kills = importlib.import_module("kills")
        files = [path for path in self.trial.rglob("*") if path.is_file()]
        scratch = [*(self.folder / "tmp").iterdir(), *(path for path in files if kills.is_part(path))]
        for path in (self.folder / "tmp").iterdir():
            path.unlink() if path.is_file() else shutil.rmtree(path)
        broken = [path for path in files if path not in scratch and not kills.is_whole(path)]
        return [f"left behind: {path.name}" for path in scratch] + [f"half written: {path.name}" for path in broken]


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def faults(folder: Path, names: list[str], every: int = 1, shift: int = 0) -> Iterator[dict[str, Any]]:
    """One row for each point of failure of the commands `names`; needs `preloaded`."""
    for module in MODULES:
        importlib.import_module(module)
    bench = Bench(folder)
    for name in names:
        expected, operations = bench.undisturbed(COMMANDS[name])
        for k in range(1, operations + 1, every * COMMANDS[name].every):
            failed, how, wrong = bench.disturbed(COMMANDS[name], expected, k, shift)
            yield {"command": name, "k": k, "failed": failed, "how": how, "wrong": wrong,
                   "varying": sorted(one for one, value in expected.items() if not value)}  # fmt: skip


def preloaded(folder: Path) -> dict[str, str]:
    """The environment of a process that can be disturbed: faults.c, compiled into `folder`, before every library."""
    shim, here = folder / "faults.so", Path(__file__).resolve()
    source = here.with_suffix(".c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True)
    alone = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return {**os.environ, **alone, "LD_PRELOAD": str(shim), SHIM: str(shim)}


def report(rows: list[dict[str, Any]]) -> str:
    """One Markdown row for each command, and every fault."""
    lines = ["| command | points | " + " | ".join(KINDS) + " | goes on | done anew | went through | **faults** |",
             "|---|---:|" + "---:|" * (len(KINDS) + 4)]  # fmt: skip
    for name in dict.fromkeys(row["command"] for row in rows):
        own = [row for row in rows if row["command"] == name]
        kinds = Counter(row["failed"].split("\t")[0] for row in own)
        hows = Counter(row["how"] for row in own)
        counts = [
            len(own),
            *(kinds[kind] for kind in KINDS),
            *(hows[how] for how in HOWS),
            sum(bool(row["wrong"]) for row in own),
        ]
        lines.append(f"| {name} | " + " | ".join(map(str, counts)) + " |")
    wrong = [
        f"- {row['command']}, {row['k']}, {row['failed']!r}: {'; '.join(row['wrong'])}" for row in rows if row["wrong"]
    ]
    varying = sorted({f"{row['command']}: {one}" for row in rows for one in row["varying"]})
    said = f"\nNot compared, since two undisturbed runs differ in them: {', '.join(varying) or 'none'}.\n"
    return "\n".join([*lines, said, *wrong]) + "\n"


KINDS = ("open to read", "open to write", "read", "write", "fsync", "rename", "mkdir")
HOWS = ("goes on", "refused, then done anew", "went through")


def main() -> None:
    """Disturb the commands, write the page, fail where one did not endure it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", default=",".join(COMMANDS), help="Separated by commas.")
    parser.add_argument("--every", type=int, default=1, help="Only every so-many-th operation.")
    parser.add_argument("--shift", type=int, default=0)
    parser.add_argument("--work", type=Path, help="Folder to work in; without it a temporary one.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-", dir=args.work) as name:
        folder = Path(name).resolve()
        if SHIM not in os.environ:
            sys.exit(subprocess.run([sys.executable, *sys.argv], env=preloaded(folder), check=False).returncode)
        (folder / "work").mkdir()
        args.out.mkdir(parents=True, exist_ok=True)
        record = args.out / "faults.json"
        rows = json.loads(record.read_text()) if record.is_file() else []
        rows = [row for row in rows if row["command"] not in args.commands.split(",")]
        for row in faults(folder / "work", args.commands.split(","), args.every, args.shift):
            rows.append(row)
            record.write_text(json.dumps(rows))
            if row["wrong"]:
                print(row, file=sys.stderr, flush=True)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    text = (
        f"# The k-th file operation fails\n`python benchmarks/faults.py`, {date}; {len(rows)} points.\n\n{report(rows)}"
    )
    (args.out / "faults.md").write_text(text, encoding="utf-8")
    print(text)
    if any(row["wrong"] for row in rows):
        sys.exit("a failure was not endured")


if __name__ == "__main__":
    main()
