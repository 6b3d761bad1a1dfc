"""Execute one notebook by papermill: checked before, scrubbed after, never half-written.

python -m workflow.execute 5_finetune results/…/5_finetune.ipynb -p model vit-glyphs -p seed 0
"""

import argparse
import os
import sys
from pathlib import Path

import nbformat
import papermill
import yaml
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from study.config import find_root

KERNEL = "python3"
IPC = Config({"KernelManager": {"transport": "ipc"}})  # no ports to race for, nothing to listen to
QUIET = {
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # the bars are text on purpose
    "TRANSFORMERS_VERBOSITY": "error",
}


def execute(notebook: Path, output: Path, parameters: dict) -> None:
    """Run a notebook and write its executed copy.

    Args:
        notebook: the source; it is not changed.
        output: where the executed copy goes, once all of it has run.
        parameters: values for names in the notebook's `parameters` cell.

    Raises:
        ValueError: no such notebook, a parameter that it does not have, or no kernel to run it.
        PapermillExecutionError: a cell failed; `output` with the suffix .failed.ipynb shows it.
    """
    if not notebook.exists():
        valid = ", ".join(sorted(path.stem for path in notebook.parent.glob("*.ipynb")))
        raise ValueError(f"notebook {notebook.stem!r} is unknown; valid are {valid}")
    valid = papermill.inspect_notebook(str(notebook))
    for name, value in parameters.items():
        if name not in valid:
            raise ValueError(
                f"parameter {name!r} ({value!r}) is unknown to {notebook.name}; valid are "
                + (", ".join(valid) or "none")
            )
    try:
        KernelSpecManager().get_kernel_spec(KERNEL)
    except NoSuchKernel:
        raise ValueError(
            f"kernel {KERNEL!r} is missing; valid is a Jupyter kernel of this environment: "
            "run `make` again or `pip install ipykernel`"
        ) from None
    output.parent.mkdir(parents=True, exist_ok=True)
    running = output.with_suffix(".failed.ipynb")
    quiet = QUIET if sys.stderr.isatty() else QUIET | {"TQDM_MININTERVAL": "30"}  # a log file
    os.environ.update({name: os.environ.get(name, value) for name, value in quiet.items()})
    papermill.execute_notebook(
        str(notebook),
        str(running),
        parameters,
        kernel_name=KERNEL,
        progress_bar=False,
        stderr_file=sys.stderr,  # the cells' own progress bars, live
        record_timing=False,
        config=IPC,
    )
    nbformat.write(scrub(nbformat.read(running, as_version=4)), running)
    os.replace(running, output)


def scrub(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out what differs between two runs of the same code: times, paths, ids, progress bars.

    Invariant: two runs that compute the same give the same bytes.
    """
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": KERNEL},
        "language_info": {"name": "python"},
    }
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return notebook


def main(arguments: list[str] | None = None) -> None:
    """Command line: notebook, output, and -p NAME VALUE as often as needed."""
    parser = argparse.ArgumentParser(prog="python -m workflow.execute")
    parser.add_argument("notebook", help="such as 5_finetune")
    parser.add_argument("output", type=Path, help="where the executed copy goes")
    parser.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    options = parser.parse_args(arguments)
    parameters = {name: yaml.safe_load(value) for name, value in options.parameter}
    notebook = find_root() / "notebooks" / f"{options.notebook}.ipynb"
    try:
        execute(notebook, options.output, parameters)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    except PapermillExecutionError as error:
        failed = options.output.with_suffix(".failed.ipynb")
        raise SystemExit(
            f"error: {options.notebook}: {error.ename}: {error.evalue} (see {failed})"
        ) from None


if __name__ == "__main__":
    main()
