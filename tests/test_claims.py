"""Verdicts follow the numbers, whichever way they point, and a few seeds decide little."""

import math

import pandas as pd
import pytest
import yaml
from scipy import stats

from study.config import load_params
from study.metrics import Metric
from study.records import COLUMNS
from study.report.claims import table_claims
from study.report.estimates import Estimate, estimate, judge_count
from study.report.paper import find_loss, read_paper
from study.report.results import list_roots, measure_sizes, select_metric, summarise

MODEL = "vit-glyphs"
ACCURACY, PERPLEXITY = Metric("accuracy", "%"), Metric("perplexity", "per token", "lower")


@pytest.fixture
def params(tmp_path, repository):
    """The embedded vision model with all its variants."""
    content = yaml.safe_load((repository / "params.yaml").read_text()) | {"run": [MODEL]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    return load_params(tmp_path)


@pytest.fixture
def paper(repository):
    return read_paper(repository / "results" / "paper.csv")


SIZES = {"sixth": 0.81, "third": 0.8, "half": 0.7, "most": 0.5}


def make_results(params, scores, metric=ACCURACY, base=90.0, sizes=SIZES):
    """results.csv of one model: {variant, or (variant, phase, precision): values by seed}."""
    rows = [{"variant": "base", "phase": "base", "precision": "float32", "value": base}]
    for key, values in scores.items():
        variant, phase, precision = key if isinstance(key, tuple) else (key, "tuned", "float32")
        row = {"variant": variant, "phase": phase, "precision": precision}
        rows += [row | {"seed": seed, "value": value} for seed, value in enumerate(values)]
    for row in rows:
        recipe = params.recipe(row["variant"])
        size = sizes.get(recipe.ratio, 1.0)
        row |= {"model": MODEL, "method": recipe.method, "ratio": recipe.ratio}
        row |= {"metric": metric.name, "unit": metric.unit, "direction": metric.direction}
        row |= {"parameter_ratio": size, "bytes": 100 * size, "layers": WINDOWS.get(row["variant"])}
        row["removed"] = params.count_removed(MODEL, row["variant"])
    return pd.DataFrame(rows).reindex(columns=COLUMNS).astype({"seed": "Int64"})


WINDOWS = {"permute-third": "0-4", "random-1": "1-5", "random-2": "2-6"}


def write_windows(root, scores, metric=ACCURACY, base=90):
    """Window scores before tuning: {method: {window: value}} at a third."""
    folder = root / "results" / "models" / MODEL / "windows"
    folder.mkdir(parents=True, exist_ok=True)
    what = {"metric": metric.name, "unit": metric.unit, "direction": metric.direction}
    for method, by_window in scores.items():
        rows = [{"method": "base", "value": base}]
        shared = {"method": method, "ratio": "third", "removed": 4, "kind": "FF sublayers"}
        rows += [shared | {"layers": w, "value": value} for w, value in by_window.items()]
        pd.DataFrame(rows).assign(**what).to_csv(folder / f"{method}.csv", index=False)


@pytest.fixture
def judge(params, paper, tmp_path):
    """The verdicts on made-up results: {claim: one for each row}."""

    def judge_all(scores, **kwargs):
        results = make_results(params, scores, **kwargs)
        table = table_claims(results, paper, params, list_roots(tmp_path))
        return {claim: part.Verdict.tolist() for claim, part in table.groupby("Claim")}

    return judge_all


ABOUT = "1/3 merged ≈ base: costs at most 2 % (our bound)"
PAPER = "… costs no more than the paper's own model"
ALIGNED = "permute ≥ vanilla, after tuning"
GROWS = "… the more so, the more is removed"
DROPPED = "merge ≥ drop, at the nearest number of parameters"
BEFORE = "permute ≥ vanilla, before tuning"
WINDOW = "the window matters before tuning and little after"
ANCHOR = "the anchor hardly matters: at most 1 % (our bound)"
INT8 = "int8 composes with merging: costs at most 0.5 % (our bound)"

GOOD = {"base-tuned": [90, 90.2, 90.1], "permute-third": [89.5, 89.6, 89.7]}
POOR = {"vanilla-third": [85, 85.1, 85.2], "drop-sixth": [80, 80.1, 80.2]}


def test_a_difference_of_two_samples_is_welchs():
    a, b = pd.Series([22.6, 22.7, 22.9]), pd.Series([21.4, 21.6, 21.8, 21.7])
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    d = estimate((1, a), (-1, b))
    assert d.value - d.margin == pytest.approx(interval.low)
    assert d.value + d.margin == pytest.approx(interval.high)


def test_by_hand_three_seeds_against_three_want_almost_three_standard_errors():
    """Variances of 1: s = √(1/3 + 1/3), four degrees of freedom, t = 2.776."""
    d = estimate((1, pd.Series([9, 10, 11])), (-1, pd.Series([4, 5, 6])))
    assert d.value == 5 and d.margin == pytest.approx(2.776 * math.sqrt(2 / 3), rel=1e-3)


def test_a_lone_sample_is_students():
    change = pd.Series([0.1, -0.2, 0.3])
    interval = stats.ttest_1samp(change, 0).confidence_interval(0.95)
    assert estimate((1, change)).margin == pytest.approx((interval.high - interval.low) / 2)


def test_an_interval_must_leave_the_bound_out():
    assert Estimate(1.0, 0.8).judge() == "holds" and Estimate(-1.0, 0.8).judge() == "does not hold"
    assert Estimate(1.0, 1.2).judge() == Estimate(-1.0, 1.2).judge() == "undecided"
    assert Estimate(-1.0, 0.4).judge(bound=-2.0) == "holds"


def test_a_count_must_be_unlikely_by_chance():
    assert judge_count(8, 8) == "holds" and judge_count(0, 8) == "does not hold"
    assert judge_count(5, 8) == judge_count(2, 2) == judge_count(0, 0) == "undecided"


def test_one_seed_never_decides(judge):
    lone = {name: values[:1] for name, values in (GOOD | POOR).items()}
    found = judge(lone)
    assert {v for claim in (ABOUT, PAPER, ALIGNED, DROPPED) for v in found[claim]} == {"undecided"}


def test_quality_reads_alike_whether_more_or_less_is_better():
    assert ACCURACY.retained(45, 90) == PERPLEXITY.retained(20, 10) == 50
    assert math.isnan(ACCURACY.retained(45, 0.0))  # of nothing no share is left


def test_the_papers_claims_hold_where_they_do(judge):
    found = judge(GOOD | POOR)
    assert found[ABOUT] == found[PAPER] == found[ALIGNED] == found[DROPPED] == ["holds"]


def test_and_do_not_where_they_do_not(judge):
    swapped = {"permute-third": POOR["vanilla-third"], "vanilla-third": GOOD["permute-third"]}
    better = {"base-tuned": GOOD["base-tuned"], "drop-sixth": [89, 89.1, 89.2]}
    found = judge(swapped | better)
    assert found[ABOUT] == found[PAPER] == found[ALIGNED] == found[DROPPED] == ["does not hold"]


def test_the_papers_own_losses_are_those_that_it_prints(paper):
    gpt2 = find_loss(paper, "GPT-2", "third", PERPLEXITY)
    vit = find_loss(paper, "ViT", "third", ACCURACY)
    opus = find_loss(paper, "OPUS-MT", "third", Metric("BLEU"))
    kept = [PERPLEXITY.retained(*reversed(gpt2)), ACCURACY.retained(*reversed(vit))]
    kept.append(Metric("BLEU").retained(*reversed(opus)))
    assert [round(k, 1) for k in kept] == [93.6, 98.6, 93.6]
    assert gpt2[1] - gpt2[0] == pytest.approx(1.11)
    assert find_loss(paper, "ViT", "third", Metric("another metric")) is None


def test_a_loss_between_our_bound_and_the_papers_holds_against_one_of_them(judge):
    """The paper's ViT loses 1.37 %."""
    found = judge({"base-tuned": [100.0, 100.01], "permute-third": [98.4, 98.41]})
    assert (found[ABOUT], found[PAPER]) == (["holds"], ["does not hold"])


def test_without_a_tuned_base_the_untouched_one_is_the_reference(judge):
    found = judge({"permute-third": GOOD["permute-third"]}, base=90.0)
    assert found[ABOUT] == ["holds"]


@pytest.mark.parametrize(("size", "verdict"), [(0.81, "holds"), (0.70, "undecided")])
def test_a_better_model_that_is_much_larger_proves_nothing(judge, size, verdict):
    found = judge(GOOD | POOR, sizes=SIZES | {"sixth": size})
    assert found[DROPPED] == [verdict]


@pytest.mark.parametrize(
    ("drop", "says"), [(0.81, "the drop is larger by 1.0"), (0.79, "the merge is larger by 1.0")]
)
def test_each_row_says_which_side_is_larger(params, paper, tmp_path, drop, says):
    results = make_results(params, GOOD | POOR, sizes=SIZES | {"sixth": drop})
    table = table_claims(results, paper, params, [tmp_path]).set_index("Claim")
    assert says in table.loc[DROPPED, "Statistic"]


def test_gaps_in_perplexity_are_told_in_nats_and_in_percent(judge):
    """Two ruined models keep little of the base, and yet may be far apart."""
    e = 2.718
    scores = {"base-tuned": 1, "permute-third": 1, "vanilla-third": e}
    scores |= {"permute-half": 10, "vanilla-half": 10 * e * e}
    found = judge({n: [v, v] for n, v in scores.items()}, metric=PERPLEXITY, base=1)
    assert found[GROWS] == ["does not hold", "holds"]  # in percent, in nats


def test_gaps_in_accuracy_have_one_scale(judge):
    more = {"permute-half": [88, 88.1, 88.2], "vanilla-half": [70, 70.1, 70.2]}
    assert judge(GOOD | POOR | more)[GROWS] == ["holds"]


def test_seeds_that_disagree_leave_a_claim_undecided(judge):
    noisy = {"vanilla-third": [88, 90, 92], "permute-third": [87, 90, 94]}
    assert judge({"base-tuned": GOOD["base-tuned"]} | noisy)[ALIGNED] == ["undecided"]


@pytest.mark.parametrize(("cost", "verdict"), [(0.1, "holds"), (2.0, "does not hold")])
def test_int8_is_compared_seed_by_seed(judge, cost, verdict):
    """Seeds differ by much more than 8 bits cost, and by the same in both."""
    seeds = [80.0, 85.0, 90.0]
    both = [x - cost + noise for x, noise in zip(seeds, (0, 0.01, -0.01), strict=True)]
    found = judge({"permute-third": seeds, ("permute-third", "tuned", "int8"): both})
    assert found[INT8] == [verdict]


def test_windows_are_judged_by_the_metric_that_scored_them(judge, tmp_path):
    """A downstream task's metric may grow where the windows' perplexity shrinks."""
    windows = [f"{i}-{i + 4}" for i in range(8)]
    write_windows(tmp_path, {"vanilla": dict.fromkeys(windows, 50)}, PERPLEXITY)
    write_windows(tmp_path, {"permute": dict.fromkeys(windows, 60)}, PERPLEXITY)
    assert judge(GOOD, metric=Metric("ROUGE-1"))[BEFORE] == ["does not hold"]
    write_windows(tmp_path, {"permute": dict.fromkeys(windows, 40)}, PERPLEXITY)
    assert judge(GOOD, metric=Metric("ROUGE-1"))[BEFORE] == ["holds"]


@pytest.mark.parametrize(("after", "verdict"), [(89.5, "holds"), (80.0, "does not hold")])
def test_windows_matter_little_where_tuning_makes_them_alike(judge, tmp_path, after, verdict):
    write_windows(tmp_path, {"permute": {"0-4": 90, "1-5": 80, "2-6": 70}})
    two = {
        "permute-third": [89.5, 89.6],
        "random-1": [89.5, 89.6],
        "random-2": [after, after + 0.1],
    }
    assert judge(two)[WINDOW] == [verdict]
    one = {name: values[:1] for name, values in two.items()}
    assert judge(one)[WINDOW] == ["undecided"]


def test_windows_that_never_mattered_need_no_seeds(judge, tmp_path):
    write_windows(tmp_path, {"permute": {"0-4": 90, "1-5": 89.9, "2-6": 89.8}})
    lone = {"permute-third": [89.5], "random-1": [89.4], "random-2": [89.3]}
    assert judge(lone)[WINDOW] == ["does not hold"]


@pytest.mark.parametrize(("middle", "verdict"), [(89.5, "holds"), (85.0, "does not hold")])
def test_anchors_are_compared_over_the_seeds_that_all_have(judge, middle, verdict):
    two = {"permute-third": [89.5, 89.6, 10.0], "anchor-middle": [middle, middle + 0.1]}
    assert judge(two)[ANCHOR] == [verdict]
    assert judge({n: v[:1] for n, v in two.items()})[ANCHOR] == ["undecided"]


def test_int8_rows_never_mix_with_the_others(params):
    scores = {"permute-third": [80.0], ("permute-third", "tuned", "int8"): [40.0]}
    results = make_results(params, scores, base=80)
    assert summarise(select_metric(results, MODEL)).loc["permute-third", "mean"] == 80
    kept = measure_sizes(results, MODEL, params).set_index(["variant", "int8"]).kept
    assert kept["permute-third", False] == 100 and kept["permute-third", True] == 50


def test_every_model_of_the_repository_has_a_paper_model_with_numbers(repository, paper):
    params = load_params(repository)
    stands_for = {params.model(name).paper for name in params.run}
    assert stands_for - {None} == set(paper.model)  # a real model stands for itself


def test_a_claim_that_goes_on_stands_below_the_one_before(repository):
    table = pd.read_csv(repository / "figures" / "claims.csv")
    claims = list(dict.fromkeys(table.Claim))
    assert claims[:4] == [ABOUT, PAPER, ALIGNED, GROWS]
    assert len(set(table.Model[table.Claim == PAPER])) == 4
    adapted = table[(table.Claim == PAPER) & (table.Model == "olmo-dialogues")]
    assert adapted.Statistic.item().endswith("; both tuned through QLoRA")
