"""A configuration that no tool takes for a plain one: config.json of a model with shared sublayers.

In memory it is the base's own configuration, of its own model type, so that all that asks it finds
what it knows. On disk it is of the type "ffmerge" and holds the base's one step deeper than any
loader looks: where ffmerge is not imported nothing is loaded, rather than sublayers at random.
"""

import copy
import hashlib
import json
from functools import cache
from pathlib import Path

from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

MODEL_TYPE = "ffmerge"
RETURNS = "return_unused_kwargs"
NOTICE = "tied by ffmerge; load them with AutoModel, after `import ffmerge`"


class SharedConfig:
    """Mixed into the base's configuration class: what is shared, beside what it knows.

    Attributes:
        ffmerge: groups of names that are one module, widths ("neurons"), the plan.
    """

    ffmerge: dict

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Write the wrapped configuration; all that saves a model calls this."""
        plain = copy.copy(self)
        plain.__class__ = plain_class(self)
        record = plain.__dict__.pop("ffmerge")
        content = wrap(json.loads(plain.to_json_string(use_diff)), record)
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        Path(json_file_path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As the base's own, and of what `to_json_file` wrote (peft asks a model's class so)."""
        if config_dict.get("model_type") != MODEL_TYPE:
            return super().from_dict(config_dict, **kwargs)
        found, unused = FFMergeConfig.from_dict(config_dict, **kwargs | {RETURNS: True})
        return (found.shared, unused) if kwargs.get(RETURNS) else found.shared

    def __reduce__(self):
        return _revive, (plain_class(self),), self.__dict__


class FFMergeConfig(PreTrainedConfig):
    """What AutoConfig gives for a folder of a model with shared sublayers.

    It is no configuration that the base's own classes can build anything from.

    Attributes:
        model_type: of what was read the base's, by which AutoTokenizer chooses a class.
        shared: the configuration that the loaded model will have.
    """

    model_type = MODEL_TYPE
    shared: PreTrainedConfig | None = None

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Read config.json; kwargs that the base's configuration knows replace its values.

        Raises:
            ValueError: it is not what was saved.
        """
        base, record = unwrap(config_dict)
        base_class = CONFIG_MAPPING[base["model_type"]]
        returns_unused = kwargs.pop(RETURNS, False)
        plain, unused = base_class.from_dict(base, **kwargs | {RETURNS: True})
        config = cls()
        config.architectures, config.model_type = None, plain.model_type
        config.shared = describe_config(plain, record["groups"], record["neurons"], record["plan"])
        config.name_or_path = plain.name_or_path
        return (config, unused) if returns_unused else config

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Write what was read."""
        self.shared.to_json_file(json_file_path, use_diff)


def describe_config(
    config: PreTrainedConfig, groups: list, widths: dict, plan: dict
) -> PreTrainedConfig:
    """Make a configuration tell, in place, what is shared and how wide; if nothing, be plain."""
    config.__class__ = plain_class(config)
    config.__dict__.pop("ffmerge", None)
    if groups or widths:
        config.__class__ = _share_class(type(config))
        config.ffmerge = {"groups": groups, "neurons": widths, "plan": plan}
    return config


def plain_class(config: PreTrainedConfig) -> type:
    """The base's own configuration class."""
    kind = type(config)
    return kind.__bases__[1] if issubclass(kind, SharedConfig) else kind


def wrap(base: dict, record: dict) -> dict:
    """config.json of a model with shared sublayers."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["FFMergeModel"],
        "base": {base["model_type"]: base},  # deeper than loaders look for a type that they know
        "sharing": record | {"digest": _digest(record)},
        "transformers_weights": NOTICE,  # in the error of a class that is asked to load it alone
        "transformers_version": base.get("transformers_version"),
    }


def unwrap(content: dict) -> tuple[dict, dict]:
    """The base's configuration and what is shared, as `wrap` wrote them.

    Raises:
        ValueError: something was altered.
    """
    try:
        ((model_type, base),) = content["base"].items()
        record = dict(content["sharing"])
        digest = record.pop("digest")
        intact = digest == _digest(record) and base["model_type"] == model_type
        intact &= {"groups", "neurons", "plan"} == set(record) and model_type in CONFIG_MAPPING
    except (KeyError, TypeError, ValueError, AttributeError):
        intact = False
    if not intact:
        raise ValueError(
            "config.json was altered; valid is the file that was saved with the weights"
        )
    return dict(base), record


def _digest(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def list_ways(model: nn.Module, name: str) -> tuple[str, str, str]:
    """A name as it is, and as models with and without a head have it."""
    head = f"{getattr(model, 'base_model_prefix', '')}."
    return name, name.removeprefix(head), head + name


@cache
def _share_class(plain: type) -> type:
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain.__name__, (SharedConfig, plain), names)


def _revive(plain: type) -> PreTrainedConfig:
    return object.__new__(_share_class(plain))


AutoConfig.register(MODEL_TYPE, FFMergeConfig, exist_ok=True)
