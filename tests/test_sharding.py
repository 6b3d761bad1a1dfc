"""Two processes that share out a model's weights (FSDP, on a CPU) compute what one does."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from families import make_batch
from safetensors.torch import load_file
from test_quantization import ADAPTERS, olmo  # noqa: F401 (a fixture)
from test_resuming import TRAINING, tune
from transformers import set_seed

from ffmerge.checkpoints import load, save
from study.finetuning import gather_weights
from study.quantization import add_adapters

STEPS = {"steps": 6, "adapters": ADAPTERS}

WORKER = """
import os, sys, torch
from pathlib import Path
sys.path.insert(0, "tests")
from families import make_batch, make_labelled
from safetensors.torch import save_file
from test_resuming import TRAINING, tune
from test_sharding import ADAPTERS, STEPS
from transformers import set_seed
from ffmerge.checkpoints import load
from study.finetuning import gather_weights
from study.quantization import add_adapters
from study.sharding import gather, shard_weights
from study.tasks.sharing import score_batches

folder = Path(sys.argv[1])
rank = int(os.environ["RANK"])

# 1. A merged model frozen in 4 bits, with adapters: each holds half, and they tune as one does.
set_seed(0)
options = {"compute": torch.float32, "storage": torch.float32}
small = add_adapters(load(folder / "small"), ADAPTERS, folder / f"frozen-{rank}", **options)
training = TRAINING.model_copy(update=STEPS | {"processes": 2, "sharded": True})
curve = tune(folder / "run", small, training)
weights = gather_weights(small)
held = sum(p.to_local().numel() for p in small.parameters())
assert held == sum(p.numel() for p in small.parameters()) / 2

# 2. Three batches for two processes: whoever had none would let the other wait for ever.
def score(batch):
    written = small.generate(**batch, max_new_tokens=3, do_sample=False)
    return torch.cat([small(**batch).logits[0, 0], written[0].float()])
batches = [make_batch("olmo", seed=seed) for seed in range(3)]
scores = score_batches(small, batches, score, "scored")
if rank == 0:
    scores = {f"scores.{i}": score for i, score in enumerate(scores)}
    save_file(weights | scores, folder / "two.safetensors")
    curve.to_csv(folder / "two.csv", index=False)

# 3. What is too large in one half of the gradients is seen by all, and no one takes the step.
small = load(folder / "small").train()
shard_weights(small, torch.device("cpu"))
optimizer = torch.optim.AdamW(small.parameters(), 1e-3)
scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
for overflows in (True, False):
    before = [gather(p).clone() for p in small.parameters()]
    scaler.scale(small(**make_labelled("olmo", n=4, seed=rank)).loss).backward()
    if overflows and rank == 1:
        next(small.parameters()).grad.to_local()[0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    same = [torch.equal(p, gather(q)) for p, q in zip(before, small.parameters(), strict=True)]
    assert all(same) if overflows else not any(same)
"""


@pytest.mark.slow
def test_two_share_a_merged_models_bits_and_adapters_and_tune_as_one_does(olmo, tmp_path):  # noqa: F811
    save(olmo, tmp_path / "small")
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    (tmp_path / "worker.py").write_text(WORKER)
    told = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*call, str(tmp_path / "worker.py"), str(tmp_path)], check=True, env=told)
    set_seed(0)
    one = add_adapters(
        load(tmp_path / "small"), ADAPTERS, tmp_path / "frozen", compute=torch.float32
    )
    curve = tune(tmp_path / "one", one, TRAINING.model_copy(update=STEPS))
    columns = ["step", "loss", "learning_rate", "perplexity"]
    two = pd.read_csv(tmp_path / "two.csv")
    pd.testing.assert_frame_equal(two[columns], curve[columns], rtol=1e-5)
    weights = load_file(tmp_path / "two.safetensors")
    for i in range(3):
        with torch.no_grad():
            batch = make_batch("olmo", seed=i)
            written = one.generate(**batch, max_new_tokens=3, do_sample=False)
            expected = torch.cat([one(**batch).logits[0, 0], written[0].float()])
        torch.testing.assert_close(weights.pop(f"scores.{i}"), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(weights, gather_weights(one), atol=1e-4, rtol=0)  # 6e-3 far
