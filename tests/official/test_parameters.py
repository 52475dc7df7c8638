"""Golden parity: official parameters give the official outputs, and what can't be read is told in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scdfm.errors import ConfigError, RunError
from scdfm.flow import median_bandwidths, mmd2, solve
from scdfm.model import VelocityField, reference
from scdfm.official import own_state, velocity_field

BACKBONES = ("differential_perceiver", "differential_transformer", "perceiver")


def golden(shared: Path, backbone: str, perturbation: str) -> tuple[VelocityField, dict[str, torch.Tensor]]:
    """The field of a golden file, and the file's other arrays as tensors."""
    with np.load(shared / "golden" / f"velocity_{backbone}_{perturbation}.npz") as file:
        arrays = dict(file)
    with np.load(shared / "golden" / "graph.npz") as file:
        masked = file["padded_sorted_masked_negative_edges_true"]
    state = {name: array for name, array in arrays.items() if name.startswith("state.")}
    heads, layers = arrays["n_heads"], arrays["n_layers"]
    field = velocity_field(state, masked, n_heads=heads, n_layers=layers, backbone=backbone, perturbation=perturbation)
    rest = {n: torch.from_numpy(a) for n, a in arrays.items() if n not in state and not n.startswith("n_")}
    return field, rest


def call(field: VelocityField, arrays: dict[str, torch.Tensor], x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        velocity: torch.Tensor = field(
            x_t=x_t,
            t=t,
            control=arrays["control"],
            genes=arrays["gene_ids"],
            perturbation=arrays["perturbation_ids"][:1],
            condition=torch.zeros(len(x_t), dtype=torch.long),
        )
    return velocity


@pytest.mark.parametrize("perturbation", ["genes", "drugs"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_velocity_equals_golden(shared: Path, backbone: str, perturbation: str) -> None:
    field, arrays = golden(shared, backbone, perturbation)
    velocity = call(field, arrays, arrays["x_t"], arrays["t"])
    torch.testing.assert_close(velocity, arrays["velocity"], rtol=0, atol=1e-5)


def test_plain_formulation_equals_golden(shared: Path) -> None:
    """The oracle of the other tests is itself held to the golden files."""
    for backbone in BACKBONES:
        with np.load(shared / "golden" / f"velocity_{backbone}_genes.npz") as file:
            arrays = {name: torch.from_numpy(array) for name, array in file.items()}
        with np.load(shared / "golden" / "graph.npz") as file:
            masked = torch.from_numpy(file["padded_sorted_masked_negative_edges_true"])
        velocity = reference.velocity(
            {n.removeprefix("state."): a for n, a in arrays.items() if n.startswith("state.")},
            masked,
            x_t=arrays["x_t"],
            t=arrays["t"],
            control=arrays["control"],
            genes=arrays["gene_ids"],
            perturbation=arrays["perturbation_ids"],
            condition=torch.arange(3),
            n_heads=int(arrays["n_heads"]),
            n_layers=int(arrays["n_layers"]),
            backbone=backbone,
        )
        torch.testing.assert_close(velocity, arrays["velocity"], rtol=0, atol=1e-5)


def test_runge_kutta_end_point_equals_golden(shared: Path) -> None:
    field, arrays = golden(shared, "differential_perceiver", "genes")
    end = solve(lambda t, x: call(field, arrays, x, t.expand(len(x))), arrays["x_t"], method="rk4", steps=19)
    torch.testing.assert_close(end, arrays["rk4_20_points_end"], rtol=0, atol=1e-4)


def test_mmd_equals_golden(shared: Path) -> None:
    with np.load(shared / "golden" / "mmd.npz") as file:
        arrays = {name: torch.from_numpy(np.asarray(array)) for name, array in file.items()}
    widths = median_bandwidths(arrays["y"])
    torch.testing.assert_close(widths.double(), arrays["sigmas"], rtol=1e-6, atol=0)
    for bandwidths in (widths, arrays["sigmas"], arrays["sigmas"].numpy(), arrays["sigmas"].tolist()):
        x = arrays["x"].clone().requires_grad_()
        value = mmd2(x, arrays["y"], bandwidths)
        value.backward()
        torch.testing.assert_close(value.double(), arrays["mmd2"], rtol=0, atol=1e-6)
        torch.testing.assert_close(x.grad, arrays["grad_x"], rtol=1e-4, atol=1e-7)


SIZES = {"n_tokens": 23, "width": 16, "n_heads": 2, "n_layers": 1}


def small_state(**changes: int) -> dict[str, torch.Tensor]:
    return reference.random_state("differential_perceiver", **{**SIZES, **changes})


def test_arrays_tensors_prefixes_and_types_are_all_read() -> None:
    masked = torch.zeros(23, 23, dtype=torch.bool)
    state = small_state()
    inputs = {
        "x_t": torch.rand(3, 5),
        "t": torch.rand(3),
        "control": torch.rand(3, 5),
        "genes": torch.arange(4, 9, dtype=torch.int32),
        "perturbation": torch.tensor([[0, 3]], dtype=torch.int32),
        "condition": torch.zeros(3, dtype=torch.int32),
    }
    expected = velocity_field(state, masked, n_heads=2, n_layers=1)(**inputs)
    arrays = {f"state.{name}": value.numpy() for name, value in state.items()}
    for graph in (masked.numpy(), masked.numpy().astype(np.uint8), None):
        torch.testing.assert_close(velocity_field(arrays, graph, n_heads=2, n_layers=1)(**inputs), expected)
    double = velocity_field({n: v.double() for n, v in state.items()}, masked, n_heads=2, n_layers=1)(**inputs)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=0, atol=1e-5)


def test_field_is_in_evaluation_mode() -> None:
    assert not velocity_field(small_state(), None, n_heads=2, n_layers=1).training


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (lambda s: s.pop("fusion_layer.0.bias"), {}, RunError, "1 missing, first 'fusion_layer.0.bias'"),
        (lambda s: s.pop("encoder.embedding.weight"), {}, RunError, "expected a table"),
        (lambda s: s.update(strange=torch.zeros(1)), {}, RunError, "1 unknown, first 'strange'"),
        (lambda s: None, {"n_layers": 2}, RunError, "missing, first 'gene_adaLN.1"),
        (lambda s: None, {"n_layers": 0}, ConfigError, "layers: Input should be greater.*found 0"),
        (lambda s: None, {"backbone": "unet"}, ConfigError, "backbone: .*found 'unet'"),
        (lambda s: None, {"perturbation": "smells"}, ConfigError, "perturbation: .*found 'smells'"),
        (lambda s: None, {"backbone": "perceiver"}, RunError, "check n_layers, backbone"),
        (lambda s: None, {"n_heads": 3}, ConfigError, "width 16 is not a multiple of heads 3"),
        (lambda s: None, {"n_heads": 4}, RunError, "expected shape"),
        (lambda s: None, {"graph_masked": np.zeros((22, 22), bool)}, ConfigError, r"expected \[23, 23\]"),
        (lambda s: None, {"graph_masked": np.ones((23, 23), bool)}, ConfigError, "may attend to nothing"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(change, options, error, words) -> None:  # type: ignore[no-untyped-def]
    state = small_state()
    change(state)
    with pytest.raises(error, match=words) as caught:
        velocity_field(state, **{"graph_masked": None, "n_heads": 2, "n_layers": 1, **options})
    assert "\n" not in str(caught.value)


def test_every_parameter_has_an_official_source() -> None:
    for backbone in BACKBONES:
        state = reference.random_state(backbone, **SIZES)
        own = own_state(state, 1, backbone, "drugs")
        assert set(own) == set(velocity_field(state, None, 2, 1, backbone, "drugs").state_dict())
