"""Every option of scdfm, in one schema for Python, TOML and the command line.

Unknown keys are refused, values are checked; the presets stand in `scdfm.presets`. Letters as in the documentation: G
panel genes, T genes of one step, B cells of a batch, C conditions.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from scdfm.errors import ConfigError
from scdfm.options import SCREENS, TABLE, DataConfig, Section, checked, merged, read_toml, screens_of, table_of
from scdfm.presets import PRESETS

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Cells = Literal["training", "all"]


class PanelConfig(Section):
    """Which genes are modelled."""

    n_genes: Count = 2000
    """Highly variable genes; every measured target is added to them."""
    include: tuple[str, ...] = ()
    """Further measured genes to add, such as targets to be predicted that nobody has perturbed."""
    flavor: Literal["seurat", "cell_ranger"] = "seurat"
    """scanpy's ranking of variable genes (on log1p values)."""
    cells: Cells = "training"
    """Cells that choose the genes. `all` is the published leak: test cells take part."""


class GraphConfig(Section):
    """The co-expression graph that masks the gene encoder's attention."""

    enabled: bool = True
    """Off: every gene attends to every gene."""
    k: Count = 30
    """Neighbours kept per gene, by |Pearson r|."""
    negative_edges: bool = True
    """Off: only positive correlations count."""
    faithful: bool = False
    """On: the official code's two quirks (a second log1p; edges ranked before negative ones are dropped)."""


class ModelConfig(Section):
    """The velocity field."""

    backbone: Literal["differential_perceiver", "differential_transformer", "perceiver", "linear"] = (
        "differential_perceiver"
    )
    """The three published ones, and `linear`: `differential_perceiver` with its maps through inducing tokens, so that
    cost grows with the genes of a step and not with their square."""
    latents: Count | None = None
    """Inducing tokens of backbone `linear`; none takes 32."""
    attention: Literal["differential", "softmax"] = "differential"
    """`softmax` keeps only the first map of each differential attention (the ablation)."""
    perturbation: Literal["genes", "drugs"] = "genes"
    """`genes`: the gene encoder speaks for targets; `drugs`: a learned table."""
    features: tuple[str, ...] = ()
    """What describes perturbations beside that: tables (.csv, .tsv, .parquet, .h5ad) by name, a .csv with a column
    `smiles`, `smiles:COLUMN` of the cells, `go:`, `gmt:` or `edges:` and files of what is known of genes, or
    `coexpression` of genes in control cells. Projected and added, they speak alone for targets never seen."""
    pooling: Literal["mean", "sum", "attention"] = "mean"
    """How the targets of a condition become one vector: `mean` over slots (published), `sum` of their shifts from
    control, or `attention`, a learned weighted mean of these shifts."""
    width: Count = 64
    """Width of a gene's token."""
    heads: Count = 2
    """Heads of the blocks; width must be a multiple."""
    gene_heads: Count = 8
    """Heads of the gene encoder; width must be a multiple."""
    layers: Annotated[int, Field(ge=1, le=1000)] = 2
    """Layers of the backbone, each with its blocks."""
    dropout: Fraction = 0.0
    """Dropout of encoders, attention and MLP."""

    @model_validator(mode="after")
    def _divisible(self) -> ModelConfig:
        for name in ("heads", "gene_heads"):
            if self.width % getattr(self, name):
                raise ValueError(f"width {self.width} is not a multiple of {name} {getattr(self, name)}")
        if self.backbone == "perceiver" and self.attention == "softmax":
            raise ValueError("attention 'softmax' has no effect on backbone 'perceiver', which has no differential map")
        if self.latents is not None and self.backbone != "linear":
            raise ValueError(
                f"latents {self.latents} has no effect on backbone '{self.backbone}'; it belongs to 'linear'"
            )
        return self

    @property
    def inducing_tokens(self) -> int | None:
        """Inducing tokens of each attention; none where maps are whole."""
        return (self.latents or 32) if self.backbone == "linear" else None


PAIRING_CELLS = 48
"""Cells of a condition among which pairs are sought, unless told (docs/log.md)."""


class FlowConfig(Section):
    """The probability path and what a step sees."""

    source: Literal["prior", "gaussian", "poisson"] = "prior"
    """Distribution of x₀. `prior`: training cells, moved gene by gene to the mean and spread that a closed-form prior
    expects of the condition; the field learns what is left. `gaussian`: N(0, I), as published. `poisson`: Poisson
    counts with the training cells' mean per gene, log1p."""
    prior_means: Literal["leave_one_out", "posterior"] = "leave_one_out"
    """What a training condition starts from: the mean that the others let expect, as unsure as a test condition's, or
    the prior's own estimate of it, as a single condition does."""
    pairing: Literal["optimal", "random"] = "optimal"
    """Which x₀ goes to which cell. `optimal`: within each condition of a step those of the smallest squared distance in all
    (optimal transport), so that cells keep their state. `random`: any to any, as published."""
    pairing_cells: Annotated[int, Field(ge=2)] | None = None
    """Cells of each condition of a step, and as many x₀, among which `optimal` seeks pairs; the network sees the first
    `training.cells_per_condition` pairs, and the MMD compares their ends with all these cells. None: 48, or as many as the
    network sees where that is more."""
    time: Literal["uniform", "stratified"] = "stratified"
    """`stratified` draws one t in each of B equal pieces of [0, 1]: the same law with less variance."""
    genes_per_step: Count | None = 100
    """T: genes drawn at random from the panel for each step; none or T ≥ G takes the whole panel."""

    @model_validator(mode="after")
    def _pairs_are_sought(self) -> FlowConfig:
        if self.pairing == "random" and self.pairing_cells is not None:
            raise ValueError(
                f"pairing_cells {self.pairing_cells} has no effect on pairing 'random'; leave it out, or set 'optimal'"
            )
        return self


class MMDConfig(Section):
    """The MMD term that aligns the generated with the real population, within one condition."""

    weight: Annotated[float, Field(ge=0)] = 0.5
    """γ of L = L_CFM + γ·MMD²; 0 switches it off."""
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0, 4.0)
    """σ² = scale · median squared distance of the target cells, one Gaussian kernel each."""
    bandwidths: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """σ of each kernel, given instead of `scales` · median."""


class TrainingConfig(Section):
    """The optimisation."""

    max_steps: Annotated[int, Field(ge=0)] = 1000
    """0 trains nothing: the prior alone is the model (preset `instant`); needs `flow.source` "prior"."""
    conditions_per_batch: Count = 8
    """Conditions of a step, over all processes."""
    cells_per_condition: Annotated[int, Field(ge=2)] = 6
    """Cells of each condition of a step."""
    min_cells: Count = 2
    """Fewest cells of a training or validation condition. With 1, a condition of one cell teaches the velocity but
    not the spread: the MMD needs different cells."""
    sampling: Literal["condition", "cell"] = "condition"
    """Conditions are drawn uniformly, or by their number of cells."""
    screen_weights: dict[str, Annotated[float, Field(strict=True, gt=0)]] = Field(default_factory=dict)
    """How often conditions of each screen are drawn, relative to 1, where several are fitted together (covariate `screen`);
    also `weight` of a table `[screens.NAME]`. The prior weighs conditions by their cells alone."""
    control_populations: Literal["auto", "always", "never"] = "auto"
    """Whether the control population of every covariate group is trained as a condition; `auto`: where the screen
    has covariates, doses or times, which then also learn from control cells."""
    id_dropout: Fraction = 0.5
    """Share of the targets with features whose own vector is hidden in a step, so that features learn to speak alone
    for targets never seen; without features nothing is hidden."""
    condition_dropout: Fraction = 0.0
    """Share of the conditions of a batch that are left out, for `sampling.guidance`."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """Adam, with decoupled weight decay or without any."""
    learning_rate: Positive = 2e-3
    """Where the cosine begins, after the warm-up."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    """Where the cosine ends."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decay of the weights, of `adamw` alone."""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    ema_decay: Fraction = 0.999
    """Decay of the averaged weights that validate and predict; 0 uses the raw weights."""
    validate_every: Count = 250
    """Steps between validations; each also saves the checkpoint `last`. The last step of a fit is validated too."""
    validation_cells: Annotated[int, Field(ge=2)] = 64
    """Cells generated for each validation condition, at most (of few real cells, as many); their distance to as many real
    ones chooses the weights."""
    validation_budget: Annotated[int, Field(ge=2)] = 1024
    """Cells that one validation generates at most: conditions are drawn by the seed until they are that many."""
    validation_genes: Count = 500
    """Genes of the panel that validation looks at, at most, drawn by the seed: all would cost more than training."""
    keep: Literal["best", "last"] = "best"
    """`best`: the weights of the smallest validation energy distance. Where the flow starts from the prior they are kept
    only if clearly better than the prior alone, which is kept otherwise (manifest: step 0). `last`: the last weights.
    Where no validation condition can be predicted the prior is kept too. Without validation conditions the last are."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after this many validations without a better one, those of the warm-up aside; 0 never stops early."""
    precision: Literal["32", "bf16"] = "32"
    """`bf16` computes products in bfloat16, weights stay float32: for a GPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Layers as compiled code: `auto` on a GPU in fits of 5,000 steps or more, since compiling takes a minute or two; `on`
    anywhere, where the tools for it are there."""
    checkpointing: bool = False
    """On: a layer's inner values are computed again for the gradients instead of kept. The same numbers, a fraction of
    the memory, a third more time."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train; `auto` takes a GPU where there is one."""
    devices: Count | Literal["auto"] = 1
    """Processes on each machine, started by the first; under torchrun its own number holds instead."""
    nodes: Count = 1
    """Machines, where no torchrun says so; each needs NODE_RANK, MASTER_ADDR and MASTER_PORT in its environment."""
    timeout: Positive = 600
    """Seconds that a process waits for the others; one that has died is noticed at once."""
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    """The CSV log is always written; the other two need their extras."""
    keep_controls: Annotated[int, Field(ge=0)] = 2000
    """Control cells stored in the run folder, so that it predicts alone; 0 stores none."""

    @model_validator(mode="after")
    def _ordered(self) -> TrainingConfig:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} exceeds learning_rate {self.learning_rate}")
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError("weight_decay has no effect on optimizer 'adam'; set it to 0 or choose 'adamw'")
        return self


class SamplingConfig(Section):
    """How populations are generated."""

    cells: Count = 128
    """Cells per condition unless asked otherwise."""
    solver: Literal["euler", "midpoint", "rk4", "dopri5"] = "rk4"
    """`rk4` is the 3/8 rule. `dopri5` chooses its own steps and takes `tolerance` instead of `steps`."""
    steps: Count = 2
    """Solver steps; 2 of `rk4` are 8 evaluations. From the noise source take 4."""
    tolerance: Positive = 1e-4
    """Relative and absolute tolerance of `dopri5`."""
    genes: Literal["chunks", "joint"] = "chunks"
    """`chunks` solves random sets of T genes, the law of training; `joint` solves the panel at once (published)."""
    clamp: bool = True
    """Cut negative expression to 0 at t = 1."""
    dropout: bool = False
    """The official code leaves dropout on while sampling."""
    noise: Literal["stratified", "independent"] = "stratified"
    """`stratified` spreads a population's Gaussian draws evenly (a Latin hypercube): means of few cells vary less."""
    shrink: bool = True
    """Predicted means and values lie between the prior's and the flow's, as far as validation conditions say
    (docs/prior.md); without these means are the prior's. Needs `flow.source` "prior"."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """w of v = v_null + w·(v − v_null), v_null without the condition; 1 is off, else needs
    `training.condition_dropout`."""


class SplitConfig(Section):
    """Which conditions are kept for the test, and which of the rest for validation."""

    kind: Literal["additive", "holdout", "combinations", "covariate", "column", "file", "named", "none"] = "additive"
    """How test conditions are chosen; docs/faq.md says which kind answers which question."""
    fold: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Which of the splits of this kind; it decides the test conditions."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of doubles (additive, combinations), or of pairs of a value and targets (covariate), kept for the test."""
    held_out_targets: Count = 12
    """Number of targets whose conditions, at every dose and covariate, are the test of `holdout`."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Targets that `holdout` holds out, by name, instead of `held_out_targets` drawn ones."""
    covariate: str | None = None
    """Covariate of `covariate`."""
    value: str | None = None
    """Value of the covariate that is held out whole; without it pairs of a value and targets are."""
    validation_fraction: Fraction | None = None
    """Share of the training conditions that validate, at least one unless 0. None: a tenth, and five or a third of a small
    screen. Never taken from the test; the prior that predicts knows them again."""
    column: str | None = None
    """Column of obs for `column`, with values train, validation and test."""
    path: Path | None = None
    """TOML file for `file`, with lists `test`, `validation` and `train`."""
    test: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Test conditions of `named`; the rest trains."""

    @field_validator("kind", mode="before")
    @classmethod
    def _none_is_a_kind(cls, value: Any) -> Any:
        """`--set split.kind=none` reads `none` as no value, which it is for every other option."""
        return "none" if value is None else value

    @staticmethod
    def named(text: str) -> dict[str, str]:
        """The options that a kind without options, `covariate:NAME[=VALUE]`, `FILE.toml` or `obs:COLUMN` stands for.

        `none` keeps nothing for a test.
        """
        if text in ("additive", "holdout", "combinations", "none"):
            return {"kind": text}
        kind, _, rest = text.partition(":")
        if kind == "obs" and rest:
            return {"kind": "column", "column": rest}
        name, sign, value = (part.strip() for part in rest.partition("="))
        if kind == "covariate" and name and bool(sign) == bool(value):
            return {"kind": "covariate", "covariate": name} | ({"value": value} if value else {})
        if text.endswith(".toml"):
            return {"kind": "file", "path": text}
        raise ConfigError(
            f"split '{text}': expected additive, holdout, combinations, covariate:NAME, covariate:NAME=VALUE, none, "
            "FILE.toml or obs:COLUMN"
        )

    @model_validator(mode="after")
    def _sources(self) -> SplitConfig:
        for kind, name in (("column", "column"), ("file", "path"), ("named", "test"), ("covariate", "covariate")):
            if (self.kind == kind) != (getattr(self, name) is not None):
                raise ValueError(f"split.{name} goes with split.kind = '{kind}', and only with it")
        for kind, name in (("holdout", "targets"), ("covariate", "value")):
            if self.kind != kind and getattr(self, name) is not None:
                raise ValueError(f"split.{name} goes with split.kind = '{kind}' only")
        return self


class Config(Section):
    """All options of a fit; `Config.preset(name)` and `Config.load(path)` are the usual ways to one."""

    seed: Annotated[int, Field(ge=0)] = 0
    panel: PanelConfig = PanelConfig()
    graph: GraphConfig = GraphConfig()
    model: ModelConfig = ModelConfig()
    flow: FlowConfig = FlowConfig()
    mmd: MMDConfig = MMDConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    split: SplitConfig = SplitConfig()

    @model_validator(mode="after")
    def _possible(self) -> Config:
        if not self.training.max_steps and self.flow.source != "prior":
            raise ValueError(
                f"training.max_steps 0 needs flow.source 'prior': a flow from '{self.flow.source}' knows nothing before it "
                "is trained"
            )
        if self.sampling.guidance != 1 and not self.training.condition_dropout:
            raise ValueError(
                f"sampling.guidance {self.sampling.guidance:g} needs a model that was trained without some conditions: "
                "set training.condition_dropout, e.g. to 0.1"
            )
        sought = self.flow.pairing_cells
        if sought is not None and sought < self.training.cells_per_condition:
            raise ValueError(
                f"flow.pairing_cells {sought} is below training.cells_per_condition "
                f"{self.training.cells_per_condition}: each cell that the network sees is of a pair; set it to that or more"
            )
        return self

    @property
    def drawn_cells(self) -> int:
        """Cells of each condition that a step draws: those that the network sees, and more where pairs are sought."""
        seen = self.training.cells_per_condition
        if self.flow.pairing == "random":
            return seen
        return max(self.flow.pairing_cells or PAIRING_CELLS, seen)

    @classmethod
    def preset(cls, name: str) -> Config:
        """The preset called `name`: default, instant, paper or tiny."""
        if name not in PRESETS:
            raise ConfigError(f"preset '{name}': expected one of {', '.join(PRESETS)}")
        return cls.model_validate(PRESETS[name])

    @classmethod
    def load(cls, path: str | Path, base: Config | None = None) -> Config:
        """The options of a TOML file, over `base` (the preset `default` when none is given).

        Tables `[data]` and `[screens.NAME]` are checked and left to what reads cells, but for the `weight` of a screen.
        """
        values = read_toml(path)
        DataConfig().updated(table_of(values, path), f"config file {path}, table [{TABLE}]")
        weights = screens_of(path).weights
        values = {key: value for key, value in values.items() if key not in (TABLE, SCREENS)}
        if weights:
            values = merged({"training": {"screen_weights": weights}}, values)
        return (base or cls.preset("default")).updated(values, where=f"config file {path}")

    def updated(self, values: Mapping[str, Any], where: str = "config") -> Config:
        """This config with nested `values` put over it, checked as a whole."""
        return checked(Config, merged(self.model_dump(), values), where)

    def with_settings(self, settings: list[str]) -> Config:
        """This config with `section.key=value` texts put over it; values are read as TOML, else as text."""
        values: dict[str, Any] = {}
        for setting in settings:
            key, sign, text = setting.partition("=")
            if not sign or not key.strip():
                raise ConfigError(f"--set {setting}: expected section.key=value, e.g. training.max_steps=500")
            *parents, leaf = key.strip().split(".")
            inner = values
            for parent in parents:
                inner = inner.setdefault(parent, {})
                if not isinstance(inner, dict):
                    raise ConfigError(f"--set {setting}: '{parent}' was set to a value before; keep one of the two")
            inner[leaf] = _value(text)
        return self.updated(values, where="--set")


def _value(text: str) -> Any:
    """The TOML value of a text, None for `none`, else the text itself."""
    try:
        read = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        read = {}
    value = read["value"] if read.keys() == {"value"} else text.strip()
    return None if value == "none" else value
