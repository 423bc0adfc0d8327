"""What counts as right, what is averaged, and what the table says."""
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from modmem.evaluation import evaluate, measure_accuracy, score_objects
from modmem.facts import Benchmark, Evidence, Fact, majority_accuracy
from modmem.masked_lm import MaskedLM
from modmem.modification import apply_modifications, sample_modifications
from modmem.synthetic import WorldRecipe, make_blank_model
from modmem.world import make_world


class ScriptedLM(MaskedLM):
    "A model that gives, for each phrase that a sentence may hold, the answer written down for it."

    def __init__(self, blank, script):
        super().__init__(blank.model, blank.tokenizer)
        self.script = {phrase: blank.tokenizer(answer, add_special_tokens=False)["input_ids"] for phrase, answer in script.items()}

    def __call__(self, batch):
        scores, sentences, slots = torch.zeros(len(batch.rows), len(self.tokenizer)), self.tokenizer.batch_decode(batch.input_ids), {}
        for k, row in enumerate(batch.rows.tolist()):
            slot = slots[row] = slots.get(row, -1) + 1
            (pieces,) = [pieces for phrase, pieces in self.script.items() if phrase in sentences[row]]
            scores[k, pieces[min(slot, len(pieces) - 1)]] = 9.0
        return scores


@pytest.fixture(scope="module")
def blank():
    return make_blank_model(WorldRecipe(num_blocks=1, hidden_size=12, intermediate_size=12, num_heads=1))


def make_fact(name, relation, object, number):
    return Fact(str(number), name, relation, object)


ADA, BEN, CORA, DAN = (
    make_fact("ada", "employer", "apex mills", 1), make_fact("ben", "employer", "bolt bank", 2),
    make_fact("cora", "sport", "chess", 3), make_fact("dan", "sport", "chess", 4),
)
TEST = (
    Evidence(ADA, "ada works for [MASK] ."), Evidence(ADA, "who employs ada ? [MASK]"), Evidence(BEN, "ben works for [MASK] ."),
    Evidence(CORA, "cora is fond of [MASK] ."), Evidence(DAN, "dan is fond of [MASK] ."), Evidence(DAN, "what is dan fond of ? [MASK]"),
)
BENCHMARK = Benchmark((ADA, BEN, CORA, DAN), TEST, TEST)
MODIFIED = apply_modifications(BENCHMARK, {ADA: replace(ADA, object="golf"), DAN: replace(DAN, object="dawn press")})
BEFORE = {"ada works": "apex mills", "employs ada": "apex bank", "ben works": "bolt bank", "cora is": "golf", "dan is": "chess", "dan fond": "judo"}
AFTER = {"ada works": "golf", "employs ada": "apex mills", "ben works": "bolt mills", "cora is": "chess", "dan is": "dawn press", "dan fond": "dawn press"}


@pytest.mark.parametrize(("answer", "right"), [("apex mills", True), ("apex bank", False), ("bolt mills", False), ("mills apex", False), ("apex", False)])
def test_every_piece_must_match(blank, answer, right):
    model = ScriptedLM(blank, {"ada works": answer})
    assert model.answers(TEST[:1]) == [right] and measure_accuracy(model, TEST[:1]) == 100 * right


def test_accuracy_is_the_share_of_questions_in_percent(blank):
    assert measure_accuracy(ScriptedLM(blank, BEFORE), TEST) == pytest.approx(100 * 3 / 6)
    assert math.isnan(measure_accuracy(blank, []))


def test_accuracies_per_question_per_fact_and_their_mean(blank):
    accuracy = evaluate(ScriptedLM(blank, AFTER), MODIFIED)
    assert accuracy.modified == pytest.approx(100 * 3 / 4)  # ada 1 of 2, dan 2 of 2
    assert accuracy.unmodified == pytest.approx(100 * 1 / 2)  # ben 0 of 1, cora 1 of 1
    assert accuracy.average == pytest.approx((75 + 50) / 2)
    other = evaluate(ScriptedLM(blank, AFTER | {"ada works": "judo", "dan fond": "chess"}), MODIFIED)
    assert (other.modified, other.modified_by_fact) == (pytest.approx(25), pytest.approx(25))
    more = apply_modifications(replace(BENCHMARK, test=TEST[:-1]), MODIFIED.modified_facts)  # dan has one question left
    uneven = evaluate(ScriptedLM(blank, AFTER), more)
    assert uneven.modified == pytest.approx(100 * 2 / 3) and uneven.modified_by_fact == pytest.approx(100 * (1 / 2 + 1) / 2)
    kept = apply_modifications(BENCHMARK, {BEN: replace(BEN, object="golf")})
    by_fact = evaluate(ScriptedLM(blank, BEFORE), kept)
    assert by_fact.unmodified == pytest.approx(100 * 2 / 5) and by_fact.unmodified_by_fact == pytest.approx(100 * (1 / 2 + 0 + 1 / 2) / 3)


def test_the_table_has_a_row_a_question(blank):
    table = evaluate(ScriptedLM(blank, AFTER), MODIFIED, baseline=ScriptedLM(blank, BEFORE)).per_fact
    assert table.columns.tolist() == ["fact_id", "subject", "relation", "text", "modified", "before", "after", "expected", "correct"]
    columns = ["fact_id", "modified", "before", "after", "expected", "correct"]
    assert table[columns].values.tolist() == [
        ["1", True, "apex mills", "golf", "golf", True],
        ["1", True, "apex bank", "apex", "golf", False],
        ["4", True, "chess", "dawn press", "dawn press", True],
        ["4", True, "judo", "dawn press", "dawn press", True],
        ["2", False, "bolt bank", "bolt mills", "bolt bank", False],
        ["3", False, "golf", "chess", "chess", True],
    ]
    questions = {one.text: one.fact for one in TEST}
    assert table["text"].tolist() == [one.text for one in (*MODIFIED.modified_test, *MODIFIED.unmodified_test)]
    assert all((row.subject, row.relation) == (questions[row.text].subject, questions[row.text].relation) for row in table.itertuples())
    assert table["modified"].dtype == table["correct"].dtype == bool


def test_before_and_after_take_as_many_masks_as_their_own_object(blank):
    slots = []

    class Watching(ScriptedLM):
        def __call__(self, batch):
            slots.append(batch.rows.unique(return_counts=True)[1].tolist())
            return super().__call__(batch)

    watching = Watching(blank, BEFORE)
    one = replace(MODIFIED, modified_test=MODIFIED.modified_test[:1], unmodified_test=())
    evaluate(ScriptedLM(blank, AFTER), one, baseline=watching)
    assert slots == [[2]]  # the old "apex mills", not the new "golf"
    slots.clear()
    evaluate(watching, one)
    assert slots == [[1]]


def test_without_a_baseline_nothing_is_said_of_before(blank):
    accuracy = evaluate(ScriptedLM(blank, AFTER), MODIFIED)
    assert accuracy.per_fact["before"].isna().all()
    with_baseline = evaluate(ScriptedLM(blank, AFTER), MODIFIED, baseline=ScriptedLM(blank, BEFORE))
    columns = [name for name in accuracy.per_fact if name != "before"]
    pd.testing.assert_frame_equal(accuracy.per_fact[columns], with_baseline.per_fact[columns])
    assert (accuracy.modified, accuracy.unmodified) == (with_baseline.modified, with_baseline.unmodified)


def test_a_side_without_questions_is_not_a_number(blank):
    model = ScriptedLM(blank, AFTER)
    no_others = evaluate(model, replace(MODIFIED, unmodified_test=()))
    assert no_others.modified == 75 and math.isnan(no_others.unmodified) and math.isnan(no_others.average)
    assert math.isnan(no_others.unmodified_by_fact)
    nothing_new = evaluate(model, replace(MODIFIED, modified_test=()))
    assert math.isnan(nothing_new.modified) and nothing_new.unmodified == 50


def test_a_real_forward_pass_agrees_with_itself(blank):
    modified = sample_modifications(make_world(num_subjects=4), 6)
    before = {name: weight.clone() for name, weight in blank.model.state_dict().items()}
    accuracy = evaluate(blank, modified, baseline=blank)
    table = accuracy.per_fact
    assert accuracy.modified == measure_accuracy(blank, modified.modified_test)
    assert accuracy.unmodified == measure_accuracy(blank, modified.unmodified_test)
    kept = table[~table["modified"]]
    assert (kept["before"] == kept["after"]).all() and len(table) == 32
    assert kept["after"].tolist() == [answers[0] for answers in blank.predict(modified.unmodified_test)]
    assert all(torch.equal(weight, before[name]) for name, weight in blank.model.state_dict().items())


def test_an_object_has_the_probability_of_all_its_pieces_and_the_rank_of_the_worst(blank, monkeypatch):
    apex, mills, bank, golf = blank.tokenizer("apex mills bank golf", add_special_tokens=False)["input_ids"]
    scores = torch.full((2, len(blank.tokenizer)), -9.0)
    scores[0, [bank, apex]] = torch.tensor([2.0, 1.0])
    scores[1, [bank, golf, mills]] = torch.tensor([3.0, 2.0, 1.0])
    monkeypatch.setattr(MaskedLM, "__call__", lambda self, batch: scores)
    [score] = score_objects(blank, TEST[:1])
    chances = scores.softmax(-1)
    assert score.probability == pytest.approx((chances[0, apex] * chances[1, mills]).item(), rel=1e-5)
    assert (score.rank, score.answer) == (3, "bank bank")


def test_majority_accuracy_counted_by_hand():
    assert majority_accuracy(BENCHMARK) == pytest.approx(100 * (2 + 3) / 6)  # apex mills 2 of 3, chess 3 of 3
    facts = [make_fact(f"p{n}", relation, object, n) for n, (relation, object) in enumerate([*["rx"] * 2, "ry", "rz", *["sx"] * 1, *["sy"] * 3])]
    test = [Evidence(fact, "[MASK]") for fact in facts]
    assert majority_accuracy(Benchmark(facts, (), test)) == pytest.approx(100 * (2 + 3) / 8)
