"""The closed-form prior: the formulas it stands on, what it recovers, and what it says of its own error."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scdfm.errors import DataError, RunError
from scdfm.prior import EffectPrior, learn_prior
from scdfm.prior import learn as module

TARGETS = [f"T{i:02d}" for i in range(16)]
GENES = [f"G{i}" for i in range(60)]
CELL_VARIANCE = np.full(60, 0.04)
"""That of means of 100 cells is then 0.02², as the screens below have it."""


def screen(
    seed: int = 0, interaction: float = 0.0, noise: float = 0.02, kept: float = 1.0
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Shifts of all singles and doubles: low rank, `kept` of the sum, and an interaction that like pairs share."""
    rng = np.random.default_rng(seed)
    latent, loadings = rng.normal(size=(len(TARGETS), 3)), rng.normal(size=(3, len(GENES)))
    bent = rng.normal(size=(3, len(GENES)))
    shifts = {name: latent[i] @ loadings for i, name in enumerate(TARGETS)}
    for (i, a), (j, b) in itertools.combinations(enumerate(TARGETS), 2):
        shifts[f"{a}+{b}"] = kept * (shifts[a] + shifts[b]) + interaction * (latent[i] * latent[j]) @ bent
    doubles = [name for name in shifts if "+" in name]
    held = list(rng.permutation(doubles)[:30])
    return {name: value + noise * rng.normal(size=len(GENES)) for name, value in shifts.items()}, held


def learned(shifts: dict[str, np.ndarray], without: list[str], **options: Any) -> module.LearnedPrior:
    names = [name for name in shifts if name not in without]
    return learn_prior(
        names, np.array([shifts[name] for name in names]), [100] * len(names), CELL_VARIANCE, GENES, **options
    )


def error(predicted: np.ndarray, shifts: dict[str, np.ndarray], names: list[str]) -> float:
    return float(np.linalg.norm(predicted - np.array([shifts[name] for name in names]), axis=1).mean())


def additive(shifts: dict[str, np.ndarray], names: list[str]) -> np.ndarray:
    return np.array([sum(shifts[target] for target in name.split("+")) for name in names])


def test_sums_are_found() -> None:
    """Where effects add up, held-out doubles are as good as the noise of two measured singles."""
    shifts, held = screen(noise=0.05)
    prior = learned(shifts, held).prior
    assert error(prior.predict(held), shifts, held) < error(additive(shifts, held), shifts, held)


@pytest.mark.parametrize("kept", [1.0, 0.7])
def test_doubles_tell_what_is_kept_of_sums(kept: float) -> None:
    """90 of them move κ from what is expected of it towards what they show, and pairs depart for the rest of the way."""
    shifts, held = screen(kept=kept)
    prior = learned(shifts, held).prior
    expected = module.EXPECTED["kept"]
    assert 0.2 < (prior.weights.kept - expected) / (kept - expected) < 1
    assert error(prior.predict(held), shifts, held) < error(kept * additive(shifts, held), shifts, held)


def test_interactions_of_like_pairs_are_found() -> None:
    shifts, held = screen(interaction=0.5)
    found = error(learned(shifts, held).prior.predict(held), shifts, held)
    assert found < 0.6 * error(additive(shifts, held), shifts, held)


def test_leave_one_out_is_what_the_others_let_expect() -> None:
    """The closed form (R&W 5.12) equals solving again without the row, hyper-parameters kept."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(12, 12))
    covariance, noise, values = root @ root.T, rng.uniform(0.5, 2, 12), rng.normal(size=(12, 3))
    levels = np.array([0.3, 1.0, 5.0])
    powers, _, axes = module._whitened(covariance.copy(), noise, values)
    dual, left_out = module._conditioned(axes, powers, levels, values)
    for j, level in enumerate(levels):
        whole = covariance + level * np.diag(noise)
        np.testing.assert_allclose(dual[:, j], np.linalg.solve(whole, values[:, j]), rtol=1e-8)
        for i in range(12):
            others = np.arange(12) != i
            alone = covariance[i, others] @ np.linalg.solve(whole[np.ix_(others, others)], values[others, j])
            assert left_out[i, j] == pytest.approx(alone, rel=1e-7)


@pytest.mark.parametrize("excess", [1.0, 20.0])
def test_noise_is_the_most_probable(excess: float) -> None:
    """λ and s of all components maximise their Gaussian log densities and those of log u and log c, checked against scipy.

    Where averaging cells explains the noise c is 1, and where it has a multiple of that c is near it.
    """
    from scipy.stats import multivariate_normal, norm

    rng = np.random.default_rng(2)
    root = rng.normal(size=(15, 15))
    covariance, noise = root @ root.T / 15, rng.uniform(0.5, 2, 15)
    values = rng.multivariate_normal(np.zeros(15), 3 * (covariance + 0.4 * np.diag(noise)), size=6).T
    powers, squared, _ = module._whitened(covariance.copy(), noise, values)
    measured = np.full(6, 1.2 / excess)
    unlikely, levels, scales = module._best_noise(powers, squared, measured)

    def density(level: float, scale: float, j: int, log_common: float) -> float:
        likelihood = multivariate_normal.logpdf(values[:, j], cov=scale * (covariance + level * np.diag(noise)))
        apart = np.log(scale * level / measured[j]) - log_common
        return float(likelihood + norm.logpdf(apart, scale=module.EXCESS_WIDTH))

    def joint(log_common: float, levels: np.ndarray, scales: np.ndarray) -> float:
        return sum(density(levels[j], scales[j], j, log_common) + float(norm.logpdf(log_common)) for j in range(6))

    grid = np.log(module.EXCESS[module.EXCESS >= 1 - 1e-9])
    found = max(joint(c, levels, scales) for c in grid)
    best = -np.inf
    for c in grid[:18]:
        each = []
        for j in range(6):
            near = [np.exp(c + step) * measured[j] for step in (-0.4, -0.2, 0, 0.2, 0.4)]
            each.append(max(density(level, one / level, j, c) for level in module.NOISE[::2] for one in near))
        best = max(best, sum(each) + 6 * float(norm.logpdf(c)))
    assert found > best - 0.1
    common = grid[int(np.argmax([joint(c, levels, scales) for c in grid]))]
    assert common > np.log(2) if excess > 1 else common < np.log(1.3)
    assert unlikely.shape == (6,)


@pytest.mark.parametrize(("n", "strength"), [(30, 2.0), (100, 2.0), (30, 4.0)])
def test_effects_that_nothing_shares_are_not_noise(n: int, strength: float) -> None:
    """Each target in its own way, as strong in every gene as `strength` of the noise: near the share that is best."""
    names, genes = [f"T{i}" for i in range(n)], [f"G{i}" for i in range(300)]
    best = strength / (1 + strength**2) ** 0.5
    for seed in range(2):
        rng = np.random.default_rng(seed)
        variances = rng.gamma(1.0, size=300)
        effects, noise = rng.normal(size=(2, n, 300)) * np.sqrt(variances / 50)
        shifts = strength * effects + noise
        predicted = learn_prior(names, shifts, [50] * n, variances, genes).prior.predict(names)
        error = np.linalg.norm(predicted - strength * effects) / np.linalg.norm(noise)
        assert error < 1.15 * best


@pytest.mark.parametrize("size", [10.0, 20.0, 40.0])
def test_a_component_that_the_kernel_describes_badly_is_not_all_noise(size: float) -> None:
    """What a single condition shows, far beyond the noise of all components, where the kernel expects all to be alike."""
    rng = np.random.default_rng(0)
    covariance = np.eye(40) + 0.95 * (1 - np.eye(40))
    values = rng.normal(size=(40, 30))
    values[3, 0] += size
    powers, squared, _ = module._whitened(covariance, np.ones(40), values)
    _, levels, scales = module._best_noise(powers, squared, np.ones(30))
    assert levels[0] * scales[0] < 1.5


@pytest.mark.parametrize(("n", "n_genes"), [(10, 300), (30, 300), (40, 20)])
def test_components_hold_all_noise_between_them(n: int, n_genes: int) -> None:
    """Σ_j m_j is the noise of a condition over all genes, also where the components span only a part of them."""
    rng = np.random.default_rng(0)
    variances = rng.gamma(1.0, size=n_genes)
    names = tuple(f"T{i}" for i in range(n))
    genes = tuple(f"G{i}" for i in range(n_genes))
    shifts = rng.normal(size=(n, n_genes)) * np.sqrt(variances)
    measured = module._Screen.of(names, shifts, np.ones(n), variances, genes).measured
    np.testing.assert_allclose(measured.sum(), variances.sum())
    assert (measured > 0).all()


@pytest.mark.parametrize("n", [10, 30, 100])
def test_noise_alone_is_hardly_believed_and_effects_are(n: int) -> None:
    """Of means that are noise of 50 cells a third at most is left, of real directions beside it more than four fifths."""
    genes = [f"G{i}" for i in range(300)]
    names = [f"T{i}" for i in range(n)]
    left, kept, missed = [], [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        variances = rng.gamma(1.0, size=300)
        noise = rng.normal(size=(n, 300)) * np.sqrt(variances / 50)
        effects = rng.normal(size=(n, 4)) @ rng.normal(size=(4, 300)) * np.sqrt(variances / 50).mean()
        nothing, something = (
            learn_prior(names, shifts, [50] * n, variances, genes).prior.predict(names)
            for shifts in (noise, effects + noise)
        )
        left.append(np.linalg.norm(nothing) / np.linalg.norm(noise))
        kept.append((something * effects).sum() / np.square(effects).sum())
        missed.append(np.linalg.norm(something - effects) / np.linalg.norm(noise))
    assert max(left) < 1 / 3
    assert min(kept) > 0.8
    assert max(missed) < 0.75


def test_few_conditions_trust_what_was_measured() -> None:
    """Doubles whose singles were measured once, in a screen too small to tell how noisy it is, or how effects overlap.

    Where they overlap as expected, better than the very share of the sum that is true.
    """
    kept = module.EXPECTED["kept"]
    shifts, _ = screen(noise=0.05, kept=kept)
    singles, known = TARGETS[:8], ["T00+T01", "T02+T03", "T08+T09", "T10+T11", "T12+T13"]
    test = [f"{a}+{b}" for a, b in itertools.combinations(singles, 2) if f"{a}+{b}" not in known]
    names = [*singles, *known]
    values = np.array([shifts[name] for name in names])
    prior = learn_prior(names, values, [100] * len(names), np.full(60, 100 * 0.05**2), GENES).prior
    assert error(prior.predict(test), shifts, test) < error(kept * additive(shifts, test), shifts, test)


def test_a_setting_differs_alike_at_every_dose() -> None:
    """Two lines without controls of their own: an unseen drug in the other line differs by it, however low the dose."""
    rng = np.random.default_rng(4)
    drugs, doses, line = rng.normal(size=(12, len(GENES))), (0.1, 1.0, 10.0), 3 * rng.normal(size=len(GENES))
    shifts = {
        f"D{i:02d}@{dose:g}|line={name}": np.log2(1 + dose) * effect + offset + 0.02 * rng.normal(size=len(GENES))
        for i, effect in enumerate(drugs)
        for dose in doses
        for name, offset in (("x", 0.0), ("y", line))
    }
    test = [f"D11@{dose:g}|line=y" for dose in doses]
    expected = learned(shifts, [name for name in shifts if name.startswith("D11")]).prior.predict(test)
    # The drug is unknown, the line is not: at 0.1 the drug itself moves cells by .14 of its effect.
    np.testing.assert_allclose(expected @ line / (line @ line), 1, atol=0.15)
    assert np.linalg.norm(expected[0] - line) < 0.1 * np.linalg.norm(line)


def test_left_out_conditions_are_not_copied() -> None:
    """What a training condition is expected to be does not come from its own measurement."""
    shifts, held = screen()
    both = learned(shifts, held)
    place = both.prior.conditions.index("T03")
    spoiled = dict(shifts) | {"T03": shifts["T03"] + 50.0}
    again = learned(spoiled, held)
    own = np.linalg.norm(again.prior.predict(["T03"])[0] - spoiled["T03"])
    assert np.linalg.norm(again.left_out[place] - spoiled["T03"]) > 10 * own


def test_uncertainty_is_of_the_size_of_the_error() -> None:
    shifts, held = screen(interaction=0.5)
    prior = learned(shifts, held).prior
    deviation = np.sqrt((prior.uncertainty(held) ** 2).sum(1))
    actual = np.linalg.norm(prior.predict(held) - np.array([shifts[name] for name in held]), axis=1)
    assert 0.4 < np.sqrt((actual**2).mean() / (deviation**2).mean()) < 2.5
    measured = np.sqrt((prior.uncertainty(["T00"]) ** 2).sum())
    assert measured < np.median(deviation)


def test_errors_covary_as_each_component_is_left_after_the_measured_conditions() -> None:
    """Σ_j s_j ‖V_j‖² (K** − K*m (Kmm + λ_j)⁻¹ Km*), all conditions having the same number of cells; a condition's own is
    its doubt, also where a target was never measured."""
    shifts, held = screen(interaction=0.5)
    prior = learned(shifts, held).prior
    kernel, weights = prior.kernel, prior.weights
    asked, measured = kernel.encode(held), kernel.encode(prior.conditions)
    before, across = kernel.matrix(asked, asked, weights), kernel.matrix(asked, measured, weights)
    within, expected = kernel.matrix(measured, measured, weights), np.zeros_like(before)
    for component, scale, noise in zip(prior.components, prior.scale, prior.noise, strict=True):
        told = across @ np.linalg.solve(within + noise * np.eye(len(within)), across.T)
        expected += scale * (component @ component) * (before - told)
    close = {"rtol": 1e-6, "atol": 1e-8 * expected.max()}
    np.testing.assert_allclose(prior.covariance(held, held), expected, **close)
    names = [*held[:5], "new", "T03+new"]
    np.testing.assert_allclose(np.diag(prior.covariance(names, names)), prior.doubt(names), **close)
    np.testing.assert_allclose(prior.covariance(names[:2], names[3:5]), expected[:2, 3:5], **close)
    assert prior.measurement_noise == pytest.approx(sum(prior.noise * prior.scale * (prior.components**2).sum(1)))


def test_own_expression_is_kept() -> None:
    """A target that is a gene keeps what its perturbation does to itself, which no other condition shares."""
    rng = np.random.default_rng(3)
    names = [f"G{i}" for i in range(20)] + [f"G{i}+G{i + 1}" for i in range(0, 18, 2)]
    shifts = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 60)) * 0.1
    shifts[np.arange(20), np.arange(20)] += 4.0
    doubles = [shifts[int(a[1:])] + shifts[int(b[1:])] for a, b in (name.split("+") for name in names[20:])]
    prior = learn_prior(names, np.vstack([shifts, doubles]), [200] * len(names), CELL_VARIANCE, GENES).prior
    expected = prior.predict(["G1+G5"])[0]
    assert expected[1] > 3
    assert expected[5] > 3
    assert abs(expected[40]) < 1


def test_features_carry_unseen_targets() -> None:
    """A target without any measurement is expected to answer like those with like features; shuffled ones tell nothing."""
    rng = np.random.default_rng(4)
    features = {name: rng.normal(size=4) for name in (f"D{i:03d}" for i in range(90))}
    features = {name: row / np.linalg.norm(row) for name, row in features.items()}
    loadings = rng.normal(size=(4, 60))
    shifts = {name: row @ loadings + 0.05 * rng.normal(size=60) for name, row in features.items()}
    seen, unseen = list(shifts)[:70], list(shifts)[70:]
    values = np.array([shifts[name] for name in seen])
    real = np.array([shifts[name] for name in unseen])

    def unseen_error(given: dict[str, np.ndarray]) -> float:
        table = {"table": given}
        prior = learn_prior(seen, values, [50] * len(seen), CELL_VARIANCE, GENES, table).prior.knowing(unseen, table)
        return float(np.linalg.norm(prior.predict(unseen) - real, axis=1).mean())

    mean = float(np.linalg.norm(values.mean(0) - real, axis=1).mean())
    shuffled = dict(zip(features, rng.permutation(list(features.values())), strict=True))
    assert unseen_error(features) < 0.5 * mean
    assert unseen_error(shuffled) > 0.9 * mean


def test_doses_grow_from_nothing() -> None:
    rng = np.random.default_rng(5)
    effect = {drug: rng.normal(size=60) for drug in "ABCDEF"}
    doses = [0.1, 1.0, 10.0]
    names = [f"{drug}@{dose:g}" for drug in effect for dose in doses]
    shifts = np.array([effect[n[0]] * np.log1p(float(n[2:])) + 0.01 * rng.normal(size=60) for n in names])
    prior = learn_prior(names, shifts, [100] * len(names), CELL_VARIANCE, GENES).prior
    sizes = np.linalg.norm(prior.predict([f"A@{dose:g}" for dose in (0, 0.1, 0.5, 1, 3, 10)]), axis=1)
    assert sizes[0] == 0
    assert (np.diff(sizes) > 0).all()
    between = prior.predict(["A@3"])[0]
    assert np.linalg.norm(between - effect["A"] * np.log1p(3.0)) < 0.2 * np.linalg.norm(between)


@pytest.mark.parametrize("seed", range(3))
def test_doses_that_saturate_are_met_between_and_beyond_the_measured_ones(seed: int) -> None:
    """Hill curves, doses a factor of ten apart, the lowest of which do next to nothing."""
    rng, measured = np.random.default_rng(seed), (0.01, 0.1, 1.0, 10.0)
    effects, half = rng.normal(size=(10, len(GENES))), 10 ** rng.uniform(-1.5, 0.5, 10)

    def shifts(dose: float) -> np.ndarray:
        return effects * (dose**1.2 / (dose**1.2 + half**1.2))[:, None]

    names = [f"D{drug}@{dose:g}" for dose in measured for drug in range(10)]
    noisy = np.concatenate([shifts(dose) for dose in measured]) + 0.05 * rng.normal(size=(40, len(GENES)))
    prior = learn_prior(names, noisy, [100] * 40, np.full(len(GENES), 0.25), GENES).prior
    for dose, most in ((0.3, 0.2), (3.0, 0.1), (30.0, 0.25)):
        missed = prior.predict([f"D{drug}@{dose:g}" for drug in range(10)]) - shifts(dose)
        assert np.linalg.norm(missed) < most * np.linalg.norm(shifts(dose)), dose


def test_same_bits_and_saved(tmp_path: Path) -> None:
    shifts, held = screen(interaction=0.3)
    first, second = learned(shifts, held).prior, learned(shifts, held).prior
    first.save(tmp_path / "prior.safetensors")
    loaded = EffectPrior.load(tmp_path / "prior.safetensors")
    for other in (second, loaded):
        np.testing.assert_array_equal(other.predict(held), first.predict(held))
        np.testing.assert_allclose(other.uncertainty(held[:3]), first.uncertainty(held[:3]), rtol=1e-10)
    np.testing.assert_array_equal(first.predict(["T01+T00"]), first.predict(["T00+T01"]))
    assert first.predict(["control"]).any() == np.False_


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00" * 40])
def test_damaged_file(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "prior.safetensors").write_bytes(damage)
    with pytest.raises(RunError, match=r"prior.safetensors cannot be read as a prior"):
        EffectPrior.load(tmp_path / "prior.safetensors")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_conditions(n: int) -> None:
    """A handful of conditions is little to learn from, but no error."""
    rng = np.random.default_rng(6)
    names = ["A", "B", "A+B"][:n]
    prior = learn_prior(names, rng.normal(size=(n, 60)), [5] * n, CELL_VARIANCE, GENES).prior
    assert np.isfinite(prior.predict(["A+B", "A+C"])).all()
    assert np.isfinite(prior.uncertainty(["A+B", "A+C"])).all()


def test_no_shift_at_all() -> None:
    prior = learn_prior(["A", "B", "A+B"], np.zeros((3, 60)), [5] * 3, CELL_VARIANCE, GENES).prior
    assert not prior.predict(["A", "A+B", "C"]).any()


@pytest.mark.parametrize(
    ("names", "shape", "counts", "n_variances"),
    [
        ([], (0, 60), [], 60), (["A"], (2, 60), [1], 60), (["A"], (1, 60), [], 60), (["A"], (1, 60), [1], 59),
    ],
)  # fmt: skip
def test_shapes_are_checked(names: list[str], shape: tuple[int, int], counts: list[int], n_variances: int) -> None:
    with pytest.raises(DataError, match=r"prior: expected the shifts of \d conditions × 60 genes"):
        learn_prior(names, np.zeros(shape), counts, np.ones(n_variances), GENES)


def test_an_unseen_setting_answers_as_those_that_are_like_it() -> None:
    """Two kinds of lines answer in two ways; a new line is told by its controls alone."""
    rng = np.random.default_rng(3)
    kinds = {"x": 0, "y": 0, "z": 0, "u": 1, "v": 1, "w": 1}
    controls, effects = rng.normal(size=(2, 2, 60))
    mean = {line: controls[kind] + 0.1 * rng.normal(size=60) for line, kind in kinds.items()}
    shift = {line: effects[kind] + 0.1 * rng.normal(size=60) for line, kind in kinds.items()}
    for held, kind in (("x", 0), ("u", 1)):
        lines = [line for line in kinds if line != held]
        genes = [f"gene{i}" for i in range(60)]
        prior = learn_prior(
            [f"A|line={line}" for line in lines], np.array([shift[line] for line in lines]), [100] * len(lines),
            np.full(60, 0.01), genes, controls=np.array([mean[line] for line in lines]),
        ).prior  # fmt: skip
        knowing = prior.knowing(["A"], controls={f"control|line={held}": mean[held]})
        found = knowing.predict([f"A|line={held}"])[0]
        middle = np.mean([shift[line] for line in lines], axis=0)
        assert np.linalg.norm(found - effects[kind]) < 0.4 * np.linalg.norm(middle - effects[kind])


def test_settings_that_share_their_controls_are_told_apart_by_name(tmp_path: Path) -> None:
    names = ["A|line=x", "A|line=y", "B|line=x"]
    values = np.random.default_rng(4).normal(size=(3, 20))
    genes = [f"gene{i}" for i in range(20)]
    same = learn_prior(names, values, [50] * 3, np.full(20, 0.01), genes, controls=np.ones((3, 20))).prior
    assert same.kernel.settings == ()
    own = learn_prior(names, values, [50] * 3, np.full(20, 0.01), genes, controls=np.eye(2, 20)[[0, 1, 0]]).prior
    assert own.kernel.settings == ("control|line=x", "control|line=y")
    own.save(tmp_path / "prior.safetensors")
    again = EffectPrior.load(tmp_path / "prior.safetensors")
    np.testing.assert_array_equal(again.predict(["B|line=y"]), own.predict(["B|line=y"]))


def test_what_a_setting_shares_is_found() -> None:
    """Every perturbation of a line moves alike, as when its control cells are few: an unmeasured pair does too."""
    rng = np.random.default_rng(5)
    lines, names = rng.normal(size=(3, 40)), [f"T{i}|line={line}" for i in range(6) for line in "xyz"]
    own = 0.2 * rng.normal(size=(6, 40))
    shifts = np.array([own[int(name[1])] + lines["xyz".index(name[-1])] for name in names])
    genes, held = [f"gene{i}" for i in range(40)], ["T1|line=x", "T4|line=z"]
    kept = [row for row, name in enumerate(names) if name not in held]
    prior = learn_prior(
        [names[row] for row in kept], shifts[kept], [50] * len(kept), np.full(40, 0.05), genes,
        controls=np.array([np.eye(3, 40)["xyz".index(names[row][-1])] for row in kept]),
    ).prior  # fmt: skip
    truth = np.array([shifts[names.index(name)] for name in held])
    assert prior.weights.terms["setting"] > 0.3
    assert np.linalg.norm(prior.predict(held) - truth) < 0.3 * np.linalg.norm(truth)
