"""Batches: shapes, law, independence, and the state of the draws."""

from __future__ import annotations

import itertools
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy import stats

from scdfm.data import Batch, CellTable, ConditionSampler, GenePanel, Split, Vocabulary, join_screens, read_cells
from scdfm.data.conditions import parse
from scdfm.data.encoding import ConditionEncoder, ConditionSchema
from scdfm.errors import ConditionError, DataError
from scdfm.seeds import numpy_rng

SIZES = {"control": 50, "A": 10, "B": 30, "A+B": 20, "A+C": 5, "B+C": 7}
SPLIT = Split("file", 0, train=("A", "B", "A+B"), validation=("A+C",), test=("B+C",))
GENES = ["C", "G", "A", "H", "B"]
PANEL = GenePanel(("C", "A", "H", "B"), 1)


@pytest.fixture(scope="module")
def cells() -> CellTable:
    """Every cell carries its row in gene H, shuffled over the table; gene A is 1.5 in all."""
    labels = np.repeat(list(SIZES), list(SIZES.values()))
    labels = np.random.default_rng(0).permutation(labels)
    x = np.zeros((len(labels), 5), dtype=np.float32)
    x[:, 2], x[:, 3] = 1.5, np.arange(len(labels)) / 16
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
    return read_cells(ad.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=GENES)))


def rows(expression: torch.Tensor) -> np.ndarray:
    return (expression[:, PANEL.genes.index("H")].numpy() * 16).astype(int)


def sampler(cells: CellTable, seed: int = 0, **options: object) -> ConditionSampler:
    return ConditionSampler(cells, SPLIT, PANEL, numpy_rng(seed, "sampler"), **options)  # type: ignore[arg-type]


def test_shapes_types_and_contents(cells: CellTable) -> None:
    vocabulary = Vocabulary.build(PANEL.genes)
    batch = sampler(cells, n_conditions=2, n_cells=8, vocabulary=vocabulary).sample()
    assert batch.control.shape == batch.target.shape == (16, 4)
    assert batch.control.dtype == batch.target.dtype == torch.float32
    assert batch.perturbation.tokens.shape == (2, 2)
    assert batch.perturbation.tokens.dtype == batch.condition.dtype == torch.int64
    assert batch.condition.tolist() == [0] * 8 + [1] * 8
    assert len(set(batch.conditions)) == 2
    encoded = ConditionEncoder(vocabulary).encode(batch.conditions)
    assert torch.equal(batch.perturbation.tokens, encoded.tokens)
    labels = np.array([cells.conditions[code] for code in cells.codes])
    assert labels[rows(batch.target)].tolist() == [batch.conditions[place] for place in batch.condition]
    assert set(labels[rows(batch.control)]) == {"control"}
    columns = cells.columns(PANEL.genes)
    for part in (batch.control, batch.target):
        np.testing.assert_array_equal(part.numpy(), cells.X[rows(part)][:, columns].toarray())


def test_more_cells_than_are_seen_may_be_drawn_to_seek_pairs_among(cells: CellTable) -> None:
    batch = sampler(cells, n_conditions=2, n_cells=3, n_drawn=8).sample()
    assert batch.control.shape == (6, 4)
    assert batch.target.shape == (16, 4)
    assert batch.condition.tolist() == [0] * 3 + [1] * 3
    labels = np.array([cells.conditions[code] for code in cells.codes])
    assert labels[rows(batch.target)].tolist() == np.repeat(batch.conditions, 8).tolist()
    own = batch.share(1, 2)
    assert torch.equal(own.target, batch.target[8:])
    assert torch.equal(own.control, batch.control[3:])
    assert own.condition.tolist() == [0] * 3
    with pytest.raises(DataError, match="sampler: 2 cells drawn of each condition, expected the 3 seen or more"):
        sampler(cells, n_cells=3, n_drawn=2)


@pytest.mark.parametrize(("part", "names"), [("train", SPLIT.train), ("validation", ("A+C",)), ("test", ("B+C",))])
def test_a_part_sees_its_own_conditions_alone(cells: CellTable, part: str, names: tuple[str, ...]) -> None:
    drawn = sampler(cells, part=part, n_cells=40)
    assert drawn.conditions == names
    seen = {condition for batch in itertools.islice(drawn, 50) for condition in batch.conditions}
    assert seen == set(names)


def test_conditions_of_a_batch_differ_while_there_are_enough(cells: CellTable) -> None:
    assert all(len(set(b.conditions)) == 3 for b in itertools.islice(sampler(cells, n_conditions=3, n_cells=1), 30))
    more = sampler(cells, n_conditions=7, n_cells=2).sample()
    assert len(more.conditions) == 7
    assert more.target.shape[0] == 14


@pytest.mark.parametrize(("weights", "expected"), [("condition", (1, 1, 1)), ("cell", (10, 30, 20))])
def test_conditions_follow_their_weights(cells: CellTable, weights: str, expected: tuple[int, ...]) -> None:
    drawn = sampler(cells, weights=weights, n_cells=1)
    names = [batch.conditions[0] for batch in itertools.islice(drawn, 3000)]
    # Conditions in the order of the split: A, A+B, B.
    share = dict(zip(("A", "B", "A+B"), expected, strict=True))
    observed = [names.count(name) for name in drawn.conditions]
    total = [3000 * share[name] / sum(expected) for name in drawn.conditions]
    assert stats.chisquare(observed, total).pvalue > 1e-3


def test_cells_are_drawn_uniformly_with_replacement_and_independently(cells: CellTable) -> None:
    batch = sampler(cells, part="validation", n_cells=20_000).sample()
    target, control = rows(batch.target), rows(batch.control)
    assert stats.chisquare(np.unique(target, return_counts=True)[1]).pvalue > 1e-3
    assert set(target) == set(cells.rows("A+C"))
    assert set(control) == set(cells.rows("control"))
    table = pd.crosstab(target, control)
    assert stats.chi2_contingency(table.to_numpy()).pvalue > 1e-3


def equal(first: Batch, second: Batch) -> bool:
    tensors = ("control", "target", "condition")
    same = all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)
    same = same and torch.equal(first.perturbation.tokens, second.perturbation.tokens)
    return same and first.conditions == second.conditions


def test_same_seed_same_batches(cells: CellTable) -> None:
    first, second, other = (sampler(cells, seed, n_conditions=2, n_cells=4) for seed in (1, 1, 2))
    for _ in range(5):
        assert equal(one := first.sample(), second.sample())
        assert not equal(one, other.sample())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_are_the_batch_in_pieces(cells: CellTable, world: int) -> None:
    """Each says where in the whole encoding its conditions are."""
    batch = sampler(cells, n_conditions=3, n_cells=4).sample()
    parts = [batch.share(rank, world) for rank in range(world)]
    torch.testing.assert_close(torch.cat([part.target for part in parts]), batch.target)
    torch.testing.assert_close(torch.cat([part.condition + part.first for part in parts]), batch.condition)
    for part in parts:
        whole = [batch.conditions[part.first + place] for place in part.condition]
        assert whole == [part.conditions[place] for place in part.condition]


def test_state_goes_through_json_and_resumes(cells: CellTable) -> None:
    drawn = sampler(cells, n_conditions=2, n_cells=4)
    drawn.sample()
    state = json.loads(json.dumps(drawn.state_dict()))
    after = [drawn.sample() for _ in range(3)]
    again = sampler(cells, seed=9, n_conditions=2, n_cells=4)
    again.load_state_dict(state)
    assert all(equal(batch, again.sample()) for batch in after)


def test_a_given_generator_leaves_the_own_one_alone(cells: CellTable) -> None:
    drawn = sampler(cells, n_cells=4)
    before = drawn.state_dict()
    assert equal(drawn.sample(numpy_rng(0, "batch", 3)), drawn.sample(numpy_rng(0, "batch", 3)))
    assert drawn.state_dict() == before


def test_slots_and_devices(cells: CellTable) -> None:
    batch = sampler(cells, slots=4).sample()
    assert batch.perturbation.tokens.shape == (1, 4)
    assert batch.perturbation.tokens[0, 2:].tolist() == [Vocabulary.PAD] * 2
    assert equal(batch.to("cpu"), batch)


def test_refusals(cells: CellTable) -> None:
    empty = Split("file", 0, SPLIT.train, (), SPLIT.test)
    with pytest.raises(DataError, match="no validation condition"):
        ConditionSampler(cells, empty, PANEL, numpy_rng(0), part="validation")
    with pytest.raises(DataError, match="0 conditions × 96 cells"):
        sampler(cells, n_conditions=0)
    with pytest.raises(ConditionError, match="target 'B' of condition 'A.B' is unknown"):
        sampler(cells, vocabulary=Vocabulary.build(["A"]))
    with pytest.raises(DataError, match=r"1 of 2 genes are not in the data \(first: 'Q'\)"):
        ConditionSampler(cells, SPLIT, GenePanel(("A", "Q"), 0), numpy_rng(0))
    with pytest.raises(ConditionError, match="'Z' is not measured"):
        ConditionSampler(cells, Split("file", 0, ("Z",), (), ("A",)), PANEL, numpy_rng(0))


@pytest.fixture(scope="module")
def lines() -> CellTable:
    """Two lines in two batches each; every cell carries its row in gene H."""
    rng = np.random.default_rng(1)
    n = 240
    obs = pd.DataFrame(
        {
            "perturbation": rng.choice(["control", "A", "B"], n, p=[0.4, 0.3, 0.3]),
            "line": rng.choice(["x", "y"], n),
            "batch": rng.choice(["1", "2"], n),
        },
        index=[f"c{i}" for i in range(n)],
    )
    x = np.zeros((n, 5), dtype=np.float32)
    x[:, 3] = np.arange(n) / 16
    adata = ad.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=GENES))
    return read_cells(adata, covariates=["line"], match_controls=["line", "batch"])


def test_controls_come_from_the_group_of_each_target_cell(lines: CellTable) -> None:
    split = Split("file", 0, ("A|line=x", "A|line=y", "B|line=y"), (), ("B|line=x",))
    encoder = ConditionEncoder(Vocabulary.build(PANEL.genes), ConditionSchema.of(split.train))
    drawn = ConditionSampler(
        lines, split, PANEL, numpy_rng(0, "s"), encoder=encoder, n_conditions=3, n_cells=400,
        control_populations=lines.control_conditions,
    )  # fmt: skip
    assert drawn.conditions == (*split.train, "control|line=x", "control|line=y")
    seen: set[str] = set()
    pairs: set[tuple[int, int]] = set()
    for batch in itertools.islice(drawn, 12):
        target, control = rows(batch.target), rows(batch.control)
        for place, name in enumerate(batch.conditions):
            own = target[batch.condition == place]
            assert set(lines.obs["line"].iloc[own]) == {name[-1]}
            seen.add(name)
        np.testing.assert_array_equal(lines.match[target], lines.match[control])
        assert set(lines.codes[control]) == {0}
        pairs |= set(zip(lines.match[target].tolist(), control.tolist(), strict=True))
    assert seen == set(drawn.conditions)
    everything = {(int(lines.match[row]), int(row)) for row in lines.rows("control")}
    assert pairs == everything  # every control cell of every group is drawn


def test_a_group_without_controls_draws_from_all_where_that_was_asked_for(lines: CellTable) -> None:
    lonely = (lines.obs["line"] == "x").to_numpy() & (lines.codes == 0)
    adata = lines.take(np.flatnonzero(~lonely)).to_adata()
    adata.obs["perturbation"] = [name.split("|")[0] for name in adata.obs["perturbation"]]
    cells = read_cells(adata, covariates=["line"], control_fallback="all")
    split = Split("file", 0, ("A|line=x",), (), ("A|line=y",))
    encoder = ConditionEncoder(Vocabulary.build(PANEL.genes), ConditionSchema.of(split.train))
    batch = ConditionSampler(cells, split, PANEL, numpy_rng(0), encoder=encoder, n_cells=2000).sample()
    kept = {round(float(value)) for value in cells.X[cells.rows("control")].toarray()[:, 3] * 16}
    assert set(rows(batch.control).tolist()) == kept


def test_a_batch_is_of_one_screen_where_they_measured_different_genes() -> None:
    sizes = {"control": 20, "A": 6, "B": 6, "A+B": 6}
    screens = {}
    for place, name in enumerate("xy"):
        labels = np.repeat(list(sizes), list(sizes.values()))
        genes = [f"g{gene}" for gene in range(place, 12 + place)]
        X = sp.csr_matrix(np.random.default_rng(place).random((len(labels), 12)).astype(np.float32))
        obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
        screens[name] = read_cells(ad.AnnData(X, obs=obs, var=pd.DataFrame(index=genes)))
    for genes, expected, weight in (
        ("union", {1}, None), ("intersection", {1, 2}, None), ("union", {1}, 4.0), ("intersection", {1, 2}, 4.0),
    ):  # fmt: skip
        cells = join_screens(screens, genes)  # type: ignore[arg-type]
        train = tuple(name for name in cells.conditions if name not in ("control", "A+B|screen=y"))
        panel = GenePanel(tuple(cells.genes.tolist()), 3)
        encoder = ConditionEncoder(Vocabulary.build(panel.genes, "AB"), ConditionSchema.of(train))
        draws = ConditionSampler(
            cells, Split("file", 0, train, (), ()), panel, numpy_rng(0, "sampler"), encoder=encoder, n_conditions=2,
            n_cells=1, weights="cell", screen_weights=weight and {"y": weight},
        )  # fmt: skip
        drawn = [[parse(name).covariates[0][1] for name in draws.sample().conditions] for _ in range(300)]
        assert {len(set(names)) for names in drawn} == expected
        # Three conditions of five are of x; pairs of different conditions are drawn one after the other.
        share = np.mean([names[0] == "x" for names in drawn])
        assert abs(share - 3 / (3 + 2 * (weight or 1))) < 4 * 0.5 / np.sqrt(300)
