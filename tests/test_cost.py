"""What rows would cost: counted on models without numbers, and by hand."""
import json
import math
from dataclasses import replace

import pytest
import torch
from runs_by_column import make_run
from tiny_models import TINY, WORLD
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modmem import cost
from modmem.artefacts import Artefact
from modmem.blocks import select_parameters
from modmem.cost import describe_plan, estimate_run, make_plan
from modmem.masked_lm import MaskedLM, copy_with_own
from modmem.pretraining import slot_loss
from modmem.starts import RECIPES, Data, Places
from modmem.synthetic import make_blank_model
from modmem.world import WorldStyle

PLACES = Places("cache")
TOKENS, HIDDEN, VOCABULARY, WEIGHTS = 11, 96, 514, 513_250  # of Base in the world
PROJECTIONS = 2 * TOKENS * 3 * HIDDEN**2  # of queries, keys and values
LAYERS = 2 * TOKENS * (4 * HIDDEN**2 + 2 * HIDDEN * 384)  # all of a block's
SCORES = 2 * 2 * TOKENS**2 * HIDDEN  # attention, which has no weights
HEAD = 2 * (HIDDEN**2 + HIDDEN * VOCABULARY)  # at one slot
KEYS = 2 * TOKENS * 2 * HIDDEN**2  # keys and values of all tokens
AT_SLOT = 2 * (2 * HIDDEN**2 + 2 * HIDDEN * 384)  # the last block's other layers, at one slot
AT_SLOT_SCORES = 2 * 2 * 4 * TOKENS * HIDDEN  # attention from four tokens, the fewest
LAST = KEYS + AT_SLOT + AT_SLOT_SCORES
FORWARD = 3 * (LAYERS + SCORES) + LAST + HEAD
BLOCK = 4 * HIDDEN**2 + 2 * HIDDEN * 384 + 9 * HIDDEN + 384 - HIDDEN  # weights, without the biases of the keys


# One sentence

def test_a_model_without_numbers_has_the_weights_of_the_real_one():
    for name, recipe in RECIPES.items():
        real, blank = make_blank_model(recipe).model, cost._find_network(name, name).model
        assert {name: weight.shape for name, weight in blank.named_parameters()} == {name: weight.shape for name, weight in real.named_parameters()}
        assert all(weight.is_meta for weight in blank.parameters())


@pytest.mark.parametrize("family, blocks", [("bert", "all"), ("bert", 0), ("bert", 2), ("bert", (0, 2)), ("bert", None), ("albert", "all"), ("albert", None)])
def test_what_is_counted_is_what_a_real_step_computes(family, blocks):
    model = TINY[family]()
    sentence = next(sentence for sentence in model.encode(WORLD.train) if len(sentence.labels) == 1)
    length = len(sentence.input_ids)
    with torch.device("meta"):
        blank = MaskedLM(type(model.model)(model.model.config), None)
    model = copy_with_own(model, None if blocks is None else list(select_parameters(model, blocks)))
    batch = model.batch([sentence] * 16)  # with the states that enter the lowest block
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        slot_loss(model, batch).backward()
    assert 16 * cost._count_step(blank, length, blocks)[0] == counter.get_total_flops()


def test_flops_of_a_sentence_by_hand():
    base = cost._find_network("plain", "plain")
    flops = {str(blocks): cost._count_step(base, TOKENS, blocks)[0] for blocks in ("all", 0, 3, (1, 2))}
    lowest, trained, frozen = 2 * LAYERS + 2 * SCORES - PROJECTIONS, 2 * LAYERS + 2 * SCORES, LAYERS + 2 * SCORES  # way back
    last_frozen = KEYS + AT_SLOT + 2 * AT_SLOT_SCORES
    last_trained, last_lowest = last_frozen + KEYS + AT_SLOT, last_frozen + AT_SLOT - 2 * HIDDEN**2
    assert cost._count_step(base, TOKENS, ())[0] == FORWARD
    assert flops == {
        "all": FORWARD + HEAD + lowest + 2 * trained + last_trained,
        "0": FORWARD + HEAD + lowest + 2 * frozen + last_frozen,
        "3": LAST + HEAD + HEAD + last_lowest,
        "(1, 2)": FORWARD - LAYERS - SCORES + HEAD + lowest + trained + last_frozen,
    }
    assert cost._count_step(base, TOKENS, 3, trains=False)[0] == LAST + HEAD
    assert cost._count_step(base, TOKENS, None)[0] == 3 * FORWARD


def test_only_what_has_a_way_back_is_kept():
    base = cost._find_network("plain", "plain")
    kept = {blocks: cost._count_step(base, TOKENS, blocks)[1] for blocks in (3, 0, "all")}
    every = cost._count_step(base, TOKENS, None)[1]
    assert cost._count_step(base, TOKENS, ())[1] == 0 < 4 * TOKENS * 3 * HIDDEN < kept[3] < kept[0] < kept["all"] <= every < 4 * kept["all"]


# A row

def test_flops_and_memory_of_a_row():
    base = cost._find_network("plain", "plain")
    fta = make_run(num_subjects=64, blocks=(1, 2), num_modified=8, batch_size=16, unmodified_per_modified=0.5)
    each, kept, _ = cost._count_step(base, TOKENS, (1, 2))
    flops, memory = estimate_run(fta, PLACES)
    assert flops == 70 * 24 * each + 8 * 64 * (FORWARD - LAYERS - SCORES) and memory == 4 * (WEIGHTS + 4 * 2 * BLOCK) + 24 * kept
    every, first, last = (estimate_run(make_run(blocks=blocks), PLACES) for blocks in ("all", 0, 3))
    assert every[0] > first[0] > last[0] and every[1] > first[1] > last[1]


def test_a_memory_is_asked_and_a_retraining_trains_every_weight():
    asked = estimate_run(make_run(method="kNN-LM", epsilon_quantile=0.1), PLACES)
    assert asked == (4096 * FORWARD, 4 * WEIGHTS)
    retrained = estimate_run(make_run(method="retrain", retraining_steps=7, retraining_batch_size=5), PLACES)
    by_epochs = make_run(method="retrain", retraining_steps=None, retraining_epochs=0.5, retraining_batch_size=5)
    assert estimate_run(by_epochs, PLACES)[0] == 0.5 * 5 * 4096 * 3 * FORWARD + 4096 * FORWARD, "all evidence is an epoch"
    assert retrained[0] == 7 * 5 * 3 * FORWARD + 4096 * FORWARD and retrained[1] > 5 * asked[1]


def test_steps_follow_the_evidence_of_the_modified_facts():
    costs = {size: estimate_run(make_run(benchmark="trex", num_modified=size, relations=("P19",)), PLACES)[0] for size in (32, 512)}
    few = estimate_run(make_run(benchmark="trex", relations=("P19",), method="kNN-LM", epsilon_quantile=0.1), PLACES)[0]
    assert (costs[512] - few) / (costs[32] - few) == pytest.approx(1510 / 100), "10 epochs of 151 and of 10 batches"


def test_a_world_in_a_style_has_its_own_counts():
    told = replace(Data(num_subjects=8), style=WorldStyle())
    assert cost._size(Data(num_subjects=8)) == (8 * 8 * 5, 8 * 8, 8 * 8, 11) and cost._size(told) == (8 * 180, 8 * 10, 2 * 8 * 10, 20)
    assert cost._size(replace(told, benchmark="world-questions")) == (8 * 50, 8 * 10, 2 * 8 * 10, 12)


@pytest.mark.parametrize("model, millions", [("google-bert/bert-base-uncased", 109.5), ("bert-large-uncased", 335.2), ("albert/albert-xxlarge-v2", 206.4),
                                             ("google/bert_uncased_L-4_H-256_A-4", 11.2)])
def test_published_models_are_known_by_their_names(model, millions):
    network = cost._find_network(model, model)
    assert sum(weight.numel() for weight in network.model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_model_is_known_by_its_folder_or_not_at_all(tmp_path):
    shape = {"model_type": "bert", "num_hidden_layers": 4, "hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 3,
             "vocab_size": 514, "max_position_embeddings": 64, "dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    asked = {"model": "mine", "start": "pretrained", "blocks": 3, "num_modified": 8}
    mine = make_run(**asked)
    assert estimate_run(mine, Places("cache", models={"mine": str(tmp_path)})) == estimate_run(make_run(**{**asked, "model": "plain"}), PLACES)
    for run in (mine, make_run(**{**asked, "model": "plain", "blocks": 4}), make_run(model="plain", method="FaE", group="none")):
        assert all(map(math.isnan, estimate_run(run, PLACES)))
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert all(map(math.isnan, estimate_run(mine, Places("cache", models={"mine": str(tmp_path / "gpt2")}))))


# A plan

def test_what_is_unknown_is_no_guess(tmp_path):
    artefact = Artefact("table_3", tmp_path, {}, {}, (make_run(model="fae", start="pretrained"),), PLACES)
    told = describe_plan(make_plan([artefact], tmp_path / "store"))
    assert "unknown" in told and "and what is unknown" in told
