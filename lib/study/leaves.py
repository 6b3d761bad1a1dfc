"""The leaves of params.yaml: what a name, a number, a window or a switch may be.

A leaf says what it may be in a `Valid` beside its type, which ends the sentence that refuses it
(`study.sentences.explain`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from ffmerge.catalogue import list_methods
from ffmerge.groups import format_layers, parse_layers

Ratio = Literal["sixth", "third", "half", "most"]
Device = Literal["auto", "cuda", "mps", "cpu"]
Split = Literal["train", "validation", "test"]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Valid:
    """What a parameter may be, to end a sentence with: "is a whole number from 1 to 1,024"."""

    phrase: str | Callable[[], str]

    def __str__(self) -> str:
        return self.phrase if isinstance(self.phrase, str) else self.phrase()


@cache
def list_tasks() -> list[str]:
    """The names of all tasks: the files in tasks/ with a class `Task`, read without running them.

    The other files there are helpers, and importing any of them takes seconds.
    """
    return _list_files("tasks", r"^class Task\b")


@cache
def list_corpora() -> list[str]:
    """The names of all embedded corpora: the files in corpora/ that can write one."""
    return _list_files("corpora", r"^def write_corpus\b")


def _list_files(folder: str, what: str) -> list[str]:
    files = sorted((HERE / folder).glob("[a-z]*.py"))
    found = re.compile(what, re.MULTILINE)
    return [file.stem for file in files if found.search(file.read_text(encoding="utf-8"))]


def one_of(list_names: Callable[[], list[str]]) -> Any:
    """A text that is one of the names that a function lists."""

    def refuse_unknown(name: str) -> str:
        if name not in list_names():
            raise ValueError
        return name

    valid = Valid(lambda: "are " + ", ".join(list_names()))
    return Annotated[str, Field(strict=True), AfterValidator(refuse_unknown), valid]


def whole(low: int, high: int) -> Any:
    """A whole number within bounds; a bool or a number in quotes is none."""
    valid = Valid(f"is a whole number from {low} to {high:,}")
    return Annotated[int, Field(strict=True, ge=low, le=high), valid]


def real(phrase: str, **bounds: float) -> Any:
    """A finite number within bounds."""
    return Annotated[float, Field(strict=True, allow_inf_nan=False, **bounds), Valid(phrase)]


def complete(keys: Any, values: Any) -> Any:
    """A mapping that has all of the keys that a Literal names, and no others."""

    def refuse_gaps(content: Mapping) -> Mapping:
        for key in get_args(keys):
            if key not in content:
                valid = next(note for note in values.__metadata__ if isinstance(note, Valid))
                raise ValueError(f"{key} is missing; valid {valid}")
        return content

    return Annotated[dict[keys, values], AfterValidator(refuse_gaps)]


def _check_name(name: str) -> str:
    """Names become folders, stages, words of a command, and cells of results.csv."""
    # YAML, or pandas when it reads results.csv, would take these for something else than text.
    taken = {"NA", "NULL", "NaN", "None", "nan", "null"}
    is_name = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", name, re.ASCII)
    if not is_name or name in taken or _is_number(name) or yaml.safe_load(name) != name:
        raise ValueError
    return name


def _is_number(text: str) -> bool:
    for read in (float, lambda number: int(number, 0)):  # also 1e5 and 0o17
        try:
            read(text)
        except ValueError:
            continue
        return True
    return False


def _read_window(text: object) -> object:
    """A window as the paper writes it: `3,4,5` becomes `3-5`."""
    text = str(text) if type(text) is int else text  # one layer
    if not isinstance(text, str):
        return text
    if not re.fullmatch(r"\d{1,5}(-\d{1,5}|(,\d{1,5})*)", text.replace(" ", ""), re.ASCII):
        raise ValueError
    layers = parse_layers(text.replace(" ", ""))
    if not layers or list(layers) != sorted(set(layers)):
        raise ValueError
    return format_layers(layers)


Name = Annotated[
    str,
    Field(strict=True),
    AfterValidator(_check_name),
    Valid(
        "is a name of at most 60 letters, digits, `.`, `_` and `-` that starts with a letter or "
        "digit, and is not read as a number, a date, true, false or nothing"
    ),
]
Names = Annotated[list[Name], Valid("is a list of names in `recipes`")]
Text = Annotated[str, Field(strict=True, min_length=1), Valid("is a text that is not empty")]
Hash = Annotated[
    str, Field(strict=True, pattern=r"^[0-9a-f]{64}$"), Valid("are 64 hexadecimal digits")
]
Weights = Annotated[
    str,
    Field(strict=True, pattern=r"^[^/].*\.(gguf|onnx)$"),
    Valid("is the path of a file inside the package that ends in .gguf or, of a DINOv2, .onnx"),
]
AnyText = Annotated[str, Field(strict=True), Valid("is a text")]
Key = Annotated[
    str,
    Field(strict=True, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"),
    Valid("are names of letters, digits and `_`"),
]
Switch = Annotated[bool, Field(strict=True), Valid("are true, false")]
Task = one_of(list_tasks)
Method = one_of(lambda: ["base", *list_methods()])
Corpus = one_of(list_corpora)
Window = Annotated[
    str,
    BeforeValidator(_read_window),
    Valid("are layers in ascending order, such as `3-7` or `3,5,7`"),
]
Count = whole(1, 10**9)
Layers = whole(1, 10_000)
Batch = whole(1, 65_536)
Several = Annotated[Batch | None, AfterValidator(lambda n: None if n == 1 else n)]
Steps = whole(1, 10_000_000)
Warmup = whole(0, 10_000_000)
Threads = whole(1, 1024)
Seed = whole(0, 2**32 - 1)
Seeds = Annotated[list[Seed], Field(min_length=1), Valid("is a list of whole numbers from 0")]
Positive = real("is a finite number above 0", gt=0)
NotNegative = real("is a finite number from 0 on", ge=0)
Weight = real("is a number from 0 to 1", ge=0, le=1)
Dropout = real("is a number from 0 to below 1", ge=0, lt=1)
Sizes = complete(Split, Count)
