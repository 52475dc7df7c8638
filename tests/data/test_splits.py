"""Splits: the published algorithm, what each kind promises, and every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scdfm.config import SplitConfig
from scdfm.data import (
    CellTable,
    Split,
    additive_split,
    canonical,
    column_split,
    combinations_split,
    covariate_split,
    covariates,
    file_split,
    holdout_split,
    make_split,
    named_split,
    parse,
    read_cells,
    targets,
)
from scdfm.errors import ConditionError, ConfigError, DataError, ScdfmError

SINGLES = [f"T{i:02d}" for i in range(12)]
DOUBLES = [f"{a}+{b}" for i, a in enumerate(SINGLES) for b in SINGLES[i + 1 :] if (int(a[1:]) + int(b[1:])) % 3]
SCREEN = ["control", *SINGLES, *DOUBLES]


def table(labels: list[str], control: str = "control", **obs: list[str]) -> CellTable:
    """Two cells for each label."""
    frame = pd.DataFrame({"perturbation": np.repeat(labels, 2), **{key: np.repeat(v, 2) for key, v in obs.items()}})
    frame.index = frame.index.astype(str)
    x = np.random.default_rng(0).random((len(frame), 5)).astype(np.float32)
    return read_cells(ad.AnnData(x, obs=frame), control=control)


def parts(split: Split) -> tuple[set[str], set[str], set[str]]:
    return set(split.train), set(split.validation), set(split.test)


# The list of doubles that the official run split: those of the authors' table whose targets are genes of its
# data set, and six that the table leaves out; spelled as that file spells them.
LEFT_OUT = ("FOXL2NB", "CBARP", "ELMSAN1")
ADDED = ["BCL2L11+BAK1", "KLF1+BAK1", "TMSB4X+BAK1", "BCL2L11+TGFBR2", "KIF18B+KIF2C", "SGK1+S1PR2"]


@pytest.fixture
def norman(shared: Path) -> list[str]:
    listed = pd.read_csv(shared / "data" / "norman_double_regression.csv")["name"].str.replace("_", "+")
    doubles = [name for name in listed if not any(gone in name for gone in LEFT_OUT)] + ADDED
    singles = sorted({target for name in doubles for target in name.split("+")})
    return doubles + [f"{name}+ctrl" for name in singles] + ["ctrl"]


def test_the_37_test_doubles_of_an_official_run(shared: Path, norman: list[str]) -> None:
    run = pd.read_csv(shared / "data" / "scdfm_run" / "results.csv")["perturbation"]
    split = additive_split(norman, fold=1)
    assert set(split.test) == {canonical(name) for name in run}
    assert len(split.test) == 37


def test_the_file_spelling_orders_the_shuffle(norman: list[str]) -> None:
    """Renaming to canonical names first would give another test."""
    as_spelled = additive_split(norman, fold=1)
    assert additive_split(table(norman, control="ctrl"), fold=1).test == as_spelled.test
    assert additive_split([canonical(name) for name in norman], fold=1).test != as_spelled.test


@pytest.mark.parametrize("fold", range(5))
def test_additive_is_the_published_algorithm(fold: int) -> None:
    order = sorted(DOUBLES)
    np.random.RandomState(42 + fold).shuffle(order)
    split = additive_split(SCREEN, fold=fold, validation_fraction=0)
    train, validation, test = parts(split)
    assert test == set(order[: int(0.3 * len(order))])
    assert train == set(SCREEN[1:]) - test
    assert not validation
    assert (split.kind, split.fold) == ("additive", fold)


def test_additive_does_not_depend_on_the_order_or_repeats_of_names() -> None:
    assert additive_split(SCREEN[::-1] + SCREEN, fold=2) == additive_split(SCREEN, fold=2)


def test_validation_is_like_the_test_and_leaves_the_singles_in_training() -> None:
    split = additive_split(SCREEN, validation_fraction=0.2)
    assert set(SINGLES) <= set(split.train)
    assert all(len(targets(name)) == 2 for name in split.validation)
    training_doubles = len(DOUBLES) - len(split.test)
    assert len(split.validation) == round(0.2 * training_doubles)
    assert len(additive_split(SCREEN, validation_fraction=0.001).validation) == 1


def test_validation_leaves_every_target_in_training_where_the_test_does() -> None:
    """C+X and Y+Z hold targets that no other condition does: what they need is unlike what the test needs."""
    names = ["A", "B", "C", "A+B", "A+C", "B+C", "C+X", "Y+Z"]
    drawn = {
        name
        for seed in range(30)
        for name in named_split(names, ["B+C"], validation_fraction=0.5, seed=seed).validation
    }
    assert drawn == {"A+B", "A+C"}
    only = named_split(["A", "C", "A+C", "C+X", "Y+Z"], ["A+C"], validation_fraction=0.5, seed=1).validation
    assert len(only) == 1  # none leaves its targets: any
    unknown = {
        name
        for seed in range(30)
        for name in named_split(names, ["Y+Z"], validation_fraction=0.3, seed=seed).validation
    }
    assert "C+X" in unknown  # the test holds targets that training does not


def test_seed_moves_validation_and_never_the_test() -> None:
    first, second = (additive_split(SCREEN, seed=seed) for seed in (0, 1))
    assert first.test == second.test
    assert first.validation != second.validation
    assert additive_split(SCREEN, seed=1) == second


@pytest.mark.parametrize(
    ("n_targets", "tested", "n"),
    [(4, 1, 1), (6, 1, 4), (8, 6, 5), (12, 6, 6), (20, 40, 15)],  # of 5, 14, 22, 60, 150 doubles
)
def test_small_screens_validate_on_five_conditions_or_a_third(n_targets, tested, n) -> None:
    names = [f"T{i}" for i in range(n_targets)]
    doubles = [f"{a}+{b}" for place, a in enumerate(names) for b in names[place + 1 :]]
    split = named_split([*names, *doubles], doubles[:tested])
    assert len(split.validation) == n


@pytest.mark.parametrize("kind", ["additive", "holdout", "combinations"])
@pytest.mark.parametrize("fold", range(3))
def test_parts_cover_the_screen_once(kind: str, fold: int) -> None:
    split = make_split(SCREEN, SplitConfig(kind=kind, fold=fold, held_out_targets=3), seed=5)  # type: ignore[arg-type]
    assert sorted(split.conditions) == sorted(SCREEN[1:])
    assert split.train
    assert split.validation
    assert split.test
    split.check(SCREEN)


def test_holdout_tests_targets_that_training_never_saw() -> None:
    split = holdout_split(SCREEN, held_out_targets=3, validation_fraction=0.2)
    held = [name for name in split.test if len(targets(name)) == 1]
    assert len(held) == 3
    seen = {target for name in (*split.train, *split.validation) for target in targets(name)}
    assert seen.isdisjoint(held)
    assert {name for name in SCREEN[1:] if set(targets(name)) & set(held)} == set(split.test)
    # Validation poses the same task: its single is new to training, with all its doubles.
    unseen = {t for name in split.validation for t in targets(name)} - {t for n in split.train for t in targets(n)}
    assert unseen
    assert unseen <= set(split.validation)
    assert len({holdout_split(SCREEN, fold=fold, held_out_targets=3).test for fold in range(4)}) > 1


def test_combinations_tests_the_first_15_doubles_of_additive_and_their_singles() -> None:
    order = sorted(DOUBLES)
    np.random.RandomState(42).shuffle(order)
    first = order[: int(0.6 * len(order))][:15]
    split = combinations_split(SCREEN, test_fraction=0.6, validation_fraction=0)
    assert set(split.test) == {*first, *(target for name in first for target in targets(name))}


def test_unmeasured_singles_stay_in_the_test_and_are_told_apart() -> None:
    names = ["A", "B", "A+B", "A+X", "B+X", "X+Y", "B+Z", "A+Y"]
    split = additive_split(names, test_fraction=0.9, validation_fraction=0)
    assert len(split.test) == 5
    composed = {name for name in split.test if set(targets(name)) <= {"A", "B"}}
    assert set(split.composed()) == composed
    by_hand = Split("file", 0, train=("A", "B"), validation=("C",), test=("A+B", "A+C", "D"))
    assert by_hand.composed() == ("A+B",)


def test_a_screen_of_triples_counts_as_combinations() -> None:
    names = [*"ABCD", "A+B", "A+C", "A+B+C", "B+C+D", "A+C+D"]
    split = additive_split(names, test_fraction=0.4)
    assert set("ABCD") <= set(split.train)
    assert len(split.test) == 2


def test_validation_never_empties_training() -> None:
    split = additive_split(["A+B", "A+C"], test_fraction=0.5, validation_fraction=0.9)
    assert len(split.train) == 1
    assert split.validation == ()
    assert holdout_split(["A", "B"], held_out_targets=1, validation_fraction=0.9).validation == ()


def test_digest_follows_content_alone() -> None:
    split = additive_split(SCREEN)
    assert split.digest == Split("file", 3, split.train[::-1], split.validation, split.test).digest
    assert split.digest != additive_split(SCREEN, fold=1).digest
    assert split.digest != Split("additive", 0, split.train + split.validation, (), split.test).digest
    # Pinned: a change here would orphan the digests of saved runs.
    pinned = Split("file", 0, ("A", "B"), (), ("A+B",)).digest
    assert pinned == "b47e973f02be54421d6ef85b2ee30d3efcb28a274881f1223389dfb81079c0dc"


def test_dict_round_trip_and_its_refusals() -> None:
    split = additive_split(SCREEN, fold=2)
    saved = json.loads(json.dumps(split.to_dict()))
    assert Split.from_dict(saved) == split
    with pytest.raises(DataError, match="does not fit the names"):
        Split.from_dict({**saved, "test": saved["test"][1:]})
    with pytest.raises(DataError, match="missing or unexpected keys digest"):
        Split.from_dict({key: value for key, value in saved.items() if key != "digest"})
    with pytest.raises(DataError, match="train is 'A', expected a list"):
        Split.from_dict({**saved, "train": "A"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": ("A",), "test": ("A",)}, "'A' stands in train and in test"),
        ({"train": ("A+B",), "test": ("B+A",)}, r"'A\+B' stands in train and in test"),
        ({"train": ("A", "ctrl"), "test": ("B",)}, "control stands in train"),
        ({"train": (), "test": ("B",)}, "no training condition is left"),
    ],
)
def test_a_split_that_cannot_be_is_refused(given: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Split("file", 0, given["train"], (), given["test"])


def test_parts_by_name() -> None:
    split = Split("file", 0, ("A",), ("B",), ("C",))
    assert [split.part(name) for name in ("train", "validation", "test")] == [("A",), ("B",), ("C",)]
    with pytest.raises(DataError, match="no part 'valid'"):
        split.part("valid")
    with pytest.raises(ConditionError, match="split: test condition 'C' is not measured"):
        split.check(["A", "B"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: additive_split(["A", "B"]), "0 combinations leaves no test .* nothing .--split none"),
        (lambda: additive_split(["A", "A+B"]), "raise split.test_fraction"),
        (lambda: additive_split("A+B"), "found the text 'A"),
        (lambda: additive_split(["A+B", "A+C"], test_fraction=1.5), "test_fraction 1.5 is not between"),
        (lambda: additive_split(["A+B", "A+C", "B+C"], 0, 0.5, 1.0), "validation_fraction 1.0 is not in"),
        (lambda: holdout_split(["A", "B", "A+B"], held_out_targets=2), "cannot hold out 2 of 2 singles"),
        (lambda: holdout_split(["A", "B"], held_out_targets=0), "cannot hold out 0 of 2 singles"),
        (lambda: holdout_split(["A", "B", "A+B", "A+A"]), "names target 'A' twice"),
        (lambda: make_split(["A"], SplitConfig(kind="column", column="part")), "found condition names"),
    ],
)
def test_refusals(make: Callable[[], Split], message: str) -> None:
    with pytest.raises(ScdfmError, match=message):
        make()


def test_column_split_reads_obs() -> None:
    labels = ["control", "A", "B", "A+B", "A+C"]
    cells = table(labels, part=["train", "train", "TRAIN", "val", "ood"])
    split = column_split(cells, "part")
    assert parts(split) == ({"A", "B"}, {"A+B"}, {"A+C"})
    drawn = column_split(table(labels, part=["-", "train", "train", "train", "test"]), "part")
    assert drawn.test == ("A+C",)
    assert len(drawn.validation) == 1
    assert make_split(cells, SplitConfig(kind="column", column="part")) == split


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (["train", "train", "nonsense"], "condition 'B' has value 'nonsense'; expected train, validation or test"),
        (["train", "train", "train"], "column split: no test condition"),
        (["train", "test", "test"], "column split: no training condition is left"),
    ],
)
def test_column_refusals(part: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        column_split(table(["control", "A", "B"], part=part), "part")


def test_a_column_must_exist_and_agree_within_a_condition() -> None:
    cells = table(["control", "A", "B", "A"], part=["train", "train", "train", "test"])
    with pytest.raises(DataError, match="condition 'A' has cells in test and train"):
        column_split(cells, "part")
    with pytest.raises(DataError, match="split column 'prat' is not in obs; .* did you mean 'part'"):
        column_split(cells, "prat")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_file_split(tmp_path: Path) -> None:
    cells = table(["NT", "A", "B", "C", "B+A", "A+C"], control="NT")
    split = file_split(write(tmp_path / "s.toml", 'test = ["A+B", "C+NT"]'), cells, validation_fraction=0)
    assert parts(split) == ({"A", "B", "A+C"}, set(), {"A+B", "C"})
    chosen = write(tmp_path / "t.toml", 'test = ["A+B"]\nvalidation = ["A+C"]\ntrain = ["A"]')
    assert parts(file_split(chosen, cells)) == ({"A"}, {"A+C"}, {"A+B"})
    drawn = make_split(cells, SplitConfig(kind="file", path=tmp_path / "s.toml"))
    assert len(drawn.validation) == 1
    names = file_split(chosen, list(cells.conditions))
    assert names.digest == file_split(chosen, cells).digest
    none = write(tmp_path / "u.toml", 'test = ["A+B"]\nvalidation = []')
    assert file_split(none, cells).validation == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("test = [", "is not TOML"),
        ("train = ['A']", "no list 'test'"),
        ("test = 'A'", "test is 'A'; expected a list"),
        ("test = [1]", "expected a list of condition names"),
        ("test = ['A']\ntets = ['B']", "unknown key 'tets'; expected test, validation, train"),
        ("test = ['BAK2']", "test condition 'BAK2' is not measured; .* did you mean 'BAK1'"),
        ("test = ['A', 'A+']", "expected targets joined by"),
        ("test = []", "file split: no test condition"),
        ("test = ['A', 'BAK1']", "no training condition is left"),
        ("test = ['A']\ntrain = ['A']", "no training condition is left"),
        ("test = ['A']\nvalidation = ['A']", "'A' stands in validation and in test"),
        ("test = ['control']", "control stands in test"),
    ],
)
def test_file_refusals(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "split.toml", text)
    with pytest.raises(ScdfmError, match=message):
        file_split(path, ["control", "A", "BAK1"])


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.toml cannot be read \(No such file"):
        file_split(tmp_path / "none.toml", ["A"])
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not TOML"):
        file_split(tmp_path / "bytes.toml", ["A"])


def test_names_and_splits_bring_no_heavy_import() -> None:
    code = "import sys, scdfm.data.splits; print([m for m in ('torch', 'anndata', 'scanpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_named_test_keeps_the_rest_for_training() -> None:
    split = named_split(SCREEN, [DOUBLES[0], f"{SINGLES[3]}+ctrl"], validation_fraction=0.2, seed=1)
    assert set(split.test) == {DOUBLES[0], SINGLES[3]}
    assert set(split.conditions) == set(SCREEN) - {"control"}
    assert split.validation
    config = SplitConfig(kind="named", test=(DOUBLES[0], SINGLES[3]), validation_fraction=0.2)
    assert make_split(SCREEN, config, seed=1).digest == split.digest
    with pytest.raises(ConditionError, match="named split: test condition 'NO' is not measured"):
        named_split(SCREEN, ["NO"])
    with pytest.raises(ValueError, match=r"split\.test goes with split\.kind = 'named'"):
        SplitConfig(kind="named")


# Two lines; singles at two doses, doubles at one.
LINES = ("K562", "RPE1")
DOSED = [
    f"{name}|line={line}"
    for line in LINES
    for name in [*(f"{t}@{d}" for t in "ABCDE" for d in (1, 10)), "A@1+B@1", "A@1+C@1", "B@1+C@1", "D@1+E@1"]
]


def settings_of(names: Iterable[str], key: tuple[str, ...]) -> set[str]:
    return {covariates(name)["line"] for name in names if targets(name) == key}


@pytest.mark.parametrize("fold", range(4))
def test_additive_and_combinations_hold_out_a_combination_everywhere(fold: int) -> None:
    split = additive_split(DOSED, fold=fold, test_fraction=0.5, validation_fraction=0.3)
    assert len({targets(name) for name in split.test}) == 2
    assert all(settings_of(split.test, targets(name)) == set(LINES) for name in split.test)
    assert {name for name in DOSED if len(targets(name)) == 1} <= set(split.train)
    assert len({targets(name) for name in split.validation}) == 1
    assert settings_of(split.validation, targets(split.validation[0])) == set(LINES)
    assert set(split.composed()) == set(split.test)
    plain = additive_split([*"ABCDE", "A+B", "A+C", "B+C", "D+E"], fold=fold, test_fraction=0.5)
    assert {"+".join(targets(name)) for name in split.test} == set(plain.test)
    both = combinations_split(DOSED, fold=fold, test_fraction=0.5, validation_fraction=0)
    tested = {targets(name) for name in both.test}
    assert {targets(name) for name in split.test} < tested
    assert {name for name in DOSED if targets(name) in tested} == set(both.test)


def test_holdout_holds_out_targets_at_every_dose_and_covariate() -> None:
    split = holdout_split(DOSED, held_out_targets=1, validation_fraction=0.2)
    held = {targets(name)[0] for name in split.test if len(targets(name)) == 1}
    assert len(held) == 1
    assert set(split.test) == {name for name in DOSED if held & set(targets(name))}
    seen = {target for name in split.train for target in targets(name)}
    assert seen.isdisjoint(held)
    new = {target for name in split.validation for target in targets(name)} - seen
    assert new
    assert set(split.validation) == {name for name in (*split.train, *split.validation) if new & set(targets(name))}


def test_holdout_of_named_targets() -> None:
    split = holdout_split(DOSED, validation_fraction=0, named=["D", "E"])
    assert set(split.test) == {name for name in DOSED if {"D", "E"} & set(targets(name))}
    config = SplitConfig(kind="holdout", targets=("D", "E"), validation_fraction=0)
    assert make_split(DOSED, config).digest == split.digest
    with pytest.raises(
        ConditionError, match=r"target 'D@1' is not perturbed .* of its 5 targets \(split.targets\), with"
    ):
        holdout_split(DOSED, named=["D@1"])
    with pytest.raises(DataError, match=r"cannot hold out 12 of 5 singles; .* or name the targets \(split.targets\)"):
        holdout_split(DOSED)
    with pytest.raises(ValueError, match=r"split\.targets goes with split\.kind = 'holdout' only"):
        SplitConfig(targets=("A",))


def test_a_value_of_a_covariate_is_held_out_whole() -> None:
    split = covariate_split(DOSED, "line", "RPE1", validation_fraction=0.1)
    assert set(split.test) == {name for name in DOSED if name.endswith("RPE1")}
    assert set(split.train) | set(split.validation) == {name for name in DOSED if name.endswith("K562")}
    assert split.validation
    config = SplitConfig.model_validate(SplitConfig.named("covariate:line=RPE1"))
    assert make_split(DOSED, config).digest == split.digest
    assert (split.kind, split.fold) == ("covariate", 0)


@pytest.mark.parametrize("fold", range(4))
def test_held_out_pairs_leave_both_sides_in_training(fold: int) -> None:
    names = [f"{t}@{d}|line={line}|time=6" for line in "xyz" for t in "ABCDEF" for d in (1, 2)]
    split = covariate_split(names, "line", fold=fold, test_fraction=0.4, validation_fraction=0.2, seed=fold)
    pairs = {
        part: {(covariates(n)["line"], targets(n)) for n in split.part(part)}
        for part in ("train", "validation", "test")
    }
    assert len(pairs["test"]) == int(0.4 * 18)
    assert pairs["validation"]
    assert pairs["train"].isdisjoint(pairs["test"] | pairs["validation"])
    for side in (0, 1):
        assert {pair[side] for pair in pairs["train"]} == {pair[side] for pair in pairs["train"] | pairs["test"]}
    over = {"fold": fold, "test_fraction": 0.4, "validation_fraction": 0.2}
    config = SplitConfig.model_validate(SplitConfig.named("covariate:line") | over)
    assert make_split(names, config, seed=fold) == split
    assert covariate_split(names, "line", fold=fold + 1, test_fraction=0.4).test != split.test
    assert covariate_split(names, "line", fold=fold, test_fraction=0.4, seed=9).test == split.test


def test_pairs_stop_before_a_side_would_leave_training() -> None:
    names = [f"{t}|line={line}" for line in "xy" for t in "AB"]
    split = covariate_split(names, "line", test_fraction=0.99, validation_fraction=0)
    assert len(split.test) == 2
    assert {targets(name) for name in split.test} == {("A",), ("B",)}
    one = covariate_split([f"stim|line={line}" for line in "vwxyz"], "line", "x")
    assert len(one.validation) == 1
    assert len(one.train) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"covariate": "type"},
            r"'A@1.*line=K562' has no covariate 'type'; expected one .*there are: line\): read the",
        ),
        ({"covariate": "line", "value": "K563"}, r"no perturbed cell has line=K563; its values are K562, RPE1.*'K562'"),
        (
            {"covariate": "line", "test_fraction": 0.01},
            "leaves none to test whose targets and value both train elsewhere",
        ),
        ({"covariate": "line", "test_fraction": 1.5}, "test_fraction 1.5 is not between 0 and 1"),
    ],
)
def test_covariate_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        covariate_split(DOSED, **options)


def test_covariate_refuses_what_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match="hold out a whole value .covariate:line=VALUE."):
        covariate_split([f"stim|line={line}" for line in "vwxyz"], "line")
    with pytest.raises(DataError, match="no training condition is left"):
        covariate_split(["A|line=x", "B|line=x"], "line", "x")
    with pytest.raises(DataError, match="control.line=x stands in train"):
        Split("file", 0, ("control|line=x",), (), ("A",))


def test_the_spelling_of_a_split_by_covariate() -> None:
    assert SplitConfig.named("covariate:cell_type=B cells") == {
        "kind": "covariate", "covariate": "cell_type", "value": "B cells",
    }  # fmt: skip
    assert SplitConfig.named("covariate:cell_type") == {"kind": "covariate", "covariate": "cell_type"}
    for text in ("covariate", "covariate:", "covariate:=x", "covariate:line="):
        with pytest.raises(ConfigError, match="expected additive, holdout, combinations, covariate:NAME, "):
            SplitConfig.named(text)
    with pytest.raises(ValueError, match=r"split\.covariate goes with split\.kind = 'covariate', and only with it"):
        SplitConfig(kind="covariate")
    with pytest.raises(ValueError, match=r"split\.value goes with split\.kind = 'covariate' only"):
        SplitConfig(value="x")


def test_a_split_without_a_test_trains_on_everything_but_validation() -> None:
    names = ["control", "A", "B", "C", "A+B", "B+C", "A+C"]
    split = make_split(names, SplitConfig(kind="none", validation_fraction=0.3), seed=3)
    assert split.test == ()
    assert sorted(split.train + split.validation) == sorted(names[1:])
    assert len(split.validation) == 2
    assert split == make_split(names, SplitConfig(kind="none", validation_fraction=0.3), seed=3)
    assert make_split(names, SplitConfig(kind="none", validation_fraction=0.0)).validation == ()
    assert SplitConfig.named("none") == {"kind": "none"}
    assert Split.from_dict(split.to_dict()) == split


@pytest.mark.parametrize("seed", range(5))
def test_without_a_test_no_drug_and_no_line_is_lost_to_validation(seed: int) -> None:
    """Whole drugs would be unknown to the run that was to know everything; doses and lines between them are not."""
    doses = [f"{drug}@{dose}" for drug in ("A", "B", "C") for dose in (0.1, 1, 10)]
    lines = [f"{drug}|line={line}" for drug in ("A", "B", "C", "D") for line in ("K", "L")]
    times = [f"{drug}|time={time}" for drug in ("A", "B", "C", "D") for time in (6, 24)]
    lone = ([*lines, "A|line=M", "B|line=N", "C|line=O"], [*times, "A|time=1", "B|time=2", "C|time=3"])
    for names in (doses, *lone):
        split = make_split(names, SplitConfig(kind="none"), seed=seed)
        assert len(split.validation) >= 2
        for held in (targets, lambda name: covariates(name).get("line"), lambda name: parse(name).time):
            assert {held(name) for name in split.train} == {held(name) for name in names}
