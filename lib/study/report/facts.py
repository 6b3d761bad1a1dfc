"""Numbers for sentences: what a text names in braces is computed from results, or "(not run)"."""

from collections.abc import Callable

import pandas as pd

from study.config import Params
from study.report.doubts import SAYS
from study.report.estimates import FAILS, HOLDS, OPEN
from study.report.results import list_models, read_metric, select_metric
from study.report.standings import measure_contest

ABSENT = "(not run)"


class Lookup:
    """A field of a text with an index, `{kept[permute, third, untuned]}`: a function of its words.

    Args:
        function: what the index is given to, split at its commas.
        whole: given to it as one, commas and all.
    """

    def __init__(self, function: Callable[..., str], whole: bool = False) -> None:
        self.function, self.whole = function, whole

    def __getitem__(self, key: str) -> str:
        return self.function(*([key] if self.whole else key.split(", ")))


class Facts:
    """What sentences may name: `fill` puts numbers over all models into them.

    Args:
        results: results.csv.
        params: which models and variants there are.
        claims: the table of claims, those of the reviewers with it.
    """

    def __init__(self, results: pd.DataFrame, params: Params, claims: pd.DataFrame) -> None:
        self.results, self.claims = results, claims
        self.models = list_models(results, params)
        tables = [measure_contest(results, params, m).assign(model=m) for m in self.models]
        self.table = pd.concat(tables)

    def fill(self, text: str) -> str:
        """A text with every field replaced: numbers of all models from the lowest to the highest.

        Fields: kept[METHOD, RATIO, STATE] and lead[METHOD, METHOD, RATIO, STATE] (the difference)
        in percent of the base's quality, STATE being untuned or tuned; stored[METHOD, RATIO] and
        flops[METHOD, RATIO] in percent; int8[kept] and int8[bytes] of the base in 8 bits, and
        nf4[kept] and nf4[bytes] in 4; verdict[CLAIM], by the first words of it.
        """
        fields = {
            "kept": Lookup(self.print_kept),
            "lead": Lookup(self.print_lead),
            "stored": Lookup(lambda *key: self._print_cost("stored", *key)),
            "flops": Lookup(lambda *key: self._print_cost("flops", *key)),
            "int8": Lookup(lambda what: self.print_low("int8", what)),
            "nf4": Lookup(lambda what: self.print_low("nf4", what)),
            "verdict": Lookup(self.print_verdicts, whole=True),
        }
        return text.format_map(fields)

    def print_kept(self, method: str, ratio: str, state: str) -> str:
        """What a method keeps: "98.5 to 99.6 %"."""
        return self._span(self._find(method, ratio)[state], ".1f")

    def print_lead(self, better: str, worse: str, ratio: str, state: str) -> str:
        """How much more one method keeps than another: "+0.3 to +14.6 %"."""
        lead = self._find(better, ratio)[state] - self._find(worse, ratio)[state]
        return self._span(lead, "+.1f")

    def print_low(self, precision: str, what: str) -> str:
        """The uncompressed model in fewer bits: its quality, or its bytes, of those in 32 bits."""
        shares = {}
        for model in self.models:
            whole = select_metric(self.results, model)
            whole = whole[whole.phase == "base"]
            small = self.results[(self.results.model == model) & (self.results.phase == "base")]
            small = small[(small.precision == precision) & small.metric.isin(whole.metric)]
            if whole.empty or small.empty:
                continue
            old, new = whole.iloc[0], small.iloc[0]
            kept = read_metric(whole).retained(new.value, old.value)
            shares[model] = kept if what == "kept" else 100 * new.bytes / old.bytes
        return self._span(pd.Series(shares, dtype=float), ".1f" if what == "kept" else ".0f")

    def print_verdicts(self, claim: str) -> str:
        """The verdicts on a claim that starts like this: "holds 3 times, undecided once"."""
        found = self.claims[self.claims.Claim.str.startswith((claim, SAYS + claim))].Verdict
        counts = {verdict: n for verdict in (HOLDS, OPEN, FAILS) if (n := (found == verdict).sum())}
        words = {1: "once", 2: "twice"}
        times = [f"{verdict} {words.get(n, f'{n} times')}" for verdict, n in counts.items()]
        return ", ".join(times) or ABSENT

    def _find(self, method: str, ratio: str) -> pd.DataFrame:
        rows = self.table[(self.table.method == method) & (self.table.ratio == ratio)]
        return rows.set_index("model")

    def _print_cost(self, what: str, method: str, ratio: str) -> str:
        return self._span(self._find(method, ratio)[what], ".0f")

    def _span(self, values: pd.Series, form: str) -> str:
        """From the lowest to the highest, in percent; a single one with its model's name."""
        values = values.dropna()
        if values.empty:
            return ABSENT
        ends = dict.fromkeys(f"{value:{form}}" for value in (values.min(), values.max()))
        alone = len(values) == 1 < len(self.models)
        return f"{' to '.join(ends)} %" + f" ({values.index[0]})" * alone
