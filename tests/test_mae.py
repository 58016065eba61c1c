"""The masked auto-encoder, its scorer and how patches are chosen: against Hugging Face's own forward pass, closed forms
and finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from fedsem.data.digit_scenes import DigitScenes
from fedsem.errors import ScenarioError
from fedsem.evaluation.oracle import greedy_order
from fedsem.link import Transmitter
from fedsem.models.encoder import ImageFormat
from fedsem.models.extractor import Payload, capacity, nominal_latency
from fedsem.models.mae import Kept, Mae, MaeArchitecture, kept_patches, sine_cosine
from fedsem.models.mae_encoder import Choice, MaeEncoder, MaeOptions, quantised
from fedsem.models.places import uniform_scores
from fedsem.models.pretrained import load_mae
from fedsem.models.selection import Relaxation, gate, variance_scores
from fedsem.units import to_db

FORMAT = ImageFormat((3, 224, 224), (0.5, 0.4, 0.3), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def scenes() -> Tensor:
    """Held-out digit scenes in [0, 1]."""
    return torch.tensor(DigitScenes().compose(np.arange(12), "test").images).float() / 255


@pytest.fixture(scope="module")
def encoder() -> MaeEncoder:
    torch.manual_seed(3)
    return MaeOptions(scorer="small").build(FORMAT).eval()


def small_mae() -> Mae:
    torch.manual_seed(0)
    architecture = MaeArchitecture(patch=8, width=32, layers=2, decoder_width=32, decoder_layers=1)
    return Mae(architecture.config(32)).eval().requires_grad_(False)


def choice(batch: int, patches: int, count: int, seed: int = 0) -> Kept:
    order = torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed))
    return Kept(order.topk(count, dim=1).indices)


def test_positions_are_those_of_the_published_checkpoints() -> None:
    """transformers writes [row | column] and swaps the halves for ViTMAE, whose weights expect [column | row]."""
    theirs = build_2d_sinusoidal_position_embedding(14, 14, 64, cls_token=True)
    swapped = torch.cat([theirs[:, 32:], theirs[:, :32]], dim=1)
    torch.testing.assert_close(sine_cosine(14, 64)[0], swapped, atol=1e-6, rtol=0)


def test_a_new_mae_can_tell_its_patches_apart() -> None:
    """transformers 5 builds the network with all positions zero, encoder and decoder alike."""
    mae = small_mae()
    for position in (mae.vitmae.vit.embeddings.position_embeddings, mae.vitmae.decoder.decoder_pos_embed):
        assert len(position[0, 1:].unique(dim=0)) == mae.patches
        assert not position.requires_grad


def test_encoding_and_painting_are_hugging_faces_own() -> None:
    """The same kept patches through ViTMAEForPreTraining.forward, whose mask comes from argsorted `noise`."""
    mae, images = small_mae(), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    kept = choice(3, 16, 6)
    noise = torch.ones(3, 16).scatter(1, kept.index, torch.arange(6.0).expand(3, -1) / 10)
    mae.vitmae.config.mask_ratio = 1 - 6.5 / 16
    theirs = mae.vitmae((images - mae.mean) / mae.std, noise=noise)
    painted = mae.vitmae.unpatchify(theirs.logits) * mae.std + mae.mean
    torch.testing.assert_close(mae.decode(mae.encode(images, kept), kept), painted, atol=2e-5, rtol=1e-4)


def test_patches_come_back_as_they_were(scenes: Tensor) -> None:
    mae = load_mae("embedded")
    torch.testing.assert_close(mae.unpatchify(mae.patchify(scenes)), scenes, atol=0, rtol=0)
    first = scenes[:, :, :16, 16:32].flatten(1)  # the second patch of the first row
    torch.testing.assert_close(mae.patchify(scenes)[:, 1], first, atol=0, rtol=0)


def test_dropping_tokens_and_gating_them_paint_the_same(scenes: Tensor) -> None:
    mae = load_mae("embedded")
    for count in (20, 78, 196):
        kept = choice(len(scenes), 196, count)
        gates = kept.mask(196).float()
        dropped = mae.decode(mae.encode(scenes, kept), kept)
        gated = mae.decode_gated(mae.encode_gated(scenes, gates), gates)
        torch.testing.assert_close(gated, dropped, atol=1e-4, rtol=0)


def test_pictures_with_different_numbers_of_patches_do_not_disturb_each_other(scenes: Tensor) -> None:
    mae, counts = load_mae("embedded"), torch.tensor([5, 40, 196, 1])
    images, order = scenes[:4], choice(4, 196, 196).index
    kept = Kept(order, counts)
    together = mae.decode(mae.encode(images, kept), kept)
    for i, count in enumerate(counts.tolist()):
        alone = Kept(order[i : i + 1, :count])
        one = mae.decode(mae.encode(images[i : i + 1], alone), alone)
        torch.testing.assert_close(together[i : i + 1], one, atol=1e-4, rtol=0)
    assert kept.mask(196).sum(1).tolist() == counts.tolist()


def test_the_encoder_computes_kept_patches_only() -> None:
    """What a dropped patch shows cannot matter."""
    mae, images = small_mae(), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    kept = choice(2, 16, 5)
    patches = mae.patchify(images)
    other = torch.where(kept.mask(16).unsqueeze(-1), patches, torch.rand_like(patches))
    torch.testing.assert_close(mae.encode(mae.unpatchify(other), kept), mae.encode(images, kept), atol=0, rtol=0)


def test_scores_are_the_mean_softmax_attention_of_the_class_token(encoder: MaeEncoder, scenes: Tensor) -> None:
    """[S0] III-A by hand, head by head."""
    net = encoder.scorer
    tokens: dict[str, Tensor] = {}
    hook = net.norm.register_forward_hook(lambda module, given, result: tokens.update(out=result))
    with torch.no_grad():
        scores = encoder.scores(scenes[:2])
    hook.remove()
    before = tokens["out"] + net.place
    query, key = net.query(before[:, 0]), net.key(before[:, 1:])
    size = query.shape[-1] // net.heads
    by_head = []
    for head in range(net.heads):
        part = slice(head * size, (head + 1) * size)
        logits = (key[..., part] @ query[:, part].unsqueeze(-1)).squeeze(-1) / math.sqrt(size)
        by_head.append(torch.softmax(logits, dim=1))
    torch.testing.assert_close(scores, torch.stack(by_head).mean(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(scores.sum(1), torch.ones(2))


def test_a_scorer_as_large_as_the_encoder_begins_as_a_copy_of_it(scenes: Tensor) -> None:
    """Before its last block: Hugging Face's own layers but the last, on all patches."""
    encoder = MaeOptions().build(FORMAT).eval()
    net, mae = encoder.scorer, encoder.mae
    vit = mae.vitmae.vit
    tokens: dict[str, Tensor] = {}
    hook = net.norm.register_forward_hook(lambda module, given, result: tokens.update(out=result))
    with torch.no_grad():
        scores = encoder.scores(scenes[:2])
        embedded = vit.embeddings.patch_embeddings((scenes[:2] - mae.mean) / mae.std)
        whole = torch.cat([vit.embeddings.cls_token.expand(2, -1, -1), embedded], 1)
        expected = whole + vit.embeddings.position_embeddings
        for layer in vit.layers[:-1]:
            expected = layer(expected)
        expected = vit.layernorm(expected)
    hook.remove()
    torch.testing.assert_close(tokens["out"], expected, atol=1e-4, rtol=1e-4)
    assert scores.shape == (2, 196)
    trained = {id(parameter) for parameter in net.parameters()}
    assert not trained & {id(parameter) for parameter in mae.parameters()}


@pytest.mark.parametrize(("ratio", "count"), [(0.2, 157), (0.4, 118), (0.6, 78), (0.8, 39), (0.0, 196)])
def test_patches_of_the_papers_mask_ratios(ratio: float, count: int) -> None:
    assert kept_patches(196, ratio) == count


@given(st.integers(1, 400), st.floats(0, 0.999))
def test_a_mask_ratio_is_met_to_half_a_patch(patches: int, ratio: float) -> None:
    count = kept_patches(patches, ratio)
    assert abs(count - patches * (1 - ratio)) <= 0.5 + 1e-6
    assert 0 <= count <= patches


@given(st.integers(1, 15), st.sampled_from(get_args(Relaxation)), st.integers(0, 1000))
@settings(deadline=None)
def test_gates_choose_the_best_and_pass_gradients(count: int, relaxation: Relaxation, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, 16, generator=generator).softmax(1).requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gates = gate(scores, count, relaxation, 0.5)
    assert gates.sum(1).tolist() == pytest.approx([count] * 3, abs=1e-4)
    if relaxation != "gumbel":
        torch.testing.assert_close(gates.detach().topk(count, dim=1).indices.sort(1).values,
                                   scores.detach().topk(count, dim=1).indices.sort(1).values)  # fmt: skip
    (gates * torch.rand(3, 16, generator=generator)).sum().backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())
    assert bool(scores.grad.any())


def test_partial_gates_have_the_marginal_value_of_a_patch_as_their_mean_gradient(scenes: Tensor) -> None:
    """The integral of dL/dg_j from 0 to 1 is L(with j) - L(without j): by quadrature, against two real evaluations."""
    mae, images = load_mae("embedded"), scenes[:1]
    hard = choice(1, 196, 78).mask(196).float()

    def loss(gates: Tensor) -> Tensor:
        return 1e3 * (mae.decode_gated(mae.encode_gated(images, gates), gates) - images).square().mean()

    nodes, weights = np.polynomial.legendre.leggauss(12)
    for patch in (int(hard[0].argmax()), int(hard[0].argmin())):
        integral = 0.0
        for node, weight in zip(nodes, weights, strict=True):
            gates = hard.clone()
            gates[0, patch] = (node + 1) / 2
            (gradient,) = torch.autograd.grad(loss(gates.requires_grad_()), gates)
            integral += weight / 2 * float(gradient[0, patch])
        ends = []
        for value in (1.0, 0.0):
            gates = hard.clone()
            gates[0, patch] = value
            ends.append(float(loss(gates)))
        assert integral == pytest.approx(ends[0] - ends[1], rel=0.05, abs=2e-3)


def test_training_moves_the_scorer_and_not_the_mae(scenes: Tensor) -> None:
    torch.manual_seed(0)
    encoder = MaeOptions(scorer="small").build(FORMAT).train()
    transmitter = Transmitter(encoder, "real", "per_example", "float32")
    before = {name: value.clone() for name, value in encoder.mae.state_dict().items()}
    start = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert not any(name.startswith("mae") for name, _ in encoder.named_parameters())
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-2)
    sent = transmitter.send(scenes[:4], gates=True)
    (transmitter.hear(sent.x.unsqueeze(0), sent) - scenes[:4]).abs().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        # A bias of all keys moves every score alike: softmax does not see it.
        assert bool(parameter.grad.any()) or name == "scorer.key.bias", name
    optimizer.step()
    assert any(not torch.equal(value, start[name]) for name, value in encoder.state_dict().items())
    for name, value in encoder.mae.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("strategy", ["score", "random", "uniform", "variance"])
def test_every_strategy_keeps_as_many_different_patches_as_it_was_told(
    strategy: str, encoder: MaeEncoder, scenes: Tensor
) -> None:
    order = torch.rand(4, 196, generator=torch.Generator().manual_seed(0)).argsort(1) if strategy == "random" else None
    with torch.no_grad():
        kept = encoder.choose(scenes[:4], Choice(strategy, 39, order))  # type: ignore[arg-type]
    assert kept.mask(196).sum(1).tolist() == [39] * 4


def test_the_even_grid_spreads_patches() -> None:
    """Of a quarter of the patches, none is as far from the next as random ones are."""
    scores = uniform_scores(14)
    assert len(scores.unique()) == 196

    def gap(places: Tensor) -> float:
        at = torch.stack([places // 14, places % 14], 1).float()
        everywhere = torch.cartesian_prod(torch.arange(14.0), torch.arange(14.0))
        return float(torch.cdist(everywhere, at).amin(1).max())

    even = gap(scores.topk(49).indices)
    by_chance = [gap(torch.randperm(196, generator=torch.Generator().manual_seed(i))[:49]) for i in range(20)]
    assert even < min(by_chance)


def test_variance_scores_are_numpys(scenes: Tensor) -> None:
    found = variance_scores(load_mae("embedded"), scenes[:1])[0, 15]
    patch = scenes[0, :, 16:32, 16:32].double().numpy()  # second row, second column
    assert float(found) == pytest.approx(np.mean([patch[c].var() for c in range(3)]), rel=1e-4)


@dataclass
class Gates:
    """Stands in for an encoder whose pictures are its gates."""

    patches: int

    @property
    def mae(self) -> Gates:
        return self

    def gated_by(self, images: Tensor, gates: Tensor) -> tuple[Tensor, None]:
        return gates, None

    def paint_gated(self, values: Tensor, selected: None) -> Tensor:
        return values


def test_the_oracle_takes_what_the_loss_falls_most_with() -> None:
    """Of a loss that is linear in the gates, in the order of its coefficients; of one that only two patches together
    lower, the second as soon as it has the first."""
    worth = torch.rand(20, 30, generator=torch.Generator().manual_seed(0))
    order = greedy_order(Gates(30), torch.zeros(20, 1), lambda gates, index: -(gates * worth[index]).sum(1))  # type: ignore[arg-type]
    assert torch.equal(order, worth.argsort(1, descending=True))
    pair = greedy_order(
        Gates(30),  # type: ignore[arg-type]
        torch.zeros(1, 1),
        lambda gates, index: -0.3 * gates[:, 4] - gates[:, 4] * gates[:, 9] - 0.25 * gates[:, 7],
    )
    assert pair[0, :2].tolist() == [4, 9]


def test_the_oracle_beats_chance_by_far(encoder: MaeEncoder, scenes: Tensor) -> None:
    some = scenes[:8]

    def loss(pictures: Tensor, index: Tensor) -> Tensor:
        return (pictures - some[index]).square().mean((1, 2, 3))

    order = greedy_order(encoder, some, loss)
    assert torch.equal(order.sort(1).values, torch.arange(196).expand(8, -1))
    everything = torch.arange(8)
    with torch.no_grad():
        error = [
            loss(encoder.paint(encoder.values(some, kept), kept), everything).mean()
            for kept in (Kept(order[:, :78]), choice(8, 196, 78))
        ]
    assert error[0] < 0.6 * error[1]


def test_the_shipped_mae_inpaints(scenes: Tensor) -> None:
    """At ratio 0.6 its error on masked patches is at most half that of the mean colour of the visible ones."""
    mae, kept = load_mae("embedded"), choice(len(scenes), 196, 78)
    error = mae.patchify((mae.decode(mae.encode(scenes, kept), kept).clamp(0, 1) - scenes).square()).mean(-1)
    seen = kept.mask(196)
    patches = mae.patchify(scenes).unflatten(-1, (3, -1))
    colour = (patches.mean(-1) * seen.unsqueeze(-1)).sum(1) / 78
    flat = (patches - colour[:, None, :, None]).square().mean((-2, -1))
    assert error[~seen].mean() <= 0.5 * flat[~seen].mean()


TABLE_I = [(0.0, 0.2936), (0.2, 0.2349), (0.4, 0.1761), (0.6, 0.1174), (0.8, 0.0587)]


@pytest.mark.parametrize(("ratio", "printed"), TABLE_I)
def test_nominal_latency_is_table_1_of_the_paper(ratio: float, printed: float) -> None:
    """1.2e6 bits, 1 MHz, *linear* SNR 16; seconds, printed there as milliseconds."""
    assert round(nominal_latency(1.2e6, ratio, 1e6, to_db(16.0)), 4) == printed


def test_mask_bits_number_every_choice() -> None:
    payload = Payload(196, 128, 768, "features", 8)
    assert payload.mask_bits[0] == payload.mask_bits[196] == 0
    assert payload.mask_bits[1] == math.ceil(math.log2(196))
    assert payload.mask_bits[78] == math.ceil(
        (math.lgamma(197) - math.lgamma(79) - math.lgamma(119)) / math.log(2) - 1e-9
    )


@given(st.sampled_from(["features", "pixels"]), st.integers(1, 16), st.floats(0, 2e6), st.sampled_from([49, 144, 196]))
@settings(deadline=None, max_examples=60)
def test_what_the_extractor_promises_fits_and_one_patch_more_does_not(
    kind: str, bits: int, allowed: float, patches: int
) -> None:
    payload = Payload(patches, 128, 768, kind, bits)  # type: ignore[arg-type]
    count = int(payload.most_digital(torch.tensor(allowed)))
    assert payload.digital(count) <= allowed
    assert count == patches or payload.digital(count + 1) > allowed
    uses = payload.most_analogue(allowed)
    assert payload.analogue_uses(uses) <= allowed
    assert uses == patches or payload.analogue_uses(uses + 1) > allowed


def test_where_all_patches_of_the_paper_fit() -> None:
    """0.15 s at 1 MHz: 196 patches of 8-bit pixels near 24 dB, analogue features of ViT-MAE base at any SNR."""
    pixels = Payload(196, 768, 768, "pixels", 8)
    most = [int(pixels.most_digital(0.15e6 * capacity(snr, torch.ones(())))) for snr in (-20.0, 23.9, 24.3)]
    assert most[0] == 0
    assert most[1] < 196
    assert most[2] == 196
    assert Payload(196, 768, 768, "features", 8).most_analogue(2 * 0.15e6) == 196


@given(st.integers(1, 16), st.integers(0, 100))
def test_quantised_numbers_are_within_half_a_step(bits: int, seed: int) -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(seed))
    rounded = quantised(values, bits, 0.0, 1.0)
    assert float((rounded - values).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6
    assert len(rounded.unique()) <= 2**bits
    torch.testing.assert_close(quantised(rounded, bits, 0.0, 1.0), rounded, atol=1e-6, rtol=0)


def test_pixels_that_arrive_are_pasted_back(scenes: Tensor) -> None:
    """8-bit images survive 8-bit pixels; nothing of the others is known."""
    encoder = MaeOptions(payload="pixels", scorer="small").build(FORMAT)
    kept = choice(4, 196, 78)
    painted = encoder.paint(encoder.values(scenes[:4], kept), kept)
    same = (encoder.mae.patchify(painted) - encoder.mae.patchify(scenes[:4])).abs().amax(-1) < 1e-6
    assert bool(same[kept.mask(196)].all())
    assert float(same[~kept.mask(196)].float().mean()) < 0.05


@pytest.mark.parametrize("payload", ["features", "pixels"])
def test_gated_transmissions_paint_what_real_ones_do(payload: str, scenes: Tensor) -> None:
    encoder = MaeOptions(payload=payload, scorer="small").build(FORMAT).eval()  # type: ignore[arg-type]
    transmitter = Transmitter(encoder, "real", "per_example", "float32").eval()
    pick = Choice("score", 78)
    with torch.no_grad():
        real, gated = transmitter.send(scenes[:4], pick), transmitter.send(scenes[:4], pick, gates=True)
        painted = [transmitter.hear(sent.x.unsqueeze(0), sent) for sent in (real, gated)]
    # Half a step of the features' quantiser may fall to either side.
    torch.testing.assert_close(painted[0], painted[1], atol=2e-2 if payload == "features" else 1e-4, rtol=0)
    assert float((painted[0] - painted[1]).abs().mean()) < 1e-4


def test_analogue_features_have_unit_power_and_come_back_without_noise(scenes: Tensor) -> None:
    encoder = MaeOptions(transport="analog", scorer="small").build(FORMAT).eval()
    transmitter = Transmitter(encoder, "real", "per_example", "float32").eval()
    with torch.no_grad():
        sent = transmitter.send(scenes[:4], Choice("uniform", 39))
        assert sent.x.shape == (4, 40 * 128)
        np.testing.assert_allclose(sent.x.square().mean(1), 1, rtol=1e-5)
        heard = transmitter.hear(sent.x.unsqueeze(0), sent)[0]
        kept = encoder.choose(scenes[:4], Choice("uniform", 39))
        torch.testing.assert_close(heard, encoder.paint(encoder.values(scenes[:4], kept), kept), atol=1e-5, rtol=0)
        gated = transmitter.send(scenes[:4], Choice("uniform", 39), gates=True)
        np.testing.assert_allclose(gated.x.square().sum(1), 40 * 128, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, "less than 1"),
        ({"mask_ratio": -0.1}, "greater than or equal to 0"),
        ({"train_mask_ratio": {"uniform": [0.9, 0.1]}}, "low < high"),
        ({"payload": "pixels", "transport": "analog"}, "needs transport: digital"),
        ({"csi_error_db": 1.0}, "latency_budget_s"),
        ({"quantiser_bits": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MaeOptions.model_validate(options)


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ScenarioError, match="reads pictures of 224x224 pixels, not 96x96"):
        MaeOptions().build(ImageFormat((3, 96, 96), FORMAT.mean, FORMAT.std))
