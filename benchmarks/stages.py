"""Features and permutations at full width: seconds and peak memory, ours beside a plain scheme.

    python benchmarks/stages.py [--width 5120] [--layers 8] [--tokens 10000] [--pairs 4]

The features are those of a random GPT-2 whose FF sublayers have the width asked for and whose
residual stream is narrow, so that the forward pass costs little: neurons of neighbours are as alike
as the stream that they read. The plain scheme keeps all features in memory, in lists that are
joined at the end, and then one float32 correlation matrix for every pair, before it solves the
assignment problems one after the other. Every measurement is a process of its own; its peak is
above what the process held before. Which permutations differ is printed. Linux.
results/benchmarks/stages.csv gets what was measured, stages.png shows it. What it comes to at the
size of the paper's models says docs/paper-scale.md.
"""

import argparse
import platform
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from ffmerge.activations import find_features, observe
from ffmerge.aligning import align_pairs
from ffmerge.pairs import pair_name, save_pairs
from ffmerge.recording import open_features, record_features
from study.apart import call_apart
from study.config import find_root
from study.hardware import describe_hardware
from study.peaks import read_peak, reset_peak
from study.places import make_scratch
from study.report.style import use_style

LENGTH = 128  # tokens of a sequence
SCHEMES = ("ours, float32", "ours, bfloat16", "plain")


def main() -> None:
    """Measure both schemes, each stage in a process of its own; print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("width", 5120), ("layers", 8), ("tokens", 10_000), ("pairs", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args, rows = parser.parse_args(), []
    with TemporaryDirectory(dir=make_scratch()) as folder:
        args.folder = Path(folder)
        for scheme in SCHEMES:
            for stage in ("features", "permutations"):
                rows.append(
                    call_apart(
                        measure, args, scheme, stage, seconds=3600, preload="ffmerge.aligning"
                    )
                )
        ours, *others = (load_file(args.folder / f"{scheme}.pairs") for scheme in SCHEMES)
    for scheme, other in zip(SCHEMES[1:], others, strict=True):
        moved = [float((other[pair] != p).float().mean()) for pair, p in ours.items()]
        print(
            f"{scheme}: neurons matched otherwise than by the first: {max(moved):.2%} at the most"
        )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    path = find_root() / "results/benchmarks/stages.csv"
    table.to_csv(path, index=False, float_format="%.4g")
    draw(path)


def draw(path: Path) -> None:
    """The picture beside the table: peaks, stage by stage."""
    use_style()
    table = pd.read_csv(path)
    wide = table.pivot(index="stage", columns="scheme", values="peak_gb")[table.scheme.unique()]
    fig, ax = plt.subplots(figsize=(7, 2.6))
    wide.plot.barh(ax=ax, color=["#0072B2", "#56B4E9", "#999999"], width=0.8)
    for bars in ax.containers:
        ax.bar_label(bars, fmt=" %.1f GB", fontsize=8)
    first = table[table.stage == "permutations"].iloc[0]
    ax.set_title(
        f"{first.layers} sublayers of {first.d_ff:,} neurons, {first.tokens:,} tokens, "
        f"{int(first.pairs)} pairs",
        fontsize=9,
    )
    ax.set(xlabel="peak memory (GB)", ylabel="", xlim=(0, 1.15 * table.peak_gb.max()))
    ax.legend(loc="upper right", fontsize=8)
    fig.savefig(path.with_suffix(".png"))


def measure(args: argparse.Namespace, scheme: str, stage: str) -> dict:
    """One stage of one scheme: seconds and peak."""
    torch.manual_seed(0)
    run = {"features": make_features, "permutations": make_permutations}[stage]
    before = reset_peak()
    seconds = run(args, scheme)
    return {
        "scheme": scheme,
        "stage": stage,
        "layers": args.layers,
        "d_ff": args.width,
        "tokens": args.tokens,
        "pairs": args.pairs if stage == "permutations" else None,
        "seconds": seconds,
        "peak_gb": (read_peak() - before) / 1e9,
        "hardware": f"{describe_hardware()}, {platform.machine()}",
    }


def make_features(args: argparse.Namespace, scheme: str) -> float:
    """Collect or record the features of a random model."""
    config = GPT2Config(
        n_layer=args.layers, n_embd=64, n_head=4, n_inner=args.width, vocab_size=512
    )
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 512, (-(-args.tokens // (8 * LENGTH)), 8, LENGTH))
    batches = [{"input_ids": x} for x in ids]
    path, start = args.folder / f"{scheme}.features", time.perf_counter()
    if scheme == "plain":
        kept = [[] for _ in range(args.layers)]
        observe(model, batches, args.tokens, [find_features], lambda n, s, i, x: kept[i].append(x))
        save_file({f"decoder.{i}": torch.cat(rows) for i, rows in enumerate(kept)}, path)
    else:
        dtype = torch.bfloat16 if scheme.endswith("bfloat16") else torch.float32
        record_features(model, batches, path, args.tokens, dtype)
    return time.perf_counter() - start


def make_permutations(args: argparse.Namespace, scheme: str) -> float:
    """Align pairs of neighbours, the first ones."""
    chosen = [(i, i + 1) for i in range(args.pairs)]
    path, start = args.folder / f"{scheme}.features", time.perf_counter()
    if scheme == "plain":
        features = [x.clone() for _, x in sorted(load_file(path).items(), key=_by_layer)]
        matrices = {pair: _correlate(*(features[i] for i in pair)) for pair in tqdm(chosen)}
        found = {
            pair_name("decoder", *pair): torch.from_numpy(linear_sum_assignment(C, True)[1])
            for pair, C in matrices.items()
        }
    else:
        pairs = align_pairs(open_features(path), chosen)
        found = {pair_name(p.stack, p.a, p.b): p.permutation for p in pairs}
    seconds = time.perf_counter() - start
    save_pairs(found, args.folder / f"{scheme}.pairs")
    return seconds


def _correlate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = ((z - z.mean(0)) / z.std(0, correction=0) for z in (x, y))
    return x.T @ y / len(x)


def _by_layer(item: tuple[str, torch.Tensor]) -> int:
    return int(item[0].rpartition(".")[2])


if __name__ == "__main__":
    main()
