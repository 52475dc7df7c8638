"""Names of genes: which symbol an alias, a former symbol or an Ensembl id stands for."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scdfm.data.naming import VERSION
from scdfm.errors import DataError


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
        found: dict[str, tuple[str, ...]] = {}
        for name in sorted(names):
            found[self.symbol(name)] = (*found.get(self.symbol(name), ()), name)
        return found

    def with_pairs(self, pairs: Iterable[tuple[str, str]]) -> GeneIds:
        """With further (name, symbol); what is a symbol itself stays one."""
        pairs = [*self.symbols.items(), *pairs]
        own, found = {symbol for _, symbol in pairs}, dict[str, str]()
        several = set[str]()
        for name, symbol in pairs:
            if name not in own and found.setdefault(name, symbol) != symbol:
                several.add(name)
        return GeneIds({name: symbol for name, symbol in found.items() if name not in several})

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
            (name, row[symbol])
            for row in rows
            for place in others
            for name in row[place].strip('"').split("|")
            if name
        )
