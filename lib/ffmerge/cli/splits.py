"""Data as batches, in three parts that share nothing: to calibrate, to choose, to check."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from ffmerge.activations import Batch
from ffmerge.cli.opening import Opened
from ffmerge.cli.reading import Row, has_columns, read_images, read_rows, take
from ffmerge.costs import count_positions
from ffmerge.scoring import IGNORED

LEAST = 5  # examples: three to calibrate with, one to choose with, one to check with
CONTEXT = 512
BATCH = 1024  # tokens that run at a time: their logits are what takes memory
LIMITS = ("max_position_embeddings", "max_encoder_position_embeddings")
LIMITS += ("max_decoder_position_embeddings", "max_seq_len")
Example = dict[str, Tensor]


@dataclass(frozen=True)
class Splits:
    """Batches in three parts without a common example, and how many tokens each part holds."""

    calibration: list[Batch]
    choice: list[Batch]
    check: list[Batch]
    tokens: tuple[int, int, int]


def read_splits(
    opened: Opened,
    sources: Sequence[str],
    tokens: int,
    held_out: int,
    *,
    column: str | None = None,
    target: str | None = None,
    context: int | None = None,
    seed: int = 0,
) -> Splits:
    """Read as much data as is needed, and split it.

    Args:
        opened: a model, which says what its data are.
        sources: as in `ffmerge.cli.reading`; examples of several are taken in turn, so that all
            parts hold all kinds.
        tokens: to calibrate with (for images: patches and class tokens).
        held_out: tokens to choose with, and as many to check with; where the data hold less than
            all that, a fifth of them at most.
        column: of the text or the image; "text" or "image" if left out.
        target: of encoder-decoders, the column of what is to be written.
        context: the longest text that the model reads at once; its own limit may be lower. 512 if
            left out.
        seed: of the order in which files and rows are read.

    Raises:
        ValueError: data that are missing, too few, or not what the model reads.
    """
    idle = "--context" if opened.reads == "images" and context is not None else ""
    if column is not None and not any(has_columns(source) for source in sources):
        idle = "--column"
    if idle:
        raise ValueError(f"{idle} is given and does nothing with these data; valid is to leave it")
    context = CONTEXT if context is None else context
    context = min(context, find_limit(opened.model) or context)
    if context < 2 and opened.reads == "text":
        raise ValueError(f"--context is {context}; valid are 2 and more: one predicts the next")
    if (opened.reads == "pairs") is (target is None):
        told = "missing: this model" if target is None else f"{target!r}, and this model never"
        raise ValueError(
            f"--target is {told} reads one text and writes another; valid are --column and "
            "--target, two columns of JSONL rows, for models that do, and else --column alone"
        )
    examples = [_read(opened, source, column, target, context, seed) for source in sources]
    kept, lengths = _gather(opened.model, take_in_turn(examples), tokens + 2 * held_out)
    if len(kept) < LEAST:
        named = ", ".join(map(repr, sources))
        unit = {"images": "images", "pairs": "pairs", "text": f"texts of {context} tokens"}
        shorter = ", or a shorter --context" if opened.reads == "text" else ""
        raise ValueError(
            f"--data {named} gives too few {unit[opened.reads]} ({len(kept)}); valid are "
            f"{LEAST} or more{shorter}"
        )
    ends = _find_ends(len(kept), sum(lengths), tokens, held_out)
    parts = [range(start, end) for start, end in zip((0, *ends), ends)]  # noqa: B905
    pad = getattr(opened.processor, "pad_token_id", None) or 0
    size = max(1, BATCH // max(lengths))
    calibration, choice, check = (
        [collate([kept[i] for i in part[at : at + size]], pad) for at in range(0, len(part), size)]
        for part in parts
    )
    counts = tuple(sum(lengths[i] for i in part) for part in parts)
    return Splits(calibration, choice, check, counts)


def find_limit(model: PreTrainedModel) -> int | None:
    """The longest text that a model can read; None where there is no limit."""
    told = [getattr(model.config, name, None) for name in LIMITS]
    limit = min((n for n in told if isinstance(n, int) and n > 0), default=0)  # XLNet says -1
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding))
    pads = [m.padding_idx for m in tables if m.num_embeddings == limit]
    taken = max((pad + 1 for pad in pads if pad is not None), default=0)  # before RoBERTa's first
    return limit - taken if limit else None


def take_in_turn(streams: Sequence[Iterable[Example]]) -> Iterator[Example]:
    """One example of each, again and again; of those that are spent no more."""
    left = [iter(stream) for stream in streams]
    while left:
        for stream in tuple(left):
            try:
                yield next(stream)
            except StopIteration:
                left.remove(stream)


def cut_blocks(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, context: int, labelled: bool
) -> Iterator[Example]:
    """Texts, joined by the end-of-text token and cut into blocks of one length.

    Args:
        texts: in order.
        tokenizer: of the model.
        context: length of a block, in tokens.
        labelled: whether its tokens are what is to be predicted.
    """
    first = {tokenizer.bos_token_id, tokenizer.cls_token_id}  # where the model is used to them
    start = [i for i in tokenizer("", verbose=False)["input_ids"] if i in first]
    end = [i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None][:1]
    waiting: list[int] = []
    for text in texts:
        waiting += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + end
        length = context - len(start)
        while len(waiting) >= length:
            ids = torch.tensor(start + waiting[:length])
            waiting = waiting[length:]
            yield {"input_ids": ids} | ({"labels": ids} if labelled else {})


def pair_texts(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    column: str,
    target: str,
    source: str,
) -> Iterator[Example]:
    """What an encoder-decoder reads and is to write, each cut at the context."""
    for row in rows:
        texts = {"text": take(row, column, source), "text_target": take(row, target, source)}
        ids = tokenizer(**texts, truncation=True, max_length=context, verbose=False)
        if ids["input_ids"] and ids["labels"]:  # an empty text teaches nothing
            yield {name: torch.tensor(ids[name]) for name in ("input_ids", "labels")}


def prepare_images(images: Iterable, processor: BaseImageProcessor) -> Iterator[Example]:
    """Pixels as the model's processor wants them, in colour or in grey."""
    mode = "L" if len(processor.image_mean or "RGB") == 1 else "RGB"
    for image in images:
        pixels = processor(images=[image.convert(mode)], return_tensors="pt")["pixel_values"]
        yield {"pixel_values": pixels[0]}


def collate(examples: list[Example], pad: int) -> Batch:
    """Examples as one batch, shorter ones filled up on the right.

    Args:
        examples: of one kind.
        pad: the token that fills up inputs.
    """
    if "pixel_values" in examples[0]:
        return {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}
    fill = {"input_ids": pad, "labels": IGNORED}
    batch = {
        name: pad_sequence([example[name] for example in examples], True, fill[name])
        for name in examples[0]
    }
    ones = [torch.ones_like(example["input_ids"]) for example in examples]
    return batch | {"attention_mask": pad_sequence(ones, True, 0)}


def _read(
    opened: Opened, source: str, column: str | None, target: str | None, context: int, seed: int
) -> Iterator[Example]:
    """The examples of one source, as the model reads them."""
    if opened.reads == "images":
        images = read_images(source, "image" if column is None else column, seed)
        return prepare_images(images, opened.processor)
    column = "text" if column is None else column
    rows = read_rows(source, column, seed)
    if opened.reads == "pairs":
        return pair_texts(rows, opened.processor, context, column, target, source)
    texts = (take(row, column, source) for row in rows)
    return cut_blocks(texts, opened.processor, context, opened.has_loss)


def _gather(
    model: PreTrainedModel, examples: Iterable[Example], tokens: int
) -> tuple[list[Example], list[int]]:
    """Examples until they hold so many tokens, and the tokens of each."""
    kept: list[Example] = []
    lengths: list[int] = []
    total = 0
    for example in examples:
        if "input_ids" in example:
            lengths.append(len(example["input_ids"]))
        else:
            lengths.append(lengths[0] if lengths else count_positions(model, collate([example], 0)))
        kept.append(example)
        total += lengths[-1]
        if total >= tokens:
            break
    return kept, lengths


def _find_ends(n: int, total: int, tokens: int, held_out: int) -> tuple[int, int, int]:
    """Where each of the three parts of n examples ends, which hold `total` tokens together."""
    each = max(1, round(held_out * n / total))
    if total < tokens + 2 * held_out:  # not enough for all that is wanted
        each = max(1, min(each, n // 5))
    each = min(each, (n - 1) // 2)
    return n - 2 * each, n - each, n
