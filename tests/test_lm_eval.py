"""lm-eval on a saved folder, by the commands of docs/lm_eval.md: our own scores of the same items.

It needs lm_eval, which the study does not: the page has the environment and the command.
"""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import make_model
from strangers import WORDS, make_tokenizer

import ffmerge
from study.sections import Base, Data
from study.tasks.choices import Task, score_endings

pytestmark = pytest.mark.slow
N = 40  # questions


def read_page(repository):
    """The page's commands by the folder that they score, and its task."""
    text = (repository / "docs" / "lm_eval.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    blocks = [shlex.split(block.replace("\\\n", " ")) for block in blocks]
    commands = {
        word.partition("=")[2]: block
        for block in blocks
        for word in block
        if word.startswith("pretrained=")
    }
    (task,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    return commands, task


def write_quiz(folder):
    """Questions of four endings of one to three words, right ones at random."""
    draw = random.Random(0)

    def say(n):
        return " ".join(draw.choices(WORDS, k=n))

    folder.mkdir()
    rows = [
        {
            "question": say(6),
            "choices": [say(draw.randint(1, 3)) for _ in range(4)],
            "answer": draw.randrange(4),
        }
        for _ in range(N)
    ]
    (folder / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@torch.no_grad()
def score_here(folder, quiz):
    """Our own: the percentage that is right, and the log-likelihood of every ending."""
    data = Data(path=str(quiz), splits={"train": "test", "validation": "test", "test": "test"})
    task = Task(Base(hub=str(folder)), data, folder)
    batch, model = task.collate(task.dataset("test")), ffmerge.load(folder)
    return task.evaluate(model, [batch]).value, torch.stack(score_endings(model, batch))


def score_there(command, folder):
    """lm-eval's, by a command of the page."""
    program = Path(sys.executable).parent / command[0]
    library = str(Path(ffmerge.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": library, "HF_HUB_OFFLINE": "1"}
    subprocess.run([program, *command[1:]], check=True, cwd=folder, env=environment)
    out = folder / command[command.index("--output_path") + 1]
    (results,), (samples,) = (list(out.rglob(f"{name}_*.json*")) for name in ("results", "samples"))
    accuracy = json.loads(results.read_text())["results"]["quiz"]["acc,none"]
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    endings = [float(ending[0]) for row in rows for ending in row["filtered_resps"]]
    return 100 * accuracy, torch.tensor(endings, dtype=torch.double)


def test_lm_eval_scores_a_shared_folder_and_a_plain_one_as_our_own_task_does(repository, tmp_path):
    pytest.importorskip("lm_eval", reason="lm_eval is in an environment of its own")
    commands, task = read_page(repository)
    assert set(commands) == {"small", "plain"}
    small = ffmerge.merge(make_model("gpt2"), {"decoder": "1-2"}, method="vanilla")
    ffmerge.save(small, tmp_path / "small", make_tokenizer())
    ffmerge.export(tmp_path / "small", tmp_path / "plain")
    write_quiz(tmp_path / "quiz")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "quiz.yaml").write_text(task)
    accuracy, endings = score_here(tmp_path / "small", tmp_path / "quiz")
    assert 0 < accuracy < 100 and len(endings) == 4 * N
    for folder, command in commands.items():
        theirs, logs = score_there(command, tmp_path)
        assert theirs == pytest.approx(accuracy), folder
        torch.testing.assert_close(logs, endings, rtol=1e-4, atol=1e-4)
