"""params.yaml: what cannot work is refused at once, in one sentence; what works is not."""

import copy
import re
import subprocess
import sys

import pytest
import yaml
from conftest import REPOSITORY

from ffmerge import catalogue
from study import checks
from study.config import Params, load_params
from study.leaves import list_corpora, list_tasks

GONE = object()
VIT, GPT2, MARIAN, OLMO = "vit-glyphs", "gpt2-docs", "marian-cldr", "olmo-dialogues"
DINO = "dinov2"


@pytest.fixture(scope="module")
def whole():
    """The repository's params.yaml, without what models list of the recipes: all are theirs."""
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    for model in content["models"].values():
        for name in ("variants", "without", "tuned", "once"):
            model.pop(name, None)
    return content


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a params.yaml: its text, bytes, or (quicker) what reading it would give."""

    def load_content(content):
        if not isinstance(content, str | bytes):
            monkeypatch.setattr("study.config._read", lambda path: content)
            return load_params(tmp_path)
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / "params.yaml").write_bytes(content)
        return load_params(tmp_path)

    return load_content


@pytest.fixture
def refuse(load):
    """The one sentence that a params.yaml is refused with."""

    def load_in_vain(content):
        with pytest.raises(ValueError, match=r"^params\.yaml") as error:
            load(content)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1500
        return str(error.value)

    return load_in_vain


def profile(whole, model=VIT):
    """The content of a params.yaml with one model."""
    content = copy.deepcopy(whole)
    return content | {"run": [model], "models": {model: content["models"][model]}}


def change(content, path, value):
    """Set, or take out, what stands at a path such as "models/vit-glyphs/layers"."""
    *path, last = path.split("/") if isinstance(path, str) else path
    for key in path:
        content = content[key]
    if value is GONE:
        del content[last]
    else:
        content[last] = value


BOMB = "a: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty; valid are the sections run, seed, seeds, threads, recipes"),
        ("# only\n# comments\n", "the file is empty; valid are the sections run"),
        ("- run\n- seed\n", "the file is a list; valid are the sections run"),
        ("run", "the file is a str; valid are the sections run"),
        ("1: 2\n3: 4\n", "1 is not a parameter; valid are run, seed"),
        ('"": 2\n', "'' is not a parameter; valid are run, seed"),
        ('"a\\nb": 2\n', r"'a\nb' is not a parameter; valid are run, seed"),
        ("seed: 0\nrun: []\nseed: 1\n", "line 3 is not valid YAML: 'seed' stands there twice"),
        ("a: {b: 1, c: 2, b: 3}\n", "line 1 is not valid YAML: 'b' stands there twice"),
        ("[" * 10_000 + "]" * 10_000, "is nested too deeply"),
        ("{a: " * 10_000 + "1" + "}" * 10_000, "is nested too deeply"),
        ("\n".join(" " * i + "a:" for i in range(2000)), "is nested too deeply"),
        ("a: &a {b: *a}\n", "repeats itself"),
        (BOMB, "repeats itself, or others too often"),
        ("run: [a\n", "is not valid YAML: expected ',' or ']'"),
        ("run: []\n---\nseed: 0\n", "is not valid YAML: but found another document"),
        ("run: !!python/name:os.system\n", "could not determine a constructor for the tag"),
        ("seed: 2024-01-31\n", "'2024-01-31' is read as timestamp; valid are texts, numbers"),
        ("seed: 2024-13-31\n", "'2024-13-31' is read as timestamp; valid are texts, numbers"),
        ("seed: " + "9" * 5000, "is read as int; valid are texts, numbers"),
        ("seed: 0x" + "f" * 5000, "is read as int; valid are texts, numbers"),
        ("seed: 010\n", "010 is read in two ways; valid are digits, the first not 0"),
        ("seed: 1:30\n", "1:30 is read in two ways"),
        ("run: r\xfcn\n".encode("latin-1"), "byte 6 is not UTF-8; valid is a file saved as UTF-8"),
        ("run: []\n".encode("utf-16"), "is not UTF-8"),
        (b"run: [\0]\n", "is not valid YAML: unacceptable character #x0000"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(refuse, content, message):
    assert message in refuse(content)


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^no params\.yaml in .*; run inside the repo"):
        load_params(tmp_path)
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(ValueError, match=r"^params\.yaml cannot be read: Is a directory$"):
        load_params(tmp_path)


def test_aliases_merge_keys_line_ends_and_a_byte_order_mark_are_read(load, whole):
    text = yaml.safe_dump(profile(whole) | {"recipes": {}}, sort_keys=False)
    recipes = (
        "recipes:\n  base: {method: base, seeds: none}\n"
        "  a: &a {method: vanilla, ratio: third}\n  b: {<<: *a, ratio: half}\n"
    )
    text = text.replace("recipes: {}\n", recipes).replace("\n", "\r\n")
    params = load("\ufeff" + text)
    assert params.recipe("b").method == "vanilla" and params.recipe("b").ratio == "half"


def test_numbers_mean_what_they_mean_to_dvc(load, whole):
    text = yaml.safe_dump(profile(whole), sort_keys=False)
    text = text.replace("learning_rate: 0.0002", "learning_rate: 2e-4")
    assert load(text).models[VIT].finetune.learning_rate == 2e-4  # a text to YAML 1.1


NEEDED = [name for name, field in Params.model_fields.items() if field.is_required()]


@pytest.mark.parametrize("section", NEEDED)
def test_a_missing_section_is_named_with_what_is_valid(refuse, whole, section):
    content = profile(whole)
    del content[section]
    assert re.search(rf"yaml: {section} is missing; valid (is|are) \w+", refuse(content))


@pytest.mark.parametrize("section", ["qlora", "comparisons", "ablations"])
def test_the_sections_of_before_say_where_variants_are_now(refuse, whole, section):
    sentence = refuse(profile(whole) | {section: []})
    assert f"{section} is no parameter any more; variants are the entries of `recipes`" in sentence


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a/b",
            "..",
            "a b",
            "a,b",
            "a@b",
            'a"b',
            "a'b",
            "a$b",
            "a;b",
            "a\nb",
            "é",
            "",
            "-a",
            ".a",
        ),
        *("x" * 61, "123", "1.5", "1e5", "0x1F", "true", "yes", "null", "2024-01-31", "NA", "${x}"),
    ],
)
@pytest.mark.parametrize("kind", ["model", "recipe"])
def test_a_name_that_is_more_than_a_name_is_refused(refuse, whole, kind, name):
    content = profile(whole)
    if kind == "model":
        content["models"][name] = content["models"][VIT]
    else:
        content["recipes"][name] = {"method": "vanilla", "ratio": "third"}
    assert f"{kind}s names {name!r}; valid is a name of at most 60 letters" in refuse(content)


@pytest.mark.parametrize("name", ["x" * 60, "a.b", "A_b-1.2", "2layers", "1.2.3", "on-the-hub"])
def test_a_plain_name_is_fine(load, whole, name):
    content = profile(whole)
    content |= {"run": [name], "models": {name: content["models"][VIT]}}
    content["recipes"][name] = {"method": "vanilla", "ratio": "third"}
    assert name in load(content).variants_of(name)


def test_tasks_and_corpora_are_the_files_that_hold_one():
    reading = ["choices", "documents", "language"]
    assert list_tasks() == sorted(
        [*reading, "images", "neighbours", "summarisation", "translation"]
    )
    made = ["cldr", "dialogues", "docs", "glyphs", "pretraining", "quiz"]
    assert list_corpora() == sorted([*made, "addresses", "dolma", "tatoeba"])


M = f"models/{VIT}"
F = f"models/{VIT}/finetune"
A = f"models/{VIT}/base/architecture"
R = "recipes/permute-third"
PACKAGE = {"package": "x==1", "file": "x.gguf", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # names that are not there, and names that are there twice
        ("modles", {}, "modles is not a parameter; valid are run, seed, seeds, threads"),
        ("run", ["vit-glyph"], "run names 'vit-glyph', which is unknown; valid are vit-glyphs"),
        ("run", [], "run is []; valid is a list of names in `models`"),
        ("run", VIT, "run is 'vit-glyphs'; valid is a list of names"),
        ("run", [VIT, VIT], "run names 'vit-glyphs' twice; valid is each once"),
        ("seeds", [1, 2, 1], "seeds names 1 twice; valid is each once"),
        (f"{M}/variants", ["a"], "models.vit-glyphs.variants names 'a', which is unknown"),
        (f"{M}/variants", ["base", "base"], "variants names 'base' twice; valid is each once"),
        (f"{M}/without", ["a"], "models.vit-glyphs.without names 'a', which is unknown; valid are"),
        ("device", "tpu", "device is 'tpu'; valid are auto, cuda, mps, cpu"),
        (
            f"{M}/tuned",
            ["a"],
            "models.vit-glyphs.tuned names 'a', which is unknown; valid are base",
        ),
        (f"{M}/tuned", ["base-tuned"] * 2, "tuned names 'base-tuned' twice; valid is each once"),
        (f"{M}/once", ["a"], "models.vit-glyphs.once names 'a', which is unknown; valid are base"),
        (f"{M}/once", ["base-tuned"] * 2, "once names 'base-tuned' twice; valid is each once"),
        (f"{M}/task", "..", "models.vit-glyphs.task is '..'; valid are choices, documents, im"),
        (f"{M}/task", "data", "models.vit-glyphs.task is 'data'; valid are choices, documents, im"),
        (f"{M}/task", GONE, "models.vit-glyphs.task is missing; valid are choices, documents, im"),
        ("corpora/words", {}, "corpora names 'words'; valid are addresses, cldr"),
        (f"{M}/data/path", "data/glyph", "data.path is 'data/glyph'; valid are a hub id, data/gl"),
        (f"{M}/data/path", "data/../x", "data.path is 'data/../x'; valid are a hub id"),
        ("corpora/glyphs", GONE, "models.vit-glyphs.data.path is 'data/glyphs'; valid are a hub"),
        (f"{F}/stpes", 3, "models.vit-glyphs.finetune.stpes is not a parameter; valid are steps"),
        (f"{R}/method", "permutate", "recipes.permute-third.method is 'permutate'; valid are base"),
        # sizes
        ("seed", -1, "seed is -1; valid is a whole number from 0 to 4,294,967,295"),
        ("seed", True, "seed is True; valid is a whole number from 0"),
        ("seed", 2**32, "seed is 4294967296; valid is a whole number from 0"),
        ("seeds", [2**32], "seeds.0 is 4294967296; valid is a whole number from 0"),
        ("seeds", [True], "seeds.0 is True; valid is a whole number from 0"),
        ("threads", True, "threads is True; valid is a whole number from 1 to 1,024"),
        ("threads", 1025, "threads is 1025; valid is a whole number from 1 to 1,024"),
        ("corpora/glyphs/test", 0, "corpora.glyphs.test is 0; valid is a whole number from 1"),
        ("corpora/glyphs/test", -5, "corpora.glyphs.test is -5; valid is a whole number from 1"),
        ("corpora/glyphs/test", GONE, "corpora.glyphs.test is missing; valid is a whole number"),
        ("corpora/glyphs/dev", 5, "corpora.glyphs names 'dev'; valid are train, validation, test"),
        (f"{M}/features/tokens", GONE, "features.tokens is missing; valid is a whole number"),
        (f"{M}/features/tokens", 1, "features.tokens is 1; valid are 2 and more"),
        (f"{M}/data/splits", {"train": "train", "validation": "dev"}, "splits.test is missing"),
        (f"{F}/steps", 10**12, "finetune.steps is 1000000000000; valid is a whole number from 1"),
        (f"{F}/steps", "200", "finetune.steps is '200'; valid is a whole number from 1"),
        (f"{F}/batch_size", 10**6, "batch_size is 1000000; valid is a whole number from 1 to 65"),
        # training
        (f"{F}/learning_rate", float("inf"), "learning_rate is inf; valid is a finite number"),
        (f"{F}/learning_rate", float("nan"), "learning_rate is nan; valid is a finite number"),
        (f"{F}/learning_rate", True, "learning_rate is True; valid is a finite number above 0"),
        (f"{F}/warmup_steps", 201, "warmup_steps is 201, but steps is 200; valid are 0 to 199"),
        (f"{F}/warmup_steps", 200, "warmup_steps is 200, but steps is 200; valid are 0 to 199"),
        (f"{F}/decay_steps", 10, "warmup_steps is 10, but decay_steps is 10; valid are 0 to 9"),
        (f"{F}/evaluate_every", 201, "evaluate_every is 201, but steps is 200; valid are 1 to 200"),
        (f"{F}/minimum_learning_rate", 1, "is 1.0, but learning_rate is 0.0002; valid is a number"),
        (f"{F}/distillation", 1.5, "distillation is 1.5; valid is a number from 0 to 1"),
        (f"{F}/schedule", "step", "schedule is 'step'; valid are linear, cosine, inverse_sqrt"),
        (f"{F}/precision", "float8", "precision is 'float8'; valid are auto, float32, bfloat16"),
        (f"{M}/attention", "flash", "attention is 'flash'; valid are eager, sdpa"),
        (f"{M}/base/training/evaluate_every", 5001, "base.training.evaluate_every is 5001, but st"),
        (f"{F}/adapters", {"rank": 0, "alpha": 1}, "finetune.adapters.rank is 0; valid is a whole"),
        (f"{F}/adapters", {"rank": 8, "alpha": 1}, "adapters is given, but the task of vit-glyphs"),
        # layers and what goes
        (f"{M}/layers", {}, "layers is empty; valid are encoder, decoder or both"),
        (f"{M}/layers", {"encodr": 12}, "layers names 'encodr'; valid are encoder, decoder"),
        (f"{M}/removed", {"fifth": 1}, "removed names 'fifth'; valid are sixth, third, half, most"),
        (f"{M}/removed/most", 12, "removed.most is 12, but of 12 FF sublayers in 1 stack(s) at"),
        (f"{M}/dropped/third", 12, "dropped.third is 12, but of 12 layers in 1 stack(s) at most"),
        (f"{M}/removed/third", 7, "removed.half is 6, but third is 7; valid are sixth ≤ third"),
        (f"{M}/dropped/sixth", 5, "dropped.third is 4, but sixth is 5; valid are sixth ≤ third"),
        # the base
        (f"{M}/base/hub", "a/b", "base.architecture is given beside hub; valid is either hub, or"),
        (f"{M}/base/training", GONE, "base.training is missing, and so is hub; valid is either"),
        (f"{M}/base", {"package": "x==1"}, "base.file is missing; valid is either hub, or package"),
        (f"{M}/base", PACKAGE | {"file": "x.bin"}, "file is 'x.bin'; valid is the path of a file"),
        (f"{M}/base", PACKAGE | {"sha256": "ab"}, "sha256 is 'ab'; valid are 64 hexadecimal"),
        (f"{M}/base", PACKAGE | {"processor": {"size": 9}}, "base.processor is {'size': 9}; valid"),
        (f"{A}/num_hidden_layers", 11, "num_hidden_layers is 11, but layers.encoder is 12; valid"),
        (f"{A}/hiden_size", 64, "architecture.hiden_size is not a parameter; valid are"),
        (f"{A}/id2label", {}, "architecture.id2label is not a parameter; valid are"),
        (f"{A}/hidden_size", "64", "hidden_size is '64'; valid is a whole number"),
        (f"{A}/hidden_size", 0, "hidden_size is 0; valid is a whole number from 1"),
        (f"{A}/hidden_size", 65, "hidden_size is 65, but num_attention_heads is 4; valid are mult"),
        (f"{A}/initializer_range", float("nan"), "initializer_range is nan; valid is a finite"),
        (f"{A}/model_type", "deit", "architecture.model_type is 'deit'; valid are vit"),
        # recipes
        ("recipes/base", GONE, "recipes.base is missing; valid is {method: base, seeds: none}"),
        ("recipes/base/seeds", "all", "recipes.base is of method base with seeds all; valid is"),
        ("recipes/base/ratio", "third", "recipes.base.ratio is 'third', but method is 'base'"),
        (f"{R}/ratio", GONE, "recipes.permute-third.ratio is missing; valid are sixth, third"),
        (f"{R}/ratio", "fifth", "recipes.permute-third.ratio is 'fifth'; valid are sixth, third"),
        (f"{R}/anchor", "second", "anchor is 'second'; valid are first, middle, last"),
        ("recipes/vanilla-third/anchor", "last", "anchor is 'last', but method vanilla aligns"),
        ("recipes/base-tuned/anchor", "middle", "anchor is 'middle', but method base aligns"),
        (f"{R}/seeds", "some", "permute-third.seeds is 'some'; valid are all, first, none"),
        (f"{R}/int8", 1, "recipes.permute-third.int8 is 1; valid are true, false"),
        (f"{R}/window", "7-3", "window is '7-3'; valid are layers in ascending order, such as"),
        (f"{R}/window", "3-", "window is '3-'; valid are layers in ascending order"),
        (f"{R}/window", "0-99999999999", "window is '0-99999999999'; valid are layers in ascend"),
        (f"{R}/window", "8-12", "window is '8-12'; valid for vit-glyphs, which has 12 layers in a"),
        (f"{R}/window", "3-8", "window is '3-8'; valid for vit-glyphs, which has 12 layers in a"),
        (f"{R}/random_window", 0, "random_window is 0; valid is a whole number from 1"),
        (f"{R}/random_window", 8, "random_window is 8, but vit-glyphs has 8 window(s) of 5 layers"),
        ("recipes/random-1/window", "3-7", "window is '3-7' and random_window is 1; valid is one"),
        (f"{R}/finetune", {"stpes": 3}, "permute-third.finetune names 'stpes'; valid are steps"),
        (f"{R}/finetune", {"steps": -1}, "permute-third.finetune.steps is -1; valid is a whole"),
        (f"{R}/finetune", {"steps": 5}, "finetune in models.vit-glyphs: evaluate_every is 50, but"),
        (f"{R}/finetune", {"adapters": {"rank": 8}}, "finetune.adapters.alpha is missing; valid"),
    ],
)
def test_a_wrong_parameter_is_named_in_one_sentence(refuse, whole, path, value, message):
    content = profile(whole)
    change(content, path, value)
    assert message in refuse(content)


@pytest.mark.parametrize(
    ("model", "path", "value", "message"),
    [
        (MARIAN, "layers", {"encoder": 12, "decoder": 4}, "valid are stacks of one depth, as win"),
        (MARIAN, "layers", {"encoder": 12}, "layers is {'encoder': 12}; valid for task translat"),
        (MARIAN, "removed/third", 3, "removed.third is 3, but of 12 FF sublayers in 2 stack(s)"),
        (MARIAN, "base/architecture/decoder_layers", 4, "decoder_layers is 4, but layers.decoder"),
        (MARIAN, "base/architecture/model_type", "gpt2", "model_type is 'gpt2'; valid are"),
        (GPT2, "base/architecture/n_layer", 11, "n_layer is 11, but layers.decoder is 12; valid"),
        (GPT2, "base/architecture/n_layer", GONE, ""),  # 12 is what transformers takes for it
        (GPT2, "base/architecture/model_type", "gpt3", "model_type is 'gpt3'; valid are gpt"),
        (GPT2, "base/architecture/model_type", GONE, "model_type is missing; valid are gpt2"),
        (GPT2, "base/architecture/vocab_size", 9, "vocab_size is not a parameter; valid are"),
        (GPT2, "base/architecture/initializer_range", 1, "valid is a number with a decimal point"),
        (GPT2, "base/processor", GONE, "base.processor.size is missing; valid is a whole number"),
        (GPT2, "base/processor/context", 256, "context is 256, but the architecture's n_positions"),
        (OLMO, "base/processor/context", 512, ""),  # rotations go on beyond 256
        (OLMO, "task", "summarisation", "task is 'summarisation', which trains no base model"),
        (OLMO, "downstream/task", "images", "downstream.task is 'images', but task is 'documents'"),
        (OLMO, "finetune/distillation", 0.5, "distillation is 0.5, but adapters are given; valid"),
        (OLMO, "finetune/adapters/dropout", 1, "dropout is 1; valid is a number from 0 to below"),
    ],
)
def test_what_is_wrong_with_a_kind_of_model_is_named(
    load, refuse, whole, model, path, value, message
):
    content = profile(whole, model)
    change(content["models"][model], path, value)
    if message:
        assert message in refuse(content)
    else:
        assert load(content).run == [model]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 2**32 - 1),
        ("seeds", [5]),
        ("threads", 1024),
        (f"{M}/attention", "sdpa"),
        (f"{M}/data/path", "ylecun/mnist"),
        (f"{M}/validation_examples", 10**6),  # all that there are
        (f"{M}/variants", []),
        (f"{M}/variants", ["permute-third"]),
        (f"{M}/tuned", []),
        (f"{M}/tuned", ["permute-third"]),
        (f"{M}/removed", {}),
        (f"{M}/removed", {"most": 11, "third": 4}),
        (f"{M}/removed/third", 6),  # as much as half
        (f"{A}/num_hidden_layers", GONE),
        (f"{A}/model_type", "vit"),
        (f"{F}/learning_rate", 1),
        (f"{F}/warmup_steps", 199),
        (f"{F}/decay_steps", 500),  # ends on the way down
        (f"{F}/evaluate_every", 200),
        (f"{F}/precision", "auto"),
        (f"{F}/distillation", 1),
        (f"{R}/window", "3-7"),
        (f"{R}/window", "3,4,5,6,7"),
        (f"{R}/window", "1,2,3,4,5"),
        (f"{R}/random_window", 7),
        (f"{R}/finetune", {"steps": 50, "adapters": None}),
        ("recipes/drop-sixth/window", "3-4"),
        ("recipes/drop-sixth/random_window", 10),
        ("recipes/base-long", {"method": "base", "finetune": {"steps": 400}}),
        ("recipes/base-tuned", GONE),
        ("recipes", {"base": {"method": "base", "seeds": "none"}}),
    ],
)
def test_what_works_is_not_refused(load, whole, path, value):
    content = profile(whole)
    change(content, path, value)
    assert load(content).variants_of(VIT)[0] == "base"


def test_a_listed_variant_whose_ratio_a_model_lacks_is_named(refuse, whole):
    content = profile(whole)
    content["models"][VIT] |= {"variants": ["permute-third"], "removed": {"half": 6}}
    assert "whose ratio is 'third', but models.vit-glyphs.removed has no third" in refuse(content)


def test_without_leaves_variants_out_unless_a_model_lists_its_own(load, whole):
    content = profile(whole)
    every = load(content).variants_of(VIT)
    content["models"][VIT]["without"] = ["permute-third", "wanda"]
    rest = load(content).variants_of(VIT)
    assert [v for v in every if v not in rest] == ["permute-third", "wanda"]
    content["models"][VIT]["variants"] = ["permute-third", "random-1"]
    assert load(content).variants_of(VIT) == ["base", "permute-third", "random-1"]


def test_tuned_says_which_variants_of_a_model_are_tuned(load, whole):
    content = profile(whole)
    content["models"][VIT]["tuned"] = ["permute-third", "random-1", "wanda"]
    params = load(content)
    assert params.compared(VIT) == ["permute-third"] and params.seeds_of(VIT, "base-tuned") == []
    assert params.seeds_of(VIT, "random-1") == params.seeds[:1]
    assert params.seeds_of(VIT, "wanda") == []  # its recipe tunes it nowhere
    assert "base-tuned" in params.variants_of(VIT)  # and is evaluated as it is


def test_once_says_which_variants_of_a_model_are_tuned_with_one_seed(load, whole):
    content = profile(whole)
    content["models"][VIT]["once"] = ["permute-third", "wanda"]
    params = load(content)
    assert params.seeds_of(VIT, "permute-third") == params.seeds[:1]
    assert params.seeds_of(VIT, "permute-half") == params.seeds
    assert params.seeds_of(VIT, "wanda") == []  # its recipe tunes it nowhere
    assert "permute-third" not in params.compared(VIT)


def test_without_finetune_a_model_is_not_tuned(load, refuse, whole):
    content = profile(whole)
    entry = content["models"][VIT]
    del entry["finetune"]
    params = load(content)
    variants = params.variants_of(VIT)
    assert params.compared(VIT) == [] and params.seeds_of(VIT, "permute-third") == []
    gone = {"base-tuned", "permute-distilled", "scratch-third"}  # what tuning alone makes
    assert "permute-third" in variants and not gone & set(variants)
    training = params.training(VIT, "permute-third")  # nobody's: it says nothing
    assert training.adapters is training.processes is None
    entry["tuned"] = ["permute-third"]
    message = "models.vit-glyphs.tuned is ['permute-third'], but finetune is missing; valid is its"
    assert message in refuse(content)


SIZED = f"models/{DINO}/base/processor"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"models/{DINO}/data/bank", GONE, "dinov2.data.bank is missing; valid is a whole number"),
        (f"models/{DINO}/data/streaming", True, "data.streaming is true; valid for task neighbo"),
        (f"models/{DINO}/data/labels", [""], "data.labels.0 is ''; valid is a text that is not"),
        (f"models/{DINO}/base/file", "x.bin", "ends in .gguf or, of a DINOv2, .onnx"),
        (SIZED, GONE, "dinov2.base.processor.size is missing; valid are pixels of a side"),
        (SIZED, {"context": 70}, "dinov2.base.processor.size is missing; valid are pixels"),
        (SIZED, {"size": 1}, "is {'size': 1}; valid for a model that is not trained here is a con"),
        (SIZED, {"size": 70, "context": 70}, "valid for a model that is not trained here is a con"),
        (f"models/{DINO}/task", "language", "dinov2.data.bank is 400, but the task is language"),
    ],
)
def test_what_neighbours_need_is_told(refuse, whole, path, value, message):
    content = profile(whole, DINO)
    change(content, path, value)
    assert message in refuse(content)


def test_a_bank_and_a_size_of_images_are_for_neighbours_alone(refuse, whole):
    content = profile(whole)
    content["models"][VIT]["data"]["bank"] = 10
    assert "vit-glyphs.data.bank is 10, but the task is images; valid is task" in refuse(content)
    content = profile(whole, "smollm2")
    content["models"]["smollm2"]["base"]["processor"] = {"size": 70}
    assert "base.processor is {'size': 70}; valid for task language is a context" in refuse(content)
    content = profile(whole)
    content["models"][VIT]["task"] = "neighbours"
    content["models"][VIT]["data"]["bank"] = 10
    assert "task is 'neighbours', which trains no base model; valid is another" in refuse(content)


def test_a_model_may_have_seeds_of_its_own(load, refuse, whole):
    content = profile(whole)
    content["models"][VIT]["seeds"] = [7, 3]
    params = load(content)
    assert params.seeds_of(VIT, "permute-third") == [7, 3]
    assert params.seeds_of(VIT, "random-1") == [7] and params.seeds_of(VIT, "base") == []
    content["models"][VIT]["seeds"] = [7, 7]
    assert f"models.{VIT}.seeds names 7 twice" in refuse(content)


def test_every_leaf_of_another_kind_is_named_with_its_place(refuse, whole):
    content = profile(whole, OLMO)

    def list_leaves(node, *path):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from list_leaves(value, *path, key)
            else:
                yield (*path, key)

    for path in list_leaves({key: content[key] for key in ("seed", "threads", "models")}):
        wrong = copy.deepcopy(content)
        change(wrong, path, {"not": "this"})
        place = re.escape(".".join(path))
        assert re.search(rf"^params\.yaml: {place} is .+; valid (is|are) \w", refuse(wrong)), path


def test_a_misspelt_name_is_told_before_the_missing_one(refuse, whole):
    content = profile(whole)
    content["models"][VIT]["finetune"]["step"] = content["models"][VIT]["finetune"].pop("steps")
    assert "finetune.step is not a parameter; valid are steps" in refuse(content)


def test_a_window_concerns_only_the_models_that_run_it(load, refuse, whole):
    content = copy.deepcopy(whole) | {"run": [VIT, OLMO]}
    content["recipes"]["permute-half"]["window"] = "2-8"
    assert load(content).recipe("permute-half").window == "2-8"
    content["run"].append(MARIAN)
    assert "window is '2-8'; valid for marian-cldr, which has 6 layers" in refuse(content)


@pytest.mark.parametrize(
    ("written", "read"), [("3,4,5", "3-5"), ("3, 5", "3,5"), ("3-4", "3-4"), (3, "3"), ("3-3", "3")]
)
def test_a_window_is_written_as_plans_are(written, read, whole):
    recipe = {"method": "drop", "ratio": "third", "window": written}
    params = profile(whole, OLMO)
    params["models"][OLMO]["variants"] = []  # which leave it out
    params["recipes"]["own"] = recipe
    assert Params.model_validate(params).recipe("own").window == read


def test_loading_imports_nothing_that_computes():
    code = (
        "import sys; from study.config import load_params; load_params(); "
        "print({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_variants_own_steps_override_the_models(load, whole):
    content = profile(whole)
    before = load(content)
    content["recipes"]["permute-third"]["finetune"] = {"steps": 99}
    after = load(content)
    assert after.training(VIT, "permute-third").steps == 99
    assert after.training(VIT, "vanilla-third") == before.training(VIT, "vanilla-third")


def test_training_anew_takes_the_steps_of_the_base_and_of_recovery(load, refuse, whole):
    params = load(whole)
    entry, training = params.models[VIT], params.training(VIT, "scratch-third")
    assert training.steps == entry.base.training.steps + entry.finetune.steps == 5200
    for name in ("learning_rate", "schedule", "warmup_steps", "weight_decay", "batch_size"):
        assert getattr(training, name) == getattr(entry.base.training, name)
    assert training.precision == entry.finetune.precision  # as all that it is compared with
    assert training.evaluate_every == 400  # its own
    for model in ("smollm2", OLMO, "vit-base"):  # others' bases; tuned for another task
        assert "scratch-third" not in params.variants_of(model)
    whole = copy.deepcopy(whole)
    whole["models"][OLMO]["variants"] = ["scratch-third"]
    message = refuse(whole)
    assert "recipes.scratch-third.anew is true, but olmo-dialogues is not trained here" in message


def test_the_papers_own_model_has_its_recipe(repository):
    params = load_params(repository)
    paper = params.models["vit-base"]
    assert paper.base.hub == "google/vit-base-patch16-224"
    assert (paper.finetune.steps, paper.finetune.learning_rate) == (50_000, 5e-5)


@pytest.mark.parametrize("kind", ["model", "recipe"])
def test_an_unknown_name_is_refused_with_the_valid_ones(repository, kind):
    with pytest.raises(ValueError, match=r"'nonsense' is unknown; valid are (vit-glyphs|base, )"):
        getattr(load_params(repository), kind)("nonsense")


METHOD = (REPOSITORY / "lib/ffmerge/methods/vanilla.py").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("NEEDS = ()", 'NEEDS = ("permutations")', "NEEDS is 'permutations'; valid is a tuple"),
        ('"FF sublayers"', '"heads"', "REMOVES is 'heads'; valid are FF sublayers, layers"),
        ('"FF sublayers"', "UNIT", "does not say all that a method's does"),
        ('"shares"', '"magic"', "FAMILY is 'magic'; valid are shares, removes"),
        (', "marker": "s"', "", "valid is a mapping of label, color, marker"),
        ("REFERENCE = ", "REFERENZ = ", "does not say all that a method's does"),
        ("def make", "def make:", "does not say all that a method's does"),
    ],
)
def test_a_mistake_in_a_methods_file_is_one_sentence(old, new, message, tmp_path, monkeypatch):
    assert old in METHOD
    (tmp_path / "odd.py").write_text(METHOD.replace(old, new, 1))
    monkeypatch.setattr(catalogue, "_FOLDER", tmp_path)
    catalogue.describe_method.cache_clear()
    with pytest.raises(ValueError, match=r"^lib/ffmerge/methods/odd.py") as error:
        checks._check_method("odd")
    assert message in str(error.value) and "\n" not in str(error.value)
    catalogue.describe_method.cache_clear()
