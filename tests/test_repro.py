"""`make repro` on a pipeline of one-line stages: fresh clones, lost files, killed stages."""

import os
import shutil
import signal
import subprocess
import sys
import time

import networkx
import pytest
import yaml
from conftest import write_tiny_profile

from workflow.repro import split

PIPELINE = """
stages:
  code:
    cmd: python -m workflow.code
    always_changed: true
    outs: [.code: {cache: false}]
  base:
    cmd: echo base >> ran && mkdir -p models && cp source models/base
    deps: [source]
    outs: [models/base]
  features:
    cmd: echo features >> ran && cat models/base models/base > models/features
    deps: [models/base]
    outs: [models/features: {push: false}]
  permutations:
    cmd: echo permutations >> ran && sleep ${pause} && head -c ${keep} models/features > models/p
    deps: [models/features]
    params: [keep]
    outs: [models/p]
  tuned:
    matrix: {seed: [0, 1]}
    cmd: >-
      echo tuned-${item.seed} >> ran && mkdir -p models/tuned
      && (echo ${item.seed}; cat models/base models/p) > models/tuned/${item.seed}
    deps: [models/base, models/p]
    outs:
      - models/tuned/${item.seed}: {push: false}
  evals:
    cmd: echo evals >> ran && mkdir -p results && cat models/tuned/0 models/tuned/1 > results/row
    deps: [models/tuned]
    params: [metric]
    outs: [results/row: {cache: false}]
  figures:
    cmd: echo figures >> ran && mkdir -p figures && cat results/row results/row > figures/results.md
    deps: [results/row]
    outs: [figures: {cache: false}]
"""
EXTRA = {"keep": 4, "metric": "accuracy", "pause": 0}


def call(root, *command, **kwargs):
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
    options = {"cwd": root, "env": environment, "text": True, "capture_output": True} | kwargs
    return subprocess.run(command, check=True, **options)


def repro(root):
    """Run make repro's command; the names of the stages that it ran."""
    (root / "ran").unlink(missing_ok=True)
    call(root, sys.executable, "-m", "workflow.repro")
    return (root / "ran").read_text().split() if (root / "ran").exists() else []


def set_parameter(root, name, value):
    lines = (root / "extra.yaml").read_text().splitlines()
    edited = [f"{name}: {value}" if line.startswith(name) else line for line in lines]
    (root / "extra.yaml").write_text("\n".join(edited) + "\n")


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A repository whose pipeline has run, with a store that holds the small outputs."""
    root = write_tiny_profile(tmp_path_factory.mktemp("origin"))
    pipeline = PIPELINE.replace("params: [keep]", "params: [extra.yaml: [keep]]")
    pipeline = pipeline.replace("params: [metric]", "params: [extra.yaml: [metric]]")
    (root / "dvc.yaml").write_text("vars: [extra.yaml]\n" + pipeline)
    (root / "extra.yaml").write_text("".join(f"{k}: {v}\n" for k, v in EXTRA.items()))
    (root / "source").write_text("weights\n")
    (root / ".gitignore").write_text("/models/\n/.code/\n/ran\n")
    for command in ("git init -q", "dvc init -q", "dvc remote add -q -d store .dvc/store"):
        call(root, *command.split())
    assert repro(root)[0] == "base"
    call(root, "dvc", "push", "-q")
    call(root, "git", "add", "-A")
    call(root, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "run")
    return root


@pytest.fixture
def clone(origin, tmp_path):
    call(tmp_path, "git", "clone", "-q", str(origin), "clone")
    return tmp_path / "clone"


def is_clean(root):
    return call(root, "git", "status", "--porcelain").stdout == ""


def test_a_fresh_clone_runs_nothing_and_gets_what_the_store_carries(clone):
    assert not (clone / "models").exists()
    assert repro(clone) == [] and is_clean(clone)
    assert sorted(os.listdir(clone / "models")) == ["base", "p"]
    assert repro(clone) == []


def test_an_edit_on_a_fresh_clone_makes_again_only_what_it_needs(clone):
    set_parameter(clone, "metric", "error")
    # the tuned models were never pushed: evals needs them again, but neither features nor base
    assert repro(clone) == ["tuned-0", "tuned-1", "evals"]
    assert call(clone, "git", "status", "--porcelain").stdout.split() == [
        "M",
        "dvc.lock",
        "M",
        "extra.yaml",
    ]


def test_an_edit_that_changes_an_intermediate_runs_all_that_follows(clone):
    set_parameter(clone, "keep", 5)
    assert repro(clone) == ["features", "permutations", "tuned-0", "tuned-1", "evals", "figures"]
    assert repro(clone) == []


def test_a_lost_result_is_made_again(clone):
    (clone / "results" / "row").unlink()
    assert repro(clone) == ["tuned-0", "tuned-1", "evals"] and is_clean(clone)
    shutil.rmtree(clone / "figures")
    assert repro(clone) == ["figures"] and is_clean(clone)


def test_a_killed_run_loses_only_the_stage_that_was_running(clone):
    set_parameter(clone, "keep", 3)
    set_parameter(clone, "pause", 60)
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    process = subprocess.Popen(
        [sys.executable, "-m", "workflow.repro"],
        cwd=clone,
        env=os.environ | {"PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for _ in range(600):
        if (clone / "ran").exists() and "permutations" in (clone / "ran").read_text():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    set_parameter(clone, "pause", 0)
    assert repro(clone) == ["permutations", "tuned-0", "tuned-1", "evals", "figures"]
    assert (clone / "models" / "p").read_text() == "wei"


def test_the_check_names_stale_stages_and_runs_nothing(clone):
    check = [sys.executable, "-m", "workflow.repro", "--check"]
    assert "no stage is stale" in call(clone, *check).stdout
    set_parameter(clone, "metric", "error")
    with pytest.raises(subprocess.CalledProcessError) as error:
        call(clone, *check)
    assert error.value.stderr.strip() == "stale: evals"
    assert not (clone / "ran").exists()


def test_a_wrong_parameter_stops_before_any_stage(clone):
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("- vit-glyphs\n", "- vit-glyph\n", 1))
    with pytest.raises(subprocess.CalledProcessError) as error:
        call(clone, sys.executable, "-m", "workflow.repro")
    expected = "error: params.yaml: run names 'vit-glyph', which is unknown; valid are vit-glyphs"
    assert error.value.stderr.strip() == expected and not (clone / "ran").exists()


def test_what_runs_side_by_side_needs_nothing_of_each_other():
    needs = [("align", "base"), ("tune-a0", "align"), ("tune-a1", "align"), ("tune-b", "align")]
    needs += [("eval-a", "tune-a0"), ("eval-a", "tune-a1"), ("eval-b", "tune-b"), ("eval", "base")]
    order = ["base", "align", "tune-b", "tune-a0", "tune-a1", "eval", "eval-a", "eval-b"]
    common, chunks = split(order, networkx.DiGraph(needs), n=2)
    assert common == ["base", "align"]
    assert sorted(stage for chunk in chunks for stage in chunk) == sorted(order[2:])
    place = {stage: i for i, chunk in enumerate(chunks) for stage in chunk}
    for stage, needed in needs:
        assert needed in common or place[stage] == place[needed]
        assert needed in common or order.index(needed) < order.index(stage)
    assert len(chunks) == 2


def test_models_are_recomputed_side_by_side_and_all_are_locked(tmp_path):
    root = write_tiny_profile(tmp_path / "root")
    content = yaml.safe_load((root / "params.yaml").read_text())
    content["models"]["another"] = content["models"]["vit-glyphs"]
    content |= {"run": ["vit-glyphs", "another"], "threads": 1}
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    say = "echo start-{0} >> ran && sleep 2 && echo end-{0} >> ran && mkdir -p models/{0}"
    stages = {"code": {"cmd": "python -m workflow.code", "always_changed": True}}
    for name in content["run"]:
        made, copied = f"models/{name}/base", f"models/{name}/b"
        command = f"{say.format(name)} && echo {name} > {made}"
        stages[f"a-{name}"] = {"cmd": command, "outs": [made]}
        copy = f"cp {made} {copied} && echo {name} >> copies"
        stages[f"b-{name}"] = {"cmd": copy, "deps": [made], "outs": [copied]}
    report = "mkdir -p figures && cat models/*/b > figures/results.md"
    made = [f"models/{name}/b" for name in content["run"]]
    stages["figures"] = {"cmd": report, "deps": made, "outs": ["figures"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for command in ("git init -q", "dvc init -q"):
        call(root, *command.split())
    call(root, sys.executable, "-m", "workflow.repro", "--from-scratch")
    ran = (root / "ran").read_text().split()
    assert len(ran) == 4
    if os.cpu_count() > 1:
        assert set(ran[:2]) == {"start-vit-glyphs", "start-another"}
    locked = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    assert set(stages) <= set(locked) | {"code"}
    assert (root / "figures" / "results.md").read_text().split() == ["another", "vit-glyphs"]
    call(root, sys.executable, "-m", "workflow.repro", "--from-scratch", "another", "--keep-bases")
    assert len((root / "ran").read_text().split()) == 4  # no base is trained again
    assert sorted((root / "copies").read_text().split()) == ["another", "another", "vit-glyphs"]
