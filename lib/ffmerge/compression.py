"""One call: groups and features in, a merged model out (Section 3); or any method by its name."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from ffmerge.activations import Batch, collect_features
from ffmerge.catalogue import describe_method, list_methods
from ffmerge.groups import Anchor, Group, find_anchor, parse_layers
from ffmerge.methods import Evidence, find_method
from ffmerge.pairs import LazyPairs
from ffmerge.patches import Plan, apply_patch, check_plan
from ffmerge.selection import choose, score_plans
from ffmerge.sublayers import Stack, check_widths, unwrap

Layers = Group | str | range | tuple[int, ...] | list[int]


def merge(
    model: nn.Module,
    groups: Mapping[str, Layers | Sequence[Layers]],
    features: Mapping[str, Sequence[Tensor]] | None = None,
    *,
    method: str = "permute",
    anchor: Anchor | None = None,
    calibration: Sequence[Batch] | None = None,
) -> nn.Module:
    """Merge groups of FF sublayers: align to the anchor, average, tie (Section 3.3).

    Args:
        model: an uncompressed model; left as it is.
        groups: for each stack the layers of one group, `{"decoder": "22-34"}`, `(3, 5, 7)`,
            `range(22, 35)`, `window(22, 34)`, or a list of such groups, `["0-2", "5-8"]`.
        features: features[stack][i] (n_tokens, d_ff); may be left out for "vanilla".
        method: "permute", or "vanilla": average without permuting; or another that shares.
        anchor: which sublayer of every group the others are aligned to: "first" (where a group
            does not say), "middle" or "last".
        calibration: batches of the model's own data, for methods with least squares ("refit").

    Returns:
        A new model in which the sublayers of each group are one and the same.

    Raises:
        ValueError: unknown stack, method or anchor; groups that overlap or do not fit; missing
            features; a model whose sublayers share already.

    Invariant: merging identical sublayers returns the model.
    """
    found, model = find_method(method), unwrap(model)
    if found.FAMILY != "shares":
        valid = (m for m in list_methods() if describe_method(m).family == "shares")
        raise ValueError(f"method {method!r} does not share; valid are {', '.join(valid)}")
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(f"groups are {groups!r}; valid are such as {{'decoder': '22-34'}}")
    plan = Plan({name: _read_groups(given) for name, given in groups.items()})
    plan = plan if anchor is None else plan.anchored(anchor)
    stacks, permutations = check_plan(model, plan), None
    if "permutations" in found.NEEDS:
        for name in plan.groups:
            _check_features(features, stacks[name], method)
        permutations = LazyPairs(features)
    evidence = Evidence(permutations, _give(calibration, method))
    return apply_patch(model, found.make(model, plan, evidence))


def compress(
    model: nn.Module,
    method: str,
    count: int,
    calibration: Sequence[Batch] | None = None,
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    higher_is_better: bool = True,
    tokens: int = 10_000,
) -> nn.Module:
    """Compress a model by any method: its candidates for a budget, scored, and the best one made.

    Args:
        model: an uncompressed model; left as it is.
        method: a name of `list_methods()`; without any training data "vanilla", "copy" or "drop",
            with some "neurons_obs_refit" (fewer neurons everywhere) or "permute" (shared FFs).
        count: how much goes, of what the method counts: FF sublayers (or neurons that weigh as
            much), whole layers, or percent of weights.
        calibration: batches of the model's own data (for "neurons_taylor…" with labels).
        evaluate: model to score on validation data; needed where a method has several candidates.
        higher_is_better: which way the score points.
        tokens: of features, for methods that align.

    Returns:
        A new model.

    Raises:
        ValueError: an unknown method, a count that does not fit, missing calibration, or several
            candidates and nothing to choose them by.
    """
    found, model = find_method(method), unwrap(model)
    stacks = check_plan(model, Plan())  # before anything is computed
    if found.REMOVES == "FF sublayers":
        check_widths(stacks)
    permutations, given = None, _give(calibration, method, ("calibration", "permutations"))
    if "permutations" in found.NEEDS:
        permutations = LazyPairs(collect_features(model, given(), tokens))
    evidence, n_stacks = Evidence(permutations, given), len(stacks)
    each = 1 if found.REMOVES == "% of weights" else n_stacks
    if type(count) is not int or count < 1 or count % each:
        raise ValueError(
            f"count is {count!r}; valid is a whole number of {found.REMOVES} above 0, a multiple "
            f"of the {n_stacks} stack(s)"
        )
    plans = found.list_plans(model, count, evidence)
    if len(plans) > 1 and evaluate is None:
        raise ValueError(
            f"method {method!r} has {len(plans)} candidates for {count} {found.REMOVES}; valid is "
            "`evaluate`, a function that scores a model on validation data"
        )

    def make(plan: Plan) -> nn.Module:
        return apply_patch(model, found.make(model, plan, evidence))

    if len(plans) == 1:
        return make(plans[0])
    return make(plans[choose(score_plans(plans, make, evaluate, method), higher_is_better)])


def _give(
    calibration: Sequence[Batch] | None, method: str, needs: Sequence[str] = ("calibration",)
) -> Callable[[], Iterable[Batch]] | None:
    """Calibration data as methods want it: to be had again and again."""
    if calibration is None:
        if set(find_method(method).NEEDS) & set(needs):
            raise ValueError(
                f"calibration is missing; method {method!r} needs batches of the model's own data"
            )
        return None
    kept = list(calibration)  # a generator would be empty the second time
    return lambda: kept


def _check_features(
    features: Mapping[str, Sequence[Tensor]] | None, stack: Stack, method: str
) -> None:
    """Check that there are features of every sublayer of a stack, of its width and of equal length.

    Raises:
        ValueError: missing ones, or those of another model.
    """
    if features is not None and not isinstance(features, Mapping):
        raise ValueError(
            f"features are a {type(features).__name__}; valid is what collect_features gives, a "
            "list of tensors for each stack"
        )
    given = (features or {}).get(stack.name, ())
    if len(given) != len(stack):
        raise ValueError(
            f"features of the {stack.name} are missing (there are {len(given)}); method {method!r} "
            "needs those of every sublayer, as collect_features gives them"
        )
    found = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in given]
    widths = [ff.d_ff for ff in stack.sublayers]
    if found != [(len(given[0]), d_ff) for d_ff in widths]:
        raise ValueError(
            f"features of the {stack.name} are {found}; valid are tensors of as many tokens each, "
            f"(n_tokens, d_ff), d_ff {sorted(set(widths))}"
        )


def _read_groups(given: Layers | Sequence[Layers]) -> tuple[Group, ...]:
    several = isinstance(given, list | tuple) and not any(isinstance(x, int) for x in given)
    several = several and len(given) > 0  # nothing is no group
    return tuple(_read_group(one) for one in (given if several else [given]))


def _read_group(given: Layers) -> Group:
    if isinstance(given, Group):
        return given
    layers = parse_layers(given) if isinstance(given, str) else given
    if not isinstance(layers, list | tuple | range) or not all(type(i) is int for i in layers):
        raise ValueError(
            f"group {given!r} is not valid; valid are layers such as '3-7', (3, 5, 7), "
            "range(3, 8) and window(3, 7), or a list of such groups"
        )
    return Group(tuple(layers), find_anchor(layers))
