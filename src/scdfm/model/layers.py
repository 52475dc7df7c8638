"""The parts that all backbones share: what goes in, what comes out, and the two conditionings of a layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LARGEST_VALUE = 512.0
"""Expression above this is cut before it is encoded."""
SMALLEST_LENGTH2 = 1e-6
"""Added to the squared length of a shift: a condition that moves nothing keeps a logarithm."""


class PairLinear(nn.Linear):
    """Linear([left ; right]) as Linear_left(left) + Linear_right(right): either can be computed once."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(2 * width, out)
        self.width = width

    def left(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch out"]:
        """The left half's share, without the bias."""
        return F.linear(x, self.weight[:, : self.width])

    def right(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch out"]:
        """The right half's share, with the bias."""
        return F.linear(x, self.weight[:, self.width :], self.bias)


class ValueEncoder(nn.Module):
    """Expression (log1p) of each gene → d: Linear, ReLU, Linear, LayerNorm, dropout."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(1, width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Float[Tensor, "B T"]) -> Float[Tensor, "B T d"]:
        """One vector per cell and gene."""
        hidden = self.expand(values.clamp(max=LARGEST_VALUE).unsqueeze(-1)).relu()
        encoded: Tensor = self.dropout(self.norm(self.mix(hidden)))
        return encoded


class Fusion(nn.Module):
    """LN(Linear(GELU(Linear([h_x ; h_c])))) for h_x = values + g, where g and h_c do not change with time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pair = PairLinear(width, width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def prepare(self, gene: Float[Tensor, "T d"], control: Float[Tensor, "B T d"]) -> Float[Tensor, "B T d"]:
        """The share of the gene vectors g and of the encoded control h_c in the first linear map."""
        return self.pair.right(control) + self.pair.left(gene)

    def forward(self, values: Float[Tensor, "B T d"], prepared: Float[Tensor, "B T d"]) -> Float[Tensor, "B T d"]:
        """The state of each gene, given the encoded values of x_t (without g) and `prepare(g, h_c)`."""
        fused: Tensor = self.norm(self.mix(F.gelu(self.pair.left(values) + prepared)))
        return fused


class TimeEmbedding(nn.Module):
    """256 sinusoids of t (cosines first, largest period 10,000), Linear, SiLU, Linear."""

    frequencies: Tensor

    def __init__(self, width: int, n_sinusoids: int = 256, largest_period: float = 10_000.0) -> None:
        super().__init__()
        half = n_sinusoids // 2
        frequencies = torch.exp(-math.log(largest_period) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(n_sinusoids, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Float[Tensor, " B"]) -> Float[Tensor, "B d"]:
        """One vector per cell."""
        angle = t[:, None] * self.frequencies
        embedded: Tensor = self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))
        return embedded


class GeneAdaLN(nn.Module):
    """x + gate · (LN(x) · scale + shift), where (shift, gate, scale) = Linear(SiLU(g)) of the gene alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width)

    def prepare(self, gene: Float[Tensor, "T d"]) -> tuple[Float[Tensor, "T d"], Float[Tensor, "T d"]]:
        """Factor and offset of the normalised x: gate, scale, shift and the norm's weights multiplied out."""
        shift, gate, scale = self.modulation(F.silu(gene)).chunk(3, dim=-1)
        return gate * scale * self.norm.weight, gate * (scale * self.norm.bias + shift)

    def forward(
        self, x: Float[Tensor, "B T d"], factor: Float[Tensor, "T d"], offset: Float[Tensor, "T d"]
    ) -> Float[Tensor, "B T d"]:
        """The modulated x, given `prepare(gene)`."""
        normed = F.layer_norm(x, self.norm.normalized_shape, eps=self.norm.eps)
        return torch.addcmul(x + offset, normed, factor)


class Adapter(nn.Module):
    """LeakyReLU(Linear(dropout(LeakyReLU(Linear([x ; e_p]))))): the perturbation enters; no residual."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.pair = PairLinear(width, width)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T d"], prepared: Float[Tensor, "B 1 d"]) -> Float[Tensor, "B T d"]:
        """The adapted x, given `pair.right(e_p)` of each cell's condition."""
        hidden = F.leaky_relu(self.pair.left(x) + prepared, inplace=True)
        return F.leaky_relu(self.mix(self.dropout(hidden)))


class Response(nn.Module):
    """How far each cell takes part in the response that is expected of it: one number a cell, times each gene's shift.

    A mean does not tell whether all cells answer, or half of them twice as much. The number is read from the state of
    the genes, the time, and how far x_t lies along the shift. It is 0 before training.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(2 * width + 2, width)
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)

    def forward(
        self,
        state: Float[Tensor, "B T d"],
        time: Float[Tensor, "B d"],
        x_t: Float[Tensor, "B T"],
        shift: Float[Tensor, "B T"],
    ) -> Float[Tensor, "B T"]:
        """The velocity along the shift."""
        length2 = shift.square().sum(-1, keepdim=True) + SMALLEST_LENGTH2
        along = (x_t * shift).sum(-1, keepdim=True) / length2.sqrt()
        read = torch.cat([state.mean(-2), time, along / 2, length2.log() / 4], dim=-1)
        strength = self.out(F.gelu(self.mix(F.gelu(self.expand(read)))))
        moved: Tensor = strength * shift
        return moved


class Decoder(nn.Module):
    """[x ; e_p] → velocity of each gene: 2d → d → d → 1 with LeakyReLU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pair = PairLinear(width, width)
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Float[Tensor, "B T d"], prepared: Float[Tensor, "B 1 d"]) -> Float[Tensor, "B T"]:
        """The velocity, given `pair.right(e_p)` of each cell's condition."""
        hidden = F.leaky_relu(self.pair.left(x) + prepared, inplace=True)
        hidden = F.leaky_relu(self.mix(hidden))
        velocity: Tensor = self.out(hidden)
        return velocity.squeeze(-1)
