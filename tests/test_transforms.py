"""Transforms of images and receptions at test time: their formulas, and what they leave of a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import decode_jpeg, encode_jpeg

from fedsem.hooks.transform import Transform
from fedsem.registry import find, names
from fedsem.streams import Stream

IMAGE = (3, 20, 24)
ALL = sorted(name for name, cls in names("defense").items() if issubclass(cls, Transform))
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "feature_squeezing": [{"bits": 1}, {"bits": 5, "median": 3}, {"bits": 8, "median": 5}]
}


def defense(name: str, **options: Any) -> Any:
    return find("defense", name).model_validate(options)


def signal_of(made: Transform, rows: int = 4) -> Tensor:
    """Images in [0, 1], or two draws of received numbers."""
    generator = torch.Generator().manual_seed(1)
    if made.where == "reception":
        return 1.5 * torch.randn(2, rows, 20, generator=generator)
    return torch.rand(rows, *IMAGE, generator=generator)


def drawn_of(made: Transform, rows: int = 4) -> Tensor | None:
    drawn = made.draw((2, rows), IMAGE, Stream(3).torch())
    return None if drawn is None else drawn[1]


made_of_all = [defense(name, **options) for name in ALL for options in OPTIONS.get(name, [{}])]


@pytest.mark.parametrize("made", made_of_all, ids=lambda made: f"{made.kind}-{made.model_dump()}")
def test_the_value_is_exact_and_the_gradient_is_the_stand_ins(made: Transform) -> None:
    """Backward pass differentiable approximation: nobody who knows a transform sees another value than the link."""
    signal, drawn = signal_of(made), drawn_of(made)
    before, numbers = signal.clone(), signal.new_empty(len(signal), 0) if drawn is None else drawn
    exact = made.applied(signal, drawn, approximate=False)
    assert exact.shape == signal.shape
    assert not torch.equal(exact, signal)
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(2))
    slopes = []
    for way in (lambda leaf: made.applied(leaf, drawn, approximate=True), lambda leaf: made.stand_in(leaf, numbers)):
        leaf = signal.clone().requires_grad_(True)
        value = way(leaf)
        slopes.append(torch.autograd.grad((weights * value).sum(), leaf)[0])
        if len(slopes) == 1:
            assert torch.equal(value, exact)
    assert torch.equal(*slopes)
    assert bool(slopes[0].any())
    assert torch.equal(signal, before)
    # An attack that does not know it can be differentiated too, if only in vain.
    leaf = signal.clone().requires_grad_(True)
    plain = made.applied(leaf, drawn, approximate=False)
    assert torch.equal(plain, exact)
    torch.autograd.grad(plain.sum(), leaf)


@pytest.mark.parametrize("name", ALL)
def test_examples_do_not_depend_on_each_other(name: str) -> None:
    made = defense(name)
    signal, drawn = signal_of(made), drawn_of(made)
    whole = made.applied(signal, drawn, approximate=False)
    for row in range(signal.shape[-2] if made.where == "reception" else len(signal)):
        some = signal[:, row : row + 1] if made.where == "reception" else signal[row : row + 1]
        alone = made.applied(some, None if drawn is None else drawn[row : row + 1], approximate=False)
        torch.testing.assert_close(alone, whole[:, row : row + 1] if made.where == "reception" else whole[row, None])


@given(st.integers(1, 7), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_pixels_are_rounded_to_levels(bits: int, seed: int) -> None:
    """Xu et al., section IV-A: round(u (2^i - 1)) / (2^i - 1)."""
    images = torch.rand(2, *IMAGE, generator=torch.Generator().manual_seed(seed))
    squeezed = defense("feature_squeezing", bits=bits).applied(images, None, approximate=False)
    levels = 2**bits - 1
    np.testing.assert_allclose(squeezed.numpy(), np.rint(images.numpy() * np.float32(levels)) / levels, atol=1e-6)
    assert len(squeezed.unique()) <= 2**bits


@pytest.mark.parametrize("side", [3, 5])
def test_the_median_is_scipys(side: int) -> None:
    images = signal_of(defense("jpeg"))
    smoothed = defense("feature_squeezing", bits=8, median=side).applied(images, None, approximate=False)
    expected = ndimage.median_filter(images.numpy(), size=(1, 1, side, side), mode="mirror")
    np.testing.assert_array_equal(smoothed.numpy(), expected)


def test_rounding_has_no_slope_and_the_median_has() -> None:
    for options, steep in (({"bits": 2}, False), ({"bits": 8, "median": 3}, True)):
        made = defense("feature_squeezing", **options)
        leaf = signal_of(made).requires_grad_(True)
        (slope,) = torch.autograd.grad(made.applied(leaf, None, approximate=False).sum(), leaf)
        assert bool(slope.any()) == steep


@pytest.mark.parametrize(("quality", "colours"), [(10, 3), (75, 3), (75, 1)])
@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")
def test_jpeg_is_torchvisions(quality: int, colours: int) -> None:
    """Another build of libjpeg: one step of a colour may be rounded the other way."""
    images = smooth(colours)
    got = defense("jpeg", quality=quality).applied(images, None, approximate=False)
    for image, mine in zip(images, got, strict=True):
        theirs = decode_jpeg(encode_jpeg((image * 255).round().to(torch.uint8), quality))
        assert float((mine * 255 - theirs).abs().max()) <= 2.01


def smooth(colours: int = 3) -> Tensor:
    ramp = torch.linspace(0, 1, 24).expand(2, colours, 24, 24).clone()
    ramp[1] = ramp[1].transpose(-1, -2) ** 2
    return ramp


def test_worse_jpeg_loses_more() -> None:
    images = smooth()
    lost = [
        float((defense("jpeg", quality=quality).applied(images, None, approximate=False) - images).square().mean())
        for quality in (100, 75, 30, 5)
    ]
    assert lost == sorted(lost)
    assert 3 * lost[0] < lost[-1]


def test_a_shrunken_image_is_torchs_at_its_place() -> None:
    made = defense("random_resize_pad", smallest=0.7)
    images = torch.rand(40, *IMAGE, generator=torch.Generator().manual_seed(0))
    drawn = made.draw((1, 40), IMAGE, Stream(0).torch())[0]
    got, seen = made.applied(images, drawn, approximate=False), set()
    for image, (size, across, down), mine in zip(images, drawn.tolist(), got, strict=True):
        height, width = 14 + int(size * 7), 17 + int(size * 8)
        top, left = int(down * (20 - height + 1)), int(across * (24 - width + 1))
        small = F.interpolate(image[None], (height, width), mode="bilinear", align_corners=False)[0]
        expected = F.pad(small, (left, 24 - width - left, top, 20 - height - top))
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)
        seen.add((height, width, top, left))
    assert len(seen) > 20
    assert {height for height, *_ in seen} == set(range(14, 21))


def test_symbols_above_the_level_are_cut_or_blanked() -> None:
    heard = torch.tensor([[[-3.0, -1.0, 0.5, 2.5, 1.0]]])
    clipped = defense("symbol_clipping", level=1.0).applied(heard, None, approximate=False)
    blanked = defense("symbol_clipping", level=1.0, over="blank").applied(heard, None, approximate=False)
    assert clipped.tolist() == [[[-1.0, -1.0, 0.5, 1.0, 1.0]]]
    assert blanked.tolist() == [[[0.0, -1.0, 0.5, 0.0, 1.0]]]


def test_every_transform_says_where_it_is_from_and_how_it_is_attacked() -> None:
    assert {"feature_squeezing", "jpeg", "random_resize_pad", "symbol_clipping"} <= set(ALL)
    for made in made_of_all:
        assert "20" in (type(made).__doc__ or "")
        assert made.adaptive()["knowledge"]["defense"] == "adaptive"
