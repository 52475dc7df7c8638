"""Doses, times, covariates, features, pooling and the null condition: each equation, and each promise at its ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scdfm.condition_tensors import ConditionShape, ConditionTensors
from scdfm.config import ModelConfig
from scdfm.errors import ConfigError
from scdfm.model import VelocityField
from scdfm.model.conditioning import HillCurve

PAD, CONTROL, A, B, C = 0, 3, 7, 8, 9
NAN = float("nan")
POOLINGS = ("mean", "sum", "attention")


def field(pooling: str = "mean", perturbation: str = "genes", **shape: Any) -> VelocityField:
    torch.manual_seed(0)
    config = ModelConfig(width=16, heads=2, layers=1, pooling=pooling, perturbation=perturbation)  # type: ignore[arg-type]
    return VelocityField(config, None, 20, shape=ConditionShape(**shape)).eval()


def conditions(*tokens: list[int], **others: Any) -> ConditionTensors:
    return ConditionTensors(torch.tensor(tokens), **others)


def vector(of: VelocityField, asked: ConditionTensors) -> Tensor:
    """e_p [C, d]."""
    return of._encode(torch.arange(4, 12), asked)[1]


def own(of: VelocityField, token: int) -> Tensor:
    """The vector of one token."""
    return vector(replace_pooling(of), conditions([token, token]))[0]


def replace_pooling(of: VelocityField) -> VelocityField:
    plain = field("mean", of.config.perturbation)
    plain.load_state_dict(of.state_dict(), strict=False)
    return plain


def velocity(of: VelocityField, asked: ConditionTensors) -> Tensor:
    """The velocity of one and the same cell under each condition."""
    rng, n = torch.Generator().manual_seed(4), len(asked)
    x, control = (torch.rand(1, 8, generator=rng).expand(n, -1) for _ in range(2))
    return of(
        x_t=x, t=torch.full((n,), 0.3), control=control, genes=torch.arange(4, 12), perturbation=asked,
        condition=torch.arange(n),
    )  # fmt: skip


def test_a_response_is_nought_at_dose_nought_one_at_the_reference_and_rises_to_its_end() -> None:
    curve = HillCurve(6)
    doses = torch.tensor([0.0, 0.01, 0.1, 1.0, 10.0, 1e6])
    s = curve(doses)
    assert torch.equal(s[0], torch.zeros(6))
    torch.testing.assert_close(s[3], torch.ones(6))
    assert (s.diff(dim=0) > 0).all()
    torch.testing.assert_close(s[-1], 1 + curve.log_half.exp(), rtol=1e-4, atol=0)
    assert torch.equal(curve(torch.tensor([NAN])), torch.ones(1, 6))
    half = curve(curve.log_half.exp()).diagonal()  # at its own half-effect dose, half of its end
    torch.testing.assert_close(half, (1 + curve.log_half.exp()) / 2)


def test_gradients_of_a_response_are_finite_at_dose_nought_and_without_one() -> None:
    curve = HillCurve(4)
    curve(torch.tensor([0.0, NAN, 2.0])).sum().backward()
    assert curve.log_half.grad is not None
    assert curve.log_half.grad.isfinite().all()
    assert curve.log_half.grad.abs().sum() > 0


@pytest.mark.parametrize("perturbation", ["genes", "drugs"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_dose_nought_is_control_and_no_dose_is_the_target(pooling: str, perturbation: str) -> None:
    of = field(pooling, perturbation, dose=True)
    dose = torch.tensor([[0.0, NAN], [NAN, NAN], [NAN, NAN]])
    asked = conditions([A, CONTROL], [CONTROL, CONTROL], [A, CONTROL], dose=dose)
    same = velocity(of, asked)
    torch.testing.assert_close(same[0], same[1], rtol=0, atol=1e-6)
    assert (same[0] - same[2]).abs().max() > 1e-3
    e = vector(of, asked)
    torch.testing.assert_close(e[0], e[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(e[1], own(of, CONTROL), rtol=0, atol=1e-6)
    undosed = vector(field(pooling, perturbation), conditions([A, CONTROL]))
    torch.testing.assert_close(e[2], undosed[0], rtol=0, atol=1e-6)
    assert (e[0] - e[2]).abs().max() > 0.1


@pytest.mark.parametrize("pooling", POOLINGS)
def test_doses_and_times_in_between_lie_between(pooling: str) -> None:
    of = field(pooling, dose=True, time=True)
    n = 5
    dose = torch.stack([torch.linspace(0, 2, n), torch.full((n,), NAN)], dim=1)
    time = torch.full((n,), NAN)
    asked = conditions(*[[A, CONTROL]] * n, dose=dose, time=time)
    far = (vector(of, asked) - own(of, CONTROL)).norm(dim=1)
    assert (far.diff() > 0.01).all()
    torch.testing.assert_close(
        vector(of, replace(asked, dose=dose * NAN, time=dose[:, 0])), vector(of, asked), rtol=0, atol=1e-5
    )
    at_once = vector(of, replace(asked, time=torch.zeros(n)))
    torch.testing.assert_close(at_once, own(of, CONTROL).expand(n, -1), rtol=0, atol=1e-6)


def test_mean_is_the_published_one_to_the_bit_and_counts_three_targets() -> None:
    of = field()
    two = torch.tensor([[A, B], [A, CONTROL], [CONTROL, CONTROL]])
    gene, e = of._encode(torch.arange(4, 12), ConditionTensors(two))
    slots = of.gene_encoder(torch.cat([torch.arange(4, 12), two.flatten()]))[8:].unflatten(0, (3, 2))
    assert torch.equal(e, slots.sum(1) / 2)
    assert torch.equal(gene, of.gene_encoder(torch.cat([torch.arange(4, 12), two.flatten()]))[:8])
    three = vector(of, conditions([A, B, C], [A, B, PAD]))
    expected = torch.stack([own(of, t) for t in (A, B, C)])
    torch.testing.assert_close(three[0], expected.mean(0))
    torch.testing.assert_close(three[1], expected[:2].mean(0))


def test_sum_adds_the_shifts_of_the_targets_present() -> None:
    of = field("sum")
    base = own(of, CONTROL)
    shift = {t: own(of, t) - base for t in (A, B, C)}
    e = vector(of, conditions([A, B, C], [A, B, PAD], [A, CONTROL, PAD], [CONTROL, CONTROL, PAD]))
    torch.testing.assert_close(e[0], base + shift[A] + shift[B] + shift[C], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(e[1], base + shift[A] + shift[B], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(e[2], own(of, A), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(e[3], base, rtol=1e-5, atol=1e-5)


def test_attention_weighs_the_targets_present_by_their_scores_and_doses() -> None:
    of = field("attention", dose=True)
    base, vectors = own(of, CONTROL), torch.stack([own(of, t) for t in (A, B, C)])
    scores = of.conditioning.score(vectors).squeeze(-1)
    e = vector(of, conditions([A, B, C], [C, CONTROL, PAD], dose=torch.full((2, 3), NAN)))
    torch.testing.assert_close(e[0], scores.softmax(0) @ vectors, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(e[1], vectors[2], rtol=1e-4, atol=1e-5)
    # A target that is hardly there takes no weight from the others.
    trace = conditions([A, B, PAD], [A, CONTROL, PAD], dose=torch.tensor([[NAN, 1e-7, NAN], [NAN] * 3]))
    with_trace, without = vector(of, trace)
    torch.testing.assert_close(with_trace, without, rtol=0, atol=1e-4)
    assert base.shape == without.shape


@pytest.mark.parametrize("pooling", POOLINGS)
def test_targets_have_no_order(pooling: str) -> None:
    of = field(pooling, dose=True)
    dose = torch.tensor([[0.5, 2.0, NAN]])
    first = velocity(of, conditions([A, B, C], dose=dose))
    other = velocity(of, conditions([C, B, A], dose=dose.flip(1)))
    torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-5)


def test_covariates_move_the_velocity_and_add_up() -> None:
    of = field(covariates=5)
    asked = conditions(*[[A, CONTROL]] * 3, covariates=torch.tensor([[0, 3], [1, 3], [0, 4]]))
    e = vector(of, asked)
    table = of.conditioning.covariates.weight
    torch.testing.assert_close(e[1] - e[0], table[1] - table[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(e[2] - e[0], table[4] - table[3], rtol=1e-4, atol=1e-5)
    v = velocity(of, asked)
    assert (v[1] - v[0]).abs().max() > 1e-3
    assert (v[2] - v[0]).abs().max() > 1e-3


def test_features_speak_beside_and_without_the_targets_own_vector() -> None:
    of = field("mean", "drugs", features=3)
    features = torch.tensor([[[1.0, -1.0, 0.5], [0.0, 0.0, 0.0]]]).repeat(4, 1, 1)
    features[2] *= -1
    described = torch.tensor([[True, False]]).repeat(4, 1)
    described[3] = False
    identified = torch.tensor([[True, True], [False, True], [False, True], [True, True]])
    asked = conditions(*[[A, CONTROL]] * 4, features=features, described=described, identified=identified)
    both, alone, opposite, identity = vector(of, asked)
    control = own(of, CONTROL)
    projected = of.conditioning.features(features[0, 0])
    torch.testing.assert_close(both, (own(of, A) + projected + control) / 2)
    torch.testing.assert_close(alone, (projected + control) / 2)
    torch.testing.assert_close(identity, (own(of, A) + control) / 2)
    assert not torch.allclose(alone, opposite, atol=1e-2)
    other = replace(asked, tokens=torch.tensor([[B, CONTROL]] * 4))
    torch.testing.assert_close(vector(of, other)[1], alone)  # the id of an unknown target has no say


def test_a_dropped_condition_keeps_nothing_but_its_covariates() -> None:
    of = field(covariates=2, dose=True, null=True)
    torch.nn.init.normal_(of.conditioning.null)
    dose = torch.tensor([[1.0, NAN], [3.0, 0.2]])
    asked = conditions([A, CONTROL], [B, C], dose=dose, covariates=torch.tensor([[0], [1]]))
    e = vector(of, asked.unconditional())
    torch.testing.assert_close(e, of.conditioning.null + of.conditioning.covariates.weight)
    assert not torch.allclose(vector(of, asked), e, atol=1e-2)


def test_thinning_hides_the_shares_asked_for_and_described_slots_alone() -> None:
    n = 4000
    described = torch.tensor([[True, False]]).repeat(n, 1)
    asked = conditions(*[[A, CONTROL]] * n, features=torch.zeros(n, 2, 1), described=described)
    thin = asked.thinned(torch.Generator().manual_seed(0), conditions=0.1, identities=0.5)
    assert thin.dropped is not None
    assert thin.identified is not None
    assert abs(thin.dropped.float().mean() - 0.1) < 0.02
    assert abs(thin.identified[:, 0].float().mean() - 0.5) < 0.03
    assert thin.identified[:, 1].all()
    assert asked.thinned(torch.Generator()) is asked


def test_conditions_of_another_schema_are_refused() -> None:
    with pytest.raises(ConfigError, match="conditions hold dose, but the model was built without them"):
        velocity(field(), conditions([A, B], dose=torch.ones(1, 2)))
    with pytest.raises(ConfigError, match="conditions lack covariates, but the model was built for them"):
        velocity(field(covariates=2), conditions([A, B]))
    with pytest.raises(ConfigError, match="set training.condition_dropout above 0"):
        velocity(field(), conditions([A, B]).unconditional())


def test_new_parts_leave_the_weights_of_the_others_as_they_were() -> None:
    plain, rich = field(), field(dose=True, time=True, covariates=3, features=4, null=True)
    shared = [name for name in plain.state_dict() if "conditioning" not in name and "table" in name]
    assert set(plain.state_dict()) < set(rich.state_dict())
    assert shared
    for name in shared:
        assert torch.equal(plain.state_dict()[name], rich.state_dict()[name])
