"""Scratch: a tied model with nothing of the base in it, which learns."""

import copy

import pytest
import torch
from families import LAYERS, MAKERS, logits, make_batch, make_labelled, make_model

from ffmerge.methods import Evidence, find_method
from ffmerge.patches import apply_patch
from ffmerge.sublayers import find_stacks

FAMILIES = pytest.mark.parametrize("family", MAKERS)
SCRATCH = find_method("scratch")


def draw(model):
    plan = SCRATCH.list_plans(model, 2 * len(find_stacks(model)), Evidence())[0]
    return SCRATCH.make(model, plan, Evidence())


@FAMILIES
def test_what_is_drawn_is_a_new_model_of_its_configuration(family):
    model = make_model(family)
    small = apply_patch(model, draw(model))
    torch.manual_seed(0)
    new = type(model)(copy.deepcopy(model.config)).eval()
    for stack in find_stacks(new).values():
        for i in (1, 2):  # the window in the middle of all three takes the earlier of two
            stack.sublayers[i].share(stack.sublayers[0])
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, new.get_parameter(name)), name
    assert torch.equal(logits(small, make_batch(family)), logits(new, make_batch(family)))


@FAMILIES
def test_nothing_of_the_base_decides_and_nothing_else_is_drawn_from(family):
    model, other = make_model(family), make_model(family, seed=1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, two = draw(model), draw(other)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.plan == two.plan and one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items())


@FAMILIES
def test_its_only_candidate_is_the_window_in_the_middle(family):
    model = make_model(family)
    n = len(find_stacks(model))
    assert [str(p) for p in SCRATCH.list_plans(model, n, Evidence())] == ["1-2"]
    assert [str(p) for p in SCRATCH.list_plans(model, n * (LAYERS - 1), Evidence())] == ["0-3"]


def test_settings_of_how_it_writes_are_the_bases():
    model = make_model("marian")
    model.generation_config.num_beams = 3
    assert apply_patch(model, draw(model)).generation_config.num_beams == 3


@FAMILIES
def test_it_learns(family):
    model, batch = make_model(family), make_labelled(family)
    small = apply_patch(model, draw(model)).train()
    optimizer = torch.optim.AdamW(small.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        losses.append(small(**batch).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_a_model_without_a_configuration_is_refused():
    model = make_model("vit")
    (stack,) = find_stacks(model).values()
    plan = SCRATCH.list_plans(model, 1, Evidence())[0]

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = copy.deepcopy(stack.layers)

    with pytest.raises(
        ValueError, match="model Own has no configuration; valid is a model of transformers"
    ):
        SCRATCH.make(Own(), plan, Evidence())
