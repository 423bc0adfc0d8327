"""The one forward pass: as transformers has it, at the slots only, whatever the batch; and models that come and go whole."""
import itertools
import json
import random
import shutil
import warnings

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_models import TINY, WORLD, ask, assert_cuts_change_nothing, assert_untouched, same_bits, same_weights, snapshot, tiny_albert, tiny_bert

from modmem.facts import MASK, Benchmark
from modmem.files import DataError
from modmem.batches import _window, bucket_by_length, encode_evidence, find_seen, keep_answerable, make_batch
from modmem.masked_lm import (
    copy_with_own, in_mode, load_masked_lm, MaskedLM,
    predict_pieces, save_masked_lm,
)


@pytest.fixture(scope="module", params=sorted(TINY))
def masked_lm(request):
    return TINY[request.param]()


@pytest.fixture(scope="module")
def bert():
    return tiny_bert()


@pytest.fixture(scope="module")
def saved(masked_lm, tmp_path_factory):
    "A folder with either model; tests copy it before they spoil it."
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_masked_lm(masked_lm, folder)
    return folder


def sentences(masked_lm, length=None):
    "Encoded test evidence, all of one length or all of it."
    encoded = masked_lm.encode(WORLD.test)
    lengths = [len(one.input_ids) for one in encoded]
    length = max(set(lengths), key=lengths.count) if length == "commonest" else length
    return [one for one in encoded if length in (None, len(one.input_ids))]


def score(masked_lm, encoded):
    "The scores at the slots, evidence by evidence."
    with torch.no_grad():
        return masked_lm(masked_lm.batch(encoded)).split([len(one.slots) for one in encoded])


# sentences


def test_encoding_is_what_the_tokenizer_makes_of_the_sentence_with_mask_tokens_in_it(masked_lm):
    tokenizer, several = masked_lm.tokenizer, 0
    for evidence, encoded in zip(WORLD.test, masked_lm.encode(WORLD.test), strict=True):
        pieces = tokenizer(evidence.fact.object, add_special_tokens=False)["input_ids"]
        text = evidence.text.replace(MASK, " ".join([tokenizer.mask_token] * len(pieces)))
        assert encoded.input_ids == tokenizer(text)["input_ids"]
        assert encoded.labels == pieces and [encoded.input_ids[slot] for slot in encoded.slots] == [tokenizer.mask_token_id] * len(pieces)
        several += len(pieces) > 1
    assert several > 5


def test_slot_may_stand_first_last_or_alone(masked_lm):
    first, last, alone = masked_lm.encode([ask(f"{MASK} is where ada was born .", "barton"), ask(f"ada is from {MASK}", "barton"), ask(MASK, "barton")])
    assert first.slots[0] == 1 and last.slots[-1] == len(last.input_ids) - 2 and len(alone.input_ids) == len(alone.slots) + 2
    assert all(len(scores) == len(first.slots) for scores in score(masked_lm, [first, last, alone]))


def test_encoding_nothing_gives_nothing(masked_lm):
    assert masked_lm.encode([]) == [] and masked_lm.predict([]) == [] and masked_lm.answers([]) == []


@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 20), st.integers(0, 20))
@example(length=5, first=4, size=1, room=0)
def test_window_keeps_the_slots_and_as_much_as_fits(length, first, size, room):
    first, limit = first % length, size + room
    length = max(length, first + size)
    window = _window(length, first, first + size - 1, limit)
    assert 0 <= window.start <= first and first + size <= window.stop <= length
    assert window.stop - window.start == min(length, limit)
    left, right = first - window.start, window.stop - first - size
    assert left >= right - 1 or window.start == 0, "the left side could have had more"
    assert right >= left - 1 or window.stop == length, "the right side could have had more"


@given(st.integers(0, 90), st.integers(0, 90), st.sampled_from(["barton", "aldhaven", "apex mills", "birkhaven bank"]))
def test_truncation_keeps_every_slot_and_a_contiguous_part_of_the_sentence(bert, before, after, answer):
    words = ["ada", "was", "born", "in", "works", "for"]
    text = " ".join([*(words[i % 6] for i in range(before)), MASK, *(words[i % 5] for i in range(after))])
    [whole] = encode_evidence(bert.tokenizer, [ask(text, answer)], 512)
    [cut] = encode_evidence(bert.tokenizer, [ask(text, answer)], 64)
    assert len(cut.input_ids) == min(64, len(whole.input_ids)) and cut.labels == whole.labels
    assert cut.input_ids[0] == bert.tokenizer.cls_token_id and cut.input_ids[-1] == bert.tokenizer.sep_token_id
    assert all(cut.input_ids[slot] == bert.tokenizer.mask_token_id for slot in cut.slots)
    shift = whole.slots[0] - cut.slots[0]
    assert cut.input_ids[1:-1] == whole.input_ids[1 + shift : 1 + shift + len(cut.input_ids) - 2]


@pytest.mark.parametrize("filler", ["ada was born . ", "ada  -- \u200b ", "Ada,'s x"])
def test_a_document_is_cut_before_it_is_tokenized_to_the_same_window(masked_lm, monkeypatch, filler):
    from modmem import batches

    texts = [filler * left + "ada was born in [MASK] . " + filler * right for left, right in ((3, 3), (900, 900), (0, 900), (900, 0), (900, 40), (40, 900))]
    evidence, seen, original = [ask(text, "calton") for text in texts], [], batches._pieces_around
    with monkeypatch.context() as patch:
        patch.setattr(batches.Evidence, "around", lambda sentence, words: sentence)
        expected = encode_evidence(masked_lm.tokenizer, evidence, masked_lm.max_length)
    monkeypatch.setattr(batches, "_pieces_around", lambda tokenizer, sentences: seen.extend(sentences) or original(tokenizer, sentences))
    assert encode_evidence(masked_lm.tokenizer, evidence, masked_lm.max_length) == expected
    if filler.endswith(" "):
        assert max(len("".join(parts)) for parts in seen) < 3 * masked_lm.max_length * len(filler)


def test_object_too_long_for_the_model_is_refused_by_name(masked_lm):
    answer = " ".join(["barton"] * 63)
    with pytest.raises(ValueError, match=answer[:20]):
        masked_lm.encode([ask(f"ada was born in {MASK} .", answer)])


def test_object_without_pieces_is_refused(bert):
    with pytest.raises(ValueError, match="200b"):
        bert.encode([ask(f"ada was born in {MASK} .", "\u200b")])


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(1, 20))
def test_buckets_hold_every_sentence_once_sorted_by_length(lengths, batch_size):
    buckets = list(bucket_by_length(lengths, batch_size))
    assert sorted(sum(buckets, [])) == list(range(len(lengths))) and all(len(bucket) <= batch_size for bucket in buckets)
    assert [lengths[i] for i in sum(buckets, [])] == sorted(lengths)


# the forward pass


@pytest.mark.parametrize("length", [None, "commonest"])
def test_scores_are_those_of_transformers_at_the_slots(masked_lm, length):
    encoded = sentences(masked_lm, length)[:24]
    batch = masked_lm.batch(encoded)
    assert (batch.attention_mask is None) == (length is not None)
    longest = max(len(one.input_ids) for one in encoded)
    present = torch.tensor([[1] * len(one.input_ids) + [0] * (longest - len(one.input_ids)) for one in encoded])
    with torch.no_grad():
        theirs = masked_lm.model(input_ids=batch.input_ids, attention_mask=present).logits[batch.rows, batch.columns]
        torch.testing.assert_close(masked_lm(batch), theirs, atol=1e-5, rtol=0)


def test_scores_do_not_depend_on_the_attention_implementation():
    masked_lm = tiny_bert()
    encoded = sentences(masked_lm)[:8]
    expected = score(masked_lm, encoded)
    masked_lm.model.set_attn_implementation("eager")
    torch.testing.assert_close(score(MaskedLM(masked_lm.model, masked_lm.tokenizer), encoded), expected, atol=1e-5, rtol=0)


def test_head_sees_the_slots_and_nothing_else(masked_lm):
    batch = masked_lm.batch(sentences(masked_lm)[:24])
    seen = []
    hook = masked_lm.architecture.head(masked_lm.model).register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    with torch.no_grad():
        scores = masked_lm(batch)
    hook.remove()
    assert seen == [(len(batch.labels), masked_lm.model.config.vocab_size)] == [tuple(scores.shape)]
    assert batch.input_ids.numel() > 4 * len(batch.labels)


def test_pass_cut_at_any_block_is_bitwise_the_whole_pass(masked_lm):
    assert_cuts_change_nothing(masked_lm, masked_lm.batch(sentences(masked_lm)[:16]))


def test_states_handed_out_are_those_transformers_has_at_each_block(masked_lm):
    batch = masked_lm.batch(sentences(masked_lm, "commonest")[:4])
    with torch.no_grad():
        theirs = masked_lm.model(input_ids=batch.input_ids, output_hidden_states=True).hidden_states
        embedded = masked_lm.embed(batch)
        for index, states in enumerate(theirs):
            torch.testing.assert_close(masked_lm.run_blocks(embedded, batch, stop=index), states, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 16])
def test_results_at_one_length_are_bitwise_the_same_whatever_the_batch_and_order(masked_lm, batch_size):
    encoded = sentences(masked_lm, "commonest")[:24]
    assert len(encoded) > 10
    whole = score(masked_lm, encoded)
    order = random.sample(range(len(encoded)), len(encoded))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for position, scores in zip(chosen, score(masked_lm, [encoded[position] for position in chosen])):
            assert same_bits(scores, whole[position]), f"{batch_size} at a time"


def test_results_across_lengths_differ_by_rounding_only(masked_lm):
    encoded = sentences(masked_lm)[:24]
    assert len({len(one.input_ids) for one in encoded}) > 3
    for together, one in zip(score(masked_lm, encoded), encoded):
        torch.testing.assert_close(together, score(masked_lm, [one])[0], atol=1e-5, rtol=0)


def test_padding_of_any_width_and_content_changes_nothing(masked_lm):
    encoded = sentences(masked_lm)[:6]
    longest = max(encoded, key=lambda one: len(one.input_ids))
    with torch.no_grad():
        padded = masked_lm(masked_lm.batch([encoded[0], longest]))
        otherwise = masked_lm(make_batch([encoded[0], longest], pad_token_id=7))
    assert torch.equal(padded, otherwise)


def test_predictions_do_not_depend_on_batch_size_or_order(masked_lm):
    encoded = sentences(masked_lm)
    expected = predict_pieces(masked_lm, encoded)
    order = random.sample(range(len(encoded)), len(encoded))
    shuffled = predict_pieces(masked_lm, [encoded[position] for position in order], batch_size=5)
    assert [expected[position] for position in order] == shuffled


# answers


def test_answers_are_ranked_as_by_trying_all_combinations(masked_lm):
    [encoded] = masked_lm.encode([next(one for one in WORLD.test if len(masked_lm.encode([one])[0].slots) == 2)])
    [scores] = score(masked_lm, [encoded])
    scores = scores.log_softmax(-1)
    products = scores[0][:, None] + scores[1][None, :]
    best = products.flatten().topk(12).indices
    expected = [divmod(int(position), products.shape[1]) for position in best]
    assert predict_pieces(masked_lm, [encoded], top_k=12)[0] == expected


def test_answer_is_right_only_if_every_piece_is(bert):
    masked_lm = tiny_bert()
    evidence = next(one for one in WORLD.test if one.fact.relation == "employer")
    [encoded] = masked_lm.encode([evidence])
    first, second = encoded.labels
    for wanted, right in (((first, second), True), ((first, first), False), ((second, second), False), ((second, first), False)):
        masked_lm.score_slots = lambda slots: torch.nn.functional.one_hot(torch.tensor(wanted), len(masked_lm.tokenizer)).float()
        assert masked_lm.answers([evidence]) == [right]


def test_predict_gives_text_for_one_evidence_and_a_list_for_several(masked_lm):
    one, two = WORLD.test[0], WORLD.test[3]
    answers = masked_lm.predict(one, top_k=3)
    assert len(answers) == len(set(answers)) == 3 and all(isinstance(answer, str) for answer in answers)
    assert masked_lm.predict([one, two], top_k=3) == [answers, masked_lm.predict(two, top_k=3)]
    assert masked_lm.predict(one) == answers[:1]


def test_decoding_the_labels_gives_the_object_back(masked_lm):
    for encoded, evidence in zip(masked_lm.encode(WORLD.test), WORLD.test):
        assert masked_lm.tokenizer.decode(encoded.labels).strip() == evidence.fact.object


def test_prediction_switches_dropout_off_and_leaves_the_mode_as_it_was(bert):
    masked_lm = tiny_bert()
    for module in masked_lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    masked_lm.model.train()
    before = snapshot(masked_lm)
    assert masked_lm.predict(WORLD.test) == bert.predict(WORLD.test)
    assert_untouched(masked_lm, before)
    with pytest.raises(KeyError), in_mode(masked_lm.model, training=False):
        raise KeyError
    assert_untouched(masked_lm, before)


def test_model_of_another_family_is_refused():
    import transformers

    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10, bos_token_id=0, eos_token_id=0)
    with pytest.raises(ValueError, match="gpt2"):
        MaskedLM(transformers.GPT2LMHeadModel(config), None)


# loading and saving


def test_saved_model_comes_back_with_the_same_bits_and_tokenizer(masked_lm, saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_masked_lm(saved)
    assert same_weights(loaded, masked_lm) and not loaded.model.training
    assert loaded.encode(WORLD.test) == masked_lm.encode(WORLD.test)
    assert same_bits(torch.cat(score(loaded, sentences(loaded))), torch.cat(score(masked_lm, sentences(masked_lm))))
    head, words = loaded.model.get_output_embeddings(), loaded.model.get_input_embeddings()
    assert head.weight is words.weight
    assert {path.suffix for path in saved.iterdir()} == {".json", ".safetensors"}


def test_loading_and_saving_print_nothing_and_leave_the_generator_alone(bert, tmp_path, capfd):
    before = torch.random.get_rng_state()
    save_masked_lm(bert, tmp_path / "model")
    load_masked_lm(tmp_path / "model")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


def test_weights_are_float32_whatever_the_configuration_says(masked_lm, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    edit_json(folder / "config.json", dtype="bfloat16")
    loaded = load_masked_lm(folder)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32} and same_weights(loaded, masked_lm)


def test_missing_head_gives_a_fresh_tied_one_with_one_warning_the_same_at_every_load(masked_lm, tmp_path):
    masked_lm.model.base_model.save_pretrained(tmp_path)
    masked_lm.tokenizer.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no masked-LM head") as caught:
        first = load_masked_lm(tmp_path)
    assert len(caught) == 1 and caught[0].filename == __file__ and "\n" not in str(caught[0].message)
    torch.manual_seed(5)
    with pytest.warns(UserWarning, match="no masked-LM head"):
        second = load_masked_lm(tmp_path)
    assert same_weights(first, second)
    assert first.model.get_output_embeddings().weight is first.model.get_input_embeddings().weight
    ours, theirs = dict(first.model.base_model.named_parameters()), dict(masked_lm.model.base_model.named_parameters())
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_block(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if ".layer.1." not in name and ".albert_layers.0.attention." not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def keep_pickle_only(folder):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def remove(*names):
    return lambda folder: [path.unlink() for path in folder.iterdir() if path.name in names]


SPOILERS = {
    "lacks tensors of the encoder": drop_block,
    "pickle only": keep_pickle_only,
    "empty": empty,
    "missing": shutil.rmtree,
    "not a model's configuration": write("config.json", b"{}"),
    "configuration cut": write("config.json", b'{"model_type": "be'),
    "unheard-of type": write("config.json", b'{"model_type": "nosuch"}'),
    "another family": write("config.json", b'{"model_type": "gpt2", "bos_token_id": null, "eos_token_id": null}'),
    "another size": lambda folder: edit_json(folder / "config.json", hidden_size=48, intermediate_size=48),
    "no weights": remove("model.safetensors"),
    "weights are garbage": write("model.safetensors", b"hello world" * 99),
    "weights cut": lambda folder: write("model.safetensors", (folder / "model.safetensors").read_bytes()[:5000])(folder),
    "no tokenizer": remove("tokenizer.json", "tokenizer_config.json"),
    "tokenizer cut": write("tokenizer.json", b'{"version": "1'),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_folder_without_a_usable_model_is_refused_in_one_line(saved, tmp_path, spoiler):
    folder = shutil.copytree(saved, tmp_path / "model")
    SPOILERS[spoiler](folder)
    with pytest.raises(DataError) as caught:
        load_masked_lm(folder)
    assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)


def test_saving_over_an_older_model_replaces_it_or_leaves_it_alone(bert, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    save_masked_lm(bert, folder)
    (folder / "old.txt").touch()
    monkeypatch.setattr(type(bert.tokenizer), "save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_masked_lm(tiny_bert(seed=1), folder)
    assert same_weights(load_masked_lm(folder), bert) and [path.name for path in tmp_path.iterdir()] == ["model"]
    monkeypatch.undo()
    other = tiny_bert(seed=1)
    save_masked_lm(other, folder)
    assert same_weights(load_masked_lm(folder), other) and not same_weights(other, bert)
    assert not (folder / "old.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["model"]


# copies


def test_copy_shares_what_it_does_not_own_and_leaves_the_original_alone(masked_lm):
    names = [name for name, _ in masked_lm.blocks[0].named_parameters()]
    owned = [name for name, weight in masked_lm.model.named_parameters() if any(weight is own for own in masked_lm.blocks[0].parameters())]
    assert len(owned) == len(names)
    for weight in itertools.islice(masked_lm.model.parameters(), 3):
        weight.requires_grad_(False)
    masked_lm.model.train()
    next(masked_lm.blocks[0].parameters()).grad = torch.ones_like(next(masked_lm.blocks[0].parameters()))
    before = snapshot(masked_lm)
    copied = copy_with_own(masked_lm, owned)
    ours, theirs = dict(copied.model.named_parameters()), dict(masked_lm.model.named_parameters())
    assert {name for name in theirs if ours[name].data_ptr() != theirs[name].data_ptr()} == set(owned)
    assert {name for name, weight in ours.items() if weight.requires_grad} == set(owned) and not copied.model.training
    assert all(weight.grad is None for weight in ours.values()) and same_weights(copied, masked_lm)
    copied(copied.batch(copied.encode(WORLD.test[:3]))).sum().backward()
    with torch.no_grad():
        for name in owned:
            ours[name].add_(1)
    assert_untouched(masked_lm, before)
    masked_lm.model.eval().requires_grad_(True).zero_grad()


def test_copy_without_names_owns_everything_and_keeps_the_head_tied(masked_lm):
    before = snapshot(masked_lm)
    copied = copy_with_own(masked_lm)
    assert copied.model.get_output_embeddings().weight is copied.model.get_input_embeddings().weight
    with torch.no_grad():
        for weight in copied.model.parameters():
            assert weight.requires_grad
            weight.zero_()
    assert_untouched(masked_lm, before)


def test_copy_refuses_a_name_it_does_not_know(bert):
    with pytest.raises(ValueError, match="nosuch"):
        copy_with_own(bert, ["nosuch.weight"])


def test_albert_has_one_block_that_is_applied_many_times():
    masked_lm = tiny_albert(num_blocks=12)
    pointers = {weight.data_ptr() for block in masked_lm.blocks for weight in block.parameters()}
    assert len(masked_lm.blocks) == 12 and len(pointers) == len(list(masked_lm.blocks[0].parameters()))
    batch = masked_lm.batch(masked_lm.encode(WORLD.test[:4]))
    def states():
        hidden, found = masked_lm.embed(batch), []
        for index in range(12):
            hidden = masked_lm.run_blocks(hidden, batch, index, index + 1)
            found.append(hidden)
        return found
    with torch.no_grad():
        before, embedded = states(), masked_lm.embed(batch)
        next(masked_lm.blocks[7].parameters())[0] += 1
        assert all(not torch.equal(a, b) for a, b in zip(states(), before)) and torch.equal(masked_lm.embed(batch), embedded)


# which facts can be said


def test_unsayable_facts_are_left_out_with_all_their_evidence(masked_lm):
    assert keep_answerable(masked_lm.tokenizer, WORLD) is WORLD
    evidence = [ask(f"ada comes from {MASK} .", answer, number) for number, answer in enumerate(["barton", "\u6771\u4eac", " ".join(["barton"] * 11)])]
    facts = tuple(one.fact for one in evidence)
    kept = keep_answerable(masked_lm.tokenizer, Benchmark(facts, (*evidence, *evidence), tuple(evidence), "three", "answered"), max_pieces=10)
    assert [fact.object for fact in kept.facts] == ["barton"] and (len(kept.train), len(kept.test)) == (2, 1)
    assert (kept.name, kept.drawn_from) == ("three", "answered")
    pieces = len(masked_lm.encode(evidence[:1])[0].labels)
    for most, facts_kept in ((pieces, 1), (pieces - 1, 0)):
        assert len(keep_answerable(masked_lm.tokenizer, Benchmark(facts[:1], (), ()), most).facts) == facts_kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_that_are_not_float32_are_refused_at_once(bert, dtype):
    with pytest.raises(ValueError, match=f"expected float32 weights, not {dtype}"):
        MaskedLM(tiny_bert().model.to(dtype), bert.tokenizer)


def test_the_same_words_are_another_question_if_their_object_has_more_pieces(bert):
    text = f"ada works for {MASK} ."
    assert find_seen(bert.tokenizer, [ask(text, "chess"), ask(text, "golf")], [ask(text, "apex mills"), ask(text, "golf")]) == {1: 0}
