"""Tasks: what a kind of model is trained and measured on. One file each, one class `Task` each.

Adding a kind is adding a file with a class that has what `Task` below lists.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Protocol

from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ffmerge.activations import Batch
from study.config import Params, Use
from study.corpora import ensure_corpus
from study.metrics import Metric


@dataclass(frozen=True)
class Score:
    """What a model scores on a split.

    Attributes:
        values: metric to value; the first metric is the one that models are selected by.
        n_examples: how many examples were scored.
        signatures: metric's name to how it was computed, for those that come in many versions.
        answers: what was expected and what the model answered, one line for each example.
    """

    values: dict[Metric, float]
    n_examples: int
    signatures: dict[str, str] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The value of the first metric."""
        return next(iter(self.values.values()))

    @property
    def by_name(self) -> dict[str, float]:
        """The values by the names of their metrics."""
        return {metric.name: value for metric, value in self.values.items()}


class Task(Protocol):
    """What every task can do."""

    metric: Metric  # the one that selects windows and models

    def new_model(self) -> PreTrainedModel:
        """An untrained base model."""

    def dataset(self, split: str, limit: int | None = None, seed: int = 0) -> Iterable:
        """The examples of "train", "validation" or "test", at most `limit` of them.

        The seed orders streamed training data; Trainer itself shuffles the rest.
        """

    def collate(self, examples: list[dict]) -> Batch:
        """Examples to the keyword arguments of the model's forward, labels included."""

    def evaluate(self, model: PreTrainedModel, batches: Iterable[Batch]) -> Score:
        """Score a model, in evaluation mode, on batches of labelled examples."""

    def save_processor(self, path: Path) -> None:
        """Keep beside the model what turns raw examples into its input."""


def load_task(
    name: str,
    params: Params,
    root: Path,
    downstream: bool = False,
    reading: str | None = None,
    features: bool = False,
) -> Task:
    """The task of a model, with its data at hand.

    Args:
        name: of the model in params.yaml.
        params, root: params.yaml and the folder that it lies in.
        downstream: the task of its recovery fine-tuning and test, where that is another one.
        reading: the task of one of its `readings` instead.
        features: its own task on the examples that its features are collected on.

    Raises:
        ValueError: an embedded corpus that differs from data.dvc.
    """
    model = params.model(name)
    use = model.recovery if downstream else model.examined if features else model
    use = model.readings[reading] if reading else use
    data = use.data
    if data.corpus:
        folder = ensure_corpus(data.path, params, root)
        data = data.model_copy(update={"path": str(folder)})
    module = import_module(f"study.tasks.{use.task}")
    return module.Task(model.base, data, root / "models" / name / "base")


def score_test(task: Task, use: Use, model: PreTrainedModel) -> Score:
    """Score a model on the test split, or on as much of it as its entry says.

    Args:
        task, use: the task, and its place in the model's entry.
        model: the candidate.
    """
    return task.evaluate(model, make_batches(task, "test", use.batch_size, use.test_examples))


def score_readings(name: str, params: Params, root: Path, model: PreTrainedModel) -> list[Score]:
    """What else a model is scored on: its entry's `readings`, each metric named after its reading.

    Args:
        name, params, root: as in `load_task`.
        model: the candidate.
    """
    scores = []
    for reading, use in params.model(name).readings.items():
        score = score_test(load_task(name, params, root, reading=reading), use, model)
        values = {replace(m, name=f"{m.name} on {reading}"): v for m, v in score.values.items()}
        scores.append(replace(score, values=values))
    return scores


def make_batches(
    task: Task, split: str, batch_size: int, limit: int | None = None
) -> Iterator[Batch]:
    """Batches of a split in order, collated.

    Args:
        task: the task.
        split: "train", "validation" or "test".
        batch_size: examples per batch.
        limit: examples in all.
    """
    loader = DataLoader(
        task.dataset(split, limit), batch_size=batch_size, collate_fn=task.collate, shuffle=False
    )
    return iter(loader)
