"""The networks of [S3], layer by layer, against a network written here from the paper's text."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from conftest import fresh_link, small_plan
from torch import Tensor, nn

from fedsem.errors import ScenarioError
from fedsem.models.cnn import Cnn
from fedsem.models.encoder import ImageFormat
from fedsem.models.mlp import mlp
from fedsem.registry import names
from fedsem.tasks.task import DecoderFormat, Task

CIFAR = ImageFormat((3, 32, 32), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def linear_layers(net: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("nc", [4, 20, 64])
def test_the_encoder_has_exactly_the_layers_of_the_paper(nc: int) -> None:
    net = Cnn(channel_uses=nc).build(CIFAR)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    shapes = [(m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding) for m in convolutions]
    assert shapes == [(a, b, (3, 3), (1, 1), "same") for a, b in ((3, 32), (32, 64), (64, 128))]
    assert linear_layers(net) == [(128 * 4 * 4, 512), (512, nc)]
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.25] * 4
    assert sum(isinstance(m, nn.MaxPool2d) for m in net.modules()) == 3
    assert sum(isinstance(m, nn.ReLU) for m in net.modules()) == 4
    by_hand = (3 * 32 * 9 + 32) + (32 * 64 * 9 + 64) + (64 * 128 * 9 + 128) + (2048 * 512 + 512) + (512 * nc + nc)
    assert parameters(net) == by_hand
    assert by_hand == 1_142_336 + 513 * nc
    # Statistics of the data are constants, not parameters that receivers would average.
    assert sum(value.numel() for value in net.state_dict().values()) == by_hand


class Plain(nn.Module):
    """[S3]: conv, ReLU, 2x2 max-pool, dropout, three times; dense 512, ReLU, dropout; dense nc, linear."""

    def __init__(self, nc: int, image: ImageFormat, dropout: float) -> None:
        super().__init__()
        self.mean, self.std = torch.tensor(image.mean), torch.tensor(image.std)
        layers: list[nn.Module] = []
        for a, b in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(a, b, (3, 3), padding=1), nn.ReLU(), nn.MaxPool2d((2, 2)), nn.Dropout(dropout)]
        side = (image.shape[1] // 8) * (image.shape[2] // 8)
        layers += [nn.Flatten(), nn.Linear(128 * side, 512), nn.ReLU(), nn.Dropout(dropout), nn.Linear(512, nc)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        standardised = (images - self.mean[None, :, None, None]) / self.std[None, :, None, None]
        encoded: Tensor = self.layers(standardised)
        return encoded


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 8, 8), (3, 17, 30)])
def test_the_encoder_computes_what_a_plain_network_computes(shape: tuple[int, int, int]) -> None:
    """Forward and backward without dropout (whose masks are drawn in memory order); odd sizes round down."""
    image = ImageFormat(shape, CIFAR.mean, CIFAR.std)
    ours = Cnn(channel_uses=12, dropout=0.0).build(image).train()
    plain = Plain(12, image, 0.0).train()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(mine.data)
    images = torch.rand((4, *shape), generator=torch.Generator().manual_seed(0))
    outputs = [net(images) for net in (ours, plain)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_dropout_drops_a_quarter_of_the_features_after_every_stage() -> None:
    """Features after each dropout: a quarter of what was positive is zero, the rest is scaled by 4/3."""
    net = Cnn(channel_uses=12).build(CIFAR).train()
    seen: list[tuple[Tensor, Tensor]] = []
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda m, inputs, output: seen.append((inputs[0].detach(), output.detach())))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net(torch.rand(32, 3, 32, 32))
    assert [tuple(before.shape[1:]) for before, _ in seen] == [(32, 16, 16), (64, 8, 8), (128, 4, 4), (512,)]
    for before, after in seen:
        assert before.min() >= 0
        positive = before > 0
        n = int(positive.sum())
        dropped = float((after[positive] == 0).float().mean())
        assert abs(dropped - 0.25) < 5 * math.sqrt(0.25 * 0.75 / n)
        kept = positive & (after > 0)
        torch.testing.assert_close(after[kept], before[kept] * 4 / 3)


def test_the_flattened_order_does_not_depend_on_the_memory_format() -> None:
    """A checkpoint from a channels-last link must fit a contiguous one."""
    net = Cnn(channel_uses=12).build(CIFAR).eval()
    images = torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        contiguous = net(images)
        last = net.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, contiguous, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 7, 32), (3, 32, 7), (3, 4, 4)])
def test_images_too_small_for_three_poolings_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ScenarioError, match=r"link\.encoder.*at least 8x8") as caught:
        Cnn().build(ImageFormat(shape, CIFAR.mean, CIFAR.std))
    assert "\n" not in str(caught.value)
    assert Cnn().build(ImageFormat((3, 8, 8), CIFAR.mean, CIFAR.std))(torch.rand(1, 3, 8, 8)).shape == (1, 20)


DECODERS = {
    "classification": ((20, 20, 20, 10), 2 * (20 * 20 + 20) + 20 * 10 + 10),
    "reconstruction": (
        (20, 20, 128, 256, 512, 3072),
        420 + (20 * 128 + 128) + (128 * 256 + 256) + (256 * 512 + 512) + (512 * 3072 + 3072),
    ),
    "sensing": ((20, 20, 10, 2), 420 + 210 + 22),
}


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_have_the_layers_of_the_paper(kind: str) -> None:
    sizes, by_hand = DECODERS[kind]
    task = names("task")[kind].model_validate({})
    assert isinstance(task, Task)
    net = task.build(DecoderFormat(20, 20, (3, 32, 32), 10, 1))
    assert linear_layers(net) == list(pairwise(sizes))
    assert parameters(net) == by_hand
    # A ReLU after every layer but the last.
    kinds = [type(m) for m in net.children()]
    assert kinds == [nn.Linear, nn.ReLU] * (len(sizes) - 2) + [nn.Linear]


def test_decoders_follow_the_width_of_their_channel_and_the_data() -> None:
    """Estimates, radar extras and range bins widen the first layer only; classes and bins the last."""
    wide = DecoderFormat(width=37, channel_uses=20, image_shape=(3, 16, 24), classes=7, range_bins=5)
    build = {kind: names("task")[kind].model_validate({}) for kind in DECODERS}
    assert linear_layers(build["classification"].build(wide)) == [(37, 20), (20, 20), (20, 7)]  # type: ignore[attr-defined]
    assert linear_layers(build["reconstruction"].build(wide))[0] == (37, 20)  # type: ignore[attr-defined]
    assert linear_layers(build["reconstruction"].build(wide))[-1] == (512, 3 * 16 * 24)  # type: ignore[attr-defined]
    ranging = names("task")["sensing"].model_validate({"range": True})
    assert linear_layers(ranging.build(wide)) == [(37, 20), (20, 10), (10, 6)]  # type: ignore[attr-defined]
    one = DecoderFormat(width=1, channel_uses=1, image_shape=(3, 16, 24), classes=7, range_bins=1)
    assert linear_layers(build["sensing"].build(one)) == [(1, 1), (1, 1), (1, 2)]  # type: ignore[attr-defined]


def test_mlp_is_what_its_weights_say() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = mlp(3, (4, 5), 2)
    x = torch.randn((6, 2, 3), generator=torch.Generator().manual_seed(0))
    w = [(m.weight, m.bias) for m in net if isinstance(m, nn.Linear)]
    by_hand = x
    for weight, bias in w[:-1]:
        by_hand = (by_hand @ weight.T + bias).clamp_min(0)
    torch.testing.assert_close(net(x), by_hand @ w[-1][0].T + w[-1][1])
    assert net(x).min() < 0


def test_a_links_encoder_standardises_with_the_training_statistics() -> None:
    link = fresh_link({"kind": "awgn"})
    train = link.plan.dataset.train.images / 255.0
    torch.testing.assert_close(
        link.transmitter.encoder.mean.flatten().double(),  # type: ignore[operator]
        torch.from_numpy(train.mean((0, 2, 3))),
        rtol=1e-5,
        atol=1e-6,
    )
    torch.testing.assert_close(
        link.transmitter.encoder.std.flatten().double(),  # type: ignore[operator]
        torch.from_numpy(train.std((0, 2, 3))),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_encoder_is_chosen_by_the_scenario() -> None:
    plan = small_plan(link={"encoder": {"kind": "cnn", "channel_uses": 6, "dropout": 0.5}})
    transmitter = plan.new_transmitter()
    assert linear_layers(transmitter.encoder)[-1] == (512, 6)
    assert {m.p for m in transmitter.modules() if isinstance(m, nn.Dropout)} == {0.5}


def test_weights_begin_as_glorot_and_bengio_say() -> None:
    """Uniform within sqrt(6 / (fan_in + fan_out)): bound and variance 2 / (fan_in + fan_out); biases are zero."""
    torch.manual_seed(0)
    for net in (Cnn(channel_uses=20).build(CIFAR), mlp(20, (128, 256, 512), 3072)):
        for layer in net.modules():
            if not isinstance(layer, (nn.Conv2d, nn.Linear)):
                continue
            outputs, inputs, *window = layer.weight.shape
            fans = (inputs + outputs) * math.prod(window)
            bound = math.sqrt(6 / fans)
            weights = layer.weight.detach().double()
            assert 0.9 * bound < float(weights.abs().max()) <= bound + 1e-6
            error = 4 * math.sqrt(0.8 / weights.numel())  # the sample variance of a uniform law: 4 standard errors
            assert float(weights.square().mean()) == pytest.approx(2 / fans, rel=error)
            assert layer.bias is not None
            assert not layer.bias.any()


def test_the_dense_encoder_standardises_and_sends_nc_numbers() -> None:
    net = names("encoder")["dense"].model_validate({"channel_uses": 6, "hidden": [9, 7]}).build(CIFAR)  # type: ignore[attr-defined]
    assert linear_layers(net) == [(3072, 9), (9, 7), (7, 6)]
    images = torch.rand(4, 3, 32, 32)
    values = ((images - net.mean) / net.std).flatten(1)
    first, second, last = (layer for layer in net.layers if isinstance(layer, nn.Linear))
    for layer in (first, second):
        values = torch.relu(values @ layer.weight.T + layer.bias)
    values = values @ last.weight.T + last.bias
    torch.testing.assert_close(net(images), values)
    assert set(net.state_dict()) == {f"layers.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}
