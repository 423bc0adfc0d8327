"""Training FaE, and editing its symbols and weights together."""
import functools
import math
import warnings
from dataclasses import asdict, replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from test_fae import SHAPE, same_memory, tiny_fae
from tiny_models import assert_untouched, make_small_world, same_bits, snapshot, tiny_bert

from modmem.fae import FactMemory, copy_fae, partition_parameters, select_group
from modmem.fae_editing import FAE_EDITING, FaeEditConfig, describe_answers, modify_fae, resolve_conflicts
from modmem.fae_training import FaeRecipe, answer_questions, evaluate_fae, fae_loss, finetune_fae, train_fae
from modmem.fact_memory import encode_facts, make_fact_batch, relink_facts
from modmem.facts import Benchmark
from modmem.finetuning import FinetuningConfig
from modmem.masked_lm import hash_weights
from modmem.modification import sample_modifications
from modmem.trials import run_trial

FOUR = make_small_world(4)  # 32 facts
TRAINING = FinetuningConfig(steps=250, batch_size=32, learning_rate=3e-3, max_gradient_norm=1.0)


@functools.cache
def overfitted():
    "A FaE that knows 32 facts, and has learned to find them in its memory."
    return train_fae(tiny_bert(), FOUR, FaeRecipe(SHAPE, coverage=1.0, null_rate=0.2, finetuning=TRAINING))


def test_it_learns_32_facts_and_where_they_are_written():
    fae, losses = overfitted()
    answers = answer_questions(fae, FOUR.train)
    assert answers["retrieved"].mean() > 0.98 and answers["correct"].mean() > 0.98
    assert losses[0] > 3 * sum(losses[-10:]) / 10


def test_training_is_repeatable_and_leaves_the_model_alone():
    fae = tiny_fae(FOUR)
    before = snapshot(fae)
    config = FinetuningConfig(steps=2, batch_size=8, learning_rate=1e-3)
    first, second = (finetune_fae(fae, FOUR.train, config, null_rate=0.5) for _ in range(2))
    assert first[1] == second[1] and hash_weights(first[0]) == hash_weights(second[0]) != hash_weights(fae)
    assert_untouched(fae, before)
    assert finetune_fae(fae, FOUR.train, config)[1] != first[1]


def test_training_refuses_what_it_cannot_do():
    fae = tiny_fae(FOUR)
    config = FinetuningConfig(steps=1, batch_size=8)
    for options in ({"null_rate": 1.1}, {"losses": ("words",)}, {"losses": ()}):
        with pytest.raises(ValueError, match="null_rate"):
            finetune_fae(fae, FOUR.train, config, **options)
    with pytest.raises(ValueError, match="rehearsal"):
        finetune_fae(fae, FOUR.train, FinetuningConfig(steps=1, unmodified_per_modified=1.0))


def test_the_sentences_that_do_without_their_fact_differ_by_step_and_by_seed(monkeypatch):
    drawn = []
    monkeypatch.setattr("modmem.fae_training.make_fact_batch", lambda fae, encoded, hidden: drawn.append((encoded, hidden)) or make_fact_batch(fae, encoded, hidden))
    for seed in (0, 1):
        finetune_fae(tiny_fae(FOUR), FOUR.train, FinetuningConfig(steps=2, batch_size=len(FOUR.train), seed=seed), null_rate=0.3)
    without = [{tuple(one.evidence.input_ids) for one, gone in zip(encoded, hidden) if gone} for encoded, hidden in drawn]
    assert all(one - other for one in without for other in without if one is not other)
    assert sum(map(sum, (hidden for _, hidden in drawn))) == pytest.approx(4 * 0.3 * len(FOUR.train), rel=0.2)


def test_recipe_and_settings_reach_the_training(monkeypatch):
    seen = []
    monkeypatch.setattr("modmem.fae_training.finetune_fae", lambda fae, evidence, config, null_rate, **more: seen.append((config, null_rate)))
    train_fae(tiny_bert(), FOUR, FaeRecipe(SHAPE, null_rate=0.2, finetuning=TRAINING))
    assert seen == [(TRAINING, 0.2)]
    monkeypatch.setattr("modmem.fae_editing.finetune_fae", lambda fae, evidence, *more, **others: seen.append((evidence, *more)) or (fae, [0.0]))
    modified, config = sample_modifications(FOUR, 2), FaeEditConfig("AWT", radius=0.1, null_rate=0.4, learning_rate=0.1)
    modify_fae(tiny_fae(FOUR), modified, config)
    assert seen[1:] == [(modified.modified_train, config.finetuning, 0.4, ("answer", "fact"))]


def test_a_trials_answers_counted_by_hand():
    columns = ["modified", "stored", "rewritten", "correct", "entity_correct", "context_correct", "retrieved", "null_probability", "context_norm", "fact_norm", "norm_ratio"]
    rows = [
        (True, True, True, True, True, False, True, 0.5, 1.0, 2.0, 3.0), (True, True, True, False, True, False, True, 0.1, 1.0, 2.0, 3.0),
        (True, True, False, True, False, True, False, 0.3, 7.0, 9.0, 9.0), (True, False, False, False, False, True, False, 0.3, 7.0, 9.0, 9.0),
        (False, True, False, False, False, False, True, 0.9, 4.0, 5.0, 6.0), (False, True, False, True, True, True, True, 0.7, 4.0, 5.0, 6.0), (False, True, False, True, True, False, True, 0.2, 40.0, 50.0, 60.0),
    ]
    told = describe_answers(SimpleNamespace(per_fact=pd.DataFrame(rows, columns=columns)))
    assert told == pytest.approx({
        "modified_accuracy_rewritten": 50, "modified_accuracy_inserted": 100,
        "modified_entity_accuracy": 50, "modified_context_accuracy": 50, "modified_retrieved": 50, "modified_null_probability": 0.3,
        "modified_context_norm": 4, "modified_fact_norm": 5.5, "modified_norm_ratio": 6,
        "unmodified_entity_accuracy": 200 / 3, "unmodified_context_accuracy": 100 / 3, "unmodified_retrieved": 100, "unmodified_null_probability": 0.6,
        "unmodified_context_norm": 4, "unmodified_fact_norm": 5, "unmodified_norm_ratio": 6,
    })


def test_the_loss_is_the_sum_of_four_cross_entropies_by_sentence():
    fae = tiny_fae(FOUR)
    batch = make_fact_batch(fae, encode_facts(fae, FOUR.train[:6]), [False] * 5 + [True])
    with torch.no_grad():
        output = fae(batch)
        cross = torch.nn.functional.cross_entropy
        expected = cross(output.entity_scores, batch.mention_labels) + cross(output.context_scores, batch.mention_labels)
        expected = expected + cross(output.answer_scores, batch.answers) + cross(output.fact_scores, batch.facts)
        torch.testing.assert_close(fae_loss(fae, batch), expected)


@pytest.mark.parametrize("group", ["AWT", "middle+AWT", "last+AWT", "all"])
def test_only_the_group_moves_and_only_inside_the_ball(group):
    fae, modified = tiny_fae(FOUR), sample_modifications(FOUR, 4)
    before, radius = snapshot(fae), 0.002
    edit = modify_fae(fae, modified, FaeEditConfig(group, radius=radius, learning_rate=1e-3, steps=4, batch_size=8))
    assert_untouched(fae, before)
    edited = copy_fae(fae)
    edit.apply(edited)
    chosen, after = set(select_group(fae, group)), dict(edited.model.named_parameters())
    assert set(edit.weights.bits) == chosen
    for name, weight in fae.model.named_parameters():
        change = (after[name] - weight).abs().max()
        assert change <= radius * (1 + 1e-4) and (name in chosen or same_bits(after[name], weight)), name
    assert edit.outcome["max_change"] >= 0.9 * radius and edit.outcome["relinked"] == 4
    edit.undo(edited)
    assert hash_weights(edited) == hash_weights(fae) and same_memory(edited.memory, fae.memory)


def test_an_edit_is_applied_and_undone_whole_or_not_at_all():
    fae, modified = tiny_fae(FOUR), sample_modifications(FOUR, 4)
    edit = modify_fae(fae, modified, FaeEditConfig("AWT", radius=0.001, steps=1))
    other, memory = copy_fae(fae), fae.memory
    with torch.no_grad():
        other.model.null_key.add_(1)
    before = snapshot(other)
    with pytest.raises(ValueError, match="applied to the model"):
        edit.apply(other)
    assert other.memory is memory
    assert_untouched(other, before)
    other.memory = relinked = copy_relinked(fae, modified)
    with pytest.raises(ValueError, match="undone on the model"):
        edit.undo(other)
    assert other.memory is relinked


def copy_relinked(fae, modified):
    "The memory of a FaE after the symbolic edit."
    twin = copy_fae(fae, [])
    relink_facts(twin, modified.modified_facts).apply(twin)
    return twin.memory


def test_the_tables_move_on_request():
    fae, modified = tiny_fae(FOUR), sample_modifications(FOUR, 2)
    edit = modify_fae(fae, modified, FaeEditConfig("AWT", tables=True, radius=0.001, steps=1))
    assert set(edit.weights.bits) == set(select_group(fae, "AWT")) | set(partition_parameters(fae)["tables"])


def test_settings_are_checked():
    for options in ({"group": "AWT"}, {"group": "AWT", "radius": 0}, {"group": "all", "radius": "1e-3"}, {"group": "none", "steps": 0}):
        with pytest.raises(ValueError):
            FaeEditConfig(**options)
    with pytest.raises(ValueError, match="group must be"):
        modify_fae(tiny_fae(FOUR), sample_modifications(FOUR, 1), FaeEditConfig("blocks", radius=1.0))
    with pytest.warns(UserWarning, match="constrains nothing"):
        modify_fae(tiny_fae(FOUR), sample_modifications(FOUR, 1), FaeEditConfig("AWT", radius=1.0, steps=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        modify_fae(tiny_fae(FOUR), sample_modifications(FOUR, 1), FaeEditConfig("AWT", radius=math.inf, steps=1))


def test_a_setting_without_effect_is_none():
    symbols = FaeEditConfig("none", radius=0.1, steps=3, tables=True, null_rate=0.5)
    assert symbols == FaeEditConfig("none") == replace(symbols) == FaeEditConfig(**asdict(symbols))
    assert symbols.norm is symbols.radius is symbols.finetuning is symbols.tables is symbols.null_rate is None
    weights = FaeEditConfig("AWT", radius=0.1, symbolic=False, absent="insert")
    assert weights == FaeEditConfig(**asdict(weights)) and weights.absent is None and weights.finetuning.epochs == 10
    assert FaeEditConfig("AWT", radius=0.1, steps=5, learning_rate=0.01).finetuning == replace(weights.finetuning, steps=5, epochs=None, learning_rate=0.01)


def test_an_edit_of_a_copy_leaves_the_model_alone_and_shares_what_it_does_not_train():
    fae, modified = tiny_fae(FOUR), sample_modifications(FOUR, 4)
    before, memory = snapshot(fae), fae.memory
    edit = modify_fae(fae, modified, FaeEditConfig("AWT", radius=0.001, steps=1))
    edited = edit.apply_to_copy(fae)
    assert_untouched(fae, before)
    assert fae.memory is memory and not same_memory(edited.memory, memory)
    for (name, old), new in zip(fae.model.named_parameters(), edited.model.parameters(), strict=True):
        assert (old.data_ptr() != new.data_ptr()) == (name in edit.weights.bits)


def test_training_lasts_at_least_the_least_number_of_steps():
    config = FinetuningConfig(epochs=2, batch_size=8, min_steps=9)
    for evidence, steps in ((FOUR.train[:8], 9), (FOUR.train[:64], 16)):
        assert len(finetune_fae(tiny_fae(FOUR), evidence, config)[1]) == steps == config.count_steps(len(evidence))


def test_symbols_alone_change_no_weight_and_weights_alone_no_symbol():
    fae, modified = tiny_fae(FOUR), sample_modifications(FOUR, 4)
    symbols = modify_fae(fae, modified, FaeEditConfig("none"))
    assert symbols.weights is None and symbols.outcome == {"relinked": 4, "inserted": 0, "skipped": 0}
    weights = modify_fae(fae, modified, FaeEditConfig("AWT", symbolic=False, radius=0.001, steps=1))
    assert weights.symbols is None and weights.outcome["relinked"] == 0
    nothing = modify_fae(fae, modified, FaeEditConfig("none", symbolic=False))
    assert nothing.symbols is nothing.weights is None


def test_a_rewritten_fact_is_answered_where_training_says_so():
    fae, _ = overfitted()
    on_training = Benchmark(FOUR.facts, FOUR.train, FOUR.train)
    modified = sample_modifications(on_training, 6, seed=1)
    untrained = evaluate_fae(fae, modified)
    trained = run_trial(fae, modified, FaeEditConfig("AWT", radius=0.1, learning_rate=5e-3, steps=40, batch_size=32), FAE_EDITING).accuracy
    assert untrained.modified < 20 and trained.modified > 90 and trained.unmodified > 50
    scaled = copy_fae(fae, [])
    relink_facts(fae, modified.modified_facts).apply(scaled)
    alone = evaluate_fae(scaled, modified)
    assert alone.unmodified == untrained.unmodified  # every question retrieves its own fact
    assert evaluate_fae(resolve_conflicts(scaled, context_scale=0.0), modified).modified > 99 >= alone.modified - 1


def test_a_trial_says_what_happened():
    fae, modified = tiny_fae(FOUR), sample_modifications(FOUR, 4)
    trial = run_trial(fae, modified, FaeEditConfig("AWT", radius=0.001, steps=1, seed=3), FAE_EDITING)
    accuracy, row = evaluate_fae(fae, modified), trial.row | describe_answers(trial.accuracy)
    assert row["relinked"] == 4 and row["steps"] == 1 and 0 < row["max_change"] <= 0.001 * (1 + 1e-4)
    for side in ("modified", "unmodified"):
        assert 0 <= row[f"{side}_null_probability"] <= 1 and row[f"{side}_context_norm"] > 0
        for kind in ("accuracy", "entity_accuracy", "context_accuracy", "retrieved"):
            assert 0 <= row[f"{side}_{kind}"] <= 100
    assert {"subject", "text", "expected", "after", "correct", "entity_correct", "norm_ratio"} <= set(accuracy.per_fact)
    assert len(accuracy.per_fact) == 32 and accuracy.per_fact["modified"].sum() == 4


def test_a_label_that_two_entities_share_is_right_by_token_and_wrong_by_entity():
    world = make_small_world(2)
    facts = [replace(fact, object_id=f"O{number}") for number, fact in enumerate(world.facts)]
    facts[8] = replace(facts[8], object=facts[0].object)
    by_id = {fact.id: fact for fact in facts}
    renamed = Benchmark(tuple(facts), (), tuple(replace(question, fact=by_id[question.fact.id]) for question in world.test))
    fae = tiny_fae(renamed, null_bias=-1e9)
    with torch.no_grad():
        fae.model.entities.copy_(torch.nn.functional.normalize(fae.model.entities, dim=-1))
    first = fae.names.entity_rows["O0"]  # what the memory says of everything
    fae.memory = FactMemory(fae.memory.keys, torch.full_like(fae.memory.tails, first), fae.memory.replaced)
    answers = answer_questions(fae, renamed.test)
    assert (answers["after"] == facts[0].object).all()
    assert answers["correct"].tolist() == [fact.object == facts[0].object for fact in facts]
    assert answers.index[answers["entity_correct"]].tolist() == [0]


def test_asking_in_batches_of_any_size_gives_the_same_answers():
    fae, _ = overfitted()
    small, large = (answer_questions(fae, FOUR.test, batch_size=size) for size in (7, 32))
    assert small["after"].equals(large["after"])
    pd.testing.assert_frame_equal(small, large, rtol=1e-3)
