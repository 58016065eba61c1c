"""Who holds which training images: partitions of the training split among receivers.

The dealing itself is done by `flwr_datasets.partitioner`; here it is seeded, checked, and told apart by kind. Each
partition first shuffles the images by the seed, so that also which image of a class goes where depends on it.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import abstractmethod
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from fedsem.data.cache import remembered
from fedsem.errors import ScenarioError
from fedsem.registry import Options, register
from fedsem.streams import Stream

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


_SOURCE = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=8).hexdigest()
"""What this file would deal out may change when it does."""


class PartitionOptions(Options):
    """The mapping under `data.partition:`. A partition implements `_partitioner` and may add checks in `_check`."""

    remedy: ClassVar[str] = "use fewer receivers"
    """What to change where the partitioner finds no solution."""

    def split(self, labels: np.ndarray, parts: int, seed: int) -> list[np.ndarray]:
        """Deal out the images.

        Args:
            labels: (N,) integers, the label of each training image.
            parts: number of receivers.
            seed: decides everything that is random; the same seed gives the same parts.

        Returns:
            for each receiver the indices of its images: int64 (n,), ascending, n >= 1; no image is in two parts.

        Raises:
            ScenarioError: such a partition does not exist; the message begins with `data.partition`.
        """
        if not 1 <= parts <= len(labels):
            raise ScenarioError(
                f"data.partition: {parts} receivers cannot share {len(labels)} images; use fewer receivers or more "
                f"images."
            )
        self._check(labels, parts)
        # flwr_datasets takes seconds to import: what it once dealt out is remembered.
        text = f"{_SOURCE} {version('flwr-datasets')} {self.kind} {self.model_dump_json()} {parts} {seed} ".encode()
        holder = remembered("partitions", text + labels.tobytes(), lambda: self._holders(labels, parts, seed))
        return [np.flatnonzero(holder == part).astype(np.int64) for part in range(parts)]

    def _holders(self, labels: np.ndarray, parts: int, seed: int) -> np.ndarray:
        """For each image the receiver that holds it, -1 for none: int32 (N,)."""
        stream = Stream(seed).child("data", "partition")
        order = stream.child("order").numpy().permutation(len(labels))
        try:
            pieces = _deal(self._partitioner(parts, stream.child("deal").key), labels[order], parts)
        except ValueError as error:
            raise ScenarioError(
                f"data.partition: no partition of kind '{self.kind}' was found for {parts} receivers and "
                f"{len(labels)} images; {self.remedy}."
            ) from error
        empty = sum(len(piece) == 0 for piece in pieces)
        if empty:
            raise ScenarioError(f"data.partition: {empty} of {parts} receivers would get no image; {self.remedy}.")
        holder = np.full(len(labels), -1, np.int32)
        for part, piece in enumerate(pieces):
            holder[order[piece]] = part
        return holder

    def _check(self, labels: np.ndarray, parts: int) -> None:
        """Raise ScenarioError where the options cannot be met by these labels."""

    @abstractmethod
    def _partitioner(self, parts: int, seed: int) -> Partitioner:
        """The partitioner of flwr_datasets; it reads the column `label`."""


def _deal(partitioner: Partitioner, labels: np.ndarray, parts: int) -> list[np.ndarray]:
    """Run a partitioner on a table that has the labels and the row numbers as its columns."""
    datasets = _flwr_datasets()[1]
    table = datasets.Dataset.from_dict({"label": labels, "row": np.arange(len(labels))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Advice on the partitioner's own arguments, which are not what was written.
        partitioner.dataset = table
        pieces = [partitioner.load_partition(part).with_format("numpy") for part in range(parts)]
    return [np.asarray(piece["row"][:], np.int64) for piece in pieces]


def _flwr_datasets() -> tuple[Any, Any]:
    """The modules `flwr_datasets.partitioner` and `datasets`, imported late (about 2 s), without telemetry."""
    for name, value in {"FLWR_TELEMETRY_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}.items():
        os.environ.setdefault(name, value)
    import datasets
    from flwr_datasets import partitioner

    datasets.disable_progress_bars()
    return partitioner, datasets


@register("partition", "iid")
class Iid(PartitionOptions):
    """Every receiver gets a random share of equal size (to within one image); all images are used."""

    def _partitioner(self, parts: int, seed: int) -> Partitioner:
        return _flwr_datasets()[0].IidPartitioner(parts)  # Contiguous blocks of the shuffled images.


@register("partition", "dirichlet")
class Dirichlet(PartitionOptions):
    """Each class is dealt out in proportions drawn from a symmetric Dirichlet distribution; all images are used.

    Small `alpha` gives a receiver few classes, large `alpha` approaches equal shares of all. Drawn again (11 times at
    most) until every receiver has `min_size` images. Source: Yurochkin et al., Bayesian Nonparametric Federated
    Learning of Neural Networks, ICML 2019; Hsu et al., arXiv:1909.06335.
    """

    remedy = "raise data.partition.alpha, lower data.partition.min_size, or use fewer receivers"
    alpha: Annotated[float, Field(ge=1e-3, le=1e6)] = Field(description="concentration, the same for every receiver")
    min_size: PositiveInt = Field(default=10, description="images that every receiver gets at least")

    def _check(self, labels: np.ndarray, parts: int) -> None:
        if parts * self.min_size > len(labels):
            raise ScenarioError(
                f"data.partition.min_size: {parts} receivers with {self.min_size} images each need "
                f"{parts * self.min_size} images, but there are {len(labels)}; lower it or use fewer receivers."
            )

    def _partitioner(self, parts: int, seed: int) -> Partitioner:
        return _flwr_datasets()[0].DirichletPartitioner(
            parts, "label", self.alpha, min_partition_size=self.min_size, shuffle=False, seed=seed
        )


@register("partition", "shards")
class Shards(PartitionOptions):
    """Images sorted by label are cut into shards of equal size, and every receiver gets `shards_per_receiver` of them.

    Up to (number of shards - 1) images are left over. Source: McMahan et al., Communication-Efficient Learning of
    Deep Networks from Decentralized Data, AISTATS 2017.
    """

    shards_per_receiver: PositiveInt = 2

    def _check(self, labels: np.ndarray, parts: int) -> None:
        if parts * self.shards_per_receiver > len(labels):
            raise ScenarioError(
                f"data.partition.shards_per_receiver: {parts} receivers with {self.shards_per_receiver} shards each "
                f"need {parts * self.shards_per_receiver} images, but there are {len(labels)}; lower it or use fewer "
                f"receivers."
            )

    def _partitioner(self, parts: int, seed: int) -> Partitioner:
        return _flwr_datasets()[0].ShardPartitioner(
            parts, "label", num_shards_per_partition=self.shards_per_receiver, shuffle=False, seed=seed
        )


@register("partition", "pathological")
class Pathological(PartitionOptions):
    """Every receiver gets images of exactly `classes_per_receiver` classes.

    Receiver i has class i modulo their number, and others at random, so that with as many receivers as classes no
    class is left out; receivers that share a class get equal parts of it.
    """

    remedy = "lower data.partition.classes_per_receiver or use fewer receivers"
    classes_per_receiver: PositiveInt

    def _check(self, labels: np.ndarray, parts: int) -> None:
        classes = len(np.unique(labels))
        if self.classes_per_receiver > classes:
            raise ScenarioError(
                f"data.partition.classes_per_receiver: {self.classes_per_receiver} classes for each receiver, but the "
                f"data have {classes}; lower it."
            )

    def _partitioner(self, parts: int, seed: int) -> Partitioner:
        return _flwr_datasets()[0].PathologicalPartitioner(
            parts,
            "label",
            self.classes_per_receiver,
            class_assignment_mode="first-deterministic",
            shuffle=False,
            seed=seed,
        )
