"""Velocity fields from the parameters of the official code: their names, their layout, their sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from scdfm.config import ModelConfig
from scdfm.data.labels import listed
from scdfm.errors import ConfigError, RunError
from scdfm.model import VelocityField
from scdfm.options import checked

GENE_HEADS = 8
"""Heads of the gene encoder: always 8, whatever those of the blocks are."""

PUBLISHED_HEADS = 8

MARKS = {
    "differential_perceiver": "diff_self_attn.attn.lambda_q1",
    "differential_transformer": "attn.lambda_q1",
    "perceiver": "cross.in_proj_weight",
}
"""A parameter of the first block that only this backbone has."""

UNUSED = ("p_mask_embed", "p_head.")
"""Parameters that the official forward pass never reads."""

SHARED = {
    "gene_encoder.table": "encoder.embedding",
    "gene_encoder.table_norm": "encoder.enc_norm",
    "gene_encoder.query_norm": "encoder.perturbation_interaction.norm1",
    "gene_encoder.out": "encoder.perturbation_interaction.cross_attn.out_proj",
    "gene_encoder.feed_norm": "encoder.perturbation_interaction.norm2",
    "gene_encoder.feed.0": "encoder.perturbation_interaction.linear1",
    "gene_encoder.feed.3": "encoder.perturbation_interaction.linear2",
    "value_encoder.expand": "value_encoder_1.linear1",
    "value_encoder.mix": "value_encoder_1.linear2",
    "value_encoder.norm": "value_encoder_1.norm",
    "control_encoder.expand": "value_encoder_2.linear1",
    "control_encoder.mix": "value_encoder_2.linear2",
    "control_encoder.norm": "value_encoder_2.norm",
    "fusion.pair": "fusion_layer.0",
    "fusion.mix": "fusion_layer.2",
    "fusion.norm": "fusion_layer.3",
    "time.mlp.0": "t_embedder.mlp.0",
    "time.mlp.2": "t_embedder.mlp.2",
    "decoder.pair": "final_layer.fc.0",
    "decoder.mix": "final_layer.fc.2",
    "decoder.out": "final_layer.fc.4",
}
DRUGS = {"drug_table.table": "perturbation_embedder.embedding", "drug_table.norm": "perturbation_embedder.enc_norm"}
LAYER = {
    "gene.modulation": "gene_adaLN.{i}.adaLN_modulation.1",
    "gene.norm": "gene_adaLN.{i}.norm",
    "adapter.pair": "adapter_layer.{i}.0",
    "adapter.mix": "adapter_layer.{i}.3",
}
DIFFERENTIAL = {"modulation.linear": "adaLN_modulation.1", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
PERCEIVER = {
    "modulation.linear": "adaLN_modulation.1",
    "cross_norm": "ln_z1",
    "self_norm": "ln_z2",
    "mlp_norm": "ln_z3",
    "mlp.0": "mlp.0",
    "mlp.2": "mlp.2",
    "cross.out": "cross.out_proj",
    "attention.out": "self_attn.out_proj",
}
PROJECTIONS = {
    # Order of our side-by-side maps (scdfm.model.attention.ROLES) in official names.
    "self": (("q_proj_1", "q_proj_2", "v_proj"), ("k_proj_1", "k_proj_2")),
    "cross": (("q_proj_1", "k_proj_1", "v_proj"), ("q_proj_2", "k_proj_2")),
}


@dataclass(frozen=True)
class Sizes:
    """What the shapes and names of official parameters tell of the model."""

    backbone: str
    width: int
    layers: int
    heads: int


def sizes(tensors: Mapping[str, Tensor], heads: int | None = None) -> Sizes:
    """The sizes of official parameters; RunError where no backbone is recognised.

    The heads of differential attention show in its λ vectors. Those of `perceiver` show nowhere: `heads`, by default
    the published 8, says them.
    """
    places = [int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))]
    backbone = next((kind for kind, mark in MARKS.items() if f"blocks.0.{mark}" in tensors), None)
    if backbone is None:
        raise RunError(
            f"official parameters: expected one of blocks.0.{{{', '.join(MARKS.values())}}}, which tell the backbone; "
            "check the checkpoint"
        )
    width = _table(tensors).shape[1]
    if backbone != "perceiver":
        size = len(tensors[f"blocks.0.{MARKS[backbone]}"])
        checkpoint_heads = width // size if size else 0
        if heads not in (None, checkpoint_heads):
            raise ConfigError(f"heads {heads}: the checkpoint has {checkpoint_heads}; leave heads out")
        heads = checkpoint_heads
    return Sizes(backbone, width, 1 + max(places), PUBLISHED_HEADS if heads is None else heads)


def velocity_field(
    state: Mapping[str, Any],
    graph_masked: Any | None,
    n_heads: int,
    n_layers: int,
    backbone: str = "differential_perceiver",
    perturbation: Literal["genes", "drugs"] = "genes",
) -> VelocityField:
    """The field with the official parameters `state` (arrays or tensors), in evaluation mode.

    Names may carry the prefix `state.`; sizes are read from the arrays. `graph_masked` [V, V] is True where a
    token may NOT attend, None lets all attend to all. Raises RunError for parameters that are missing,
    unknown or of a wrong shape, ConfigError for options that can't be.
    """
    tensors = {name.removeprefix("state."): torch.as_tensor(value) for name, value in state.items()}
    options = {
        "backbone": backbone, "perturbation": perturbation, "width": _table(tensors).shape[1], "heads": int(n_heads),
        "gene_heads": GENE_HEADS, "layers": int(n_layers),
    }  # fmt: skip
    config = checked(ModelConfig, options, "official parameters (check them against the checkpoint)")
    own = own_state(tensors, config.layers, backbone, perturbation)
    graph = None if graph_masked is None else ~torch.as_tensor(graph_masked).bool()
    n_perturbations = len(own["drug_table.table.weight"]) if perturbation == "drugs" else None
    # The official mean over slots counts every slot, whatever its id.
    table = _table(tensors)
    field = VelocityField(config, graph, len(table), n_perturbations, pad=None).to(table.dtype)
    for name, parameter in field.state_dict().items():
        if name in own and own[name].shape != parameter.shape:
            raise RunError(
                f"official parameters for '{name}': expected shape {list(parameter.shape)}, "
                f"found {list(own[name].shape)}; check n_heads, n_layers and backbone"
            )
    field.load_state_dict(own)
    return field.eval()


def own_state(official: Mapping[str, Tensor], n_layers: int, backbone: str, perturbation: str) -> dict[str, Tensor]:
    """The official parameters under our names, in our layout; RunError names missing or unknown ones."""
    source = _Source(official)
    own = source.renamed(SHARED | (DRUGS if perturbation == "drugs" else {}))
    encoder = "encoder.perturbation_interaction.cross_attn"
    own |= source.in_projection("gene_encoder.query_key_value", encoder)
    for i in range(n_layers):
        own |= source.renamed({f"layers.{i}.{ours}": theirs.format(i=i) for ours, theirs in LAYER.items()})
        if backbone == "perceiver":
            own |= _perceiver_block(source, f"layers.{i}.blocks.0", f"blocks.{i}")
        elif backbone == "differential_transformer":
            own |= _differential_block(source, f"layers.{i}.blocks.0", f"blocks.{i}", "cross")
        else:
            for place, kind in enumerate(("self", "cross")):
                theirs = f"blocks.{i}.diff_{kind}_attn"
                own |= _differential_block(source, f"layers.{i}.blocks.{place}", theirs, kind)
    source.finish(never_read(perturbation))
    return own


def never_read(perturbation: str) -> tuple[str, ...]:
    """How the names of parameters begin that the official forward pass never reads."""
    return UNUSED if perturbation == "drugs" else (*UNUSED, "perturbation_embedder.")


class _Source:
    """Official parameters, with a record of what was read and what was looked for in vain."""

    def __init__(self, official: Mapping[str, Tensor]) -> None:
        self.official = official
        self.read: set[str] = set()
        self.missing: list[str] = []

    def take(self, name: str) -> Tensor:
        if name not in self.official:
            self.missing.append(name)
            return torch.empty(0)
        self.read.add(name)
        return self.official[name]

    def renamed(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Weight, and bias unless it is a table, of each module."""
        own = {}
        for ours, theirs in names.items():
            own[f"{ours}.weight"] = self.take(f"{theirs}.weight")
            if not theirs.endswith("embedding"):
                own[f"{ours}.bias"] = self.take(f"{theirs}.bias")
        return own

    def in_projection(self, ours: str, theirs: str) -> dict[str, Tensor]:
        """The stacked query, key and value maps of torch's MultiheadAttention."""
        return {f"{ours}.{kind}": self.take(f"{theirs}.in_proj_{kind}") for kind in ("weight", "bias")}

    def finish(self, ignored: tuple[str, ...]) -> None:
        """Raise RunError unless everything was found and everything else is known to be unused."""
        unknown = [n for n in self.official if n not in self.read and not n.startswith(ignored)]
        problems = [
            f"{len(names)} {kind}, first {listed(names)}"
            for kind, names in (("missing", self.missing), ("unknown", unknown))
            if names
        ]
        if problems:
            raise RunError(
                f"official parameters: {'; '.join(problems)}; "
                "check n_layers, backbone and perturbation against the checkpoint"
            )


def _differential_block(source: _Source, ours: str, theirs: str, kind: str) -> dict[str, Tensor]:
    own = source.renamed({f"{ours}.{name}": f"{theirs}.{other}" for name, other in DIFFERENTIAL.items()})
    for name, projections in zip(("from_z", "from_context"), PROJECTIONS[kind], strict=True):
        weights = [source.take(f"{theirs}.attn.{projection}.weight") for projection in projections]
        own[f"{ours}.attention.{name}.weight"] = torch.cat(weights)
    own[f"{ours}.attention.out.weight"] = source.take(f"{theirs}.attn.out_proj.weight")
    own[f"{ours}.attention.scale"] = source.take(f"{theirs}.attn.subln.weight")
    lambdas = [source.take(f"{theirs}.attn.lambda_{name}") for name in ("q1", "k1", "q2", "k2")]
    own[f"{ours}.attention.lambdas"] = torch.stack(lambdas)
    return own


def _perceiver_block(source: _Source, ours: str, theirs: str) -> dict[str, Tensor]:
    own = source.renamed({f"{ours}.{name}": f"{theirs}.{other}" for name, other in PERCEIVER.items()})
    for name, attention, suffix in (("cross", "cross", ""), ("attention", "self_attn", "2")):
        for kind in ("weight", "bias"):
            outer = [source.take(f"{theirs}.{role}{suffix}.{kind}") for role in "qkv"]
            own[f"{ours}.{name}.outer.{kind}"] = torch.cat(outer)
        own |= source.in_projection(f"{ours}.{name}.inner", f"{theirs}.{attention}")
    return own


def _table(tensors: Mapping[str, Tensor]) -> Tensor:
    """The gene table [V, d], whose shape and type are those of the field."""
    name = "encoder.embedding.weight"
    if name not in tensors or tensors[name].ndim != 2 or not tensors[name].is_floating_point():
        raise RunError(f"official parameters: expected a table of numbers '{name}' [V, d]; check the checkpoint")
    return tensors[name]
