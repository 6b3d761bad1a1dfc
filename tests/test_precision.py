"""Precision follows the hardware, says what it chose, and is never mixed in what is published."""

import os
import platform

import pandas as pd
import pytest
import torch

from study import hardware
from study.hardware import describe_hardware, find_device, has_bfloat16, resolve_precision
from study.machine import describe_machine


@pytest.fixture
def cpu(monkeypatch):
    """Pretend a CPU: whether it has AVX512-BF16, whether it has AMX."""

    def pretend(bf16, amx, machine="x86_64"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(hardware.platform, "machine", lambda: machine)

    return pretend


@pytest.mark.parametrize(
    ("bf16", "amx", "machine", "expected"),
    [
        (True, False, "x86_64", "bfloat16"),
        (False, True, "AMD64", "bfloat16"),
        (False, False, "x86_64", "float32"),
        (True, True, "arm64", "float32"),
    ],
)
def test_auto_takes_bfloat16_only_where_it_is_fast(cpu, bf16, amx, machine, expected):
    cpu(bf16, amx, machine)
    assert resolve_precision("auto") == expected
    assert describe_hardware() == f"CPU {'with' if expected == 'bfloat16' else 'without'} bfloat16"


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_a_precision_that_is_set_is_taken(cpu, asked):
    cpu(False, False)
    assert not has_bfloat16() and resolve_precision(asked) == asked


def test_float16_is_taken_on_a_gpu_and_refused_without_one(cpu, monkeypatch):
    cpu(False, False)
    with pytest.raises(ValueError, match=r"precision is float16, but there is no GPU.*valid are"):
        resolve_precision("float16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_precision("float16") == "float16"


@pytest.mark.parametrize("asked", ["auto", "cuda", "mps", "cpu"])
@pytest.mark.parametrize("there", [(), ("mps",), ("cuda", "mps")])
def test_models_run_where_params_yaml_says_or_on_the_best_device(there, asked, monkeypatch):
    for name, place in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        monkeypatch.setattr(place, "is_available", lambda name=name: name in there)
    monkeypatch.setattr(hardware, "_read_choice", lambda root: asked)
    if asked in (*there, "cpu", "auto"):
        best = (*there, "cpu")[0] if asked == "auto" else asked
        assert find_device() == best
        assert best != "mps" or (describe_hardware() == "Apple GPU" and not has_bfloat16())
        return
    with pytest.raises(ValueError, match=f"device is {asked}, which is not here; valid are auto"):
        find_device()


def test_outside_the_repository_nobody_has_chosen_a_device(monkeypatch):
    def find_nothing():
        raise FileNotFoundError

    monkeypatch.setattr(hardware.config, "find_root", find_nothing)
    assert find_device() in ("cuda", "mps", "cpu")


def test_committed_results_name_their_hardware_and_are_of_one_precision_a_model(repository):
    results = pd.read_csv(repository / "results" / "results.csv")
    trained = results[results.phase == "tuned"]
    assert trained.trained_in.notna().all() and trained.hardware.notna().all()
    mixed = trained.groupby("model").trained_in.nunique()
    assert mixed.eq(1).all(), mixed


def test_a_benchmarks_machine_is_named_with_its_cores_and_what_decides_precision():
    named = describe_machine()
    assert f", {os.cpu_count()} cores, {platform.machine()}, " in named
    assert named.endswith(describe_hardware()) and not named.startswith(",")
