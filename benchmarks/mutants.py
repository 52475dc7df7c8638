"""Would anything notice if a line of the flow were wrong? One text is changed at a time; which tests turn red?

    python benchmarks/mutants.py [--only WORD …] [--out benchmarks/results]

mutants.toml lists changes that somebody could make by mistake. The tree is copied, one text changed, and the tests that
mirror the file are run until three have failed. Left out are the golden files (tests/training/test_golden.py): they notice
every changed bit, of a change that is right too. A mutant that no test kills is a test to write. The libraries are
loaded once, and a fork runs the tests of each mutant. Finished mutants are kept in mutants.json and run again when
their file, its tests or their text have changed. Written: mutants.md. A text that is not found, or found twice, is an
error, told before anything runs: the list has to follow the code.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Path("src") / "scdfm"
LIST = Path(__file__).with_suffix(".toml")
OBJECTIVE = "tests/training/test_objective.py"
GENERATION = ("tests/flow/test_generate.py", "tests/run/test_predict.py")
TESTS: dict[str, tuple[str, ...]] = {
    "training/module.py": (
        OBJECTIVE,
        "tests/training/test_schedule.py",
        "tests/training/test_compiling.py::test_on_a_gpu_only_a_long_fit_is_compiled",
        "tests/training/test_validation.py::test_the_best_checkpoint_is_the_one_that_is_monitored",
    ),
    "training/inputs.py": ("tests/training/test_inputs.py", "tests/training/test_coexpression.py"),
    "training/prepared.py": (
        "tests/training/test_inputs.py",
        "tests/run/test_contexts.py",
        "tests/training/test_coexpression.py",
        "tests/training/test_prepared.py",
        "tests/training/test_transfer.py",
    ),
    "prior/kernel.py": ("tests/prior/test_kernel.py", "tests/prior/test_learn.py"),
    "prior/effects.py": ("tests/prior/test_descriptions.py", "tests/prior/test_learn.py"),
    "data/graph.py": ("tests/data/test_graph.py",),
    "run/manifest.py": ("tests/archives/test_archives.py",),
    "run/cost.py": ("tests/run/test_cost.py",),
    "run/shards.py": ("tests/run/test_cost.py", "tests/run/test_shards.py"),
    "run/extrapolation.py": ("tests/training/test_coexpression.py",),
    "benchmarking/contest.py": ("tests/benchmarking/test_commands.py",),
    "flow/path.py": (OBJECTIVE, "tests/flow/test_path.py", "tests/flow/test_loss.py", "tests/prior/test_start.py"),
    "flow/loss.py": (OBJECTIVE, "tests/flow/test_loss.py"),
    "flow/generate.py": (*GENERATION, OBJECTIVE),
    "prior/start.py": (
        OBJECTIVE,
        "tests/prior/test_start.py",
        "tests/prior/test_spread.py",
        "tests/run/test_predict.py",
    ),
    "prior/missing.py": ("tests/training/test_union.py",),
    "prior/marginals.py": ("tests/prior/test_marginals.py",),
    "prior/spread.py": ("tests/prior/test_spread.py",),
    "prior/shrink.py": ("tests/prior/test_shrink.py",),
    "prior/descriptions.py": ("tests/prior/test_descriptions.py",),
    "prior/learn.py": ("tests/prior/test_learn.py",),
    "model/layers.py": ("tests/model/test_velocity.py",),
    "model/velocity.py": ("tests/model/test_velocity.py",),
    "training/transfer.py": ("tests/training/test_transfer.py",),
    "evaluation/ranks.py": ("tests/evaluation/test_ranks.py",),
    "evaluation/baselines.py": ("tests/evaluation/test_baselines.py",),
    "screening/job.py": ("tests/screening/test_screen.py",),
    "screening/proposal.py": ("tests/screening/test_proposal.py",),
    "evaluation/hits.py": ("tests/evaluation/test_hits.py",),
    "run/contexts.py": ("tests/run/test_contexts.py",),
    "data/joining.py": ("tests/data/test_joining.py",),
    "peers/task.py": ("tests/peers/test_task.py",),
    "peers/command.py": ("tests/peers/test_command.py",),
    "data/knowledge.py": ("tests/data/test_knowledge.py",),
    "data/cells.py": ("tests/data/test_sampler.py", "tests/training/test_steps.py", "tests/data/test_design.py"),
    "data/sampler.py": ("tests/data/test_sampler.py", "tests/training/test_steps.py"),
    "data/validation.py": ("tests/data/test_splits.py",),
    "training/validation.py": ("tests/training/test_validation.py",),
    "training/fit.py": ("tests/training/test_validation.py",),
    "training/headroom.py": ("tests/training/test_headroom.py",),
    "training/steps.py": ("tests/training/test_steps.py",),
    "training/trainer.py": ("tests/training/test_fit.py",),
    "run/scale.py": ("tests/run/test_scale.py",),
    "screening/identification.py": ("tests/screening/test_identification.py",),
    "config.py": ("tests/test_config.py",),
    "run/predict.py": (
        "tests/run/test_predict.py",
        "tests/training/test_conditions.py::test_a_held_out_cell_type_starts_from_its_own_controls",
    ),
}
"""The tests that mirror each file."""
LIBRARIES = ("torch", "lightning", "scanpy", "pytest", "pandas", "scipy.stats", "sklearn.decomposition", "beartype")
ENOUGH = 3
"""Failed tests after which a mutant's run ends."""
PATIENCE = 900
"""Seconds after which a mutant counts as killed: it hangs."""


@dataclass(frozen=True)
class Mutant:
    """One text of one file, and what stands there instead."""

    what: str
    file: str
    text: str
    instead: str

    @property
    def path(self) -> Path:
        """The file that is changed, in the tree."""
        return SOURCES / self.file

    def applied(self, source: str) -> str:
        """The source with the text changed; SystemExit where it is not there exactly once."""
        if (found := source.count(self.text)) != 1:
            raise SystemExit(
                f"mutant '{self.what}': its text is found {found} times in {self.file}, expected once; "
                f"follow the code in {LIST.name}: {self.text}"
            )
        return source.replace(self.text, self.instead)


def listed() -> list[Mutant]:
    """The mutants of the list."""
    named = tomllib.loads(LIST.read_text())
    return [Mutant(what, file, *texts) for file, mutants in named.items() for what, texts in mutants.items()]


def copied(work: Path) -> Path:
    """A copy of the tracked and new files of the tree."""
    tree = work / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src", "tests", "pyproject.toml", "docs"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    return tree


def killers(tree: Path, tests: Sequence[str]) -> list[str]:
    """Which of the tests fail first in `tree`, without their parameters; "hangs" or "nothing runs" where none can say."""
    report = tree / "report.txt"
    report.unlink(missing_ok=True)
    worker = multiprocessing.get_context("fork").Process(target=_run, args=(tree, list(tests), report))
    worker.start()
    worker.join(PATIENCE)
    if worker.is_alive():
        worker.kill()
        worker.join()
        return ["hangs"]
    if not report.is_file():
        return ["nothing runs"]
    return sorted(set(report.read_text().split("\n")) - {""})


def _run(tree: Path, tests: list[str], report: Path) -> None:
    """In a fork: the tests of the tree, by its own sources; the names of those that fail go into a file."""
    import pytest

    class Failed:
        def __init__(self) -> None:
            self.names: list[str] = []

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                self.names.append(report.nodeid.split("[")[0].removeprefix("tests/"))

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                self.names.append(f"{report.nodeid.removeprefix('tests/')} (not collected)")

    os.chdir(tree)
    sys.path[:0] = [str(tree / "src")]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    failed = Failed()
    options = ["-q", "--tb=no", f"--maxfail={ENOUGH}", "-p", "no:cacheprovider", "-W", "ignore:Module already imported"]
    code = pytest.main([*options, *(test for test in tests if (tree / test.split("::")[0]).exists())], plugins=[failed])
    if code in (0, 1) or failed.names:
        report.write_text("\n".join(failed.names))


def digest(tree: Path, mutant: Mutant) -> str:
    """Of what decides what becomes of a mutant: its file, the tests that mirror it, its text."""
    files = [tree / mutant.path, *(tree / test.split("::")[0] for test in TESTS[mutant.file])]
    parts = [path.read_bytes() for path in files if path.is_file()]
    return hashlib.sha256(b"\0".join([*parts, repr(mutant).encode()])).hexdigest()


def table(found: dict[str, list[str]]) -> str:
    """The page: a row for each mutant that was run."""
    killed = sum(map(bool, found.values()))
    rows = [
        f"| {mutant.what} | `{mutant.file}` | {', '.join(by) or '**none**'} |"
        for mutant in listed()
        if (by := found.get(mutant.what)) is not None
    ]
    about = (
        "Made by `python benchmarks/mutants.py`, which changes one text at a time in a copy of the tree and runs the tests "
        f"that mirror its file until {ENOUGH} have failed; the golden files are left out."
    )
    counted = f"**{killed} of the {len(found)}** mutants that were run are killed; the list has {len(listed())}."
    head = ["| mutant | file | tests that fail first |", "|---|---|---|"]
    return "\n".join(
        ["# Mutants: does a test notice a line that is wrong?", "", about, "", counted, "", *head, *rows, ""]
    )


def main() -> None:
    """Run the mutants that are asked for and write the page of all that are known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="mutants whose name holds one of these texts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    for mutant in (mutants := listed()):
        mutant.applied((ROOT / mutant.path).read_text())
    for library in LIBRARIES:
        importlib.import_module(library)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "mutants.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        tree = copied(Path(scratch))
        digests = {mutant.what: digest(tree, mutant) for mutant in mutants}
        known = {what: row for what, row in known.items() if row["digest"] == digests.get(what)}
        left = [
            mutant for mutant in mutants if mutant.what not in known and any(w in mutant.what for w in options.only)
        ]
        if red := killers(tree, sorted({test for mutant in left for test in TESTS[mutant.file]})) if left else []:
            raise SystemExit(f"tests fail without any mutant: {', '.join(red)}")
        for mutant in left:
            path = tree / mutant.path
            source = path.read_text()
            path.write_text(mutant.applied(source))
            by = killers(tree, TESTS[mutant.file])
            path.write_text(source)
            known[mutant.what] = {"digest": digests[mutant.what], "by": by}
            print(f"{mutant.what}: {', '.join(by) or 'SURVIVES'}", flush=True)
            kept.write_text(json.dumps(known, indent=1))
    (options.out / "mutants.md").write_text(table({what: row["by"] for what, row in known.items()}))


if __name__ == "__main__":
    main()
