"""Diversification of training images: what it changes, what it keeps, and beside what else it works."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_loss_defenses import LINK, defense, reply
from test_training_losses import MAE
from torch import Tensor

from fedsem.checks import resolve
from fedsem.errors import ScenarioError
from fedsem.hooks.augmentation import Augmentation
from fedsem.scenario import check_scenario
from fedsem.streams import Stream

NOTHING = {"area": 1.0, "colour": 0.0, "blur": 0.0, "noise": 0.0}
ROOT = Stream(0)


def images(count: int = 40) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def made(**options: Any) -> Augmentation:
    found: Augmentation = defense("data_diversification", **options)
    return found


def test_every_image_is_changed_for_itself_and_by_the_stream_alone() -> None:
    same = images(1).expand(40, -1, -1, -1).contiguous()
    before = same.clone()
    out = made().augmented(same, ROOT)
    assert torch.equal(same, before)
    assert out.shape == same.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    distinct = {tuple(np.round(image.flatten().numpy(), 5)) for image in out}
    assert len(distinct) == 40
    assert torch.equal(out, made().augmented(same, ROOT))
    assert not torch.equal(out, made().augmented(same, Stream(0).child("another receiver")))


def test_flips_alone_mirror_about_half_of_the_images() -> None:
    clean = images(400)
    out = made(**NOTHING | {"flip": True}).augmented(clean, ROOT)
    kept = (out == clean).flatten(1).all(1)
    mirrored = (out == clean.flip(3)).flatten(1).all(1)
    assert bool((kept ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250  # five standard deviations


def test_noise_alone_has_its_variance_in_about_half_of_the_images() -> None:
    grey = torch.full((400, 3, 16, 16), 0.5)
    out = made(**NOTHING | {"noise": 0.05}).augmented(grey, ROOT)
    noisy = out[(out != grey).flatten(1).any(1)]
    assert 150 < len(noisy) < 250
    assert float((noisy - 0.5).std()) == pytest.approx(0.05, rel=0.01)


def test_blur_alone_keeps_the_mean_and_takes_detail() -> None:
    clean = images(100)
    out = made(**NOTHING | {"blur": 2.0}).augmented(clean, ROOT)
    blurred = (out != clean).flatten(1).any(1)
    assert 25 < int(blurred.sum()) < 75
    assert float((out - clean).mean(dim=(1, 2, 3)).abs().max()) < 0.02
    assert bool((out[blurred].flatten(1).std(1) < clean[blurred].flatten(1).std(1)).all())


def test_crops_alone_keep_the_extent_of_values_and_the_shape() -> None:
    ramp = torch.linspace(0, 1, 16).expand(50, 3, 16, 16).contiguous()
    out = made(**NOTHING | {"area": 0.5}).augmented(ramp, ROOT)
    assert out.shape == ramp.shape
    width = out[:, 0, 8, -1] - out[:, 0, 8, 0]  # a crop sees a part of the ramp
    assert float(width.max()) <= 1 + 1e-6
    assert 0.5 < float(width.min()) < 0.9
    flat = torch.full((5, 3, 16, 16), 0.3)
    torch.testing.assert_close(made(**NOTHING | {"area": 0.5}).augmented(flat, ROOT), flat)


def test_colour_alone_multiplies_brightness_within_its_range() -> None:
    grey = torch.full((200, 3, 16, 16), 0.4)
    out = made(**NOTHING | {"colour": 0.25}).augmented(grey, ROOT)
    factor = out[:, 0, 0, 0] / 0.4  # contrast and saturation leave a flat grey image as it is
    torch.testing.assert_close(out, factor.view(-1, 1, 1, 1) * grey)
    assert 0.75 <= float(factor.min()) < 0.8
    assert 1.2 < float(factor.max()) <= 1.25 + 1e-6


def test_it_acts_in_training_beside_a_defense_of_another_hook() -> None:
    diverse, hard = {"kind": "data_diversification"}, {"kind": "noise_augmentation", "psr_db": -20}
    plain, one, both = reply({}), reply({"d": diverse}), reply({"d": diverse, "h": hard})
    assert one.error is both.error is None
    name = next(iter(plain.delta))
    assert not torch.equal(plain.delta[name], one.delta[name])
    assert not torch.equal(one.delta[name], both.delta[name])
    again = reply({"d": diverse})
    assert all(torch.equal(value, again.delta[name]) for name, value in one.delta.items())


def test_its_randomness_is_named_by_receiver_round_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = type(made())
    streams: list[Stream] = []
    plain = cls.augmented

    def augmented(self: Any, batch: Tensor, stream: Stream) -> Tensor:
        streams.append(stream)
        return plain(self, batch, stream)

    monkeypatch.setattr(cls, "augmented", augmented)
    reply({"d": {"kind": "data_diversification"}})
    # Receiver 0 in round 1, the first defense, the first epoch: 64 images in two batches.
    assert [stream.path for stream in streams] == [("train", 0, 1, "augmentation", 0, 0, step) for step in (0, 1)]
    assert {stream.seed for stream in streams} == {3}


@pytest.mark.parametrize(
    ("options", "changes", "sentence"),
    [
        (NOTHING, {}, r"defenses\.d.*every image stays as it is"),
        ({}, MAE, r"'defenses\.d': boxes and masks of 'objects' would not move"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    diverse = {"kind": "data_diversification", **options}
    with pytest.raises(ScenarioError, match=sentence):
        resolve(check_scenario({**LINK, **changes, "defenses": {"d": diverse}, "use": {"defenses": ["d"]}}))
