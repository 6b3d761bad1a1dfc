"""What strangers feed as batches: accepted, or refused in one sentence."""

import pytest
import torch
import transformers
from families import LAYERS, make_batch, make_model
from torch import nn

import ffmerge
from ffmerge.sublayers import find_stacks

BATCH = make_batch("llama", padded=True)
IDS, MASK = BATCH["input_ids"], BATCH["attention_mask"]
REAL, ALL = int(MASK.sum()), MASK.numel()


def count(model, batch, **options):
    features = ffmerge.collect_features(model, [batch], **({"tokens": 10} | options))
    return {name: len(layers[0]) for name, layers in features.items()}


@pytest.mark.parametrize(
    ("batch", "n"),
    [
        ({"input_ids": IDS}, ALL),
        ({"input_ids": IDS, "attention_mask": None}, ALL),
        (BATCH | {"use_cache": False}, REAL),
        (transformers.BatchEncoding(BATCH), REAL),
        ({"input_ids": IDS, "attention_mask": MASK.float()}, REAL),
        ({"input_ids": IDS.flip(1), "attention_mask": MASK.flip(1)}, REAL),
    ],
)
def test_batches_of_other_kinds_are_accepted(batch, n):
    assert count(make_model("llama"), batch) == {"decoder": n}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (IDS, r"batch is a Tensor; valid are keyword arguments"),
        ((IDS, MASK), r"batch is a tuple; valid are"),
        ("hello world", r"batch is a str; valid are"),
        (BATCH | {"text": ["a"]}, r"batch holds text as a list; valid are tensors"),
        ({"input_ids": IDS.tolist()}, r"batch holds input_ids as a list; valid are tensors"),
        ({"input_ids": IDS[0]}, r"batch holds input_ids of shape \(10,\); valid is \(batch"),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(6, 1, 10, 10)},
            r"attention_mask of shape \(6, 1, 10, 10\); valid is \(batch, length\)",
        ),
    ],
)
def test_what_is_no_batch_is_refused_in_one_sentence(batch, message):
    with pytest.raises(ValueError, match=message):
        count(make_model("llama"), batch)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (None, "batches is a NoneType; valid are"),
        (3, "batches is a int; valid are"),
        (
            [{"input_ids": IDS[:0]}],
            r"input_ids of shape \(0, 10\); valid is .* one example or more",
        ),
    ],
)
def test_no_batches_are_refused_in_one_sentence(batches, message):
    with pytest.raises(ValueError, match=message):
        ffmerge.collect_features(make_model("llama"), batches)


def test_taylor_without_a_batch_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="batches hold no tokens"):
        ffmerge.compress(make_model("llama"), "neurons_taylor", 1, [])


@pytest.mark.parametrize("tokens", ["10", 0, None, 2.5])
def test_a_number_of_tokens_that_is_none_is_refused(tokens):
    with pytest.raises(ValueError, match=r"tokens is .*; valid is a whole number from 1"):
        count(make_model("llama"), BATCH, tokens=tokens)


def test_a_decoders_padding_is_found_however_its_inputs_are_given():
    model, batch = make_model("marian"), make_batch("marian", padded=True)
    n = {"encoder": int(batch["attention_mask"].sum())}
    n["decoder"] = int((batch["labels"] != -100).sum())
    assert count(model, batch) == n
    labels = batch.pop("labels")
    ids = model.prepare_decoder_input_ids_from_labels(labels=labels)
    assert ids[0, 0] == model.config.pad_token_id  # where it starts is not padding
    ids[(labels == -100)] = model.config.pad_token_id
    assert count(model, batch | {"decoder_input_ids": ids}) == n
    mask = torch.ones_like(ids)
    given = batch | {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    assert count(model, given)["decoder"] == mask.numel()
    with pytest.raises(ValueError, match="nothing for the decoder; valid is one of labels"):
        count(model, batch)


def test_a_mask_of_another_layout_is_refused_unless_nothing_is_padding():
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        conv_dim=(8, 8),
        conv_stride=(4, 4),
        conv_kernel=(8, 4),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
    )
    model = transformers.Wav2Vec2Model(config)
    mask = torch.ones(3, 400, dtype=torch.long)
    batch = {"input_values": torch.randn(3, 400), "attention_mask": mask}
    assert count(model, batch) == {"encoder": 3 * 24}
    mask[1:, 200:] = 0
    with pytest.raises(
        ValueError, match=r"mask of the encoder has shape \(3, 400\) and \(3, 24\) pos"
    ):
        count(model, batch)


def test_the_mask_follows_models_that_put_the_length_first():
    sizes = {"d_model": 16, "n_layer": LAYERS, "n_head": 2, "d_inner": 24, "vocab_size": 99}
    model = transformers.XLNetModel(transformers.XLNetConfig(**sizes)).eval()
    features = ffmerge.collect_features(model, [BATCH], tokens=10)
    (name,) = features
    seen = []
    handle = model.layer[1].ff.layer_1.register_forward_hook(lambda m, x, out: seen.append(out))
    with torch.no_grad():
        model(**BATCH)
    handle.remove()
    rows = seen[0].transpose(0, 1)[MASK.bool()]  # (n_tokens, d_ff)
    assert len(rows) == REAL and torch.equal(features[name][1].sort(0)[0], rows.sort(0)[0])


def test_padding_that_a_model_adds_by_itself_is_no_token():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": 2, "vocab_size": 99, "attention_window": 8}
    model = transformers.LongformerModel(transformers.LongformerConfig(**sizes))
    even = IDS[:, :8].clamp(min=2)
    assert count(model, {"input_ids": even}) == {"encoder": even.numel()}
    for batch in ({"input_ids": IDS}, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}):
        with pytest.raises(ValueError, match="adds no padding of its own"):
            count(model, batch)


def test_text_alone_for_a_model_that_sees_is_told_what_would_do():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "vocab_size": 99, "image_size": 8, "patch_size": 4}
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=sizes | {"model_type": "clip_vision_model"},
            text_config=sizes | {"model_type": "llama"},
        )
    )
    with pytest.raises(ValueError, match="or the part of the model that these batches are for"):
        ffmerge.collect_features(model, [{"input_ids": IDS.clamp(max=98)}], tokens=10)


def test_pictures_that_stand_beside_tokens_count():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": 2, "vocab_size": 99, "image_size": 16, "patch_size": 8}
    model = transformers.ViltModel(transformers.ViltConfig(**sizes, max_image_length=-1))
    batch = {"input_ids": IDS, "pixel_values": torch.randn(len(IDS), 3, 16, 16)}
    assert count(model, batch) == {"encoder": ALL + 5 * len(IDS)}  # four patches and a first one


def test_activations_in_place_leave_the_features_alone():
    model, place = make_model("vit"), []
    for layer in find_stacks(model)["encoder"].layers:
        layer.mlp.activation_fn = nn.ReLU(inplace=True)
    layer.mlp.fc1.register_forward_hook(lambda m, args, out: place.append(out.clone()))
    features = ffmerge.collect_features(model, [make_batch("vit")], tokens=10)
    assert torch.equal(features["encoder"][-1], place[0].flatten(0, 1))
    assert (features["encoder"][-1] < 0).any()


def test_fewer_tokens_than_asked_for_or_than_neurons_are_a_warning_with_both_numbers():
    model = make_model("llama")
    with pytest.warns(UserWarning, match="batches hold 10 tokens and 500 were asked for"):
        count(model, {"input_ids": IDS[:1]}, tokens=500)
    with pytest.warns(UserWarning, match="hold 10 tokens for 24 neurons"):
        count(model, {"input_ids": IDS[:1]}, tokens=10)


def test_features_of_another_model_are_refused():
    model = make_model("llama")
    features = ffmerge.collect_features(model, [BATCH], tokens=10)["decoder"]
    for wrong, message in (
        (features, "features are a list; valid is what collect_features gives"),
        ({"decoder": features[:2]}, r"missing \(there are 2\)"),
        ({"decoder": [x[:, :20] for x in features]}, r"are \[\(45, 20\).*; valid are tensors"),
        ({"decoder": [*features[:3], features[3][:9]]}, r"are .*\(9, 24\)\]; valid are tensors"),
        ({"decoder": [x.numpy() for x in features]}, r"are \['ndarray'.*; valid are tensors"),
    ):
        with pytest.raises(ValueError, match=message):
            ffmerge.merge(model, {"decoder": "1-2"}, wrong)
