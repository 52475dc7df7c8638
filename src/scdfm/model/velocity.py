"""The velocity field v(x_t, t | control, genes, perturbation), PAD-Transformer and the two other backbones.

Everything that does not depend on (x_t, t) is a `Context`, computed once: a training step uses it once, a
solver at every step of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scdfm.condition_tensors import ConditionShape, ConditionTensors, as_conditions
from scdfm.config import ModelConfig
from scdfm.model.attention import Projections
from scdfm.model.blocks import Block, make_blocks
from scdfm.model.conditioning import Conditioning
from scdfm.model.gene_encoder import DrugTable, GeneEncoder
from scdfm.model.layers import Adapter, Decoder, Fusion, GeneAdaLN, Response, TimeEmbedding, ValueEncoder

PAD, CONTROL = 0, 3
"""Ids of the empty perturbation slot and of the control token."""


@dataclass(frozen=True)
class LayerContext:
    """What one layer needs of genes, perturbation and control."""

    factor: Float[Tensor, "T d"]
    offset: Float[Tensor, "T d"]
    perturbation: Float[Tensor, "B 1 d"]
    control: tuple[dict[str, Tensor], ...]
    """Projections of h_c, one entry per block."""


@dataclass(frozen=True)
class Context:
    """Everything of a batch that x_t and t do not change."""

    fusion: Float[Tensor, "B T d"]
    layers: tuple[LayerContext, ...]
    decoder: Float[Tensor, "B 1 d"]
    shift: Float[Tensor, "B T"] | None = None
    """The response that is expected, in units of x_t; None where the flow starts at noise."""


class Layer(nn.Module):
    """Gene adaLN, perturbation adapter, then the blocks of the backbone."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.gene = GeneAdaLN(config.width)
        self.adapter = Adapter(config.width, config.dropout)
        self.blocks = make_blocks(config, index)

    def prepare(self, gene: Tensor, control: Tensor, perturbation: Tensor, condition: Tensor) -> LayerContext:
        """The constant part: `gene` [T, d], `control` h_c [B, T, d], `perturbation` e_p [C, d]."""
        factor, offset = self.gene.prepare(gene)
        return LayerContext(
            factor=factor,
            offset=offset,
            perturbation=self.adapter.pair.right(perturbation).index_select(0, condition).unsqueeze(1),
            control=tuple(block.project(control) for block in cast(Iterable[Block], self.blocks)),
        )

    def forward(
        self, x: Float[Tensor, "B T d"], time: Float[Tensor, "B d"], context: LayerContext
    ) -> Float[Tensor, "B T d"]:
        """The next state of each gene."""
        x = self.adapter(self.gene(x, context.factor, context.offset), context.perturbation)
        for block, projected in zip(self.blocks, context.control, strict=True):
            x = block(x, time, projected)
        return x


class VelocityField(nn.Module):
    """dx/dt of each gene of each cell; expression is log1p.

    `graph` [V, V] is True where a token may attend in the gene encoder; None lets all attend to all.
    `n_tokens` is V. With `config.perturbation` "drugs" the perturbation ids index a table of their own, of
    `n_perturbations` rows (V unless given). Slots holding `pad` do not count in the mean over slots; None
    counts every slot. `shape` says what conditions hold beside their targets. Where the flow starts from `expected`
    means, the network reads them beside the control, and `shift`, the response in units of x_t. It is then a correction
    to a known velocity: 0 before training.
    Raises ConfigError for a graph that does not fit.
    """

    def __init__(
        self,
        config: ModelConfig,
        graph: Bool[Tensor, "V V"] | None,
        n_tokens: int,
        n_perturbations: int | None = None,
        pad: int | None = PAD,
        shape: ConditionShape | None = None,
        expects: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.pad = pad
        self.checkpointing = False  # on: gradients compute a layer's inner values again instead of keeping them
        width, dropout = config.width, config.dropout
        self.gene_encoder = GeneEncoder(n_tokens, width, config.gene_heads, dropout, graph)
        drugs = config.perturbation == "drugs"
        self.drug_table = DrugTable(n_perturbations or n_tokens, width) if drugs else None
        self.value_encoder = ValueEncoder(width, dropout)
        self.control_encoder = ValueEncoder(width, dropout)
        self.expected_encoder = ValueEncoder(width, dropout) if expects else None
        self.fusion = Fusion(width)
        self.time = TimeEmbedding(width)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.layers))
        self.decoder = Decoder(width)
        self.conditioning = Conditioning(width, config.pooling, shape or ConditionShape())
        self.response = Response(width) if expects else None
        self.apply(_initialise)
        for last in self._corrections():
            nn.init.zeros_(last.weight)

    def forward(
        self,
        *,
        x_t: Float[Tensor, "B T"],
        t: Float[Tensor, " B"],
        control: Float[Tensor, "B T"],
        genes: Int[Tensor, " T"],
        perturbation: Int[Tensor, "C P"] | ConditionTensors,
        condition: Int[Tensor, " B"],
        expected: Float[Tensor, "C T"] | None = None,
        shift: Float[Tensor, "C T"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """The velocity at x_t; row b of the batch belongs to row condition[b] of `perturbation`, `expected` and `shift`.

        `perturbation` is token ids, or conditions with all that they hold.
        """
        return self.velocity(x_t, t, self.context(control, genes, perturbation, condition, expected, shift))

    def context(
        self,
        control: Float[Tensor, "B T"],
        genes: Int[Tensor, " T"],
        perturbation: Int[Tensor, "C P"] | ConditionTensors,
        condition: Int[Tensor, " B"],
        expected: Float[Tensor, "C T"] | None = None,
        shift: Float[Tensor, "C T"] | None = None,
    ) -> Context:
        """All that x_t and t do not change; gradients flow through it.

        Where the flow starts from the prior: `expected`, its means, and `shift`, how far they move x_t from control.
        """
        gene, effect = self._encode(genes.long(), as_conditions(perturbation))
        condition = condition.long()
        encoded = self.control_encoder(control.to(gene.dtype)) + gene
        if self.expected_encoder is not None:
            assert expected is not None, "this field was built to read expected means"
            assert shift is not None, "this field was built to read the expected shift"
            shift = shift.to(gene.dtype).index_select(0, condition)
            encoded = encoded + self.expected_encoder(expected.to(gene.dtype)).index_select(0, condition)
        return Context(
            fusion=self.fusion.prepare(gene, encoded),
            layers=tuple(
                layer.prepare(gene, encoded, effect, condition) for layer in cast(Iterable[Layer], self.layers)
            ),
            decoder=self.decoder.pair.right(effect).index_select(0, condition).unsqueeze(1),
            shift=shift,
        )

    def velocity(self, x_t: Float[Tensor, "B T"], t: Float[Tensor, " B"], context: Context) -> Float[Tensor, "B T"]:
        """The velocity at (x_t, t), given `context(...)` of the same cells and genes."""
        dtype = self.time.frequencies.dtype
        x = self.fusion(self.value_encoder(x_t.to(dtype)), context.fusion)
        time = self.time(t.to(dtype))
        for layer, constants in zip(self.layers, context.layers, strict=True):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, time, constants, use_reentrant=False)
            else:
                x = layer(x, time, constants)
        velocity: Tensor = self.decoder(x, context.decoder)
        if self.response is not None:
            velocity = velocity + self.response(x, time, x_t.to(dtype), context.shift)
        return velocity

    @property
    def is_zero(self) -> bool:
        """Whether this is a correction of before training, which is 0 everywhere."""
        corrections = self._corrections()
        return bool(corrections) and not any(last.weight.any() or last.bias.any() for last in corrections)

    def _corrections(self) -> list[nn.Linear]:
        """The last linear maps of a correction; none where the network is the whole velocity."""
        return [] if self.response is None else [self.decoder.out, self.response.out]

    def bytes_per_cell(self, n_genes: int) -> int:
        """Memory that one cell of `n_genes` takes while sampling: its context and the widest layer's work."""
        vectors = 16 + 2 * self.config.layers
        return 4 * n_genes * self.config.width * vectors

    def _encode(self, genes: Tensor, conditions: ConditionTensors) -> tuple[Tensor, Tensor]:
        """Gene vectors [T, d] and condition vectors e_p [C, d]; one pass of the gene encoder for both."""
        tokens = conditions.tokens.long()
        ids = tokens.flatten()
        if self.conditioning.reads_control:
            ids = torch.cat([ids, ids.new_tensor([CONTROL])])
        if self.drug_table is None:
            gene, own = self.gene_encoder(torch.cat([genes, ids])).split([len(genes), len(ids)])
        else:
            gene, own = self.gene_encoder(genes), self.drug_table(ids)
        slots = own[: tokens.numel()].unflatten(0, tokens.shape)
        control = own[-1] if self.conditioning.reads_control else None
        present = None if self.pad is None else tokens != self.pad
        return gene, self.conditioning(slots, control, conditions, present, (tokens != PAD) & (tokens != CONTROL))


def _initialise(module: nn.Module) -> None:
    """Xavier uniform on every linear map, zero biases; `Projections` initialise their maps one by one."""
    if isinstance(module, nn.Linear) and not isinstance(module, Projections):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
