"""The other commands: inspect, screen, identify, evaluate, predict, simulate, benchmark, convert-official, download."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bad_input.bench import Bench, Case, truncated
from bad_input.screens import Change, genes, labels, values
from scdfm.run import Run, shards


def predicted(change: Change) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm evaluate` of a changed prediction."""
    return lambda bench: bench.evaluate(predicted=bench.screen_with(change, bench.predicted))


def folder(bench: Bench) -> Path:
    """A folder with the name of a file."""
    path = bench.folder / "p.h5ad"
    path.mkdir()
    return path


def inspect(change: Change) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm inspect` of a changed screen."""
    return lambda bench: ["inspect", bench.screen_with(change)]


def screen(*words: Any, run: Any = None) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm screen` with more words."""
    return lambda bench: ["screen", run or bench.run, "--out", bench.folder / "s", "--cells", "3", "--quiet", *words]


def ranked(name: str, content: str | bytes) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm screen --rank-by signature:FILE`."""
    return lambda bench: screen("--all", "--rank-by", f"signature:{bench.file(name, content)}")(bench)


def screened(change: Callable[[Path], Any], *words: Any) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm identify --screen` of a finished screen that was changed."""

    def command(bench: Bench) -> Sequence[Any]:
        copy = bench.folder / "screened"
        shutil.copytree(bench.screened, copy)
        change(copy)
        return identify("--screen", copy, *words)(bench)

    return command


def identify(*words: Any, observed: Any = None) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm identify` of the predicted cells."""
    return lambda bench: [
        "identify", bench.run, observed or bench.predicted, "--cells", "3", "--order", "1", "--quiet", *words,
    ]  # fmt: skip


def observed(change: Change) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm identify` of changed cells."""
    return lambda bench: identify(observed=bench.screen_with(change))(bench)


def parts(change: Callable[[Path], Any], *words: Any) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict --resume` of a prediction that stopped before its end and whose parts were changed."""

    def command(bench: Bench) -> Sequence[Any]:
        out, run = bench.folder / "p.h5ad", Run.load(bench.run)
        started = shards.shards_of(run, out, None, None, 4, None, 0, resume=False)
        started.predict([0])
        change(started.folder)
        return bench.predict("--cells", "4", "--resume", *words)

    return command


def names(bench: Bench) -> Path:
    """A file of one condition, whose covariate holds a comma."""
    return bench.file("names.txt", f"{bench.targets[0]}|cell_type=A, B\n")


def store(bench: Bench) -> Path:
    """A zarr store of the user's own."""
    path = bench.folder / "p.zarr"
    shutil.copytree(bench.screened, path)
    return path


INSPECTED = [
    Case("inspect: a good screen", lambda b: ["inspect", b.designed], None),
    Case("inspect: no such file", lambda b: ["inspect", b.folder / "none.h5ad"], "does not exist"),
    Case("inspect: text", lambda b: ["inspect", b.file("x.h5ad", "x")], "is not an h5ad"),
    Case("inspect: a folder", lambda b: ["inspect", b.folder], "cannot be read as AnnData"),
    Case("inspect: NaN", inspect(values(lambda x: x * np.nan)), None),
    Case("inspect: negative values", inspect(values(lambda x: -x)), None),
    Case("inspect: no cells", inspect(lambda adata: adata[:0].copy()), "holds 0 cells"),
    Case("inspect: no columns", inspect(lambda adata: setattr(adata, "obs", adata.obs[[]])), None),
    Case("inspect: no label at all", inspect(labels(lambda s: "")), None),
    Case("inspect: hostile labels", inspect(labels(lambda s: "<script>\n'; rm -rf $HOME '" + s)), None),
    Case("inspect: malformed labels", inspect(labels(lambda s: s + "+")), None),
    Case("inspect: JSON of a screen with NaN", lambda b: [*inspect(values(lambda x: x * np.nan))(b), "--json"], None),
]  # fmt: skip

SCREENED = [
    Case("screen: no run", screen("--all", run="none"), "run folder .*none does not exist"),
    Case("screen: runs of other conditions", lambda b: screen(b.designed_run, "--all")(b), "has no covariate 'cell_type'"),
    Case("screen: nothing chosen", screen(), "choose exactly one of --targets"),
    Case("screen: one cell", screen("--all", "--cells", "1"), "expected at least 2, found 1"),
    Case("screen: order 4", screen("--all", "--order", "4"), "order 4: expected 1"),
    Case("screen: order 0", screen("--all", "--order", "0"), "order 0: expected 1"),
    Case("screen: pairs of one target", lambda b: screen("--targets", b.targets[0])(b),
         "needs at least 2 targets, found 1"),
    Case("screen: nothing but commas", screen("--targets", ",,"), "needs at least 2 targets, found 0"),
    Case("screen: an unknown target", screen("--targets", "X,Y"), "target 'X' .*is unknown"),
    Case("screen: control", screen("--conditions", "control"), "expected perturbed ones"),
    Case("screen: a malformed condition", screen("--conditions", "A++B"), "found an empty one"),
    Case("screen: propose below 0", screen("--all", "--propose", "-1"), "propose -1.*expected at least 0"),
    Case("screen: a setting that is none", screen("--all", "--setting", "K562"), "expected KEY=VALUE"),
    Case("screen: a setting the run knows not", screen("--all", "--setting", "cell=K562"), "covariate 'cell' is unknown"),
    Case("screen: without the run's setting", lambda b: screen("--all", run=b.designed_run)(b),
         "has no covariate 'cell_type'"),
    Case("screen: a seed of text", screen("--all", "--seed", "x"), "--seed"),
    Case("screen: rank by nothing", screen("--all", "--rank-by", ""), "expected effect, interaction"),
    Case("screen: toward no file", screen("--all", "--rank-by", "toward:none.h5ad"), "none.h5ad.* does not exist"),
    Case("screen: a signature that is missing", screen("--all", "--rank-by", "signature:none.txt"),
         "none.txt cannot be read"),
    Case("screen: a signature of nothing", ranked("up.txt", "\n"), "holds no name"),
    Case("screen: a binary signature", ranked("up.txt", b"\xff\xfe"), "cannot be read"),
    Case("screen: a signature of other genes", ranked("up.txt", "NOPE\n"), "none of its 1 genes is among the run's"),
    Case("screen: controls of text", lambda b: screen("--all", "--controls", b.file("c.h5ad", "x"))(b), "is not an h5ad"),
    Case("screen: out is a file", lambda b: screen("--all", "--out", b.file("f", "x"))(b), "expected a folder to create"),
    Case("screen: resume of other cells", lambda b: screen("--all", "--resume", "--out", b.screened, "--cells", "9")(b),
         "was started with other cells"),
    Case("screen: resume of other conditions",
         lambda b: screen("--all", "--order", "1", "--resume", "--out", b.screened)(b),
         "was started with other names"),
    Case("identify: a good screen", screened(lambda path: None), None),
    Case("identify: text", lambda b: identify(observed=b.file("x.h5ad", "x"))(b), "is not an h5ad"),
    Case("identify: NaN", observed(values(lambda x: x * np.nan)), "expected a finite number"),
    Case("identify: other genes", observed(genes(lambda n: [f"x{name}" for name in n])), "gene"),
    Case("identify: no cells", observed(lambda adata: adata[:0].copy()), "holds no cells"),
    Case("identify: an unknown condition", lambda b: identify("--condition", "NOPE", observed=b.screen)(b),
         "condition 'NOPE' is not measured"),
    Case("identify: an unknown target", identify("--targets", "NOPE"), "target 'NOPE'"),
    Case("identify: one cell", identify("--cells", "1"), "cells 1, expected at least 2"),
    Case("identify: an empty shortlist", identify("--shortlist", "0"), "shortlist 0.*expected at least"),
    Case("identify: order 9", identify("--order", "9"), "order 9: expected 1"),
    Case("identify: a screen that is none", lambda b: identify("--screen", b.folder)(b),
         "is not the folder of a screen"),
    Case("identify: a screen of another run",
         lambda b: ["identify", b.other_run, b.predicted, "--screen", b.screened, "--quiet"],
         "was made by other runs"),
    Case("identify: a screen without a shard", screened(lambda path: [x.unlink() for x in path.rglob("0000*")]),
         "is not complete"),
    Case("identify: a shard cut short", screened(lambda path: [truncated(x) for x in path.rglob("0000*")]),
         "cannot be read|damaged"),
    Case("identify: a screen's record cut short", screened(lambda path: truncated(next(path.glob("screen*.json")))),
         "cannot be read|damaged"),
    Case("identify: out into no folder", identify("--out", "none/found.csv"), "does not exist; create it first"),
]  # fmt: skip

PREDICTED = [
    Case("predict: a file of names", lambda b: b.predict("--conditions", f"@{names(b)}", run=b.designed_run), None),
    Case("predict: a file of names that is missing", lambda b: b.predict("--conditions", "@none.txt"),
         "none.txt cannot be read"),
    Case("predict: a file of names, binary", lambda b: b.predict("--conditions", f"@{b.file('n.txt', bytes([255, 254]))}"),
         "n.txt cannot be read"),
    Case("screen: a file of names", lambda b: screen("--conditions", f"@{names(b)}", run=b.designed_run)(b), None),
    Case("predict: to csv", lambda b: b.predict("--out", b.folder / "p.csv"), r"ends in \.h5ad or \.zarr"),
    Case("predict: to zarr", lambda b: b.predict("--out", b.folder / "p.zarr"), None),
    Case("predict: to a zarr that is there", lambda b: b.predict("--out", store(b)),
         "exists; choose another name, or pass"),
    Case("predict: over a folder of other things", lambda b: b.predict("--overwrite", "--out", store(b)),
         "is a folder that holds no zarr store"),
    Case("predict: resume of nothing", lambda b: b.predict("--resume"), None),
    Case("predict: resume", parts(lambda folder: None), None),
    Case("predict: resume with another seed", parts(lambda folder: None, "--seed", "1"), "was started with other seed"),
    Case("predict: resume of a broken request", parts(lambda folder: truncated(folder / "request.json")),
         "request.json cannot be read as JSON"),
    Case("predict: resume of a shard cut short", parts(lambda folder: truncated(folder / "000000.h5ad")),
         "000000.h5ad cannot be read .*remove it and repeat with --resume"),
    Case("predict: resume of a shard of text", parts(lambda folder: (folder / "000000.h5ad").write_text("x")),
         "000000.h5ad cannot be read .*remove it and repeat with --resume"),
    Case("predict: without the run's covariate", lambda b: b.predict("--conditions", b.targets[0], run=b.designed_run),
         "has no covariate 'cell_type'"),
    Case("predict: an unknown value",
         lambda b: b.predict("--conditions", f"{b.targets[0]}|cell_type=X", run=b.designed_run),
         "'X' is no known value of covariate 'cell_type'"),
    Case("predict: a dose of a run without", lambda b: b.predict("--conditions", f"{b.targets[0]}@1"),
         "has a dose, but no training"),
    Case("predict: a time of a run without", lambda b: b.predict("--conditions", f"{b.targets[0]}|time=3"),
         "has a time, but no training"),
]  # fmt: skip

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
    Case("an argument missing", lambda b: ["inspect"], "Missing argument"),
]  # fmt: skip
