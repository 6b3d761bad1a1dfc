"""Quiz: what a pretrained language model should know, as sentences with four endings each.

MMLU's counterpart for a laptop, from the Unicode locale database through Babel: cities, continents,
currencies and languages of countries, words in other languages, months and weekdays; and sums.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from babel import Locale
from babel.core import get_global

from study.corpora import write_splits

ENGLISH = Locale("en")
N_CHOICES = 4
CONTINENTS = ("Africa", "Asia", "Europe", "America")  # as time zones name them
WORLD_CURRENCIES = ("dollar", "euro", "franc", "pound", "peso", "rupee", "dinar")
FOREIGN = ("fr", "es", "de", "it")
Fact = tuple[str, str, str]  # how a sentence starts, how it ends, and what kind of ending that is


def write_corpus(folder: Path, train: int, validation: int, test: int) -> None:
    """Write one Parquet file per split: columns `question`, `choices` and `answer` (its place).

    Args:
        folder: an existing, empty folder.
        train, validation, test: number of questions; a question is in one split only.

    Raises:
        ValueError: fewer questions than asked for.
    """
    rows = make_questions()
    if train + validation + test > len(rows):
        raise ValueError(
            f"params.yaml: corpora.quiz asks for {train + validation + test} questions; there are "
            f"{len(rows)}"
        )
    write_splits(rows, folder, test=test, validation=validation, train=train)


def make_questions() -> list[dict]:
    """Every question, in one fixed random order; the wrong endings are right for other ones."""
    rng, rows = random.Random(0), []
    for list_facts in (_cities, _continents, _currencies, _languages, _words, _next, _sums):
        facts = list(list_facts())
        endings = {}  # of each kind, in order of appearance
        for _, ending, kind in facts:
            endings.setdefault(kind, {})[ending] = None
        for start, ending, kind in facts:
            wrong = rng.sample([e for e in endings[kind] if e != ending], N_CHOICES - 1)
            choices = rng.sample([ending, *wrong], N_CHOICES)
            rows.append({"question": start, "choices": choices, "answer": choices.index(ending)})
    return rng.sample(rows, len(rows))


def _countries() -> Iterator[tuple[str, str, list[str]]]:
    """Code, English name and time zones of every country with a name of one or two words."""
    for code, zones in sorted(get_global("territory_zones").items()):
        name = ENGLISH.territories.get(code, "")
        if name.replace(" ", "").isalpha() and len(name.split()) < 3:
            yield code, name, list(zones)


def _cities() -> Iterator[Fact]:
    for _, name, zones in _countries():
        city = zones[0].split("/")[-1].replace("_", " ")
        if len(zones) == 1 and city not in name and name not in city:
            yield f"One of the biggest cities in {name} is", city, "city"


def _continents() -> Iterator[Fact]:
    for _, name, zones in _countries():
        place = zones[0].split("/")[0]
        if place in CONTINENTS:
            yield f"On the map you find {name} in", place, "continent"


def _currencies() -> Iterator[Fact]:
    money = get_global("territory_currencies")
    for code, name, _ in _countries():
        valid = [
            unit for unit, _, end, is_tender in money.get(code, ()) if end is None and is_tender
        ]
        if len(valid) == 1:
            currency = ENGLISH.currencies[valid[0]]
            word = currency.split()[-1].lower()
            if word in WORLD_CURRENCIES:
                yield f"In {name} people pay with the", word, "currency"


def _languages() -> Iterator[Fact]:
    for code, name, _ in _countries():
        spoken = get_global("territory_languages").get(code, {})
        official = [k for k, v in spoken.items() if v["official_status"] == "official"]
        language = ENGLISH.languages.get(official[0], "") if len(official) == 1 else ""
        if language.isalpha() and spoken[official[0]]["population_percent"] > 50:
            yield f"The official language of {name} is", language, "language"


def _words() -> Iterator[Fact]:
    """Weekdays, months and languages: the English word, and the same in another language."""
    for code in FOREIGN:
        other, said = Locale(code), ENGLISH.languages[code]
        for kind in ("days", "months"):
            english, foreign = (getattr(x, kind)["format"]["wide"] for x in (ENGLISH, other))
            for key in sorted(english):
                yield f"The {said} word for {english[key]} is", foreign[key], f"{kind} {code}"


def _next() -> Iterator[Fact]:
    for kind in ("days", "months"):
        names = [x for _, x in sorted(getattr(ENGLISH, kind)["format"]["wide"].items())]
        for i, name in enumerate(names):
            unit = kind.removesuffix("s")
            yield f"The {unit} after {name} is", names[(i + 1) % len(names)], kind
            yield f"The {unit} before {name} is", names[i - 1], kind


def _sums() -> Iterator[Fact]:
    for a in range(2, 12):
        for b in range(2, a + 1):
            yield f"{a} + {b} =", str(a + b), "sum"
