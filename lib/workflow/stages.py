"""Which stages there are: what follows from params.yaml, written out for dvc.yaml.

dvc.yaml says what a stage of each kind is; which of them there are, for which model, method,
variant and seed, is ragged, and lies in results/stages.yaml.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from ffmerge.catalogue import describe_method
from ffmerge.files import replacing
from study.config import Params

FILE = Path("results/stages.yaml")
EVIDENCE = {  # what a method may need: where it lies; the base's own data is at hand
    "permutations": "models/{model}/permutations.safetensors",
    "calibration": None,
}
PLACES = ("evidence", "more_evidence")  # in dvc.yaml, for the evidence of merges
NOTHING = {  # what stages depend on in the place of something that they do not need
    name: f".code/no_{name}" for name in (*PLACES, "patch", "tuned", "showcase")
}
HEADER = "# Written by `python -m workflow.code` from params.yaml; dvc.yaml makes stages of it.\n"

Stages = dict[str, dict[str, dict]]  # kind to name to what dvc.yaml puts into `${item}`


def list_stages(params: Params) -> Stages:
    """The stages of every kind that has several.

    Raises:
        ValueError: two stages would have one name, or a method needs what dvc.yaml does not offer.
    """
    stages: Stages = {kind: {} for kind in ("base", "fetch", "activations", "permutations")}
    stages |= {"merges": {}, "beyond": {}, "finetune": {}, "evals": {}}
    for model in params.run:
        methods = params.methods_of(model)
        needed = {need for method in methods for need in describe_method(method).needs}
        aligned = needed & {"permutations"}
        trained = params.model(model).base.is_trained_here
        beyond = ["beyond"] if trained and aligned else []  # notebook 8 is for small models
        for kind in ("base" if trained else "fetch", "activations", *aligned, *beyond):
            _add(stages, kind, {"model": model})
        for method in methods:
            item = {"model": model, "method": method}
            _add(stages, "merges", item, **_find_evidence(model, method))
        for variant in params.variants_of(model):
            item, patch = {"model": model, "variant": variant}, _find_patch(params, model, variant)
            seeds = params.seeds_of(model, variant)
            for seed in seeds:
                _add(stages, "finetune", item | {"seed": seed}, patch=patch)
            tuned = f"models/{model}/tuned/{variant}" if seeds else NOTHING["tuned"]
            _add(stages, "evals", item, patch=patch, tuned=tuned)
    return stages


def describe_tour(params: Params) -> dict[str, str]:
    """The tour's models: the first one of `run`, and the first with two stacks to show off."""
    model = params.run[0]
    both = [name for name in params.run if len(params.models[name].layers) > 1]
    showcase = both[0] if both else model
    shown = NOTHING["showcase"] if showcase == model else f"models/{showcase}/base"
    return {"model": model, "showcase": showcase, "shown": shown}


def find_models(params: Params) -> dict[str, str]:
    """Name of every stage that is about one model, as `evals@vit-glyphs-base`, to the model."""
    kinds = list_stages(params).items()
    return {
        f"{kind}@{name}": item["model"] for kind, items in kinds for name, item in items.items()
    }


def check_models(models: Iterable[str], params: Params) -> None:
    """Make sure that models are among those to run.

    Raises:
        ValueError: one is not.
    """
    for model in models:
        if model not in params.run:
            raise ValueError(f"MODEL {model!r} is not in run; valid are {', '.join(params.run)}")


def write_stages(root: Path, params: Params) -> bool:
    """Renew results/stages.yaml; returns whether it has changed."""
    lines = [HEADER, f"tour: {json.dumps(describe_tour(params))}\n"]
    for kind, items in list_stages(params).items():
        lines.append(f"{kind}:\n" if items else f"{kind}: {{}}\n")
        lines += [f"  {json.dumps(name)}: {json.dumps(item)}\n" for name, item in items.items()]
    path, text = root / FILE, "".join(lines)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return True


def _add(stages: Stages, kind: str, item: dict, **paths: str) -> None:
    name = "-".join(map(str, item.values()))
    if name in stages[kind]:
        raise ValueError(
            f"stage {kind}@{name} would be made of {item} and of {stages[kind][name]}; valid are "
            "names of models and recipes that differ when they are joined by `-`"
        )
    stages[kind][name] = item | paths


def _find_evidence(model: str, method: str) -> dict[str, str]:
    needs = describe_method(method).needs
    unknown = [name for name in needs if name not in EVIDENCE]
    if unknown or sum(EVIDENCE[name] is not None for name in needs) > len(PLACES):
        raise ValueError(
            f"method {method!r} needs {', '.join(needs)}; valid are at most {len(PLACES)} of "
            + ", ".join(EVIDENCE)
        )
    found = [EVIDENCE[name].format(model=model) for name in needs if EVIDENCE[name]]
    return {p: found[i] if i < len(found) else NOTHING[p] for i, p in enumerate(PLACES)}


def _find_patch(params: Params, model: str, variant: str) -> str:
    method = params.recipe(variant).method
    if method == "base":
        return NOTHING["patch"]
    return f"models/{model}/patches/{method}/{variant}.safetensors"
