"""What a task demands of its model, and whether a model that is trained here can be made.

Transformers' configurations are read without importing it, which would take seconds.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from study.sections import Model, Use
from study.sentences import show


@dataclass(frozen=True)
class Demands:
    """What a task demands of its model.

    Attributes:
        n_stacks: how many stacks the model has.
        kinds: the `model_type` that can do it, or the name of transformers' list of them.
        sets: settings of the architecture that the task decides itself.
        trains_tokenizer: of `processor`, `size` and `context`.
        writes: whether the model writes text, which adapters are made for.
    """

    n_stacks: int
    kinds: str
    sets: tuple[str, ...]
    trains_tokenizer: bool = True
    writes: bool = True


_CAUSAL = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
_SEQ2SEQ = "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"
_TOKENS = ("vocab_size", "eos_token_id", "pad_token_id")
_STARTS = ("decoder_start_token_id", "forced_eos_token_id")
DEMANDS = {  # a task that is not here is checked less
    "images": Demands(1, "vit", ("id2label", "label2id"), trains_tokenizer=False, writes=False),
    "language": Demands(1, _CAUSAL, (*_TOKENS, "bos_token_id")),
    "documents": Demands(1, _CAUSAL, (*_TOKENS, "bos_token_id")),
    "choices": Demands(1, _CAUSAL, (*_TOKENS, "bos_token_id")),
    "neighbours": Demands(1, "dinov2", (), trains_tokenizer=False, writes=False),
    "translation": Demands(2, _SEQ2SEQ, (*_TOKENS, *_STARTS)),
}
# What transformers' configurations call things; of several names the most telling one first.
_DEPTH = ("n_layer", "n_layers", "num_hidden_layers", "num_layers")
DEPTHS = {
    stack: (f"{stack}_layers", f"num_{stack}_layers", *_DEPTH) for stack in ("encoder", "decoder")
}
WIDTHS = ("hidden_size", "n_embd", "d_model")
INNER = ("intermediate_size", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff")
HEADS = ("num_attention_heads", "n_head", "encoder_attention_heads", "decoder_attention_heads")
POSITIONS = ("n_positions", "max_position_embeddings")
ROPE = ("rope_theta", "rope_scaling", "partial_rotary_factor")  # older names that still work
WORDS = {  # for the types of settings, which transformers takes to the letter
    "int": "a whole number",
    "float": "a number with a decimal point",
    "str": "a text",
    "bool": "true or false",
    "None": "nothing",
}


def list_uses(model: Model) -> Iterator[tuple[str, Use]]:
    """What a model is used for, each with its place in the entry: its own task, and all others."""
    yield "", model
    if model.features.data:
        yield "features.", model.examined
    if model.downstream:
        yield "downstream.", model.downstream
    for name, reading in model.readings.items():
        yield f"readings.{name}.", reading


def check_model(where: str, model: Model) -> None:
    """Check that a model can do its task and, if it is trained here, that it can be made.

    Args:
        where: "models.NAME".
        model: the entry.

    Raises:
        ValueError: the first thing that cannot work, in one sentence.
    """
    own = DEMANDS.get(model.task)
    for place, use in list_uses(model):
        demands = DEMANDS.get(use.task)
        if demands and len(model.layers) != demands.n_stacks:
            raise ValueError(
                f"{where}.layers is {model.layers}; valid for {place}task {use.task} "
                + ("are encoder and decoder" if demands.n_stacks == 2 else "is one of the two")
            )
        if own and demands and own.writes != demands.writes:
            raise ValueError(
                f"{where}.{place}task is {use.task!r}, but task is {model.task!r}; valid is a task "
                "for the same kind of model"
            )
        _check_neighbours(where, place, model, use)
    if not model.base.is_trained_here:
        return
    if model.task in ("summarisation", "choices", "neighbours"):
        raise ValueError(
            f"{where}.task is {model.task!r}, which trains no base model; valid is another task, "
            f"with {model.task} as `downstream` or in `readings`"
        )
    if own:
        _check_architecture(f"{where}.base.architecture", model, own)
        if own.trains_tokenizer:
            _check_processor(f"{where}.base.processor", model)


def _check_neighbours(where: str, place: str, model: Model, use: Use) -> None:
    """Neighbours want a bank and a size of images; to other tasks they say nothing."""
    data, processor = f"{where}.{place}data", model.base.processor
    if use.task == "neighbours":
        if use.data.bank is None:
            raise ValueError(f"{data}.bank is missing; valid is a whole number from 1")
        if use.data.streaming:
            raise ValueError(f"{data}.streaming is true; valid for task neighbours is false")
        if not model.base.is_trained_here and "size" not in processor:
            raise ValueError(f"{where}.base.processor.size is missing; valid are pixels of a side")
        return
    for name in ("bank", "labels"):
        if found := getattr(use.data, name):
            raise ValueError(
                f"{data}.{name} is {found}, but the task is {use.task}; valid is task neighbours, "
                "the only one that has a bank"
            )
    if not model.base.is_trained_here and "size" in processor:
        raise ValueError(
            f"{where}.base.processor is {processor}; valid for task {use.task} is a context in "
            "tokens, or nothing"
        )


def _check_architecture(where: str, model: Model, demands: Demands) -> None:
    kinds, kind = _list_kinds(demands.kinds), _find_kind(model)
    if kinds and kind not in kinds:
        found = "missing" if kind is None else show(kind)
        raise ValueError(f"{where}.model_type is {found}; valid are {_name_some(kinds, kind)}")
    _check_settings(where, model, demands.sets)
    settings = _find_settings(model)
    for stack, depth in model.layers.items():
        for name in [name for name in DEPTHS[stack] if name in settings][:1]:
            if settings[name] != depth:
                raise ValueError(
                    f"{where}.{name} is {settings[name]}, but layers.{stack} is {depth}; valid is "
                    "one depth"
                )
    if any("head_dim" in name for name in _find_names(model)):  # then heads need not fit
        return
    for width in [name for name in WIDTHS if name in settings][:1]:
        for heads in [name for name in HEADS if name in settings]:
            if settings[heads] and settings[width] % settings[heads]:
                raise ValueError(
                    f"{where}.{width} is {settings[width]}, but {heads} is {settings[heads]}; "
                    f"valid are multiples of {settings[heads]}"
                )


def _check_settings(where: str, model: Model, decided: Iterable[str]) -> None:
    """The settings of an architecture exist, are not the task's to decide, and of their types."""
    configuration = _read_configuration(_find_kind(model))
    if configuration is None:
        return
    valid = sorted(_find_names(model) - set(decided))
    for name, value in model.base.architecture.items():
        if name == "model_type":
            continue
        if name not in valid:
            raise ValueError(f"{where}.{name} is not a parameter; valid are {', '.join(valid)}")
        name_there = configuration.aliases.get(name, name)
        wanted = configuration.types.get(name_there, "").split(" | ")
        kind = "None" if value is None else type(value).__name__
        if set(wanted) <= set(WORDS) and kind not in wanted:
            words = " or ".join(WORDS[kind] for kind in wanted)
            raise ValueError(f"{where}.{name} is {show(value)}; valid is {words}")
        if kind == "float" and not isfinite(value):
            raise ValueError(f"{where}.{name} is {value}; valid is a finite number")
        if kind == "int" and value < 1 and name_there in (*WIDTHS, *INNER, *HEADS, *POSITIONS):
            raise ValueError(f"{where}.{name} is {value}; valid is a whole number from 1")


def _check_processor(where: str, model: Model) -> None:
    """The tokenizer's size and context are there, and the model has as many positions."""
    processor, names = model.base.processor, ("size", "context")
    for name in (*names, *processor):
        if name not in names:
            raise ValueError(f"{where}.{name} is not a parameter; valid are {', '.join(names)}")
        value = processor.get(name)
        if type(value) is not int or not 2 <= value <= 10**7:
            found = show(value) if name in processor else "missing"
            raise ValueError(
                f"{where}.{name} is {found}; valid is a whole number from 2 to 10,000,000"
            )
    if "rope_parameters" in _find_names(model):  # rotations go on beyond what a model was made for
        return
    settings = _find_settings(model)
    for name in [name for name in POSITIONS if name in settings][:1]:
        if processor["context"] > settings[name]:
            raise ValueError(
                f"{where}.context is {processor['context']}, but the architecture's {name} is "
                f"{settings[name]}; valid are 2 to {settings[name]}"
            )


def _name_some(names: list[str], wrong: object) -> str:
    """Names as a list; of very many those that are most like a wrong one."""
    if len(names) <= 40:
        return ", ".join(names)
    some = get_close_matches(wrong, names, 5, 0.5) if isinstance(wrong, str) else []
    some = some or [name for name in ("gpt2", "llama", "olmo", "marian") if name in names]
    return f"{', '.join(some)} and {len(names) - len(some)} more that transformers knows"


@dataclass(frozen=True)
class Configuration:
    """The settings of one kind of model.

    Attributes:
        types: name to type, as written there.
        defaults: name to value, where it is written as a literal.
        aliases: other names of settings.
    """

    types: Mapping[str, str]
    defaults: Mapping[str, Any]
    aliases: Mapping[str, str]


def _find_kind(model: Model) -> str | None:
    """The `model_type` of a model that is trained here."""
    only = "vit" if model.task == "images" else None  # the only kind that the task makes
    return model.base.architecture.get("model_type", only)


def _find_names(model: Model) -> set[str]:
    """The names of all settings of a model that is trained here."""
    found = _read_configuration(_find_kind(model))
    if found is None:
        return set(model.base.architecture)
    return {*found.types, *found.aliases, *(ROPE if "rope_parameters" in found.types else ())}


def _find_settings(model: Model) -> dict[str, int]:
    """The whole numbers among a model's settings: those that are given, and the defaults."""
    given, found = model.base.architecture, _read_configuration(_find_kind(model))
    settings = dict(given)
    if found:
        settings = {**found.defaults} | {found.aliases.get(k, k): v for k, v in given.items()}
    return {name: value for name, value in settings.items() if type(value) is int}


def _list_kinds(where: str) -> list[str]:
    """The `model_type`s in one of transformers' lists; `where` itself if it names none."""
    if not where.isupper():
        return [where]
    file = _find_transformers() / "models" / "auto" / "modeling_auto.py"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    _, _, rest = text.partition(f"\n{where} = ")
    return re.findall(r'^ +\("([^"]+)", ', rest.partition("\n)\n")[0], re.MULTILINE)


@cache
def _read_configuration(kind: str | None) -> Configuration | None:
    """What transformers says of a kind of model; None if it says so in another way."""
    name = str(kind).replace("-", "_")
    own = _find_transformers() / "models" / name / f"configuration_{name}.py"
    common = _find_transformers() / "configuration_utils.py"
    if not (own.exists() and common.exists()):
        return None
    base, mine = _read_class(common, "PreTrainedConfig"), _read_class(own, kind)
    if base is None or mine is None or not mine.types:
        return None
    return Configuration(base.types | mine.types, base.defaults | mine.defaults, mine.aliases)


@cache
def _read_class(file: Path, which: str) -> Configuration | None:
    """The class of a name or `model_type` in a file, if it inherits from no other model's."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        plain = {ast.unparse(n.targets[0]): n for n in node.body if isinstance(n, ast.Assign)}
        typed = {ast.unparse(n.target): n for n in node.body if isinstance(n, ast.AnnAssign)}
        is_root = [ast.unparse(parent) for parent in node.bases] == ["PreTrainedConfig"]
        if node.name == which or (is_root and _read_literal(plain.get("model_type")) == which):
            types = {name: ast.unparse(n.annotation) for name, n in typed.items()}
            types = {name: text for name, text in types.items() if "ClassVar" not in text}
            defaults = {name: _read_literal(typed[name]) for name in types}
            return Configuration(types, defaults, _read_literal(plain.get("attribute_map")) or {})
    return None


def _read_literal(statement: ast.Assign | ast.AnnAssign | None) -> Any:
    """What a statement assigns; None if that is no literal."""
    try:
        return ast.literal_eval(statement.value) if statement and statement.value else None
    except ValueError:
        return None


@cache
def _find_transformers() -> Path:
    spec = find_spec("transformers")
    return Path(spec.origin).parent if spec else Path("nowhere")
