"""dvc.lock as a text: read by libyaml, and changed one entry at a time.

DVC parses and writes it whole, in pure Python: with two hundred stages that takes seconds to read
and seconds more for each stage that has run, and a run killed meanwhile leaves half a file.
"""

import re

import yaml
from ruamel.yaml.resolver import implicit_resolvers

EMPTY = "schema: '2.0'\nstages:\n"


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """libyaml with the plain values of YAML 1.2: `on` is a text, 1e-06 a number, 010 is ten."""


Loader.yaml_implicit_resolvers = {}  # not those of YAML 1.1


def _construct_int(loader: Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 0 if re.match(r"[-+]?0[xob]", text) else 10)


for _versions, _tag, _pattern, _first in implicit_resolvers:  # the ones that DVC reads by
    if (1, 2) in _versions and not _tag.endswith((":value", ":yaml")):
        Loader.add_implicit_resolver(_tag, _pattern, _first)
Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse(text: str) -> dict:
    """What a YAML file says, as DVC reads it.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, Loader) or {}


def replace_entry(text: str, block: str) -> str:
    """The text of dvc.lock with one stage's entry in the place of its old one, or at the end.

    Args:
        text: of dvc.lock.
        block: the entry as it is written there: the stage's name, then the rest, further in.

    Invariant: the same bytes as if DVC had written the whole file.
    """
    key = block.partition("\n")[0]
    old = re.compile(rf"^{re.escape(key)}\n(?:    .*\n)*", re.MULTILINE)
    found = old.search(text)
    if found is None:
        return text + block
    return text[: found.start()] + block + text[found.end() :]
