"""The tables of results beside the paper's, from results.csv and paper.csv; no number is typed.

Each takes results.csv, what `read_paper` returned and params.yaml, and has one row for everything
that was evaluated; what was not is left out.
"""

from collections.abc import Callable

import pandas as pd

from study.config import Params
from study.metrics import Metric
from study.report.choices import find_variant, list_shown, name_anchors, name_windows
from study.report.paper import find_loss, print_theirs, select_paper
from study.report.results import (
    Reference,
    find_reference,
    list_models,
    read_metric,
    select_metric,
    shorten_kind,
    summarise,
)

LARGEST = 10  # rows of the README's table


def table_full(results: pd.DataFrame, paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Table 10: results before and after tuning at every count removed, the paper's beside ours."""
    rows = []
    for model in list_models(results, params):
        part = select_metric(results, model)
        metric, reference = read_metric(part), find_reference(part, model, params)
        tuned, merged, base = (summarise(part, phase) for phase in ("tuned", "merged", "base"))
        theirs = select_paper(paper, params.model(model).paper, 10)
        is_tuned = params.model(model).finetune is not None
        shown = [name for name in list_shown(params, model) if name != "base"]
        states = {"base": base} | dict.fromkeys(shown, tuned if is_tuned else merged)
        for variant, table in states.items():
            if variant not in table.index:
                continue
            row = table.loc[variant]
            rows.append(
                {
                    "Model": model,
                    "Variant": variant,
                    "Window": _window(row),
                    "Removed": count_removed(row, params, model),
                    "Parameters removed (%)": f"{100 * (1 - row.parameter_ratio):.1f}",
                    "Metric": metric.label,
                    "Before tuning": _number(
                        base if row.method == "base" else merged, variant, base
                    ),
                    "After tuning": "–" if variant == "base" or not is_tuned else spread(row),
                    "Of the base (%)": _share(metric, row, reference.untuned, reference.taught),
                    "Of the base tuned alike (%)": _share(metric, row, reference.tuned),
                    "Paper": print_theirs(theirs, variant),
                }
            )
    return pd.DataFrame(rows)


def table_windows(results: pd.DataFrame, paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Table 1: the best window and random ones, a third removed."""
    return _compare_variants(results, paper, params, 1, name_windows)


def table_anchors(results: pd.DataFrame, paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Table 2: the first, the middle and the last sublayer as anchor, a third removed."""
    return _compare_variants(results, paper, params, 2, name_anchors)


def _compare_variants(
    results: pd.DataFrame,
    paper: pd.DataFrame,
    params: Params,
    number: int,
    find_names: Callable[[Params, str, str], dict[str, str]],
) -> pd.DataFrame:
    rows = []
    for model in list_models(results, params):
        part = select_metric(results, model)
        tuned, merged = summarise(part), summarise(part, "merged")
        names = {v: n for v, n in find_names(params, model, "third").items() if v in tuned.index}
        theirs = select_paper(paper, params.model(model).paper, number)
        for variant, name in names.items() if len(names) > 1 else ():  # one has no other
            rows.append(
                {
                    "Model": model,
                    "": name,
                    "Window": _window(tuned.loc[variant]),
                    "Metric": read_metric(part).label,
                    "Before tuning": _number(merged, variant),
                    "After tuning": spread(tuned.loc[variant]),
                    "Seeds": int(tuned.loc[variant, "seeds"]),
                    "Paper": print_theirs(theirs, variant),
                }
            )
    return pd.DataFrame(rows)


def table_int8(results: pd.DataFrame, paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Table 3, and the head-to-head: int8 alone, merging alone, both; sizes are total bytes."""
    rows = []
    for model in list_models(results, params):
        if select_metric(results, model, int8=True).empty:
            continue
        theirs = select_paper(paper, params.model(model).paper, 3)
        whole = summarise(select_metric(results, model), "base").bytes.iloc[0]
        merge = find_variant(params, model, "permute", "third")
        for variant, name in (("base", "uncompressed"), (merge, "merge")):
            for int8 in (False, True):
                part = select_metric(results, model, int8=int8)
                table = summarise(part, "base" if variant == "base" else "tuned")
                if variant not in table.index:
                    continue
                row, said = table.loc[variant], theirs[theirs.int8 == int8]
                said = said[said.variant == variant]
                metric = read_metric(part)
                rows.append(
                    {
                        "Model": model,
                        "": name + " + int8" * int8,
                        "Metric": metric.label,
                        "Performance": spread(row),
                        "Bytes": f"{int(row.bytes):,}",
                        "Size remaining (%)": f"{100 * row.bytes / whole:.1f}",
                        "Paper: performance": print_theirs(said, metric.name, "metric"),
                        "Paper: size remaining (%)": print_theirs(said, "compression", "metric"),
                    }
                )
    return pd.DataFrame(rows)


def table_adapters(results: pd.DataFrame, paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Table 4: models tuned through adapters, by all metrics of the task that they learn."""
    rows = []
    for model in list_models(results, params):
        if not params.model(model).adapts:
            continue
        part = results[(results.model == model) & (results.precision != "int8")]
        part = part[~part.metric.isin(_list_notes(part).metric)]
        theirs = select_paper(paper, params.model(model).paper, 4)
        wanted = [(phase, "base", name) for phase, name in _UNTUNED.items()]
        wanted += [("tuned", v, v) for v in params.compared(model) if v != "base"]
        for phase, variant, name in wanted:
            mine = part[(part.phase == phase) & (part.variant == variant)]
            if mine.empty:
                continue
            said = theirs[theirs.variant == variant] if phase == "tuned" else theirs.iloc[:0]
            rows.append(_describe_adapted(mine, phase, {"Model": model, "": name}, said, theirs))
    return pd.DataFrame(rows).fillna("–")


_UNTUNED = {"first words": "first words, no model", "base": "base, not tuned"}


def _describe_adapted(
    mine: pd.DataFrame, phase: str, names: dict, said: pd.DataFrame, theirs: pd.DataFrame
) -> dict:
    first = mine.iloc[0]
    removed = f"{100 * (1 - first.parameter_ratio):.1f}"
    row = names | {"Window": _window(first)}
    row["Parameters removed (%)"] = "–" if phase == "first words" else removed
    for _, rows in mine.groupby("metric", sort=False):
        row[read_metric(rows).label] = spread(summarise(rows, phase).iloc[0])
    for metric in theirs.metric.unique():
        row[f"Paper: {metric}"] = print_theirs(said, metric, "metric")
    return row


def table_copying(results: pd.DataFrame) -> pd.DataFrame:
    """What the base of a summariser can already copy: notes exactly right, slot by slot."""
    notes = _list_notes(results)
    notes = notes[notes.unit == "%"]  # and not a perplexity, where nothing was compressed
    if notes.empty:
        return notes
    wide = notes.pivot(index="model", columns="metric", values="value").round(1)
    return wide.rename_axis(index="Model", columns=None).reset_index()


def _list_notes(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of metrics that only the base has: what it can do before it learns a task."""
    keys = ["model", "metric"]
    others = rows[rows.phase != "base"]
    learnt = pd.MultiIndex.from_frame(rows[keys]).isin(pd.MultiIndex.from_frame(others[keys]))
    return rows[~learnt & rows.model.isin(others.model)]


def table_second_metric(
    results: pd.DataFrame, paper: pd.DataFrame, params: Params, metric: str, number: int
) -> pd.DataFrame:
    """All variants by a model's other metric: Table 11, with chrF in the place of COMET.

    Args:
        results, paper, params: as above.
        metric: ours.
        number: of the paper's table to put beside it, which may have another metric.
    """
    rows = []
    models = set(results[results.metric == metric].model)
    for model in (m for m in list_models(results, params) if m in models):
        theirs = select_paper(paper, params.model(model).paper, number)
        other = theirs.metric.iloc[0] if len(theirs) else None
        for int8 in (False, True):
            part, said = select_metric(results, model, metric, int8), theirs[theirs.int8 == int8]
            table = pd.concat([summarise(part, phase) for phase in ("base", "tuned")])
            for variant, row in table.iterrows():
                cells = {
                    "Model": model,
                    "Variant": variant + ", int8" * int8,
                    "Window": _window(row),
                    metric: spread(row),
                    "Paper: window": print_window(said, variant),
                }
                value = {f"Paper: {other}": print_theirs(said, variant)} if len(theirs) else {}
                rows.append(cells | value)
    return pd.DataFrame(rows).fillna("–")


def table_overview(results: pd.DataFrame, paper: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The README's table: what is left after a third and a half of the FF sublayers are merged."""
    rows = []
    for ratio in ("third", "half"):
        for model in list_models(results, params):
            part = select_metric(results, model)
            tuned, merge = summarise(part), find_variant(params, model, "permute", ratio)
            reference, metric = find_reference(part, model, params), read_metric(part)
            if merge not in tuned.index:
                continue
            row, stands_for = tuned.loc[merge], params.model(model).paper
            loss = find_loss(paper, stands_for, ratio, metric)
            rows.append(
                {
                    "Model": model,
                    "Removed": count_removed(row, params, model),
                    "Parameters saved": f"{100 * (1 - row.parameter_ratio):.0f} %",
                    "Metric": metric.label,
                    "Uncompressed*": _print_reference(reference),
                    "Merged": spread(row),
                    "Kept": _keep(metric, row, reference),
                    "The paper's model keeps": _kept(metric, loss, stands_for),
                }
            )
    order = {model: i for i, model in enumerate(params.run)}
    rows = rows[:LARGEST]  # of more models, a third first
    return pd.DataFrame(sorted(rows, key=lambda row: order[row["Model"]]))


def _kept(metric: Metric, loss: tuple[float, float] | None, name: str | None) -> str:
    if loss is None:
        return "–"
    return f"{metric.retained(loss[1], loss[0]):.1f} % ({name})"


def count_removed(row: pd.Series, params: Params, model: str) -> str:
    """How much went, of how much: "4 of 12 FFs", "2 of 12 layers".

    Args:
        row: of what `summarise` returned.
        params: how many layers there are.
        model: its name.
    """
    layers = sum(params.model(model).layers.values())
    return f"{row.removed} of {layers} {shorten_kind(row.kind)}"


def spread(row: pd.Series) -> str:
    """A mean with its standard deviation over seeds, where there are several.

    Args:
        row: of what `summarise` returned.
    """
    return f"{row['mean']:.2f} ± {row['std']:.2f}" if row.seeds > 1 else f"{row['mean']:.2f}"


def print_window(theirs: pd.DataFrame, variant: str) -> str:
    """The paper's window of a variant; a dash without one."""
    found = theirs[theirs.variant == variant].layers.dropna()
    return found.iloc[0] if len(found) else "–"


def _window(row: pd.Series) -> str:
    return row.layers if isinstance(row.layers, str) else "–"


def _number(table: pd.DataFrame, variant: str, base: pd.DataFrame | None = None) -> str:
    """A variant's mean; of the base tuned alike, where it starts: the base."""
    if variant in table.index:
        return f"{table.loc[variant, 'mean']:.2f}"
    return f"{base['mean'].iloc[0]:.2f}" if base is table and len(table) else "–"


def _print_reference(reference: Reference) -> str:
    if not reference.is_known:
        return "–"
    return f"{reference.value:.2f}" + (" (not tuned)" if reference.tuned is None else "")


def _keep(metric: Metric, row: pd.Series, reference: Reference) -> str:
    return f"{_share(metric, row, reference.value)} %" if reference.is_known else "–"


def _share(metric: Metric, row: pd.Series, base: float | None, taught: bool = True) -> str:
    return "–" if base is None or not taught else f"{metric.retained(row['mean'], base):.1f}"
