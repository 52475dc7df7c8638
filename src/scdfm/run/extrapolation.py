"""Which predictions leave what training has seen, and in which way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TypeAlias

from scdfm.data.conditions import Condition, Perturbation, canonical, control_of, number_text, parse
from scdfm.data.encoding import ConditionEncoder
from scdfm.data.split import UNKNOWN
from scdfm.run.trained import Trained


def extrapolated(run: Trained, names: Iterable[str]) -> dict[str, str]:
    """Condition → why its prediction is an extrapolation, of those that are; empty where training is unknown.

    New combinations of targets that trained in other conditions are what the model is for, and none.
    """
    if run.split.kind == UNKNOWN:
        return {}
    alone = run.manifest.result.get("step") == 0  # the prior, which has learned from validation conditions too
    seen = _Seen(run, run.split.train + run.split.validation if alone else run.split.train)
    of_training = _Seen(run, run.split.train)
    itself = set(run.split.validation).difference(run.known)
    reasons = {
        name: "; ".join((of_training if canonical(name) in itself else seen).reasons(parse(name))) for name in names
    }
    return {name: why for name, why in reasons.items() if why}


def told(beyond: dict[str, str], most: int = 5) -> str:
    """One sentence on the extrapolated conditions of `extrapolated`; empty where there is none."""
    if not beyond:
        return ""
    shown = [f"{name} ({why})" for name, why in list(beyond.items())[:most]]
    more = f" and {len(beyond) - most} more" if len(beyond) > most else ""
    kind = "condition is an extrapolation" if len(beyond) == 1 else "conditions are extrapolations"
    return f"{len(beyond)} {kind}: {', '.join(shown)}{more}"


def unknown(encoder: ConditionEncoder, names: Iterable[str]) -> list[str]:
    """The conditions that a run with this encoder cannot predict."""
    return [name for name in names if not encoder.knows(name)]


def untold(names: Sequence[str], of: int, what: str = "test conditions", most: int = 5) -> str:
    """One sentence on the `unknown` ones among `of` conditions of a kind; empty where there is none."""
    if not names:
        return ""
    shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    return (
        f"{len(names)} of {of} {what} cannot be predicted, since training tells nothing of a target, dose, time "
        f"or covariate of theirs: {shown}; fit with features of their targets (--features, features=...), on data that "
        "measure them as genes, or with another split"
    )


Settings: TypeAlias = "set[tuple[str, tuple[tuple[str, str], ...]]]"


@lru_cache(maxsize=8)  # a screen of thousands of conditions asks shard by shard
def _held(names: tuple[str, ...]) -> tuple[list[Condition], dict[str, list[float | None]], Settings]:
    """Training conditions, the doses of each target in them, and each target's covariates."""
    conditions = [parse(name) for name in names]
    doses: dict[str, list[float | None]] = {}
    for perturbation in (p for c in conditions for p in c.perturbations):
        doses.setdefault(perturbation.target, []).append(perturbation.dose)
    return conditions, doses, {(p.target, c.covariates) for c in conditions for p in c.perturbations}


class _Seen:
    """What the conditions that a run has learned from held."""

    def __init__(self, run: Trained, names: tuple[str, ...]) -> None:
        self.run = run
        self.conditions, self.doses, self.settings = _held(names)
        self.targets = frozenset([*run.manifest.targets, *self.doses])

    def reasons(self, condition: Condition) -> list[str]:
        """Why a condition is an extrapolation, in words."""
        said = [why for p in condition.perturbations for why in self._of_target(p, condition)]
        control = control_of(str(condition))
        said += filter(None, [self.run.contexts.get(control)])
        trained = control in self.run.manifest.control_populations
        if not trained and not any(p.dose != 0 for p in condition.perturbations):
            said.append("control cells were not trained as a condition")
        usual = self.run.manifest.conditions.time_reference
        if condition.time is None and condition.perturbations and usual is not None and self._all_timed:
            said.append(f"no time: taken as the usual one of the screen, {number_text(usual)}")
        if condition.time and (span := self._times) and not span[0] <= condition.time <= span[1]:
            low, high, time = map(number_text, (*span, condition.time))
            said.append(f"time {time} is outside the trained {low} to {high}")
        return said

    def _of_target(self, perturbation: Perturbation, condition: Condition) -> Iterator[str]:
        target, dose = perturbation.target, perturbation.dose
        if dose == 0:
            return
        if before := self._earlier(target):
            yield f"'{target}' was perturbed in an earlier screen alone, that of {before}"
            return
        if target not in self.targets:
            yield f"'{target}' was never perturbed in training: predicted from {self._known_by(target)}"
            return
        if (target, condition.covariates) not in self.settings:
            where = ", ".join(f"{key} {value}" for key, value in condition.covariates) or "no covariates"
            yield f"'{target}' was never perturbed in training with {where}"
        if why := self._of_dose(target, dose):
            yield why

    def _earlier(self, target: str) -> str | None:
        """The run of an earlier screen that perturbed a target which this one did not."""
        if target in self.doses:
            return None
        return next((one.path for one in self.run.manifest.lineage if target in one.targets), None)

    def _of_dose(self, target: str, dose: float | None) -> str | None:
        trained = self.doses.get(target, [])
        doses = [value for value in trained if value is not None]
        if not doses:
            return None if dose is None else f"'{target}' was trained without doses"
        if dose is None:
            usual = self.run.manifest.conditions.dose_reference
            if None in trained or usual is None:
                return None
            return f"'{target}' has no dose: taken as the usual one of the screen, {number_text(usual)}"
        if min(doses) <= dose <= max(doses):
            return None
        return (
            f"dose {number_text(dose)} of '{target}' is outside the trained {number_text(min(doses))} to "
            f"{number_text(max(doses))}"
        )

    def _known_by(self, target: str) -> str:
        sources = []
        if self.run.encoder.described(target):
            informative = any(rows[target].any() for rows in self.run.encoder.descriptions.values() if target in rows)
            sources.append(
                "its features" if informative else "its features, which tell nothing of this screen's responses"
            )
        if self.run.encoder.identified(target):
            graph = self.run.config.graph.enabled
            sources.append("its place in the gene graph" if graph else "its gene's vector")
        return " and ".join(sources)

    @cached_property
    def _all_timed(self) -> bool:
        return all(c.time is not None for c in self.conditions)

    @cached_property
    def _times(self) -> tuple[float, float] | None:
        times = [c.time for c in self.conditions if c.time is not None]
        return (0.0, max(times)) if times else None
