"""Pretraining: what is hidden of a sentence, and runs that survive interruption."""
import os
import signal
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch
from tiny_models import TINY, WORLD, ask, assert_untouched, same_bits, same_weights, snapshot, tiny_albert, tiny_bert

import modmem.pretraining
from modmem.facts import MASK
from modmem.files import DataError
from modmem.batches import EncodedEvidence
from modmem.finetuning import slot_loss
from modmem.pretraining import PretrainingConfig, _mask_pieces, encode_sentences, pretrain, reinitialize

TEXT = [one.text.replace(MASK, one.fact.object) for one in WORLD.train[:60]]
CONFIG = PretrainingConfig(steps=12, batch_size=8, learning_rate=2e-3, pool=3, checkpoint_every=4)


@pytest.fixture(scope="module")
def bert():
    return tiny_bert()


@pytest.fixture(scope="module")
def whole(bert):
    "A run that nobody interrupts: the model, and the loss of each step."
    return pretrain(bert, TEXT, CONFIG)


# what is hidden


def many_masked(masked_lm, repeats=300):
    "Plain sentences masked many times: pairs of the sentence and what became of it."
    plain = encode_sentences(masked_lm, TEXT[:20], 128)
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
    [plain, salient] = encode_sentences(bert, [long, ask(f"{long} {MASK} {long}", "barton")], max_length=20)
    assert len(plain.input_ids) == 20
    assert len(salient.input_ids) == 20 and salient.input_ids[salient.slots[0]] == bert.tokenizer.mask_token_id


def test_of_an_evidence_the_object_is_hidden_and_nothing_else(bert):
    [encoded] = encode_sentences(bert, [WORLD.train[0]], 128)
    assert _mask_pieces(encoded, bert.tokenizer, 0.9, torch.Generator()) is encoded and [encoded] == bert.encode([WORLD.train[0]])


def test_masking_leaves_the_sentence_it_was_given_alone(bert):
    one = EncodedEvidence([2, 10, 11, 12, 3], [], [])
    _mask_pieces(one, bert.tokenizer, 0.9, torch.Generator().manual_seed(0))
    assert one == EncodedEvidence([2, 10, 11, 12, 3], [], [])


# runs


def test_no_sentences_are_refused(bert):
    with pytest.raises(ValueError, match="no sentences"):
        pretrain(bert, ["", "  "], CONFIG)


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


def test_two_bytes_a_number_round_the_products_alone(bert, whole):
    trained, losses = pretrain(bert, TEXT, replace(CONFIG, bfloat16=True))
    assert all(0 < abs(ours / theirs - 1) < 0.01 for ours, theirs in zip(losses, whole[1], strict=True))
    assert {weight.dtype for weight in trained.model.parameters()} == {torch.float32} and not same_weights(trained, whole[0])
    again, _ = pretrain(bert, TEXT, CONFIG)
    assert same_weights(again, whole[0])  # nothing is left switched on


class Stopped(Exception):
    "Stands for whatever ends a process."


def stop_after(monkeypatch, steps):
    "Let a run die when it asks for the loss of this step."
    calls = iter(range(10**6))

    def loss(masked_lm, batch):
        if next(calls) == steps:
            raise Stopped
        return slot_loss(masked_lm, batch)

    monkeypatch.setattr(modmem.pretraining, "slot_loss", loss)


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


def test_batches_that_others_make_ahead_change_nothing(bert, whole, tmp_path, monkeypatch):
    makers, make_batch = tmp_path / "makers", modmem.pretraining.make_batch
    makers.mkdir()

    def sign(*arguments):
        (makers / str(os.getpid())).touch()
        return make_batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(modmem.pretraining, "make_batch", sign)
        ahead, losses = pretrain(bert, TEXT, CONFIG, workers=2)
    assert losses == whole[1] and same_weights(ahead, whole[0])
    names = {path.name for path in makers.iterdir()}
    assert len(names) == 2 and str(os.getpid()) not in names
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 5)
        pretrain(bert, TEXT, CONFIG, tmp_path / "unfinished.safetensors", workers=1)
    resumed, _ = pretrain(bert, TEXT, CONFIG, tmp_path / "unfinished.safetensors", workers=1)
    assert same_weights(resumed, whole[0])


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
    "two bytes a number": {"config": replace(CONFIG, bfloat16=True)},
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


def test_a_document_is_cut_before_it_is_tokenized():
    masked_lm, given = tiny_bert(), []

    class Watch:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, texts, **options):
            given.extend(texts)
            return tokenizer(texts, **options)

    tokenizer, masked_lm.tokenizer = masked_lm.tokenizer, Watch()
    document = " ".join(["ada ( the painter ) was born in barton ."] * 10_000)
    [encoded] = encode_sentences(masked_lm, [document], 24)
    assert encoded.input_ids == tokenizer(document, truncation=True, max_length=24)["input_ids"] and len(encoded.input_ids) == 24
    assert [len(text) < 400 for text in given] == [True]
