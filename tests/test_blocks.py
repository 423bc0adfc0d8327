"""Blocks are chosen by exact index; never embeddings, head or key biases."""
import re

import pytest
import torch

from modmem.blocks import _find_weights, select_parameters
from modmem.masked_lm import MaskedLM, copy_with_own
from modmem.synthetic import WorldRecipe, make_blank_model
from modmem.world import make_world

NUM_BLOCKS = 12


def make_tiny(family):
    return make_blank_model(WorldRecipe(family=family, num_blocks=NUM_BLOCKS, hidden_size=16, intermediate_size=24, num_heads=2))


@pytest.fixture(scope="module")
def bert():
    return make_tiny("bert")


@pytest.fixture(scope="module")
def albert():
    return make_tiny("albert")


def block_numbers(names):
    return {int(re.fullmatch(r"bert\.encoder\.layer\.(\d+)\..+", name)[1]) for name in names}


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [*[(index, {index}) for index in range(NUM_BLOCKS)], ([1], {1}), ([10, 1], {1, 10}), ((0, 11), {0, 11}), (range(2, 5), {2, 3, 4})],
)
def test_exactly_the_blocks_asked_for(bert, blocks, expected):
    names = select_parameters(bert, blocks)
    assert block_numbers(names) == expected
    own = {name for index in expected for name, _ in bert.blocks[index].named_parameters(prefix=f"bert.encoder.layer.{index}")}
    assert set(names) == {name for name in own if not name.endswith("key.bias")}


def test_block_1_is_not_10_or_11(bert):
    chosen = {id(parameter) for parameter in select_parameters(bert, 1).values()}
    for index in (0, 10, 11):
        assert not chosen & {id(parameter) for parameter in bert.blocks[index].parameters()}


def test_the_parameters_are_the_models_own_and_left_as_they_are(bert):
    flags = {name: parameter.requires_grad for name, parameter in bert.model.named_parameters()}
    own = dict(bert.model.named_parameters())
    assert all(parameter is own[name] for name, parameter in select_parameters(bert, [0, 5]).items())
    assert {name: parameter.requires_grad for name, parameter in bert.model.named_parameters()} == flags


def test_the_order_of_indices_does_not_matter(bert):
    assert list(select_parameters(bert, [3, 0])) == list(select_parameters(bert, [0, 3]))


def test_all_is_every_block_and_never_embeddings_or_head(bert):
    everything = select_parameters(bert, "all")
    assert everything.keys() == select_parameters(bert, list(range(NUM_BLOCKS))).keys()
    assert block_numbers(everything) == set(range(NUM_BLOCKS))
    outside = {name for name, _ in bert.model.named_parameters()} - everything.keys()
    keys = {f"bert.encoder.layer.{index}.attention.self.key.bias" for index in range(NUM_BLOCKS)}
    assert keys <= outside and all(name.startswith(("bert.embeddings.", "cls.")) for name in outside - keys)
    tied = bert.model.get_input_embeddings().weight
    assert tied is bert.model.get_output_embeddings().weight  # a tied head must not come in by another name
    assert all(parameter is not tied for parameter in everything.values())


BAD_BLOCKS = [True, False, -1, 12, 1.0, None, "0", "1", "ALL", "", b"1", [], (), [True], [0, -1], [12], [0.0], ["0"], [None], [1, 1], {1}, {1: 1}]


@pytest.mark.parametrize("blocks", BAD_BLOCKS, ids=repr)
def test_other_choices_are_refused_by_name(bert, blocks):
    with pytest.raises(ValueError) as caught:
        select_parameters(bert, blocks)
    bad = blocks if not isinstance(blocks, list) or blocks in ([], [1, 1]) else next(one for one in blocks if one != 0 or type(one) is not int)
    assert repr(bad) in str(caught.value)


@torch.no_grad()
def scores(masked_lm):
    return masked_lm(masked_lm.batch(masked_lm.encode(make_world(num_subjects=2).test)))


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_key_bias_changes_no_prediction_and_is_left_out(family, request):
    original = request.getfixturevalue(family)
    changed = copy_with_own(original)
    keys = {name for name, _ in changed.model.named_parameters() if name.endswith("key.bias")}
    assert len(keys) == (NUM_BLOCKS if family == "bert" else 1) and not keys & select_parameters(original, "all").keys()
    with torch.no_grad():
        for name, parameter in changed.model.named_parameters():
            if name in keys:
                parameter += 1.0
    torch.testing.assert_close(scores(changed), scores(original), rtol=0, atol=1e-4)
    assert torch.equal(scores(changed).argmax(-1), scores(original).argmax(-1))


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_every_selected_weight_can_change_a_prediction(family, request):
    original = request.getfixturevalue(family)
    changed = copy_with_own(original)
    batch = changed.batch(changed.encode(make_world(num_subjects=2).test))
    torch.nn.functional.cross_entropy(changed(batch), batch.labels).backward()
    gradients = {name: parameter.grad.abs().max().item() for name, parameter in select_parameters(changed, "all").items()}
    assert min(gradients.values()) > 1e-7, min(gradients, key=gradients.get)


def test_alberts_blocks_are_one_set_of_weights(albert):
    assert len(albert.blocks) == NUM_BLOCKS
    assert len({parameter.data_ptr() for block in albert.blocks for parameter in block.parameters()}) == len(list(albert.blocks[0].parameters()))
    chosen = select_parameters(albert, "all")
    pointers = {parameter.data_ptr() for parameter in chosen.values()}
    assert len(pointers) == len(chosen) == len(list(albert.blocks[0].parameters())) - 1  # each once; no key bias
    outside = {name for name, _ in albert.model.named_parameters()} - chosen.keys()
    others = ("albert.embeddings.", "albert.encoder.embedding_hidden_mapping_in.", "predictions.")
    assert all(name.startswith("albert.encoder.albert_layer_groups.0.") for name in chosen)
    assert all(name.startswith(others) or name.endswith(".key.bias") for name in outside)


@pytest.mark.parametrize("blocks", [0, 3, [0], [0, 11]])
def test_albert_has_no_single_blocks(albert, blocks):
    with pytest.raises(ValueError, match=re.escape(f"blocks must be 'all', not {blocks!r}")):
        select_parameters(albert, blocks)


def test_one_albert_weight_acts_at_every_depth(albert):
    changed = copy_with_own(albert)
    batch = albert.batch(albert.encode(make_world(num_subjects=1).test[:4]))
    with torch.no_grad():
        next(iter(select_parameters(changed, "all").values()))[0] += 0.5
        hidden = albert.embed(batch)
        assert torch.equal(hidden, changed.embed(batch))
        for index in range(NUM_BLOCKS):  # each layer by itself, on the same input
            assert not torch.equal(albert.run_blocks(hidden, batch, index, index + 1), changed.run_blocks(hidden, batch, index, index + 1))


def test_a_module_whose_name_goes_on_is_another_one():
    block = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("dense", "dense_out", "output")})
    for names, expected in ((("dense",), ["dense.weight", "dense.bias"]), (("dense.weight", "output"), ["dense.weight", "output.weight", "output.bias"]), (("",), list(dict(block.named_parameters())))):
        found = {id(weight) for weight in _find_weights(block, names)}
        assert [name for name, weight in block.named_parameters() if id(weight) in found] == expected


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def test_albert_xxlarge_counts_its_block_once():
    from transformers import AlbertConfig, AlbertForMaskedLM

    shape = {"vocab_size": 30000, "embedding_size": 128, "hidden_size": 4096, "intermediate_size": 16384}
    with torch.device("meta"):  # shapes without weights
        xxlarge = MaskedLM(AlbertForMaskedLM(AlbertConfig(**shape, num_hidden_layers=12, num_attention_heads=64)), tokenizer=None)
    assert count(xxlarge.model.parameters()) == 206_368_944
    assert count(xxlarge.blocks[0].parameters()) == 201_379_840
    assert count(select_parameters(xxlarge, "all").values()) == 201_379_840 - 4096  # the key bias


def test_bert_base_counts_its_blocks():
    from transformers import BertConfig, BertForMaskedLM

    with torch.device("meta"):
        base = MaskedLM(BertForMaskedLM(BertConfig()), tokenizer=None)
    assert count(base.model.parameters()) == 109_514_298
    assert count(base.blocks[0].parameters()) == 7_087_872
    assert count(select_parameters(base, 0).values()) == 7_087_872 - 768  # the key bias
    assert count(select_parameters(base, "all").values()) == 12 * (7_087_872 - 768)
