"""Several screens as one: names, genes, controls and scale; what is refused; and what one screen learns from the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scdfm
from scdfm.errors import ConfigError, DataError

INSTANT = {"panel": {"n_genes": 60}, "graph": {"k": 5}, "sampling": {"cells": 20}}


@pytest.fixture(scope="module")
def screens() -> dict[str, ad.AnnData]:
    """Two draws of one law: of eight targets `singles` measures each alone, `pairs` three of them and all pairs; 50 genes
    are measured in both, in another order."""
    adata = scdfm.simulate(n_genes=70, n_targets=8, cells_per_condition=40, n_controls=160, seed=4)
    labels = adata.obs["perturbation"].astype(str)
    singles = sorted({name for name in labels if name != "control" and "+" not in name})
    genes = sorted(adata.var_names, key=lambda gene: (gene not in singles, gene))
    first = np.arange(adata.n_obs) % 2 == 0
    alone = labels.isin([*singles, "control"]).to_numpy()
    others = (labels.isin([*singles[:3], "control"]) | labels.str.contains("+", regex=False)).to_numpy()
    return {
        "singles": adata[first & alone, genes[:60]].copy(),
        "pairs": adata[~first & others, [*genes[60:], *genes[:50]]].copy(),
    }


def joined(screens: dict[str, ad.AnnData], **options: object) -> scdfm.CellTable:
    return scdfm.join_screens({name: scdfm.read_cells(one, **options) for name, one in screens.items()})  # type: ignore[arg-type]


def test_cells_keep_their_values_and_conditions_name_their_screen(screens: dict[str, ad.AnnData]) -> None:
    cells = joined(screens)
    assert cells.covariates == ("screen",)
    assert len(cells.genes) == 50
    assert cells.control_conditions == ("control|screen=pairs", "control|screen=singles")
    for name, one in screens.items():
        own = scdfm.read_cells(one)
        for condition in own.conditions:
            full = f"{condition}|screen={name}"
            mean = own.mean(condition)[own.columns(cells.genes)]
            found = cells.control_mean(full) if condition == "control" else cells.mean(full)
            np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-7)
        some = next(name for name in own.conditions if name != "control")
        np.testing.assert_allclose(
            cells.control_mean(f"{some}|screen={name}"), own.mean("control")[own.columns(cells.genes)], rtol=1e-5, atol=1e-7
        )  # fmt: skip
    assert cells.obs.index.is_unique
    assert cells.notes[0].endswith("joined on the 50 genes that all have")
    older = {name: one.copy() for name, one in screens.items()}
    older["pairs"].obs["screen"] = "old"
    again = joined(older)
    assert again.digest() == cells.digest()
    assert "the column 'screen' that 'pairs' had is replaced" in again.notes[0]


def test_on_disk_as_in_memory(screens: dict[str, ad.AnnData], tmp_path: Path) -> None:
    files = {}
    for name, one in screens.items():
        one.write_h5ad(tmp_path / f"{name}.h5ad")
        files[name] = tmp_path / f"{name}.h5ad"
    assert joined(files, backed=True).digest() == joined(screens).digest()  # type: ignore[arg-type]


def test_a_screen_learns_from_the_other(screens: dict[str, ad.AnnData], tmp_path: Path) -> None:
    """Pairs are expected better where the other screen measured their targets alone, unless its labels are wrong."""

    def error(cells: scdfm.CellTable, name: str) -> float:
        tests = tuple(one for one in cells.conditions if "+" in one)[::2]
        rest = tuple(one for one in cells.conditions if one not in tests and one != "control")
        split = scdfm.Split("named", 0, rest, (), tests)
        config = scdfm.Config.preset("instant").updated(INSTANT)
        run = scdfm.fit(cells, split, config, out=tmp_path / name, progress=False)
        shifts = np.stack([cells.mean(one) - cells.control_mean(one) for one in tests])[:, cells.columns(run.genes)]
        return float(((run.knowing(tests).predict(tests) - shifts) ** 2).sum(1).mean())

    shared = list(joined(screens).genes)
    wrong = screens["singles"].copy()
    labels = wrong.obs["perturbation"].astype(str)
    names = sorted(set(labels) - {"control"})
    wrong.obs["perturbation"] = labels.replace(dict(zip(names, [*names[4:], *names[:4]], strict=True)))
    alone = error(scdfm.read_cells(screens["pairs"][:, shared].copy()), "alone")
    assert error(joined(screens), "both") < 0.9 * alone
    assert error(joined(screens | {"singles": wrong}), "wrong") > error(joined(screens), "again")


def test_what_cannot_be_joined_is_refused(screens: dict[str, ad.AnnData]) -> None:
    one = scdfm.read_cells(screens["singles"])
    with pytest.raises(DataError, match="1 screens to join, expected at least two"):
        scdfm.join_screens({"a": one})
    with pytest.raises(DataError, match="screens 'a' and 'b' are the same cells; leave one of them out"):
        scdfm.join_screens({"a": one, "b": one})
    foreign = screens["pairs"].copy()
    foreign.var_names = [f"X{gene}" for gene in foreign.var_names]
    with pytest.raises(DataError, match="'a', 'b' have 0 genes in common, expected at least 10"):
        scdfm.join_screens({"a": one, "b": scdfm.read_cells(foreign)})
    lines = screens["pairs"].copy()
    lines.obs["line"] = "K562"
    with pytest.raises(DataError, match=r"other covariates \(none; line\), expected the same"):
        scdfm.join_screens({"a": one, "b": scdfm.read_cells(lines, covariates=["line"])})
    million = screens["pairs"].copy()
    million.X = np.log1p(np.expm1(million.X.toarray()) * 100)
    with pytest.raises(DataError, match="screen 'b' hold .* times the counts of those of 'a' .*another scale"):
        scdfm.join_screens({"a": one, "b": scdfm.read_cells(million)})
    counts = [screen.copy() for screen in screens.values()]
    for screen in counts:
        screen.X = np.round(np.expm1(screen.X.toarray()) * 3)
    low, high = (scdfm.read_cells(screen, target_sum=to) for screen, to in zip(counts, (1e4, 1e5), strict=True))
    with pytest.raises(DataError, match="screen 'a' is log1p of counts per 10000, 'b' per 100000; read both"):
        scdfm.join_screens({"a": low, "b": high})
    with pytest.raises(DataError, match="covariate 'screen' is to hold the names of the screens"):
        scdfm.join_screens({name: _labelled(one, name) for name, one in screens.items()})


def _labelled(screen: ad.AnnData, name: str) -> scdfm.CellTable:
    screen = screen.copy()
    screen.obs["screen"] = name
    return scdfm.read_cells(screen, covariates=["screen"])


def test_by_the_command(call, screens: dict[str, ad.AnnData], tmp_path: Path) -> None:
    """Files in a row, tables of a config file, and one joined file are the same cells."""
    for name, one in screens.items():
        one.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [tmp_path / f"{name}.h5ad" for name in screens]
    tables = "".join(f'[screens.{file.stem}]\nfile = "{file}"\ncontrol = "control"\n' for file in files)
    tables += "weight = 3\n"
    (tmp_path / "two.toml").write_text(tables + "[panel]\nn_genes = 40\n")
    how = ("--preset", "instant", "--set", "panel.n_genes=40", "--quiet")
    code, _, error = call("fit", *files, "--out", tmp_path / "a", *how)
    assert code == 0, error
    assert "2 screens as covariate 'screen'" in error
    assert (
        call("fit", "--config", tmp_path / "two.toml", "--preset", "instant", "--out", tmp_path / "b", "--quiet")[0]
        == 0
    )
    assert call("join", *files, "--out", tmp_path / "j.h5ad")[0] == 0
    assert call("fit", tmp_path / "j.h5ad", "--covariates", "screen", "--out", tmp_path / "c", *how)[0] == 0
    runs = [scdfm.Run.load(tmp_path / name) for name in "abc"]
    assert len({run.manifest.data["digest"] for run in runs}) == 1
    assert [run.config.training.screen_weights for run in runs] == [{}, {"pairs": 3.0}, {}]
    weighted = ("--set", "training.screen_weights.single=2", "--out", tmp_path / "w")
    code, _, error = call("fit", *files, *how, *weighted)
    assert (code, "of a screen 'single' (screens of training: pairs, singles)" in error) == (2, True)
    assert call("predict", tmp_path / "a", "--test", "--cells", 9, "--out", tmp_path / "p.h5ad", "--quiet")[0] == 0
    found = call(
        "evaluate",
        tmp_path / "p.h5ad",
        tmp_path / "j.h5ad",
        "--run",
        tmp_path / "a",
        "--out",
        tmp_path / "e",
        "--metrics",
        "l2,pearson_delta",
        "--quiet",
    )
    assert found[0] == 0, found[2]
    predicted = ad.read_h5ad(tmp_path / "p.h5ad")
    assert set(predicted.obs["screen"]) <= set(screens)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[screens]\nfile = 1\n", "expected a table [screens.NAME] for each screen"),
        ("[screens.a]\ncontrol = 'x'\n", "'a' names no file; expected file = "),
        ("[screens.a]\nfile = 'a.h5ad'\nwhat = 1\n", "'a': unknown key 'what'"),
        ("[panel]\nn_genes = 4\n", "which screens? none given"),
        ("[screens.a]\nfile = 'a.h5ad'\nweight = 0\n", "'a' has the weight 0; expected a number above 0"),
        ("[screens.a]\nfile = 'a.h5ad'\nweight = inf\n", "'a' has the weight inf; expected a number above 0"),
        ("[screens.a]\nfile = 'a.h5ad'\nweight = true\n", "'a' has the weight True; expected a number above 0"),
        ("[training.screen_weights]\na = -1.0\n", "training.screen_weights.a: Input should be greater than 0"),
    ],
)
def test_tables_of_screens_are_checked(call, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    code, _, error = call("fit", "--config", tmp_path / "s.toml", "--out", tmp_path / "r")
    assert code == 2
    assert words in error


def test_the_genes_of_any_screen(screens: dict[str, ad.AnnData], tmp_path: Path) -> None:
    """What a screen did not measure is NaN among its means; means of all control cells are of those that measured."""
    read = {name: scdfm.read_cells(one) for name, one in screens.items()}
    cells = scdfm.join_screens(read, genes="union")
    assert (len(cells.genes), cells.notes[0][-33:]) == (70, "genes that any has, 50 of which all have"[-33:])
    whole = cells.means()
    for name, own in read.items():
        there = np.isin(cells.genes, own.genes)
        assert (cells.measures(f"control|screen={name}") == there).all()
        some = f"{own.conditions[1]}|screen={name}"
        assert np.isnan(cells.mean(some)[~there]).all()
        columns = own.columns(cells.genes[there])
        np.testing.assert_allclose(cells.mean(some)[there], own.mean(own.conditions[1])[columns], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(cells.control_mean(some)[there], own.mean("control")[columns], rtol=1e-5, atol=1e-7)
        alone = there & (sum(mask.astype(int) for mask in cells.measured.values()) == 1)
        np.testing.assert_allclose(
            whole.loc["control"].to_numpy()[alone], own.mean("control")[own.columns(cells.genes[alone])], rtol=1e-5
        )  # fmt: skip
    assert not np.isnan(whole.loc["control"]).any()
    files = {}
    for name, one in screens.items():
        one.write_h5ad(tmp_path / f"{name}.h5ad")
        files[name] = scdfm.read_cells(tmp_path / f"{name}.h5ad", backed=True)
    assert scdfm.join_screens(files, genes="union").digest() == cells.digest()
    assert replace(cells, measured={}).digest() != cells.digest()
    # The same genes in both: nothing is masked, whatever is asked.
    same = {name: scdfm.read_cells(one[:, list(joined(screens).genes)].copy()) for name, one in screens.items()}
    assert scdfm.join_screens(same, genes="union").digest() == scdfm.join_screens(same).digest()


def test_what_takes_no_union_says_so(screens: dict[str, ad.AnnData], call, tmp_path: Path) -> None:
    cells = scdfm.join_screens({name: scdfm.read_cells(one) for name, one in screens.items()}, genes="union")
    words = "joined on genes that not all of them measured, which only a fit can read; expected cells"
    for use in (
        cells.to_adata, lambda: scdfm.evaluate(None, cells), lambda: scdfm.benchmark(cells, out=tmp_path / "b")
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            use()
    with pytest.raises(ConfigError, match="genes of joined screens 'all': expected intersection or union"):
        scdfm.join_screens({}, genes="all")  # type: ignore[arg-type]
    for name, one in screens.items():
        one.write_h5ad(tmp_path / f"{name}.h5ad")
    file, out = tmp_path / "singles.h5ad", ("--out", tmp_path / "r")
    assert "--genes all: expected one of intersection" in call("fit", file, file, "--genes", "all", *out)[2]
    assert "--genes union is about several screens" in call("fit", file, "--genes", "union", *out)[2]
    (tmp_path / "s.toml").write_text("[screens]\ngenes = 'both'\n")
    assert "genes is 'both'; expected one of" in call("fit", "--config", tmp_path / "s.toml", *out)[2]
    tables = "".join(f"[screens.{name}]\nfile = '{tmp_path / name}.h5ad'\n" for name in screens)
    (tmp_path / "u.toml").write_text("[screens]\ngenes = 'union'\n" + tables)
    code, _, error = call("join", "--config", tmp_path / "u.toml", "--out", tmp_path / "j.h5ad")
    assert (code, words in error) == (2, True)
    assert not (tmp_path / "j.h5ad").exists()
