"""What peft would do wrong with shared sublayers, whoever asks it: reach one layer, or fold in.

peft wraps a module once, under its first name: an adapter would act in one layer of a group only.
And folding changes the weights inside of one wrapper, and with them silently every other layer that
has the same module, or the same parameter. `ffmerge.saving.registering` imports this file once peft
is imported.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from functools import wraps

from torch import nn

REASON = (
    "adapters cannot be folded into weights that layers share: what is added for one is added for "
    "all; valid is to keep them apart, or ffmerge.untie(model) before they are added"
)
CHOSEN = ContextVar("whether `add_adapters` is at work", default=False)


def check_foldable(model: nn.Module) -> None:
    """Check that no adapter sits on weights that stand in several places of a model.

    Args:
        model: inside a PeftModel. Word embeddings that are tied are left to peft, which warns.

    Raises:
        ValueError: one does.
    """
    for names in _find_places(model):
        if any(".base_layer." in name for name in names):
            raise ValueError(f"{REASON} (here {' and '.join(names)})")


def check_reached(model: nn.Module) -> None:
    """Check that an adapter on shared weights acts in all of the layers that share them.

    Raises:
        ValueError: it does in some only, and nobody has chosen that.
    """
    for names in _find_places(model):
        bare = [name for name in names if ".base_layer." not in name]
        if 0 < len(bare) < len(names):
            raise ValueError(
                f"adapters would not reach {bare[0]}, which is one with others that they wrap; "
                "valid is ffmerge.add_adapters(model, …, per='layer' or 'sublayer')"
            )


def _find_places(model: nn.Module) -> Iterator[list[str]]:
    """The names of every parameter that has several, tied word embeddings left out."""
    tied = getattr(model, "all_tied_weights_keys", None) or ()
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.replace(".base_layer.", ".") not in tied:
            places.setdefault(parameter, []).append(name)
    return (names for names in places.values() if len(names) > 1)


def _guard() -> None:
    """Let every kind of adapter ask before it folds and after it wraps; peft's checks go on."""
    from peft.tuners.tuners_utils import BaseTuner

    check = BaseTuner._check_merge_allowed  # what `merge_and_unload` and `merge_adapter` ask
    inject = BaseTuner.inject_adapter

    @wraps(check)
    def check_both(tuner: BaseTuner) -> None:
        check(tuner)
        check_foldable(tuner.model)

    @wraps(inject)
    def inject_and_check(tuner: BaseTuner, model: nn.Module, *args, **kwargs) -> None:
        inject(tuner, model, *args, **kwargs)
        is_shared = hasattr(getattr(model, "config", None), "ffmerge")  # others' ties are theirs
        if is_shared and not CHOSEN.get():
            try:
                check_reached(model)
            except ValueError:
                if len(tuner.peft_config) == 1:
                    tuner.unload()
                    vars(model).pop("_hf_peft_config_loaded", None)  # as transformers notes it
                raise

    BaseTuner._check_merge_allowed = check_both
    BaseTuner.inject_adapter = inject_and_check


_guard()
