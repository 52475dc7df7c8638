"""scdfm's docstrings as reStructuredText: plain sentences, `code`, and blocks of `name: text` become lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

ITEM = re.compile(r"(?P<names>[a-z]\w*(?:, [a-z]\w*)*): (?P<text>.+)")


def as_rst(lines: Iterable[str]) -> list[str]:
    """The lines of a docstring, each paragraph on its own, arguments as a list."""
    written: list[str] = []
    for paragraph in _paragraphs(lines):
        if ITEM.fullmatch(paragraph[0]):
            written += [f"- **{names}**: {escaped(text)}" for names, text in _items(paragraph)]
        elif all(line.startswith("    ") for line in paragraph):
            written += ["::", "", *paragraph]
        else:
            written.append(escaped(" ".join(line.strip() for line in paragraph)))
        written.append("")
    return written


def escaped(text: str) -> str:
    """Text whose signs mean themselves; what stands between backticks is code."""
    parts = text.split("`")
    outside = [re.sub(r"([\\*|]|_\b|_$)", r"\\\1", part) for part in parts[::2]]
    inside = [f"``{part}``" for part in parts[1::2]]
    between = [f"{before}{code}" for before, code in zip(outside, [*inside, ""], strict=False)]
    # reStructuredText ends code at a space or a sign; a letter right after it needs a boundary.
    return re.sub(r"``(?=\w)(?<=\w``)", r"``\\ ", "".join(between))


def _paragraphs(lines: Iterable[str]) -> Iterator[list[str]]:
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line.rstrip())
        elif paragraph:
            yield paragraph
            paragraph = []


def _items(paragraph: list[str]) -> list[list[str]]:
    """Names and text of each argument; an indented line goes on, one without a name too."""
    items: list[list[str]] = []
    for line in paragraph:
        begins = ITEM.fullmatch(line)
        if begins:
            items.append([begins["names"], begins["text"]])
        else:
            items[-1][1] += f" {line.strip()}"
    return items
