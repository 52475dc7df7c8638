"""The command line end to end, and every refusal: one line that names the remedy, exit code 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
import small
from scdfm.cli.options import names_of
from scdfm.data import targets
from scdfm.errors import ScdfmError

SMALL = [
    "--set", "panel.n_genes=40", "--set", "graph.k=5", "--set", "model.width=16", "--set", "model.gene_heads=2",
    "--set", "model.layers=1", "--set", "training.validate_every=4", "--set", "training.validation_cells=4",
    "--set", "training.cells_per_condition=4", "--set", "training.accelerator=cpu", "--set", "sampling.steps=2",
    "--max-steps", "6", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="session")
def screen(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "screen.h5ad"
    adata = small.screen()
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 2, "odd", "even")
    adata.write_h5ad(path)
    return path


def test_test_conditions_of_unknown_targets_are_left_out_and_named(call, tmp_path):
    """Targets that are no genes: one was never trained, and what else the split tests is predicted and scored."""
    adata = small.screen()
    adata.var_names = [f"gene{place}" for place in range(50)]
    names = sorted(set(adata.obs["perturbation"]) - {"control"})
    new, known = names[0].split("+")[0], next(name for name in reversed(names) if "+" in name)
    parts = {name: "test" if name == known or new in name.split("+") else "train" for name in names}
    adata.obs["part"] = adata.obs["perturbation"].astype(str).map(parts | {"control": "train"})
    adata.write_h5ad(tmp_path / "s.h5ad")
    where, lost = tmp_path / "run", sum(part == "test" for part in parts.values()) - 1
    said = rf"{lost} of {lost + 1} test conditions cannot be predicted, since training tells nothing .*{re.escape(new)}"
    code, _, err = call("fit", tmp_path / "s.h5ad", "--out", where, "--split", "obs:part", *SMALL[:-1])
    assert (code, bool(re.search(said, err))) == (0, True)
    code, _, err = call("predict", where, "--out", tmp_path / "p.h5ad", "--test", "--cells", 6, "--quiet")
    assert (code, bool(re.search(said, err))) == (0, True)
    assert list(ad.read_h5ad(tmp_path / "p.h5ad").obs["perturbation"].unique()) == [known]
    code, _, _ = call(
        "evaluate", tmp_path / "p.h5ad", tmp_path / "s.h5ad", "--run", where, "--out", tmp_path / "e",
        "--metrics", "l2,pearson_delta",
    )  # fmt: skip
    assert code == 0
    code, _, err = call("predict", where, "--conditions", new, "--out", tmp_path / "q.h5ad")
    assert (code, f"nothing is known of '{new}'" in err) == (2, True)


@pytest.fixture(scope="session")
def run(screen, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli-run") / "run"
    cells = scdfm.read_cells(screen)
    config = scdfm.Config().with_settings([value for value in SMALL if "=" in value])
    return scdfm.fit(cells, config=config.updated({"training": {"max_steps": 4}}), out=out, progress=False).path


@pytest.mark.parametrize(("steps", "says"), [("0", ["out"]), ("2", ["err"])])
def test_fit_says_once_what_training_can_gain(call, tmp_path, steps, says):
    """A fit that trains beforehand, where it can still be stopped; one that does not with what it left."""
    small.screen(cells_per_condition=16).write_h5ad(tmp_path / "s.h5ad")
    code, out, err = call(
        "fit", tmp_path / "s.h5ad", "--out", tmp_path / "run", *SMALL[:-3], "--max-steps", steps, "--quiet"
    )
    assert code == 0
    assert [name for name, text in (("out", out), ("err", err)) if "headroom of training" in text] == says
    assert (out + err).count("headroom of training") == 1


def test_fit_predict_evaluate_from_the_command_line(call, screen, tmp_path):
    code, out, _ = call(
        "fit", screen, "--out", tmp_path / "run", "--split", "additive", "--fold", 1, "--seed", 2, *SMALL
    )
    assert code == 0
    assert "training" in out
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["seed"], manifest["config"]["split"]["fold"]) == (2, 1)
    code, out, _ = call("predict", tmp_path / "run", "--out", tmp_path / "p.h5ad", "--test", "--cells", 6, "--quiet")
    assert code == 0
    predicted = ad.read_h5ad(tmp_path / "p.h5ad")
    assert sorted(predicted.obs["perturbation"].unique()) == manifest["split"]["test"]
    assert f"{predicted.n_obs} cells" in out
    asked = ["evaluate", tmp_path / "p.h5ad", screen, "--run", tmp_path / "run", "--name", "mine", "--out"]
    code, out, err = call(*asked, tmp_path / "score")
    assert code == 0
    n = len(manifest["split"]["test"])
    assert all(re.search(rf"{bar}: 100%.* {n}/{n} ", err) for bar in ("rank tests", "populations"))
    assert "prior: 100%" in err
    code, _, err = call(*asked, tmp_path / "quiet", "--quiet")
    assert (code, "%|" in err) == (0, False)
    tables = [(tmp_path / name / "scores.csv").read_bytes() for name in ("score", "quiet")]
    assert tables[0] == tables[1]
    scores = pd.read_csv(tmp_path / "score" / "scores.csv")
    assert {"mine", "prior", "no change", "training mean", "additive", "ridge", "ceiling"} <= set(scores["model"])
    assert "\nprior " in out
    assert "Beside the prior alone: " in " ".join(out.split())
    assert {"l2", "mse", "mae", "pearson_delta", "ds", "ds_signed", "pearson_delta_hat", "energy"} <= set(
        scores["metric"]
    )
    assert "pearson" in out.lower()
    assert (tmp_path / "score" / "report.html").is_file()


def test_a_toml_split_with_a_subset_is_what_is_held_out(call, screen, tmp_path):
    cells = scdfm.read_cells(screen, subset={"batch": "odd"})
    double = next(c for c in cells.conditions if "+" in c)
    b, a = double.split("+")
    (tmp_path / "split.toml").write_text(f'test = ["{a}+{b}"]\n')
    code, _, _ = call(
        "fit", screen, "--out", tmp_path / "run", "--split", tmp_path / "split.toml", "--subset", "batch=odd", *SMALL
    )
    assert code == 0
    run = scdfm.Run.load(tmp_path / "run")
    assert run.split.test == (double,)
    assert run.manifest.data["n_cells"] == cells.n


def test_a_killed_fit_goes_on_with_resume(call, screen, run, tmp_path):
    whole = ["--split", "additive", *SMALL]
    assert call("fit", screen, "--out", tmp_path / "a", *whole)[0] == 0
    before = (tmp_path / "a" / "weights.safetensors").read_bytes()
    code, _, err = call("fit", screen, "--out", tmp_path / "a", *whole)
    assert (code, "exists and is not empty" in err) == (2, True)
    assert call("fit", screen, "--out", tmp_path / "a", "--resume", *whole)[0] == 0
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == before


def test_names_come_from_files_too_commas_and_all(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("A+B|cell_type=T cells, CD4\n\n 1,2-X@5 \n")
    assert names_of("A+B, C,", f"@{file}") == ["A+B", "C", "A+B|cell_type=T cells, CD4", "1,2-X@5"]
    with pytest.raises(ScdfmError, match="file of names .*none.txt cannot be read"):
        names_of(f"@{tmp_path / 'none.txt'}")
    known = {"2,4-D", "Fluorouracil (5-Fluoracil, 5-FU)", "(+)-JQ1", "A", "B"}
    run = SimpleNamespace(knows=lambda name: set(targets(name)) <= known)
    given = "Fluorouracil (5-Fluoracil, 5-FU)@100,(+)-JQ1@1, 2,4-D@5 ,A,B"
    names = ["Fluorouracil (5-Fluoracil, 5-FU)@100", "(+)-JQ1@1", "2,4-D@5", "A", "B"]
    assert names_of(given, run=run) == names
    assert names_of(given)[2:4] == ["2", "4-D@5"]  # nobody knows the name
    file.write_text("\n")
    with pytest.raises(ScdfmError, match="holds no name; expected one a line"):
        names_of(f"@{file}")


def test_predict_chooses_by_name_and_by_pairs(call, run, tmp_path):
    targets = scdfm.Run.load(run).manifest.targets[:3]
    code, _, _ = call(
        "predict", run, "--out", tmp_path / "p.h5ad", "--all-pairs-of", ",".join(targets), "--cells", 3, "--quiet"
    )
    assert code == 0
    assert ad.read_h5ad(tmp_path / "p.h5ad").obs["perturbation"].nunique() == 3
    code, _, err = call("predict", run, "--out", tmp_path / "p.h5ad", "--test")
    assert (code, "exists; choose another name, or pass --overwrite" in err) == (2, True)
    names = f"{targets[1]}+{targets[0]},{targets[2]}"
    code, _, _ = call(
        "predict", run, "--out", tmp_path / "p.h5ad", "--conditions", names, "--cells", 2, "--overwrite", "--quiet"
    )
    assert code == 0
    assert list(ad.read_h5ad(tmp_path / "p.h5ad").obs["perturbation"].cat.categories) == sorted(
        ["+".join(sorted(targets[:2])), targets[2]], key=lambda n: "+" not in n
    )


def broken(tmp_path, screen, change):
    adata = ad.read_h5ad(screen)
    change(adata)
    adata.write_h5ad(tmp_path / "broken.h5ad")
    return tmp_path / "broken.h5ad"


def put(value):
    def change(adata):
        dense = adata.X.toarray()
        dense[3, 4] = value
        adata.X = dense

    return change


def counts(adata):
    adata.X = adata.layers["counts"]


def lonely(adata):
    keep = np.ones(adata.n_obs, bool)
    first = adata.obs["perturbation"] == "G050"
    keep[np.flatnonzero(first)[1:]] = False
    adata._inplace_subset_obs(keep)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, ["--perturbation-key", "pertubation"], "'pertubation' is not in obs; .*perturbation"),
        (None, ["--control", "NT"], "labelled 'NT'"),
        (
            None,
            ["--split", "alphabetical"],
            r"expected additive, holdout, combinations, covariate:NAME, .* FILE.toml or obs:COLUMN",
        ),
        (None, ["--split", "obs:fold"], "split column 'fold' is not in obs"),
        (None, ["--split", "none.toml"], "split file none.toml cannot be read"),
        (None, ["--subset", "batch"], "expected COLUMN=VALUE"),
        (None, ["--subset", "batch=third"], "batch=third matches no cell"),
        (None, ["--set", "training.speed=9"], "unknown key 'training.speed'"),
        (None, ["--preset", "huge"], "expected one of default, instant, paper, tiny"),
        (None, ["--config", "none.toml"], "config file none.toml cannot be read"),
        (None, ["--target-sum", "many"], "expected a number such as 10000, or median"),
        (None, ["--target-sum", "10000"], "holds log1p values .*expected counts"),
        (None, ["--max-steps", "-1"], "training.max_steps"),
        (put(-1.0), [], "negative"),
        (put(np.nan), [], "nan|finite"),
        (put(np.inf), [], "inf|finite"),
        (counts, [], "raw counts.*target_sum"),
        (lonely, [], "'G050' has 1 cell, expected at least 2"),
    ],
)
def test_a_fit_that_cannot_be_is_refused_in_one_line(call, screen, tmp_path, change, options, message):
    data = screen if change is None else broken(tmp_path, screen, change)
    code, out, err = call(
        "fit", data, "--out", tmp_path / "run", *options, *(SMALL if "--max-steps" not in options else [])
    )
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert pd.Series([err]).str.contains(message, regex=True).all(), err
    assert not (tmp_path / "run").exists()


def test_missing_and_foreign_files_are_refused(call, run, screen, tmp_path):
    (tmp_path / "text.h5ad").write_text("not hdf5")
    for data, message in [("none.h5ad", "does not exist"), (tmp_path / "text.h5ad", "text.h5ad")]:
        code, _, err = call("fit", data, "--out", tmp_path / "run", *SMALL)
        assert (code, err.count("\n"), message in err) == (2, 1, True), err
    code, _, err = call("predict", tmp_path, "--out", tmp_path / "p.h5ad", "--test")
    assert (code, "is not a run folder" in err) == (2, True)
    code, _, err = call("predict", run, "--out", tmp_path / "none" / "p.h5ad", "--test")
    assert (code, "does not exist; create it first" in err) == (2, True)
    code, _, err = call("evaluate", tmp_path / "text.h5ad", screen, "--out", tmp_path / "score")
    assert (code, err.count("\n")) == (2, 1), err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "choose exactly one of"),
        (["--test", "--conditions", "A"], "choose exactly one of"),
        (["--conditions", "NOPE+G050"], "target 'NOPE' of condition"),
        (["--conditions", ","], "no condition to predict"),
        (["--test", "--cells", "0"], "expected at least 1, found 0"),
        (["--test", "--controls", "none.h5ad"], "none.h5ad"),
    ],
)
def test_a_prediction_that_cannot_be_is_refused_in_one_line(call, run, tmp_path, options, message):
    code, _, err = call("predict", run, "--out", tmp_path / "p.h5ad", *options)
    assert (code, err.count("\n"), message in err) == (2, 1, True), err
    assert not (tmp_path / "p.h5ad").exists()


def test_simulate_writes_a_screen_that_opens(call, tmp_path):
    code, out, _ = call("simulate", tmp_path / "s.h5ad", "--genes", 60, "--targets", 4, "--cells", 10, "--controls", 20)
    assert code == 0
    adata = ad.read_h5ad(tmp_path / "s.h5ad")
    assert f"{adata.n_obs} cells × 60 genes" in out
    code, _, err = call("simulate", tmp_path / "s.h5ad")
    assert (code, "pass --overwrite" in err) == (2, True)
    code, _, err = call("simulate", tmp_path / "t.h5ad", "--interaction", "wild")
    assert (code, "expected 'none', 'strong' or a number" in err) == (2, True)


def test_an_unexpected_error_is_one_line_and_its_traceback_is_kept(call, monkeypatch, tmp_path, screen):
    def explode(*args, **kwargs):
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("scdfm.data.reading.read_cells", explode)
    code, _, err = call("fit", screen, "--out", tmp_path / "run", *SMALL)
    assert code == 1
    assert err.startswith("unexpected error (ZeroDivisionError: surprise); please report it with ")
    log = err.rsplit(" ", 1)[1].strip()
    assert "Traceback" in Path(log).read_text()


def test_version_and_help(call):
    assert call("--version")[1].split()[0] == scdfm.__version__
    code, out, _ = call("--help")
    assert code == 0
    assert all(name in out for name in ("demo", "simulate", "fit", "predict", "evaluate"))


def test_help_imports_nothing_heavy():
    script = (
        "import sys; sys.argv=['scdfm','--help']\n"
        "from scdfm.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'scanpy', 'anndata', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_a_fit_that_keeps_the_prior_says_so(call, screen, tmp_path):
    wild = ["--set", "training.learning_rate=0.1", "--set", "training.warmup_steps=0", "--set", "training.ema_decay=0"]
    code, out, _ = call("fit", screen, "--out", tmp_path / "a", "--split", "additive", *SMALL, *wild)
    assert code == 0
    assert "weights kept: step 0" in out
    assert re.search(r"training over the prior, 1 validation condition: energy .* the prior alone is kept", out)
    code, out, _ = call(
        "fit", screen, "--out", tmp_path / "b", "--split", "additive", *SMALL, *wild, "--set", "training.keep=last"
    )
    assert (code, "step 0:" in out) == (0, False)


@pytest.mark.parametrize(("patience", "said"), [(1, "stopped at step 4 of 8: nothing better in 1 validation"), (0, "")])
def test_a_fit_that_ends_early_says_where_and_why(call, screen, tmp_path, patience, said):
    still = ("learning_rate=1e-30", "min_learning_rate=0", "warmup_steps=0", "validate_every=2", f"patience={patience}")
    settings = [text for one in still for text in ("--set", f"training.{one}")]
    out = call("fit", screen, "--out", tmp_path, "--split", "additive", *SMALL, "--max-steps", 8, *settings)[1]
    assert said in out
    assert ("stopped at" in out) == bool(patience)


def test_named_targets_go_with_a_split_of_the_command_line(call, screen, tmp_path):
    target = sorted(scdfm.read_cells(screen).conditions)[0].split("+")[0]
    (tmp_path / "c.toml").write_text(f'[split]\ntargets = ["{target}"]\n', encoding="utf-8-sig")
    for where, given in (("a", ("--set", f'split.targets=["{target}"]')), ("b", ("--config", tmp_path / "c.toml"))):
        code, _, err = call(
            "fit", screen, "--out", tmp_path / where, "--split", "holdout", *given, *SMALL, "--max-steps", 1
        )
        assert code == 0, err
        assert all(target in name.split("+") for name in scdfm.Run.load(tmp_path / where).split.test)


def test_real_cells_are_read_as_the_run_read_them(call, tmp_path):
    """Column, control label, layer and total come from the run; what is given on the command line goes over them."""
    adata = small.screen()
    adata.obs = adata.obs.rename(columns={"perturbation": "gene"})
    adata.obs["gene"] = adata.obs["gene"].astype(str).replace({"control": "NT"})
    adata.write_h5ad(tmp_path / "s.h5ad")
    reading = ("--perturbation-key", "gene", "--control", "NT", "--layer", "counts", "--target-sum", 5000)
    code, _, err = call("fit", tmp_path / "s.h5ad", "--out", tmp_path / "run", *reading, *SMALL, "--max-steps", 1)
    assert code == 0, err
    code, _, err = call("predict", tmp_path / "run", "--test", "--cells", 6, "--out", tmp_path / "p.h5ad", "--quiet")
    assert code == 0, err
    code, _, err = call(
        "evaluate",
        tmp_path / "p.h5ad",
        tmp_path / "s.h5ad",
        "--run",
        tmp_path / "run",
        "--out",
        tmp_path / "e",
        "--metrics",
        "l2,pearson_delta",
        "--quiet",
    )
    assert code == 0, err
    scores = pd.read_csv(tmp_path / "e" / "scores.csv")
    cells = scdfm.read_cells(tmp_path / "s.h5ad", "gene", "NT", 5000, "counts")
    run = scdfm.Run.load(tmp_path / "run")
    by_hand = scdfm.evaluate(tmp_path / "p.h5ad", cells, training=run, metrics=["l2"])
    first = scores[(scores["model"] == "model") & (scores["metric"] == "l2")]["value"].to_numpy()
    np.testing.assert_allclose(first, by_hand.query("model == 'model' and metric == 'l2'")["value"], rtol=1e-6)
    code, _, err = call(
        "evaluate", tmp_path / "p.h5ad", tmp_path / "s.h5ad", "--run", tmp_path / "run", "--out", tmp_path / "f",
        "--layer", "nowhere",
    )  # fmt: skip
    assert (code, "no layer 'nowhere'" in err) == (2, True)


def test_what_changes_the_meaning_is_said_with_quiet(call, screen, tmp_path):
    adata = ad.read_h5ad(screen)
    adata.X = np.expm1(adata.X.toarray())
    adata.write_h5ad(tmp_path / "s.h5ad")
    code, _, err = call(
        "fit",
        tmp_path / "s.h5ad",
        "--out",
        tmp_path / "run",
        "--target-sum",
        10000,
        *SMALL,
        "--max-steps",
        1,
        "--quiet",
    )
    assert (code, "taken for corrected or normalised counts" in err) == (0, True)


def test_options_of_a_file_of_controls_go_with_it(call, run, screen, tmp_path):
    adata = ad.read_h5ad(screen)
    control = adata[(adata.obs["perturbation"] == "control").to_numpy()].copy()
    control.obs = pd.DataFrame({"guide": "NT"}, index=control.obs_names)
    control.X = control.layers["counts"]
    control.write_h5ad(tmp_path / "c.h5ad")
    name = scdfm.Run.load(run).split.test[0]
    words = ("predict", run, "--conditions", name, "--cells", 3, "--out", tmp_path / "p.h5ad", "--overwrite")
    given = ("--perturbation-key", "guide", "--control", "NT", "--target-sum", 10000)
    assert call(*words, "--controls", tmp_path / "c.h5ad", *given)[0] == 0
    code, _, err = call(*words, *given)
    assert (code, "go with --controls FILE" in err) == (2, True)


def test_a_fit_on_everything(call, screen, tmp_path):
    code, out, _ = call("fit", screen, "--out", tmp_path / "run", "--split", "none", "--preset", "instant")
    assert code == 0
    assert "and 0 test conditions" in out
    code, _, err = call("predict", tmp_path / "run", "--out", tmp_path / "p.h5ad", "--test")
    assert (code, "the run's split keeps no test condition" in err) == (2, True)
    trained = scdfm.Run.load(tmp_path / "run").split.train[0]
    assert call("predict", tmp_path / "run", "--out", tmp_path / "p.h5ad", "--conditions", trained)[0] == 0
    scored = ("evaluate", tmp_path / "p.h5ad", screen, "--run", tmp_path / "run", "--metrics", "l2")
    out = call(*scored, "--out", tmp_path / "e")[1]
    assert "This is no test of model: 1 of the scored conditions trained it." in " ".join(out.split())
    code, _, err = call("benchmark", screen, "--out", tmp_path / "bench", "--split", "none", "--models", "instant")
    assert (code, "keeps no test condition, expected some to score" in err) == (2, True)
