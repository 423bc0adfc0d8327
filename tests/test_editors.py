"""Editors of one matrix: their algebra, their places, and that each is an edit like any other."""
import json
import math
import warnings
from dataclasses import replace
from functools import cache
from random import Random

import pandas as pd
import pytest
import torch
from tiny_families import FAMILIES, tiny_family
from tiny_models import WORLD, assert_untouched, same_weights, snapshot, tiny_albert, tiny_bert

from modmem.blocks import PARTS, named_weights, select_parameters
from modmem.constraints import PenalizedConfig, modify_constrained
from modmem.editor import Edit, ModificationConfig, modify_facts
from modmem.editors import EDITORS, SequenceConfig, describe_edit, edit_facts, edit_in_sequence
from modmem.evaluation import Score, evaluate, score_objects
from modmem.facts import MASK, Evidence, Fact
from modmem.finetuning import FinetuningConfig, finetune, keyed_generator
from modmem.keys_values import ValueConfig, _Parts, _score, find_layer, find_places, find_values, mask_words, read_keys, second_moment
from modmem.knowledge_neurons import NeuronConfig, _settle_share, attribute_neurons, find_neurons
from modmem.low_rank import LowRankConfig, modify_low_rank
from modmem.masked_lm import MaskedLM, copy_with_own, hash_weights
from modmem.memit import AlphaEditConfig, KeyConfig, MemitConfig, modify_by_keys, solve_inside, solve_ridge
from modmem.modification import sample_modifications
from modmem.runs import list_columns
from modmem.trials import select_radius

MODIFIED = sample_modifications(WORLD, 4, drawn_from="all")
TRAINING = FinetuningConfig(steps=10, batch_size=16, learning_rate=0.01, warmup=0.0, schedule="constant")
CONFIGS = {
    "LocFT": ModificationConfig(2, radius=math.inf, finetuning=TRAINING, part="ffn_out"),
    "FT-L": ModificationConfig(0, radius=0.01, finetuning=TRAINING, part="ffn_out"),
    "MEMIT": MemitConfig(2), "AlphaEdit": AlphaEditConfig(2), "LoRA": LowRankConfig(2, 2, finetuning=TRAINING), "neurons": NeuronConfig(points=2, evidences=2),
}


@cache
def learnt():
    "A tiny model that knows its world; not to be changed."
    return finetune(tiny_bert(), WORLD.train, FinetuningConfig(steps=300, batch_size=64, learning_rate=3e-3))[0]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def prior():
    factor = draw(200, 40, seed=9)
    return factor.T @ factor / 200


# parts of a block


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_is_found_by_exact_name_in_every_family(family):
    masked_lm = tiny_family(family)
    blocks = "all" if family == "albert" else 1
    chosen = {part: set(select_parameters(masked_lm, blocks, part)) for part in PARTS}
    assert len(chosen["ffn_out"]) == 1 and chosen["ffn_out"] < chosen["ffn"] and not chosen["ffn"] & chosen["attention"]
    norms = chosen["all"] - chosen["ffn"] - chosen["attention"]
    assert norms and all("norm" in name.lower() for name in norms)
    (matrix,) = named_weights(masked_lm, chosen["ffn_out"])
    assert matrix.shape == (masked_lm.model.config.hidden_size, 64)


def test_a_change_of_low_rank_rehearses_unmodified_evidence_if_asked():
    alone, rehearsed = (modify_low_rank(tiny_bert(), MODIFIED, replace(CONFIGS["LoRA"], finetuning=replace(TRAINING, unmodified_per_modified=share))) for share in (0.0, 1.0))
    assert alone.record["edited_hash"] != rehearsed.record["edited_hash"]


def test_an_edit_of_a_part_changes_nothing_else():
    edit = modify_facts(tiny_bert(), MODIFIED, CONFIGS["LocFT"])
    assert list(edit.bits) == ["bert.encoder.layer.2.output.dense.weight"] and edit.record["config"]["part"] == "ffn_out"
    with pytest.raises(ValueError, match="part must be"):
        ModificationConfig(0, radius=1.0, part="output.dense")


# the algebra


def test_without_a_penalty_the_answers_are_as_wanted(prior):
    keys, changes = draw(12, 40), draw(12, 5, seed=1)
    torch.testing.assert_close(solve_ridge(keys, changes, 1e-12 * prior) @ keys.T, changes.T, atol=1e-8, rtol=0)


def test_few_keys_and_many_have_one_solution(prior):
    keys, changes = draw(60, 40), draw(60, 5, seed=1)
    for some in (39, 40, 60):
        plain = changes[:some].T @ keys[:some] @ torch.linalg.inv(prior + keys[:some].T @ keys[:some])
        torch.testing.assert_close(solve_ridge(keys[:some], changes[:some], prior), plain)


def test_emmet_of_one_fact_is_rome(prior):
    key, change, inverse = draw(1, 40), draw(1, 5, seed=1), torch.linalg.inv(prior)
    rome = torch.outer(change[0], inverse @ key[0]) / (key[0] @ inverse @ key[0])
    torch.testing.assert_close(solve_ridge(key, change, 1e-12 * prior), rome, atol=1e-8, rtol=0)


def test_alphaedit_leaves_kept_out_keys_alone(prior):
    change = solve_inside(draw(12, 40), draw(12, 5, seed=1), prior, keep=0.5, ridge=0.1)
    old = torch.linalg.eigh(prior).eigenvectors[:, 20:]
    assert (change @ old).abs().max() < 1e-10 < change.abs().max()


def test_alphaedit_leaves_earlier_keys_alone():
    keys, changes, earlier = draw(3, 40), draw(3, 5, seed=1), draw(4, 40, seed=2)
    moment = torch.eye(40, dtype=torch.float64)
    free, held = (solve_inside(keys, changes, moment, 1.0, 1e-6, some) for some in (None, 1e4 * earlier))
    assert (held @ earlier.T).abs().max() < 1e-4 < (free @ earlier.T).abs().max()
    torch.testing.assert_close(held @ keys.T, changes.T, atol=1e-3, rtol=0)


def test_alphaedit_is_ridge_regression_on_the_directions_that_it_may_change(prior):
    keys, changes, earlier = draw(12, 40), draw(12, 5, seed=1), draw(4, 40, seed=2)
    basis = torch.linalg.eigh(prior).eigenvectors[:, :30]  # three quarters of 40, those with least
    inside = keys @ basis
    ridge = 0.1 * (inside.T @ inside).diagonal().mean() * torch.eye(30, dtype=torch.float64)
    for some, more in ((None, 0), (earlier, (earlier @ basis).T @ (earlier @ basis))):
        expected = changes.T @ inside @ torch.linalg.inv(ridge + more + inside.T @ inside) @ basis.T
        torch.testing.assert_close(solve_inside(keys, changes, prior, 0.75, 0.1, some), expected)


# keys and values


def read_all(masked_lm, evidence, block, key="mask"):
    "Sentences, keys and answers, in the order of the batches."
    numbers, keys, answers = zip(*read_keys(masked_lm, evidence, block, key))
    return sum(numbers, []), torch.cat(keys).double(), torch.cat(answers)


def test_a_second_moment_is_the_mean_over_keys_and_a_ridge():
    masked_lm = tiny_bert()
    keys = read_all(masked_lm, WORLD.train[:150], 1)[1]
    mean = keys.T @ keys / len(keys)
    torch.testing.assert_close(second_moment(masked_lm, WORLD.train[:150], 1, rho=0.2), mean + 0.2 * mean.diagonal().mean() * torch.eye(len(mean), dtype=torch.float64))


def test_values_before_the_first_step_and_after_it():
    masked_lm, evidence = learnt(), MODIFIED.modified_train[:-2]  # some facts have fewer sentences than others
    first = find_values(masked_lm, evidence, 2, config=ValueConfig(steps=1, clamp=0.01))
    losses = pd.Series([-math.log(score.probability) for score in score_objects(masked_lm, evidence)]).groupby([one.fact.id for one in evidence]).mean()
    assert first.loss == pytest.approx(losses.mean(), rel=1e-3)
    _, keys, answers = read_all(masked_lm, evidence, 2)
    torch.testing.assert_close(first.keys, keys)
    lengths = pd.Series(answers.norm(dim=1).tolist()).groupby(first.owners.tolist()).mean()  # of an owner's answers
    assert first.changes.norm(dim=1).tolist() == pytest.approx([0.01 * lengths[owner] for owner in first.owners.tolist()], rel=1e-4)
    assert first.lengths.tolist() == pytest.approx([0.01] * len(lengths), rel=1e-4)


def test_a_fact_that_is_said_well_enough_keeps_its_vector():
    masked_lm, evidence, config = learnt(), MODIFIED.modified_train, ValueConfig(steps=100, clamp=9.0, enough=1.0)
    values = find_values(masked_lm, evidence, 2, config=config)
    parts = _Parts(masked_lm, evidence, "mask")
    vectors = torch.stack([values.changes[values.owners == owner][0] for owner in range(len(parts.owners))]).float()
    losses = dict.fromkeys(parts.facts, 0.0)
    with torch.no_grad():
        for facts, batch, scores in _score(parts, 2, vectors, set(parts.facts)):
            each = torch.nn.functional.cross_entropy(scores, batch.labels, reduction="none")
            for row, loss in zip(batch.rows.tolist(), each.tolist()):
                losses[facts[row]] += loss / parts.facts.count(facts[row])
    assert max(losses.values()) < 1.0 and values.loss == pytest.approx(sum(losses.values()) / len(losses), rel=1e-3)


def test_values_are_held_back_by_their_length_and_by_what_a_plain_sentence_says():
    masked_lm = learnt()
    free, decayed, plain = (find_values(masked_lm, MODIFIED.modified_train, 2, config=ValueConfig(steps=12, clamp=9.0, enough=1e-9, **held))
                            for held in ({"weight_decay": 0.0, "kl": 0.0}, {"weight_decay": 50.0, "kl": 0.0}, {"weight_decay": 0.0, "kl": 50.0}))
    assert decayed.lengths.mean() < 0.8 * free.lengths.mean() and plain.loss > 2 * free.loss


def test_the_subjects_key_is_where_the_sentence_spells_it():
    masked_lm, fact = tiny_bert(), Fact("a", "ada", "is", "law")
    assert find_places(masked_lm, [Evidence(fact, f"bob is {MASK} .", "bob"), Evidence(fact, f"bob is {MASK} .")], "subject") == [[1], []]


@pytest.mark.parametrize("settings", [{"average": True}, {"statistics": "modified", "sentences": 20}, {"sentences": 20}, {"rho": 0.5}])
def test_memit_is_made_of_its_keys_values_and_the_moment_that_its_settings_name(settings):
    masked_lm, config = learnt(), MemitConfig(2, 3.0, KeyConfig(**settings), ValueConfig(steps=2))
    edit = modify_by_keys(masked_lm, MODIFIED, config)
    values = find_values(masked_lm, MODIFIED.modified_train, 2, config=config.values)
    keys, changes = values.keys, values.changes
    if "average" in settings:
        keys, changes = (torch.stack([some[values.owners == owner].mean(0) for owner in range(len(values.lengths))]) for some in (keys, changes))
    others = Random("moment").sample(MODIFIED.unmodified_train, 20) if "sentences" in settings else MODIFIED.unmodified_train
    others = mask_words(MODIFIED.modified_train, 20) if "statistics" in settings else others
    moment = second_moment(masked_lm, others, 2, rho=settings.get("rho", 1e-3))
    change = solve_ridge(keys, changes, 3.0 * moment)
    (before,), (after,) = (named_weights(model, edit.bits) for model in (masked_lm, edit.apply_to_copy(masked_lm)))
    torch.testing.assert_close((after - before).double(), change, rtol=1e-3, atol=1e-6)
    outcome = edit.record["outcome"]
    assert outcome["num_keys"] == len(keys) and outcome["missed"] == pytest.approx(((keys @ change.T - changes).norm() / changes.norm()).item(), rel=1e-5)
    assert outcome["condition"] == pytest.approx(torch.linalg.cond(moment).item(), rel=1e-4) and outcome["value_loss"] == values.loss


def test_alphaedit_keeps_all_earlier_edits_where_its_keys_are():
    masked_lm, earlier = learnt(), WORLD.train[:6]
    edit, free = (modify_by_keys(masked_lm, MODIFIED, AlphaEditConfig(0, 1.0, 1e-6, KeyConfig("subject", rho=1.0), ValueConfig(steps=2)), some) for some in (earlier, ()))
    moved = []
    for one in (edit, free):
        (before,), (after,) = (named_weights(model, one.bits) for model in (masked_lm, one.apply_to_copy(masked_lm)))
        keys = read_all(masked_lm, earlier, 0, "subject")[1].float()
        moved.append((keys @ (after - before).T).norm())
    assert moved[0] < 0.2 * moved[1]


def test_keys_are_what_the_layer_reads_whatever_the_batch_and_the_padding():
    masked_lm, evidence = tiny_bert(), WORLD.train[:40]
    for block in (0, 1, 2):
        together = {}
        for numbers, keys, values in read_keys(masked_lm, evidence, block):
            for number, key, value in zip(numbers, keys, values):
                together.setdefault(number, []).append((key, value))
        weight, bias = named_weights(masked_lm, [find_layer(masked_lm, block), find_layer(masked_lm, block).replace("weight", "bias")])
        for number in (0, 7, 39):
            (_, keys, values), = read_keys(masked_lm, [evidence[number]], block)
            torch.testing.assert_close(torch.stack([key for key, _ in together[number]]), keys, atol=1e-5, rtol=0)
            torch.testing.assert_close(keys @ weight.T + bias, values, atol=1e-5, rtol=0)


def test_values_do_not_depend_on_the_order_of_the_evidence():
    masked_lm, evidence = learnt(), MODIFIED.modified_train
    one, other = (find_values(masked_lm, some, 2) for some in (evidence, evidence[::-1]))
    names = [[(sentence.fact.id, number) for sentence, places in zip(some, find_places(masked_lm, some)) for number in range(len(places))] for some in (evidence, evidence[::-1])]
    lengths = [dict(zip(dict.fromkeys(order), found.lengths.tolist())) for order, found in zip(names, (one, other))]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-3) and one.loss == pytest.approx(other.loss, rel=1e-3)


def test_a_change_is_no_longer_than_the_clamp_and_a_learnt_fact_is_left_alone():
    masked_lm = learnt()
    assert (find_values(masked_lm, MODIFIED.modified_train, 2, config=ValueConfig(clamp=0.2)).lengths < 0.2001).all()
    assert not find_values(masked_lm, WORLD.train[:5], 2, config=ValueConfig(enough=1e9)).changes.any()


@pytest.mark.parametrize("config", [MemitConfig(2), AlphaEditConfig(2)])
def test_where_all_is_said_already_nothing_changes_and_nothing_is_missed(config):
    masked_lm = learnt()
    edit = modify_by_keys(masked_lm, MODIFIED, replace(config, values=ValueConfig(enough=1e9)))
    outcome = edit.record["outcome"]
    assert outcome["missed"] == 0.0 == outcome["max_change"] and edit.record["edited_hash"] == edit.record["base_hash"]
    assert json.loads(json.dumps(outcome, allow_nan=False)) == outcome


def test_an_object_of_two_pieces_is_answered_at_both_slots():
    masked_lm = learnt()
    two = next(one for one in WORLD.facts if len(masked_lm.encode([Evidence(one, MASK)])[0].slots) == 2)
    old = next(one for one in WORLD.facts if one.relation == two.relation and one.object != two.object and one.subject != two.subject)
    evidence = tuple(replace(one, fact=replace(old, object=two.object)) for one in WORLD.train if one.fact == old)
    values = find_values(masked_lm, evidence, 2)
    assert values.owners.unique().tolist() == [0, 1] and len(values.keys) == 2 * len(evidence)
    modified = replace(MODIFIED, modified_facts={old: evidence[0].fact}, modified_train=evidence, modified_test=())
    edit = modify_by_keys(masked_lm, modified, MemitConfig(2, 0.01))
    assert all(edit.apply_to_copy(masked_lm).answers(evidence)) and not any(masked_lm.answers(evidence))


def test_the_subjects_key_is_its_last_piece_and_of_no_use_in_the_last_block():
    masked_lm = tiny_bert()
    for sentence, (place,) in zip(WORLD.train[:20], find_places(masked_lm, WORLD.train[:20], "subject")):
        last = masked_lm.tokenizer(sentence.fact.subject, add_special_tokens=False)["input_ids"][-1]
        assert masked_lm.encode([sentence])[0].input_ids[place] == last
    assert find_places(masked_lm, [Evidence(Fact("a", "nobody", "is", "aldton"), "it was [MASK] .")], "subject") == [[]]
    with pytest.raises(ValueError, match="nothing reads the subject's state in the last block, 2"):
        modify_by_keys(masked_lm, MODIFIED, MemitConfig(2, keys=KeyConfig("subject")))
    edit = modify_by_keys(learnt(), MODIFIED, MemitConfig(0, keys=KeyConfig("subject")))
    assert edit.record["outcome"]["num_keys"] == len(MODIFIED.modified_train)


def test_a_vector_is_added_at_its_own_slots_also_where_a_plain_sentence_has_more():
    masked_lm = tiny_family("roberta")  # an object has other pieces at the start of a sentence than inside

    def count_slots(word):
        return [len(one.slots) for one in masked_lm.encode([Evidence(Fact("x", "ada", "r", word), text) for text in (f"{MASK} is ada .", f"ada is a {MASK} .")])]

    word, (first, inside) = next((word, slots) for word in sorted(masked_lm.tokenizer.get_vocab()) if word.isalpha() for slots in [count_slots(word)] if slots[0] < slots[1])
    x, y, z = (Fact(*names, "r", label) for names, label in ((("x", "ada"), word), (("y", "bob"), "law"), (("z", "otto otto otto otto"), "law")))
    parts = _Parts(masked_lm, [Evidence(x, f"{MASK} is ada ."), Evidence(y, f"bob is {MASK} ."), Evidence(z, f"otto is {MASK} .")], "mask")
    plain = _Parts(masked_lm, [Evidence(fact, f"{fact.subject} is a {MASK} .") for fact in (x, y, z)], "mask", parts.owners)
    vectors = torch.randn(len(parts.owners), 32, generator=torch.Generator().manual_seed(0))
    for block in (1, 2):
        [(facts, batch, scores)] = _score(plain, block, vectors, {"x", "y", "z"})
        moved = (scores - masked_lm(batch)).abs().amax(1) > 1e-4
        assert moved.tolist() == [block == 1 or facts[row] != "x" or number < first for row, number in zip(batch.rows, batch.numbers)]
        assert facts.index("x") == 1 and len(moved) == 2 + inside


def test_sentences_without_a_key_are_not_counted_in_a_facts_loss():
    masked_lm, fact = learnt(), next(iter(MODIFIED.modified_facts.values()))
    evidence = [one for one in MODIFIED.modified_train if one.fact == fact]
    others = [Evidence(fact, f"she is {word} {MASK} .") for word in ("in", "at", "of", "by", "from", "for")]
    alone, beside = (find_values(masked_lm, some, 0, "subject") for some in (evidence, [*evidence, *others]))
    assert alone.loss == pytest.approx(beside.loss, rel=1e-4) and len(alone.keys) == len(beside.keys) == len(evidence)
    torch.testing.assert_close(beside.changes, alone.changes, rtol=1e-3, atol=1e-4)


def test_a_moment_of_nothing_is_refused_and_the_ridge_makes_any_other_regular():
    masked_lm = tiny_bert()
    with pytest.raises(ValueError, match="no second moment: 0 keys"):
        second_moment(masked_lm, [], 1)
    silent = copy_with_own(masked_lm)
    with torch.no_grad():
        for weight in silent.blocks[1].intermediate.dense.parameters():
            weight.zero_()
    with pytest.raises(ValueError, match="all of them zero"):
        second_moment(silent, WORLD.train[:4], 1)
    one = second_moment(masked_lm, WORLD.train[:1], 1)
    assert torch.linalg.matrix_rank(one) == len(one)


def test_blocks_that_are_one_are_refused():
    with pytest.raises(ValueError, match="shares its weights"):
        modify_by_keys(tiny_albert(), MODIFIED, MemitConfig(1))


def test_hidden_words_are_others_than_the_object():
    sentence = WORLD.train[0]
    hidden = mask_words([sentence], 100)
    assert sorted(one.fact.object for one in hidden) == sorted(word for word in sentence.text.replace(MASK, " ").split() if word != ".")
    assert len(mask_words(WORLD.train, 7)) == 7 and mask_words(WORLD.train, 7) == mask_words(WORLD.train, 7) != mask_words(WORLD.train, 7, seed=1)
    assert mask_words([sentence, sentence], 100) == hidden


# neurons and low rank


def test_attributions_add_up_to_what_the_keys_bring():
    masked_lm, evidence = learnt(), WORLD.train[:3]
    found = attribute_neurons(masked_lm, evidence, 2, points=200)
    silent = copy_with_own(masked_lm)
    with torch.no_grad():
        silent.blocks[2].output.dense.weight.zero_()
        shares = []
        for model in (masked_lm, silent):
            batch = model.batch(model.encode(evidence))
            shares.append(model(batch).softmax(-1)[torch.arange(len(batch.labels)), batch.labels])
    order = [slot for one in masked_lm.encode(evidence) for slot in one.labels]
    brought = dict(zip(batch.labels.tolist(), (shares[0] - shares[1]).tolist()))
    assert found.sum(1).tolist() == pytest.approx([brought[label] for label in order], abs=0.04)


def test_a_neuron_that_many_facts_share_is_none_of_theirs():
    found = find_neurons(learnt(), WORLD.train[:200], NeuronConfig(points=2, evidences=2))
    relations = {fact.id: fact.relation for fact in WORLD.facts}
    table = pd.DataFrame([(relations[fact], neuron, fact) for (fact, _), neurons in found.items() for neuron in neurons], columns=["relation", "neuron", "fact"])
    facts = pd.Series([relations[fact] for fact, _ in found]).value_counts()
    counts = table.groupby(["relation", "neuron"]).size()
    assert all(count <= max(1, 0.1 * facts[relation]) for (relation, _), count in counts.items())


def test_a_column_takes_the_new_objects_direction_for_the_old_ones_at_its_own_length(monkeypatch):
    masked_lm, (old, new) = tiny_bert(), next((old, new) for old, new in MODIFIED.modified_facts.items() if " " not in old.object + new.object)
    monkeypatch.setattr("modmem.knowledge_neurons.find_neurons", lambda masked_lm, evidence, config: {(one.fact.id, 0): [(1, 7)] for one in evidence if one.fact.object == old.object})
    modified = replace(MODIFIED, modified_facts={old: new}, modified_train=tuple(one for one in MODIFIED.modified_train if one.fact == new))
    edit = edit_facts(masked_lm, modified, NeuronConfig(add=3.0, remove=0.5))
    words = torch.nn.functional.normalize(masked_lm.model.get_output_embeddings().weight.detach(), dim=1)
    (piece,), (old_piece,) = (masked_lm.tokenizer(fact.object, add_special_tokens=False)["input_ids"] for fact in (new, old))
    for block, (before, after) in enumerate(zip(*(named_weights(model, edit.bits) for model in (masked_lm, edit.apply_to_copy(masked_lm))))):
        expected = before.detach().clone()
        if block == 1:
            expected[:, 7] += before[:, 7].norm() * (3.0 * words[piece] - 0.5 * words[old_piece])
        torch.testing.assert_close(after, expected)
    assert edit.record["outcome"]["neurons"] == 1


def test_settings_say_how_many_sentences_are_asked_and_how_finely(monkeypatch):
    asked = []

    def attribute(masked_lm, evidence, block, points):
        asked.append((len(evidence), points))
        return torch.eye(4).repeat(len(evidence), 1)[: sum(map(len, find_places(masked_lm, evidence)))]

    monkeypatch.setattr("modmem.knowledge_neurons.attribute_neurons", attribute)
    find_neurons(tiny_bert(), MODIFIED.modified_train, NeuronConfig(points=3, evidences=2))
    assert asked == [(2 * len(MODIFIED.modified_facts), 3)] * 3


def test_a_neuron_is_strong_by_the_largest_attribution_at_its_own_slot(monkeypatch):
    attributions = torch.tensor([[1.0, 0.3, 0.1, 0.0], [0.0, 0.001, 0.0, 0.01], [9.0, 0.0, 0.0, 2.0]])
    monkeypatch.setattr("modmem.knowledge_neurons.attribute_neurons", lambda masked_lm, evidence, block, points: attributions[:, 2 * block : 2 * block + 2])
    facts = [Fact(name, "ada", name, "law") for name in "abc"]  # of three relations
    masked_lm = tiny_bert(2)
    found = find_neurons(masked_lm, [Evidence(fact, f"ada is {MASK} .") for fact in facts], NeuronConfig(share=0.2))
    assert found == {("a", 0): [(0, 0), (0, 1)], ("b", 0): [(1, 1)], ("c", 0): [(0, 0), (1, 1)]}


def test_the_share_of_sentences_is_settled_at_two_to_five_neurons_a_fact():
    kept = torch.zeros(1, 40)
    kept[0, :3] = torch.tensor([0.3, 0.25, 0.05])
    assert _settle_share(kept)[0].nonzero().flatten().tolist() == [0, 1]  # fewer sentences than usual will do
    kept[0] = torch.linspace(0.7, 1.0, 40)
    assert _settle_share(kept)[0].nonzero().flatten().tolist() == [39]  # 7 are kept by 95 % of them


@pytest.mark.parametrize("family", ["electra", "deberta-v3"])
def test_words_of_another_size_than_the_states_or_in_no_layer_have_no_neurons(family):
    with pytest.raises(ValueError, match="neurons speak in states of 32: expected output embeddings of shape"):
        edit_facts(tiny_family(family), MODIFIED, CONFIGS["neurons"])


def test_the_rank_of_a_low_rank_edit_is_at_most_that():
    masked_lm = tiny_bert()
    edit = modify_low_rank(masked_lm, MODIFIED, CONFIGS["LoRA"])
    assert {name.removeprefix("bert.encoder.layer.2.") for name in edit.bits} == {"intermediate.dense.weight", "output.dense.weight"}
    assert describe_edit(masked_lm, edit.apply_to_copy(masked_lm), list(edit.bits), MODIFIED)["change_rank"] == 2


def test_a_low_rank_change_is_a_scaled_product_of_which_one_factor_is_drawn_and_the_other_starts_at_zero():
    masked_lm = tiny_bert()
    edit = modify_low_rank(masked_lm, MODIFIED, LowRankConfig(2, 2, 5.0, "ffn_out", replace(TRAINING, steps=1, seed=3)))
    (before,), (after,) = (named_weights(model, edit.bits) for model in (masked_lm, edit.apply_to_copy(masked_lm)))
    down = torch.randn(2, 64, generator=keyed_generator(3, 2)) / 8
    up = (after - before) / 5 @ torch.linalg.pinv(down)
    torch.testing.assert_close(up.abs(), torch.full((32, 2), 0.01), rtol=0.02, atol=0)  # a first step of Adam
    torch.testing.assert_close(5 * up @ down, after - before, rtol=0, atol=1e-5)


# an edit like any other


@pytest.mark.parametrize("name", CONFIGS)
def test_every_edit_is_undone_to_the_bit_saved_and_repeated(name, tmp_path):
    masked_lm, before = tiny_bert(), tiny_bert()
    state = snapshot(masked_lm)
    edit = edit_facts(masked_lm, MODIFIED, CONFIGS[name])
    assert_untouched(masked_lm, state)
    assert edit.record["method"] == EDITORS[type(CONFIGS[name])][0]
    edit.save(tmp_path / "edit.safetensors")
    Edit.load(tmp_path / "edit.safetensors").apply(masked_lm)
    assert not same_weights(masked_lm, before)
    again = edit_facts(before, MODIFIED, CONFIGS[name])
    assert again.record["edited_hash"] == edit.record["edited_hash"]
    edit.undo(masked_lm)
    assert same_weights(masked_lm, before)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("albert",)])
def test_keys_are_edited_in_every_family_with_blocks_of_its_own(family):
    masked_lm = tiny_family(family)
    edit = modify_by_keys(masked_lm, MODIFIED, MemitConfig(2, 0.1, KeyConfig(sentences=100), ValueConfig(clamp=4.0)))
    edited = edit.apply_to_copy(masked_lm)
    right = sum(edited.answers(MODIFIED.modified_train))
    assert right >= len(MODIFIED.modified_train) / 2 > sum(masked_lm.answers(MODIFIED.modified_train))


def test_memit_changes_the_facts_and_not_the_others_and_less_with_more_old_weight():
    masked_lm = learnt()
    asked = replace(MODIFIED, modified_test=MODIFIED.modified_train, unmodified_test=MODIFIED.unmodified_train)  # a tiny model knows no other phrasing
    results = [evaluate(modify_by_keys(masked_lm, MODIFIED, MemitConfig(2, weight)).apply_to_copy(masked_lm), asked) for weight in (1.0, 1e6)]
    assert results[0].modified >= 75 > results[1].modified and results[1].unmodified > results[0].unmodified > 60


def test_in_sequence_each_edit_is_on_top_of_those_before_and_a_ball_stays():
    masked_lm = tiny_bert()
    for name in ("FT-L", "MEMIT", "AlphaEdit"):
        edit = edit_in_sequence(masked_lm, MODIFIED, SequenceConfig(CONFIGS[name], 2))
        assert edit.record["outcome"]["edits"] == 2 and edit.record["method"].endswith("in sequence")
        copy = copy_with_own(masked_lm)
        edit.apply(copy)
        edit.undo(copy)
        assert same_weights(copy, masked_lm)
        if name == "FT-L":
            assert edit.record["outcome"]["max_change"] <= 0.01 * (1 + 1e-5)
    whole = edit_in_sequence(masked_lm, MODIFIED, SequenceConfig(CONFIGS["MEMIT"], 4))
    assert whole.record["edited_hash"] == edit_facts(masked_lm, MODIFIED, CONFIGS["MEMIT"]).record["edited_hash"]


@pytest.mark.parametrize("norm", ["linf", "l2", "linf_relative"])
def test_a_sequence_says_how_much_of_its_change_the_ball_held_back(norm):
    masked_lm = tiny_bert()
    narrow = ModificationConfig(2, norm, 1e-2 if norm == "l2" else 1e-5, replace(TRAINING, steps=3), part="ffn_out")
    configs = [narrow, replace(narrow, radius=1e3)] + [PenalizedConfig(narrow, "ewc", 1.0)] * (norm == "l2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a ball that constrains nothing
        shares = [edit_in_sequence(masked_lm, MODIFIED, SequenceConfig(config, 2)).record["outcome"]["share_on_face"] for config in configs]
        assert shares[0] == pytest.approx(modify_constrained(masked_lm, MODIFIED, narrow).record["outcome"]["share_on_face"], abs=0.2)
    assert shares[0] > 0.5 and shares[1] == 0 and shares[2:] == shares[:1] * (norm == "l2")


def test_what_became_of_the_old_object():
    masked_lm, asked = learnt(), replace(MODIFIED, modified_test=MODIFIED.modified_train)
    same = describe_edit(masked_lm, masked_lm, ["bert.encoder.layer.2.output.dense.weight"], asked)
    assert same["old_rank"] == same["old_rank_before"] and same["relative_change"] == 0 and same["change_rank"] == 0
    edit = modify_by_keys(masked_lm, MODIFIED, MemitConfig(2, 1.0))
    told = describe_edit(masked_lm, edit.apply_to_copy(masked_lm), list(edit.bits), asked)
    assert told["old_rank"] > told["old_rank_before"] == 1 and 0 <= told["undone_by_half"] <= 100
    assert 0 < told["change_rank"] <= edit.record["outcome"]["num_keys"]


def test_what_became_of_the_old_object_counted_by_hand(monkeypatch):
    before, after, ranks = tiny_bert(), tiny_bert(), iter([[1, 2, 9, 1], [3, 5, 90, 4]])
    names = ["bert.encoder.layer.2.output.dense.weight", "bert.encoder.layer.2.output.dense.bias"]
    with torch.no_grad():
        for weight in named_weights(after, names):
            weight.add_(0.5)
    right = iter([[True, True, False, False], [True, False, True, False]])  # of the edited model, and half-way
    monkeypatch.setattr("modmem.editors.score_objects", lambda model, evidence: [Score("", 0.0, rank) for rank in next(ranks)])
    monkeypatch.setattr(MaskedLM, "answers", lambda self, evidence: next(right))
    size = torch.cat([weight.flatten() for weight in named_weights(before, names)]).norm().item()
    told = describe_edit(before, after, names, MODIFIED)
    assert told.pop("relative_change") == pytest.approx(0.5 * (32 * 64 + 32) ** 0.5 / size, rel=1e-5)
    assert told == {"old_rank_before": 1.5, "old_rank": 4.5, "undone_by_half": 50.0, "change_rank": 1}


def test_each_edit_of_a_sequence_knows_all_those_before_and_the_last_may_be_smaller(monkeypatch):
    known = []
    monkeypatch.setattr("modmem.editors.modify_by_keys", lambda model, modified, config, earlier: known.append((len(modified.modified_facts), len(earlier))) or modify_facts(model, modified, CONFIGS["FT-L"]))
    for at_once in (1, 3):
        edit = edit_in_sequence(tiny_bert(), MODIFIED, SequenceConfig(AlphaEditConfig(2), at_once))
        assert edit.record["outcome"]["edits"] == math.ceil(4 / at_once)
    assert known == [(1, 0), (1, 5), (1, 10), (1, 15), (3, 0), (1, 15)]


@pytest.mark.parametrize("config", [CONFIGS["FT-L"], PenalizedConfig(CONFIGS["FT-L"], "kl", 1.0)])
def test_an_edit_on_top_of_others_stays_around_the_first_model(config):
    masked_lm, first = tiny_bert(), tiny_bert(seed=1)
    assert edit_facts(masked_lm, MODIFIED, config, anchor=first).record["anchor_hash"] == hash_weights(first)


def test_any_dial_is_chosen_by_the_rule_of_the_radius():
    rows = pd.DataFrame({"facts": ["reported"] * 3, "old_weight": [1.0, 10.0, 100.0], "modified_accuracy": [90.0, 90.0, 20.0], "unmodified_accuracy": [20.0, 30.0, 40.0], "radius": math.nan})
    best = select_radius(rows, ["facts"], strength="old_weight")
    assert best["old_weight"].tolist() == [10.0] and not best["edge"].any()


def test_no_setting_takes_the_place_of_what_a_row_is_told_by():
    assert not {"key", "status", "error", "warning", "seconds", "method_version"} & set(list_columns())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MemitConfig(0, 0.0), "old_weight must be"), (lambda: AlphaEditConfig(0, keep=0.0), "keep must be"),
        (lambda: KeyConfig("slot"), "key must be"), (lambda: KeyConfig(statistics="text"), "statistics must be"),
        (lambda: LowRankConfig(0, 0), "rank must be"), (lambda: SequenceConfig(MemitConfig(0), 0), "facts_at_once must be"),
        (lambda: modify_by_keys(tiny_bert(), MODIFIED, MemitConfig([0, 1])), "expected its index"), (lambda: ValueConfig(clamp=0), "clamp must be"),
        *((lambda name=name: edit_facts(tiny_bert(), replace(MODIFIED, modified_train=()), CONFIGS[name]), message) for name, message in
          (("neurons", "there are no sentences"), ("MEMIT", "no key found in 0 sentences"), ("LoRA", "there are no sentences"), ("FT-L", "there are no sentences"))),
        (lambda: edit_facts(tiny_bert(), MODIFIED, TRAINING), "the settings must be one of"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
