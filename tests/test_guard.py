"""Guards, searches, summaries and stacks of edits: what a practitioner's edit costs, and how it is taken back."""
import json
import logging
import math
from dataclasses import replace

import pytest
import torch
from test_cli import FEW, edit_line, edits, one_line, run, saved, small_world, write_edits  # noqa: F401: fixtures
from test_leniency import NO_MASK, trex_record, write_trex
from tiny_models import WORLD, ask, tiny_albert, tiny_bert

from modmem.constraints import PenalizedConfig, modify_constrained, modify_penalized
from modmem.editing import _match_facts
from modmem.editor import Edit, ModificationConfig, modify_facts
from modmem.edits import read_edits
from modmem.evaluation import measure_accuracy, score_objects
from modmem.facts import MASK, Benchmark, Evidence, Fact
from modmem.files import DataError
from modmem.guard import choose_settings, hold_out, list_blocks, make_guard, read_guard
from modmem.masked_lm import hash_weights, load_masked_lm
from modmem.modification import sample_modifications
from modmem.projection import L2Ball
from modmem.stack import HalfEdit, find_conflict, halve_edit, list_layers, load_edit, read_config, remove_edit, save_edit, stack_edits
from modmem.summary import answer_freely, describe_changes

FIRST = ["--blocks", "0", "--radius", "0.01", "--steps", "2", "--learning-rate", "3e-3"]


def guard_line(world, number, **fields):
    question = world.test[number]
    return {"subject": question.fact.subject, "relation": question.fact.relation, "object": question.fact.object, "test": [question.text]} | fields


# Guards

def test_a_guard_that_is_exceeded_writes_nothing_and_exits_with_3(run, edits, small_world):
    guard = write_edits(edits.with_name("guard.jsonl"), *(guard_line(small_world, number) for number in range(8, 192)))
    command = ["edit", "synthetic", edits, "--blocks", "0", "--radius", "inf", "--learning-rate", "0.05", "--steps", "3", "--output", "new/e.safetensors", "--card"]
    code, output, errors = run(*command, "--guard", guard, "--max-drop", "0.5")
    assert (code, output) == (3, "") and errors.count("\n") == 1, errors
    assert "the guard's accuracy fell by" in errors and "--max-drop allows 0.5: nothing was written" in errors
    assert sorted(path.name for path in edits.parent.iterdir()) == ["edits.jsonl", "guard.jsonl"]
    assert run(*command, "--guard", guard, "--max-drop", "100")[0] == 0
    assert (edits.parent / "new" / "e.safetensors").exists() and (edits.parent / "new" / "README.md").exists()


def test_a_guard_leaves_out_what_is_edited_and_its_halves_share_no_fact():
    edited = sample_modifications(WORLD, 4, seed=0)
    names = {(fact.subject, fact.relation) for fact in edited.modified_facts}
    whole, split = (make_guard(WORLD.test, edited, search=search) for search in (False, True))
    assert not whole.choosing and not names & {(one.fact.subject, one.fact.relation) for one in whole.reporting}
    assert sorted(split.choosing + split.reporting, key=WORLD.test.index) == list(whole.reporting)
    assert not {one.fact for one in split.choosing} & {one.fact for one in split.reporting}
    with pytest.raises(ValueError, match="a guard needs questions beside those of the edited facts, found 0"):
        make_guard([Evidence(fact, "so [MASK]") for fact in edited.modified_facts], edited)


def test_a_guard_knows_an_edited_fact_however_its_letters_are_spelt(tmp_path):
    composed, parts = "zo\u00e9 bryant", "zoe\u0301 bryant"
    line = {"subject": composed, "relation": "sport", "object": "chess", "new_object": "golf", "evidence": [f"{composed} plays [MASK] ."]}
    edited = read_edits(write_edits(tmp_path / "edits.jsonl", line))
    asked = {"relation": "sport", "object": "caf\u0065\u0301", "test": [f"{parts} likes [MASK] ."]}
    guard = read_guard(write_edits(tmp_path / "guard.jsonl", asked | {"subject": parts}, asked | {"subject": "ben"}))
    assert [one.fact.subject for one in make_guard(guard.test, edited).reporting] == ["ben"]
    assert guard.test[0].text == f"{composed} likes [MASK] ." and guard.test[0].subject_surface == composed and guard.facts[0].object == "caf\u00e9"
    dataset = [Evidence(Fact("t", parts, "sport", "chess"), "so [MASK]"), Evidence(Fact("u", "ben", "sport", "chess"), "so [MASK]")]
    assert [one.fact.id for one in make_guard(dataset, edited).reporting] == ["u"]


def test_a_guard_knows_an_edited_fact_in_capitals_too():
    edits = sample_modifications(WORLD, 2, seed=0)
    (old, _), questions = edits.modified_facts, WORLD.test[:40]
    shouted = Evidence(replace(old, id="again", subject=old.subject.upper(), relation=old.relation.upper()), f"who ? {MASK}")
    assert make_guard([*questions, shouted], edits).reporting == make_guard(questions, edits).reporting


def test_an_edit_is_found_in_a_dataset_that_spells_its_letters_otherwise():
    facts = tuple(Fact(name, subject, "sport", "chess") for name, subject in (("t", "zoe\u0301 bryant"), ("u", "ben")))
    line = {"id": "t", "subject": "zo\u00e9 bryant", "relation": "sport", "object": "chess", "new_object": "golf"}
    found = _match_facts({"evidence": [line]}, Benchmark(facts, (), ()))
    assert found == {facts[0]: replace(facts[0], object="golf")}


def test_what_earlier_edits_changed_is_no_damage_of_a_later_one(run, tmp_path, small_world):
    lists = [write_edits(tmp_path / f"{number}.jsonl", edit_line(small_world, number, new)) for number, new in enumerate(("calton", "dorton", "calton"))]
    assert run("edit", "synthetic", lists[0], *FIRST, "--output", "1.safetensors")[0] == 0
    assert run("edit", "synthetic", lists[1], "--onto", "1.safetensors", *FIRST[4:], "--output", "2.safetensors")[0] == 0
    guard = write_edits(tmp_path / "guard.jsonl", *(guard_line(small_world, 8 * number) for number in range(5)))
    code, output, errors = run("edit", "synthetic", lists[2], "--onto", "2.safetensors", *FIRST[4:], "--guard", guard, "--max-drop", "100", "--json", "--output", "3.safetensors")
    assert code == 0 and json.loads(output)["guard"]["questions"] == 2, errors


def test_a_search_never_sees_a_test_phrasing_nor_the_other_half():
    masked_lm, edited = tiny_bert(), sample_modifications(WORLD, 3, seed=0)
    guard, seen = make_guard(WORLD.test, edited, max_drop=100.0, search=True), []
    hidden = replace(edited, modified_test=None)  # would fail at a touch

    def make_edit(given, blocks, radius):
        from modmem.editor import modify_facts

        assert given.modified_test == () and not set(given.modified_train) & set(asked)
        seen.append((blocks, radius))
        return modify_facts(masked_lm, given, ModificationConfig(blocks=blocks, radius=radius, steps=1))

    asked = hold_out(hidden)[1]
    guard = replace(guard, reporting=None)
    best, tries = choose_settings(masked_lm, hidden, guard, make_edit, list_blocks(3), "linf")
    assert len(tries) == 16 and seen == [(one.blocks, one.radius) for one in tries] and list_blocks(3) == [0, 1, 2, "all"]
    assert best is max(tries, key=lambda one: one.rank(-math.inf))
    assert all(one.change <= one.radius + 1e-6 for one in tries)


def test_the_last_evidence_is_held_out_and_an_only_one_is_trained_on_as_well():
    edits = sample_modifications(WORLD, 2, seed=0)
    first, second = edits.modified_facts.values()
    one, two = ([sentence for sentence in edits.modified_train if sentence.fact == fact] for fact in (first, second))
    training, asked, single = hold_out(replace(edits, modified_train=(*one[:3], two[0])))
    assert training.modified_train == (*one[:2], two[0]) and training.modified_test == ()
    assert asked == (one[2], two[0]) and single == [second]


def test_of_tries_those_within_the_drop_come_first_and_then_the_best_mean():
    from modmem.guard import Try

    good, costly, better = Try(0, 1, 50.0, 80.0, 1), Try(0, 2, 100.0, 70.0, 1), Try(0, 3, 60.0, 80.0, 1)
    assert max([good, costly, better], key=lambda one: one.rank(79.0)) is better
    assert max([good, costly, better], key=lambda one: one.rank(0.0)) is costly
    assert max([good, replace(good, change=0.5)], key=lambda one: one.rank(0.0)).change == 0.5


def test_blocks_and_radius_are_chosen_and_a_single_evidence_is_told(run, edits, small_world):
    line = edit_line(small_world, 1, "dorton")
    write_edits(edits, edit_line(small_world), line | {"evidence": line["evidence"][:1]})
    command = ["edit", "synthetic", edits, "--blocks", "auto", "--radius", "auto", "--steps", "3", "--learning-rate", "3e-3", "--output", "e.safetensors"]
    code, output, errors = run(*command, "--guard", write_edits(edits.with_name("guard.jsonl"), *(guard_line(small_world, number) for number in range(16, 60))), "--max-drop", "100", "--json")
    assert code == 0, errors
    results, fact = json.loads(output), small_world.facts[8]
    assert errors == f"modmem: {fact.subject!r}, {fact.relation!r} has a single evidence: for it, blocks and radius are chosen on the guard alone\n"
    assert len(results["tries"]) == 16 and {str(one["blocks"]) for one in results["tries"]} == {"0", "2", "3", "all"}
    assert (results["blocks"], results["radius"]) in [(one["blocks"], str(one["radius"]) if one["radius"] else "inf") for one in results["tries"]]
    assert results["guard"]["questions"] < 44


def test_a_guard_may_leave_out_what_is_bad(run, edits):
    folder = write_trex(edits.parent / "data", [*(trex_record(number, obj_label="calton") for number in range(6)), trex_record(9, obj_label="calton", evidences=NO_MASK[:1])])
    command = ["edit", "synthetic", edits, *FEW[:4], "--steps", "1", "--guard", f"trex:{folder}", "--max-drop", "100", "--output", "e.safetensors"]
    assert "field 'masked_sentence'" in (line := one_line(*run(*command))) and line.endswith("(--lenient leaves it out)")
    code, output, errors = run(*command, "--lenient", "--json")
    assert code == 0 and json.loads(output)["guard"]["questions"] == 6 and "left out" in errors, errors


REFUSED = {
    ("--blocks", "auto", "--radius", "1"): "--blocks auto and --radius auto need --guard",
    ("--blocks", "0", "--radius", "auto", "--guard", "synthetic", "--norm", "l2_tensor"): "--radius auto goes with --norm linf or l2",
    ("--blocks", "0", "--radius", "1", "--guard", "absent.jsonl"): "absent.jsonl: no such file",
    ("--blocks", "0", "--radius", "1", "--guard", "trex:absent"): "relations.jsonl: no such file",
    ("--blocks", "0", "--radius", "1", "--guard", "zsre:absent"): "absent: no such file",
    ("--blocks", "0", "--radius", "1", "--max-drop", "-1"): "'--max-drop': expected a number above 0",
    ("--blocks", "0", "--radius", "1", "--max-drop", "nan"): "'--max-drop': expected a number above 0",
    ("--blocks", "0", "--radius", "1", "--guard", "edits.jsonl"): "edits.jsonl:1: field",
    ("--blocks", "0", "--radius", "1", "--onto", "edits.jsonl"): "edits.jsonl: expected a safetensors file",
}


@pytest.mark.parametrize("options", REFUSED, ids=lambda options: " ".join(options[2:]))
def test_options_of_a_guarded_edit_that_make_no_sense(run, edits, options):
    assert REFUSED[options] in one_line(*run("edit", "synthetic", edits, *options, "--output", "e.safetensors"))
    assert [path.name for path in edits.parent.iterdir()] == ["edits.jsonl"]


@pytest.mark.parametrize(
    "line, reason",
    [
        ({"subject": "a", "relation": "b", "object": "c"}, ":1: field 'test': missing"),
        ({"subject": "a", "relation": "b", "object": "c", "test": ["none"]}, ":1: field 'test[0]': an evidence needs exactly one [MASK]"),
        ({"subject": "a", "relation": "b", "object": "c", "tests": ["[MASK]"]}, ":1: field 'tests': expected one of subject, relation, object, test"),
    ],
)
def test_a_bad_line_of_a_guard_is_named(tmp_path, line, reason):
    with pytest.raises(DataError, match=reason.replace("[", r"\[").replace("]", r"\]")):
        read_guard(write_edits(tmp_path / "guard.jsonl", line))


# What came of it

@pytest.mark.parametrize("make", [tiny_bert, tiny_albert])
def test_probabilities_and_ranks_are_those_of_the_plain_scores(make):
    masked_lm, questions = make(), WORLD.test[:40]
    for question, score in zip(questions, score_objects(masked_lm, questions)):
        [one] = masked_lm.encode([question])
        with torch.no_grad():
            scores = masked_lm(masked_lm.batch([one])).softmax(-1)
        each = [scores[place, label] for place, label in enumerate(one.labels)]
        assert score.probability == pytest.approx(math.prod(map(float, each)), rel=1e-4)
        assert score.rank == max(1 + int((row > own).sum()) for row, own in zip(scores, each))
    assert [score.rank == 1 for score in score_objects(masked_lm, questions)] == masked_lm.answers(questions)
    assert [score.answer for score in score_objects(masked_lm, questions)] == [best for best, in masked_lm.predict(questions)]


def test_an_answer_of_free_length_is_the_best_of_one_two_and_three_masks():
    masked_lm, questions = tiny_albert(), WORLD.test[:12]
    for question, (answer, right) in zip(questions, answer_freely(masked_lm, questions)):
        found = []
        before, after = question.text.split("[MASK]")
        for count in (1, 2, 3):
            ids = masked_lm.tokenizer(f"{before}{'[MASK]' * count}{after}", return_tensors="pt")["input_ids"]
            slots = ids[0] == masked_lm.tokenizer.mask_token_id
            with torch.no_grad():
                values, pieces = masked_lm.model(ids).logits[0, slots].log_softmax(-1).max(-1)
            found.append((float(values.mean()), pieces.tolist()))
        assert answer == masked_lm.tokenizer.decode(max(found)[1]).strip()
        assert right == (max(found)[1] == masked_lm.encode([question])[0].labels)


def test_a_sentence_that_fills_the_window_is_asked_freely_too():
    masked_lm = tiny_bert()
    long = ask(" ".join(["chess"] * masked_lm.max_length) + " [MASK]", "chess")
    assert len(answer_freely(masked_lm, [long, ask("[MASK] " + " ".join(["chess"] * masked_lm.max_length), "chess")])) == 2


def test_changed_answers_are_counted_and_the_most_changed_come_first():
    before, after = tiny_bert(seed=0), tiny_bert(seed=1)
    changed, most = describe_changes(before, after, WORLD.test, most=3)
    assert changed == sum(old != new for old, new in zip(before.predict(WORLD.test), after.predict(WORLD.test))) > 3
    sizes = [abs(one["probability_after"] - one["probability_before"]) for one in most]
    assert len(sizes) == 3 and sizes == sorted(sizes, reverse=True) and describe_changes(before, before, WORLD.test) == (0, [])


def test_the_summary_says_the_same_in_json_on_the_card_and_for_people(run, edits, small_world):
    write_edits(edits, edit_line(small_world), edit_line(small_world, 1, "dorton", object=None))
    command = ["edit", "synthetic", edits, *FEW, "--guard", "synthetic", "--max-drop", "100", "--card", "--output", "edit.safetensors"]
    code, output, errors = run(*command, "--json")
    assert code == 0 and output.count("\n") == 1, errors
    results, card = json.loads(output), edits.with_name("README.md").read_text()
    answers = results["answers"]
    assert all(line["correct"] is (line["after"] == line["expected"]) and 0 <= line["probability_before"] <= 1 for line in answers)
    assert {line["old_rank_after"] is None for line in answers if line["expected"] == "dorton"} == {True}
    assert all(line["old_rank_before"] >= 1 for line in answers if line["expected"] == "calton")
    assert results["guard"]["questions"] == 190 and len(results["most_changed_of_the_guard"]) == min(5, results["guard"]["changed"])
    assert results["seconds"] > 0 and {"share_on_face", "max_change", "l2_change"} <= results.keys()
    assert all(line["text"] in card for line in answers) and "| radius | 0.01 |" in card and "guard, changed" in card
    code, output, _ = run(*command)  # over its own card
    assert code == 0 and output.rstrip().splitlines()[-1].endswith(("right", "wrong")) and "rank " in output and "unknown" in output
    edits.with_name("README.md").write_text("my own notes")
    assert "README.md: is there already, and is no card of an edit" in one_line(*run(*command))


def test_progress_is_told_off_a_terminal(run, edits, monkeypatch, caplog):
    from modmem import finetuning

    monkeypatch.setattr(finetuning, "_SILENCE", -1.0)
    code, _, errors = run("edit", "synthetic", edits, *FEW, "--output", "edit.safetensors")
    assert code == 0 and "modmem: fine-tuning: 14 of 15 steps\n" in errors
    assert not logging.getLogger("modmem").handlers


# Small files, and edits on edits

def test_half_an_edit_is_half_the_file_and_needs_its_base_to_be_undone(run, edits, saved, tmp_path):
    code, output, errors = run("edit", "synthetic", edits, *FEW, "--half", "--output", "half.safetensors", "--json")
    assert code == 0, errors
    base, exact, half = load_masked_lm("synthetic"), load_edit(saved), load_edit(tmp_path / "half.safetensors")
    assert isinstance(half, HalfEdit) and json.loads(output)["rounding"] == half.record["rounding"]
    size = sum(mask.numel() for mask in exact.bits.values())
    assert (tmp_path / "half.safetensors").stat().st_size < 2 * size + 20_000 < saved.stat().st_size
    edited, true = half.apply_to_copy(base), exact.apply_to_copy(base)
    gaps = [(ours - theirs).abs().max().item() for ours, theirs in zip(edited.model.parameters(), true.model.parameters())]
    assert 0 < max(gaps) == half.record["rounding"] < 1e-5 and hash_weights(edited) == half.record["edited_hash"]
    for wrong in (None, true):
        with pytest.raises(ValueError, match="takes the base model"):
            half.undo(edited, wrong)
    half.undo(edited, base)
    assert hash_weights(edited) == hash_weights(base)
    with pytest.raises(DataError, match="expected the record of modmem's edit"):
        Edit.load(tmp_path / "half.safetensors")
    assert run("apply", "synthetic", "half.safetensors", "--output", "edited")[0] == 0
    assert hash_weights(load_masked_lm("edited")) == half.record["edited_hash"]
    assert "rounding" in run("show", "half.safetensors")[1]
    assert "does not belong to this model" in one_line(*run("apply", "edited", "half.safetensors", "--output", "twice"))
    for command in (["edit", "synthetic", edits, "--onto", "half.safetensors", "--output", "o"], ["remove", "synthetic", "half.safetensors", "1", "--output", "o"]):
        assert "in half precision" in one_line(*run(*command))


def test_three_edits_are_stacked_in_one_ball_listed_and_removed_in_any_order(run, tmp_path, small_world):
    lists = [write_edits(tmp_path / f"{number}.jsonl", edit_line(small_world, number, new)) for number, new in enumerate(("calton", "dorton", "calton"))]
    code, _, errors = run("edit", "synthetic", lists[0], *FIRST, "--output", "1.safetensors")
    assert code == 0 and "2 steps at learning rate 0.003 hardly reach the radius 0.01" in errors
    for number in (1, 2):
        code, output, errors = run("edit", "synthetic", lists[number], "--onto", f"{number}.safetensors", *FIRST[4:], "--output", f"{number + 1}.safetensors", "--json")
        assert code == 0 and "hardly reach" not in errors, errors  # the first one came near the edge
        models = {key: load_edit(f"{one}.safetensors").apply_to_copy(load_masked_lm("synthetic")) for key, one in (("before", number), ("after", number + 1))}
        earlier = [sentence for one in lists[:number] for sentence in read_edits(one).modified_train]
        assert json.loads(output)["earlier_edits_accuracy"] == {key: measure_accuracy(model, earlier) for key, model in models.items()}
    base, stack = load_masked_lm("synthetic"), load_edit("3.safetensors")
    assert stack.record["outcome"]["max_change"] <= 0.01 * (1 + 1e-5) and len(list_layers(stack.record)) == 3
    shown = run("show", "3.safetensors")[1]
    assert all(f"{number + 1} | {number}.jsonl | {small_world.facts[8 * number].subject}" in shown for number in range(3))
    edited = stack.apply_to_copy(base)
    stack.undo(edited)
    assert hash_weights(edited) == hash_weights(base)

    def alone(*numbers):
        "Those edits and no others, made afresh."
        for place, number in enumerate(numbers):
            onto = ["--onto", f"made{place - 1}.safetensors"] if place else FIRST[:4]
            assert run("edit", "synthetic", lists[number], *onto, *FIRST[4:], "--output", f"made{place}.safetensors")[0] == 0
        return load_edit(f"made{len(numbers) - 1}.safetensors").record

    for gone, others in ((1, (1, 2)), (2, (0, 2)), (3, (0, 1))):
        code, output, errors = run("remove", "synthetic", "3.safetensors", gone, "--output", "left.safetensors", "--json")
        assert code == 0 and json.loads(output)["edits"] == 2, errors
        left, made = load_edit("left.safetensors").record, alone(*others)
        assert left["edited_hash"] == made["edited_hash"] and left["layers"] == made["layers"]
    assert "expected the number of one of several edits" in one_line(*run("remove", "synthetic", "1.safetensors", 1, "--output", "left.safetensors"))
    assert "expected the number of one of several edits" in one_line(*run("remove", "synthetic", "3.safetensors", 4, "--output", "left.safetensors"))


def test_a_conflict_names_both_lines(run, edits, saved, small_world):
    other = write_edits(edits.with_name("other.jsonl"), edit_line(small_world, 2), edit_line(small_world, 1, "calton"))
    line = one_line(*run("edit", "synthetic", other, "--onto", saved, "--output", "o"))
    assert "other.jsonl:2: field 'new_object': expected 'dorton'" in line and "edit 1 (edits.jsonl:2)" in line and "found 'calton'" in line
    write_edits(other, edit_line(small_world, 2, "calton", id="a"), edit_line(small_world, 2, "dorton", id="b"))
    line = one_line(*run("edit", "synthetic", other, *FIRST, "--output", "o"))
    assert "other.jsonl:2: field 'new_object': expected one new object of" in line and "'calton' on line 1 and 'dorton'" in line


@pytest.mark.parametrize("options, name", [(["--radius", "0.02"], "radius"), (["--blocks", "1"], "blocks"), (["--norm", "l2"], "norm")])
def test_a_stack_keeps_to_the_ball_of_its_first_edit(run, edits, saved, small_world, options, name):
    other = write_edits(edits.with_name("other.jsonl"), edit_line(small_world, 2))
    assert f"keeps to the ball of its first edit, with {name}" in one_line(*run("edit", "synthetic", other, "--onto", saved, *options, "--output", "o"))


def test_a_stack_takes_the_norm_of_its_first_edit_unless_one_is_given(run, edits, small_world):
    other = write_edits(edits.with_name("other.jsonl"), edit_line(small_world, 2))
    assert run("edit", "synthetic", edits, "--blocks", "0", "--norm", "l2", "--radius", "0.5", "--steps", "2", "--output", "first.safetensors")[0] == 0
    code, _, errors = run("edit", "synthetic", other, "--onto", "first.safetensors", "--steps", "2", "--output", "second.safetensors")
    assert code == 0 and [layer["config"]["norm"] for layer in list_layers(load_edit("second.safetensors").record)] == ["l2", "l2"], errors
    assert "with norm l2, not linf" in one_line(*run("edit", "synthetic", other, "--onto", "first.safetensors", "--norm", "linf", "--output", "o"))


def test_an_edit_of_another_kind_is_not_replayed():
    with pytest.raises(ValueError, match="only edits by training inside a ball"):
        read_config({"config": {"modification": {}, "penalty": "ewc"}})


def test_an_edit_that_its_settings_do_not_tell_is_neither_stacked_nor_replayed():
    base, modified, config = tiny_bert(), sample_modifications(WORLD, 2, seed=0), ModificationConfig(1, radius=0.01, steps=2, learning_rate=0.01)
    plain = modify_constrained(base, modified, config)
    assert not plain.record.keys() & {"constraint", "penalty"}
    assert modify_facts(base, modified, config).record == plain.record
    given = {
        "penalty": (modify_penalized(base, modified, PenalizedConfig(config, "kl", 1.0)), modify_facts(base, modified, config, penalty=lambda weights: None)),
        "constraint": (modify_facts(base, modified, config, constraint=L2Ball(0.1)),),
    }
    for name, edits in given.items():
        for edit in edits:
            with pytest.raises(ValueError, match=f"only edits by training inside a ball can be stacked and replayed, this one has settings .*{name}"):
                stack_edits(base, edit, modified, config)
    elsewhere = modify_constrained(plain.apply_to_copy(base), modified, config, anchor=base)
    with pytest.raises(ValueError, match=f"the first edit is in that around the model with hash {hash_weights(base)[:12]}"):
        stack_edits(plain.apply_to_copy(base), elsewhere, modified, config)
    stack = stack_edits(base, plain, modified, config)
    for layer in stack.record["layers"]:
        layer["penalty"] = {"name": "kl", "weight": 1.0}
    with pytest.raises(ValueError, match="only edits by training inside a ball"):
        remove_edit(base, stack, 1)
