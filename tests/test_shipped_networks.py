"""The networks that ship: what their model card says of them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from fedsem.data.digit_scenes import DigitScenes
from fedsem.evaluation.average_precision import Detections
from fedsem.evaluation.statistics import MeasuredPrecision
from fedsem.models.mae import Kept
from fedsem.models.pretrained import EMBEDDED, WEIGHTS, load_detector, load_mae
from fedsem.plan import examples_of


@pytest.mark.parametrize("kind", EMBEDDED)
def test_the_model_card_names_the_file_that_ships(kind: str) -> None:
    digest = hashlib.blake2b((WEIGHTS / EMBEDDED[kind]).read_bytes(), digest_size=8).hexdigest()
    assert digest in (WEIGHTS / "README.md").read_text(encoding="utf-8")


def test_both_weigh_at_most_six_megabytes() -> None:
    assert sum((WEIGHTS / name).stat().st_size for name in EMBEDDED.values()) <= 6_000_000


def test_the_detector_finds_digits_in_original_and_in_painted_scenes() -> None:
    """AP50 of at least 0.9 on held-out scenes, and of at least 0.8 on what is painted at mask ratio 0.2."""
    split = DigitScenes().compose(np.arange(60), "test")
    examples = examples_of(split, torch.device("cpu"))
    scenes = examples.images.float() / 255
    mae, (detector, _) = load_mae("embedded"), load_detector("embedded")
    kept = Kept(torch.rand(60, 196, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :157])
    with torch.no_grad():
        painted = mae.decode(mae.encode(scenes, kept), kept).clamp(0, 1)
        for pictures, least in ((scenes, 0.9), (painted, 0.8)):
            found = Detections(examples)
            found.add(detector(pictures).unsqueeze(0), torch.arange(60), torch.ones(60))
            assert MeasuredPrecision([found.finished()["ap50"]]).value >= least
