"""The plain formulation of the velocity field and of MMD²: the oracle of the parity tests and of the benchmark.

Every equation as it reads in the method's description, under the official parameter names: the gene encoder
once per cell, attention maps kept as T × T matrices, linear maps of concatenated inputs, pairwise differences.
`state` maps official names to tensors; shapes: B cells, T genes, C conditions, P slots, V tokens, d width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GENE_HEADS = 8


class Parameters:
    """Official parameters below a prefix, and the few maps they define."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        self.state, self.prefix = state, prefix

    def __truediv__(self, name: str) -> Parameters:
        return Parameters(self.state, f"{self.prefix}{name}.")

    def __getitem__(self, name: str) -> Tensor:
        return self.state[self.prefix + name]

    def linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self["weight"], self.state.get(f"{self.prefix}bias"))

    def norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self["weight"], self["bias"], eps=1e-5)


def plain_norm(x: Tensor) -> Tensor:
    """LayerNorm without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def velocity(
    state: Mapping[str, Tensor],
    graph_masked: Tensor | None,
    *,
    x_t: Tensor,
    t: Tensor,
    control: Tensor,
    genes: Tensor,
    perturbation: Tensor,
    condition: Tensor,
    n_heads: int,
    n_layers: int,
    backbone: str,
    kind: str = "genes",
    dropout: float = 0.0,
) -> Tensor:
    """The velocity [B, T]; `graph_masked` True = may not attend, `dropout` the rate that is live."""
    p = Parameters(state)
    drop = Dropout(dropout)
    ids = genes.expand(len(x_t), -1)
    g = encode_genes(p / "encoder", graph_masked, ids, drop)
    h_x = encode_values(p / "value_encoder_1", x_t, drop) + g
    h_c = encode_values(p / "value_encoder_2", control, drop) + g
    x = (p / "fusion_layer.0").linear(torch.cat([h_x, h_c], dim=-1))
    x = (p / "fusion_layer.3").norm((p / "fusion_layer.2").linear(F.gelu(x)))
    time = (p / "t_embedder.mlp.2").linear(F.silu((p / "t_embedder.mlp.0").linear(sinusoids(t))))
    slots = perturbation[condition]
    if kind == "genes":
        effect = encode_genes(p / "encoder", graph_masked, slots, drop).mean(dim=1)
    else:
        table = p / "perturbation_embedder"
        effect = (table / "enc_norm").norm(table["embedding.weight"][slots]).mean(dim=1)
    effect = effect.unsqueeze(1).expand_as(x)
    for i in range(n_layers):
        x = gene_adaln(p / f"gene_adaLN.{i}", x, g)
        adapter = p / f"adapter_layer.{i}"
        hidden = F.leaky_relu((adapter / "0").linear(torch.cat([x, effect], dim=-1)))
        x = F.leaky_relu((adapter / "3").linear(drop(hidden)))
        x = apply_blocks(p / f"blocks.{i}", x, h_c, time, n_heads, i, backbone)
    head = p / "final_layer.fc"
    x = F.leaky_relu((head / "0").linear(torch.cat([x, effect], dim=-1)))
    return (head / "4").linear(F.leaky_relu((head / "2").linear(x))).squeeze(-1)


class Dropout:
    """Dropout at a fixed rate, drawn from torch's global generator."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.rate) if self.rate else x


def sinusoids(t: Tensor) -> Tensor:
    """cos and sin of t at 128 frequencies from 1 down to 1/10,000 (exclusive)."""
    angle = t[:, None] * t.new_tensor([10_000 ** (-k / 128) for k in range(128)])
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


def encode_genes(p: Parameters, graph_masked: Tensor | None, ids: Tensor, drop: Dropout) -> Tensor:
    """Gene vectors [B, n, d] of `ids` [B, n], one cross-attention over all V tokens for each cell."""
    every = (p / "enc_norm").norm(p["embedding.weight"]).expand(len(ids), -1, -1)
    e = torch.gather(every, 1, ids.unsqueeze(-1).expand(-1, -1, every.shape[-1]))
    layer = p / "perturbation_interaction"
    allowed = None if graph_masked is None else ~graph_masked[ids].unsqueeze(1)
    attended = multihead(layer / "cross_attn", (layer / "norm1").norm(e), every, every, GENE_HEADS, allowed, drop)
    e = e + drop(attended)
    hidden = drop(F.gelu((layer / "linear1").linear((layer / "norm2").norm(e))))
    return e + drop((layer / "linear2").linear(hidden))


def encode_values(p: Parameters, values: Tensor, drop: Dropout) -> Tensor:
    """Vectors [B, T, d] of expression values [B, T]."""
    hidden = torch.relu((p / "linear1").linear(values.clamp(max=512).unsqueeze(-1)))
    return drop((p / "norm").norm((p / "linear2").linear(hidden)))


def gene_adaln(p: Parameters, x: Tensor, g: Tensor) -> Tensor:
    """x + gate · (LN(x) · scale + shift)."""
    shift, gate, scale = (p / "adaLN_modulation.1").linear(F.silu(g)).chunk(3, dim=-1)
    return x + gate * ((p / "norm").norm(x) * scale + shift)


def apply_blocks(
    p: Parameters, x: Tensor, h_c: Tensor, time: Tensor, n_heads: int, layer: int, backbone: str
) -> Tensor:
    """The blocks of one layer of `backbone`."""
    if backbone == "perceiver":
        return perceiver_block(p, x, h_c, time, n_heads)
    if backbone == "differential_perceiver":
        x = differential_block(p / "diff_self_attn", x, None, time, n_heads, layer)
        return differential_block(p / "diff_cross_attn", x, h_c, time, n_heads, layer)
    return differential_block(p, x, h_c, time, n_heads, layer)


def differential_block(p: Parameters, y: Tensor, h_c: Tensor | None, time: Tensor, n_heads: int, layer: int) -> Tensor:
    """The block "self" (h_c None: the context is y itself) or "cross"."""
    six = (p / "adaLN_modulation.1").linear(F.silu(time)).unsqueeze(1).chunk(6, dim=-1)
    shift1, scale1, gate1, shift2, scale2, gate2 = six
    z = plain_norm(y) * (1 + scale1) + shift1
    q1, k1, q2, k2 = (z, y, z, y) if h_c is None else (z, z, h_c, h_c)
    y = y + gate1 * differential_attention(p / "attn", q1, k1, q2, k2, z, n_heads, layer)
    z = plain_norm(y) * (1 + scale2) + shift2
    return y + gate2 * (p / "mlp.fc2").linear(F.gelu((p / "mlp.fc1").linear(z), approximate="tanh"))


def differential_attention(
    p: Parameters, q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, n_heads: int, layer: int
) -> Tensor:
    """Out(RMSNorm((softmax₁ − λ·softmax₂) V) · (1 − λ_init))."""
    first = attention_map((p / "q_proj_1").linear(q1), (p / "k_proj_1").linear(k1), n_heads)
    second = attention_map((p / "q_proj_2").linear(q2), (p / "k_proj_2").linear(k2), n_heads)
    start = 0.8 - 0.6 * math.exp(-0.3 * layer)
    strength = (
        torch.exp((p["lambda_q1"] * p["lambda_k1"]).sum()) - torch.exp((p["lambda_q2"] * p["lambda_k2"]).sum()) + start
    )
    mixed = (first - strength * second) @ in_heads((p / "v_proj").linear(v), n_heads)
    normed = mixed * torch.rsqrt(mixed.square().mean(-1, keepdim=True) + 1e-5) * p["subln.weight"]
    return (p / "out_proj").linear((normed * (1 - start)).transpose(1, 2).flatten(2))


def perceiver_block(p: Parameters, y: Tensor, h_c: Tensor, time: Tensor, n_heads: int) -> Tensor:
    """Attention to the control, self-attention, MLP; exact GELU, norms with weights."""
    six = (p / "adaLN_modulation.1").linear(F.silu(time)).unsqueeze(1).chunk(6, dim=-1)
    shift1, scale1, gate1, shift2, scale2, gate2 = six
    none = Dropout(0.0)
    query, key, value = (p / "q").linear((p / "ln_z1").norm(y)), (p / "k").linear(h_c), (p / "v").linear(h_c)
    y = y + multihead(p / "cross", query, key, value, n_heads, None, none)
    y = (p / "ln_z2").norm(y) * (1 + scale1) + shift1
    query, key, value = ((p / name).linear(y) for name in ("q2", "k2", "v2"))
    y = y + gate1 * multihead(p / "self_attn", query, key, value, n_heads, None, none)
    z = (p / "ln_z3").norm(y) * (1 + scale2) + shift2
    return y + gate2 * (p / "mlp.2").linear(F.gelu((p / "mlp.0").linear(z)))


def multihead(
    p: Parameters, query: Tensor, key: Tensor, value: Tensor, n_heads: int, allowed: Tensor | None, drop: Dropout
) -> Tensor:
    """Softmax attention with its own input maps, the map kept; `allowed` True = may attend."""
    weights, biases = p["in_proj_weight"].chunk(3), p["in_proj_bias"].chunk(3)
    inputs = zip((query, key, value), weights, biases, strict=True)
    q, k, v = (F.linear(x, weight, bias) for x, weight, bias in inputs)
    mixed = drop(attention_map(q, k, n_heads, allowed)) @ in_heads(v, n_heads)
    return (p / "out_proj").linear(mixed.transpose(1, 2).flatten(2))


def attention_map(q: Tensor, k: Tensor, n_heads: int, allowed: Tensor | None = None) -> Tensor:
    """softmax(QKᵀ/√dₕ) [B, H, n, m]."""
    q, k = in_heads(q, n_heads), in_heads(k, n_heads)
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return torch.softmax(logits if allowed is None else logits.masked_fill(~allowed, -math.inf), dim=-1)


def in_heads(x: Tensor, n_heads: int) -> Tensor:
    """[B, n, d] as [B, H, n, d/H]."""
    return x.reshape(*x.shape[:-1], n_heads, -1).transpose(1, 2)


def median_bandwidths(y: Tensor, scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)) -> Tensor:
    """σ of each kernel from the off-diagonal squared distances of `y` [n, T], pair by pair."""
    squares = (y[:, None] - y[None]).square().sum(-1)[_others(y)]
    median = squares.sort().values[(len(y) * (len(y) - 1) - 1) // 2].clamp(min=1e-12)
    return torch.stack([(scale * median).sqrt() for scale in scales])


def mmd2(x: Tensor, y: Tensor, bandwidths: Tensor) -> Tensor:
    """Unbiased MMD² of `x` [n, T] and `y` [m, T] from all pairwise differences, mean over kernels."""

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        distance = (a[:, None] - b[None]).square().sum(-1)
        return torch.stack([torch.exp(-distance / (2 * s**2)) for s in bandwidths]).mean(0)

    def between_different(a: Tensor) -> Tensor:
        return similarity(a, a)[_others(a)].mean()

    return between_different(x) + between_different(y) - 2 * similarity(x, y).mean()


def _others(y: Tensor) -> Tensor:
    """Which pairs of rows of `y` [n, T] are of two different cells [n, n]."""
    return ~torch.eye(len(y), dtype=torch.bool, device=y.device)


def flow_loss(
    predicted: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, target: Tensor, n_conditions: int, weight: float
) -> Tensor:
    """CFM + weight · MMD², the conditions one after the other."""
    cfm = ((predicted - (target - noise)) ** 2).mean()
    end = x_t + (1 - t)[:, None] * predicted
    pairs = zip(end.chunk(n_conditions), target.chunk(n_conditions), strict=True)
    terms = [mmd2(x, y, median_bandwidths(y.detach())) for x, y in pairs]
    return cfm + weight * torch.stack(terms).mean()


def random_state(
    backbone: str,
    *,
    n_tokens: int,
    width: int,
    n_heads: int,
    n_layers: int,
    n_perturbations: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Random official parameters, those that the official code never reads included."""
    rng = torch.Generator().manual_seed(seed)
    shapes = dict(_shared_shapes(n_tokens, width, n_perturbations or n_tokens))
    for i in range(n_layers):
        shapes |= _layer_shapes(i, width)
        if backbone == "perceiver":
            shapes |= _perceiver_shapes(f"blocks.{i}", width)
        else:
            places = ("",) if backbone == "differential_transformer" else (".diff_self_attn", ".diff_cross_attn")
            for place in places:
                shapes |= _differential_shapes(f"blocks.{i}{place}", width, width // n_heads)
    return {name: _draw(name, shape, rng).to(dtype) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Linear maps near unit gain, norms near 1, biases and the λ vectors small."""
    values = torch.randn(shape, generator=rng)
    if len(shape) > 1:
        return values if "embedding" in name else values / math.sqrt(shape[1])
    return 0.1 * values + (1.0 if "norm" in name or "ln" in name else 0.0) * (not name.endswith("bias"))


def _linear(name: str, n_in: int, n_out: int) -> dict[str, Any]:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def _norm(name: str, d: int) -> dict[str, Any]:
    return {f"{name}.weight": (d,), f"{name}.bias": (d,)}


def _attention(name: str, d: int) -> dict[str, Any]:
    own = {f"{name}.in_proj_weight": (3 * d, d), f"{name}.in_proj_bias": (3 * d,)}
    return own | _linear(f"{name}.out_proj", d, d)


def _shared_shapes(n_tokens: int, d: int, n_perturbations: int) -> dict[str, Any]:
    layer = "encoder.perturbation_interaction"
    shapes = {
        "p_mask_embed": (d,),
        "encoder.embedding.weight": (n_tokens, d),
        "perturbation_embedder.embedding.weight": (n_perturbations, d),
        **_attention(f"{layer}.cross_attn", d),
    }
    for norm in ("encoder.enc_norm", "perturbation_embedder.enc_norm", f"{layer}.norm1", f"{layer}.norm2"):
        shapes |= _norm(norm, d)
    for encoder in ("value_encoder_1", "value_encoder_2"):
        shapes |= _linear(f"{encoder}.linear1", 1, d) | _linear(f"{encoder}.linear2", d, d)
        shapes |= _norm(f"{encoder}.norm", d)
    for name, n_in, n_out in (
        (f"{layer}.linear1", d, 4 * d),
        (f"{layer}.linear2", 4 * d, d),
        ("t_embedder.mlp.0", 256, d),
        ("t_embedder.mlp.2", d, d),
        ("fusion_layer.0", 2 * d, d),
        ("fusion_layer.2", d, d),
        ("final_layer.fc.0", 2 * d, d),
        ("final_layer.fc.2", d, d),
        ("final_layer.fc.4", d, 1),
        ("p_head.1", d, d),
    ):
        shapes |= _linear(name, n_in, n_out)
    return shapes | _norm("fusion_layer.3", d) | _norm("p_head.0", d)


def _layer_shapes(i: int, d: int) -> dict[str, Any]:
    return {
        **_linear(f"gene_adaLN.{i}.adaLN_modulation.1", d, 3 * d),
        **_norm(f"gene_adaLN.{i}.norm", d),
        **_linear(f"adapter_layer.{i}.0", 2 * d, d),
        **_linear(f"adapter_layer.{i}.3", d, d),
    }


def _differential_shapes(name: str, d: int, head: int) -> dict[str, Any]:
    projections = ("q_proj_1", "k_proj_1", "q_proj_2", "k_proj_2", "v_proj", "out_proj")
    return {
        **{f"{name}.attn.{projection}.weight": (d, d) for projection in projections},
        **{f"{name}.attn.lambda_{which}": (head,) for which in ("q1", "k1", "q2", "k2")},
        f"{name}.attn.subln.weight": (head,),
        **_linear(f"{name}.mlp.fc1", d, 4 * d),
        **_linear(f"{name}.mlp.fc2", 4 * d, d),
        **_linear(f"{name}.adaLN_modulation.1", d, 6 * d),
    }


def _perceiver_shapes(name: str, d: int) -> dict[str, Any]:
    shapes = _attention(f"{name}.cross", d) | _attention(f"{name}.self_attn", d)
    for projection in ("q", "k", "v", "q2", "k2", "v2"):
        shapes |= _linear(f"{name}.{projection}", d, d)
    for norm in ("ln_z1", "ln_z2", "ln_z3"):
        shapes |= _norm(f"{name}.{norm}", d)
    shapes |= _linear(f"{name}.mlp.0", d, 4 * d) | _linear(f"{name}.mlp.2", 4 * d, d)
    return shapes | _linear(f"{name}.adaLN_modulation.1", d, 6 * d)
