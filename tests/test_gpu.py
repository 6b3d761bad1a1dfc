"""On a GPU it is as on a CPU; left out of `make test`, run where there is one: pytest -m gpu."""

import copy
import time

import pandas as pd
import pytest
import torch
from families import MAKERS, list_cases, logits, make_batch, make_evidence, make_model
from test_finetuning import setting  # noqa: F401 (a fixture)
from test_pipeline import run_all
from test_quantization import ADAPTERS, olmo  # noqa: F401 (a fixture)
from transformers import AutoModelForCausalLM

from ffmerge.activations import collect_features
from ffmerge.aligning import align_pairs
from ffmerge.checkpoints import find_shared_modules, load, save, shared_keys
from ffmerge.compression import merge
from ffmerge.importance import find_order
from ffmerge.methods import Evidence, find_method
from ffmerge.patches import apply_patch, count_parameters
from ffmerge.sublayers import find_stacks
from study.finetuning import finetune
from study.hardware import describe_hardware, find_device
from study.quantization import add_adapters, count_bytes, load_int8, load_nf4
from study.rehearsal.__main__ import rehearse, run_apart
from study.rehearsal.parts import Rehearsal, list_parts
from study.tasks import make_batches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
DRAWN = ("groups_local",)  # hundreds of steps, in which rounding grows
MEASURED = ("features", "tied", "untied", "order")  # a process for each takes 20 seconds there


def to_gpu(batch):
    return {key: value.cuda() for key, value in batch.items()}


def test_the_gpu_is_found_and_named():
    assert find_device() == "cuda"
    assert describe_hardware() == torch.cuda.get_device_name()


@pytest.mark.parametrize("family", MAKERS)
def test_merging_on_a_gpu_equals_merging_on_the_cpu(family):
    model, batch = make_model(family), make_batch(family)
    features = collect_features(model, [batch], tokens=1)
    windows = dict.fromkeys(features, "1-3")
    expected = logits(merge(model, windows, features), batch)
    on_gpu = merge(model.cuda(), windows, features)
    torch.testing.assert_close(logits(on_gpu, to_gpu(batch)).cpu(), expected, **CLOSE)


def test_features_collected_on_a_gpu_equal_those_of_the_cpu():
    model, batch = make_model("gpt2"), make_batch("gpt2", padded=True)
    expected = collect_features(model, [batch], tokens=1)["decoder"]
    actual = collect_features(model.cuda(), [batch], tokens=1)["decoder"]
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, **CLOSE)


@pytest.mark.parametrize(("family", "method"), list_cases())
def test_every_method_makes_on_a_gpu_what_it_makes_on_the_cpu(family, method):
    found, model, told = find_method(method), make_model(family), make_evidence(family)
    count = 50 if found.REMOVES == "% of weights" else len(find_stacks(model))
    made = []
    for place in ("cpu", "cuda"):
        base, evidence = model.to(place), Evidence(told.permutations, told.calibration)
        plan = found.list_plans(base, count, evidence)[0]
        made.append(apply_patch(base, found.make(base, plan, evidence)))
    batch = make_batch(family)
    expected, actual = logits(made[0].cpu(), batch), logits(made[1], to_gpu(batch)).cpu()
    assert count_parameters(made[0]) == count_parameters(made[1])
    assert shared_keys(made[0]) == shared_keys(made[1]) and actual.isfinite().all()
    if method not in DRAWN:
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


def test_pairs_are_aligned_alike():
    torch.manual_seed(0)
    base = torch.randn(3000, 64)
    features = {
        "decoder": [base[:, torch.randperm(64)] + 0.5 * torch.randn(3000, 64) for _ in "123"]
    }
    pairs = [(0, 1), (0, 2), (1, 2)]
    here, there = (list(align_pairs(features, pairs, device=place)) for place in ("cpu", "cuda"))
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.permutation, b.permutation) and a.after == pytest.approx(b.after, 1e-6)


def test_the_surgeon_goes_in_one_order():
    torch.manual_seed(0)
    x = torch.randn(600, 200, dtype=torch.float64) * torch.arange(1, 201).rsqrt()
    G, B = x.T @ x / 600, torch.randn(200, 16, dtype=torch.float64)
    (step, price), (step_there, price_there) = find_order(G, B), find_order(G.cuda(), B.cuda())
    assert torch.equal(step, step_there) and step_there.device.type == "cpu"
    torch.testing.assert_close(price, price_there)


def test_tied_weights_lie_in_its_memory_once():
    model = make_model("llama")
    model.resize_token_embeddings(1000)  # so that rounding up to blocks of 512 bytes is small
    small = merge(model, {"decoder": "0-3"}, method="vanilla")
    held = []
    for candidate in (model, small):
        before = torch.cuda.memory_allocated()
        candidate.cuda()
        held.append(torch.cuda.memory_allocated() - before)
    freed = 4 * (count_parameters(model) - count_parameters(small))
    blocks = 512 * 3 * 3  # three matrices of three layers, each rounded up
    assert freed <= held[0] - held[1] <= freed + blocks


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("recomputes", [None, True])
def test_a_tuning_keeps_what_is_shared(precision, recomputes, setting):  # noqa: F811
    root, task, training, validation, small = setting
    n, tied = count_parameters(small), shared_keys(small)
    training = training.model_copy(
        update={"steps": 8, "precision": precision, "gradient_checkpointing": recomputes}
    )
    curve = finetune(small, task, training, validation, 0, root / "trainer")
    assert curve.trained_in.iloc[0] == precision and small.device.type == "cuda"
    assert curve.hardware.iloc[0] == torch.cuda.get_device_name()
    assert curve.loss[1:].notna().all() and curve.loss.iloc[-1] < 1.5 * curve.loss.iloc[1]
    assert count_parameters(small) == n and shared_keys(small) == tied
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in small.parameters())


def test_a_tuning_in_float32_follows_that_of_the_cpu(setting, monkeypatch):  # noqa: F811
    root, task, training, validation, small = setting
    curves = []
    for place in ("cpu", "cuda"):
        monkeypatch.setattr("study.finetuning.find_device", lambda place=place: place)
        model = copy.deepcopy(small)
        curves.append(finetune(model, task, training, validation, 0, root / place))
    losses = [torch.tensor(curve.loss.dropna().to_numpy()) for curve in curves]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-3)


def test_a_killed_tuning_goes_on(setting):  # noqa: F811
    root, task, training, validation, small = setting
    start, ends = save(small, root / "start"), []
    for steps in ((4,), (2, 4)):
        for i, n in enumerate(steps):
            model = load(start)
            recipe = training.model_copy(update={"steps": n, "decay_steps": 4})
            finetune(model, task, recipe, validation, 0, root / f"trainer{len(steps)}", i > 0)
        ends.append(torch.cat([p.detach().flatten().cpu() for p in model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("read", [load_int8, load_nf4])
def test_fewer_bits_stay_tied(read, olmo, tmp_path):  # noqa: F811
    folder, batch = save(olmo, tmp_path / "small"), to_gpu(make_batch("olmo"))
    small = read(folder)
    shared = len(find_shared_modules(olmo))
    assert len(find_shared_modules(small)) == shared and small.device.type == "cuda"
    assert count_bytes(small) < count_bytes(olmo)
    expected, actual = (logits(model, batch).float() for model in (olmo.cuda(), small))
    assert (actual - expected).norm() < 0.2 * expected.norm()


def test_adapters_beside_four_bits_learn(olmo, tmp_path):  # noqa: F811
    adapted = add_adapters(olmo.cpu(), ADAPTERS, tmp_path / "frozen", compute=torch.bfloat16)
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name for name in trained)
    assert {p.device.type for p in trained.values()} == {"cuda"}
    batch = to_gpu(make_batch("olmo"))
    optimizer, losses = torch.optim.AdamW(trained.values(), 1e-2), []
    for _ in range(8):
        loss = adapted(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_was_saved_there_loads_there_tied_and_generates(family, tmp_path):
    small = merge(make_model(family).cuda(), {"decoder": "1-3"}, method="vanilla")
    folder = save(small, tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(folder, device_map="auto")
    assert again.device.type == "cuda" and count_parameters(again) == count_parameters(small)
    batch = to_gpu(make_batch(family))
    assert torch.equal(logits(again, batch), logits(small, batch))
    written = [
        model.generate(**batch, max_new_tokens=5, do_sample=False) for model in (small, again)
    ]
    assert torch.equal(*written)


def test_a_compiled_merge_computes_the_same():
    small, batch = merge(make_model("llama"), {"decoder": "1-3"}, method="vanilla"), None
    batch = to_gpu(make_batch("llama"))
    expected = logits(small.cuda(), batch)
    torch.testing.assert_close(logits(torch.compile(small), batch), expected, **CLOSE)


def test_a_rehearsal_measures_there_in_processes_of_its_own(tiny):
    root, params = tiny
    rehearsal, deadline = Rehearsal(params, root, "vit-glyphs"), time.monotonic() + 600
    parts = [p for p in list_parts(rehearsal) if p.key in MEASURED]
    table = rehearse(parts, lambda part: run_apart(rehearsal, part, deadline))
    assert len(table) == len(MEASURED)
    assert table.skipped.isna().all() and (table.seconds_each > 0).all()
    assert table.hardware.str.contains(torch.cuda.get_device_name(), regex=False).all()
    assert table[table.part.str.startswith("a step of")].peak_gb.between(1e-4, 1).all()


def test_the_whole_pipeline_runs_there(tmp_path):
    root = run_all(tmp_path / "tiny")
    results = pd.read_csv(root / "results" / "results.csv")
    tuned = results[results.phase == "tuned"]
    assert set(tuned.hardware) == {torch.cuda.get_device_name()} and results.value.notna().all()
    assert {"base", "merged", "tuned"} <= set(results.phase)


def test_a_task_scores_alike(setting):  # noqa: F811
    _, task, _, _, small = setting
    small.eval()
    scores = [
        task.evaluate(small.to(place), make_batches(task, "test", 16)).value
        for place in ("cpu", "cuda")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=2)  # per cent of 64 images: one of them
