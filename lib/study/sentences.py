"""The sentences that refuse what is wrong in params.yaml: parameter, value, what is valid."""

import reprlib
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from study.leaves import Valid

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 80
_shorten.maxlevel, _shorten.maxdict, _shorten.maxlist = 2, 4, 6


def explain(error: ValidationError, section: type[BaseModel], where: str = "") -> str:
    """One sentence for what is wrong: the parameter, its value, and what would be valid.

    Args:
        error: what validating `section` raised; a misspelt name in it comes first, as it may be
            why another one is missing.
        section: the outermost section.
        where: what comes before the names in it, such as "recipes.vanilla-third.finetune".
    """
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] in ("extra_forbidden", "invalid_key")), errors[0])
    location = first["loc"]
    if location and location[-1] == "[key]":
        before = location[:-2]
        valid = find_valid(section, before, key=True)
        return f"{_join(where, *before)} names {show(first['input'])}; valid {valid}"
    place, valid = _join(where, *location), find_valid(section, location)
    if first["type"] in ("extra_forbidden", "invalid_key"):
        valid = find_valid(section, location[:-1])
        return f"{place} is not a parameter; valid {valid}"
    if first["type"] == "missing":
        return f"{place} is missing; valid {valid}"
    reason = first["msg"].removeprefix("Value error, ").strip()
    if first["type"] == "value_error" and reason:
        return f"{place}.{reason}" if place else reason
    return f"{place} is {show(first['input'])}; valid {valid}"


def find_valid(section: Any, location: Iterable[str | int], key: bool = False) -> str:
    """What is valid at a place in a section: "are eager, sdpa".

    Args:
        section: the outermost section, or another type.
        location: names of parameters, or of entries, on the way there.
        key: what a name of an entry there may be, not the entries.
    """
    kind, note = section, None
    for part in location:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if part not in kind.model_fields:
                break
            field = kind.model_fields[part]
            kind, note = _unwrap(field.annotation, field.metadata)
        elif get_args(kind):
            kind, note = _unwrap(get_args(kind)[-1])
        else:
            break
    if key and get_args(kind):
        kind, note = _unwrap(get_args(kind)[0])
    return str(note) if note else _describe(kind)


def _unwrap(annotation: Any, notes: Iterable = ()) -> tuple[Any, Valid | None]:
    """A type without `Annotated` and `| None`, and the `Valid` that stands beside it."""
    notes = list(notes)
    while get_origin(annotation) in (Annotated, Union, UnionType):
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            notes += more
        else:
            annotation = next(a for a in get_args(annotation) if a is not NoneType)
    return annotation, next((note for note in notes if isinstance(note, Valid)), None)


def _describe(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "are " + ", ".join(kind.model_fields)
    if get_origin(kind) is Literal:
        return "are " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is dict:
        return f"{find_valid(kind, (), key=True)}, each with a value"
    names = {str: "are names", list: "is a list"}
    return names.get(
        get_origin(kind) or kind, "are numbers, texts, true, false, lists and mappings"
    )


def _join(where: str, *names: str | int) -> str:
    """A place such as `models.vit.layers`; a name that would break the sentence, in quotes."""
    texts = map(str, names)
    texts = (t if t.isprintable() and 0 < len(t) <= 80 else show(t) for t in texts)
    return ".".join((where, *texts) if where else texts)


def show(value: Any) -> str:
    """A value as it stands in a sentence."""
    return "empty" if value is None else _shorten.repr(value)
