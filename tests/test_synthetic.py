"""The synthetic world's models: the shipped one is what it says, a smaller one is rebuilt bit for bit and learns."""
import json
import math
import os
import re
import warnings
from dataclasses import asdict, replace

import pytest
from tiny_models import same_weights

from modmem.editor import hash_weights
from modmem.masked_lm import SYNTHETIC, load_masked_lm
from modmem.pretraining import PretrainingConfig, pretrain
from modmem.starts import RECIPES, hash_settings
from modmem.synthetic import FAITHFUL, WorldRecipe, build_world_model, describe_world_model, make_blank_model, save_world_model
from modmem.world import WorldStyle, make_person, make_pretraining, make_world, world_vocabulary

SMALL = WorldRecipe(
    num_blocks=2, hidden_size=32, intermediate_size=64, num_heads=2, num_sentences=2000, num_background=16, num_subjects=16,
    pretraining=PretrainingConfig(steps=60, batch_size=32, learning_rate=4e-3, dropout=0.0, checkpoint_every=20),
)


@pytest.fixture(scope="module")
def shipped():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_masked_lm("synthetic")


@pytest.fixture(scope="module")
def record():
    return json.loads((SYNTHETIC / "recipe.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def small():
    return build_world_model(SMALL)


def read_recipe(recorded):
    style = recorded.get("style") and WorldStyle(**{name: tuple(value) if isinstance(value, list) else value for name, value in recorded["style"].items()})
    return WorldRecipe(**recorded | {"style": style, "pretraining": PretrainingConfig(**recorded["pretraining"])})


# the shipped model


def test_shipped_weights_are_the_recorded_ones_made_by_the_default_recipe(shipped, record):
    assert hash_weights(shipped) == record["weights"]
    recipe = read_recipe(record["recipe"])
    assert recipe == WorldRecipe() and hash_settings(asdict(recipe)) == hash_settings(record["recipe"])
    blank = make_blank_model(recipe)
    shapes = [{name: weight.shape for name, weight in masked_lm.model.named_parameters()} for masked_lm in (shipped, blank)]
    assert shapes[0] == shapes[1] and not same_weights(shipped, blank)
    assert shipped.tokenizer.get_vocab() == {piece: number for number, piece in enumerate(world_vocabulary())}
    world = make_world(4)
    assert shipped.encode(world.test) == blank.encode(world.test)


def test_shipped_model_knows_what_is_recorded(shipped, record):
    accuracy = describe_world_model(shipped, WorldRecipe())
    assert accuracy == pytest.approx(record["accuracy"], abs=0.3)
    assert accuracy["shown"] > accuracy["all"] > accuracy["not_shown"] and accuracy["shown"] > accuracy["not_shown"] + 25


def test_shipped_folder_is_small_and_holds_safetensors_and_a_card(record):
    files = {path.name: path.stat().st_size for path in SYNTHETIC.iterdir()}
    assert sum(files.values()) <= 6_000_000
    assert set(files) == {"README.md", "config.json", "model.safetensors", "recipe.json", "tokenizer.json", "tokenizer_config.json"}
    assert all(os.access(path, os.R_OK) for path in SYNTHETIC.iterdir())
    card = (SYNTHETIC / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0") and all(f"{value} %" in card for value in record["accuracy"].values())
    texts = [path.read_text(encoding="utf-8") for path in SYNTHETIC.glob("*config.json")]
    assert len(texts) == 2 and not any(re.search(r'"(?:/|\w:)\w', text) for text in texts), "a path of the machine it was made on"


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("plain", "tiny")])
def test_models_of_the_faithful_world_are_what_they_say(name):
    folder = SYNTHETIC.with_name(f"{SYNTHETIC.name}_{name}")
    record, masked_lm, recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8")), load_masked_lm(folder), RECIPES[name]
    assert hash_weights(masked_lm) == record["weights"] and read_recipe(record["recipe"]) == recipe and sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    assert recipe.style == FAITHFUL.style and recipe.num_subjects == FAITHFUL.num_subjects and name.endswith(f"_{recipe.pretraining.seed}") == ("_" in name)
    assert describe_world_model(masked_lm, recipe) == pytest.approx(record["accuracy"], abs=0.3)
    assert {path.name for path in folder.iterdir()} == {path.name for path in SYNTHETIC.iterdir()}


# a smaller one


def test_recipe_is_followed_to_the_same_bits_and_learns(small):
    text = make_pretraining(SMALL.num_sentences, SMALL.num_background, SMALL.num_subjects, SMALL.world_seed)
    again, losses = pretrain(make_blank_model(SMALL), text, SMALL.pretraining)
    assert same_weights(again, small)
    pieces = sum(len(sentence.labels) for sentence in again.encode(text[:200])) / 200
    assert losses[0] > 0.8 * pieces * math.log(len(world_vocabulary())) and sum(losses[-10:]) / 10 < 0.85 * losses[0]


def test_every_part_of_the_recipe_counts(small):
    short = replace(SMALL, num_sentences=200, pretraining=replace(SMALL.pretraining, steps=1))
    expected = hash_weights(build_world_model(short))
    assert hash_weights(build_world_model(short)) == expected
    others = [replace(short, world_seed=1), replace(short, num_background=15), replace(short, num_subjects=15), replace(short, initial_std=0.02),
              replace(short, style=WorldStyle()), replace(short, pretrained_share=0.5),
              replace(short, pretraining=replace(short.pretraining, seed=1))]
    assert len({hash_weights(build_world_model(other)) for other in others} | {expected}) == len(others) + 1


def test_accuracy_is_measured_on_the_unseen_phrasing_and_split_by_what_was_shown(small):
    world, right = make_world(SMALL.num_subjects), []
    shown_ids = {f"0-{number}-{relation}" for number in range(16) for relation, shown in make_person(number, 0).pretrained.items() if shown}
    shown_ids &= {fact.id for fact in world.facts}

    class Knows:
        "Answers what pretraining showed, and nothing else."

        def answers(self, evidence):
            right.extend(question.text for question in evidence)
            return [question.fact.id in shown_ids for question in evidence]

    accuracy = describe_world_model(Knows(), SMALL)
    assert right == [question.text for question in world.test]
    assert accuracy == {"all": round(100 * len(shown_ids) / len(world.facts), 2), "shown": 100.0, "not_shown": 0.0}


def test_saved_folder_records_recipe_accuracy_and_weights(small, tmp_path):
    accuracy = save_world_model(small, SMALL, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "recipe.json").read_text())
    loaded = load_masked_lm(tmp_path / "model")
    assert same_weights(loaded, small) and record["weights"] == hash_weights(loaded)
    assert read_recipe(record["recipe"]) == SMALL and record["accuracy"] == accuracy == describe_world_model(loaded, SMALL)
    assert f"{accuracy['all']} %" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize(("family", "distinct"), [("bert", 5), ("albert", 1)])
def test_blank_model_has_the_recipes_shape(family, distinct):
    blank = make_blank_model(replace(SMALL, family=family, num_blocks=5))
    assert len(blank.blocks) == 5 and len({id(block) for block in blank.blocks}) == distinct
    assert blank.model.config.hidden_size == 32 and blank.model.config.vocab_size == len(world_vocabulary())
    assert not any(blank.tokenizer.unk_token_id in question.input_ids + question.labels for question in blank.encode(make_world(8).test))


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="gpt"):
        WorldRecipe(family="gpt")
