"""The report says what the evaluation found, stands alone, and takes any name for a name."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from scdfm import plots
from scdfm.data import CellTable
from scdfm.data.split import UNKNOWN
from scdfm.errors import DataError
from scdfm.evaluation import evaluate, summarise
from scdfm.report import Evaluation, evaluate_files, write
from scdfm.report.evaluation import best_to_worst, places, subject
from scdfm.report.results import blocks, metric_results, verdict

HOSTILE = '<script>alert("x")</script>'


class Elements(HTMLParser):
    """Tags with their attributes, and the words of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def scores(models: list[str], conditions: list[str], metrics: tuple[str, ...] = ("l2", "ds")) -> pd.DataFrame:
    """A long table of random scores."""
    rng = np.random.default_rng(3)
    rows = [(m, c, k, rng.random(), 30) for m in models for k in metrics for c in conditions]
    return pd.DataFrame(rows, columns=["model", "condition", "metric", "value", "n_cells"])


@pytest.fixture(scope="module")
def page(evaluation: Evaluation) -> str:
    return evaluation.path.read_text(encoding="utf-8")


def test_everything_lies_in_the_folder(evaluation: Evaluation) -> None:
    folder = evaluation.path.parent
    assert {path.name for path in folder.iterdir()} == {"report.html", "figures", "scores.csv", "summary.csv"}
    pd.testing.assert_frame_equal(pd.read_csv(folder / "scores.csv"), evaluation.table, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "summary.csv"), summarise(evaluation.table), check_dtype=False)


def test_figures_of_the_page_lie_beside_it_in_both_formats(evaluation: Evaluation, page: str) -> None:
    shown = {figure["id"] for figure in Elements(page).all("figure")}
    files = {path.name for path in (evaluation.path.parent / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in shown for kind in ("png", "svg")}
    ranks = ("best", "median", "worst")
    expected = {f"{kind}_{rank}" for kind in ("shift", "cells", "violins") for rank in ranks}
    assert expected | {"position", "ranking", "effect_sizes", "heat_map", "metric_l2", "metric_ds"} <= shown


def test_verdict_stands_on_top(evaluation: Evaluation, page: str) -> None:
    found = verdict(metric_results(evaluation.table, "scdfm"), "scdfm")
    heading = re.search(r"<h1>(.*?)</h1>", page)
    assert heading is not None
    assert html.unescape(heading[1]) == found.sentence
    assert f'class="verdict {found.outcome}"' in page
    assert found.sentence.split(":")[0] in " ".join(evaluation.text.split())


def test_page_stands_alone(page: str) -> None:
    elements = Elements(page)
    loaded = [
        value
        for _, attributes in elements.found
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href")
    ]
    assert [value for value in loaded if value and not value.startswith(("#", "data:"))] == []
    assert "@import" not in page
    policy = [meta for meta in elements.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy[0]["content"]).startswith("default-src 'none'")


def test_page_can_be_heard_and_walked_through(page: str) -> None:
    elements = Elements(page)
    pictures = elements.all("svg")
    assert len(pictures) == len(elements.all("figure")) > 10
    assert all(len(str(picture["aria-label"])) > 20 for picture in pictures)
    identifiers = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    anchors = {str(link["href"])[1:] for link in elements.all("a")}
    assert anchors <= set(identifiers)
    assert all(
        box.get("tabindex") == "0" and box.get("aria-label")
        for box in elements.all("div")
        if box.get("class") == "scroll"
    )


def test_every_condition_and_every_score_is_in_the_table(evaluation: Evaluation, page: str) -> None:
    own = evaluation.table[evaluation.table["model"] == "scdfm"]
    values = {repr(float(value)) for value in own["value"].dropna()}
    shown = {str(cell["data-value"]) for cell in Elements(page).all("td") if "data-value" in cell}
    assert values <= shown
    assert all(f'<th scope="row">{name}</th>' in page for name in own["condition"].unique())


def test_provenance_is_told(screen: tuple[CellTable, anndata.AnnData], page: str) -> None:
    assert screen[0].digest() in page
    assert "scdfm evaluate" in page
    assert re.search(r"python 3\.\d+", page)


def test_same_input_same_bytes(
    screen: tuple[CellTable, anndata.AnnData], evaluation: Evaluation, tmp_path: Path, page: str
) -> None:
    real, predicted = screen
    doubles = list(predicted.obs["perturbation"].unique())
    again = evaluate_files(
        predicted, real, tmp_path, training=real.means().drop(index=doubles), name="scdfm",
        metrics=list(evaluation.table["metric"].unique()), provenance={"command": "scdfm evaluate"},
    )  # fmt: skip
    assert again.path.read_text(encoding="utf-8") == page
    pd.testing.assert_frame_equal(again.table, evaluation.table)


def test_a_name_is_only_a_name(tmp_path: Path) -> None:
    table = scores([HOSTILE, "ridge", "no change"], [HOSTILE, "$\\frac{", "B&C"])
    table.attrs = {"notes": [HOSTILE], "provenance": {HOSTILE: HOSTILE}}
    text = write(tmp_path, table, provenance={"command": HOSTILE}).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert len(Elements(text).all("script")) == 1
    assert text.count("&lt;script&gt;alert") > 5


def test_without_cells_the_report_holds_scores_alone(tmp_path: Path) -> None:
    text = write(tmp_path, scores(["scdfm", "ridge"], ["A", "B", "C"])).read_text(encoding="utf-8")
    elements = Elements(text)
    assert 'id="populations"' not in text
    assert {str(link["href"])[1:] for link in elements.all("a")} <= {
        attributes.get("id") for _, attributes in elements.found
    }
    assert {figure["id"] for figure in elements.all("figure")} == {"metric_l2", "metric_ds", "position", "ranking"}


def test_one_condition_and_nothing_defined(tmp_path: Path) -> None:
    table = scores(["scdfm"], ["A"]).assign(value=np.nan)
    text = write(tmp_path, table).read_text(encoding="utf-8")
    assert "No metric is defined for scdfm" in text
    single = write(tmp_path, scores(["scdfm", "ridge"], ["A"])).read_text(encoding="utf-8")
    assert "On 1 condition scdfm cannot be compared with ridge, the only baseline there is" in single


def test_run_adds_curves_and_its_provenance(tmp_path: Path) -> None:
    split = {
        "kind": "additive",
        "fold": 1,
        "digest": "split0123",
        "train": ["A", "B"],
        "validation": ["C"],
        "test": ["D"],
    }
    manifest = SimpleNamespace(
        split=split, data={"path": "screen.h5ad", "digest": "data4567", "n_cells": 123456}, seed=7,
        result={"step": 300, "val_wasserstein": 1.25}, versions={"torch": "2.13.0"},
    )  # fmt: skip
    log = pd.DataFrame({"step": [1, 20, 40], "loss": [3.0, 2.0, 1.0], "val_wasserstein": [np.nan, np.nan, 2.0]})
    run: Any = SimpleNamespace(manifest=manifest, log=log, split=SimpleNamespace(kind=UNKNOWN), known=())
    text = write(tmp_path, scores(["scdfm", "ridge"], ["A", "B"]), run=run).read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "training.png").is_file()
    said = html.unescape(text)
    for fact in (
        "split0123",
        "data4567",
        "123,456",
        "2 train, 1 validation, 1 test",
        "torch 2.13.0",
        "val wasserstein",
    ):
        assert fact in said


def test_the_prior_has_its_row_its_column_and_its_sentence(tmp_path: Path) -> None:
    conditions = list("ABCDEFGHIJ")  # an interval of equal gains takes ten
    plain = scores(["scdfm", "ridge"], conditions)
    table = pd.concat([plain, plain[plain["model"] == "scdfm"].assign(model="prior", value=lambda t: t["value"] + 1)])
    text = html.unescape(write(tmp_path / "with", table).read_text(encoding="utf-8"))
    assert "Beside the prior alone: gain 1.0" in text
    assert "<p>What training added to it, over 2 metrics: better on 1 (L2); worse on 1 (DS).</p>" in text
    assert '<th scope="col">gain over the prior alone</th>' in text
    assert "what the same run predicts before training, in closed form" in text
    colour = plots.model_colours(["scdfm"])["prior"]
    assert f'<span class="swatch" style="background:{colour}"></span>prior</th>' in text
    gained = {standing.metric: standing.prior for standing in metric_results(table, "scdfm")}
    assert gained["l2"] is not None
    assert gained["ds"] is not None
    assert (gained["l2"].outcome, gained["ds"].outcome) == ("better", "worse")
    without = html.unescape(write(tmp_path / "without", plain).read_text(encoding="utf-8"))
    assert "prior" not in without


def test_subject_must_be_one_model() -> None:
    table = scores(["scdfm", "peer", "ridge"], ["A"])
    assert subject(table, "peer") == "peer"
    with pytest.raises(
        DataError, match=r"expected one model to report on, found scdfm, peer, ridge; name it with model="
    ):
        subject(table, None)
    with pytest.raises(DataError, match=r"expected one model"):
        subject(table, "absent")
    with pytest.raises(DataError, match=r"column 'metric' is missing, expected model, condition"):
        subject(table.drop(columns="metric"), None)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, {"best": 0}),
        (2, {"best": 0, "worst": 1}),
        (3, {"best": 0, "median": 1, "worst": 2}),
        (6, {"best": 0, "median": 2, "worst": 5}),
    ],
)
def test_best_median_worst(n: int, expected: dict[str, int]) -> None:
    assert places(n) == expected


def test_order_follows_the_direction_of_the_metric(evaluation: Evaluation) -> None:
    assert best_to_worst(evaluation.table, "scdfm", "l2").is_monotonic_increasing
    assert best_to_worst(evaluation.table, "scdfm", "ds").is_monotonic_decreasing


def test_standing_is_the_paired_comparison(evaluation: Evaluation) -> None:
    stand = {standing.metric: standing for standing in metric_results(evaluation.table, "scdfm")}["l2"]
    wide = evaluation.table[evaluation.table["metric"] == "l2"].pivot_table(
        index="condition", columns="model", values="value"
    )
    means = wide.mean()
    baselines = means[["no change", "training mean", "additive", "ridge", "low-rank linear"]]
    assert stand.baseline == baselines.idxmin()
    assert stand.beside.gain == pytest.approx(baselines.min() - means["scdfm"])
    worst = min(means["no change"], means["training mean"])
    assert stand.position == pytest.approx((worst - means["scdfm"]) / (worst - means["ceiling"]))
    assert not stand.alone


def test_groups_hold_the_means_of_their_conditions(evaluation: Evaluation) -> None:
    stands = metric_results(evaluation.table, "scdfm")
    found = {block.head: block for block in blocks(evaluation.table, "scdfm", stands)}
    assert [(row.name, row.n) for row in found["targets"].rows] == [("double, 2 of 2 seen", 6)]
    assert [(row.name, row.n) for row in found["size of effect"].rows] == [
        ("low third", 2),
        ("middle third", 2),
        ("high third", 2),
    ]
    own = evaluation.table[(evaluation.table["model"] == "scdfm") & (evaluation.table["metric"] == "l2")].set_index(
        "condition"
    )["value"]
    smallest = sorted(evaluation.table.attrs["effect_size"], key=evaluation.table.attrs["effect_size"].get)[:2]
    shown = found["size of effect"].rows[0].cells[0].text
    assert float(shown) == pytest.approx(own[smallest].mean(), abs=10.0 ** -stands[0].decimals)


def test_prediction_of_the_real_means_reads_as_better(evaluation: Evaluation) -> None:
    assert verdict(metric_results(evaluation.table, "scdfm"), "scdfm").outcome == "better"


def test_prediction_of_no_change_reads_as_worse(screen: tuple[CellTable, anndata.AnnData]) -> None:
    real, predicted = screen
    control = real.X[real.rows("control")].toarray()
    poor = predicted.copy()
    poor.X = control[np.arange(poor.n_obs) % len(control)]
    training = real.means().drop(index=list(predicted.obs["perturbation"].unique()))
    table = evaluate(poor, real, training=training, metrics=["l2"], name="lazy")
    assert "lazy is worse than the best baseline" in verdict(metric_results(table, "lazy"), "lazy").sentence


def test_published_protocol_says_so(tmp_path: Path) -> None:
    table = scores(["scdfm", "ridge"], ["A", "B"])
    table.attrs = {"protocol": "paper"}
    assert "do not compare with those of protocol scdfm" in write(tmp_path, table).read_text(encoding="utf-8")
    table.attrs = {"protocol": "scdfm"}
    assert "do not compare" not in write(tmp_path, table).read_text(encoding="utf-8")


def test_output_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(DataError, match=r"output folder .*taken.figures cannot be made .*choose another"):
        write(tmp_path / "taken", scores(["scdfm", "ridge"], ["A", "B"]))


def test_another_model_stands_beside(screen, tmp_path):
    """Its section, the sentence for a terminal, and no section without it."""
    real, predicted = screen
    other = predicted.copy()
    other.X = np.maximum(other.X + np.linspace(-1, 1, other.n_vars, dtype=np.float32), 0)
    found = evaluate_files(
        predicted, real, tmp_path, name="scdfm", against=other, against_name="rival", metrics=("l2", "pearson_delta")
    )
    page = found.path.read_text(encoding="utf-8")
    assert "Against rival" in page
    assert "scdfm is better than rival: mean L2" in page
    assert "is better than rival" in found.text
    assert set(found.table["model"]) >= {"scdfm", "rival"}
    alone = evaluate_files(predicted, real, tmp_path / "alone", name="scdfm", metrics=("l2",))
    assert 'id="duel"' not in alone.path.read_text(encoding="utf-8")


def test_a_metric_that_cannot_tell_is_grey_and_says_why(tmp_path):
    conditions = [f"A{k}" for k in range(12)]
    table = scores(["mine", "no change", "training mean", "duplicate", "ceiling"], conditions)
    sure = table["metric"].eq("ds") & table["model"].isin(["duplicate", "ceiling"])
    table.loc[sure, "value"] += 5
    text = write(tmp_path, table, model="mine").read_text(encoding="utf-8")
    rows = re.findall(r'<tr( class="mute")?><th scope="row">([^<]+)(?:<small>([^<]+)</small>)?</th><td>', text)
    found = {name.strip(): (mute, reason) for mute, name, reason in rows}
    assert found["L2 ↓"][0]
    assert "it does not tell duplicate from" in found["L2 ↓"][1]
    assert found["DS ↑"] == ("", "")
    assert re.search(r'<th scope="col" class="mute" title="it does not tell duplicate from [^"]+">L2 ↓', text)
    assert '<th scope="col">DS ↑' in text
