"""Differential attention against its maps written out."""

from __future__ import annotations

import math

import pytest
import torch

from scdfm.model.attention import DifferentialAttention, InducedAttention, merge_heads, split_heads


def test_heads_split_and_merge() -> None:
    x = torch.arange(2 * 3 * 24.0).view(2, 3, 24)
    first, second = split_heads(x, 2, heads=3)
    assert first.shape == (2, 3, 3, 4)
    assert torch.equal(merge_heads(first), x[..., :12])
    assert torch.equal(merge_heads(second), x[..., 12:])


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_softmax_is_differential_attention_with_no_second_map(kind: str) -> None:
    """λ = 0 when exp(λ_q2·λ_k2) = 1 + λ_init and λ_q1·λ_k1 = 0; of "cross", V and Q₁ are z's either way."""
    torch.manual_seed(0)
    both = DifferentialAttention(12, 3, layer=2, kind=kind, attention="differential")
    first = DifferentialAttention(12, 3, layer=2, kind=kind, attention="softmax")
    assert both.lambdas is not None
    assert first.lambdas is None
    with torch.no_grad():
        both.lambdas.zero_()
        both.lambdas[2:] = math.sqrt(math.log(1 + float(both.lambda_init)) / 4)
        weights = dict(zip(both.z_roles, both.from_z.weight.chunk(len(both.z_roles)), strict=True))
        weights |= dict(zip(both.context_roles, both.from_context.weight.chunk(2), strict=True))
        first.from_z.weight.copy_(torch.cat([weights[role] for role in first.z_roles]))
        first.from_context.weight.copy_(torch.cat([weights[role] for role in first.context_roles]))
        first.out.weight.copy_(both.out.weight)
    z = torch.randn(2, 5, 12)
    context = torch.randn(2, 5, 12) if kind == "self" else z
    assert both.strength().abs() < 1e-6
    torch.testing.assert_close(first(z, first.project(context)), both(z, both.project(context)))


def test_identical_maps_with_strength_one_cancel() -> None:
    """A₁ = A₂ and λ = 1 leave nothing: the output is 0 to rounding, whatever V is."""
    torch.manual_seed(0)
    attention = DifferentialAttention(8, 2, layer=0, kind="self", attention="differential")
    assert attention.lambdas is not None
    with torch.no_grad():
        attention.lambdas.zero_()
        # exp(0) − exp(λ_q2·λ_k2) + 0.2 = 1  ⇔  exp(λ_q2·λ_k2) = 0.2
        attention.lambdas[2] = math.sqrt(-math.log(0.2) / 4)
        attention.lambdas[3] = -math.sqrt(-math.log(0.2) / 4)
        q, v = attention.from_z.weight[:8], attention.from_z.weight[16:]
        attention.from_z.weight.copy_(torch.cat([q, q, v]))
        k = attention.from_context.weight[:8]
        attention.from_context.weight.copy_(torch.cat([k, k]))
    y = torch.randn(2, 5, 8)
    torch.testing.assert_close(attention.strength(), torch.tensor(1.0))
    assert attention(y, attention.project(y)).abs().max() < 1e-3


def test_first_layer_starts_at_a_fifth() -> None:
    for layer, expected in ((0, 0.2), (1, 0.8 - 0.6 * math.exp(-0.3)), (100, 0.8)):
        attention = DifferentialAttention(8, 2, layer, "self", "softmax")
        assert float(attention.lambda_init) == pytest.approx(expected)
        assert float(attention.one_minus_lambda_init) == pytest.approx(1 - expected)


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_maps_through_inducing_tokens_equal_their_products_written_out(kind: str) -> None:
    """A_i = softmax(Q (I + PK)ᵀ) · P with P = softmax(I Kᵀ); its rows sum to 1, whatever the tokens are."""
    torch.manual_seed(0)
    attention = InducedAttention(12, 3, layer=1, kind=kind, attention="differential", latents=5)
    z, context = torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    z_parts = split_heads(attention.from_z(z), len(attention.z_roles), 3)
    parts = attention.project(context) | dict(zip(attention.z_roles, z_parts, strict=True))
    maps = []
    for index, inducing in enumerate(attention.inducing):
        q, k = parts[f"q{index + 1}"], parts[f"k{index + 1}"]
        read = torch.softmax(inducing @ k.mT / 2, dim=-1)
        assert read.shape == (2, 3, 5, 7)
        maps.append(torch.softmax(q @ (inducing + read @ k).mT / 2, dim=-1) @ read)
        torch.testing.assert_close(maps[-1].sum(-1), torch.ones(2, 3, 7))
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)
    mixed = (maps[0] - attention.strength() * maps[1]) @ parts["v"]
    normed = mixed * torch.rsqrt(mixed.square().mean(-1, keepdim=True) + 1e-5) * attention.scale
    expected = attention.out(merge_heads(normed * attention.one_minus_lambda_init))
    torch.testing.assert_close(attention(z, attention.project(context)), expected)
