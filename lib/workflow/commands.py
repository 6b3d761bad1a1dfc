"""Print the commands that run all stages on many machines, in waves.

    python -m workflow.commands [MODEL …]

A command a stage, an empty line between waves. A stage needs only what came in waves before, so
that a wave is an array job. Stages are printed whether they are stale or not; nothing is started.
"""

import argparse
from collections.abc import Mapping, Sequence

from study.config import find_root, load_params
from workflow.graph import open_pipeline
from workflow.inputs import check_inputs
from workflow.stages import check_models, find_models

COMMAND = "python -m workflow.graph"


def list_waves(order: Sequence[str], needs: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Stages in waves, each as early as can be.

    Args:
        order: names in an order in which they can run.
        needs: name to the stages that it needs; others than those in `order` count as there.
    """
    waves: dict[str, int] = {}
    for name in order:
        waves[name] = 1 + max((waves[n] for n in needs.get(name, ()) if n in waves), default=0)
    return [[name for name in order if waves[name] == wave] for wave in sorted(set(waves.values()))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", help="names in `run` of params.yaml; else all stages")
    wanted, root = parser.parse_args(arguments).models, find_root()
    try:
        params = load_params(root)
        check_models(wanted, params)
        check_inputs(root)
        with open_pipeline(root) as pipeline:
            order = [name for name in pipeline.order if not pipeline.always_runs(name)]
            needs = pipeline.needs
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    of = find_models(params)
    order = [name for name in order if not wanted or of.get(name) in wanted]
    waves = ("\n".join(f"{COMMAND} {name}" for name in wave) for wave in list_waves(order, needs))
    print("\n\n".join(waves))


if __name__ == "__main__":
    main()
