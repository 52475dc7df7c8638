"""The cheap form equals the plain one, values and gradients; every option reaches the model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scdfm.config import ModelConfig
from scdfm.errors import ConfigError
from scdfm.model import VelocityField, reference
from scdfm.model.layers import Response
from scdfm.official import own_state, velocity_field

PUBLISHED = ("differential_perceiver", "differential_transformer", "perceiver")
BACKBONES = (*PUBLISHED, "linear")
SIZES = {"n_tokens": 37, "width": 24, "n_heads": 3, "n_layers": 3}


def random_graph(n: int, seed: int = 0) -> Tensor:
    """A symmetric graph with self loops, True = may attend."""
    edges = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < 0.15
    return edges | edges.T | torch.eye(n, dtype=torch.bool)


def random_batch(n_cells: int = 6, n_genes: int = 11, n_tokens: int = 37, seed: int = 1) -> dict[str, Tensor]:
    """Three conditions of two slots, in mixed order."""
    rng = torch.Generator().manual_seed(seed)
    return {
        "x_t": torch.randn(n_cells, n_genes, generator=rng),
        "t": torch.rand(n_cells, generator=rng),
        "control": 4 * torch.rand(n_cells, n_genes, generator=rng),
        "genes": torch.randperm(n_tokens, generator=rng)[:n_genes],
        "perturbation": torch.randint(1, n_tokens, (3, 2), generator=rng),
        "condition": torch.randint(0, 3, (n_cells,), generator=rng),
    }


def small_field(graph: Tensor | None = None, seed: int = 0, **options: Any) -> VelocityField:
    torch.manual_seed(seed)
    options = {"width": 16, "heads": 2, "layers": 2, "dropout": 0.2, **options}
    return VelocityField(ModelConfig(**options), graph, 37)


@pytest.mark.parametrize("with_graph", [True, False])
@pytest.mark.parametrize("perturbation", ["genes", "drugs"])
@pytest.mark.parametrize("backbone", PUBLISHED)
def test_values_and_gradients_equal_the_plain_formulation(backbone: str, perturbation: str, with_graph: bool) -> None:
    state = reference.random_state(backbone, **SIZES, n_perturbations=41, dtype=torch.float64)
    state = {name: value.requires_grad_() for name, value in state.items()}
    masked = ~random_graph(37) if with_graph else None
    batch = {k: v.double() if v.is_floating_point() else v for k, v in random_batch().items()}
    plain = reference.velocity(state, masked, **batch, n_heads=3, n_layers=3, backbone=backbone, kind=perturbation)
    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (plain * weights).sum().backward()

    field = velocity_field({n: v.detach() for n, v in state.items()}, masked, 3, 3, backbone, perturbation)
    cheap = field(**batch)
    (cheap * weights).sum().backward()

    torch.testing.assert_close(cheap, plain, rtol=0, atol=1e-7)  # float32 frequencies of time
    gradients = {n: torch.zeros_like(v) if v.grad is None else v.grad for n, v in state.items()}
    expected = own_state(gradients, 3, backbone, perturbation)
    for name, parameter in field.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_context_computed_once_gives_the_same_velocity(backbone: str) -> None:
    field = small_field(random_graph(37), backbone=backbone).eval()
    batch = random_batch()
    context = field.context(*(batch[name] for name in ("control", "genes", "perturbation", "condition")))
    for t in (0.0, 0.5, 1.0):
        batch["t"] = torch.full((6,), t)
        torch.testing.assert_close(field.velocity(batch["x_t"], batch["t"], context), field(**batch))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_cells_do_not_see_each_other_and_genes_have_no_order(backbone: str) -> None:
    field = small_field(random_graph(37), backbone=backbone).eval()
    batch = random_batch()
    whole = field(**batch)
    cells = torch.tensor([4, 1])
    part = {n: v[cells] if n in ("x_t", "t", "control", "condition") else v for n, v in batch.items()}
    torch.testing.assert_close(field(**part), whole[cells])
    order = torch.randperm(11)
    shuffled = {n: v[:, order] if n in ("x_t", "control") else v for n, v in batch.items()}
    shuffled["genes"] = batch["genes"][order]
    torch.testing.assert_close(field(**shuffled), whole[:, order], rtol=1e-4, atol=1e-5)


def test_every_input_is_read() -> None:
    field, batch = small_field(random_graph(37)).eval(), random_batch()
    base = field(**batch)
    other = random_batch(seed=9)
    for name in batch:
        changed = field(**{**batch, name: other[name]})
        assert not torch.allclose(changed, base, atol=1e-4), name


def expecting_field(seed: int = 0) -> VelocityField:
    """A field whose flow starts from the prior, its last maps drawn: one that has learned something."""
    torch.manual_seed(seed)
    config = ModelConfig(width=16, heads=2, layers=2, dropout=0.0)
    field = VelocityField(config, None, 37, expects=True).eval()
    assert field.response is not None
    for last in (field.decoder.out, field.response.out):
        torch.nn.init.xavier_uniform_(last.weight)
    return field


def expecting_batch() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(4)
    shift = torch.randn((3, 11), generator=rng)
    return random_batch() | {"expected": torch.rand((3, 11), generator=rng), "shift": shift}


def test_the_response_is_one_number_a_cell_times_the_shift_of_its_condition() -> None:
    field, batch = expecting_field(), expecting_batch()
    whole = field(**batch)
    assert field.response is not None
    torch.nn.init.zeros_(field.response.out.weight)
    moved = (whole - field(**batch)) / batch["shift"][batch["condition"]]
    torch.testing.assert_close(moved, moved[:, :1].expand(-1, 11), rtol=1e-3, atol=1e-4)
    assert moved[:, 0].std() > 1e-3


@pytest.mark.parametrize("name", ["x_t", "t", "shift", "expected"])
def test_the_response_reads_every_input(name: str) -> None:
    """With the decoder at 0, whatever changes the velocity goes through the response."""
    field, batch = expecting_field(), expecting_batch()
    torch.nn.init.zeros_(field.decoder.out.weight)
    before = field(**batch)
    after = field(**batch | {name: batch[name] * 0.5 + 0.1})
    assert (before - after).abs().max() > 1e-3


def test_the_response_sees_where_a_cell_lies_along_the_shift_and_nothing_across() -> None:
    torch.manual_seed(0)
    response = Response(8)
    shift, x_t, across = torch.randn(3, 5, 11).unbind()
    across = across - shift * (across * shift).sum(-1, keepdim=True) / shift.square().sum(-1, keepdim=True)
    state, time = torch.randn(5, 11, 8), torch.randn(5, 8)
    before = response(state, time, x_t, shift)
    torch.testing.assert_close(response(state, time, x_t + across, shift), before, rtol=1e-4, atol=1e-5)
    assert (response(state, time, x_t + shift, shift) - before).abs().max() > 1e-2


def partly_moved(rng: torch.Generator, n: int, n_conditions: int) -> tuple[dict[str, Tensor], Tensor]:
    """Cells of which half move by twice the expected shift and half not at all; the velocities that correct the shift."""
    shift = torch.randn((n_conditions, 11), generator=rng)
    condition = torch.arange(n) % n_conditions
    t, part = torch.rand(n, generator=rng), 2.0 * (torch.rand(n, generator=rng) < 0.5)
    x_t = (part * t)[:, None] * shift[condition] + 0.3 * torch.randn((n, 11), generator=rng)
    batch = {
        "x_t": x_t, "t": t, "control": torch.full_like(x_t, 2.0), "genes": torch.arange(4, 15),
        "perturbation": torch.full((n_conditions, 1), 30), "condition": condition,
        "expected": 2 + shift, "shift": shift,
    }  # fmt: skip
    return batch, (part - 1)[:, None] * shift[condition]


def error_on_new_shifts(seed: int, n_steps: int = 60) -> float:
    """Share of the corrections that a small field misses for shifts it never saw."""
    torch.manual_seed(seed)
    field = VelocityField(ModelConfig(width=16, heads=2, layers=1, dropout=0.0), None, 37, expects=True)
    steps, rng = torch.optim.Adam(field.parameters(), lr=5e-3), torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        batch, wanted = partly_moved(rng, 48, 6)
        steps.zero_grad()
        (field(**batch) - wanted).square().mean().backward()
        steps.step()
    batch, wanted = partly_moved(torch.Generator().manual_seed(99), 1000, 40)
    with torch.no_grad():
        return float((field(**batch) - wanted).square().mean() / wanted.square().mean())


def test_the_response_learns_who_takes_part_and_the_decoder_alone_does_so_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By 3 standard errors over 3 seeds; a response that says nothing gains nothing."""
    with_response = [error_on_new_shifts(seed) for seed in range(3)]
    monkeypatch.setattr(Response, "forward", lambda self, *read: torch.zeros_like(read[-1]))
    gain = torch.tensor([error_on_new_shifts(seed) for seed in range(3)]) - torch.tensor(with_response)
    assert gain.mean() > 3 * gain.std() / math.sqrt(3)


def test_a_condition_that_moves_nothing_has_no_response() -> None:
    field, batch = expecting_field(), expecting_batch()
    torch.nn.init.zeros_(field.decoder.out.weight)
    assert not field(**batch | {"shift": torch.zeros(3, 11)}).any()
    assert field(**batch).any()


def test_a_correction_is_zero_until_one_of_its_last_maps_is_not() -> None:
    torch.manual_seed(0)
    field = VelocityField(ModelConfig(width=16, heads=2, layers=1), None, 37, expects=True)
    assert field.is_zero
    assert not field(**expecting_batch()).any()
    assert field.response is not None
    torch.nn.init.constant_(field.response.out.weight, 0.1)
    assert not field.is_zero
    assert not small_field().is_zero


def test_slots_have_no_order_and_padding_does_not_count() -> None:
    field, batch = small_field().eval(), random_batch()
    slots = batch["perturbation"]
    base = field(**batch)
    torch.testing.assert_close(field(**{**batch, "perturbation": slots.flip(1)}), base)
    padded = torch.cat([slots, torch.zeros(3, 2, dtype=torch.long)], dim=1)
    torch.testing.assert_close(field(**{**batch, "perturbation": padded}), base)
    counted = VelocityField(field.config, None, 37, pad=None).eval()
    counted.load_state_dict(field.state_dict())
    assert not torch.allclose(counted(**{**batch, "perturbation": padded}), base, atol=1e-4)
    torch.testing.assert_close(counted(**batch), base)


def test_graph_decides_which_tokens_are_read() -> None:
    """With self loops alone, a token that is neither a gene of the batch nor a target has no say."""
    batch = random_batch()
    asked = set(batch["genes"].tolist()) | set(batch["perturbation"].flatten().tolist())
    stranger = next(token for token in range(37) if token not in asked)
    for graph, heard in ((torch.eye(37, dtype=torch.bool), False), (None, True)):
        field = small_field(graph).eval()
        base = field(**batch)
        with torch.no_grad():
            field.gene_encoder.table.weight[stranger] *= -3
        assert torch.equal(field(**batch), base) is not heard


def test_options_reach_the_model() -> None:
    batch = random_batch()
    base = small_field().eval()
    changes: list[dict[str, Any]] = [
        {"backbone": "perceiver"},
        {"backbone": "differential_transformer"},
        {"backbone": "linear"},
        {"backbone": "linear", "latents": 8},
        {"attention": "softmax"},
        {"perturbation": "drugs"},
        {"width": 32},
        {"layers": 1},
    ]
    sizes = {n: p.shape for n, p in base.named_parameters()}
    for change in changes:
        assert {n: p.shape for n, p in small_field(**change).named_parameters()} != sizes, change
    for change in ({"heads": 4}, {"gene_heads": 2}):
        other = small_field(**change).eval()
        same = {n: p for n, p in base.state_dict().items() if other.state_dict()[n].shape == p.shape}
        other.load_state_dict(same, strict=False)
        assert not torch.allclose(other(**batch), base(**batch), atol=1e-5), change


def test_dropout_is_live_in_training_only() -> None:
    field, batch = small_field(random_graph(37)), random_batch()
    assert not torch.equal(field(**batch), field(**batch))
    torch.manual_seed(3)
    once = field(**batch)
    torch.manual_seed(3)
    assert torch.equal(field(**batch), once)
    assert torch.equal(field.eval()(**batch), field(**batch))


def test_published_size() -> None:
    """60,359,169 parameters at V 6,000, with those the official forward pass never reads."""
    with torch.device("meta"):
        field = VelocityField(ModelConfig(width=512, heads=8, layers=4), None, 6000)
    ours = sum(p.numel() for p in field.parameters())
    d = 512
    never_read = d + (2 * d + d * d + d) + (6000 * d + 2 * d)
    assert ours + never_read == 60_359_169


def test_initialisation_is_xavier_with_zero_biases() -> None:
    field = small_field(width=64, heads=4)
    for name, parameter in field.named_parameters():
        if parameter.ndim == 2 and "table" not in name and "lambdas" not in name:
            n_out, n_in = parameter.shape
            if any(part in name for part in ("from_z", "from_context", "attention.out")):
                n_out = 64
            bound = math.sqrt(6 / (n_in + n_out))
            assert parameter.abs().max() <= bound, name
            assert parameter.abs().max() > 0.8 * bound, name
        elif name.endswith("bias"):
            assert not parameter.any(), name


def test_no_map_of_genes_by_genes_is_kept() -> None:
    """Training keeps nothing of size T × T or T × V: memory grows with T, not with its square."""
    n_genes = 300
    torch.manual_seed(0)
    field = VelocityField(ModelConfig(width=16, heads=2, layers=1, dropout=0.0), None, 400)
    batch = random_batch(n_cells=2, n_genes=n_genes, n_tokens=400)
    largest = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        field(**batch)
    assert 0 < largest <= 2 * n_genes * 4 * 16


def counted(n_genes: int, **options: Any) -> int:
    """Floating point operations of an evaluation with its gradients, counted on shapes alone."""
    with torch.device("meta"):
        field = VelocityField(ModelConfig(width=16, heads=2, layers=2, **options), None, 400)
        batch = {name: value.to("meta") for name, value in random_batch(2, n_genes, 400).items()}
        with FlopCounterMode(display=False) as counter:
            field(**batch).sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("attention", ["differential", "softmax"])
def test_cost_of_the_linear_backbone_is_linear_in_genes(attention: str) -> None:
    """Equal steps in T add equal cost; the published backbone's cost has a second difference: its maps are T × T."""
    cost = [counted(n, backbone="linear", latents=8, attention=attention) for n in (100, 200, 300)]
    assert cost[2] - cost[1] == cost[1] - cost[0] > 0
    whole = [counted(n, attention=attention) for n in (100, 200, 300)]
    maps = 2 if attention == "differential" else 1
    # Per layer 2 blocks of `maps` maps, 2 products of 2·T²·d each for 2 cells, three times with gradients.
    quadratic = 2 * 2 * maps * 2 * 2 * 2 * 16 * 3
    assert whole[2] - 2 * whole[1] + whole[0] == 2 * 100**2 * quadratic
    more = counted(200, backbone="linear", latents=16, attention=attention)
    assert cost[1] < more < 2 * cost[1]


def test_the_linear_backbone_reads_the_control_and_every_gene() -> None:
    field, batch = small_field(backbone="linear", latents=3).eval(), random_batch()
    batch["x_t"].requires_grad_()
    batch["control"].requires_grad_()
    for gene in (0, 7):
        found = torch.autograd.grad(field(**batch)[:, gene].sum(), [batch["x_t"], batch["control"]])
        assert all((gradient != 0).all() for gradient in found)
    assert torch.equal(field(**batch), field(**batch))


def test_graph_that_does_not_fit_is_told() -> None:
    with pytest.raises(ConfigError, match=r"graph: expected \[37, 37\].*found \[3, 3\]"):
        small_field(torch.eye(3, dtype=torch.bool))
    empty_row = torch.eye(37, dtype=torch.bool)
    empty_row[5] = False
    with pytest.raises(ConfigError, match="token 5 may attend to nothing"):
        small_field(empty_row)


def test_bfloat16_autocast_stays_close() -> None:
    field, batch = small_field(random_graph(37), dropout=0.0), random_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = field(**batch).float()
    full = field(**batch)
    assert 0 < (low - full).abs().max() < 0.1 * full.abs().max()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_float32_is_float64_to_a_few_hundred_roundings(backbone: str) -> None:
    """Two blocks chain some tens of sums of 16 to 64 terms: 512 units of 2⁻²⁴ of the largest velocity bound them."""
    field = small_field(random_graph(37), backbone=backbone, dropout=0.0).eval()
    batch = random_batch()
    single = field(**batch)
    exact = field.double()(**{k: v.double() if v.is_floating_point() else v for k, v in batch.items()})
    difference = (single.double() - exact).abs().max()
    assert 0 < difference <= 512 * 2.0**-24 * exact.abs().max()
