"""The contest: methods at equal parameters, on results that are made up, and the answers to it."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ffmerge.catalogue import describe_method, list_methods
from study.config import load_params
from study.records import COLUMNS
from study.report import claims
from study.report.ablations import (
    HELPS,
    IDEAS,
    MIXED,
    NEGATIVE,
    SAME,
    judge_idea,
    table_ablations,
    table_tuned,
)
from study.report.answers import write_reviewers
from study.report.attention import table_attention
from study.report.beyond import SHARES, table_beyond
from study.report.bits import table_bits
from study.report.choices import FAITHFUL, select_faithful
from study.report.contest import plot_contest
from study.report.doubts import HEADLINE, PAIRS, SAYS, table_doubts
from study.report.facts import ABSENT, Facts
from study.report.leaderboard import table_contest
from study.report.results import SPARSE, select_metric, select_own
from study.report.reviewers import DOUBTS
from study.report.standings import FAIR, LEAST, RATIOS, measure_contest, select_budget
from study.report.style import WIDTH

VIT, GPT2, OLMO = "vit-glyphs", "gpt2-docs", "olmo-dialogues"
METRICS = {
    VIT: {"metric": "accuracy", "unit": "%", "direction": "higher"},
    GPT2: {"metric": "perplexity", "unit": "per token", "direction": "lower"},
    OLMO: {"metric": "ROUGE-1", "unit": None, "direction": "higher"},
}
WHOLE = {VIT: 80.0, GPT2: 20.0, OLMO: 50.0}
OWN = {"metric": "perplexity", "unit": "per token", "direction": "lower"}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def params(repository):
    """Every model with every recipe, whatever is listed of them today."""
    loaded = load_params(repository)
    whole = {"variants": None, "tuned": None}
    models = {name: entry.model_copy(update=whole) for name, entry in loaded.models.items()}
    return loaded.model_copy(update={"models": models})


def make_row(params, model, variant, value, seed=None, phase="merged", **changes):
    recipe = params.recipe(variant)
    removed = params.count_removed(model, variant)
    about = None if recipe.method == "base" else describe_method(recipe.method)
    kind = about.removes if about else None
    share = {"FF sublayers": 0.05, "layers": 0.08}.get(kind, 0) * removed
    labels = {"model": model, "variant": variant, "method": recipe.method, "ratio": recipe.ratio}
    sizes = {"n_examples": 400, "parameters": 1000 * (1 - share), "parameter_ratio": 1 - share}
    runs = 1 if about is None or about.family == "shares" else 1 - share
    sizes |= {"bytes": 4000 * (1 - share), "flops": 2000 * runs, "precision": "float32"}
    row = labels | {"removed": removed, "kind": kind, "seed": seed, "phase": phase, "value": value}
    return dict.fromkeys(COLUMNS) | row | METRICS[model] | sizes | changes


def make_results(params, model, untuned, tuned=None, **changes):
    """Values by variant: one before tuning, one for each seed after."""
    whole = make_row(params, model, "base", WHOLE[model], phase="base", **changes)
    rows = [whole]
    rows += [make_row(params, model, v, value, **changes) for v, value in untuned.items()]
    for variant, values in (tuned or {}).items():
        for seed, value in enumerate(values):
            rows.append(make_row(params, model, variant, value, seed, "tuned", **changes))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"seed": "Int64"})


@pytest.fixture
def olmo(params):
    """A model that tuning teaches another task: its own task's rows stand first."""
    own = make_results(params, OLMO, {"permute-third": 25.0, "obs-third": 20.0}, **OWN)
    own.loc[own.phase == "base", "value"] = 20.0
    tuned = {"base-tuned": [98, 98, 98], "permute-third": [97, 96, 95]}
    taught = make_results(params, OLMO, {"permute-third": 40.0}, tuned)
    first = taught.iloc[[0]].assign(phase="first words", value=10.0)
    return pd.concat([own, taught, first], ignore_index=True)


@pytest.fixture
def vit(params):
    untuned = {
        "vanilla-third": 60,
        "permute-third": 76,
        "drop-sixth": 70,
        "drop-third": 30,
        "obs-third": 79,
        "activation-third": 72,
        "permute-half": 40,
        "obs-half": 78,
        "pool-third": 78.5,
        "wanda": 79.5,
    }
    tuned = {
        "base-tuned": [80.5, 80, 80.2],
        "permute-third": [78, 78.2, 78.1],
        "obs-third": [79.5, 79.6, 79.4],
        "copy-third": [77],
    }
    results = make_results(params, VIT, untuned, tuned)
    sparse = results[results.variant == "wanda"].assign(precision=SPARSE, bytes=2200.0)
    return pd.concat([results, sparse], ignore_index=True)


def test_the_papers_track_has_the_papers_methods_alone(params, vit, olmo):
    faithful = select_faithful(pd.concat([vit, olmo]), params)
    assert set(faithful.method) == set(FAITHFUL)
    assert set(faithful[faithful.model == OLMO].metric) == {"ROUGE-1"}
    shown = faithful[faithful.model == VIT].variant.tolist()
    assert shown == vit[vit.method.isin(FAITHFUL)].variant.tolist()


def test_what_is_tuned_selects_the_metric_and_zeros_are_counted_once(params, vit, olmo):
    assert set(select_metric(olmo, OLMO).metric) == {"ROUGE-1"}
    own = select_own(olmo, OLMO, params)
    assert set(own.metric) == {"perplexity"} and set(own.phase) == {"base", "merged"}
    assert (select_metric(vit, VIT).variant == "wanda").sum() == 1


def test_four_bits_are_left_out_where_they_repeat_a_row_and_kept_of_adapters(vit, olmo):
    low = vit[vit.variant == "permute-third"].assign(precision="nf4", value=1.0)
    both = pd.concat([vit, low], ignore_index=True)
    pd.testing.assert_frame_equal(select_metric(both, VIT), select_metric(vit, VIT))
    of_adapters = olmo.assign(precision=olmo.precision.where(olmo.phase != "tuned", "nf4"))
    assert len(select_metric(of_adapters, OLMO)) == len(select_metric(olmo, OLMO))


def test_both_states_are_of_one_base_and_a_perplexity_counts_downwards(params):
    results = make_results(params, GPT2, {"obs-third": 25.0}, {"obs-third": [40.0, 40.0]})
    (row,) = measure_contest(results, params, GPT2).to_dict("records")
    assert row["untuned"] == 80 and row["tuned"] == 50 and row["margin"] == 0
    assert np.isnan(row["error"])  # it is no share of examples
    assert row["stored"] == row["flops"] == pytest.approx(80)


def test_what_tuning_teaches_is_of_the_base_tuned_alike(params, olmo):
    table = measure_contest(olmo, params, OLMO).set_index("variant")
    assert table.untuned["permute-third"] == 80 and table.untuned["obs-third"] == 100
    assert table.tuned["base-tuned"] == 100
    assert table.tuned["permute-third"] == pytest.approx(100 * 96 / 98)


def test_sharing_keeps_flops_and_zeros_that_are_not_stored_save_bytes(params, vit):
    table = measure_contest(vit, params, VIT).set_index("variant")
    assert table.flops["permute-third"] == 100 > table.flops["obs-third"]
    assert table.stored["wanda"] == pytest.approx(55) and table.flops["wanda"] == 100
    share = 76 / 80 * 80
    assert table.error["permute-third"] == pytest.approx(
        1.96 * np.sqrt(share * (100 - share) / 400) * 100 / 80
    )


def test_random_windows_and_other_anchors_do_not_compete(params, vit):
    more = make_results(params, VIT, {"random-1": 79.0, "anchor-last": 79.0}).iloc[1:]
    table = measure_contest(pd.concat([vit, more]), params, VIT)
    assert not {"random-1", "anchor-last"} & set(table.variant)
    assert not table.duplicated(["method", "ratio"]).any()


def test_layers_stand_where_they_weigh_as_much_and_larger_models_win_nothing(params, vit):
    at = {r: select_budget(measure_contest(vit, params, VIT), r) for r in ("third", "half")}
    assert at["third"].set_index("method").variant["drop"] == "drop-sixth"  # 84 %, a merge 80 %
    assert not at["third"].set_index("method").fair["drop"]
    assert at["half"].set_index("method").variant["drop"] == "drop-third"  # 68 % and 70 %
    assert at["half"].set_index("method").fair["drop"] and (at["half"].off[1:].abs() <= 15).all()
    assert select_budget(measure_contest(vit, params, VIT), "most").empty
    assert abs(at["third"].set_index("method").off["drop"]) > FAIR


def test_the_leaderboard_has_every_method_once_in_its_family_and_one_best(params, vit):
    board = table_contest(vit, params, "third")
    assert board.Method.is_unique and board.Family.iloc[0] == "uncompressed"
    families = board.Family.tolist()
    assert all(families.count(f) == len(list(g)) for f, g in group_runs(families))
    before = [cell for cell in board[VIT] if re.match(r"\*\*[\d.]+\*\*", cell)]
    assert before == ["**98.8** → **99.4** ± 0.3"]
    assert board.set_index("Method")[VIT]["copy"] == "– → 96.2¹"
    assert board.set_index("Method")["Mean rank"]["drop"] == "–"  # it is larger
    assert table_contest(vit[vit.method == "base"], params, "third").empty


def group_runs(values):
    runs = []
    for value in values:
        if not runs or runs[-1][0] != value:
            runs.append((value, []))
        runs[-1][1].append(value)
    return runs


def test_an_idea_that_does_not_help_is_called_so():
    def judge(*gains):
        return judge_idea(pd.Series(gains, dtype=float))

    assert judge(3, LEAST + 0.1, 0.1) == HELPS
    assert judge(3, 3, -3) == MIXED
    assert judge(3, -3) == judge(-3, 0) == NEGATIVE
    assert judge(0.1, -LEAST) == SAME


def write_windows(folder, model, scored, base):
    """windows/METHOD.csv of made-up candidates: method to ratio to values."""
    folder = folder / "results" / "models" / model / "windows"
    folder.mkdir(parents=True)
    counts = {"third": 4, "half": 6, "most": 11}
    for method, ratios in scored.items():
        rows = [{"method": "base", "removed": 0, "value": base}]
        for ratio, values in ratios.items():
            labels = {"method": method, "ratio": ratio, "removed": counts[ratio]}
            rows += [labels | {"value": value} for value in values]
        table = pd.DataFrame(rows).assign(**METRICS[model], kind="FF sublayers", layers="1-5")
        table.to_csv(folder / f"{method}.csv", index=False)


def test_ablations_compare_the_best_candidates_wherever_both_methods_are(params, tmp_path):
    write_windows(
        tmp_path,
        GPT2,
        {"permute": {"half": [50, 40.0], "third": [25.0]}, "refit": {"third": [20, 30.0]}},
        20.0,
    )
    (row,) = table_ablations([tmp_path], params, [VIT, GPT2]).to_dict("records")
    assert row["From → to"] == "permute → refit" and row["Verdict"] == HELPS
    assert row[GPT2] == "+20.0" and row[VIT] == "–" and row["Better at"] == "1 of 1"
    assert table_ablations([tmp_path], params, [VIT]).empty


def test_ideas_are_compared_after_tuning_too_one_seed_marked(params, vit):
    found = table_tuned(vit, params, [VIT]).set_index("From → to")[VIT]
    assert found.index.tolist() == ["copy → permute"]  # the only pair of which both are tuned
    assert found.iloc[0] == f"{100 * (78.1 - 77) / 80.23333333:+.1f}¹"
    copied = {"permute-third": [78, 78.2, 78.1], "copy-third": [77, 77.2, 77.1]}
    both = make_results(params, VIT, {}, copied | {"base-tuned": [80.0, 80, 80]})
    assert table_tuned(both, params, [VIT])[VIT].iloc[0].startswith("+1.2 ± ")


def test_sharing_from_scratch_is_compared_only_after_it_was_trained(params, tested):
    claim = "merging a trained model ≥ sharing from scratch"
    tuned = {"permute-third": [70, 70.1, 70.2], "scratch-third": [77, 77.1, 77.2]}
    table = tested(make_results(params, VIT, {"permute-third": 70, "scratch-third": 1}, tuned))
    mine = table[table.Claim.str.contains(claim)]
    assert mine.Claim.tolist() == [f"{SAYS}{claim}, after tuning"]
    assert mine.Verdict.tolist() == ["does not hold"]


def test_a_number_of_a_single_model_bears_its_name(params, vit, tested):
    two = pd.concat([vit, make_results(params, GPT2, {"permute-third": 40.0})])
    facts = Facts(two, params, tested(two))
    assert facts.print_kept("obs_order", "third", "untuned") == ABSENT
    assert facts.print_kept("permute", "third", "untuned") == "50.0 to 95.0 %"
    assert facts.print_kept("neurons_obs_refit", "third", "untuned") == f"98.8 % ({VIT})"


def test_ideas_and_doubts_name_methods_that_there_are():
    known = set(list_methods())
    assert {method for _, *pair in IDEAS for method in pair} <= known
    assert {side for _, *pair in PAIRS for side in pair} - known == {PAIRS[0][2]}


@pytest.fixture
def tested(params, tmp_path, repository):
    """The table of doubts of some results."""
    paper = pd.read_csv(repository / "results" / "paper.csv")
    return lambda results: table_doubts(results, paper, params, [tmp_path])


def verdicts(table, claim):
    return table[table.Claim == SAYS + claim].set_index("Model").Verdict


def test_a_difference_turns_with_its_sides_and_a_small_one_decides_nothing(params, tested):
    claim = f"{PAIRS[0][0]}, before tuning"
    found = []
    for permute, pruned in ((21.0, 30.0), (30.0, 21.0), (21.0, 21.01)):
        rows = {"permute-third": permute, "obs-third": pruned}
        found.append(verdicts(tested(make_results(params, GPT2, rows)), claim)[GPT2])
    assert found == ["holds", "does not hold", "undecided"]


def test_few_examples_decide_less_than_many(params, tested):
    claim, rows = f"{PAIRS[0][0]}, before tuning", {"permute-third": 70.0, "obs-third": 74.0}
    few, many = (make_results(params, VIT, rows, n_examples=n) for n in (100, 100_000))
    assert verdicts(tested(few), claim)[VIT] == "undecided"
    assert verdicts(tested(many), claim)[VIT] == "does not hold"


def test_one_seed_decides_nothing_and_several_do(params, tested):
    claim = "averaging ≥ copying one FF, after tuning"
    for seeds, verdict in (([70.0], "undecided"), ([70, 70.1, 70.2], "holds")):
        tuned = {"permute-third": [78, 78.2, 78.1], "copy-third": seeds}
        assert verdicts(tested(make_results(params, VIT, {}, tuned)), claim)[VIT] == verdict


def test_validation_and_not_the_test_split_chooses_the_best_pruning(params, tested, tmp_path):
    rows = {"permute-third": 76.0, "obs-third": 60.0, "activation-third": 79.0}
    scored = {"neurons_obs_refit": {"third": [80.0]}, "neurons_activation": {"third": [70.0]}}
    write_windows(tmp_path, VIT, scored, 80.0)
    table = tested(make_results(params, VIT, rows))
    (text,) = table[table.Claim == f"{SAYS}{PAIRS[0][0]}, before tuning"].Statistic
    assert "permute − neurons: OBS = " in text


def test_pruning_without_tuning_meets_merging_with_it_where_both_do_one_task(
    tested, tmp_path, vit, olmo
):
    write_windows(tmp_path, VIT, {"neurons_obs_refit": {"third": [80.0]}}, 80.0)
    table = tested(pd.concat([vit, olmo]))
    assert verdicts(table, HEADLINE).to_dict() == {VIT: "does not hold"}
    assert verdicts(table, "FLOPs fall only where something is removed")[VIT] == "holds"
    assert not tested(vit[vit.method == "base"]).size


def test_what_reviewers_ask_is_answered_by_numbers_that_are_computed(
    params, vit, tested, repository, tmp_path
):
    facts = Facts(vit, params, tested(vit))
    text = write_reviewers(tmp_path, facts)
    written = (tmp_path / "reviewers.md").read_text(encoding="utf-8")
    assert "permute keeps 95.0 %" in text and "{" not in written and "](" not in text
    assert all(doubt.question in text for doubt in DOUBTS)
    own = ("LLM.int8()", "2:4", "NF4")  # names
    for doubt in DOUBTS:
        said = re.sub(r"\{[^}]*\}", "", doubt.answer)
        for name in own:
            said = said.replace(name, "")
        assert not re.search(r"\d", said), doubt.question
    assert facts.fill("{kept[refit, third, untuned]} {verdict[nothing]}") == f"{ABSENT} {ABSENT}"


def test_every_field_of_an_answer_names_what_there_is(repository):
    known, ratios = set(list_methods()), set(RATIOS)
    source = (repository / "lib/study/report/claims.py").read_text(encoding="utf-8")
    doubted = {claim for claim, *_ in PAIRS} | {HEADLINE}
    for doubt in DOUBTS:
        for field, key in re.findall(r"\{(\w+)\[([^]]+)\]\}", doubt.answer):
            if field == "verdict":
                claim = key.removesuffix(", before tuning").removesuffix(", after tuning")
                assert claim in doubted or key in source, key
            elif field not in ("int8", "nf4"):
                words = set(key.split(", "))
                assert words <= known | ratios | {"untuned", "tuned"}, key
    assert claims.COLUMNS == ["Claim", "Model", "Statistic", "Verdict"]


def test_what_backs_an_answer_is_a_file_or_one_that_the_notebook_writes(repository):
    notebook = (repository / "notebooks" / "7_figures.ipynb").read_text(encoding="utf-8")
    made = {f"contest-{ratio}.md" for ratio in RATIOS} | {"README.md", "pareto.png"}
    for doubt in DOUBTS:
        for target in re.findall(r"\]\(([^)]+)\)", doubt.backed):
            if target.startswith("../"):
                assert (repository / "figures" / target).exists(), target
            else:
                assert target in made or f'"{target.removesuffix(".md")}\\"' in notebook, target


def test_the_picture_shows_all_points_apart_and_all_methods_once(params, vit):
    figure = plot_contest(vit, params, VIT)
    left, right = figure.axes
    points = [line for line in left.lines if len(line.get_xdata()) == 1]
    table = measure_contest(vit, params, VIT)
    table = table[table.family != "uncompressed"]
    assert len(points) == table[["untuned", "tuned"]].notna().sum().sum()
    places = np.array([left.transData.transform(p.get_xydata()[0]) for p in points])
    gaps = np.abs(places[:, None] - places[None]).max(-1) + 99 * np.eye(len(places))
    assert gaps.min() > 4  # pixels
    (low, high), kept = left.get_ylim(), [p.get_ydata()[0] for p in points]
    assert low < min(kept) and max(kept) < high
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == len(set(names)) and set(table.label) <= set(names)
    assert figure.get_figwidth() == WIDTH and "FLOPs" in right.get_xlabel()


def test_without_flops_there_is_one_panel_and_without_methods_no_picture(params, vit):
    figure = plot_contest(vit.assign(flops=np.nan), params, VIT)
    assert len(figure.axes) == 1
    assert plot_contest(vit[vit.method == "base"], params, VIT) is None


def test_what_notebook_8_measures_is_told_of_every_model_that_it_ran_for(params, tmp_path):
    write_windows(tmp_path, GPT2, {"permute": {"third": [25.0]}}, 20.0)
    rows = [("score", "base", "", "", "perplexity", 20.0)]
    for i, share in enumerate(SHARES):
        for way, merged, error in (("backward", 0, 4), ("forward, private", 0, 5)):
            rows.append(("pool", f"{way}, {share}", "", "", "error", error))
            rows.append(("pool", f"{way}, {share}", "decoder", "0, 1", "merged", merged))
            rows.append(("pool", f"{way}, {share}", "decoder", "0, 1", "own, first layer", 8))
            rows.append(("pool", f"{way}, {share}", "", "", "perplexity", 40.0))
        rows.append(("pool", f"forward, sharing, {share}", "", "", "error", 3))
        rows.append(("pool", f"forward, sharing, {share}", "decoder", "0, 1", "merged", 2 * i))
        rows.append(("pool", f"forward, sharing, {share}", "decoder", "0, 1", "own", 8 - 2 * i))
        rows.append(("pool", f"forward, sharing, {share}", "", "", "perplexity", 50.0))
    rows += [("spread", name, "", "0-1", "output", 0.5) for name in ("vanilla", "permute", "refit")]
    rows += [("cost", "third", "", "", "rank correlation, all windows", 0.7)]
    rows += [("layerwise", "third", "", "", "one pass", 25.0)]
    rows += [("layerwise", "third", "", "", "layer by layer", 20.0)]
    rows += [(kind, "1", "", "", "perplexity", 25.0) for kind in ("ridge", "tokens")]
    columns = ["kind", "setting", "stack", "layers", "key", "value"]
    file = tmp_path / "results" / "models" / GPT2 / "beyond.csv"
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
    table = table_beyond([tmp_path], params, [VIT, GPT2])
    assert list(table) == ["Measured", "At", GPT2]  # notebook 8 did not run for the other
    said = table.set_index("Measured")[GPT2]
    assert (
        said["merged neurons among those kept, elimination from all (%)"] == "0.0 / 0.0 / 0.0 / 0.0"
    )
    assert (
        said["merged neurons among those kept, search from none (%)"] == "0.0 / 25.0 / 50.0 / 75.0"
    )
    assert said["squared error, sharing against private only (%)"] == " / ".join(["-25.0"] * 4)
    assert said["quality, sharing against private only (%)"] == "-10.0 / -10.0"
    assert said["statistics after every layer, not one pass (%)"] == "+20.0"
    assert said["a b_out for every layer, not one (%)"] == "no biases"
    assert said["quality kept by λ (%)"] == "80.0"


def test_attention_stands_beside_ffs_where_it_was_shared(params, vit):
    assert table_attention(vit, params, [VIT]).empty
    merged = vit[(vit.variant == "permute-third") & (vit.phase == "merged")].iloc[0].to_dict()
    shared = {"variant": "attention-third", "method": "attention", "kind": "attention sublayers"}
    row = merged | shared | {"value": 40.0, "parameter_ratio": 0.95}
    table = table_attention(pd.concat([vit, pd.DataFrame([row])]), params, [VIT])
    whole = vit[vit.variant == "base"].value.iloc[0]
    ffs, attention = (table[table.Shared == label].iloc[0] for label in ("permute", "attention"))
    assert attention["Untuned: kept (%)"] == f"{100 * 40 / whole:.1f}"
    assert attention["Tuned: kept (%)"] == "–" and "±" in ffs["Tuned: kept (%)"]
    assert (attention["Removed"], attention["Parameters (%)"]) == ("4 attentions", "95.0")
    assert len(table) == 2  # no other method, and no ratio at which attention was not shared


def test_fewer_bits_stand_beside_32_for_what_was_evaluated_in_them(params, vit):
    base = vit[vit.variant == "base"].iloc[0].to_dict()
    merged = vit[(vit.variant == "permute-third") & (vit.phase == "tuned")].to_dict("records")
    low = [base | {"precision": "nf4", "value": 76.0, "bytes": base["bytes"] / 5}]
    low += [
        row | {"precision": "int8", "value": 78.0, "bytes": base["bytes"] / 4} for row in merged
    ]
    table = table_bits(pd.concat([vit, pd.DataFrame(low)]), params, [VIT]).set_index("Method")
    whole, small = table.loc["uncompressed"], table.loc["permute"]
    assert (whole["32 bits: kept (%)"], whole["32 bits: bytes (%)"]) == ("100.0", "100.0")
    assert (whole["4 bits: kept (%)"], whole["4 bits: bytes (%)"]) == ("95.0", "20.0")
    assert whole["8 bits: kept (%)"] == small["4 bits: kept (%)"] == "–"
    assert (small["8 bits: kept (%)"], small["8 bits: bytes (%)"]) == ("97.5 ± 0.0", "25.0")
    assert list(table.index) == ["uncompressed", "permute"]  # the others were never in fewer bits
