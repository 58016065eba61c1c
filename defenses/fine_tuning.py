"""Plain fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsem.hooks.repair import Repair, Repairable, Repaired
from fedsem.registry import register
from fedsem.repairing import LinkCopy
from fedsem.streams import Stream


@register("defense", "fine_tuning")
class FineTuning(Repair):
    """Trains the link on, with the clean images and nothing else: what a repair that looks for a backdoor has to beat
    (the baseline of Liu, Dolan-Gavitt and Garg, Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
    Networks, 2018, section 3.2)."""

    def repair(self, link: Repairable, stream: Stream) -> Repaired:
        made = LinkCopy(link)
        made.learn(made.examples, self.epochs, self.lr, stream.child("learn"))
        return made.finished([])

    def adaptive(self) -> Mapping[str, Any] | None:
        """A trigger all over the image."""
        return {"kind": "blend"}
