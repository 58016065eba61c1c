"""The signal path, written once: image -> encoder -> power constraint -> air -> front end -> decoder.

Training, evaluation and every attack go through `Transmitter.send`, `Channel.apply` and `Transmitter.hear`; nothing
else touches a signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedsem.channels.symbols import Symbols
from fedsem.models.mae_encoder import Choice, MaeEncoder, Selected

Power = Literal["per_example", "batch_average"]
Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class Transmission:
    """What is sent for some images.

    Attributes:
        x: real numbers on air (B, n) of mean power 1; of a digital transmission the numbers that its bits stand for.
            Where a defense makes the encoder's input random, several draws of it, (m, B, n) (see `in_draws`).
        amplitude: x = amplitude * encoder output, (B, 1), of several draws (m, B, 1), or a number; the receiver of a
            MAE knows it.
        selected: which patches they belong to, where the encoder sends patches.
    """

    x: Tensor
    amplitude: Tensor | float
    selected: Selected | None = None

    def at(self, index: Tensor | slice) -> Transmission:
        """What is sent for some of the images."""
        amplitude = (
            self.amplitude[..., index, :]
            if isinstance(self.amplitude, Tensor) and self.amplitude.dim()
            else self.amplitude
        )
        return Transmission(self.x[..., index, :], amplitude, self.selected and self.selected.at(index))

    @property
    def drawn(self) -> Tensor:
        """What is on air in each draw, (m, B, n); m is 1 where nothing is random."""
        return self.x if self.x.dim() == 3 else self.x.unsqueeze(0)

    @property
    def first(self) -> Tensor:
        """What is on air in the first draw, (B, n)."""
        return self.drawn[0]

    def in_draws(self, draws: range, of: int) -> Transmission:
        """What is sent in some of so many channel draws: the same; or, of m draws of x, draw k m // of in channel draw
        k, x (draws, B, n)."""
        if self.x.dim() == 2:
            return self
        picked = [k * len(self.x) // of for k in draws]
        amplitude = self._amplitudes[picked]
        return Transmission(self.x[picked], amplitude, self.selected and self.selected.in_draws(picked))

    @classmethod
    def joined(cls, parts: Sequence[Transmission]) -> Transmission:
        """Transmissions of one length, one after another."""
        x, selected = torch.cat([part.x for part in parts], -2), [part.selected for part in parts if part.selected]
        if not selected:
            return cls(x, 1.0)
        return cls(x, torch.cat([part._amplitudes for part in parts], -2), Selected.joined(selected))

    @classmethod
    def stacked(cls, parts: Sequence[Transmission]) -> Transmission:
        """Several draws for the same images."""
        x, selected = torch.stack([part.x for part in parts]), [part.selected for part in parts if part.selected]
        if not selected:
            return cls(x, 1.0)
        return cls(x, torch.stack([part._amplitudes for part in parts]), Selected.stacked(selected))

    @property
    def _amplitudes(self) -> Tensor:
        """Of every image."""
        return torch.as_tensor(self.amplitude, device=self.x.device).expand(*self.x.shape[:-1], 1)


class Transmitter(nn.Module):
    """Encoder and power constraint: images (B, C, H, W) in [0, 1] -> real numbers x (B, nc) of mean power 1.

    `per_example`: ||x||^2 = n for every image. `batch_average`: the mean over the batch is n; `gain` fixes the
    amplifier after training (`calibrate`), so that what is sent for one image does not depend on its batch. n is nc, or
    fewer where an encoder sends some of its patches.

    Args:
        encoder: images -> (B, nc), any scale; or a MAE.
        symbols: `real` or `complex`, see `fedsem.channels.symbols`.
        power: the constraint.
        precision: `bf16` runs the encoder (and all that makes and reads a MAE's pictures) under bfloat16 autocast;
            power, air and other decoders stay in float32.
    """

    def __init__(self, encoder: nn.Module, symbols: Symbols, power: Power, precision: Precision) -> None:
        super().__init__()
        self.encoder = encoder
        self.symbols = symbols
        self.power = power
        self.precision = precision
        self.gain: float | None = None

    @property
    def digital(self) -> bool:
        """Whether numbers arrive without error or not at all, and nothing is on air as a waveform."""
        return isinstance(self.encoder, MaeEncoder) and self.encoder.options.digital

    def forward(self, images: Tensor) -> Tensor:
        """Transmitted real numbers (B, nc)."""
        return self.send(images).x

    def send(self, images: Tensor, choice: Choice | None = None, gates: bool = False) -> Transmission:
        """What is sent for these images.

        Args:
            images: (B, C, H, W).
            choice: of patches, for an encoder that has some; None: in training, as its options say.
            gates: patches are not dropped but gated, so that gradients reach the scorer.
        """
        if not isinstance(self.encoder, MaeEncoder):
            values = self.encode(images)
            return self._amplified(values, values.shape[1], None)
        with self.autocast(images):
            if gates:
                values, selected = self.encoder.gated(images, choice)
            else:
                assert choice is not None
                kept = self.encoder.choose(images, choice)
                values, selected = self.encoder.values(images, kept), Selected(kept)
        if self.digital:
            return Transmission(values.float(), 1.0, selected)
        used = values.shape[1] if selected.gate is None else (1 + selected.gate.sum(1)) * self.encoder.mae.width
        return self._amplified(values.float(), used, selected)

    def waveform(self, sent: Transmission, numbers: Tensor | None = None) -> Tensor:
        """What a sensing channel reflects: x, or `numbers` that are laid out like it; the patches of a MAE stand at
        their places in a frame of constant length (see `MaeEncoder.spread`)."""
        x, selected = sent.x if numbers is None else numbers, sent.selected
        if selected is None or selected.kept is None:
            return x
        assert isinstance(self.encoder, MaeEncoder)
        if sent.x.dim() == 2:
            return self.encoder.spread(x, selected.kept)
        frames = []
        for k, here in enumerate(x.expand_as(sent.x)):
            kept = selected.draw(k).kept
            assert kept is not None
            frames.append(self.encoder.spread(here, kept))
        return torch.stack(frames)

    def hear(self, received: Tensor, sent: Transmission) -> Tensor:
        """The receiver's front end: what decoders decode. (..., B, n) received numbers as they are, or the pictures
        (..., B, 3, H, W) in [0, 1] that a MAE paints from them. Of a transmission in several draws, each with its
        own."""
        encoder, selected = self.encoder, sent.selected
        if selected is None:
            return received
        assert isinstance(encoder, MaeEncoder)
        values = received / sent.amplitude
        draws = []
        with self.autocast(received):
            for k, one in enumerate(values.view(-1, *values.shape[-2:])):
                here = selected.draw(k)
                draws.append(encoder.paint_gated(one, here) if here.kept is None else encoder.paint(one, here.kept))
        return torch.stack(draws).float().view(*values.shape[:-1], *draws[0].shape[1:])

    def encode(self, images: Tensor) -> Tensor:
        """Encoder output before the power constraint, in float32."""
        with self.autocast(images):
            return self.encoder(images).float()

    @torch.no_grad()
    def calibrate(self, images: Tensor, batch: int) -> None:
        """Fix the gain of `batch_average` so that the mean power over these images is 1."""
        if self.power == "batch_average":
            mean = torch.cat([self.encode(part).double().square().mean(1) for part in images.split(batch)]).mean()
            self.gain = float(mean.clamp_min(1e-12).rsqrt())

    def autocast(self, like: Tensor, painted: bool = True) -> torch.autocast:
        """A block in the transmitter's precision, for what belongs to it: the encoder, and all that makes and reads
        painted pictures."""
        return torch.autocast(like.device.type, dtype=torch.bfloat16, enabled=painted and self.precision == "bf16")

    def _amplified(self, values: Tensor, used: Tensor | int, selected: Selected | None) -> Transmission:
        energy = values.square()
        if self.power == "per_example":
            # As it always was where all numbers are used: a mean, whose rounding is that of earlier results.
            mean = (
                energy.mean(1, keepdim=True)
                if isinstance(used, int)
                else energy.sum(1, keepdim=True) / used.unsqueeze(1)
            )
            amplitude: Tensor | float = mean.clamp_min(1e-12).rsqrt()
        elif self.gain is None:
            amplitude = energy.mean().clamp_min(1e-12).rsqrt()
        else:
            amplitude = self.gain
        return Transmission(values * amplitude, amplitude, selected)
