"""Images by their nearest neighbours: how a vision encoder without a head is scored.

A candidate embeds labelled images, the bank, and then those that are asked for; the class that most
of the nearest ones of the bank have is the answer. Nothing is trained, and labels only vote.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, BitImageProcessorPil, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from study.metrics import Metric
from study.sections import Base, Data
from study.tasks import Score, make_batches
from study.tasks.data import load_split
from study.tasks.sharing import score_batches

NEAREST = 5  # that vote
BATCH = 80  # images of the bank at a time


class LabelledBatch(dict[str, Tensor]):
    """Keyword arguments of the model's forward, and the labels that it does not see."""

    def __init__(self, tensors: dict[str, Tensor], labels: Sequence[int]) -> None:
        super().__init__(tensors)
        self.labels = labels


class Task:
    """Image classification by cosine nearest neighbours of the class token."""

    metric = Metric("accuracy (neighbours)", "%")

    def __init__(self, base: Base, data: Data, folder: Path) -> None:
        """Args: base and data of the model's entry; folder of the base model, if it exists."""
        self.base, self.data, self.folder = base, data, folder
        self.image, self.label = (data.columns.get(name, name) for name in ("image", "label"))

    @cached_property
    def processor(self) -> BitImageProcessorPil:
        """What DINOv2 was trained with, but for the size; the base model's own once it is there."""
        if (self.folder / "preprocessor_config.json").exists():
            return AutoImageProcessor.from_pretrained(self.folder)
        side = self.base.processor["size"]
        return BitImageProcessorPil(
            size={"height": side, "width": side},
            do_center_crop=False,
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        )

    def dataset(self, split: str, limit: int | None = None, seed: int = 0) -> Iterable:
        """The labelled images of a split; only those whose label the entry names, if it does.

        Raises:
            ValueError: it names a label that the data do not have.
        """
        rows = load_split(self.data, split, None if self.data.labels else limit, seed)
        if not self.data.labels:
            return rows
        names = rows.features[self.label].names
        for label in self.data.labels:
            if label not in names:
                raise ValueError(
                    f"data.labels names {label!r}, which {self.data.path} does not have; valid are "
                    + ", ".join(names[:40])
                )
        wanted = {names.index(label) for label in self.data.labels}
        places = [i for i, label in enumerate(rows[self.label]) if label in wanted]
        return rows.select(places[:limit])

    def collate(self, examples: list[dict]) -> LabelledBatch:
        """Pixels as the processor wants them; labels beside them."""
        images = [example[self.image].convert("RGB") for example in examples]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        return LabelledBatch({"pixel_values": pixels}, [row[self.label] for row in examples])

    @cached_property
    def bank(self) -> list[LabelledBatch]:
        """The first images of the training split, as many as the entry says."""
        return list(make_batches(self, "train", BATCH, self.data.bank))

    def evaluate(self, model: PreTrainedModel, batches: Iterable[LabelledBatch]) -> Score:
        """Percentage of images whose class most of their nearest neighbours have.

        The bank is embedded by the same model: it changes with every candidate.
        """

        def embed(batch: LabelledBatch) -> tuple[Tensor, Sequence[int]]:
            output = model(pixel_values=batch["pixel_values"].to(model.device))
            return output.last_hidden_state[:, 0].float().cpu(), batch.labels

        bank = score_batches(model, self.bank, embed, "bank")
        known = torch.tensor(list(chain.from_iterable(labels for _, labels in bank)))
        found = score_batches(model, batches, embed, "evaluate")
        labels = list(chain.from_iterable(labels for _, labels in found))
        tokens, near = (torch.cat([x for x, _ in part]) for part in (found, bank))
        chosen = vote(tokens, near, known).tolist()
        hits = sum(a == b for a, b in zip(labels, chosen, strict=True))
        answers = {"label": list(map(str, labels)), "answer": list(map(str, chosen))}
        return Score({self.metric: 100 * hits / len(labels)}, len(labels), answers=answers)

    def save_processor(self, path: Path) -> None:
        """Write the image processor's settings into a model's folder."""
        self.processor.save_pretrained(path)


def vote(tokens: Tensor, bank: Tensor, labels: Tensor, k: int = NEAREST) -> Tensor:
    """The class that most of the k nearest of a bank have; of several the one that is nearest.

    Args:
        tokens: (n, d_model), of what is asked for.
        bank: (m, d_model).
        labels: (m,), of the bank.
        k: how many vote.

    Returns:
        One label for each row of `tokens`.

    Invariant: the same numbers give the same labels: of equally near ones the first counts.
    """
    similarity = normalize(tokens.double(), dim=1) @ normalize(bank.double(), dim=1).T
    order = similarity.sort(dim=1, descending=True, stable=True).indices[:, :k]
    voters = labels[order]  # (n, k), the nearest first
    votes = (voters.unsqueeze(2) == voters.unsqueeze(1)).sum(2)
    return voters.gather(1, votes.argmax(1, keepdim=True)).squeeze(1)
