"""The evidence that methods need, from where the notebooks before have written it."""

from ffmerge.alignment import load_pairs
from ffmerge.catalogue import describe_method
from ffmerge.methods import Evidence
from study.places import find_input


def load_evidence(model: str, method: str) -> Evidence:
    """What a method needs to know about a model's base, and nothing else.

    Args:
        model: its name in params.yaml.
        method: its name.

    Raises:
        FileNotFoundError: the notebook that gathers it has not run.
    """
    needs, permutations = describe_method(method).needs, None
    if "permutations" in needs:
        path = f"models/{model}/permutations.safetensors"
        permutations = load_pairs(find_input(path, "3_permutations"))
    return Evidence(permutations=permutations)
