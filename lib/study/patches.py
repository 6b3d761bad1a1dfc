"""The patch of a variant, from where notebook 4 has written it."""

from ffmerge.patches import Patch, Plan, load_patch
from study.places import find_input


def find_patch(model: str, variant: str, method: str) -> Patch:
    """The patch of a variant as notebook 4 has written it; an empty one for the base.

    Args:
        model, variant: their names.
        method: that makes the variant, or "base".

    Raises:
        FileNotFoundError: notebook 4 has not run for this method.
    """
    if method == "base":
        return Patch(Plan())
    return load_patch(find_input(name_patch(model, variant, method), "4_merges"))


def name_patch(model: str, variant: str, method: str) -> str:
    """The file of a patch, from the root of the repository."""
    return f"models/{model}/patches/{method}/{variant}.safetensors"
