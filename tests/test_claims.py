"""Verdicts follow the numbers, whichever way they point."""

import pandas as pd
import pytest

from study.report.claims import judge, table_claims
from study.config import load_params
from study.records import COLUMNS
from study.report.results import retained, sizes_and_quality, summarise

MODEL = "vit-glyphs"


def make_results(metric, base, scores):
    """results.csv of one model: {(variant, phase, precision): one value for each seed}."""
    rows = [{"variant": "base", "phase": "base", "precision": "float32", "value": base}]
    for (variant, phase, precision), values in scores.items():
        row = {"variant": variant, "phase": phase, "precision": precision}
        rows += [row | {"seed": seed, "value": value} for seed, value in enumerate(values)]
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    method = table.variant.str.split("-").str[0]
    ratio = {"third": 0.8, "half": 0.7, "most": 0.5, "sixth": 0.81}
    sizes = table.variant.str.split("-").str[1].map(ratio).fillna(1.0)
    return table.assign(
        model=MODEL, metric=metric, method=method, parameter_ratio=sizes, bytes=100 * sizes
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / MODEL).mkdir()
    windows = "method,ratio,removed,window,{0}\nbase,,0,,90\n"
    windows += "".join(
        f"{method},third,2,{window},{score}\n"
        for method, score in (("vanilla", 50), ("permute", 60))
        for window in ("0-2", "1-3")
    )
    (tmp_path / MODEL / "windows.csv").write_text(windows.format("accuracy"))
    pairs = [(kind, i, j) for kind in ("ff", "attention") for i in range(3) for j in range(3)]
    likeness = {"ff": 0.8, "attention": 0.2}
    lines = [f"{kind},encoder {i},encoder {j},{likeness[kind]}" for kind, i, j in pairs]
    (tmp_path / MODEL / "cka.csv").write_text("kind,a,b,cka\n" + "\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def verdicts(folder, tiny):
    _, params = tiny

    def judge_all(metric, base, scores):
        table = table_claims(make_results(metric, base, scores), params, folder)
        return {claim: part.Verdict.tolist() for claim, part in table.groupby("Claim")}

    return judge_all


def tuned(values):
    return {(variant, "tuned", "float32"): v for variant, v in values.items()}


def test_a_difference_must_clear_two_standard_errors():
    assert judge(1.0, 0.4) == "holds" and judge(-1.0, 0.4) == "does not hold"
    assert judge(1.0, 0.6) == judge(-1.0, 0.6) == "undecided"
    assert judge(-1.0, 0.2, bound=-2.0) == "holds"


def test_quality_reads_alike_whether_more_or_less_is_better():
    assert retained(45, 90, "accuracy") == retained(20, 10, "perplexity") == 50


GOOD = {"base-tuned": [90, 90.2, 90.1], "permute-third": [89.5, 89.6, 89.7]}
POOR = {"vanilla-third": [85, 85.1, 85.2], "drop-sixth": [80, 80.1, 80.2]}


def test_the_papers_claims_hold_where_they_do(verdicts):
    found = verdicts("accuracy", 90, tuned(GOOD | POOR))
    assert found["1/3 merged ≈ base (within 2 %)"] == ["holds"]
    assert found["permute ≥ vanilla, after tuning"] == ["holds"]
    assert found["permute ≥ vanilla, before tuning"] == ["holds"]
    assert found["merge ≥ drop, at the nearest number of parameters"] == ["holds"]
    assert found["FF outputs are more alike than attention outputs"] == ["holds"]


def test_and_do_not_where_they_do_not(verdicts):
    swapped = {"permute-third": POOR["vanilla-third"], "vanilla-third": GOOD["permute-third"]}
    worse = tuned({"base-tuned": GOOD["base-tuned"], "drop-sixth": [89, 89.1, 89.2]} | swapped)
    found = verdicts("accuracy", 90, worse)
    assert found["1/3 merged ≈ base (within 2 %)"] == ["does not hold"]
    assert found["permute ≥ vanilla, after tuning"] == ["does not hold"]
    assert found["merge ≥ drop, at the nearest number of parameters"] == ["does not hold"]


def test_the_larger_of_two_models_cannot_win(verdicts):
    small = {"drop-half": POOR["drop-sixth"]}  # removes 30 %, the merge 20 %
    found = verdicts("accuracy", 90, tuned(GOOD | small))
    assert found["merge ≥ drop, at the nearest number of parameters"] == ["undecided"]


@pytest.mark.parametrize(("after", "verdict"), [(89.0, "holds"), (80.0, "does not hold")])
def test_windows_matter_little_where_tuning_makes_them_alike(folder, tiny, after, verdict):
    names = {"permute-third": "0-2", "random-1": "1-3", "random-2": "2-4"}
    scores = {"permute-third": [89.5], "random-1": [89.5], "random-2": [after]}
    table = make_results("accuracy", 90, tuned(scores))
    table["window"] = table.variant.map(names)
    lines = [f"permute,third,2,{w},{90 - 10 * i}" for i, w in enumerate(names.values())]
    vanilla = [line.replace("permute", "vanilla") for line in lines]
    text = "\n".join(["method,ratio,removed,window,accuracy", "base,,0,,90", *lines, *vanilla])
    (folder / MODEL / "windows.csv").write_text(text + "\n")
    claims = table_claims(table, tiny[1], folder).set_index("Claim")
    assert claims.loc["the window matters before tuning and little after", "Verdict"] == verdict


def test_gaps_in_perplexity_are_compared_in_nats(verdicts):
    """Two ruined models keep little of the base, and yet may be far apart."""
    e = 2.718
    scores = {"base-tuned": 1, "permute-third": 1, "vanilla-third": e}
    scores |= {"permute-half": 10, "vanilla-half": 10 * e * e}
    found = verdicts("perplexity", 1, tuned({name: [v, v] for name, v in scores.items()}))
    assert found["… the more so, the more is removed"] == ["holds"]


def test_windows_are_judged_by_the_metric_that_scored_them(verdicts, folder):
    """A downstream task's metric may grow where the windows' perplexity shrinks."""
    path = folder / MODEL / "windows.csv"
    path.write_text(path.read_text().replace("accuracy", "perplexity"))
    found = verdicts("ROUGE-1", 90, tuned(GOOD))
    assert found["permute ≥ vanilla, before tuning"] == ["does not hold"]


def test_seeds_that_disagree_leave_a_claim_undecided(verdicts):
    noisy = {"vanilla-third": [88, 90, 92], "permute-third": [87, 90, 94]}
    found = verdicts("accuracy", 90, tuned({"base-tuned": GOOD["base-tuned"]} | noisy))
    assert found["permute ≥ vanilla, after tuning"] == ["undecided"]


def test_int8_rows_never_mix_with_the_others():
    scores = tuned({"permute-third": [80.0]}) | {("permute-third", "tuned", "int8"): [40.0]}
    results = make_results("accuracy", 80, scores)
    assert summarise(results[results.precision == "float32"]).loc["permute-third", "mean"] == 80
    kept = sizes_and_quality(results, MODEL).set_index(["variant", "precision"]).kept
    assert kept["permute-third", "float32"] == 100 and kept["permute-third", "int8"] == 50


def test_every_model_of_the_repository_has_a_paper_model_with_numbers(repository):
    params = load_params(repository)
    paper = pd.read_csv(repository / "results" / "paper.csv")
    assert {params.models[name].paper for name in params.running} == set(paper.model)
