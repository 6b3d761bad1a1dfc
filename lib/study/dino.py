"""DINOv2 out of an ONNX file: the weights of an exported graph as transformers' model.

An exporter keeps the names of most weights; those that it transposes for a product of matrices it
renames to a number, but the nodes that read them still bear the names of their modules.
"""

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

ROOT = "backbone."  # DINOv2 inside the graph; what else is there is somebody's head on it
D_HEAD = 64  # of every DINOv2, whatever its width
POSITIONS = "embeddings.position_embeddings"
PARTS = {"Concat": f"{POSITIONS}[first]", "Reshape": f"{POSITIONS}[others]"}  # by what reads them
NAMES = {  # of modules: the exporter's, and transformers' of today
    "attention.attention.query.": "attention.q_proj.",
    "attention.attention.key.": "attention.k_proj.",
    "attention.attention.value.": "attention.v_proj.",
    "attention.output.dense.": "attention.o_proj.",
}


def open_dino(path: Path) -> Dinov2Model:
    """The model of an ONNX file, in float32 and in evaluation mode.

    Args:
        path: of a graph with transformers' `Dinov2Model` in it, as `backbone` of what was exported.

    Raises:
        ValueError: no ONNX file, or its weights are not those of a DINOv2, one for one: nothing is
            left random, and nothing is left out.
    """
    weights = read_weights(path)
    model = Dinov2Model(_find_config(weights, path.name))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"{path.name} holds {name} as {found.get(name, 'nothing')}; valid for a DINOv2 of "
                f"this size is {wanted.get(name, 'nothing')}"
            )
    model.load_state_dict(weights)
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of the DINOv2 in a graph, by transformers' names and in its layout.

    Args:
        path: as in `open_dino`.

    Raises:
        ValueError: no ONNX file, or one without a DINOv2.
    """
    try:
        graph = onnx.load(path).graph
    except DecodeError:
        raise ValueError(f"{path.name} is no ONNX file; valid is one with a DINOv2 in it") from None
    tensors = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in graph.initializer}
    weights = {n.removeprefix(ROOT): t for n, t in tensors.items() if n.startswith(ROOT)}
    for node in graph.node:
        place = node.name.strip("/").replace("/", ".")
        for name in (n for n in node.input if n in tensors and not n.startswith(ROOT)):
            if place.startswith(ROOT) and tensors[name].is_floating_point():
                own, tensor = _name_weight(place.removeprefix(ROOT), node.op_type, tensors[name])
                weights[own] = tensor
    parts = [weights.pop(name) for name in PARTS.values() if name in weights]
    if len(parts) < len(PARTS):
        raise _none_in(path.name)
    weights[POSITIONS] = torch.cat(parts, dim=1)
    return {_rename(name): tensor.contiguous() for name, tensor in weights.items()}


def _name_weight(place: str, kind: str, tensor: Tensor) -> tuple[str, Tensor]:
    """The name of a weight that has lost its own, by where the node is that reads it.

    Args:
        place: of the node, such as "encoder.layer.0.mlp.fc1.MatMul".
        kind: of the node.
        tensor: the weight.
    """
    if kind == "MatMul":
        return f"{place.removesuffix('.MatMul')}.weight", tensor.T
    if place.startswith("embeddings.") and kind in PARTS:
        return PARTS[kind], tensor
    return place, tensor  # none of a DINOv2's


def _rename(name: str) -> str:
    for old, new in NAMES.items():
        name = name.replace(old, new)
    return name


def _find_config(weights: Mapping[str, Tensor], file: str) -> Dinov2Config:
    """The sizes of a DINOv2, from the shapes of its weights."""
    try:
        d_model, _, side, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
        d_ff = len(weights["encoder.layer.0.mlp.fc1.bias"])
    except (KeyError, ValueError):
        raise _none_in(file) from None
    layers = {m[1] for m in (re.match(r"encoder\.layer\.(\d+)\.", n) for n in weights) if m}
    return Dinov2Config(
        hidden_size=d_model,
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, d_model // D_HEAD),
        mlp_ratio=d_ff // d_model,
        patch_size=side,
        image_size=side * isqrt(weights[POSITIONS].shape[1] - 1),
        use_mask_token=False,  # which only training needs
        out_features=["stem"],  # of a backbone: named by a layer, none could be dropped
    )


def _none_in(file: str) -> ValueError:
    return ValueError(f"{file} holds no DINOv2; valid is a graph with one as `backbone`")
