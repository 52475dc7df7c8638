"""What a screen costs against what was said before it started; with --kills, killed (SIGKILL) and resumed, file by file.

    python benchmarks/screen_cost.py RUN [--pairs 500] [--cells 32] [--kills 3] [--out DIR]

RUN is a run folder. Screens the first pairs of its targets with their singles, prints the estimate and the time taken; then
repeats the screen in processes of their own that are killed at random moments after a new shard, and compares the digest
of every file.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import scdfm
from scdfm.screening.job import Job
from scdfm.seeds import numpy_rng
from screens import RESULTS, heading

AGAIN = """
import sys, scdfm
run, out, cells, shard, *names = sys.argv[1:]
scdfm.screen(scdfm.Run.load(run), out=out, conditions=names, cells=int(cells), shard=int(shard), resume=True)
"""


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def killed(args: argparse.Namespace, names: list[str], seconds: float) -> str:
    """Kill the same screen at random moments, let it end, and say whether its files are equal."""
    out = args.out / "killed"
    command = [sys.executable, "-c", AGAIN, str(args.run), str(out), str(args.cells), str(args.shard), *names]
    rng, shards = numpy_rng(0, "screen cost", "kills"), [0]
    for _ in range(args.kills):
        process = subprocess.Popen(command)
        while process.poll() is None and len(list(out.glob("means/[0-9]*.h5ad"))) == shards[-1]:
            time.sleep(0.05)
        time.sleep(float(rng.uniform(0, seconds / (args.kills + 1))))
        process.send_signal(signal.SIGKILL)
        process.wait()
        shards.append(len(list(out.glob("means/[0-9]*.h5ad"))))
    subprocess.run(command, check=True)
    same = digests(out) == digests(args.out / "whole")
    return f"killed {args.kills} times with {shards[1:]} shards done: files {'equal' if same else 'DIFFER'}"


def main() -> None:
    """Screen, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument("--shard", type=int, default=32)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/screen_cost"))
    args = parser.parse_args()
    run = scdfm.Run.load(args.run)
    targets = sorted(run.manifest.targets)
    names = ["+".join(pair) for pair in itertools.islice(itertools.combinations(targets, 2), args.pairs)]
    said: list[str] = []
    estimate = Job.estimate
    found = {}

    def noted(job: Job) -> object:
        found["estimate"] = estimate(job)
        found["start"] = time.perf_counter()
        return found["estimate"]

    Job.estimate = noted  # type: ignore[assignment,method-assign]
    args.out.mkdir(parents=True, exist_ok=True)
    scdfm.screen(
        run,
        out=args.out / "whole",
        conditions=names,
        cells=args.cells,
        shard=args.shard,
        say=said.append,
        progress=True,
    )
    took = time.perf_counter() - found["start"]
    expected = found["estimate"].seconds
    text = (
        f"{len(names)} pairs and their singles × {args.cells} cells × {len(run.genes)} genes: {said[0]} "
        f"({expected:.1f} s); taken {took:.1f} s; estimate / taken {expected / took:.2f}\n"
    )
    if args.kills:
        text += killed(args, names, took) + "\n"
    text = "\n".join([*heading("What a screen costs, and its estimate"), text])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "screen_cost.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
