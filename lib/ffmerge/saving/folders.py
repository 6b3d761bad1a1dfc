"""What a model's folder may hold: what `save` writes and replaces, and what may lie beside it."""

import re
from pathlib import Path

from ffmerge.files import STAGING, read_json

CONFIG, SHARING, CARD = "config.json", "sharing.json", "README.md"
MARK = "<!-- written by ffmerge.save, which replaces it -->"
WEIGHTS = r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
ORIGIN = "compression.json"  # how the command line made a model
OWN = re.compile(
    rf"config\.json|generation_config\.json|sharing\.json|compression\.json|README\.md|{WEIGHTS}"
)
PROCESSOR = re.compile(
    r"(tokenizer|special_tokens_map|added_tokens|vocab|preprocessor_config|processor_config"
    r"|image_processor|video_preprocessor_config|chat_template|merges|spiece|source|target"
    r"|sentencepiece|bpe|byte_maps|dict|emoji|entity_vocab|normalizer|prophetnet|spm|tekken|word_)"
    r"[\w.-]*\.(json|txt|model|spm|jinja|bpe|codes|tokenizer)|additional_chat_templates"
)


def check_folder(folder: Path, with_processor: bool = False) -> None:
    """Check that saving into a folder takes nothing from anybody.

    Args:
        folder: where a model is to be saved; it need not be there.
        with_processor: whether a tokenizer or a processor is too; else another's may be there.

    Raises:
        ValueError: a path through `..`, a link, a file, or a folder that holds something else.
    """
    valid = "valid is a new or empty folder, or one that ffmerge.save has written"
    if led := {"..", "~"} & set(folder.parts):  # what a shell expands, Python does not
        raise ValueError(f"folder is {str(folder)!r}, which leads through {min(led)!r}; {valid}")
    if folder.is_symlink():
        raise ValueError(f"folder {folder} is a link; {valid}, by its own name")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"folder {folder} is a file; {valid}")
    written = read_own(folder) is not None
    for path in sorted(folder.iterdir()):
        is_own = written and OWN.fullmatch(path.name) and not path.is_dir()
        if path.name == CARD and is_own:
            is_own = MARK in path.read_text(encoding="utf-8", errors="replace")
        beside = PROCESSOR.fullmatch(path.name) and not path.is_symlink()  # a link leads elsewhere
        beside = beside and (written or not with_processor)
        if not is_own and not beside and path.name != STAGING:
            raise ValueError(f"folder {folder} holds {path.name}, which is not its own; {valid}")


def read_own(folder: Path) -> list | dict | None:
    """What `save` wrote about sharing, [] of a plain model; None in a folder of somebody else."""
    try:
        content = read_json(folder / SHARING)
    except (OSError, ValueError):
        return None
    is_own = content == [] or (isinstance(content, dict) and {"groups", "digest"} <= set(content))
    return content if is_own else None


def check_replaced(folder: Path, new: Path) -> None:
    """Refuse to leave files of another tokenizer beside a new one, which could be read with it."""
    left = [p.name for p in folder.glob("*") if not (new / p.name).exists()]
    left = [n for n in left if re.search(r"chat_template|added_t|special_t|^tokenizer\.json$", n)]
    if left and (new / "tokenizer_config.json").exists():
        raise ValueError(
            f"folder {folder} holds {left[0]} of another tokenizer; valid is one without it"
        )


def size_on_disk(path: str | Path) -> int:
    """Bytes of the weight files in a model's folder; of another's, which are pickled, too."""
    files = [*Path(path).glob("*.safetensors")] or Path(path).glob("pytorch_model*.bin")
    return sum(file.stat().st_size for file in files)
