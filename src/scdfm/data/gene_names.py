"""Which columns of a matrix are genes, and what they are called; which symbol an alias or an Ensembl id stands for.

By the index of var, or by one of its columns.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from scdfm.data.conditions import near
from scdfm.data.naming import VERSION
from scdfm.data.source import Source
from scdfm.errors import DataError

FEATURE_TYPES: Final = ("feature_types", "feature_type")
"""Columns of var in which 10x files say what a feature is."""
GENE_EXPRESSION: Final = "Gene Expression"
_WITHOUT_VERSION: Final = "drop versions (--gene-versions drop, gene_versions='drop')"


@dataclass(frozen=True)
class Genes:
    """A genes by `names` [A], at `columns` [A] of the matrix (None: all of them), and `notes` on what else there is."""

    names: npt.NDArray[np.str_]
    columns: npt.NDArray[np.int64] | None
    notes: tuple[str, ...] = ()


def read_genes(source: Source, column: str | None = None, versions: Literal["keep", "drop"] = "keep") -> Genes:
    """The genes of a screen by the index of var, or by a `column` of it; `versions` of Ensembl ids can be dropped.

    Features that var says are no genes (guides, antibodies: `feature_types`) are left out. A gene without a name in
    `column` keeps that of the index; one whose name another has gets a suffix (`-1`, ...), as anndata's
    var_names_make_unique gives. DataError where there are no genes, or where names of the index repeat.
    """
    if not len(source.genes):
        raise DataError(f"{source.name} holds no genes; expected their names in var")
    is_gene, note = measured(source.var)
    names, said = source.genes, list[str]()
    if column is not None:
        names, said = _by_column(source, column, is_gene)
    names = names[is_gene]
    if versions == "drop":
        names = np.asarray([VERSION.sub(r"\1", name) for name in names.tolist()], dtype=np.str_)
    if (unnamed := np.char.strip(names) == "").any():
        raise DataError(
            f"{source.name}: {int(unnamed.sum())} genes have no name in var (first: column "
            f"{int(np.flatnonzero(is_gene)[np.argmax(unnamed)])}); name or remove them"
        )
    repeated = pd.Index(names).duplicated()
    if repeated.any():
        raise DataError(
            f"{source.name}: gene '{names[repeated][0]}' occurs more than once in var ({int(repeated.sum())} repeats); "
            "expected unique names: make them so (AnnData.var_names_make_unique), or sum the repeats"
        )
    columns = None if is_gene.all() else np.flatnonzero(is_gene)
    return Genes(names, columns, (*([note] if note else []), *said))


def measured(var: pd.DataFrame) -> tuple[npt.NDArray[np.bool_], str | None]:
    """Which rows of var are genes, and what the others are."""
    for column in FEATURE_TYPES:
        if column not in var.columns:
            continue
        kinds = var[column].astype(str).to_numpy()
        genes = kinds == GENE_EXPRESSION
        if genes.any() and not genes.all():
            others = ", ".join(sorted(set(kinds[~genes])))
            note = (
                f"{int((~genes).sum())} features are left out: var['{column}'] says that they are no genes ({others})"
            )
            return genes, note
    return np.ones(len(var), dtype=bool), None


def spellings(source: Source) -> dict[str | None, frozenset[str]]:
    """Names of the genes by the column of var that holds them, or None for the index: columns of mostly different texts."""
    is_gene, _ = measured(source.var)
    var = source.var.iloc[np.flatnonzero(is_gene)]
    by_column: dict[str | None, frozenset[str]] = {None: frozenset(np.char.strip(source.genes[is_gene]).tolist())}
    for column in map(str, var.columns):
        values = var[column] if list(var.columns).count(column) == 1 else None
        if values is None or pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
            continue
        names = frozenset(values.dropna().astype(str).str.strip()) - {""}
        if 2 * len(names) > len(var) and names != by_column[None]:
            by_column[column] = names
    return by_column


def elsewhere(source: Source, targets: Collection[str]) -> str | None:
    """How var spells most `targets` that are no names of its index, in words: in a column, without the version of Ensembl
    ids, or in another case. None where the index names half of them, or nothing does."""
    by_column = spellings(source)
    shares = {column: len(names.intersection(targets)) for column, names in by_column.items()}
    best = max(shares, key=lambda column: (shares[column], column is None))
    if 2 * shares[None] >= len(targets):
        return None
    if best is not None and 2 * shares[best] >= len(targets):
        return (
            f"{shares[best]} of {len(targets)} targets are genes by var['{best}'], and {shares[None]} by the index of var, "
            f"which names the genes: give --gene-column {best} (genes='{best}'), or nothing but their cells describes them"
        )
    plain = {VERSION.sub(r"\1", name): name for name in sorted(by_column[None])}
    cases = {name.lower(): name for name in sorted(by_column[None])}
    for what, remedy, same in (
        (
            "without the version that",
            _WITHOUT_VERSION,
            {target: plain.get(VERSION.sub(r"\1", target)) for target in targets},
        ),
        ("in another case than", "rename the labels", {target: cases.get(target.lower()) for target in targets}),
    ):
        spelled = {target: name for target, name in sorted(same.items()) if name is not None}
        if spelled and 2 * len(spelled) >= len(targets):
            target, name = next(iter(spelled.items()))
            return (
                f"{len(spelled)} of {len(targets)} targets are genes of this file {what} var has ('{target}' is '{name}'): "
                f"{remedy}, or nothing but their cells describes them"
            )
    return None


def _by_column(source: Source, column: str, is_gene: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.str_], list[str]]:
    """The names in a column of var, unique among those of genes (`is_gene`), and what was done to make them so."""
    if column not in source.var.columns:
        columns = [str(other) for other in source.var.columns]
        raise DataError(
            f"{source.name}: gene column '{column}' is not in var; its columns are {', '.join(columns) or 'none'}"
            f"{near(column, columns)}"
        )
    if (repeats := list(source.var.columns).count(column)) > 1:
        raise DataError(f"{source.name}: var has {repeats} columns named '{column}', expected one; rename the others")
    values = source.var[column]
    texts = np.char.strip(np.asarray(values.astype(str), dtype=np.str_))
    lacking = values.isna().to_numpy() | (texts == "")
    names, notes = np.where(lacking, source.genes, texts), list[str]()
    if (lacking & is_gene).any():
        notes.append(
            f"{int((lacking & is_gene).sum())} genes have no name in var['{column}'] and keep that of the index"
        )
    repeated = pd.Index(names[is_gene]).duplicated()
    if repeated.any():
        notes.append(
            f"{int(repeated.sum())} genes have a name in var['{column}'] that another has (first: "
            f"'{names[is_gene][repeated][0]}'); the first keeps it, the others get a suffix (-1, ...)"
        )
        names = names.astype(object)
        names[is_gene] = unique_names(names[is_gene])
    return np.asarray(names, dtype=np.str_), notes


def unique_names(names: Sequence[str] | npt.NDArray[Any] | pd.Index) -> list[str]:
    """The names, those that another has before them with a suffix (`-1`, ...)."""
    from anndata.utils import make_index_unique

    index = pd.Index(names, dtype=object)
    return index.tolist() if index.is_unique else list(make_index_unique(index))


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file, packed (.gz) or not; DataError where it cannot be read."""
    try:
        packed = path.suffix == ".gz"
        with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"features {path} cannot be read ({error}); check the file") from error


@dataclass(frozen=True)
class GeneIds:
    """Symbols by the other names of genes; a name of several symbols stands for none of them."""

    symbols: Mapping[str, str] = field(default_factory=dict)

    def symbol(self, name: str) -> str:
        """The symbol that `name` stands for, or itself; versions of Ensembl ids are dropped."""
        plain = VERSION.sub(r"\1", name)
        return self.symbols.get(name, self.symbols.get(plain, plain))

    def spelled(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """By symbol, how each of `names` spells it, sorted."""
        by_symbol: dict[str, tuple[str, ...]] = {}
        for name in sorted(names):
            by_symbol[self.symbol(name)] = (*by_symbol.get(self.symbol(name), ()), name)
        return by_symbol

    def with_pairs(self, pairs: Iterable[tuple[str, str]]) -> GeneIds:
        """With further (name, symbol); what is a symbol itself stays one."""
        pairs = [*self.symbols.items(), *pairs]
        own, symbols = {symbol for _, symbol in pairs}, dict[str, str]()
        several = set[str]()
        for name, symbol in pairs:
            if name not in own and symbols.setdefault(name, symbol) != symbol:
                several.add(name)
        return GeneIds({name: symbol for name, symbol in symbols.items() if name not in several})

    def with_table(self, path: Path) -> GeneIds:
        """With the names of a file with a header and tabs.

        Its columns are name and symbol, those of HGNC (symbol, alias_symbol, prev_symbol, ensembl_gene_id, with | between
        several), or those of STRING (the first, and preferred_name).
        """
        lines = lines_of(path)
        header = next(lines, "").split("\t")
        rows = (row for line in lines if len(row := line.split("\t")) == len(header))
        if "preferred_name" in header:
            return self.with_pairs((row[0], row[header.index("preferred_name")]) for row in rows)
        others = [
            place
            for place, column in enumerate(header)
            if column in ("name", "alias_symbol", "prev_symbol", "ensembl_gene_id")
        ]
        if "symbol" not in header or not others:
            raise DataError(
                f"features {path}: its first line has the columns {', '.join(header)[:80]}; expected a table of names with "
                "tabs: name and symbol, HGNC's symbol, alias_symbol and ensembl_gene_id, or STRING's preferred_name"
            )
        symbol = header.index("symbol")
        return self.with_pairs(
            (name, row[symbol]) for row in rows for place in others for name in row[place].strip('"').split("|") if name
        )
