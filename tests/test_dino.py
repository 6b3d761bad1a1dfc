"""DINOv2: read out of an ONNX file weight for weight, and scored by nearest neighbours."""

import re

import numpy as np
import onnx
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from onnx import helper, numpy_helper
from PIL import Image as Pillow
from transformers import Dinov2Config, Dinov2Model

from ffmerge.checkpoints import load, save
from ffmerge.methods import Evidence, find_method
from ffmerge.patches import apply_patch
from ffmerge.sublayers import find_stacks
from ffmerge.weights import permute
from study import pretrained
from study.config import load_params
from study.dino import open_dino
from study.sections import Base, Data
from study.tasks import make_batches, neighbours
from study.tasks.neighbours import LabelledBatch, Task, vote

LETTERS = ["A", "B", "C", "D"]
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "mlp_ratio": 2}
PACKAGE = {"package": "x==1", "file": "x/dino.onnx", "sha256": "0" * 64}


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = Dinov2Config(**SIZES, patch_size=7, image_size=28, use_mask_token=False)
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # biases and scales too
            p.copy_(torch.randn_like(p) * 0.2)
    return model


OLD = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
OLD |= {"o_proj": "output.dense"}


def write_onnx(path, weights, also=()):
    """A graph such as torch exports of a model with a DINOv2 as `backbone` and a head on it.

    Args:
        path: of the file.
        weights: name to tensor, of transformers' model.
        also: more initializers, each (name, tensor).
    """
    tensors, nodes = {"decoder.bias": torch.zeros(3)} | dict(also), []
    for name, tensor in weights.items():
        old = re.sub(r"(?<=attention\.)(\w_proj)", lambda m: OLD[m[1]], name)
        module = old.removesuffix(".weight").replace(".", "/")
        if name == "embeddings.position_embeddings":
            for kind, part in (("Concat", tensor[:, :1]), ("Reshape", tensor[:, 1:])):
                tensors[f"onnx::{kind}_1"] = part
                place = f"/backbone/embeddings/{kind}_1"
                nodes.append(helper.make_node(kind, [f"onnx::{kind}_1", "x"], ["y"], place))
        elif name.endswith("weight") and tensor.ndim == 2:
            tensors[number := f"onnx::MatMul_{len(nodes)}"] = tensor.T
            place = f"/backbone/{module}/MatMul"
            nodes.append(helper.make_node("MatMul", ["x", number], ["y"], place))
        else:
            tensors[f"backbone.{old}"] = tensor
    shape = torch.tensor([1, -1])  # a number of the exporter's, and no weight
    tensors["onnx::Unsqueeze_9"] = shape
    place = "/backbone/embeddings/Unsqueeze_1"
    nodes.append(helper.make_node("Unsqueeze", ["x", "onnx::Unsqueeze_9"], ["y"], place))
    made = [numpy_helper.from_array(t.contiguous().numpy(), n) for n, t in tensors.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], made)), path)
    return path


def test_every_weight_of_an_onnx_file_is_the_models(model, tmp_path, monkeypatch):
    path = write_onnx(tmp_path / "dino.onnx", model.state_dict())
    monkeypatch.setattr(pretrained, "fetch_file", lambda base: path)
    again = pretrained.load_pretrained(Base(**PACKAGE, processor={"size": 28}))
    assert type(again) is Dinov2Model and not again.training and again.dtype == torch.float32
    assert again.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 3, 14, 14)
    assert torch.equal(again(x).last_hidden_state, model(x).last_hidden_state)


def test_layers_of_it_can_be_dropped_and_the_rest_is_a_model(model, tmp_path):
    """Its configuration also is a backbone's, and would name a layer that is gone."""
    base, drop = open_dino(write_onnx(tmp_path / "x.onnx", model.state_dict())), find_method("drop")
    nothing = Evidence(None, None)
    small = apply_patch(base, drop.make(base, drop.list_plans(base, 1, nothing)[0], nothing))
    again = load(save(small, tmp_path / "small"))
    x = torch.randn(2, 3, 14, 14)
    assert len(again.encoder.layer) == 1
    assert torch.equal(again(x).last_hidden_state, small(x).last_hidden_state)


def leave_out(weights):
    del weights["encoder.layer.1.mlp.fc2.bias"]


def cut(weights):
    weights["encoder.layer.1.mlp.fc1.weight"] = torch.zeros(100, 64)


def leave_out_positions(weights):
    del weights["embeddings.position_embeddings"]


@pytest.mark.parametrize(
    ("change", "also", "message"),
    [
        (leave_out, (), r"holds encoder.layer.1.mlp.fc2.bias as nothing; valid .* is \(64,\)"),
        (cut, (), r"mlp.fc1.weight as \(100, 64\); valid for a .* size is \(128, 64\)"),
        (leave_out_positions, (), "holds no DINOv2; valid is a graph with one as `backbone`"),
        (dict.clear, (), "holds no DINOv2; valid is a graph with one as `backbone`"),
        (
            lambda weights: None,
            [("backbone.encoder.layer.0.extra", torch.zeros(2))],
            r"holds encoder.layer.0.extra as \(2,\); valid for a DINOv2 of this size is nothing",
        ),
    ],
)
def test_a_file_that_is_not_exactly_a_dinov2_is_refused(change, also, message, model, tmp_path):
    weights = dict(model.state_dict())
    change(weights)
    path = write_onnx(tmp_path / "dino.onnx", weights, also)
    with pytest.raises(ValueError, match=message) as error:
        open_dino(path)
    assert str(error.value).startswith("dino.onnx") and "\n" not in str(error.value)


def test_a_file_that_is_no_onnx_is_told_in_a_sentence(tmp_path):
    (tmp_path / "x.onnx").write_text("weights")
    with pytest.raises(ValueError, match=r"x\.onnx is no ONNX file; valid is one with a DINOv2"):
        open_dino(tmp_path / "x.onnx")


@pytest.fixture
def task(tmp_path):
    """Four classes of pictures, a bright quarter each; noise, so that none is another's equal."""
    rng, rows = np.random.default_rng(0), {"image": [], "label": []}
    for i in range(48):
        label = i % 4
        pixels = rng.integers(0, 60, (28, 28, 3))
        y, x = 14 * (label // 2), 14 * (label % 2)
        pixels[y : y + 14, x : x + 14] += 150
        rows["image"].append(Pillow.fromarray(pixels.astype(np.uint8)))
        rows["label"].append(label)
    features = Features({"image": Image(), "label": ClassLabel(names=LETTERS)})
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"data/{split}.parquet")
    splits = {name: name for name in ("train", "validation", "test")}
    data = Data(path=str(tmp_path / "data"), splits=splits, bank=24)
    return Task(Base(**PACKAGE, processor={"size": 28}), data, tmp_path / "none")


def score(task, model, n=16):
    return task.evaluate(model, make_batches(task, "validation", 8, n))


def test_permuted_neurons_score_the_same_and_a_ruined_model_at_chance(task, model):
    whole = score(task, model)
    assert whole.n_examples == 16 and whole.value > 60
    for ff in find_stacks(model)["encoder"].sublayers:
        ff.write(permute(ff.read(), torch.randperm(ff.d_ff)))
    assert score(task, model) == whole
    with torch.no_grad():
        model.embeddings.patch_embeddings.projection.weight.zero_()  # it is blind
    assert score(task, model).value == 25


def test_the_bank_is_embedded_by_the_candidate(task, model):
    """Else a rotation of all that a model puts out, which changes no angle, would be a loss."""
    whole = score(task, model)
    seen = []

    def note(module, args, kwargs):
        seen.append(len(kwargs["pixel_values"]))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    assert score(task, model) == whole and sum(seen) == 24 + 16
    handle.remove()
    turn = torch.linalg.qr(torch.randn(64, 64))[0]

    def rotate(module, args, out):
        out.last_hidden_state = out.last_hidden_state @ turn
        return out

    model.register_forward_hook(rotate)
    assert score(task, model) == whole


def test_only_the_labels_that_the_entry_names_are_shown(task):
    task.data = task.data.model_copy(update={"labels": ["B", "D"]})
    rows = task.dataset("train", 6)
    assert rows["label"] == [1, 3] * 3 and len(task.dataset("test")) == 24
    task.data = task.data.model_copy(update={"labels": ["B", "Z"]})
    with pytest.raises(ValueError, match=r"data\.labels names 'Z', which .* valid are A, B, C, D"):
        task.dataset("train")


def test_images_are_of_the_entrys_size_and_labels_are_not_the_models(task, tmp_path):
    batch = next(make_batches(task, "test", 4))
    assert isinstance(batch, LabelledBatch) and list(batch) == ["pixel_values"]
    assert batch["pixel_values"].shape == (4, 3, 28, 28) and batch.labels == [0, 1, 2, 3]
    task.save_processor(tmp_path / "base")
    again = Task(task.base, task.data, tmp_path / "base")
    assert torch.equal(next(make_batches(again, "test", 4))["pixel_values"], batch["pixel_values"])


def test_ties_go_to_the_nearest_and_then_to_the_first_of_the_bank():
    bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.0, 1.0]])
    labels = torch.tensor([7, 7, 3, 3, 5])
    asked = torch.tensor([[1.0, 0.01], [0.01, 1.0]])
    assert vote(asked, bank, labels, 4).tolist() == [7, 3]
    assert vote(asked[1:], bank, labels, 1).tolist() == [3]  # as near as the last, but before it
    even = vote(torch.tensor([[1.0, 1.0]]), bank[[0, 2]], labels[[0, 2]], 2)
    assert even.tolist() == [7]
    assert vote(asked, bank.flip(0), labels.flip(0), 1).tolist() == [7, 5]


def test_the_study_scores_its_real_encoder_so(repository):
    params = load_params(repository)
    entry = params.model("dinov2")
    assert entry.task == "neighbours" and entry.data.bank and len(entry.data.labels) == 26
    assert params.compared("dinov2") == [] and neighbours.NEAREST == 5
