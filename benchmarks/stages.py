"""Features, permutations, least squares at full width: time and peak memory, beside a plain scheme.

    python benchmarks/stages.py [--width 5120] [--layers 8] [--tokens 10000] [--pairs 4]
    python benchmarks/stages.py --width 11008 --layers 2 --pairs 1

The features are those of a random GPT-2 whose FF sublayers have the width asked for and whose
residual stream is narrow, so that the forward pass costs little: neurons of neighbours are as alike
as the stream that they read. The plain scheme keeps all features in memory, in lists that are
joined at the end, and then one float32 correlation matrix for every pair, before it solves the
assignment problems one after the other. Least squares: second moments of all sublayers, and W_out
of each of the first ones refit to two thirds of its neurons; ours alone. Every measurement is a
process of its own; its peak is above what the process held before, its time that of the processor,
of all threads; both stand as ratios to the plain scheme's too. Which permutations differ is
printed. Linux. results/benchmarks/stages.csv gets the width that was measured and keeps the others;
stages.png shows them. What it comes to at the size of the paper's models says docs/paper-scale.md.
"""

import argparse
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
from ffmerge.leastsquares import refit_output
from ffmerge.moments import collect_moments
from ffmerge.pairs import pair_name, save_pairs
from ffmerge.recording import open_features, record_features
from ffmerge.sublayers import find_stacks
from study.apart import call_apart
from study.config import find_root
from study.machine import describe_machine
from study.peaks import read_peak, reset_peak
from study.places import make_scratch
from study.report.style import use_style
from study.upkeep import update_table

LENGTH = 128  # tokens of a sequence
SCHEMES = ("ours, float32", "ours, bfloat16", "plain")
STAGES = ("features", "permutations", "least squares")


def main() -> None:
    """Measure both schemes, each stage in a process of its own; print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("width", 5120), ("layers", 8), ("tokens", 10_000), ("pairs", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args, rows = parser.parse_args(), []
    with TemporaryDirectory(dir=make_scratch()) as folder:
        args.folder = Path(folder)
        for scheme in SCHEMES:
            for stage in STAGES if scheme == SCHEMES[0] else STAGES[:2]:
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
    table = compare(pd.DataFrame(rows))
    print(table.to_string(index=False))
    path = find_root() / "results/benchmarks/stages.csv"
    update_table(path, table, ["d_ff"])
    draw(path)


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Beside each measurement, what it is of the plain scheme's in the same run."""
    keys = ["d_ff", "stage"]
    plain = table[table.scheme == "plain"].set_index(keys)
    for measured in ("processor_s", "peak_gb"):
        whole = plain[measured].reindex(pd.MultiIndex.from_frame(table[keys])).to_numpy()
        table[f"{measured.partition('_')[0]}_of_plain"] = (table[measured] / whole).round(3)
    return table


def draw(path: Path) -> None:
    """The picture beside the table: peaks, stage by stage."""
    use_style()
    table = pd.read_csv(path)
    widths = table.d_ff.unique()
    fig, axes = plt.subplots(1, len(widths), figsize=(8, 3), sharey=True, squeeze=False)
    for ax, width in zip(axes.flat, widths, strict=True):
        part = table[table.d_ff == width]
        wide = part.pivot(index="stage", columns="scheme", values="peak_gb")
        wide = wide.loc[list(STAGES)[::-1], list(SCHEMES)]
        wide.plot.barh(ax=ax, color=["#0072B2", "#56B4E9", "#999999"], width=0.8, legend=False)
        for bars in ax.containers:
            known = [f" {bar.get_width():.1f}" if bar.get_width() else "" for bar in bars]
            ax.bar_label(bars, known, fontsize=8)
        first = part[part.stage == "permutations"].iloc[0]
        pairs = f"{first.pairs:.0f} {'pair' if first.pairs == 1 else 'pairs'}"
        size = f"{first.layers} FF sublayers of {width:,} neurons\n{first.tokens:,} tokens, {pairs}"
        ax.set_title(size, fontsize=9)
        ax.set(xlabel="peak memory (GB)", ylabel="", xlim=(0, 1.2 * part.peak_gb.max()))
    handles = axes.flat[0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=3, fontsize=8)
    fig.savefig(path.with_suffix(".png"))


def measure(args: argparse.Namespace, scheme: str, stage: str) -> dict:
    """One stage of one scheme: seconds and peak."""
    torch.manual_seed(0)
    run = {
        "features": make_features,
        "permutations": make_permutations,
        "least squares": fit_outputs,
    }[stage]
    before = reset_peak()
    seconds = run(args, scheme)
    return {
        "scheme": scheme,
        "stage": stage,
        "layers": args.layers,
        "d_ff": args.width,
        "tokens": args.tokens,
        "pairs": None if stage == "features" else args.pairs,
        "processor_s": seconds,
        "peak_gb": (read_peak() - before) / 1e9,
        "hardware": describe_machine(),
    }


def make_model(args: argparse.Namespace) -> tuple[GPT2LMHeadModel, list[dict]]:
    """A random model of the width asked for, and batches of random tokens."""
    config = GPT2Config(
        n_layer=args.layers, n_embd=64, n_head=4, n_inner=args.width, vocab_size=512
    )
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 512, (-(-args.tokens // (8 * LENGTH)), 8, LENGTH))
    return model, [{"input_ids": x} for x in ids]


def make_features(args: argparse.Namespace, scheme: str) -> float:
    """Collect or record the features of a random model."""
    model, batches = make_model(args)
    path, start = args.folder / f"{scheme}.features", time.process_time()
    if scheme == "plain":
        kept = [[] for _ in range(args.layers)]
        observe(model, batches, args.tokens, [find_features], lambda n, s, i, x: kept[i].append(x))
        save_file({f"decoder.{i}": torch.cat(rows) for i, rows in enumerate(kept)}, path)
    else:
        dtype = torch.bfloat16 if scheme.endswith("bfloat16") else torch.float32
        record_features(model, batches, path, args.tokens, dtype)
    return time.process_time() - start


def make_permutations(args: argparse.Namespace, scheme: str) -> float:
    """Align pairs of neighbours, the first ones."""
    chosen = [(i, i + 1) for i in range(args.pairs)]
    path, start = args.folder / f"{scheme}.features", time.process_time()
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
    seconds = time.process_time() - start
    save_pairs(found, args.folder / f"{scheme}.pairs")
    return seconds


def fit_outputs(args: argparse.Namespace, scheme: str) -> float:
    """Second moments of all sublayers, and W_out refit in as many as there are pairs."""
    model, batches = make_model(args)
    start = time.process_time()
    moments = collect_moments(model, batches, args.tokens)["decoder"]
    sublayers = find_stacks(model)["decoder"].sublayers
    for i in range(args.pairs):
        refit_output(sublayers[i].read(), moments[i], torch.arange(2 * args.width // 3))
    return time.process_time() - start


def _correlate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = ((z - z.mean(0)) / z.std(0, correction=0) for z in (x, y))
    return x.T @ y / len(x)


def _by_layer(item: tuple[str, torch.Tensor]) -> int:
    return int(item[0].rpartition(".")[2])


if __name__ == "__main__":
    main()
