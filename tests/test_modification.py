"""Choosing S and M: which facts may be modified, what they become, and that no evidence is lost."""
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modmem.facts import MASK, Benchmark, Evidence, Fact, LazySequence
from modmem.modification import answered_facts, apply_modifications, draw_new_object, sample_modifications
from modmem.world import make_world


def make_benchmark(rows, drawn_from="all"):
    "Rows of (subject, relation, object, training questions, test questions)."
    facts = [Fact(str(n), subject, relation, name, f"Q{subject}", f"Q{relation}{name}") for n, (subject, relation, name, *_) in enumerate(rows)]
    train = [Evidence(fact, f"{fact.subject} {n} {MASK}") for fact, row in zip(facts, rows) for n in range(row[3])]
    test = [Evidence(fact, f"{fact.subject} ? {MASK} {n}") for fact, row in zip(facts, rows) for n in range(row[4])]
    return Benchmark(tuple(facts), tuple(train), tuple(test), drawn_from=drawn_from)


ROWS = st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("rs"), st.sampled_from("wxyz"), st.integers(0, 3), st.integers(0, 2))
BENCHMARKS = st.lists(ROWS, min_size=1, max_size=16).map(make_benchmark)
SEEDS = st.integers(0, 5)


def may_be_modified(benchmark, fact):
    namesake = any(other != fact and (other.subject, other.relation) == (fact.subject, fact.relation) for other in benchmark.facts)
    tested = any(one.fact == fact for one in benchmark.test)
    another = any(one.fact.relation == fact.relation and one.fact.object != fact.object for one in benchmark.train)
    return another and tested and not namesake


@st.composite
def samples(draw):
    "A benchmark, how many facts of it may be modified, and a seed."
    benchmark = draw(BENCHMARKS)
    eligible = sum(may_be_modified(benchmark, fact) for fact in benchmark.facts)
    assume(eligible)
    return benchmark, eligible, draw(SEEDS)


def write_out(modified):
    "Everything in it: two facts are equal as soon as their ids are."
    return repr(modified)


@given(samples(), st.data(), st.sampled_from(["relation", "global"]))
def test_every_evidence_is_on_one_side_and_modified_ones_have_the_new_object(sample, data, frequency):
    benchmark, eligible, seed = sample
    modified = sample_modifications(benchmark, data.draw(st.integers(1, eligible)), seed, object_frequency=frequency)
    new = {fact.id: fact for fact in modified.modified_facts.values()}
    for before, ours, theirs in (
        (benchmark.train, modified.modified_train, modified.unmodified_train),
        (benchmark.test, modified.modified_test, modified.unmodified_test),
    ):
        expected = [replace(one, fact=new[one.fact.id]) for one in before if one.fact.id in new]
        assert [repr(one) for one in ours] == [repr(one) for one in expected]
        assert [repr(one) for one in theirs] == [repr(one) for one in before if one.fact.id not in new]


@given(samples(), st.data(), st.sampled_from(["relation", "global"]))
def test_a_new_object_is_another_one_of_the_relation_and_brings_its_id(sample, data, frequency):
    benchmark, eligible, seed = sample
    modified = sample_modifications(benchmark, data.draw(st.integers(1, eligible)), seed, object_frequency=frequency)
    trained = {(one.fact.relation, one.fact.object) for one in benchmark.train}
    for old, new in modified.modified_facts.items():
        assert repr(old) == repr(next(fact for fact in benchmark.facts if fact == old))
        assert repr(new) == repr(replace(old, object=new.object, object_id=f"Q{old.relation}{new.object}"))
        assert new.object != old.object and (old.relation, new.object) in trained


@given(samples())
def test_only_facts_that_may_be_modified_are_and_the_others_are_counted(sample):
    benchmark, eligible, seed = sample
    modified = sample_modifications(benchmark, eligible, seed)
    assert {fact.id for fact in modified.modified_facts} == {fact.id for fact in benchmark.facts if may_be_modified(benchmark, fact)}
    assert sum(modified.skipped.values()) == len(benchmark.facts) - eligible


@given(samples(), st.data())
def test_fewer_modified_facts_are_the_first_of_more_with_the_same_new_objects(sample, data):
    benchmark, eligible, seed = sample
    some = data.draw(st.integers(1, eligible))
    few, all_of_them = sample_modifications(benchmark, some, seed), sample_modifications(benchmark, eligible, seed)
    assert [repr(pair) for pair in few.modified_facts.items()] == [repr(pair) for pair in all_of_them.modified_facts.items()][:some]
    assert few.skipped == all_of_them.skipped


@given(samples(), st.data())
def test_the_seed_decides(sample, data):
    benchmark, eligible, seed = sample
    some = data.draw(st.integers(1, eligible))
    assert write_out(sample_modifications(benchmark, some, seed)) == write_out(sample_modifications(benchmark, some, seed))


def test_other_seeds_choose_other_facts():
    world = make_world(num_subjects=16)
    chosen = [sample_modifications(world, 16, seed).modified_facts for seed in range(3)]
    assert len({frozenset(facts) for facts in chosen}) == 3


def test_each_fact_and_each_seed_has_a_draw_of_its_own():
    frequency = Counter("wxyz")
    for draws in (
        [draw_new_object(Fact(str(number), "a", "r", "old"), frequency, 0) for number in range(40)],
        [draw_new_object(Fact("1", "a", "r", "old"), frequency, seed) for seed in range(40)],
    ):
        assert set(draws) == set("wxyz")


@pytest.mark.parametrize("form", ["cloze", "question"])
def test_a_benchmark_that_is_computed_on_demand(form):
    lazy = make_world(num_subjects=8, form=form)
    eager = Benchmark(tuple(lazy.facts), tuple(lazy.train), tuple(lazy.test))
    assert isinstance(lazy.facts, LazySequence)
    assert write_out(sample_modifications(lazy, 5)) == write_out(sample_modifications(eager, 5))


SKIPPED = [  # rows of a benchmark in which all but the first two facts are skipped, for the reason given
    ("one_object", [("c", "s", "x", 1, 1), ("d", "s", "x", 1, 1)]),
    ("one_object", [("c", "s", "x", 1, 1), ("d", "s", "X", 1, 1)]),
    ("ambiguous", [("c", "r", "x", 1, 1), ("c", "r", "y", 1, 1)]),
    ("ambiguous", [("c", "r", "x", 1, 1), ("c", "r", "y", 1, 1), ("c", "r", "y", 1, 1)]),
    ("coinciding", [("c", "r", "x", 1, 1), ("c", "r", "x", 1, 1)]),
    ("untested", [("c", "r", "x", 1, 0)]),
]


@pytest.mark.parametrize(("reason", "rows"), SKIPPED)
def test_skipped_facts_are_counted_by_reason_and_stay_unmodified(reason, rows):
    benchmark = make_benchmark([("a", "r", "x", 1, 1), ("b", "r", "y", 1, 1), *rows])
    modified = sample_modifications(benchmark, 2)
    assert [fact.subject for fact in sorted(modified.modified_facts, key=lambda fact: fact.id)] == ["a", "b"]
    assert modified.skipped == dict.fromkeys(("untested", "ambiguous", "coinciding", "one_object"), 0) | {reason: len(rows)}
    assert len(modified.unmodified_train) == len(rows)
    with pytest.raises(ValueError, match="between 1 and 2, the facts that may be modified, not 3"):
        sample_modifications(benchmark, 3)


def test_an_object_that_only_the_test_has_cannot_be_drawn():
    benchmark = make_benchmark([("a", "r", "x", 1, 1), ("b", "r", "y", 1, 1), ("c", "r", "z", 0, 1)])
    drawn = {new.object for seed in range(30) for new in sample_modifications(benchmark, 3, seed).modified_facts.values()}
    assert drawn == {"x", "y"}


def count_new_objects(object_frequency):
    "How often each object replaces w: within r, x answers 1 question and y 3; over all relations 9 and 3."
    benchmark = make_benchmark([("a", "r", "w", 50, 1), ("b", "r", "x", 1, 0), ("c", "r", "y", 3, 0), ("d", "s", "x", 8, 0), ("e", "s", "z", 9, 0)])
    return Counter(
        new.object
        for seed in range(600)
        for new in sample_modifications(benchmark, 1, seed, object_frequency=object_frequency).modified_facts.values()
    )


@pytest.mark.parametrize(("object_frequency", "share"), [("relation", 1 / 4), ("global", 9 / 12)])
def test_new_objects_are_as_frequent_as_the_option_says(object_frequency, share):
    counts = count_new_objects(object_frequency)
    assert counts.keys() == {"x", "y"}  # never z, which is no object of r, nor w, the old one
    assert counts["x"] / 600 == pytest.approx(share, abs=0.06)  # three standard deviations


def test_drawing_needs_another_object_of_some_weight():
    fact = Fact("1", "a", "r", "x")
    assert {draw_new_object(fact, Counter(x=9, X=9, y=1, z=0), seed) for seed in range(20)} == {"y"}  # X is x in capitals
    with pytest.raises(ValueError, match="'r' has no other object than 'x'"):
        draw_new_object(fact, Counter(x=9, z=0), 0)


def test_a_draw_does_not_depend_on_the_order_of_the_objects():
    fact, counts = Fact("1", "a", "r", "x"), {"v": 1, "w": 2, "y": 3, "z": 4}
    backwards = dict(reversed(counts.items()))
    for seed in range(20):
        assert draw_new_object(fact, Counter(counts), seed) == draw_new_object(fact, Counter(backwards), seed)


ANSWERABLE = make_benchmark([(subject, "r", name, 1, 2) for subject, name in zip("abcdef", "xyxyxy")], drawn_from="answered")


class Answerer:
    "Answers the test questions of some facts, or only their first."

    def __init__(self, known, half_known=()):
        self.known, self.half_known = known, half_known

    def answers(self, evidence):
        return [one.fact.subject in self.known or (one.fact.subject in self.half_known and one.text.endswith("0")) for one in evidence]


def test_a_fact_is_answered_if_all_its_questions_are():
    assert answered_facts(Answerer("ac", half_known="bd"), ANSWERABLE) == {"0", "2"}
    untested = make_benchmark([("a", "r", "x", 1, 0), ("b", "r", "y", 1, 1)])
    assert answered_facts(Answerer("ab"), untested) == {"1"}


def test_only_answered_facts_are_modified_and_the_others_counted():
    for answered_by in (Answerer("ace"), ["0", "2", "4"], frozenset({"4", "0", "2", "not in F"})):
        modified = sample_modifications(ANSWERABLE, 3, answered_by=answered_by)
        assert {fact.subject for fact in modified.modified_facts} == set("ace")
        assert modified.skipped["unanswered"] == 3
        with pytest.raises(ValueError, match="between 1 and 3"):
            sample_modifications(ANSWERABLE, 4, answered_by=answered_by)


@given(SEEDS, st.integers(1, 4))
def test_s_is_the_same_whatever_the_start(seed, num_modified):
    "S depends on what the pretrained model answers, given as the model or as ids; no other model takes part."
    pretrained = Answerer("abce")
    ids = answered_facts(pretrained, ANSWERABLE)
    expected = write_out(sample_modifications(ANSWERABLE, num_modified, seed, answered_by=pretrained))
    assert write_out(sample_modifications(ANSWERABLE, num_modified, seed, answered_by=ids)) == expected
    assert write_out(sample_modifications(ANSWERABLE, num_modified, seed, answered_by=sorted(ids, reverse=True))) == expected


def test_the_benchmark_says_what_is_drawn_from_unless_told():
    with pytest.raises(ValueError, match="needs answered_by"):
        sample_modifications(ANSWERABLE, 1)
    assert len(sample_modifications(ANSWERABLE, 6, drawn_from="all").modified_facts) == 6
    open_to_all = replace(ANSWERABLE, drawn_from="all")
    assert len(sample_modifications(open_to_all, 6, answered_by=["0"]).modified_facts) == 6
    with pytest.raises(ValueError, match="between 1 and 1"):
        sample_modifications(open_to_all, 2, drawn_from="answered", answered_by=["0"])


@pytest.mark.parametrize("num_modified", [0, -1, 7, 1.0, True, "3", None])
def test_a_number_that_cannot_be_modified_is_named(num_modified):
    with pytest.raises(ValueError, match=f"between 1 and 6, .* not {num_modified!r}$"):
        sample_modifications(ANSWERABLE, num_modified, drawn_from="all")


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="'answered', not 'known'"):
        sample_modifications(ANSWERABLE, 1, drawn_from="known")
    with pytest.raises(ValueError, match="'global', not 'uniform'"):
        sample_modifications(ANSWERABLE, 1, drawn_from="all", object_frequency="uniform")


def test_majority_share_counts_old_objects_that_are_the_commonest():
    rows = [(subject, "r", name, 1 + 8 * (name == "y"), 1) for subject, name in zip("abcd", "xxxy")]
    rows += [(subject, "s", name, 1 + 8 * (name == "x"), 1) for subject, name in zip("efg", "yyx")]
    benchmark = make_benchmark(rows)
    facts = {fact.subject: fact for fact in benchmark.facts}  # x is the commonest of r, y of s: of the facts, not of their sentences
    for chosen, share in (("a", 1), ("d", 0), ("ae", 1), ("adeg", 0.5), ("abcdefg", 5 / 7)):
        modified = apply_modifications(benchmark, {facts[name]: replace(facts[name], object="new") for name in chosen})
        assert modified.majority_share == pytest.approx(share)
    assert sample_modifications(benchmark, 7).majority_share == pytest.approx(5 / 7)


def test_given_modifications_are_applied_as_they_are():
    benchmark = make_benchmark([("a", "r", "x", 2, 1), ("b", "r", "x", 1, 1)])
    new = replace(benchmark.facts[0], object="anything")
    modified = apply_modifications(benchmark, {benchmark.facts[0]: new})
    assert [one.fact.object for one in modified.modified_train + modified.modified_test] == ["anything"] * 3
    assert modified.skipped == {} and len(modified.unmodified_train) == len(modified.unmodified_test) == 1


# Many draws from one benchmark


class CountingSequence(LazySequence):
    "Counts how often an item is asked for."

    def __init__(self, items):
        self.asked = 0
        super().__init__(len(items), lambda position: self._count() or items[position])

    def _count(self):
        self.asked += 1


def test_a_benchmark_is_walked_through_for_the_first_draw_only():
    world = make_world(num_subjects=16)
    sides = CountingSequence(world.train[:]), CountingSequence(world.test[:])
    benchmark = Benchmark(world.facts[:], *sides)
    drawn = [sample_modifications(benchmark, 4, seed) for seed in range(1)]
    after_first = [side.asked for side in sides]
    drawn += [sample_modifications(benchmark, 4, seed) for seed in range(1, 4)]
    assert [side.asked for side in sides] == after_first
    for seed, modified in enumerate(drawn):
        fresh = sample_modifications(Benchmark(world.facts[:], world.train[:], world.test[:]), 4, seed)
        assert vars(modified) == vars(fresh)


def test_what_a_draw_hands_out_does_not_change_the_next():
    world = make_world(num_subjects=16)
    first = sample_modifications(world, 4)
    first.skipped["untested"] = 99
    first.modified_facts.clear()
    again = sample_modifications(world, 4)
    assert again.skipped["untested"] == 0 and len(again.modified_facts) == 4
