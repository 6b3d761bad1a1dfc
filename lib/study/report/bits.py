"""Fewer bits for what is left: 8 and 4 bits, alone and after merging or pruning."""

import pandas as pd

from study.config import Params
from study.report.results import find_reference, print_spread, read_metric, select_metric
from study.report.style import find_look

BITS = {"float32": "32 bits", "int8": "8 bits", "nf4": "4 bits"}


def table_bits(results: pd.DataFrame, params: Params, models: list[str]) -> pd.DataFrame:
    """The same model in 32, 8 and 4 bits: uncompressed, and a third removed and tuned.

    Args:
        results: results.csv.
        params: which variants there are.
        models: their names; one that is tuned in 4 bits has no other precision to compare.

    Returns:
        For each precision the quality kept, in percent of the uncompressed model's in 32 bits (±
        standard deviation over seeds), and the bytes, in percent of its bytes; a dash where it was
        not evaluated.
    """
    rows = []
    for model in models:
        whole = select_metric(results, model)
        metric, reference = read_metric(whole), find_reference(whole, model, params)
        if params.model(model).adapts or reference.untuned is None:
            continue
        mine = results[(results.model == model) & (results.metric == metric.name)]
        full = mine[(mine.phase == "base") & (mine.precision == "float32")].bytes.iloc[0]
        for variant in params.variants_of(model):
            state = "base" if variant == "base" else "tuned"
            found = mine[(mine.variant == variant) & (mine.phase == state)]
            if not {"int8", "nf4"} & set(found.precision):
                continue
            row = {"Model": model, "Method": find_look(found.method.iloc[0])["label"]}
            for precision, words in BITS.items():
                part = found[found.precision == precision]
                kept = metric.retained(part.value, reference.untuned)
                row[f"{words}: kept (%)"] = print_spread(kept)
                size = f"{100 * part.bytes.mean() / full:.1f}" if len(part) else "–"
                row[f"{words}: bytes (%)"] = size
            rows.append(row)
    return pd.DataFrame(rows)
