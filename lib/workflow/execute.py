"""Execute one notebook by papermill: checked before, scrubbed after, never half-written.

    python -m workflow.execute 5_finetune results/…/5_finetune.ipynb -p model vit-glyphs -p seed 0

As a stage of the pipeline it publishes its results, and notes how long it took. By hand it
publishes nothing: `study.places` then writes below `scratch/`.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill
import yaml
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from study.config import find_root
from study.places import PUBLISH
from workflow.durations import timing

KERNEL = "python3"
QUIET = {
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # the bars are text on purpose
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCHDYNAMO_DISABLE": "1",  # or importing peft loads torch's compiler, which no stage uses
}
STAGE = "DVC_STAGE"  # DVC sets it to a stage's name while it runs the stage
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[/#])[^)\s#]*[./][^)\s#]*")  # a relative one, in Markdown


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
    valid = papermill.inspect_notebook(_escape(notebook))
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
    with tempfile.TemporaryDirectory() as sockets:
        papermill.execute_notebook(
            _escape(notebook),
            _escape(running),
            parameters,
            kernel_name=KERNEL,
            progress_bar=False,
            stderr_file=sys.stderr,  # the cells' own progress bars, live
            record_timing=False,
            config=_find_transport(sockets),
        )
    executed = scrub(nbformat.read(running, as_version=4))
    nbformat.write(rebase_links(executed, notebook.parent, output.parent), running)
    os.replace(running, output)


def _find_transport(folder: str) -> Config:
    """How we talk to the kernel: by sockets in a folder of its own, so that none race for a port.

    (By default those would lie in the current folder, under names that two notebooks which start
    at the same moment would share.)
    """
    return Config({"KernelManager": {"transport": "ipc", "ip": str(Path(folder, "kernel"))}})


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


def rebase_links(
    notebook: nbformat.NotebookNode, source: Path, copy: Path
) -> nbformat.NotebookNode:
    """Let relative links in the text of a copy lead where they lead in the source.

    Args:
        notebook: the copy; changed in place.
        source, copy: the folders that the two lie in.
    """

    def rebase(link: re.Match) -> str:
        return Path(os.path.relpath(source / link[0], copy)).as_posix()

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(rebase, cell.source)
    return notebook


def _escape(path: Path) -> str:
    """A path as papermill wants it: it takes `{` and `}` for the places of parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


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
    root, stage = find_root(), os.environ.get(STAGE)
    if stage:
        os.environ[PUBLISH] = "1"
    try:
        with timing(root, stage, parameters.get("model", "")):
            notebook = root / "notebooks" / f"{options.notebook}.ipynb"
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
