"""The interface of every channel, and what a draw of it holds."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fedsem.channels.symbols import Symbols, from_air, to_air, uses
from fedsem.registry import Options


@dataclass(frozen=True)
class Realisation:
    """One draw of the air for each example, before any power or SNR: it can be reused at every SNR and PSR.

    All tensors have the drawn shape (..., B) and, where they vary over an example, a last dimension.

    Attributes:
        h: complex gain of the link, E|h|^2 = 1; last dimension 1 (block fading) or the number of uses (fast). For
            sensing, the reflection a of the target.
        g: complex gain from the adversary's antenna, like h.
        noise: unit-power noise, real or CN(0, 1), one number per received symbol.
        error: unit-power CN(0, 1) error of the channel estimate, like h.
        target: sensing only: 0 where there is no target, else 1 + its range bin (int64, no last dimension).
        direct: sensing only: complex gain of the direct path from the transmitter.
    """

    h: Tensor
    g: Tensor
    noise: Tensor
    error: Tensor
    target: Tensor | None = None
    direct: Tensor | None = None

    def at(self, index: Tensor | slice) -> Realisation:
        """The same draws for some of the examples (the index applies to dimension B)."""

        def pick(name: str, value: Tensor | None) -> Any:
            if value is None:
                return None
            return value[..., index] if name == "target" else value[..., index, :]

        return Realisation(**{field.name: pick(field.name, getattr(self, field.name)) for field in fields(self)})

    def draws(self, index: slice) -> Realisation:
        """Some of the draws (the index applies to the first dimension)."""
        held: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        picked: dict[str, Any] = {name: None if value is None else value[index] for name, value in held.items()}
        return Realisation(**picked)

    def first(self, uses: int) -> Realisation:
        """The first symbols of the same draws, for an example that has fewer than were drawn."""

        def cut(name: str, value: Tensor | None) -> Any:
            return value if value is None or name == "target" or value.shape[-1] == 1 else value[..., :uses]

        return Realisation(**{field.name: cut(field.name, getattr(self, field.name)) for field in fields(self)})

    def to(self, device: torch.device | str) -> Realisation:
        """The same draws on another device."""
        held: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in held.items()}
        return Realisation(**moved)


class Channel(Options):
    """A channel y = h x + g delta + n. Stateless: what is random is in the `Realisation`.

    Symbols have unit mean power; noise has power 1/SNR with SNR the *transmitted* power over the noise power, before
    fading: noise is never scaled from faded power, and never depends on `module.training`.
    """

    @property
    def fading_name(self) -> str:
        """What stands in the table's column `fading`."""
        return "none"

    @property
    def csi_name(self) -> str:
        """What stands in the table's column `csi`."""
        return "none"

    @property
    def is_sensing(self) -> bool:
        """Whether a sensing task listens to this channel."""
        return False

    @property
    def steady(self) -> bool:
        """Whether all draws of it are alike but for the noise."""
        return self.fading_name == "none" and not self.is_sensing

    def knows_phase(self, symbols: Symbols) -> bool:
        """Whether a decoder could tell received symbols from the same symbols turned by a fixed angle; not where the
        channel turns them by a uniform angle that the receiver does not know."""
        return symbols == "complex"

    @abstractmethod
    def gains(self, shape: tuple[int, ...], symbols_on_air: int, generator: torch.Generator) -> Tensor:
        """Complex gains with E|h|^2 = 1 of shape (*shape, 1 or symbols_on_air)."""

    def width(self, channel_uses: int, symbols: Symbols) -> int:
        """How many real numbers the decoder receives."""
        return channel_uses

    def draw(
        self, shape: tuple[int, ...], channel_uses: int, symbols: Symbols, generator: torch.Generator
    ) -> Realisation:
        """Draw the air for `shape` = (B,) or (draws, B) examples of nc = `channel_uses` real numbers each.

        Every example has its own gain and its own noise. The tensors lie on the generator's device.
        """
        on_air = uses(channel_uses, symbols)
        h = self.gains(shape, on_air, generator)
        return Realisation(
            h=h,
            g=self.gains(shape, on_air, generator),
            noise=standard_noise((*shape, on_air), symbols, generator),
            error=complex_normal(tuple(h.shape), generator),
        )

    def apply(
        self,
        x: Tensor,
        realisation: Realisation,
        snr_db: float | Tensor,
        symbols: Symbols,
        interference: Tensor | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """What the decoder receives.

        Args:
            x: transmitted real numbers (B, nc) of mean power 1.
            realisation: draws of shape (B,) or (draws, B).
            snr_db: SNR in dB, a number or one for each example (B,).
            symbols: `real` or `complex`.
            interference: the adversary's signal at its antenna, in the representation of x, (B, nc); it passes the
                gain g and then the receiver's equaliser.
            rotation: radians by which everything that the antenna receives is turned before the equaliser, (B,); for
                complex symbols.

        Returns:
            (..., B, width) real numbers.
        """
        h, g = air_gain(realisation.h, symbols), air_gain(realisation.g, symbols)
        sigma = noise_amplitude(snr_db, realisation.noise)
        y = h * to_air(x, symbols) + sigma * realisation.noise
        if interference is not None:
            y = y + g * to_air(interference, symbols)
        y = turned(y, rotation, symbols)
        return self.equalise(y, realisation, sigma, symbols)

    def equalise(self, y: Tensor, realisation: Realisation, sigma: Tensor, symbols: Symbols) -> Tensor:
        """The receiver's front end: symbols on air -> numbers for the decoder."""
        return from_air(y, symbols)


def air_gain(h: Tensor, symbols: Symbols) -> Tensor:
    """The gain that symbols see: h itself, or |h| for real symbols, whose phase is always known (design section 4)."""
    return h.abs() if symbols == "real" else h


def turned(y: Tensor, rotation: Tensor | None, symbols: Symbols) -> Tensor:
    """y e^{j rotation}, (..., B, uses) and (B,); y itself where there is no rotation.

    Raises:
        ValueError: real symbols have no phase.
    """
    if rotation is None:
        return y
    if symbols == "real":
        raise ValueError("real symbols have no phase that could be turned")
    return y * torch.polar(torch.ones_like(rotation), rotation).unsqueeze(-1)


def noise_amplitude(snr_db: float | Tensor, like: Tensor) -> Tensor:
    """sqrt(1 / SNR), shaped to multiply (..., B, uses)."""
    if isinstance(snr_db, Tensor):
        value = snr_db.to(like.device, torch.float32)
    else:
        # Filled where it is needed: as_tensor would copy from the host in every training step.
        value = torch.full((), snr_db, dtype=torch.float32, device=like.device)
    sigma = torch.pow(10.0, -value / 20.0)
    return sigma.unsqueeze(-1) if sigma.dim() else sigma


def complex_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """CN(0, 1): independent real and imaginary parts of variance 1/2."""
    return torch.randn(shape, dtype=torch.complex64, device=generator.device, generator=generator)


def standard_noise(shape: tuple[int, ...], symbols: Symbols, generator: torch.Generator) -> Tensor:
    """Noise of unit power per symbol: N(0, 1) for real symbols, CN(0, 1) for complex ones."""
    if symbols == "complex":
        return complex_normal(shape, generator)
    return torch.randn(shape, device=generator.device, generator=generator)
