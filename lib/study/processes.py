"""Several processes for one piece of work: torchrun starts them, and they end with who asked.

It is what `accelerate launch` runs on GPUs, and unlike that works on CPUs too.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

import study
from ffmerge.files import read_json, write_json
from study.config import find_root
from study.hardware import find_device

SPEC = "spec.json"


def run_processes(worker: tuple[str, ...], processes: int, spec: dict, folder: Path) -> None:
    """Start processes that share a piece of work, and wait until they are done.

    Args:
        worker: what each runs, as arguments of python: a module that calls `take_part`.
        processes: how many.
        spec: what is to be done, as JSON.
        folder: for the file that tells them.

    Raises:
        ValueError: more processes than there are GPUs.
        RuntimeError: a process failed, and has said why on stderr.
    """
    check_processes(processes)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(spec, folder / SPEC)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), *worker, str(folder / SPEC)]
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
            f"work in {processes} processes failed with exit code {code}; the first error on "
            "stderr says why"
        )


def check_processes(processes: int) -> None:
    """Make sure that every process gets a GPU of its own, if there are any.

    Raises:
        ValueError: there are too few.
    """
    n = torch.cuda.device_count() if find_device() == "cuda" else 0
    if n and processes > n:
        there = "is 1 GPU; valid is 1" if n == 1 else f"are {n} GPUs; valid are 1 to {n}"
        raise ValueError(f"processes is {processes}, but there {there}")


def take_part(run: Callable[[dict, int], None]) -> None:
    """The whole of a process that `run_processes` has started.

    Args:
        run: does this process's share of what the file on the command line tells, given the
            file's content and the process's number, its rank.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank = int(os.environ["LOCAL_RANK"])
    if find_device() == "cuda":
        torch.cuda.set_device(rank)
    run(read_json(Path(sys.argv[1])), rank)


def _end_with_parent() -> None:
    """End this process when the one that started it has gone, which then closes its input."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
