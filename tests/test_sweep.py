"""Rows that are computed once: keys, stores, failures, kills, and the same rows wherever they are computed."""
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from joblib.externals.loky import get_reusable_executor
from test_fae import tiny_fae
from tiny_models import WORLD, same_bits, same_weights, tiny_bert

from modmem import sweep
from modmem.blocks import select_parameters
from modmem.editor import ModificationConfig
from modmem.fae_training import evaluate_fae
from modmem.files import DataError
from modmem.knn_lm import NeighborLM
from modmem.masked_lm import save_masked_lm
from modmem.modification import sample_modifications
from modmem.starts import RECIPES, Places, Start, find_start
from modmem.sweep import HELDOUT_SHARE, METHODS, Run, compute_row, expand_grid, is_heldout, load_results, run_sweep, shard
from modmem.trials import run_trial

RUN = Run(
    model="mine", start="pretrained", num_subjects=12, drawn_from="all", num_modified=4, blocks=0, radius=0.005,
    learning_rate=3e-3, batch_size=16, min_steps=2, epochs=1,
)
GRID = [replace(RUN, blocks=blocks, radius=radius, seed=seed) for blocks in (0, 2) for radius in (0.01, math.inf) for seed in (0, 1)]
LONG = [replace(run, steps=40) for run in GRID[:6]]
KNN = replace(RUN, method="kNN-LM", epsilon=math.inf)
FAE = replace(RUN, method="FaE", start="FT", group="AWT")
TREX = Run(benchmark="trex", relations=("P19",), max_evidences=3)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    save_masked_lm(tiny_bert(), folder / "mine")
    return Places(folder / "cache", models={"mine": str(folder / "mine")})


@pytest.fixture(scope="module")
def expected(places, tmp_path_factory):
    "The long rows, computed in this process."
    return run_sweep(LONG, tmp_path_factory.mktemp("expected"), places)


@pytest.fixture
def invented(monkeypatch):
    "Rows without a model; the runs they were asked for."
    asked = []

    def compute(run, places):
        asked.append(run)
        if run.seed == 13:
            raise RuntimeError("no luck,\ntoday")
        number = float(run.seed) / 3 if run.seed < 100 else math.nan
        return {**run.settings, "modified_accuracy": number, "largest": -math.inf, "steps": 7, "warning": "", "start_hash": "12e4"}

    monkeypatch.setattr(sweep, "compute_row", compute)
    monkeypatch.setattr(sweep, "find_start", lambda start, places: None)
    return asked


def without_time(table):
    return table.drop(columns="seconds")


def files(store):
    return sorted(path.name for path in Path(store).iterdir() if path.is_file())


# keys


def test_key_of_a_run_is_stable():
    "A change here orphans all rows there are: raise METHOD_VERSION if it is meant, or else mend it."
    bert = {"model": "bert-base-uncased"}
    assert Run(**bert).key == "06deeaaa88d6de1d"
    fta = {"start": "pretrained", "blocks": [0, 3], "norm": "l2", "radius": 0.5, "unmodified_per_modified": 1.0}
    assert Run(**bert, **fta).key == "81e30f803d0b8ac1" and Run(**bert, method="uniform").key == "a705ee21bac27c6d"
    assert Run(**bert, method="retrain", benchmark="zsre").key == "d8fc5bd28282082d"
    assert Run(**bert, start="pretrained", method="kNN-LM", epsilon=6.0).key == "0043c1946f9deb92"
    assert Run(**bert, method="FaE", group="AWT", radius=0.001).key == "aaa8234945678774"
    assert TREX.key != Run(benchmark="trex", relations=["P19"]).key == Run(benchmark="trex", relations=("P19",)).key


CHANGES = {
    "benchmark": "zsre", "num_subjects": 13, "relations": ("P20",), "max_evidences": 4, "facts": "heldout", "drawn_from": "all",
    "object_frequency": "global", "num_modified": 31, "seed": 1, "model": "large", "start": "pretrained", "finetuning_steps": 599,
    "finetuning_batch_size": 63, "finetuning_learning_rate": 2e-3, "method": "uniform", "blocks": 3, "norm": "l2", "radius": 0.1,
    "unmodified_per_modified": 1.0, "learning_rate": 2e-3, "batch_size": 127, "epochs": 9.0, "min_steps": 71, "steps": 70,
    "warmup": 0.1, "schedule": "linear", "dropout": None, "penalty_weight": 2.0, "epsilon": 2.0, "epsilon_quantile": 0.6,
    "key_layer": "penultimate", "remembered": "all", "group": "all", "tables": True, "coverage": 0.5, "null_rate": 0.1,
}
BASES = {"relations": TREX, "max_evidences": TREX, "penalty_weight": Run(penalty="kl", penalty_weight=1.0)}
BASES |= dict.fromkeys(("epsilon", "key_layer", "remembered"), KNN) | {"epsilon_quantile": replace(KNN, epsilon=None, epsilon_quantile=0.5)}
BASES |= dict.fromkeys(("group", "tables", "coverage", "null_rate"), FAE)


@pytest.mark.parametrize("name", [one.name for one in fields(Run) if one.name != "penalty"])
def test_every_setting_counts(name):
    base = BASES.get(name, Run())
    assert replace(base, **{name: CHANGES[name]}).key != base.key


@pytest.mark.parametrize(
    ("base", "idle"),
    [
        (Run(), {"relations": ("P1",), "max_evidences": 2}), (TREX, {"num_subjects": 3}), (Run(benchmark="zsre"), {"num_subjects": 3}),
        (Run(start="RI"), {"finetuning_steps": 3, "finetuning_batch_size": 2, "finetuning_learning_rate": 1.0}),
        (Run(steps=9), {"epochs": 3.0, "min_steps": 2}), (Run(), {"drawn_from": "answered"}), (Run(benchmark="zsre"), {"drawn_from": "all"}),
    ],
)
def test_a_setting_without_effect_is_neither_in_the_key_nor_in_the_row(base, idle):
    other = replace(base, **idle)
    assert other.key == base.key and other.settings == base.settings and other != base
    assert "drawn_from" in idle or not set(idle) & set(base.settings)


def test_a_penalty_counts_with_its_weight():
    penalised = replace(RUN, penalty="ewc", penalty_weight=0.5)
    assert len({RUN.key, penalised.key, replace(penalised, penalty="kl").key}) == 3
    assert not {"penalty", "penalty_weight"} & set(RUN.settings)


TRAINING = {"radius": 0.5, "learning_rate": 0.1, "batch_size": 3, "epochs": 2.0, "min_steps": 5, "steps": 4, "norm": "l2", "blocks": 2,
            "unmodified_per_modified": 1.0, "warmup": 0.1, "schedule": "linear", "dropout": 0.1}  # fmt: skip


@pytest.mark.parametrize("base", [KNN, replace(KNN, epsilon=None, epsilon_quantile=0.5), replace(FAE, group="none")])
def test_without_training_none_of_its_settings_count(base):
    assert not set(TRAINING) & set(base.settings)
    for name, value in TRAINING.items():
        assert replace(base, **{name: value}).key == base.key, name


def test_fae_counts_its_radius_and_its_recipe_and_not_how_a_bert_is_fine_tuned():
    assert {"radius", "norm", "steps"} <= set(replace(FAE, steps=3).settings) and "blocks" not in FAE.settings
    assert replace(FAE, finetuning_steps=3).key == FAE.key != replace(FAE, radius=0.1).key
    others = [replace(FAE, coverage=0.5), replace(FAE, null_rate=0.1)]
    assert len({sweep._starts_from(run) for run in (FAE, replace(FAE, group="none"), *others)}) == 3, "a start for each recipe"
    assert [asdict(run.fae_recipe)[name] for run, name in zip(others, ("coverage", "null_rate"))] == [0.5, 0.1]
    assert FAE.starting_point == Start("mine", "pretrained") and RUN.fae_recipe is None


def test_retraining_counts_the_settings_of_ft():
    run = Run(start="pretrained", method="retrain")
    assert run.key != replace(run, finetuning_steps=3).key


def test_equal_settings_have_one_key_however_they_are_written():
    assert replace(RUN, blocks=[0, 2], radius=1).key == replace(RUN, blocks=(0, 2), radius=1.0).key
    assert replace(RUN, blocks=[0, 2]) == replace(RUN, blocks=(0, 2)) and len({*GRID, *GRID}) == 8


def test_a_made_model_counts_by_its_recipe_and_not_by_its_name(monkeypatch):
    monkeypatch.setitem(RECIPES, "alias", RECIPES["base"])
    assert Run(model="alias").key == (before := Run(model="base").key)
    monkeypatch.setitem(RECIPES, "base", RECIPES["tiny"])
    assert Run(model="base").key == Run(model="tiny").key != before


@pytest.mark.parametrize(
    ("name", "value"),
    [("benchmark", "lama"), ("start", "ft"), ("facts", "all"), ("drawn_from", "some"), ("object_frequency", "uniform"), ("method", "knn"),
     ("num_modified", 0), ("num_modified", 8.0), ("num_modified", True), ("seed", -1), ("seed", "0"), ("num_subjects", 0), ("max_evidences", 0),
     ("min_steps", 0), ("steps", 0), ("steps", 2.5), ("blocks", "first"), ("blocks", -1), ("blocks", ()), ("blocks", (1, 1)), ("blocks", True),
     ("blocks", None), ("norm", "linfinity"), ("radius", 0), ("radius", "1e-3"), ("radius", None), ("radius", math.nan), ("model", ""), ("model", 3),
     ("relations", "P19"), ("epochs", 0), ("epochs", math.inf), ("learning_rate", -1.0), ("batch_size", 0), ("schedule", "cosine"),
     ("finetuning_steps", 0), ("unmodified_per_modified", -1.0)],
)
def test_settings_that_no_row_has_are_refused_with_their_value(name, value):
    with pytest.raises(ValueError, match=f"{name}|{name.removeprefix('finetuning_')}") as error:
        Run(**{name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("settings", "value"),
    [({"method": "kNN-LM"}, "None and None"), ({"method": "kNN-LM", "epsilon": 1.0, "epsilon_quantile": 0.5}, "1.0 and 0.5"),
     ({"epsilon": 1.5}, "1.5 and None"), ({"method": "uniform", "epsilon_quantile": 0.5}, "None and 0.5"),
     ({"method": "kNN-LM", "epsilon": -1.0}, "-1.0"), ({"method": "kNN-LM", "epsilon": math.nan}, "nan"), ({"method": "kNN-LM", "epsilon_quantile": 1.1}, "1.1"),
     ({"method": "kNN-LM", "epsilon": 1.0, "key_layer": "first"}, "'first'"), ({"method": "kNN-LM", "epsilon": 1.0, "remembered": "some"}, "'some'"),
     ({"group": "AWT"}, "'AWT'"), ({"method": "FaE"}, "None"), ({"method": "FaE", "group": "awt"}, "'awt'"),
     ({"method": "FaE", "group": "AWT", "start": "pretrained"}, "'pretrained'"), ({"method": "FaE", "group": "none", "start": "RI"}, "'RI'"),
     ({"penalty": "kl"}, "'kl' and 0.0"), ({"penalty_weight": 1.0}, "None and 1.0"), ({"penalty": "l1", "penalty_weight": 1.0}, "'l1'")],
)
def test_settings_that_do_not_go_together_are_refused_with_their_values(settings, value):
    with pytest.raises(ValueError) as error:
        Run(**settings)
    assert value in str(error.value)


@pytest.mark.parametrize(
    ("settings", "evidences", "steps"),
    [({}, 5 * 32, 70), ({}, 5 * 512, 200), ({"min_steps": 1}, 5 * 32, 20), ({"steps": 33}, 5 * 512, 33), ({"epochs": 0.1, "min_steps": 2}, 128, 2)],
)
def test_steps_are_ten_epochs_but_at_least_seventy_unless_they_are_given(settings, evidences, steps):
    assert Run(**settings).make_config(evidences).steps == steps


# grids


def test_a_grid_has_every_combination_the_last_list_varying_fastest():
    grid = expand_grid(start=["RI", "FT"], blocks=[0, [1, 2], "all"], seed=range(2), num_modified=[8])
    assert [(run.start, run.blocks, run.seed, run.num_modified) for run in grid] == [
        (start, blocks, seed, 8) for start in ("RI", "FT") for blocks in (0, (1, 2), "all") for seed in (0, 1)
    ]
    assert expand_grid(seed=[]) == [] and expand_grid() == [Run()]


@pytest.mark.parametrize(("lists", "message"), [({"radios": [1]}, "no setting 'radios'"), ({"start": "FT"}, "start.*'FT'"), ({"seed": 3}, "seed.*3")])
def test_a_grid_of_something_else_is_refused(lists, message):
    with pytest.raises(ValueError, match=message):
        expand_grid(**lists)


@given(st.integers(0, 30), st.integers(1, 12))
def test_shards_are_a_partition_into_even_parts(number, count):
    runs = [replace(RUN, seed=seed) for seed in range(number)]
    parts = [shard(runs, index, count) for index in range(count)]
    assert sorted((run.seed for part in parts for run in part)) == list(range(number))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 and parts[0] == shard(tuple(runs), 0, count)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_shard_that_does_not_exist_is_refused(index):
    with pytest.raises(ValueError, match=str(index)):
        shard(GRID, index, 3)


# what is in a row


def test_a_row_is_the_trial_of_its_settings(places):
    row = compute_row(replace(RUN, seed=1), places)
    allowed = {fact.id for fact in WORLD.facts if not is_heldout(fact.id)}
    modified = sample_modifications(WORLD, 4, 1, "answered", answered_by=allowed)
    trial = run_trial(tiny_bert(), modified, ModificationConfig(0, "linf", 0.005, 3e-3, steps=2, batch_size=16, seed=1))
    assert {name: row[name] for name in trial} == trial
    assert row["modified_accuracy_before"] == 0 and row["start_hash"] == row["pretrained_hash"]
    assert row["unmodified_accuracy_before"] == pytest.approx(100 * sum(tiny_bert().answers(modified.unmodified_test)) / 92)


def test_facts_to_choose_by_are_never_modified_in_a_reported_row_and_are_measured_apart(places, monkeypatch):
    drawn, knows = {}, set()
    benchmark = WORLD.facts
    for facts in ("reported", "heldout"):
        for seed in range(4):
            modified = sweep._draw(*sweep._drawn_by(replace(RUN, facts=facts, seed=seed)), places)
            drawn.setdefault(facts, set()).update(fact.id for fact in modified.modified_facts)
    assert all(is_heldout(fact_id) for fact_id in drawn["heldout"]) and not any(is_heldout(fact_id) for fact_id in drawn["reported"])
    assert len(drawn["heldout"]) > 4 and len(drawn["reported"]) > 4

    class Knows:
        "Answers the questions about held-out facts rightly, and one in two of the others."

    knows = [one.fact.id for number, one in enumerate(WORLD.test) if is_heldout(one.fact.id) or number % 2]
    monkeypatch.setattr(sweep, "evaluate", lambda edited, modified: fake_accuracy(modified, knows))
    modified = sweep._draw(*sweep._drawn_by(RUN), places)
    measured = sweep._measure(Knows(), modified, [])
    held = sum(is_heldout(fact.id) for fact in benchmark)
    assert measured["unmodified_accuracy_heldout"] == 100
    parts = held * 100 + (92 - held) * measured["unmodified_accuracy_reported"]
    assert parts / 92 == pytest.approx(measured["unmodified_accuracy"]) and 30 < measured["unmodified_accuracy_reported"] < 70
    assert 0.1 < held / len(benchmark) < 2 * HELDOUT_SHARE


def fake_accuracy(modified, knows):
    from modmem.evaluation import EditAccuracy

    evidence = [*modified.modified_test, *modified.unmodified_test]
    count = len(modified.modified_test)
    table = pd.DataFrame({"fact_id": [one.fact.id for one in evidence], "modified": [k < count for k in range(len(evidence))]})
    table["correct"] = table["fact_id"].isin(knows)
    unmodified = 100 * table.loc[~table["modified"], "correct"].mean()
    return EditAccuracy(0.0, unmodified, unmodified / 2, 0.0, unmodified, table)


def test_drawn_from_answered_asks_the_pretrained_model_whatever_the_start(places, monkeypatch):
    wanted = frozenset(fact.id for fact in WORLD.facts[::2])
    monkeypatch.setattr(sweep, "find_answered", lambda data, model, places: wanted)
    sweep._draw.cache_clear()
    runs = [replace(RUN, drawn_from="answered", start=start, num_modified=9) for start in ("RI", "FT", "pretrained")]
    chosen = [set(sweep._draw(*sweep._drawn_by(run), places).modified_facts) for run in runs]
    sweep._draw.cache_clear()
    assert chosen[0] == chosen[1] == chosen[2] and {fact.id for fact in chosen[0]} <= wanted


def test_starts_differ_in_their_weights_and_share_the_pretrained_one(places):
    runs = [replace(RUN, start=start, finetuning_steps=2, drawn_from="all") for start in ("RI", "pretrained", "FT")]
    model_hashes = [find_start(run.starting_point, places)[1] for run in runs]
    assert len({hashes["start_hash"] for hashes in model_hashes}) == 2  # the tiny model is as random as RI
    assert len({hashes["pretrained_hash"] for hashes in model_hashes}) == 1


def test_uniform_trains_the_chosen_blocks_on_all_of_the_modified_benchmark(monkeypatch):
    seen, model = [], tiny_bert()
    finetune = sweep.finetune
    monkeypatch.setattr(sweep, "finetune", lambda *args, **options: seen.append(args[1]) or finetune(*args, **options))
    modified = sample_modifications(WORLD, 4, 0)
    edited, outcome = METHODS["uniform"](model, modified, replace(RUN, blocks=1, radius=1e-3))
    assert outcome["steps"] == 2 and seen == [modified.modified_train + modified.unmodified_train]
    names, before = set(select_parameters(model, 1)), dict(model.model.named_parameters())
    for name, weight in edited.model.named_parameters():
        assert same_bits(weight, before[name]) == (name not in names), name
        assert (weight - before[name]).abs().max() <= 1e-3 + 1e-7


def test_retrain_is_ft_on_the_modified_benchmark():
    modified, run = sample_modifications(WORLD, 4, 0), replace(RUN, method="retrain", finetuning_steps=3)
    edited, outcome = METHODS["retrain"](tiny_bert(), modified, run)
    again, _ = sweep.finetune(tiny_bert(), modified.modified_train + modified.unmodified_train, run.finetuning)
    assert outcome["steps"] == 3 and same_weights(edited, again)


# memories


@pytest.fixture(scope="module")
def four():
    return sample_modifications(WORLD, 4, 0)


def test_a_memory_that_always_answers_gives_remembered_objects_and_one_that_never_does_changes_nothing(four):
    model, remembered = tiny_bert(), {one.fact.object for one in four.modified_train}
    always, outcome = METHODS["kNN-LM"](model, four, KNN)
    assert isinstance(always, NeighborLM) and outcome["num_keys"] == len(four.modified_train) and outcome["epsilon_used"] == math.inf
    claimed = [[replace(one, fact=replace(one.fact, object=name)) for name in remembered] for one in four.modified_test]
    assert all(any(always.answers(names)) for names in claimed) and not all(any(model.answers(names)) for names in claimed)
    never, outcome = METHODS["kNN-LM"](model, four, replace(KNN, epsilon=0.0))
    assert never.answers(WORLD.test) == model.answers(WORLD.test) and outcome["within_epsilon"] == 0


def test_a_quantile_is_the_share_of_unmodified_sentences_within_epsilon(four):
    runs = [replace(KNN, epsilon=None, epsilon_quantile=quantile) for quantile in (0.0, 0.25, 1.0)]
    outcomes = [METHODS["kNN-LM"](tiny_bert(), four, run)[1] for run in runs]
    shares = [one["within_epsilon"] for one in outcomes]
    assert shares[:2] == pytest.approx([0, 25], abs=1) and 80 < shares[2] < 100, "objects of as many pieces as no remembered one has are out of reach"
    assert outcomes[0]["epsilon_used"] < outcomes[1]["epsilon_used"] < outcomes[2]["epsilon_used"]
    again = METHODS["kNN-LM"](tiny_bert(), four, replace(KNN, epsilon=outcomes[1]["epsilon_used"]))[1]
    assert again == outcomes[1], "one threshold, written in two ways"


def test_a_row_of_knn_lm_says_whose_answers_were_lost(places):
    never, always, everything = (
        compute_row(replace(KNN, **more), places) for more in ({"epsilon": 0.0}, {"epsilon": math.inf}, {"remembered": "all", "key_layer": "penultimate"})
    )
    for kind in ("modified", "unmodified"):
        assert never[f"{kind}_accuracy"] == never[f"{kind}_accuracy_before"] == always[f"{kind}_accuracy_before"]
    known = never["unmodified_accuracy_before"] * 92 / 100
    assert never["num_sharing"] + never["num_others"] == pytest.approx(known)
    assert never["epsilon"] == 0.0 and "epsilon_quantile" not in never and {"lost_sharing", "lost_others"} <= set(never)
    assert everything["num_keys"] == len(WORLD.train) and always["num_keys"] == 4 * len(WORLD.train) // len(WORLD.facts)
    assert everything["key_layer"] == "penultimate" and everything["unmodified_accuracy"] > always["unmodified_accuracy"]


@pytest.fixture
def fae(monkeypatch):
    "A FaE of random weights where a trained one is looked for; the recipes it was looked for by."
    model, asked = tiny_fae(), []
    monkeypatch.setattr(sweep, "find_fae", lambda data, name, places, recipe: asked.append(recipe) or (model, {"start_hash": "f", "pretrained_hash": "p"}))
    sweep._answered_before.cache_clear()
    yield model, asked
    sweep._answered_before.cache_clear()


def test_a_row_of_fae_is_measured_before_and_after_its_edit(places, fae):
    model, asked = fae
    none, trained = compute_row(replace(FAE, group="none"), places), compute_row(replace(FAE, coverage=0.5), places)
    modified = sweep._draw(*sweep._drawn_by(FAE), places)
    before = evaluate_fae(model, modified)
    for row in (none, trained):
        assert row["modified_accuracy_before"] == pytest.approx(before.modified) and row["unmodified_accuracy_before"] == pytest.approx(before.unmodified)
        assert row["relinked"] == 4 and row["inserted"] == row["skipped"] == 0 and 0 <= row["modified_null_probability"] <= 1
        assert row["start_hash"] == "f" and row["pretrained_hash"] == "p"
    assert not {"radius", "steps", "final_loss", "coverage"} & set(none) and none["group"] == "none"
    assert trained["radius"] == 0.005 and trained["steps"] == 2 and trained["coverage"] == 0.5
    assert {recipe.coverage for recipe in asked} == {FAE.fae_recipe.coverage, 0.5}
    edited, _ = METHODS["FaE"](model, modified, FAE)
    moved = {name for name, weight in edited.model.named_parameters() if not same_bits(weight, dict(model.model.named_parameters())[name])}
    assert moved and evaluate_fae(model, modified).per_fact.equals(before.per_fact), "the start is shared, and stays as it was"


def test_facts_that_the_memory_of_fae_lacks_are_inserted_and_counted():
    from modmem.fact_memory import build_memory, name_entities

    half = tiny_fae(memory=build_memory(WORLD, name_entities(WORLD), 0.5, 0))
    modified = sample_modifications(WORLD, 40, 0)
    _, outcome = METHODS["FaE"](half, modified, replace(FAE, group="none", num_modified=40))
    assert outcome["relinked"] + outcome["inserted"] == 40 and min(outcome["relinked"], outcome["inserted"]) > 5


def test_a_warning_of_the_edit_stands_in_its_row(places):
    assert "hardly reach the radius" in compute_row(replace(RUN, radius=5.0), places)["warning"]
    assert compute_row(replace(RUN, radius=1e-3), places)["warning"] == ""


# the store


def test_only_missing_rows_are_computed(invented, tmp_path):
    first = run_sweep(GRID[:3], tmp_path)
    assert len(invented) == 3
    table = run_sweep([*GRID, *GRID], tmp_path)
    assert len(invented) == 8 and set(invented) == set(GRID)
    assert table["key"].tolist() == [run.key for run in GRID]
    pd.testing.assert_frame_equal(table.head(3), first)
    pd.testing.assert_frame_equal(run_sweep(GRID, tmp_path), table)
    assert len(invented) == 8 and files(tmp_path) == sorted(f"{run.key}.json" for run in GRID)


def test_a_failing_row_is_kept_with_its_error_the_others_go_on_and_it_is_tried_again(invented, tmp_path, monkeypatch):
    runs = [replace(RUN, seed=seed) for seed in (12, 13, 14)]
    table = run_sweep(runs, tmp_path)
    assert table["status"].tolist() == ["done", "failed", "done"] and table["error"].tolist()[::2] == ["", ""]
    assert table["error"][1].startswith("RuntimeError: no luck, today (test_sweep.py:") and math.isnan(table["modified_accuracy"][1])
    assert run_sweep(runs, tmp_path)["status"].tolist() == ["done", "failed", "done"]
    assert [run.seed for run in invented].count(13) == 2 and len(invented) == 4
    monkeypatch.setattr(sweep, "compute_row", lambda run, places: run.settings)
    assert run_sweep(runs, tmp_path)["status"].tolist() == ["done"] * 3


def test_rows_stay_when_the_sweep_is_interrupted(invented, tmp_path, monkeypatch):
    compute = sweep.compute_row

    def interrupt(run, places):
        if len(invented) == 5:
            raise KeyboardInterrupt
        return compute(run, places)

    monkeypatch.setattr(sweep, "compute_row", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(GRID, tmp_path)
    assert len(files(tmp_path)) == 5 and not any((tmp_path / "locks").iterdir())
    monkeypatch.setattr(sweep, "compute_row", compute)
    run_sweep(GRID, tmp_path)
    assert len(invented) == 8


def test_a_saved_table_is_the_table(invented, tmp_path):
    runs = [
        Run(radius=math.inf), Run(radius=0.1 + 0.2, blocks=3, seed=1), Run(blocks=[0, 3], radius=1, seed=2, epochs=10), Run(seed=100), Run(seed=13),
        Run(benchmark="trex", relations=["P19", "P20"], seed=4), Run(benchmark="zsre", steps=9, start="RI", dropout=None),
    ]
    table = run_sweep(runs, tmp_path / "store")
    table.to_csv(tmp_path / "rows.csv", index=False)
    loaded = load_results(rows=tmp_path / "rows.csv")
    pd.testing.assert_frame_equal(loaded, load_results(tmp_path / "store"))
    pd.testing.assert_frame_equal(loaded.set_index("key").loc[table["key"]].reset_index(), table)
    assert table["radius"].tolist() == [math.inf, 0.1 + 0.2, 1.0, *4 * [math.inf]] and table["blocks"].tolist()[:3] == ["all", "3", "[0, 3]"]
    assert table["relations"].tolist()[4:] == ["", "P19 P20", ""] and table["num_subjects"].isna().tolist() == 5 * [False] + 2 * [True]
    assert table["largest"].min() == -math.inf and table["modified_accuracy"].isna().tolist() == [False] * 3 + [True, True, False, False]
    assert set(table["start_hash"]) == {"12e4", ""} and "13,13" not in (tmp_path / "rows.csv").read_text() and len(table) == 7


def test_rows_of_a_csv_are_skipped_unless_they_failed(invented, tmp_path):
    runs = [replace(RUN, seed=seed) for seed in (12, 13)]
    table = run_sweep(runs, tmp_path / "store")
    table.to_csv(tmp_path / "rows.csv", index=False)
    invented.clear()
    again = run_sweep([*runs, replace(RUN, seed=14)], tmp_path / "other", rows=tmp_path / "rows.csv")
    assert [run.seed for run in invented] in ([13, 14], [14, 13]) and again["seed"].tolist() == [12, 13, 14]
    pd.testing.assert_frame_equal(again.head(1).drop(columns="error"), table.head(1).drop(columns="error"))
    assert files(tmp_path / "other") == sorted(f"{replace(RUN, seed=seed).key}.json" for seed in (13, 14))


def test_a_table_does_not_depend_on_what_else_is_in_the_store(invented, tmp_path):
    alone = run_sweep(GRID, tmp_path / "alone")
    run_sweep([TREX, Run(seed=13), replace(RUN, steps=3)], tmp_path / "shared")
    shared = run_sweep(GRID, tmp_path / "shared")
    pd.testing.assert_frame_equal(without_time(shared), without_time(alone))
    run_sweep(GRID, tmp_path / "shared").to_csv(tmp_path / "rows.csv", index=False)
    assert without_time(alone).to_csv() == without_time(run_sweep(GRID, tmp_path / "none", rows=tmp_path / "rows.csv")).to_csv()


def test_what_is_no_row_is_named_and_what_is_half_written_is_overlooked(invented, tmp_path):
    run_sweep(GRID[:1], tmp_path)
    (tmp_path / f".{RUN.key}.json.x.json").write_text('{"key": ')
    assert len(load_results(tmp_path)) == 1
    (tmp_path / "notes.json").write_text("[1]")
    with pytest.raises(DataError, match="notes.json: expected a row"):
        load_results(tmp_path)
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="rows.csv: expected rows"):
        load_results(rows=tmp_path / "rows.csv")


def test_rows_are_json_that_any_program_reads(invented, tmp_path):
    run_sweep([replace(RUN, radius=math.inf, seed=100)], tmp_path)
    text = (tmp_path / files(tmp_path)[0]).read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert row["radius"] == "inf" and row["modified_accuracy"] == "nan"


def test_a_row_finished_by_somebody_else_meanwhile_is_not_computed(invented, tmp_path):
    run_sweep(GRID[:1], tmp_path)
    assert sweep._attempt(GRID[0], tmp_path, Places(tmp_path), wait=True) == "done" and len(invented) == 1


def test_torch_threads_and_standard_error_are_as_they_were(invented, tmp_path):
    stderr, before = sys.stderr, torch.get_num_threads()
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "compute_row", lambda run, places: seen.append((torch.get_num_threads(), sys.stderr is stderr)) or {})
        run_sweep(GRID[:1], tmp_path, Places(tmp_path / "cache", threads=2))
    assert seen == [(2, False)] and torch.get_num_threads() == before and sys.stderr is stderr


def test_rows_of_one_start_and_one_draw_come_together(invented, tmp_path):
    runs = expand_grid(radius=[0.1, 0.2], seed=[0, 1], start=["FT", "RI"])
    run_sweep(runs, tmp_path)
    groups = [(run.start, run.seed) for run in invented]
    assert len(groups) == 8 and sum(one != other for one, other in zip(groups, groups[1:])) == 3


def test_the_bar_counts_done_failed_and_left(invented, tmp_path, capsys):
    run_sweep(GRID[:2], tmp_path)
    assert capsys.readouterr().err == ""
    run_sweep([*GRID[:4], replace(RUN, seed=13)], tmp_path, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "rows: 2 done, 0 failed, 3 left" in err and "rows: 4 done, 1 failed, 0 left" in err and "to go" in err


# engines


@pytest.mark.parametrize(("options", "message"), [({"engine": "ray"}, "'ray'"), ({"jobs": 0}, "jobs.*0"), ({"engine": "dask"}, "address of a scheduler")])
def test_an_engine_that_cannot_run_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_sweep(GRID, tmp_path, **options)


def test_without_the_extra_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"modmem\[cluster\]"):
        run_sweep(GRID, tmp_path, engine="dask", scheduler="tcp://127.0.0.1:1")


def test_a_row_whose_process_died_is_recorded_unless_it_was_finished(invented, tmp_path, monkeypatch):
    def engine(task, items, jobs, scheduler):
        for item in items:
            if isinstance(item, Run) and item.seed == 1:
                task(item)
            yield item, None

    monkeypatch.setitem(sweep._ENGINES, "local", engine)
    table = run_sweep([replace(RUN, seed=seed) for seed in (0, 1)], tmp_path)
    assert table["status"].tolist() == ["failed", "done"] and table["error"][0] == "the process that computed it died"


def test_an_item_that_kills_its_process_is_found_out_and_the_others_are_done():
    def work(item):
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return -item

    results = dict(sweep._locally(work, range(7), 2, None))
    get_reusable_executor().shutdown(wait=True)  # the next test's processes are much larger, which joblib takes for a leak
    assert results == {0: 0, 1: -1, 2: -2, 3: None, 4: -4, 5: -5, 6: -6}


def test_local_processes_compute_the_same_rows(places, expected, tmp_path):
    table = run_sweep(LONG, tmp_path, places, jobs=2)
    pd.testing.assert_frame_equal(without_time(table), without_time(expected))


def test_dask_computes_the_same_rows_though_a_worker_is_killed(places, expected, tmp_path):
    file, processes = tmp_path / "scheduler.json", []

    def start(*arguments):
        command = [sys.executable, "-m", *arguments, "--scheduler-file", str(file), "--no-dashboard"]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return processes[-1]

    try:
        start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        first, _ = [start("distributed.cli.dask_worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny") for _ in range(2)]
        while not file.exists():
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        left = []

        def kill():
            while not (rows := list(tmp_path.glob("rows/*.json"))):
                time.sleep(0.005)
            first.kill()
            left.append(len(LONG) - len(rows))

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        table = run_sweep(LONG, tmp_path / "rows", places, engine="dask", scheduler=address)
        killer.join(1)
        assert first.wait(5) == -signal.SIGKILL and left[0] > 1
        pd.testing.assert_frame_equal(without_time(table), without_time(expected))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_two_processes_share_a_store_and_its_work(places, expected, tmp_path, monkeypatch):
    code = f"""
import sys
from modmem import sweep
from modmem.starts import Places
from modmem.sweep import Run
from math import inf
computed, original = [], sweep.compute_row
sweep.compute_row = lambda run, places: computed.append(run) or original(run, places)
sweep.run_sweep({LONG!r}, {str(tmp_path)!r}, Places({str(places.cache)!r}, models={places.models!r}))
print(len(computed))"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    computed, original = [], sweep.compute_row
    monkeypatch.setattr(sweep, "compute_row", lambda run, places: computed.append(run) or original(run, places))
    while not list(tmp_path.glob("*.json")):
        time.sleep(0.005)
    table = run_sweep(LONG, tmp_path, places)
    theirs = int(other.communicate()[0])
    assert len(computed) + theirs == len(LONG) and 0 < len(computed) < len(LONG)
    pd.testing.assert_frame_equal(without_time(table), without_time(expected))
    assert not any((tmp_path / "locks").iterdir())
