"""The other commands: evaluate, predict, simulate, benchmark, convert-official, download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bad_input.bench import Bench, Case
from bad_input.screens import Change, genes, labels, values


def predicted(change: Change) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm evaluate` of a changed prediction."""
    return lambda bench: bench.evaluate(predicted=bench.screen_with(change, bench.predicted))


def folder(bench: Bench) -> Path:
    """A folder with the name of a file."""
    path = bench.folder / "p.h5ad"
    path.mkdir()
    return path


CASES = [
    Case("evaluate: no such prediction", lambda b: b.evaluate(predicted=b.folder / "none.h5ad"), "does not exist"),
    Case("evaluate: text", lambda b: b.evaluate(predicted=b.file("p.h5ad", "x")), "is not an h5ad"),
    Case("evaluate: no gene in common", predicted(genes(lambda n: [f"x{name}" for name in n])), "share 0 gene names"),
    Case("evaluate: no condition in common", predicted(labels(lambda s: "x" + s)), "share no condition"),
    Case("evaluate: NaN", predicted(values(lambda x: x * np.nan)), "expected a finite number"),
    Case("evaluate: a protocol that is none", lambda b: b.evaluate("--protocol", "mine"), "protocol 'mine'"),
    Case("evaluate: a run that is none", lambda b: b.evaluate("--run", b.folder), "is not a run folder"),
    Case("evaluate: out is a file", lambda b: b.evaluate("--out", b.file("f", "x")), "expected a folder to create"),
    Case("predict: an unknown target", lambda b: b.predict("--conditions", "<b>+NOPE"), "is unknown"),
    Case("predict: control", lambda b: b.predict("--conditions", "control"), "nothing to predict"),
    Case("predict: no cells", lambda b: b.predict("--cells", "0"), "expected at least 1, found 0"),
    Case("predict: out is a folder", lambda b: b.predict("--overwrite", "--out", folder(b)), "is a folder; expected"),
    Case("predict: out of 300 letters", lambda b: b.predict("--out", b.folder / f"{'x' * 300}.h5ad"), "cannot be written"),
    Case("predict: controls of text", lambda b: b.predict("--controls", b.file("c.h5ad", "x")), "is not an h5ad"),
    Case("simulate: no genes", lambda b: ["simulate", b.folder / "s.h5ad", "--genes", "0"], "genes"),
    Case("simulate: into no folder", lambda b: ["simulate", b.folder / "no" / "s.h5ad"], "does not exist; create it first"),
    Case("benchmark: wild folds", lambda b: ["benchmark", b.screen, "--out", b.folder / "o", "--folds", "9-x"],
         "expected numbers such as 0-4"),
    Case("benchmark: an unknown model", lambda b: ["benchmark", b.screen, "--out", b.folder / "o", "--models", "huge"],
         "model 'huge': expected"),
    Case("download: an unknown set", lambda b: ["download", "../../etc/passwd"], "expected one of norman, combosciplex"),
    Case("convert: text", lambda b: ["convert-official", b.file("m.pt", "x"), "--vocab", b.file("v.json", "{}"),
         "--graph", b.file("g.pt", "x"), "--out", b.folder / "o"], "m.pt is"),
    Case("a command that is none", lambda b: ["evaluat"], "No such command 'evaluat'"),
    Case("an argument missing", lambda b: ["fit"], "Missing argument"),
]  # fmt: skip
