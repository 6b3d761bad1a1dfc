"""What the package tells of the contest: a small file beside its methods, never typed by hand.

    python -m study.report.packaged

writes lib/ffmerge/cli/contest.json anew, after results/results.csv has changed.
"""

import math

import pandas as pd

from ffmerge.cli.listing import CONTEST
from ffmerge.files import write_json
from study.config import Params, find_root, load_params
from study.report.results import list_models
from study.report.standings import RATIOS, measure_contest, select_budget

Kept = dict[str, dict[str, dict[str, list[float | None]]]]


def summarise_contest(results: pd.DataFrame, params: Params) -> Kept:
    """What each method keeps of each model's quality, in percent.

    Args:
        results: results.csv.
        params: which variants there are.

    Returns:
        kept[method][ratio][model]: before tuning and after, None where it was not evaluated.
    """
    kept: Kept = {}
    for model in list_models(results, params):
        table = measure_contest(results, params, model)
        for ratio, words in RATIOS.items():
            for row in select_budget(table, ratio).to_dict("records"):
                if row["family"] != "uncompressed":
                    of_method = kept.setdefault(row["method"], {}).setdefault(words, {})
                    of_method[model] = [_round(row["untuned"]), _round(row["tuned"])]
    return {method: kept[method] for method in sorted(kept)}


def _round(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 1)


def main() -> None:
    """Write what `python -m ffmerge methods` tells."""
    root = find_root()
    results = pd.read_csv(root / "results" / "results.csv")
    write_json(summarise_contest(results, load_params(root)), CONTEST)


if __name__ == "__main__":
    main()
