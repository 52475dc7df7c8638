"""Writes the pages that are made of the code: docs/reference/cli.md, docs/reference/options.md, docs/llms.txt.

Run `python docs/generate.py` after a change of an option, a command or a page's first sentence; a test compares.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import typer

from scdfm import config
from scdfm import options as declaration
from scdfm.cli import app
from scdfm.config import PRESETS, Config
from scdfm.options import DataConfig

DOCS = Path(__file__).resolve().parent
GENERATED = "<!-- Made by docs/generate.py: change the code, then run it. -->\n"
READING = (*DataConfig.model_fields, "config", "backed")
"""Options that every command which reads a screen has."""
GROUPS = {
    "First steps": ("demo", "simulate", "inspect"),
    "One model": ("fit", "predict", "evaluate", "hits"),
    "Comparing models": ("benchmark", "peers"),
    "What to measure next": ("screen", "identify"),
    "The published work": ("download", "reproduce", "convert-official"),
}
CODES = """## Exit codes

| code | meaning |
|---:|---|
| 0 | done |
| 1 | an unexpected error; the message names the file that holds its traceback |
| 2 | a mistake in the input or the options: one line says what was expected and what helps |
| 75 | stopped by SIGTERM; `--resume` continues where the command has it |
| 130 | stopped by Ctrl-C |
"""


def pages() -> Iterator[tuple[Path, str]]:
    """Every generated page and its text; the last reads the first sentences of the others."""
    yield DOCS / "reference/cli.md", cli_page()
    yield DOCS / "reference/options.md", options_page()
    yield DOCS / "llms.txt", llms()


def cli_page() -> str:
    """Every command with its arguments and options; those of reading a screen stand once."""
    commands = typer.main.get_command(app).commands
    known = {name for names in GROUPS.values() for name in names}
    groups = dict(GROUPS)
    if further := sorted(set(commands) - known):
        groups["Further commands"] = tuple(further)
    lines = [
        "# Command line", "", GENERATED,
        "`scdfm COMMAND --help` prints the same in a terminal. Options that may be repeated are given once for each "
        "value. The sections `model`, `training` and so on of `--set` are explained in [options](options.md).", "",
    ]  # fmt: skip
    for title, names in groups.items():
        lines += [f"## {title}", ""]
        for name in names:
            if name in commands:
                lines += _command(name, commands[name])
    lines += [
        "## Reading a screen", "",
        "Every command that reads cells takes these. They are also keys of the table `[data]` of `--config`, and "
        "arguments of `scdfm.read_cells`. Which one a file needs: [files as people have them](../files.md).", "",
    ]  # fmt: skip
    for parameter in commands["fit"].params:
        if parameter.name in READING:
            lines += _parameter(parameter)
    return "\n".join([*lines, CODES])


def _command(name: str, command: Any) -> list[str]:
    reads = any(one.name == "perturbation_key" for one in command.params)
    shared = {*READING, "help"} if reads else {"help"}
    own = [one for one in command.params if one.name not in shared]
    arguments = [one for one in own if one.param_type_name == "argument"]
    usage = " ".join(["scdfm", name, *(_argument(one) for one in arguments), "[OPTIONS]"])
    lines = [f"### {name}", "", _prose(inspect.cleandoc(command.help or "")), "", "```", usage, "```", ""]
    for one in own:
        lines += _parameter(one)
    if reads:
        lines += ["And [the options of reading a screen](#reading-a-screen)."]
        differing = [
            f"`{_flags(one)}` is `{one.show_default}` unless given"
            for one in command.params
            if one.name in READING and isinstance(one.show_default, str) and one.show_default != _usual(one.name)
        ]
        lines += [f"Here {'; '.join(differing)}."] if differing else []
        lines.append("")
    return lines


def _usual(name: str) -> str | None:
    field = DataConfig.model_fields.get(name)
    default = None if field is None else field.get_default(call_default_factory=True)
    return str(default) if default else None


def _argument(parameter: Any) -> str:
    name = parameter.name.upper()
    name = f"{name}..." if parameter.nargs == -1 else name
    return name if parameter.required else f"[{name}]"


def _parameter(parameter: Any) -> list[str]:
    """One entry of a definition list: name, kind, default; what it means."""
    if parameter.param_type_name == "argument":
        head = f"`{_argument(parameter)}`"
    else:
        head = f"`{_flags(parameter)}`"
        if not getattr(parameter, "is_flag", False):
            head += f" *{_kind(parameter)}*"
        if parameter.multiple:
            head += ", repeated"
        if parameter.required:
            head += ", required"
        head += _default(parameter)
    return [head, _meaning(parameter.help or ""), ""]


def _meaning(text: str) -> str:
    """The body of an entry of a definition list."""
    return textwrap.fill(
        _prose(text), 118, initial_indent=": ", subsequent_indent="  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _flags(parameter: Any) -> str:
    return " / ".join([*parameter.opts, *parameter.secondary_opts])


def _kind(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    (kind,) = get_args(annotation) if get_origin(annotation) is list else (annotation,)
    return {str: "text", int: "integer", float: "number", Path: "path"}[kind]


def _default(parameter: Any) -> str:
    default = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    shown = isinstance(default, int | float | str | Path) and not isinstance(default, bool) and default != ""
    return f", default `{default}`" if shown else ""


def options_page() -> str:
    """Every option of a fit and of a screen, from the schema and the docstrings that stand under the fields."""
    schema = Config.model_json_schema()
    lines = [
        "# Options", "", GENERATED,
        "Options of a fit stand in sections. Give them as `--set section.key=value`, in a TOML file (`--config`), or "
        "in Python: `scdfm.Config.preset(\"default\").updated({\"model\": {\"width\": 128}})`. Unknown keys and values "
        "out of range are refused. A TOML file looks like this:", "",
        "```toml", "[data]", 'perturbation_key = "drug"', 'covariates = ["cell_type"]', "", "[model]", "width = 128",
        "", "[training]", "max_steps = 3000", "```", "",
        "Presets change several options at once: " + ", ".join(f"`{name}`" for name in PRESETS) + ". Below, an entry "
        "names the presets that differ from the default.", "",
        *_entry("seed", schema["properties"]["seed"], "Names every random draw; same seed, same bits on a CPU.", ()),
    ]  # fmt: skip
    for section, field in Config.model_fields.items():
        if section != "seed":
            kind = field.annotation
            lines += [f"## {section}", "", _prose(inspect.getdoc(kind) or ""), ""]
            lines += _entries(kind, section, schema["$defs"][kind.__name__]["properties"], config)
    lines += ["## data", "", "How a file of cells is read; also flags of the command line.", ""]
    lines += _entries(DataConfig, "data", DataConfig.model_json_schema()["properties"], declaration)
    return "\n".join(lines).rstrip() + "\n"


def _entries(kind: type, section: str, properties: dict[str, Any], module: Any) -> list[str]:
    meanings, lines = _meanings(module, kind.__name__), []
    for name, schema in properties.items():
        differing = [
            (preset, PRESETS[preset][section][name]) for preset in PRESETS if name in PRESETS[preset].get(section, {})
        ]
        differing = [(preset, value) for preset, value in differing if value != schema.get("default")]
        lines += _entry(f"{section}.{name}", schema, meanings[name], differing)
    return lines


def _entry(name: str, schema: dict[str, Any], meaning: str, differing: Any) -> list[str]:
    default = schema.get("default")
    shown = "none" if default is None or default == [] or default == {} else _toml(default)
    head = f"`{name}` *{_words(schema)}*, default `{shown}`"
    presets = "; ".join(f"`{preset}`: `{_toml(value)}`" for preset, value in differing)
    return [head, _meaning(f"{meaning}{f' Presets: {presets}.' if presets else ''}"), ""]


def _meanings(module: Any, name: str) -> dict[str, str]:
    """The string under each field of a class; KeyError later where one has none."""
    tree = ast.parse(inspect.getsource(module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = {}
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = inspect.cleandoc(below.value.value)  # type: ignore[union-attr]
    return found


def _words(schema: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_words(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type")
    plain = {"boolean": "true or false", "string": "text", "null": "none", "object": "table of texts"}
    if kind == "array":
        return f"list of {_words(schema.get('items', {'type': 'string'})).replace('text', 'texts')}"
    if kind in ("integer", "number"):
        bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
        limits = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema]
        return " ".join([kind, ", ".join(limits)]).strip()
    return plain.get(kind or "", "number or text")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _prose(text: str) -> str:
    """One paragraph of Markdown whose signs mean themselves outside of `code`."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [re.sub(r"([\\*_<>\[\]|$#~])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def llms() -> str:
    """The map of the site for language models: every page, its title and its first sentence."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    lines = ["# scdfm", "", "> " + _first_paragraph(index), ""]
    for caption, body in re.findall(r":caption: (.+)\n((?:.*\n)*?)(?:```|:::)", index):
        lines += [f"## {caption}", ""]
        for entry in re.findall(r"^[\w./-]+$", body, flags=re.MULTILINE):
            page = DOCS.parent / f"{entry[1:]}.md" if entry.startswith("/") else DOCS / f"{entry}.md"
            text = page.read_text(encoding="utf-8")
            title = re.search(r"^# (.+)$", text, flags=re.MULTILINE)
            if title is None:
                raise ValueError(f"{page} has no title")
            place = page.relative_to(DOCS.parent).with_suffix(".html").as_posix()
            lines.append(f"- [{title[1]}]({place}): {_first_paragraph(text)}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _first_paragraph(text: str) -> str:
    """The first sentence under the title."""
    body = re.split(r"^# .+$", text, maxsplit=1, flags=re.MULTILINE)[1]
    plain = [
        part for part in re.split(r"\n\s*\n", body)
        if part.strip() and not re.match(r"\s*(#|```|:::|<!--|\||!\[|---|\(|\{)", part)
    ]  # fmt: skip
    sentence = re.split(r"(?<=[.:?])\s", " ".join(plain[0].split()))[0] if plain else ""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", sentence).rstrip(":")


if __name__ == "__main__":
    for path, text in pages():
        path.write_text(text, encoding="utf-8")
