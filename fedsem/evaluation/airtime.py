"""How many patches are on air, and what they cost: the channel-adaptive extractor of [S0] III-B at evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsem.channels.channel import air_gain
from fedsem.evaluation.air import Air
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.models.extractor import SCALE_BITS, Payload, capacity, nominal_latency
from fedsem.models.mae import kept_patches
from fedsem.models.mae_encoder import MaeEncoder, MaeOptions


@dataclass(frozen=True)
class Airtime:
    """What a listener is sent at an SNR.

    Attributes:
        sent: patches that the transmitter sends, int64 (draws, N) or (1, N) where it is the same in all draws.
        arrived: whether they arrive; False is outage.
        bits: bits of each transmission: all of a digital one, the side information of an analogue one.
        latency_s: what it takes, in seconds; where the channel cannot carry it, that of the whole budget.
        nominal_latency_s: of [S0], Table I, from the mask ratio alone; None where a budget decides.
    """

    sent: Tensor
    arrived: Tensor
    bits: Tensor
    latency_s: Tensor
    nominal_latency_s: float | None

    @property
    def received(self) -> Tensor:
        """Patches that arrive, 0 in outage."""
        return torch.where(self.arrived, self.sent, torch.zeros_like(self.sent))


def airtime(link: TrainedLink, air: Air, listener: Listener, snr_db: float) -> Airtime:
    """Patches, bits and latency for every draw and test image."""
    encoder = link.transmitter.encoder
    assert isinstance(encoder, MaeEncoder)
    options, payload, images = encoder.options, encoder.payload, len(link.labels)
    ratio = options.mask_ratio if link.mode.mask_ratio is None else link.mode.mask_ratio
    budget = options.latency_budget_s
    if not options.digital:
        return _analogue(options, payload, ratio, snr_db, most_patches(link), images)
    rate, known = _rates(link, air, listener, snr_db, options)
    bandwidth = options.bandwidth_hz
    if budget is None:
        sent = torch.full_like(rate, kept_patches(payload.patches, ratio), dtype=torch.long)
        bits = _bits(payload, sent)
        nominal = nominal_latency(_image_bits(options, payload), ratio, bandwidth, snr_db)
        return Airtime(sent, sent > 0, bits, bits / (bandwidth * rate), nominal)
    sent = payload.most_digital(bandwidth * budget * known)
    bits = _bits(payload, sent)
    arrived = (sent > 0) & (bits <= bandwidth * budget * rate)
    return Airtime(sent, arrived, bits, torch.where(arrived, bits / (bandwidth * rate), budget), None)


def most_patches(link: TrainedLink, snr_db: float = 0.0) -> int:
    """Patches of an analogue transmission, which are the same whatever the channel; of a digital one those that a
    channel without fading allows. 0 for an encoder without patches."""
    encoder = link.transmitter.encoder
    if not isinstance(encoder, MaeEncoder):
        return 0
    options, payload = encoder.options, encoder.payload
    ratio = options.mask_ratio if link.mode.mask_ratio is None else link.mode.mask_ratio
    if options.latency_budget_s is None:
        return kept_patches(payload.patches, ratio)
    if not options.digital:
        return payload.most_analogue(2 * options.bandwidth_hz * options.latency_budget_s)
    allowed = options.bandwidth_hz * options.latency_budget_s * capacity(snr_db, torch.ones(()))
    return max(1, int(payload.most_digital(allowed)))


def _analogue(options: MaeOptions, payload: Payload, ratio: float, snr_db: float, count: int, images: int) -> Airtime:
    sent = torch.full((1, images), count)
    side = payload.mask_bits[count] + SCALE_BITS if count else 0
    return Airtime(
        sent,
        sent > 0,
        torch.full_like(sent, side, dtype=torch.float64),
        torch.full_like(sent, payload.analogue_uses(count) / (2 * options.bandwidth_hz), dtype=torch.float64),
        nominal_latency(_image_bits(options, payload), ratio, options.bandwidth_hz, snr_db)
        if options.latency_budget_s is None
        else None,
    )


def _image_bits(options: MaeOptions, payload: Payload) -> float:
    return 8.0 * payload.patches * payload.pixels if options.image_bits is None else options.image_bits


def _bits(payload: Payload, count: Tensor) -> Tensor:
    table = torch.tensor([payload.digital(k) for k in range(payload.patches + 1)], dtype=torch.float64)
    return table[count]


def _rates(
    link: TrainedLink, air: Air, listener: Listener, snr_db: float, options: MaeOptions
) -> tuple[Tensor, Tensor]:
    """log2(1 + |h|^2 SNR) of every draw and image, as it is and as the transmitter believes, (draws, N) or (1, N)."""
    channel = link.plan.channel(listener.branch)
    if channel.fading_name == "none":
        power = torch.ones(1, len(link.labels), dtype=torch.float64)
    else:
        h = air.score(listener).h
        power = air_gain(h, "complex").abs().double().square().mean(-1).cpu()
    rate = capacity(snr_db, power)
    if options.csi_error_db == 0 and options.csi_correlation == 1:
        return rate, rate
    draws = link.plan.scenario.evaluation.draws.score
    generator = air.stream.child("csi", listener.name).torch()
    wrong = options.csi_error_db * torch.randn(draws, len(link.labels), generator=generator, dtype=torch.float64)
    known_power = power.expand(draws, -1)
    if channel.fading_name != "none":
        rho = options.csi_correlation
        news = torch.randn(draws, len(link.labels), generator=generator, dtype=torch.complex128)
        stale = rho * air.score(listener).h[..., 0].cpu().to(torch.complex128) + math.sqrt(1 - rho**2) * news
        known_power = stale.abs().square()
    return rate.expand(draws, -1), capacity(snr_db + wrong, known_power)
