"""The sections of params.yaml: what each may say, checked one by one."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from ffmerge.groups import Anchor
from ffmerge.methods import list_methods

Name = str
Ratio = Literal["sixth", "third", "half", "most"]


class Section(BaseModel):
    """A part of params.yaml; a name that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """Where a model's examples are: anything that `datasets.load_dataset` reads."""

    path: str  # a folder such as data/glyphs, or a hub id
    name: str | None = None
    revision: str | None = None
    streaming: bool = False
    splits: dict[Literal["train", "validation", "test"], str] = {
        "train": "train",
        "validation": "validation",
        "test": "test",
    }
    columns: dict[str, str] = {}  # the task's name of a column: the data set's
    separator: str | None = None  # between texts; the end-of-text token if left out

    @property
    def corpus(self) -> str | None:
        """Name of the embedded corpus, or None for data of any other kind."""
        folder, _, name = self.path.partition("/")
        return name if folder == "data" else None


class Adapters(Section):
    """QLoRA: adapters on all linear layers of a frozen 4-bit model (Section 5.5, Appendix C.4)."""

    rank: PositiveInt
    alpha: float = Field(gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)


class Training(Section):
    """One training or recovery fine-tuning recipe (Appendix C)."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: float = Field(gt=0)
    schedule: Literal["linear", "cosine", "inverse_sqrt"]
    warmup_steps: int = Field(0, ge=0)
    decay_steps: PositiveInt | None = None  # linear: where the floor is reached; else at the end
    minimum_learning_rate: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    maximum_gradient_norm: float = Field(1.0, gt=0)
    evaluate_every: PositiveInt
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    adapters: Adapters | None = None  # train these instead of the model's own weights


class Base(Section):
    """The uncompressed model: trained here from `architecture`, or downloaded from `hub`."""

    hub: str | None = None
    revision: str | None = None
    architecture: dict[str, Any] | None = None
    processor: dict[str, Any] = {}
    training: Training | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "Base":
        if (self.hub is None) == (self.architecture is None or self.training is None):
            raise ValueError("needs either hub, or architecture and training")
        return self


class Use(Section):
    """What a model is used for: a task, its data, and how much of them is scored at a time."""

    task: str
    data: Data
    validation_examples: PositiveInt
    batch_size: PositiveInt


class Model(Use):
    """Everything about one model: its data, base, windows and recovery fine-tuning.

    Its own task trains the base, gives the features and selects the windows; the recovery
    fine-tuning and the test may be another task's, `downstream`.
    """

    paper: str | None = None  # the paper's model that it stands in for, as results/paper.csv says
    layers: dict[Literal["encoder", "decoder"], PositiveInt]
    attention: Literal["eager", "sdpa"] = "sdpa"
    base: Base
    features: dict[Literal["tokens", "batch_size"], PositiveInt]
    removed: dict[Ratio, PositiveInt] = {}  # FF sublayers that go, at each ratio
    dropped: dict[Ratio, PositiveInt] = {}  # whole layers, for methods that remove those
    variants: list[Name] | None = None  # the recipes to run; without it all that have a ratio here
    finetune: Training
    downstream: Use | None = None

    def counts(self, removes: str) -> dict[Ratio, int]:
        """How much goes at each ratio, of what a method removes."""
        return self.dropped if removes == "layers" else self.removed

    @property
    def recovery(self) -> Use:
        """What the recovery fine-tuning trains and the test split measures."""
        return self.downstream or self

    @model_validator(mode="after")
    def _counts_fit(self) -> "Model":
        n_stacks, total = len(self.layers), sum(self.layers.values())
        for name, counts, most in (
            ("removed", self.removed, total - n_stacks),
            ("dropped", self.dropped, total - n_stacks),
        ):
            for ratio, count in counts.items():
                if count > most or count % n_stacks:
                    what = "FF sublayers" if name == "removed" else "layers"
                    raise ValueError(
                        f"{name}.{ratio} is {count}, but of {total} {what} in {n_stacks} "
                        f"stack(s) at most {most} can go, equally many from each"
                    )
        return self


class Recipe(Section):
    """One variant: how a model is compressed, and what differs in its fine-tuning."""

    method: str
    ratio: Ratio | None = None  # a key of the model's `removed`, or for drop of its `dropped`
    anchor: Anchor = "first"
    window: str | None = None  # such as 3-7, instead of the best one
    random_window: PositiveInt | None = None  # 1 is the first one drawn, instead of the best
    seeds: Literal["all", "first", "none"] = "all"  # the seeds of its tuning
    int8: bool = False  # scored under LLM.int8() too (Section 5.4)
    finetune: dict[str, Any] = {}  # overrides single entries of the model's `finetune`

    @model_validator(mode="after")
    def _has_what_the_method_needs(self) -> "Recipe":
        valid = ["base", *list_methods()]
        if self.method not in valid:
            raise ValueError(f"method is {self.method!r}; valid are {', '.join(valid)}")
        if (self.method == "base") != (self.ratio is None):
            raise ValueError("ratio is needed by every method but base, and unknown to base")
        if self.window and self.random_window:
            raise ValueError("window and random_window exclude each other")
        unknown = set(self.finetune) - set(Training.model_fields)
        if unknown:
            raise ValueError(
                f"finetune.{min(unknown)} is not a parameter; valid are "
                + ", ".join(Training.model_fields)
            )
        return self
