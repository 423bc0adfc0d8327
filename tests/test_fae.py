"""FaE: the model, its inputs, and what a change of a symbol does and does not reach."""
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import WORLD, assert_untouched, same_bits, snapshot, tiny_albert, tiny_bert

from modmem.fact_memory import SymbolicEdit, build_memory, encode_facts, make_fact_batch, name_entities, relink_facts
from modmem.fae import FactMemory, FactsAsExperts, FaeConfig, FaeNames, _attend, _summarize_tails, copy_fae, partition_parameters, select_group
from modmem.fae_training import FaeRecipe, answer_questions, fae_loss, load_fae, make_fae, null_bias_for, save_fae
from modmem.facts import Benchmark, Evidence, Fact
from modmem.files import DataError
from modmem.finetuning import FinetuningConfig
from modmem.modification import sample_modifications

SHAPE = FaeConfig(first_blocks=1, entity_size=16, relation_size=8, key_size=12)
SYMBOLS = ("keys", "tails", "replaced")


def tiny_fae(benchmark=WORLD, family=tiny_bert, memory=None, **changes):
    "A FaE with random weights whose memory holds all of a benchmark."
    names = name_entities(benchmark)
    return FactsAsExperts(family(), names, memory or build_memory(benchmark, names), replace(SHAPE, **changes))


def spread(fae, scale=4.0):
    "Make keys and queries larger, so that questions retrieve different facts, and lambda is neither 0 nor 1."
    with torch.no_grad():
        for weight in (fae.model.fact_query.weight, fae.model.fact_key.weight, fae.model.entities, fae.model.relations):
            weight.mul_(scale)
    return fae


@torch.no_grad()
def read(fae, evidence, **options):
    return fae(make_fact_batch(fae, encode_facts(fae, evidence)), **options)


def same_memory(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in SYMBOLS)


def test_scores_have_their_shapes_and_probabilities_sum_to_one():
    fae, questions = tiny_fae(), WORLD.test[:5]
    output = read(fae, questions)
    num_entities, num_facts = len(fae.names.entities), len(fae.memory.keys)
    assert output.entity_scores.shape == output.context_scores.shape == output.answer_scores.shape == (5, num_entities)
    assert output.fact_scores.shape == (5, 1 + num_facts) and output.context.shape == output.fact.shape == (5, 16)
    torch.testing.assert_close(output.fact_scores.softmax(-1).sum(-1), torch.ones(5))
    torch.testing.assert_close(output.null_probability, output.fact_scores.softmax(-1)[:, 0])


@pytest.mark.parametrize("family", [tiny_bert, tiny_albert])
def test_padding_changes_nothing(family):
    fae = tiny_fae(family=family)
    questions = sorted(WORLD.test[:16], key=lambda question: len(question.text))
    together = read(fae, questions)
    assert make_fact_batch(fae, encode_facts(fae, questions)).attention_mask is not None
    for row in (0, 15):
        alone = read(fae, questions[row : row + 1])
        for name in ("answer_scores", "entity_scores", "context_scores"):
            torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[row], rtol=1e-5, atol=1e-5)


def test_without_the_entity_memory_the_encoder_is_bert():
    bert = tiny_bert()
    fae = FactsAsExperts(bert, name_entities(WORLD), build_memory(WORLD, name_entities(WORLD)), replace(SHAPE, normalize="none"))
    with torch.no_grad():
        fae.model.entity_to_hidden.weight.zero_()
        fae.model.context_query.weight.copy_(torch.eye(16, 64))  # c: sixteen numbers of the slot's state
        encoded = encode_facts(fae, WORLD.test[:8])
        batch = make_fact_batch(fae, encoded)
        states = bert.run_blocks(bert.embed(batch), batch)[torch.arange(8), batch.slots[:, 0], :16]
        assert same_bits(fae(batch).context, states)


def test_where_the_memory_writes():
    fae = tiny_fae(normalize="none")
    batch = make_fact_batch(fae, encode_facts(fae, WORLD.test[:1]))
    entered = []
    hook = fae.encoder.blocks[1].register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    with torch.no_grad():
        fae(batch)
        fae.model.entity_to_hidden.weight.mul_(2)
        fae(batch)
    hook.remove()
    changed = (entered[0] != entered[1]).any(-1)[0].nonzero().flatten().tolist()
    assert changed == sorted([batch.mentions[0, 0].item(), batch.slots[0, 0].item()])
    assert batch.mentions[0, 1] > batch.mentions[0, 0]


def test_a_query_like_one_entity_gets_that_entity_and_all_of_k_is_the_softmax():
    table = torch.eye(8)
    torch.testing.assert_close(_attend(30 * table[3:4], table, None)[1], table[3:4], rtol=0, atol=1e-4)
    query, table = torch.randn(4, 6), torch.randn(9, 6)
    whole = (query @ table.T).softmax(-1) @ table
    torch.testing.assert_close(_attend(query, table, 9)[1], whole)
    torch.testing.assert_close(_attend(query, table, None)[1], whole)
    assert not torch.allclose(_attend(query, table, 2)[1], whole)
    torch.testing.assert_close(_attend(query, table, 1)[1], table[(query @ table.T).argmax(-1)])


def test_the_top_entities_are_an_option_of_asking():
    fae = tiny_fae()
    whole = read(fae, WORLD.test[:4])
    assert same_bits(read(fae, WORLD.test[:4], top_entities=len(fae.names.entities)).answer_scores, whole.answer_scores)
    assert not torch.equal(read(fae, WORLD.test[:4], top_entities=1).answer_scores, whole.answer_scores)


def decided(null_bias):
    "A FaE whose lambda is 0 or 1, with entity vectors of length 1, and 40 relinked facts."
    fae = spread(tiny_fae(null_bias=null_bias))
    with torch.no_grad():
        fae.model.entities.copy_(torch.nn.functional.normalize(fae.model.entities, dim=-1))
    modified = sample_modifications(WORLD, 40, seed=1)
    return fae, relink_facts(fae, modified.modified_facts), modified


def test_without_context_a_retrieved_new_object_is_the_answer():
    fae, edit, modified = decided(-1e9)
    edit.apply(fae)
    output = read(fae, modified.modified_test)
    assert not output.null_probability.any()
    tails = fae.memory.tails[output.retrieved[:, 0], 0]
    assert torch.equal(output.answer_scores.argmax(-1), tails)
    every = read(fae, WORLD.test)
    hit = torch.isin(every.retrieved[:, 0], edit.links["place"])
    assert hit.any()
    place = every.retrieved[hit, 0]
    new = {p: n for p, n in zip(edit.links["place"].tolist(), edit.links["new"].tolist())}
    assert every.answer_scores[hit].argmax(-1).tolist() == [new[p] for p in place.tolist()]


def test_with_context_only_relinking_changes_no_bit():
    fae, edit, modified = decided(1e9)
    before = read(fae, WORLD.test)
    edit.apply(fae)
    assert before.null_probability.eq(1).all()
    assert same_bits(read(fae, WORLD.test).answer_scores, before.answer_scores)


@pytest.mark.parametrize("top_facts", [1, 3])
def test_only_queries_that_retrieve_a_relinked_key_change(top_facts):
    fae = spread(tiny_fae(top_facts=top_facts))
    edit = relink_facts(fae, sample_modifications(WORLD, 40, seed=1).modified_facts)
    before = read(fae, WORLD.test)
    edit.apply(fae)
    after = read(fae, WORLD.test)
    hit = torch.isin(before.retrieved, edit.links["place"]).any(-1)
    assert hit.any() and not hit.all()
    assert same_bits(after.answer_scores[~hit], before.answer_scores[~hit])
    changed = (after.answer_scores[hit] != before.answer_scores[hit]).any(-1)
    assert changed.float().mean() > 0.9  # the third fact may have no weight
    for name in ("fact_scores", "entity_scores", "context_scores", "context"):
        assert same_bits(getattr(after, name), getattr(before, name))


@pytest.mark.parametrize("coverage", [1.0, 0.5])
def test_undo_restores_memory_and_scores_to_the_bit_also_from_a_file(tmp_path, coverage):
    memory = build_memory(WORLD, name_entities(WORLD), coverage)
    fae = spread(tiny_fae(memory=memory))
    before, weights = read(fae, WORLD.test[:24]), snapshot(fae)
    edit = relink_facts(fae, sample_modifications(WORLD, 12, seed=2).modified_facts, absent="insert")
    assert edit.record["relinked"] + edit.record["inserted"] == 12 and (edit.record["inserted"] > 0) == (coverage < 1)
    edit.save(tmp_path / "symbols.safetensors")
    edit.apply(fae)
    assert len(fae.memory.keys) == len(memory.keys) + edit.record["inserted"]
    with pytest.raises(ValueError, match="applied to the memory"):
        edit.apply(fae)
    SymbolicEdit.load(tmp_path / "symbols.safetensors").undo(fae)
    assert same_memory(fae.memory, memory)
    assert same_bits(read(fae, WORLD.test[:24]).answer_scores, before.answer_scores)
    assert_untouched(fae, weights)
    with pytest.raises(ValueError, match="undone on the memory"):
        edit.undo(fae)


def test_edits_stack_and_are_undone_in_reverse():
    fae = tiny_fae()
    old, new = next(iter(sample_modifications(WORLD, 1, seed=3).modified_facts.items()))
    first = relink_facts(fae, {old: new})
    first.apply(fae)
    third = replace(old, object=next(one.object for one in WORLD.facts if one.relation == old.relation and one.object not in (old.object, new.object)))
    second = relink_facts(fae, {new: third})
    second.apply(fae)
    assert fae.memory.replaced[first.links["place"]] == first.links["old"]  # what the context knows
    second.undo(fae)
    first.undo(fae)
    assert same_memory(fae.memory, build_memory(WORLD, fae.names))


def test_an_object_that_is_edited_back_is_replaced_by_none():
    fae = tiny_fae()
    facts = sample_modifications(WORLD, 3, seed=3).modified_facts
    first = relink_facts(fae, facts)
    first.apply(fae)
    edited = fae.memory
    back = relink_facts(fae, {new: old for old, new in facts.items()})
    back.apply(fae)
    assert same_memory(fae.memory, build_memory(WORLD, fae.names)) and fae.memory.replaced.eq(-1).all()
    back.undo(fae)
    assert same_memory(fae.memory, edited)
    first.undo(fae)
    assert same_memory(fae.memory, build_memory(WORLD, fae.names))


def test_absent_keys_are_refused_skipped_or_inserted():
    fae = tiny_fae(memory=build_memory(WORLD, name_entities(WORLD), 0.5))
    facts = sample_modifications(WORLD, 12, seed=2).modified_facts
    with pytest.raises(ValueError, match="no key"):
        relink_facts(fae, facts)
    skipped, inserted = (relink_facts(fae, facts, absent).record for absent in ("skip", "insert"))
    assert skipped["skipped"] == inserted["inserted"] > 0 == skipped["inserted"] == inserted["skipped"]
    assert skipped["relinked"] == inserted["relinked"]
    with pytest.raises(ValueError, match="absent"):
        relink_facts(fae, facts, "ignore")


def test_what_the_tables_do_not_know_is_refused():
    fae, fact = tiny_fae(), WORLD.facts[0]
    for change in ({"object": "atlantis"}, {"relation": "spouse"}, {"subject": "nobody"}):
        with pytest.raises(ValueError, match="this FaE has no"):
            relink_facts(fae, {fact: replace(fact, **change)})
    other = next(known.object for known in WORLD.facts if known.relation == fact.relation and known.object != fact.object)
    with pytest.raises(ValueError, match="does not say"):
        relink_facts(fae, {replace(fact, object=other): replace(fact, object=other)})


def test_a_saved_edit_says_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "symbols.safetensors"
    with pytest.raises(DataError, match="no such file"):
        SymbolicEdit.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="safetensors"):
        SymbolicEdit.load(path)


def gradients(fae, losses, hidden=False):
    "Names of the parameters that these losses reach."
    fae_loss(fae, make_fact_batch(fae, encode_facts(fae, WORLD.train[:8]), [hidden] * 8), losses).backward()
    reached = {name for name, weight in fae.model.named_parameters() if weight.grad is not None and weight.grad.any()}
    fae.model.zero_grad()
    return reached


def test_which_loss_trains_what():
    fae = tiny_fae()
    parts = partition_parameters(fae)
    second = set(parts["stage2.0"] + parts["stage2.1"]) - {name for name in parts["stage2.0"] + parts["stage2.1"] if name.endswith("key.bias")}
    assert not gradients(fae, ["entity"]) & second
    assert second <= gradients(fae, ["context"]) and second <= gradients(fae, ["fact"])
    answer, fact = gradients(fae, ["answer"]), gradients(fae, ["fact"])
    assert "tail_query.weight" not in answer | fact  # sets of one
    assert {"fact_query.weight", "fact_key.weight", "relations", "null_key"} <= answer & fact
    lambda_is_one = spread(tiny_fae(null_bias=1e9))
    assert not {"fact_query.weight", "fact_key.weight", "relations"} & gradients(lambda_is_one, ["answer"])
    pairs = replace_tails(fae, 2)
    assert "tail_query.weight" in gradients(pairs, ["answer"])


def test_an_unknown_old_object_is_no_empty_place():
    facts = WORLD.facts[:8]
    more = replace(facts[0], id="more", object=next(one.object for one in WORLD.facts if one.relation == facts[0].relation and one.object != facts[0].object))
    some = Benchmark((*facts, more), (), ())
    fae = tiny_fae(memory=build_memory(some, name_entities(WORLD)))
    assert fae.memory.tails.shape[1] == 2 and fae.memory.tails.min() == -1  # one fact has two objects, the others an empty place
    old = facts[1]
    new = replace(old, object=next(one.object for one in WORLD.facts if one.relation == old.relation and one.object != old.object))
    with pytest.raises(ValueError, match="does not say 'atlantis'"):
        relink_facts(fae, {replace(old, object="atlantis"): new})
    assert relink_facts(fae, {old: new}).links["column"].tolist() == [0]


def replace_tails(fae, size):
    "The same FaE with another entity in every set of objects."
    twin = copy_fae(fae)
    tails = torch.cat([fae.memory.tails, *[(fae.memory.tails + shift) % len(fae.names.entities) for shift in range(1, size)]], dim=1)
    twin.memory = FactMemory(fae.memory.keys, tails, fae.memory.replaced)
    return twin


def test_groups_are_disjoint_and_cover_all_parameters():
    fae = tiny_fae()
    parts = partition_parameters(fae)
    names = [name for group in parts.values() for name in group]
    assert len(names) == len(set(names)) and set(names) == set(dict(fae.model.named_parameters()))
    assert list(parts) == ["embeddings", "stage1.0", "stage2.0", "stage2.1", "AWT", "tables", "head"] and all(parts.values())
    awt = set(select_group(fae, "AWT"))
    assert awt == set(parts["AWT"]) and set(select_group(fae, "AWT", tables=True)) == awt | set(parts["tables"])
    middle, last, every = (set(select_group(fae, group)) - awt for group in ("middle+AWT", "last+AWT", "all"))
    assert middle <= set(parts["stage2.0"]) and last <= set(parts["stage2.1"]) and middle | last < every
    assert not every & set(parts["embeddings"] + parts["head"] + parts["tables"]) and not select_group(fae, "none")
    with pytest.raises(ValueError, match="group must be"):
        select_group(fae, "awt")


def test_the_papers_blocks_are_middle_and_last():
    fae = FactsAsExperts(tiny_bert(num_blocks=12), name_entities(WORLD), build_memory(WORLD, name_entities(WORLD)), replace(SHAPE, first_blocks=4))
    parts = partition_parameters(fae)
    for group, stage in (("middle+AWT", "stage2.3"), ("last+AWT", "stage2.7")):
        assert set(select_group(fae, group)) <= set(parts["AWT"] + parts[stage])
    with pytest.raises(ValueError, match="first_blocks"):
        tiny_fae(first_blocks=3)


def test_the_order_of_the_facts_is_of_no_consequence():
    fae = spread(tiny_fae())
    order = torch.randperm(len(fae.memory.keys))
    other = copy_fae(fae, [])
    other.memory = FactMemory(*(getattr(fae.memory, name)[order] for name in SYMBOLS))
    first, second = read(fae, WORLD.test[:9]), read(other, WORLD.test[:9])
    torch.testing.assert_close(second.fact_scores[:, 1:], first.fact_scores[:, 1:][:, order])
    torch.testing.assert_close(second.answer_scores, first.answer_scores)


def test_a_set_of_objects_is_its_mean_where_the_query_does_not_tell_them_apart():
    entities = torch.randn(5, 4)
    value = _summarize_tails(torch.zeros(1, 4), torch.tensor([[[0, 3, -1], [2, -1, -1]]]), entities)
    torch.testing.assert_close(value[0], torch.stack([(entities[0] + entities[3]) / 2, entities[2]]))
    pointed = _summarize_tails(100 * entities[3:4], torch.tensor([[[0, 3, -1]]]), entities)
    torch.testing.assert_close(pointed[0, 0], entities[3], rtol=1e-3, atol=1e-3)


def test_of_several_facts_the_objects_are_mixed_by_their_scores():
    fae = spread(tiny_fae(top_facts=3), 2.0)
    output = read(fae, WORLD.test[:6])
    best = output.fact_scores[:, 1:].topk(3)
    assert torch.equal(output.retrieved, best.indices) and best.values.softmax(-1).max() < 0.99
    objects = fae.model.entities[fae.memory.tails[best.indices, 0]]
    torch.testing.assert_close(output.fact, (best.values.softmax(-1)[..., None] * objects).sum(1))


def test_tables_start_as_wide_as_asked_and_the_rest_as_the_encoder_does():
    fae = tiny_fae(table_std=0.7)
    for name, weight in fae.model.named_parameters():
        if name.endswith("_query.weight") or name in ("entities", "relations", "fact_key.weight"):
            expected = 0.7 if name in ("entities", "relations") else fae.encoder.model.config.initializer_range
            assert weight.std().item() == pytest.approx(expected, rel=0.25), name


def test_the_seed_of_a_recipe_decides_what_is_stored_and_where_weights_start():
    one, again, other = (make_fae(tiny_bert(), WORLD, FaeRecipe(SHAPE, 0.5, finetuning=FinetuningConfig(steps=1, seed=seed))) for seed in (3, 3, 4))
    assert same_memory(one.memory, again.memory) and same_bits(one.model.entities, again.model.entities)
    assert one.memory.keys.tolist() != other.memory.keys.tolist() and not same_bits(one.model.fact_query.weight, other.model.fact_query.weight)


def test_answers_use_the_best_entities_only_where_the_settings_say_so_and_the_norms_have_their_weights():
    fae = spread(tiny_fae(top_entities=1))
    answers, output = answer_questions(fae, WORLD.test[:4]), read(fae, WORLD.test[:4], top_entities=1)
    assert not torch.allclose(read(fae, WORLD.test[:4]).context, output.context, rtol=1e-3)
    for name, value in (("null_probability", output.null_probability), ("context_norm", output.context.norm(dim=-1)), ("fact_norm", output.fact.norm(dim=-1))):
        assert answers[name].tolist() == pytest.approx(value.tolist(), rel=1e-4)
    ratio = answers["null_probability"] * answers["context_norm"] / ((1 - answers["null_probability"]) * answers["fact_norm"])
    assert answers["norm_ratio"].tolist() == pytest.approx(ratio.tolist(), rel=1e-3)


def test_lambda_starts_where_it_should():
    calm = tiny_fae()
    count = len(calm.memory.keys)
    with torch.no_grad():
        calm.model.fact_query.weight.mul_(0.05)
    weight = read(calm, WORLD.test[:32]).null_probability
    torch.testing.assert_close(weight, torch.full((32,), 1 / (count + 1)), rtol=0.2, atol=0)
    calm.config = replace(calm.config, null_bias=null_bias_for(count, 0.5))
    torch.testing.assert_close(read(calm, WORLD.test[:32]).null_probability, torch.full((32,), 0.5), rtol=0.2, atol=0)


def test_a_hidden_fact_is_not_retrieved_and_null_is_right():
    fae = spread(tiny_fae(top_facts=3))
    encoded = encode_facts(fae, WORLD.train[:6])
    hidden = [True, False] * 3
    batch = make_fact_batch(fae, encoded, hidden)
    with torch.no_grad():
        output = fae(batch)
    for row, (sentence, gone) in enumerate(zip(encoded, hidden)):
        assert batch.facts[row] == (0 if gone else sentence.fact)
        assert torch.isinf(output.fact_scores[row]).sum() == gone and torch.isinf(output.fact_scores[row, sentence.fact]) == gone
        assert not gone or sentence.fact - 1 not in output.retrieved[row]


def test_conflict_rules_touch_only_questions_about_relinked_facts():
    fae = spread(tiny_fae(null_bias=1e9))
    edit = relink_facts(fae, sample_modifications(WORLD, 40, seed=1).modified_facts)
    edit.apply(fae)
    plain = read(fae, WORLD.test)
    hit = torch.isin(plain.retrieved[:, 0], edit.links["place"])
    for changes in ({"context_scale": 0.0}, {"project_replaced": True}):
        other = copy_fae(fae, [])
        other.config = replace(fae.config, **changes)
        ruled = read(other, WORLD.test)
        assert same_bits(ruled.answer_scores[~hit], plain.answer_scores[~hit])
        assert (ruled.answer_scores[hit] != plain.answer_scores[hit]).any(-1).all()
    old = fae.model.entities[fae.memory.replaced[plain.retrieved[hit, 0]]]
    torch.testing.assert_close((ruled.context[hit] * old).sum(-1), torch.zeros(int(hit.sum())), rtol=0, atol=1e-3)


NAME = WORLD.facts[0].subject


def sentence(text, surface, subject=NAME, answer="chess"):
    return Evidence(Fact("f", subject, "sport", answer), text, surface)


def test_the_subject_is_found_by_its_characters_on_either_side_of_the_slot():
    world = Benchmark((sentence("[MASK]", None).fact,), (), ())
    fae = tiny_fae(world)
    tokenizer = fae.encoder.tokenizer
    texts = [(f"{NAME} is fond of [MASK] .", None), (f"[MASK] keeps {NAME} fit .", NAME), ("zoe trains for [MASK] .", "zoe")]
    encoded = encode_facts(fae, [sentence(text, surface) for text, surface in texts])
    said = [tokenizer.decode(encoding.evidence.input_ids[encoding.mention[0] : encoding.mention[1] + 1]) for encoding in encoded]
    assert said == [NAME, NAME, "zoe"]
    [lost] = encode_facts(fae, [sentence("she trains for [MASK] .", "zoe")])
    assert lost.mention is None and lost.fact == 1
    batch = make_fact_batch(fae, [*encoded, lost])
    assert batch.mention_rows.tolist() == [0, 1, 2] and len(batch.slots) == 4
    assert read(fae, [sentence("she trains for [MASK] .", "zoe")]).entity_scores.shape == (0, 2)


@settings(max_examples=40)
@given(before=st.integers(0, 90), after=st.integers(0, 90), left=st.booleans())
def test_a_mention_survives_cutting_or_is_dropped(before, after, left):
    fae = LONG
    text = f"{NAME + ' ' if left else ''}{'is ' * before}[MASK]{' is' * after}{'' if left else ' ' + NAME}"
    [encoding] = encode_facts(fae, [sentence(text, NAME)])
    assert len(encoding.evidence.input_ids) <= fae.encoder.max_length
    if encoding.mention is not None:
        first, last = encoding.mention
        assert fae.encoder.tokenizer.decode(encoding.evidence.input_ids[first : last + 1]) == NAME
    assert encoding.mention is not None or before + after > 50


LONG = tiny_fae(Benchmark((sentence("[MASK]", None).fact,), (), ()))


def test_entities_are_known_by_their_ids():
    facts = (Fact("1", "Ada", "P19", "Paris", "Q1", "Q90"), Fact("2", "Ada", "P19", "Paris", "Q2", "Q830149"))
    names = name_entities(Benchmark(facts, (), ()))
    assert names.entities == ("Q90", "Q830149", "Q1", "Q2") and names.labels == ("Paris", "Paris", "Ada", "Ada")
    assert build_memory(Benchmark(facts, (), ()), names).keys.tolist() == [[2, 0], [3, 0]]
    several = (facts[0], Fact("3", "Ada", "P19", "Rome", "Q1", "Q220"))
    names = name_entities(Benchmark(several, (), ()))
    assert build_memory(Benchmark(several, (), ()), names).tails.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="twice"):
        FaeNames(("Q1", "Q1"), ("a", "b"), ())


def test_coverage_is_a_share_and_depends_on_nothing_but_the_pair():
    names = name_entities(WORLD)
    parts = [set(build_memory(WORLD, names, share).rows) for share in (0.25, 0.5, 1.0)]
    assert parts[0] < parts[1] < parts[2] and 0.35 < len(parts[1]) / len(parts[2]) < 0.65
    reversed_world = Benchmark(WORLD.facts[::-1], (), ())
    assert set(build_memory(reversed_world, names, 0.5).rows) == parts[1]
    for share in (0, 1.1, -1):
        with pytest.raises(ValueError, match="coverage"):
            build_memory(WORLD, names, share)


def test_a_copy_shares_what_it_does_not_own():
    fae = tiny_fae()
    before = snapshot(fae)
    own = list(select_group(fae, "AWT"))
    twin = copy_fae(fae, own)
    for (name, weight), (_, copied) in zip(fae.model.named_parameters(), twin.model.named_parameters(), strict=True):
        assert (weight.data_ptr() != copied.data_ptr()) == copied.requires_grad == (name in own)
    assert twin.encoder.model is twin.model.encoder
    with torch.no_grad():
        twin.model.null_key.add_(1)
    assert_untouched(fae, before)


def test_a_saved_fae_comes_back_to_the_bit(tmp_path):
    recipe = FaeRecipe(SHAPE, 0.5, 0.3, 0.5, FinetuningConfig(steps=1, seed=3))
    fae = make_fae(tiny_bert(), WORLD, recipe)
    relink_facts(fae, sample_modifications(WORLD, 4).modified_facts, "insert").apply(fae)
    for _ in range(2):  # the second time in place of the first
        save_fae(fae, tmp_path / "fae")
    loaded = load_fae(tmp_path / "fae")
    assert loaded.config == fae.config and loaded.names == fae.names and same_memory(loaded.memory, fae.memory)
    for (name, weight), (other, again) in zip(fae.model.named_parameters(), loaded.model.named_parameters(), strict=True):
        assert name == other and same_bits(weight, again)
    assert answer_questions(loaded, WORLD.test[:8]).equals(answer_questions(fae, WORLD.test[:8]))
    with pytest.raises(DataError, match="something else"):
        save_fae(fae, tmp_path)
    (tmp_path / "fae" / "fae.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="no usable FaE"):
        load_fae(tmp_path / "fae")


@pytest.mark.skipif("MODMEM_TREX" not in os.environ, reason="MODMEM_TREX names no folder with T-REx")
def test_real_sentences_have_one_slot_a_subject_and_a_way_back_to_one_token():
    from modmem.fact_memory import _find_subject
    from modmem.trex import load_trex

    trex = load_trex(os.environ["MODMEM_TREX"], keep_duplicates=True)
    names = name_entities(trex)
    assert {names.labels[names.entity_rows[fact.object_id]] for fact in trex.facts} == {fact.object for fact in trex.facts}
    assert all(names.labels[names.entity_rows[fact.object_id]] == fact.object for fact in trex.facts)
    for side, least in ((trex.train, 0.998), (trex.test, 1.0)):
        found = [_find_subject(evidence, [part.strip() for part in evidence.text.split("[MASK]")]) is not None for evidence in side]
        assert all(evidence.text.count("[MASK]") == 1 for evidence in side) and sum(found) / len(found) >= least
    memory = build_memory(trex, names)
    assert len(memory.keys) == len({(fact.subject_id, fact.relation) for fact in trex.facts})
    if "MODMEM_BERT" in os.environ:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(os.environ["MODMEM_BERT"])
        objects = sorted({fact.object_id for fact in trex.facts})
        pieces = tokenizer([names.labels[names.entity_rows[name]] for name in objects], add_special_tokens=False)["input_ids"]
        assert all(len(ids) == 1 and ids[0] != tokenizer.unk_token_id for ids in pieces)
