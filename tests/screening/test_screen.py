"""A screen from end to end: its table, killed and resumed in the same bits, shared over ranks, and every refusal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm.data import targets
from scdfm.errors import ConditionError, ConfigError, DataError, RunError
from scdfm.run import shards
from scdfm.screening import Screen, interactions
from scdfm.screening.ensemble import Ensemble


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a screen."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_table_holds_every_condition_best_first(run, finished):
    table = finished.table
    assert sorted(table["condition"]) == sorted(finished.conditions)
    assert len(table) == 5 + 10
    assert list(table["rank"]) == list(range(1, 16))
    assert table["energy"].is_monotonic_decreasing
    assert (table["score"] == table["energy"]).all()
    pairs = table["order"] == 2
    assert table.loc[pairs, "c1"].notna().all()
    assert table.loc[~pairs, "c1"].isna().all()
    assert (table.loc[~pairs, "kind"] == "").all()
    assert (table["targets_seen"] == table["order"]).all()
    assert not table["extrapolated"].any()
    assert set(table.loc[table["part"] == "train", "condition"]) <= set(run.split.train)
    assert set(table.loc[~table["measured"], "condition"]).isdisjoint(run.split.conditions)


def test_the_numbers_are_those_of_the_predicted_cells(run, finished):
    name = finished.table["condition"][0]
    cells = run.predict([name], n_cells=6, seed=1)
    np.testing.assert_array_equal(finished.cells(name).X.toarray(), cells.X.toarray())
    mean = cells.X.toarray().mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(finished.means([name]).to_numpy()[0], mean, rtol=1e-6)
    row = finished.table.iloc[0]
    control = run.controls.mean("control")[run.controls.columns(run.genes)]
    assert row["shift"] == pytest.approx(np.linalg.norm(mean - control), rel=1e-6)
    spread = np.sqrt(cells.X.toarray().astype(float).var(axis=0).sum() / 6)
    assert row["spread"] == pytest.approx(spread, rel=1e-6)
    others = run.means.drop(index=name, errors="ignore")
    gaps = np.linalg.norm(others.to_numpy() - mean, axis=1)
    assert row["novelty"] == pytest.approx(gaps.min(), rel=1e-5)
    assert row["nearest"] == others.index[gaps.argmin()]


def test_interactions_are_scored_like_measured_ones_on_the_same_genes(run, finished):
    measured = interactions(run.means)
    table = finished.table.set_index("condition")
    for name in measured.index:
        assert table.loc[name, "measured_magnitude"] == pytest.approx(measured.loc[name, "magnitude"])
        assert table.loc[name, "measured_kind"] == measured.loc[name, "kind"]
    control = pd.Series(run.controls.mean("control")[run.controls.columns(run.genes)], index=run.genes)
    predicted = interactions(finished.means(), control, genes=run.genes)
    assert table.loc[predicted.index, "c2"].to_numpy() == pytest.approx(predicted["c2"].to_numpy(), rel=1e-6)


def test_killed_three_times_it_ends_equal(run, finished, tmp_path, monkeypatch):
    """Killed while predicting, while a shard is written, and before the table: the files are the same, bit for bit."""
    options = {"out": tmp_path / "screen", "cells": 6, "propose": 2, "keep_cells": True, "shard": 4, "seed": 1}
    calls = {"predict": 0}
    predict = scdfm.Run.predict

    def dying(self, *args, **kwargs):
        calls["predict"] += 1
        if calls["predict"] == 2:
            raise KeyboardInterrupt
        return predict(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(scdfm.Run, "predict", dying)
        with pytest.raises(KeyboardInterrupt):
            scdfm.screen(run, **options)
    assert len(list((tmp_path / "screen" / "means").glob("*.h5ad"))) == 1

    write = ad.AnnData.write_h5ad
    with monkeypatch.context() as patch:

        def torn(self, path, **kwargs):
            write(self, path, **kwargs)
            raise KeyboardInterrupt

        patch.setattr(ad.AnnData, "write_h5ad", torn)
        with pytest.raises(KeyboardInterrupt):
            scdfm.screen(run, **options, resume=True)
    assert len(list((tmp_path / "screen" / "means").glob("*"))) == 1  # nothing torn is left

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            scdfm.screen(run, **options, resume=True)
    assert not Screen.load(tmp_path / "screen").is_complete

    again = scdfm.screen(run, **options, resume=True)
    assert again.is_complete
    assert digests(again.path) == digests(finished.path)


def test_ranks_share_the_work_and_the_last_one_writes_the_table(run, finished, tmp_path, monkeypatch):
    options = {"out": tmp_path / "screen", "cells": 6, "propose": 2, "keep_cells": True, "shard": 4, "seed": 1}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    first = scdfm.screen(run, **options)
    assert not first.is_complete
    with pytest.raises(RunError, match="is not complete"):
        _ = first.table
    monkeypatch.setenv("RANK", "1")
    assert digests(scdfm.screen(run, **options).path) == digests(finished.path)


def test_an_ensemble_disagrees_and_says_so(runs, tmp_path):
    screen = scdfm.screen(runs, out=tmp_path / "e", targets=runs[0].manifest.targets[:2], cells=4)
    name = screen.conditions[-1]
    means = np.stack(
        [run.predict([name], runs[0].controls, n_cells=4).X.toarray().mean(0, dtype=np.float64) for run in runs]
    )
    row = screen.table.set_index("condition").loc[name]
    np.testing.assert_allclose(screen.means([name]).to_numpy()[0], means.mean(0), rtol=1e-5, atol=1e-6)
    assert row["spread"] == pytest.approx(np.linalg.norm(means[0] - means[1]) / np.sqrt(2), rel=1e-5)


def test_runs_of_other_panels_share_the_genes_that_all_model(run, cells, options, tmp_path):
    """Each starts from control cells that have its genes: the first run's, or its own."""
    config = scdfm.Config().updated({**options, "panel": {"n_genes": 20}, "seed": 5})
    other = scdfm.fit(cells, run.split, config, out=tmp_path / "other", progress=False)
    assert set(other.genes) < set(run.genes)
    for several in ([other, run], [run, other]):
        screen = scdfm.screen(
            several, out=tmp_path / f"first-{several[0].path.name}", conditions=run.split.test[:1], cells=4
        )
        means = screen.means(run.split.test[:1])
        assert set(means.columns) == set(other.genes)
        columns = [run.genes.index(gene) for gene in means.columns]
        controls = several[0].controls if several[0] is run else None
        parts = [
            run.predict(run.split.test[:1], n_cells=4).X.toarray().mean(0)[columns],
            other.predict(run.split.test[:1], controls, n_cells=4, genes=list(means.columns)).X.toarray().mean(0),
        ]
        np.testing.assert_allclose(means.to_numpy()[0], np.mean(parts, axis=0), rtol=1e-5, atol=1e-6)


def test_rank_by_uncertainty_interaction_target_and_signature(run, finished, cells, tmp_path):
    options = {"out": finished.path, "cells": 6, "keep_cells": True, "shard": 4, "seed": 1, "resume": True}
    before = digests(finished.path)
    try:
        by = scdfm.screen(run, **options, rank_by="uncertainty").table
        assert (by["score"] == by["uncertainty"]).all()
        by = scdfm.screen(run, **options, rank_by="interaction").table
        assert by["departure"].dropna().is_monotonic_decreasing
        assert by["score"].tail(5).isna().all()  # singles stand last

        goal = cells.select([run.split.train[0]]).to_adata()
        goal.write_h5ad(tmp_path / "goal.h5ad")
        by = scdfm.screen(run, **options, rank_by=f"toward:{tmp_path / 'goal.h5ad'}").table
        means, target = (finished.means(by["condition"]), cells.mean(run.split.train[0])[cells.columns(run.genes)])
        start = run.controls.mean("control")[run.controls.columns(run.genes)]
        way = 1 - np.linalg.norm(means.to_numpy() - target, axis=1) / np.linalg.norm(start - target)
        np.testing.assert_allclose(by["score"], way, rtol=1e-5, atol=1e-6)
        assert by["score"].is_monotonic_decreasing

        (tmp_path / "up.txt").write_text("\n".join([*run.genes[:2], "unknown"]))
        (tmp_path / "down.txt").write_text(run.genes[4])
        by = scdfm.screen(run, **options, rank_by=f"signature:{tmp_path / 'up.txt'},{tmp_path / 'down.txt'}").table
        shift = finished.means(by["condition"]).to_numpy() - start
        np.testing.assert_allclose(by["score"], shift[:, :2].mean(1) - shift[:, 4], rtol=1e-4, atol=1e-6)
    finally:
        scdfm.screen(run, **options, propose=2)
    assert digests(finished.path) == before  # a finished screen is only ranked anew


def test_the_cost_is_said_before_the_work(run, tmp_path, monkeypatch):
    said = []
    predict = scdfm.Run.predict
    written = []

    def watching(self, *args, **kwargs):
        written.append(bool(said))
        return predict(self, *args, **kwargs)

    monkeypatch.setattr(scdfm.Run, "predict", watching)
    options = {"out": tmp_path / "s", "targets": run.manifest.targets[:3], "cells": 3}
    scdfm.screen(run, **options, say=said.append)
    assert said[0].startswith("estimate: ")
    assert "conditions at" in said[0]
    assert written[0] is False
    assert written[-1] is True
    scdfm.screen(run, **options, resume=True, say=said.append)
    assert said[1] == "every condition is predicted"


def test_targets_beyond_training_are_flagged(run, tmp_path):
    beyond = next(gene for gene in run.genes if gene not in run.manifest.targets)
    table = scdfm.screen(run, out=tmp_path / "s", targets=[run.manifest.targets[0], beyond], cells=3).table
    found = table.set_index("condition")["targets_seen"]
    assert found[beyond] == 0
    assert found[run.manifest.targets[0]] == 1
    assert found.drop([beyond, run.manifest.targets[0]]).tolist() == [1]
    assert table["extrapolated"].sum() == 2


def test_every_gene_is_a_candidate_as_sure_as_the_prior_is_of_it(run, finished, tmp_path):
    """Genes that nobody perturbed stand in the table as singles, and are less sure than measured ones."""
    found = scdfm.screen(run, out=tmp_path / "genome", cells=6, order=1, genome=True, seed=1)
    table = found.table.set_index("condition")
    assert sorted(table.index) == sorted({*run.manifest.targets, *run.genes})
    new = table.index[table["targets_seen"] == 0]
    assert len(new) == len(set(run.genes) - set(run.manifest.targets)) > 10
    expected = run.knowing(new).doubt(list(new)) ** 0.5
    assert (table.loc[new, "uncertainty"] >= expected * (1 - 1e-6)).all()
    assert table.loc[new, "extrapolated"].all()
    pd.testing.assert_series_equal(  # what was known before is known as before
        table.loc[run.manifest.targets, "shift"],
        finished.table.set_index("condition").loc[run.manifest.targets, "shift"],
    )
    with pytest.raises(ConditionError, match="every gene is asked for, and conditions are named"):
        scdfm.screen(run, out=tmp_path / "both", conditions=["A"], genome=True)
    assert not (tmp_path / "both").exists()


def test_triples(run, tmp_path):
    screen = scdfm.screen(run, out=tmp_path / "s", targets=run.manifest.targets[:3], order=3, cells=3)
    assert sorted(screen.table["order"].value_counts().items()) == [(1, 3), (2, 3), (3, 1)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cells": 1}, DataError, "cells per condition: expected at least 2, found 1"),
        ({"rank_by": "fame"}, ConfigError, "--rank-by fame: expected effect"),
        (
            {"rank_by": "toward:nowhere.h5ad"},
            DataError,
            "nowhere.h5ad does not exist; expected an .h5ad file or a .zarr store: check the path",
        ),
        ({"targets": ["nobody", "G001"]}, ConditionError, "target 'nobody'"),
        ({"propose": -1}, ConfigError, "propose -1"),
    ],
)
def test_refusals_leave_no_folder(run, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        scdfm.screen(run, out=tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_too_many_proposals_are_refused(run, tmp_path):
    with pytest.raises(DataError, match="propose 9: 0 of the screen's 5 conditions are not measured"):
        scdfm.screen(run, out=tmp_path / "s", order=1, cells=3, propose=9)


def test_a_signature_that_cannot_be(run, tmp_path):
    (tmp_path / "up.txt").write_text("nobody")
    with pytest.raises(DataError, match="none of its 1 genes is among the run's"):
        scdfm.screen(run, out=tmp_path / "s", rank_by=f"signature:{tmp_path / 'up.txt'}")
    (tmp_path / "up.txt").write_text(run.genes[0])
    with pytest.raises(DataError, match="is to go up and down"):
        scdfm.screen(run, out=tmp_path / "s", rank_by=f"signature:{tmp_path / 'up.txt'},{tmp_path / 'up.txt'}")


def test_a_run_is_no_ensemble_with_itself(run):
    with pytest.raises(RunError, match="has the weights of another run"):
        Ensemble.of([run, run])
    with pytest.raises(RunError, match="no run given"):
        Ensemble.of([])


def test_resume_with_other_options_is_refused(run, finished):
    with pytest.raises(RunError, match=r"started with other cells \(6, not 7\)"):
        scdfm.screen(run, out=finished.path, cells=7, keep_cells=True, shard=4, seed=1, resume=True)


def test_a_shard_is_a_minute_of_work_at_most_and_stays_what_it_was(run, tmp_path, monkeypatch):
    options = {"out": tmp_path / "s", "targets": run.manifest.targets[:3], "cells": 3}
    with monkeypatch.context() as patch:
        patch.setitem(shards.SHARD_VALUES, "prior" if run.field.is_zero else "flow", 2 * 3 * len(run.genes) + 1)
        screen = scdfm.screen(run, **options)
    assert screen.store.size == 2
    screen.store.path(1).unlink()
    assert scdfm.screen(run, **options, resume=True).store.size == 2
    assert scdfm.screen(run, **options | {"out": tmp_path / "t"}).store.size == 32


def test_folders_that_are_no_screen_or_damaged(run, finished, tmp_path):
    with pytest.raises(RunError, match=r"screen.json is missing"):
        Screen.load(tmp_path)
    (tmp_path / "screen.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        Screen.load(tmp_path)
    with pytest.raises(ConditionError, match="'X' is not part of screen"):
        finished.means(["X"])
    options = {"out": tmp_path / "s", "targets": run.manifest.targets[:2], "cells": 3}
    screen = scdfm.screen(run, **options)
    with pytest.raises(RunError, match="kept no cells"):
        screen.cells(screen.conditions[0])
    shard = screen.store.path(0)
    shard.write_bytes(b"torn")
    with pytest.raises(RunError, match="remove it and go on with --resume"):
        scdfm.screen(run, **options, resume=True)
    shard.unlink()
    assert len(scdfm.screen(run, **options, resume=True).table) == 3


def test_the_record_says_what_was_asked(run, finished):
    record = json.loads((finished.path / "screen.json").read_text())
    assert record["runs"] == [run.manifest.digests["weights.safetensors"]]
    assert (record["cells"], record["seed"]) == (6, 1)


def test_proposals_are_unmeasured_and_in_the_table(run, finished):
    assert len(finished.proposed) == 2
    assert set(finished.proposed).isdisjoint(run.split.conditions)
    turns = finished.table.set_index("condition")["proposed"]
    assert [turns[name] for name in finished.proposed] == [1, 2]


def test_the_first_proposal_leaves_least_doubt_where_test_conditions_count_as_measured(run, finished):
    free = [name for name in finished.conditions if name not in run.split.conditions]
    everything = [*free, *run.split.test]
    prior = run.knowing(everything)
    covariance = prior.covariance(everything, everything)

    def left(name: str) -> float:
        known = [everything.index(one) for one in (*run.split.test, name)]
        told = np.linalg.solve(
            covariance[np.ix_(known, known)] + prior.measurement_noise * np.eye(len(known)), covariance[known]
        )
        return float(np.trace((covariance - covariance[:, known] @ told)[: len(free), : len(free)]))

    assert finished.proposed[0] == min(free, key=left)


def test_a_run_from_noise_proposes_by_what_it_predicts(cells, options, tmp_path):
    noise = {"flow": {"source": "gaussian", "pairing": "random"}, "sampling": {"shrink": False}}
    config = scdfm.Config().updated(options).updated(noise)
    run = scdfm.fit(cells, scdfm.additive_split(cells, fold=0), config, out=tmp_path / "run", progress=False)
    found = scdfm.screen(run, out=tmp_path / "s", cells=6, propose=2)
    assert len(set(found.proposed)) == 2
    assert set(found.proposed).isdisjoint(run.split.conditions)


def test_a_setting_compares_with_its_own_controls(options, tmp_path):
    """Conditions of a cell type stand against that type's control cells, measured and predicted alike."""
    screen = scdfm.simulate(n_genes=40, n_targets=4, n_doubles=4, cells_per_condition=16, n_controls=30,
                            truth_cells=10, seed=3)  # fmt: skip
    screen.obs["kind"] = np.where(np.arange(screen.n_obs) % 2, "odd", "even")
    cells = scdfm.read_cells(screen, covariates=["kind"])
    run = scdfm.fit(cells, config=scdfm.Config().updated(options), out=tmp_path / "run", progress=False)
    a, b = run.manifest.targets[:2]
    found = scdfm.screen(run, out=tmp_path / "s", targets=[a, b], setting="kind=odd", cells=4, propose=1)
    assert found.proposed[0] in found.conditions
    assert sorted(found.conditions) == sorted(f"{name}|kind=odd" for name in (a, b, f"{a}+{b}"))
    name = f"{a}+{b}|kind=odd"
    control = run.controls.control_mean(name)[run.controls.columns(run.genes)]
    other = run.controls.mean("control")[run.controls.columns(run.genes)]
    row = found.table.set_index("condition").loc[name]
    shift = found.means([name]).to_numpy()[0] - control
    assert row["shift"] == pytest.approx(np.linalg.norm(shift), rel=1e-5)
    assert row["shift"] != pytest.approx(np.linalg.norm(found.means([name]).to_numpy()[0] - other), rel=1e-5)
    assert np.isfinite(row["c1"])
    # Control cells of a setting are no measured condition, that others are novel against or chosen beside.
    assert {"control|kind=even", "control|kind=odd"} <= set(run.means.index)
    assert {name for name in Ensemble.of(run).measured.index if not targets(name)} == {"control"}
    with pytest.raises(ConditionError, match="setting 'odd': expected KEY=VALUE"):
        scdfm.screen(run, out=tmp_path / "t", targets=[a, b], setting="odd")
