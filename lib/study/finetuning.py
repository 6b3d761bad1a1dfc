"""Recovery fine-tuning (paper, Sections 3.4 and 4, Appendix C) on transformers' Trainer."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pandas as pd
import torch
from datasets import IterableDataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerState,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_polynomial_decay_schedule_with_warmup,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from ffmerge.activations import Batch
from study.hardware import describe_hardware, find_device, resolve_precision
from study.resuming import Endless, Progress, find_checkpoint
from study.sections import Training
from study.sharding import (
    gather,
    is_sharded,
    load_optimizer,
    put,
    save_optimizer,
    shard_weights,
)
from study.tasks import Task

WEIGHTS = "model.safetensors"


def finetune(
    model: PreTrainedModel,
    task: Task,
    training: Training,
    validation: list[Batch],
    seed: int,
    folder: Path,
    resume: bool = False,
    teacher: PreTrainedModel | None = None,
) -> pd.DataFrame:
    """Train a model in place, and keep the state that scores best on validation data (Section 3.4).

    Args:
        model: merged, pruned, untouched or untrained; shared sublayers stay shared.
        task: its data, collation and metric.
        training: the recipe.
        validation: the batches that select the best state.
        seed: of the order of the data and of dropout.
        folder: for Trainer's checkpoints.
        resume: go on from the last whole checkpoint in `folder`.
        teacher: the uncompressed model, where the recipe distils from it.

    A batch is shared by all processes that torchrun has started (`study.launching`).

    Returns:
        The learning curve: step, loss (mean since the row before), learning_rate, and the task's
        metric on the validation batches; step 0 is before any training. Then trained_in (the
        precision) and hardware, the same in every row.

    Raises:
        ValueError: float16 without a GPU, nothing to resume from, or too few or many processes.

    Invariant: a tuning that was killed and resumed ends as an uninterrupted one, its curve too;
        bitwise on a CPU.
    """
    device, precision = find_device(), resolve_precision(training.precision)
    if device == "mps" and training.adapters:  # whose frozen weights bitsandbytes keeps on the CPU
        device = "cpu"
    train = task.dataset("train", seed=seed)
    lengths_known = "length" in (getattr(train, "column_names", None) or ())
    if isinstance(train, IterableDataset):
        train = Endless(train)
    checkpoint = find_checkpoint(folder) if resume else None
    if resume and not checkpoint:
        raise ValueError(f"resume is True, but {folder} holds no whole checkpoint; valid is False")
    asked, running = training.processes or 1, int(os.environ.get("WORLD_SIZE", 1))  # by torchrun
    if asked != running:
        raise ValueError(
            f"processes is {asked}, but finetune runs in {running}; valid is to call "
            "`finetune_in_processes`, which starts as many"
        )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        accelerator_config={"split_batches": running > 1},  # every process gets its part of a batch
        gradient_accumulation_steps=training.accumulation or 1,
        activation_checkpointing=training.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},  # or DDP refuses shared weights
        max_grad_norm=training.maximum_gradient_norm,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        eval_strategy="steps",
        eval_steps=training.evaluate_every,
        eval_on_start=not resume,
        logging_steps=min(training.evaluate_every, max(1, training.steps // 20)),
        save_steps=training.evaluate_every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=task.metric.name,
        greater_is_better=task.metric.higher_is_better,
        seed=seed,
        train_sampling_strategy="group_by_length" if lengths_known else "random",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    if training.sharded:
        shard_weights(model, arguments.device)  # which starts the processes' group
    optimizer = AdamW(
        trained_weights(model).values(),
        training.learning_rate,
        weight_decay=training.weight_decay,
        fused=True,
    )
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=task.collate,
        optimizers=(optimizer, make_schedule(optimizer, training)),
    )
    trainer.task = task
    # Trainer then leaves the model as it is, which has its weights' shares and averages gradients.
    trainer.is_distributed_loading_by_transformers = is_sharded(model)
    trainer.in_parts = running > 1 or training.accumulation is not None
    trainer.model_accepts_loss_kwargs |= trainer.in_parts  # it then counts a step's labels
    if training.distillation:
        trainer.teacher = teacher.eval().to(arguments.device)
        trainer.weight = training.distillation
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Bar)
    trainer.add_callback(_LastStep)
    trainer.train_from(checkpoint)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # back to its own precision
    curve = _learning_curve(trainer.state.log_history, task.metric.name)
    return curve.assign(trained_in=precision, hardware=describe_hardware())


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, shared ones once: all of them, or the adapters'."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """As `trained_weights`, each whole, where processes share them out; all must ask for it."""
    weights = trained_weights(model)
    return {name: gather(p).detach().contiguous() for name, p in weights.items()}


def measure_divergence(logits: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    """Mean divergence of a model's predictions from its teacher's, in nats (Hinton et al., 2015).

    Args:
        logits, taught: (…, n_classes), of the model and of its teacher.
        labels: of each prediction; where they are -100, padding, nothing is compared.
    """
    shared = torch.nn.functional.log_softmax(taught.float(), -1)
    own = torch.nn.functional.log_softmax(logits.float(), -1)
    divergence = (shared.exp() * (shared - own)).sum(-1)  # the shape of the labels
    return divergence[labels != -100].mean()


def make_schedule(optimizer: AdamW, training: Training) -> LRScheduler:
    """The learning rate over the steps: linear to a floor (ViT), inverse_sqrt (text), or cosine."""
    if training.schedule == "linear":
        return get_polynomial_decay_schedule_with_warmup(
            optimizer,
            training.warmup_steps,
            training.decay_steps or training.steps,
            lr_end=training.minimum_learning_rate,
            power=1.0,
        )
    if training.schedule == "cosine":
        return get_cosine_schedule_with_warmup(optimizer, training.warmup_steps, training.steps)
    return get_inverse_sqrt_schedule(optimizer, training.warmup_steps)


class _Trainer(Trainer):
    """Trainer that selects by the task's own metric; its checkpoints hold what is trained, once.

    Its own way of saving renames the weights of refactored models (ViT) to their old names, and
    its own way of loading then finds none of them and only warns; here every name must match.
    """

    task: Task
    teacher: PreTrainedModel | None = None
    weight = 0.0  # of the teacher in the loss
    in_parts = False  # whether a step adds up the losses of several batches or processes

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.progress = Progress(self)
        self.add_callback(self.progress)

    def train_from(self, checkpoint: Path | None) -> None:
        """Train from a checkpoint on, or from the start; the best state is in place then."""
        if checkpoint:
            self.state = TrainerState.load_from_json(checkpoint / TRAINER_STATE_NAME)
            if self.state.global_step >= self.args.max_steps:  # Trainer would do one step more
                return self._load_best_model()
            self.progress.load(checkpoint)
        self.train(resume_from_checkpoint=checkpoint and str(checkpoint))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss, or a mixture with its teacher's; of a step, a mean over its labels.

        A loss of a part of a step weighs as much as its share of the labels. (Trainer leaves that
        to the models, and Marian's does not do it.)
        """
        if self.teacher is None and not self.in_parts:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        loss, logits, labels = outputs.loss, outputs.logits, inputs["labels"]
        shifts = logits.ndim == 3 and not self.model.config.is_encoder_decoder  # the next token's
        labels = labels[:, 1:] if shifts else labels
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher(**inputs).logits
            logits, taught = (x[:, :-1] if shifts else x for x in (logits, taught))
            divergence = measure_divergence(logits, taught, labels)
            loss = (1 - self.weight) * loss + self.weight * divergence
        if self.in_parts:  # processes' gradients are averaged, those of batches added up
            share = labels.ne(-100).sum() / num_items_in_batch
            loss = loss * share * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.progress.save(Path(output_dir))
        # What comes next, the file with Trainer's state, says that a checkpoint is whole.
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        weights = gather_weights(self.model)  # by all processes, also where one writes
        if self.args.should_save:
            save_file(weights, Path(output_dir) / WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if is_sharded(self.model):  # that wrote no more than this process's share
            file = Path(output_dir) / OPTIMIZER_NAME
            save_optimizer(self.model, self.optimizer.optimizer, file, self.args.should_save)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if is_sharded(self.model) and checkpoint:
            load_optimizer(self.model, self.optimizer.optimizer, Path(checkpoint) / OPTIMIZER_NAME)
            schedule = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
            return self.lr_scheduler.load_state_dict(schedule)
        return super()._load_optimizer_and_scheduler(checkpoint)

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager:
        return nullcontext()  # a share of the gradients is kept of every batch, never the whole

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        weights = trained_weights(self.model)
        if saved.keys() != weights.keys():
            unmatched = sorted(saved.keys() ^ weights.keys())
            raise ValueError(
                f"{resume_from_checkpoint} is not of this model: {unmatched[0]} (of "
                f"{len(unmatched)} names) is in one of them only"
            )
        for name, p in weights.items():
            put(saved[name], p)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict:
        score = self.task.evaluate(self.model, self.eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in score.by_name.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


class _Bar(ProgressCallback):
    """Trainer's progress bar without its log lines: the learning curve is the log."""

    def on_log(self, *args, **kwargs) -> None:
        pass


class _LastStep(TrainerCallback):
    """The last state is a candidate too, whatever the steps between two evaluations."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_log = control.should_save = True


def _learning_curve(history: list[dict], metric: str) -> pd.DataFrame:
    rows: dict[int, dict] = {}
    for entry in history:
        row = rows.setdefault(entry["step"], {"step": entry["step"]})
        renamed = {"loss": "loss", "learning_rate": "learning_rate", f"eval_{metric}": metric}
        row |= {name: entry[key] for key, name in renamed.items() if key in entry}
    columns = ["step", "loss", "learning_rate", metric]
    return pd.DataFrame(rows.values(), columns=columns).sort_values("step", ignore_index=True)
