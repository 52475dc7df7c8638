"""What the labels of a column mean: which are control or name no perturbation, what joins targets, which are guides."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import pandas as pd

from scdfm.data.conditions import CONTROL_SPELLINGS, Perturbation, perturbation, split_setting, split_targets
from scdfm.data.doses import listed_amounts
from scdfm.data.naming import (
    GENE,
    MISSING,
    NONE,
    VERSION,
    Naming,
    as_one,
    looks_like_control,
    looks_unassigned,
    may_be_control,
)
from scdfm.errors import ConditionError

SIGNS: Final = ("|", "__", ";", ",", "&", "_", ":", "/", "-")
"""What joins targets in files where `+` does not, the surest first."""
_MOST: Final = 0.8
"""Share of labels that must fit a separator or a pattern of guides."""
_BEFORE: Final = ("", "sg", "sg-", "sg_", "sgRNA_", "gRNA_", "g", "si", "sh")
"""What may stand before the gene in the name of a guide."""
_GUIDE: Final = re.compile(r"(?P<gene>.+?)(?P<sign>[-_.](?:sg|grna|sgrna|guide)[-_.]?)\d+", re.IGNORECASE)

Genes = Mapping[str | None, frozenset[str]]
"""Names of genes by the column of var that holds them; None is the index."""


@dataclass(frozen=True)
class Meaning:
    """The labels of a column as `naming` reads them, of which `targets` are those named, `measured` those that are genes.

    `controls` and `unassigned` are labels as they stand in the file, the most frequent first.
    """

    naming: Naming
    controls: tuple[str, ...]
    unassigned: tuple[str, ...]
    targets: frozenset[str]
    measured: frozenset[str]
    n_perturbed: int

    @property
    def genetic(self) -> bool:
        """Whether most targets are genes of the file."""
        return 2 * len(self.measured) >= len(self.targets)


def frequencies(values: pd.Series, counts: pd.Series[int] | None = None) -> Counter[str]:
    """Cells of each label, blanks around it dropped; missing ones as `nan`. counts: cells that each row stands for."""
    cells = pd.Series(1, index=values.index) if counts is None else counts.loc[values.index]
    lacking = values.isna().to_numpy()
    sizes: Counter[str] = Counter({MISSING: missing} if (missing := int(cells[lacking].sum())) else {})
    each: pd.Series[int] = cells[~lacking].groupby(values[~lacking].to_numpy(), observed=True, sort=False).sum()
    for label, count in each.sort_values(ascending=False, kind="stable").items():
        if count:
            sizes[plain_list(str(label).strip())] += int(count)
    return sizes


def plain_list(label: str) -> str:
    """A label that lists drugs and amounts as `A@0.05+B@5`, without the amount of control cells; others as they are."""
    amounts = listed_amounts(label)
    if amounts is None:
        return label
    return "+".join(name if looks_like_control(name) else f"{as_one(name)}@{dose}" for name, dose in amounts)


def meaning(counts: Counter[str], genes: Genes, joined: bool = False) -> Meaning | None:
    """What labels mean, by how they are spelled and which genes there are; None where none is of control cells.

    joined: the labels are those of several columns, in which `None` says that there is no further target.
    """
    labels = [label for label, _ in counts.most_common()]
    names = frozenset().union(*genes.values())
    untreated = [label for label in labels if all(_is_absent(part, names, joined) for part in _whole(label, joined))]
    if not untreated:
        untreated = [label for label in labels if may_be_control(label) and label not in names]
    unassigned = [
        label for label in labels if looks_unassigned(label) and label not in untreated and label not in names
    ]
    perturbed = [label for label in labels if label not in {*untreated, *unassigned}]
    if not untreated or not perturbed:
        return None
    pairs = guide_pairs(perturbed, names)
    if pairs is not None:
        return _of_pairs(pairs, untreated, unassigned, perturbed, genes)
    sign = separator(perturbed, names)
    signs = () if sign == NONE else (sign, "+") if sign else ("+",)
    absent = {part for label in untreated for part in _control_parts(label, signs)}
    absent |= {part for part in _parts(perturbed, signs) if _is_absent(part, names, joined)}
    parts = [part for part in _parts(perturbed, signs) if part not in absent]
    bare = list(dict.fromkeys(perturbation(part).target for part in parts if part))
    column, guides = _spelled(bare, genes)
    versions: Literal["keep", "drop"] = "keep"
    if not guides and (id_column := _versioned(bare, genes, column)):
        (column,), versions = id_column, "drop"
    words = {*labels, *_parts(labels, signs)}
    naming = Naming(
        patterns(sorted(absent, key=lambda text: (-counts[text], text)), words - absent) or ("control",),
        patterns(unassigned, words - set(unassigned)), sign, guides, column, versions,
    )  # fmt: skip
    return _meant(naming, untreated, unassigned, perturbed, genes)


def _meant(
    naming: Naming, untreated: Sequence[str], unassigned: Sequence[str], perturbed: Sequence[str], genes: Genes
) -> Meaning:
    """The meaning of labels by a naming that is found."""
    targets = {target.target for label in perturbed for target in _perturbations(naming, label)}
    names = genes[naming.genes]
    measured = targets & (_without_versions(names) if naming.gene_versions == "drop" else names)
    return Meaning(naming, tuple(untreated), tuple(unassigned), frozenset(targets), frozenset(measured), len(perturbed))


def guide_pairs(labels: Sequence[str], genes: Iterable[str], sign: str = "_") -> Naming | None:
    """How labels are read that join guides by a sign that their names hold too, such as `A_sg1_B_sg2` and `A_1_B_2`; None
    where they are none: nearly all must be guides of `genes` or of control cells, and some must be pairs."""
    genes, pairs = (
        set(genes),
        [re.findall(r"(.+?)_((?:sg|g|guide|grna|sgrna)?)\d+(?:_|$)", label) for label in labels],
    )
    made = Counter(f"{GENE}{sign}{before}*" for guides in pairs for _, before in guides)
    naming = Naming(separator=sign, guides=tuple(pattern for pattern, _ in made.most_common(3)))
    if not made or not any(len(guides) > 1 for guides in pairs):
        return None
    named = [[one.target for one in _perturbations(naming, label)] for label in labels]
    right = [bool(names) and all(name in genes or looks_like_control(name) for name in names) for names in named]
    return naming if sum(right) >= _MOST * len(labels) and any(len(names) > 1 for names in named) else None


def _of_pairs(
    naming: Naming, untreated: Sequence[str], unassigned: Sequence[str], perturbed: Sequence[str], genes: Genes
) -> Meaning:
    """The meaning of labels of pairs of guides: control guides of pairs are control too."""
    named = {one.target for label in perturbed for one in _perturbations(naming, label)}
    absent = [*untreated, *sorted(name for name in named if looks_like_control(name))]
    column = max(genes, key=lambda one: (len(named & genes[one]), one is None))
    return _meant(
        replace(naming, control=tuple(dict.fromkeys(absent)), exclude=tuple(unassigned), genes=column),
        untreated, unassigned, perturbed, genes,
    )  # fmt: skip


def _versioned(parts: Sequence[str], genes: Genes, best: str | None) -> tuple[str | None] | None:
    """The column of Ensembl ids that most parts are but for versions, where they are no names of the `best`."""
    if 2 * len(genes[best].intersection(parts)) >= len(parts):
        return None
    bare = {VERSION.sub(r"\1", part) for part in parts}
    fits = (one for one, names in genes.items() if 2 * len(bare & _without_versions(names)) >= len(bare))
    return next(((column,) for column in fits), None)


def _without_versions(names: Iterable[str]) -> frozenset[str]:
    return frozenset(VERSION.sub(r"\1", name) for name in names)


def separator(labels: Sequence[str], genes: Iterable[str]) -> str | None:
    """What joins targets in `labels` beside `+`: a sign that splits nearly all labels that hold it into genes, other labels
    and controls, and that no label which is a gene's name holds; None where nothing does."""
    genes = set(genes)
    names = genes | set(labels)
    plus = [parts for label in labels if len(parts := _split(label, ("+",))) > 1]
    named = any(names.intersection(parts) or all(re.match(r"[\w(]", part) for part in parts) for parts in plus)
    if plus and not named:
        return NONE
    for sign in SIGNS:
        holding = [label for label in labels if len(_split(label, (sign,))) > 1]
        if not holding or any(label in genes for label in holding):
            continue
        beside = {
            part
            for label in holding
            if any(map(looks_like_control, _split(label, (sign,))))
            for part in _split(label, (sign,))
        }
        fits = [
            label
            for label in holding
            if all(_is_part(part, names - {label}, genes, beside) for part in _split(label, (sign,)))
        ]
        if len(fits) >= _MOST * len(holding):
            return sign
    return None


def patterns(texts: Sequence[str], others: Iterable[str], few: int = 3) -> tuple[str, ...]:
    """The texts themselves where they are `few`, else patterns such as `NT-*` of those that begin alike and fit none of
    the `others`."""
    if len(texts) <= few:
        return tuple(texts)
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(re.sub(r"\d.*", "", text, flags=re.DOTALL), []).append(text)
    globs: list[str] = []
    for start, alike in groups.items():
        fits = len(alike) > 1 and len(start) > 1 and not any(other.startswith(start) for other in others)
        globs += [f"{start}*"] if fits else alike
    return tuple(globs)


def guide_patterns(parts: Sequence[str], genes: Iterable[str]) -> tuple[str, ...]:
    """Patterns such as `GENE_sg*` by which nearly all `parts` that are no genes are guides of `genes`, each a gene's."""
    genes = set(genes)
    unknown = [part for part in parts if part not in genes]
    made = Counter(pattern for part in unknown if (pattern := _pattern_of(part, genes)) is not None)
    guides = tuple(pattern for pattern, count in made.most_common(3) if count >= 0.05 * len(unknown))
    naming = Naming(guides=guides)
    pooled = {part: naming.plain(part) for part in parts}
    right = sum(gene in genes for part, gene in pooled.items() if part not in genes)
    changed = [part for part, gene in pooled.items() if part in genes and gene != part]
    return guides if right >= _MOST * len(unknown) and not changed else ()


def _spelled(parts: Sequence[str], genes: Genes) -> tuple[str | None, tuple[str, ...]]:
    """The column of var that most parts are spelled as in (None: the index), and patterns of guides, if they are guides."""
    best = max(genes, key=lambda column: (sum(part in genes[column] for part in parts), column is None))
    if 2 * sum(part in genes[best] for part in parts) >= len(parts):
        return best, ()
    pooled = {column: guide_patterns(parts, names) for column, names in genes.items()}
    by_guide = next((column for column, guides in pooled.items() if guides), None)
    if pooled[by_guide]:
        return by_guide, pooled[by_guide]
    # Of targets that are no genes of the file, guides are those that say so themselves: X_sg1.
    same = Counter(f"{GENE}{match['sign']}*" for part in parts if (match := _GUIDE.fullmatch(part)))
    return best, tuple(name for name, n in same.most_common(1) if n >= _MOST * len(parts))


def _pattern_of(part: str, genes: set[str]) -> str | None:
    """The pattern of a guide of the longest gene that its name holds; None where it holds none."""
    for before in _BEFORE:
        rest = part.removeprefix(before)
        if before and rest == part:
            continue
        gene = next((rest[:n] for n in range(len(rest), 1, -1) if rest[:n] in genes), None)
        after = rest[len(gene) :] if gene else ""
        if gene is None or not re.match(r"[-_.]|sg|g\d|$", after):
            continue
        if not after:
            return f"{before}{GENE}"
        start = re.match(r"\D*(?=\d)|[-_.]", after)
        return f"{before}{GENE}{start[0] if start else after[0]}*"
    return None


def _split(label: str, signs: Sequence[str]) -> list[str]:
    """The targets of a label; the whole where its brackets do not pair."""
    try:
        return split_targets(split_setting(label)[0], signs)
    except ConditionError:
        return [label]


def _whole(label: str, joined: bool) -> list[str]:
    return _split(label, ("+",)) if joined else [label]


def _parts(labels: Iterable[str], signs: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(part for label in labels for part in _split(label, signs)))


def _control_parts(label: str, signs: Sequence[str]) -> list[str]:
    """The targets of a control label, `NT-1` and `NT-2` of `NT-1+NT-2`; the whole where they are none by themselves."""
    parts = _split(label, signs)
    return parts if all(map(looks_like_control, parts)) else [label]


def _is_part(part: str, names: set[str], genes: set[str], beside: set[str]) -> bool:
    """Whether a part of a label is a name: of a gene or its guide, of another label, or of control cells."""
    if not part or part in names or part in beside or part in CONTROL_SPELLINGS:
        return bool(part)
    return looks_like_control(part) or _pattern_of(part, genes) is not None


def _is_absent(part: str, genes: Iterable[str], joined: bool) -> bool:
    alike = may_be_control(part) or looks_unassigned(part) if joined else looks_like_control(part)
    return alike and (part not in genes or part.isalpha())


def _perturbations(naming: Naming, label: str) -> tuple[Perturbation, ...]:
    try:
        return naming.parse(label).perturbations
    except ConditionError:
        return ()
