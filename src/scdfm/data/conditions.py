"""Names of conditions, and the vocabulary that turns their targets into tokens.

A condition is a set of targets, each with a dose or without, in a setting of covariates and a time. Its name is
`TARGET[@DOSE][+TARGET[@DOSE]]…[|KEY=VALUE]…`, for example `AHR+FEV`, `JQ1@0.5` or `Belinostat@10|cell_line=A549|time=24`;
`control` is the empty set, `control|cell_line=A549` the untreated cells of one setting.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from scdfm.errors import ConditionError, DataError

CONTROL: Final = "control"
SEPARATOR: Final = "+"
DOSE_SIGN: Final = "@"
COVARIATE_SIGN: Final = "|"
TIME: Final = "time"
"""Key that a time is written under."""
SCREEN: Final = "screen"
"""The covariate that names the screen, where several are fitted together."""
CONTROL_SPELLINGS: Final = frozenset({CONTROL, "ctrl"})
KEY: Final = re.compile(r"[A-Za-z_](?:[\w .-]*[\w.-])?")
"""What a covariate may be called."""
_NUMBER: Final = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]-?[0-9]+)?")
_PAIR: Final = re.compile(r"\s*([A-Za-z_][\w .-]*?)\s*=\s*(\S.*?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Perturbation:
    """One target and its dose, in the user's unit; None where no dose is known."""

    target: str
    dose: float | None = None

    def __str__(self) -> str:
        return self.target if self.dose is None else f"{self.target}{DOSE_SIGN}{number_text(self.dose)}"


@dataclass(frozen=True)
class Condition:
    """What is done to cells, and to which: perturbations by target, covariates (key, value) by key, and a time.

    `parse` makes one of a name, `str` gives its canonical name; `parse(str(condition)) == condition`.
    """

    perturbations: tuple[Perturbation, ...] = ()
    covariates: tuple[tuple[str, str], ...] = ()
    time: float | None = None

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.perturbations, key=lambda perturbation: perturbation.target))
        object.__setattr__(self, "perturbations", ordered)
        object.__setattr__(self, "covariates", tuple(sorted(self.covariates)))

    def __str__(self) -> str:
        pairs = [*self.covariates, *([] if self.time is None else [(TIME, number_text(self.time))])]
        name = SEPARATOR.join(map(str, self.perturbations)) or CONTROL
        return name + "".join(f"{COVARIATE_SIGN}{key}={value}" for key, value in sorted(pairs))


@lru_cache(maxsize=1 << 18)  # several forms of the names of a screen of 50,000 conditions
def parse(name: str, control: str = CONTROL) -> Condition:
    """The condition that a name stands for.

    `control` is the label of untreated cells in the user's file. It and the spellings `ctrl` and `control`
    count as absent targets, so `A+ctrl`, `ctrl+A` and `control+A` are all the single `A`. A `+` within brackets
    belongs to the name. Blanks around a target, dose, key or value are dropped. What follows the last `@` of a
    target is its dose only where it is a number (0.5, 10, 1e-3), and `|KEY=VALUE` at the end is a covariate only
    where KEY is an identifier; anything else belongs to the target's name. `|time=` with a number is the time.

    Raises ConditionError where a target is empty, or named twice: two guides against one gene are a single
    (`A`), a double dose is not a combination, and only the user knows which of the two `A+A` means; also where
    a covariate is given twice.
    """
    absent = CONTROL_SPELLINGS | {control.strip()}
    if name.strip() in absent:
        return Condition()
    text, pairs = _setting(name)
    time = next((float(value) for key, value in pairs if key == TIME and _is_number(value)), None)
    covariates = tuple(pair for pair in pairs if time is None or pair[0] != TIME)
    if text in absent:
        return Condition((), covariates, time)
    parts = spelled_parts(name)
    if not all(parts):
        raise ConditionError(f"condition '{name}': expected targets joined by '+', found an empty one; rename it")
    named = [perturbation(part) for part in parts if part not in absent]
    present = tuple(one for one in named if one.target not in absent)
    if repeated := _repeated(one.target for one in present):
        raise ConditionError(
            f"condition '{name}' names target '{repeated}' twice, expected each once; "
            f"rename it (to '{repeated}' where two guides hit one gene)"
        )
    made = Condition(present, covariates, time)
    alone = str(replace(made, covariates=(), time=None))
    if present and (_setting(alone)[1] or spelled_parts(alone) != list(map(str, made.perturbations))):
        raise ConditionError(
            f"condition '{name}': its targets in sorted order would read as others ('{alone}'); "
            f"rename those that hold '{COVARIATE_SIGN}'"
        )
    return made


def canonical(name: str, control: str = CONTROL) -> str:
    """The one name of a condition: `str` of `parse`, with targets and keys sorted and doses as short as they can be."""
    return str(parse(name, control))


def targets(condition: str) -> tuple[str, ...]:
    """The targets of a canonical condition, sorted and without doses; none for `control`."""
    return tuple(perturbation.target for perturbation in parse(condition).perturbations)


def doses(condition: str) -> tuple[float | None, ...]:
    """The dose of each of `targets`, in the user's unit; None where the name has none."""
    return tuple(perturbation.dose for perturbation in parse(condition).perturbations)


def covariates(condition: str) -> dict[str, str]:
    """The covariates of a condition by key; its time is none of them."""
    return dict(parse(condition).covariates)


def perturbation_of(condition: str) -> str:
    """The condition's name without its covariates and time: targets and doses alone."""
    return str(replace(parse(condition), covariates=(), time=None))


def setting_of(condition: str) -> str:
    """The covariates and time of a condition: `cell_line=A549|time=24`; empty where it has none."""
    return str(replace(parse(condition), perturbations=())).removeprefix(CONTROL).removeprefix(COVARIATE_SIGN)


def control_of(condition: str) -> str:
    """The name of the untreated cells of a condition's covariates: `control|cell_line=A549`."""
    return str(Condition(covariates=parse(condition).covariates))


def spelled_parts(name: str) -> list[str]:
    """The texts of a name's targets in the order and spelling that it gives them, absent ones included."""
    return split_targets(_setting(name)[0])


def split_setting(name: str) -> tuple[str, str]:
    """The text of a name's targets, and what stands behind it: `|cell_type=B`, or nothing."""
    text, pairs = _setting(name)
    return text, "".join(f"{COVARIATE_SIGN}{key}={value}" for key, value in reversed(pairs))


def number_text(value: float) -> str:
    """The shortest text that reads back as `value`, without the plus sign that joins targets: 10, 0.5, 1e16."""
    return repr(float(value)).removesuffix(".0").replace("e+", "e")


def split_targets(text: str, signs: Sequence[str] = (SEPARATOR,)) -> list[str]:
    """Texts between the `signs` (the longest first) that stand outside of brackets: `(+)-JQ1` is one drug, not two."""
    if not any(sign in text for sign in signs):  # nearly every name of a screen of singles
        return [text.strip()]
    parts, depth, place = [""], 0, 0
    while place < len(text):
        depth += (text[place] == "(") - (text[place] == ")")
        sign = next((sign for sign in signs if text.startswith(sign, place)), None) if depth == 0 else None
        if sign is not None:
            parts.append("")
        else:
            parts[-1] += text[place]
        if depth < 0:
            break
        place += len(sign or " ")
    hidden_sign = next((sign for sign in signs if sign in text), None) if depth else None
    if hidden_sign:
        raise ConditionError(
            f"condition '{text}': brackets that do not pair hide which '{hidden_sign}' joins targets; rename it"
        )
    return [part.strip() for part in ([text] if depth else parts)]


def _is_number(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text)) and float(text) < float("inf")


def _setting(name: str) -> tuple[str, list[tuple[str, str]]]:
    """The text of the perturbations, and the (key, value) pairs that stand behind it."""
    pairs: list[tuple[str, str]] = []
    text = name.strip()
    while True:
        rest, sign, last = text.rpartition(COVARIATE_SIGN)
        pair = _PAIR.fullmatch(last) if sign and rest.strip() else None
        if pair is None:
            break
        pairs.append((pair[1], pair[2]))
        text = rest.strip()
    if repeated := _repeated(key for key, _ in pairs):
        raise ConditionError(f"condition '{name}' gives covariate '{repeated}' twice, expected it once; leave one out")
    return text, pairs


def perturbation(part: str) -> Perturbation:
    """One target of a name, with its dose where what follows the last `@` is a number."""
    target, sign, dose = (piece.strip() for piece in part.rpartition(DOSE_SIGN))
    return Perturbation(target, float(dose)) if sign and target and _is_number(dose) else Perturbation(part)


def _repeated(names: Iterable[str]) -> str | None:
    """The first in sorted order of the names that stand twice."""
    ordered = sorted(names)
    return None if len(ordered) < 2 else next((a for a, b in itertools.pairwise(ordered) if a == b), None)


def near(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'X'?` for the candidates closest to `name`, or an empty text."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.7)
    # A drug is often asked for by the beginning of its name: Trametinib for Trametinib (GSK1120212).
    longer = [lower for lower in by_lower if len(name) > 3 and lower.startswith(f"{name.lower()} ")]
    close = [*longer, *(lower for lower in close if lower not in longer)][:3]
    return f"; did you mean {' or '.join(repr(by_lower[match]) for match in close)}?" if close else ""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of the model: four special ones, then every gene and target by name.

    `tokens` is [V]; a token's place is its id. The order is the official code's: `<pad> <cls> <mask> control`,
    then the sorted names.
    """

    tokens: tuple[str, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    PAD = 0
    CLS = 1
    MASK = 2
    CONTROL = 3
    SPECIAL = ("<pad>", "<cls>", "<mask>", "control")
    PUBLISHED_SLOTS = 2

    def __post_init__(self) -> None:
        if self.tokens[: len(self.SPECIAL)] != self.SPECIAL:
            raise DataError(f"vocabulary starts with {self.tokens[:4]}, expected {self.SPECIAL}; build it anew")
        index = {token: place for place, token in enumerate(self.tokens)}
        if len(index) != len(self.tokens):
            raise DataError("vocabulary holds a name twice, expected each once; build it anew")
        object.__setattr__(self, "_index", index)

    @classmethod
    def build(cls, genes: Iterable[str], targets: Iterable[str] = ()) -> Vocabulary:
        """The vocabulary of the panel's `genes` and of `targets`, which need not be genes of the panel."""
        names = {*genes, *targets}
        if taken := sorted(names & set(cls.SPECIAL)):
            raise DataError(f"gene or target '{taken[0]}' has the name of a special token; rename it")
        return cls((*cls.SPECIAL, *sorted(names)))

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def index(self, name: str) -> int:
        """The id of a gene, target or special token; ConditionError where it has none."""
        if name not in self._index:
            raise ConditionError(
                f"'{name}' is unknown: it is not in the panel, and no target of the screen; "
                f"fit with it in panel.include if the data measure it"
                f"{near(name, self.tokens[len(self.SPECIAL) :])}"
            )
        return self._index[name]

    def gene_ids(self, genes: Sequence[str]) -> npt.NDArray[np.int64]:
        """The ids [n] of `genes`."""
        return np.array([self.index(gene) for gene in genes], dtype=np.int64)
