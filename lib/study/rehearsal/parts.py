"""The parts of a run: what is measured, how often the real run does it, what it needs.

Counts follow from params.yaml as the notebooks and `workflow.stages` read it; a test compares them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import repeat
from pathlib import Path
from typing import get_args

import pandas as pd
import torch
from torch import nn

from ffmerge.activations import collect_features
from ffmerge.catalogue import describe_method
from ffmerge.groups import Anchor, list_pairs
from ffmerge.memory import PYTHON, estimate_moments
from ffmerge.merging import list_window_plans
from ffmerge.methods import Evidence, find_method
from ffmerge.moments import BUDGET, find_tokens
from ffmerge.pairs import LazyPairs
from ffmerge.patches import Plan, count_parameters
from ffmerge.projections import find_shape
from ffmerge.sublayers import find_stacks
from study.architectures import list_uses
from study.config import Params
from study.hardware import find_device
from study.rehearsal.models import SEES, RandomTask, find_config, find_length, make_model, narrow
from study.sections import UNTUNED, Use

FLOPS = {"cuda": 1e15, "mps": 2e11, "cpu": 2e11}  # of one sample: seconds
TEST = {"ILSVRC/imagenet-1k": 50_000, "knkarthick/samsum": 819}  # published sizes, in examples
TEST_TOKENS = {"Salesforce/wikitext": 287_644}  # of GPT-2's tokenizer
CORRELATED = 4096  # tokens of a pair that is correlated; time grows with their number
SLENDER = 4  # neurons of the narrow model, a sublayer: with 1, biases would leave none
ORDERED = 1024  # neurons of the one sublayer that is ordered; time grows with their cube


@dataclass(frozen=True)
class Part:
    """One thing that a stage does.

    Attributes:
        key: of what measures it.
        stage: the kind of stage, as in dvc.yaml.
        what: it does, in words.
        unit: of what is counted.
        times: how many of them the real run does, over all stages of the kind.
        needs: bytes that measuring it takes at the most.
        refused: why the real run would stop here, if it would.
    """

    key: str
    stage: str
    what: str
    unit: str
    times: int
    needs: int = 0
    refused: str = ""


@dataclass(frozen=True)
class Rehearsal:
    """One model's entry with its configuration: sizes of samples, and counts.

    Attributes:
        params, root: params.yaml and the folder that it lies in.
        name: of the model.
    """

    params: Params
    root: Path
    name: str

    @cached_property
    def entry(self):
        """The model's entry."""
        return self.params.model(self.name)

    @cached_property
    def config(self):
        """The model's configuration."""
        return find_config(self.entry, self.root, self.name)

    @cached_property
    def outline(self) -> nn.Module:
        """The model without weights."""
        with torch.device("meta"):
            return make_model(self.config, self.entry.task)

    @cached_property
    def widths(self) -> tuple[int, int]:
        """d_model and d_ff."""
        ff = next(iter(find_stacks(self.outline).values())).sublayers[0]
        return find_shape(ff.module("W_out"))

    @cached_property
    def plan(self) -> Plan:
        """The first window of the first budget: what stands for all that share."""
        return list_window_plans(self.entry.layers, next(iter(self.entry.removed.values())))[0]

    @cached_property
    def uses(self) -> dict[str, Use]:
        """What the model is used for, by its place in the entry."""
        return dict(list_uses(self.entry))

    @property
    def recovery(self) -> str:
        """The place of what is tuned and tested."""
        return "downstream." if self.entry.downstream else ""

    def length(self, use: Use) -> int:
        """Tokens of an example."""
        processor = self.entry.base.processor
        size = None if use.task == "images" else processor.get("size")
        return find_length(self.config, use.task, processor.get("context"), size)

    def sample(self, rows: int, length: int, passes: int = 1) -> tuple[int, int]:
        """Rows and length of a batch that is run in seconds, at most as large as the real one.

        Args:
            rows, length: of the real one.
            passes: a training step counts as three.
        """
        tokens = int(FLOPS[find_device()] / passes / 2 / count_parameters(self.outline))
        if self.entry.task not in SEES:
            length = min(length, max(8, tokens))
        return min(rows, max(1, tokens // length)), length

    @property
    def ordered(self) -> int:
        """Neurons of the sublayer that is ordered: on a GPU all, as there it takes seconds."""
        return self.widths[1] if find_device() == "cuda" else min(ORDERED, self.widths[1])

    def count_pairs(self) -> int:
        """Assignment problems, as notebook 3 lists them."""
        entry = self.entry
        plans = [p for n in entry.removed.values() for p in list_window_plans(entry.layers, n)]
        groups = [g for plan in plans for found in plan.groups.values() for g in found]
        pairs = list_pairs(g.anchored(anchor) for g in groups for anchor in get_args(Anchor))
        return len(pairs) * len(entry.layers)

    @cached_property
    def candidates(self) -> dict[str, int | str]:
        """Candidates of every method, or why it has none: listed for a narrow model as deep."""
        config = narrow(self.config, SLENDER * sum(self.entry.layers.values()))
        model, task = make_model(config, self.entry.task), RandomTask(config, self.entry.task)
        give = partial(repeat, task.make_batch(4, min(16, self.length(self.entry))), 10)
        evidence = Evidence(LazyPairs(collect_features(model, give(), 100)), give)
        found: dict[str, int | str] = {}
        for name in self.params.methods_of(self.name):
            method = find_method(name)
            counts = self.entry.counts(method.REMOVES).values()
            try:
                found[name] = sum(len(method.list_plans(model, n, evidence)) for n in counts)
            except ValueError as error:
                found[name] = str(error)
        return found

    def count_steps(self) -> dict[bool, int]:
        """Steps of all tunings, of those that share (True) and of the others."""
        steps = {True: 0, False: 0}
        for variant, seeds in self._list_tunings():
            steps[self._shares(variant)] += (
                len(seeds) * self.params.training(self.name, variant).steps
            )
        return steps

    def count_tunings(self) -> dict[bool, int]:
        """Tunings, of variants that share (True) and of the others."""
        tunings = {True: 0, False: 0}
        for variant, seeds in self._list_tunings():
            tunings[self._shares(variant)] += len(seeds)
        return tunings

    def count_validations(self) -> int:
        """Times that a tuning is scored on validation data: notebook 5 scores the base too."""
        total = 0
        for variant, seeds in self._list_tunings():
            training = self.params.training(self.name, variant)
            also = training.steps // training.evaluate_every + 1 + (self.entry.downstream is None)
            total += len(seeds) * also
        return total

    def list_scorings(self) -> Iterator[tuple[str, int]]:
        """What notebook 6 scores on test data, by its place in the entry, and how often in all."""
        entry, own, recovery, readings = self.entry, 0, 0, 0
        for variant in self.params.variants_of(self.name):
            recipe, seeds = (
                self.params.recipe(variant),
                self.params.seeds_of(self.name, variant),
            )
            is_base, changed = variant == "base", recipe.method != "base"
            adapters = self.params.training(self.name, variant).adapters
            recovery += is_base or (changed and bool(seeds or not entry.downstream))
            recovery += len(seeds) + (not is_base)  # the base beside it, in the picture
            if not adapters and (seeds or is_base):
                recovery += (recipe.int8 + recipe.nf4) * len(seeds or [None])
            own += bool(entry.downstream) and (is_base or changed)
            readings += (is_base or changed) + len(seeds)
        yield self.recovery, recovery
        yield "", own
        for name in entry.readings:
            yield f"readings.{name}.", readings

    def count_test(self, use: Use) -> int:
        """Examples of the test split: as the entry, published sizes or the last run say.

        Raises:
            ValueError: nobody says.
        """
        path, csv = use.data.path, self.root / "results/results.csv"
        if use.test_examples or path in TEST:
            return use.test_examples or TEST[path]
        if path in TEST_TOKENS:
            return 2 * TEST_TOKENS[path] // self.length(use)  # windows overlap by half
        if csv.exists():
            known = pd.read_csv(csv).query("model == @self.name and variant == 'base'")
            if len(known) and use is self.entry.recovery:
                return int(known.n_examples.iloc[0])
        if use.data.corpus is None:
            raise ValueError(
                f"test_examples of data {path!r} are unknown without a network; valid is their "
                "number in params.yaml"
            )
        return self.params.corpora[use.data.corpus]["test"]

    def count_scored(self, use: Use) -> int:
        """Examples that scoring a model on the test split runs: a bank of neighbours with them."""
        return self.count_test(use) + (use.data.bank or 0)

    def _list_tunings(self) -> Iterator[tuple[str, list[int]]]:
        for variant in self.params.variants_of(self.name):
            yield variant, self.params.seeds_of(self.name, variant)

    def _shares(self, variant: str) -> bool:
        method = self.params.recipe(variant).method
        return method != "base" and describe_method(method).family == "shares"


def list_parts(r: Rehearsal) -> list[Part]:
    """All parts of a model's run, what matters most first."""
    entry, model = r.entry, r.outline
    sublayers = [ff for stack in find_stacks(model).values() for ff in stack.sublayers]
    d_model, d_ff = r.widths
    weights = 4 * count_parameters(model)
    first, gone = next(iter(entry.removed.items()))
    small = weights - 4 * gone * sublayers[0].n_parameters
    rows, length = r.sample(entry.batch_size, r.length(entry))
    run = PYTHON + weights + _count_activations(r, rows, length, 2)
    use, training = entry.recovery, entry.finetune or UNTUNED
    batch, cut = r.sample(training.batch_size, r.length(use), 3)
    held = (
        4 if training.adapters is None else 1
    )  # weights, gradients, two moments of Adam; the best again
    tuning = PYTHON + _count_activations(r, batch, cut, len(sublayers))
    tokens, pairs = entry.features.tokens, r.count_pairs()
    methods = [describe_method(name) for name in r.params.methods_of(r.name)]
    calibrated = sum("calibration" in about.needs for about in methods)
    refused = {name: why for name, why in r.candidates.items() if isinstance(why, str)}
    candidates = sum(n for name, n in r.candidates.items() if name not in refused)
    bank = entry.data.bank or 0  # scored anew with every candidate
    n_scored = (entry.validation_examples + bank) * r.length(entry)
    tunings, steps = r.count_tunings(), r.count_steps()
    stack = len(sublayers) // len(entry.layers)
    comparisons = 2 * len(entry.layers) * stack * (stack + 1) // 2
    score = use.validation_examples * r.length(use) * r.count_validations()
    tests = [
        (place, r.uses[place].task, n * r.count_scored(r.uses[place]) * r.length(r.uses[place]))
        for place, n in r.list_scorings()
    ]
    base = "base" if entry.base.is_trained_here else "fetch"
    align = PYTHON + 16 * min(tokens, CORRELATED) * d_ff + 7 * 8 * d_ff**2
    whole = PYTHON + 2 * weights
    parts = [
        Part("pair", "permutations", "a pair is correlated and assigned", "pair", pairs, align),
        Part("features", "activations", "features are collected", "token", tokens, run),
        Part("score ", "merges", "a candidate is scored", "token",
             n_scored * (candidates + len(methods) - len(refused)), run),
        Part("tied", "finetune", f"a step of what shares (permute-{first})", "step",
             steps[True], max(tuning + held * small, whole)),
        Part("untied", "finetune", "a step of what shares nothing", "step",
             steps[False], tuning + held * weights),
        Part(f"score {r.recovery}", "finetune", "validation data are scored", "token", score, run),
        *(Part(f"score {place}", "evals", f"test data are scored ({task})", "token", n, run)
          for place, task, n in tests),
        Part("merge", "merges", f"a candidate is made (permute-{first})", "candidate",
             candidates, PYTHON + 3 * weights),
        Part("save", base, "a model is saved and loaded", "model", 1 + tunings[False], whole),
        Part("save tied", "finetune", "a model that shares is saved and loaded", "model",
             tunings[True], whole),
        Part("outputs", "activations", "outputs are collected", "token", tokens, run),
        Part("cka", "activations", "two outputs are compared (CKA)", "comparison", comparisons,
             PYTHON + 4 * 8 * tokens * d_model),
        Part("moments", "merges", "second moments are gathered", "token",
             calibrated * find_tokens(model), run + min(estimate_moments(model), BUDGET)),
        Part("order", "merges", "an FF sublayer's neurons are ordered (OBS)", "sublayer",
             len(sublayers) * sum("_obs" in about.name for about in methods),
             PYTHON + 6 * 8 * r.ordered**2),
    ]  # fmt: skip
    if entry.base.is_trained_here:
        n = entry.base.training.steps
        parts.append(Part("train", base, "a step of the base", "step", n, tuning + 4 * weights))
    stops = [
        Part("", "merges", f"candidates of {name} are listed", "method", 1, refused=why)
        for name, why in refused.items()
    ]
    return [part for part in parts if part.times] + stops


def _count_activations(r: Rehearsal, rows: int, length: int, layers: int) -> int:
    """Bytes of activations and of what comes out, generously.

    Args:
        r: the rehearsal.
        rows, length: of the batch, in examples and tokens.
        layers: whose activations are held at a time.
    """
    d_model, d_ff = r.widths
    words = getattr(r.config, "vocab_size", None) or 0
    heads = getattr(r.config, "num_attention_heads", 1)
    each = layers * (4 * d_ff + 16 * d_model + heads * length) + 4 * words
    return 4 * rows * length * each
