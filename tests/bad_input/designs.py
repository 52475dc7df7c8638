"""What stands beside labels: columns of covariates, dose, time and matching; features; splits by a covariate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from bad_input.bench import DESIGN, Bench, Case
from bad_input.screens import put, values

TYPE = ("--covariates", "cell_type")


def fit(*words: str) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm fit` on the good designed screen with other words."""
    return lambda bench: bench.fit(*words, data=bench.designed)


def column(
    name: str, change: Callable[[pd.Series], Any], *words: str, everywhere: bool = False
) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm fit` with its design on the screen whose column `name` is changed (of perturbed cells alone)."""

    def edit(adata: ad.AnnData) -> None:
        old = adata.obs[name].astype(object)
        new = pd.Series(change(old.copy()), adata.obs.index, dtype=object)
        kept = (adata.obs["perturbation"] == "control") & (not everywhere)
        mixed = new.where(~kept, old)
        texts = any(isinstance(value, str) for value in mixed)
        adata.obs[name] = mixed.map(str, na_action="ignore").astype("category") if texts else mixed.astype(float)

    return lambda bench: bench.fit(*(words or DESIGN), data=bench.screen_with(edit, bench.designed))


def one(value: Any) -> Callable[[pd.Series], pd.Series]:
    """One value of a perturbed cell set (control cells come first)."""

    def change(old: pd.Series) -> pd.Series:
        old.iloc[-1] = value
        return old

    return change


def every(value: Any) -> Callable[[pd.Series], pd.Series]:
    """All values set."""
    return lambda old: pd.Series([value] * len(old), old.index, dtype=object)


def renamed(old: str, new: str, *words: str) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm fit` on the screen with a column of another name."""
    change = lambda adata: setattr(adata, "obs", adata.obs.rename(columns={old: new}))  # noqa: E731
    return lambda bench: bench.fit(*words, data=bench.screen_with(change, bench.designed))


def controls_of_one_type(adata: ad.AnnData) -> ad.AnnData:
    """Controls of the second type gone."""
    keep = (adata.obs["perturbation"] != "control") | (adata.obs["cell_type"] == "A, B")
    return adata[keep.to_numpy()].copy()


def lonely(*words: str) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm fit` where one cell type has no control cells."""
    return lambda bench: bench.fit(*words, data=bench.screen_with(controls_of_one_type, bench.designed))


def features(name: str, content: str | bytes, *words: str) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm fit --features` of a file; `{0}`, `{1}` and `{2}` in it are the targets of the screen."""

    def command(bench: Bench) -> Sequence[Any]:
        text = content.format(*bench.targets) if isinstance(content, str) else content
        return bench.fit("--features", bench.file(name, text), *words)

    return command


def features_of(change: Callable[[ad.AnnData], Any]) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm fit --features FILE.h5ad` of the screen's genes after `change`."""
    return lambda bench: bench.fit("--features", f"{bench.screen_with(change)}:var")


def parquet(bench: Bench) -> Sequence[Any]:
    """A parquet file without a column of numbers."""
    path = bench.folder / "f.parquet"
    pd.DataFrame({"name": bench.targets, "colour": ["red"] * 3}).to_parquet(path)
    return bench.fit("--features", path)


TABLE = "name,a,b\n{0},1,2\n{1},3,4\n{2},5,6\n"

COLUMNS = [
    Case("designed", fit(*DESIGN), None),
    Case("covariate: no such column", fit("--covariates", "cell_tpye"),
         "covariate column 'cell_tpye' is not in obs; .*did you mean"),
    Case("covariate: named twice", fit("--covariates", "cell_type,cell_type"),
         "covariates: column 'cell_type' is named twice"),
    Case("covariate: the labels", fit("--covariates", "perturbation"), "is the perturbation column; name another"),
    Case("covariate: a name of signs", renamed("cell_type", "a|b", "--covariates", "a|b"),
         r"covariate column 'a\|b': expected"),
    Case("covariate: called time", fit("--covariates", "time"), "expected it as a number; give it with time_key"),
    Case("covariate: nothing but commas", fit("--covariates", ", ,"), None),
    Case("covariate: one missing", column("cell_type", one(None), *TYPE), "has no value in covariate column 'cell_type'"),
    Case("covariate: blank", column("cell_type", one("  "), *TYPE), "has no value in covariate column 'cell_type'"),
    Case("covariate: with a bar", column("cell_type", every("a|b"), *TYPE, everywhere=True),
         "holds '\\|', which separates covariates"),
    Case("covariate: html and emoji", column("cell_type", every("<b>🧬</b>=+@"), *TYPE, everywhere=True), None),
    Case("covariate: of 5,000 letters", column("cell_type", every("x" * 5000), *TYPE, everywhere=True), None),
    Case("covariate: numbers with a NaN", column("dose", one(np.nan), "--covariates", "dose"),
         "has no value in covariate column 'dose'"),
    Case("covariate: of numbers, controls at 0", fit("--covariates", "dose"), "have no control cells of their own"),
    Case("dose: no such column", fit("--dose-key", "doses"), "dose column 'doses' is not in obs; .*did you mean 'dose'"),
    Case("dose: the labels", fit("--dose-key", "perturbation"), "is the perturbation column; name another"),
    Case("dose: a text", column("dose", one("high")), "dose 'high' in obs column 'dose' .*expected a number of at least 0"),
    Case("dose: missing", column("dose", one(np.nan)), "has no value in dose column 'dose'"),
    Case("dose: negative", column("dose", one(-1.0)), "dose '-1' in obs column 'dose'"),
    Case("dose: infinite", column("dose", one(np.inf)), "dose 'inf' in obs column 'dose'"),
    Case("dose: three numbers", column("dose", every("1+2+3")), "holds 3 numbers for label"),
    Case("dose: a number too large for a float", column("dose", one("1e999")), "dose '(inf|1e999)' in obs column 'dose'"),
    Case("dose: units far apart", column("dose", lambda s: [1e30 if 10 <= i < 16 else 1e-30 for i in range(len(s))]),
         "dose 1e[+]30 is too far from 1e-30, the median of those trained on"),
    Case("dose: all of them 0", column("dose", every(0.0)), None),
    Case("time: no such column", fit("--time-key", "hours"), "time column 'hours' is not in obs"),
    Case("time: a text", column("time", one("late")), "time 'late' in obs column 'time' .*expected a number of at least 0"),
    Case("time: missing", column("time", one(np.nan)), "has no value in time column 'time'"),
    Case("time: negative", column("time", one(-24.0)), "time '-24' in obs column 'time'"),
    Case("match: no such column", fit("--match-controls", "plate"), "match_controls column 'plate' is not in obs"),
    Case("match: named twice", fit("--match-controls", "batch,batch"), "match_controls: column 'batch' is named twice"),
    Case("match: one missing", column("cell_type", one(np.nan), "--match-controls", "cell_type"),
         "1 perturbed cells have no value in match_controls column 'cell_type'"),
    Case("match: the labels", fit("--match-controls", "perturbation"), "have no control cells of their own"),
    Case("a cell type without controls", lonely(*TYPE), "have no control cells of their own; control cells exist for"),
    Case("a cell type without controls, all taken", lonely(*TYPE, "--control-fallback", "all"), None),
    Case("a cell type without controls, none matched", lonely(*TYPE, "--match-controls", "none"), None),
    Case("fallback: a word that is none", fit(*TYPE, "--control-fallback", "some"),
         "control_fallback: Input should be 'error' or 'all'"),
    Case("designed: NaN among the values", lambda b: b.fit(*DESIGN, data=b.screen_with(values(put(np.nan)), b.designed)),
         "expected a finite number"),
    Case("split by a covariate's value", fit(*DESIGN, "--split", "covariate:cell_type=C"), None),
    Case("split by no covariate", fit(*DESIGN, "--split", "covariate:"), "split 'covariate:': expected additive"),
    Case("split by a covariate without a name", fit(*DESIGN, "--split", "covariate:=C"),
         "split 'covariate:=C': expected additive"),
    Case("split by a covariate without a value", fit(*DESIGN, "--split", "covariate:cell_type="),
         "expected additive, holdout"),
    Case("split by an unknown covariate", fit(*DESIGN, "--split", "covariate:donor"), "has no covariate 'donor'"),
    Case("split by an unknown value", fit(*DESIGN, "--split", "covariate:cell_type=D"),
         "no perturbed cell has cell_type=D; its values are"),
    Case("split by a covariate that is not read", fit("--split", "covariate:cell_type"), "has no covariate 'cell_type'"),
    Case("split by a word with a colon", fit("--split", "obs"), "expected additive, holdout"),
]  # fmt: skip

FEATURES = [
    Case("features", features("f.csv", TABLE), None),
    Case("features: of one target alone", features("f.csv", "name,a\n{0},1\n"), None),
    Case("features: no such file", lambda b: b.fit("--features", b.folder / "none.csv"), "cannot be read as a table"),
    Case("features: an ending that is none", features("f.xlsx", "x"), "expected a file that ends in .csv, .tsv"),
    Case("features: a folder", lambda b: b.fit("--features", b.folder), "expected a file that ends in .csv, .tsv"),
    Case("features: empty", features("f.csv", ""), "cannot be read as a table"),
    Case("features: a header alone", features("f.csv", "name,a\n"), "expected one row of at least one feature"),
    Case("features: names alone", features("f.csv", "name\n{0}\n{1}\n{2}\n"), "expected one row of at least one feature"),
    Case("features: binary", features("f.csv", b"\xff\xfe\x00\x01"), "cannot be read as a table"),
    Case("features: text in a column", features("f.csv", TABLE.replace("4", "red")), "column 'b' is not of numbers"),
    Case("features: a value missing", features("f.csv", TABLE.replace("4", "")),
         "nan for '.*' in feature 1 .*expected finite numbers"),
    Case("features: infinite", features("f.csv", TABLE.replace("4", "inf")), "inf for '.*' in feature 1"),
    Case("features: beyond float32", features("f.csv", TABLE.replace("4", "1e300")), "inf for '.*' in feature 1"),
    Case("features: a name twice", features("f.csv", TABLE + "{0},7,8\n"), "stands in more than one row; keep one"),
    Case("features: a row without a name", features("f.csv", TABLE + ",7,8\n"), "a row has no name"),
    Case("features: of other targets", features("f.csv", "name,a\nNOBODY,1\n"), "none of the . training targets has a row"),
    Case("features: ragged rows", features("f.csv", TABLE + "x,1,2,3\n"), "cannot be read as a table"),
    Case("features: SMILES that is none", features("f.csv", "name,smiles\n{0},CCO\n{1},C(\n"),
         "SMILES of '.*' is 'C\\(', which rdkit"),
    Case("features: SMILES missing", features("f.csv", "name,smiles\n{0},CCO\n{1},\n"),
         "SMILES of '.*' is nan, which rdkit"),
    Case("features: SMILES of 20,000 letters", features("f.csv", "name,smiles\n{0},CCO\n{1}," + "(" * 20_000 + "\n"),
         "which rdkit cannot read"),
    Case("features: a molecule twice", features("f.csv", "name,smiles\n{0},CCO\n{0},CCC\n"), "stands in more than one row"),
    Case("features: no such SMILES column", lambda b: b.fit("--features", "smiles:SMILES"), "'SMILES' is not in obs"),
    Case("features: an empty SMILES column", lambda b: b.fit("--features", "smiles:"), "'' is not in obs"),
    Case("features: SMILES of numbers", lambda b: b.fit("--features", "smiles:dose", data=b.designed),
         "which rdkit cannot read"),
    Case("features: text for parquet", features("f.parquet", "PAR1 no"), "cannot be read as parquet"),
    Case("features: parquet of text", parquet, "column 'colour' is not of numbers"),
    Case("features: text for h5ad", features("f.h5ad", "x"), "is not an h5ad"),
    Case("features: h5ad of other names", lambda b: b.fit("--features", b.screen),
         "none of the . training targets has a row"),
    Case("features: h5ad of genes", features_of(lambda adata: None), None),
    Case("features: h5ad of genes with NaN", features_of(values(put(np.nan))), "expected finite numbers"),
    Case("features: twice, one broken",
         lambda b: b.fit("--features", b.file("a.csv", TABLE.format(*b.targets)), "--features", "none.csv"),
         "cannot be read as a table"),
    Case("features: by --set, of a number", lambda b: b.fit("--set", "model.features=3"),
         "model.features: Input should be a valid tuple"),
    Case("features: always alone, their targets never themselves", lambda b: b.fit("--set", "training.id_dropout=1"),
         "training.id_dropout"),
]  # fmt: skip
