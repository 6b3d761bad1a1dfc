"""Decoder, encoder-decoder and QLoRA: the same notebooks, on tiny models and texts of our own."""

import copy

import pandas as pd
import pytest
import yaml
from conftest import undraw, write_tiny_profile
from datasets import Dataset
from safetensors.torch import load_file
from test_pipeline import run_here, stages

from study.config import find_root, load_params
from study.places import PUBLISH

SENTENCE = "the model reads {} tokens and writes {} more, then it stops."
SHORT = {
    "steps": 4,
    "batch_size": 4,
    "evaluate_every": 2,
    "precision": "float32",
    "warmup_steps": 0,
}
EXAMPLES = {"validation_examples": 4, "batch_size": 4}
SMALL = {
    "gpt2-docs": {"n_positions": 32, "n_embd": 16, "n_layer": 6, "n_head": 2},
    "marian-cldr": {
        "d_model": 16,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 32,
    },
    "olmo-dialogues": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "max_position_embeddings": 96,
    },
}


def write_texts(folder, rows):
    folder.mkdir()
    for split in ("train", "validation", "test"):
        Dataset.from_list(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """Every notebook of three tiny text models, from nothing to the figures."""
    import os

    folder = tmp_path_factory.mktemp("text")
    sentences = [SENTENCE.format(i, i % 7) for i in range(40)]
    notes = ["who: Anna, Omar\nwhat: play chess", ""]
    data = {
        "gpt2-docs": write_texts(folder / "docs", [{"text": s} for s in sentences]),
        "marian-cldr": write_texts(
            folder / "pairs", [{"source": s, "target": s.replace("e", "a")} for s in sentences]
        ),
        "olmo-dialogues": write_texts(
            folder / "pretraining",
            [{"text": s + notes[i % 2], "notes": notes[i % 2]} for i, s in enumerate(sentences)],
        ),
    }
    slots = {"who": "Anna and Omar"}
    row = {"dialogue": "Anna: Hi!\nOmar: Hello.", "summary": "Anna and Omar meet.", "slots": slots}
    dialogues = write_texts(folder / "dialogues", [row] * 8)

    root = write_tiny_profile(folder / "root", seeds=[0])
    content = yaml.safe_load((root / "params.yaml").read_text())
    models = yaml.safe_load((find_root() / "params.yaml").read_text())["models"]
    content["models"] = {name: models[name] for name in data}
    content["run"] = list(data)
    for name, model in content["models"].items():
        layers, removed, dropped = {"decoder": 6}, (2, 3, 5), (1, 2)
        if "marian" in name:
            layers, removed, dropped = {"encoder": 4, "decoder": 4}, (2, 4, 6), (2, 4)
        context = SMALL[name].get("n_positions") or SMALL[name]["max_position_embeddings"]
        model["base"]["architecture"] |= SMALL[name]
        model["base"]["training"] |= SHORT
        model["base"]["processor"] = {"size": 300, "context": context}
        model["finetune"] |= SHORT
        model |= {
            "data": {"path": data[name]},
            "layers": layers,
            "features": {"tokens": 200, "batch_size": 4},
            "validation_examples": 8,
            "batch_size": 8,
            "test_examples": 8,
            "removed": dict(zip(("third", "half", "most"), removed, strict=True)),
            "dropped": dict(zip(("sixth", "third"), dropped, strict=True)),
            "variants": ["permute-third"],
            "tuned": None,
        }
    again = copy.deepcopy(content["models"]["gpt2-docs"])  # tuned and tested on another task
    again["downstream"] = {"task": "documents", "data": again["data"]} | EXAMPLES
    content["models"]["gpt2-documents"] = again
    content["run"].append("gpt2-documents")
    quiz = [
        {"question": "the model", "choices": ["reads", "stops"], "answer": i % 2} for i in (0, 1)
    ]
    quiz = {"task": "choices", "data": {"path": write_texts(folder / "quiz", quiz * 4)}} | EXAMPLES
    content["models"]["gpt2-docs"]["readings"] = {"quiz": quiz | {"test_examples": 6}}
    tuned = ["base-tuned", "permute-third"]
    content["models"]["olmo-dialogues"] |= {"variants": [*tuned, "vanilla-third"], "tuned": tuned}
    olmo = content["models"]["olmo-dialogues"]["downstream"]
    olmo |= {"data": {"path": dialogues}} | EXAMPLES
    for entry in content["models"].values():
        for listed in ("without", "once"):  # of recipes that are not here
            entry.pop(listed, None)
    (root / "params.yaml").write_text(yaml.safe_dump(content))

    before = os.getcwd()
    os.chdir(root)
    os.environ[PUBLISH] = "1"
    find_root.cache_clear()
    two_kinds = ["marian-cldr", "olmo-dialogues"]  # two stacks; gated, without biases
    with pytest.MonkeyPatch.context() as monkeypatch:
        undraw(monkeypatch)
        for notebook, parameters in stages(load_params(root), *content["run"], beyond=two_kinds):
            if notebook != "0_tour" or parameters["model"] in ("gpt2-docs", "marian-cldr"):
                run_here(notebook, parameters)
    os.chdir(before)
    del os.environ[PUBLISH]
    find_root.cache_clear()
    return root


@pytest.fixture(scope="module")
def results(text_run):
    return pd.read_csv(text_run / "results" / "results.csv")


def test_every_kind_of_model_takes_the_same_notebooks(results):
    states = results.groupby("model").apply(
        lambda r: set(zip(r.variant, r.phase, r.precision, strict=True)), include_groups=False
    )
    whole = {("base", "base", "float32"), ("permute-third", "merged", "float32")}
    states_of = [("base", "base"), ("permute-third", "tuned")]
    low = {(*state, precision) for state in states_of for precision in ("int8", "nf4")}
    tuned = {("permute-third", "tuned", "float32")}
    assert states["gpt2-docs"] == states["marian-cldr"] == whole | low | tuned
    assert states["gpt2-documents"] == states["gpt2-docs"]
    nf4 = {("base-tuned", "tuned", "nf4"), ("permute-third", "tuned", "nf4")}
    own = {("base", "first words", "float32"), ("vanilla-third", "merged", "float32")}
    assert states["olmo-dialogues"] == whole | nf4 | own


def test_what_is_not_tuned_is_read_in_its_bases_task_and_its_answers_are_kept(text_run, results):
    mine = results[(results.model == "olmo-dialogues") & (results.variant == "vanilla-third")]
    assert set(mine.metric) == {"perplexity", "perplexity (window means)"}
    answers = text_run / "models/olmo-dialogues/answers/vanilla-third/merged/loss.txt"
    assert len(answers.read_text().splitlines()) == mine.n_examples.iloc[0]


def test_each_task_reports_its_own_metrics(results):
    metrics = results[results.phase == "tuned"].groupby("model").metric.apply(set)
    own = {"perplexity", "perplexity (window means)"}
    assert metrics["gpt2-docs"] == own | {"accuracy (choices) on quiz"}
    assert metrics["marian-cldr"] == {"BLEU", "chrF"}
    rouge = {"ROUGE-1", "ROUGE-2", "ROUGE-Lsum"}
    assert metrics["olmo-dialogues"] == rouge | {"who right"}
    assert results[results.metric == "BLEU"].signature.str.contains("tok:13a").all()
    assert results[results.metric == "perplexity"].signature.isna().all()


def test_readings_are_scored_for_every_state_of_a_variant(results):
    read = results[results.metric == "accuracy (choices) on quiz"]
    states = [("base", "base"), ("permute-third", "merged"), ("permute-third", "tuned")]
    assert list(zip(read.variant, read.phase, strict=True)) == states
    assert (read.n_examples == 6).all() and (read.value == 50).all()  # one ending is the likelier


def test_a_translators_windows_are_in_sync_and_its_texts_are_kept(text_run, results):
    row = results[(results.model == "marian-cldr") & (results.variant == "permute-third")].iloc[0]
    pairs = load_file(text_run / "models/marian-cldr/permutations.safetensors")
    assert {name.split(".")[0] for name in pairs} == {"encoder", "decoder"}
    assert row.removed == 2 and row.layers in ("0-1", "1-2", "2-3")
    answers = text_run / "models/marian-cldr/answers/permute-third/tuned-0"
    lines = {file.stem: file.read_text().splitlines() for file in answers.iterdir()}
    assert set(lines) == {"source", "reference", "translation"}
    assert {len(texts) for texts in lines.values()} == {8}


def test_adapters_are_all_that_qlora_keeps_of_a_variant(text_run, results):
    folder = text_run / "models/olmo-dialogues/tuned/permute-third/0"
    weights = load_file(folder / "adapter_model.safetensors")
    assert weights and all("lora_" in name for name in weights)
    ups = [name for name in weights if "up_proj.lora_A" in name]
    assert len(ups) == 6  # one adapter for each layer, also in the tied window
    mine = results[(results.model == "olmo-dialogues") & (results.metric == "ROUGE-1")]
    size = mine.set_index(["variant", "phase"]).bytes
    assert size["permute-third", "tuned"] < size["base-tuned", "tuned"] < size["base", "base"]


def test_every_table_and_figure_is_on_one_page(text_run):
    page = (text_run / "figures" / "README.md").read_text()
    files = {file.name for file in (text_run / "figures").iterdir()}
    numbers = {1, 2, 3, 4, 5, 7, 8, 9, 10, 11}  # 6 is the vision model's
    assert {f"table{n}.md" for n in numbers} <= files and "claims.md" in files
    for file in files:
        if file.endswith(".png"):
            assert f'src="{file}"' in page
    for number in numbers:
        assert f"Table {number} ·" in page
