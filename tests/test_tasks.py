"""Text tasks: what is counted, what is scored, what is copied."""

import math

import pytest
import torch
from datasets import Dataset
from families import make_gpt2
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutput

from study.copying import read_notes, score_notes
from study.records import write_answers
from study.sections import Base, Data
from study.tasks import documents, language, summarisation, translation
from study.tasks.text import IGNORED, load_split, pad, slide_windows

TEXTS = [
    f"the {word} sees the {other}" for word in "cat dog owl".split() for other in "fox hen".split()
]
TRAINING = {
    "steps": 1,
    "batch_size": 1,
    "learning_rate": 1e-3,
    "schedule": "linear",
    "evaluate_every": 1,
}


def make_base(**architecture):
    processor = {"size": 300, "context": 8}
    return Base(architecture=architecture, processor=processor, training=TRAINING)


def write(folder, rows):
    folder.mkdir()
    for split in ("train", "validation", "test"):
        Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    files = {split: split for split in ("train", "validation", "test")}
    return Data(path=str(folder), splits=files)


@pytest.fixture
def modelling(tmp_path):
    base = make_base(model_type="gpt2", n_embd=16, n_layer=2, n_head=2, n_positions=8)
    data = write(tmp_path / "docs", [{"text": text} for text in TEXTS])
    return language.Task(base, data, tmp_path / "none")


class Uniform(nn.Module):
    """Gives every token of the vocabulary the same probability."""

    device = torch.device("cpu")

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, input_ids, attention_mask):
        return CausalLMOutput(logits=torch.zeros(*input_ids.shape, self.vocabulary))


@pytest.mark.parametrize("n", [3, 8, 9, 12, 13, 30])
def test_sliding_windows_predict_every_token_but_the_first_once(n):
    tokens = list(range(100, 100 + n))
    windows = list(slide_windows(tokens, context=8))
    predicted = [label for window in windows for label in window["labels"][1:]]
    assert [label for label in predicted if label != IGNORED] == tokens[1:]
    for window in windows[1:]:  # at least half a context goes before
        assert window["labels"][:4] == [IGNORED] * 4
    assert max(len(window["input_ids"]) for window in windows) <= 8


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity(modelling):
    size = len(modelling.tokenizer)
    batch = modelling.collate(modelling.dataset("test"))
    score = modelling.evaluate(Uniform(size), [batch])
    assert score.by_name["perplexity"] == pytest.approx(size)
    assert score.by_name["perplexity (window means)"] == pytest.approx(size)


def test_perplexity_weighs_tokens_and_the_releases_weighs_windows(modelling):
    torch.manual_seed(0)
    model = modelling.new_model().eval()
    windows = modelling.dataset("test")
    score = modelling.evaluate(
        model, [modelling.collate(windows[:2]), modelling.collate(windows[2:])]
    )
    losses, means = [], []
    for window in windows:
        ids, labels = torch.tensor([window["input_ids"]]), torch.tensor(window["labels"][1:])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits, labels, reduction="none")[labels != IGNORED]
        losses += loss.tolist()
        means.append(float(loss.mean()))
    by_token, by_window = (math.exp(sum(x) / len(x)) for x in (losses, means))
    assert score.by_name["perplexity"] == pytest.approx(by_token, rel=1e-4)
    assert score.by_name["perplexity (window means)"] == pytest.approx(by_window, rel=1e-4)
    assert abs(by_token - by_window) > 1e-6 * by_token


def test_a_cpu_scores_a_batch_in_parts_that_its_caches_hold(modelling, monkeypatch):
    model, batch = Uniform(300), modelling.collate(modelling.dataset("test"))
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    whole = modelling.evaluate(model, [batch])
    n_windows, context = shapes.pop()
    monkeypatch.setattr(language, "PART", 2 * context + 1)
    assert modelling.evaluate(model, [batch]) == whole and n_windows > 2
    assert {n for n, _ in shapes[:-1]} == {2} and sum(n for n, _ in shapes) == n_windows


def test_training_blocks_are_full_and_texts_are_separated(modelling):
    blocks = modelling.dataset("train")
    assert {len(block["input_ids"]) for block in blocks} == {modelling.context}
    end = modelling.tokenizer.eos_token_id
    assert any(end in block["input_ids"] for block in blocks)
    apart = modelling.data.model_copy(update={"separator": " | "})
    other = language.Task(modelling.base, apart, modelling.folder)
    text = other.tokenizer.decode(list(other._join(TEXTS[:2])))
    assert text == f"{TEXTS[0]} | {TEXTS[1]} | "


def test_documents_are_read_whole_each_by_itself(modelling):
    task = documents.Task(modelling.base, modelling.data, modelling.folder)
    end = task.tokenizer.eos_token_id
    for split in ("train", "test"):
        rows = list(task.dataset(split))
        texts = load_split(modelling.data, split, None, 0)["text"]
        assert len(rows) == len(texts)
        for row, text in zip(rows, texts, strict=True):
            whole = [*task.tokenizer(text, verbose=False)["input_ids"], end]
            assert row["input_ids"] == whole[: task.context] and row["length"] <= task.context
    assert len(task.dataset("test", limit=1)) == 1
    size = len(task.tokenizer)
    score = task.evaluate(Uniform(size), [task.collate(rows)])  # padding is not counted
    assert score.by_name["perplexity"] == pytest.approx(size)
    packed = [block["input_ids"] for block in modelling.dataset("train")]
    assert packed != [row["input_ids"] for row in task.dataset("train")]  # nor one's cache read


def test_a_saved_tokenizer_reads_as_the_trained_one(modelling, tmp_path):
    modelling.save_processor(tmp_path / "base")
    again = language.Task(modelling.base, modelling.data, tmp_path / "base").tokenizer
    assert again(TEXTS)["input_ids"] == modelling.tokenizer(TEXTS)["input_ids"]
    assert again.model_max_length == 8 and again.decode(again(TEXTS[0])["input_ids"]) == TEXTS[0]


@pytest.fixture
def translating(tmp_path):
    pairs = [{"source": text, "target": text.upper()} for text in TEXTS]
    base = Base(
        architecture={"model_type": "marian", "d_model": 16},
        processor={"size": 300, "context": 32},
        training=TRAINING,
    )
    return translation.Task(base, write(tmp_path / "pairs", pairs), tmp_path / "none")


class Translator:
    """Answers with the reference, or with another example's."""

    device = torch.device("cpu")

    def __init__(self, task, shift):
        self.task, self.shift, self.done = task, shift, 0

    def eval(self):
        return self

    def generate(self, input_ids, attention_mask):
        targets = [TEXTS[(self.done + i + self.shift) % 6].upper() for i in range(len(input_ids))]
        self.done += len(input_ids)
        return pad(self.task.tokenizer(text_target=targets)["input_ids"], 0)


def test_bleu_is_100_for_the_references_and_signed(translating, tmp_path):
    rows = list(translating.dataset("test"))
    batches = [translating.collate(rows[:4]), translating.collate(rows[4:])]
    right = translating.evaluate(Translator(translating, 0), batches)
    assert right.by_name == pytest.approx({"BLEU": 100, "chrF": 100}) and right.n_examples == 6
    assert "tok:13a" in right.signatures["BLEU"] and "version" in right.signatures["chrF"]
    wrong = translating.evaluate(Translator(translating, 1), batches)
    assert wrong.by_name["BLEU"] < 60
    write_answers(wrong, tmp_path / "answers")
    lines = (tmp_path / "answers" / "translation.txt").read_text().splitlines()
    assert lines == wrong.answers["translation"] != right.answers["translation"]


def test_padding_of_sources_and_targets_is_marked(translating):
    rows = [{"source": "the cat", "target": "THE"}, {"source": "the", "target": "THE CAT SEES"}]
    batch = translating.collate(rows)
    assert batch["attention_mask"].sum(1).tolist() == [
        len(translating.tokenizer(row["source"])["input_ids"]) for row in rows
    ]
    assert (batch["labels"] == IGNORED).sum() > 0
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    assert batch.examples == rows


@pytest.fixture
def summarising(modelling, tmp_path):
    modelling.save_processor(tmp_path / "base")
    slots = {"who": "Anna and Omar", "where": "in Guinea"}
    rows = [
        {
            "dialogue": "Anna: Hi!\nOmar: Hello, let us meet in Guinea.",
            "summary": "Anna and Omar meet in Guinea.",
            "slots": slots,
        }
    ]
    return summarisation.Task(modelling.base, write(tmp_path / "d", rows * 2), tmp_path / "base")


def test_the_loss_counts_the_summary_only(summarising):
    rows = list(summarising.dataset("test"))
    batch = summarising.collate(rows)
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    text = summarising.tokenizer.decode(ids[labels != IGNORED], skip_special_tokens=True)
    assert text == " " + rows[0]["summary"]
    prompt = summarising.tokenizer.decode(ids[labels == IGNORED])
    assert prompt.startswith("Summarize the following:\nAnna") and prompt.endswith("Summary:")


def test_rouge_and_slots_of_right_and_wrong_summaries(summarising):
    rows = list(summarising.dataset("test"))
    right = summarising.score([row["summary"] for row in rows], rows).by_name
    assert right == pytest.approx(dict.fromkeys(right, 100.0)) and len(right) == 5
    near = summarising.score(["Anna and Omar meet in Guinea-Bissau."] * 2, rows).by_name
    assert near["who right"] == 100 and near["where right"] == 0 and near["ROUGE-1"] > 80
    first = summarising.score_first_words([summarising.collate(rows)], 3).by_name
    assert first["ROUGE-1"] < near["ROUGE-1"] and first["where right"] == 0


def test_a_summary_does_not_depend_on_the_others_of_its_batch(modelling, tmp_path):
    modelling.save_processor(tmp_path / "base")
    dialogues = ["Anna: Hi!", "Omar: Hello, let us meet in Guinea.", "Anna: " + "Yes. " * 20]
    rows = [{"dialogue": dialogue, "summary": "They meet."} for dialogue in dialogues]
    task = summarisation.Task(modelling.base, write(tmp_path / "d", rows), tmp_path / "base")
    torch.manual_seed(0)
    sizes = dict(n_embd=16, n_layer=2, n_head=2, n_positions=512)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(task.tokenizer), **sizes)).double().eval()
    together = task.evaluate(model, [task.collate(rows)])
    assert task.evaluate(model, [task.collate([row]) for row in rows]) == together
    written = [len(task.tokenizer(text)["input_ids"]) for text in together.answers["summary"]]
    assert written[0] < written[2]  # each at most half as long as its prompt, and 16 tokens


def test_sentences_are_split_by_a_fixed_rule():
    text = "Anna comes. Omar, too! At 7:30 p.m. they eat."
    assert summarisation.split_sentences(text) == "Anna comes.\nOmar, too!\nAt 7:30 p.m. they eat."


def test_notes_are_right_only_where_they_are_copied_exactly(tmp_path):
    assert read_notes("who: A, B\nwhat: x\nnonsense\nwho: C") == {"who": "A, B", "what": "x"}
    rows = [{"text": "say\nNotes:\nwho: Anna", "notes": "who: Anna"}, {"text": "x", "notes": ""}]
    base = make_base(model_type="gpt2", n_embd=16, n_layer=2, n_head=2, n_positions=8)
    task = language.Task(base, write(tmp_path / "d", rows), tmp_path / "none")
    torch.manual_seed(0)
    score = score_notes(make_gpt2().eval(), _Fixed(task))
    assert score.by_name == {"notes: who": 0.0} and score.n_examples == 1
    plain = language.Task(base, write(tmp_path / "p", [{"text": "x"}]), tmp_path / "none")
    assert score_notes(make_gpt2(), plain) is None


class _Fixed:
    """A task whose tokens all fit the tiny model's vocabulary of 40."""

    def __init__(self, task):
        self.data, self.tokenizer = task.data, self
        self.eos_token_id = 1

    def __call__(self, text):
        return {"input_ids": [2 + ord(c) % 38 for c in text][-12:]}

    def batch_decode(self, ids, skip_special_tokens):
        return ["".join(chr(65 + int(i)) for i in row) for row in ids]
