"""How a file names its genes and conditions, and its labels in scdfm's own words (`A+B`, `control`).

Labels that are spelled as those of untreated cells, or of cells whose perturbation nobody knows, usually are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

from scdfm.data.conditions import (
    CONTROL,
    CONTROL_SPELLINGS,
    DOSE_SIGN,
    SEPARATOR,
    Condition,
    parse,
    perturbation,
    split_setting,
    split_targets,
)
from scdfm.data.doses import listed_amounts
from scdfm.errors import ConditionError, DataError

# Words of untreated cells that may stand with anything in _BESIDE: `DMSO_TF`, `sgNT-1`, `0.1% DMSO`.
_UNTREATED: Final = (
    r"control|ctrl|ctl|cntrl|cntl|negctrl|negcontrol|ntctrl|nt|ntc|non ?target(?:ing|ed)?|no ?target|"
    r"safe ?target(?:ing)?|safe ?harbou?r|neg(?:ative)? ?(?:control|ctrl|ctl)|intergenic|(?:one )?non gene site|"
    r"no ?(?:drug|treatment|stim(?:ulation)?|cytokine|perturbation|site)|unperturbed|untreated|unstimulated|unstim|"
    r"untransduced|vehicle|dmso(?: tf)?|pbs|mock|scrambled?|scr|wild ?type|wt"
)
_BESIDE: Final = r"sg|grna|sgrna|guide|cells?|treated|treatment|human|mouse|only|g|\d+|%"
_CONTROL: Final = re.compile(
    rf"(?:(?:sg|si|sh) ?|(?:human|mouse|\d+|%) )*(?:{_UNTREATED})g?(?: (?:{_UNTREATED}|{_BESIDE})g?)*"
)
# Alone these are untreated cells only where no other label is: in screens of guides they mean that none was found.
_NONE: Final = re.compile(r"none|neg|negative|no ?(?:guide|sgrna|grna)s?")
_UNASSIGNED: Final = re.compile(
    r"|nan|na|n a|null|none|neg|negative|unassigned|not ?assigned|unknown|undetermined|undefined|undetected|unmapped|"
    r"unlabel(?:l)?ed|missing|ambiguous|ambient|multi|multiple(?: .*)?|multiplets?|doublets?|triplets?|collision|"
    r"no ?(?:guides?|sgrnas?|grnas?|calls?|labels?|assignments?|protospacers?|barcodes?)|"
    r"not ?(?:detected|called|available)|low ?quality|fail(?:ed)?|filtered|excluded|to ?remove"
)
# Symbols of genes that the words above would take: NT5E is no non-targeting guide, WT1 no wild type.
_SYMBOL: Final = re.compile(r"(?:WT|SCR|CTL|PBS|CTRL|MOCK|NEG|NTC?[A-Z]|NTC?\d+[A-Z])[A-Z]*\d*[A-Z]*\d*")
_SHORT: Final = re.compile(r"WT|SCR|CTL|PBS|NTC|CTRL|MOCK|NEG")
_BETWEEN: Final = re.compile(r"[+|;,]|__")


def looks_like_control(label: str) -> bool:
    """Whether a label is spelled as those of untreated cells usually are: `NT-1`, `DMSO_TF`, `NegCtrl0+NegCtrl0`."""
    parts = [part.strip() for part in _BETWEEN.split(label.strip())]
    symbols = [part for part in parts if _SYMBOL.fullmatch(part) and not _SHORT.fullmatch(part)]
    if symbols or label.strip()[-1:] in ("_", "-", "."):
        return False
    return all(_CONTROL.fullmatch(_words(part)) for part in parts)


def may_be_control(label: str) -> bool:
    """Whether a label such as `None` or `Negative` may be that of untreated cells, where no other label is."""
    return looks_like_control(label) or bool(_NONE.fullmatch(_words(label)))


def looks_unassigned(label: str) -> bool:
    """Whether a label says that nobody knows what was done to a cell: `nan`, `unassigned`, `Negative`, `doublet`."""
    return bool(_UNASSIGNED.fullmatch(_words(label)))


def _words(label: str) -> str:
    """The label in lower case, words and numbers apart: `NegCtrl0` is `negctrl 0`, `INTERGENIC12_3` `intergenic 12 3`."""
    text = re.sub(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])", " ", label.strip())
    return re.sub(r"[^a-z0-9%]+", " ", text.lower().replace("%", " % ")).strip()


MISSING: Final = "nan"
"""What stands for a missing label in `exclude`."""
GENE: Final = "GENE"
"""What stands for the gene in a pattern of guides."""
NONE: Final = "none"
"""The separator of labels that name one target each, whatever signs they hold."""
VERSION: Final = re.compile(r"(?<=^ENS)([A-Z]*\d{6,})\.\d+")
"""The version in an Ensembl id: the `.18` of `ENSG00000141510.18`."""


@dataclass(frozen=True)
class Naming:
    """Words of a file: `genes`, the column of var that names genes, and what the labels of its cells mean.

    control: labels of untreated cells; exclude: labels of cells that are left out (`nan` also stands for missing ones).
        In both `*` stands for any text: `non-targeting_*`.
    separator: what joins targets in labels, beside `+`; `none`: nothing does, and `Na+/K+` is one target.
    guides: patterns of guide names, such as `GENE_sg*`, which are pooled to their genes.
    gene_versions: `drop` takes the version off Ensembl ids, of genes and of targets.
    """

    control: tuple[str, ...] = (CONTROL,)
    exclude: tuple[str, ...] = ()
    separator: str | None = None
    guides: tuple[str, ...] = ()
    genes: str | None = None
    gene_versions: Literal["keep", "drop"] = "keep"

    def __post_init__(self) -> None:
        for name in ("control", "exclude", "guides"):
            value = getattr(self, name)
            texts = (value,) if isinstance(value, str) else tuple(value)
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise DataError(f"{name} {value!r}: expected labels that are not blank; leave it out, or name them")
            object.__setattr__(self, name, tuple(text.strip() for text in texts))
        if not self.control:
            raise DataError("control: expected at least one label of untreated cells, found none; name it")
        if self.separator is not None:
            object.__setattr__(self, "separator", self.separator.strip())
            word = self.separator != NONE and re.search(r"[\w@=()]", self.separator.replace("_", ""))
            if not self.separator or word:
                raise DataError(
                    f"separator '{self.separator}': expected signs that join targets, such as |, __, _, ; or a comma, or "
                    f"{NONE} where nothing joins them; without it targets are joined by +"
                )
        for pattern in self.guides:
            joins = [SEPARATOR] if SEPARATOR in pattern else []
            if pattern.count(GENE) != 1 or pattern == GENE or joins:
                inside = f"'{joins[0]}', which joins targets" if joins else f"'{pattern}'"
                raise DataError(
                    f"guides '{pattern}': expected {GENE} once and what else guides have in their names, such as "
                    f"{GENE}_sg*, found {inside}"
                )

    @property
    def signs(self) -> tuple[str, ...]:
        """What joins targets, the longest first."""
        if self.separator == NONE:
            return ()
        return tuple(sorted(filter(None, {SEPARATOR, self.separator}), key=lambda sign: (-len(sign), sign)))

    def parse(self, label: str) -> Condition:
        """The condition that a label of the file stands for; ConditionError as of `conditions.parse`."""
        return parse(self.plain(label))

    def canonical(self, name: str) -> str:
        """The canonical name of a condition that somebody asks for, in the words of the file or in scdfm's own."""
        targets, _ = split_setting(name)
        # Where labels name one target each, somebody may still ask for two: A+B is, Na+/K+ is not.
        own = self.separator == NONE and all(part[:1].isalnum() or part[:1] == "(" for part in split_targets(targets))
        return str(
            parse(replace(self, separator=None).plain(name, pool=False) if own else self.plain(name, pool=False))
        )

    def plain(self, label: str, pool: bool = True) -> str:
        """A label in scdfm's own words: targets joined by `+`, controls as `control`, guides as their genes.

        pool: False leaves the names of guides as they are.
        """
        targets, setting = split_setting(label)
        parts = self._parts(targets)
        untreated = [self._is_control(part) for part in parts]
        # A pattern that takes a part alone, such as `NegCtrl*`, says nothing of a whole `NegCtrl0_AHR`.
        if self._is_control(targets) and (all(untreated) or not any(untreated)):
            return CONTROL + setting
        genes = self._pooled(parts) if pool and self.guides else parts
        names = [CONTROL if self._is_control(part) else part for part in genes]
        if self.gene_versions == "drop":
            names = [VERSION.sub(r"\1", name) for name in names]
        return SEPARATOR.join(names) + setting

    def excludes(self, label: str) -> bool:
        """Whether cells of this label are left out."""
        return bool(self._excluded.fullmatch(label.strip()))

    def of_labels(self, labels: Sequence[str]) -> Naming:
        """This naming for the labels of one file: `A,B` for control or exclude is two labels where no label is that."""
        words = self._words(labels)
        control, exclude = (
            tuple(dict.fromkeys(part for text in texts for part in _listed(text, words)))
            for texts in (self.control, self.exclude)
        )
        return replace(self, control=control, exclude=exclude)

    def unmatched(self, name: str, labels: Sequence[str]) -> str | None:
        """The first of `control` or `exclude` that no label, and no target of one, is spelled as."""
        words = self._words(labels)
        same = CONTROL_SPELLINGS if name == "control" and words & CONTROL_SPELLINGS else frozenset()
        return next((text for text in getattr(self, name) if text not in same and not _matches(text, words)), None)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping; `Naming(**mapping)` is its inverse."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def _words(self, labels: Sequence[str]) -> set[str]:
        """What labels may name a control by: the whole of them, the text of all their targets, and each target."""
        words = {label.strip() for label in labels}
        for label in labels:
            targets, _ = split_setting(label)
            words |= {targets, *self._parts(targets)}
        return words

    def _parts(self, targets: str) -> list[str]:
        """The targets of a label: of a list with amounts, or between what joins them, the names of guides whole."""
        amounts = listed_amounts(targets)
        if amounts is not None:
            return [name if self._is_control(name) else f"{as_one(name)}{DOSE_SIGN}{dose}" for name, dose in amounts]
        if self.separator == NONE:
            return [as_one(targets.strip())]
        parts = split_targets(targets, self.signs)
        return self._rejoined(parts, self.separator) if self.separator and len(parts) > 1 else parts

    def _rejoined(self, parts: list[str], sign: str) -> list[str]:
        """Parts of guides whose names hold what joins targets, together again: `A_sg1_B_sg2` is `A_sg1` and `B_sg2`."""
        sizes = {pattern.count(sign) + 1 for pattern in self.guides}
        targets: list[str] = []
        while parts:
            names = [(sign.join(parts[:n]), n) for n in sorted(sizes, reverse=True) if 1 < n <= len(parts)]
            name, n = next((one for one in names if self._guide(one[0])), (parts[0], 1))
            targets.append(name)
            parts = parts[n:]
        return targets

    def _is_control(self, text: str) -> bool:
        return text in CONTROL_SPELLINGS or bool(self._untreated.fullmatch(text))

    def _pooled(self, parts: Sequence[str]) -> list[str]:
        """The gene of each guide, once where several guides hit one gene; other names as they are."""
        return list(dict.fromkeys(map(self._gene, parts)))

    def _gene(self, part: str) -> str:
        one = perturbation(part)
        guide = self._guide(one.target)
        if guide is None or self._is_control(one.target):
            return part
        return str(replace(one, target=guide["gene"]))

    def _guide(self, name: str) -> re.Match[str] | None:
        return next(filter(None, (pattern.fullmatch(name) for pattern in self._guides)), None)

    @cached_property
    def _untreated(self) -> re.Pattern[str]:
        return _pattern(self.control)

    @cached_property
    def _excluded(self) -> re.Pattern[str]:
        return _pattern(self.exclude)

    @cached_property
    def _guides(self) -> list[re.Pattern[str]]:
        """`*` in a guide's name is at least one sign; a number where its name holds what also joins targets."""
        expressions = []
        for text in self.guides:
            joined = self.separator is not None and self.separator in text
            rest = r"\d.*" if joined else ".+?"
            expressions.append(re.escape(text).replace(r"\*", rest).replace(GENE, "(?P<gene>.+)"))
        return [re.compile(text, re.DOTALL) for text in expressions]


def as_one(name: str) -> str:
    """A name that holds a `+` within brackets, where it joins nothing."""
    try:
        return name if len(split_targets(name)) < 2 else f"({name})"
    except ConditionError:  # brackets that do not pair protect nothing
        return name


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """What matches one of the texts, in which `*` is any text."""
    whole = [re.escape(text).replace(r"\*", ".*") for text in texts]
    return re.compile("|".join(whole) or r"(?!)", re.DOTALL)


def _matches(text: str, words: Iterable[str]) -> bool:
    if "*" not in text:
        return text in set(words)
    pattern = _pattern([text])
    return any(pattern.fullmatch(word) for word in words)


def _listed(text: str, words: set[str]) -> list[str]:
    """The labels of a text such as `NT-1,NT-2`; the text itself where it is a label or where a part is none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    several = len(parts) > 1 and not _matches(text, words) and all(_matches(part, words) for part in parts)
    return parts if several else [text]
