import re

import pytest
import yaml

from study.config import load_params


def edit(root, *path_and_value):
    *path, last, value = path_and_value
    content = yaml.safe_load((root / "params.yaml").read_text())
    section = content
    for key in path:
        section = section[key]
    section[last] = value
    (root / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("run", ["vit-glyph"]), "run names 'vit-glyph', which is unknown; valid are vit-glyphs"),
        (("comparisons", ["permute-fifth"]), "comparisons names 'permute-fifth', which is unknown"),
        (
            ("models", "vit-glyphs", "removed", "most", 6),
            "removed.most is 6, but of 6 FF sublayers in 1 stack(s) at most 5 can go",
        ),
        (
            ("models", "vit-glyphs", "dropped", "third", 9),
            "dropped.third is 9, but of 6 layers in 1 stack(s) at most 5 can go",
        ),
        (
            ("recipes", "permute-third", "method", "permutate"),
            "recipes.permute-third.method is 'permutate'; input should be 'base', 'vanilla'",
        ),
        (
            ("recipes", "anchor-last", "anchor", "second"),
            "recipes.anchor-last.anchor is 'second'; input should be 'first', 'middle' or 'last'",
        ),
        (
            ("recipes", "permute-third", "finetune", {"stpes": 3}),
            "finetune.stpes is not a parameter; valid are steps, batch_size",
        ),
        (
            ("recipes", "permute-third", "finetune", {"steps": -1}),
            "recipes.permute-third.finetune.steps is -1; input should be greater than 0",
        ),
        (
            ("models", "vit-glyphs", "finetune", "stpes", 3),
            "models.vit-glyphs.finetune.stpes is not a parameter; valid are steps, batch_size",
        ),
        (
            ("recipes", "drop-third", "random_window", 1),
            "recipes.drop-third random_window is for method permute, not drop",
        ),
        (
            ("models", "vit-glyphs", "data", "path", "data/glyph"),
            "models.vit-glyphs.data.path is 'data/glyph'; valid are a hub id and data/glyphs",
        ),
        (("models", "vit-glyphs", "finetune", "steps", 0), "finetune.steps is 0; input should be"),
        (("modles", {}), "modles is not a parameter; valid are run, seed, seeds, threads"),
    ],
)
def test_a_wrong_parameter_is_named_in_one_sentence(tiny, change, message):
    root, _ = tiny
    edit(root, *change)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_params(root)
    assert "\n" not in str(error.value)


def test_counts_of_an_encoder_decoder_must_be_shared_by_its_stacks(tiny):
    root, _ = tiny
    edit(root, "models", "vit-glyphs", "layers", {"encoder": 6, "decoder": 6})
    with pytest.raises(ValueError, match=r"removed.half is 3, but of 12 FF sublayers in 2 stack"):
        load_params(root)


def test_a_variants_own_steps_override_the_models(tiny):
    root, before = tiny
    edit(root, "recipes", "permute-third", "finetune", {"steps": 99})
    after = load_params(root)
    assert after.training("vit-glyphs", "permute-third").steps == 99
    assert after.training("vit-glyphs", "vanilla-third") == before.training(
        "vit-glyphs", "vanilla-third"
    )


def test_the_papers_own_model_has_its_recipe(repository):
    params = load_params(repository)
    paper = params.models["vit-base"]
    assert paper.base.hub == "google/vit-base-patch16-224"
    assert (paper.finetune.steps, paper.finetune.learning_rate) == (50_000, 5e-5)


@pytest.mark.parametrize("kind", ["model", "recipe"])
def test_an_unknown_name_is_refused_with_the_valid_ones(tiny, kind):
    with pytest.raises(ValueError, match=r"'nonsense' is unknown; valid are (vit-glyphs|base, )"):
        getattr(tiny[1], kind)("nonsense")
