"""What the source never does: unpickle, evaluate text, start a shell, fetch without https."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import scdfm

ROOT = Path(scdfm.__file__).parent
FORBIDDEN_IMPORTS = {
    "pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "subprocess", "pty",
    "commands", "code", "codeop", "ctypes", "telnetlib", "ftplib", "yaml",
}  # fmt: skip
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
FORBIDDEN_ATTRIBUTES = {
    "system", "popen", "spawnl", "spawnv", "execv", "execve", "read_pickle", "to_pickle", "load_from_checkpoint",
    "extractall", "unpack_archive", "urlopen", "urlretrieve", "hub", "load_state_dict_from_url",
}  # fmt: skip
READERS = {Path("official/convert.py"), Path("peers/scripts/scgpt_peer.py")}
"""Where torch.load is called, with weights_only=True; in the first pickle's error is caught."""
THE_ONE_READER = Path("official/convert.py")
ALLOWED = {
    THE_ONE_READER: {"pickle"},
    Path("version.py"): {"subprocess"},  # git is asked for the commit, by a fixed list of words
    Path("peers/command.py"): {"subprocess"},  # the user's own command, by its words
    Path("peers/bundled.py"): {"subprocess"},  # uv and pip, for an environment of its own
    Path("peers/scripts/gears_peer.py"): {"pickle"},  # writes the files that GEARS reads, and reads none
}


def violations(text: str, name: Path = Path("x.py")) -> Iterator[str]:
    """What a file does that none may."""
    for node in ast.walk(ast.parse(text)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found = {module.partition(".")[0] for module in modules} & FORBIDDEN_IMPORTS
            allowed = ALLOWED.get(name, set())
            if found - allowed:
                yield f"{name}:{line} imports {', '.join(found)}"
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in FORBIDDEN_NAMES:
            yield f"{name}:{line} names {node.id}"
        elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_ATTRIBUTES:
            yield f"{name}:{line} uses .{node.attr}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "pickle.load",
            "pickle.loads",
            "pickle.Unpickler",
        ):
            yield f"{name}:{line} unpickles"
        elif isinstance(node, ast.Call):
            yield from (f"{name}:{line} {what}" for what in _odd_call(node, name))


def _odd_call(node: ast.Call, name: Path) -> Iterator[str]:
    called = ast.unparse(node.func)
    options = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called == "torch.load" and (name not in READERS or options.get("weights_only") != "True"):
        yield "loads with torch"
    if called.endswith("np.load") and options.get("allow_pickle", "False") != "False":
        yield "lets numpy unpickle"
    if options.get("shell", "False") != "False":
        yield "starts a shell"
    if options.get("verify", "True") != "True":
        yield "takes any certificate"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import load", "import subprocess as s", "eval('1')", "exec(x)", "os.system('ls')",
        "torch.load(p)", "torch.load(p, weights_only=True)", "np.load(p, allow_pickle=True)", "pd.read_pickle(p)",
        "f(x, shell=True)", "requests.get(u, verify=False)", "archive.extractall(p)", "e = eval", "import joblib.externals",
    ],
)  # fmt: skip
def test_each_of_these_is_found(text: str) -> None:
    assert list(violations(text))


def test_the_one_reader_must_say_weights_only() -> None:
    assert list(violations("torch.load(p, weights_only=False)", THE_ONE_READER))
    assert list(violations("import pickle\npickle.load(f)", THE_ONE_READER))
    assert not list(violations("import pickle\ntorch.load(p, weights_only=True)", THE_ONE_READER))


def test_no_file_of_the_source_does_any_of_it() -> None:
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 50
    assert [
        what for file in files for what in violations(file.read_text(encoding="utf-8"), file.relative_to(ROOT))
    ] == []


def test_every_address_in_the_source_is_https() -> None:
    namespaces = ("http://www.w3.org/",)  # names of XML vocabularies, never fetched
    for file in [*ROOT.rglob("*.py"), *ROOT.rglob("*.html"), *ROOT.rglob("*.js"), *ROOT.rglob("*.css")]:
        text = file.read_text(encoding="utf-8")
        for namespace in namespaces:
            text = text.replace(namespace, "")
        assert "http://" not in text, file
