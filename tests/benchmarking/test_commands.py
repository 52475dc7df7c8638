"""Any command competes: it sees training cells alone, its row stands beside the others, and a failure is a row too."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm.benchmarking import PeerOptions
from scdfm.errors import ConfigError, ScdfmError, StorageError
from scdfm.peers.bundled import PeerError

METRICS = ("l2", "energy")
DOCS = Path(__file__).parents[2] / "docs" / "peers.md"


def run(cells, out, models, **options):
    given = {"split": "additive", "folds": [0], "seeds": 1, "metrics": METRICS, "progress": False, "n_cells": 12}
    given |= {"peers": PeerOptions(60.0)}
    return scdfm.benchmark(cells, out=out, models=models, **given | options)


def copies(path) -> str:
    """A command that answers with a file made before."""
    return f"cp {shlex.quote(str(path))}"


@pytest.fixture(scope="module")
def answers(screen, cells, tmp_path_factory):
    """Files as methods may leave them, all called predicted.h5ad."""
    split = scdfm.make_split(cells)
    predicted = screen[np.isin(screen.obs["perturbation"].astype(str), split.test)].copy()
    place = tmp_path_factory.mktemp("answers")

    def leave(name, adata):
        (place / name).mkdir()
        adata.write_h5ad(place / name / "predicted.h5ad")

    def changed(row, value):
        made = predicted.copy()
        made.X = made.X.toarray() if hasattr(made.X, "toarray") else np.array(made.X)
        made.X[row, 0] = value
        return made

    leave("good", predicted)
    leave("negative", changed(0, -0.5))
    leave("nan", changed(0, np.nan))
    leave("genes", predicted[:, :40].copy())
    leave("partial", predicted[(predicted.obs["perturbation"].astype(str) != split.test[0]).to_numpy()].copy())
    return place


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The method of docs/peers.md."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(blocks[0], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(cells, answers, mine, tmp_path_factory):
    stubs = {
        name: copies(answers / name / "predicted.h5ad") for name in ("good", "negative", "nan", "genes", "partial")
    }
    stubs["mine"] = f"{shlex.quote(sys.executable)} {shlex.quote(str(mine))}"
    stubs["silent"] = "true"
    stubs["crash"] = "sh -c 'echo out of luck; exit 3'"
    models = ["baselines", *(f"command:{name}={command}" for name, command in stubs.items())]
    return run(cells, tmp_path_factory.mktemp("whole") / "out", models)


def means(found, metric="l2"):
    return found.summary[(found.summary["part"] == "all") & (found.summary["metric"] == metric)].set_index("model")[
        "mean"
    ]


def costs_of(found):
    return pd.read_csv(found.path / "costs.csv", keep_default_na=False, na_values=[""]).set_index("model")


def test_the_method_of_the_docs_is_near_the_additive_rule(whole):
    l2 = means(whole)
    assert l2["mine"] == pytest.approx(l2["additive"], rel=0.3)
    assert l2["mine"] < l2["no change"]


def test_every_failure_is_a_row_with_its_reason(whole):
    said = {
        "nan": "no score: 1 values of predicted.h5ad are not finite",
        "genes": "no score: predicted.h5ad lacks 10 of the 50 genes asked for",
        "silent": "no score: it wrote no predicted.h5ad",
        "crash": "no score: ended with code 3: out of luck",
    }
    for name, reason in said.items():
        assert any(note.startswith(f"{name}, fold 0: {reason}") for note in whole.notes), name
        assert np.isnan(means(whole)[name])
        assert f"{name}: no metric is defined for it" in whole.text
    costs = costs_of(whole)
    assert set(costs.index[costs["failed"].notna()]) == set(said)
    for page in (whole.page, whole.path / "benchmark.md"):
        assert "out of luck" in page.read_text(encoding="utf-8")


def test_what_is_repaired_is_scored_and_told(whole):
    l2, costs = means(whole), costs_of(whole)
    assert l2["good"] == 0
    assert l2["negative"] < 0.1 * l2["no change"]
    assert any(
        note.startswith("negative, fold 0:") and "below 0 (lowest -0.5), cut at 0" in note for note in whole.notes
    )
    assert costs.loc["partial", "predicted"] == costs.loc["partial", "asked"] - 1
    assert any(re.match(r"partial, fold 0: scored on \d+ of \d+ test conditions", note) for note in whole.notes)
    beside = whole.scores[whole.scores["beside"] == "partial"]
    assert "no change" in set(beside["model"])  # the simple rules on the same conditions


def test_seconds_and_memory_stand_in_every_row(whole):
    costs = pd.read_csv(whole.path / "costs.csv")
    assert (costs["budget"] == 60).all()
    assert costs["cpu"].notna().all()
    assert "peak MiB" in whole.text
    assert '<h2 id="cost-h">Cost</h2>' in whole.page.read_text(encoding="utf-8")


def test_no_test_cell_is_in_the_folder(screen, tmp_path):
    """Every cell carries a value of its own: those of training cells are found in the folder, no other."""
    marked = screen.copy()
    marked.X = marked.X.toarray().astype(np.float32) if hasattr(marked.X, "toarray") else np.array(marked.X)
    marked.X[:, 0] = 1 + np.arange(len(marked), dtype=np.float32) / 1024
    marked.obs_names = [f"barcode-{i:05d}-end" for i in range(len(marked))]
    marked.layers["counts"] = np.round(np.expm1(marked.X)).astype(np.float32)
    marked.layers["counts"][:, 1] = 5000 + np.arange(len(marked))
    marked.write_h5ad(tmp_path / "screen.h5ad")
    cells = scdfm.read_cells(tmp_path / "screen.h5ad")
    found = run(cells, tmp_path / "out", ["command:crash=false"])
    folder = tmp_path / "out" / "fold0" / "crash-seed0" / "task"
    content = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    tested = set(found.scores["condition"])
    held = marked.obs["perturbation"].astype(str).isin(tested).to_numpy()
    assert 0 < held.sum() < len(held)
    for marks in ([row.tobytes() for row in marked.X[:, 0]], [name.encode() for name in marked.obs_names],
                  [row.tobytes() for row in np.asarray(marked.layers["counts"][:, 1])]):  # fmt: skip
        inside = np.array([mark in content for mark in marks])
        assert inside[~held].all()
        assert not inside[held].any()
    train = ad.read_h5ad(folder / "train.h5ad")
    np.testing.assert_array_equal(train.layers["counts"].toarray(), marked[train.obs_names].layers["counts"])
    assert list(train.obs.columns) == ["perturbation"]


def test_the_task_says_what_to_predict(cells, tmp_path):
    found = run(cells, tmp_path / "out", "command:crash=false", seeds=[3], n_cells=7, peers=PeerOptions(9.0))
    task = json.loads((tmp_path / "out" / "fold0" / "crash-seed3" / "task" / "task.json").read_text())
    assert set(task["predict"]) == set(found.scores["condition"])
    assert set(task["predict"]).isdisjoint(task["train"])
    assert {"control", *task["train"], *task["predict"]} == set(cells.conditions)
    double = next(name for name in task["predict"] if "+" in name)
    assert task["conditions"][double] == {
        "targets": double.split("+"), "doses": [None, None], "covariates": {}, "time": None,
    }  # fmt: skip
    assert (task["cells"], task["seed"], task["budget"], task["control"]) == (7, 3, 9.0, "control")


def test_finished_commands_are_read_and_failed_ones_tried_again(cells, answers, tmp_path):
    calls, fixed = tmp_path / "calls", tmp_path / "fixed"
    good = f"sh -c 'echo good >> {calls}; cp {answers / 'good' / 'predicted.h5ad'} $0'"
    late = f"sh -c 'echo late >> {calls}; test -e {fixed} && cp {answers / 'good' / 'predicted.h5ad'} $0'"
    models = [f"command:good={good}", f"command:late={late}"]
    first = run(cells, tmp_path / "out", models)
    assert np.isnan(means(first)["late"])
    fixed.touch()
    again = run(cells, tmp_path / "out", models, resume=True)
    assert calls.read_text().split() == ["good", "late", "late"]
    assert means(again)["late"] == means(again)["good"] == means(first)["good"]
    run(cells, tmp_path / "out", models, resume=True, peers=PeerOptions(61.0))
    assert calls.read_text().split()[3:] == ["good", "late"]  # another budget is another result


def test_a_disk_that_fails_is_no_failure_of_the_method(cells, answers, tmp_path, monkeypatch):
    def broken(path, *given, **more):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr("anndata.read_h5ad", broken)
    with pytest.raises(ScdfmError, match="Input/output error"):
        run(cells, tmp_path / "out", f"command:good={copies(answers / 'good' / 'predicted.h5ad')}")
    monkeypatch.undo()
    again = run(cells, tmp_path / "out", f"command:good={copies(answers / 'good' / 'predicted.h5ad')}", resume=True)
    assert np.isfinite(means(again)["good"])
    read = Path.read_text

    def unreadable(path, *given, **more):
        return broken(path) if path.name == "piece.json" else read(path, *given, **more)

    monkeypatch.setattr(Path, "read_text", unreadable)
    with pytest.raises(StorageError, match=r"piece.json cannot be read \(Input/output error\)"):
        run(cells, tmp_path / "out", f"command:good={copies(answers / 'good' / 'predicted.h5ad')}", resume=True)
    monkeypatch.undo()
    denied = run(cells, tmp_path / "denied", "command:mine=sh -c 'echo Input/output error; exit 1'")  # its own words
    assert any("ended with code 1: Input/output error" in note for note in denied.notes)


def test_a_script_that_changed_is_run_anew(cells, answers, tmp_path):
    script = tmp_path / "mine.sh"
    script.write_text(f"cp {answers / 'good' / 'predicted.h5ad'} $1")
    first = run(cells, tmp_path / "out", f"command:mine=sh {script}")
    script.write_text("exit 1")
    again = run(cells, tmp_path / "out", f"command:mine=sh {script}", resume=True)
    assert np.isnan(means(again)["mine"])
    assert not np.isnan(means(first)["mine"])


def test_a_command_that_hangs_is_a_row(cells, tmp_path):
    found = run(cells, tmp_path / "out", ["command:slow=sh -c 'sleep 60'"], peers=PeerOptions(0.2))
    assert any("slow, fold 0: no score: ended after" in note and "far past its budget" in note for note in found.notes)


@pytest.mark.parametrize(
    ("models", "peers", "message"),
    [
        ("command:mine=", None, "model 'command:mine=': expected .* command:NAME=COMMAND"),
        ("command:mine=python 'a", None, r"command of model 'mine': .*No closing quotation.*; close the quotation"),
        ("tiny", PeerOptions(60.0), "budget is that of commands and peers, and models name none"),
        ("command:a=b", PeerOptions(0.0), r"budget 0.0: expected a number of seconds above 0"),
        ("command:a=b", PeerOptions(weights={"cpa": "x"}), "weights of 'cpa': expected one of scgpt, geneformer that"),
        ("command:a=b", PeerOptions(go="x"), "go is the file of annotations of peer gears, which models do not name"),
        ("prior,command:a=b", None, "model 'prior' is what a fitted model begins with; name one too, such as instant"),
        ("celflow", None, "did you mean 'cellflow'"),
    ],
)  # fmt: skip
def test_refusals(cells, tmp_path, models, peers, message):
    with pytest.raises(ConfigError, match=message):
        run(cells, tmp_path / "out", models, peers=peers)
    assert not (tmp_path / "out").exists()


def test_a_peer_that_is_not_installed_is_refused_before_any_work(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("SCDFM_PEERS", str(tmp_path / "none"))
    with pytest.raises(PeerError, match="peer 'cellflow' is not installed; run scdfm peers install cellflow"):
        run(cells, tmp_path / "out", "cellflow", peers=None)
    assert not (tmp_path / "out").exists()


def test_names_are_separated_and_commas_of_a_command_stay():
    from scdfm.benchmarking import make_plan

    made = make_plan(models="scdfm,prior,ridge,command:a=run --x 1,2,command:b=other,file:c=p.h5ad", seeds=1).contenders
    assert [one.name for one in made] == ["scdfm", "a", "b", "c"]
    assert made[0].config == scdfm.Config.preset("default")
    assert made[1].command == ("run", "--x", "1,2")
