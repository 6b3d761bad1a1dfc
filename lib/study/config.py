"""params.yaml, read and validated once, before any long work starts."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PositiveInt, ValidationError, model_validator

from ffmerge.methods import describe_method
from study.sections import Model, Name, Recipe, Section, Training


class Params(Section):
    """params.yaml as a whole."""

    run: list[Name] = Field(min_length=1)
    seed: int  # of what is drawn once: the base model's training, the order of random windows
    seeds: list[int] = Field(min_length=1)
    threads: PositiveInt
    recipes: dict[Name, Recipe]
    corpora: dict[Name, dict[str, int]]
    models: dict[Name, Model]

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        _check_names("run", self.run, self.models)
        for model in self.run:
            entry = self.models[model]
            _check_names(f"models.{model}.variants", entry.variants or (), self.recipes)
            self._check_data(model)
            for variant in self.variants_of(model):
                self._check_training(model, variant)
        return self

    def _check_data(self, model: Name) -> None:
        for use in {id(u): u for u in (self.models[model], self.models[model].recovery)}.values():
            if use.data.corpus not in (None, *self.corpora):
                raise ValueError(
                    f"models.{model}.data.path is {use.data.path!r}; valid are a hub id and "
                    + ", ".join(f"data/{corpus}" for corpus in self.corpora)
                )

    def _check_training(self, model: Name, variant: Name) -> None:
        try:
            self.training(model, variant)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(
                f"recipes.{variant}.finetune.{first['loc'][0]} is {first['input']!r}; "
                + _lower(first["msg"])
            ) from None

    def variants_of(self, model: Name) -> list[Name]:
        """The variants of a model: the recipes that its entry lists, or all whose ratio it has."""
        entry = self.model(model)
        if entry.variants is not None:
            return [name for name in self.recipes if name in entry.variants or name == "base"]
        return [
            name
            for name, recipe in self.recipes.items()
            if recipe.ratio is None or recipe.ratio in self.counts(model, recipe)
        ]

    def variants_by(self, model: Name, method: Name) -> list[Name]:
        """The variants of a model that one method makes."""
        return [v for v in self.variants_of(model) if self.recipes[v].method == method]

    def methods_of(self, model: Name) -> list[Name]:
        """The methods that a model's variants use, the base left out."""
        used = (self.recipes[variant].method for variant in self.variants_of(model))
        return [method for method in dict.fromkeys(used) if method != "base"]

    def compared(self, model: Name) -> list[Name]:
        """The variants of a model that are tuned with every seed: its main comparisons."""
        return [v for v in self.variants_of(model) if self.recipes[v].seeds == "all"]

    def seeds_of(self, variant: Name) -> list[int]:
        """The seeds that a variant is tuned with; the untouched base has none."""
        return {"all": self.seeds, "first": self.seeds[:1], "none": []}[self.recipe(variant).seeds]

    def counts(self, model: Name, recipe: Recipe) -> dict[str, int]:
        """How much goes from a model at each ratio, of what the recipe's method removes."""
        return self.model(model).counts(describe_method(recipe.method).removes)

    def count_removed(self, model: Name, variant: Name) -> int:
        """How much a variant removes, of what its method removes."""
        recipe = self.recipe(variant)
        return 0 if recipe.method == "base" else self.counts(model, recipe)[recipe.ratio]

    def training(self, model: Name, variant: Name) -> Training:
        """The recovery fine-tuning of one variant: the model's own, with the variant's changes."""
        changed = self.model(model).finetune.model_dump() | self.recipe(variant).finetune
        return Training(**changed)

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


def _check_names(where: str, names: Iterable[Name], valid: Iterable[Name]) -> None:
    for name in names:
        if name not in valid:
            raise ValueError(
                f"{where} names {name!r}, which is unknown; valid are {', '.join(valid)}"
            )


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
