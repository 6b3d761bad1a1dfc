"""What travels when weights do not fit: shared sublayers travel once."""

import pytest
import torch
from accelerate import cpu_offload
from families import MAKERS, logits, make_batch, make_model

from ffmerge.compression import merge
from ffmerge.saving.exporting import untie
from ffmerge.sublayers import find_stacks
from study.offloading import count_bytes, count_moved, count_resident


@pytest.mark.parametrize("family", MAKERS)
def test_tied_a_group_moves_all_of_its_sublayers_but_one_less(family):
    base, batch = make_model(family), make_batch(family)
    stacks = find_stacks(base)
    tied = merge(base, dict.fromkeys(stacks, "1-3"), method="vanilla")
    sublayer = 4 * next(iter(stacks.values())).sublayers[0].n_parameters
    whole = count_moved(base, batch)
    assert count_moved(tied, batch) == whole - 2 * len(stacks) * sublayer
    assert count_moved(untie(tied), batch) == whole
    largest = count_bytes(next(iter(stacks.values())).layers[0].parameters())
    assert count_resident(base) >= largest
    assert count_resident(base) < count_resident(
        merge(base, dict.fromkeys(stacks, "1-3"), method="vanilla")
    )


@pytest.mark.parametrize("family", MAKERS)
def test_accelerate_off_loads_a_merged_model_given_every_name(family):
    base, batch = make_model(family), make_batch(family)
    tied = merge(base, dict.fromkeys(find_stacks(base), "1-3"), method="vanilla")
    expected = logits(tied, batch)
    weights = dict(tied.named_parameters(remove_duplicate=False))
    weights |= dict(tied.named_buffers(remove_duplicate=False))
    off_loaded = cpu_offload(tied, torch.device("cpu"), state_dict=weights)
    assert all(p.is_meta for p in off_loaded.parameters())
    assert torch.equal(logits(off_loaded, batch), expected)


def test_weights_move_once_unless_two_modules_hold_them():
    own, common = make_model("olmo"), make_model("gpt2")  # the head of GPT-2 is its embedding
    assert count_moved(own, make_batch("olmo")) == count_bytes(own.parameters())
    embedding = count_bytes([common.lm_head.weight])
    moved = count_moved(common, make_batch("gpt2"))
    assert moved == count_bytes(common.parameters()) + embedding
