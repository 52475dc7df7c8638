"""From the names that a user gives to the plan of a benchmark: presets, files, commands, bundled methods."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from scdfm.benchmarking.plan import BASELINES_ALONE, BUDGET, FOLDS, Contender, Options, Plan, single
from scdfm.config import Config, SplitConfig
from scdfm.data import Split
from scdfm.data.conditions import near
from scdfm.errors import ConfigError
from scdfm.evaluation import BASELINES, CEILING, PRIOR
from scdfm.evaluation.evaluate import Protocol
from scdfm.peers.bundled import PEERS, PeerError
from scdfm.presets import PRESETS

OURS: Final = "scdfm"
"""What the preset `default` may be called beside others."""
_ALWAYS: Final = (BASELINES_ALONE, *BASELINES, CEILING)
"""Names that stand in every table."""
_NAMED: Final = ("file", "command")
Models = str | Contender | Iterable[str | Contender]


@dataclass(frozen=True)
class PeerOptions:
    """What commands get: `budget` seconds (None: BUDGET), folders of `weights` by peer, `go`: a file of annotations."""

    budget: float | None = None
    weights: Mapping[str, str | Path] = field(default_factory=dict)
    go: str | Path | None = None

    def check(self, made: Sequence[Contender]) -> None:
        """ConfigError for an option that no contender of `made` takes, and for files that are not there."""
        named = {one.peer.name for one in made if one.peer is not None}
        if self.budget is not None and not any(one.command for one in made):
            raise ConfigError("budget is that of commands and peers, and models name none; leave it out")
        for name, folder in self.weights.items():
            if name not in PEERS or not PEERS[name].weights or name not in named:
                takers = ", ".join(peer.name for peer in PEERS.values() if peer.weights)
                raise ConfigError(
                    f"weights of '{name}': expected one of {takers} that models name too; correct or drop it"
                )
            if not Path(folder).is_dir():
                raise ConfigError(
                    f"weights of {name}: {folder} is no folder; give that of the pretrained model"
                )
        if self.go is not None and not any(PEERS[name].annotations for name in named):
            raise ConfigError(
                "go is the file of annotations of peer gears, which models do not name; leave it out"
            )

    def files(self, name: str) -> dict[str, str]:
        """The files of a peer; ConfigError where it needs one that is not given."""
        files = {}
        if name in self.weights:
            files["weights"] = str(Path(self.weights[name]).absolute())
        if PEERS[name].annotations:
            if self.go is None:
                raise ConfigError(
                    f"model '{name}' reads the GO terms of genes: give a file of annotations with go (--go FILE), "
                    "such as scdfm download go leaves"
                )
            files["go"] = str(self.go)
        return files


def make_plan(
    split: str | SplitConfig | Split = "additive",
    folds: Sequence[int] | None = None,
    seeds: int | Sequence[int] = 3,
    models: Models = "default",
    *,
    protocol: Protocol = "scdfm",
    metrics: Sequence[str] | None = None,
    options: Options = None,
    n_cells: int | None = None,
    peers: PeerOptions | None = None,
) -> Plan:
    """The plan that the arguments of `benchmark` describe; ConfigError where they cannot be."""
    lead: Mapping[str, Any] = {}
    if isinstance(split, str):
        lead = {"split": SplitConfig.named(split)}
        split = _with(Config().updated(lead, "split"), options).updated(lead, "split").split
    if folds is None:
        folds = (0,) if single(split) else FOLDS
    peers = peers or PeerOptions()
    made = contenders(models, options, lead, peers)
    peers.check(made)
    return Plan(
        split,
        tuple(folds),
        tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds),
        made,
        protocol,
        None if metrics is None else tuple(metrics),
        n_cells,
        BUDGET if peers.budget is None else peers.budget,
    )


def contenders(
    models: Models,
    options: Options = None,
    lead: Mapping[str, Any] | None = None,
    peers: PeerOptions | None = None,
) -> tuple[Contender, ...]:
    """Contenders of names: a preset (or `scdfm`, the preset default), `file:NAME=PRED.h5ad`, `command:NAME=COMMAND`, a
    bundled peer; `baselines`, the name of one, `ceiling` and `prior` add none.

    Texts may hold several names, separated by commas; a comma in a command stays where no name of a model follows it.
    `options` are put over every preset, after `lead`: the kind of split that they may go with.
    """
    given = [models] if isinstance(models, str | Contender) else list(models)
    names: list[str | Contender] = []
    for model in given:
        names += [model] if isinstance(model, Contender) else _separated(model)
    if not names or "" in names:
        raise ConfigError(
            "models: expected a preset, file:NAME=PRED.h5ad, command:NAME=COMMAND, a peer or baselines, found nothing"
        )
    made = [
        _contender(name, options, lead or {}, peers or PeerOptions()) for name in names if name not in _ALWAYS
    ]
    entries = tuple(one for one in made if one is not None)
    if len(entries) < len(made) and not any(one.config is not None for one in entries):
        raise ConfigError(
            f"model '{PRIOR}' is what a fitted model begins with; name one too, such as instant"
        )
    return entries


def _separated(text: str) -> list[str]:
    """The names between the commas of a text."""
    names: list[str] = []
    for part in map(str.strip, text.split(",")):
        is_model = part in (*PRESETS, *PEERS, *_ALWAYS, PRIOR, OURS) or part.partition(":")[0] in _NAMED
        if names and names[-1].startswith("command:") and not is_model:
            names[-1] += f",{part}"
        else:
            names.append(part)
    return names


def _with(config: Config, options: Options) -> Config:
    if options is None or isinstance(options, Mapping):
        return config.updated(options or {}, "options")
    return config.with_settings(list(options))


def _contender(
    model: str | Contender, options: Options, lead: Mapping[str, Any], peers: PeerOptions
) -> Contender | None:
    """The contender of a name; None for `prior`, which fitted models bring along."""
    if isinstance(model, Contender):
        return model
    if model == PRIOR:
        return None
    if model in PRESETS or model == OURS:
        preset = Config.preset("default" if model == OURS else model)
        return Contender(model, _with(preset.updated(lead, "split"), options))
    if model in PEERS:
        return _bundled(model, peers)
    kind, _, rest = model.partition(":")
    name, sign, value = (part.strip() for part in rest.partition("="))
    if kind == "file" and sign and value:
        return Contender(name, predictions=value)
    if kind == "command" and sign and value:
        return Contender(name, command=_words(name, value))
    raise ConfigError(
        f"model '{model}': expected {', '.join(PRESETS)}, file:NAME=PRED.h5ad, command:NAME=COMMAND, "
        f"{', '.join(PEERS)} or {BASELINES_ALONE}{near(model, [*PRESETS, *PEERS, BASELINES_ALONE])}"
    )


def _words(name: str, command: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        raise ConfigError(f"command of model '{name}': {command} ({error}); close the quotation") from error


def _bundled(name: str, options: PeerOptions) -> Contender:
    peer = PEERS[name]
    if peer.installed is None:
        raise PeerError(f"peer '{name}' is not installed; run scdfm peers install {name}")
    files = options.files(name)
    return Contender(peer.row("weights" in files), command=peer.argv, peer=peer, files=files)
