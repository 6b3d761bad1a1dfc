"""results.csv: the rows of every model, collected, and the summaries that the report is made of."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from study.config import Params
from study.metrics import Metric
from study.places import SCRATCH, is_publishing
from study.records import COLUMNS

TRAINED = ["trained_in", "hardware"]  # precision and hardware of the training behind a row
SPARSE = "sparse"  # rows that repeat others, with the bytes of weights whose zeros are not stored


def list_roots(root: Path) -> list[Path]:
    """The folders in which results are looked for: by hand in `scratch/` first."""
    return [root] if is_publishing() else [root / SCRATCH, root]


def find_file(roots: list[Path], model: str, path: str) -> Path | None:
    """A file of a model's small results, in the first of several folders that has it.

    Args:
        roots: what `list_roots` returned.
        model: its name.
        path: below `results/models/MODEL`.

    Returns:
        None where no folder has it.
    """
    paths = (root / "results" / "models" / model / path for root in roots)
    return next((path for path in paths if path.exists()), None)


def collect_results(roots: list[Path], params: Params) -> pd.DataFrame:
    """results.csv: what was evaluated of the models to run, with the seeds that are asked for.

    Args:
        roots: what `list_roots` returned.
        params: which models, variants and seeds.

    Returns:
        The columns of `study.records` and `TRAINED`; `list_missing` names what is not there. A
        model without its base is left out, for there is nothing to compare it with.

    Raises:
        FileNotFoundError: no model has been evaluated.
    """
    parts = []
    for model in params.run:
        if find_file(roots, model, "evals/base.csv"):
            names = _list_names(model, params)
            parts += [_read_rows(roots, model, name, params) for name in names]
    rows = [row for part in parts for row in part.to_dict("records")]
    if not rows:
        raise FileNotFoundError(
            f"no model of {', '.join(params.run)} has been evaluated; `make repro` does, or "
            "notebook 6 by hand"
        )
    return pd.DataFrame(rows)[[*COLUMNS, *TRAINED]].astype({"seed": "Int64"})


def list_missing(results: pd.DataFrame, params: Params) -> list[str]:
    """What is asked for and has not been evaluated: "model/variant", or some of its seeds."""
    missing = []
    for model in params.run:
        for variant in _list_names(model, params):
            rows = results[(results.model == model) & (results.variant == variant)]
            lacking = sorted(set(params.seeds_of(model, variant)) - set(rows.seed.dropna()))
            seeds = f" (seed {', '.join(map(str, lacking))})" if len(rows) else ""
            if rows.empty or lacking:
                missing.append(f"{model}/{variant}{seeds}")
    return missing


def list_models(results: pd.DataFrame, params: Params) -> list[str]:
    """The models to run of which there are results, in the order of params.yaml."""
    return [model for model in params.run if model in set(results.model)]


def select_metric(
    results: pd.DataFrame, model: str, metric: str | None = None, int8: bool = False
) -> pd.DataFrame:
    """The rows of one model and one metric.

    Args:
        results: results.csv.
        model: its name.
        metric: its name; without one, the first of what was tuned, which states of tuning are
            selected by, or else the first of all.
        int8: the rows in 8 bits, instead of all others but those that repeat one: with zeros left
            out, or in 4 bits (adapters are tuned in 4 bits, and repeat none).
    """
    part = results[(results.model == model) & (results.precision != SPARSE)]
    repeats = part.duplicated(["variant", "phase", "seed", "metric"], keep=False)
    part = part[~(repeats & (part.precision == "nf4"))]
    if metric is None:
        tuned = part[part.phase == "tuned"]
        metric = (tuned if len(tuned) else part).metric.iloc[0]
    part = part[part.metric == metric]
    return part[(part.precision == "int8") == int8]


def select_own(results: pd.DataFrame, model: str, params: Params) -> pd.DataFrame:
    """The rows before any tuning by a model's own task, as it is and compressed, in 32 bits.

    Of most models that is the only task; one that tuning teaches another has own scores as well.

    Args:
        results: results.csv.
        model: its name.
        params: whether it learns another task.

    Returns:
        Rows in the phases "base" and "merged"; none where the own task was not scored.
    """
    part = results[(results.model == model) & (results.precision == "float32")]
    if params.model(model).downstream is None:
        rows = select_metric(results, model)
        return rows[rows.phase.isin(["base", "merged"]) & (rows.precision == "float32")]
    every = results[results.model == model]  # adapters are tuned in 4 bits
    taught = every[every.phase.isin(["tuned", "first words"])].metric
    merged = part[(part.phase == "merged") & ~part.metric.isin(taught)]
    if merged.empty:
        return merged
    own = part[part.metric == merged.metric.iloc[0]]
    return own[own.phase.isin(["base", "merged"])]


def read_metric(rows: pd.DataFrame) -> Metric:
    """The metric of rows that all have the same one, from their columns."""
    first = rows.iloc[0]
    return Metric(first.metric, "" if pd.isna(first.unit) else first.unit, first.direction)


def summarise(rows: pd.DataFrame, phase: str = "tuned") -> pd.DataFrame:
    """Mean, standard deviation and number of seeds of every variant in one phase.

    Args:
        rows: of results.csv, one metric of one model.
        phase: "base", "merged" or "tuned".

    Returns:
        One row per variant, indexed by it: mean, std (NaN for one value), seeds, and its labels.
    """
    grouped = rows[rows.phase == phase].groupby("variant", sort=False)
    table = grouped.value.agg(["mean", "std", "count"]).rename(columns={"count": "seeds"})
    labels = ["method", "ratio", "removed", "kind", "layers", "parameter_ratio", "bytes"]
    return table.join(grouped[[*labels, "precision"]].first())


@dataclass(frozen=True)
class Reference:
    """The uncompressed model on one metric: what everything is compared with.

    Attributes:
        untuned: as it is; None where it was not evaluated.
        tuned: after the same tuning as all variants, mean over seeds; None without such a variant.
        taught: whether the untuned one was ever taught the task that the metric measures.
    """

    untuned: float | None
    tuned: float | None
    taught: bool = True

    @property
    def is_known(self) -> bool:
        """Whether there is anything to compare tuned variants with: a base that knows the task."""
        return self.tuned is not None or (self.taught and self.untuned is not None)

    @property
    def value(self) -> float:
        """The one to compare tuned variants with: tuned alike if there is one."""
        return self.untuned if self.tuned is None else self.tuned


def find_reference(rows: pd.DataFrame, model: str, params: Params) -> Reference:
    """The uncompressed model among the rows of one metric of one model, not in 8 bits.

    Args:
        rows: what `select_metric` returned.
        model: its name.
        params: what it was taught.
    """
    untuned = rows[(rows.method == "base") & (rows.phase == "base")].value
    tuned = summarise(rows[rows.method == "base"])["mean"]
    return Reference(
        float(untuned.iloc[0]) if len(untuned) else None,
        float(tuned.iloc[0]) if len(tuned) else None,
        params.model(model).downstream is None,
    )


def measure_sizes(results: pd.DataFrame, model: str, params: Params) -> pd.DataFrame:
    """The main variants of a model after tuning: bytes beside quality, in percent of the base's.

    Left out are variants that are tuned with one seed of several, and a base that was never taught
    the task.

    Args:
        results: results.csv.
        model: its name.
        params: which variants are the main ones.

    Returns:
        variant, method, phase, removed, kind, int8, size (% of the base's bytes), kept and std (%
        of the quality of `Reference.value`).
    """
    mine = select_metric(results, model)
    metric, reference = read_metric(mine), find_reference(mine, model, params)
    whole = summarise(mine, "base").bytes.iloc[0]
    parts = []
    for int8 in (False, True):
        rows = select_metric(results, model, int8=int8)
        if not reference.is_known:
            rows = rows.iloc[:0]
        rows = rows.assign(kept=metric.retained(rows.value, reference.value))
        rows = rows[rows.phase.isin(["base", "tuned"] if reference.taught else ["tuned"])]
        parts.append(rows.assign(int8=int8, size=100 * rows.bytes / whole))
    rows = pd.concat(parts)
    rows = rows[rows.variant.isin(params.compared(model)) | (rows.phase == "base")]
    keys = ["variant", "method", "phase", "removed", "kind", "int8", "size"]
    table = rows.groupby(keys, sort=False, dropna=False).kept.agg(kept="mean", std="std")
    return table.reset_index()


def shorten_kind(kind: str) -> str:
    """What went, in a word or two: of what results.csv calls its `kind`."""
    others = {"layers": "layers", "attention sublayers": "attentions"}
    return (others | {"FF and attention sublayers": "FFs + attentions"}).get(kind, "FFs")


def print_spread(kept: pd.Series) -> str:
    """Percentages of all seeds in words: their mean, ± standard deviation; a dash for none."""
    if kept.empty:
        return "–"
    return f"{kept.mean():.1f}" + (f" ± {kept.std():.1f}" if len(kept) > 1 else "")


def _list_names(model: str, params: Params) -> list[str]:
    return list(dict.fromkeys(("base", *params.variants_of(model))))


def _read_rows(roots: list[Path], model: str, variant: str, params: Params) -> pd.DataFrame:
    """A variant's rows without the seeds that are not asked for; none if it was not evaluated."""
    path = find_file(roots, model, f"evals/{variant}.csv")
    if path is None:
        return pd.DataFrame(columns=[*COLUMNS, *TRAINED])
    rows = pd.read_csv(path, dtype={"layers": object})[COLUMNS].astype({"seed": "Int64"})
    rows = rows[rows.seed.isna() | rows.seed.isin(params.seeds_of(model, variant))]
    found = {seed: _find_training(roots, model, variant, seed) for seed in rows.seed.unique()}
    return rows.assign(**{name: [found[seed][name] for seed in rows.seed] for name in TRAINED})


def _find_training(roots: list[Path], model: str, variant: str, seed: int | None) -> dict:
    """How the weights behind a row were trained: by a tuning with a seed, or else as the base."""
    curve = "base.csv" if pd.isna(seed) else f"curves/{variant}-{seed}.csv"
    path = find_file(roots, model, curve)
    if path is None:
        return dict.fromkeys(TRAINED)
    first = pd.read_csv(path, nrows=1).iloc[0]
    return {name: first.get(name) for name in TRAINED}
