"""Diversification of the training images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor
from torchvision.transforms import v2

from fedsem.errors import ScenarioError
from fedsem.hooks.augmentation import Augmentation
from fedsem.registry import register
from fedsem.streams import Stream

if TYPE_CHECKING:
    from fedsem.plan import Plan


@register("defense", "data_diversification")
class DataDiversification(Augmentation):
    """Every image is cropped and resized, perhaps mirrored, changed in brightness, contrast and saturation, and one
    time in two blurred, one in two made noisy: each at random for itself, differently at every receiver and in every
    step ("diversification of the training dataset" against backdoors, [S3] section VI; strong augmentation as a
    defense: Borgnia et al., Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an Accuracy
    Tradeoff, 2021). By torchvision's transforms. It takes about 2 ms of CPU time for each image and step.

    Attributes:
        area: the smallest share of the area that a crop keeps; 1: no crops.
        flip: mirror every other image; not where left and right mean something, as in digits.
        colour: brightness, contrast and saturation are multiplied by factors in [1 - colour, 1 + colour].
        blur: largest standard deviation of the Gaussian blur, in pixels.
        noise: standard deviation of white Gaussian noise, pixels being in [0, 1].
    """

    area: Annotated[float, Field(gt=0, le=1)] = 0.7
    flip: bool = False
    colour: Annotated[float, Field(ge=0, le=1)] = 0.3
    blur: NonNegativeFloat = 1.0
    noise: NonNegativeFloat = 0.05

    @model_validator(mode="after")
    def _something(self) -> DataDiversification:
        if self.area == 1 and not (self.flip or self.colour or self.blur or self.noise):
            raise ValueError("with these options every image stays as it is; name some change")
        return self

    def augmented(self, images: Tensor, stream: Stream) -> Tensor:
        change = self._change(images.shape[-2], images.shape[-1])
        with stream.fork(images.device):
            return torch.stack([change(image) for image in images])

    def _change(self, height: int, width: int) -> v2.Transform:
        steps: list[v2.Transform] = []
        if self.area < 1:
            steps.append(v2.RandomResizedCrop((height, width), scale=(self.area, 1.0), ratio=(0.9, 1 / 0.9)))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.colour:
            steps.append(v2.ColorJitter(self.colour, self.colour, self.colour))
        if self.blur:
            # Wide enough for the largest: three standard deviations on each side.
            size = 2 * max(1, round(3 * self.blur)) + 1
            steps.append(v2.RandomApply([v2.GaussianBlur(size, (min(0.1, self.blur), self.blur))]))
        if self.noise:
            steps.append(v2.RandomApply([v2.GaussianNoise(sigma=self.noise)]))
        return v2.Compose(steps)

    def check(self, path: str, plan: Plan) -> None:
        if self not in plan.augmentations:
            return
        for branch in plan.branches:
            if plan.task(branch).needs in ("boxes", "keypoints", "segmentation"):
                raise ScenarioError(
                    f"In the scenario, '{path}': boxes and masks of '{branch.task}' would not move with the pictures; "
                    "leave it out of use.defenses."
                )
