"""What a batch is, and which of its positions are tokens: nothing is learnt from padding."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ffmerge.sublayers import find_stacks, reads_tokens, unwrap

Batch = dict[str, Tensor]


def check_batch(batch: Batch) -> None:
    """Check that a batch is one.

    Raises:
        ValueError: not keyword arguments with tensors, or one example without a batch dimension.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"batch is a {type(batch).__name__}; valid are keyword arguments for the model, such as"
            " {'input_ids': tensor, 'attention_mask': tensor}, in a list"
        )
    for name, value in batch.items():
        if not isinstance(value, Tensor | bool | int | float | None):
            raise ValueError(
                f"batch holds {name} as a {type(value).__name__}; valid are tensors, such as a "
                "tokenizer gives with return_tensors='pt'"
            )
    ids = batch.get("input_ids")
    if ids is not None and (ids.dim() < 2 or len(ids) == 0):
        raise ValueError(
            f"batch holds input_ids of shape {tuple(ids.shape)}; valid is (batch, length), "
            "with one example or more"
        )


def token_masks(model: nn.Module, batch: Batch) -> dict[str, Tensor | None]:
    """Which positions of a batch are tokens and not padding, for each stack.

    Args:
        model: tells whether an encoder and a decoder have masks of their own.
        batch: keyword arguments for its forward.

    Returns:
        {stack: (batch, length) bool, or None where every position counts, as in images}.

    Raises:
        ValueError: a mask of another layout, or nothing that tells the decoder's padding.
    """
    mask, ids = _read_mask(batch, "attention_mask"), batch.get("input_ids")
    if mask is None and ids is not None:
        mask = torch.ones_like(ids, dtype=torch.bool)
    given = [value for value in batch.values() if isinstance(value, Tensor)]
    if (
        mask is not None
        and mask.all()
        and any(x.is_floating_point() and x.dim() > 2 for x in given)
    ):
        mask = None  # pictures or vectors too, which may stand beside the tokens (ViLT)
    stacks = find_stacks(model)
    config = getattr(unwrap(model), "config", None)
    if getattr(config, "is_encoder_decoder", False):
        masks = {"encoder": mask}
        if "decoder" in stacks:
            masks["decoder"] = _find_decoder_mask(model, batch)
    else:
        masks = {"encoder": mask, "decoder": mask}
    others = (stack for name, stack in stacks.items() if name not in masks)
    return masks | {s.name: mask if reads_tokens(model, s) else None for s in others}


def take_tokens(x: Tensor, mask: Tensor | None, stack: str) -> Tensor:
    """The rows that are tokens: (n_tokens, width), a copy; in-place activations write over x.

    Args:
        x: (batch, length, width), or other dimensions before the last one; (length, batch, width)
            in some, of which a batch that is as long as large tells nothing.
        mask: (batch, length) bool.
        stack: for the message.

    Raises:
        ValueError: a mask of another layout, or positions that are no batch's.
    """
    flat, shape = x.flatten(0, -2), tuple(x.shape[:-1])  # (batch × length, width)
    if mask is None:
        return flat.clone()
    if shape == tuple(mask.shape[::-1]) != tuple(mask.shape):  # XLNet
        mask = mask.T
    fits = mask.numel() == len(flat) and (len(shape) != 2 or shape == tuple(mask.shape))
    if mask.all() and (fits or len(flat) < mask.numel()):  # fewer: several tokens are one position
        return flat.clone()
    if not fits:
        raise ValueError(
            f"the mask of the {stack} has shape {tuple(mask.shape)} and {shape} positions pass "
            "through it; valid is one entry for each position, such as of lengths to which a model "
            "with windows or blocks adds no padding of its own"
        )
    return flat[mask.flatten()]


def _find_decoder_mask(model: nn.Module, batch: Batch) -> Tensor | None:
    mask, labels = _read_mask(batch, "decoder_attention_mask"), batch.get("labels")
    ids = batch.get("decoder_input_ids")
    if mask is not None:
        return mask
    if labels is not None and labels.dim() == 2:
        return labels != -100  # the loss's mark for padding
    if ids is None:
        raise ValueError(
            "batch holds nothing for the decoder; valid is one of labels, decoder_input_ids and "
            "decoder_attention_mask (batch, length)"
        )
    padding = getattr(unwrap(model).config, "pad_token_id", None)
    if padding is None:
        return None
    mask = ids != padding
    mask[:, 0] = True  # the decoder starts with a token that may be the one for padding
    return mask


def _read_mask(batch: Batch, name: str) -> Tensor | None:
    mask = batch.get(name)
    if mask is not None and mask.dim() != 2:
        raise ValueError(
            f"batch holds {name} of shape {tuple(mask.shape)}; valid is (batch, length), 0 for "
            "padding"
        )
    return None if mask is None else mask.bool()
