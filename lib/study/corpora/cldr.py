"""CLDR: Chinese expressions and their English, from the Unicode locale database through Babel.

Tatoeba's counterpart for a laptop: dates, times, durations, quantities, currencies, percentages,
and the names of territories, languages and scripts, alone or joined into lists of up to three.
"""

import datetime
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

from babel import Locale, dates, lists, numbers, units
from tqdm import tqdm

from study.corpora import write_splits

CHINESE, ENGLISH = Locale("zh"), Locale("en")
LENGTHS = (1, 1, 1, 2, 2, 3)  # of lists; short ones are more frequent
Both = tuple[str, str]  # the same thing in Chinese and in English


def write_corpus(folder: Path, train: int, validation: int, test: int) -> None:
    """Write one Parquet file per split: columns `source` (Chinese) and `target` (English).

    Args:
        folder: an existing, empty folder.
        train, validation, test: number of pairs; no Chinese expression appears twice.
    """
    rng, pairs = random.Random(0), {}
    total = train + validation + test
    with tqdm(total=total, desc="cldr", unit="pair", leave=False) as bar:
        while len(pairs) < total:
            pairs.setdefault(*make_pair(rng))
            bar.update(len(pairs) - bar.n)
    rows = [{"source": source, "target": target} for source, target in pairs.items()]
    write_splits(rows, folder, validation=validation, test=test, train=train)


def make_pair(rng: random.Random) -> Both:
    """One to three things, joined by "and" or "or" as each language does."""
    items = [rng.choice(KINDS)(rng) for _ in range(rng.choice(LENGTHS))]
    if len(items) == 1:
        return items[0]
    style = rng.choice(("standard", "or"))
    chinese, english = zip(*items, strict=True)
    return lists.format_list(chinese, style, CHINESE), lists.format_list(english, style, ENGLISH)


def _name(kind: str) -> Callable[[random.Random], Both]:
    """Names of "territories", "languages" or "scripts" that differ between the languages."""
    chinese, english = getattr(CHINESE, kind), getattr(ENGLISH, kind)
    shared = sorted(set(chinese) & set(english))
    names = [(chinese[key], english[key]) for key in shared if chinese[key] != english[key]]
    return lambda rng: rng.choice(names)


def _date(rng: random.Random) -> Both:
    day = datetime.date(rng.randint(1900, 2099), rng.randint(1, 12), rng.randint(1, 28))
    style = rng.choice(("short", "medium", "long", "full"))
    return _both(lambda locale: dates.format_date(day, style, locale))


def _time(rng: random.Random) -> Both:
    time = datetime.time(rng.randint(0, 23), rng.randint(0, 59))
    return _both(lambda locale: dates.format_time(time, "short", locale=locale))


def _duration(rng: random.Random) -> Both:
    seconds = rng.choice((-1, 1)) * int(10 ** rng.uniform(0, 8.5))
    style, direction = rng.choice(("long", "short")), rng.random() < 0.7
    return _both(
        lambda locale: dates.format_timedelta(
            datetime.timedelta(seconds=seconds),
            format=style,
            add_direction=direction,
            locale=locale,
        )
    )


def _currency(rng: random.Random) -> Both:
    amount, currency = _number(rng), rng.choice(_currencies())
    return _both(
        lambda locale: numbers.format_currency(amount, currency, format_type="name", locale=locale)
    )


def _quantity(rng: random.Random) -> Both:
    amount, unit, style = _number(rng), rng.choice(_units()), rng.choice(("long", "short"))
    return _both(lambda locale: units.format_unit(amount, unit, style, locale=locale))


def _percentage(rng: random.Random) -> Both:
    share = _number(rng) / 100
    return _both(lambda locale: numbers.format_percent(share, locale=locale))


KINDS = (
    _name("territories"),
    _name("languages"),
    _name("scripts"),
    _date,
    _time,
    _duration,
    _currency,
    _quantity,
    _percentage,
)


def _both(say: Callable[[Locale], str]) -> Both:
    return say(CHINESE), say(ENGLISH)


def _number(rng: random.Random) -> float:
    ranges = (
        rng.randint(0, 20),
        rng.randint(0, 999),
        rng.randint(1000, 999_999),
        round(rng.uniform(0, 100), rng.randint(1, 2)),
    )
    return rng.choice(ranges)


@cache
def _currencies() -> list[str]:
    return sorted(set(CHINESE.currencies) & set(ENGLISH.currencies))


@cache
def _units() -> list[str]:
    """The units that both languages have words for."""
    shared = sorted(set(CHINESE.unit_display_names) & set(ENGLISH.unit_display_names))
    return [unit for unit in shared if not any("-" in word for word in _three(unit))]


def _three(unit: str) -> Both:
    return _both(lambda locale: units.format_unit(3, unit, "long", locale=locale))
