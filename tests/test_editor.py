"""An edit as a value: exact there and back, inside its ball, complete enough to be made again from its own file."""
import json
import math
import os
import warnings
from dataclasses import asdict, fields, replace
from fractions import Fraction
from types import SimpleNamespace

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import TINY, WORLD, assert_untouched, same_bits, same_weights, snapshot, tiny_albert, tiny_bert

import modmem
import modmem.finetuning
from modmem.blocks import select_parameters
from modmem.editor import Edit, ModificationConfig, hash_weights, modify_facts
from modmem.facts import Evidence, Fact
from modmem.files import DataError
from modmem.finetuning import finetune
from modmem.masked_lm import copy_with_own
from modmem.modification import ModifiedBenchmark, sample_modifications
from modmem.projection import BALLS, project_linf

MODIFIED = sample_modifications(WORLD, num_modified=6, seed=0)
CONFIG = ModificationConfig(blocks=1, radius=4e-3, learning_rate=1e-3, steps=10, batch_size=16)


def blocks_of(family):
    return "all" if family == "albert" else 1


@pytest.fixture(scope="module")
def bert():
    return tiny_bert()


@pytest.fixture(scope="module")
def edit(bert):
    return modify_facts(bert, MODIFIED, CONFIG)


def weights_of(masked_lm):
    return {name: weight.detach() for name, weight in masked_lm.model.named_parameters()}


def apply_to_copy(edit, masked_lm):
    copied = copy_with_own(masked_lm)
    edit.apply(copied)
    return copied


# exact, there and back


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("radius", [4e-3, math.inf])
def test_edit_is_exact_there_and_back_from_memory_and_from_file(family, radius, tmp_path):
    masked_lm = TINY[family]()
    config = replace(CONFIG, blocks=blocks_of(family), radius=radius)
    before = snapshot(masked_lm)
    expected, _ = finetune(
        masked_lm, MODIFIED.modified_train, config.finetuning, parameters=list(select_parameters(masked_lm, config.blocks)),
        make_optimizer=lambda weights, lr: clamped_adam(weights, lr, radius),
    )
    edit = modify_facts(masked_lm, MODIFIED, config)
    assert_untouched(masked_lm, before)
    edit.save(tmp_path / "edit.safetensors")
    for one in (edit, Edit.load(tmp_path / "edit.safetensors")):
        one.apply(masked_lm)
        assert same_weights(masked_lm, expected) and hash_weights(masked_lm) == one.record["edited_hash"]
        one.undo(masked_lm)
        assert_untouched(masked_lm, before)


def clamped_adam(weights, lr, radius):
    "torch's own Adam, followed by Eq. 9."
    optimizer, centers = torch.optim.Adam(weights, lr=lr), [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def project(*_):
        if radius != math.inf:
            for weight, center in zip(weights, centers):
                weight.copy_(project_linf(weight, center, radius))

    optimizer.register_step_post_hook(project)
    return optimizer


def test_adding_and_subtracting_the_change_would_miss(bert):
    edit = modify_facts(bert, MODIFIED, replace(CONFIG, radius=math.inf, learning_rate=1e-2))
    base, edited = weights_of(bert), weights_of(apply_to_copy(edit, bert))
    pairs = [(base[name], edited[name]) for name in edit.bits]
    applied = torch.cat([(before + (after - before) != after).flatten() for before, after in pairs]).float().mean()
    undone = torch.cat([(after - (after - before) != before).flatten() for before, after in pairs]).float().mean()
    assert applied > 0.02 and undone > 0.02


def test_every_bit_survives_even_of_nan_and_negative_zero(bert):
    base, edited = copy_with_own(bert), copy_with_own(bert)
    name = next(iter(select_parameters(bert, 0)))
    odd = torch.tensor([0x7FC00001, -0x80000000, 0x7F800000, 1, 0x7F800001, 0], dtype=torch.int32).view(torch.float32)
    before, after = weights_of(base)[name].flatten()[:6], weights_of(edited)[name].flatten()[:6]
    before.copy_(odd), after.copy_(odd.flip(0))
    bits = {name: weights_of(base)[name].view(torch.int32) ^ weights_of(edited)[name].view(torch.int32)}
    edit = Edit(bits, {"base_hash": hash_weights(base), "edited_hash": hash_weights(edited)})
    assert len({hash_weights(bert), *edit.record.values()}) == 3
    model = copy_with_own(base)
    edit.apply(model)
    assert same_weights(model, edited)
    edit.undo(model)
    assert same_weights(model, base)


@pytest.mark.parametrize("family", TINY)
def test_model_that_the_edit_was_not_made_for_is_refused_and_stays_as_it_is(bert, edit, family):
    other = TINY[family](seed=1)
    edited = apply_to_copy(edit, bert)
    for model, act in ((other, edit.apply), (other, edit.undo), (edited, edit.apply), (copy_with_own(bert), edit.undo)):
        before = snapshot(model)
        with pytest.raises(ValueError, match=hash_weights(model)[:12]):
            act(model)
        assert_untouched(model, before)


def test_one_changed_bit_changes_the_hash(bert):
    other = copy_with_own(bert)
    assert hash_weights(other) == hash_weights(bert)
    weights_of(other)["cls.predictions.bias"].view(torch.int32)[3] ^= 1
    assert hash_weights(other) != hash_weights(bert)


def test_names_and_shapes_are_in_the_hash():
    def hash_of(**shapes):
        model = torch.nn.ParameterDict({name: torch.zeros(shape) for name, shape in shapes.items()})
        return hash_weights(SimpleNamespace(model=model))

    assert hash_of(a=(2, 3), b=(1,)) == hash_of(b=(1,), a=(2, 3))
    assert len({hash_of(a=(2, 3), b=(1,)), hash_of(a=(3, 2), b=(1,)), hash_of(a=(2, 3), c=(1,)), hash_of(a=(1,), b=(2, 3))}) == 4


# the file


def test_file_carries_bits_and_a_complete_record_in_its_header(bert, edit, tmp_path):
    path = tmp_path / "edit.safetensors"
    edit.save(path)
    with safe_open(path, framework="pt") as saved:
        record = json.loads(saved.metadata()["modmem_edit"])
        assert set(saved.keys()) == set(select_parameters(bert, 1))
    weights = sum(mask.numel() for mask in edit.bits.values())
    assert 4 * weights < os.path.getsize(path) < 4 * weights + 30_000
    assert record == edit.record == Edit.load(path).record
    json.dumps(record, allow_nan=False)
    assert set(record["config"]) == {one.name for one in fields(ModificationConfig)}
    assert {"modmem", "torch", "transformers", "python"} <= set(record["versions"]) and record["versions"]["modmem"] == modmem.__version__
    assert record["base_hash"] == hash_weights(bert) != record["edited_hash"]
    old = {fact.id: fact for fact in MODIFIED.modified_facts}
    found = [(one["text"], one["subject"], one["relation"], one["object"], one["new_object"]) for one in record["evidence"]]
    expected = [(one.text, one.fact.subject, one.fact.relation, old[one.fact.id].object, one.fact.object) for one in MODIFIED.modified_train]
    assert found == expected


def test_outcome_says_what_was_done_to_the_weights(bert, edit):
    edited, base = weights_of(apply_to_copy(edit, bert)), weights_of(bert)
    change = torch.cat([(edited[name].double() - base[name].double()).flatten() for name in edit.bits])
    reached = torch.cat([((edited[name] - base[name]).abs() >= 4e-3 * (1 - 1e-4)).flatten() for name in edit.bits])
    outcome = edit.record["outcome"]
    assert outcome["steps"] == 10 and outcome["num_weights"] == change.numel()
    assert outcome["max_change"] == change.abs().max().item()
    assert outcome["l2_change"] == pytest.approx(change.norm().item())
    assert outcome["share_on_face"] == pytest.approx(reached.double().mean().item(), abs=0.02) and outcome["share_on_face"] > 0.1
    with pytest.MonkeyPatch.context() as patch:
        losses = []
        patch.setattr(modmem.finetuning, "_mean_loss", lambda *given, original=modmem.finetuning._mean_loss: losses.append(original(*given)) or losses[-1])
        modify_facts(bert, MODIFIED, CONFIG)
    assert outcome["final_loss"] == losses[-1].item()


def rebuild(record):
    "The evidence and the settings that a record holds, as modify_facts wants them."
    facts, evidence = {}, []
    for one in record["evidence"]:
        new = Fact(one["id"], one["subject"], one["relation"], one["new_object"])
        facts[replace(new, object=one["object"])] = new
        evidence.append(Evidence(new, one["text"]))
    config = ModificationConfig(**record["config"] | {"radius": float(record["config"]["radius"])})
    return ModifiedBenchmark(facts, tuple(evidence), (), (), (), {}, 0.0), config


@pytest.mark.parametrize(
    "settings",
    [{}, {"radius": math.inf}, {"blocks": [0, 2], "norm": "l2", "radius": 0.1}, {"steps": None, "epochs": 3}, {"steps": None},
     {"dropout": 0.1, "seed": 5, "schedule": "linear", "warmup": 0.2}, {"radius": numpy.float32(1e-3)}, {"radius": Fraction(1, 300)}],
)
def test_edit_is_made_again_bit_for_bit_from_its_own_file(bert, tmp_path, settings):
    edit = modify_facts(bert, MODIFIED, replace(CONFIG, **settings))
    edit.save(tmp_path / "edit.safetensors")
    again = modify_facts(bert, *rebuild(Edit.load(tmp_path / "edit.safetensors").record))
    assert again.record["edited_hash"] == edit.record["edited_hash"] != edit.record["base_hash"]
    assert all(torch.equal(again.bits[name], mask) for name, mask in edit.bits.items())


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def foreign(path):
    save_file({"weight": torch.zeros(2)}, path)


def with_header(text):
    return lambda path: save_file({"weight": torch.zeros(2, dtype=torch.int32)}, path, metadata={"modmem_edit": text})


@pytest.mark.parametrize(
    "spoil",
    [cut, foreign, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"hello world" * 99), lambda path: path.unlink(),
     lambda path: [path.unlink(), path.mkdir()], with_header("{cut"), with_header("[1]"), with_header("{}")],
    ids=["cut", "foreign", "empty", "garbage", "missing", "folder", "header cut", "header a list", "header empty"],
)
def test_file_that_holds_no_edit_is_refused_by_name(edit, tmp_path, spoil):
    path = tmp_path / "edit.safetensors"
    edit.save(path)
    spoil(path)
    with pytest.raises(DataError, match="edit.safetensors") as caught:
        Edit.load(path)
    assert "\n" not in str(caught.value)


def test_failed_save_leaves_the_older_file(edit, tmp_path, monkeypatch):
    path = tmp_path / "edit.safetensors"
    edit.save(path)
    content = path.read_bytes()
    monkeypatch.setattr("safetensors.torch.save_file", lambda tensors, path, metadata: [path.write_bytes(b"half"), 1 / 0])
    with pytest.raises(ZeroDivisionError):
        edit.save(path)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


# the ball


@pytest.mark.parametrize("family", TINY)
def test_infinite_radius_is_torchs_adam_bit_for_bit(family):
    masked_lm = TINY[family]()
    config = replace(CONFIG, blocks=blocks_of(family), radius=math.inf)
    names = list(select_parameters(masked_lm, config.blocks))
    expected, _ = finetune(masked_lm, MODIFIED.modified_train, config.finetuning, parameters=names, make_optimizer=torch.optim.Adam)
    for norm in BALLS:
        edit = modify_facts(masked_lm, MODIFIED, replace(config, norm=norm))
        assert same_weights(apply_to_copy(edit, masked_lm), expected)


@pytest.mark.parametrize("blocks", [0, [0, 2], "all"])
@pytest.mark.parametrize("radius", [1e-4, 2e-3, 7e-3])
def test_no_weight_leaves_its_interval(bert, blocks, radius):
    edit = modify_facts(bert, MODIFIED, replace(CONFIG, blocks=blocks, radius=radius))
    edited, base = weights_of(apply_to_copy(edit, bert)), weights_of(bert)
    assert set(edit.bits) == set(select_parameters(bert, blocks))
    for name in edit.bits:
        low, high = base[name] - radius, base[name] + radius  # the ends as float32 can say them
        assert bool(((edited[name] >= low) & (edited[name] <= high)).all())
    ulp = max(numpy.spacing(weight.abs().max().numpy()) for weight in base.values())
    assert radius * 0.99 < edit.record["outcome"]["max_change"] <= radius + ulp


@pytest.mark.parametrize("norm", ["l2", "l2_tensor", "l2_tensor_rms"])
def test_l2_balls_hold(bert, norm):
    radius = 1e-3 if norm == "l2_tensor_rms" else 0.05
    edit = modify_facts(bert, MODIFIED, replace(CONFIG, norm=norm, radius=radius))
    edited, base = weights_of(apply_to_copy(edit, bert)), weights_of(bert)
    lengths = [(edited[name].double() - base[name].double()).norm().item() for name in edit.bits]
    sizes = [mask.numel() for mask in edit.bits.values()]
    used = {"l2": [math.hypot(*lengths)], "l2_tensor": lengths, "l2_tensor_rms": [a / math.sqrt(n) for a, n in zip(lengths, sizes)]}[norm]
    assert max(used) == pytest.approx(radius, rel=1e-4)


@pytest.mark.parametrize("family", TINY)
def test_only_the_chosen_blocks_change_and_never_embeddings_head_or_key_bias(family):
    masked_lm = TINY[family]()
    edit = modify_facts(masked_lm, MODIFIED, replace(CONFIG, blocks="all"))
    edited, base = weights_of(apply_to_copy(edit, masked_lm)), weights_of(masked_lm)
    changed = {name for name in base if not same_bits(edited[name], base[name])}
    inside = {name for name in base if ".layer." in name or "albert_layer_groups" in name}
    assert changed == {name for name in inside if not name.endswith("key.bias")} == set(edit.bits)


def test_radius_that_cannot_be_reached_is_warned_of(bert):
    with pytest.warns(UserWarning, match="radius 0.011") as caught:
        modify_facts(bert, MODIFIED, replace(CONFIG, radius=0.011))
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        modify_facts(bert, MODIFIED, replace(CONFIG, radius=0.009))
        modify_facts(bert, MODIFIED, replace(CONFIG, radius=math.inf))


def test_twenty_edits_around_the_first_model_stay_in_its_ball(bert):
    radius, distances = 2e-3, {}
    for name in ("anchored", "drifting"):
        model, facts = copy_with_own(bert), sample_modifications(WORLD, num_modified=40, seed=3)
        for number in range(20):
            part = replace(facts, modified_train=facts.modified_train[10 * number : 10 * number + 10])
            anchor = bert if name == "anchored" else None
            edit = modify_facts(model, part, replace(CONFIG, radius=radius, steps=3, seed=number), anchor=anchor)
            edit.apply(model)
            assert edit.record["outcome"]["max_change"] <= radius * 1.001
        now, base = weights_of(model), weights_of(bert)
        distances[name] = max((now[name] - base[name]).abs().max().item() for name in edit.bits) / radius
    assert distances["anchored"] <= 1.001 and distances["drifting"] > 3


def test_anchored_edit_is_undone_to_the_model_it_was_made_on(bert, edit):
    model = apply_to_copy(edit, bert)
    once = snapshot(model)
    second = modify_facts(model, sample_modifications(WORLD, num_modified=3, seed=9), CONFIG, anchor=bert)
    assert_untouched(model, once)
    second.apply(model)
    assert second.record["base_hash"] == edit.record["edited_hash"] != hash_weights(model)
    second.undo(model)
    edit.undo(model)
    assert same_weights(model, bert)


# the given model, the settings, and what else may go wrong


@pytest.mark.parametrize("family", TINY)
def test_given_model_stays_as_it_is_even_if_training_fails(family, monkeypatch):
    masked_lm = TINY[family]()
    masked_lm.model.train()
    before, original, calls = snapshot(masked_lm), modmem.finetuning._mean_loss, iter(range(9))
    monkeypatch.setattr(modmem.finetuning, "_mean_loss", lambda *given: original(*given) / (next(calls) - 2 or int("x")))
    with pytest.raises(ValueError, match="invalid literal"):
        modify_facts(masked_lm, MODIFIED, replace(CONFIG, blocks="all", dropout=0.1))
    assert_untouched(masked_lm, before)


def test_rehearsal_takes_the_unmodified_evidence_and_changes_the_edit(bert, edit):
    rehearsed = modify_facts(bert, MODIFIED, replace(CONFIG, unmodified_per_modified=1.0))
    assert rehearsed.record["edited_hash"] != edit.record["edited_hash"]


def test_ten_epochs_are_the_default_length(bert):
    edit = modify_facts(bert, MODIFIED, ModificationConfig(blocks=0, radius=1e-3))
    assert edit.record["outcome"]["steps"] == 10  # 30 evidences: one batch of 128 an epoch


@pytest.mark.parametrize(
    "bad",
    [{"learning_rate": 0}, {"steps": 0}, {"steps": 3, "epochs": 3}, {"batch_size": 0}, {"schedule": "cosine"},
     {"unmodified_per_modified": -1}],
)
def test_settings_that_make_no_sense_are_refused_before_anything_runs(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ModificationConfig(**asdict(CONFIG) | {"steps": None} | bad)


def test_norm_that_is_not_there_is_refused_before_anything_runs(bert, monkeypatch):
    monkeypatch.setattr("modmem.editor.finetune", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match="norm.*'l7'"):
        modify_facts(bert, MODIFIED, ModificationConfig(**asdict(CONFIG) | {"norm": "l7"}))


@pytest.mark.parametrize("blocks", [3, -1, True, "0", "", [], [0, 0], [0, "1"], None, 1.0])
def test_blocks_that_are_not_there_are_refused(bert, blocks):
    with pytest.raises(ValueError, match="block"):
        modify_facts(bert, MODIFIED, replace(CONFIG, blocks=blocks))


def test_one_block_of_albert_cannot_be_chosen():
    with pytest.raises(ValueError, match="all"):
        modify_facts(tiny_albert(), MODIFIED, CONFIG)
