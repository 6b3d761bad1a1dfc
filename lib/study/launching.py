"""One tuning in several processes: every batch shared among them, gradients averaged (DDP).

    python -m torch.distributed.run --nproc_per_node 2 -m study.launching SPEC.json

The notebook calls `finetune_in_processes`, which runs this line; it is what `accelerate launch`
runs on GPUs, and unlike that works on CPUs too. Every process loads the base and the patch itself.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, set_seed

import study
from ffmerge.checkpoints import load
from ffmerge.files import read_json, write_json
from ffmerge.patches import apply_patch
from study.config import find_root, load_params
from study.finetuning import finetune, trained_weights
from study.hardware import resolve_precision
from study.patches import find_patch
from study.places import find_input
from study.quantization import add_adapters
from study.tasks import load_task, make_batches

WORKER = ("-m", "study.launching")
SPEC, WEIGHTS, CURVE = "spec.json", "tuned.safetensors", "curve.json"


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
        ValueError: more processes than there are GPUs.
        RuntimeError: a process failed, and has said why on stderr.

    Invariant: what `finetune` gives at the same batch size, up to rounding and to dropout, if the
        data's number of examples is a multiple of that; or else an epoch's last batch is filled
        up from its first.
    """
    processes = load_params().training(model, variant).processes or 1
    check_processes(processes)
    spec = {"model": model, "variant": variant, "seed": seed}
    spec |= {"folder": str(folder.resolve()), "resume": resume}
    write_json(spec, folder / SPEC)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), *WORKER, str(folder / SPEC)]
    library = str(Path(study.__path__[0]).parent)
    path = os.pathsep.join(filter(None, (library, os.environ.get("PYTHONPATH"))))
    threads = os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads()))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": threads}
    # What holds the other end of their input is us: if we are killed, they end too.
    options = {"env": environment, "cwd": find_root(), "stdin": subprocess.PIPE}
    with subprocess.Popen(command, **options) as running:
        code = running.wait()
    if code:
        raise RuntimeError(
            f"tuning in {processes} processes failed with exit code {code}; the first error on "
            "stderr says why"
        )
    tuned = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, p in trained_weights(small).items():
            p.copy_(tuned[name])
    return pd.DataFrame(read_json(folder / CURVE))


def check_processes(processes: int) -> None:
    """Make sure that every process gets a GPU of its own, if there are any.

    Raises:
        ValueError: there are too few.
    """
    n = torch.cuda.device_count()
    if n and processes > n:
        there = "is 1 GPU; valid is 1" if n == 1 else f"are {n} GPUs; valid are 1 to {n}"
        raise ValueError(f"processes is {processes}, but there {there}")


def run_process(spec: dict) -> None:
    """Take part in the tuning that `finetune_in_processes` has described."""
    model, variant, seed, folder = (
        spec["model"],
        spec["variant"],
        spec["seed"],
        Path(spec["folder"]),
    )
    rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    params = load_params()
    entry, training = params.model(model), params.training(model, variant)
    torch.set_num_threads(params.threads)
    options = {"attn_implementation": entry.attention}
    base = load(find_input(f"models/{model}/base", "1_base"), **options)
    small = apply_patch(base, find_patch(model, variant, params.recipe(variant).method))
    set_seed(seed)
    if training.adapters:
        options["compute"] = getattr(torch, resolve_precision(training.precision))
        small = add_adapters(small, training.adapters, folder / f"frozen-{rank}", **options)
    use, task = entry.recovery, load_task(model, params, find_root(), downstream=True)
    validation = list(make_batches(task, "validation", use.batch_size, use.validation_examples))
    set_seed(seed)
    curve = finetune(small, task, training, validation, seed, folder, spec["resume"], teacher=base)
    if rank == 0:
        save_file(
            {n: p.detach().contiguous() for n, p in trained_weights(small).items()},
            folder / WEIGHTS,
        )
        write_json(curve.to_dict("list"), folder / CURVE)


def _end_with_parent() -> None:
    """End this process when the one that started it has gone, which then closes its input."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    """Command line: the file that says what to tune."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run_process(read_json(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
