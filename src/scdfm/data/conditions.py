"""Names of conditions, and the vocabulary that turns their targets into tokens.

A condition is the set of its targets, written in sorted order and joined by `+`; `control` is the empty set.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from scdfm.errors import ConditionError, DataError

CONTROL: Final = "control"
SEPARATOR: Final = "+"
CONTROL_SPELLINGS: Final = frozenset({CONTROL, "ctrl"})


def canonical(name: str, control: str = CONTROL) -> str:
    """The one name of a condition: sorted targets joined by `+`, or `control`.

    `control` is the label of untreated cells in the user's file. It and the spellings `ctrl` and `control`
    count as absent targets, so `A+ctrl`, `ctrl+A` and `control+A` are all the single `A`. Blanks around a
    target are dropped.

    Raises ConditionError where a target is empty, or named twice: two guides against one gene are a single
    (`A`), a double dose is not a combination, and only the user knows which of the two `A+A` means.
    """
    text = name.strip()
    if text == control.strip():
        return CONTROL
    parts = [part.strip() for part in text.split(SEPARATOR)]
    if not all(parts):
        raise ConditionError(
            f"condition '{name}': expected targets joined by '+', found an empty one; rename it"
        )
    absent = CONTROL_SPELLINGS | {control.strip()}
    named = sorted(part for part in parts if part not in absent)
    for first, second in itertools.pairwise(named):
        if first == second:
            raise ConditionError(
                f"condition '{name}' names target '{first}' twice, expected each once; "
                f"rename it (to '{first}' where two guides hit one gene)"
            )
    return SEPARATOR.join(named) or CONTROL


def targets(condition: str) -> tuple[str, ...]:
    """The targets of a canonical condition, sorted; none for `control`."""
    return () if condition == CONTROL else tuple(condition.split(SEPARATOR))


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` for the known names closest to `name`, or an empty text."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.7)
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
            raise DataError(
                f"vocabulary starts with {self.tokens[:4]}, expected {self.SPECIAL}; build it anew"
            )
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
                f"'{name}' is unknown: expected a gene of the panel or a target of the screen; "
                f"fit on data that measure or perturb it{self._near(name)}"
            )
        return self._index[name]

    def gene_ids(self, genes: Sequence[str]) -> npt.NDArray[np.int64]:
        """The ids [n] of `genes`."""
        return np.array([self.index(gene) for gene in genes], dtype=np.int64)

    def encode(self, conditions: Sequence[str], slots: int | None = PUBLISHED_SLOTS) -> npt.NDArray[np.int64]:
        """The token ids [C, P] of canonical `conditions`, P = `slots`, or with None as many as the largest needs.

        As published, a condition fills at least two slots: absent targets among the first two are the control
        token, so a single is (gene, control). Slots from the third on are `<pad>` where empty; what stands for
        a condition thus does not depend on the others of its batch.
        """
        members = [targets(condition) for condition in conditions]
        largest = max([self.PUBLISHED_SLOTS, *map(len, members)])
        slots = largest if slots is None else slots
        encoded = np.full((len(members), slots), self.PAD, dtype=np.int64)
        encoded[:, : self.PUBLISHED_SLOTS] = self.CONTROL
        for row, (condition, names) in enumerate(zip(conditions, members, strict=True)):
            if len(names) > slots:
                raise ConditionError(
                    f"condition '{condition}' has {len(names)} targets, expected at most {slots}; ask for more slots"
                )
            for slot, name in enumerate(names):
                encoded[row, slot] = self._target(name, condition)
        return encoded

    def _target(self, name: str, condition: str) -> int:
        if name not in self._index:
            raise ConditionError(
                f"target '{name}' of condition '{condition}' is unknown: expected a gene of the panel or a target "
                f"of the screen; predict it after a fit on data that measure or perturb it{self._near(name)}"
            )
        return self._index[name]

    def _near(self, name: str) -> str:
        return near(name, self.tokens[len(self.SPECIAL) :])
