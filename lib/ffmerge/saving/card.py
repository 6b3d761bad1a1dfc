"""The card of a model: README.md, as the hub shows it."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ffmerge.groups import Group
from ffmerge.patches import Plan, count_parameters
from ffmerge.saving.folders import MARK, size_on_disk
from ffmerge.saving.sharing import count_untied, find_untold_widths
from ffmerge.sublayers import find_stacks, group_sublayers

LOADING = """```python
{register}from transformers import {auto}

model = {auto}.from_pretrained("{name}")
```
"""
REGISTER = "import ffmerge  # teaches transformers to load shared sublayers\n"
APART = """
Shared sublayers are held once, on disk and in memory. Without `import ffmerge` nothing is loaded;
for tools that do not know it, `ffmerge.export("{name}", "plain-folder")` writes them out.
"""


def find_plan(model: nn.Module) -> Plan:
    """What was done to a model: as it remembers, unless its structure tells another story."""
    groups = {}
    for name, stack in find_stacks(model).items():
        layers = group_sublayers(stack.sublayers)
        found = tuple(Group(tuple(of), of[0]) for of in layers if len(of) > 1)
        groups |= {name: found} if found else {}
    known = Plan.from_json(getattr(model, "ffmerge_plan", {}))
    if known != Plan() and bool(known.groups) == bool(groups):
        return known
    widths = {name: tuple(of_stack) for name, of_stack in find_untold_widths(model).items()}
    return Plan(groups, neurons=widths)


def write_card(
    model: nn.Module,
    folder: Path,
    name: str,
    base: str,
    method: str,
    measured: Mapping[str, object],
) -> None:
    """Write README.md into a model's folder.

    Args:
        model: as it was saved.
        folder: that holds its weights.
        name: of the folder that it will be loaded from.
        base, method: what it was made of, and how; "" if unknown.
        measured: numbers to report, by what they are.
    """
    plan = find_plan(model)
    held, untied = count_parameters(model), count_untied(model)
    rows = {
        "base": base,
        "method": method,
        "plan": _describe_plan(plan),
        "parameters": f"{held:,}",
        "without sharing": f"{untied:,} (−{1 - held / untied:.1%})" if untied > held else "",
        "weights on disk": f"{size_on_disk(folder):,} bytes",
        **{str(key): str(value) for key, value in measured.items()},
    }
    table = [f"| {key} | {_in_cell(value)} |" for key, value in rows.items() if value]
    front = ["---", "library_name: transformers", "tags: [ffmerge]", "---", MARK]
    title = f"# {type(model).__name__} with {_say(plan)}"
    is_apart = untied > held or bool(find_untold_widths(model))
    text = LOADING + APART if is_apart else LOADING
    text = text.format(auto=_find_auto(model), name=name, register=REGISTER * is_apart)
    lines = [*front, "", title, "", "| | |", "|---|---|", *table, "", "## Load it", "", text]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _describe_plan(plan: Plan) -> str:
    parts = []
    for kind, values in plan.to_json().items():
        for stack in values:
            part = Plan(**{kind: {stack: getattr(plan, kind)[stack]}})
            before = {"dropped": "without layers ", "attention": "attention "}.get(kind, "")
            parts.append(f"{stack}: {before}{part}")
    return ", ".join(parts)


def _say(plan: Plan) -> str:
    said = {"groups": "shared FF sublayers", "neurons": "fewer neurons", "dropped": "fewer layers"}
    said |= {"attention": "shared attention sublayers"}
    return " and ".join(said[kind] for kind in plan.to_json()) or "its sublayers apart"


def _find_auto(model: nn.Module) -> str:
    from transformers.models.auto import modeling_auto

    tables = {"CausalLM": "CAUSAL_LM", "Seq2SeqLM": "SEQ_TO_SEQ_CAUSAL_LM"}
    tables |= {"ImageClassification": "IMAGE_CLASSIFICATION", "MaskedLM": "MASKED_LM"}
    for auto, table in tables.items():
        known = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES")
        if type(model).__name__ in known.values():
            return f"AutoModelFor{auto}"
    return "AutoModel"


def _in_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
