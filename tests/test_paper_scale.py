"""The paper's own entries of params.yaml, run as they are on tiny copies of what the hub serves.

Ids of the hub become folders here, and counts, steps and the context are shrunk; layers only of
OLMo-7B.
"""

import csv

import pandas as pd
import pytest
import torch
import yaml
from conftest import REPOSITORY, write_tiny_profile
from copies import (
    CHINESE,
    CLASSES,
    ENGLISH,
    read_weights,
    write_challenge,
    write_dolma,
    write_gpt2,
    write_imagenet,
    write_marian,
    write_olmo,
    write_samsum,
    write_tatoeba,
    write_vit,
    write_wikitext,
)
from datasets import load_dataset
from safetensors.torch import load_file
from test_pipeline import run_here
from transformers import AutoTokenizer

from ffmerge import hub
from ffmerge.activations import collect_features
from ffmerge.checkpoints import find_shared_modules, load
from ffmerge.sublayers import find_stacks
from study.config import load_params
from study.corpora import dolma, fingerprint, tatoeba
from study.records import COLUMNS
from study.sections import Base
from study.settings import resolve
from study.tasks import load_task, make_batches
from study.tasks.data import load_split

SIZES = {"train": len(ENGLISH), "validation": 12, "test": 9}
DOCUMENTS = {"train": 1, "validation": 6, "test": 1}
CORPORA = {"tatoeba": SIZES, "dolma": DOCUMENTS}
SHORT = {"steps": 2, "batch_size": 4, "evaluate_every": 2, "precision": "float32"}
CHECKPOINTS = {
    "vit-base": write_vit,
    "gpt2-large": write_gpt2,
    "opus-mt-zh-en": write_marian,
    "olmo-7b": write_olmo,
    "olmo-1b": write_olmo,
}


@pytest.fixture
def tiny_copy(tmp_path, inside):
    """Make the tiny copies of one entry, and a repository that runs it from them."""

    def make(name):
        entry = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["models"][name]
        if "adapters" in entry["finetune"]:  # 32 layers in 4 bits on a CPU take three times as long
            entry |= {"layers": {"decoder": 12}, "removed": {"third": 4}, "dropped": {"third": 3}}
        layers = next(iter(entry["layers"].values()))
        served = CHECKPOINTS[name](tmp_path / "served", layers)
        entry["base"]["hub"] = str(served)
        if "context" in entry["base"].get("processor", {}):
            entry["base"]["processor"]["context"] = 96
        sizes = {"validation_examples": 4, "batch_size": 4, "test_examples": 8}
        entry |= sizes
        entry["features"] |= {"tokens": 100, "batch_size": 4}
        entry["removed"] = {"third": entry["removed"]["third"]}  # the others: most of the time
        for names in ("variants", "tuned"):  # of the two recipes below all
            entry.pop(names, None)
        entry["finetune"] |= SHORT | {"warmup_steps": 0}
        if "imagenet" in entry["data"]["path"]:
            entry["data"]["path"] = str(write_imagenet(tmp_path / "imagenet"))
        if "wikitext" in entry["data"]["path"]:
            entry["data"]["path"] = str(write_wikitext(tmp_path / "wikitext"))
        if "downstream" in entry:
            entry["downstream"] |= {"validation_examples": 2, "batch_size": 2, "test_examples": 2}
            entry["downstream"]["data"]["path"] = str(write_samsum(tmp_path / "samsum"))
        for use in (entry, entry.get("downstream", {})):  # the paper's, not the copies'
            use.get("data", {}).pop("rows", None)
        root = write_tiny_profile(tmp_path / "root", seeds=[0])
        content = yaml.safe_load((root / "params.yaml").read_text())
        content |= {"models": {name: entry}, "run": [name], "corpora": CORPORA}
        content["recipes"] = {k: content["recipes"][k] for k in ("base", "permute-third")}
        (root / "params.yaml").write_text(yaml.safe_dump(content))
        return inside(root), served

    return make


def run(name):
    """Every stage of one model and one variant, but for the figures."""
    model = {"model": name}
    variant = model | {"variant": "permute-third"}
    for notebook, parameters in [
        ("1_base", model),
        ("2_activations", model),
        ("3_permutations", model),
        ("4_merges", model | {"method": "permute"}),
        ("5_finetune", variant | {"seed": 0}),
        ("6_evals", variant),
    ]:
        run_here(notebook, parameters)


def check_run(root, served, name):
    """What holds for every entry: the base is what was served, and one third is gone and tied."""
    params = load_params(root)
    entry = params.model(name)
    base, weights = load(root / "models" / name / "base"), read_weights(served)
    for key, tensor in base.state_dict().items():
        if key in weights:
            assert torch.equal(tensor, weights[key]), key
        else:  # nothing is random
            assert key == "lm_head.weight" and base.config.tie_word_embeddings
    assert {stack: len(found) for stack, found in find_stacks(base).items()} == entry.layers
    results = pd.read_csv(root / "results/models" / name / "evals/permute-third.csv")
    assert list(results) == COLUMNS and set(results.model) == {name}
    row = results[results.phase == "tuned"].iloc[0]
    assert (row.removed, row.kind) == (entry.removed["third"], "FF sublayers")
    first, last = map(int, row.layers.split("-"))  # the window that scored best
    assert last - first == entry.removed["third"] // len(entry.layers)
    table = pd.read_csv(root / "results/models" / name / "windows/permute.csv")
    thirds = table[table.ratio == "third"]
    assert len(thirds) == min(entry.layers.values()) - (last - first)
    best = thirds.value.max() if thirds.direction.iloc[0] == "higher" else thirds.value.min()
    assert row.layers in set(thirds.layers[thirds.value == best])
    tuned = root / "models" / name / "tuned/permute-third/0"
    if not entry.finetune.adapters:
        shared = find_shared_modules(load(tuned))
        assert shared and {len(names) for names in shared} == {last - first + 1}
    return base, results, tuned


def test_vit_from_old_names_and_streamed_pictures_of_every_kind(tiny_copy):
    root, served = tiny_copy("vit-base")
    old = load_file(served / "model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in old  # as Google's file
    assert "vit.encoder.layer.11.output.dense.bias" in old and "vit.pooler.dense.bias" in old
    run("vit-base")
    base, results, _ = check_run(root, served, "vit-base")
    assert list(base.config.id2label.values()) == CLASSES
    answers = root / "models/vit-base/answers/permute-third/tuned-0"
    labels = (answers / "label.txt").read_text().splitlines()
    assert labels == [CLASSES[i % 3] for i in range(8)]  # validation: the test's are secret
    assert set((answers / "answer.txt").read_text().splitlines()) <= set(CLASSES)
    assert not (root / "data").exists() and (results.n_examples == 8).all()


@pytest.mark.slow
def test_gpt2_from_names_without_a_prefix_and_lines_with_their_breaks(tiny_copy):
    root, served = tiny_copy("gpt2-large")
    old = load_file(served / "model.safetensors")
    assert {"wte.weight", "h.35.mlp.c_fc.weight", "h.0.attn.bias"} <= set(old)
    assert "lm_head.weight" not in old
    run("gpt2-large")
    check_run(root, served, "gpt2-large")
    task = load_task("gpt2-large", load_params(root), root)
    text = task.tokenizer.decode(task.dataset("test")[0]["input_ids"])
    lines = [f" = Title 0 = \n {ENGLISH[0]} {ENGLISH[0]} \n", " = Title 1 = \n"]
    assert "".join(lines).startswith(text[:40]) and "<|endoftext|>" not in text  # empty rows vanish


def test_opus_mt_from_a_pickle_two_spm_files_and_the_challenges_files(
    tiny_copy, tmp_path, monkeypatch
):
    monkeypatch.setattr(hub, "_ask", lambda *told: None)
    monkeypatch.setattr(tatoeba, "FILES", str(write_tatoeba(tmp_path / "hub", 12, 9)))
    archive = write_challenge(tmp_path / "eng-zho.tar")
    monkeypatch.setattr(tatoeba, "ARCHIVE", archive.as_uri())
    root, served = tiny_copy("opus-mt-zh-en")
    assert not list(served.glob("*.safetensors"))
    run("opus-mt-zh-en")
    base, results, _ = check_run(root, served, "opus-mt-zh-en")
    assert base.generation_config.num_beams == 2  # decodes as its authors say
    answers = root / "models/opus-mt-zh-en/answers/permute-third/tuned-0"
    assert (answers / "source.txt").read_text().splitlines()[:2] == ["NA", CHINESE[1]]
    assert (answers / "reference.txt").read_text().splitlines()[:2] == [
        '"Run, he said.',
        ENGLISH[1],
    ]
    own = AutoTokenizer.from_pretrained(served)
    kept = AutoTokenizer.from_pretrained(root / "models/opus-mt-zh-en/base")
    assert kept(CHINESE)["input_ids"] == own(CHINESE)["input_ids"]
    assert (results[results.metric == "BLEU"].n_examples == 8).all()


@pytest.mark.parametrize("name", ["olmo-1b", pytest.param("olmo-7b", marks=pytest.mark.slow)])
def test_olmo_from_many_files_untied(tiny_copy, name, tmp_path, monkeypatch):
    monkeypatch.setattr(dolma, "HUB", str(write_dolma(tmp_path / "dolma")))
    monkeypatch.setattr(dolma, "REVISION", "c0ffee")
    root, served = tiny_copy(name)
    assert len(list(served.glob("model-0*.safetensors"))) > 5
    run(name)
    base, results, tuned = check_run(root, served, name)
    assert base.lm_head.weight is not base.model.embed_tokens.weight
    states = set(zip(results.phase, results.precision, strict=True))
    params = load_params(root)
    examined, chosen = (load_task(name, params, root, features=f) for f in (True, False))
    assert chosen.data.path.endswith("wikitext")
    if name == "olmo-1b":
        assert examined.data == chosen.data and not (root / "data").exists()
        assert ("tuned", "int8") in states and set(results.metric) >= {"perplexity"}
        return
    batches = make_batches(examined, "validation", 4)
    first = collect_features(base, batches, params.model(name).features.tokens)["decoder"][0]
    kept = load_file(root / "models/olmo-7b/features.safetensors")["decoder.0"]
    torch.testing.assert_close(first.to(kept.dtype), kept)
    assert "Dolma." in examined.tokenizer.decode(examined.dataset("validation")[0]["input_ids"])
    note = (root / "data/dolma/README.md").read_text()
    file = root / "data/dolma/validation-00000-of-00001.parquet"
    assert "commit `c0ffee`" in note and f"{file.name}: sha256 {dolma.hash_file(file)}" in note
    assert ("tuned", "nf4") in states and "ROUGE-Lsum" in set(results.metric)
    adapters = load_file(tuned / "adapter_model.safetensors")
    assert sum("up_proj.lora_A" in key for key in adapters) == 12  # one a layer, tied ones too
    task = load_task(name, params, root, downstream=True)
    rows = list(csv.DictReader((root.parent / "samsum/train.csv").open(newline="")))
    assert len(rows) == 13 and len(task.dataset("train")) == 12  # one dialogue is missing
    assert task.dataset("train")[0]["dialogue"] == f'Anna: "{ENGLISH[0]}"\r\nOmar: Hi, 0!'


def test_a_tokenizer_without_a_longest_sequence_wants_a_context(tmp_path):
    from study.pretrained import load_pretrained_tokenizer

    served = str(write_olmo(tmp_path / "served", 2))
    with pytest.raises(ValueError, match="names no longest sequence; valid is an entry with base"):
        load_pretrained_tokenizer(Base(hub=served))
    tokenizer = load_pretrained_tokenizer(Base(hub=served, processor={"context": 64}))
    assert tokenizer.model_max_length == 64


@pytest.mark.parametrize(("split", "there"), [("validation", (13, 9)), ("test", (12, 8))])
def test_another_number_of_pairs_is_told_before_the_archive_is_asked_for(
    tmp_path, monkeypatch, split, there
):
    monkeypatch.setattr(hub, "_ask", lambda *told: None)
    monkeypatch.setattr(tatoeba, "FILES", str(write_tatoeba(tmp_path / "hub", *there)))
    monkeypatch.setattr(tatoeba, "download", lambda *told: pytest.fail("downloaded"))
    (tmp_path / "made").mkdir()
    found, wanted = dict(zip(("validation", "test"), there, strict=True))[split], SIZES[split]
    words = f"at revision 3c5cecd holds {found} pairs for {split}, but .*{split}: {wanted}; valid"
    with pytest.raises(ValueError, match=words):
        tatoeba.write_corpus(tmp_path / "made", **SIZES)


def test_another_number_of_training_pairs_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_ask", lambda *told: None)
    monkeypatch.setattr(tatoeba, "FILES", str(write_tatoeba(tmp_path / "hub", 12, 9)))
    archive = write_challenge(tmp_path / "eng-zho.tar")
    monkeypatch.setattr(tatoeba, "ARCHIVE", archive.as_uri())
    (tmp_path / "made").mkdir()
    words = f"eng-zho.tar holds {len(ENGLISH)} pairs for train, but .*tatoeba.train: 99; valid is"
    with pytest.raises(ValueError, match=words):
        tatoeba.write_corpus(tmp_path / "made", **SIZES | {"train": 99})


SERVED = {  # the paper's data sets, and where an entry names each
    "gpt2-large": (write_wikitext, "data"),
    "olmo-7b": (write_samsum, "downstream"),
    "vit-base": (write_imagenet, "data"),
}


@pytest.mark.parametrize("name", SERVED)
def test_another_number_of_rows_than_the_papers_is_told(name, tmp_path):
    write, where = SERVED[name]
    entry = load_params(REPOSITORY).model(name)
    data = (getattr(entry, where) if where == "downstream" else entry).data
    assert data.rows["test"] > 100
    data = data.model_copy(update={"path": str(write(tmp_path / "served"))})
    if data.streaming:  # the hub's own count, before anything is read
        told = [f"  - {{name: {split}, num_examples: 30}}" for split in ("train", "validation")]
        card = ["---", "dataset_info:", "  splits:", *told, "---", ""]
        (tmp_path / "served/README.md").write_text("\n".join(card))
    for split in ("train", "test"):
        there = load_split(data.model_copy(update={"rows": {}}), split)
        n = sum(1 for _ in there)
        assert n and load_split(data.model_copy(update={"rows": {split: n}}), split)
        words = f"served holds {n} rows for {split}, but .* data.rows.{split}: {n + 1}; valid is"
        with pytest.raises(ValueError, match=words):
            load_split(data.model_copy(update={"rows": {split: n + 1}}), split)


def test_counts_are_a_setting_of_what_has_them_and_restale_nothing_else():
    params = load_params(REPOSITORY)
    counts = params.model("gpt2-large").data.rows
    assert counts and resolve(params.model("gpt2-large"))["data"]["rows"] == counts
    assert "rows" not in resolve(params.model("gpt2-docs"))["data"]


def test_an_archive_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(
        ValueError, match=r"no.tar cannot be downloaded \(.*\); valid are a network"
    ):
        tatoeba.download((tmp_path / "no.tar").as_uri(), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_frozen_sample_is_the_same_documents_and_another_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dolma, "HUB", str(write_dolma(tmp_path / "dolma")))
    monkeypatch.setattr(dolma, "REVISION", "c0ffee")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        dolma.write_corpus(tmp_path / name, **DOCUMENTS)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    texts = [load_dataset(str(tmp_path / "one"), split=split)["text"] for split in DOCUMENTS]
    assert [len(split) for split in texts] == list(DOCUMENTS.values())
    assert len({text for split in texts for text in split}) == 8
    with pytest.raises(
        ValueError, match=r"holds 40 documents, but .* says 90 .*; valid are at most 40"
    ):
        dolma.write_corpus(tmp_path / "one", train=1, validation=88, test=1)
