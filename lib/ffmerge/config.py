"""params.yaml, read and validated once, before any long work starts."""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

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
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
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
    removed: dict[Ratio, PositiveInt]
    dropped: dict[Ratio, PositiveInt]
    finetune: Training
    downstream: Use | None = None

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

    method: Literal["base", "vanilla", "permute", "drop"]
    removed: Ratio | None = None  # a key of the model's `removed`, or for drop of its `dropped`
    anchor: Literal["first", "middle", "last"] = "first"
    random_window: PositiveInt | None = None  # 1 is the first one drawn; without it, the best
    tuned: bool = True
    int8: bool = False  # scored under LLM.int8() too (Section 5.4)
    finetune: dict[str, Any] = {}  # overrides single entries of the model's `finetune`

    @model_validator(mode="after")
    def _has_what_the_method_needs(self) -> "Recipe":
        if (self.method == "base") != (self.removed is None):
            raise ValueError("removed is needed by every method but base, and unknown to base")
        if self.random_window is not None and self.method != "permute":
            raise ValueError(f"random_window is for method permute, not {self.method}")
        unknown = set(self.finetune) - set(Training.model_fields)
        if unknown:
            raise ValueError(
                f"finetune.{min(unknown)} is not a parameter; valid are "
                + ", ".join(Training.model_fields)
            )
        return self


class Experiments(Section):
    """Models to run, with the variants to compare on them."""

    run: list[Name]
    comparisons: list[Name]  # variants tuned once per seed
    ablations: list[Name]  # variants tuned with the first seed only


class Params(Section):
    """params.yaml as a whole."""

    run: list[Name] = Field(min_length=1)
    seed: int  # of what is drawn once: the base model's training, the order of random windows
    seeds: list[int] = Field(min_length=1)
    threads: PositiveInt
    comparisons: list[Name]  # variants tuned once per seed
    ablations: list[Name]  # variants tuned with the first seed only
    qlora: Experiments  # the same for models that are tuned through adapters (Table 4)
    recipes: dict[Name, Recipe]
    corpora: dict[Name, dict[str, int]]
    models: dict[Name, Model]

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        for where, names, valid in (
            ("run", self.run, self.models),
            ("comparisons", self.comparisons, self.recipes),
            ("ablations", self.ablations, self.recipes),
            ("qlora.run", self.qlora.run, self.models),
            ("qlora.comparisons", self.qlora.comparisons, self.recipes),
            ("qlora.ablations", self.qlora.ablations, self.recipes),
        ):
            for name in names:
                if name not in valid:
                    raise ValueError(
                        f"{where} names {name!r}, which is unknown; valid are {', '.join(valid)}"
                    )
        for model in self.running:
            self._check_data(model)
            for variant in self.variants_of(model):
                self._check_variant(model, variant)
        return self

    def _check_data(self, model: Name) -> None:
        for use in {id(u): u for u in (self.models[model], self.models[model].recovery)}.values():
            if use.data.corpus not in (None, *self.corpora):
                raise ValueError(
                    f"models.{model}.data.path is {use.data.path!r}; valid are a hub id and "
                    + ", ".join(f"data/{corpus}" for corpus in self.corpora)
                )

    def _check_variant(self, model: Name, variant: Name) -> None:
        recipe, entry = self.recipes[variant], self.models[model]
        try:
            training = self.training(model, variant)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(
                f"recipes.{variant}.finetune.{first['loc'][0]} is {first['input']!r}; "
                + _lower(first["msg"])
            ) from None
        if (model in self.qlora.run) != (training.adapters is not None):
            raise ValueError(
                f"models.{model}.finetune.adapters is {training.adapters}; valid are settings "
                "for a model in qlora.run, and none for a model in run"
            )
        counts = "dropped" if recipe.method == "drop" else "removed"
        if recipe.removed and recipe.removed not in getattr(entry, counts):
            raise ValueError(
                f"recipes.{variant}.removed is {recipe.removed!r}; for {model} valid are "
                + ", ".join(getattr(entry, counts))
            )

    @property
    def running(self) -> list[Name]:
        """All models to run, those with adapters last."""
        return [*self.run, *self.qlora.run]

    def experiments_of(self, model: Name) -> "Experiments | Params":
        """The lists of variants that a model takes part in."""
        return self.qlora if model in self.qlora.run else self

    def variants_of(self, model: Name) -> list[Name]:
        """The tuned variants of a model: comparisons, then ablations."""
        experiments = self.experiments_of(model)
        return [*experiments.comparisons, *experiments.ablations]

    def training(self, model: Name, variant: Name) -> Training:
        """The recovery fine-tuning of one variant: the model's own, with the variant's changes."""
        changed = self.models[model].finetune.model_dump() | self.recipes[variant].finetune
        return Training(**changed)

    def seeds_of(self, model: Name, variant: Name) -> list[int]:
        """The seeds that a variant is tuned with; the untouched base has none."""
        if not self.recipes[variant].tuned:
            return []
        return self.seeds if variant in self.experiments_of(model).comparisons else self.seeds[:1]

    def model(self, name: Name) -> Model:
        """The entry of one model.

        Raises:
            ValueError: there is none.
        """
        if name not in self.models:
            raise ValueError(f"model {name!r} is unknown; valid are {', '.join(self.models)}")
        return self.models[name]

    def recipe(self, variant: Name) -> Recipe:
        """The recipe of one variant.

        Raises:
            ValueError: there is none.
        """
        if variant not in self.recipes:
            raise ValueError(f"variant {variant!r} is unknown; valid are {', '.join(self.recipes)}")
        return self.recipes[variant]


def load_params(root: Path | None = None) -> Params:
    """Read and check params.yaml.

    Args:
        root: the folder that holds it; found upwards from the current folder if left out.

    Raises:
        ValueError: one sentence that names the parameter, its value and what would be valid.
    """
    path = (root or find_root()) / "params.yaml"
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not valid YAML: {str(error).splitlines()[0]}") from None
    try:
        return Params(**content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            reason = f"is not a parameter; valid are {', '.join(_siblings(first['loc'][:-1]))}"
        elif not first["msg"].startswith("Value error") and first["type"] != "missing":
            reason = f"is {first['input']!r}; {_lower(reason)}"
        raise ValueError(f"params.yaml: {where} {reason}".replace(":  ", ": ")) from None


@cache
def find_root() -> Path:
    """The folder of params.yaml: the current one or the nearest above it.

    Raises:
        FileNotFoundError: there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").exists():
            return folder
    raise FileNotFoundError(f"no params.yaml in {here} or above; run inside the repository")


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _siblings(location: tuple) -> list[str]:
    """The parameter names that are valid at a place in params.yaml."""
    section: Any = Params
    for part in location:
        field = section.model_fields.get(part) if isinstance(section, type) else None
        annotation = field.annotation if field else section
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, Section)), annotation
        )
    return list(section.model_fields)
