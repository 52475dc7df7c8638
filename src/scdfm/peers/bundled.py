"""The bundled methods: a script each, with its dependencies declared in it (PEP 723), and an environment of its own.

`check` tells whether they run here: each is installed, and fitted for a few steps on a tiny screen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess  # nosec B404
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from scdfm.data import CONTROL, additive_split, read_cells, simulate
from scdfm.data.conditions import near, targets
from scdfm.errors import ConfigError, ScdfmError
from scdfm.files import write_json
from scdfm.peers.command import run_command
from scdfm.peers.task import Task, read_answer, write_task

FOLDER_VARIABLE: Final = "SCDFM_PEERS"
READY: Final = "scdfm.json"
"""Left in an environment that is whole."""
SCRIPTS: Final = Path(__file__).parent / "scripts"
_BLOCK: Final = re.compile(r"^# /// script\n((?:#.*\n)+?)# ///$", re.MULTILINE)
_HANDED_ON: Final = {
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
}
"""Where pip is told to look for packages, uv looks too."""


class PeerError(ScdfmError):
    """A bundled method that cannot be installed or run."""


@dataclass(frozen=True)
class Peer:
    """A bundled method. `title` names its row; `weights`: whether it takes pretrained ones, and its row says so without.

    `annotations`: whether it reads the GO terms of genes.
    """

    name: str
    title: str
    weights: bool = False
    annotations: bool = False

    def row(self, weights: bool) -> str:
        """The name of its row in tables."""
        return f"{self.title} not pretrained" if self.weights and not weights else self.title

    @property
    def script(self) -> Path:
        """The file that runs it."""
        return SCRIPTS / f"{self.name}_peer.py"

    @cached_property
    def declared(self) -> dict[str, Any]:
        """What its script declares: requires-python, dependencies, and the table tool.scdfm."""
        block = _BLOCK.search(self.script.read_text(encoding="utf-8"))
        assert block is not None
        return tomllib.loads("".join(line[2:] + "\n" for line in block[1].splitlines()))

    @property
    def environment(self) -> Path:
        """The folder of its environment: that of other dependencies is another one."""
        digest = hashlib.sha256(json.dumps(self.declared, sort_keys=True).encode()).hexdigest()
        return environments() / f"{self.name}-{digest[:8]}"

    @property
    def installed(self) -> dict[str, Any] | None:
        """What its installation took (seconds, mib, packages); None where it is not installed."""
        try:
            return dict(json.loads((self.environment / READY).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    @property
    def argv(self) -> tuple[str, ...]:
        """The command that runs it, but for its folder."""
        return (str(_python(self.environment)), str(self.script))

    def digest(self) -> str:
        """sha256 of its script and of what the scripts share."""
        texts = [path.read_bytes() for path in (self.script, SCRIPTS / "contract.py")]
        return hashlib.sha256(b"\0".join(texts)).hexdigest()


PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer("cellflow", "CellFlow"),
        Peer("state", "STATE"),
        Peer("gears", "GEARS", annotations=True),
        Peer("cpa", "CPA"),
        Peer("scgpt", "scGPT", weights=True),
        Peer("geneformer", "Geneformer", weights=True),
    )
}


def peer(name: str) -> Peer:
    """The bundled method of a name; ConfigError where there is none."""
    if name not in PEERS:
        raise ConfigError(f"peer '{name}': expected one of {', '.join(PEERS)}{near(name, PEERS)}")
    return PEERS[name]


def environments() -> Path:
    """Where environments are: $SCDFM_PEERS, else the user's cache folder."""
    import pooch

    return Path(os.environ.get(FOLDER_VARIABLE) or Path(pooch.os_cache("scdfm")) / "peers").absolute()


def isolated() -> dict[str, str]:
    """The environment variables of a bundled method: nothing of this Python reaches it, and it asks no server."""
    ours = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    variables = {name: value for name, value in os.environ.items() if name not in ours}
    return variables | {"PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "MPLBACKEND": "Agg"}


def install(one: Peer, again: bool = False) -> dict[str, Any]:
    """Make the environment of a method unless it is whole (or `again`): seconds, mib, packages. PeerError says why not."""
    if not again and (installed := one.installed) is not None:
        return installed
    begun, place, python = time.monotonic(), one.environment, _python(one.environment)
    uv, declared = _uv(), one.declared
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    _call(one, [uv, "venv", "--quiet", "--python", declared["requires-python"], str(place)])
    _call(one, [uv, "pip", "install", "--quiet", "--python", str(python), *declared["dependencies"]])
    if alone := declared.get("tool", {}).get("scdfm", {}).get("without-dependencies"):
        # Their own bounds on Python and torch are stricter than what they run with.
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-requires-python"]
        _call(one, [*pip, *alone])
    sizes = [path.stat().st_size for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    facts = {
        "seconds": round(time.monotonic() - begun, 1),
        "mib": round(sum(sizes) / 2**20),
        "packages": len(list(place.rglob("*.dist-info"))),
    }
    write_json(place / READY, facts)
    return facts


def _python(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _uv() -> str:
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        pass
    if (path := shutil.which("uv")) is None:
        raise PeerError("peers live in environments that uv makes, which is not here: pip install 'scdfm[peers]'")
    return path


def _call(one: Peer, command: Sequence[str]) -> None:
    given = isolated()
    given |= {ours: given[theirs] for theirs, ours in _HANDED_ON.items() if theirs in given and ours not in given}
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)  # noqa: S603  # nosec B603
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise PeerError(
            f"peer '{one.name}' cannot be installed ({said[-400:]}); see that its packages can be fetched, then repeat "
            f"scdfm peers install {one.name}"
        )


STEPS: Final = 20
BUDGET: Final = 300.0


@dataclass(frozen=True)
class Checked:
    """What came of a method: `words` for a reader, and whether it predicted what it was asked for."""

    name: str
    words: str
    good: bool


def check(peer: Peer) -> Checked:
    """Install `peer` where it is not, fit it for STEPS steps on a simulated screen, and read its answer."""
    try:
        installed = install(peer)
        with tempfile.TemporaryDirectory() as place:
            task, folder = tiny(), Path(place) / "task"
            write_task(folder, task)
            ran = run_command(peer.argv, folder, BUDGET, isolated())
            if ran.reason is not None:
                raise ScdfmError(ran.reason)
            answer = read_answer(folder, task)
    except ScdfmError as error:
        return Checked(peer.name, f"FAILED: {error}", False)
    words = (
        f"ok, {installed['packages']} packages, {installed['mib']:,} MiB, installed in {installed['seconds']:.0f} s; "
        f"{answer.facts.get('steps')} steps and {len(answer.conditions)} conditions in {ran.cpu or ran.seconds:.0f} s"
    )
    return Checked(peer.name, words, len(answer.conditions) == len(task.conditions))


def tiny() -> Task:
    """Six simulated targets, their doubles but for those of fold 0, and GO terms made up for them."""
    cells = read_cells(simulate(n_genes=60, n_targets=6, cells_per_condition=30, n_controls=90, seed=0))
    split = additive_split(cells, fold=0)
    trained = (*split.train, *split.validation)
    named = sorted({target for name in (*trained, *split.test) for target in targets(name)})
    terms = {name: ["all", f"half {place % 2}", f"third {place % 3}"] for place, name in enumerate(named)}
    return Task(
        cells.select([CONTROL, *trained]), split.test, tuple(map(str, cells.genes)), 0, BUDGET, 20,
        {"steps": STEPS, "terms": terms},
    )  # fmt: skip
