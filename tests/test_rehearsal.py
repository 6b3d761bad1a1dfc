"""The dress rehearsal: counts of the real run, published sizes, and nothing that does not fit."""

import math
import os
import time

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY

import study.rehearsal.parts
from ffmerge.aligning import count_workers
from ffmerge.moments import count_room
from ffmerge.patches import count_parameters
from ffmerge.pruning import list_neuron_plans
from study.apart import call_apart
from study.config import load_params
from study.peaks import find_room, read_peak, reset_peak
from study.rehearsal import __main__ as command
from study.rehearsal.measures import measure
from study.rehearsal.models import make_model, narrow
from study.rehearsal.parts import SLENDER, Rehearsal, list_parts
from study.upkeep import update_table
from workflow.stages import list_stages


@pytest.fixture
def tiny_rehearsal(tiny):
    root, params = tiny
    return Rehearsal(params, root, "vit-glyphs")


def test_every_stage_of_an_embedded_model_is_rehearsed(tiny_rehearsal):
    r, parts = tiny_rehearsal, list_parts(tiny_rehearsal)
    table = command.rehearse(parts, lambda part: measure(r, part.key))
    assert table.skipped.isna().all() and (table.hours > 0).all() and (table.peak_gb > 0).all()
    kinds = {kind for kind, items in list_stages(r.params).items() if items} - {"beyond"}
    assert set(table.stage) == kinds
    per_unit = table.set_index("part").seconds_each * table.set_index("part").times / 3600
    assert per_unit.to_list() == pytest.approx(table.hours.to_list())
    assert f"{table.hours.sum():.3g} hours on {table.hardware[0]}" in command.describe(table)
    assert list(r.root.glob("**/tmp*")) == []  # what was trained and saved is gone


def test_counts_are_those_of_the_stages(tiny_rehearsal, repository):
    for r in (tiny_rehearsal, Rehearsal(load_params(repository), repository, "gpt2-docs")):
        stages = list_stages(r.params.model_copy(update={"run": [r.name]}))
        assert sum(r.count_tunings().values()) == len(stages["finetune"])
        steps = [r.params.training(r.name, s["variant"]).steps for s in stages["finetune"].values()]
        assert sum(r.count_steps().values()) == sum(steps)
        assert list(r.candidates) == [s["method"] for s in stages["merges"].values()]
        depth = sum(r.entry.layers.values())
        windows = sum(depth - n for n in r.entry.removed.values())
        assert r.candidates["permute"] == r.candidates["vanilla"] == windows
        assert r.candidates["drop"] == sum(depth - n + 1 for n in r.entry.dropped.values())


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.slow)])
def test_every_entry_has_parts_and_all_but_the_largest_fit_a_gpu(place, repository, monkeypatch):
    monkeypatch.setattr(study.rehearsal.parts, "find_device", lambda: place)
    params = load_params(repository)
    for name in params.models:
        needs = {part.key: part.needs for part in list_parts(Rehearsal(params, repository, name))}
        assert {"score ", "pair", "merge"} <= set(needs), name
        assert max(needs.values()) < (100e9 if name == "olmo-7b" else 40e9), name


RESULTS = sorted(path.stem for path in (REPOSITORY / "results/benchmarks").glob("rehearsal-*.csv"))


@pytest.mark.parametrize("result", RESULTS)
def test_committed_rehearsals_count_what_params_yaml_asks_for_today(result, repository):
    """Or else `make rehearsal MODEL=…` again: nothing in the tables says that they have aged."""
    r = Rehearsal(load_params(repository), repository, result.removeprefix("rehearsal-"))
    table = pd.read_csv(repository / f"results/benchmarks/{result}.csv")
    asked = [(part.stage, part.what, part.unit, part.times) for part in list_parts(r)]
    for _, own in table.groupby("hardware"):
        counts = own[["stage", "part", "unit", "times"]]
        assert list(counts.itertuples(index=False, name=None)) == asked


def test_rows_about_something_else_stay(tmp_path):
    path, row = tmp_path / "new" / "table.csv", {"hours": 2.0, "model": "m", "hardware": "mine"}
    others = [row | {"hardware": "another"}, row | {"model": "n"}]
    assert len(update_table(path, pd.DataFrame([row]), ["model"])) == 1
    update_table(path, pd.DataFrame([row | {"hours": 1.0}, *others]), ["model", "hardware"])
    assert len(pd.read_csv(path)) == 3
    update_table(path, pd.DataFrame([row]), ["model", "hardware"])
    assert pd.read_csv(path).to_dict("records") == [*others, row]


def test_a_test_split_is_scored_once_for_every_state(tiny_rehearsal):
    ((place, n), (_, own)) = tiny_rehearsal.list_scorings()
    params, name = tiny_rehearsal.params, "vit-glyphs"
    variants = params.variants_of(name)
    tuned = sum(len(params.seeds_of(name, v)) for v in variants)
    untuned = [v for v in variants if v != "base-tuned"]
    beside = [v for v in variants if v != "base"]
    low = 2 * (1 + len(params.seeds))  # in 8 and 4 bits, of the base and of permute-third
    assert (place, own) == ("", 0) and n == tuned + len(untuned) + len(beside) + low


def test_what_does_not_fit_is_told_and_not_started(tiny_rehearsal, monkeypatch):
    monkeypatch.setattr(command, "find_room", lambda: 10_000_000)
    table = command.rehearse(list_parts(tiny_rehearsal), lambda part: pytest.fail("started"))
    assert table.skipped.str.fullmatch(r"needs about .* GB, 0.0 GB are free, of which .*").all()
    assert table.hours.isna().all()


def test_the_papers_models_have_their_published_sizes(repository):
    params = load_params(repository)
    sizes = {"gpt2-large": 774_030_080, "vit-base": 86_567_656, "olmo-7b": 6_888_095_744}
    for name, size in sizes.items():
        r = Rehearsal(params, repository, name)
        assert count_parameters(r.outline) == size
        assert r.widths == {"gpt2-large": (1280, 5120), "olmo-7b": (4096, 11008)}.get(
            name, (768, 3072)
        )


def test_a_model_that_is_never_tuned_is_rehearsed_without_and_with_its_bank(repository):
    r = Rehearsal(load_params(repository), repository, "dinov2")
    assert count_parameters(r.outline) == 22_056_192 and r.widths == (384, 1536)
    tokens = (r.entry.base.processor["size"] // 14) ** 2 + 1
    assert r.length(r.entry) == tokens == 26
    parts = {(part.stage, part.key): part for part in list_parts(r)}
    assert {stage for stage, _ in parts} == {
        "fetch",
        "activations",
        "permutations",
        "merges",
        "evals",
    }
    candidates = sum(r.candidates.values()) + len(r.candidates)  # and the base, each time
    examples = r.entry.validation_examples + r.entry.data.bank
    assert parts["merges", "score "].times == candidates * examples * tokens
    assert measure(r, "score ")["seconds"] > 0


@pytest.mark.parametrize("name", ["vit-base", "gpt2-large", "opus-mt-zh-en", "olmo-1b", "olmo-7b"])
def test_pairs_and_refits_of_the_papers_models_fit_into_their_budgets(name, repository):
    r = Rehearsal(load_params(repository), repository, name)
    features, (_, d_ff) = r.entry.features, r.widths
    assert count_workers(features.tokens, d_ff, 2 if features.precision else 4) >= 1
    assert count_room(d_ff, 2 * d_ff) >= 1  # the shared FF's activations against its own too


def test_the_narrow_model_has_neurons_for_the_smallest_budget(repository):
    r = Rehearsal(load_params(repository), repository, "gpt2-large")
    model = make_model(narrow(r.config, SLENDER * 36), "language")
    for name, count in r.entry.removed.items():
        (plan,) = list_neuron_plans(model, count)
        assert min(plan.neurons["decoder"]) >= 1, name


def test_an_unknown_model_is_told_in_a_sentence(tiny, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rehearsal", "gpt5"])
    assert command.main() == 2
    assert "error: model 'gpt5' is unknown; valid are vit-glyphs" in capsys.readouterr().err


def test_a_call_apart_returns_raises_or_is_ended():
    assert call_apart(math.sqrt, 9, seconds=60, preload="json") == 3
    with pytest.raises(ChildProcessError, match="ValueError"):
        call_apart(math.sqrt, -1, seconds=60, preload="json")
    with pytest.raises(ChildProcessError, match="ended with status 7"):
        call_apart(os._exit, 7, seconds=60, preload="json")
    with pytest.raises(TimeoutError, match="did not end"):
        call_apart(time.sleep, 60, seconds=0.1, preload="json")


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux tells its peaks")
def test_the_peak_is_of_what_was_held_since():
    before = reset_peak()
    held = torch.ones(50_000_000)  # 200 MB
    assert 190e6 < read_peak() - before < 260e6
    del held
    assert reset_peak() < before + 60e6
    assert read_peak() - before < 60e6
    assert find_room() > 0
