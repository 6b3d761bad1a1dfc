"""params.yaml, read and validated once, before any long work starts."""

import copy
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, NoReturn

import yaml
from pydantic import Field, ValidationError, model_validator

from ffmerge.catalogue import describe_method
from study.checks import check_params
from study.leaves import Corpus, Device, Name, Seed, Seeds, Sizes, Threads, Valid
from study.sections import UNTUNED, Model, Recipe, Section, Training, Use
from study.sentences import explain

__all__ = ["Model", "Params", "Recipe", "Section", "Training", "Use", "find_root", "load_params"]

MOVED = dict.fromkeys(
    ("qlora", "comparisons", "ablations"),
    "is no parameter any more; variants are the entries of `recipes` now, each with `seeds: all`, "
    "`first` or `none`, and a model runs those that its `variants` lists, or all that it can",
)


MOST = 1_000_000  # values in params.yaml, those of aliases counted wherever they stand


class Params(Section):
    """params.yaml as a whole."""

    run: Annotated[list[Name], Field(min_length=1), Valid("is a list of names in `models`")]
    seed: Seed  # of what is drawn once: the base model's training, the order of random windows
    seeds: Seeds
    threads: Threads
    recipes: Annotated[dict[Name, Recipe], Valid("are names of variants, each with its method")]
    corpora: Annotated[dict[Corpus, Sizes], Valid("are names of corpora, each with its sizes")]
    models: Annotated[dict[Name, Model], Valid("are names of models, each with its settings")]
    device: Device = "auto"  # where models run; what is not the CPU may change the last digits

    @model_validator(mode="after")
    def _fits_together(self) -> "Params":
        check_params(self)
        return self

    def variants_of(self, model: Name) -> list[Name]:
        """The variants of a model: the recipes that its entry lists, or all whose ratio it has.

        Of the latter are left out: those of `without`, those that only change the tuning where they
        are not tuned, distillation where adapters learn another task than the uncompressed model
        knows, and training anew where the base is not trained here; of a model that is never tuned
        also the base that is tuned alike.
        """
        entry = self.model(model)
        if entry.variants is not None:
            return [name for name in self.recipes if name in entry.variants or name == "base"]
        return [
            name
            for name, recipe in self.recipes.items()
            if name not in entry.without
            if recipe.ratio is None or recipe.ratio in self.counts(model, recipe)
            if not recipe.finetune or entry.may_be_tuned is None or name in entry.may_be_tuned
            if not (recipe.finetune.get("distillation") and entry.adapts)
            if not recipe.anew or entry.trains_anew
            if recipe.method != "base" or name == "base" or entry.finetune
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
        variants = self.variants_of(model)
        return [v for v in variants if self._how_often(model, v) == "all"]

    def seeds_of(self, model: Name, variant: Name) -> list[int]:
        """The seeds that a variant of a model is tuned with; the untouched base has none."""
        often, seeds = self._how_often(model, variant), self.model(model).seeds or self.seeds
        return {"all": seeds, "first": seeds[:1], "none": []}[often]

    def _how_often(self, model: Name, variant: Name) -> str:
        entry, often = self.model(model), self.recipe(variant).seeds
        if entry.may_be_tuned is not None and variant not in entry.may_be_tuned:
            return "none"
        return "first" if often == "all" and variant in entry.once else often

    def counts(self, model: Name, recipe: Recipe) -> dict[str, int]:
        """How much goes from a model at each ratio, of what the recipe's method removes."""
        return self.model(model).counts(describe_method(recipe.method).removes)

    def count_removed(self, model: Name, variant: Name) -> int:
        """How much a variant removes, of what its method removes."""
        recipe = self.recipe(variant)
        return 0 if recipe.method == "base" else self.counts(model, recipe)[recipe.ratio]

    def training(self, model: Name, variant: Name) -> Training:
        """The recovery fine-tuning of one variant: the model's own, with the variant's changes."""
        entry, recipe = self.model(model), self.recipe(variant)
        if entry.finetune is None:
            return UNTUNED
        training = entry.whole_training if recipe.anew else entry.finetune
        return Training(**training.model_dump() | recipe.finetune)

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
    """Read and check params.yaml; quick, as nothing that computes is imported.

    Args:
        root: the folder that holds it; found upwards from the current folder if left out.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one sentence that names the parameter, its value and what would be valid.
    """
    path = (root or find_root()) / "params.yaml"
    content = _read(path)
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        valid = ", ".join(Params.model_fields)
        raise ValueError(f"params.yaml: the file is {found}; valid are the sections {valid}")
    for name, sentence in MOVED.items():
        if name in content:
            raise ValueError(f"params.yaml: {name} {sentence}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"params.yaml: {explain(error, Params)}") from None


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


def _read(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of UTF-8 text, or not YAML as `_Loader` wants it.
    """
    if not path.exists():
        raise FileNotFoundError(f"no params.yaml in {path.parent}; run inside the repository")
    try:
        return copy.deepcopy(_parse(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"params.yaml cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"params.yaml: byte {error.start} is not UTF-8; valid is a file saved as UTF-8"
        ) from None
    except RecursionError:
        raise ValueError(
            "params.yaml is nested too deeply to be read; valid are the sections as git has them"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"params.yaml{line} is not valid YAML: {reason}") from None


@lru_cache(maxsize=4)  # a stage reads the same text some times, a tenth of a second each
def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """YAML that means the same to PyYAML (YAML 1.1) and to DVC (1.2), and says nothing twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[int, int] = {}  # of nodes, what they repeat counted each time

    def fetch_flow_collection_start(self, token_class: type) -> None:
        """A bracket; PyYAML takes seconds to find out that thousands are too many."""
        if self.flow_level == 100:
            raise RecursionError
        super().fetch_flow_collection_start(token_class)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """A node; one that repeats itself, or others a million times, is an error."""
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias:  # within itself it has no size yet
            return node
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        self._sizes[id(node)] = 1 + sum(self._sizes.get(id(child), MOST) for child in children)
        if self._sizes[id(node)] > MOST:
            _refuse(node, "it repeats itself, or others too often; valid are few aliases")
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """A mapping; a key that stands there twice is an error, not the last one's value."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                _refuse(key, f"{key.value!r} stands there twice; valid is once")
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A plain value; a date, a set, or 5,000 digits are errors."""
        kind = node.tag.rpartition(":")[2]
        try:
            if kind in ("timestamp", "binary", "set", "omap", "pairs"):
                raise ValueError
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError):
            found = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "what it holds"
            _refuse(node, f"{found} is read as {kind}; valid are texts, numbers, true, false")

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number, but not 010 or 1:30: PyYAML reads these as 8 and 90, DVC does not."""
        if re.match(r"[-+]?0[0-9_]|.*:", node.value):
            _refuse(
                node, f"{node.value[:40]} is read in two ways; valid are digits, the first not 0"
            )
        if len(node.value) > 40:
            raise ValueError
        return super().construct_yaml_int(node)


def _refuse(node: yaml.Node, problem: str) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(  # 1e-3, which is a text in YAML 1.1
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
