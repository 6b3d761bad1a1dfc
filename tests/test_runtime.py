"""The table of what tying and pruning buy at run time, and its picture."""

import pandas as pd
import pytest

from study.report.runtime import ROWS, find_looks, plot_runtime


@pytest.fixture
def table(repository):
    return pd.read_csv(repository / "results" / "benchmarks" / "runtime.csv")


def test_tying_saves_state_and_transfers_and_untied_nothing(table):
    for _, part in table.groupby("model"):
        part = part.set_index("variant")
        whole, tied, untied = (part.loc[v] for v in ("uncompressed", "permute", "permute, untied"))
        exact = ["parameters", "weight_bytes", "gradient_bytes", "optimizer_bytes", "moved_bytes"]
        assert (tied[exact] < whole[exact]).all() and (untied[exact] == whole[exact]).all()
        saved = whole.weight_bytes - tied.weight_bytes
        assert whole.moved_bytes - tied.moved_bytes == whole.gradient_bytes - tied.gradient_bytes
        assert saved == 4 * (whole.parameters - tied.parameters)


def test_the_largest_batches_were_seen_to_fit(table):
    assert (table.peak_at_largest_bytes <= table.budget_bytes).all()
    assert table.groupby("model").budget_bytes.nunique().eq(1).all()


def test_the_picture_has_a_panel_for_every_model_and_a_mark_for_every_quantity(table):
    two = pd.concat([table[table.model == "vit-glyphs"].assign(model=name) for name in "ab"])
    axes = plot_runtime(two).axes
    assert [ax.get_title(loc="left") or ax.get_title() for ax in axes] == ["a", "b"]
    lines = axes[0].get_lines()
    assert [line.get_label() for line in lines[:-1]] == [x["label"] for x in find_looks().values()]
    assert all(len(line.get_xdata()) == len(ROWS) for line in lines[:-1])
    assert lines[-1].get_xdata()[0] == 100
