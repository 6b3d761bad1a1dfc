"""Reading texts, rows and pictures: from a file, a folder, a pattern or a data set of the hub."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffmerge.hub import asking_hub

TEXTS, ROWS = (".txt", ".md"), (".jsonl",)
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
CHUNK = 100_000  # characters: a long text is read, and tokenized, piece by piece
HALF = re.compile("[\ud800-\udfff]")  # as JSON can say it, and no tokenizer reads it
BUFFER = 10_000  # rows that are shuffled at a time, of what is streamed

Row = dict[str, Any]


def read_rows(source: str, column: str, seed: int) -> Iterator[Row]:
    """Rows of text, in an order drawn at random: files, and within JSONL lines too.

    Args:
        source: text or JSONL files (one, a folder, a pattern such as "notes/*.md"), or the name of
            a data set on the hub, "name" or "name:configuration".
        column: what the text of a plain file is called in its rows.
        seed: of the order.

    Raises:
        ValueError: nothing to read, or a line that is not JSON.
    """
    files = find_files(source, TEXTS + ROWS, seed)
    if not files:
        yield from read_hub(source, seed)
    for file in files:
        if file.suffix.lower() in ROWS:
            yield from _read_lines(file, seed)
        else:
            yield from ({column: text} for text in _read_text(file))


def read_images(source: str, column: str, seed: int) -> Iterator[Any]:
    """Pictures (PIL images), in an order drawn at random; labels are not needed.

    Args:
        source: a folder, subfolders and all, a pattern, one file, or a data set as in `read_rows`.
        column: where a data set of the hub holds them.
        seed: of the order.

    Raises:
        ValueError: nothing to read.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("images need the package pillow; `pip install pillow` brings it") from None
    files = find_files(source, IMAGES, seed)
    if not files:
        yield from (take(row, column, source) for row in read_hub(source, seed))
    for file in files:
        try:
            with Image.open(file) as image:
                image.load()
        except Exception as error:  # decoders raise what they like: too large, torn, no image
            raise ValueError(f"{file} cannot be read ({error}); valid are whole images") from None
        if image.mode[0] in "IF":  # any model's processor wants 8 bits, and PIL would clip
            raise ValueError(f"{file} has more than 8 bits a channel; valid are images of 8 bits")
        yield image


def find_files(source: str, suffixes: tuple[str, ...], seed: int) -> list[Path]:
    """The files that a source names, in an order drawn at random; none if it is of the hub.

    Args:
        source: a file, a folder or a pattern.
        suffixes: which files count.
        seed: of the order.

    Raises:
        ValueError: it names files, and none of them counts.
    """
    path = Path(source)
    if not source.strip():
        raise ValueError("--data is ''; valid are files, folders, patterns and names of data sets")
    if path.is_dir():
        named = path.rglob("*")
    elif path.exists():
        named = [path]
    else:
        named = Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))
    named = sorted(named)
    files = [file for file in named if file.suffix.lower() in suffixes and file.is_file()]
    files = [file for file in files if not file.name.startswith("._")]  # macOS's, of no one's data
    if (named or path.exists() or path.suffix) and not files:
        raise ValueError(
            f"--data {source!r} holds no file to read; valid are {', '.join(suffixes)}"
        )
    random.Random(seed).shuffle(files)
    return files


def check_apart(sources: list[str]) -> None:
    """Check that no file is named twice: it would calibrate, and check what it calibrated.

    Raises:
        ValueError: one is.
    """
    seen: dict[Path, str] = {}
    for source in sources:
        for file in {path.resolve() for path in find_files(source, TEXTS + ROWS + IMAGES, 0)}:
            if file in seen:
                raise ValueError(
                    f"--data {source!r} and {seen[file]!r} both hold {file}; valid is every file "
                    "once: some of it checks what nothing else has seen"
                )
            seen[file] = source


def has_columns(source: str) -> bool:
    """Whether what a source names has more than one text or picture to a row: JSONL, or the hub."""
    files = find_files(source, TEXTS + ROWS + IMAGES, 0)
    return not files or any(file.suffix.lower() in ROWS for file in files)


def read_hub(source: str, seed: int) -> Iterator[Row]:
    """The training rows of a data set on the hub, streamed.

    Raises:
        ValueError: it cannot be opened, or the package datasets is not installed.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            f"--data {source!r} is no file here, and a data set of the hub needs the package "
            "datasets; `pip install datasets` brings it"
        ) from None
    name, _, configuration = source.partition(":")
    with asking_hub(name, "dataset"):
        try:
            rows = load_dataset(name, configuration or None, split="train", streaming=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise ValueError(
                f"--data {source!r} is neither a file here nor a data set on the hub ({reason}); "
                "valid are text or JSONL files, folders of images, and names of data sets"
            ) from None
    yield from rows.shuffle(seed=seed, buffer_size=BUFFER)


def take(row: Row, column: str, source: str) -> Any:
    """What a row holds in a column: text, or a picture.

    Raises:
        ValueError: there is no such column, or something else in it.
    """
    if column not in row:
        raise ValueError(
            f"--data {source!r} has no column {column!r}; valid are {', '.join(map(str, row))}"
        )
    if not isinstance(row[column], str) and not hasattr(row[column], "convert"):
        raise ValueError(
            f"--data {source!r} has a row whose {column!r} is {str(row[column])[:40]!r}, a "
            f"{type(row[column]).__name__}; valid is a text or a picture in every row"
        )
    if isinstance(row[column], str) and HALF.search(row[column]):
        raise ValueError(f"--data {source!r} has a row with half a character (\\ud800 to \\udfff)")
    return row[column]


def _read_text(file: Path) -> Iterator[str]:
    """A text, piece by piece; without the mark that some tools begin with."""
    try:
        with file.open(encoding="utf-8-sig") as opened:
            yield from iter(lambda: opened.read(CHUNK), "")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error}); valid are texts in UTF-8") from None


def _read_lines(file: Path, seed: int) -> Iterator[Row]:
    lines = "".join(_read_text(file)).split("\n")  # only that ends a line of JSON
    order = list(range(len(lines)))
    random.Random(seed).shuffle(order)
    for i in (i for i in order if lines[i].strip()):
        try:
            row = json.loads(lines[i])
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(
                f"line {i + 1} of {file} is not a row; valid is one JSON object a line"
            )
        yield row
