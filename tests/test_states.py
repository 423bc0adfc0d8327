"""What is stored below an edit, and what is computed at the slots only: against transformers' own pass, everywhere and every time."""
import gc
import weakref

import pytest
import torch
from tiny_models import TINY, WORLD, tiny_bert

from modmem.blocks import select_parameters
from modmem.editor import ModificationConfig, modify_facts
from modmem.evaluation import evaluate
from modmem.finetuning import FinetuningConfig, finetune
from modmem.masked_lm import MaskedLM, copy_with_own, load_masked_lm, predict_pieces
from modmem.modification import sample_modifications
from modmem.packed import PackedRows
from modmem.world import WorldStyle, make_world

MODIFIED = sample_modifications(WORLD, num_modified=8, seed=0)


def score_plainly(masked_lm, encoded):
    "Score every piece at every token, and look at the slots."
    batch = MaskedLM.batch(masked_lm, encoded)
    mask = None if batch.attention_mask is None else batch.attention_mask[:, 0, 0].long()
    return masked_lm.model(batch.input_ids, attention_mask=mask).logits[batch.rows, batch.columns]


def answer_plainly(masked_lm, evidence):
    "Which questions are answered, by the plain pass."
    encoded = masked_lm.encode(evidence)
    with torch.no_grad():
        best = [score_plainly(masked_lm, [question]).argmax(-1).tolist() for question in encoded]
    return [pieces == question.labels for pieces, question in zip(best, encoded)]


def shake(masked_lm, blocks, size=0.02):
    "A copy with other weights in some blocks."
    copied = copy_with_own(masked_lm, list(select_parameters(masked_lm, blocks)))
    with torch.no_grad():
        for weight in select_parameters(copied, blocks).values():
            weight.add_(torch.randn_like(weight), alpha=size)
    return copied


CASES = [("bert", 0), ("bert", 1), ("bert", (1, 2)), ("bert", 2), ("bert", "all"), ("albert", "all")]


@pytest.mark.parametrize(("family", "blocks"), CASES)
def test_logits_of_an_edited_copy_are_those_of_transformers(family, blocks):
    copied = shake(TINY[family](), blocks)
    encoded = copied.encode([*WORLD.test[:60], *WORLD.train[:60]])
    for _ in range(2):  # computed, and found again
        for part in (encoded[:1], encoded):
            with torch.no_grad():
                torch.testing.assert_close(copied(copied.batch(part)), score_plainly(copied, part), rtol=0, atol=1e-5)


def test_states_below_are_those_without_dropout_even_of_a_model_that_is_training():
    base = tiny_bert()
    copied = shake(base, 2)
    for module in base.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    base.model.train()
    encoded = copied.encode(WORLD.test[:20])
    with torch.no_grad():
        torch.testing.assert_close(copied(copied.batch(encoded)), score_plainly(copied, encoded), rtol=0, atol=1e-5)
    assert base.model.training


@pytest.mark.parametrize(("family", "blocks"), CASES)
def test_accuracy_of_an_edit_is_identical_by_the_plain_pass(family, blocks):
    base = TINY[family]()
    config = ModificationConfig(blocks, "linf", 0.02, steps=30, batch_size=16, learning_rate=3e-3)
    edited = modify_facts(base, MODIFIED, config).apply_to_copy(base)
    questions = [*MODIFIED.modified_test, *MODIFIED.unmodified_test]
    assert evaluate(edited, MODIFIED).per_fact["correct"].tolist() == answer_plainly(edited, questions)


@pytest.mark.parametrize(("family", "blocks"), CASES)
def test_gradients_are_those_of_the_plain_pass(family, blocks):
    copied, encoded = shake(TINY[family](), blocks), None
    encoded = copied.encode(MODIFIED.modified_train[:24])
    labels = torch.tensor([label for sentence in encoded for label in sentence.labels])
    gradients = []
    for scores in (copied(copied.batch(encoded)), score_plainly(copied, encoded)):
        weights = list(select_parameters(copied, blocks).values())
        gradients.append(torch.autograd.grad(torch.nn.functional.cross_entropy(scores, labels), weights))
    for ours, plain in zip(*gradients):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_several_slots_of_a_sentence_are_read_as_one_by_one():
    bert = tiny_bert()
    [pair] = bert.encode([next(question for question in WORLD.test if len(bert.encode([question])[0].slots) == 2)])
    batch = bert.batch([pair])
    with torch.no_grad():
        hidden = bert.run_blocks(bert.embed(batch), batch)
        torch.testing.assert_close(bert.read_slots(bert.embed(batch), batch), hidden[0, pair.slots], rtol=0, atol=1e-5)


# What is stored


def count_embeddings(monkeypatch):
    "Count the sentences that enter block 0."
    seen, original = [], MaskedLM.embed
    monkeypatch.setattr(MaskedLM, "embed", lambda self, batch: seen.extend(batch.input_ids.tolist()) or original(self, batch))
    return seen


def test_a_sentence_goes_through_the_lower_blocks_once(monkeypatch):
    seen, base = count_embeddings(monkeypatch), tiny_bert()
    evidence = MODIFIED.modified_train
    distinct = len({tuple(sentence.input_ids) for sentence in base.encode(evidence)})
    for radius in (0.01, 0.02):
        modify_facts(base, MODIFIED, ModificationConfig(2, "linf", radius, steps=12, batch_size=16, learning_rate=3e-3))
    assert len(seen) == distinct
    modify_facts(base, MODIFIED, ModificationConfig(1, "linf", 0.01, steps=12, batch_size=16))
    assert len(seen) == 2 * distinct, "other states enter block 1"


def test_nothing_lies_below_the_first_block_or_in_an_albert():
    assert tiny_bert().states_below(0) is None
    assert copy_with_own(tiny_bert()).below is None and copy_with_own(tiny_bert(), list(select_parameters(tiny_bert(), 0))).below is None
    albert = TINY["albert"]()
    assert copy_with_own(albert, list(select_parameters(albert, "all"))).below is None
    head = [name for name, _ in tiny_bert().model.named_parameters() if name.startswith("cls.")]
    assert copy_with_own(tiny_bert(), [*select_parameters(tiny_bert(), 2), *head]).below is None, "the decoder is the embedding"


def test_states_with_dropout_are_not_stored(monkeypatch):
    seen, base = count_embeddings(monkeypatch), tiny_bert()
    finetune(base, MODIFIED.modified_train, FinetuningConfig(steps=5, batch_size=16, dropout=0.1), parameters=list(select_parameters(base, 2)))
    assert len(seen) == 16 + 16 + 8 + 16 + 16, "every batch of 40 sentences goes all the way"


@pytest.mark.parametrize("change", ["in place", "an edit applied", "an optimizer", "loaded"])
def test_states_are_forgotten_when_a_weight_below_changes(change):
    base, other = tiny_bert(), shake(tiny_bert(), 1, size=0.1)
    copied = shake(base, 2)
    encoded = copied.encode(WORLD.test[:8])
    with torch.no_grad():
        before = copied(copied.batch(encoded))
    if change == "in place":
        with torch.no_grad():
            base.blocks[1].output.dense.weight.mul_(1.5)
    elif change == "an edit applied":
        modify_facts(base, MODIFIED, ModificationConfig(1, radius=0.05, steps=6, learning_rate=1e-2)).apply(base)
    elif change == "an optimizer":
        weight = base.blocks[1].output.dense.weight
        weight.grad = torch.randn_like(weight)
        torch.optim.Adam([weight], lr=0.1).step()
    else:
        base.model.load_state_dict(other.model.state_dict())
    with torch.no_grad():
        after, plain = copied(copied.batch(encoded)), score_plainly(copied, encoded)
    torch.testing.assert_close(after, plain, rtol=0, atol=1e-5)
    assert (after - before).abs().max() > 1e-3


def test_a_change_above_leaves_the_states_where_they_are(monkeypatch):
    base = tiny_bert()
    copied, encoded = shake(base, 1), base.encode(WORLD.test[:8])
    copied.batch(encoded)
    seen = count_embeddings(monkeypatch)
    with torch.no_grad():
        base.blocks[2].output.dense.weight.mul_(2)
    copied.batch(encoded)
    assert not seen


def test_an_edit_of_an_edit_reads_what_the_first_one_changed():
    once = shake(tiny_bert(), 1, size=0.1)
    for blocks in (2, 1, 0):
        twice = shake(once, blocks)
        encoded = twice.encode(WORLD.test[:8])
        with torch.no_grad():
            torch.testing.assert_close(twice(twice.batch(encoded)), score_plainly(twice, encoded), rtol=0, atol=1e-5)
    assert shake(once, 1).below is once.below, "below block 1 nothing was changed"
    assert shake(once, 2).below is not once.below.masked_lm.states_below(2)


@pytest.mark.parametrize("budget", [0, 3000, 2**20])
def test_what_does_not_fit_the_budget_is_computed_again(budget, tmp_path, monkeypatch):
    seen = count_embeddings(monkeypatch)
    for folder in (None, tmp_path):
        base = tiny_bert()
        base.states_budget, base.states_folder = budget, folder
        copied = shake(base, 2)
        encoded = copied.encode(WORLD.test)
        first = predict_pieces(copied, encoded)
        seen.clear()
        assert predict_pieces(copied, encoded) == first
        again = len(seen)
        assert again == (len(WORLD.test) if budget == 0 else 0) or budget == 3000 and 0 < again <= len(WORLD.test)
        with torch.no_grad():
            for part in (encoded[:3], encoded[:40]):
                torch.testing.assert_close(copied(copied.batch(part)), score_plainly(copied, part), rtol=0, atol=1e-5)
        assert not list(tmp_path.iterdir()), "the file has no name: it goes with the process"


def test_an_edit_depends_neither_on_what_was_computed_before_it_nor_on_the_budget():
    base, told, edits = load_masked_lm("synthetic"), make_world(8, style=WorldStyle()), []
    modified = sample_modifications(told, num_modified=4, seed=0)
    assert len({len(sentence.input_ids) for sentence in base.encode(modified.modified_train)}) > 5, "nothing would be padded"
    for budget, before in ((2**24, ()), (2**24, told.train[:200]), (2**24, modified.modified_train), (2**16, told.train[:200])):
        masked_lm = MaskedLM(base.model, base.tokenizer)  # which has computed nothing yet
        masked_lm.states_budget = budget
        predict_pieces(shake(masked_lm, 3), masked_lm.encode(before))
        edits.append(modify_facts(masked_lm, modified, ModificationConfig(3, "linf", 0.001, steps=3, batch_size=16)))
    assert len({edit.record["edited_hash"] for edit in edits}) == 1


def test_a_model_takes_its_states_along_when_it_goes():
    base = tiny_bert()
    copied = shake(base, 2)
    copied.batch(copied.encode(WORLD.test[:8]))
    store = weakref.ref(copied.below)
    del base, copied
    gc.collect()
    assert store() is None


# The shelf


def test_rows_take_memory_as_they_come_and_not_as_promised():
    shelf, matrices = PackedRows(3, 2**60), torch.arange(300.0).view(20, 5, 3)  # more than any machine has
    for name, matrix in enumerate(matrices):
        shelf.add(name, matrix)
    assert torch.equal(shelf.gather(range(20)), matrices)
    assert len(shelf._rows) <= 2 * 100


def test_packed_rows_are_found_again_and_padded_with_their_last():
    shelf, matrices = PackedRows(3, 10 * 12), [torch.randn(length, 3) for length in (4, 1, 5)]
    for key, matrix in enumerate(matrices):
        assert key not in shelf
        shelf.add(key, matrix)
    shelf.add("one more", torch.ones(1, 3))
    assert "one more" not in shelf
    together = shelf.gather([2, 1, 0, 2])
    assert together.shape == (4, 5, 3)
    for found, matrix in zip(together, (matrices[2], matrices[1], matrices[0], matrices[2])):
        assert torch.equal(found[: len(matrix)], matrix) and torch.equal(found[len(matrix) :], matrix[-1:].expand(5 - len(matrix), 3))


def test_a_shelf_is_cleared_when_as_much_was_refused_as_fits():
    shelf, matrices = PackedRows(3, 10 * 12), torch.arange(120.0).view(10, 4, 3)
    for key in (0, 1):
        shelf.add(key, matrices[key])
    for key in (2, 3):  # eight rows, of ten that fit
        shelf.add(key, matrices[key])
        assert [one for one in range(10) if one in shelf] == [0, 1]
    shelf.add(4, matrices[4])
    assert not any(key in shelf for key in range(10))
    for key in (5, 6, 7, 8):
        shelf.add(key, matrices[key])
    assert [one for one in range(10) if one in shelf] == [5, 6] and torch.equal(shelf.gather([6, 5]), matrices[[6, 5]])


def test_sentences_that_changed_no_longer_keep_others_from_the_shelf(monkeypatch):
    seen, base = count_embeddings(monkeypatch), tiny_bert()
    encoded = base.encode(WORLD.test)
    longest = max(len(sentence) for sentence in encoded)
    base.states_budget = 16 * longest * 4 * base.model.config.hidden_size
    copied = shake(base, 2)
    copied.batch(encoded[:16])
    for again in range(5):
        seen.clear()
        copied.batch(encoded[16:32])
    assert not seen, "the first sixteen made room"
    copied.batch(encoded[24:40])
    assert len(seen) == len({tuple(sentence.input_ids) for sentence in encoded[32:40]}), "what is there is not computed again"


# Sentences


def test_a_sentence_is_tokenized_once(monkeypatch):
    bert, asked = tiny_bert(), []
    import modmem.masked_lm as module

    original = module.encode_evidence
    monkeypatch.setattr(module, "encode_evidence", lambda tokenizer, evidence, limit: asked.extend(evidence) or original(tokenizer, evidence, limit))
    first = bert.encode(WORLD.test[:8])
    assert shake(bert, 2).encode([*WORLD.test[4:12], *WORLD.test[4:12]])[:4] == first[4:] and len(asked) == 12
    [old], [new] = MODIFIED.modified_test[:1], [question for question in WORLD.test if question.text == MODIFIED.modified_test[0].text]
    assert bert.encode([old])[0].labels != bert.encode([new])[0].labels, "the object counts, too"


def test_tokenized_sentences_do_not_pile_up(monkeypatch):
    monkeypatch.setattr("modmem.masked_lm._MOST_ENCODED", 10)
    bert = tiny_bert()
    assert [bert.encode([sentence])[0] for sentence in WORLD.train[:40]] == tiny_bert().encode(WORLD.train[:40])
    assert len(bert._encoded) <= 11
