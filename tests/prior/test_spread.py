"""Donors: standard normal gene by gene, with what genes of one cell have in common; files that say what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import kstest, wasserstein_distance

from scdfm.errors import RunError
from scdfm.prior import Marginals, PriorStart, Spread, fit_spread
from scdfm.prior.marginals import Levels
from scdfm.prior.spread import LEAST_DONORS, MOST_DONORS, MOST_LAWS, _share_of_own, normal_scores


def cells(n: int = 1200, n_genes: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two conditions of different means; the first two genes go together, whatever the condition."""
    rng = np.random.default_rng(seed)
    conditions = np.repeat([0, 1], n // 2)
    latent = rng.standard_normal((n, n_genes))
    latent[:, 1] = 0.9 * latent[:, 0] + np.sqrt(1 - 0.81) * latent[:, 1]
    x = np.maximum(0, 1 + 0.7 * latent + conditions[:, None] * np.linspace(-1, 1, n_genes))
    return x, conditions, np.stack([x[conditions == c].mean(0) for c in (0, 1)])


def spread(settings: tuple[str, str] = ("control", "control")) -> Spread:
    x, conditions, means = cells()
    return fit_spread(x, conditions, means, settings, torch.Generator().manual_seed(0))


def test_donors_are_standard_normal_and_keep_their_dependence() -> None:
    donors = spread().donors.float().numpy()
    for gene in range(donors.shape[1]):
        assert kstest(donors[:, gene], "norm").pvalue > 0.01
    correlation = np.corrcoef(donors.T)
    # Zeros hide some of the dependence of genes that are on in most cells.
    assert 0.7 < correlation[0, 1] < 0.95
    others = correlation[np.triu_indices(8, 1)][1:]
    assert np.abs(others).max() < 5 / np.sqrt(len(donors))


def test_conditions_means_are_not_what_donors_have_in_common() -> None:
    """The condition of a cell is taken out: without that the genes that it moves would go together."""
    x, conditions, _ = cells()
    pooled = fit_spread(x, np.zeros_like(conditions), x.mean(0)[None], ["control"], torch.Generator().manual_seed(0))
    own, mixed = (np.corrcoef(found.donors.float().numpy().T)[0, 7] for found in (spread(), pooled))
    assert abs(own) < 0.1 < abs(mixed)


def test_settings_have_donors_of_their_own() -> None:
    found = spread(("control|line=A", "control|line=B"))
    first, second = found.settings["control|line=A"], found.settings["control|line=B"]
    assert first == (0, 600)
    assert second == (600, 600)
    assert found.donors_of("control|line=B") == (600, 600)
    assert found.donors_of("control|line=C") == (0, 1200)


def test_a_setting_that_training_never_had_starts_from_its_own_controls() -> None:
    """A gene that no training cell holds has its values there, one that no control cell holds those of training."""
    x, conditions, _ = cells()
    x[:, 0] = 0
    means = np.stack([x[conditions == c].mean(0) for c in (0, 1)])
    trained = fit_spread(x, conditions, means, ["control|line=A"] * 2, torch.Generator().manual_seed(0))
    rng = np.random.default_rng(1)
    controls = np.maximum(0, 1.5 + 0.5 * rng.standard_normal((500, 8)))
    controls[:, 7] = 0
    name = "control|line=B"
    home = trained.at_home(controls, name, torch.Generator().manual_seed(1))
    assert home.settings == {name: (0, 500)}
    assert home.size == trained.size
    assert torch.equal(home.marginals.zeros[:, 7].unique(), trained.marginals.zeros[:, 7].unique())
    torch.testing.assert_close(home.deviation, trained.deviation)
    wanted = np.concatenate([controls.mean(0)[:7] + 0.3, [0.4]])[None]
    found = {}
    for which, one in (("training", trained), ("home", home)):
        start = PriorStart.around(
            one, [f"X|line={'A' if one is trained else 'B'}"], wanted, controls.mean(0)[None], [0.0]
        )
        rows = torch.zeros(2000, dtype=torch.long)
        begin = start.population(rows, torch.Generator().manual_seed(2), True)
        found[which] = start.cells(begin, begin, rows).numpy()
    np.testing.assert_allclose(found["home"].mean(0), wanted[0], atol=0.02)
    # The shape of a gene is that of these cells, which all hold it, and not that of training.
    assert abs(found["home"][:, 0].std() - 0.5) < 0.05
    assert (found["home"][:, 0] == 0).mean() < 0.02
    assert (found["training"][:, 0] == 0).mean() > 0.1
    again = trained.at_home(controls, name, torch.Generator().manual_seed(1))
    assert torch.equal(again.donors, home.donors)


def test_at_most_so_many_donors() -> None:
    x, conditions, means = cells(2 * (MOST_DONORS + 500), 2)
    found = fit_spread(x, conditions, means, ["control", "control"], torch.Generator().manual_seed(0))
    assert len(found.donors) == MOST_DONORS


def test_normal_scores_keep_the_order() -> None:
    values = torch.tensor([[3.0], [1.0], [2.0]])
    expected = torch.special.ndtri(torch.tensor([[5.0], [1.0], [3.0]], dtype=torch.float64) / 6).float()
    torch.testing.assert_close(normal_scores(values), expected)


def test_saved_and_read(tmp_path: Path) -> None:
    found = spread(("control|line=A", "control|line=B"))
    found.save(tmp_path / "spread.safetensors")
    again = Spread.load(tmp_path / "spread.safetensors", 8)
    assert torch.equal(again.donors, found.donors)
    assert torch.equal(again.marginals.values, found.marginals.values)
    assert (again.size, again.settings) == (found.size, found.settings)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("zeros"), "zeros"),
        (lambda t: t.update(zeros=t["zeros"] + 2), "are those of no distribution"),
        (lambda t: t.update(values=t["values"].flip(2)), "are those of no distribution"),
        (lambda t: t.update(means=t["means"].flip(0)), "'means' of levels do not rise"),
        (
            lambda t: t.update(means=t["means"][:1]),
            r"'zeros' is torch.float32 \[2, 8\], expected torch.float32 \[1, 8\]",
        ),
        (lambda t: t.update(deviation=t["deviation"][:3]), r"'deviation' is torch.float32 \[3\]"),
        (lambda t: t.update(donors=t["donors"].float()), "'donors' is torch.float32"),
        (lambda t: t["donors"].fill_(float("nan")), "finite"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, change, says: str) -> None:
    found, path = spread(), tmp_path / "spread.safetensors"
    found.save(path)
    tensors = {
        **{name: value.clone() for name, value in found.marginals.tensors().items()},
        "deviation": found.deviation.clone(), "donors": found.donors.clone(),
    }  # fmt: skip
    change(tensors)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, path, metadata={"spread": '{"size": 1.0, "settings": {"control": [0, 1200]}}'})
    with pytest.raises(RunError, match=rf"cannot be read as the spread of cells \(.*{says}"):
        Spread.load(path, 8)


def of_two_screens(n: int = 1200) -> tuple[np.ndarray, Spread]:
    """Cells of two screens with one mean, of which `b` leaves three genes out of four cells and has more in the fourth."""
    rng = np.random.default_rng(3)
    x = 1 + 0.2 * rng.random((n, 4))
    x[n // 2 :, :3] = np.where(rng.random((n // 2, 1)) < 0.25, 4 * x[n // 2 :, :3], 0)
    x[n // 2 :, 3] = 0  # never seen in b
    conditions, settings = np.repeat([0, 1], n // 2), ("control|screen=a", "control|screen=b")
    means = np.stack([x[conditions == place].mean(0) for place in (0, 1)])
    return x, fit_spread(x, conditions, means, settings, torch.Generator().manual_seed(0))


def test_each_screen_has_marginals_of_its_own(tmp_path: Path) -> None:
    """Populations of either screen have its zeros and spread, in one batch too; a gene it never holds has those of all."""
    x, found = of_two_screens()
    found.save(tmp_path / "spread.safetensors")
    found = Spread.load(tmp_path / "spread.safetensors", 4)
    names, means = ["X|screen=a", "X|screen=b"], np.full((2, 4), 1.1)
    start = PriorStart.around(found, names, means, means, [0.0, 0.0])
    rows = torch.arange(2).repeat(2000)
    begin = start.population(rows, torch.Generator().manual_seed(2), True)
    cells = start.cells(begin, begin, rows).numpy()
    for place, real in enumerate((x[:600], x[600:])):
        own = cells[rows == place]
        np.testing.assert_allclose((own == 0).mean(0)[:3], (real == 0).mean(0)[:3], atol=0.03)
        np.testing.assert_allclose(own.std(0)[:3], real.std(0)[:3], rtol=0.1)
    scores = start.to_flow(torch.tensor(cells), rows, torch.full(cells.shape, 0.5))
    np.testing.assert_allclose(start.cells(scores, scores, rows).numpy(), cells, atol=5e-3)
    for mean in (0.0, 0.6, 1.1):
        mine, common = (law.at(torch.full((4,), mean)) for law in (found.marginals_of(names[1]), found.marginals))
        assert torch.equal(mine.zeros[3], common.zeros[3])
        assert torch.equal(mine.values[3], common.values[3])
    # A screen that training did not have takes what all have; donors are standard normal in each screen.
    assert found.marginals_of("X|screen=c") is found.marginals
    for first, count in found.settings.values():
        assert kstest(found.donors[first : first + count, 0].float().numpy(), "norm").pvalue > 0.01


def test_a_damaged_file_of_two_screens_is_told(tmp_path: Path) -> None:
    _, found = of_two_screens()
    found.laws["b"].values[0, 0] = found.laws["b"].values[0, 0].flip(0)
    found.save(tmp_path / "spread.safetensors")
    with pytest.raises(RunError, match="are those of no distribution"):
        Spread.load(tmp_path / "spread.safetensors", 4)


def test_genes_that_a_screen_did_not_measure() -> None:
    """Marginals are of the cells that have the gene; donors take the scores of one that has it, all at once."""
    x, _ = of_two_screens()
    x[:, 3] = x[:, 2]
    x[600:, 2:] = np.nan
    conditions, settings = np.repeat([0, 1], 600), ("control|screen=a", "control|screen=b")
    means = np.stack([x[conditions == place].mean(0) for place in (0, 1)])
    found = fit_spread(x, conditions, means, settings, torch.Generator().manual_seed(0))
    of_all, own = found.marginals, found.marginals_of("X|screen=b")
    alone = Marginals.fitted(x[:600, 2:3])
    for levels in (own, of_all):
        assert torch.equal(levels.at(torch.ones(4)).values[2], alone.values[0])
        assert levels.at(torch.ones(4)).zeros[2] == 0
    assert found.deviation.isfinite().all()
    donors = found.donors.float()
    assert donors.isfinite().all()
    first, count = found.settings["control|screen=b"]
    borrowed, lent = donors[first : first + count, 2:], donors[:600, 2:]
    assert set(map(tuple, borrowed.tolist())) <= set(map(tuple, lent.tolist()))
    start = PriorStart.around(found, ["X|screen=b"], np.full((1, 4), 1.1), np.full((1, 4), 1.1), [0.0])
    rows = torch.zeros(1000, dtype=torch.long)
    begin = start.population(rows, torch.Generator().manual_seed(2), True)
    cells = start.cells(begin, begin, rows).numpy()
    np.testing.assert_allclose(cells[:, 2].std(), x[:600, 2].std(), rtol=0.1)


def lines(n: int, alike: bool, seed: int = 0, n_genes: int = 30) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two lines of the same means, n cells each in two conditions; unless `alike` one has a few cells with much in them."""
    rng = np.random.default_rng(seed)
    x = np.log1p(rng.poisson(4.0, (2 * n, n_genes))).astype(float)
    if not alike:
        x[n:] = np.where(rng.random((n, n_genes)) < 0.35, 4.2 + 0.2 * rng.standard_normal((n, n_genes)), 0)
    settings = [f"control|line={line}" for line in "AABB"]
    return x, np.repeat(np.arange(4), n // 2), settings


def of_lines(n: int, alike: bool, seed: int = 0) -> tuple[np.ndarray, Spread]:
    x, conditions, settings = lines(n, alike, seed)
    means = np.stack([x[conditions == place].mean(0) for place in range(4)])
    return x, fit_spread(x, conditions, means, settings, torch.Generator().manual_seed(0))


def population(found: Spread, name: str, mean: np.ndarray) -> np.ndarray:
    start = PriorStart.around(found, [name], mean[None], mean[None], [0.0])
    rows = torch.zeros(2000, dtype=torch.long)
    begin = start.population(rows, torch.Generator().manual_seed(2), True)
    return np.asarray(start.cells(begin, begin, rows))


def distance(cells: np.ndarray, real: np.ndarray) -> float:
    return float(np.mean([wasserstein_distance(cells[:, gene], real[:, gene]) for gene in range(cells.shape[1])]))


def test_a_line_whose_cells_differ_has_marginals_of_its_own() -> None:
    """Populations of either line have its zeros and its spread; those that all cells tell have neither."""
    x, found = of_lines(600, alike=False)
    common = replace(found, laws={})
    for line, real in (("A", x[:600]), ("B", x[600:])):
        own = population(found, f"X|line={line}", real.mean(0))
        mixed = population(common, f"X|line={line}", real.mean(0))
        np.testing.assert_allclose((own == 0).mean(0), (real == 0).mean(0), atol=0.06)
        np.testing.assert_allclose(own.std(0), real.std(0), rtol=0.12)
        assert distance(own, real) < 0.3 * distance(mixed, real)


@pytest.mark.parametrize("seed", range(3))
def test_a_line_has_its_own_marginals_as_far_as_its_cells_differ(seed: int) -> None:
    """Half of the cells tell, the others judge: all where lines differ. Of lines that are alike the more of its cells the
    cells in common are, the less is gained by its own; what is taken then makes no population worse by a twentieth."""
    shares = {}
    for alike in (False, True):
        x, conditions, _ = lines(400, alike, seed)
        group = np.arange(800) < 400
        means = np.stack([x[conditions == place].mean(0) for place in range(4)])
        basis = Levels.fitted(x, conditions, means)
        shares[alike] = _share_of_own(x[group], conditions[group], basis)
        real, _, _ = lines(4000, alike, seed + 10)
        _, found = of_lines(400, alike, seed)
        mean = real[:4000].mean(0)
        own = distance(population(found, "X|line=A", mean), real[:4000])
        common = distance(population(replace(found, laws={}), "X|line=A", mean), real[:4000])
        assert own < (1.05 if alike else 0.5) * common
    assert shares[False] > 0.9
    assert shares[True] < 0.6


def test_one_setting_alone_has_the_marginals_of_all() -> None:
    assert spread(("control|line=A", "control|line=A")).laws == {}
    assert set(of_two_screens()[1].laws) == {"a", "b"}


def test_so_many_settings_have_their_own_and_those_of_most_cells() -> None:
    """Settings of few cells, and those beyond the largest MOST_LAWS, have the marginals of all cells."""
    sizes = [LEAST_DONORS - 1, *range(30, 30 + MOST_LAWS + 3)]
    rng = np.random.default_rng(0)
    conditions = np.repeat(np.arange(len(sizes)), sizes)
    x = np.where(
        rng.random((len(conditions), 40)) < 0.1 + 0.04 * conditions[:, None], 2 + rng.random((len(conditions), 40)), 0
    )
    settings = [f"control|line={place}" for place in range(len(sizes))]
    means = np.stack([x[conditions == place].mean(0) for place in range(len(sizes))])
    found = fit_spread(x, conditions, means, settings, torch.Generator().manual_seed(0))
    assert set(found.laws) == set(settings[-MOST_LAWS:])
    assert found.marginals_of(settings[0]) is found.marginals
    for first, count in list(found.settings.values())[-3:]:
        assert kstest(found.donors[first : first + count, 0].float().numpy(), "norm").pvalue > 0.01


def test_laws_of_settings_are_saved_and_read(tmp_path: Path) -> None:
    """A file of before says nothing of mixing: marginals of a context that it meets are those of its own cells."""
    path = tmp_path / "spread.safetensors"
    for found in (of_lines(200, alike=False)[1], of_two_screens()[1]):
        found.save(path)
        with safe_open(path, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            words = json.loads(handle.metadata()["spread"])
        old = tmp_path / "old.safetensors"
        assert words.pop("mixed") is True
        save_file(tensors, old, metadata={"spread": json.dumps(words)})
        for file in (path, old):
            again = Spread.load(file, found.donors.shape[1])
            assert list(again.laws) == list(found.laws)
            assert again.mixed is (file == path)
            for name, law in found.laws.items():
                assert torch.equal(again.laws[name].values, law.values)
            controls = np.log1p(np.random.default_rng(1).poisson(2.0, (60, found.donors.shape[1]))).astype(float)
            home = again.at_home(controls, "control|line=Z", torch.Generator().manual_seed(0))
            alone = Marginals.fitted(controls)
            assert torch.equal(home.marginals.values[0], alone.values) is (file == old)


def test_lines_of_a_screen_that_lacks_genes() -> None:
    """Two lines of screen b, which has no values of two genes: their own laws are of the others, and all is finite."""
    x, _ = of_two_screens()
    x[600:, 2:] = np.nan
    x[900:, :2] = 3 * x[900:, :2]
    conditions = np.repeat([0, 1, 2], [600, 300, 300])
    settings = ["control|screen=a", "control|line=A|screen=b", "control|line=B|screen=b"]
    means = np.stack([x[conditions == place].mean(0) for place in range(3)])
    found = fit_spread(x, conditions, means, settings, torch.Generator().manual_seed(0))
    assert set(found.laws) == {"a", "b", *settings[1:]}
    assert found.marginals_of("control|line=C|screen=b") is found.laws["b"]
    for law in found.laws.values():
        assert all(part.isfinite().all() for part in law.tensors().values())
    assert found.donors.isfinite().all()
    own, basis = found.laws[settings[1]], found.laws["b"]
    assert torch.equal(own.at(torch.ones(4)).values[2:], basis.at(torch.ones(4)).values[2:])


@pytest.mark.parametrize("seed", range(5))
def test_laws_of_rare_genes_and_equal_values_are_read_again(tmp_path: Path, seed: int) -> None:
    """Genes of few cells and of few values, in lines of very different means: what is written is a distribution."""
    rng = np.random.default_rng(seed)
    rates = np.exp(rng.normal(-2, 2.5, (3, 60)))
    x = np.vstack([np.log1p(rng.poisson(rate, (150, 60))) for rate in rates]).astype(float)
    conditions, settings = np.repeat(np.arange(3), 150), [f"control|line={line}" for line in "ABC"]
    means = np.stack([x[conditions == place].mean(0) for place in range(3)])
    found = fit_spread(x, conditions, means, settings, torch.Generator().manual_seed(0))
    assert set(found.laws) == set(settings)
    found.save(tmp_path / "spread.safetensors")
    again = Spread.load(tmp_path / "spread.safetensors", 60)
    for place, name in enumerate(settings):
        assert torch.equal(again.laws[name].values, found.laws[name].values)
        values = again.laws[name].ordered(torch.from_numpy(means[place]).float(), 2000)
        np.testing.assert_allclose(values.mean(0), means[place], rtol=0.02, atol=2e-3)


@pytest.mark.parametrize(("n_settings", "each"), [(60, 2), (200, 4)])
def test_donors_of_many_small_settings_are_standard_normal_together(n_settings: int, each: int) -> None:
    """Two donors have no ranks to speak of: scored by themselves all genes would have the same two numbers."""
    rng = np.random.default_rng(0)
    conditions = np.repeat(np.arange(n_settings), each)
    x = np.log1p(rng.poisson(4.0, (len(conditions), 40))).astype(float)
    means = x.reshape(n_settings, each, 40).mean(1)
    settings = [f"control|line={place}" for place in range(n_settings)]
    found = fit_spread(x, conditions, means, settings, torch.Generator().manual_seed(0))
    assert found.laws == {}
    donors = found.donors.float()
    torch.testing.assert_close(donors.std(0), torch.ones(40), atol=0.03, rtol=0)
    start = PriorStart.around(found, [f"X|line={place}" for place in range(1)], means[:1], means[:1], [0.0])
    cells = start.population(torch.zeros(500, dtype=torch.long), torch.Generator().manual_seed(1), True)
    correlation = torch.corrcoef(cells.T)
    assert abs(float(correlation[~torch.eye(40, dtype=torch.bool)].mean())) < 0.03


def test_a_start_keeps_the_laws_of_its_settings() -> None:
    _, found = of_lines(200, alike=False)
    names = ["X|line=A", "X|line=B"]
    start = PriorStart.around(found, names, np.ones((2, 30)), np.ones((2, 30)), [0.0, 0.0])
    kept = start.of(["X|line=B"])
    assert set(kept.spread.laws) == {"control|line=B"}
    rows = torch.zeros(50, dtype=torch.long)
    begin = kept.population(rows, torch.Generator().manual_seed(0), True)
    assert torch.equal(kept.cells(begin, begin, rows), start.cells(begin, begin, rows + 1))


def test_a_single_control_cell_says_nothing_of_marginals() -> None:
    found = spread()
    home = found.at_home(np.ones((1, 8)), "control|line=X", torch.Generator().manual_seed(0))
    assert home.donors.shape == (1, 8)
    assert all(part.isfinite().all() for part in home.marginals.tensors().values())
