"""A variant is a patch: base + patch = variant, bit for bit; an empty patch changes nothing."""

import json
from functools import cache

import pytest
import torch
from families import MAKERS, logits, make_batch, make_evidence, make_model, spread_cases

from ffmerge.groups import window
from ffmerge.methods import find_method
from ffmerge.patches import (
    Patch,
    Plan,
    apply_patch,
    apply_plan,
    count_parameters,
    load_patch,
    save_patch,
)
from ffmerge.sublayers import find_stacks

FAMILIES = pytest.mark.parametrize("family", MAKERS)


@cache
def make_patch(family, method):
    """The base, and a method's second candidate (or its only one) at half of what there is."""
    found, model = find_method(method), make_model(family)
    count = 50 if found.REMOVES == "% of weights" else 2 * len(find_stacks(model))
    plans = found.list_plans(model, count, make_evidence(family))
    return model, found.make(model, plans[:2][-1], make_evidence(family))


@pytest.mark.parametrize(("family", "method"), spread_cases())
def test_a_patch_read_back_gives_the_same_variant_bit_for_bit(family, method, tmp_path):
    (model, patch), batch = make_patch(family, method), make_batch(family, n=20)
    save_patch(patch, tmp_path / "patch.safetensors")
    again = load_patch(tmp_path / "patch.safetensors")
    assert again.plan == patch.plan
    one, two = apply_patch(model, patch), apply_patch(model, again)
    assert torch.equal(logits(one, batch), logits(two, batch))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("family", "method"), spread_cases())
def test_a_patch_holds_only_what_differs_from_the_base(family, method):
    model, patch = make_patch(family, method)
    before = {name: p.clone() for name, p in make_model(family).named_parameters()}
    small = apply_patch(model, patch)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])  # the base stays as it is
    if not patch.plan.dropped:  # which gives layers other names
        for name, p in small.named_parameters():
            is_spared = name.endswith("bias") and bool(patch.plan.neurons)  # b_out may stay
            is_spared |= method == "copy"  # writes what the first one had already
            is_spared |= method == "scratch"  # draws what a new one has, position encodings too
            differs = not torch.equal(p, before[name])
            assert differs == (name in patch.tensors) or (is_spared and not differs), name
    held = sum(t.numel() for t in patch.tensors.values())
    assert held < count_parameters(model) / (
        1 if method in ("wanda", "wanda_2_4", "scratch") else 2
    )


@FAMILIES
def test_an_empty_patch_gives_an_equal_copy(family):
    model, batch = make_model(family), make_batch(family)
    same = apply_patch(model, Patch(Plan()))
    assert same is not model and torch.equal(logits(same, batch), logits(model, batch))
    next(same.parameters()).data.zero_()
    assert not torch.equal(logits(same, batch), logits(model, batch))


@FAMILIES
def test_a_plan_alone_ties_without_changing_the_first_sublayer(family):
    model = make_model(family)
    plan = Plan({name: (window(1, 2),) for name in find_stacks(model)})
    tied = find_stacks(apply_plan(model, plan))
    for name, stack in find_stacks(model).items():
        mine = tied[name].sublayers
        assert mine[1].module("W_in") is mine[2].module("W_in")
        assert torch.equal(mine[2].read().W_in, stack.sublayers[1].read().W_in)


def test_plans_are_readable_json_and_come_back():
    plan = Plan({"encoder": (window(0, 2), window(4, 6, "last"))}, {"decoder": (3,)})
    text = json.dumps(plan.to_json())
    assert Plan.from_json(json.loads(text)) == plan
    assert (
        str(plan) == "encoder 0-2 4-6, decoder 3" and Plan().to_json() == {} and str(Plan()) == ""
    )
    assert str(Plan({"encoder": (window(0, 2),), "decoder": (window(0, 2),)})) == "0-2"
    narrow = Plan(neurons={"encoder": (7, 7), "decoder": (7, 9)})
    assert Plan.from_json(json.loads(json.dumps(narrow.to_json()))) == narrow
    assert str(narrow) == "encoder 7 neurons, decoder 7-9 neurons"
    assert str(Plan(neurons={"encoder": (24, 1, 1, 24)})) == "no FF in 1-2"
    with pytest.raises(ValueError, match="plan holds 'layers'; valid are groups, dropped, neurons"):
        Plan.from_json({"layers": [3]})


def test_a_patch_of_another_model_is_refused():
    _, patch = make_patch("gpt2", "vanilla")
    with pytest.raises(ValueError, match=r"stack 'decoder' is unknown; valid are encoder"):
        apply_patch(make_model("vit"), patch)
    wrong = Patch(patch.plan, {"lm_head.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"patch holds lm_head.bias .* not of this model"):
        apply_patch(make_model("gpt2"), wrong)


def test_a_patch_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "patch.safetensors"
    save_patch(Patch(Plan(), {"a": torch.ones(2)}), path)
    whole = path.read_bytes()
    with pytest.raises(Exception, match=r".*"):
        save_patch(Patch(Plan(), {"a": "no tensor"}), path)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]
