"""peft refuses to fold adapters into weights that layers share, whoever has added them.

It folds what one wrapper holds into the weights inside, and every other layer that has the same
module, or the same parameter, changes silently. `ffmerge.saving.registering` imports this file
once peft is imported.
"""

from functools import wraps

from torch import nn

REASON = (
    "adapters cannot be folded into weights that layers share: what is added for one is added for "
    "all; valid is to keep them apart, or ffmerge.untie(model) before they are added"
)


def check_foldable(model: nn.Module) -> None:
    """Check that no adapter sits on weights that stand in several places of a model.

    Args:
        model: inside a PeftModel. Word embeddings that are tied are left to peft, which warns.

    Raises:
        ValueError: one does.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or ()
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.replace(".base_layer.", ".") not in tied:
            places.setdefault(parameter, []).append(name)
    for names in places.values():
        if len(names) > 1 and any(".base_layer." in name for name in names):
            raise ValueError(f"{REASON} (here {' and '.join(names)})")


def _guard() -> None:
    """Let every kind of adapter ask before it folds; peft's own checks go on."""
    from peft.tuners.tuners_utils import BaseTuner

    check = BaseTuner._check_merge_allowed  # what `merge_and_unload` and `merge_adapter` ask

    @wraps(check)
    def check_both(tuner: BaseTuner) -> None:
        check(tuner)
        check_foldable(tuner.model)

    BaseTuner._check_merge_allowed = check_both


_guard()
