"""Merging Feed-Forward Sublayers for Compressed Transformers: select, align, merge, tie, heal.

    import ffmerge

    features = ffmerge.collect_features(model, batches, tokens=10_000)
    small = ffmerge.merge(model, {"decoder": "22-34"}, features, method="permute")
    ffmerge.save(small, path)

    small = ffmerge.compress(model, "neurons_obs_refit", 12, batches)  # the neurons of 12 FFs

Names are loaded on first use, so that reading a plan does not import torch.
"""

from importlib import import_module

from ffmerge.saving.registering import install

install()  # transformers' Auto classes open shared folders from here on: saving/registering.py

_FACE = {
    "find_stacks": "sublayers",
    "Group": "groups",
    "window": "groups",
    "collect_features": "activations",
    "collect_outputs": "activations",
    "collect_half": "memory",
    "estimate_memory": "memory",
    "correlate": "alignment",
    "align": "alignment",
    "merge": "compression",
    "compress": "compression",
    "Plan": "patches",
    "Patch": "patches",
    "apply_plan": "patches",
    "apply_patch": "patches",
    "count_parameters": "patches",
    "find_method": "methods",
    "list_methods": "catalogue",
    "cka": "similarity",
    "save": "checkpoints",
    "load": "checkpoints",
    "export": "saving.exporting",
    "untie": "saving.exporting",
    "add_adapters": "adapters.adding",
}

__all__ = sorted(_FACE)


def __getattr__(name: str):
    if name in _FACE:
        return getattr(import_module(f"ffmerge.{_FACE[name]}"), name)
    raise AttributeError(f"module 'ffmerge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
