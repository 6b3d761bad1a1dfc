"""What no section of params.yaml can check alone: whether they fit together."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

from pydantic import ValidationError

from ffmerge.catalogue import Family, Look, Unit, describe_method
from ffmerge.groups import parse_layers
from study.architectures import DEMANDS, check_model, list_uses
from study.sections import Training
from study.sentences import explain

if TYPE_CHECKING:
    from study.config import Params


def check_params(params: "Params") -> None:
    """Check that the sections of params.yaml fit together, for the models in `run`.

    Raises:
        ValueError: the first thing that cannot work, in one sentence.
    """
    _check_different("run", params.run)
    _check_different("seeds", params.seeds)
    _check_known("run", params.run, params.models)
    base = params.recipes.get("base")
    if base is None or (base.method, base.seeds) != ("base", "none"):
        found = "missing" if base is None else f"of method {base.method} with seeds {base.seeds}"
        raise ValueError(f"recipes.base is {found}; valid is {{method: base, seeds: none}}")
    for recipe in params.recipes.values():
        if recipe.method != "base":
            _check_method(recipe.method)
    for model, entry in params.models.items():
        check_model(f"models.{model}", entry)
    for model in params.run:
        _check_data(params, model)
        _check_listed(params, model)
        for variant in params.variants_of(model):
            _check_anchor(params, variant)
            _check_anew(params, model, variant)
            _check_training(params, model, variant)
            _check_window(params, model, variant)


def _check_different(where: str, values: Iterable) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{where} names {value!r} twice; valid is each once")
        seen.add(value)


def _check_known(where: str, names: Iterable[str], valid: Iterable[str]) -> None:
    for name in names:
        if name not in valid:
            raise ValueError(
                f"{where} names {name!r}, which is unknown; valid are {', '.join(valid) or 'none'}"
            )


def _check_data(params: "Params", model: str) -> None:
    for place, use in list_uses(params.models[model]):
        corpus = use.data.corpus
        if corpus is None:
            continue
        if corpus not in params.corpora:
            known = "".join(f", data/{name}" for name in params.corpora)
            raise ValueError(
                f"models.{model}.{place}data.path is {use.data.path!r}; valid are a hub id{known}"
            )


def _check_listed(params: "Params", model: str) -> None:
    """The variants that a model lists exist, and it says how much goes from it in each."""
    where, listed = f"models.{model}.variants", params.models[model].variants or ()
    _check_different(where, listed)
    _check_known(where, listed, params.recipes)
    without = params.models[model].without
    _check_different(f"models.{model}.without", without)
    _check_known(f"models.{model}.without", without, [r for r in params.recipes if r != "base"])
    tuned = params.models[model].tuned or ()
    if tuned and params.models[model].finetune is None:
        raise ValueError(
            f"models.{model}.tuned is {tuned}, but finetune is missing; valid is its recipe, or "
            "nothing that is tuned"
        )
    for field in ("tuned", "once"):
        names = getattr(params.models[model], field) or ()
        _check_different(f"models.{model}.{field}", names)
        _check_known(f"models.{model}.{field}", names, params.variants_of(model))
    _check_different(f"models.{model}.seeds", params.models[model].seeds or ())
    for variant in listed:
        recipe = params.recipes[variant]
        if recipe.ratio is None or recipe.ratio in params.counts(model, recipe):
            continue
        removes = describe_method(recipe.method).removes
        name = "dropped" if removes == "layers" else "removed"
        ratios = ", ".join(params.counts(model, recipe)) or "none"
        raise ValueError(
            f"{where} names {variant!r}, whose ratio is {recipe.ratio!r}, but "
            f"models.{model}.{name} has no {recipe.ratio}; valid ratios are {ratios}"
        )


def _check_training(params: "Params", model: str, variant: str) -> None:
    where = f"recipes.{variant}.finetune"
    try:
        training = params.training(model, variant)
    except ValidationError as error:
        if error.errors()[0]["loc"]:
            raise ValueError(explain(error, Training, where)) from None
        raise ValueError(f"{where} in models.{model}: {explain(error, Training)}") from None
    if not training.adapters:
        return
    entry = params.models[model]
    where = f"models.{model}.finetune" if entry.adapts else where
    demands = DEMANDS.get(entry.task)
    if demands and not demands.writes:
        raise ValueError(
            f"{where}.adapters is given, but the task of {model} is {entry.task}; valid are "
            "adapters for models that write text"
        )


def _check_method(name: str) -> None:
    """The file of a method says what all files of methods say, as literals."""
    file = f"lib/ffmerge/methods/{name}.py"
    try:
        about = describe_method(name)
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} does not say all that a method's does ({error}); valid are the constants "
            "LOOK, REFERENCE, FAMILY, REMOVES and NEEDS, each a plain literal, as in vanilla.py"
        ) from None
    look = set(about.look) if isinstance(about.look, dict) else {about.look}
    if look != set(Look.__annotations__):
        valid = ", ".join(Look.__annotations__)
        raise ValueError(f"{file}: LOOK is {about.look!r}; valid is a mapping of {valid}")
    literals = {"FAMILY": (about.family, Family), "REMOVES": (about.removes, Unit)}
    for constant, (found, kind) in literals.items():
        if found not in get_args(kind):
            valid = ", ".join(get_args(kind))
            raise ValueError(f"{file}: {constant} is {found!r}; valid are {valid}")
    if not isinstance(about.needs, tuple):
        raise ValueError(f"{file}: NEEDS is {about.needs!r}; valid is a tuple such as ('x',)")


def _check_anchor(params: "Params", variant: str) -> None:
    """An anchor is for methods that align to it."""
    recipe = params.recipes[variant]
    aligns = recipe.method != "base" and "permutations" in describe_method(recipe.method).needs
    if recipe.anchor != "first" and not aligns:
        raise ValueError(
            f"recipes.{variant}.anchor is {recipe.anchor!r}, but method {recipe.method} aligns "
            "nothing; valid is a method that needs permutations"
        )


def _check_anew(params: "Params", model: str, variant: str) -> None:
    """Training anew is for models whose base is trained here, in what is measured."""
    if params.recipes[variant].anew and not params.models[model].trains_anew:
        raise ValueError(
            f"recipes.{variant}.anew is true, but {model} is not trained here, or tuned for "
            "another task; valid is a model that leaves it out (`without`)"
        )


def _check_window(params: "Params", model: str, variant: str) -> None:
    """A window that is given or drawn is among those that the variant's method may choose."""
    recipe, entry = params.recipes[variant], params.models[model]
    if not (recipe.window or recipe.random_window):
        return
    shares = describe_method(recipe.method).removes != "layers"  # k merged ones remove k - 1
    size = params.count_removed(model, variant) // len(entry.layers) + shares
    depth = min(entry.layers.values())
    n_windows = depth - size + 1
    if recipe.random_window and recipe.random_window >= n_windows:
        raise ValueError(
            f"recipes.{variant}.random_window is {recipe.random_window}, but {model} has "
            f"{n_windows} window(s) of {size} layers, the best one among them; valid is a number "
            f"below {n_windows}, or a model that leaves it out (`without`)"
        )
    if recipe.window:
        layers = parse_layers(recipe.window)
        adjacent = layers == tuple(range(layers[0], layers[0] + len(layers)))
        if layers[-1] >= depth or len(layers) != size or not adjacent:
            raise ValueError(
                f"recipes.{variant}.window is {recipe.window!r}; valid for {model}, which has "
                f"{depth} layers in a stack, are {size} adjacent layers of 0 to {depth - 1}, or a "
                "model that leaves it out (`without`)"
            )
