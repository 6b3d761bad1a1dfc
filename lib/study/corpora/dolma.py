"""Dolma: a few documents of what OLMo was trained on (Soldaini et al., 2024), frozen from the hub.

    python -m study.corpora.dolma

The paper takes OLMo's features from about 10,000 tokens of it (Section 4.5). Dolma itself is a
script with lists of addresses, so a mirror in Parquet is streamed, at one commit. A corpus that is
there is never taken anew.
"""

from itertools import islice
from pathlib import Path

from datasets import load_dataset

from ffmerge.hub import asking_hub
from study.config import find_root, load_params
from study.corpora import ensure_corpus, write_splits
from study.packages import hash_file

HUB, REVISION = "devingulliver/dolma-v1_6-sample", "6b03e4bbe0d9633c408555a7a8667b944033b46c"
COLUMNS = ("id", "source", "text")
BUFFER = 1000  # documents that are shuffled at a time; the files are shuffled too


def write_corpus(folder: Path, train: int, validation: int, test: int) -> None:
    """Take documents in an order drawn at random: one Parquet file per split, and where from.

    Args:
        folder: an existing, empty folder.
        train, validation, test: number of documents; features are taken from validation.

    Raises:
        ValueError: the hub refuses, or there are fewer documents.
    """
    wanted = train + validation + test
    with asking_hub(HUB, "dataset", REVISION):
        rows = load_dataset(HUB, split="train", revision=REVISION, streaming=True)
        rows = rows.shuffle(seed=0, buffer_size=BUFFER)
        documents = [{c: row[c] for c in COLUMNS if c in row} for row in islice(rows, wanted)]
    if len(documents) < wanted:
        raise ValueError(
            f"{HUB} holds {len(documents)} documents, but params.yaml says {wanted} in corpora."
            f"dolma; valid are at most {len(documents)}"
        )
    write_splits(documents, folder, train=train, validation=validation, test=test)
    told = [f"- {f.name}: sha256 {hash_file(f)}" for f in sorted(folder.glob("*.parquet"))]
    head = [
        f"# {wanted} documents of Dolma",
        "",
        f"From `{HUB}` at commit `{REVISION}`, ODC-BY.",
        "",
    ]
    (folder / "README.md").write_text("\n".join([*head, *told, ""]), encoding="utf-8")


if __name__ == "__main__":
    try:
        made = ensure_corpus("data/dolma", load_params(), find_root())
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    print((made / "README.md").read_text(encoding="utf-8"))
