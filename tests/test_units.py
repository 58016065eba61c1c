"""Decibels, budgets and ratios against their definitions and against budgets the field knows by heart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsem.units import achieved_psr, energy, from_db, l2_radius, linf_radius, to_db

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)


@pytest.mark.parametrize(("db", "ratio"), [(0, 1), (10, 10), (20, 100), (-30, 1e-3), (3.0103, 2), (-6.0206, 0.25)])
def test_familiar_decibels(db: float, ratio: float) -> None:
    assert from_db(db) == pytest.approx(ratio, rel=1e-5)
    assert to_db(ratio) == pytest.approx(db, abs=1e-4)


@PROPERTY
@given(st.floats(-200, 200))
def test_db_there_and_back(db: float) -> None:
    assert to_db(from_db(db)) == pytest.approx(db, abs=1e-9)
    tensor = torch.tensor([db], dtype=torch.float64)
    torch.testing.assert_close(to_db(from_db(tensor)), tensor, rtol=0, atol=1e-9)


def test_zero_power_is_minus_infinity_db() -> None:
    assert to_db(0) == -math.inf
    assert to_db(torch.zeros(1)).item() == -math.inf


@PROPERTY
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_energy_is_the_squared_norm_of_each_example(batch: int, rows: int, columns: int, seed: int) -> None:
    x = torch.randn((batch, rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = torch.stack([torch.linalg.vector_norm(example) ** 2 for example in x])
    torch.testing.assert_close(energy(x), expected)
    torch.testing.assert_close(energy(3 * x), 9 * expected)


@PROPERTY
@given(st.floats(-60, 10), st.integers(1, 40), st.integers(0, 2**31))
def test_both_balls_keep_the_budget(psr_db: float, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand((3, size), generator=generator, dtype=torch.float64) + 0.01
    psr, direction = from_db(psr_db), torch.randn((3, size), generator=generator, dtype=torch.float64)
    on_sphere = direction / direction.norm(dim=1, keepdim=True) * l2_radius(energy(u), psr)[:, None]
    torch.testing.assert_close(to_db(achieved_psr(on_sphere, energy(u))), torch.full((3,), psr_db, dtype=torch.float64))
    # A corner of the cube lies on the sphere, so the whole cube lies inside it.
    corner = direction.sign() * linf_radius(energy(u), psr, size)[:, None]
    torch.testing.assert_close(achieved_psr(corner, energy(u)), torch.full((3,), psr, dtype=torch.float64))


def test_eight_over_255_on_cifar10_is_about_minus_24_6_db() -> None:
    # Mean and standard deviation of the CIFAR-10 training set, as torchvision recipes print them.
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    clean = 3 * 32 * 32 * (mean.square() + std.square()).mean()
    delta = torch.full((1, 3, 32, 32), 8 / 255)
    assert to_db(achieved_psr(delta, clean[None])).item() == pytest.approx(-24.6, abs=0.1)
    assert linf_radius(clean[None], from_db(-24.65), 3072).item() == pytest.approx(8 / 255, rel=0.01)


def test_psr_of_a_silent_signal_is_finite() -> None:
    assert torch.isfinite(achieved_psr(torch.ones(2, 3), torch.zeros(2))).all()
