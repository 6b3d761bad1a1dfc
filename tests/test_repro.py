"""`make repro` on a pipeline of one-line stages: fresh clones, lost files, killed stages."""

import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context

import pytest
import yaml
from conftest import write_tiny_profile
from dvc.utils.serialize import _yaml

from study.config import find_root
from workflow import lockfile
from workflow import repro as repro_module
from workflow.commands import list_waves
from workflow.graph import find_changes, sort
from workflow.planning import Schedule
from workflow.recompute import split

PIPELINE = """
vars: [results/stages.yaml, extra.yaml]
stages:
  code:
    cmd: echo make repro has written .code/ before
    always_changed: true
    outs: [.code: {cache: false, persist: true}]
  base:
    foreach: ${base}
    do:
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
    params: [extra.yaml: [keep]]
    outs: [models/p]
  tuned:
    matrix: {seed: "${draws}"}
    cmd: >-
      echo tuned-${item.seed} >> ran && mkdir -p models/tuned
      && (echo ${item.seed}; cat models/base models/p) > models/tuned/${item.seed}
    deps: [models/base, models/p]
    outs:
      - models/tuned/${item.seed}: {push: false}
  evals:
    cmd: echo evals >> ran && mkdir -p results && cat models/tuned/* > results/row
    deps: [models/tuned]
    params: [extra.yaml: [metric]]
    outs: [results/row: {cache: false}]
  figures:
    cmd: echo figures >> ran && mkdir -p figures && cat results/row results/row > figures/results.md
    deps: [results/row]
    outs: [figures: {cache: false}]
"""
PATH = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
STREAMS = ("stdout", "stderr")
EXTRA = {"keep": 4, "metric": "accuracy", "pause": 0, "draws": [0, 1]}


def call(root, *command, check=True, **kwargs):
    environment = os.environ | {"PATH": PATH, "DVC_NO_ANALYTICS": "1"}
    options = {"cwd": root, "env": environment, "text": True, "capture_output": True} | kwargs
    return subprocess.run(command, check=check, **options)


def run(root, *options, check=True):
    """What make repro's command does, in a process that need not import DVC anew."""
    (root / "ran").unlink(missing_ok=True)
    process = get_context("fork").Process(target=_run, args=(root, options))
    process.start()
    process.join()
    said = [(root.parent / f"{root.name}.{stream}").read_text() for stream in STREAMS]
    answer = subprocess.CompletedProcess(options, process.exitcode, *said)
    if check:
        answer.check_returncode()
    return answer


def _run(root, options):
    os.chdir(root)
    for stream in STREAMS:
        sys.stdout.flush()
        file = os.open(root.parent / f"{root.name}.{stream}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(file, getattr(sys, f"__{stream}__").fileno())
        setattr(sys, stream, getattr(sys, f"__{stream}__"))
    os.environ |= {"PATH": PATH, "DVC_NO_ANALYTICS": "1"}
    find_root.cache_clear()
    repro_module.main(options)


def ran(root):
    """The names of the stages that ran, in order."""
    return (root / "ran").read_text().split() if (root / "ran").exists() else []


def repro(root, *options):
    run(root, *options)
    return ran(root)


def refuse(root, *options):
    """What make repro says, in one sentence, when it does not run."""
    answer = run(root, *options, check=False)
    assert answer.returncode == 1 and ran(root) == []
    (sentence,) = answer.stderr.strip().splitlines()
    return sentence


def set_parameter(root, name, value):
    lines = (root / "extra.yaml").read_text().splitlines()
    edited = [f"{name}: {value}" if line.startswith(name) else line for line in lines]
    (root / "extra.yaml").write_text("\n".join(edited) + "\n")


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A repository whose pipeline has run, with a store that holds the small outputs."""
    root = write_tiny_profile(tmp_path_factory.mktemp("origin"))
    (root / "dvc.yaml").write_text(PIPELINE)
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
    folder = tmp_path / "a {clone}"  # papermill and DVC format strings; a path is none
    call(tmp_path, "git", "clone", "-q", str(origin), str(folder))
    return folder


def is_clean(root):
    return call(root, "git", "status", "--porcelain").stdout == ""


def test_a_fresh_clone_runs_nothing_and_gets_what_the_store_carries(clone):
    assert not (clone / "models").exists()
    assert repro(clone) == [] and is_clean(clone)
    assert sorted(os.listdir(clone / "models")) == ["base", "p"]
    assert repro(clone) == []


def test_plain_dvc_agrees(clone):
    run(clone)
    said = call(clone, "dvc", "repro", "--allow-missing", "--dry").stdout
    assert "Running stage 'code'" in said and said.count("Running stage") == 1


def test_an_edit_on_a_fresh_clone_makes_again_only_what_it_needs(clone):
    set_parameter(clone, "metric", "error")
    said = run(clone).stdout
    # the tuned models were never pushed: evals needs them again, but neither features nor base
    assert ran(clone) == ["tuned-0", "tuned-1", "evals"]
    changed = call(clone, "git", "status", "--porcelain").stdout.split()
    assert changed == ["M", "dvc.lock", "M", "extra.yaml"]
    before, _, _ = said.partition("Running stage")
    assert "3 stages will run:\n  metric accuracy → error: evals\n" in before
    assert "tuned@1, to make models/tuned/1 again" in before and "1 figures\n" in before


def test_an_edit_that_changes_an_intermediate_runs_all_that_follows(clone):
    set_parameter(clone, "keep", 5)
    assert repro(clone) == ["features", "permutations", "tuned-0", "tuned-1", "evals", "figures"]


def test_one_more_seed_on_a_fresh_clone_does_not_drop_the_others(clone):
    set_parameter(clone, "draws", [0, 1, 2])
    assert sorted(repro(clone)) == ["evals", "figures", "tuned-0", "tuned-1", "tuned-2"]
    assert (clone / "results" / "row").read_text().count("weights") == 3
    set_parameter(clone, "draws", [0])  # evaluations of more seeds than these stay valid
    assert repro(clone) == []


def test_a_lost_result_is_made_again(clone):
    (clone / "results" / "row").unlink()
    assert repro(clone) == ["tuned-0", "tuned-1", "evals"] and is_clean(clone)
    shutil.rmtree(clone / "figures")
    assert repro(clone) == ["figures"] and is_clean(clone)


def test_a_base_is_trained_anew_only_when_asked_for(clone):
    (clone / "source").write_text("other weights\n")
    sentence = refuse(clone)
    assert sentence.startswith("error: base models would be trained anew (base@vit-glyphs: source)")
    assert "`make repro BASES=retrain`" in sentence and "`make repro BASES=keep`" in sentence
    assert repro(clone, "--keep-bases") == []
    set_parameter(clone, "metric", "error")
    assert repro(clone, "--keep-bases") == ["tuned-0", "tuned-1", "evals"]
    assert repro(clone, "--retrain-bases")[:2] == ["base", "features"]


def find_object(root, path):
    for entry in yaml.safe_load((root / "dvc.lock").read_text())["stages"].values():
        for out in entry["outs"]:
            if out["path"] == path:
                return root / ".dvc/store/files/md5" / out["md5"][:2] / out["md5"][2:]


def test_an_object_that_the_store_lacks_is_made_again_or_explained(clone):
    find_object(clone, "models/p").unlink()
    assert repro(clone) == ["features", "permutations"]
    shutil.rmtree(clone / "models")
    shutil.rmtree(clone / ".dvc/cache")
    find_object(clone, "models/base").unlink()
    assert "error: models/base is neither here nor whole in the store" in refuse(clone)
    set_parameter(clone, "metric", "error")
    assert "base@vit-glyphs: models/base is neither here nor in the store" in refuse(clone)


def test_a_killed_run_loses_only_the_stage_that_was_running(clone):
    set_parameter(clone, "keep", 3)
    set_parameter(clone, "pause", 3600)
    process = subprocess.Popen(
        [sys.executable, "-m", "workflow.repro"],
        cwd=clone,
        env=os.environ | {"PATH": PATH},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while "permutations" not in ran(clone) and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (clone / ".dvc" / "tmp" / "rwlock").write_text("")  # killed while DVC was writing it
    set_parameter(clone, "pause", 0)
    assert repro(clone) == ["permutations", "tuned-0", "tuned-1", "evals", "figures"]
    assert (clone / "models" / "p").read_text() == "wei"


def test_an_input_that_is_gone_and_that_no_stage_makes_is_named(clone):
    (clone / "source").unlink()
    error = call(clone, sys.executable, "-m", "workflow.repro", "--check", check=False).stderr
    assert "stale: base" in error and "source is gone: base" in error


def test_a_lost_lock_retrains_no_base_whose_results_are_there(tmp_path, monkeypatch):
    class Unlocked:
        def has_run(self, name):
            return False

        def has_results(self, name):
            return name == "base@there"

    monkeypatch.setattr(repro_module, "estimate", lambda *args: "about 9 minutes")
    plan = Schedule({"base@there": ["it never ran"], "base@new": ["it never ran"]})
    with pytest.raises(ValueError, match=r"base@there: it never ran.*git checkout dvc.lock"):
        repro_module.check_bases(tmp_path, None, Unlocked(), plan, "ask")
    assert repro_module.check_bases(tmp_path, None, Unlocked(), plan, "retrain") == []
    new = Schedule({"base@new": ["it never ran"]})
    assert repro_module.check_bases(tmp_path, None, Unlocked(), new, "ask") == []


def test_the_check_names_stale_stages_and_runs_nothing(clone):
    assert "no stage is stale" in run(clone, "--check").stdout
    set_parameter(clone, "metric", "error")
    answer = run(clone, "--check", check=False)
    assert answer.stderr == "stale: evals\n  metric accuracy → error: evals\n"
    assert ran(clone) == [] and answer.returncode == 1


def test_a_wrong_parameter_is_answered_before_dvc_and_torch_are_imported(clone):
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("- vit-glyphs\n", "- vit-glyph\n", 1))
    assert "run names 'vit-glyph', which is unknown; valid are vit-glyphs" in refuse(clone)
    code = (
        "import sys, workflow.repro as r\ntry: r.main([])\nexcept SystemExit: print(*sys.modules)"
    )
    loaded = call(clone, sys.executable, "-c", code).stdout.split()
    assert "study.config" in loaded and not {"dvc", "torch", "pandas", "pyarrow"} & set(loaded)


def test_a_folder_without_git_is_answered_in_a_sentence(clone):
    shutil.rmtree(clone / ".git")
    assert "is not a git repository" in refuse(clone)
    call(clone, "git", "init", "-q")
    assert repro(clone) == []


def test_another_run_at_the_same_time_is_answered_in_a_sentence(clone):
    set_parameter(clone, "metric", "error")
    hold = "import sys, pathlib\nfrom workflow.graph import open_pipeline\n"
    hold += "with open_pipeline(pathlib.Path.cwd()): print('held', flush=True), input()"
    options = {"cwd": clone, "text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold], **options) as holder:
        assert holder.stdout.readline() == "held\n"
        assert "Unable to acquire lock" in refuse(clone)
        holder.communicate("\n")


def test_what_runs_side_by_side_needs_nothing_of_each_other():
    needs = {"align": ["base"], "tune-a0": ["align"], "tune-a1": ["align"], "tune-b": ["align"]}
    needs |= {"eval-a": ["tune-a0", "tune-a1"], "eval-b": ["tune-b"], "eval": ["base"]}
    order = ["base", "align", "tune-b", "tune-a0", "tune-a1", "eval", "eval-a", "eval-b"]
    common, chunks = split(order, needs, n=2)
    assert common == ["base", "align"]
    assert sorted(stage for chunk in chunks for stage in chunk) == sorted(order[2:])
    place = {stage: i for i, chunk in enumerate(chunks) for stage in chunk}
    for stage, needed in [(stage, n) for stage, found in needs.items() for n in found]:
        assert needed in common or place[stage] == place[needed]
        assert needed in common or order.index(needed) < order.index(stage)
    assert len(chunks) == 2


def test_stages_come_after_what_they_need():
    needs = {"figures": ["b", "a"], "a": ["base"], "b": ["base"], "base": [], "c": []}
    assert sort(needs) == ["base", "b", "a", "figures", "c"]
    with pytest.raises(ValueError, match="stages need each other: a → b → a"):
        sort({"a": ["b"], "b": ["a"]})


def test_waves_hold_every_stage_once_and_none_before_what_it_needs(clone):
    needs = {"base": [], "align": ["base"], "tune-a": ["align"], "tune-b": ["base"], "figures": []}
    needs["figures"] = ["tune-a", "tune-b"]
    waves = [["base"], ["align", "tune-b"], ["tune-a"], ["figures"]]
    assert list_waves(sort(needs), needs) == waves
    assert list_waves(["tune-a", "figures"], needs) == [["tune-a"], ["figures"]]
    printed = call(clone, sys.executable, "-m", "workflow.commands").stdout
    first, *_ = printed.split("\n\n")
    assert first == "python -m workflow.graph base@vit-glyphs"
    wrong = call(clone, sys.executable, "-m", "workflow.commands", "vit", check=False)
    assert wrong.stderr == "error: MODEL 'vit' is not in run; valid are vit-glyphs\n"


def test_changes_are_named_by_the_value_that_changed():
    old = {"training": {"steps": 200, "rate": 0.1}, "versions": {"torch": "2.13.0"}, "seed": 0}
    new = {"training": {"steps": 400, "rate": 0.1}, "versions": {"torch": "2.14.0"}, "anchor": "a"}
    assert find_changes(old, new) == [
        "training.steps 200 → 400",
        "versions.torch 2.13.0 → 2.14.0",
        "seed 0 → none",
        "anchor none → a",
    ]


def test_dvc_lock_is_read_and_written_as_dvc_does(repository):
    text = (repository / "dvc.lock").read_text()[:200_000]
    text = text[: text.rindex("\n  ", 0, text.rindex(":\n    cmd:")) + 1]  # whole entries
    content = _yaml.loads_yaml(text)
    assert len(content["stages"]) > 20 and lockfile.parse(text) == content
    odd = {
        "a": 1e-06,
        "b": "on",
        "c": "1:30",
        "d": None,
        "e": "010",
        "f": True,
        "g": "1e3",
        "h": [],
    }
    assert lockfile.parse(_yaml.dumps_yaml(odd)) == odd
    content["stages"] = dict(list(content["stages"].items())[:20])  # of all it takes long
    text, name = _yaml.dumps_yaml(content), list(content["stages"])[3]
    content["stages"][name]["cmd"] = "another command, and a long one " * 5
    block = _yaml.dumps_yaml({"stages": {name: content["stages"][name]}}).partition("\n")[2]
    assert lockfile.replace_entry(text, block) == _yaml.dumps_yaml(content)
    content["stages"]["new"] = {"cmd": "x"}
    added = lockfile.replace_entry(lockfile.replace_entry(text, block), "  new:\n    cmd: x\n")
    assert added == _yaml.dumps_yaml(content)


@pytest.mark.slow
def test_all_of_dvc_lock_is_read_as_dvc_does(repository):
    text = (repository / "dvc.lock").read_text()
    assert lockfile.parse(text) == _yaml.loads_yaml(text)


def test_models_are_recomputed_side_by_side_and_all_are_locked(tmp_path):
    root = write_tiny_profile(tmp_path / "root")
    content = yaml.safe_load((root / "params.yaml").read_text())
    content["models"]["another"] = content["models"]["vit-glyphs"]
    content |= {"run": ["vit-glyphs", "another"], "threads": 1}
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    say = "echo start-{0} >> ran && sleep 2 && echo end-{0} >> ran && mkdir -p models/{0}"
    made, copied = "models/${item.model}/base", "models/${item.model}/b"
    first = f"{say.format('${item.model}')} && echo ${{item.model}} > {made}"
    then = f"cp {made} {copied} && echo ${{item.model}} >> copies"
    report = "mkdir -p figures && cat models/*/b > figures/results.md"
    stages = {
        "base": {"foreach": "${base}", "do": {"cmd": first, "outs": [made]}},
        "activations": {
            "foreach": "${activations}",
            "do": {"cmd": then, "deps": [made], "outs": [copied]},
        },
        "figures": {
            "cmd": report,
            "deps": [f"models/{name}/b" for name in content["run"]],
            "outs": ["figures"],
        },
    }
    text = yaml.safe_dump({"vars": ["results/stages.yaml"], "stages": stages})
    (root / "dvc.yaml").write_text(text)
    for command in ("git init -q", "dvc init -q"):
        call(root, *command.split())
    run(root, "--from-scratch")
    lines = ran(root)
    assert len(lines) == 4
    if os.cpu_count() > 1:
        assert set(lines[:2]) == {"start-vit-glyphs", "start-another"}
    locked = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    made = [f"{kind}@{name}" for kind in ("base", "activations") for name in content["run"]]
    assert {*made, "figures"} <= set(locked)
    assert (root / "figures" / "results.md").read_text().split() == ["another", "vit-glyphs"]
    run(root, "--keep-bases", "--from-scratch", "another")
    assert ran(root) == []  # no base is trained again
    assert sorted((root / "copies").read_text().split()) == ["another", "another", "vit-glyphs"]
