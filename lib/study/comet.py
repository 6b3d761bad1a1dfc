"""COMET of the stored translations (paper, Appendix F, Table 11), in an environment of its own.

    python -m study.comet opus-mt-zh-en

unbabel-comet wants transformers below 5, so it is installed into `.venv-comet/` and called as a
command. It reads what notebook 6 has kept, models/MODEL/answers/, and nothing is translated again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from huggingface_hub import constants

from ffmerge.files import replacing
from ffmerge.hub import asking_hub
from study.config import find_root, load_params
from study.packages import fetch_package

PACKAGE = "unbabel-comet==2.2.7"
SHA256 = "581df65c145d8710cf70bf6fac421a8799791ba318c236136e3d3321f3732dc6"  # of its wheel
CHECKPOINT = "Unbabel/wmt22-comet-da"
FILES = ("source", "reference", "translation")  # as `write_answers` names them
COLUMNS = ["model", "variant", "state", "metric", "value", "n_examples", "signature"]


def find_translations(answers: Path) -> dict[tuple[str, str], Path]:
    """The folders of a model's translations: variant and state to folder.

    Args:
        answers: models/MODEL/answers.

    Raises:
        ValueError: there are none.
    """
    found = sorted(file.parent for file in answers.glob("*/*/translation.txt"))
    if not found:
        raise ValueError(
            f"{answers} holds no translations; valid is a translator whose 6_evals have run here"
        )
    return {(folder.parent.name, folder.name): folder for folder in found}


def find_command(root: Path) -> Path:
    """The command comet-score: the one on PATH, or that of `.venv-comet/`, made if it is missing.

    Raises:
        ValueError: it cannot be installed.
    """
    on_path, own = shutil.which("comet-score"), root / ".venv-comet"
    command = own / "bin" / "comet-score"
    if on_path or command.exists():
        return Path(on_path or command)
    wheel = fetch_package(PACKAGE, SHA256)  # without an index this fails in seconds
    print(f"installing {PACKAGE} into {own}, once: some gigabytes", flush=True)
    shutil.rmtree(own, ignore_errors=True)  # half of one, without the command
    with tempfile.TemporaryDirectory() as folder:
        name = PACKAGE.replace("-", "_").replace("==", "-")  # pip wants a wheel's own name
        named = shutil.copy(wheel, Path(folder) / f"{name}-py3-none-any.whl")
        pip = [own / "bin" / "python", "-m", "pip", "install", "--quiet", named]
        for step in ([sys.executable, "-m", "venv", own], pip):
            done = subprocess.run(list(map(str, step)), stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise ValueError(
                    f"{PACKAGE} cannot be installed ({_last(done.stderr)}); valid is a comet-score "
                    "on PATH"
                )
    return command


def score(command: Path, folders: list[Path], checkpoint: str, gpus: int) -> list[float]:
    """The system score of each folder's translations, which share sources and references.

    Args:
        command: comet-score.
        folders: with the files that `write_answers` wrote.
        checkpoint: COMET's model: a hub id, or a .ckpt file.
        gpus: how many it may use.

    Raises:
        ValueError: the model cannot be had, or the command failed.
    """
    translations = [str(folder / "translation.txt") for folder in folders]
    with asking_hub(checkpoint, "model"), tempfile.TemporaryDirectory() as made:
        told = Path(made) / "scores.json"
        words = ["-s", folders[0] / "source.txt", "-r", folders[0] / "reference.txt"]
        words += ["-t", *translations, "--model", checkpoint, "--gpus", gpus]
        words += ["--quiet", "--only_system", "--to_json", told]
        outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        outside |= {"HF_HUB_OFFLINE": "1"} if constants.HF_HUB_OFFLINE else {}
        done = subprocess.run(
            [str(command), *map(str, words)], capture_output=True, text=True, env=outside
        )
        if done.returncode or not told.exists():
            raise ValueError(
                f"comet-score failed ({_last(done.stderr)}); valid are a checkpoint that it can "
                "load, on the hub or as a .ckpt file, and memory for it"
            )
        content = json.loads(told.read_text(encoding="utf-8"))
    segments = [[row["COMET"] for row in content[name]] for name in translations]
    return [sum(values) / len(values) for values in segments]


def tabulate(model: str, command: Path, answers: Path, checkpoint: str, gpus: int) -> pd.DataFrame:
    """COMET of every state of every variant: one row each, in percent as the paper prints it.

    Args:
        model: its name in params.yaml.
        command, checkpoint, gpus: as in `score`.
        answers: as in `find_translations`.
    """
    found = find_translations(answers)
    alike: dict[tuple, list] = {}  # COMET's model is loaded once for those with the same texts
    for key, folder in found.items():
        texts = {name: (folder / f"{name}.txt").read_text(encoding="utf-8") for name in FILES}
        alike.setdefault((texts["source"], texts["reference"]), []).append(key)
    rows = []
    for (source, _), keys in alike.items():
        values = score(command, [found[key] for key in keys], checkpoint, gpus)
        n, signature = len(source.splitlines()), f"model:{checkpoint}|{PACKAGE}"
        rows += [
            (model, *key, "COMET", 100 * value, n, signature)
            for key, value in zip(keys, values, strict=True)
        ]
    return pd.DataFrame(sorted(rows), columns=COLUMNS)


def main(arguments: list[str] | None = None) -> None:
    """Command line: score, or say in one sentence why not; what was scored before stays."""
    parser = argparse.ArgumentParser(prog="python -m study.comet")
    parser.add_argument("model", help="a translator of params.yaml")
    parser.add_argument("--checkpoint", default=CHECKPOINT, help="a hub id, or a .ckpt file")
    parser.add_argument("--gpus", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        root, name = find_root(), options.model
        load_params(root).model(name)
        answers = root / "models" / name / "answers"
        find_translations(answers)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    try:
        table = tabulate(name, find_command(root), answers, options.checkpoint, options.gpus)
    except ValueError as error:
        print(f"COMET is skipped: {error}")
        return
    output = root / "results" / "models" / name / "comet.csv"
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as partial:
        table.to_csv(partial, index=False, float_format="%.6g")
    print(table[["variant", "state", "value"]].to_string(index=False))


def _last(text: str) -> str:
    """The last line of what a program complained about."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it gave no reason"


if __name__ == "__main__":
    main()
