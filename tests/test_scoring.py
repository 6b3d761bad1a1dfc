"""Test splits scored by one process or by several: the same scores, bit for bit."""

import pytest
import torch
import yaml
from conftest import write_tiny_profile
from test_scale import PATCH

from ffmerge.checkpoints import load, save
from ffmerge.patches import apply_patch, count_parameters, save_patch
from study import scoring
from study.config import load_params
from study.scoring import load_candidate, score_candidate
from study.tasks import load_task, sharing
from study.tasks.sharing import score_batches

NAMES = ("vit-glyphs", "permute-third")


class Ranks:
    """What torch.distributed is to one of several processes, which here run one after another."""

    def __init__(self, n):
        self.n, self.rank, self.found = n, 0, []

    def is_available(self):
        return True

    is_initialized = is_available

    def get_rank(self):
        return self.rank

    def get_world_size(self):
        return self.n

    def all_gather_object(self, parts, found):
        self.found.append(found)
        parts[:] = [*self.found, *({} for _ in range(self.n - len(self.found)))]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_every_batch_is_scored_once_and_their_order_is_kept(n, monkeypatch):
    ranks, seen = Ranks(n), []
    monkeypatch.setattr(sharing, "distributed", ranks)
    model = torch.nn.Dropout()
    for rank in range(n):
        ranks.rank = rank
        told = score_batches(model, iter("abcde"), lambda b: seen.append(b) or b.upper(), "score")
    assert told == list("ABCDE") and sorted(seen) == list("abcde") and not model.training


@pytest.fixture
def root(tmp_path, inside):
    """A tiny study with a base and the patch of one variant, and two states of its tuning."""
    root = inside(write_tiny_profile(tmp_path / "root"))
    task = load_task(NAMES[0], load_params(), root)
    torch.manual_seed(0)
    folder = save(task.new_model(), root / "models/vit-glyphs/base")
    task.save_processor(folder)
    save_patch(PATCH, root / "models/vit-glyphs/patches/permute/permute-third.safetensors")
    tuned = apply_patch(load(folder), PATCH)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.1)
    save(tuned, root / "models/vit-glyphs/tuned/permute-third/3")
    return root


def test_a_candidate_is_the_state_that_it_is_asked_for(root):
    untuned, tuned, low = (
        load_candidate(*NAMES, **which) for which in ({}, {"seed": 3}, {"seed": 3, "bits": "int8"})
    )
    assert count_parameters(untuned) == count_parameters(tuned)
    assert count_parameters(load_candidate(NAMES[0], "base")) > count_parameters(untuned)
    for p, q in zip(untuned.parameters(), tuned.parameters(), strict=True):
        torch.testing.assert_close(q, p + 0.1)
    assert {p.dtype for p in low.parameters()} > {torch.int8}
    assert sum(p.dtype == torch.int8 for p in load_candidate(*NAMES, seed=3).parameters()) == 0


def test_low_bits_are_of_the_base_or_of_a_tuned_model(root):
    assert count_parameters(load_candidate(NAMES[0], "base", bits="int8")) > 0
    with pytest.raises(ValueError, match="seed is None with int8; valid is the seed of a tuning"):
        load_candidate(*NAMES, bits="int8")


def test_a_candidate_is_loaded_before_its_process_joins_the_others(root, monkeypatch):
    """In a group transformers saves from one process alone, and adapters go onto a saved model."""
    done, group = [], scoring.distributed
    monkeypatch.setattr(scoring, "load_candidate", lambda *names, **which: done.append("load"))
    monkeypatch.setattr(group, "init_process_group", lambda *told, **more: done.append("join"))
    monkeypatch.setattr(group, "destroy_process_group", lambda: done.append("leave"))
    monkeypatch.setattr(scoring, "_score", lambda *told: done.append("score") or [])
    names = {"model": NAMES[0], "variant": NAMES[1], "seed": 3, "bits": None}
    scoring.run_process(names | {"part": "test", "folder": str(root)}, rank=1)
    assert done == ["load", "join", "score", "leave"]


def test_without_batches_nothing_is_scored():
    with pytest.raises(ValueError, match="there are no batches; valid is one example or more"):
        score_batches(torch.nn.Identity(), [], len, "score")


@pytest.mark.slow
def test_two_processes_score_as_one_does(root):
    content = yaml.safe_load((root / "params.yaml").read_text())
    entry = content["models"]["vit-glyphs"]
    entry["batch_size"] = 24  # three batches, the last one shorter
    asked, found = [("test", {}), ("own", {}), ("test", {"seed": 3, "bits": "nf4"})], []
    for processes in (1, 2):
        entry["finetune"]["processes"] = processes
        (root / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        found.append(
            [
                score_candidate(load_candidate(*NAMES, **which), part, *NAMES, **which)
                for part, which in asked
            ]
        )
    one, two = found
    assert two == one and one[0][0].answers["answer"]
    assert not list((root / "scratch").rglob("*scores*"))
    assert score_candidate(load_candidate(*NAMES), "readings", *NAMES) == []
