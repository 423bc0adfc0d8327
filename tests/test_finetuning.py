"""The training loop, and FT, FTM and FTA on it: its loss, what is in its batches, what it changes and what it leaves alone."""
import io
import logging
import math
import time
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TINY, WORLD, assert_untouched, same_bits, same_weights, snapshot, tiny_bert
from tqdm import tqdm

import modmem.finetuning
from modmem.blocks import select_parameters
from modmem.checkpoint import Checkpoint
from modmem.finetuning import (
    _PART, _REMEMBERED, BatchOrder, FinetuningConfig, ProgressLog, _cut, finetune, learning_rate_at, part_losses, slot_loss, train_steps,
)  # fmt: skip
from modmem.masked_lm import MaskedLM, copy_with_own
from modmem.modification import sample_modifications
from modmem.projected_adam import ProjectedAdam
from modmem.projection import LinfBall

MODIFIED = sample_modifications(WORLD, num_modified=8, seed=0)  # 40 training evidences


@pytest.fixture(scope="module")
def bert():
    return tiny_bert()


@pytest.fixture
def batches(monkeypatch):
    "The encoded evidence of every batch that is trained on."
    seen, original = [], MaskedLM.batch

    def batch(self, encoded):
        if torch.is_grad_enabled():
            seen.append([(tuple(one.input_ids), tuple(one.labels)) for one in encoded])
        return original(self, encoded)

    monkeypatch.setattr(MaskedLM, "batch", batch)
    return seen


def encode(masked_lm, evidence):
    "What `batches` would hold of this evidence."
    return [(tuple(one.input_ids), tuple(one.labels)) for one in masked_lm.encode(evidence)]


# the loss


@pytest.mark.parametrize("family", TINY)
def test_loss_is_the_sum_over_the_pieces_of_an_answer_and_the_mean_over_sentences(family):
    masked_lm = TINY[family]()
    encoded = masked_lm.encode(WORLD.test[:8])
    assert len({len(one.slots) for one in encoded}) > 1
    by_hand = []
    for one in encoded:
        with torch.no_grad():
            logits = masked_lm.model(input_ids=torch.tensor([one.input_ids])).logits[0]
        by_hand.append(-sum(logits[slot].log_softmax(-1)[label].item() for slot, label in zip(one.slots, one.labels)))
    loss = slot_loss(masked_lm, masked_lm.batch(encoded)).item()
    assert loss == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-4)


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("size", [1, 5, 8])  # of the longest sentences in a part
def test_gradients_of_a_batch_in_parts_are_those_of_the_whole(family, size, monkeypatch):
    masked_lm, batches = TINY[family](), []
    encoded = masked_lm.encode(WORLD.train[:16])
    weights = [weight for block in masked_lm.blocks for weight in block.parameters()]
    most = max(len(one.input_ids) for one in encoded) * (size + 0.5)
    budget = 4 * _REMEMBERED * masked_lm.model.config.hidden_size * len(masked_lm.blocks) * most
    make = MaskedLM.batch
    monkeypatch.setattr(MaskedLM, "batch", lambda self, some: batches.append(make(self, some)) or batches[-1])

    def backward(budget):
        masked_lm.model.zero_grad()
        batches.clear()
        masked_lm.activations_budget = budget
        losses = list(part_losses(masked_lm, encoded))
        for loss in losses:
            loss.backward()
        tokens = [batch.input_ids.numel() for batch in batches]
        return tokens, sum(losses).item(), [weight.grad.clone() for weight in weights if weight.grad is not None]

    ([_], whole, expected), (tokens, loss, found) = backward(2**60), backward(budget)
    assert len(tokens) > 1 and max(tokens) <= most and loss == pytest.approx(whole, rel=1e-6) and expected
    largest = max(gradient.abs().max() for gradient in expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * largest.item())


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("trains_head, joined", [(False, [7, 5, 4]), (True, [3, 4, 5, 4])])
def test_parts_meet_at_a_head_that_is_not_trained_as_far_as_memory_allows(family, trains_head, joined, monkeypatch):
    masked_lm, heads, score = TINY[family](), [], MaskedLM.score_slots
    encoded = sorted(masked_lm.encode(WORLD.train[:16]), key=len)
    weights = [weight for block in masked_lm.blocks for weight in block.parameters()]
    masked_lm.model.get_output_embeddings().weight.requires_grad_(trains_head)
    slot_loss(masked_lm, masked_lm.batch(encoded)).backward()
    expected = [weight.grad for weight in weights]
    monkeypatch.setattr(modmem.finetuning, "_cut", lambda lengths, most: [0, 3, 7, 12, 16])
    most = 3 * len(encoded[2]) + 4 * len(encoded[6])  # room for the first two parts
    masked_lm.activations_budget = 4 * _REMEMBERED * masked_lm.model.config.hidden_size * len(masked_lm.blocks) * most
    monkeypatch.setattr(MaskedLM, "score_slots", lambda self, slots: heads.append(len(slots)) or score(self, slots))
    masked_lm.model.zero_grad()
    for loss in part_losses(masked_lm, encoded):
        loss.backward()
    numbers = [len(one.slots) for one in encoded]
    assert heads == [sum(numbers[stop - size : stop]) for size, stop in zip(joined, np.cumsum(joined))]
    for weight, gradient in zip(weights, expected):
        if gradient is not None:
            torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-6 * max(1.0, gradient.abs().max().item()))


def test_blocks_below_those_that_are_trained_take_no_memory_of_a_step(bert, monkeypatch):
    room = []
    monkeypatch.setattr(modmem.finetuning, "_cut", lambda lengths, most: room.append(most) or [0, len(lengths)])
    for block in (0, 1, 2):
        copied = copy_with_own(bert, list(select_parameters(bert, block)))
        list(part_losses(copied, copied.encode(WORLD.train[:4])))
    assert [room[0] / most for most in room] == pytest.approx([1, 2 / 3, 1 / 3])


@given(st.lists(st.integers(1, 600), min_size=1, max_size=8), st.sampled_from([1, 300, 2000, math.inf]))
def test_a_batch_is_cut_at_the_least_cost(lengths, most):
    lengths = sorted(lengths)
    places = range(1, len(lengths))
    all_cuts = [[0, *inner, len(lengths)] for number in range(len(lengths)) for inner in combinations(places, number)]

    def tokens(cuts):
        return [(stop - start) * lengths[stop - 1] for start, stop in pairwise(cuts)]

    def fits(cuts):
        return all(size <= most or stop - start == 1 for size, (start, stop) in zip(tokens(cuts), pairwise(cuts)))

    cuts = _cut(lengths, most)
    assert fits(cuts) and cuts[0] == 0 and cuts[-1] == len(lengths)
    assert sum(tokens(cuts)) + _PART * len(cuts) == min(sum(tokens(other)) + _PART * len(other) for other in all_cuts if fits(other))


# batches


@given(
    st.lists(st.integers(3, 30), min_size=1, max_size=50), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**40),
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
)
def test_every_epoch_holds_every_sentence_once_and_a_batch_is_a_function_of_its_step(lengths, batch_size, pool, seed, asked):
    order = BatchOrder(lengths, batch_size, pool, seed)
    per_epoch = order.steps_per_epoch
    assert per_epoch == -(-len(lengths) // batch_size)
    batches = [order(step) for step in range(2 * per_epoch)]
    assert all(0 < len(batch) <= batch_size for batch in batches)
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert sorted(sum(epoch, [])) == list(range(len(lengths)))
    for step in asked:  # in any order, from a new object
        assert BatchOrder(lengths, batch_size, pool, seed)(step) == order(step)


def test_epochs_and_seeds_shuffle_anew_and_a_pool_sorts_by_length():
    lengths = list(range(3, 67))
    order = BatchOrder(lengths, 8, seed=0)
    first, second = ([order(step) for step in range(start, start + 8)] for start in (0, 8))
    assert first != second and first != [BatchOrder(lengths, 8, seed=1)(step) for step in range(8)]
    pooled = BatchOrder(lengths, 8, pool=8, seed=0)
    assert all(max(batch) - min(batch) == 7 for batch in map(pooled, range(8)))
    assert [pooled(step)[0] for step in range(8)] != sorted(pooled(step)[0] for step in range(8))


def test_no_sentences_are_refused():
    with pytest.raises(ValueError, match="no sentences"):
        BatchOrder([], 8)


# the learning rate


def test_learning_rate_warms_up_and_decays_by_hand():
    linear = [learning_rate_at(step, 6, 3.0, warmup=1 / 3) for step in range(6)]
    assert linear == pytest.approx([1.0, 2.0, 3.0, 2.25, 1.5, 0.75])
    assert [learning_rate_at(step, 6, 3.0, 1 / 3, "constant") for step in range(6)] == pytest.approx([1.0, 2.0, 3.0, 3.0, 3.0, 3.0])
    assert learning_rate_at(0, 1, 3.0) == 3.0


@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from(["linear", "constant"]))
def test_learning_rate_is_positive_and_peaks_once(num_steps, warmup, schedule):
    rates = [learning_rate_at(step, num_steps, 1.0, warmup, schedule) for step in range(num_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert round(warmup * num_steps) == num_steps or max(rates) == 1


def test_each_step_runs_at_its_own_learning_rate(bert):
    trained = copy_with_own(bert)
    weight = trained.model.cls.predictions.bias
    optimizer, path = torch.optim.SGD([weight], lr=9.0), [weight.detach().clone()]
    batch = trained.batch(trained.encode(WORLD.test[:4]))
    gradients = []
    weight.register_hook(lambda gradient: gradients.append(gradient.clone()))
    train_steps(trained.model, optimizer, lambda step: slot_loss(trained, batch), [0.5, 0.0, 0.25], after_step=lambda done: path.append(weight.detach().clone()))
    for rate, gradient, before, after in zip([0.5, 0.0, 0.25], gradients, path[:-1], path[1:], strict=True):
        torch.testing.assert_close(after, before - rate * gradient)


def test_gradients_are_clipped_together_to_the_norm_asked_for(bert):
    for limit, clipped in ((0.01, True), (1e6, False)):
        trained = copy_with_own(bert)
        weights, seen = list(trained.model.parameters()), []
        optimizer = torch.optim.SGD(weights, lr=0.0)
        optimizer.register_step_pre_hook(lambda *_: seen.append(torch.cat([weight.grad.flatten() for weight in weights]).norm().item()))
        batch = trained.batch(trained.encode(WORLD.test[:4]))
        train_steps(trained.model, optimizer, lambda step: slot_loss(trained, batch), [0.0], max_gradient_norm=limit)
        assert (seen[0] == pytest.approx(limit, rel=1e-3)) == clipped


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_no_number_ends_the_training_and_names_step_and_learning_rate(bert, value):
    optimizer = torch.optim.SGD(copy_with_own(bert).model.parameters(), lr=0.0)
    with pytest.raises(FloatingPointError, match=f"the loss of step 1 is {value}; lower the learning rate, which is 0.5 there"):
        train_steps(bert.model, optimizer, lambda step: torch.tensor(value if step else 1.0, requires_grad=True), [0.25, 0.5, 0.75])


# dropout


def with_dropout(probability):
    "A model whose configuration asks for dropout."
    masked_lm = tiny_bert()
    config = masked_lm.model.config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = probability
    return MaskedLM(type(masked_lm.model)(config), masked_lm.tokenizer)


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, (False, 0.0)), (0.4, (True, 0.4)), (None, (True, 0.3))])
def test_dropout_zero_is_evaluation_mode_and_none_is_the_models_own(dropout, expected):
    masked_lm, seen = copy_with_own(with_dropout(0.3)), set()
    batch = masked_lm.batch(masked_lm.encode(WORLD.test[:4]))

    def compute_loss(step):
        seen.update((module.training, module.p) for module in masked_lm.model.modules() if isinstance(module, torch.nn.Dropout))
        return slot_loss(masked_lm, batch)

    train_steps(masked_lm.model, torch.optim.SGD(masked_lm.model.parameters(), lr=0.0), compute_loss, [0.0], dropout=dropout)
    assert {mode for mode, _ in seen} == {expected[0]} and (dropout == 0 or {p for _, p in seen} == {expected[1]})
    assert not masked_lm.model.training


def test_none_means_the_configurations_dropout_even_after_training_without(bert):
    masked_lm = with_dropout(0.3)
    trained, _ = finetune(masked_lm, WORLD.train, FinetuningConfig(steps=1, batch_size=8, dropout=0.0))
    again = copy_with_own(trained)
    batch = again.batch(again.encode(WORLD.test[:4]))
    losses = train_steps(again.model, torch.optim.SGD(again.model.parameters(), lr=0.0), lambda step: slot_loss(again, batch), [0.0, 0.0])
    assert losses[0] != losses[1]


def test_dropout_is_a_function_of_seed_and_step_and_leaves_the_generator_alone():
    masked_lm = with_dropout(0.3)
    batch = masked_lm.batch(masked_lm.encode(WORLD.test[:8]))
    optimizer = torch.optim.SGD(masked_lm.model.parameters(), lr=0.0)

    def losses(seed=0, first_step=0):
        torch.rand(first_step + 3)  # what was drawn before does not matter
        before = torch.random.get_rng_state()
        found = train_steps(masked_lm.model, optimizer, lambda step: slot_loss(masked_lm, batch), [0.0] * 4, seed, first_step=first_step)
        assert torch.equal(torch.random.get_rng_state(), before)
        return found

    once = losses()
    assert len(set(once)) == 4 and once == losses() and once[2:] == losses(first_step=2) and once != losses(seed=1)


@pytest.mark.parametrize("make_optimizer", [torch.optim.Adam, lambda weights, lr: ProjectedAdam(weights, LinfBall(1e-3), lr)], ids=["free", "in a ball"])
def test_training_that_was_interrupted_goes_on_bit_for_bit(bert, tmp_path, monkeypatch, make_optimizer):
    config, last = FinetuningConfig(steps=5, batch_size=8, learning_rate=3e-3, unmodified_per_modified=1.0), list(select_parameters(bert, len(bert.blocks) - 1))

    def train(checkpoint=None):
        return finetune(bert, MODIFIED.modified_train, config, MODIFIED.unmodified_train, last, make_optimizer, checkpoint)

    whole, losses = train()
    checkpoint, calls = Checkpoint(tmp_path / "state.safetensors", {"of": "a test"}, every=2), iter(range(9))

    def compute_loss(*arguments):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return part_losses(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(modmem.finetuning, "part_losses", compute_loss)
        train(checkpoint)
    resumed, rest = train(checkpoint)
    assert same_weights(resumed, whole) and rest == losses[2:] and not same_weights(resumed, bert)
    finished, none = train(checkpoint)  # the last step is kept too
    assert same_weights(finished, whole) and none == []


# FT


def test_ft_trains_on_all_facts_with_their_original_objects(bert, batches):
    finetune(bert, WORLD.train, FinetuningConfig(epochs=1, batch_size=64))
    assert sorted(sum(batches, [])) == sorted(encode(bert, WORLD.train))
    old = {fact.id: fact.object for fact in MODIFIED.modified_facts}
    originals = [one for one in WORLD.train if one.fact.id in old]
    assert len(originals) == 40 and all(one.fact.object == old[one.fact.id] for one in originals)
    assert set(encode(bert, originals)) <= set(sum(batches, []))


def test_ft_model_does_not_depend_on_what_will_be_modified(bert):
    config = FinetuningConfig(steps=4, batch_size=32)
    expected, _ = finetune(bert, WORLD.train, config)
    for seed, number in ((0, 8), (1, 30)):
        modified = sample_modifications(WORLD, num_modified=number, seed=seed)
        assert modified.modified_train
        again, _ = finetune(bert, WORLD.train, config)
        assert same_weights(again, expected)
        assert len(WORLD.train) == len(modified.modified_train) + len(modified.unmodified_train)


# FTM and FTA


def test_ftm_sees_the_modified_evidence_with_its_new_objects_only(bert, batches):
    finetune(bert, MODIFIED.modified_train, FinetuningConfig(epochs=3, batch_size=16))
    assert [len(batch) for batch in batches] == 3 * [16, 16, 8]
    for epoch in range(3):
        assert sorted(sum(batches[3 * epoch : 3 * epoch + 3], [])) == sorted(encode(bert, MODIFIED.modified_train))


def test_batches_of_a_pool_hold_sentences_of_similar_length(bert, monkeypatch):
    seen = []
    monkeypatch.setattr(modmem.finetuning, "part_losses", lambda masked_lm, encoded: seen.append(sorted(map(len, encoded))) or part_losses(masked_lm, encoded))
    finetune(bert, MODIFIED.modified_train, FinetuningConfig(epochs=1, batch_size=8, pool=5, learning_rate=1e-6))
    assert sum(sorted(seen), []) == sorted(sum(seen, [])) and seen[0][0] < max(seen)[-1]


@pytest.mark.parametrize(("ratio", "rehearsal"), [(0.01, 1), (0.2, 2), (0.5, 4), (1.0, 8), (2.0, 16)])
def test_fta_adds_unmodified_evidence_to_every_step_in_an_order_of_its_own(bert, batches, ratio, rehearsal):
    config = FinetuningConfig(epochs=2, batch_size=8, unmodified_per_modified=ratio)
    finetune(bert, MODIFIED.modified_train, config, unmodified=MODIFIED.unmodified_train)
    assert len(batches) == 10 and {len(batch) for batch in batches} == {8 + rehearsal}
    modified, known = encode(bert, MODIFIED.modified_train), encode(bert, MODIFIED.unmodified_train)
    assert sorted(one for one in sum(batches[:5], []) if one in modified) == sorted(modified)
    rehearsed = [one for one in sum(batches, []) if one not in modified]
    assert {sum(one not in modified for one in batch) for batch in batches} == {rehearsal}
    assert set(rehearsed) <= set(known) and len(set(rehearsed)) == min(len(rehearsed), len(set(known)))


def test_rehearsal_is_not_shuffled_in_step_with_the_modified_evidence(bert, batches):
    unmodified = MODIFIED.unmodified_train[:40]
    config = FinetuningConfig(epochs=1, batch_size=8, unmodified_per_modified=1.0)
    finetune(bert, MODIFIED.modified_train, config, unmodified=unmodified)
    places = [[sorted(encode(bert, some).index(one) for one in batch if one in encode(bert, some)) for batch in batches]
              for some in (MODIFIED.modified_train, unmodified)]
    assert sorted(sum(places[0], [])) == sorted(sum(places[1], [])) and places[0] != places[1]


def test_fta_loss_is_the_mean_over_modified_and_unmodified_together(bert):
    config = FinetuningConfig(steps=1, batch_size=40, unmodified_per_modified=1.0)
    unmodified = MODIFIED.unmodified_train[:40]
    _, [together] = finetune(bert, MODIFIED.modified_train, config, unmodified=unmodified)
    _, [one] = finetune(bert, MODIFIED.modified_train, FinetuningConfig(steps=1, batch_size=40))
    _, [other] = finetune(bert, unmodified, FinetuningConfig(steps=1, batch_size=40))
    assert together == pytest.approx((one + other) / 2, rel=1e-5) and one != pytest.approx(other, rel=1e-3)


def test_rehearsal_without_anything_to_rehearse_is_refused(bert):
    with pytest.raises(ValueError, match="unmodified"):
        finetune(bert, MODIFIED.modified_train, FinetuningConfig(steps=1, unmodified_per_modified=1.0))


def test_no_evidence_is_refused(bert):
    with pytest.raises(ValueError, match="no sentences"):
        finetune(bert, (), FinetuningConfig(steps=1))


# how long


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"steps": 7}, 7), ({"epochs": 2}, 6), ({"epochs": 0.5}, 2), ({"epochs": 0.01}, 1), ({"epochs": 2, "pool": 2}, 6), ({"epochs": 2, "min_steps": 9}, 9), ({"epochs": 2, "min_steps": 5}, 6)],
)
def test_steps_or_epochs_say_how_long(bert, settings, steps):
    _, losses = finetune(bert, MODIFIED.modified_train, FinetuningConfig(batch_size=16, **settings))
    assert len(losses) == steps


@pytest.mark.parametrize(
    "bad",
    [{}, {"steps": 3, "epochs": 1}, {"steps": 0}, {"steps": 2.0}, {"steps": True}, {"epochs": 0}, {"epochs": -1}, {"epochs": math.nan},
     {"epochs": math.inf}, {"epochs": "3"}],
)
def test_anything_but_one_length_above_zero_is_refused(bad):
    with pytest.raises(ValueError, match="steps|epochs"):
        FinetuningConfig(**bad)


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 0), ("learning_rate", -1e-3), ("learning_rate", "1e-3"), ("learning_rate", math.nan), ("learning_rate", math.inf),
     ("learning_rate", True), ("learning_rate", None), ("batch_size", 0), ("batch_size", 8.0), ("batch_size", None), ("pool", 0), ("pool", None),
     ("unmodified_per_modified", -1), ("unmodified_per_modified", math.inf), ("unmodified_per_modified", None), ("schedule", "cosine"),
     ("schedule", None), ("warmup", -0.1), ("warmup", 2), ("warmup", "0.1"), ("dropout", 1.5), ("dropout", -0.1), ("dropout", "0"),
     ("max_gradient_norm", 0), ("max_gradient_norm", "1")],
)
def test_settings_that_make_no_sense_are_refused_with_their_value(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value!r}"):
        FinetuningConfig(steps=1, **{name: value})


# what changes and what does not


@pytest.mark.parametrize("family", TINY)
def test_given_model_and_frozen_weights_stay_as_they_are_bit_for_bit(family):
    masked_lm = TINY[family]()
    masked_lm.model.train()
    next(masked_lm.model.parameters()).requires_grad_(False)
    before = snapshot(masked_lm)
    names = list(select_parameters(masked_lm, "all" if family == "albert" else 1))
    trained, losses = finetune(masked_lm, MODIFIED.modified_train, FinetuningConfig(steps=3, batch_size=16, dropout=0.1), parameters=names)
    assert_untouched(masked_lm, before)
    assert len(losses) == 3 and not trained.model.training
    ours, theirs = dict(trained.model.named_parameters()), dict(masked_lm.model.named_parameters())
    assert {name for name in theirs if not same_bits(ours[name], theirs[name])} == set(names)
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in theirs if name not in names)


def test_given_model_stays_as_it_is_when_training_fails(bert, monkeypatch):
    before, calls = snapshot(bert), iter(range(10))
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, closure=None: 1 / (next(calls) - 2))
    with pytest.raises(ZeroDivisionError):
        finetune(bert, MODIFIED.modified_train, FinetuningConfig(steps=5, dropout=0.1))
    assert next(calls) == 3
    assert_untouched(bert, before)


def test_same_seed_gives_the_same_bits_and_another_seed_does_not(bert):
    runs = []
    for seed in (0, 0, 1):
        torch.rand(3)
        config = FinetuningConfig(steps=4, batch_size=8, dropout=0.1, unmodified_per_modified=0.5, seed=seed)
        runs.append(finetune(bert, MODIFIED.modified_train, config, unmodified=MODIFIED.unmodified_train))
    (one, one_losses), (two, two_losses), (other, _) = runs
    assert same_weights(one, two) and one_losses == two_losses and not same_weights(one, other)


def test_loop_is_a_plain_torch_loop_but_for_rounding(bert, batches):
    config = FinetuningConfig(steps=6, batch_size=16, learning_rate=2e-3, warmup=0.3)
    names = list(select_parameters(bert, 2))
    trained, losses = finetune(bert, MODIFIED.modified_train, config, parameters=names)
    model = tiny_bert()
    weights = [weight.requires_grad_(name in names) for name, weight in model.model.named_parameters()]
    optimizer = torch.optim.Adam([weight for weight in weights if weight.requires_grad])
    for step, batch in enumerate(batches[:6]):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, 6, 2e-3, 0.3)
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in batch])
        present = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in batch])
        states = model.model.bert(input_ids=ids, attention_mask=present).last_hidden_state[ids == model.tokenizer.mask_token_id]
        labels = torch.tensor([label for _, some in batch for label in some])
        loss = torch.nn.functional.cross_entropy(model.model.cls(states), labels, reduction="sum") / len(batch)
        assert loss.item() == pytest.approx(losses[step], abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for weight, ours in zip(model.model.parameters(), trained.model.parameters()):
        torch.testing.assert_close(weight, ours, rtol=0, atol=1e-4)  # a step is 2e-3


@pytest.mark.parametrize(("family", "share"), [("bert", 0.2), ("albert", 0.75)])
def test_training_teaches_the_new_objects(family, share):
    masked_lm = TINY[family]()
    config = FinetuningConfig(steps=50, batch_size=40, learning_rate=5e-3)
    trained, losses = finetune(masked_lm, MODIFIED.modified_train, config)
    assert losses[-1] < share * losses[0]
    assert sum(trained.answers(MODIFIED.modified_train)) >= sum(masked_lm.answers(MODIFIED.modified_train))


# progress

@pytest.mark.parametrize(("off", "lines"), [(True, ["16", "40"]), (False, [])])
def test_a_line_every_fifteen_seconds_at_most_and_only_where_the_bar_is_off(off, lines, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "modmem")
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    log = ProgressLog(tqdm(disable=off, file=io.StringIO()))
    for second in (1, 16, 20, 30, 40):
        monkeypatch.setattr(time, "monotonic", lambda: float(second))
        log.tell(str(second))
    assert caplog.messages == lines
