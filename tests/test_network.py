"""What needs the hub; left out of `make test`: pytest -m network."""

import pytest

from ffmerge.checkpoints import load
from ffmerge.sublayers import find_stacks


@pytest.mark.network
def test_the_papers_vit_has_the_sublayers_that_params_yaml_says():
    (stack,) = find_stacks(load("google/vit-base-patch16-224")).values()
    assert (stack.name, len(stack), stack.sublayers[0].d_ff) == ("encoder", 12, 3072)
