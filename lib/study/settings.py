"""The settings that a notebook uses, resolved: what its stage depends on besides its code.

Defaults are written out, so that another default is a change; a field at a default that is off
(None, False, 0, empty) is left out, so that a new optional field changes nothing. `python -m
workflow.code` writes them to `.code/`; a test proves that notebooks read nothing else.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from ffmerge.catalogue import describe_method
from study.config import Params
from study.corpora import find_fingerprint
from study.sections import Model, Section, Use


def find_settings(
    notebook: str,
    params: Params,
    root: Path,
    model: str | None = None,
    method: str | None = None,
    variant: str | None = None,
    showcase: str | None = None,
) -> dict[str, Any]:
    """What one run of a notebook uses of params.yaml and data.dvc, as plain values.

    Args:
        notebook: its name, such as "4_merges".
        params, root: params.yaml and the folder that it lies in.
        model, method, variant, showcase: the notebook's parameters, as far as it has them.

    Raises:
        ValueError: a notebook that belongs to no stage.
    """
    if notebook == "7_figures":
        return _for_figures(params)
    common = {"threads": params.threads}
    if notebook == "9_your_model":  # it makes its own model and data
        return common
    if params.device != "auto":  # left alone, it is a machine's own affair
        common["device"] = params.device
    if notebook not in _FINDERS:
        valid = ", ".join((*_FINDERS, "7_figures", "9_your_model"))
        raise ValueError(f"notebook {notebook!r} has no stage; valid are {valid}")
    entry = params.model(model)
    names = {"model": model, "method": method, "variant": variant}
    found = _FINDERS[notebook](params, entry, **names)
    for name, use in find_uses(notebook, entry, _shows_own(params, variant)).items():
        found[name] = {"task": use.task, "data": _describe_data(use, params, root)}
        sizes = {size: getattr(use, size) for size in _SIZES.get(notebook, ())}
        found[name] |= {size: value for size, value in sizes.items() if value is not None}
    if showcase not in (None, model):
        found["showcase"] = find_settings(notebook, params, root, showcase)
    return common | found


def find_uses(notebook: str, model: Model, own: bool = True) -> dict[str, Use]:
    """The tasks and data that a notebook loads: the model's own, or those of its recovery.

    Args:
        notebook: as in `find_settings`.
        model: its entry in params.yaml.
        own: whether what the base was taught is evaluated too, which is so before any tuning.
    """
    if notebook == "2_activations":
        return {"use": model.examined}
    if notebook in ("0_tour", "1_base", "4_merges", "8_beyond"):
        return {"use": model}
    if notebook == "5_finetune":
        return {"use": model.recovery}
    if notebook == "6_evals":
        own_too = {"own": model} if model.downstream and own else {}
        readings = {f"readings.{name}": use for name, use in model.readings.items()}
        return {"use": model.recovery} | own_too | readings
    return {}


def resolve(section: Section) -> dict[str, Any]:
    """A section as plain values, defaults written out, without fields at a default that is off."""
    resolved = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if value or value != default:
            resolved[name] = _make_plain(value)
    return resolved


def _for_tour(params: Params, entry: Model, **names) -> dict:
    return _for_activations(params, entry)


def _for_base(params: Params, entry: Model, **names) -> dict:
    shared = {"seed": params.seed, "layers": dict(entry.layers), "attention": entry.attention}
    return shared | {"base": resolve(entry.base)}


def _for_activations(params: Params, entry: Model, **names) -> dict:
    return {"attention": entry.attention, "features": resolve(entry.features)}


def _for_permutations(params: Params, entry: Model, **names) -> dict:
    return {"layers": dict(entry.layers), "removed": dict(entry.removed)}


def _for_merges(params: Params, entry: Model, model: str, method: str, **names) -> dict:
    variants = {}
    for name in params.variants_by(model, method):
        recipe = resolve(params.recipe(name))
        variants[name] = {k: v for k, v in recipe.items() if k in _PLAN}
    return {
        "seed": params.seed,
        "layers": dict(entry.layers),
        "attention": entry.attention,
        "counts": dict(entry.counts(describe_method(method).removes)),
        "variants": variants,
    }


def _for_finetune(params: Params, entry: Model, model: str, variant: str, **names) -> dict:
    method, training = params.recipe(variant).method, params.training(model, variant)
    shared = {"method": method, "attention": entry.attention}
    shared |= {"downstream": True} if entry.downstream else {}
    return shared | {"training": resolve(training)}


def _for_evals(params: Params, entry: Model, model: str, variant: str, **names) -> dict:
    recipe, training = params.recipe(variant), params.training(model, variant)
    found = {"method": recipe.method, "attention": entry.attention}
    if recipe.method != "base":
        about = describe_method(recipe.method)
        found |= {"ratio": recipe.ratio, "removed": params.count_removed(model, variant)}
        found |= {"kind": about.removes}
        found |= {"anchor": recipe.anchor} if "permutations" in about.needs else {}
    if training.adapters:
        found |= {"adapters": resolve(training.adapters), "precision": training.precision}
    choices = {"untuned": not params.seeds_of(model, variant)}
    choices |= {"int8": recipe.int8, "nf4": recipe.nf4}
    return found | {name: True for name, chosen in choices.items() if chosen}


def _for_beyond(params: Params, entry: Model, **names) -> dict:
    return {"attention": entry.attention, "removed": dict(entry.removed)}


def _for_figures(params: Params) -> dict:
    """Drawing is quick: it takes every model as a whole, and how its methods look."""
    variants = {model: params.variants_of(model) for model in params.run}
    used = list(dict.fromkeys(name for names in variants.values() for name in names))
    methods = dict.fromkeys(params.recipe(name).method for name in used)
    looks = {name: asdict(describe_method(name)) for name in methods if name != "base"}
    return {
        "run": list(params.run),
        "seeds": list(params.seeds),
        "variants": variants,
        "recipes": {name: resolve(params.recipe(name)) for name in used},
        "models": {name: resolve(entry) for name, entry in params.models.items()},
        "corpora": _make_plain(params.corpora),
        "methods": {name: _without(look, "what") for name, look in looks.items()},
    }


_FINDERS: dict[str, Callable[..., dict]] = {
    "0_tour": _for_tour,
    "1_base": _for_base,
    "2_activations": _for_activations,
    "3_permutations": _for_permutations,
    "4_merges": _for_merges,
    "5_finetune": _for_finetune,
    "6_evals": _for_evals,
    "8_beyond": _for_beyond,
}
_PLAN = ("ratio", "anchor", "window", "random_window")  # what `find_plan` reads of a recipe
_SIZES = {
    "0_tour": ("validation_examples", "batch_size"),
    "1_base": ("validation_examples", "batch_size"),
    "4_merges": ("validation_examples", "batch_size"),
    "5_finetune": ("validation_examples", "batch_size"),
    "6_evals": ("batch_size", "test_examples"),
    "8_beyond": ("validation_examples", "batch_size"),
}


def _shows_own(params: Params, variant: str | None) -> bool:
    recipe = None if variant is None else params.recipe(variant)
    return recipe is not None and (recipe.method != "base" or recipe.seeds == "none")


def _describe_data(use: Use, params: Params, root: Path) -> dict:
    """The entry, and of an embedded corpus its sizes and its fingerprint in data.dvc."""
    described = resolve(use.data)
    if use.data.corpus:
        described["sizes"] = dict(params.corpora[use.data.corpus])
        pins = root / "data.dvc"
        changed = pins.stat().st_mtime_ns if pins.exists() else 0
        described["fingerprint"] = _find_pin(use.data.path, root, changed)
    return described


@cache
def _find_pin(path: str, root: Path, changed: int) -> str | None:
    """As `find_fingerprint`, but data.dvc is read only when it has changed."""
    return find_fingerprint(path, root)


def _make_plain(value: Any) -> Any:
    if isinstance(value, Section):
        return resolve(value)
    if isinstance(value, dict):
        return {key: _make_plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, list | tuple) else value


def _without(values: dict, *names: str) -> dict:
    return {name: _make_plain(value) for name, value in values.items() if name not in names}
