"""How far a compressed vision encoder's class tokens move, which accuracy on a few classes hides.

    python benchmarks/drift.py [MODEL]

For every variant whose patch notebook 4 has left in models/: the mean cosine of an image's class
token and the uncompressed model's of the same image, each without the mean over images; and how
many images keep their nearest neighbour among all others. results/benchmarks/drift.csv gets one
row for each, and one of chance: tokens of other images.
"""

import argparse

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ffmerge.checkpoints import load
from ffmerge.patches import apply_patch
from study.config import find_root, load_params
from study.patches import find_patch, name_patch
from study.tasks import load_task, make_batches


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="dinov2")
    name = parser.parse_args().model
    root, params = find_root(), load_params()
    entry = params.model(name)
    torch.set_num_threads(params.threads)
    task = load_task(name, params, root)
    batches = list(make_batches(task, "validation", entry.batch_size, entry.validation_examples))
    base = load(root / f"models/{name}/base", attn_implementation=entry.attention)
    whole = embed(base, batches)
    rows = [{"variant": "chance"} | compare(whole, whole.roll(1, 0))]
    for variant in params.variants_of(name):
        method = params.recipe(variant).method
        if (root / name_patch(name, variant, method)).exists():
            small = apply_patch(base, find_patch(name, variant, method))
            rows.append({"variant": variant} | compare(whole, embed(small, batches)))
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    table.to_csv(root / "results/benchmarks/drift.csv", index=False, float_format="%.4g")


@torch.no_grad()
def embed(model, batches) -> Tensor:
    """The class tokens of all images: (n, d_model)."""
    return torch.cat([model(**batch).last_hidden_state[:, 0] for batch in batches])


def compare(whole: Tensor, small: Tensor) -> dict[str, float]:
    """How alike the class tokens (n, d_model) of the same images are."""
    centred = [x - x.mean(0) for x in (whole, small)]
    near = [find_nearest(x) for x in (whole, small)]
    return {
        "cosine": float(cosine_similarity(*centred, dim=1).mean()),
        "same nearest neighbour (%)": 100 * float((near[0] == near[1]).float().mean()),
    }


def find_nearest(x: Tensor) -> Tensor:
    """Of each of n images the place of the nearest other one."""
    x = normalize(x.double(), dim=1)
    return (x @ x.T).fill_diagonal_(-1).argmax(1)


if __name__ == "__main__":
    main()
