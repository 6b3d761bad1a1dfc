"""Tatoeba: the paper's Chinese-English data, downloaded (Tiedemann, 2020); some gigabytes.

Training pairs are OPUS's, as the challenge released them in 2020; validation and test are the
challenge's later ones on the hub. Files there name English the source: here it is the target.
"""

import gzip
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

from datasets import Dataset, load_dataset
from tqdm import tqdm

from ffmerge.hub import WAIT, asking_hub
from study.corpora import write_split

ARCHIVE = "https://object.pouta.csc.fi/Tatoeba-Challenge-v2020-07-28/eng-zho.tar"
HUB, REVISION = "Helsinki-NLP/tatoeba_mt", "3c5cecdcb8ddd6050220422c70c220194366d5f8"  # v2021-08-07
FILES = f"hf://datasets/{HUB}@{REVISION}"
HELD_OUT = {"validation": "dev/tatoeba-dev.eng-zho.tsv", "test": "test/tatoeba-test.eng-zho.tsv"}
COLUMNS = ["sourceLang", "targetlang", "sourceString", "targetString"]


def write_corpus(folder: Path, train: int, validation: int, test: int) -> None:
    """Download the pairs and write one Parquet file per split: columns `source`, `target`.

    Args:
        folder: an existing, empty folder.
        train, validation, test: number of pairs that the paper's Table 9 gives, and that must be
            there; the small files are counted before the large one is downloaded.

    Raises:
        ValueError: other numbers of pairs, or a server that refuses or does not answer.
    """
    for split, expected in (("validation", validation), ("test", test)):
        pairs = read_held_out(HELD_OUT[split])
        check_pairs(f"{HUB} at revision {REVISION[:7]}", split, len(pairs), expected)
        write_split(pairs, folder, split)
    archive = folder / "eng-zho.tar"
    download(ARCHIVE, archive)
    pairs = Dataset.from_generator(read_pairs, gen_kwargs={"archive": archive})
    check_pairs(ARCHIVE, "train", len(pairs), train)
    write_split(pairs, folder, "train")
    archive.unlink()


def check_pairs(source: str, split: str, found: int, expected: int) -> None:
    """Make sure that a split holds as many pairs as the paper's did.

    Raises:
        ValueError: it holds another number.
    """
    if found != expected:
        raise ValueError(
            f"{source} holds {found:,} pairs for {split}, but params.yaml says corpora.tatoeba."
            f"{split}: {expected}; valid is the number that is there, and a result is then not "
            "comparable with the paper's"
        )


def read_held_out(file: str) -> Dataset:
    """The pairs of a TSV of the hub: columns `source`, Chinese, and `target`, English.

    Args:
        file: its path there; lines of two languages and two texts, whose quotes mean nothing.
    """
    with asking_hub(HUB, "dataset", REVISION):
        rows = load_dataset(
            "csv",
            data_files=f"{FILES}/{file}",
            split="train",
            delimiter="\t",
            column_names=COLUMNS,
            quoting=3,
            keep_default_na=False,
        )
    return Dataset.from_dict({"source": rows["targetString"], "target": rows["sourceString"]})


def download(url: str, path: Path) -> None:
    """A file of the web.

    Raises:
        ValueError: its server refuses or does not answer.
    """
    try:
        with urlopen(url, timeout=WAIT) as answer, path.open("wb") as file:
            size = int(answer.headers.get("Content-Length", 0)) or None
            with tqdm.wrapattr(file, "write", total=size, desc=path.name) as bar:
                shutil.copyfileobj(answer, bar, 1 << 20)
    except OSError as error:
        raise ValueError(
            f"{url} cannot be downloaded ({error}); valid are a network that reaches it, or the "
            "corpus copied from a machine that has it"
        ) from error


def read_pairs(archive: Path) -> Iterator[dict[str, str]]:
    """The training pairs of a release: two line files in a tar, English and Chinese.

    Args:
        archive: holds …/train.src.gz and …/train.trg.gz.

    Raises:
        ValueError: they have different numbers of lines.
    """
    sides = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = Path(member.name).name
            if name in ("train.src.gz", "train.trg.gz"):
                sides[name] = archive.with_name(name)
                with tar.extractfile(member) as packed, open(sides[name], "wb") as file:
                    while chunk := packed.read(1 << 20):
                        file.write(chunk)
    english, chinese = (
        gzip.open(sides[name], "rt", encoding="utf-8") for name in ("train.src.gz", "train.trg.gz")
    )
    with english, chinese:
        for target, source in zip(english, chinese, strict=True):
            yield {"source": source.rstrip("\n"), "target": target.rstrip("\n")}
    for path in sides.values():
        path.unlink()
