"""Dialogues: two people arrange something and change their minds, each with a one-sentence summary.

SAMSum's counterpart for a laptop, written by a small grammar. What was agreed is known, so a
summary can be checked slot by slot: who, what, where, when, and who brings what.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from babel import Locale
from datasets import Dataset
from tqdm import tqdm

from study.corpora import write_split

SLOTS = ("who", "what", "where", "when", "brings")
NAMES = (
    "Anna Omar Mei Lucas Priya Jonas Fatima Diego Yuki Elena Kofi Sara Ivan Lin Pedro Aisha Tom "
    "Nadia Hugo Zoe Ravi Clara Samir Ingrid Paulo Leila Marc Olga Ben Rosa Amir Greta Felix Nora "
    "Chen Lara Victor Hana Emil Dora"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ACTIVITIES = (
    "have lunch|review the report|play chess|visit the museum|go hiking|watch a film|"
    "plan the trip|fix the bike|paint the fence|study for the exam|cook dinner|record a song|"
    "train for the race|clean the garage|test the model|write the paper|buy a present|"
    "walk the dogs|go sailing|build a shelf"
).split("|")
THINGS = (
    "the tickets|some coffee|a camera|the keys|a map|fresh bread|the slides|two chairs|a guitar|"
    "warm blankets|the contract|a ladder|some apples|the old photos|a tent|some tea"
).split("|")


@dataclass(frozen=True)
class Dialogue:
    """One dialogue and what was agreed in it.

    Attributes:
        text: one line for each turn, `Name: what is said`.
        summary: one sentence with every slot in it.
        slots: slot to the words of the summary that fill it.
        notes: slot to what a person would jot down; pretraining shows these.
    """

    text: str
    summary: str
    slots: dict[str, str]
    notes: dict[str, str]


def write_corpus(folder: Path, train: int, validation: int, test: int) -> None:
    """Write one Parquet file per split: columns `dialogue`, `summary` and `slots`.

    Args:
        folder: an existing, empty folder.
        train, validation, test: number of dialogues.
    """
    splits = {"train": train, "validation": validation, "test": test}
    for split, n in splits.items():
        dialogues = make_dialogues(n, seed=f"dialogues {split}")
        rows = [{"dialogue": d.text, "summary": d.summary, "slots": d.slots} for d in dialogues]
        write_split(Dataset.from_list(rows), folder, split)


def make_dialogues(n: int, seed: str) -> list[Dialogue]:
    """n dialogues; another seed gives others."""
    rng, places = random.Random(seed), list_places()
    bar = tqdm(range(n), desc=seed, unit="dialogue", leave=False)
    return [make_dialogue(rng, places) for _ in bar]


def list_places() -> list[str]:
    """The countries of Unicode CLDR whose English name is one or two plain words."""
    territories = Locale("en").territories
    return sorted(
        name
        for code, name in territories.items()
        if len(code) == 2 and name.isascii() and len(name.split()) <= 2
    )


def make_dialogue(rng: random.Random, places: list[str]) -> Dialogue:
    """One dialogue: a proposal, a day and a time, a place, who brings what; two of five change."""
    a, b = rng.sample(NAMES, 2)
    what, thing = rng.choice(ACTIVITIES), rng.choice(THINGS)
    day, other_day = rng.sample(DAYS, 2)
    time, other_time = _clock(rng), _clock(rng)
    place, other_place = rng.sample(places, 2)
    turns = [
        (a, _say(rng, f"Hi {b}! Do you want to {what}?", f"Hello {b}, shall we {what} this week?")),
        (b, _say(rng, "Sure, when?", "Yes, I would love to. When?", "Good idea! Which day?")),
        (a, _say(rng, f"How about {day} at {time}?", f"Maybe {day} at {time}?")),
    ]
    change = rng.random()
    if change < 0.35:
        turns += [
            (b, _say(rng, f"{day} is bad for me. What about {other_day}?", f"Rather {other_day}.")),
            (a, _say(rng, "Fine with me.", f"{other_day} works too.")),
        ]
        day = other_day
    elif change < 0.7:
        turns += [
            (b, _say(rng, f"Could we say {other_time}?", f"Can we make it {other_time}?")),
            (a, _say(rng, "No problem.", "OK.")),
        ]
        time = other_time
    else:
        turns += [(b, _say(rng, "Perfect.", "That works."))]
    suggests, answers = rng.sample((a, b), 2)
    turns += [(suggests, _say(rng, f"Let us meet in {place}.", f"And where? I suggest {place}."))]
    if rng.random() < 0.35:
        turns += [
            (answers, _say(rng, f"Too far. Rather {other_place}.", f"I prefer {other_place}."))
        ]
        place = other_place
    brings, thanks = rng.sample((a, b), 2)
    turns += [
        (brings, _say(rng, f"Great, I will bring {thing}.", f"OK. I can bring {thing}.")),
        (thanks, _say(rng, "See you then!", "Thanks, bye!", "Looking forward to it.")),
    ]
    slots = {
        "who": f"{a} and {b}",
        "what": f"will {what}",
        "where": f"in {place}",
        "when": f"on {day} at {time}",
        "brings": f"{brings} will bring {thing}",
    }
    notes = {
        "who": f"{a}, {b}",
        "what": what,
        "where": place,
        "when": f"{day}, {time}",
        "brings": f"{brings}, {thing}",
    }
    summary = "{who} {what} {where} {when}, and {brings}.".format(**slots)
    return Dialogue("\n".join(f"{who}: {said}" for who, said in turns), summary, slots, notes)


def _say(rng: random.Random, *ways: str) -> str:
    return rng.choice(ways)


def _clock(rng: random.Random) -> str:
    hour, minutes = rng.randint(7, 21), rng.choice(("", ":15", ":30", ":45"))
    return f"{(hour - 1) % 12 + 1}{minutes} {'AM' if hour < 12 else 'PM'}"
