"""The real T-REx, where it is at hand: MODMEM_TREX names a folder in LAMA's layout, MODMEM_BERT a model with BERT's vocabulary."""
import os
from collections import Counter

import pytest

from modmem.facts import MASK
from modmem.modification import sample_modifications
from modmem.trex import load_trex

pytestmark = pytest.mark.skipif("MODMEM_TREX" not in os.environ, reason="MODMEM_TREX names no folder with T-REx")


@pytest.fixture(scope="module")
def trex():
    return load_trex(os.environ["MODMEM_TREX"], keep_duplicates=True)


def test_every_example_has_one_mask_and_every_fact_evidence(trex):
    assert all(one.text.count(MASK) == 1 for one in (*trex.train, *trex.test))
    facts = set(trex.facts)
    assert len(facts) == len(trex.facts) == len(trex.test)
    assert {one.fact for one in trex.train} == {one.fact for one in trex.test} == facts


def test_the_subject_is_found_in_nearly_every_sentence(trex):
    found = [one.subject_surface in one.text for one in trex.train]
    assert 0.997 < sum(found) / len(found) < 1
    assert all(one.subject_surface in one.text for one in trex.test)


def test_an_object_id_has_one_label(trex):
    labels = {}
    for fact in trex.facts:
        labels.setdefault(fact.object_id, set()).add(fact.object)
    assert all(len(names) == 1 for names in labels.values())


def test_all_that_may_be_modified_can_be(trex):
    answers = Counter((fact.subject, fact.relation) for fact in trex.facts)
    alone = sum(answers[fact.subject, fact.relation] == 1 for fact in trex.facts)
    modified = sample_modifications(trex, alone, drawn_from="all")
    assert modified.skipped["ambiguous"] + modified.skipped["coinciding"] == len(trex.facts) - alone > 0
    assert modified.skipped["untested"] == modified.skipped["one_object"] == 0
    of_relation = {(fact.relation, fact.object): fact.object_id for fact in trex.facts}
    for old, new in modified.modified_facts.items():
        assert new.object != old.object and new.object_id is not None and (new.relation, new.object) in of_relation
    assert len(modified.modified_train) + len(modified.unmodified_train) == len(trex.train)
    assert len(modified.modified_test) == alone


@pytest.mark.skipif("MODMEM_BERT" not in os.environ, reason="MODMEM_BERT names no model with BERT's vocabulary")
def test_every_label_is_one_piece_and_comes_back_from_it(trex):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(os.environ["MODMEM_BERT"])
    labels = sorted({fact.object for fact in trex.facts})
    pieces = tokenizer(labels, add_special_tokens=False)["input_ids"]
    assert all(len(ids) == 1 and ids[0] != tokenizer.unk_token_id for ids in pieces)
    assert [tokenizer.decode(ids) for ids in pieces] == [label.lower() for label in labels]


@pytest.mark.skipif("MODMEM_BERT" not in os.environ, reason="MODMEM_BERT names no model with BERT's vocabulary")
def test_word_piece_reads_sentences_in_parts_as_it_reads_them_whole(trex):
    from transformers import AutoTokenizer

    from modmem.batches import encode_evidence

    tokenizer = AutoTokenizer.from_pretrained(os.environ["MODMEM_BERT"])
    evidence = [*trex.train, *trex.test]
    sides = tokenizer([side.strip() for one in evidence for side in one.text.split(MASK)], add_special_tokens=False, verbose=False)["input_ids"]
    labels = tokenizer([one.fact.object for one in evidence], add_special_tokens=False)["input_ids"]
    for left, object, right, encoded in zip(sides[::2], labels, sides[1::2], encode_evidence(tokenizer, evidence, 100_000), strict=True):
        assert encoded.labels == object and encoded.input_ids[1:-1] == [*left, *[tokenizer.mask_token_id] * len(object), *right]
