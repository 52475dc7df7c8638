"""Differential attention without its maps: two fused calls instead of one matrix of T × T per head.

(A₁ − λA₂)V = A₁V − λ·A₂V, so each softmax map goes through torch's fused kernel and none is kept.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ROLES: dict[tuple[str, str], tuple[str, str]] = {
    ("self", "differential"): ("q1 q2 v", "k1 k2"),
    ("cross", "differential"): ("q1 k1 v", "q2 k2"),
    ("self", "softmax"): ("q1 v", "k1"),
    ("cross", "softmax"): ("q1 v", "k1"),
}
"""What is read from z and what from the context, for each kind of block and of attention."""


def split_heads(x: Float[Tensor, "B T nd"], n: int, heads: int) -> tuple[Tensor, ...]:
    """The `n` projections lying side by side in `x`, each as [B, H, T, d/H] (views)."""
    cells, genes = x.shape[:2]
    return x.view(cells, genes, n, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(x: Float[Tensor, "B H T dh"]) -> Float[Tensor, "B T d"]:
    """The inverse of `split_heads` for one projection."""
    return x.transpose(1, 2).flatten(2)


class Projections(nn.Linear):
    """`n` linear maps of one input, d → d each, as one product; initialised one by one."""

    def __init__(self, width: int, n: int, bias: bool = False) -> None:
        self.n = n
        super().__init__(width, n * width, bias=bias)

    def reset_parameters(self) -> None:
        """Xavier uniform on each d × d map, zero biases."""
        for weight in self.weight.chunk(self.n):
            nn.init.xavier_uniform_(weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class DifferentialAttention(nn.Module):
    """softmax(Q₁K₁ᵀ/√dₕ) − λ·softmax(Q₂K₂ᵀ/√dₕ) applied to V, then RMSNorm per head and a linear map.

    `kind` "self" reads its keys from the context; "cross" compares z with itself in the first map and
    the context with itself in the second. `attention` "softmax" leaves the second map out, all else equal;
    the keys of "cross" then come from the context, which would otherwise be unread.
    """

    lambda_init: Tensor
    one_minus_lambda_init: Tensor

    def __init__(self, width: int, heads: int, layer: int, kind: str, attention: str = "differential") -> None:
        super().__init__()
        self.heads = heads
        self.z_roles, self.context_roles = (roles.split() for roles in ROLES[kind, attention])
        self.from_z = Projections(width, len(self.z_roles))
        self.from_context = Projections(width, len(self.context_roles))
        self.out = Projections(width, 1)
        self.scale = nn.Parameter(torch.ones(width // heads))
        # Tensors: as numbers of Python they would have layers compiled anew. Two, each rounded once from double precision.
        lambda_init = 0.8 - 0.6 * math.exp(-0.3 * layer)
        self.register_buffer("lambda_init", torch.tensor(lambda_init), persistent=False)
        self.register_buffer("one_minus_lambda_init", torch.tensor(1 - lambda_init), persistent=False)
        # λ_q1, λ_k1, λ_q2, λ_k2
        self.lambdas = nn.Parameter(0.1 * torch.randn(4, width // heads)) if attention == "differential" else None

    def project(self, context: Float[Tensor, "B T d"]) -> dict[str, Tensor]:
        """What the context contributes, by role, each [B, H, T, d/H]; constant while the context is."""
        parts = split_heads(self.from_context(context), len(self.context_roles), self.heads)
        return dict(zip(self.context_roles, parts, strict=True))

    def strength(self) -> Float[Tensor, ""]:
        """λ, the weight of the second map."""
        assert self.lambdas is not None
        q1, k1, q2, k2 = self.lambdas
        # Sums of products, not products of vectors: autocast would compute those in bfloat16.
        return torch.exp((q1 * k1).sum()) - torch.exp((q2 * k2).sum()) + self.lambda_init

    def mapped(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "B H T dh"]:
        """One softmax map, the first (0) or the second (1), applied to the values."""
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, z: Float[Tensor, "B T d"], context: dict[str, Tensor]) -> Float[Tensor, "B T d"]:
        """Attention of `z` given `project(context)`."""
        parts = split_heads(self.from_z(z), len(self.z_roles), self.heads)
        by_role = context | dict(zip(self.z_roles, parts, strict=True))
        value = by_role["v"]
        mixed = self.mapped(0, by_role["q1"], by_role["k1"], value)
        if self.lambdas is not None:
            second = self.mapped(1, by_role["q2"], by_role["k2"], value)
            mixed = torch.addcmul(mixed, second, self.strength().to(mixed.dtype), value=-1)
        scale = (self.scale * self.one_minus_lambda_init).to(mixed.dtype)
        normed = F.rms_norm(mixed.transpose(1, 2), scale.shape, scale, eps=1e-5)
        out: Tensor = self.out(normed.flatten(2))
        return out


class InducedAttention(DifferentialAttention):
    """Differential attention whose maps pass through m inducing tokens: cost T·m instead of T².

    Each softmax map of T × T becomes a product of two, genes to tokens (T × m) and tokens to genes (m × T), as in
    the induced set attention of the Set Transformer (Lee et al. 2019, eq. 9): the tokens I read the genes' values,
    P = softmax(I Kᵀ/√dₕ), and are found by the genes under the addresses I + P K. Rows still sum to 1, so the
    difference of the maps, λ and the norm mean what they mean in the published attention.
    """

    def __init__(self, width: int, heads: int, layer: int, kind: str, attention: str, latents: int) -> None:
        super().__init__(width, heads, layer, kind, attention)
        n_maps = 1 if self.lambdas is None else 2
        self.inducing = nn.Parameter(torch.randn(n_maps, heads, latents, width // heads))

    def mapped(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "B H T dh"]:
        """One product of maps applied to the values."""
        inducing = self.inducing[index].to(k.dtype).expand(len(k), -1, -1, -1)
        addresses = inducing + F.scaled_dot_product_attention(inducing, k, k)
        values = F.scaled_dot_product_attention(inducing, k, v)
        return F.scaled_dot_product_attention(q, addresses, values)
