"""The reference rows of reconstruction: the mean image, and linear coding of principal components."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import fresh_link, tally
from sklearn.decomposition import PCA

from fedsem.data.dataset import Split
from fedsem.evaluation.air import Air
from fedsem.evaluation.baselines import reference_points
from fedsem.evaluation.trained import TrainedLink

SNRS = [-10.0, 10.0, 120.0]
GRIDS = {"draws": {"attack": 1, "score": 4}, "grids": [{"snr_db": SNRS}]}


def mse_of(link: TrainedLink) -> dict[tuple[str, float], float]:
    points = reference_points(link, Air(link), link.plan.scenario.evaluation.grids)
    return {
        (str(point.columns["decoder"]), float(str(point.columns["snr_db"]))): float(
            tally(point.metrics, "mse").numerator.sum() / tally(point.metrics, "mse").denominator.sum()
        )
        for point in points
    }


def pixels(link: TrainedLink) -> tuple[np.ndarray, np.ndarray]:
    train = link.plan.dataset.train.images.reshape(len(link.plan.dataset.train), -1) / 255
    return train, link.images.flatten(1).double().numpy()


def linear_link(**data: int) -> TrainedLink:
    sizes = {"kind": "digits", "train_images": 300, "test_images": 40} | data
    return fresh_link({"kind": "awgn"}, task="reconstruction", data=sizes, evaluation=GRIDS)


def test_against_the_mean_image_and_scikit_learns_principal_components() -> None:
    link = linear_link()
    measured = mse_of(link)
    train, test = pixels(link)
    for snr in SNRS:
        assert measured["mean_image", snr] == pytest.approx(np.square(test - train.mean(0)).mean(), rel=1e-5)
    # Without noise nothing but the components beyond nc is missing.
    peer = PCA(n_components=link.plan.channel_uses, svd_solver="full").fit(train)
    left_out = np.square(test - peer.inverse_transform(peer.transform(test))).mean()
    assert measured["pca", 120.0] == pytest.approx(left_out, rel=1e-3)
    # With noise it lies between that and the mean image, which a linear decoder falls back to.
    assert left_out < measured["pca", 10.0] < measured["pca", -10.0] < 1.05 * measured["mean_image", 10.0]


def test_linear_coding_over_noise_is_the_closed_form_of_its_components() -> None:
    """A component of variance v, sent with power p over AWGN, is left by the linear MMSE decoder with v / (1 + p snr):
    the share 1 / (1 + p snr)^2 of the component itself, and the rest from noise. The test images have other variances
    than those that the decoder was fitted on."""
    link = linear_link(train_images=1400, test_images=300)
    train, test = pixels(link)
    nc = link.plan.channel_uses
    peer = PCA(n_components=nc, svd_solver="full").fit(train)
    variance = peer.transform(train).var(0)
    power = nc * np.sqrt(variance) / np.sqrt(variance).sum()
    shrunk = 1 / (1 + power * 10)  # snr is 10 dB
    code = peer.transform(test)
    left = np.square(code).mean(0) * shrunk**2 + variance * (shrunk - shrunk**2)
    beyond = np.square(test - peer.inverse_transform(code)).sum(1).mean()
    assert mse_of(link)["pca", 10.0] == pytest.approx((beyond + left.sum()) / test.shape[1], rel=0.02)


def test_a_receiver_that_could_invert_the_channel_equalises_by_mmse() -> None:
    """y / h has noise of infinite variance: fitted on it, the baseline would lose to one that knows nothing of h."""
    measured = {}
    for csi in ("zf", "mmse", "none"):
        channel = {"kind": "rayleigh", "fading": "block", "csi": csi}
        data = {"kind": "digits", "train_images": 300, "test_images": 40}
        measured[csi] = mse_of(fresh_link(channel, task="reconstruction", data=data, evaluation=GRIDS))["pca", 10.0]
    assert measured["zf"] == measured["mmse"] < measured["none"]


def test_fewer_images_than_channel_uses() -> None:
    """Six images span five directions; the other channel uses stay empty."""
    link = linear_link(train_images=6)
    assert link.plan.channel_uses == 8
    measured = mse_of(link)
    train, test = pixels(link)
    peer = PCA(n_components=5, svd_solver="full").fit(train)
    left_out = np.square(test - peer.inverse_transform(peer.transform(test))).mean()
    assert measured["pca", 120.0] == pytest.approx(left_out, rel=1e-2)


@pytest.mark.parametrize("count", [10, 100, 149, 151, 299, 300, 4096])
def test_what_is_fitted_on_some_images_sees_every_class_of_a_sorted_split(count: int) -> None:
    """An image folder lists its classes one after the other; ten images or more must show all ten in equal shares."""
    plan = linear_link().plan
    shades = np.repeat(np.arange(10, dtype=np.uint8), 30)
    split = Split(np.tile(shades[:, None, None, None], (1, 3, 8, 8)), shades.astype(np.int64))
    sorted_plan = replace(plan, dataset=replace(plan.dataset, train=split))
    found = (sorted_plan.some_train_images(count)[:, 0, 0, 0] * 255).round().long()
    assert len(found) == min(count, 300)
    shares = np.bincount(found.numpy(), minlength=10)
    assert shares.max() - shares.min() <= 1
