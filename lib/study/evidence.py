"""The evidence that methods need, from where the notebooks before have written it."""

from functools import partial

from ffmerge.catalogue import describe_method
from ffmerge.methods import Evidence
from ffmerge.pairs import load_pairs
from study.places import find_input
from study.tasks import Task, make_batches


def load_evidence(model: str, method: str, task: Task, batch_size: int) -> Evidence:
    """What a method needs to know about a model's base, and nothing else.

    Args:
        model: its name in params.yaml.
        method: its name.
        task: the base's own, whose training split calibrates.
        batch_size: of calibration, in examples.

    Raises:
        FileNotFoundError: the notebook that gathers it has not run.
    """
    needs, permutations, calibration = describe_method(method).needs, None, None
    if "permutations" in needs:
        path = f"models/{model}/permutations.safetensors"
        permutations = load_pairs(find_input(path, "3_permutations"))
    if "calibration" in needs:
        calibration = partial(make_batches, task, "train", batch_size)
    return Evidence(permutations, calibration)
