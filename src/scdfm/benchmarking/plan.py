"""What a benchmark compares: models, folds, seeds, the pieces of work they make, and the names that users give."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from scdfm.config import Config, SplitConfig
from scdfm.data import CellTable, Split, make_split
from scdfm.data.conditions import near
from scdfm.errors import ConfigError
from scdfm.evaluation import BASELINES, CEILING, DUPLICATE, PRIOR
from scdfm.evaluation.evaluate import Protocol
from scdfm.peers.bundled import PEERS, Peer, PeerError
from scdfm.presets import PRESETS

REFERENCES: Final = "references"
BASELINES_ALONE: Final = "baselines"
FOLDS: Final = (0, 1, 2, 3, 4)
SINGLE_FOLD: Final = ("column", "file", "named")
"""Kinds of split whose test no fold decides."""
Options: TypeAlias = Mapping[str, Any] | Sequence[str] | None
"""Nested options, or texts such as "training.max_steps=500", put over every preset."""
_TAKEN: Final = {name.casefold() for name in (*BASELINES, PRIOR, CEILING, DUPLICATE, REFERENCES, BASELINES_ALONE)}
BUDGET: Final = 600.0
"""Seconds of one core that a command has, unless asked otherwise."""
OURS: Final = "scdfm"
"""What the preset `default` may be called beside others."""
_ALWAYS: Final = (BASELINES_ALONE, *BASELINES, CEILING)
"""Names that stand in every table."""
_NAMED: Final = ("file", "command")
Models: TypeAlias = "str | Contender | Iterable[str | Contender]"
_NAME: Final = re.compile(r"\w[\w.+ -]{0,59}")


@dataclass(frozen=True)
class Contender:
    """A model in the table: `config` is fitted in every fold with every seed, `predictions` are somebody's files, or
    `command` is run on the training cells of every fold with every seed (docs/peers.md).

    `predictions` is the path of an .h5ad; `{fold}` and `{seed}` in it stand for the numbers of fold and seed.
    The benchmark sets seed and split of `config`, but for its `split.validation_fraction`. `peer` is the bundled method
    that a command stands for, `files` are what it reads beside its folder: `weights`, `annotations`.
    """

    name: str
    config: Config | None = None
    predictions: str | None = None
    command: tuple[str, ...] | None = None
    peer: Peer | None = None
    files: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"model name '{self.name}': expected up to 60 letters, digits, spaces, '.', '+', '-' or '_'; rename it"
            )
        if self.name.casefold() in _TAKEN:
            raise ConfigError(f"model name '{self.name}' is taken by the references; choose another")
        if sum(one is not None for one in (self.config, self.predictions, self.command)) != 1 or self.command == ():
            raise ConfigError(
                f"model '{self.name}': expected either a config, a file of predictions or a command; give one of them"
            )

    def seeds(self, seeds: Sequence[int]) -> tuple[int | None, ...]:
        """The seeds it is run with; (None,) where a seed changes nothing."""
        return tuple(seeds) if self.predictions is None or "{seed}" in self.predictions else (None,)

    def path(self, fold: int, seed: int | None) -> Path:
        """The file of predictions for a fold and seed."""
        return Path(str(self.predictions).replace("{fold}", str(fold)).replace("{seed}", str(seed)))


@dataclass(frozen=True)
class Piece:
    """One unit of work: a contender (None: baselines and ceiling) in one fold, with one seed."""

    fold: int
    contender: Contender | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """The model's name in the table."""
        return REFERENCES if self.contender is None else self.contender.name

    @property
    def label(self) -> str:
        """The piece in words."""
        return f"fold {self.fold}, {self.name}" + ("" if self.seed is None else f", seed {self.seed}")

    @property
    def folder(self) -> Path:
        """Where the piece stands within the benchmark's folder."""
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return Path(f"fold{self.fold}") / (self.name.replace(" ", "_") + seed)


@dataclass(frozen=True)
class Plan:
    """A whole benchmark. `n_cells` None takes each config's `sampling.cells`, a command the first config's.

    `budget`: seconds of one core that a command has in each fold with each seed.

    A SplitConfig decides the test of each fold, and every fit draws validation conditions with its own config and
    seed; a Split is taken as it is, as fold 0.
    """

    split: SplitConfig | Split
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    contenders: tuple[Contender, ...] = ()
    protocol: Protocol = "scdfm"
    metrics: tuple[str, ...] | None = None
    n_cells: int | None = None
    budget: float = BUDGET

    def __post_init__(self) -> None:
        if self.protocol not in ("scdfm", "paper"):
            raise ConfigError(f"protocol '{self.protocol}': expected scdfm or paper")
        for what, numbers in (("fold", self.folds), ("seed", self.seeds)):
            if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
                raise ConfigError(f"{what}s {list(numbers)}: expected one or more different numbers from 0 on")
        if single(self.split) and self.folds != (0,):
            raise ConfigError(f"folds {list(self.folds)}: split '{self.split.kind}' has one fold, 0; leave folds out")
        names = [str(piece.folder) for piece in self.pieces()]
        if len({name.casefold() for name in names}) < len(names):
            raise ConfigError("models: two have the same name; rename one (file:NAME=PRED.h5ad)")
        if self.n_cells is not None and self.n_cells < 2:
            raise ConfigError(f"cells {self.n_cells}: expected at least 2 predicted cells of each condition")
        if not 0 < self.budget < float("inf"):
            raise ConfigError(f"budget {self.budget}: expected a number of seconds above 0")

    @property
    def command_cells(self) -> int:
        """Cells of a condition that a command is asked for: as many as the first fitted model predicts."""
        configs = [one.config for one in self.contenders if one.config is not None] or [Config()]
        return configs[0].sampling.cells if self.n_cells is None else self.n_cells

    def pieces(self) -> list[Piece]:
        """References, then files, fold by fold; then fits and commands, all folds of a seed before the next seed.

        What is quick and may be refused comes first, and a half-finished benchmark covers all folds.
        """
        files = [contender for contender in self.contenders if contender.predictions is not None]
        quick = [
            Piece(fold, contender, seed)
            for fold in self.folds
            for contender in (None, *files)
            for seed in ((None,) if contender is None else contender.seeds(self.seeds))
        ]
        long = [contender for contender in self.contenders if contender.predictions is None]
        return quick + [Piece(f, contender, s) for s in self.seeds for f in self.folds for contender in long]

    def config(self, piece: Piece) -> Config:
        """The options of a piece that is fitted: those of `scdfm fit` with the same split, fold and seed."""
        assert piece.contender is not None
        assert piece.contender.config is not None
        over: dict[str, Any] = {"seed": piece.seed}
        if isinstance(self.split, SplitConfig):
            split = self.split.model_dump(exclude={"fold", "validation_fraction"})
            over["split"] = {**split, "fold": piece.fold}
        return piece.contender.config.updated(over)

    def fold_split(self, cells: CellTable, fold: int) -> Split:
        """The split of a fold; only its test is the same for all models."""
        if isinstance(self.split, Split):
            return self.split
        return make_split(cells, self.split.model_copy(update={"fold": fold}))

    def piece_split(self, cells: CellTable, piece: Piece) -> Split:
        """The split that a fit trains, validates and is tested on."""
        if isinstance(self.split, Split):
            return self.split
        config = self.config(piece)
        return make_split(cells, config.split, config.seed)


def single(split: SplitConfig | Split) -> bool:
    """Whether a split has no folds."""
    if isinstance(split, Split) or split.kind in SINGLE_FOLD:
        return True
    return split.value is not None or split.targets is not None


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
                raise ConfigError(f"weights of {name}: {folder} is no folder; give that of the pretrained model")
        if self.go is not None and not any(PEERS[name].annotations for name in named):
            raise ConfigError("go is the file of annotations of peer gears, which models do not name; leave it out")

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
    models: Models, options: Options = None, lead: Mapping[str, Any] | None = None, peers: PeerOptions | None = None
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
    made = [_contender(name, options, lead or {}, peers or PeerOptions()) for name in names if name not in _ALWAYS]
    entries = tuple(one for one in made if one is not None)
    if len(entries) < len(made) and not any(one.config is not None for one in entries):
        raise ConfigError(f"model '{PRIOR}' is what a fitted model begins with; name one too, such as instant")
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
