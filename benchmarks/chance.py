"""How much of what sharing wins at a small size is chance? The same choice from other data.

    python benchmarks/chance.py marian-cldr --draws 5

Notebook 8 chooses neurons for pairs of sublayers with and without merged ones, from the first part
of the calibration data. Here every draw is another part of as many tokens; base, permutations and
validation data stay. And sharing is tried in one pair at a time, to see which it helps.
results/benchmarks/chance.csv has a row for each draw, share and way: how large the error is, over
the pairs, and what the model scores.
"""

import argparse
from collections.abc import Iterator
from itertools import chain

import pandas as pd
import torch
from tqdm import tqdm

from ffmerge.ablations.forward import measure_pool, reselect
from ffmerge.checkpoints import load
from ffmerge.moments import find_tokens
from ffmerge.patches import Plan, apply_patch
from ffmerge.pooling import Pool, fit_pools, pool_pairs
from ffmerge.sublayers import find_stacks
from study.config import find_root, load_params
from study.evidence import load_evidence
from study.tasks import load_task, make_batches
from study.upkeep import update_table

SHARES = {"1/4": 1 / 4, "1/12": 1 / 12}  # of the neurons that are stored
Pools = dict[str, list[Pool]]  # of every stack


def main() -> None:
    """Choose, score, print, write: a draw at a time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a name in params.yaml")
    parser.add_argument("--draws", type=int, default=5)
    args = parser.parse_args()
    path = find_root() / "results/benchmarks/chance.csv"
    for rows in measure(args.model, args.draws):
        print(rows.to_string(index=False))
        update_table(path, rows, ["model", "draw", "stored", "way"], digits=6)


def measure(model: str, draws: int) -> Iterator[pd.DataFrame]:
    """The rows of one draw after the other; the first is notebook 8's."""
    root, params = find_root(), load_params()
    entry, task = params.model(model), load_task(model, params, root)
    torch.set_num_threads(params.threads)
    base = load(root / f"models/{model}/base", attn_implementation=entry.attention)
    evidence = load_evidence(model, "pool", task, entry.batch_size)
    validation = list(make_batches(task, "validation", entry.batch_size, entry.validation_examples))
    data, stacks = iter(evidence.calibration()), find_stacks(base)
    d_ff = next(iter(stacks.values())).sublayers[0].d_ff
    for draw in tqdm(range(draws), unit="draw"):
        pools = pool_pairs(base, evidence.permutations, data, find_tokens(base))
        rows = []
        for stored, share in SHARES.items():
            n, width = round(share * 2 * d_ff), round(share * d_ff)
            same = Plan(neurons={name: (width,) * len(stack) for name, stack in stacks.items()})
            for way, chosen in choose(pools, n).items():
                errors = [measure_pool(pool, n) for pool in chain(*chosen.values())]
                score = task.evaluate(apply_patch(base, fit_pools(base, same, chosen)), validation)
                rows.append(
                    {"model": model, "draw": draw, "stored": stored, "way": way}
                    | {"error (%)": 100 * sum(errors) / len(errors)}
                    | {"metric": task.metric.name, "value": score.value}
                )
        yield pd.DataFrame(rows)


def choose(pools: Pools, n: int) -> dict[str, Pools]:
    """What stays of every pair, way by way; the last ways share in one pair and nowhere else."""
    private, sharing = (
        {stack: [reselect(pool, n, share) for pool in found] for stack, found in pools.items()}
        for share in (False, True)
    )
    ways = {"backward": pools, "private": private, "sharing": sharing}
    for stack, found in pools.items():
        for i, pool in enumerate(found):
            mixed = [*private[stack][:i], sharing[stack][i], *private[stack][i + 1 :]]
            name = "sharing in {} {}-{} only".format(stack, *pool.pair)
            ways[name] = private | {stack: mixed}
    return ways


if __name__ == "__main__":
    main()
