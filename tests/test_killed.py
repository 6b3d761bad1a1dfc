"""`make repro` killed in the middle of a tuning, and started again: the real pipeline, tiny."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
import yaml
from conftest import REPOSITORY, write_tiny_profile
from test_pipeline import MODEL, run_here

from study.resuming import find_checkpoint

STEPS, KILLED = 60, 12  # of a tuning; before which it is not killed
PATIENCE = 600  # seconds
TUNED = f"models/{MODEL}/tuned/base-tuned/0/model.safetensors"
STAGE = f"finetune@{MODEL}-base-tuned-0"
CURVE = f"results/models/{MODEL}/curves/base-tuned-0.csv"


@pytest.fixture
def make_root(tmp_path, inside):
    """A repository with the whole pipeline of one tuning of many steps, in which nothing ran."""

    def make(name):
        root = write_tiny_profile(tmp_path / name, variants=["base-tuned"], seeds=[0])
        content = yaml.safe_load((root / "params.yaml").read_text())
        content["models"][MODEL]["finetune"]["steps"] = STEPS
        (root / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        for file in ("dvc.yaml", ".gitignore"):
            shutil.copy(REPOSITORY / file, root)
        shutil.copytree(REPOSITORY / "lib", root / "lib", ignore=shutil.ignore_patterns("__py*"))
        for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
            subprocess.run(command, cwd=root, check=True)
        return inside(root)

    return make


@contextmanager
def repro(root, log):
    """`make repro` at work; whoever leaves before it has ended kills it."""
    environment = os.environ | {"PYTHONPATH": str(root / "lib"), "DVC_NO_ANALYTICS": "1"}
    environment["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    command = [sys.executable, "-m", "workflow.repro"]
    options = {"stdout": log.open("w"), "stderr": subprocess.STDOUT}
    with psutil.Popen(command, cwd=root, env=environment, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                kill_all(process)


def kill_all(process):
    """As a power cut does: a notebook's kernel is in a process group of its own."""
    victims = [process, *process.children(recursive=True)]
    for victim in victims:
        victim.kill()
    psutil.wait_procs(victims, timeout=PATIENCE)


def wait_for(condition, process, log):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.05)


def find_step(folder):
    checkpoint = find_checkpoint(folder)
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


@pytest.mark.slow
def test_a_tuning_that_was_killed_with_make_repro_goes_on_to_the_same_bits(make_root, tmp_path):
    whole = make_root("whole")
    run_here("1_base", {"model": MODEL})
    run_here("5_finetune", {"model": MODEL, "variant": "base-tuned", "seed": 0})

    root, log = make_root("cut"), tmp_path / "log"
    trainer = root / f"models/{MODEL}/trainer/base-tuned-0"
    with repro(root, log) as process:
        wait_for(lambda: find_step(trainer) >= KILLED, process, log)
    step = find_step(trainer)
    assert step < STEPS and not (root / TUNED).exists()

    with repro(root, log) as process:  # what comes after the tuning is of no interest here
        wait_for(lambda: f"{STAGE}:" in (root / "dvc.lock").read_text(), process, log)
    assert f"checkpoint-{step}, where a training was cut off" in log.read_text()
    for path in (TUNED, CURVE):
        assert (root / path).read_bytes() == (whole / path).read_bytes()
    assert not trainer.exists()
