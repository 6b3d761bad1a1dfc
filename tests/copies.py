"""Tiny copies of what the hub serves for the paper's models, in its formats: data, checkpoints.

Every copy has the layers that its entry in params.yaml says, and is narrow.
"""

import gzip
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    OlmoConfig,
    OlmoForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from study.tasks.summarisation import PROMPT

CLASSES = ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark, white shark"]
ENGLISH = [f"the {a} sees the {b} near the {c}." for a, b, c in zip(
    "cat dog owl fox hen".split() * 8, "river hill tree house road sea well".split() * 6,
    "old mill,green gate,red barn".split(",") * 14, strict=False)]  # fmt: skip
CHINESE = [sentence.translate(str.maketrans("aeio", "猫狗河山")) for sentence in ENGLISH]
END = "<|endoftext|>"


def write_wikitext(folder: Path) -> Path:
    """Parquet with a line of an article a row: its own line break, or nothing at all."""
    rows = [""]
    for i, sentence in enumerate(ENGLISH):
        rows += [f" = Title {i} = \n", "", f" {sentence} {sentence} \n", ""]
    place = folder / "wikitext-103-raw-v1"
    place.mkdir(parents=True)
    data = Dataset.from_list([{"text": row} for row in rows])
    for split, parts in (("train", 2), ("validation", 1), ("test", 1)):
        for part in range(parts):
            name = f"{split}-{part:05}-of-{parts:05}.parquet"
            data.shard(parts, part).to_parquet(place / name)
    return _write_card(folder, place.name, f"{place.name}/{{split}}-*")


def write_imagenet(folder: Path, n: int = 30) -> Path:
    """Parquet with encoded pictures, in colour, grey and CMYK, no two of one size."""
    rng, modes = np.random.default_rng(0), {"RGB": "JPEG", "L": "JPEG", "CMYK": "JPEG"}
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    modes |= {"RGBA": "PNG"}
    for split in ("train", "validation", "test"):
        rows = []
        for i in range(n):
            mode = list(modes)[i % 7] if i % 7 < len(modes) else "RGB"
            pixels = rng.integers(256, size=(20 + i, 30 - i // 2, 3), dtype=np.uint8)
            content = io.BytesIO()
            Pillow.fromarray(pixels).convert(mode).save(content, modes[mode])
            image = {"bytes": content.getvalue(), "path": f"n0{i}.JPEG"}
            rows.append({"image": image, "label": -1 if split == "test" else i % len(CLASSES)})
        (folder / "data").mkdir(parents=True, exist_ok=True)
        data = Dataset.from_list(rows, features=features)
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def write_dolma(folder: Path) -> Path:
    """Parquet of whole documents, with where each is from."""
    rows = [
        {"id": str(i), "source": "wiki", "text": f"Dolma. {s} {s}"} for i, s in enumerate(ENGLISH)
    ]
    folder.mkdir()
    Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def write_samsum(folder: Path) -> Path:
    """CSV: id, dialogue with line breaks inside quotes, summary; one dialogue is missing."""
    rows = [
        {"id": f"1386{i}", "dialogue": f'Anna: "{s}"\r\nOmar: Hi, {i}!', "summary": s.capitalize()}
        for i, s in enumerate(ENGLISH)
    ]
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        gap = [{"id": "0", "dialogue": None, "summary": "x"}] if split == "train" else []
        Dataset.from_list(rows[:12] + gap).to_csv(folder / f"{split}.csv", index=False)
    return folder


def write_tatoeba(folder: Path, validation: int, test: int) -> Path:
    """The hub's two TSVs, without a header and with stray quotes."""
    for name, n in (("dev", validation), ("test", test)):
        (folder / name).mkdir(parents=True)
        lines = [f"eng\tcmn_Hans\t{e}\t{c}" for e, c in zip(ENGLISH, CHINESE, strict=True)]
        lines[0] = 'eng\tcmn_Hans\t"Run, he said.\tNA'
        text = "\n".join(lines[:n]) + "\n"
        (folder / name / f"tatoeba-{name}.eng-zho.tsv").write_text(text, encoding="utf-8")
    return folder


def write_challenge(path: Path) -> Path:
    """The challenge's tar of 2020: two gzipped files, line by line English and Chinese."""
    with tarfile.open(path, "w") as tar:
        for name, lines in (("train.src.gz", ENGLISH), ("train.trg.gz", CHINESE)):
            packed = gzip.compress(("\n".join(lines) + "\n").encode())
            member = tarfile.TarInfo(f"data/eng-zho/{name}")
            member.size = len(packed)
            tar.addfile(member, io.BytesIO(packed))
    return path


def write_vit(folder: Path, layers: int) -> Path:
    """Google's ViT: the names of before transformers 5, and a pooler that nothing uses."""
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    pooler = {
        "vit.pooler.dense.weight": torch.ones(16, 16),
        "vit.pooler.dense.bias": torch.ones(16),
    }
    save_file(weights | pooler, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_gpt2(folder: Path, layers: int) -> Path:
    """OpenAI's GPT-2: names without `transformer.`, the causal masks, no head, BPE in two files."""
    tokenizer = _train_bpe(folder)
    tokenizer.save_model(str(folder))
    told = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    size = tokenizer.get_vocab_size()
    end = tokenizer.token_to_id(END)
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": layers, "n_head": 2, "vocab_size": size}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=end, eos_token_id=end))
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights = {k.removeprefix("transformer."): w for k, w in weights.items()}
    weights |= {f"h.{i}.attn.bias": torch.ones(32, 32).tril()[None, None] for i in range(layers)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_marian(folder: Path, layers: int) -> Path:
    """Helsinki's Marian: a pickle, two sentencepiece models and the vocabulary that joins them."""
    folder.mkdir(parents=True)
    pieces = {}
    for name, texts in (("source", CHINESE), ("target", ENGLISH)):
        content = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=content,
            vocab_size=60,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / f"{name}.spm").write_bytes(content.getvalue())
        model = sentencepiece.SentencePieceProcessor(model_proto=content.getvalue())
        pieces |= dict.fromkeys(map(model.id_to_piece, range(3, model.vocab_size())))
    vocabulary = {piece: i for i, piece in enumerate(["</s>", "<unk>", *pieces, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    told = {"source_lang": "zho", "target_lang": "eng", "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    pad = vocabulary["<pad>"]
    config = MarianConfig(
        vocab_size=len(vocabulary),
        d_model=16,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=pad,
        eos_token_id=0,
        decoder_start_token_id=pad,
        forced_eos_token_id=0,
        architectures=["MarianMTModel"],
    )
    model = MarianMTModel(config)
    config.save_pretrained(folder)
    model.generation_config.update(num_beams=2, max_length=16, bad_words_ids=[[pad]])
    model.generation_config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def write_olmo(folder: Path, layers: int) -> Path:
    """AI2's OLMo: several files of weights and an index of them; nothing is tied, no biases."""
    tokenizer = _train_bpe(folder)
    special = {"eos_token": END, "pad_token": "<|padding|>"}  # and no longest sequence
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **special).save_pretrained(
        folder
    )
    config = OlmoConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=96,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id("<|padding|>"),
    )
    OlmoForCausalLM(config).save_pretrained(folder, max_shard_size="400KB")
    return folder


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """What the files of a copy hold, under the names that transformers 5 has for it."""
    if (folder / "pytorch_model.bin").exists():
        return torch.load(folder / "pytorch_model.bin")
    files = sorted(folder.glob("*.safetensors"))
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return {_rename(name): tensor for name, tensor in found.items()}


def _rename(name: str) -> str:
    name = re.sub(r"^(h|wte|wpe|ln_f)\b", r"transformer.\1", name)
    name = re.sub(r"^vit\.encoder\.layer\.", "vit.layers.", name)
    name = re.sub(r"\.attention\.attention\.(query|key|value)\.", _short, name)
    name = name.replace(".attention.output.dense.", ".attention.o_proj.")
    return name.replace("intermediate.dense.", "mlp.fc1.").replace("output.dense.", "mlp.fc2.")


def _short(match: re.Match) -> str:
    return f".attention.{match[1][0]}_proj."


def _train_bpe(folder: Path) -> ByteLevelBPETokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = ByteLevelBPETokenizer()
    special = [END, "<|padding|>"]
    texts = [*ENGLISH, *[PROMPT.format(dialogue="Anna: Hi! Omar: Hi!")] * 9]  # few tokens each
    tokenizer.train_from_iterator(texts, 600, show_progress=False, special_tokens=special)
    return tokenizer


def _write_card(folder: Path, name: str, pattern: str) -> Path:
    """The head of a data set's page, which says where its configurations lie."""
    lines = ["---", "configs:", f"- config_name: {name}", "  data_files:"]
    for split in ("test", "train", "validation"):
        lines += [f"  - split: {split}", f"    path: {pattern.format(split=split)}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder
