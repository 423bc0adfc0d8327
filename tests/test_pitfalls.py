"""How other editors' loops fail: each test bears the name of a failure and fails if we share it."""
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import TINY, WORLD, assert_untouched, snapshot, tiny_bert

import modmem
import modmem.finetuning
from modmem.blocks import select_parameters
from modmem.editor import ModificationConfig, hash_weights, modify_facts
from modmem.evaluation import evaluate
from modmem.finetuning import slot_loss
from modmem.masked_lm import MaskedLM, copy_with_own
from modmem.modification import sample_modifications
from modmem.projected_adam import ProjectedAdam
from modmem.projection import L2Ball, LinfBall, make_ball

MODIFIED = sample_modifications(WORLD, num_modified=6, seed=0)
CONFIG = ModificationConfig(blocks=1, radius=4e-3, steps=6, batch_size=16)
families = pytest.mark.parametrize("family", TINY)


def several_pieces(masked_lm, count=4):
    "Encoded evidence whose objects have more than one piece."
    return [one for one in masked_lm.encode(WORLD.test) if len(one.slots) > 1][:count]


@families
def test_loss_of_a_multi_token_answer_read_at_one_position(family):
    masked_lm = TINY[family]()
    [one] = several_pieces(masked_lm, 1)
    whole = slot_loss(masked_lm, masked_lm.batch([one]))
    terms = []
    for place in range(len(one.slots)):  # another piece at any one place moves the loss by that place's term
        labels = [*one.labels[:place], (one.labels[place] + 1) % len(masked_lm.tokenizer), *one.labels[place + 1 :]]
        scores = masked_lm(masked_lm.batch([one]))[place].log_softmax(-1)
        moved = slot_loss(masked_lm, masked_lm.batch([replace(one, labels=labels)]))
        torch.testing.assert_close(moved - whole, scores[one.labels[place]] - scores[labels[place]], atol=1e-4, rtol=0)
        terms.append((moved - whole).abs().item())
    assert len(terms) > 1 and min(terms) > 1e-3


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_read_at_a_pad_position_with_left_padding(family, side):
    masked_lm = TINY[family]()
    masked_lm.tokenizer.padding_side = side
    encoded = sorted(masked_lm.encode(WORLD.test), key=lambda one: len(one.input_ids))
    short, long = encoded[0], encoded[-1]
    assert len(short.input_ids) < len(long.input_ids) - 2
    alone = [slot_loss(masked_lm, masked_lm.batch([one])).item() for one in (short, long)]
    assert slot_loss(masked_lm, masked_lm.batch([short, long])).item() == pytest.approx(sum(alone) / 2, abs=1e-4)
    batch = masked_lm.batch([short, long])
    assert set(batch.input_ids[batch.rows, batch.columns].tolist()) == {masked_lm.tokenizer.mask_token_id}


@pytest.mark.parametrize("radius", ["1", "1e-3", "inf", "", None, True, False, 0, -1e-3, -math.inf, math.nan, [1e-3]])
def test_radius_that_is_no_number_taken_as_no_constraint(radius):
    for make in (LinfBall, L2Ball, lambda radius: make_ball("l2_tensor", radius), lambda radius: ModificationConfig(blocks=0, radius=radius)):
        with pytest.raises(ValueError, match=re.escape(repr(radius))):
            make(radius)


@pytest.mark.parametrize("radius", [1, 1e-3])
def test_radius_that_is_a_number_ignored(radius):
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = ProjectedAdam([weight], LinfBall(radius), lr=5.0)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert weight.tolist() == pytest.approx([-radius] * 3)


def test_blocks_1_10_and_11_edited_when_asked_for_block_1():
    masked_lm = tiny_bert(num_blocks=12)
    assert all(".layer.1." in name for name in select_parameters(masked_lm, 1))
    before = {name: weight.detach().clone() for name, weight in masked_lm.model.named_parameters()}
    modify_facts(masked_lm, MODIFIED, replace(CONFIG, steps=1, radius=5e-4)).apply(masked_lm)
    changed = {name.split(".layer.")[-1].split(".")[0] for name, weight in masked_lm.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {"1"}


@families
def test_unedited_model_handed_back(family):
    masked_lm = TINY[family]()
    edit = modify_facts(masked_lm, MODIFIED, replace(CONFIG, blocks="all", radius=math.inf, learning_rate=3e-3, steps=30, batch_size=30))
    assert all(mask.any() for mask in edit.bits.values()) and edit.record["base_hash"] != edit.record["edited_hash"]
    edited = copy_with_own(masked_lm)
    edit.apply(edited)
    assert hash_weights(edited) == edit.record["edited_hash"]
    losses = [slot_loss(model, model.batch(model.encode(MODIFIED.modified_train))).item() for model in (masked_lm, edited)]
    assert losses[1] < 0.9 * losses[0] and losses[1] == pytest.approx(edit.record["outcome"]["final_loss"], rel=0.3)


def test_drift_over_sequential_edits():
    first = tiny_bert()
    model, radius = copy_with_own(first), 1e-3
    for number in range(5):
        facts = sample_modifications(WORLD, num_modified=4, seed=number)
        modify_facts(model, facts, replace(CONFIG, radius=radius, steps=4), anchor=first).apply(model)
    pairs = zip(model.model.parameters(), first.model.parameters())
    assert max((now - then).abs().max().item() for now, then in pairs) <= radius * 1.001


@families
@pytest.mark.parametrize("frozen", [False, True])
def test_requires_grad_left_changed(family, frozen):
    masked_lm = TINY[family]()
    for number, weight in enumerate(masked_lm.model.parameters()):
        weight.requires_grad_(not frozen and number % 2 == 0)
    before = snapshot(masked_lm)
    edit = modify_facts(masked_lm, MODIFIED, replace(CONFIG, blocks="all", steps=1, radius=5e-4))
    assert_untouched(masked_lm, before)
    edit.apply(masked_lm)
    edit.undo(masked_lm)
    evaluate(masked_lm, MODIFIED)
    assert_untouched(masked_lm, before)


@families
def test_answer_leaked_into_the_input(family):
    masked_lm = TINY[family]()
    by_size = {}
    for one in {one.fact.object: one for one in WORLD.test}.values():
        by_size.setdefault(len(masked_lm.encode([one])[0].slots), []).append(one.fact.object)
    compared = 0
    for evidence in WORLD.test[:24]:
        [encoded] = masked_lm.encode([evidence])
        inputs = set()
        for other in by_size[len(encoded.slots)][:5]:  # the input says how many pieces the answer has, and no more
            [now] = masked_lm.encode([replace(evidence, fact=replace(evidence.fact, object=other))])
            inputs.add((tuple(now.input_ids), tuple(now.slots)))
            compared += now.labels != encoded.labels
        assert len(inputs) == 1
    assert compared > 24


@families
def test_training_on_the_probe_that_is_then_tested(family, monkeypatch):
    masked_lm, trained, original = TINY[family](), [], modmem.finetuning._mean_loss
    monkeypatch.setattr(modmem.finetuning, "_mean_loss", lambda scores, batch: trained.append(batch) or original(scores, batch))
    config = replace(CONFIG, blocks="all", steps=8, unmodified_per_modified=2.0)
    modify_facts(masked_lm, MODIFIED, config)
    ends = {masked_lm.tokenizer.pad_token_id}
    seen = {tuple(piece for piece in row if piece not in ends) for batch in trained for row in batch.input_ids.tolist()}
    probes = {tuple(one.input_ids) for one in masked_lm.encode((*MODIFIED.modified_test, *MODIFIED.unmodified_test))}
    allowed = {tuple(one.input_ids) for one in masked_lm.encode((*MODIFIED.modified_train, *MODIFIED.unmodified_train))}
    assert len(seen) > 30 and seen <= allowed and not seen & probes


def test_prints_at_every_step(capfd):
    masked_lm = tiny_bert()
    edit = modify_facts(masked_lm, MODIFIED, CONFIG)
    edit.apply(masked_lm)
    evaluate(masked_lm, MODIFIED)
    masked_lm.predict(WORLD.test[0])
    assert capfd.readouterr() == ("", "")


def test_needs_cuda(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("asked for CUDA")

    for owner in (torch.Tensor, torch.nn.Module):
        monkeypatch.setattr(owner, "cuda", refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    masked_lm = tiny_bert()
    modify_facts(masked_lm, MODIFIED, CONFIG).apply(masked_lm)
    assert masked_lm.device.type == "cpu" and evaluate(masked_lm, MODIFIED).average >= 0
    sources = "\n".join(path.read_text(encoding="utf-8") for path in Path(modmem.__file__).parent.glob("*.py"))
    assert not re.search(r"\.cuda\(|[\"']cuda(:\d)?[\"']\)", sources) and isinstance(masked_lm, MaskedLM)
