"""Run folders: files missing, cut short, renamed, swapped; tensors and manifests edited."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bad_input.bench import Bench, Case, truncated

CONTROLS, FEATURES = "controls.h5ad", "features.safetensors"
PRIOR, SPREAD = "prior.safetensors", "spread.safetensors"


def manifest(**values: Any) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on a run whose manifest has other values."""
    return lambda bench: bench.predict(run=bench.manifest_with(lambda found: found.update(values)))


def within(key: str, **values: Any) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on a run whose manifest has other values within `key`."""
    return lambda bench: bench.predict(run=bench.manifest_with(lambda found: found[key].update(values)))


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on a run with an edited manifest."""
    return lambda bench: bench.predict(run=bench.manifest_with(change))


def model(**values: Any) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on a run whose manifest says other options of the model."""
    return edited(lambda found: found["config"]["model"].update(values))


def without(*keys: str) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on a run whose manifest lacks a key."""

    def change(found: dict[str, Any]) -> None:
        for key in keys[:-1]:
            found = found[key]
        del found[keys[-1]]

    return lambda bench: bench.predict(run=bench.manifest_with(change))


def files(change: Callable[[Path], Any], sign: bool = False) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on a run whose files were changed."""
    return lambda bench: bench.predict(run=bench.run_with(change, sign))


def tensors(
    change: Callable[[dict[str, Any]], Any], file: str = "weights.safetensors"
) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on a run whose tensors were changed, digests with them."""
    return lambda bench: bench.predict(run=bench.weights_with(change, file))


def text(name: str, content: str | bytes, sign: bool = True) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm evaluate` with a run one of whose files has other content."""

    def change(run: Path) -> None:
        (run / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return lambda bench: bench.evaluate("--run", bench.run_with(change, sign))


def first(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], None]:
    """A change of the first tensor."""

    def edit(found: dict[str, Any]) -> None:
        name = sorted(found)[0]
        found[name] = change(found[name]).contiguous()

    return edit


def linked(name: str) -> Callable[[Path], None]:
    """The file of the run becomes a link to a copy outside."""

    def change(run: Path) -> None:
        shutil.move(run / name, run.parent / name)
        (run / name).symlink_to(run.parent / name)

    return change


def swapped(name: str) -> Callable[[Bench], Sequence[Any]]:
    """A file of another run."""

    def command(bench: Bench) -> Sequence[Any]:
        return bench.predict(run=bench.run_with(lambda run: shutil.copy(bench.other_run / name, run / name)))

    return command


def controls(change: Callable[[ad.AnnData], Any]) -> Callable[[Bench], Sequence[Any]]:
    """Other control cells, signed."""

    def edit(run: Path) -> None:
        adata = ad.read_h5ad(run / CONTROLS)
        changed = change(adata)
        (adata if changed is None else changed).write_h5ad(run / CONTROLS)

    return files(edit, sign=True)


def nan_controls(run: Path) -> None:
    with h5py.File(run / CONTROLS, "r+") as file:
        file["X/data"][0] = np.nan


def resumed(change: Callable[[Bench, Path], Any]) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm fit --resume` of a run that is not finished and has a changed checkpoint."""

    def command(bench: Bench) -> Sequence[Any]:
        run = bench.run_copy()
        values = json.loads((run / "manifest.json").read_text())
        values |= {"digests": {}, "result": {}}
        (run / "manifest.json").write_text(json.dumps(values))
        change(bench, run / "checkpoints" / "last.safetensors")
        return bench.fit("--resume", out=run)

    return command


def self_loop(run: Path) -> None:
    (run / "weights.safetensors").unlink()
    (run / "weights.safetensors").symlink_to("weights.safetensors")


def emptied(bench: Bench) -> Sequence[Any]:
    return bench.predict(run=bench.folder)


def designed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on the run of every column, with an edited manifest."""
    return lambda bench: bench.predict(run=bench.manifest_with(change, bench.designed_run))


def described(change: Callable[[dict[str, Any]], Any]) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on a run whose features were changed, digests with them."""
    return lambda bench: bench.predict(run=bench.weights_with(change, FEATURES, bench.designed_run))


def designed_files(change: Callable[[Path], Any], sign: bool = False) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on the run of every column whose files were changed."""
    return lambda bench: bench.predict(run=bench.run_with(change, sign, bench.designed_run))


def prior(change: Callable[[dict[str, Any]], Any]) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on a run whose prior has other arrays, its words kept, digests with them."""
    return rewritten(PRIOR, change)


def rewritten(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on a run of which a file has other tensors, its metadata kept, digests with them."""

    def edit(run: Path) -> None:
        with safe_open(run / name, framework="pt") as handle:
            words, found = handle.metadata(), {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        change(found)
        save_file(found, run / name, metadata=words)

    return files(edit, sign=True)


def spread(change: Callable[[dict[str, Any]], Any]) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm predict` on a run whose spread has other tensors, its words kept, digests with them."""
    return rewritten(SPREAD, change)


def less(name: str) -> Callable[[dict[str, Any]], Any]:
    """One row of a tensor less."""
    return lambda found: found.update({name: found[name][1:].contiguous()})


PRIORS = [
    *(Case(f"{name}: {what}", files(change, sign), words)
      for name in ("prior.safetensors", "spread.safetensors")
      for what, change, sign, words in (
          ("missing", lambda run, name=name: (run / name).unlink(), False, f"{name} is missing"),
          ("cut short", lambda run, name=name: truncated(run / name), False, "digest differs"),
          ("cut short and signed", lambda run, name=name: truncated(run / name), True, f"{name} cannot be read as"),
          ("empty and signed", lambda run, name=name: truncated(run / name, 0), True, f"{name} cannot be read as"),
          ("the weights", lambda run, name=name: shutil.copy(run / "weights.safetensors", run / name), True, name),
      )),
    Case("spread: of another run", swapped(SPREAD), "spread.safetensors is not the file of this run"),
    Case("prior: the spread", files(lambda run: shutil.copy(run / SPREAD, run / PRIOR), True), "cannot be read as a prior"),
    Case("spread: the prior", files(lambda run: shutil.copy(run / PRIOR, run / SPREAD), True),
         "cannot be read as the spread"),
    Case("prior: no digest", edited(lambda m: m["digests"].pop(PRIOR)), "does not list prior.safetensors"),
    Case("spread: no digest", edited(lambda m: m["digests"].pop(SPREAD)), "does not list spread.safetensors"),
    *(Case(f"prior: a row of {name} less", prior(less(name)), "cannot be read as a prior .*expected")
      for name in ("dual", "own_dual", "components", "responses", "noise", "axes", "powers", "profiles", "descriptors")),
    Case("prior: dual NaN", prior(lambda t: t["dual"].fill_(float("nan"))), "'dual' is .* finite"),
    Case("prior: no dual", prior(lambda t: t.pop("dual")), "cannot be read as a prior"),
    *(Case(f"spread: a row of {name} less", spread(less(name)), f"cannot be read as the spread .*'{name}'")
      for name in ("zeros", "values", "deviation")),
    Case("spread: no donors", spread(lambda t: t.pop("donors")), "cannot be read as the spread"),
    Case("spread: donors of fewer", spread(less("donors")), "'settings' lead beyond the donors"),
    Case("spread: zeros of more than all", spread(lambda t: t["zeros"].fill_(1.5)), "those of no distribution"),
    Case("spread: values that fall", spread(lambda t: t.update(values=t["values"].flip(2).contiguous())),
         "those of no distribution"),
    Case("spread: a deviation of 0", spread(lambda t: t["deviation"].zero_()), "'deviation' is not above 0"),
    Case("spread: float64", spread(lambda t: t.update(zeros=t["zeros"].double())), "'zeros' is torch.float64"),
    Case("spread: NaN", spread(lambda t: t["values"].fill_(float("nan"))), "'values' is .* finite"),
]  # fmt: skip

DESIGNED = [
    Case("a good run of every column", lambda bench: bench.predict(run=bench.designed_run), None),
    Case("features missing", designed_files(lambda run: (run / FEATURES).unlink()), "features.safetensors is missing"),
    Case("features cut short", designed_files(lambda run: truncated(run / FEATURES)), "digest differs"),
    Case("features cut short and signed", designed_files(lambda run: truncated(run / FEATURES), True),
         "cannot be read as safetensors"),
    Case("features: no values", described(lambda t: t.pop("values")), "tensor 'values' is missing"),
    Case("features: no centre", described(lambda t: t.pop("centre")), "tensor 'centre' is missing"),
    Case("features: no factor", described(lambda t: t.pop("factor")), "tensor 'factor' is missing"),
    Case("features: a tensor more", described(lambda t: t.update(odd=torch.zeros(2))), "tensor 'odd' is unknown"),
    Case("features: a row less", described(lambda t: t.update(values=t["values"][1:].contiguous())),
         r"tensor 'values' is torch.float32 \[2, 2\], expected .* of the 3 names"),
    Case("features: a column less", described(lambda t: t.update(values=t["values"][:, 1:].contiguous())),
         r"tensor 'centre' is torch.float32 \[2\], expected"),
    Case("features: a column less everywhere",
         described(lambda t: t.update({n: v[..., 1:].contiguous() for n, v in t.items() if n != "known"})),
         "features.safetensors: 1 features, expected 2 as the manifest says"),
    Case("features: values of one dimension", described(lambda t: t.update(values=t["values"][:, 0].contiguous())),
         r"tensor 'values' is torch.float32 \[3\], expected"),
    Case("features: known of numbers", described(lambda t: t.update(known=t["known"].float())),
         "tensor 'known' is torch.float32 .* expected truths"),
    Case("features: known of a name less", described(lambda t: t.update(known=t["known"][1:].contiguous())),
         "tensor 'known' is torch.bool .* expected truths"),
    Case("features: float64", described(lambda t: t.update(centre=t["centre"].double())),
         "tensor 'centre' is torch.float64"),
    Case("features: NaN", described(lambda t: t["values"].fill_(float("nan"))),
         "'values' holds values that are not finite"),
    Case("features: an infinite factor", described(lambda t: t["factor"].fill_(float("inf"))),
         "'factor' holds values that are not"),
    Case("manifest: no digest of the features", designed(lambda m: m["digests"].pop(FEATURES)),
         "does not list features.safetensors"),
    Case("manifest: features null", designed(lambda m: m.update(features=None)), "does not fit the manifest's model"),
    Case("manifest: features of a word", designed(lambda m: m.update(features="x")), "damaged at features"),
    Case("manifest: features with a key more", designed(lambda m: m["features"].update(x=1)), "damaged at features.x"),
    Case("manifest: features of numbers", designed(lambda m: m["features"].update(names=[1, 2, 3])),
         "damaged at features.names.0"),
    Case("manifest: a name of features less", designed(lambda m: m["features"]["names"].pop()),
         "of the 2 names of the manifest"),
    Case("manifest: a name of features twice", designed(lambda m: m["features"].update(names=["a", "a", "b"])),
         "'a' stands in more than one row"),
    Case("manifest: design null", designed(lambda m: m.update(design=None)), "damaged at design"),
    Case("manifest: design with a key more", designed(lambda m: m["design"].update(x=1)), "damaged at design"),
    Case("manifest: design without a key", designed(lambda m: m["design"].pop("dose_key")), "damaged at design"),
    Case("manifest: design of numbers", designed(lambda m: m["design"].update(covariates=3)), "damaged at design"),
    Case("manifest: design without the covariate", designed(lambda m: m["design"].update(covariates=[])),
         "conditions holds covariates that design does not name"),
    Case("manifest: design with another column", designed(lambda m: m["design"].update(match_controls=["plate"])),
         "match_controls column 'plate' is not in obs"),
    Case("manifest: design with another fallback", designed(lambda m: m["design"].update(control_fallback="some")),
         "damaged at design .*expected error or all"),
    Case("manifest: conditions null", designed(lambda m: m.update(conditions=None)), "damaged at conditions"),
    Case("manifest: conditions with a key more", designed(lambda m: m["conditions"].update(x=1)),
         "damaged at conditions.x"),
    Case("manifest: a covariate without values", designed(lambda m: m["conditions"]["covariates"].update(cell_type=[])),
         "damaged at conditions.covariates.cell_type"),
    Case("manifest: a covariate's value more", designed(lambda m: m["conditions"]["covariates"]["cell_type"].append("D")),
         "does not fit the manifest's model"),
    Case("manifest: a covariate less", designed(lambda m: m["conditions"].update(covariates={})),
         "covariate 'cell_type' is unknown"),
    Case("manifest: dose reference of text", designed(lambda m: m["conditions"].update(dose_reference="much")),
         "damaged at conditions.dose_reference"),
    Case("manifest: dose reference 0", designed(lambda m: m["conditions"].update(dose_reference=0)),
         "damaged at conditions.dose_reference"),
    Case("manifest: dose reference NaN", designed(lambda m: m["conditions"].update(dose_reference=float("nan"))),
         "damaged at conditions.dose_reference"),
    Case("manifest: no dose reference", designed(lambda m: m["conditions"].update(dose_reference=None)),
         "has a dose, but no training"),
    Case("manifest: no time reference", designed(lambda m: m["conditions"].update(time_reference=None)),
         "has a time, but no training"),
    Case("manifest: time reference infinite", designed(lambda m: m["conditions"].update(time_reference=float("inf"))),
         "damaged at conditions.time_reference"),
    Case("manifest: control populations of numbers", designed(lambda m: m.update(control_populations=[1])),
         "damaged at control_populations.0"),
    Case("manifest: a control population of a perturbation", designed(lambda m: m.update(control_populations=["A"])),
         "'A' of control_populations is no control population"),
    Case("manifest: a control population malformed", designed(lambda m: m.update(control_populations=["+"])),
         "damaged at"),
]  # fmt: skip

CASES = [
    Case("a good run", lambda bench: bench.predict(), None),
    Case("run: no folder", lambda bench: bench.predict(run=bench.folder / "none"), "run folder .* does not exist"),
    Case("run: a file", lambda bench: bench.predict(run=bench.screen), "run folder .* does not exist"),
    Case("run: an empty folder", emptied, "is not a run folder: manifest.json is missing"),
    Case("weights missing", files(lambda run: (run / "weights.safetensors").unlink()), "weights.safetensors is missing"),
    Case("weights renamed", files(lambda run: (run / "weights.safetensors").rename(run / "model.safetensors")),
         "weights.safetensors is missing"),
    Case("weights cut short", files(lambda run: truncated(run / "weights.safetensors")), "digest differs"),
    Case("weights cut short and signed", files(lambda run: truncated(run / "weights.safetensors"), True),
         "cannot be read as safetensors"),
    Case("weights of no bytes, signed", files(lambda run: truncated(run / "weights.safetensors", 0), True),
         "cannot be read as safetensors"),
    Case("weights with a header of 2**63 bytes",
         files(lambda run: (run / "weights.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + b"{}"), True),
         "cannot be read as safetensors"),
    Case("weights that are a pickle", files(lambda run: torch.save({"a": 1}, run / "weights.safetensors"), True),
         "cannot be read as safetensors"),
    Case("weights of another run", swapped("weights.safetensors"), "weights.safetensors is not the file of this run"),
    Case("means of another run", files(lambda run: (run / "means.csv").write_text("x")),
         "means.csv is not the file of this run"),
    Case("manifest of another run", swapped("manifest.json"), "is not the file of this run"),
    Case("weights a link out of the folder", files(linked("weights.safetensors")),
         "is a link that leads out of the run folder"),
    Case("controls a link out of the folder", files(linked(CONTROLS)), "controls.h5ad is a link that leads out"),
    Case("weights a link to themselves", files(self_loop), "weights.safetensors is missing"),
    Case("weights: a tensor lacks", tensors(lambda t: t.pop(sorted(t)[0])), r"tensor '.*' is missing \(1 such\)"),
    Case("weights: a tensor more", tensors(lambda t: t.update(odd=torch.zeros(2))), "tensor 'odd' is unknown"),
    Case("weights: another shape", tensors(first(lambda t: t[..., :1])), r"tensor '.*' is torch.float32 \[.*\], expected"),
    Case("weights: float64", tensors(first(torch.Tensor.double)), "is torch.float64 .*, expected torch.float32"),
    Case("weights: int64", tensors(first(torch.Tensor.long)), "is torch.int64 .*, expected torch.float32"),
    Case("weights: complex", tensors(first(lambda t: t.to(torch.complex64))),
         "is torch.complex64 .*, expected torch.float32"),
    Case("weights: nan", tensors(first(lambda t: t * float("nan"))), "holds values that are not finite"),
    Case("graph: no edges", tensors(lambda t: (t.pop("edges"), t.update(other=torch.zeros(1))), "graph.safetensors"),
         "expected the tensor 'edges'"),
    Case("graph: another shape", tensors(first(lambda t: t.T), "graph.safetensors"), r"whole numbers of shape \[2, E\]"),
    Case("graph: floats", tensors(first(torch.Tensor.float), "graph.safetensors"), "whole numbers"),
    Case("graph: beyond the vocabulary", tensors(first(lambda t: t + 1000), "graph.safetensors"),
         "an edge leads to a token beyond the"),
    Case("graph: negative", tensors(first(lambda t: t - 1000), "graph.safetensors"), "an edge leads to a token beyond the"),
    Case("means: other genes", text("means.csv", ",A\ncontrol,1\n"), "its columns are not the .* genes of the run"),
    Case("means: empty", text("means.csv", ""), "means.csv cannot be read as a table"),
    Case("means: binary", text("means.csv", b"\xff\xfe\x00"), "means.csv cannot be read as a table"),
    Case("log: binary", text("log.csv", b"\xff\xfe\x00", sign=False), "log.csv cannot be read as a table"),
    Case("controls: NaN", files(nan_controls, True), "expected a finite number"),
    Case("controls: a gene lacks", controls(lambda a: a[:, 1:].copy()), "1 of the run's [0-9]+ genes are missing"),
    Case("controls: another column", controls(lambda a: a.obs.columns.__class__ and setattr(a.obs, "columns", ["x"])),
         "column 'perturbation' is not in obs"),
    Case("controls: a pipe", files(lambda run: ((run / CONTROLS).unlink(), os.mkfifo(run / CONTROLS))),
         "controls.h5ad is missing"),
    Case("manifest: cut short", files(lambda run: truncated(run / "manifest.json")), "cannot be read as JSON"),
    Case("manifest: empty", files(lambda run: truncated(run / "manifest.json", 0)), "cannot be read as JSON"),
    Case("manifest: a list", files(lambda run: (run / "manifest.json").write_text("[1]")), "damaged at the whole"),
    Case("manifest: nested too deep", files(lambda run: (run / "manifest.json").write_text("[" * 100_000)),
         "cannot be read as JSON"),
    Case("manifest: binary", files(lambda run: (run / "manifest.json").write_bytes(b"\xff\xfe")), "cannot be read as JSON"),
    Case("manifest: a folder", files(lambda run: ((run / "manifest.json").unlink(), (run / "manifest.json").mkdir())),
         "cannot be read as JSON"),
    Case("manifest: unknown key", manifest(extra=1), r"damaged at extra \(Extra inputs"),
    Case("manifest: older format", manifest(format=6), "made before the first release"),
    Case("manifest: oldest format", manifest(format=2), "made before the first release"),
    Case("manifest: newer format", manifest(format=99), "made by a newer scdfm"),
    Case("manifest: next format", manifest(format=9), "made by a newer scdfm"),
    Case("manifest: format true", manifest(format=True), "damaged at format"),
    Case("manifest: format 0", manifest(format=0), "damaged at format"),
    Case("manifest: format NaN", manifest(format=float("nan")), "damaged at format"),
    Case("manifest: seed text", manifest(seed="0"), "damaged at seed"),
    Case("manifest: another seed", manifest(seed=5), "seed 5 is not the config's 0"),
    Case("manifest: config null", manifest(config=None), "damaged at config"),
    Case("manifest: config with an unknown key", within("config", speed=1), "damaged at config.speed"),
    Case("manifest: another width", model(width=1048576),
         "does not fit the manifest's model"),
    Case("manifest: a million layers", model(layers=10**6),
         "damaged at config.model.layers"),
    Case("manifest: vocabulary of numbers", manifest(vocabulary=[1, 2]), "damaged at vocabulary.0"),
    Case("manifest: vocabulary empty", manifest(vocabulary=[]), "vocabulary starts with"),
    Case("manifest: vocabulary longer", edited(lambda m: m["vocabulary"].append("new")),
         "does not fit the manifest's model"),
    Case("manifest: panel empty", manifest(panel=[]), "panel holds no gene"),
    Case("manifest: panel twice", edited(lambda m: m["panel"].append(m["panel"][0])),
         "or one twice"),
    Case("manifest: panel unknown", manifest(panel=["../../etc/passwd"]),
         "'../../etc/passwd' of panel is not in the vocabulary"),
    Case("manifest: targets null", manifest(targets=None), "damaged at targets"),
    Case("manifest: split without its digest", without("split", "digest"), "damaged at split .*digest"),
    Case("manifest: split edited", within("split", fold=3, test=["A+B"]), "it was edited"),
    Case("manifest: split with a wild fold", within("split", fold="x"), "damaged at split"),
    Case("manifest: split null", manifest(split=None), "damaged at split"),
    Case("manifest: scale without its total", without("scale", "target_sum"), "damaged at scale"),
    Case("manifest: scale NaN", within("scale", target_sum=float("nan")), "damaged at scale"),
    Case("manifest: scale of text", within("scale", declared="counts", target_sum="10000"), "damaged at scale"),
    Case("manifest: scale without counts", within("scale", target_sum=1e4), "target_sum goes with declared 'counts'"),
    Case("manifest: key null", manifest(perturbation_key=None), "damaged at perturbation_key"),
    Case("manifest: another key", manifest(perturbation_key="../x"), "column '../x' is not in obs"),
    Case("manifest: control a number", manifest(control=0), "damaged at control"),
    Case("manifest: data without digest", without("data", "digest"), "damaged at data"),
    Case("manifest: data of another type", manifest(data=[]), "damaged at data"),
    Case("manifest: versions without scdfm", without("versions", "scdfm"), "the version of scdfm is missing"),
    Case("manifest: result NaN", manifest(result={"val_wasserstein": float("nan")}), "damaged at result"),
    Case("manifest: result missing", without("result"), None),
    Case("manifest: digests empty", manifest(digests={}), "is not finished; continue it with fit --resume"),
    Case("manifest: digests null", manifest(digests=None), "damaged at digests"),
    Case("manifest: digest of text", within("digests", **{"means.csv": "zz"}), "digest differs"),
    Case("manifest: no digest of the weights", without("digests", "weights.safetensors"),
         "does not list weights.safetensors"),
    Case("manifest: no digest of the graph", without("digests", "graph.safetensors"), "does not list graph.safetensors"),
    Case("manifest: a file above the folder", within("digests", **{"../x": "0"}), "names an unknown file '../x'"),
    Case("manifest: a file by its whole path", within("digests", **{"/etc/passwd": "0"}),
         "names an unknown file '/etc/passwd'"),
    Case("resume: checkpoint cut short", resumed(lambda _, path: truncated(path)), "checkpoint .* cannot be read"),
    Case("resume: checkpoint that is a pickle", resumed(lambda _, path: torch.save({"a": 1}, path)),
         "checkpoint .* cannot be read"),
    Case("resume: weights for a checkpoint", resumed(lambda b, path: shutil.copy(b.run / "weights.safetensors", path)),
         "checkpoint .* cannot be read"),
    Case("resume: checkpoint of another run",
         resumed(lambda b, path: shutil.copy(b.other_run / "checkpoints" / "last.safetensors", path)), "is of another fit"),
]  # fmt: skip
