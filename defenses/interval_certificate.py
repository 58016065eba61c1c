"""What interval bounds certify of dense decoders."""

from __future__ import annotations

from fedsem.hooks.certificate import DecoderBounds
from fedsem.registry import register


@register("defense", "interval_certificate")
class IntervalCertificate(DecoderBounds):
    """With noise and fading of a reception fixed, an adversary who knows them adds any w with
    ||w||_inf <= sqrt(PSR ||x||^2 / nc) over the air. It moves each number that the decoder hears by a known amount at
    most, and interval arithmetic through the decoder's layers (Gowal et al., On the Effectiveness of Interval Bound
    Propagation for Training Verifiably Robust Models, 2018) tells whether the decision may change. The share of
    receptions that are right and stay so bounds the accuracy under every L-inf attack at the site `air`, over the same
    draws. It says nothing of the norm L2. Decoders that were not trained with `ibp` have loose bounds.
    """
