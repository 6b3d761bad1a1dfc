"""What `make repro` costs when nothing has changed: CPU time of two versions, in pairs.

    python benchmarks/noop.py OLD [--pairs 5]

OLD is a commit of this repository, or a folder that holds one. It is compared with the working
tree at the same number of stages, and with the working tree at three times as many: every model
of `run` stands there three times. Machines and moments differ, so times are taken in pairs, one
right after the other, and told as ratios.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).parents[1]
Loader = yaml.CSafeLoader


def copy_tree(folder: Path, target: Path) -> Path:
    """What git tracks in a folder, changes included, as a repository of its own."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=folder, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (folder / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, target / name)
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)
    return target


def check_out(old: str, target: Path) -> Path:
    """A commit, or a folder, as a repository of its own."""
    if Path(old).is_dir():
        return copy_tree(Path(old), target)
    target.mkdir()
    archive = subprocess.run(["git", "archive", old], cwd=HERE, check=True, capture_output=True)
    subprocess.run(["tar", "x"], cwd=target, input=archive.stdout, check=True)
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)
    return target


def triple(root: Path) -> None:
    """Let every model of `run` stand there three times, with the results of the first."""
    path, lock = root / "params.yaml", root / "dvc.lock"
    content, locked = yaml.safe_load(path.read_text()), yaml.load(lock.read_text(), Loader)
    stages = json.dumps(locked["stages"])
    for model in list(content["run"]):
        for name in (f"{model}.2", f"{model}.3"):
            content["run"].append(name)
            content["models"][name] = content["models"][model]
            for folder in ("results/models", "results/notebooks"):
                if (root / folder / model).exists():
                    shutil.copytree(root / folder / model, root / folder / name)
            twin = json.loads(stages.replace(f"/{model}/", f"/{name}/"))
            locked["stages"] |= {f"{key} of {name}": entry for key, entry in twin.items()}
    lock.write_text(yaml.safe_dump(locked))  # `settle` takes hashes from it, and writes it anew
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def run(root: Path, *command: str) -> str:
    """Run a Python command in a scratch copy, with its own library."""
    environment = os.environ | {"PYTHONPATH": str(root / "lib"), "DVC_NO_ANALYTICS": "1"}
    options = {"cwd": root, "env": environment, "capture_output": True, "text": True}
    answer = subprocess.run([sys.executable, *command], **options)
    if answer.returncode:
        raise SystemExit(f"error in {root}: {answer.stdout[-500:]}{answer.stderr[-2000:]}")
    return answer.stdout


def measure(root: Path) -> float:
    """CPU seconds of one `make repro` that has nothing to do."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = run(root, "-m", "workflow.repro")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if "Running stage" in said:
        raise SystemExit(f"error in {root}: a stage ran: {said[:2000]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def count_stages(root: Path) -> int:
    """Number of stages in dvc.lock."""
    return len(yaml.load((root / "dvc.lock").read_text(), Loader)["stages"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", help="a commit, or a folder")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        roots = {
            "old": check_out(options.old, Path(folder) / "old"),
            "new": copy_tree(HERE, Path(folder) / "new"),
            "new, three times the stages": copy_tree(HERE, Path(folder) / "triple"),
        }
        triple(roots["new, three times the stages"])
        settle = str(HERE / "benchmarks" / "settle.py")
        for name, root in roots.items():
            if name != "old":
                run(root, settle)
            measure(root)  # the first run fetches bases and fills DVC's memory of hashes
            print(f"{name}: {count_stages(root)} stages", flush=True)
        ratios: dict[str, list[float]] = {name: [] for name in roots}
        for _ in range(options.pairs):
            seconds = {name: measure(root) for name, root in roots.items()}
            for name, value in seconds.items():
                ratios[name].append(value / seconds["old"])
            print("  ".join(f"{name} {value:.1f} s" for name, value in seconds.items()), flush=True)
        for name, values in ratios.items():
            spread = f"{min(values):.2f} to {max(values):.2f}"
            print(f"{name}: {statistics.median(values):.2f} of old ({spread})")


if __name__ == "__main__":
    main()
