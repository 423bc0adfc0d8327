"""The training loop: the loss of whole answers, batches that are functions of the step, runs that survive interruption."""
import os
import signal
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TINY, WORLD, ask, assert_untouched, same_bits, same_weights, snapshot, tiny_albert, tiny_bert

from modmem.facts import MASK
from modmem.files import DataError
from modmem.batches import EncodedEvidence
from modmem.masked_lm import MaskedLM, copy_with_own
from modmem.pretraining import (
    BatchOrder, PretrainingConfig, _encode_sentences, _mask_pieces, learning_rate_at, pretrain, reinitialize, slot_loss, train_steps,
)

TEXT = [one.text.replace(MASK, one.fact.object) for one in WORLD.train[:60]]
CONFIG = PretrainingConfig(steps=12, batch_size=8, learning_rate=2e-3, pool=3, checkpoint_every=4)


@pytest.fixture(scope="module")
def bert():
    return tiny_bert()


@pytest.fixture(scope="module")
def whole(bert):
    "A run that nobody interrupts: the model, and the loss of each step."
    return pretrain(bert, TEXT, CONFIG)


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


def test_no_sentences_are_refused(bert):
    with pytest.raises(ValueError, match="no sentences"):
        BatchOrder([], 8)
    with pytest.raises(ValueError, match="no sentences"):
        pretrain(bert, ["", "  "], CONFIG)


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
    trained, _ = pretrain(masked_lm, TEXT, replace(CONFIG, steps=1, dropout=0.0))
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


# what is hidden


def many_masked(masked_lm, repeats=300):
    "Plain sentences masked many times: pairs of the sentence and what became of it."
    plain = _encode_sentences(masked_lm, TEXT[:20], 128)
    generator = torch.Generator().manual_seed(0)
    return [(one, _mask_pieces(one, masked_lm.tokenizer, 0.15, generator)) for _ in range(repeats) for one in plain]


@pytest.mark.parametrize("family", TINY)
def test_plain_sentences_are_masked_as_bert_does(family):
    masked_lm = TINY[family]()
    pairs = many_masked(masked_lm, 100)
    special, mask = set(masked_lm.tokenizer.all_special_ids), masked_lm.tokenizer.mask_token_id
    fates, hidden, eligible = {"mask": 0, "same": 0, "other": 0}, 0, 0
    for plain, masked in pairs:
        assert masked.slots and masked.labels == [plain.input_ids[slot] for slot in masked.slots]
        assert not special & set(masked.labels), "a special token was hidden"
        assert all(a == b for place, (a, b) in enumerate(zip(plain.input_ids, masked.input_ids)) if place not in masked.slots)
        for slot, label in zip(masked.slots, masked.labels):
            now = masked.input_ids[slot]
            fates["mask" if now == mask else "same" if now == label else "other"] += 1
        hidden, eligible = hidden + len(masked.slots), eligible + len(plain.input_ids) - 2
    # at least one piece a sentence is hidden, which for short ones is more than 15 %
    expected = sum(0.15 * n + 0.85**n for n in (len(plain.input_ids) - 2 for plain, _ in pairs)) / eligible
    assert hidden / eligible == pytest.approx(expected, rel=0.05)
    shares = {name: count / hidden for name, count in fates.items()}
    assert shares == pytest.approx({"mask": 0.8, "same": 0.1, "other": 0.1}, abs=0.02)


def test_pieces_put_in_at_random_come_from_the_whole_vocabulary(bert):
    masked = [(one.input_ids[slot], label) for _, one in many_masked(bert) for slot, label in zip(one.slots, one.labels)]
    random = [now for now, label in masked if now not in (bert.tokenizer.mask_token_id, label)]
    assert len(random) > 500 and min(random) < 20 and len(bert.tokenizer) - 20 < max(random) < len(bert.tokenizer)


def test_sentences_end_where_the_settings_say(bert):
    long = " ".join(["ada was born in barton"] * 30)
    [plain, salient] = _encode_sentences(bert, [long, ask(f"{long} {MASK} {long}", "barton")], max_length=20)
    assert len(plain.input_ids) == 20
    assert len(salient.input_ids) == 20 and salient.input_ids[salient.slots[0]] == bert.tokenizer.mask_token_id


def test_of_an_evidence_the_object_is_hidden_and_nothing_else(bert):
    [encoded] = _encode_sentences(bert, [WORLD.train[0]], 128)
    assert _mask_pieces(encoded, bert.tokenizer, 0.9, torch.Generator()) is encoded and [encoded] == bert.encode([WORLD.train[0]])


def test_masking_leaves_the_sentence_it_was_given_alone(bert):
    one = EncodedEvidence([2, 10, 11, 12, 3], [], [])
    _mask_pieces(one, bert.tokenizer, 0.9, torch.Generator().manual_seed(0))
    assert one == EncodedEvidence([2, 10, 11, 12, 3], [], [])


# runs


def test_pretraining_learns_and_leaves_the_given_model_alone(bert, whole):
    trained, losses = pretrain(bert, WORLD.train[:40], PretrainingConfig(steps=60, batch_size=16, learning_rate=3e-3, dropout=0.0))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    before = snapshot(bert)
    again, losses = pretrain(bert, TEXT, CONFIG)
    assert_untouched(bert, before)
    assert same_weights(again, whole[0]) and losses == whole[1] and not same_weights(again, bert) and not again.model.training


def test_plain_and_salient_sentences_may_be_mixed(bert):
    _, losses = pretrain(bert, [*TEXT[:5], *WORLD.train[:5]], replace(CONFIG, steps=2))
    assert len(losses) == 2


class Stopped(Exception):
    "Stands for whatever ends a process."


def stop_after(monkeypatch, steps):
    "Let a run die when it asks for the batch of this step."
    original, calls = MaskedLM.batch, iter(range(10**6))

    def batch(self, encoded):
        if next(calls) == steps:
            raise Stopped
        return original(self, encoded)

    monkeypatch.setattr(MaskedLM, "batch", batch)


@pytest.mark.parametrize(("stopped", "kept"), [(2, 0), (4, 4), (5, 4), (11, 8)])
def test_interrupted_run_continues_bit_for_bit(bert, whole, tmp_path, monkeypatch, stopped, kept):
    file = tmp_path / "new folder" / "unfinished.safetensors"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, stopped)
        pretrain(bert, TEXT, CONFIG, checkpoint=file)
    assert file.exists() == (kept > 0)
    resumed, losses = pretrain(bert, TEXT, CONFIG, checkpoint=file)
    assert losses == whole[1][kept:] and same_weights(resumed, whole[0])
    finished, none = pretrain(bert, TEXT, CONFIG, checkpoint=file)  # the last step is kept too
    assert none == [] and same_weights(finished, whole[0])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


@pytest.mark.parametrize("family", TINY)
def test_interrupted_run_with_dropout_and_shared_weights_continues_bit_for_bit(tmp_path, monkeypatch, family):
    config = replace(CONFIG, dropout=0.2, steps=6)
    masked_lm = TINY[family]()
    expected, _ = pretrain(masked_lm, TEXT, config)
    file = tmp_path / "unfinished.safetensors"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 5)
        pretrain(masked_lm, TEXT, config, checkpoint=file)
    assert same_weights(pretrain(masked_lm, TEXT, config, checkpoint=file)[0], expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_run_killed_while_it_writes_its_state_continues_bit_for_bit(bert, whole, tmp_path, monkeypatch):
    file, save = tmp_path / "unfinished.safetensors", safetensors.torch.save_file
    writes = iter(range(10))

    def save_half(tensors, path, metadata):
        save(tensors, path, metadata)
        if next(writes) == 1:  # the second state: the first stands
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(safetensors.torch, "save_file", save_half)
    if (child := os.fork()) == 0:
        try:
            pretrain(bert, TEXT, CONFIG, checkpoint=file)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    resumed, losses = pretrain(bert, TEXT, CONFIG, checkpoint=file)
    assert losses == whole[1][4:] and same_weights(resumed, whole[0])


@pytest.fixture(scope="module")
def unfinished(bert, tmp_path_factory):
    "The bytes of a state that an interrupted run left behind."
    file = tmp_path_factory.mktemp("unfinished") / "run.safetensors"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 5)
        pretrain(bert, TEXT, CONFIG, checkpoint=file)
    return file.read_bytes()


OTHER_RUNS = {
    "seed": {"config": replace(CONFIG, seed=1)},
    "steps": {"config": replace(CONFIG, steps=13)},
    "learning rate": {"config": replace(CONFIG, learning_rate=1e-3)},
    "fewer sentences": {"sentences": TEXT[1:]},
    "other sentences": {"sentences": [*TEXT[1:], "ada speaks aldish ."]},
    "other first weights": {"masked_lm": lambda: tiny_bert(seed=1)},
    "other shape": {"masked_lm": lambda: tiny_bert(num_blocks=2)},
    "other family": {"masked_lm": tiny_albert},
}


@pytest.mark.parametrize("other", OTHER_RUNS)
def test_state_of_another_run_is_refused_and_kept(bert, unfinished, tmp_path, other):
    file = tmp_path / "run.safetensors"
    file.write_bytes(unfinished)
    run = {"masked_lm": lambda: bert, "sentences": TEXT, "config": CONFIG} | OTHER_RUNS[other]
    with pytest.raises(DataError, match="run.safetensors"):
        pretrain(run["masked_lm"](), run["sentences"], run["config"], checkpoint=file)
    assert file.read_bytes() == unfinished


def foreign(content):
    from safetensors.torch import save

    return save({"weights": torch.zeros(3)})


@pytest.mark.parametrize("spoil", [lambda content: content[:-100], lambda content: content[:30], lambda content: b"hello world" * 50, lambda content: b"", foreign])
def test_spoiled_state_is_refused_by_name(bert, unfinished, tmp_path, spoil):
    file = tmp_path / "run.safetensors"
    file.write_bytes(spoil(unfinished))
    with pytest.raises(DataError, match="run.safetensors"):
        pretrain(bert, TEXT, CONFIG, checkpoint=file)


@pytest.mark.parametrize(
    "bad",
    [{"steps": 0}, {"steps": 1.5}, {"steps": True}, {"batch_size": -1}, {"batch_size": None}, {"pool": 0}, {"checkpoint_every": 0},
     {"max_length": "64"}, {"mask_probability": 0.0}, {"mask_probability": 1.0}],
)
def test_settings_that_make_no_sense_are_refused_with_their_value(bad):
    [(name, value)] = bad.items()
    with pytest.raises(ValueError, match=f"{name}.*{value!r}"):
        PretrainingConfig(**bad)
    assert asdict(PretrainingConfig())[name] != value


# random initialisation


@pytest.mark.parametrize("family", TINY)
def test_reinitialized_model_has_the_same_shape_and_other_weights(family):
    masked_lm = TINY[family](seed=7)
    before, state = snapshot(masked_lm), torch.random.get_rng_state()
    blank, again, other = reinitialize(masked_lm), reinitialize(masked_lm), reinitialize(masked_lm, seed=1)
    assert_untouched(masked_lm, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    shapes = [{name: weight.shape for name, weight in one.model.named_parameters()} for one in (blank, masked_lm)]
    assert shapes[0] == shapes[1] and blank.tokenizer is masked_lm.tokenizer and not blank.model.training
    assert same_weights(blank, again) and not same_weights(blank, other)
    ours, theirs = dict(blank.model.named_parameters()), dict(masked_lm.model.named_parameters())
    assert not any(same_bits(ours[name], theirs[name]) for name in ours if ours[name].std() > 0)
    assert blank.model.get_output_embeddings().weight is blank.model.get_input_embeddings().weight
