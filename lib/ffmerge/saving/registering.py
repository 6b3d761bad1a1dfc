"""`import ffmerge` teaches transformers' Auto classes to load shared sublayers, once they are used.

transformers takes seconds to import, and reading a plan needs none of it. So what is registered
waits until the modules of the Auto classes are imported, by whomever; and so for peft's adapters.
"""

import importlib.util
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder

AFTER = {  # modules of others, and ours that register with them when they are imported
    "transformers.models.auto.configuration_auto": "ffmerge.saving.wrapping",
    "transformers.models.auto.modeling_auto": "ffmerge.saving.autoclasses",
    "peft.tuners.tuners_utils": "ffmerge.adapters.guarding",
}


class _Finder(MetaPathFinder):
    """Finds nothing itself: what others find is registered with after it was run."""

    def __init__(self) -> None:
        self.busy: set[str] = set()

    def find_spec(self, fullname: str, path=None, target=None):
        """As others find it, with a step after its execution."""
        if fullname not in AFTER or fullname in self.busy:
            return None
        self.busy.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.busy.discard(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module) -> None:
                execute(module)
                import_module(AFTER[fullname])

            spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Register with the others: now if they are imported, or else when they are."""
    for name, ours in AFTER.items():
        if name in sys.modules:
            import_module(ours)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
