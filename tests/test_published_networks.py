"""Networks in Hugging Face's format, as people with the published weights name them: tiny ones with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig, ViTMAEForPreTraining

from fedsem import run
from fedsem.errors import DataError
from fedsem.models.detr import Detr, load_detr
from fedsem.models.mae import MaeArchitecture
from fedsem.models.pretrained import load_mae

SHARED = Path(__file__).parents[2] / "shared" / "data" / "coco128"


@pytest.fixture(scope="module")
def mae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViTMAE as `save_pretrained` writes it, with positions, for 64x64 pictures."""
    from fedsem.models.mae import Mae

    folder = tmp_path_factory.mktemp("vit-mae")
    torch.manual_seed(0)
    config = MaeArchitecture(width=32, layers=1, decoder_width=32, decoder_layers=1).config(64)
    Mae(config).vitmae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detr_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DETR of two COCO categories and one that no data set has."""
    folder = tmp_path_factory.mktemp("detr")
    backbone = ResNetConfig(  # type: ignore[call-arg]  # transformers' own decorator hides them
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "use_timm_backbone": False,
        "backbone_config": backbone,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "num_queries": 7,
        "id2label": {0: "N/A", 1: "cat", 2: "dog"},
        "label2id": {"N/A": 0, "cat": 1, "dog": 2},
    }
    DetrForObjectDetection(DetrConfig(**options)).save_pretrained(folder)
    return folder


def test_a_vitmae_folder_is_read_as_transformers_reads_it(mae_folder: Path) -> None:
    ours, theirs = load_mae(str(mae_folder)), ViTMAEForPreTraining.from_pretrained(mae_folder)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.vitmae.state_dict()[name], value), name
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_a_detr_folder_finds_what_transformers_finds(detr_folder: Path) -> None:
    """Boxes in pixels and their scores, against transformers' own post-processing."""
    from transformers import DetrImageProcessor

    detector, names = load_detr(str(detr_folder))
    assert names == ("N/A", "cat", "dog")
    detector.eval()
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = detector(pictures)
        told = detector.network((pictures - detector.mean) / detector.std)
    processed = DetrImageProcessor().post_process_object_detection(told, threshold=0.0, target_sizes=[(64, 64)] * 2)
    for rows, theirs in zip(found, processed, strict=True):
        order = theirs["scores"].argsort(descending=True)
        torch.testing.assert_close(rows[:, 4], theirs["scores"][order])
        torch.testing.assert_close(rows[:, :4], theirs["boxes"][order].clamp(0, 64), atol=1e-3, rtol=1e-4)
        assert torch.equal(rows[:, 5].long(), theirs["labels"][order])


def test_detrs_loss_reaches_the_picture(detr_folder: Path) -> None:
    detector, _ = load_detr(str(detr_folder))
    assert isinstance(detector.eval(), Detr)
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    detector.loss(pictures, torch.tensor([[[5.0, 5, 40, 50, 1], [0, 0, 0, 0, -1]]])).sum().backward()
    assert pictures.grad is not None
    assert bool(pictures.grad.isfinite().all())
    assert bool(pictures.grad.any())


@pytest.mark.parametrize("load", [load_mae, load_detr])
def test_a_network_that_is_nowhere_is_named_in_one_sentence(load: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        load(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/coco128, which users do not have")
def test_real_coco_pictures_run_through_the_whole_path(mae_folder: Path, tmp_path: Path) -> None:
    """Loading, scaling, painting, all tasks and metrics on 128 annotated pictures; random weights, 64x64 pixels."""
    results = run(
        {
            "schema": 1,
            "name": "coco128",
            "compute": {"engine": "local", "device": "cpu"},
            "data": {
                "kind": "coco",
                "images": str(SHARED / "images"),
                "annotations": str(SHARED / "instances.json"),
                "image_size": 64,
            },
            "link": {"encoder": {"kind": "mae", "pretrained": str(mae_folder), "scorer": "small"}},
            "channels": {"down": {"kind": "rayleigh"}},
            "tasks": {
                "picture": {"kind": "reconstruction", "ssim": True, "lpips": True},
                "mask": {"kind": "segmentation"},
                "label": {"kind": "classification"},
                "objects": {"kind": "detection", "pretrained": {"training": {"steps": 2, "batch": 4}}},
            },
            "receivers": {
                "users": {"count": 2, "tasks": ["picture", "mask", "label", "objects"], "channel": "down"},
            },
            "federation": {"rounds": 1},
            "evaluation": {
                "draws": {"score": 2},
                "baselines": False,
                "grids": [{"snr_db": [10], "mask_ratio": [0.25, 0.5], "selection": ["score", "random"]}],
            },
        },
        out=tmp_path,
    )
    measured = results.table[results.table.stage == "evaluate"]
    assert {"mse", "ssim", "dice", "accuracy", "f1", "ap", "ap50", "ap75"} <= set(measured.metric)
    assert set(measured.kept) == {12.0, 8.0}
    assert measured.value.notna().all()
