"""Gene identities → vectors, through the co-expression graph.

The result depends on the ids alone, so a batch, or a sampler's whole solve, needs it once, not once per cell.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scdfm.errors import ConfigError
from scdfm.model.attention import merge_heads, split_heads


class GeneEncoder(nn.Module):
    """One pre-norm cross-attention layer from the asked genes to all V tokens, masked by the graph."""

    graph: Tensor | None

    def __init__(
        self, n_tokens: int, width: int, heads: int, dropout: float, graph: Bool[Tensor, "V V"] | None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.table = nn.Embedding(n_tokens, width)
        self.table_norm = nn.LayerNorm(width)
        self.query_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)
        # The graph is data, saved beside the weights and not among them.
        self.register_buffer("graph", None if graph is None else _checked(graph, n_tokens), persistent=False)

    def forward(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """One vector per id: e + attention(e → all tokens the graph allows), then e + feed-forward."""
        tokens = self.table_norm(self.table.weight)
        encoded: Tensor = tokens.index_select(0, ids)
        encoded = encoded + self.dropout(self._attend(self.query_norm(encoded), tokens, ids))
        fed: Tensor = self.dropout(self.feed(self.feed_norm(encoded)))
        return encoded + fed

    def _attend(self, query: Tensor, tokens: Tensor, ids: Tensor) -> Tensor:
        width = query.shape[-1]
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        (q,) = split_heads(F.linear(query, weight[:width], bias[:width])[None], 1, self.heads)
        k, v = split_heads(F.linear(tokens, weight[width:], bias[width:])[None], 2, self.heads)
        mask = None if self.graph is None else self.graph.index_select(0, ids)[None, None]
        drop = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
        out: Tensor = self.out(merge_heads(mixed)[0])
        return out


class DrugTable(nn.Module):
    """Perturbation identities → vectors: a learned table followed by LayerNorm."""

    def __init__(self, n_tokens: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(n_tokens, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """One vector per id."""
        encoded: Tensor = self.norm(self.table(ids))
        return encoded


def _checked(graph: Tensor, n_tokens: int) -> Tensor:
    if graph.shape != (n_tokens, n_tokens):
        raise ConfigError(
            f"graph: expected [{n_tokens}, {n_tokens}], one row per token, found {list(graph.shape)}; "
            "build it over the same vocabulary"
        )
    lonely = torch.nonzero(~graph.any(dim=1)).flatten()
    if len(lonely):
        raise ConfigError(
            f"graph: token {int(lonely[0])} may attend to nothing (True means may attend); "
            "every token needs at least itself"
        )
    return graph
