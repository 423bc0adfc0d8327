"""The synthetic world: deterministic, honest about what was shown before, and as large as one likes."""
import re
import tracemalloc
from collections import Counter, defaultdict
from itertools import islice

import pytest

from modmem.facts import MASK, benchmark_statistics
from modmem.synthetic import WorldRecipe, make_blank_model
from modmem.world import (
    CLOZE, _MAX_SUBJECTS, OBJECTS, QUESTIONS, WorldStyle, _name, make_chains, make_person, make_pretraining, make_world, world_vocabulary,
)

NUM_SUBJECTS, NUM_BACKGROUND = 64, 16
PLAIN = list(CLOZE)[:8]  # relations
STYLE = WorldStyle()
TEST_PHRASINGS = {CLOZE[relation][5] for relation in PLAIN} | {f"{QUESTIONS[relation][5]} [Y]" for relation in PLAIN}


def write_out(evidence):
    "Everything about each evidence: two facts are equal as soon as their ids are."
    return [repr(one) for one in evidence]


def phrasing(evidence):
    return evidence.text.replace(evidence.fact.subject, "[X]").replace(MASK, "[Y]")


@pytest.fixture(scope="module")
def text():
    return list(make_pretraining(20_000, NUM_BACKGROUND, NUM_SUBJECTS))


@pytest.fixture(scope="module")
def people():
    return {person.name: person for person in (make_person(number, seed=0) for number in range(NUM_SUBJECTS))}


@pytest.fixture(scope="module")
def background():
    return {make_person(_MAX_SUBJECTS - 1 - number, seed=0).name for number in range(NUM_BACKGROUND)}


def test_relations_and_phrasings():
    assert CLOZE.keys() == QUESTIONS.keys() == OBJECTS.keys() and len(OBJECTS) >= 8
    for table in (CLOZE, QUESTIONS):
        assert all(len(phrasings) >= 6 for phrasings in table.values())
        everything = [one for phrasings in table.values() for one in phrasings]
        assert len(set(everything)) == len(everything)  # no phrasing serves two relations, or training and test
        assert all(one.count("[X]") == 1 for one in everything)
    assert all(one.count("[Y]") == 1 for phrasings in CLOZE.values() for one in phrasings)


def test_a_fact_has_its_training_phrasings_and_one_other_for_the_test():
    world = make_world(NUM_SUBJECTS)
    for fact, test in zip(world.facts, world.test):
        assert test.fact == fact and phrasing(test) == CLOZE[fact.relation][5]
    of = defaultdict(list)
    for one in world.train:
        of[one.fact].append(phrasing(one))
    assert len(of) == len(world.facts) and all(seen == CLOZE[fact.relation][:5] for fact, seen in of.items())
    assert benchmark_statistics(world)["facts"].tolist() == [8 * NUM_SUBJECTS] * 2


@pytest.mark.parametrize("form", ["cloze", "question"])
def test_the_seed_decides_and_more_subjects_only_extend(form):
    small, again, large, other = (make_world(n, seed, form) for n, seed in ((8, 3), (8, 3), (24, 3), (8, 4)))
    for side in ("facts", "train", "test"):
        written = write_out(getattr(small, side))
        assert written == write_out(getattr(again, side)) == write_out(getattr(large, side))[: len(written)]
        assert written != write_out(getattr(other, side))


def test_pretraining_text_is_deterministic_and_only_extends():
    short = write_out(make_pretraining(50, NUM_BACKGROUND, NUM_SUBJECTS, seed=3))
    assert short == write_out(make_pretraining(90, NUM_BACKGROUND, NUM_SUBJECTS, seed=3))[:50]
    assert short != write_out(make_pretraining(50, NUM_BACKGROUND, NUM_SUBJECTS, seed=4))


def test_questions_state_the_same_facts():
    cloze, questions = make_world(NUM_SUBJECTS), make_world(NUM_SUBJECTS, form="question")
    assert write_out(cloze.facts) == write_out(questions.facts)
    assert all(one.text.endswith(f"? {MASK}") for side in (questions.train, questions.test) for one in side)
    with pytest.raises(ValueError, match="not 'poem'"):
        make_world(form="poem")


def test_names_are_distinct():
    assert len({_name(number) for number in range(_MAX_SUBJECTS)}) == _MAX_SUBJECTS
    numbers = [*range(0, _MAX_SUBJECTS, 101), *range(2000)]
    assert len({make_person(number, seed=5).name for number in numbers}) == len(set(numbers))


def test_benchmark_and_background_are_disjoint(people, background):
    assert len(people) == NUM_SUBJECTS and len(background) == NUM_BACKGROUND and not people.keys() & background
    pieces = Counter(piece for name in people for piece in name.split())
    assert len(pieces) < 2 * len(people)  # names share pieces


@pytest.mark.parametrize("number", [-1, _MAX_SUBJECTS])
def test_a_number_beyond_the_names_is_an_error(number):
    with pytest.raises(ValueError, match=f"no number {number}$"):
        make_person(number, seed=0)


def test_no_subject_of_the_benchmark_was_ever_shown_in_a_test_phrasing(text, people):
    shown = defaultdict(set)
    for one in text:
        shown[phrasing(one) in TEST_PHRASINGS].add(one.fact.subject)
        named = [name for name in people if f" {name} " in f" {one.text} "]
        assert named == [one.fact.subject] * (one.fact.subject in people)  # nor in passing
    assert not shown[True] & people.keys()
    known = {name for name, person in people.items() if any(person.pretrained[relation] for relation in PLAIN)}
    assert shown[True] and shown[False] & people.keys() == known  # both kinds of text were drawn


def test_the_background_is_shown_in_every_phrasing(text, background):
    shown = Counter(phrasing(one) for one in text if one.fact.subject in background)
    assert shown.keys() >= TEST_PHRASINGS
    assert len(shown) == 2 * 6 * len(PLAIN)


def test_pretraining_shows_only_the_marked_facts_of_the_benchmark(text, people):
    shown = {(one.fact.subject, one.fact.relation) for one in text if one.fact.subject in people}
    marked = {(name, relation) for name, person in people.items() for relation, yes in person.pretrained.items() if yes and relation in PLAIN}
    assert shown <= marked and len(shown) > 0.99 * len(marked)
    assert len(marked) / (8 * NUM_SUBJECTS) == pytest.approx(0.3, abs=0.06)


def test_the_share_of_facts_that_pretraining_shows_is_a_setting():
    told = {share: {one.fact.id for one in make_pretraining(3000, 1, 8, seed=0, pretrained_share=share) if one.fact.id.split("-")[1] in "01234567"} for share in (0.1, 0.3, 1.0)}
    assert told[0.1] < told[0.3] < told[1.0] and len(told[1.0]) == 64
    for wrong in (0, -0.1, 1.1):
        with pytest.raises(ValueError, match=f"not {wrong}$"):
            make_pretraining(1, 1, 1, pretrained_share=wrong)


def test_pretraining_text_tells_the_truth(text):
    world = {fact.id: repr(fact) for fact in make_world(NUM_SUBJECTS).facts}
    answers = defaultdict(set)
    for one in text:
        answers[one.fact.subject, one.fact.relation].add(one.fact.object)
        assert one.fact.id not in world or repr(one.fact) == world[one.fact.id]
    assert all(len(objects) == 1 for objects in answers.values())


def test_objects_and_famous_people_follow_zipf(text, background):
    for relation, names in OBJECTS.items():
        counts = Counter(make_person(number, seed=0).objects[relation] for number in range(2000))
        harmonic = sum(1 / rank for rank in range(1, len(names) + 1))
        for rank in (1, 2, 4):
            assert counts[names[rank - 1]] / 2000 == pytest.approx(1 / rank / harmonic, abs=0.04)
    mentions = Counter(one.fact.subject for one in text)
    famous = make_person(_MAX_SUBJECTS - 1, seed=0).name
    assert mentions.most_common(1)[0][0] == famous
    assert mentions[famous] / sum(mentions[name] for name in background) == pytest.approx(1 / 3.38, abs=0.03)  # 16 people


def test_chains_hang_together_and_agree_with_the_text(text):
    world = {fact.id: repr(fact) for fact in make_world(NUM_SUBJECTS).facts}
    chains = list(make_chains(NUM_SUBJECTS))
    places = defaultdict(set)
    for works_for, based_in, lies_in in chains:
        assert repr(works_for) == world[works_for.id] and works_for.relation == "employer"
        assert (works_for.object, based_in.object) == (based_in.subject, lies_in.subject)
        assert based_in.object in OBJECTS["birthplace"] and lies_in.object in OBJECTS["citizenship"]
        places[based_in.subject].add(based_in.object)
        places[lies_in.subject].add(lies_in.object)
    for one in text:
        if one.fact.relation in ("based in", "lies in"):
            places[one.fact.subject].add(one.fact.object)
    assert all(len(objects) == 1 for objects in places.values())
    assert len({chain[-1].object for chain in chains}) > 3


def test_a_million_facts_take_no_memory():
    tracemalloc.start()
    world = make_world(num_subjects=125_000)
    assert len(world.facts) == len(world.test) == 1_000_000 and len(world.train) == 5_000_000
    for _ in islice(world.train, 2000):
        pass
    for position in range(0, len(world.test), 2003):
        world.test[position]
    text = make_pretraining(10**9, num_background=100, num_subjects=125_000)
    assert text[-1].text
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize("num_subjects", [0, -1, _MAX_SUBJECTS + 1])
def test_a_world_that_has_no_names_for_its_subjects_is_refused(num_subjects):
    with pytest.raises(ValueError, match=rf"(?<!\d){num_subjects}(?!\d)"):
        make_world(num_subjects)


def test_benchmark_and_background_that_would_meet_are_refused():
    with pytest.raises(ValueError, match=str(_MAX_SUBJECTS)):
        make_pretraining(10, num_background=_MAX_SUBJECTS, num_subjects=1)


@pytest.fixture(scope="module")
def tokenizer():
    return make_blank_model(WorldRecipe(num_blocks=1, hidden_size=12, intermediate_size=12, num_heads=1)).tokenizer


def test_every_name_has_three_known_pieces(tokenizer):
    firsts = [_name(number).split()[0] for number in range(0, _MAX_SUBJECTS, 1000)]
    surnames = [_name(number).split()[1] for number in range(4000)]
    assert len(set(surnames)) == 64 * 60
    assert {name: tokenizer.tokenize(name) for name in set(firsts) if tokenizer.tokenize(name) != [name]} == {}
    assert {name: pieces for name in set(surnames) if len(pieces := tokenizer.tokenize(name)) != 2 or "[UNK]" in pieces} == {}


def test_every_sentence_and_object_is_made_of_known_pieces(tokenizer, text):
    objects = sorted({name for names in OBJECTS.values() for name in names})
    sentences = sorted({f"{phrasing(one)} {one.fact.object}".replace("[X]", "ada").replace("[Y]", "") for one in text})
    sentences += [one.text for side in ("train", "test") for form in ("cloze", "question") for one in getattr(make_world(1, form=form), side)]
    for some in (objects, sentences):
        unknown = [one for one, ids in zip(some, tokenizer(some)["input_ids"]) if tokenizer.unk_token_id in ids]
        assert unknown == []
    sizes = Counter(len(ids) for ids in tokenizer(objects, add_special_tokens=False)["input_ids"])
    assert sizes.keys() == {1, 2} and sizes[2] >= 24  # the employers, and some towns


def test_the_vocabulary_is_small_and_has_no_entry_twice(tokenizer):
    pieces = world_vocabulary()
    assert len(set(pieces)) == len(pieces) < 600
    assert tokenizer.convert_tokens_to_ids(pieces) == list(range(len(pieces)))


@pytest.fixture(scope="module")
def faithful():
    return make_world(12, style=STYLE)


def test_a_faithful_world_is_lazy_deterministic_and_only_extends(faithful):
    for side in ("facts", "train", "test"):
        written = write_out(getattr(faithful, side))
        assert written == write_out(getattr(make_world(24, style=STYLE), side))[: len(written)]
    assert make_world(100_000, style=STYLE).train[-1].text


def test_evidences_are_spread_as_the_style_says(faithful):
    counts = Counter(one.fact for one in faithful.train)
    for start in range(0, len(faithful.facts), 10):
        assert sorted(counts[fact] for fact in faithful.facts[start : start + 10]) == sorted(STYLE.evidences)


def test_neighbours_are_other_people_and_never_speak_in_test_phrasings(faithful):
    patterns = {side: [as_pattern(text) for texts in CLOZE.values() for text in texts[part]] for side, part in (("train", slice(5)), ("test", slice(5, None)))}
    subjects, sizes, alone = {fact.subject for fact in faithful.facts}, Counter(), Counter()
    for one in faithful.train:
        sentences = one.text.removesuffix(" .").split(" . ")
        own = [sentence for sentence in sentences if MASK in sentence]
        others = [sentence for sentence in sentences if MASK not in sentence]
        assert len(own) == 1 and one.fact.subject in own[0]
        assert not [name for name in subjects for other in others if name in other]
        assert phrasing_of(own[0], one) in {text.removesuffix(" .") for text in CLOZE[one.fact.relation][:5]}
        assert all(any(pattern.fullmatch(other) for pattern in patterns["train"]) for other in others)
        assert not [other for other in others for pattern in patterns["test"] if pattern.fullmatch(other)]
        assert len({other.group("subject") for other in (speaks_of(text, patterns["train"]) for text in others)}) == len(others)
        sizes[len(others)] += 1
        alone.update(set(others))
    assert all(sizes[size] / len(faithful.train) == pytest.approx(1 / 3, abs=0.04) for size in STYLE.contexts)
    assert alone.most_common(1)[0][1] < 0.01 * len(faithful.train)  # fresh for every evidence


def as_pattern(text):
    return re.compile(re.escape(text.removesuffix(" .")).replace(r"\[X\]", r"(?P<subject>\w+ \w+)").replace(r"\[Y\]", r"\w+( \w+)?"))


def speaks_of(sentence, patterns):
    return next(found for pattern in patterns if (found := pattern.fullmatch(sentence)))


def phrasing_of(sentence, evidence):
    return sentence.replace(evidence.fact.subject, "[X]").replace(MASK, "[Y]")


def test_tests_are_plain_and_there_are_two(faithful):
    assert len(faithful.test) == 2 * len(faithful.facts)
    for place, one in enumerate(faithful.test):
        assert phrasing(one) == CLOZE[one.fact.relation][5 + place % 2]


def test_relations_share_objects():
    assert set(OBJECTS["workplace"]) == set(OBJECTS["birthplace"]) and OBJECTS["workplace"] != OBJECTS["birthplace"]


@pytest.mark.parametrize("wrong", [{"evidences": (1,)}, {"contexts": ()}, {"contexts": (-1,)}, {"num_tests": 3}, {"relations": ("shoe size",)}])
def test_a_style_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError):
        WorldStyle(**wrong)
