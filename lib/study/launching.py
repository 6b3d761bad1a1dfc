"""One tuning in several processes: every batch shared among them, gradients averaged (DDP).

    python -m torch.distributed.run --nproc_per_node 2 -m study.launching SPEC.json

The notebook calls `finetune_in_processes`, which runs this line. Every process loads the base and
the patch itself.
"""

from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, set_seed

from ffmerge.checkpoints import load
from ffmerge.files import read_json, write_json
from ffmerge.patches import apply_patch
from study.config import find_root, load_params
from study.finetuning import finetune, gather_weights, trained_weights
from study.hardware import resolve_precision
from study.patches import find_patch
from study.places import find_input
from study.processes import run_processes, take_part
from study.quantization import add_adapters
from study.tasks import load_task, make_batches

WORKER = ("-m", "study.launching")
WEIGHTS, CURVE = "tuned.safetensors", "curve.json"


def finetune_in_processes(
    small: PreTrainedModel,
    model: str,
    variant: str,
    seed: int,
    folder: Path,
    resume: bool,
) -> pd.DataFrame:
    """As `finetune`, but in as many processes as the recipe says.

    Args:
        small: the compressed model, with adapters if the recipe has them; trained in place.
        model, variant, seed: the notebook's parameters.
        folder, resume: as in `finetune`.

    Returns:
        The learning curve.

    Raises:
        ValueError, RuntimeError: as `run_processes`.

    Invariant: what `finetune` gives at the same batch size, up to rounding and to dropout, if the
        data's number of examples is a multiple of that; or else an epoch's last batch is filled
        up from its first.
    """
    spec = {"model": model, "variant": variant, "seed": seed}
    spec |= {"folder": str(folder.resolve()), "resume": resume}
    run_processes(WORKER, load_params().training(model, variant).processes or 1, spec, folder)
    tuned = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, p in trained_weights(small).items():
            p.copy_(tuned[name])
    return pd.DataFrame(read_json(folder / CURVE))


def run_process(spec: dict, rank: int) -> None:
    """Take part in the tuning that `finetune_in_processes` has described."""
    model, variant, seed, folder = (
        spec["model"],
        spec["variant"],
        spec["seed"],
        Path(spec["folder"]),
    )
    params = load_params()
    entry, training = params.model(model), params.training(model, variant)
    torch.set_num_threads(params.threads)
    options = {"attn_implementation": entry.attention}
    base = load(find_input(f"models/{model}/base", "1_base"), **options)
    small = apply_patch(base, find_patch(model, variant, params.recipe(variant).method))
    set_seed(seed)
    if training.adapters:
        options["compute"] = getattr(torch, resolve_precision(training.precision))
        if training.sharded:
            options["storage"] = torch.float32
        small = add_adapters(small, training.adapters, folder / f"frozen-{rank}", **options)
    use, task = entry.recovery, load_task(model, params, find_root(), downstream=True)
    validation = list(make_batches(task, "validation", use.batch_size, use.validation_examples))
    set_seed(seed)
    curve = finetune(small, task, training, validation, seed, folder, spec["resume"], teacher=base)
    weights = gather_weights(small)  # by all processes
    if rank == 0:
        save_file(weights, folder / WEIGHTS)
        write_json(curve.to_dict("list"), folder / CURVE)


def main() -> None:
    """Command line: the file that says what to tune."""
    take_part(run_process)


if __name__ == "__main__":
    main()
