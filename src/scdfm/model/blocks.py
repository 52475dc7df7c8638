"""The blocks of the backbones: all read the state y, the time and the encoded control h_c.

Each block has `project(control)`, what h_c contributes (constant over solver time), and `forward(y, time,
projected)`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from scdfm.config import ModelConfig
from scdfm.model.attention import DifferentialAttention, InducedAttention, Projections, merge_heads, split_heads


class TimeModulation(nn.Module):
    """Six vectors (shift₁ scale₁ gate₁ shift₂ scale₂ gate₂) = Linear(SiLU(time)), each [B, 1, d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, time: Float[Tensor, "B d"]) -> tuple[Tensor, ...]:
        """The six vectors of each cell."""
        six: Tensor = self.linear(F.silu(time))
        return six.unsqueeze(1).chunk(6, dim=-1)


def modulated(
    y: Float[Tensor, "B T d"], shift: Float[Tensor, "B 1 d"], scale: Float[Tensor, "B 1 d"]
) -> Float[Tensor, "B T d"]:
    """LN(y)·(1 + scale) + shift, LN without weights, eps 1e-6."""
    return torch.addcmul(shift, F.layer_norm(y, y.shape[-1:], eps=1e-6), 1 + scale)


def feed_forward(width: int, approximate: str) -> nn.Sequential:
    """d → 4d → d with GELU."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate=approximate), nn.Linear(4 * width, width))


class DifferentialBlock(nn.Module):
    """y + gate₁·attention(z, context), then y + gate₂·MLP, both modulated by time.

    The context of kind "self" is the block's own input y, that of "cross" the encoded control h_c. With `latents`
    the maps of attention pass through as many inducing tokens (`InducedAttention`).
    """

    def __init__(
        self, width: int, heads: int, layer: int, kind: str, attention: str, latents: int | None = None
    ) -> None:
        super().__init__()
        self.kind = kind
        self.modulation = TimeModulation(width)
        self.attention = (
            DifferentialAttention(width, heads, layer, kind, attention)
            if latents is None
            else InducedAttention(width, heads, layer, kind, attention, latents)
        )
        self.mlp = feed_forward(width, approximate="tanh")

    def project(self, control: Float[Tensor, "B T d"]) -> dict[str, Tensor]:
        """What h_c contributes: nothing to "self", queries and keys of the second map to "cross"."""
        return self.attention.project(control) if self.kind == "cross" else {}

    def forward(
        self, y: Float[Tensor, "B T d"], time: Float[Tensor, "B d"], projected: dict[str, Tensor]
    ) -> Float[Tensor, "B T d"]:
        """The new y, given `project(control)`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time)
        context = projected if self.kind == "cross" else self.attention.project(y)
        y = torch.addcmul(y, gate1, self.attention(modulated(y, shift1, scale1), context))
        return torch.addcmul(y, gate2, self.mlp(modulated(y, shift2, scale2)))


class Attention(nn.Module):
    """Multi-head softmax attention whose inputs pass two linear maps each, multiplied into one beforehand.

    The published block puts a linear map before each input of torch's MultiheadAttention, which has one of
    its own; their product is d × d, so one pass over the cells does for both.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.outer = Projections(width, 3, bias=True)
        self.inner = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def project(self, x: Float[Tensor, "B T d"], roles: str) -> tuple[Tensor, ...]:
        """The projections of `x` called `roles`, a subset of "qkv", each [B, H, T, d/H]."""
        width = x.shape[-1]
        places = ["qkv".index(role) for role in roles]
        inner, outer = (maps.weight.view(3, width, width)[places] for maps in (self.inner, self.outer))
        inner_bias, outer_bias = (maps.bias.view(3, width, 1)[places] for maps in (self.inner, self.outer))
        weight, bias = (inner @ outer).flatten(0, 1), (inner @ outer_bias + inner_bias).flatten()
        return split_heads(F.linear(x, weight, bias), len(roles), self.heads)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "B T d"]:
        """Attention of projected queries, keys and values."""
        mixed: Tensor = self.out(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return mixed


class PerceiverBlock(nn.Module):
    """Attention to the control, then self-attention and an MLP modulated by time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.modulation = TimeModulation(width)
        self.cross_norm = nn.LayerNorm(width)
        self.cross = Attention(width, heads)
        self.self_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = feed_forward(width, approximate="none")

    def project(self, control: Float[Tensor, "B T d"]) -> dict[str, Tensor]:
        """Keys and values of h_c."""
        key, value = self.cross.project(control, "kv")
        return {"k": key, "v": value}

    def forward(
        self, y: Float[Tensor, "B T d"], time: Float[Tensor, "B d"], projected: dict[str, Tensor]
    ) -> Float[Tensor, "B T d"]:
        """The new y, given `project(control)`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time)
        (query,) = self.cross.project(self.cross_norm(y), "q")
        y = y + self.cross(query, projected["k"], projected["v"])
        # Here the modulated y replaces y: the published block has no residual around this norm.
        y = torch.addcmul(shift1, self.self_norm(y), 1 + scale1)
        y = torch.addcmul(y, gate1, self.attention(*self.attention.project(y, "qkv")))
        return torch.addcmul(y, gate2, self.mlp(torch.addcmul(shift2, self.mlp_norm(y), 1 + scale2)))


Block = DifferentialBlock | PerceiverBlock


def make_blocks(config: ModelConfig, layer: int) -> nn.ModuleList:
    """The blocks of one layer of the backbone, in order."""
    width, heads = config.width, config.heads
    if config.backbone == "perceiver":
        return nn.ModuleList([PerceiverBlock(width, heads)])
    kinds = ("cross",) if config.backbone == "differential_transformer" else ("self", "cross")
    return nn.ModuleList(
        DifferentialBlock(width, heads, layer, kind, config.attention, config.inducing_tokens) for kind in kinds
    )
