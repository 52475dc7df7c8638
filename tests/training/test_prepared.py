"""Which cells tell the prior and the spread what, and which are kept from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

import scdfm
from scdfm.prior import fit_spread
from scdfm.run import folder
from scdfm.training import prepared
from scdfm.training.checkpoint import CHECKPOINTS
from scdfm.training.inputs import prepare
from scdfm.training.prepared import START

OPTIONS = {
    "panel": {"n_genes": 25}, "graph": {"k": 5}, "model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 1},
    "training": {"max_steps": 2, "warmup_steps": 1, "validate_every": 2, "validation_cells": 4, "accelerator": "cpu",
                 "cells_per_condition": 4, "keep": "last"},
    "flow": {"genes_per_step": 16}, "sampling": {"steps": 1, "cells": 5, "shrink": False},
}  # fmt: skip


def fitted(
    cells: scdfm.CellTable, out: Path, split: scdfm.Split | None = None, over: dict[str, Any] | None = None
) -> scdfm.Run:
    config = scdfm.Config().updated(OPTIONS).updated(over or {})
    return scdfm.fit(cells, split, config, out=out, progress=False)


def test_control_cells_are_donors_where_training_has_few(tmp_path: Path) -> None:
    """One cell of each condition, or six: the controls' cells come beside them, as many as there are."""
    screen = scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=6, n_controls=90, seed=1)
    cells = scdfm.read_cells(screen)
    names = [name for name in cells.conditions if name != "control"]
    kept = [cells.rows("control"), *(cells.rows(name)[:1] for name in names)]
    one_each = {"training": {"min_cells": 1}, "split": {"validation_fraction": 0.0}}
    few = fitted(cells.take(np.sort(np.concatenate(kept))), tmp_path / "few", over=one_each)
    assert len(few.spread.donors) == len(few.split.train) + 90
    whole = fitted(cells, tmp_path / "whole")
    assert len(whole.spread.donors) == 6 * len(whole.split.train) + 90


def test_conditions_of_many_cells_are_donors_alone(tmp_path: Path) -> None:
    """Their own cells know better which values go together than control cells do, though there are few in all."""
    screen = scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=40, n_controls=90, seed=1)
    cells = scdfm.read_cells(screen)
    names = [name for name in cells.conditions if name != "control"][:4]
    for each, donors in ((29, 4 * 29 + 90), (30, 4 * 30)):
        kept = [cells.rows("control"), *(cells.rows(name)[:each] for name in names)]
        table = cells.take(np.sort(np.concatenate(kept)))
        run = fitted(table, tmp_path / f"{each}", scdfm.Split("named", 0, tuple(names), (), ()))
        assert len(run.spread.donors) == donors


def errors_of_few(seed: int, enough: int, out: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Five cells of each of 25 conditions fit, 300 controls beside them, which count where fewer than `enough` cells are
    there: error of variances and of correlations of genes [25, 2] of populations beside 245 real cells."""
    monkeypatch.setattr(prepared, "ENOUGH_CELLS", enough)
    screen = scdfm.simulate(n_genes=60, n_targets=8, cells_per_condition=250, n_controls=300, seed=seed)
    cells = scdfm.read_cells(screen)
    names = tuple(name for name in cells.conditions if name != "control")
    few = cells.take(np.sort(np.concatenate([cells.rows("control"), *(cells.rows(name)[:5] for name in names)])))
    config = scdfm.Config.preset("instant").updated({"sampling": {"noise": "independent"}})
    run = scdfm.fit(few, scdfm.Split("named", 0, names, (), ()), config, out=out, progress=False)
    found = []
    for name in names:
        made = run.predict([name], n_cells=250, seed=seed).X.toarray()
        real = cells.X[cells.rows(name)[5:]][:, cells.columns(run.genes)].toarray()
        varying = (made.std(0) > 0) & (real.std(0) > 0)
        correlations = [np.corrcoef(one[:, varying].T) for one in (made, real)]
        found.append([np.abs(made.var(0) - real.var(0)).mean(), np.abs(np.subtract(*correlations)).mean()])
    return np.array(found)


def test_control_cells_make_populations_of_few_cells_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gains = []
    for seed in range(3):
        without, joined = (errors_of_few(seed, n, tmp_path / f"{seed}-{n}", monkeypatch) for n in (0, 500))
        assert (joined.mean(0) < without.mean(0)).all()
        gains.append(without - joined)
    gain = np.concatenate(gains)
    assert (gain.mean(0) > 5 * gain.std(0, ddof=1) / np.sqrt(len(gain))).all()


def two_lines(each: int, seed: int, n: int = 800) -> tuple[ad.AnnData, np.ndarray]:
    """Cells of two lines in conditions of `each` cells that do nothing, and the deviation of genes in a line."""
    rng = np.random.default_rng(seed)
    lines = np.repeat(["A", "B"], n)
    centre = np.where(lines[:, None] == "A", 4.0, 2.5) + np.zeros(30)
    names = [f"D{place // each}" for place in range(n)] * 2
    adata = ad.AnnData((centre + 0.4 * rng.standard_normal((2 * n, 30))).astype(np.float32))
    adata.obs["perturbation"], adata.obs["line"] = names, lines
    controls = ad.AnnData((centre + 0.4 * rng.standard_normal((2 * n, 30))).astype(np.float32)[::8])
    controls.obs["perturbation"], controls.obs["line"] = "control", lines[::8]
    return ad.concat([adata, controls], index_unique="-"), np.full(30, 0.4)


def deviation_of(adata: ad.AnnData) -> tuple[float, int]:
    """Deviation of genes at the mean of line A by the marginals of all cells, and how many cells told it."""
    cells = scdfm.read_cells(adata, covariates=["line"])
    names = tuple(name for name in cells.conditions if not name.startswith("control"))
    config = scdfm.Config.preset("instant").updated({"training": {"min_cells": 1}, "model": {"perturbation": "drugs"}})
    inputs = prepare(cells, scdfm.Split("named", 0, names, (), ()), config, None)
    sample = prepared._spread_sample(cells, names, inputs)
    spread = fit_spread(*sample[:4], torch.Generator().manual_seed(0))
    return float(spread.marginals.ordered(torch.full((30,), 4.0), 400).std(0).mean()), len(sample.cells)


@pytest.mark.parametrize("seed", range(2))
def test_cells_of_small_conditions_are_taken_together(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells lie nearer to their own mean than cells do: by that populations were too narrow. Of many cells each
    condition tells its own spread, as before."""
    adata, real = two_lines(2, seed)
    together, n = deviation_of(adata)
    assert together == pytest.approx(real.mean(), rel=0.05)
    assert n == 1600
    monkeypatch.setattr(prepared, "FEW", 2)
    alone, _ = deviation_of(adata)
    assert alone < 0.9 * real.mean()
    monkeypatch.undo()
    many, n = deviation_of(two_lines(40, seed)[0])
    assert many == pytest.approx(real.mean(), rel=0.05)
    assert n == 1600


def effects_of(effect: float, each: int, seed: int) -> tuple[scdfm.CellTable, np.ndarray]:
    """150 drugs that move 60 genes, by `effect` in root mean squares, in a few cells each of deviation .4."""
    rng = np.random.default_rng(seed)
    shifts = effect * rng.standard_normal((150, 60))
    x = np.vstack([6 + np.repeat(shifts, each, axis=0), np.full((200, 60), 6.0)])
    adata = ad.AnnData((x + 0.4 * rng.standard_normal(x.shape)).clip(min=0).astype(np.float32))
    adata.obs["perturbation"] = [f"D{place}" for place in range(150) for _ in range(each)] + ["control"] * 200
    return scdfm.read_cells(adata, values="log1p"), shifts


@pytest.mark.parametrize("each", [2, 3, 4])
def test_effects_are_no_noise_where_small_conditions_are_taken_together(each: int) -> None:
    """The noise of means is that within conditions, whatever tells their spread; effects twice as large are believed."""
    cells, _ = effects_of(0.8, each, seed=0)
    names = tuple(name for name in cells.conditions if name != "control")
    config = scdfm.Config.preset("instant").updated({"training": {"min_cells": 1}, "model": {"perturbation": "drugs"}})
    sample = prepared._spread_sample(cells, names, prepare(cells, scdfm.Split("named", 0, names, (), ()), config, None))
    assert len(sample.settings) == (2 if each < 4 else 151)  # taken together, beside the controls
    assert np.mean(sample.variances()) == pytest.approx(0.16, rel=0.1)


def test_so_many_cells_tell_the_spread_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "SPREAD_CELLS", 90)
    monkeypatch.setattr(prepared, "ENOUGH_CELLS", 0)
    for each, expected in ((1, 90), (2, 90), (4, 300)):  # two of each condition at least, where each tells its own
        cells, _ = effects_of(0.1, each, seed=0)
        names = tuple(name for name in cells.conditions if name != "control")
        config = scdfm.Config.preset("instant").updated(
            {"training": {"min_cells": 1}, "model": {"perturbation": "drugs"}}
        )
        inputs = prepare(cells, scdfm.Split("named", 0, names, (), ()), config, None)
        assert len(prepared._spread_sample(cells, names, inputs).cells) == expected


def test_controls_tell_the_spread_of_few_cells_where_they_are_four_or_more() -> None:
    cells, _ = effects_of(0.1, 2, seed=0)
    config = scdfm.Config.preset("instant").updated({"training": {"min_cells": 1}, "model": {"perturbation": "drugs"}})
    names = tuple(name for name in cells.conditions if name != "control")[:4]
    for n_controls, expected in ((3, 8), (4, 12), (40, 48)):
        rows = np.concatenate([cells.rows("control")[:n_controls], *(cells.rows(name) for name in names)])
        few = cells.take(np.sort(rows))
        inputs = prepare(few, scdfm.Split("named", 0, names, (), ()), config, None)
        assert len(prepared._spread_sample(few, names, inputs).cells) == expected


def test_controls_alone_tell_the_spread_where_every_setting_has_one_cell(tmp_path: Path) -> None:
    """One cell is its own mean: it tells no spread, and there is none to take it together with."""
    screen = scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=6, n_controls=60, seed=1)
    screen.obs["line"] = np.where(np.arange(screen.n_obs) % 2 == 0, "A", "B")
    cells = scdfm.read_cells(screen, covariates=["line"])
    names = [next(name for name in cells.conditions if name.endswith(f"line={line}")) for line in "AB"]
    table = cells.take(np.sort(np.concatenate([cells.rows("control"), *(cells.rows(name)[:1] for name in names)])))
    over = {"training": {"max_steps": 0, "min_cells": 1}, "model": {"perturbation": "drugs"}}
    run = fitted(table, tmp_path / "run", scdfm.Split("named", 0, tuple(names), (), ()), over)
    assert len(run.spread.donors) == 60


def test_a_validation_condition_is_predicted_without_its_own_cells(tmp_path: Path) -> None:
    """Other cells of it change what is predicted of others, and nothing of what is predicted of it."""
    screen = scdfm.simulate(n_genes=30, n_targets=5, cells_per_condition=8, n_controls=20, seed=3)
    split = scdfm.additive_split(scdfm.read_cells(screen), fold=0)
    name, test = split.validation[0], split.test[0]
    other = screen.copy()
    other.X = other.X.toarray()
    rows = (other.obs["perturbation"] == name).to_numpy()
    other.X[rows] = 2 * other.X[rows, ::-1]
    found = []
    for place, adata in enumerate((screen, other)):
        run = fitted(scdfm.read_cells(adata), tmp_path / f"{place}", split)
        assert name in run.prior.conditions
        assert name not in run.training_prior.conditions
        found.append([run.predict([asked], seed=1).X.toarray() for asked in (name, test)])
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert (found[0][1] != found[1][1]).any()


def test_a_single_condition_starts_from_its_own_mean(tmp_path: Path) -> None:
    """Nothing is left where it is left out; of two conditions each starts from what the other lets expect."""
    screen = scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=60, n_controls=90, seed=1)
    cells = scdfm.read_cells(screen)
    singles = [name for name in cells.conditions if name != "control" and "+" not in name]
    off = []
    for n in (1, 2):
        split = scdfm.Split("named", 0, tuple(singles[:n]), (), ())
        run = fitted(cells, tmp_path / f"{n}", split)
        tensors = folder.read_tensors(tmp_path / f"{n}" / CHECKPOINTS / START)
        real = cells.means(singles[:n])[run.genes].to_numpy()
        shift = np.linalg.norm(real - tensors["controls"].numpy(), axis=1)
        off.append(np.linalg.norm(real - tensors["expected"].numpy(), axis=1) / shift)
    assert (off[0] < 0.3).all()
    assert (off[1] > 0.5).all()


def test_the_correlation_of_pairs_is_kept_where_like_goes_to_like(tmp_path: Path) -> None:
    """Of training's own pairs: more cells to choose from are more alike. Read from the folder as it was."""
    screen = scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=20, n_controls=40, seed=1)
    cells = scdfm.read_cells(screen)
    found = {}
    for name, over in {
        "4": {"flow": {"pairing_cells": 4}},
        "16": {"flow": {"pairing_cells": 16}},
        "48": {},
        "random": {"flow": {"pairing": "random"}},
        "instant": {"training": {"max_steps": 0}},
    }.items():
        run = fitted(cells, tmp_path / name, over=over)
        found[name] = scdfm.Run.load(tmp_path / name).spread.correlation
        assert (found[name] is None) == (run.spread.correlation is None)
    assert found["random"] is None
    assert found["instant"] is None
    assert 0.05 < found["4"].mean() < found["16"].mean() - 0.05 < found["48"].mean() - 0.1
