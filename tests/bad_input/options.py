"""Options: flags, --set, TOML configs and splits, and where the outputs go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bad_input.bench import Bench, Case


def toml(text: str | bytes, option: str = "--config") -> Callable[[Bench], Sequence[Any]]:
    """`scdfm fit` with a TOML file."""
    return lambda bench: bench.fit(option, bench.file("given.toml", text))


def option(*words: Any) -> Callable[[Bench], Sequence[Any]]:
    """`scdfm fit` with more words."""
    return lambda bench: bench.fit(*words)


def setting(text: str) -> Callable[[Bench], Sequence[Any]]:
    return option("--set", text)


CASES = [
    Case("config is not TOML", toml("seed: 1"), "given.toml is not TOML"),
    Case("config is binary", toml(b"\xff\xfe\x00"), "given.toml is not TOML"),
    Case("config is empty", toml(""), None),
    Case("config is a folder", lambda bench: bench.fit("--config", bench.folder), "cannot be read"),
    Case("config with an unknown key", toml("sede = 1"), "unknown key 'sede'; known here: seed, panel"),
    Case("config with an unknown section", toml("[trainer]\nmax_steps = 1"), "unknown key 'trainer'"),
    Case("config with a key for a section", toml("training = 3"), "training: Input should be a valid dictionary"),
    Case("config with a section for a key", toml("[seed]\nx = 3"), "seed: Input should be a valid integer"),
    Case("config with a list", toml("training = [1]"), "training: Input should be a valid dictionary"),
    Case("config with nan", toml("[training]\nlearning_rate = nan"),
         "training.learning_rate: Input should be a finite number"),
    Case("config with inf", toml("[training]\nlearning_rate = inf"),
         "training.learning_rate: Input should be a finite number"),
    Case("config with a date", toml("seed = 1979-05-27"), "seed"),
    Case("config with a huge seed", toml("seed = 123456789012345678901234567890"), None),
    Case("config with the largest TOML seed", toml("seed = 9223372036854775807"), None),
    Case("config nested 10,000 deep", toml("a" + ".a" * 10_000 + " = 1"), "unknown key 'a'"),
    Case("config with 10,000 brackets", toml("a = " + "[" * 10_000 + "]" * 10_000), "is not TOML"),
    Case("config with data that fits",
         toml('[data]\ncontrol = "control"\nsubset = {batch = "odd"}\n[training]\nmax_steps = 1'),
         None),
    Case("config with data of an unknown key", toml("[data]\ncontrols = 'x'"),
         r"given.toml, table \[data\]: unknown key 'controls'; known here: perturbation_key, control"),
    Case("config with data that is a word", toml("data = 'x'"), r"data is 'x'; expected a table \[data\]"),
    Case("config with data and an unknown section", toml("[data]\n[trainer]\nx = 1"), "unknown key 'trainer'"),
    Case("config with a column that is a number", toml("[data]\ndose_key = 3"), "dose_key: Input should be a valid string"),
    Case("config with covariates in one text", toml("[data]\ncovariates = 'a,b'"),
         "covariates: Input should be a valid tuple"),
    Case("config with a covariate that is not there", toml("[data]\ncovariates = ['lime']"), "column 'lime' is not in obs"),
    Case("config with a total of nan", toml("[data]\ntarget_sum = nan"), "target_sum: expected a number above 0"),
    Case("config with a total of a word",
         toml("[data]\ntarget_sum = 'mean'"),
         "target_sum: expected a number above 0 .*'median'"),
    Case("config with a total of true", toml("[data]\ntarget_sum = true"), "target_sum: expected"),
    Case("config with half a cell", toml("[data]\nmin_cells = 1.5"), "min_cells: Input should be a valid integer"),
    Case("config with a subset of a list", toml("[data]\nsubset = ['a']"), "subset: Input should be a valid dictionary"),
    Case("config with a subset of dates", toml("[data]\nsubset = {day = 1979-05-27}"),
         "subset.day: Input should be a valid string"),
    Case("config with a fallback that is none", toml("[data]\ncontrol_fallback = 'some'"),
         "control_fallback: Input should be 'error' or 'all'"),
    Case("a flag over the config's data",
         lambda b: b.fit("--config", b.file("c.toml", "[data]\ncontrol = 'x'"), "--control",
         "control"),
         None),
    Case("benchmark with more than data", lambda b: ["benchmark", b.screen, "--out", b.folder / "o", "--config",
         b.file("c.toml", "seed = 1")], r"holds 'seed', expected the table \[data\] alone; give other options with --set"),
    Case("evaluate with data of an unknown key", lambda b: b.evaluate("--config", b.file("c.toml", "[data]\nx = 1")),
         "unknown key 'x'"),
    Case("set a column", setting("data.control=x"), "unknown key 'data'"),
    Case("set without a value", setting("training.max_steps"), "expected section.key=value"),
    Case("set an unknown key", setting("training.speed=9"), "unknown key 'training.speed'"),
    Case("set a key below a key", setting("seed.x=9"), "seed: Input should be a valid integer"),
    Case("set a key and below it", option("--set", "seed=1", "--set", "seed.x=9"),
         "--set seed.x=9: 'seed' was set to a value before"),
    Case("set a section", setting("training=9"), "training: Input should be a valid dictionary"),
    Case("set empty parts", setting("training..max_steps=9"), "unknown key 'training.'"),
    Case("set text for a number", setting("training.max_steps=many"), "training.max_steps"),
    Case("set half a step", setting("training.max_steps=1.5"), "training.max_steps"),
    Case("set true for a number", setting("training.max_steps=true"),
         "max_steps: expected another kind of value than true or false"),
    Case("set several values by a line break", setting("training.max_steps=1\nseed=2"),
         "training.max_steps: Input should be a valid integer"),
    Case("set nan", setting("training.learning_rate=nan"), "training.learning_rate: Input should be a finite number"),
    Case("set a width that does not divide", setting("model.heads=3"), "width 16 is not a multiple of heads 3"),
    Case("set dropout of 1", setting("model.dropout=1"), "model.dropout"),
    Case("set a negative seed", option("--seed", "-1"), "seed"),
    Case("more neighbours than genes", setting("graph.k=100000"), None),
    Case("more genes per step than genes", setting("flow.genes_per_step=100000"), None),
    Case("more panel than genes", setting("panel.n_genes=100000"), None),
    Case("an unknown accelerator", setting("training.accelerator=tpu"), "Input should be 'auto', 'cpu' or 'gpu'"),
    Case("a thousand devices", setting("training.devices=1000"), "training.devices 1000: this machine has [0-9]+ "),
    Case("a logger that is not installed", setting("training.logger=wandb"),
         "training.logger 'wandb' is not installed; install"),
    Case("a width that no memory holds", setting("model.width=1048576"),
         "parameters needs about .* GB to train, this machine has"),
    Case("split that is no TOML", toml("test = [", "--split"), "is not TOML"),
    Case("split without test", toml("train = ['A']", "--split"), "no list 'test'"),
    Case("split of unknown conditions", toml("test = ['NOPE+ALSO']", "--split"), "is not measured"),
    Case("split of numbers", toml("test = [1, 2]", "--split"), "expected a list of condition names"),
    Case("split of another key", toml("test = []\nvalid = []", "--split"), "unknown key 'valid'"),
    Case("split with nothing tested", toml("test = []", "--split"), "no test condition"),
    Case("split that tests control", toml("test = ['control']", "--split"), "control stands in test"),
    Case("split of an empty column", option("--split", "obs:"), "expected additive, holdout"),
    Case("a negative fold", option("--fold", "-1"), "split.fold"),
    Case("a fold far away", option("--fold", "4294967295"), "split.fold"),
    Case("a fold of text", option("--fold", "one"), "--fold"),
    Case("an option that does not exist", option("--frobnicate"), "--frobnicate"),
    Case("subset of nothing", option("--subset", "=x"), "expected COLUMN=VALUE"),
    Case("out within a file", lambda b: b.fit(out=b.file("file", "x") / "run"), "cannot be created"),
    Case("out is a file", lambda b: b.fit(out=b.file("file", "x")), "expected a folder to create, found a file"),
    Case("out is the folder of the data", lambda b: b.fit(out=b.screen.parent), "exists and is not empty"),
    Case("out with a NUL", lambda b: b.fit(out="a\0b"), "cannot be created|embedded null byte"),
    Case("out of 5,000 letters", lambda b: b.fit(out=b.folder / ("x" * 5000)), "cannot be created"),
    Case("resume of another folder", lambda b: b.fit("--resume", out=b.screen.parent), "exists and is not empty"),
    Case("resume with other options", lambda b: b.fit("--resume", "--seed", "7", out=b.run_copy()),
         "was started with other config"),
]  # fmt: skip
