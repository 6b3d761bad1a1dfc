"""Tatoeba: the paper's Chinese-English data, downloaded (Tiedemann, 2020); some gigabytes.

Training pairs are OPUS's, as the challenge released them in 2020; validation and test are the
challenge's later ones on the hub. Files there name English the source: here it is the target.
"""

import gzip
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, load_dataset
from tqdm import tqdm

from study.corpora import write_split

ARCHIVE = "https://object.pouta.csc.fi/Tatoeba-Challenge-v2020-07-28/eng-zho.tar"
HUB = {"path": "Helsinki-NLP/tatoeba_mt", "name": "eng-zho", "revision": "refs/convert/parquet"}


def write_corpus(folder: Path, train: int, validation: int, test: int) -> None:
    """Download the pairs and write one Parquet file per split: columns `source`, `target`.

    Args:
        folder: an existing, empty folder.
        train, validation, test: number of pairs that the paper's Table 9 gives, and that must be
            there.
    """
    for split in ("validation", "test"):
        rows = load_dataset(**HUB, split=split)
        pairs = {"source": rows["targetString"], "target": rows["sourceString"]}
        write_split(Dataset.from_dict(pairs), folder, split)
    archive = folder / "eng-zho.tar"
    with tqdm(desc="OPUS eng-zho", unit="B", unit_scale=True) as bar:
        urllib.request.urlretrieve(ARCHIVE, archive, lambda n, size, total: bar.update(size))
    pairs = Dataset.from_generator(read_pairs, gen_kwargs={"archive": archive})
    write_split(pairs, folder, "train")
    archive.unlink()


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
