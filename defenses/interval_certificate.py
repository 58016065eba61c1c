"""What interval bounds certify of dense decoders."""

from __future__ import annotations

from fedsem.hooks.certificate import DecoderBounds
from fedsem.registry import register


@register("defense", "interval_certificate")
class IntervalCertificate(DecoderBounds):
    """With noise and fading of a reception fixed, an adversary who knows them adds any w with
    ||w||_inf <= sqrt(PSR ||x||^2 / nc) over the air. It moves each number that the decoder hears by a known amount at
    most, and interval arithmetic through the decoder's layers tells whether the decision may change: a box of centre c
    and radius r becomes one of centre W c + b and radius |W| r, and ReLU acts on both of its ends (Gowal et al., On the
    Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models, 2018, section 3). The share of
    receptions that are right and stay so bounds the accuracy under every L-inf attack at the site `air`, over the same
    draws. It says nothing of the norm L2. Decoders that were not trained with `ibp` have loose bounds.
    """
