"""Any method by its name, in one call, on a model and batches of one's own."""

import pytest
import torch
import transformers
from families import logits, make_batch, make_model, spread_cases

import ffmerge
from ffmerge.methods import find_method
from ffmerge.patches import Plan, apply_plan
from ffmerge.sublayers import find_stacks


def make_calibration(family, n=3):
    batches = [make_batch(family, seed=seed) for seed in range(n)]
    for batch in batches:
        if family == "vit":
            batch["labels"] = torch.zeros(len(batch["pixel_values"]), dtype=torch.long)
        batch.setdefault("labels", batch.get("input_ids"))
    return batches


@pytest.mark.parametrize(("family", "method"), spread_cases())
def test_every_method_compresses_every_kind_of_model(family, method):
    model, batches = make_model(family), make_calibration(family)
    removes = find_method(method).REMOVES
    count = 50 if removes == "% of weights" else len(find_stacks(model))
    score = lambda small: -float(logits(small, batches[0]).abs().mean())  # noqa: E731
    small = ffmerge.compress(model, method, count, batches, evaluate=score, tokens=60)
    assert logits(small, batches[0]).isfinite().all()
    assert not torch.equal(logits(small, batches[0]), logits(model, batches[0]))
    fewer = ffmerge.count_parameters(small) < ffmerge.count_parameters(model)
    assert fewer == (removes != "% of weights")


@pytest.mark.parametrize(("family", "method"), spread_cases())
def test_a_model_in_training_is_left_as_it_is_and_read_in_evaluation(family, method):
    model, batches = make_model(family), make_calibration(family)
    count = 50 if find_method(method).REMOVES == "% of weights" else len(find_stacks(model))
    options = {"evaluate": lambda small: 0.0, "tokens": 60}
    quiet = ffmerge.compress(model, method, count, batches, **options)
    next(iter(find_stacks(model.train()).values())).layers[0].eval()
    modes, config = [m.training for m in model.modules()], model.config.to_dict()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    small = ffmerge.compress(model, method, count, batches, **options)
    assert [m.training for m in model.modules()] == modes and model.config.to_dict() == config
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert small.training and not quiet.training  # each as its base; dropout has touched neither
    for p, q in zip(small.parameters(), quiet.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_best_candidate_is_made():
    model, batches = make_model("gpt2"), make_calibration("gpt2")
    scored = []

    def score(small):
        scored.append(float(logits(small, batches[0]).abs().mean()))
        return scored[-1]

    small = ffmerge.compress(model, "drop", 1, evaluate=score, higher_is_better=False)
    assert len(scored) == 4
    assert float(logits(small, batches[0]).abs().mean()) == min(scored)


@pytest.mark.parametrize(
    ("method", "count", "batches", "message"),
    [
        ("nothing", 1, True, "method 'nothing' is unknown"),
        ("neurons_obs_refit", 1, False, "calibration is missing"),
        ("permute", 1, False, "calibration is missing"),
        ("drop", 0, False, "count is 0"),
        ("drop", 1, False, "has 4 candidates"),
        ("neurons_obs_refit", 4, True, "leave no neuron"),
        ("wanda", 30, True, "30 % of weights"),
    ],
)
def test_what_cannot_be_is_one_sentence(method, count, batches, message):
    calibration = make_calibration("gpt2") if batches else None
    with pytest.raises(ValueError, match=message):
        ffmerge.compress(make_model("gpt2"), method, count, calibration, tokens=60)


def test_a_model_that_is_not_of_transformers_is_told_in_one_sentence():
    layer = torch.nn.TransformerEncoderLayer(32, 4, 44, batch_first=True)
    with pytest.raises(ValueError, match=r"model TransformerEncoder has no configuration; valid"):
        ffmerge.merge(torch.nn.TransformerEncoder(layer, 3), {"encoder": "0-1"}, method="vanilla")


def test_merging_with_least_squares_takes_calibration_too():
    model, batches = make_model("olmo"), make_calibration("olmo")
    features = ffmerge.collect_features(model, batches, tokens=60)
    groups = {"decoder": "1-2"}
    with pytest.raises(ValueError, match="calibration is missing"):
        ffmerge.merge(model, groups, features, method="refit")
    small = ffmerge.merge(model, groups, features, method="refit", calibration=batches)
    plain = ffmerge.merge(model, groups, features)
    assert ffmerge.count_parameters(small) == ffmerge.count_parameters(plain)
    assert not torch.equal(logits(small, batches[0]), logits(plain, batches[0]))


@pytest.mark.parametrize("method", ["neurons_magnitude", "neurons_obs_budget", "copy", "permute"])
def test_sublayers_of_several_widths_are_refused_before_anything_runs(method):
    uneven = apply_plan(make_model("gpt2"), Plan(neurons={"decoder": (24, 12, 24, 24)}))
    never = iter(lambda: pytest.fail("a batch was asked for"), None)
    with pytest.raises(ValueError, match=r"d_ff \[12, 24\]; valid is one width in a stack"):
        ffmerge.compress(uneven, method, 1, never)


def test_what_is_pruned_and_then_merged_loads_as_it_was_saved(tmp_path):
    """DistilBERT's configuration has no d_ff that pruning could change."""
    sizes = {"dim": 16, "hidden_dim": 24, "n_layers": 4, "n_heads": 2, "vocab_size": 99}
    model = transformers.DistilBertForMaskedLM(transformers.DistilBertConfig(**sizes)).eval()
    pruned = ffmerge.compress(model, "neurons_magnitude", 1)
    small = ffmerge.merge(pruned, {"encoder": "1-2"}, method="vanilla")
    for again in (small, ffmerge.load(ffmerge.save(small, tmp_path / "once"))):
        loaded = ffmerge.load(ffmerge.save(again, tmp_path / "twice"))
        batch = {"input_ids": make_batch("llama")["input_ids"]}
        assert torch.equal(logits(loaded, batch), logits(small, batch))


@pytest.mark.parametrize("method", ["neurons_magnitude", "vanilla"])
def test_what_is_frozen_stays_frozen(method):
    model = make_model("gpt2").requires_grad_(False)
    small = ffmerge.compress(model, method, 1, evaluate=lambda small: 0.0)
    assert not any(p.requires_grad for p in small.parameters())


def test_weights_that_are_not_finite_are_not_merged():
    model = make_model("gpt2")
    with torch.no_grad():
        find_stacks(model)["decoder"].sublayers[1].module("W_in").weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="numbers that are not finite"):
        ffmerge.merge(model, {"decoder": "1-2"}, method="vanilla")


def test_a_class_of_ones_own_is_not_saved_as_one_of_transformers(tmp_path):
    class Mine(transformers.GPT2LMHeadModel):
        pass

    mine = Mine(make_model("gpt2").config)
    with pytest.raises(ValueError, match="Mine is of a class that its configuration would not"):
        ffmerge.save(mine, tmp_path / "mine")
    assert not list(tmp_path.iterdir())
