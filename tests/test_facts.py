"""Facts are identified by id, evidence has one slot, sequences may be computed on demand."""
from dataclasses import FrozenInstanceError, replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modmem.facts import MASK, Benchmark, Evidence, Fact, LazySequence, benchmark_statistics, evidence_statistics

ADA = Fact("1", "Ada Ash", "born in", "Paris", "Q1", "Q90")


def test_a_fact_is_its_id():
    changed = replace(ADA, object="London", object_id="Q84")
    namesake = replace(ADA, id="2")
    assert ADA == changed and hash(ADA) == hash(changed) and {ADA: 1}[changed] == 1
    assert ADA != namesake and len({ADA, changed, namesake}) == 2
    assert ADA != "1"


@pytest.mark.parametrize("name", ["id", "subject", "relation", "object"])
@pytest.mark.parametrize("value", ["", "  ", None, 3])
def test_a_fact_needs_text(name, value):
    with pytest.raises(ValueError, match=f"a fact's {name} must be text that is not empty, not {value!r}"):
        replace(ADA, **{name: value})


def test_facts_and_evidence_are_frozen():
    for value in (ADA, Evidence(ADA, f"Ada left {MASK}.")):
        with pytest.raises((FrozenInstanceError, TypeError)):
            value.fact = value.object = "London"


@pytest.mark.parametrize("text", [MASK, f"{MASK} is where Ada was born.", f"Ada left {MASK}", f"the[MASK]s, [mask] and [ MASK ]"])
def test_an_evidence_with_one_slot(text):
    assert Evidence(ADA, text).text == text


@pytest.mark.parametrize(("text", "slots"), [("", 0), ("Ada left Paris.", 0), (f"{MASK} {MASK}", 2), (MASK * 3, 3)])
def test_an_evidence_without_exactly_one_slot(text, slots):
    with pytest.raises(ValueError, match=rf"exactly one \[MASK\], found {slots}"):
        Evidence(ADA, text)


def test_drawn_from_is_checked():
    with pytest.raises(ValueError, match="'answered', not 'some'"):
        Benchmark((), (), (), drawn_from="some")


@given(st.integers(0, 9), st.slices(9) | st.slices(20))
def test_a_lazy_sequence_slices_like_a_list(length, part):
    assert list(LazySequence(length, lambda i: i * i)[part]) == [i * i for i in range(length)][part]


@given(st.integers(0, 9), st.integers(-12, 12))
def test_a_lazy_sequence_indexes_like_a_list(length, position):
    lazy, eager = LazySequence(length, lambda i: i * i), [i * i for i in range(length)]
    if -length <= position < length:
        assert lazy[position] == lazy[numpy.int64(position)] == eager[position]
    else:
        with pytest.raises(IndexError, match=str(position)):
            lazy[position]


def test_a_lazy_sequence_is_a_sequence():
    lazy = LazySequence(4, lambda i: i * i)
    assert len(lazy) == 4 and list(lazy) == [0, 1, 4, 9] and list(reversed(lazy)) == [9, 4, 1, 0]
    assert 9 in lazy and 5 not in lazy and lazy.index(4) == 2


def test_a_lazy_sequence_computes_only_what_is_asked_for():
    asked = []
    lazy = LazySequence(10**12, lambda i: asked.append(i) or i)
    assert lazy[-1] == 10**12 - 1 and lazy[5:8] == (5, 6, 7)
    assert asked == [10**12 - 1, 5, 6, 7]


def test_statistics_of_a_case_counted_by_hand():
    bob, eve = replace(ADA, id="2", subject="Bob"), replace(ADA, id="3", subject="Eve")
    train = [Evidence(fact, text) for fact, text in [(ADA, "a [MASK]"), (ADA, "a [MASK]"), (ADA, "b [MASK]"), (bob, "a [MASK]")]]
    statistics = benchmark_statistics(Benchmark((ADA, bob, eve), train, (Evidence(eve, "c [MASK]"),), name="three"))
    assert statistics.index.tolist() == ["three (training)", "three (test)"]
    assert statistics.columns.tolist() == ["questions", "facts", "distinct_questions"]
    assert statistics.values.tolist() == [[4, 2, 3], [1, 1, 1]]


def test_statistics_of_nothing():
    assert benchmark_statistics(Benchmark((), (), ())).values.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_evidence_statistics_by_hand():
    facts = [Fact("1", "Ann", "born", "Rome"), Fact("2", "Bob Ray", "born", "Oslo"), Fact("3", "Ann", "died", "Rome"), Fact("4", "Cy", "born", "Rome")]
    test = [Evidence(fact, f"{fact.subject} {fact.relation} in {MASK}") for fact in facts]
    texts = [(0, f"Ann came from {MASK} with Bob Ray to Oslo"), (0, f"Ann came from {MASK} with Bob Ray to Oslo"), (2, f"died : Ann , {MASK}")]
    train = [Evidence(facts[which], text) for which, text in texts]
    found = evidence_statistics(Benchmark(facts, train, test), lambda text: len(text.split()))
    assert found["facts"] == 4 and found["relations"] == 2
    assert found["objects of a relation, median"] == 1.5  # born has two, died one
    assert found["effective objects of a relation, median"] == pytest.approx((3 / 4 ** (1 / 3) + 1) / 2)  # shares 2/3 and 1/3; 1
    assert found["objects in several relations, % of objects"] == 50  # Rome
    assert found["facts whose object is in several relations, %"] == 75
    assert found["objects' frequency, relation to all, %"] == pytest.approx(100 * (1 / 12 + 0) / 2)  # born: Rome 2/3, in all 3/4
    assert found["majority, % of test questions"] == 75  # Rome of the born, Rome of the died
    assert found["distinct evidences of a fact, % of evidences"] == pytest.approx(100 * 2 / 3)
    assert found["tokens of an evidence, mean"] == pytest.approx((9 + 9 + 5) / 3)
    assert found["evidences of a fact, mean"] == 0.75 and found["evidences of a fact, 90 % quantile"] == pytest.approx(1.7)
    assert found["an evidence's words in its test, %, mean"] == pytest.approx(100 * (1 / 8 + 1 / 8 + 1) / 3)
    assert found["other entities in an evidence, mean"] == pytest.approx((2 + 2 + 0) / 3)  # Bob Ray and Oslo


def test_of_entities_within_each_other_the_longest_counts_and_a_subject_is_no_other_however_it_is_spelled():
    names = (("1", "Bob Ray", "Oslo"), ("2", "Ray Oslo", "Rome"), ("3", "Bob", "Ray"), ("4", "Cy", "Rome"))
    facts = [Fact(name, subject, "born", answer) for name, subject, answer in names]
    for sentence, others in (
        (Evidence(facts[3], f"Cy saw Bob Ray Oslo in {MASK}"), 2),  # Bob Ray and Oslo
        (Evidence(facts[0], f"Ray saw Cy in {MASK}", "Ray"), 1),
    ):
        found = evidence_statistics(Benchmark(facts, [sentence, Evidence(facts[0], MASK)], [Evidence(facts[0], f"saw {MASK}")]), len)
        assert found["other entities in an evidence, mean"] == others / 2


def test_words_are_shared_with_a_test_only_where_the_fact_has_one():
    untested = replace(ADA, id="2", subject="Bob")
    train = [Evidence(ADA, f"Ada was in {MASK}"), Evidence(untested, f"Bob was in {MASK}")]
    found = evidence_statistics(Benchmark((ADA, untested), train, (Evidence(ADA, f"Ada went to {MASK}"),)), len)
    assert found["an evidence's words in its test, %, mean"] == pytest.approx(100 / 3)


def test_what_is_left_around_the_slot_has_so_many_words_on_either_side():
    sentence = Evidence(ADA, f"One, two - three {MASK} four, five! six")
    assert [sentence.around(words).text for words in (1, 2, 3)] == [f"three {MASK} four,", f"two - three {MASK} four, five!", sentence.text]
