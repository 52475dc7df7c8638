"""The closed-form prediction of mean shifts: a Gaussian process over conditions, for all genes at once.

`scdfm.prior.learn` fits it and gives the model. A shift is Σ_i K(c, i) · dual_i over the measured conditions i.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from scdfm.data.conditions import canonical, targets
from scdfm.errors import RunError
from scdfm.files import written_whole
from scdfm.prior.descriptions import LEAST_TARGETS, Sizes, sized_alike
from scdfm.prior.kernel import SIMILAR, ConditionKernel, Encoded, Floats, Weights, blocks, every_target

Descriptions = Mapping[str, Mapping[str, npt.NDArray[Any]]]
"""What is known of targets: by the name of a description, the row [F] of each target that it knows."""


@dataclass(frozen=True, eq=False)
class EffectPrior:
    """Predicts the mean shift of any condition from its controls (log1p, [G]) and how sure it is.

    `conditions` (n) were measured; `dual` [n, G] turns covariances with them into shifts. `own` [O] are the genes
    that are targets themselves and `own_dual` [n, O] their dual: what a perturbation does to its own target lies
    outside of the components that conditions share. The other arrays carry the uncertainty, see `scdfm.prior.learn`.
    """

    kernel: ConditionKernel
    weights: Weights
    conditions: tuple[str, ...]
    genes: tuple[str, ...]
    dual: Floats
    own: npt.NDArray[np.int64]
    own_dual: Floats
    components: Floats
    """V [J, G], rows of length 1."""
    responses: Floats
    """[J, G]: V times the size of each component, which describes genes as targets."""
    noise: Floats
    """λ [J], relative to K."""
    scale: Floats
    """s [J], the variance of a component where K is 1."""
    axes: Floats
    """A [n, n] with (K + λW)⁻¹ = A diag(1 / (powers + λ)) Aᵀ."""
    powers: Floats
    """[n]"""
    control: Floats
    """Mean of the control cells [G] (log1p); zeros where nobody said."""
    sizes: Sizes
    ratios: Mapping[str, float] = field(default_factory=dict)
    """The expected size of each target that was not measured, as `sizes` tells it."""

    @property
    def silent(self) -> frozenset[str]:
        """The descriptions of enough targets to judge them, which tell neither how targets answer nor how much."""
        telling = {*self.weights.terms, *self.sizes.shares}
        described = {name: int(rows.any(axis=1).sum()) for name, rows in self.kernel.descriptors.items()}
        judged = {name for name, n in described.items() if name != SIMILAR and n >= LEAST_TARGETS}
        return frozenset(name.removeprefix(f"{SIMILAR}: ") for name in judged - telling)

    def predict(self, conditions: Sequence[str]) -> Floats:
        """The expected shift [C, G] of each condition; 0 for control."""
        return self._in_blocks(self._shifts, conditions)

    def uncertainty(self, conditions: Sequence[str]) -> Floats:
        """Standard deviation [C, G] of the mean shift around `predict`, without the noise of measuring it."""
        return self._in_blocks(self._deviations, conditions)

    def doubt(self, conditions: Sequence[str]) -> Floats:
        """Squared length [C] of the error expected of `predict`, over all genes."""
        return np.asarray(np.square(self.uncertainty(conditions)).sum(1))

    def covariance(self, conditions: Sequence[str], others: Sequence[str]) -> Floats:
        """Covariance [C, D] of the errors expected of `predict`, summed over genes. Of one with itself: its `doubt`.

        Memory: as many values as are asked for, and BLOCK of `others` at a time.
        """
        whole = self.knowing(every_target([*conditions, *others]))
        sides = [list(map(canonical, names)) for names in (conditions, others)]
        (kernel, left, known), (_, right, told) = (
            whole._covariance(names, self.sizes.calibration, 1.0) for names in sides
        )
        lengths = self._lengths
        explained = 1 / (self.powers[:, None] + self.noise) @ lengths
        before = kernel.matrix(right, left, self.weights).T * lengths.sum()
        return np.asarray(before - (known @ self.axes * explained) @ (told @ self.axes).T)

    @property
    def measurement_noise(self) -> float:
        """Squared length of the noise in the measured mean of a condition with as many cells as most, over all genes."""
        return float(self.noise @ self._lengths)

    @cached_property
    def _lengths(self) -> Floats:
        """Variance [J] of a component over all genes, where K is 1."""
        return np.asarray(self.scale * np.square(self.components).sum(1))

    def _in_blocks(self, rows_of: Callable[[list[str]], Floats], conditions: Sequence[str]) -> Floats:
        names = list(map(canonical, conditions))
        parts = [rows_of(names[part]) for part in blocks(len(names))]
        return np.concatenate([np.zeros((0, len(self.genes))), *parts])

    def _shifts(self, names: list[str]) -> Floats:
        covariance = self._covariance(names, self.sizes.typical, self.sizes.power)[2]
        shifts = covariance @ self.dual
        for row, name in enumerate(names):
            for target in targets(name):
                place = self._own_place.get(target)
                if place is not None:
                    shifts[row, self.own[place]] = covariance[row] @ self.own_dual[:, place]
        return np.asarray(shifts)

    def _deviations(self, names: list[str]) -> Floats:
        # Typical size and power are for the best guess, but variances are those of root mean squares.
        kernel, encoded, covariance = self._covariance(names, self.sizes.calibration, 1.0)
        before = kernel.variance(encoded, self.weights)
        explained = (covariance @ self.axes) ** 2 @ (1 / (self.powers[:, None] + self.noise))
        left = np.maximum(before[:, None] - explained, 0) * self.scale
        return np.asarray(np.sqrt(left @ self.components**2))

    def _covariance(self, names: list[str], factor: float, power: float) -> tuple[ConditionKernel, Encoded, Floats]:
        """The kernel, the conditions `names`, and their covariance with those measured.

        A new target alone counts as if given at the dose `factor` · ratio^`power`. Not so in combinations: sizes were
        learned from targets alone, while those that somebody combined were chosen.
        """
        whole = self.knowing(every_target(names))
        alone = [targets(name)[0] if len(targets(name)) == 1 else "" for name in names]
        size = np.array([factor * whole.ratios[one] ** power if one in whole.ratios else 1.0 for one in alone])
        kernel = whole.kernel
        encoded, measured = kernel.encode(names).scaled(size), self._measured.among(len(kernel.targets))
        return kernel, encoded, kernel.matrix(encoded, measured, self.weights)

    @cached_property
    def _own_place(self) -> dict[str, int]:
        return {self.genes[gene]: place for place, gene in enumerate(self.own)}

    @cached_property
    def _measured(self) -> Encoded:
        return self.kernel.encode(self.conditions)

    def knowing(
        self, names: Sequence[str], features: Descriptions | None = None, controls: Mapping[str, Floats] | None = None
    ) -> EffectPrior:
        """This prior with places for targets that it has not seen: described by `features`, and as genes.

        Their profile is the response that the prior itself expects of them alone. controls: means [G] of the control
        cells of settings (by their names, `control|key=value`), of which those that are new find their place by it.
        """
        kernel = self.kernel.with_settings(controls or {})
        new = [target for target in names if target not in kernel.targets]
        if not new:
            return self if kernel is self.kernel else replace(self, kernel=kernel)
        wide = kernel.with_targets(new, self._described(new, features or {}))
        alike = sized_alike(wide, new, self.sizes.targets, self.genes, self.control)
        ratios = dict(zip(new, self.sizes.ratios(alike).tolist(), strict=True))
        larger = replace(self, kernel=wide, sizes=replace(self.sizes, typical=1.0), ratios=dict.fromkeys(new, 1.0))
        singles = larger.predict(new) @ self.components[: wide.profiles.shape[1]].T
        kernel = wide.with_profiles(new, singles)
        return replace(self, kernel=kernel, ratios={**self.ratios, **ratios})

    def _described(self, targets: Sequence[str], features: Descriptions) -> dict[str, Floats]:
        """Rows [n, F] of the targets in each description of the kernel; of zeros where it does not know one."""
        descriptors = {}
        for name, descriptor in self.kernel.descriptors.items():
            width = descriptor.shape[1]
            rows = self._answers(width) if name == SIMILAR else features.get(name.removeprefix(f"{SIMILAR}: "), {})
            descriptors[name] = np.stack([described(rows.get(target), width) for target in targets])
        return descriptors

    def _answers(self, width: int) -> dict[str, Floats]:
        """How each gene answers, as a target."""
        return {gene: self.responses[:width, column] for column, gene in enumerate(self.genes)}

    def save(self, path: Path) -> None:
        """Write the prior as safetensors, whole or not at all; names stand in its metadata."""
        arrays = {name: np.ascontiguousarray(value) for name, value in vars(self).items() if name in _ARRAYS}
        arrays |= {name: np.ascontiguousarray(getattr(self.kernel, name)) for name in _KERNEL_ARRAYS}
        descriptors = self.kernel.descriptors
        arrays |= {_array(k): np.ascontiguousarray(rows) for k, rows in enumerate(descriptors.values())}
        words = {name: getattr(self, name) for name in ("conditions", "genes")}
        words |= {"weights": asdict(self.weights)}
        words |= {"kernel": {name: getattr(self.kernel, name) for name in _KERNEL_WORDS}}
        words |= {"descriptions": list(descriptors), "sizes": asdict(self.sizes)}
        with written_whole(path) as temporary:
            save_file(arrays, temporary, metadata={"prior": json.dumps(words)})

    @classmethod
    def load(cls, path: Path) -> EffectPrior:
        """Read the prior of `save`; RunError where the file is damaged."""
        try:
            with safe_open(path, framework="np") as handle:
                words = json.loads(handle.metadata()["prior"])
                arrays: dict[str, Any] = {"control": np.zeros(len(words["genes"]))}  # of older files
                stored = {*_ARRAYS, *_KERNEL_ARRAYS} - ({"control"} - {*handle.keys()})
                arrays |= {name: handle.get_tensor(name) for name in stored}
                sizes = Sizes(**{name: _tuples(value) for name, value in words.get("sizes", {}).items()})
                descriptions = enumerate(words.get("descriptions", [SIMILAR]))
                descriptors = {str(name): handle.get_tensor(_array(k)) for k, name in descriptions}
            words["kernel"].setdefault("dose_onset", words["kernel"]["dose_reference"])  # of older files
            named: dict[str, Any] = {name: _tuples(words["kernel"][name]) for name in _KERNEL_WORDS}
            kernel_arrays: dict[str, Any] = {name: arrays.pop(name) for name in _KERNEL_ARRAYS}
            kernel = ConditionKernel(**named, **kernel_arrays, descriptors=descriptors)
            prior = cls(
                kernel,
                Weights(**words["weights"]),
                tuple(words["conditions"]),
                tuple(words["genes"]),
                **arrays,
                sizes=sizes,
            )
            prior._check()
            return prior
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} cannot be read as a prior ({error}); restore it or fit again") from error

    def _check(self) -> None:
        """ValueError unless every array has the shape that its names ask for, and finite values."""
        n, n_genes, n_targets = len(self.conditions), len(self.genes), len(self.kernel.targets)
        n_own, n_components = len(self.own), len(self.noise)
        shapes = {
            "dual": (n, n_genes), "own": (n_own,), "own_dual": (n, n_own), "components": (n_components, n_genes),
            "responses": (n_components, n_genes), "noise": (n_components,), "scale": (n_components,), "axes": (n, n),
            "powers": (n,), "control": (n_genes,), "profiles": (n_targets, None),
            "controls": (len(self.kernel.settings), n_genes),
        }  # fmt: skip
        held = {name: getattr(self.kernel if name in _KERNEL_ARRAYS else self, name) for name in shapes}
        described = {f"description {name}": rows for name, rows in self.kernel.descriptors.items()}
        shapes |= dict.fromkeys(described, (n_targets, None))
        for name, array in (held | described).items():
            shape = shapes[name]
            fits = array.ndim == len(shape) and all(a in (b, None) for b, a in zip(array.shape, shape, strict=True))
            if not fits or not np.isfinite(array).all():
                raise ValueError(f"'{name}' is {array.dtype} {list(array.shape)}, expected {list(shape)}, finite")
        if self.own.dtype.kind != "i" or (n_own and not 0 <= self.own.min() <= self.own.max() < n_genes):
            raise ValueError("'own' leads beyond the genes")


_ARRAYS = (
    "dual", "own", "own_dual", "components", "responses", "noise", "scale", "axes", "powers", "control",
)  # fmt: skip
_KERNEL_ARRAYS = ("profiles", "controls")
_KERNEL_WORDS = (
    "targets", "covariates", "dose_reference", "dose_onset", "profile_length2", "settings", "controls_length2",
)  # fmt: skip


def _array(place: int) -> str:
    """The name of the array of a description, by its place."""
    return f"descriptors.{place}" if place else "descriptors"


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def described(row: npt.NDArray[Any] | None, width: int) -> Floats:
    """A target's row [F] of a description at length 1; zeros of one of which it knows nothing."""
    if row is None:
        return np.zeros(width)
    row = np.asarray(row, dtype=np.float64)
    length = float(np.linalg.norm(row))
    return row / length if length > 0 else np.zeros(width)
