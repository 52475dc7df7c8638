"""From measured mean shifts to an `EffectPrior`: a Gaussian process whose hyper-parameters the data choose.

The shifts Y [n, G] are written in their principal components, Y = Z V. Component j is z_j ~ N(0, s_j (K + λ_j W)), with
the covariance K of `scdfm.prior.kernel`, common to all, and W = diag(1/cells) / mean, the relative noise of the
measured means. The weights of K, each s_j and each λ_j maximise the posterior: the marginal likelihood (Rasmussen &
Williams 2006, eq. 5.8) times what is expected before. The noise s_j λ_j is that of averaging cells, m_j = Σ_g V_jg² var_g
/ cells + b, times a factor u_j around c (log-normal). b brings Σ_j m_j to Σ_g var_g / cells: the components of fewer
conditions than genes follow the noise (a spiked covariance, Johnstone 2001). c ≥ 1 is what else scatters all means of a
screen, 1 where nothing does. A component that K describes badly is not all noise: noise is much alike in all of them. The
weights lie around EXPECTED: pairs mostly add up, unless the screen says otherwise. No test condition takes part.
A target's own expression lies outside of the common components: it takes the noise of the leading ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh, svd
from scipy.optimize import minimize

from scdfm.data.conditions import CONTROL, canonical, control_of, parse, targets
from scdfm.errors import DataError
from scdfm.prior.descriptions import Missed, Sizes, borne_out, fitted_sizes, left_out, sized_alike
from scdfm.prior.effects import Descriptions, EffectPrior, described
from scdfm.prior.kernel import SIMILAR, ConditionKernel, Encoded, Floats, Weights, blocks, every_target, weighted

PROFILE_COMPONENTS = 20
LEADING = 40
"""Leading components that choose the weights of the kernel."""
MOST_CONDITIONS = 600
"""Conditions that take part in that choice, evenly over their order; all of them predict."""
UNCERTAIN_COMPONENTS = 64
MOST_DOSES = 1e9
"""How far below the median dose the scale of doses begins at most."""
NOISE = np.exp(np.linspace(-12, 6, 55))
"""Candidates for λ."""
EXCESS = np.exp(np.linspace(-12, 60, 73) / 6)
"""Candidates for u, the noise of a component over that of averaging cells, and for c, that of all components."""
EXCESS_WIDTH = 0.25
"""Standard deviation of log u around log c."""
PROFILE_LENGTH2 = 3.0
"""Squared length of the profile kernel, in medians of the squared distances between targets."""
CONTROLS_LENGTH2 = 2.0
"""Squared length of the kernel of settings, in medians of the squared distances between their control means."""
EXPECTED = {
    "shared": 0.1, "setting": 0.1, "similar": 0.3, "several": 0.1, "pair": 0.3, "kept": 0.85, "group odds": 1 / 9,
}  # fmt: skip
"""Weights before any shift is seen, relative to the same target: most of a response is shared by cell types, lines,
donors; pairs mostly add up, to a little less than the sum."""
PULL = 0.3
"""What a squared step of a log weight costs, in the log likelihood of one component."""
PULL_OF = {"pair": 1.0, "kept": 100.0}
"""The same, of weights that likelihood tells badly: it takes an unknown target's effect for an interaction with the known
one beside it, and a sum that falls short for interactions of every pair."""


class LearnedPrior(NamedTuple):
    """The prior, and the shifts [n, G] of its conditions as it predicts each from the others."""

    prior: EffectPrior
    left_out: Floats


def learn_prior(
    conditions: Sequence[str],
    shifts: Floats,
    n_cells: Sequence[int],
    variances: Floats,
    genes: Sequence[str],
    features: Descriptions | None = None,
    controls: Floats | None = None,
) -> LearnedPrior:
    """Learn from the mean `shifts` [n, G] (log1p, against the matched controls) of n perturbed `conditions`.

    n_cells: cells behind each mean. variances [G]: of cells around their condition's mean. features: descriptions of
    targets by name, each with a row [F] for every target that it knows; targets are alike that have like features, as far
    as the screen bears a description out, beside those that answer alike as genes. controls [n, G]: means of the
    conditions' controls, which tell how alike the settings of their covariates are.
    Raises DataError when shapes disagree.
    """
    names = tuple(map(canonical, conditions))
    shape, actual = (len(names), len(genes)), np.shape(shifts)
    if not names or actual != shape or len(n_cells) != len(names) or np.shape(variances) != shape[1:]:
        raise DataError(
            f"prior: expected the shifts of {len(names)} conditions × {len(genes)} genes, their cell counts, at least "
            f"one, and the genes' variances, found {actual}, {len(n_cells)} and {np.shape(variances)}; give one row and "
            "one count for each condition and one variance for each gene"
        )
    cells = np.maximum(np.asarray(n_cells, dtype=np.float64), 1)
    noise = np.asarray(variances, dtype=np.float64) * float((1 / cells).mean())
    screen = _Screen.of(names, np.asarray(shifts, dtype=np.float64), 1 / cells, noise, tuple(genes))
    control = np.zeros(len(genes)) if controls is None else np.mean(np.asarray(controls, dtype=np.float64), axis=0)
    kernel = _kernel(screen, features or {}, {} if controls is None else _settings(names, controls))
    alone = {members[0] for members in map(targets, names) if len(members) == 1}
    unmeasured = [name for name in kernel.targets if name not in alone]
    if unmeasured:  # their profile is what the other targets let expect
        first = _solved(screen, kernel, _weights(screen, kernel, without="pair"))
        expected = first.prior.predict(unmeasured) @ screen.components[: kernel.profiles.shape[1]].T
        kernel = kernel.with_profiles(unmeasured, expected)
    weights = _weights(screen, kernel)
    learned = _solved(screen, kernel, weights)
    sizes = _sizes(screen, kernel, weights, control)
    return learned._replace(prior=replace(learned.prior, control=control, sizes=sizes))


@dataclass(frozen=True, eq=False)
class _Screen:
    """Measured shifts [n, G], their components Z [n, n'] and V [n', G], sizes [n'], relative noise W [n], and m [n']."""

    conditions: tuple[str, ...]
    shifts: Floats
    noise: Floats
    genes: tuple[str, ...]
    scores: Floats
    components: Floats
    sizes: Floats
    measured: Floats

    @classmethod
    def of(
        cls, conditions: tuple[str, ...], shifts: Floats, noise: Floats, variances: Floats, genes: tuple[str, ...]
    ) -> _Screen:
        """The screen; `noise` [n] is taken relative to its mean, `variances` [G] are those of its means."""
        left, sizes, components = svd(shifts, full_matrices=False)
        # One sign for each component, whatever the linear algebra library gave.
        signs = np.sign(components[np.arange(len(components)), np.abs(components).argmax(1)])
        signs[signs == 0] = 1
        components = components * signs[:, None]
        along = components**2 @ variances
        # Fewer conditions than genes: axes bend towards the noise, and between them they hold all that each row has of it.
        bent = max(float(variances.sum() - along.sum()), 0) / len(along)
        measured = np.maximum(along + bent, 1e-12)
        scores = left * sizes * signs
        return cls(conditions, shifts, noise / noise.mean(), genes, scores, components, sizes, measured)


def _settings(conditions: Sequence[str], controls: Floats) -> dict[str, Floats]:
    """Control mean [G] of each setting of the covariates; none where settings share their controls."""
    rows: dict[str, list[Floats]] = {}
    for name, mean in zip(conditions, np.asarray(controls, dtype=np.float64), strict=True):
        rows.setdefault(control_of(name), []).append(mean)
    settings = {setting: np.mean(means, axis=0) for setting, means in rows.items()}
    own = len({mean.tobytes() for mean in settings.values()}) == len(settings)
    return settings if own and CONTROL not in settings else {}


def _kernel(screen: _Screen, features: Descriptions, settings: Mapping[str, Floats]) -> ConditionKernel:
    """The kernel of the screen's targets: profiles from their singles, descriptors, and the scales of both."""
    names = every_target(screen.conditions)
    parsed = [parse(name) for name in screen.conditions]
    k = min(PROFILE_COMPONENTS, len(screen.components))
    profiles = np.zeros((len(names), k))
    singles: dict[tuple[str, ...], list[int]] = {}
    for row, name in enumerate(screen.conditions):
        singles.setdefault(targets(name), []).append(row)
    for place, target in enumerate(names):
        if rows := singles.get((target,)):
            profiles[place] = screen.scores[rows, :k].mean(0)
    doses = [item.dose for condition in parsed for item in condition.perturbations if item.dose] or [1.0]
    usual = float(np.median(doses))
    controls = np.stack([*settings.values()]) if settings else np.zeros((0, len(screen.genes)))
    return ConditionKernel(
        targets=names,
        covariates=tuple(sorted({key for condition in parsed for key, _ in condition.covariates})),
        profiles=profiles,
        descriptors=_descriptors(screen, names, k, features),
        dose_reference=usual,
        dose_onset=max(float(min(doses)), usual / MOST_DOSES),
        profile_length2=PROFILE_LENGTH2 * _median_distance2(profiles[profiles.any(1)]),
        settings=tuple(settings),
        controls=controls,
        controls_length2=CONTROLS_LENGTH2 * _median_distance2(controls),
    )


def _descriptors(screen: _Screen, names: Sequence[str], k: int, features: Descriptions) -> dict[str, Floats]:
    """Rows of the targets `names` in each description: how they answer as genes, in `k` components, and the features."""
    answers = (screen.components[:k] * screen.sizes[:k, None]).T
    descriptions: dict[str, Mapping[str, npt.NDArray[Any]]] = {SIMILAR: dict(zip(screen.genes, answers, strict=True))}
    descriptions |= {f"{SIMILAR}: {name}": rows for name, rows in features.items()}
    descriptors = {}
    for name, rows in descriptions.items():
        width = len(next(iter(rows.values()))) if rows else k
        descriptors[name] = np.stack([described(rows.get(target), width) for target in names])
    return descriptors


def _median_distance2(rows: Floats) -> float:
    """Median of the squared distances between different rows, 1 where there are none."""
    # Row by row: all differences at once are gigabytes of thousands of targets.
    distances = np.concatenate(
        [((rows[place + 1 :] - row) ** 2).sum(-1) for place, row in enumerate(rows)] or [np.zeros(0)]
    )
    positive = distances[distances > 0]
    return float(np.median(positive)) if len(positive) else 1.0


def _weights(screen: _Screen, kernel: ConditionKernel, without: str = "") -> Weights:
    """The most probable weights of the kernel, given the leading components; then of the features that are borne out."""
    choice = _Choice.of(screen, kernel)
    weights = choice.most_probable([name for name in EXPECTED if name != without and choice.told(name)])
    place = {target: at for at, target in enumerate(kernel.targets)}
    places = [place[target] for target in choice.groups]
    features = {name: rows[places] for name, rows in kernel.descriptors.items() if name != SIMILAR}
    knows = {name: np.asarray(rows.any(axis=1)) for name, rows in features.items()}

    def errors(added: Mapping[str, float]) -> Floats:
        return choice.errors(replace(weights, terms=weights.terms | dict(added)))

    return replace(weights, terms=weights.terms | borne_out(knows, errors))


@dataclass(frozen=True, eq=False)
class _Choice:
    """What the choice of weights looks at: terms [n, n] of the screen's conditions, and their leading components."""

    terms: dict[str, Floats]
    further: Floats
    akin: Floats
    near: Floats
    scores: Floats
    noise: Floats
    measured: Floats
    groups: dict[str, list[int]]
    """The conditions of each target."""
    alone: npt.NDArray[np.bool_]
    """Whether a condition has one target, which does something."""
    dose: Floats
    """s of the conditions' targets, summed."""

    @classmethod
    def of(cls, screen: _Screen, kernel: ConditionKernel) -> _Choice:
        """Of MOST_CONDITIONS of the screen at most."""
        n = len(screen.conditions)
        rows = np.unique(np.linspace(0, n - 1, min(n, MOST_CONDITIONS)).round().astype(int))
        names = [screen.conditions[row] for row in rows]
        encoded = kernel.encode(names)
        pair = (encoded, encoded)
        groups: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            for target in targets(name):
                groups.setdefault(target, []).append(place)
        return cls(
            kernel.terms(*pair), kernel.further(*pair), kernel.akin(*pair), kernel.near(*pair),
            screen.scores[rows, :LEADING], screen.noise[rows], screen.measured[:LEADING], groups,
            encoded.n_targets == 1, encoded.total,
        )  # fmt: skip

    def told(self, name: str) -> bool:
        """Whether the conditions tell anything of a weight."""
        if name == "setting":  # one of one condition cannot tell what its conditions share
            return bool(np.triu(self.terms[name], 1).any())
        return bool({**self.terms, "kept": self.further, "group odds": self.akin < 1}[name].any())

    def most_probable(self, free: Sequence[str]) -> Weights:
        """The most probable of the `free` weights around those EXPECTED (Nelder-Mead on their logarithms)."""
        start = np.log([EXPECTED[name] for name in free])
        pull = np.array([PULL_OF.get(name, PULL) for name in free])

        def unlikely(values: Floats) -> float:
            whitened = _whitened(self._covariance(_as_weights(values, free)), self.noise, self.scores)
            likelihood = _best_noise(*whitened[:2], self.measured)[0]
            return float(likelihood.mean() + (pull * (values - start) ** 2).sum()) / len(self.noise)

        if not len(start):
            return _as_weights(start, free)
        simplex = np.vstack([start, start + np.diag(np.minimum(1, pull**-0.5))])
        options: dict[str, Any] = {"xatol": 0.02, "fatol": 1e-5, "initial_simplex": simplex}
        optimum = minimize(unlikely, start, method="Nelder-Mead", options=options)  # type: ignore[call-overload]
        return _as_weights(optimum.x, free)

    def errors(self, weights: Weights) -> Floats:
        """Error [T] of each target where nothing of it was measured: mean length over its conditions."""
        return np.array([np.linalg.norm(rows, axis=1).mean() for rows in self.missed(weights)[0]])

    def lengths(self) -> Floats:
        """Length [n] of each shift for one s, without what averaging cells adds (0 where that is more)."""
        squared = np.square(self.scores).sum(1) - self.noise * self.measured.sum()
        return np.asarray(np.sqrt(np.maximum(squared, 0)) / np.maximum(self.dose, 1e-12))

    def missed(self, weights: Weights) -> tuple[list[Floats], list[Floats], Floats]:
        """What is missed of the conditions of each target [rows, J] where none of them was measured, the variances that are
        expected of it, and the part [n, J] of these that is noise."""
        powers, squared, axes = _whitened(self._covariance(weights), self.noise, self.scores)
        _, noise, scale = _best_noise(powers, squared, self.measured)
        inverse = 1 / (powers[:, None] + noise)
        dual = axes @ (inverse * (axes.T @ self.scores))
        missed, variances = left_out(axes, inverse, dual, list(self.groups.values()))
        return missed, [scale * rows for rows in variances], np.outer(self.noise, scale * noise)

    def _covariance(self, weights: Weights) -> Floats:
        return weighted(self.terms, self.further, self.akin, self.near, weights)


def _sizes(screen: _Screen, kernel: ConditionKernel, weights: Weights, control: Floats) -> Sizes:
    """What the responses to targets alone tell of sizes; nothing where they also depend on covariates."""
    choice = _Choice.of(screen, kernel)
    alone = {target: [row for row in rows if choice.alone[row]] for target, rows in choice.groups.items()}
    alone = {target: rows for target, rows in alone.items() if rows}
    if kernel.covariates or not alone:
        return Sizes()
    errors, variances, noise = choice.missed(weights)
    missed = []
    for place, (target, group) in enumerate(choice.groups.items()):
        if rows := alone.get(target, []):
            own = [group.index(row) for row in rows]
            real, scatter = choice.scores[rows], noise[rows].sum(1)
            doubt = np.maximum(variances[place][own].sum(1) - scatter, 0)
            missed.append(Missed(real, real - errors[place][own], doubt, scatter))
    lengths = choice.lengths()
    sizes = np.array([np.sqrt(np.square(lengths[rows]).mean()) for rows in alone.values()])
    names = [*alone]
    alike = sized_alike(kernel, names, names, screen.genes, control)
    return fitted_sizes(names, sizes, alike, missed)


def _as_weights(values: Floats, free: Sequence[str]) -> Weights:
    """The weights of which `values` are the logarithms; of g, of its odds."""
    weights = dict(zip(free, np.exp(values).tolist(), strict=True))
    terms = {"same": 1.0} | {name: value for name, value in weights.items() if name not in ("kept", "group odds")}
    odds = weights.get("group odds", 0.0)
    return Weights(terms, odds / (1 + odds), weights.get("kept", EXPECTED["kept"]))


def _whitened(covariance: Floats, noise: Floats, scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Eigenvalues [n] of W^-1/2 K W^-1/2, the squared scores in its axes [n, J], and W^-1/2 times its axes.

    K is overwritten: of thousands of conditions it takes gigabytes.
    """
    root = 1 / np.sqrt(noise)
    for part in blocks(len(root)):
        covariance[part] *= np.outer(root[part], root)
    powers, axes = eigh(covariance, overwrite_a=True)
    axes *= root[:, None]
    return np.maximum(powers, 0), (axes.T @ scores) ** 2, axes


def _best_noise(powers: Floats, squared: Floats, measured: Floats) -> tuple[Floats, Floats, Floats]:
    """For each component [J]: minus its best log posterior (up to a constant), the λ that gives it, and s.

    Over all pairs of a λ and a noise s λ = u m (`measured`). log u costs ((log u − log c) / EXCESS_WIDTH)² / 2, and each
    component log² c / 2: where nothing but its strength tells an effect from noise, the noise is that of averaging cells.
    The LEADING components choose c ≥ 1.
    """
    variances = powers[None] + NOISE[:, None]  # [λ, n]
    explained = 0.5 * (1 / variances) @ squared * NOISE[:, None]  # [λ, J]
    volume = 0.5 * (np.log(variances).sum(1) - len(powers) * np.log(NOISE))[:, None]
    unlikely = np.empty((len(EXCESS), len(measured)))  # [u, J], of the best λ of each
    places = np.empty(unlikely.shape, dtype=np.int64)
    for row, excess in enumerate(EXCESS):
        noise = excess * measured
        of_level = explained / noise + volume + 0.5 * len(powers) * np.log(noise)
        unlikely[row], places[row] = of_level.min(0), of_level.argmin(0)
    logs = np.log(EXCESS)
    cost = 0.5 * (np.subtract.outer(logs, logs) / EXCESS_WIDTH) ** 2 + 0.5 * logs[:, None] ** 2  # [c, u]
    totals = [(unlikely[:, :LEADING] + row[:, None]).min(0).sum() for row in cost]
    chosen = int(np.argmin(np.where(EXCESS < 1, np.inf, totals)))
    unlikely += cost[chosen][:, None]
    rows, columns = unlikely.argmin(0), np.arange(len(measured))
    levels = NOISE[places[rows, columns]]
    return unlikely[rows, columns], levels, EXCESS[rows] * measured / levels


def _solved(screen: _Screen, kernel: ConditionKernel, weights: Weights) -> LearnedPrior:
    """The process conditioned on every measured condition."""
    encoded: Encoded = kernel.encode(screen.conditions)
    powers, squared, axes = _whitened(kernel.matrix(encoded, encoded, weights), screen.noise, screen.scores)
    _, noise, scale = _best_noise(powers, squared, screen.measured)
    perturbed = set(kernel.targets)
    own = np.array([place for place, gene in enumerate(screen.genes) if gene in perturbed], dtype=np.int64)
    leading = np.full(len(own), np.median(noise[:10]))
    dual, left_out = _conditioned(axes, powers, noise, screen.scores)
    own_dual, own_left_out = _conditioned(axes, powers, leading, screen.shifts[:, own])
    expected = left_out @ screen.components
    column = {screen.genes[gene]: at for at, gene in enumerate(own)}
    for row, name in enumerate(screen.conditions):
        named = [column[target] for target in targets(name) if target in column]
        expected[row, own[named]] = own_left_out[row, named]
    top = slice(0, UNCERTAIN_COMPONENTS)
    prior = EffectPrior(
        kernel=kernel, weights=weights, conditions=screen.conditions, genes=screen.genes,
        dual=dual @ screen.components, own=own, own_dual=np.ascontiguousarray(own_dual),
        components=screen.components[top], responses=screen.components[top] * screen.sizes[top, None],
        noise=noise[top], scale=scale[top], axes=np.ascontiguousarray(axes), powers=powers,
        control=np.zeros(len(screen.genes)), sizes=Sizes(),
    )  # fmt: skip
    return LearnedPrior(prior, expected)


def _conditioned(axes: Floats, powers: Floats, noise: Floats, values: Floats) -> tuple[Floats, Floats]:
    """α_j = (K + λ_j W)⁻¹ y_j [n, J], and the leave-one-out means y − α / diag (R&W eq. 5.12)."""
    levels, of_level = np.unique(noise, return_inverse=True)  # few: λ is one of NOISE
    inverse = 1 / (powers[:, None] + levels)
    dual = axes @ (inverse[:, of_level] * (axes.T @ values))
    diagonal = np.concatenate([axes[part] ** 2 @ inverse for part in blocks(len(axes))])
    return dual, values - dual / diagonal[:, of_level]
