"""Hook `vote`: many receptions of one image decide together at test time, and say against which perturbations their
decision is certain."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.defense import Defense
from fedsem.hooks.evasion import Evasion, Norm, Site
from fedsem.hooks.transform import Transform
from fedsem.models.mae_encoder import MaeOptions
from fedsem.tasks.task import DecoderFormat, Share, Task

if TYPE_CHECKING:
    from fedsem.plan import Plan


class Vote(Defense):
    """Gaussian noise in front of a decision bounds what a perturbation of L2 norm r can do to it: an event of
    probability p without it has Phi(Phi^-1(p) - r / s) at least with it, whatever comes after the noise N(0, s^2 I)
    (Cohen, Rosenfeld and Kolter, Certified Adversarial Robustness via Randomized Smoothing, 2019; the Neyman-Pearson
    lemma). The bound holds for every attack within the budget of each image, also for one that nobody has thought of;
    not for a perturbation for all images that keeps its budget on average only, as `universal` does.

    At the input the transmitter adds the noise: it sends copies u + N(0, sigma^2 I) of the image, each over an air of
    its own (pixels may leave [0, 1]). A perturbation of the image of PSR ||delta||^2 / ||u||^2 has
    r / s = sqrt(PSR) ||u|| / sigma. Sigma is the same for all images, as an adversary could move one that followed
    their energy. A link learns to live with it by `noise_augmentation`; without, it decides little.

    Over the air the noise of the channel itself does it: the same signal is received many times through the same gains,
    y = h x + g w + n, with n ~ N(0, s^2 I) independent of w and ||w||^2 <= PSR ||x||^2. Whatever the receiver does with
    y and knows of the channel comes after the noise, the equaliser too, so r / s = max |g| sqrt(PSR ||x||^2 SNR): with
    the largest |g| of fast fading, with |g| = 1 over AWGN, and the same for complex symbols, where real and imaginary
    part have half the power of signal and noise each. It holds for perturbations over the air, not for those of the
    image, and for the probability of a right decision, not for a mean squared error or an average precision. Over a
    sensing channel the target and its reflection stay as they are, and w arrives at the radar's receiver.

    The table has what is decided, without and under attack, and in rows of stage `certificate` what is certified at
    each `psr_db` of the grids that name the defense: attack `none`, norm `l2` (which holds L-inf perturbations of the
    same PSR), and the site of the perturbation.

    Attributes:
        n: receptions of each image that vote, or are counted.
        alpha: probability that the certificate of an image does not hold.
    """

    in_training: ClassVar[bool] = False
    site: ClassVar[Site]
    """Where the perturbations are added that it is certified against."""
    norm: ClassVar[Norm] = "l2"
    serves: ClassVar[tuple[type[Task], ...]]
    """Tasks that it can decide."""

    n: Annotated[int, Field(ge=10, le=100_000)] = 1000
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.001

    @property
    def receptions(self) -> int:
        """Receptions of each image, all told."""
        return self.n

    @property
    def averaged(self) -> int:
        """How many receptions are averaged before each decision: their noise has so many times less power."""
        return 1

    @abstractmethod
    def measure(self, output: Tensor, truth: Tensor, task: Task) -> dict[str, Share]:
        """What the receptions make of each image.

        Args:
            output: what the decoder says of each reception, (receptions, B, outputs).
            truth: what it should say, (B, ...).
            task: the task.

        Returns:
            Metrics as shares (B,).
        """

    @abstractmethod
    def certify(
        self, output: Tensor, truth: Tensor, task: Task, distance: Tensor, decoder: DecoderFormat
    ) -> dict[str, Share]:
        """What holds of each image under every perturbation of given size, as shares (P, B).

        Args:
            output, truth, task: as for `measure`, of receptions that nobody has disturbed.
            distance: r / s, the largest L2 norm of a perturbation where the noise is added over the standard deviation
                of the noise there, float64 (P, B).
            decoder: what its decoders are told to say.
        """

    def adaptive(self) -> Mapping[str, Any] | None:
        return {"kind": "standard", "knowledge": {"defense": "adaptive"}}

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: a grid names no PSR to certify, or tasks that have no such decision.
        """
        scenario = plan.scenario
        for where, grid in self.grids(scenario):
            if grid.psr_db is None:
                raise ScenarioError(
                    f"{where}': '{self.kind}' certifies for perturbations of some power; list PSRs in 'psr_db'."
                )
            for name in grid.tasks or scenario.tasks:
                if not isinstance(scenario.tasks[name], self.serves):
                    served = " and ".join(one.kind for one in self.serves)
                    raise ScenarioError(
                        f"{where}.tasks': '{self.kind}' does not certify the task '{name}' "
                        f"({scenario.tasks[name].kind}); name those that it does, {served}, in the grid's tasks."
                    )


class NoisyCopies(Vote, Transform):
    """Copies of the image with Gaussian noise that the transmitter adds.

    Attributes:
        sigma: standard deviation of the noise, on the pixels' scale of 0 to 1.
    """

    site: ClassVar[Site] = "input"

    sigma: PositiveFloat = 0.25

    def transform(self, signal: Tensor, drawn: Tensor) -> Tensor:
        return signal + self.sigma * drawn

    def draw(self, shape: tuple[int, ...], image: tuple[int, int, int], generator: Generator) -> Tensor:
        return torch.randn((*shape, *image), generator=generator, device=generator.device)

    def check(self, path: str, plan: Plan) -> None:
        # Not that of a transform: votes send every copy for itself, through transmitters of patches too.
        Vote.check(self, path, plan)
        scenario = plan.scenario
        encoder = scenario.link.encoder
        if isinstance(encoder, MaeOptions) and encoder.digital and encoder.latency_budget_s is not None:
            used = [plan.channel(branch) for branch in plan.branches]
            steady = all(channel.steady or channel.is_sensing for channel in used)
            if not steady or encoder.csi_error_db or encoder.csi_correlation != 1:
                raise ScenarioError(
                    f"In the scenario, '{path}': of the copies that '{self.kind}' sends, every one would have patches "
                    "of its own number or none, as link.encoder.latency_budget_s and the channel have it; use a "
                    "mask_ratio, transport: analog, or a channel that is always the same."
                )
        for where, grid in self.grids(scenario):
            if "original" in (grid.selection or []):
                raise ScenarioError(
                    f"{where}.selection': with 'original' nothing is sent, and '{self.kind}' sends copies; remove it."
                )
            for name in grid.attacks:
                attack = scenario.attacks.get(name)
                if isinstance(attack, Evasion) and attack.knowledge.channel == "csi":
                    raise ScenarioError(
                        f"{where}.attacks': '{name}' knows the channel of a reception, and '{self.kind}' sends each "
                        "copy over another; use channel: statistics, or a grid without this defense."
                    )


class ManyReceptions(Vote):
    """Receptions of the same signal through the same gains.

    Attributes:
        gains: gains h and g (of a sensing channel also targets) of each image: the first of the draws that score; one
            where nothing is random but noise.
    """

    site: ClassVar[Site] = "air"

    gains: PositiveInt = 8

    def check(self, path: str, plan: Plan) -> None:
        super().check(path, plan)
        if plan.scenario.link.encoder.paints:
            raise ScenarioError(
                f"In the scenario, '{path}': '{self.kind}' decodes {self.receptions} receptions of each image, and a "
                f"receiver of '{plan.scenario.link.encoder.kind}' would paint every one of them (or, with a digital "
                "transport, hear no noise at all); use another encoder, or noisy copies of the image."
            )
        draws = plan.scenario.evaluation.draws.score
        steady = all(plan.channel(branch).steady for branch in plan.branches)
        if not steady and self.gains > draws:
            raise ScenarioError(
                f"In the scenario, '{path}.gains': evaluation.draws.score has {draws} draws of the gains, not "
                f"{self.gains}; lower it, or raise that."
            )
