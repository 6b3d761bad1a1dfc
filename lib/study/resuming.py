"""Tunings that were killed go on where they were, as if nothing had happened.

Trainer's checkpoints hold weights, optimizer, schedule, random states and the curve so far. Here is
the rest: whose checkpoints lie in a folder, which of them are whole, and what Trainer forgets.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import count
from pathlib import Path

import torch
from accelerate.utils import synchronize_rng_states
from datasets import IterableDataset
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ffmerge.files import read_json, remove, write_json
from study.config import Params, find_root
from study.hardware import describe_hardware
from study.settings import find_settings

IDENTITY = "identity.json"
PACKAGES = ("accelerate", "bitsandbytes", "datasets", "numpy", "peft", "tokenizers")
PACKAGES += ("torch", "transformers")


def identify(
    notebook: str, params: Params, seed: int, models: Iterable[nn.Module], **names: str
) -> dict:
    """All that decides how a training ends.

    Args:
        notebook: its name, such as "5_finetune".
        params: params.yaml.
        seed: of the training.
        models: the one that will be trained, as it is before, and others that it learns from.
        names: the notebook's parameters, as in `study.settings.find_settings`.

    Returns:
        Plain values, equal if and only if the results will be.
    """
    identity = {
        "settings": find_settings(notebook, params, find_root(), **names),
        "seed": seed,
        "weights": [_digest_weights(model) for model in models],
        "code": _digest_code(),
        "versions": {package: version(package) for package in PACKAGES},
        "hardware": describe_hardware(),
    }
    return json.loads(json.dumps(identity))


def prepare(folder: Path, identity: dict) -> bool:
    """Keep the checkpoints of a killed training if they are of this very one, or else remove them.

    Args:
        folder: of the checkpoints; made if it is not there.
        identity: what `identify` says.

    Returns:
        Whether there is a checkpoint to go on from. A sentence on stderr says so.
    """
    file = folder / IDENTITY
    try:
        found = read_json(file) if file.exists() else None
    except ValueError:
        found = None
    checkpoint = find_checkpoint(folder)
    if checkpoint and found == identity:
        print(f"going on from {checkpoint}, where a training was cut off", file=sys.stderr)
        return True
    if checkpoint:
        known = found if isinstance(found, dict) else {}
        other = [name for name in identity if known.get(name) != identity[name]]
        reason = f"another training ({', '.join(other)} differ)"
        print(f"starting anew, as the checkpoints in {folder} are of {reason}", file=sys.stderr)
    remove(folder)
    write_json(identity, file)
    return False


def find_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint in a folder; one whose writing was cut off is none.

    Trainer writes the file with its state last, and only then removes older checkpoints.
    """
    found = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")}
    for _, path in sorted(found.items(), reverse=True):
        try:
            state = read_json(path / TRAINER_STATE_NAME)
        except (OSError, ValueError):
            continue
        best = state["best_model_checkpoint"]
        if best is None or Path(best).is_dir():
            return path
    return None


class Progress(TrainerCallback):
    """What Trainer's checkpoints lack to go on exactly.

    The loss since the curve's last row, and the random state at the epoch's start, from which a
    sampler that groups by length drew the order of the data.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.found: dict[str, torch.Tensor] = {}
        self.epoch_start = torch.get_rng_state()

    def save(self, checkpoint: Path) -> None:
        """Write this process's part into a checkpoint."""
        is_between = float(self.trainer.state.epoch).is_integer()  # two epochs
        values = {
            "loss": self.trainer._tr_loss.detach().cpu(),
            "last_row": torch.tensor(self.trainer._globalstep_last_logged),
            "epoch_start": torch.get_rng_state() if is_between else self.epoch_start,
        }
        save_file(values, self._name_file(checkpoint))

    def load(self, checkpoint: Path) -> None:
        """Read it again; it is used when training starts."""
        self.found = load_file(self._name_file(checkpoint))

    def _name_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"progress-{self.trainer.args.process_index}.safetensors"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        """Go on with the loss since the last row."""
        if self.found:
            self.trainer._tr_loss += self.found["loss"].to(args.device)
            self.trainer._globalstep_last_logged = int(self.found["last_row"])

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        """Let the order of the data be drawn as it was; Trainer then sets the state of its step."""
        if self.found:
            torch.set_rng_state(self.found["epoch_start"])
            self.found = {}
        if args.world_size > 1:  # or dropout on longer sequences has left them apart
            synchronize_rng_states(["torch"])
        self.epoch_start = torch.get_rng_state()


class Endless(torch.utils.data.IterableDataset):
    """A stream that begins again when it ends, in another order: steps alone say how far it is."""

    def __init__(self, rows: IterableDataset) -> None:
        """Args: rows of a stream."""
        self.rows = rows

    def __iter__(self) -> Iterator[dict]:
        """The rows of one epoch after the other.

        Raises:
            ValueError: there are none.
        """
        for epoch in count():
            self.rows.set_epoch(epoch)
            row = None
            for row in self.rows:
                yield row
            if row is None:
                raise ValueError("the training data are an empty stream; valid is one with rows")


def _digest_weights(model: nn.Module) -> str:
    """Of every tensor of a model with its name, shared ones once."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(data.numpy())
    return digest.hexdigest()


def _digest_code() -> str:
    """Of our own modules, as far as they are loaded."""
    digest = hashlib.sha256()
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] in ("ffmerge", "study") and getattr(module, "__file__", None):
            digest.update(name.encode() + Path(module.__file__).read_bytes())
    return digest.hexdigest()
