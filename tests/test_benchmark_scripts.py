"""The scripts that say what the flow is worth: their scores on populations whose answer is known, and their pages."""

from __future__ import annotations

import sys
import tomllib
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import scdfm
from scdfm.data import CONTROL
from scdfm.seeds import numpy_rng

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
GENES, MOVED = 40, 10


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """A script of benchmarks/ as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return __import__(name)

    return load


def escapers(seed: int, share: float, shift: float, n: int = 150) -> np.ndarray:
    """Cells × genes, of which a share has MOVED genes shifted; the others are control cells."""
    rng = np.random.default_rng(seed)
    cells = rng.normal(0.5, 1.0, (n, GENES))
    cells[: round(share * n), :MOVED] += shift
    return np.maximum(cells, 0).astype(np.float32)


def test_responders_show_where_means_agree(script) -> None:
    compare = script("population_scores").compare
    real, control = escapers(0, 0.5, 3.0), escapers(1, 0, 0, 600)
    same, alike = compare(escapers(2, 0.5, 3.0), real, control), compare(escapers(3, 1, 1.6), real, control)
    assert same["responders"] < 0.1
    assert alike["responders"] > 0.2
    for name in ("energy", "energy=", "wasserstein", "wasserstein=", "response", "response=", "correlation"):
        assert same[name] < 0.8 * alike[name], name
    assert abs(same["auc"] - 0.5) < 0.12
    assert alike["auc_axes="] > 0.7
    assert abs(same["energy"]) < 0.1


def test_what_is_no_response_has_no_responders(script) -> None:
    scores = script("population_scores").compare(
        escapers(0, 0, 0), escapers(1, 0, 0), escapers(2, 0, 0), classify=False
    )
    assert np.isnan([scores["responders"], scores["response"], scores["auc"]]).all()


def test_cells_are_brought_to_a_mean(script) -> None:
    scores = script("population_scores")
    cells = escapers(0, 0, 0)
    wanted = cells.mean(0) * np.linspace(0.1, 2.5, GENES)
    multiplied = scores.equalled(cells, wanted)
    for made in (multiplied, scores.moved(cells, wanted)):
        np.testing.assert_allclose(made.mean(0), wanted, rtol=1e-4)
    np.testing.assert_array_equal(multiplied > 0, cells > 0)
    np.testing.assert_array_equal(scores.moved(cells, cells.mean(0)), cells)


def test_rows_of_a_screen_are_scored_once(script, tmp_path, monkeypatch) -> None:
    populations = script("populations")
    cells = scdfm.read_cells(scdfm.simulate(seed=0))
    monkeypatch.setitem(populations.SCREENS, "papalexi", lambda data: cells)
    monkeypatch.setattr(populations, "compare", partial(populations.compare, classify=False))
    sizes = ("panel.n_genes=60", "graph.k=5", "model.width=16", "model.layers=1", "model.gene_heads=2",
             "flow.genes_per_step=40", "training.validation_cells=4")  # fmt: skip
    settings = [text for size in sizes for text in ("--set", size)]
    command = ["benchmarks/populations.py", str(tmp_path), "--screens", "papalexi", "--seeds", "1", "--budgets", "2",
               "--rows", "prior,controls,shifted,scaled,floor,own,default", "--conditions", "2", "--cells", "30",
               "--out", str(tmp_path / "out"), "--results", str(tmp_path), *settings]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    populations.main()
    page = (tmp_path / "populations.md").read_text()
    for row in ("prior", "controls", "shifted", "scaled", "floor", "own", "default 2"):
        assert page.count(f"\n| {row} | ") == (2 if row == "prior" else 4)
    monkeypatch.setattr(scdfm, "fit", None)
    populations.main()
    assert (tmp_path / "populations.md").read_text() == page


def test_the_halves_share_no_cell_and_no_judged_condition_validates(script, tmp_path) -> None:
    populations = script("populations")
    cells = scdfm.read_cells(scdfm.simulate(seed=0))
    half = populations.Halved(cells, 0, scdfm.Config(), tmp_path, 30, 1000)
    fits, judges = half.halves
    assert set(fits.obs.index).isdisjoint(judges.obs.index)
    assert len(fits.obs) + len(judges.obs) == cells.n
    assert all(abs(fits.n_cells(name) - judges.n_cells(name)) <= 1 for name in cells.conditions)
    assert set(half.judged) == set(cells.conditions) - {CONTROL} - set(half.split.validation)
    assert half.split.validation


def test_a_condition_s_own_cells_keep_what_goes_together_at_the_prior_s_means(script, tmp_path) -> None:
    populations = script("populations")
    config = scdfm.Config.preset("instant").updated({"panel": {"n_genes": 40}})
    half = populations.Halved(scdfm.read_cells(scdfm.simulate(seed=0)), 0, config, tmp_path, 1000, 3)
    alike = {"own": [], "prior": []}
    for name in half.judged:
        cells = half.drawn(half.halves[0], name, half.size(name))
        often = (cells > 0).mean(0) > 0.9
        pairs = np.triu_indices(often.sum(), 1)
        for row, made in (("own", half.own(name)), ("prior", half.predicted(half.closed_form, name))):
            assert len(made) == len(cells) == half.size(name)
            assert np.abs(made.mean(0) - half.expected(name)).mean() < 0.1
            ranks = [spearmanr(some[:, often]).statistic[pairs] for some in (cells, made)]
            alike[row].append(np.corrcoef(ranks)[0, 1])
    assert min(alike["own"]) > 0.8
    assert max(alike["prior"]) < 0.5


def test_hidden_states_are_judged_by_independent_cells(script, monkeypatch) -> None:
    """As the true ones are: those that a run draws by itself are even, and score too low."""
    hidden, asked = script("hidden_states"), []
    law = hidden.Law.drawn(0)
    truth = hidden.table(law, {"control": 40, "T0": 30}, np.random.default_rng(0))

    class Judged:
        def __init__(self, path, manifest) -> None:
            self.noise = manifest["config"].sampling.noise

        def predict(self, conditions, n_cells, seed, genes) -> ad.AnnData:
            asked.append((self.noise, seed))
            cells = truth.X[truth.rows("T0")][:, truth.columns(genes)] * (1 + seed)
            names = [str(row) for row in range(cells.shape[0])]
            return ad.AnnData(cells, obs=pd.DataFrame({"perturbation": "T0"}, index=names))

    monkeypatch.setattr(hidden.scdfm, "Run", Judged)
    manifest = SimpleNamespace(model_copy=lambda update: update)
    run = SimpleNamespace(path=None, config=scdfm.Config(), manifest=manifest)
    scores = hidden.judged(run, truth, SimpleNamespace(test=["T0"]))["T0"]
    assert asked == [("independent", seed) for seed in range(hidden.DRAWS)]
    length = np.linalg.norm(truth.X[truth.rows("T0")].toarray().mean(0))
    assert scores["l2"] == pytest.approx(length * np.mean(range(hidden.DRAWS)), rel=1e-4)


def test_a_changed_option_is_told_beside_the_preset(script) -> None:
    """Each row is another fit, and a gain is positive where the change is better."""
    options, plain = script("training_options"), script("hidden_states").options(0, 1000)
    fits = [plain.with_settings([*options.COMMON, *change]) for change in options.CHANGES.values()]
    assert all(a != b for place, a in enumerate(fits) for b in fits[:place])
    energy = {"as it is": (0.5, 0.7), "learning rate 6e-3": (0.4, 0.5)}
    rows = [
        dict.fromkeys(options.SCORED, value) | {"seed": seed, "row": row}
        for row, values in energy.items()
        for seed, value in enumerate(values)
    ]
    page = options.page(pd.DataFrame(rows), 1000)
    assert "| as it is | 2 | 0.6000 |" in page
    assert "| learning rate 6e-3 | 2 | 0.4500 |" in page
    assert page.count("| +0.1500 ± 0.0500 | +0.1500 ± 0.0500 |") == 1


def test_the_room_is_true_cells_as_far_off_as_the_prior(script, monkeypatch) -> None:
    hidden = script("hidden_states")
    monkeypatch.setattr(hidden, "MANY", 400)
    law, split = hidden.Law.drawn(0), SimpleNamespace(test=["T0"])
    cells = hidden.table(law, {"control": 40, "T0": 50}, np.random.default_rng(0))
    genes = [str(gene) for gene in cells.genes][::-1]
    true = hidden.table(law, {"control": 400, "T0": 400}, numpy_rng(3, "many")).mean("T0")[::-1]
    means = pd.DataFrame([np.zeros(len(genes))], index=["control"], columns=genes)
    found = {}
    for more in (0.0, 0.25):
        expected = SimpleNamespace(predict=lambda names, more=more: (true + more)[None])
        run = SimpleNamespace(genes=genes, means=means, knowing=lambda names, expected=expected: expected)
        ((name, found[more]),) = hidden.room(run, law, cells, split, 3)
        assert name == "T0"
    own = cells.X[cells.rows("T0")].toarray()
    np.testing.assert_allclose(found[0.0], own, atol=1e-5)  # where the prior is right
    np.testing.assert_allclose(found[0.25].mean(0), own.mean(0) + 0.25, atol=1e-5)


def test_a_fit_beside_others_is_the_one_that_the_benchmark_scores(script, tmp_path, monkeypatch) -> None:
    """`--jobs` fits pieces in processes of their own, where the benchmark looks for them: it fits none again."""
    learning = script("learning")
    scdfm.simulate(n_genes=40, n_targets=5, cells_per_condition=8, n_controls=20, seed=0).write_h5ad(
        tmp_path / "s.h5ad"
    )
    sizes = ("panel.n_genes=30", "graph.k=5", "model.width=16", "model.layers=1", "model.gene_heads=2",
             "flow.genes_per_step=16", "training.validation_cells=4", "training.validate_every=2")  # fmt: skip
    settings = [text for size in sizes for text in ("--set", size)]
    command = ["learning.py", str(tmp_path / "s.h5ad"), "--screens", "norman-like", "--sources", "gaussian", "--seeds", "1",
               "--steps", "2", "--out", str(tmp_path / "out"), "--results", str(tmp_path), *settings]  # fmt: skip
    pieces = [("--piece", f"norman-like|{name}|0") for name in ("source gaussian", learning.ALONE)]
    for options in (("--jobs", "2", "--seconds", "0"), *pieces):
        monkeypatch.setattr(sys, "argv", [*command, *options])
        learning.main()
    fits = sorted((tmp_path / "out").glob("*/fold0/*/run/manifest.json"))
    begun = [path.stat().st_mtime_ns for path in fits]
    monkeypatch.setattr(sys, "argv", command)
    learning.main()
    assert sorted((tmp_path / "out").glob("*/fold0/*/run/manifest.json")) == fits
    assert [path.stat().st_mtime_ns for path in fits] == begun
    assert "| source gaussian |" in (tmp_path / "learning.md").read_text()


def test_curves_of_unfinished_fits_are_shown(script, tmp_path) -> None:
    learning = script("learning")
    for seed, steps in ((0, 1500), (1, 1000)):
        run = tmp_path / "fold0" / f"source_gaussian-seed{seed}" / "run"
        run.mkdir(parents=True)
        step = np.arange(250, steps + 1, 250)
        scores = {name: np.where(step % 500 == 0, step / 1000 + seed, np.nan) for name in learning.VALIDATED[1:]}
        pd.DataFrame({"step": step, "loss": 1.0, **scores}).to_csv(run / "log.csv", index=False)
    page = learning.section("norman-like", tmp_path, ["source gaussian"], 2000)
    assert "| source gaussian | 500 | 2 | – | 1 | 1 | 1 |" in page
    assert "| source gaussian | 1,500 | 1 | – | 1.5 | 1.5 | 1.5 |" in page
    assert "source gaussian, seed 1: 1,000 of 2,000 steps" in page
    assert "Test:" not in page


def test_a_part_is_worth_what_its_absence_costs_seed_by_seed(script) -> None:
    """Of two seeds that lie far apart; a step that only one of them reached is not shown."""
    learning = script("learning")
    rows = [
        {"model": model, "seed": seed, "step": step, **dict.fromkeys(learning.VALIDATED, 10.0 * seed + lost)}
        for model, losses in (("source gaussian", (0, 0)), ("gaussian no MMD", (0.1, 0.3)))
        for seed, lost in enumerate(losses)
        for step in (500, 1000, 1500)
        if (seed, step) != (1, 1500)
    ]
    lines = learning.parts_table(pd.DataFrame(rows)).splitlines()[2:]
    worth = " | ".join(["+0.2000 ± 0.1000"] * len(learning.VALIDATED))
    assert lines == [f"| no MMD | {step} | 2 | {worth} |" for step in ("500", "1,000")]
    assert learning.parts_table(pd.DataFrame(rows[:3])) == ""


def test_every_mutation_is_of_a_text_that_is_there(script) -> None:
    """A change of the code brings its line of mutants.toml along, and a file has tests that can kill."""
    tests = script("mutants").TESTS
    for name, mutants in tomllib.loads((BENCHMARKS / "mutants.toml").read_text()).items():
        assert all((BENCHMARKS.parent / test.split("::")[0]).exists() for test in tests[name])
        source = (BENCHMARKS.parent / "src" / "scdfm" / name).read_text()
        for mutant, (before, after) in mutants.items():
            assert source.count(before) == 1, f"{name}: {mutant}"
            assert before != after
