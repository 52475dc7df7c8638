"""The whole benchmark: resumed to the last digit, a peer in the same table, every file, every refusal."""

from __future__ import annotations

import json
import shutil
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm import cli
from scdfm.benchmarking import Contender, pieces
from scdfm.errors import ConditionError, ConfigError, DataError, RunError
from scdfm.training.module import FlowModule

SMALL = [
    "panel.n_genes=40", "graph.k=5", "model.width=16", "model.gene_heads=2", "model.layers=1", "training.max_steps=4",
    "training.validate_every=2", "training.validation_cells=4", "training.cells_per_condition=4",
    "training.accelerator=cpu", "sampling.steps=2", "sampling.cells=6", "split.held_out_targets=2",
]  # fmt: skip
METRICS = ("l2", "pearson_delta", "ds", "energy")
FILES = ("scores.csv", "summary.csv", "differences.csv", "benchmark.md", "benchmark.html")


def run(cells, out, **options):
    given = {"split": "holdout", "folds": [0, 1], "seeds": 1, "models": "tiny", "metrics": METRICS, "progress": False}
    return scdfm.benchmark(cells, out=out, options=SMALL, **{**given, **options})  # fmt: skip


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def whole(cells, tmp_path_factory):
    return run(cells, tmp_path_factory.mktemp("whole") / "out")


def test_every_baseline_and_part_is_in_the_table(whole):
    assert set(whole.summary["part"]) == {"all", "single", "double"}
    order = list(dict.fromkeys(whole.summary["model"]))
    assert order == [
        "no change", "training mean", "additive", "ridge", "low-rank linear", "covariance", "prior", "tiny", "duplicate",
        "ceiling",
    ]  # fmt: skip
    every = whole.summary[whole.summary["part"] == "all"].set_index(["model", "metric"])["n"]
    parts = whole.summary[whole.summary["part"] != "all"].groupby(["model", "metric"])["n"].sum()
    pd.testing.assert_series_equal(every.sort_index(), parts.sort_index())
    assert set(whole.differences["model"]) == {"tiny"}


def test_a_piece_is_what_fit_predict_and_evaluate_give(whole, cells, tmp_path):
    config = scdfm.Config.preset("tiny").with_settings([*SMALL, "split.kind=holdout", "split.fold=1", "seed=0"])
    fitted = scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    predicted = fitted.predict(seed=0)
    means = cells.means(["control", *fitted.split.train, *fitted.split.validation])
    table = scdfm.evaluate(
        predicted, cells, training=means, metrics=METRICS, name="tiny", check_scale=False, seed=1,
        prior=fitted.untrained(),
    )  # fmt: skip
    assert "prior" in set(table["model"])
    ours = whole.scores[(whole.scores["fold"] == 1) & (whole.scores["beside"] == "")]
    columns = ["model", "condition", "metric"]
    theirs = table.set_index(columns)["value"].sort_index()
    pd.testing.assert_series_equal(ours.set_index(columns)["value"].sort_index(), theirs, rtol=1e-6, check_exact=False)


class Killed(BaseException):
    """What no code catches, as a kill."""


def kill_fit(patch: pytest.MonkeyPatch, fit: int, step: int) -> None:
    """Die in the training step `step` of fit number `fit`."""
    real, begun = FlowModule.training_step, []

    def dying(self, batch, batch_idx):
        begun.append(None) if self.global_step == 0 else None
        if len(begun) == fit and self.global_step == step:
            raise Killed
        return real(self, batch, batch_idx)

    patch.setattr(FlowModule, "training_step", dying)


def kill_at_call(patch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Die before the call number `call` of a function of `pieces`."""
    real, calls = getattr(pieces, name), []

    def dying(*arguments, **options):
        calls.append(None)
        if len(calls) == call:
            raise Killed
        return real(*arguments, **options)

    patch.setattr(pieces, name, dying)


@pytest.mark.parametrize(
    ("die", "arguments"),
    [(kill_fit, (2, 3)), (kill_at_call, ("write_piece", 3)), (kill_at_call, ("write_json", 2))],
    ids=["in a fit", "before its scores are kept", "before a piece is declared finished"],
)
def test_a_killed_benchmark_resumes_to_the_same_bytes(whole, cells, tmp_path, die, arguments):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        die(patch, *arguments)
        run(cells, tmp_path / "out")
    assert not (tmp_path / "out" / "summary.csv").exists()
    resumed = run(cells, tmp_path / "out", resume=True)
    assert contents(resumed.path) == contents(whole.path)


def test_finished_pieces_are_read_not_done_again(whole, cells, tmp_path, capsys):
    shutil.copytree(whole.path, tmp_path / "out")
    before = (tmp_path / "out" / "fold0" / "tiny-seed0" / "run" / "weights.safetensors").stat().st_mtime_ns
    scores = tmp_path / "out" / "fold1" / "tiny-seed0" / "scores.csv"
    scores.write_text(scores.read_text().replace("tiny", "tinY", 1))
    again = run(cells, tmp_path / "out", resume=True, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"[{i}/4] ") for i, line in enumerate(lines, 1)] == [True] * 4
    assert [line.endswith("finished before") for line in lines] == [True, True, True, False]
    assert (tmp_path / "out" / "fold0" / "tiny-seed0" / "run" / "weights.safetensors").stat().st_mtime_ns == before
    assert contents(again.path) == contents(whole.path)


def test_the_gain_over_the_prior_stands_beside_that_over_the_best_baseline(whole):
    gaps = whole.differences[whole.differences["part"] == "all"]
    beside = gaps[gaps["baseline"] == "prior"].set_index("metric")["improvement"]
    assert list(beside.index) == list(METRICS)
    assert (gaps.groupby("metric").size() == 2).all()
    means = whole.summary.query("part == 'all'").set_index(["model", "metric"])["mean"]
    assert beside["l2"] == pytest.approx(means["prior", "l2"] - means["tiny", "l2"], abs=1e-9)
    text = (whole.path / "benchmark.md").read_text(encoding="utf-8")
    assert "| tiny | L2 ↓ | prior |" in text
    for said in (text, whole.text, whole.page.read_text(encoding="utf-8")):
        assert "Beside the prior alone, on 4 metrics: " in said
    assert "what the same run predicts before training" in whole.page.read_text(encoding="utf-8")


def test_a_piece_without_its_prior_is_scored_again_not_fitted_again(whole, cells, tmp_path):
    """As a version left it that knew no such row."""
    shutil.copytree(whole.path, tmp_path / "out")
    piece = tmp_path / "out" / "fold0" / "tiny-seed0"
    scores = pd.read_csv(piece / "scores.csv", keep_default_na=False)
    scores[scores["model"] != "prior"].to_csv(piece / "scores.csv", index=False)
    record = json.loads((piece / "piece.json").read_text())
    record |= {"key": "an older one", "scores": pieces.file_digest(piece / "scores.csv")}
    (piece / "piece.json").write_text(json.dumps(record))
    fitted = (piece / "run" / "weights.safetensors").stat().st_mtime_ns
    again = run(cells, tmp_path / "out", resume=True)
    assert (piece / "run" / "weights.safetensors").stat().st_mtime_ns == fitted
    assert contents(again.path) == contents(whole.path)


def test_a_peer_added_on_resume_stands_beside_the_model_on_common_genes(whole, cells, peer, tmp_path):
    shutil.copytree(whole.path, tmp_path / "out")
    run_before = tmp_path / "out" / "fold0" / "tiny-seed0" / "predicted.h5ad"
    before = run_before.stat().st_mtime_ns
    path = peer("peer.h5ad", n_genes=45)
    found = run(cells, tmp_path / "out", resume=True, models=f"tiny,file:CPA={path}")
    assert run_before.stat().st_mtime_ns == before
    own = found.scores[(found.scores["beside"] == "") & (found.scores["metric"] == "l2")]
    scored = own.dropna(subset="value").groupby("model")["condition"].size()
    assert scored["CPA"] == scored["tiny"] == scored["no change"] > 0
    # beside another model, whose prior it is stands in its name
    assert "prior (tiny)" in set(found.summary["model"])
    assert not {"prior", "prior (CPA)"} & set(found.summary["model"])
    beside = found.differences[found.differences["baseline"].str.startswith("prior")]
    assert set(zip(beside["model"], beside["baseline"], strict=True)) == {("tiny", "prior (tiny)")}
    assert any(note.startswith("CPA, folds 0, 1: one file for all folds") for note in found.notes)
    both = found.differences[(found.differences["part"] == "all") & (found.differences["metric"] == "l2")]
    both = both[~both["baseline"].str.startswith("prior")]
    assert both.set_index("model").loc["CPA", "improvement"] > 0
    # all stand on the genes that screen, model and file share
    genes = set(ad.read_h5ad(run_before).var_names) & set(ad.read_h5ad(path).var_names)
    assert json.loads((found.path / "fold0" / "CPA" / "piece.json").read_text())["n_genes"] == len(genes)
    names = sorted(genes)
    mean = cells.means()[names]
    split = scdfm.make_split(cells, scdfm.Config().with_settings(["split.kind=holdout", *SMALL]).split)
    expected = np.linalg.norm(mean.loc[list(split.test)] - mean.loc["control"], axis=1).mean()
    l2 = found.scores.query("model == 'no change' and metric == 'l2' and fold == 0 and beside == ''")
    assert l2["value"].mean() == pytest.approx(expected, rel=1e-5)


def test_a_file_without_some_conditions_is_scored_on_the_others(cells, peer, tmp_path):
    split = scdfm.holdout_split(cells, 0, 2)
    path = peer("partial.h5ad", conditions=split.test[1:])
    found = run(cells, tmp_path / "out", folds=[0], models=f"file:CPA={path}")
    n = len(split.test)
    note = f"CPA, fold 0: scored on {n - 1} of {n} test conditions; not predicted: {split.test[0]}"
    assert note in found.notes
    beside = found.scores[found.scores["beside"] == "CPA"]
    assert set(beside["condition"]) == set(split.test[1:])
    assert "no change" in set(beside["model"])
    own = found.summary.query("part == 'all' and metric == 'l2'").set_index("model")["n"]
    assert (own["CPA"], own["no change"]) == (n - 1, n)
    gaps = found.differences.query("part == 'all' and metric == 'ds'")
    assert gaps["n"].item() == n - 1


def test_a_file_for_each_fold_and_seed(cells, peer, tmp_path):
    path = peer("model_0_0.h5ad")
    for name in ("model_0_1", "model_1_0", "model_1_1"):
        shutil.copy(path, path.with_name(f"{name}.h5ad"))
    pattern = str(path).replace("model_0_0", "model_{fold}_{seed}")
    found = run(cells, tmp_path / "out", seeds=2, models=[f"file:CPA={pattern}"], metrics=["l2"])
    assert not any("one file for all folds" in note for note in found.notes)
    cpa = found.summary.query("model == 'CPA' and part == 'all'")
    assert (cpa["n_seeds"].item(), cpa["seed_sd"].item()) == (2, 0.0)


def test_a_split_made_by_hand(cells, tmp_path):
    singles = [name for name in cells.conditions[1:] if "+" not in name]
    doubles = [name for name in cells.conditions if "+" in name]
    split = scdfm.Split("mine", 0, (*singles, *doubles[2:]), (), tuple(doubles[:2]))
    config = scdfm.Config.preset("tiny").with_settings([*SMALL, "training.max_steps=2", "flow.source=gaussian"])
    found = run(cells, tmp_path / "out", split=split, folds=None, models=Contender("short fit", config))
    assert set(found.scores["condition"]) == set(split.test)
    trained = scdfm.Run.load(tmp_path / "out" / "fold0" / "short_fit-seed0" / "run")
    assert trained.split == split
    assert "short fit" in set(found.summary["model"])
    assert "prior" not in set(found.summary["model"])
    assert [note for note in found.notes if "no row 'prior': the flow of this run starts from noise" in note]


def test_a_run_without_control_cells_has_its_prior_from_those_of_the_screen(cells, tmp_path):
    config = scdfm.Config.preset("tiny").with_settings([*SMALL, "training.max_steps=2", "training.keep_controls=0"])
    found = run(cells, tmp_path / "out", folds=[0], models=Contender("bare", config), metrics=["l2"])
    fitted = scdfm.Run.load(tmp_path / "out" / "fold0" / "bare-seed0" / "run")
    before = fitted.untrained().predict(fitted.split.test, cells, seed=0)
    expected = np.linalg.norm(
        scdfm.read_cells(ad.concat([before, cells.take(cells.rows("control")).to_adata()[:, before.var_names]]))
        .means(fitted.split.test) - cells.means(fitted.split.test)[list(before.var_names)], axis=1,
    )  # fmt: skip
    own = found.scores[found.scores["model"] == "prior"].set_index("condition")["value"]
    np.testing.assert_allclose(own[list(fitted.split.test)], expected, rtol=1e-5)
    # Nobody else can know where it would start.
    table = scdfm.evaluate(fitted.predict(controls=cells), cells, training=fitted, metrics=["l2"])
    assert "prior" not in set(table["model"])
    assert any("no row 'prior': run" in note and "no control cells" in note for note in table.attrs["notes"])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"split": "additive"}, "other split"), ({"protocol": "paper"}, "other protocol"), ({}, "other data")],
)
def test_another_benchmark_is_not_resumed(whole, screen, cells, change, message):
    other = cells if change else scdfm.read_cells(screen[1:])
    with pytest.raises(RunError, match=f"--resume .* was started with {message}; repeat the options"):
        run(other, whole.path, resume=True, **change)


def test_a_full_folder_is_refused_without_resume(whole, cells):
    with pytest.raises(DataError, match="exists and is not empty"):
        run(cells, whole.path)


def test_other_options_of_a_model_are_not_resumed(whole, cells, tmp_path):
    shutil.copytree(whole.path, tmp_path / "out")
    with pytest.raises(RunError, match="this run was started with other config"):
        scdfm.benchmark(
            cells, "holdout", [0, 1], 1, out=tmp_path / "out", metrics=METRICS, resume=True, progress=False, models="tiny",
            options=[*SMALL, "training.learning_rate=0.01"],
        )  # fmt: skip


def test_files_that_do_not_fit(screen, cells, peer, tmp_path):
    with pytest.raises(DataError, match=r"lost.h5ad does not exist"):
        run(cells, tmp_path / "a", models=f"file:CPA={tmp_path / 'lost.h5ad'}")
    trained = scdfm.holdout_split(cells, 0, 2).train
    with pytest.raises(ConditionError, match="fold 0, CPA: .* holds none of the .* test conditions"):
        run(cells, tmp_path / "b", models=f"file:CPA={peer('train.h5ad', conditions=trained)}")
    renamed = ad.read_h5ad(peer("renamed.h5ad"))
    renamed.obs = renamed.obs.rename(columns={"perturbation": "guide"})
    renamed.write_h5ad(tmp_path / "guide.h5ad")
    with pytest.raises(DataError, match="has no obs column 'perturbation'.*its columns are guide"):
        run(cells, tmp_path / "c", models=f"file:CPA={tmp_path / 'guide.h5ad'}")
    foreign = ad.read_h5ad(peer("foreign.h5ad"))
    foreign.var_names = [f"ENSG{i}" for i in range(foreign.n_vars)]
    foreign.write_h5ad(tmp_path / "ensembl.h5ad")
    with pytest.raises(DataError, match="fold 0, CPA: fewer than 2 genes are left"):
        run(cells, tmp_path / "d", models=f"file:CPA={tmp_path / 'ensembl.h5ad'}")


def test_the_page_is_one_file_without_script_or_source(whole):
    page = whole.page.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert page.count("<figure") == len(METRICS)
    for name in ("low-rank linear", "tiny", "ceiling", "Against the best baseline", "fold 1"):
        assert name in page


def test_markdown_holds_the_means(whole):
    text = (whole.path / "benchmark.md").read_text(encoding="utf-8")
    l2 = whole.summary.query("part == 'all' and metric == 'l2'").set_index("model")
    for model, mean in l2["mean"].dropna().items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {model} |"))
        assert f"{mean:.3f}" in line


def test_command_line(screen, tmp_path, capsys, monkeypatch):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    call = [
        "scdfm", "benchmark", tmp_path / "screen.h5ad", "--folds", "0-1", "--models", "baselines", "--metrics", "l2,ds",
        "--protocol", "paper", "--out", tmp_path / "out",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(part) for part in call])
    cli.main()
    shown = capsys.readouterr()
    assert "ceiling" in shown.out
    assert f"page: {tmp_path / 'out' / 'benchmark.html'}" in shown.out
    assert shown.err.splitlines()[0].startswith("[1/2] fold 0, references: l2 ")
    table = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert set(table["metric"]) == {"l2", "ds"}
    monkeypatch.setattr(sys, "argv", [*map(str, call[:4]), "0..4", *map(str, call[5:])])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "--folds 0..4: expected numbers such as 0-4 or 0,2" in capsys.readouterr().err


def test_a_final_run_knows_every_condition(cells, tmp_path) -> None:
    """Fitted after the folds with the options of the model, no condition kept for a test."""
    options = {"folds": [0], "models": "instant", "metrics": ("l2",)}
    run(cells, tmp_path / "b", final=tmp_path / "final", **options)
    made = scdfm.Run.load(tmp_path / "final")
    assert made.split.test == ()
    assert set(made.split.conditions) == set(cells.conditions) - {"control"}
    assert (made.config.panel.n_genes, made.config.training.max_steps) == (40, 4)
    for models in (["tiny", "instant"], ["baselines"]):
        with pytest.raises(ConfigError, match=r"--final .* fits one model .*; name one preset"):
            run(cells, tmp_path / "c", final=tmp_path / "other", **options | {"models": models})
    with pytest.raises(DataError, match="is not empty"):
        run(cells, tmp_path / "c", final=tmp_path / "final", **options)
    assert not (tmp_path / "c").exists()
