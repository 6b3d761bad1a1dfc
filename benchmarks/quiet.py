"""How much quieter does averaging make a sublayer's output: its mean, its spread, its direction?

    python benchmarks/quiet.py vit-glyphs gpt2-docs marian-cldr

Both are of what a layer's own FF and the merged one put out on what the base's layer reads, at the
window that permute chose for a third. results/benchmarks/quiet.csv has a row for each layer: norm
of the mean and spread (root of the summed variances) of both, and the cosine of the two means.
"""

import argparse

import pandas as pd
import torch
from tqdm import tqdm

from ffmerge.activations import observe, peek
from ffmerge.checkpoints import load
from ffmerge.fidelity import RunningSpread
from ffmerge.files import read_json
from ffmerge.methods import permute
from ffmerge.moments import find_inputs, find_tokens
from ffmerge.patches import Plan, apply_patch
from ffmerge.refitting import compute_output, learn_activation
from ffmerge.sublayers import find_stacks
from study.config import find_root, load_params
from study.evidence import load_evidence
from study.tasks import load_task
from study.upkeep import update_table


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", help="names in params.yaml")
    root = find_root()
    for model in tqdm(parser.parse_args().models, unit="model"):
        rows = pd.DataFrame(measure(model)).assign(model=model)
        print(rows.to_string(index=False))
        update_table(root / "results/benchmarks/quiet.csv", rows, ["model"])


def measure(model: str) -> list[dict]:
    """One row for each layer of the window."""
    root, params = find_root(), load_params()
    entry, task = params.model(model), load_task(model, params, root)
    torch.set_num_threads(params.threads)
    base = load(root / f"models/{model}/base", attn_implementation=entry.attention)
    evidence = load_evidence(model, "refit", task, entry.batch_size)  # its data; permute has none
    chosen = read_json(root / f"results/models/{model}/chosen/permute.json")
    plan = Plan.from_json(chosen["third"][0])
    small = apply_patch(base, permute.make(base, plan, evidence))
    first, batches = peek(evidence.calibration())
    activation, stacks = learn_activation(base, first), (find_stacks(base), find_stacks(small))
    places = [(name, i) for name in plan.groups for g in plan.groups[name] for i in g.layers]
    weights = {(n, i): [of[n].sublayers[i].read() for of in stacks] for n, i in places}
    found = {place: (RunningSpread(), RunningSpread()) for place in places}

    def receive(_: int, name: str, i: int, x: torch.Tensor) -> None:
        for w, outputs in zip(weights.get((name, i), ()), found.get((name, i), ()), strict=True):
            outputs.update(compute_output(w, x, activation))

    observe(base, batches, find_tokens(base) // 4, [find_inputs], receive)
    rows = []
    for (stack, i), both in found.items():
        row = {"model": model, "stack": stack, "layer": i}
        for who, outputs in zip(("own", "merged"), both, strict=True):
            row[f"mean ({who})"] = float(outputs.mean().norm())
            row[f"spread ({who})"] = outputs.value()
        means = (outputs.mean() for outputs in both)
        rows.append(row | {"cosine of means": float(torch.cosine_similarity(*means, dim=0))})
    return rows


if __name__ == "__main__":
    main()
