"""Image classification (paper, Section 4.2): accuracy in percent of the images."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from transformers import (
    AutoImageProcessor,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from ffmerge.activations import Batch
from ffmerge.hub import asking_hub
from study.metrics import Metric
from study.sections import Base, Data
from study.tasks import Score
from study.tasks.data import load_split
from study.tasks.sharing import score_batches


class Task:
    """Image classification with a vision transformer."""

    metric = Metric("accuracy", "%")

    def __init__(self, base: Base, data: Data, folder: Path) -> None:
        """Args: base and data of the model's entry; folder of the base model, if it exists."""
        self.base, self.data = base, data
        self.image, self.label = (data.columns.get(name, name) for name in ("image", "label"))
        if (folder / "preprocessor_config.json").exists():
            self.processor = AutoImageProcessor.from_pretrained(folder)
        elif base.hub:
            with asking_hub(base.hub, "model", base.revision):
                self.processor = AutoImageProcessor.from_pretrained(
                    base.hub, revision=base.revision
                )
        else:
            self.processor = ViTImageProcessorPil(**base.processor)
        self.mode = "RGB" if len(self.processor.image_mean) == 3 else "L"

    def new_model(self) -> PreTrainedModel:
        """An untrained vision transformer with one output per class of the data."""
        names = self.dataset("train").features[self.label].names
        config = ViTConfig(
            **self.base.architecture,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
        )
        return ViTForImageClassification(config)

    def dataset(self, split: str, limit: int | None = None, seed: int = 0) -> Iterable:
        """The labelled images of a split; streamed where the entry says so."""
        return load_split(self.data, split, limit, seed)

    def collate(self, examples: list[dict]) -> Batch:
        """Pixels as the base model's processor wants them, and labels."""
        images = [example[self.image].convert(self.mode) for example in examples]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        labels = torch.tensor([example[self.label] for example in examples])
        return {"pixel_values": pixels, "labels": labels}

    def evaluate(self, model: PreTrainedModel, batches: Iterable[Batch]) -> Score:
        """Percentage of images whose class scores highest."""

        def classify(batch: Batch) -> list[tuple[int, int]]:
            logits = model(pixel_values=batch["pixel_values"].to(model.device)).logits
            return list(zip(batch["labels"].tolist(), logits.argmax(-1).tolist(), strict=True))

        names = model.config.id2label
        pairs = list(chain.from_iterable(score_batches(model, batches, classify, "evaluate")))
        pairs = [(names[label], names[answer]) for label, answer in pairs]
        correct = sum(label == answer for label, answer in pairs)
        labels, found = map(list, zip(*pairs, strict=True))
        answers = {"label": labels, "answer": found}
        return Score({self.metric: 100 * correct / len(pairs)}, len(pairs), answers=answers)

    def save_processor(self, path: Path) -> None:
        """Write the image processor's settings into a model's folder."""
        self.processor.save_pretrained(path)
