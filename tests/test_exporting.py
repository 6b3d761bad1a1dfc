"""What is exported is plain: anything loads it, and it computes what the shared model does."""

import pytest
import torch
from families import MAKERS, logits, make_batch, make_model

from ffmerge.checkpoints import find_shared_modules, load, save
from ffmerge.compression import merge
from ffmerge.patches import Plan, apply_plan, count_parameters
from ffmerge.saving.exporting import export
from ffmerge.sublayers import find_stacks


@pytest.mark.parametrize("family", MAKERS)
def test_the_plain_model_computes_the_same_and_is_as_large_as_the_base(family, tmp_path):
    model = make_model(family)
    small = merge(model, dict.fromkeys(find_stacks(model), "1-3"), method="vanilla")
    folder = save(small, tmp_path / "small")
    (folder / "tokenizer.json").write_text("{}")
    out = export(folder, tmp_path / "plain")
    plain = type(model).from_pretrained(out).eval()  # the class itself, not ours
    assert torch.equal(logits(plain, make_batch(family)), logits(small, make_batch(family)))
    assert count_parameters(plain) == count_parameters(model) and not find_shared_modules(plain)
    assert (out / "tokenizer.json").read_text() == "{}"
    assert export(folder, out) == out  # over its own


@pytest.mark.parametrize("family", MAKERS)
def test_pruned_models_are_plain_smaller_ones_where_one_width_says_it(family, tmp_path):
    model = make_model(family)
    even = apply_plan(model, Plan(neurons={name: (7,) * 4 for name in find_stacks(model)}))
    out = export(save(even, tmp_path / "even"), tmp_path / "plain")
    plain = type(model).from_pretrained(out).eval()
    assert torch.equal(logits(plain, make_batch(family)), logits(even, make_batch(family)))
    uneven = apply_plan(model, Plan(neurons={name: (7, 1, 7, 9) for name in find_stacks(model)}))
    folder = save(uneven, tmp_path / "uneven")
    with pytest.raises(ValueError, match=r"FF sublayers of .*7, 1, 7, 9.* one width") as error:
        export(folder, tmp_path / "not")
    assert not (tmp_path / "not").exists() and "\n" not in str(error.value)


def test_it_is_written_nowhere_else(tmp_path):
    folder = save(merge(make_model("gpt2"), {"decoder": "1-3"}, method="vanilla"), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.txt"):
        export(folder, tmp_path / "b")
    with pytest.raises(ValueError, match=r"the folder that is exported; valid is another one"):
        export(folder, folder)
    assert find_shared_modules(load(folder))
