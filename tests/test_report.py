"""The report shows what there is and names what is not: notebook 7 on results of all kinds."""

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from ffmerge.catalogue import list_methods
from study.config import load_params
from study.metrics import Metric
from study.places import PUBLISH
from study.report import figures, scores, tables
from study.report.labels import find_box, note_clipped, write_apart
from study.report.page import name_absent, write_table
from study.report.paper import read_paper
from study.report.pareto import mark_best, plot_pareto
from study.report.real import table_readings
from study.report.results import (
    Reference,
    collect_results,
    find_reference,
    list_missing,
    select_metric,
    summarise,
)
from study.report.style import (
    BASE,
    STYLE,
    TUNED,
    WIDTH,
    draw_points,
    draw_references,
    find_look,
    find_range,
    finish,
    make_panels,
    use_style,
)

VIT, OLMO, SMOLLM2 = "vit-glyphs", "olmo-dialogues", "smollm2"
PERPLEXITY = Metric("perplexity", "", "lower")


@pytest.fixture
def scratch(tmp_path, repository, inside, monkeypatch):
    """A repository with the committed results of one model, and params.yaml with some changes."""
    monkeypatch.setenv(PUBLISH, "1")
    monkeypatch.setitem(STYLE, "savefig.dpi", 20)  # quick

    def make(model=VIT, keep=None, change=lambda content, entry: None):
        content = yaml.safe_load((repository / "params.yaml").read_text()) | {"run": [model]}
        if keep is not None:
            content["recipes"] = {name: content["recipes"][name] for name in keep}
            content["models"][model] |= {"variants": None, "tuned": None}
        for name, entry in content["models"].items():  # of other models: the recipes may be gone
            if name != model:
                entry |= {"variants": None, "tuned": None}
        change(content, content["models"][model])
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        results = tmp_path / "results" / "models"
        results.mkdir(parents=True, exist_ok=True)
        copy_tree(repository / "results" / "models" / model, results / model)
        (tmp_path / "results" / "paper.csv").write_bytes(
            (repository / "results" / "paper.csv").read_bytes()
        )
        return inside(tmp_path)

    yield make
    plt.close("all")


def copy_tree(source, target):
    for path in source.rglob("*.csv"):
        (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        (target / path.relative_to(source)).write_bytes(path.read_bytes())


@pytest.fixture
def drawn(repository, monkeypatch, capsys):
    """Run the code of notebook 7 in the current folder: what it prints, and the page it writes."""
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))

    def run(root, folder="figures"):
        notebook = nbformat.read(repository / "notebooks" / "7_figures.ipynb", as_version=4)
        names = {}
        for cell in (c for c in notebook.cells if c.cell_type == "code"):
            exec(cell.source, names)
        return capsys.readouterr().out, (root / folder / "README.md").read_text()

    return run


@pytest.fixture
def report(drawn, undrawn):
    """As `drawn`; but the figures are not."""
    return drawn


def forget(root, *patterns):
    for pattern in patterns:
        for path in root.glob(f"results/models/*/{pattern}"):
            path.unlink()


def test_nothing_is_left_out_of_what_is_published(scratch, drawn):
    said, page = drawn(scratch())
    assert "left out: nothing" in said
    # Only what is about other models: no adapters, no translator, no perplexity.
    absent = page.count("Left out: nothing of it was evaluated.")
    assert absent == len(["Table 4", "copying", "Table 10, continued", "Table 11"])


@pytest.mark.parametrize(
    "keep",
    [
        ["base"],
        ["base", "vanilla-half", "permute-most", "random-1", "anchor-last"],
        pytest.param(["base", "base-tuned"], marks=pytest.mark.slow),
        pytest.param(["base", "permute-third"], marks=pytest.mark.slow),
        pytest.param(["base", "base-tuned", "drop-sixth"], marks=pytest.mark.slow),
    ],
    ids="+".join,
)
def test_any_variants_make_a_report(scratch, report, keep):
    root = scratch(keep=keep)
    said, page = report(root)
    assert "left out: nothing" in said and "Left out: nothing of it was evaluated." in page
    published = pd.read_csv(root / "results" / "results.csv")
    assert set(published.variant) == set(keep)


def test_a_model_without_third_and_half_makes_a_report(scratch, report):
    def change(content, entry):
        entry["removed"], entry["dropped"] = {"most": 11}, {}
        entry["tuned"] = None

    _, page = report(scratch(change=change))
    assert "permute-most" in page and "permute-third" not in page


def test_variants_that_were_not_evaluated_are_named(scratch, report):
    root = scratch()
    forget(root, "evals/permute-third.csv", "evals/drop-*.csv", "evals/base-tuned.csv", "cka.csv")
    forget(root, "windows/vanilla.csv", "curves/permute-half-*.csv")
    said, _ = report(root)
    missing = "base-tuned", "permute-third", "drop-sixth", "drop-third"
    assert ", ".join(f"{VIT}/{name}" for name in missing) in said
    assert f"Figures 5 and 6 · {VIT}: which sublayers are alike?: left out" in said


def test_without_int8_table_3_says_so(scratch, report):
    root = scratch()
    for path in root.glob("results/models/*/evals/*.csv"):
        rows = pd.read_csv(path)
        rows[rows.precision != "int8"].to_csv(path, index=False)
    _, page = report(root)
    assert "**Table 3 · Quantization, 1/3 removed**\n\nLeft out" in page


def test_another_task_through_adapters_makes_a_report(scratch, report):
    """Nothing is known of its metrics but their columns."""
    root = scratch(OLMO)
    for path in root.glob("results/models/*/evals/*.csv"):
        rows = pd.read_csv(path)
        rows = rows[rows.metric.isin(["ROUGE-1"]) & (rows.phase != "first words")]
        rows.assign(metric="F1", unit="%").to_csv(path, index=False)
    _, page = report(root)
    assert "F1 (%)" in page and "Table 4 · After QLoRA" in page


def test_a_base_that_was_not_evaluated_takes_its_model_out_with_a_sentence(scratch):
    root = scratch()
    forget(root, "evals/base.csv")
    with pytest.raises(FileNotFoundError, match="no model of vit-glyphs has been evaluated"):
        collect_results([root], load_params(root))


def test_more_seeds_than_asked_for_stay_valid_and_are_left_out(scratch):
    root = scratch(change=lambda content, entry: content.update(seeds=[1]))
    params = load_params(root)
    results = collect_results([root], params)
    assert set(results[results.phase == "tuned"].seed) <= {0, 1}
    tuned = summarise(select_metric(results, VIT))
    assert tuned.seeds["permute-third"] == 1 and np.isnan(tuned["std"]["permute-third"])


def test_seeds_that_are_missing_are_named_and_the_others_are_taken(scratch):
    root = scratch(change=lambda content, entry: content.update(seeds=[0, 1, 2, 7]))
    params = load_params(root)
    results = collect_results([root], params)
    assert f"{VIT}/permute-third (seed 7)" in list_missing(results, params)
    assert summarise(select_metric(results, VIT)).seeds["permute-third"] == 3


def test_a_report_by_hand_leaves_what_is_published_alone(scratch, report, monkeypatch):
    root = scratch(keep=["base", "permute-third"])
    monkeypatch.delenv(PUBLISH)
    report(root, "scratch/figures")
    assert not (root / "figures").exists() and (root / "scratch/figures/README.md").exists()


def test_every_row_tells_how_its_weights_were_trained(scratch):
    root = scratch()
    curve = root / "results/models" / VIT / "curves/permute-third-1.csv"
    pd.read_csv(curve).assign(trained_in="float16", hardware="another").to_csv(curve, index=False)
    rows = collect_results([root], load_params(root)).set_index(["variant", "phase", "seed"])
    assert rows.loc[("permute-third", "tuned", 1), "hardware"].eq("another").all()
    assert rows.loc[("permute-third", "tuned", 1), "trained_in"].eq("float16").all()
    assert rows.loc[("permute-third", "tuned", 0), "trained_in"].eq("float32").all()
    assert rows[rows.index.get_level_values("phase") != "tuned"].trained_in.eq("bfloat16").all()


def test_the_uncompressed_model_is_told_untuned_and_tuned_alike(scratch):
    root = scratch()
    params = load_params(root)
    rows = select_metric(collect_results([root], params), VIT)
    reference = find_reference(rows, VIT, params)
    assert reference.untuned == 87.85 and reference.value == reference.tuned != reference.untuned
    alone = find_reference(rows[rows.phase == "base"], VIT, params)
    assert alone.tuned is None and alone.value == alone.untuned


def test_both_are_drawn_after_tuning_and_one_before():
    labels = {}
    for tuned in (False, True):
        _, ax = plt.subplots()
        draw_references(ax, Reference(20.9, 21.6), tuned)
        labels[tuned] = [line.get_label() for line in ax.lines]
    assert labels == {
        False: ["uncompressed"],
        True: ["uncompressed, tuned alike", "uncompressed"],
    }


def test_a_base_that_was_never_taught_the_task_does_not_hide_the_rest():
    _, ax = plt.subplots()
    ax.plot([0, 1], [97, 99])
    draw_references(ax, Reference(53.8, 99.2, taught=False))
    assert ax.get_ylim()[0] > 90 and "53.8, off the axis" in ax.lines[-1].get_label()


def test_one_value_has_no_bar_and_several_have():
    _, ax = plt.subplots()
    look = find_look("permute")
    draw_points(ax, [1, 2], [5, 6], [np.nan, np.nan], look)
    assert not ax.containers
    draw_points(ax, [1, 2], [5, 6], [np.nan, 0.5], look)
    assert len(ax.containers) == 1


def test_a_bar_shorter_than_a_marker_is_left_out_with_its_ends():
    figure, axes = make_panels(1, 3)
    draw_points(axes[0], [0, 1, 2], [0, 50, 100], [0.1, 20, np.nan], find_look("drop"))
    finish(figure, axes)
    _, caps, (bars,) = axes[0].containers[0].lines
    assert [ends[:, 1].tolist() for ends in bars.get_segments()] == [[30, 70]]
    assert [cap.get_ydata().tolist() for cap in caps] == [[30], [70]]


def test_labels_stand_apart():
    figure, axes = make_panels(1, 3)
    axes[0].plot([0, 1, 1.01, 2], [0, 1, 1.01, 2], "o")
    finish(figure, axes)
    taken = [find_box(axes[0], (1, 1), (1.01, 1.01), 3)]
    for below in (False, True, False, True):
        write_apart(axes[0], "4 FFs", (1, 1), "black", taken, below)
    boxes = [text.get_window_extent() for text in axes[0].texts]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in (*boxes[:i], taken[0]))
    first, second = (text.get_position()[1] for text in axes[0].texts[:2])
    assert first > 0 > second


@pytest.mark.parametrize(
    ("value", "says"), [(9.1, "↓ 9.1"), (60.3, "↑ 60.3"), (2618, "↑ 2,618"), (-200, "↓ -200.0")]
)
def test_an_arrow_points_to_what_lies_beyond_the_axis(value, says):
    """A perplexity below 100 lies above, too."""
    _, ax = plt.subplots()
    ax.set_ylim(20, 40)
    note_clipped(ax, (0, value), "black")
    assert ax.texts[0].get_text() == says
    assert ax.texts[0].xy[1] == (0 if "↓" in says else 1)


def test_a_start_that_would_hide_what_tuning_does_is_marked(repository):
    params = load_params(repository)
    curves = scores.read_curves([repository], "marian-cldr", params)
    axes = figures.plot_curves(curves, Metric("BLEU"), params, "marian-cldr").axes
    marked = [{text.get_text() for text in ax.texts} for ax in axes]
    assert marked == [{"↓ 55.3"}, {"↓ 69.1", "↓ 21.9"}, set()]
    assert [ax.get_ylim()[0] > 85 for ax in axes] == [True, True, False]
    curves = scores.read_curves([repository], "gpt2-docs", params)
    axes = figures.plot_curves(curves, PERPLEXITY, params, "gpt2-docs").axes
    assert {text.get_text() for text in axes[1].texts} == {"↑ 60.2", "↑ 39.6"}


def test_tuned_alike_has_a_mark_of_its_own(repository):
    params = load_params(repository)
    results = collect_results([repository], params)
    figure = plot_pareto(results, params)
    markers = {t.get_text(): h.get_marker() for t, h in find_legend(figure)}
    assert markers["uncompressed, tuned alike = 100 %"] == TUNED["marker"]
    assert markers["uncompressed"] == BASE["marker"] != TUNED["marker"]
    results = results[results.variant != "base-tuned"]
    found = {text.get_text() for text, _ in find_legend(plot_pareto(results, params))}
    assert "uncompressed = 100 %" in found and not any("alike" in label for label in found)


def find_legend(figure):
    legend = figure.legends[0]
    return list(zip(legend.get_texts(), legend.legend_handles, strict=True))


def test_similarity_has_layers_as_numbers(scratch):
    root = scratch()
    pairs = scores.read_similarity([root], VIT)
    assert pairs.columns.tolist() == ["kind", "stack", "a", "b", "cka"] and len(pairs) == 2 * 12**2
    assert pairs.a.max() == 11 and (pairs[pairs.a == pairs.b].cka == 1).all()
    forget(root, "cka.csv")
    assert scores.read_similarity([root], VIT).empty


def test_an_outlier_does_not_hide_the_rest():
    values = pd.Series([2618.0, 29, 30, 32, 33, 35, 36, 44])
    assert find_range(values, PERPLEXITY) == (29, 44)
    assert find_range(values, Metric("accuracy", "%")) == (29, 2618)  # here it is the best
    assert find_range(pd.Series([8.0, 50, 60, 92]), Metric("BLEU")) == (8, 92)


def test_clipped_windows_are_marked_with_their_score(scratch):
    root = scratch()
    params = load_params(root)
    windows = scores.read_windows([root], VIT, params)
    ax = figures.plot_windows(windows, VIT, params).axes[0]
    marked = {text.get_text() for text in ax.texts}
    assert marked == {"↓ 9.1", "↓ 6.2"} and ax.get_ylim()[0] > 70
    assert windows.method.eq("base").sum() == 1


def test_logarithmic_and_linear_panels_are_marked(repository):
    params = load_params(repository)
    results, paper = (
        collect_results([repository], params),
        read_paper(repository / "results/paper.csv"),
    )
    axes = figures.plot_removed(results, paper, params, "gpt2-docs").axes
    assert [ax.get_ylabel().split("\n")[1] for ax in axes] == [
        "linear scale",
        "log scale",
        "linear scale",
    ]
    plt.close("all")


def test_no_figure_is_wider_than_a_page_and_a_lone_panel_is_half_of_it(scratch):
    root = scratch(SMOLLM2)
    params = load_params(root)
    curves = scores.read_curves([root], SMOLLM2, params)
    figure = figures.plot_curves(curves, Metric("perplexity"), params, SMOLLM2)
    assert len(figure.axes) == 1 and figure.get_figwidth() == WIDTH / 2


def test_the_best_at_its_size_is_beaten_by_no_smaller_model():
    table = pd.DataFrame({"size": [20, 40, 40, 80, 100], "kept": [95, 97, 96, 90, 100]})
    assert mark_best(table).best.tolist() == [True, True, False, False, True]


def test_permuting_helps_where_it_is_better_in_the_metrics_own_direction():
    rows = {"ratio": "third", "removed": 4, "metric": "x", "unit": ""}
    frame = pd.DataFrame(
        [
            {"method": "vanilla", "layers": "0-4", "value": 30.0},
            {"method": "permute", "layers": "0-4", "value": 20.0},
            {"method": "vanilla", "layers": "1-5", "value": 30.0},
            {"method": "permute", "layers": "1-5", "value": 34.0},
        ]
    ).assign(**rows)
    for direction, median in (("lower", "+3.00"), ("higher", "-3.00")):
        counted = scores.count_helped(frame.assign(direction=direction)).iloc[0]
        assert (counted["Windows"], counted["Permute better"]) == (2, 1)
        assert counted["Median gain"] == median
    assert scores.count_helped(frame[frame.method == "permute"]).empty


def test_every_method_has_a_look_of_its_own():
    looks = [find_look(name) for name in list_methods()] + [BASE, TUNED]
    assert find_look("base") == BASE
    assert len({(look["color"], look["marker"]) for look in looks}) == len(looks)


def test_a_printed_table_has_one_minus_and_windows_keep_their_hyphens(tmp_path):
    row = {"Layers": "3-7", "Change": "here -1.5 ± 2.0 %, before -3 (-4)", "Gap": "-0.1 / +2 / -7"}
    told = write_table(pd.DataFrame([row]), tmp_path, "table", "Title")
    assert "here −1.5 ± 2.0 %, before −3 (−4)" in told and "−0.1 / +2 / −7" in told
    assert "3-7" in told and told == (tmp_path / "table.md").read_text()
    assert pd.read_csv(tmp_path / "table.csv").iloc[0].to_dict() == row


def test_an_empty_table_is_a_sentence_and_absent_models_are_named(tmp_path):
    empty = pd.DataFrame()
    assert "Left out" in write_table(empty, tmp_path, "table", "Title", "a note")
    assert "a note" not in (tmp_path / "table.md").read_text()
    assert name_absent(pd.DataFrame({"Model": ["a"]}), ["a", "b"]).endswith("left out: b.")
    assert name_absent(pd.DataFrame({"Model": ["a"]}), ["a"]) == ""


def test_the_readmes_table_has_at_most_ten_rows(repository):
    params = load_params(repository)
    results, paper = (
        collect_results([repository], params),
        read_paper(repository / "results/paper.csv"),
    )
    overview = tables.table_overview(results, paper, params)
    tuned = {name for name in params.run if params.compared(name)}  # what is not is no row
    assert 1 <= len(overview) <= 10 and set(overview.Model) == tuned


def test_merging_is_drawn_against_dropping_where_both_are(repository):
    params, table = load_params(repository), pd.read_csv(repository / "results" / "results.csv")
    assert figures.plot_reduction(table, params, "gpt2-docs") is not None
    for method in ("permute", "drop"):
        assert figures.plot_reduction(table[table.method != method], params, "gpt2-docs") is None


def test_a_model_that_is_never_tuned_is_shown_as_it_was_merged(repository):
    params, table = load_params(repository), pd.read_csv(repository / "results" / "results.csv")
    paper, model = read_paper(repository / "results/paper.csv"), "dinov2"
    use_style()  # where titles stand
    removed = figures.plot_removed(table, paper, params, model)
    assert all(ax.get_title(loc="left").endswith("removed, not tuned") for ax in removed.axes)
    (before,) = figures.plot_reduction(table, params, model).axes  # and no empty panel beside it
    assert before.get_title(loc="left") == "before tuning"
    full = tables.table_full(table, paper, params)
    rows = full[full.Model == model].set_index("Variant")
    assert (rows["After tuning"] == "–").all() and rows["Before tuning"].str.match(r"\d").all()
    assert {"base", "permute-third", "permute-half", "drop-third"} <= set(rows.index)
    assert model not in set(tables.table_overview(table, paper, params).Model)


def test_what_a_model_reads_is_told_of_the_tuned_base_too(repository):
    params, table = load_params(repository), pd.read_csv(repository / "results" / "results.csv")
    read = table_readings(table, params, "smollm2")
    states = list(zip(read.Variant, read.State, strict=True))
    assert states[:2] == [("base", "untuned"), ("base-tuned", "tuned")]
    assert {("permute-third", "untuned"), ("permute-third", "tuned")} < set(states)


def test_a_legend_of_long_names_stays_inside_its_figure():
    figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
    for i in range(8):
        ax.plot([0, 1], [0, i], label=f"a method that has a rather long name, {i}")
    finish(figure, [ax])
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width
    assert len(legend.get_texts()) == 8
