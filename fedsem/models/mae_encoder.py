"""`encoder: mae`: a scorer that is trained chooses patches for a masked auto-encoder that is frozen ([S0])."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, Tag, model_validator
from torch import Tensor, nn

from fedsem.errors import ScenarioError
from fedsem.models.encoder import Encoder, ImageFormat
from fedsem.models.extractor import Payload
from fedsem.models.mae import Kept, Mae, kept_patches
from fedsem.models.places import uniform_scores
from fedsem.models.pretrained import MaeTraining, Named, load_mae, text_or_mapping
from fedsem.models.scorer import Size, scorer
from fedsem.models.selection import (
    Relaxation,
    Strategy,
    gate,
    variance_scores,
)
from fedsem.registry import register
from fedsem.strict import Strict

Ratio = Annotated[float, Field(ge=0, lt=1)]


class RatioRange(Strict):
    """A mask ratio drawn anew for each batch, uniform in [low, high]."""

    uniform: Annotated[tuple[Ratio, Ratio], Field(strict=False)]

    @model_validator(mode="after")
    def _ordered(self) -> RatioRange:
        if self.uniform[0] >= self.uniform[1]:
            raise ValueError(f"the range {list(self.uniform)} is empty or negative; write [low, high] with low < high")
        return self


@register("encoder", "mae")
class MaeOptions(Encoder):
    """[S0]: of a picture's L patches, the k that the scorer ranks highest are encoded by a masked auto-encoder and
    sent; the receiver paints the picture from them. Encoder and decoder of the MAE are frozen, the scorer is what
    receivers train together.

    k comes from `mask_ratio`, or with a `latency_budget_s` from the channel: the largest k whose bits fit into
    B tau log2(1 + |h|^2 SNR), as far as the transmitter knows the channel (III-B). Two transports, never mixed.
    `digital`: quantised numbers that arrive without error where their bits fit the channel as it is, else the whole
    picture is in outage; there is no waveform, so that nothing can be sensed or disturbed on air. `analog`: the
    features themselves, k = floor(2 B tau / D) of them and fewer for the side information, with mean power 1 through
    the noise.

    Attributes:
        pretrained: the MAE: `embedded` (shipped, trained on `digit_scenes`), a name on the Hugging Face hub or a folder
            in its format (such as facebook/vit-mae-base), a .safetensors file that a run's stage `pretrain` left, or
            {training: ...}: it is trained in that stage, on the scenario's own pictures.
        scorer: `base`: as large as the MAE's encoder, as in [S0], and begins as a copy of it; `small`: two blocks of
            width 32.
        relaxation: how gradients pass the choice, see `fedsem.models.selection.gate`.
        temperature: of the relaxation, in units of log score.
        partial_gates: share of the patches whose gate is drawn from (0, 1) in a training step, see there.
        mask_ratio: share of the patches that is not sent.
        train_mask_ratio: the same in training, a number or {uniform: [low, high]}, drawn for each batch.
        selection: what chooses in evaluation: `score`, or one of the baselines. Training is always by score, and
            trained decoders then know pictures of scored patches: beside random ones they compare the whole link, not
            the choice alone (what is painted and a detector that is trained already compare the choice).
        transport: `digital` or `analog`.
        payload: what is sent of a patch: `features`, or the `pixels` themselves (digital only), which the receiver
            pastes back over what it painted.
        quantiser_bits: Q, bits of a number in digital transport: pixels in [0, 1], features between the least and the
            greatest of the picture.
        bandwidth_hz: B.
        latency_budget_s: tau; None: `mask_ratio` decides.
        csi_error_db: standard deviation of the transmitter's SNR estimate in dB; 0: perfect.
        csi_correlation: correlation of the gain that the transmitter knows with the gain when it sends (Jakes' model:
            J0(2 pi f_D delay)); 1: no delay.
        image_bits: bits of a whole picture, for the *nominal* latency alone; default: 8 for each of its numbers. [S0]
            writes 1.2e6 for 224x224x3.
    """

    evaluation_only: ClassVar[frozenset[str]] = frozenset(
        ["mask_ratio", "selection", "bandwidth_hz", "latency_budget_s", "csi_error_db", "csi_correlation", "image_bits"]
    )

    pretrained: Annotated[
        Annotated[Named, Tag("name")] | Annotated[MaeTraining, Tag("training")],
        Discriminator(text_or_mapping, "choice", "should be a name or a file, or a mapping with 'training'"),
    ] = "embedded"
    scorer: Size = "base"
    relaxation: Relaxation = "straight_through"
    temperature: PositiveFloat = 1.0
    partial_gates: Ratio = 0.3
    mask_ratio: Ratio = 0.6
    train_mask_ratio: Ratio | RatioRange = RatioRange(uniform=(0.1, 0.9))
    selection: Strategy = "score"
    transport: Literal["digital", "analog"] = "digital"
    payload: Literal["features", "pixels"] = "features"
    quantiser_bits: Annotated[int, Field(ge=1, le=16)] = 8
    bandwidth_hz: PositiveFloat = 1e6
    latency_budget_s: PositiveFloat | None = None
    csi_error_db: NonNegativeFloat = 0.0
    csi_correlation: Annotated[float, Field(ge=0, le=1)] = 1.0
    image_bits: PositiveFloat | None = None

    @model_validator(mode="after")
    def _fit(self) -> MaeOptions:
        if self.payload == "pixels" and self.transport == "analog":
            raise ValueError("'payload: pixels' needs transport: digital; an analog transmission sends features")
        if self.latency_budget_s is None and (self.csi_error_db or self.csi_correlation != 1):
            raise ValueError("the transmitter needs channel knowledge only with a 'latency_budget_s'; give one")
        return self

    @property
    def paints(self) -> bool:
        return True

    @property
    def digital(self) -> bool:
        return self.transport == "digital"

    @property
    def weights(self) -> str:
        """The name of the MAE; one that is to be trained is named by its plan."""
        assert isinstance(self.pretrained, str)
        return self.pretrained

    def uses(self, images: ImageFormat) -> int:
        mae = self.network(images)
        return mae.width * (mae.patches + 1)

    def network(self, images: ImageFormat) -> Mae:
        """The frozen MAE, shared by all that use it.

        Raises:
            ScenarioError: it was made for pictures of another size.
        """
        mae = load_mae(self.weights)
        side = mae.side * mae.patch
        if images.shape[1:] != (side, side):
            raise ScenarioError(
                f"link.encoder: the MAE '{self.pretrained}' reads pictures of {side}x{side} pixels, not "
                f"{images.shape[1]}x{images.shape[2]}; set data.image_size: {side}, or train one "
                "(link.encoder.pretrained: {training: {steps: ...}})."
            )
        return mae

    def build(self, images: ImageFormat) -> MaeEncoder:
        return MaeEncoder(self, self.network(images), images)


@dataclass(frozen=True)
class Choice:
    """How patches are chosen for some pictures.

    Attributes:
        strategy: by what.
        count: how many, for all pictures or for each, (B,); positive.
        order: patches of each picture, the best first, (B, at least `count`); None: as the strategy ranks them, which
            `random` and `oracle` cannot do from the picture alone.
    """

    strategy: Strategy
    count: int | Tensor
    order: Tensor | None = None


@dataclass(frozen=True)
class Selected:
    """What the receiver knows of the choice without error: in the link which patches are kept, in training their gates.

    Attributes:
        kept: the patches.
        gate: (B, L); in training.
        pixels: the pixels (B, L, C p p) of a payload of pixels in training; None otherwise.

    Of several draws of the picture all have these in front, (m, B, ...).
    """

    kept: Kept | None
    gate: Tensor | None = None
    pixels: Tensor | None = None

    def at(self, index: slice | Tensor) -> Selected:
        """The same for some of the pictures."""
        return self._each(lambda value, behind: value[(..., index, *[slice(None)] * behind)])

    def in_draws(self, draws: Sequence[int]) -> Selected:
        """The same in some of several draws."""
        return self._each(lambda value, behind: value[list(draws)])

    def draw(self, number: int) -> Selected:
        """What it is in one of several draws; itself where there is one for all."""
        one = self.gate if self.kept is None else self.kept.index
        assert one is not None
        return self if one.dim() == 2 else self._each(lambda value, behind: value[number])

    def _each(self, part: Callable[[Tensor, int], Tensor]) -> Selected:
        """Part of every tensor, which has so many axes behind that of the pictures."""
        kept = self.kept and Kept(
            part(self.kept.index, 1), None if self.kept.count is None else part(self.kept.count, 0)
        )
        return Selected(
            kept,
            None if self.gate is None else part(self.gate, 1),
            None if self.pixels is None else part(self.pixels, 2),
        )

    @classmethod
    def joined(cls, parts: Sequence[Selected]) -> Selected:
        """Choices of one length, one after another."""
        kept = [part.kept for part in parts if part.kept is not None]
        gates = [part.gate for part in parts if part.gate is not None]
        if kept:
            assert all(one.count is None for one in kept)
            return cls(Kept(torch.cat([one.index for one in kept], -2)))
        return cls(None, torch.cat(gates, -2))

    @classmethod
    def stacked(cls, parts: Sequence[Selected]) -> Selected:
        """Choices for several draws of the same pictures."""

        def together(values: Sequence[Tensor | None]) -> Tensor | None:
            there = [value for value in values if value is not None]
            return torch.stack(there) if there else None

        kept = [part.kept for part in parts if part.kept is not None]
        index, count = together([one.index for one in kept]), together([one.count for one in kept])
        return cls(
            None if index is None else Kept(index, count),
            together([part.gate for part in parts]),
            together([part.pixels for part in parts]),
        )


class MaeEncoder(nn.Module):
    """The transmitter's scorer, and both halves of the MAE.

    The frozen MAE is no submodule: what is averaged, counted and saved of this network is the scorer.

    Args:
        options: of the encoder.
        mae: frozen.
        images: shape and statistics of the pictures.
    """

    blank: Tensor

    def __init__(self, options: MaeOptions, mae: Mae, images: ImageFormat) -> None:
        super().__init__()
        self.options = options
        self._mae = {torch.device("cpu"): mae}
        self.scorer = scorer(options.scorer, mae)
        self.register_buffer("blank", torch.tensor(images.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("even", uniform_scores(mae.side), persistent=False)

    even: Tensor

    @property
    def mae(self) -> Mae:
        device = self.blank.device
        if device not in self._mae:
            self._mae[device] = load_mae(self.options.weights, device)
        return self._mae[device]

    @property
    def payload(self) -> Payload:
        """What has to be sent for a number of patches."""
        mae, options = self.mae, self.options
        return Payload(mae.patches, mae.width, 3 * mae.patch**2, options.payload, options.quantiser_bits)

    def scores(self, images: Tensor) -> Tensor:
        """Scores (B, L) of the patches."""
        return self.scorer((images - self.mae.mean) / self.mae.std)

    def order(self, images: Tensor, strategy: Strategy) -> Tensor:
        """All patches of each picture, the best first, (B, L), for a strategy that needs nothing but the pictures."""
        if strategy == "score":
            scores = self.scores(images)
        elif strategy == "variance":
            scores = variance_scores(self.mae, images)
        else:
            assert strategy == "uniform"
            scores = self.even.expand(len(images), -1)
        return scores.argsort(dim=1, descending=True, stable=True)

    def choose(self, images: Tensor, choice: Choice) -> Kept:
        """The patches that a choice keeps."""
        if isinstance(choice.count, int):
            most, count = choice.count, None
        else:
            most, count = int(choice.count.max()), choice.count
            if bool((count == most).all()):
                count = None
        order = self.order(images, choice.strategy) if choice.order is None else choice.order
        return Kept(order[:, :most], count)

    def values(self, images: Tensor, kept: Kept) -> Tensor:
        """What is sent of the kept patches, (B, n): features of the class token and the patches, or pixels."""
        if self.options.payload == "pixels":
            patches = self.mae.patchify(images)
            chosen = patches.gather(1, kept.index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
            return quantised(chosen, self.options.quantiser_bits, 0.0, 1.0).flatten(1)
        features = self.mae.encode(images, kept)
        return (self._quantised(features) if self.options.digital else features).flatten(1)

    def paint(self, values: Tensor, kept: Kept) -> Tensor:
        """What the receiver paints of it, pictures (B, 3, H, W) in [0, 1]."""
        mae = self.mae
        if self.options.payload == "features":
            return mae.decode(values.unflatten(1, (-1, mae.width)), kept).clamp(0, 1)
        pixels = values.unflatten(1, (-1, 3 * mae.patch**2))
        whole = torch.zeros(len(values), mae.patches + 1, pixels.shape[-1], device=values.device)
        place = torch.where(kept.valid(), kept.index, mae.patches).unsqueeze(-1).expand_as(pixels)
        sent = whole.scatter(1, place, pixels)[:, :-1]
        painted = mae.decode(mae.encode(mae.unpatchify(sent), kept), kept).clamp(0, 1)
        return mae.unpatchify(torch.where(kept.mask(mae.patches).unsqueeze(-1), sent, mae.patchify(painted)))

    def spread(self, numbers: Tensor, kept: Kept) -> Tensor:
        """Numbers of kept patches (B, (1 + K) D) -> (B, (1 + L) D), each patch at its own place and silence elsewhere:
        what a radar sees, whose receiver listens to the whole frame."""
        tokens = numbers.unflatten(1, (-1, self.mae.width))
        whole = numbers.new_zeros(len(numbers), self.mae.patches, self.mae.width)
        place = kept.index.unsqueeze(-1).expand_as(tokens[:, 1:])
        return torch.cat([tokens[:, :1], whole.scatter(1, place, tokens[:, 1:])], dim=1).flatten(1)

    def gated(self, images: Tensor, choice: Choice | None = None) -> tuple[Tensor, Selected]:
        """The twin of `choose` and `values` that passes gradients to the scorer: all patches, with gates.

        Args:
            images: pictures.
            choice: of patches; None: by score, as many as `train_mask_ratio` says, drawn from torch's global generator.

        Returns:
            numbers (B, (1 + L) D), zero where a patch is not sent, and the gates.
        """
        options = self.options
        if choice is not None and choice.strategy != "score":
            gates = self.choose(images, choice).mask(self.mae.patches).float()
        else:
            relaxation = options.relaxation if choice is None else "straight_through"
            count = self._training_count() if choice is None else int(choice.count)
            partial = options.partial_gates if choice is None else 0.0
            gates = gate(self.scores(images), count, relaxation, options.temperature, partial)
        return self.gated_by(images, gates)

    def gated_by(self, images: Tensor, gates: Tensor) -> tuple[Tensor, Selected]:
        """What `gated` returns, for gates (B, L) in [0, 1] that are given."""
        options, mae = self.options, self.mae
        pixels = None
        if options.payload == "pixels":
            pixels = quantised(mae.patchify(images), options.quantiser_bits, 0.0, 1.0)
            images = mae.unpatchify(pixels)
        features = mae.encode_gated(images, gates)
        if options.payload == "features" and options.digital:
            features = self._quantised(features, gates)
        sent = features * nn.functional.pad(gates, (1, 0), value=1.0).unsqueeze(-1)
        return sent.flatten(1), Selected(None, gates, pixels)

    def _training_count(self) -> int:
        ratio = self.options.train_mask_ratio
        if isinstance(ratio, RatioRange):
            low, high = ratio.uniform
            ratio = low + (high - low) * float(torch.rand(()))
        return max(1, kept_patches(self.mae.patches, ratio))

    def paint_gated(self, values: Tensor, selected: Selected) -> Tensor:
        """The twin of `paint`."""
        mae, gates = self.mae, selected.gate
        assert gates is not None
        painted = mae.decode_gated(values.unflatten(1, (-1, mae.width)), gates).clamp(0, 1)
        if selected.pixels is None:
            return painted
        g = gates.unsqueeze(-1)
        return mae.unpatchify(g * selected.pixels + (1 - g) * mae.patchify(painted))

    def _quantised(self, features: Tensor, gates: Tensor | None = None) -> Tensor:
        there = features.detach()
        if gates is not None:  # the range is that of what is sent
            keep = nn.functional.pad(gates.detach(), (1, 0), value=1.0).unsqueeze(-1) > 0.5
            there = torch.where(keep, there, there[:, :1])
        low, high = there.amin((1, 2), keepdim=True), there.amax((1, 2), keepdim=True)
        return quantised(features, self.options.quantiser_bits, low, high)


def quantised(values: Tensor, bits: int, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Values rounded to 2^Q even levels between `low` and `high`; the gradient is that of no rounding."""
    least, most = torch.as_tensor(low, device=values.device), torch.as_tensor(high, device=values.device)
    span, levels = (most - least).clamp_min(1e-12), 2**bits - 1
    inside = values.maximum(least).minimum(most)
    rounded = ((inside - least) / span * levels).round() / levels * span + least
    return values + (rounded - values).detach()
