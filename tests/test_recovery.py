"""What a GPU computed agrees with what the CPU did; the table of recoveries and its picture."""

import pandas as pd
import pytest

from study.report.recovery import OWN, SIDES, STATE, plot_recovery

METRICS = [OWN, *SIDES]


@pytest.fixture
def table(repository):
    found = pd.read_csv(repository / "results" / "benchmarks" / "recovery.csv")
    return found.fillna({"ratio": "", "calibrated": "", "tuned": ""})


def test_a_gpu_gives_the_cpus_numbers_untuned_and_tuned(table, repository):
    results = pd.read_csv(repository / "results" / "results.csv")
    mine = results[(results.model == "smollm2") & (results.precision == "float32")]
    wide = mine.pivot_table(index=["method", "ratio", "phase"], columns="metric", values="value")
    there, compared = table[table.hardware.str.contains("NVIDIA")], 0
    for row in there[(there.calibrated != "own and reading") & (there.seed < 1)].to_dict("records"):
        if (row["tuned"] or "own") != "own" or row["steps"] > 60 or row["method"] == "base":
            continue
        key = row["method"], row["ratio"], "tuned" if row["tuned"] else "merged"
        if key in wide.index:
            for metric in METRICS[:2]:
                assert row[metric] == pytest.approx(wide.loc[key, metric], rel=1e-3), (key, metric)
            quiz = row[METRICS[2]] - wide.loc[key, METRICS[2]]
            assert abs(quiz) < 0.4  # one of 300 questions
            compared += 1
    assert compared >= 10


def test_states_that_are_compared_were_tuned_alike(table):
    tuned = table[table.tuned != ""]
    for _, part in tuned.groupby(["tuned", "steps", "seed"]):
        assert part[["batch_size", "precision"]].drop_duplicates().shape[0] == 1
        kinds = part.hardware.str.contains("NVIDIA")
        alike = kinds.all() or not kinds.any()
        assert alike or set(part.precision) == {"float32"}  # in which both agree: see above
    assert not table.duplicated([*STATE, "tuned", "steps", "seed"]).any()


def test_the_picture_shows_every_way_before_and_after(table):
    short = table[table.steps.isin([0, 60])]
    axes = plot_recovery(short).axes
    shown = short[short.ratio != "half"]
    texts = [text.get_text() for text in axes[0].texts]
    assert len(texts) == shown.groupby(STATE).ngroups and len(set(texts)) == len(texts)
    hollow = [line for line in axes[1].get_lines() if line.get_markerfacecolor() == "white"]
    assert len(hollow) == (shown.tuned == "").sum()
