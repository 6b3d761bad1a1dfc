"""Every method on every family: what it takes is what its plan says, on disk and in FLOPs too."""

from functools import cache

import pytest
import torch
from families import (
    LAYERS,
    MAKERS,
    VOCABULARY,
    list_cases,
    logits,
    make_batch,
    make_evidence,
    make_model,
    spread_cases,
)
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM, XLNetConfig, XLNetLMHeadModel
from transformers.pytorch_utils import Conv1D

from ffmerge import compression
from ffmerge.catalogue import describe_method, list_methods
from ffmerge.checkpoints import load, save
from ffmerge.costs import count_flops, count_sparse_bytes
from ffmerge.memory import count_bytes
from ffmerge.methods import find_method
from ffmerge.patches import apply_patch, count_parameters
from ffmerge.pruning import list_neuron_plans
from ffmerge.sparsity import PROJECTIONS, measure_inputs
from ffmerge.sublayers import find_depths, find_stacks

FAMILIES = pytest.mark.parametrize("family", MAKERS)


def list_kind(*families, removes="FF sublayers"):
    about = [describe_method(name) for name in list_methods()]
    return [a.name for a in about if a.family in families and a.removes == removes]


ATTENTION = [f"{what} sublayers" for what in ("attention", "FF and attention")]
ATTENDING = [name for removes in ATTENTION for name in list_kind("shares", removes=removes)]
SHARING, NEURONS = list_kind("shares"), list_kind("removes", "both")
DROPPING = list_kind("removes", removes="layers")
SPARSE = list_kind("stores fewer bits", removes="% of weights")
EVEN = [name for name in NEURONS if name not in ("ff_drop", "pool", "neurons_obs_budget")]


@cache
def compress(family, method, padding=None):
    """A base, and the first candidate for one less in each stack (or half of the weights)."""
    found, model, evidence = find_method(method), make_model(family), make_evidence(family, padding)
    count = 50 if method in SPARSE else len(find_stacks(model))
    plan = found.list_plans(model, count, evidence)[0]
    patch = found.make(model, plan, evidence)
    return model, plan, patch, apply_patch(model, patch)


def count_neuron(ff):
    """Parameters of one neuron."""
    bias = ff.module("W_out").bias
    return (ff.n_parameters - (0 if bias is None else bias.numel())) // ff.d_ff


def count_stored(folder):
    """Bytes of the tensors in a folder's weights, without the files' headers."""
    files = folder.glob("*.safetensors")
    return sum(count_bytes(load_file(file).values()) for file in files)


def test_every_method_is_of_one_kind():
    kinds = SHARING, ATTENDING, NEURONS, DROPPING, SPARSE
    assert sorted(name for kind in kinds for name in kind) == list_methods()
    assert min(map(len, kinds)) >= 2


@pytest.mark.parametrize(("family", "method"), spread_cases())
def test_a_compressed_model_predicts_and_loads_bitwise_equal(family, method, tmp_path):
    model, _, _, small = compress(family, method)
    again, batch = load(save(small, tmp_path / "small")), make_batch(family)
    less = count_stored(save(model, tmp_path / "base")) - count_stored(tmp_path / "small")
    assert less == count_bytes(model.parameters()) - count_bytes(small.parameters())
    assert logits(small, batch).isfinite().all()
    assert torch.equal(logits(small, batch), logits(again, batch))
    assert not torch.equal(logits(small, batch), logits(model, batch))
    assert count_parameters(again) == count_parameters(small)


@pytest.mark.parametrize(("family", "method"), spread_cases(families=set(MAKERS) - {"vit"}))
def test_what_stands_at_padding_changes_nothing(family, method):
    (_, _, one, _), (_, _, two, _) = (compress(family, method, padding) for padding in (0, 7))
    assert one.plan == two.plan and one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(tensor, two.tensors[name])


@pytest.mark.parametrize(("family", "method"), list_cases([*SHARING, *ATTENDING]))
def test_sharing_removes_whole_sublayers_and_no_time(family, method):
    model, plan, patch, small = compress(family, method)
    stacks = find_stacks(model)
    gone = [stacks[n].sublayers[i] for n, gs in plan.groups.items() for g in gs for i in g.others]
    heads = [stacks[n].attentions()[i] for n, (g,) in plan.attention.items() for i in g.others]
    assert patch.plan == plan and {len(gone), len(heads)} <= {0, len(stacks)}
    removed = count_parameters(model) - count_parameters(small)
    assert removed == sum(ff.n_parameters for ff in gone) + sum(view.n_shared for view in heads)
    assert count_flops(small, make_batch(family)) == count_flops(model, make_batch(family))


@FAMILIES
@pytest.mark.parametrize("method", DROPPING)
def test_dropping_removes_whole_layers(family, method):
    model, plan, _, small = compress(family, method)
    assert find_depths(small) == dict.fromkeys(find_depths(model), LAYERS - 1)
    for name, stack in find_stacks(model).items():
        (layer,) = plan.dropped[name]
        kept = [stack.sublayers[i].read().W_in for i in range(LAYERS) if i != layer]
        mine = [ff.read().W_in for ff in find_stacks(small)[name].sublayers]
        assert all(map(torch.equal, kept, mine))


@FAMILIES
@pytest.mark.parametrize("method", NEURONS)
def test_neurons_go_as_the_plan_says_with_their_parameters_and_their_time(family, method):
    model, _, patch, small = compress(family, method)
    before, after, removed, macs = find_stacks(model), find_stacks(small), 0, 0
    batch = make_batch(family)
    positions = {name: batch[next(iter(batch))].shape[1] for name in before}
    positions |= {"encoder": 5} if family == "vit" else {}  # patches and a class token
    positions |= {"decoder": batch["labels"].shape[1]} if family == "marian" else {}
    for name, stack in before.items():
        assert patch.plan.neurons[name] == tuple(ff.d_ff for ff in after[name].sublayers)
        for ff, width in zip(stack.sublayers, patch.plan.neurons[name], strict=True):
            removed += (ff.d_ff - width) * count_neuron(ff)
            macs += (ff.d_ff - width) * 16 * len(ff.names) * positions[name]
    assert count_parameters(model) - count_parameters(small) == removed
    faster = count_flops(model, batch) - count_flops(small, batch)
    assert faster == pytest.approx(2 * macs / positions[next(iter(before))])


@FAMILIES
@pytest.mark.parametrize("method", [*EVEN, "neurons_obs_budget"])
def test_neurons_fill_the_size_of_a_merge_and_never_exceed_it(family, method):
    model, _, _, small = compress(family, method)
    merged = count_parameters(compress(family, "vanilla")[-1])
    one_more = sum(count_neuron(ff) for s in find_stacks(model).values() for ff in s.sublayers)
    assert merged - one_more < count_parameters(small) <= merged


@FAMILIES
@pytest.mark.parametrize("method", EVEN)
def test_an_even_pruning_keeps_equally_many_neurons_everywhere(family, method):
    _, plan, patch, _ = compress(family, method)
    assert patch.plan == plan and len({w for ws in plan.neurons.values() for w in ws}) == 1


@FAMILIES
def test_a_pool_stores_as_many_neurons_as_an_even_pruning_merged_ones_once(family):
    model, plan, _, small = compress(family, "pool")
    for name, stack in find_stacks(small).items():
        assert plan == list_neuron_plans(model, len(find_stacks(model)))[0]
        for a in range(0, LAYERS, 2):
            rows = torch.cat([stack.sublayers[i].read().W_in for i in (a, a + 1)])
            assert len(rows.unique(dim=0)) == sum(plan.neurons[name][a : a + 2])


@FAMILIES
def test_a_dropped_ff_adds_nothing(family):
    _, plan, _, small = compress(family, "ff_drop")
    for name, stack in find_stacks(small).items():
        assert plan.neurons[name] == (1, 24, 24, 24)
        weights = [w for w in vars(stack.sublayers[0].read()).values() if w is not None]
        assert all((w == 0).all() for w in weights)


def list_projections(model):
    """The weights of all projections in the layers, attention included: (n_outputs, n_inputs)."""
    for stack in find_stacks(model).values():
        for module in stack.layers.modules():
            if isinstance(module, PROJECTIONS):
                weight = module.weight.detach()
                yield module, weight.T if isinstance(module, Conv1D) else weight


@FAMILIES
@pytest.mark.parametrize(("method", "size"), [("wanda", 0), ("wanda_2_4", 4)])
def test_wanda_zeroes_half_of_every_row_and_nothing_else(family, method, size):
    model, _, _, small = compress(family, method)
    assert count_parameters(small) == count_parameters(model)
    pairs = list(zip(list_projections(model), list_projections(small), strict=True))
    assert len(pairs) >= 4 * LAYERS
    for (_, before), (_, after) in pairs:
        blocks = (after == 0).reshape(len(after), -1, size or after.shape[1])
        assert (blocks.sum(-1) == blocks.shape[-1] // 2).all()
        assert torch.equal(after, torch.where(after == 0, 0, before))
    changed = [n for n, p in small.named_parameters() if not torch.equal(p, model.get_parameter(n))]
    assert len(changed) == len(pairs)


@FAMILIES
def test_wanda_keeps_what_weighs_most_times_the_norm_of_its_input(family):
    model, _, _, small = compress(family, "wanda")
    norms = measure_inputs(model, make_evidence(family).calibration(), tokens=10_000)
    for name, squares in norms.items():
        module, pruned = model.get_submodule(name), small.get_submodule(name)
        before, after = module.weight.detach(), pruned.weight.detach()
        if isinstance(module, Conv1D):
            before, after = before.T, after.T
        score = before.abs() * squares.sqrt()
        least_kept = score.masked_fill(after == 0, torch.inf).amin(1)
        assert (least_kept >= score.masked_fill(after != 0, -torch.inf).amax(1)).all()


@FAMILIES
def test_the_norms_of_inputs_are_those_of_the_tokens_alone(family):
    model, batch = make_model(family), make_batch(family, padded=True)
    ff = find_stacks(model)["encoder" if family in ("vit", "marian", "bert") else "decoder"]
    seen = []
    hook = ff.sublayers[1].module("W_in").register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    norms = measure_inputs(model, [batch], tokens=10_000)
    hook.remove()
    mask = batch.get("attention_mask", torch.ones(seen[0].shape[:2])).bool()
    name = f"{ff.path}.1.{ff.sublayers[1].names['W_in']}"
    torch.testing.assert_close(norms[name], seen[0][mask].double().square().sum(0))


@pytest.mark.parametrize("method", SPARSE)
def test_no_other_share_than_half_becomes_zero(method):
    with pytest.raises(ValueError, match="40 % of weights is asked for; valid is 50"):
        find_method(method).list_plans(make_model("gpt2"), 40, make_evidence("gpt2"))


@pytest.mark.parametrize(
    ("family", "per_token"),
    [
        # multiply-adds a token: q, k, v, o; scores and sums of 10 tokens; FF; the vocabulary
        ("gpt2", LAYERS * (4 * 16 * 16 + 2 * 10 * 16 + 2 * 16 * 24) + 16 * 40),
        ("llama", LAYERS * (4 * 16 * 16 + 2 * 10 * 16 + 3 * 16 * 24) + 16 * 40),
        # 4 patches of 16 pixels, and 5 classes once an image, shared by 5 tokens
        ("vit", LAYERS * (4 * 16 * 16 + 2 * 5 * 16 + 2 * 16 * 24) + (4 * 16 * 16 + 16 * 5) / 5),
    ],
)
def test_flops_are_two_for_every_multiply_add(family, per_token):
    model = make_model(family)
    model.set_attn_implementation("eager")
    assert count_flops(model, make_batch(family)) == pytest.approx(2 * per_token)


@pytest.mark.parametrize("family", ("gpt2", "vit", "llama"))
def test_fused_attention_costs_what_it_computes(family):
    model, batch = make_model(family), make_batch(family)
    costs = {}
    for kind in ("eager", "sdpa"):
        model.set_attn_implementation(kind)
        costs[kind] = count_flops(model, batch)
    assert costs["eager"] == costs["sdpa"] > 0


def test_sparse_bytes_are_the_other_values_and_a_bit_for_each_number():
    model = torch.nn.Module()
    model.a = torch.nn.Parameter(torch.tensor([0.0, 1, 0, 2, 0, 3, 0, 4, 5]))  # 5 × 4 + 2 bytes
    model.b = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))  # no zeros: 3 × 2
    model.c = torch.nn.Parameter(torch.zeros(2, 8))  # a bit map alone: 2
    model.again = model.a  # stored once
    assert count_sparse_bytes(model) == 22 + 6 + 2


@FAMILIES
@pytest.mark.parametrize("method", SPARSE)
def test_half_of_the_weights_take_half_of_their_bytes_and_a_bit_map(family, method):
    model, _, _, small = compress(family, method)
    n = sum(weight.numel() for _, weight in list_projections(model))
    others = 4 * (count_parameters(model) - n)
    assert others + 2 * n + n // 8 >= count_sparse_bytes(small) > others


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("method", ["wanda", "drop_influence"])
def test_evidence_follows_models_that_lay_out_their_tokens_in_another_way(method, padded):
    """OPT's FFs read (batch × length, d_model), XLNet's layers (length, batch, d_model)."""
    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    opt = OPTForCausalLM(OPTConfig(**sizes, vocab_size=VOCABULARY, word_embed_proj_dim=16))
    sizes = {"d_model": 16, "n_layer": 4, "n_head": 2, "d_inner": 24, "vocab_size": VOCABULARY}
    xlnet = XLNetLMHeadModel(XLNetConfig(**sizes))
    batch = make_batch("llama", padded=padded)
    hidden = batch.get("attention_mask", torch.ones_like(batch["input_ids"])) == 0
    other = batch | {"input_ids": batch["input_ids"].masked_fill(hidden, 9)}
    count = 50 if method == "wanda" else 1
    for model in (opt.eval(), xlnet.eval()):
        made = [
            compression.compress(model, method, count, [given], tokens=10)
            for given in (batch, other)
        ]
        first, second = (list(small.state_dict().values()) for small in made)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
