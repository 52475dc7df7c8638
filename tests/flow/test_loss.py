"""Path and loss against their equations, written out."""

from __future__ import annotations

import pytest
import torch

from scdfm.config import MMDConfig
from scdfm.errors import ConfigError
from scdfm.flow import Noise, flow_loss, interpolate, mmd2, sample_time
from scdfm.model import reference


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 12, n_genes: int = 5) -> tuple[torch.Tensor, ...]:
    noise, target, predicted = torch.randn(3, n, n_genes, generator=rng())
    t = torch.rand(n, generator=rng(1))
    x_t, velocity = interpolate(noise, target, t)
    return noise, target, predicted, t, x_t, velocity


def test_path_is_straight_from_noise_to_target() -> None:
    noise, target, _, t, x_t, velocity = batch()
    torch.testing.assert_close(x_t, (1 - t)[:, None] * noise + t[:, None] * target)
    torch.testing.assert_close(velocity, target - noise)
    for time, end in ((0.0, noise), (1.0, target)):
        torch.testing.assert_close(interpolate(noise, target, torch.full((12,), time))[0], end)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("n_conditions", [1, 3])
def test_loss_and_gradient_equal_the_plain_formulation(n_conditions: int, weight: float) -> None:
    noise, target, predicted, t, x_t, velocity = batch()
    ours, plain = predicted.clone().requires_grad_(), predicted.clone().requires_grad_()
    loss = flow_loss(ours, velocity, x_t, target, t, n_conditions, MMDConfig(weight=weight))
    loss.total.backward()
    expected = reference.flow_loss(plain, x_t, t, noise, target, n_conditions, weight)
    expected.backward()
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(ours.grad, plain.grad)
    torch.testing.assert_close(loss.total, loss.cfm + weight * loss.mmd)


def test_perfect_velocity_has_no_cfm_and_lands_on_the_target() -> None:
    _, target, _, t, x_t, velocity = batch()
    loss = flow_loss(velocity, velocity, x_t, target, t)
    assert loss.cfm == 0
    # The same cells on both sides: the U-statistic of a sample with itself is negative, not 0.
    widths = MMDConfig().scales
    distances = reference.median_bandwidths(target, widths)
    torch.testing.assert_close(loss.mmd, reference.mmd2(target, target, distances), atol=1e-6, rtol=1e-5)


def test_conditions_are_not_mixed() -> None:
    """Two conditions far apart, each predicted exactly: pooled, an exchange of the two would go unseen."""
    shift = 50.0 * torch.arange(2.0).repeat_interleave(6)[:, None]
    noise, target, *_ = batch()
    target = target + shift
    t = torch.zeros(12)
    right = flow_loss(target - noise, target - noise, noise, target, t, 2)
    wrong = flow_loss(target.flip(0) - noise, target - noise, noise, target, t, 2)
    assert right.mmd < 0.1
    assert wrong.mmd > 0.5
    assert flow_loss(target.flip(0) - noise, target - noise, noise, target, t, 1).mmd < 0.1


def test_given_bandwidths_replace_the_median() -> None:
    _, target, predicted, t, x_t, velocity = batch()
    loss = flow_loss(predicted, velocity, x_t, target, t, 1, MMDConfig(bandwidths=(1.0, 3.0)))
    torch.testing.assert_close(loss.mmd, mmd2(x_t + (1 - t)[:, None] * predicted, target, [1.0, 3.0]))


def test_weight_zero_still_watches_but_does_not_pull() -> None:
    _, target, predicted, t, x_t, velocity = batch()
    loss = flow_loss(predicted.requires_grad_(), velocity, x_t, target, t, 1, MMDConfig(weight=0))
    assert not loss.mmd.requires_grad
    assert loss.mmd != 0
    assert torch.equal(loss.total, loss.cfm)


def test_conditions_of_unequal_size_are_told() -> None:
    _, target, predicted, t, x_t, velocity = batch()
    with pytest.raises(ConfigError, match="12 cells cannot be cut into 5 conditions"):
        flow_loss(predicted, velocity, x_t, target, t, 5)


def test_times() -> None:
    uniform = sample_time(20_000, rng())
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 / (12 * 20_000) ** 0.5
    stratified = sample_time(64, rng(), stratified=True)
    assert torch.equal((stratified * 64).floor().sort().values, torch.arange(64.0))
    assert not torch.equal(stratified, stratified.sort().values)
    assert torch.equal(stratified, sample_time(64, rng(), stratified=True))
    # Each single stratified time is uniform on [0, 1), not bound to its place.
    first = torch.stack([sample_time(4, rng(seed), stratified=True)[0] for seed in range(2000)])
    assert abs(first.mean() - 0.5) < 4 / (12 * 2000) ** 0.5
    assert abs(first.var() - 1 / 12) < 0.01


def test_sources() -> None:
    gaussian = Noise(2).draw(4000, rng())
    assert gaussian.mean().abs() < 4 / 8000**0.5
    assert abs(gaussian.var() - 1) < 0.1
    rates = torch.tensor([0.2, 5.0])
    counts = Noise(2, "poisson", rates).draw(4000, rng()).expm1()
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
    assert ((counts.mean(0) - rates).abs() < 4 * (rates / 4000).sqrt()).all()
    assert torch.equal(gaussian, Noise(2).draw(4000, rng()))
    with pytest.raises(ConfigError, match="needs the mean count of each gene"):
        Noise(2, "poisson")
