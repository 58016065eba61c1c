"""Scoring a perturbation: every listener's metrics over the shared channel draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsem.evaluation.air import Air
from fedsem.evaluation.average_precision import Detections, Ranking
from fedsem.evaluation.flagging import Alarms
from fedsem.evaluation.point import Tally
from fedsem.evaluation.reception import Heard, Receptions
from fedsem.evaluation.thresholds import Thresholds
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.evaluation.voting import Ballots, together
from fedsem.hooks.evasion import Evasion, Perturbation
from fedsem.hooks.poison import Backdoor
from fedsem.tasks.classification import Classification
from fedsem.tasks.detection import Detection
from fedsem.tasks.reconstruction import Reconstruction
from fedsem.tasks.task import Examples, Share

Key = tuple[str, str, str]
"""Receiver group, task, channel."""
Scores = dict[Key, dict[str, "Tally | Ranking"]]
"""Listener -> metric -> tally."""


class Scorer:
    """Scores perturbations of a trained link; what was set on clean receptions is kept.

    Args:
        link: the trained link.
        air: its channel draws.
    """

    def __init__(self, link: TrainedLink, air: Air) -> None:
        self.link = link
        self.receptions = Receptions(link, air)
        self.alarms: Alarms | None = None
        if link.detector is not None:
            assert link.plan.dataset.reserve is not None, "checked with the scenario"
            self.alarms = Alarms(link, link.detector, link.plan.dataset.reserve)
        self.ballots = None if link.vote is None else Ballots(link, air)
        self.thresholds = Thresholds(link, air.draws)

    def score(
        self,
        listeners: Sequence[Listener],
        snrs: Sequence[float],
        delta: Perturbation,
        attack: Evasion | Backdoor | None = None,
    ) -> list[Scores]:
        """Metrics of these listeners at each SNR; with a targeted attack, also how far it reached its goal. Behind a
        vote, what the votes say."""
        if self.ballots is not None:
            return self._voted(self.ballots, listeners, snrs, delta, {} if attack is None else attack.targeted)
        everything = self.receptions.everything
        scores: list[Scores] = [{key_of(listener): {} for listener in listeners} for _ in snrs]
        found: dict[tuple[int, Key], Detections] = {}
        thresholds = {listener: [self.thresholds.of(listener, snr_db) for snr_db in snrs] for listener in listeners}
        for listener, heard in self.receptions.heard(listeners, snrs, delta):
            task, key = self.link.plan.task(listener.branch), key_of(listener)
            levels = heard.times.any(1).nonzero()[:, 0].tolist()
            with torch.no_grad():
                output = listener.decoder(heard.inputs)
            truth = task.truth(self._examples(heard.images), heard.realisation)
            # Only tasks without a threshold are heard at several SNRs at once.
            shares = task.metrics(output, truth, thresholds[listener][levels[0]])
            if heard.kept is not None and isinstance(task, Reconstruction):
                shares |= self._inpainting(output, heard)
            # Only transmitters of patches are heard at several SNRs at once, and those have no detector.
            if self.alarms is not None and (alarm := self.alarms.alarm(listener, snrs[levels[0]])) is not None:
                shares |= _passed(shares, alarm.flags(heard.inputs))
            goal = attack.targeted.get(listener.branch.task) if attack is not None else None
            if goal is not None:
                shares["reached"] = task.reached(output, truth, task.aim(goal, self.link.examples)[heard.images])
            # NaN has a largest entry too: without this a link that has broken down would score like chance.
            broken = ~(output.isfinite().flatten(2).all(-1) & heard.inputs.isfinite().flatten(2).all(-1))
            for level in levels:
                there = heard.times[level] > 0
                images, times = heard.images[there], heard.times[level][there].double()
                into, numbers = scores[level][key], images.cpu().numpy()
                for metric, share in shares.items():
                    tally = into.get(metric)
                    if tally is None:
                        tally = into[metric] = Tally(np.zeros(len(everything)), np.zeros(len(everything)))
                    assert isinstance(tally, Tally)
                    numerator = share.numerator.double().masked_fill(broken, torch.nan)[:, there] * times
                    np.add.at(tally.numerator, numbers, numerator.sum(0).cpu().numpy())
                    denominator = share.denominator.double().expand(numerator.shape[0], -1)[:, there] * times
                    np.add.at(tally.denominator, numbers, denominator.sum(0).cpu().numpy())
                    # Every image is heard equally often.
                    tally.receptions += int((times * (images == 0)).sum()) * len(output)
                if isinstance(task, Detection):
                    boxes = found.setdefault((level, key), Detections(self.link.examples))
                    boxes.add(output[:, there], images, times)
        for (level, key), detections in found.items():
            scores[level][key] |= detections.finished()
        for listener in listeners:
            if isinstance(self.link.plan.task(listener.branch), Classification):
                for of_level in scores:
                    metrics = of_level[key_of(listener)]
                    accuracy = metrics["accuracy"]
                    assert isinstance(accuracy, Tally)
                    if accuracy.receptions > 1:
                        metrics["mostly_right"] = _mostly(accuracy)
        return scores

    def _voted(
        self,
        ballots: Ballots,
        listeners: Sequence[Listener],
        snrs: Sequence[float],
        delta: Perturbation,
        goals: Mapping[str, int],
    ) -> list[Scores]:
        scores: list[Scores] = []
        for counted in ballots.score(listeners, snrs, delta, goals):
            groups: dict[Key, list[dict[str, Tally]]] = {}
            for listener, tallies in counted.items():
                groups.setdefault(key_of(listener), []).append(tallies)
            scores.append({key: {**together(held)} for key, held in groups.items()})
        return scores

    def _examples(self, images: Tensor) -> Examples:
        """Test images; without a copy where they are all of them."""
        return self.link.examples if images is self.receptions.everything else self.link.examples.at(images)

    def _inpainting(self, output: Tensor, heard: Heard) -> dict[str, Share]:
        """Mean squared error on the patches that did not arrive, `masked_mse`, and what the mean colour of those that
        did would have there, `mean_colour_masked_mse`."""
        assert self.receptions.encoder is not None
        assert heard.kept is not None
        mae, images = self.receptions.encoder.mae, self.link.images[heard.images]
        patches = mae.patchify(images).unflatten(-1, (3, -1))
        visible = heard.kept.sum(1, keepdim=True).clamp_min(1)
        colour = (patches.mean(-1) * heard.kept.unsqueeze(-1)).sum(1) / visible
        flat = (patches - colour[:, None, :, None]).square().mean((-2, -1))
        error = torch.stack([mae.patchify((one.view_as(images) - images).square()).mean(-1) for one in output])
        # Where nothing arrives there is no colour to compare with.
        lost = (~heard.kept & heard.kept.any(1, keepdim=True)).float().expand(error.shape)
        return {
            "masked_mse": Share((error * lost).sum(-1), lost.sum(-1)),
            "mean_colour_masked_mse": Share((flat * lost).sum(-1), lost.sum(-1)),
        }


def _passed(shares: Mapping[str, Share], flagged: Tensor) -> dict[str, Share]:
    """What a detector makes of receptions: see `fedsem.hooks.detector.Detector`."""
    passed, every = (~flagged).float(), torch.ones(flagged.shape, device=flagged.device)
    found = {"flagged": Share(flagged.float(), every)}
    if "accuracy" in shares:
        right = shares["accuracy"].numerator
        found["accuracy_passed"] = Share(right * passed, passed)
        found["passed_right"] = Share(right * passed, every)
        found["undetected_error"] = Share((1 - right) * passed, every)
    return found


def _mostly(accuracy: Tally) -> Tally:
    """Whether each image is told rightly in more than half of its receptions; NaN stays NaN."""
    share = accuracy.numerator / accuracy.denominator
    return Tally(np.where(np.isnan(share), np.nan, share > 0.5), np.ones_like(share), receptions=1)


def key_of(listener: Listener) -> Key:
    """Receivers of a group that do the same over the same channel are scored together."""
    return listener.group, listener.branch.task, listener.branch.channel
