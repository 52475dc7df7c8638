"""Screens: names, values, forms and files of cells, given to `fit`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from bad_input.bench import Bench, Case, conditions, relabelled, truncated

Change = Callable[[ad.AnnData], Any]


def fit(change: Change, *more: Any) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm fit` on the good screen after `change`."""
    return lambda bench: bench.fit(*more, data=bench.screen_with(change))


def fit_edited(change: Callable[[h5py.File], Any], *more: Any) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm fit` on the good file after an edit by hand."""
    return lambda bench: bench.fit(*more, data=bench.screen_edited(change))


def values(make: Callable[[np.ndarray], Any]) -> Change:
    """A change of X, from the dense log1p values."""

    def change(adata: ad.AnnData) -> None:
        adata.X = make(adata.X.toarray().astype(np.float32))

    return change


def counts(make: Callable[[np.ndarray], Any]) -> Change:
    """A change of X, from the dense counts."""

    def change(adata: ad.AnnData) -> None:
        adata.X = make(adata.layers["counts"].toarray())

    return change


def put(value: float, row: int = 2, column: int = 3) -> Callable[[np.ndarray], np.ndarray]:
    """One value set."""

    def make(x: np.ndarray) -> np.ndarray:
        x[row, column] = value
        return x

    return make


def labels(make: Callable[[pd.Series], Any]) -> Change:
    """A change of the condition column."""

    def change(adata: ad.AnnData) -> None:
        adata.obs["perturbation"] = make(adata.obs["perturbation"].astype(str))

    return change


def genes(make: Callable[[list[str]], list[str]]) -> Change:
    """A change of the gene names."""

    def change(adata: ad.AnnData) -> None:
        adata.var.index = pd.Index(make(adata.var_names.tolist()))

    return change


def renamed_genes(n: int, name: str) -> Change:
    """The n-th gene gets another name."""
    return genes(lambda names: [name if place == n else old for place, old in enumerate(names)])


def only(keep: Callable[[ad.AnnData], np.ndarray]) -> Change:
    """Some cells."""
    return lambda adata: adata[keep(adata)].copy()


def first_of_each(adata: ad.AnnData) -> np.ndarray:
    """The first cell of each condition, and all controls."""
    label = adata.obs["perturbation"].astype(str)
    return (~label.duplicated() | (label == "control")).to_numpy()


def doubled_genes(adata: ad.AnnData) -> None:
    with warnings.catch_warnings(action="ignore"):
        adata.var.index = pd.Index([adata.var_names[0], *adata.var_names[:-1]])


def doubled_cells(adata: ad.AnnData) -> None:
    adata.obs.index = pd.Index(["cell"] * adata.n_obs)


def unused_category(adata: ad.AnnData) -> None:
    adata.obs["perturbation"] = adata.obs["perturbation"].astype("category").cat.add_categories(["never"])


def silent(x: np.ndarray) -> np.ndarray:
    """Cell 1 and gene 3 without a value."""
    x[1], x[:, 3] = 0.0, 0.0
    return x


def view(adata: ad.AnnData) -> ad.AnnData:
    return adata[::-1][:, ::-1]


def dataset(name: str, make: Callable[[Any], Any]) -> Callable[[h5py.File], None]:
    """A dataset of the file replaced, its attributes kept."""

    def change(file: h5py.File) -> None:
        attributes, value = dict(file[name].attrs), make(file[name][()])
        del file[name]
        file[name] = value
        file[name].attrs.update(attributes)

    return change


def linked_outside(bench: Bench) -> Sequence[Any]:
    """X is a link into another file, which is not there."""

    def change(file: h5py.File) -> None:
        del file["X"]
        file["X"] = h5py.ExternalLink("/nowhere/secret.h5", "/X")

    return bench.fit(data=bench.screen_edited(change))


def zarr_pointing_outside(bench: Bench) -> Sequence[Any]:
    """A store whose X is a link to a folder beside it: read as any path is, nothing of it is run."""
    store = bench.folder / "s.zarr"
    with ad.settings.override(zarr_write_format=3), warnings.catch_warnings(action="ignore"):
        ad.read_h5ad(bench.screen).write_zarr(store)
    (store / "X").rename(bench.folder / "outside")
    (store / "X").symlink_to(bench.folder / "outside")
    return bench.fit(data=store)


def truncated_copy(share: float) -> Callable[[Bench], Sequence[Any]]:
    def command(bench: Bench) -> Sequence[Any]:
        path = bench.screen_with(lambda adata: None)
        truncated(path, share)
        return bench.fit(data=path)

    return command


def fifo(bench: Bench) -> Sequence[Any]:
    os.mkfifo(bench.folder / "pipe.h5ad")
    return bench.fit(data=bench.folder / "pipe.h5ad")


def numbered(names: pd.Series) -> pd.Series:
    """Targets as numbers, control as 0."""
    known = sorted({part for name in names for part in name.split("+")} - {"control"})
    number = {"control": "0", **{name: str(place + 1) for place, name in enumerate(known)}}
    return names.map(lambda name: "+".join(number[part] for part in name.split("+")))


TOTAL = ("--target-sum", "10000")

FORMS = [
    Case("CSC", fit(values(sp.csc_matrix)), None),
    Case("COO", fit(lambda adata: ad.AnnData(sp.coo_matrix(adata.X).tocsr(), obs=adata.obs, var=adata.var)), None),
    Case("dense", fit(values(np.asarray)), None),
    Case("float64", fit(values(np.float64)), None),
    Case("float16", fit(values(np.float16)), None),
    Case("a view", fit(view), None),
    Case("counts as int64", fit(counts(np.int64), *TOTAL), None),
    Case("counts as uint8", fit(counts(lambda x: np.minimum(x, 255).astype(np.uint8)), *TOTAL), None),
    Case("counts as bool", fit(counts(lambda x: x > 0), *TOTAL), None),
    Case("counts of 200 million", fit(counts(lambda x: put(2e8)(x.astype(np.int64))), *TOTAL), None),
    Case("big-endian counts", fit(counts(lambda x: x.astype(">i4")), *TOTAL), None),
    Case("unused categories", fit(unused_category), None),
    Case("repeated cell names", fit(doubled_cells), None),
    Case("an all-zero gene and an all-zero cell", fit(values(lambda x: put(0.0)(x) * (np.arange(len(x)) != 1)[:, None])),
         None),
    Case("genes with html, spaces, emoji", fit(genes(lambda n: ["<b>", "a b", "🧬", *n[3:]])), None),
    Case("gene of 10,000 letters", fit(renamed_genes(2, "x" * 10_000)), None),
    Case("gene with a line break and a comma", fit(renamed_genes(2, 'a\nb,"c"')), None),
    Case("condition in html", fit(relabelled({"0": "<script>alert(1)</script>"})), None),
    Case("condition of 5,000 letters", fit(relabelled({"0": "é" * 5000})), None),
    Case("condition with a line break", fit(relabelled({"0": "A\nB"})), None),
    Case("condition with / | @ =", fit(relabelled({"0": "x/../y", "2": "a|b", "4": "q@"})), None),
    Case("numeric labels", fit(labels(numbered), "--control", "0"), None),
]  # fmt: skip

REFUSED = [
    Case("NaN", fit(values(put(np.nan))), r"nan for gene .G0*4. in cell '.*' \(1 such values\); expected a finite number"),
    Case("infinite", fit(values(put(np.inf))), "inf for gene .* expected a finite number"),
    Case("negative", fit(values(put(-0.5))), "-0.5 for gene .* expected no negative value"),
    Case("uint32 that overflowed", fit(counts(lambda x: put(-7)(x.astype(np.int64)).astype(np.uint32)), *TOTAL),
         r"4\.29497e\+09 for gene .*: an integer overflowed; count anew"),
    Case("int64 at its end", fit(counts(lambda x: put(2**62)(x.astype(np.int64))), *TOTAL), "an integer overflowed"),
    Case("float64 beyond float32", fit(values(lambda x: put(1e300)(x.astype(np.float64)))),
         "expected log1p values of at most 20"),
    Case("all zeros", fit(values(np.zeros_like)), "holds only zeros"),
    Case("no cells", fit(lambda adata: adata[:0].copy()), "holds no cells"),
    Case("no genes", fit(lambda adata: adata[:, :0].copy()), "holds no genes"),
    Case("one gene", fit(lambda adata: adata[:, :1].copy()), "expected at least 2; give cells of more genes"),
    Case("one cell", fit(lambda adata: adata[:1].copy()), "0 combinations leaves no test condition"),
    Case("controls alone", fit(only(lambda a: (a.obs["perturbation"] == "control").to_numpy())),
         "0 combinations leaves no test condition"),
    Case("no controls", fit(only(lambda a: (a.obs["perturbation"] != "control").to_numpy())),
         "no cell of obs column 'perturbation' is labelled 'control'"),
    Case("one condition", fit(only(lambda a: a.obs["perturbation"].isin(["control", conditions(a)[0]]).to_numpy())),
         "0 combinations leaves no test condition; hold out targets .--split holdout."),
    Case("one cell of each condition", fit(only(first_of_each)), "has 1 cell, expected at least 2"),
    Case("genes twice", fit(doubled_genes), "gene '.*' occurs more than once in var"),
    Case("no label", fit(labels(lambda s: s.where(np.arange(len(s)) != 4, None))), "1 cells have no label"),
    Case("empty label", fit(relabelled({"0": ""})), "condition '': expected targets joined by"),
    Case("half a label", fit(relabelled({"0": "A+"})), "expected targets joined by '\\+', found an empty one"),
    Case("doubled target", fit(relabelled({"0": "A+A"})), "names target 'A' twice"),
    Case("three targets of one name and a ctrl", fit(relabelled({"0": "A+ctrl+A"})), "names target 'A' twice"),
    Case("a target called <pad>", fit(relabelled({"0": "<pad>"})), "has the name of a special token; rename it"),
    Case("a gene called control", fit(renamed_genes(0, "control")), "'control' has the name of a special token"),
    Case("a gene without a name", fit(renamed_genes(0, "")), r"1 genes have no name in var \(first: column 0\)"),
    Case("boolean labels", fit(labels(lambda s: s == "control")),
         "no cell of obs column 'perturbation' is labelled 'control'"),
    Case("numeric labels, control by name", fit(labels(lambda s: np.arange(len(s)) * 0.5)), "most frequent are '0.0'"),
    Case("counts declared log1p", fit(counts(np.float32)), "whole numbers only, these look like raw counts"),
    Case("log1p declared counts", fit(lambda adata: None, *TOTAL), "holds log1p values .*expected counts"),
    Case("not logarithmic", fit(values(lambda x: np.expm1(x) * 50)), "without a logarithm .*expected log1p values"),
    Case("target sum of nan", lambda bench: bench.fit("--target-sum", "nan"),
         "target_sum: expected a number above 0 .*found nan"),
    Case("target sum below 0", lambda bench: bench.fit("--target-sum", "-1"),
         "target_sum: expected a number above 0 .*found -1"),
    Case("a layer that is not there", lambda bench: bench.fit("--layer", "spliced"),
         "no layer 'spliced'; its layers are counts"),
    Case("min_cells of 0", lambda bench: bench.fit("--min-cells", "0"),
         "min_cells: Input should be greater than or equal to 1"),
    Case("min_cells beyond all", lambda bench: bench.fit("--min-cells", "100000"),
         "0 combinations leaves no test condition"),
    Case("split by a column of truth", fit(lambda adata: adata.obs.insert(0, "odd", True), "--split", "obs:odd"),
         "has value 'True'; expected train, validation or test"),
    Case("split by a column that divides conditions", lambda bench: bench.fit("--split", "obs:batch"),
         "has cells in even and odd; expected one value for each condition"),
    Case("a link to another file", linked_outside, "cannot be read"),
    Case("a zarr store whose X lies elsewhere", zarr_pointing_outside, None),
    Case("truncated at half", truncated_copy(0.5), "cannot be read as AnnData"),
    Case("truncated to nothing", truncated_copy(0.0), "is not an h5ad"),
    Case("a folder", lambda bench: bench.fit(data=bench.folder), "cannot be read as AnnData"),
    Case("a named pipe", fifo, "is not an h5ad"),
    Case("a device", lambda bench: bench.fit(data=__import__("pathlib").Path("/dev/null")), "is not an h5ad"),
    Case("obs that is a dataset", fit_edited(lambda f: (f.__delitem__("obs"), f.create_dataset("obs", data=[1, 2]))),
         "obs and var are not tables"),
    Case("index of other length", fit_edited(dataset("obs/_index", lambda v: v[:3])),
         "cannot be read .*40 values for 3 rows"),
    Case("indptr that falls", fit_edited(dataset("X/indptr", lambda v: v[::-1])), "cannot be read"),
    Case("shape of 10**12 rows", fit_edited(lambda f: f["X"].attrs.__setitem__("shape", [10**12, 14])),
         r"the matrix has shape \(1000000000000, 14\), expected"),
    Case("negative shape", fit_edited(lambda f: f["X"].attrs.__setitem__("shape", [-1, 14])),
         r"the matrix has shape \(-1, 14\), expected"),
    Case("data of text", fit_edited(dataset("X/data", lambda v: np.array([b"a"] * len(v)))), "expected real numbers"),
    Case("an unknown encoding of X", fit_edited(lambda f: f["X"].attrs.__setitem__("encoding-type", "pickle")),
         "cannot be read as AnnData .*Unknown encoding type pickle"),
]  # fmt: skip
