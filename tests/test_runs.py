"""Settings of rows: keys, columns, what is refused; and what a row is."""
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from runs_by_column import USUAL, make_run, read_columns
from test_fae import tiny_fae
from tiny_models import WORLD, same_bits, same_weights, tiny_bert

from modmem import runs
from modmem.blocks import select_parameters
from modmem.constraints import PenalizedConfig
from modmem.artefacts import choose_artefacts, list_runs, parameter_file
from modmem.editor import ModificationConfig, modify_facts
from modmem.evaluation import EditAccuracy, evaluate, list_questions
from modmem.fae_editing import FaeEditConfig
from modmem.fae_training import evaluate_fae
from modmem.finetuning import FinetuningConfig, finetune
from modmem.knn_lm import NeighborConfig, NeighborLM
from modmem.masked_lm import save_masked_lm
from modmem.modification import sample_modifications
from modmem.rows import load_results
from modmem.runs import HELDOUT_SHARE, METHODS, RetrainConfig, Run, Sample, UniformConfig, compute_row, is_heldout, list_columns
from modmem.starts import RECIPES, Data, Places, Start, find_start
from modmem.trials import run_trial
from modmem.world import WorldStyle

SHORT = {
    "model": "mine", "start": "pretrained", "num_subjects": 12, "drawn_from": "all", "num_modified": 4, "blocks": 0, "radius": 0.005,
    "learning_rate": 3e-3, "batch_size": 16, "min_steps": 2, "epochs": 1,
}
RUN = make_run(**SHORT)
KNN, FAE = {**SHORT, "method": "kNN-LM"}, {**SHORT, "method": "FaE", "start": "FT", "group": "AWT"}
TREX = {"benchmark": "trex", "relations": ("P19",), "max_evidences": 3}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    save_masked_lm(tiny_bert(), folder / "mine")
    return Places(folder / "cache", models={"mine": str(folder / "mine")})


def modify(run, model, modified):
    "Modify facts as a run says, on a model at hand."
    return METHODS[type(run.method)].modify(model, modified, run.method)


# keys


def test_key_of_a_run_is_stable():
    "A change here orphans all rows there are: raise METHOD_VERSION if it is meant, or else mend it."
    bert = {"model": "bert-base-uncased"}
    keys = {
        "edit": make_run(**bert), "mixed": make_run(**bert, start="pretrained", blocks=(0, 3), norm="l2", radius=0.5, unmodified_per_modified=1.0),
        "uniform": make_run(**bert, method="uniform"), "retrain": make_run(**bert, method="retrain", start="pretrained", benchmark="zsre"),
        "kNN-LM": make_run(**bert, start="pretrained", method="kNN-LM", epsilon=6.0), "FaE": make_run(**bert, method="FaE", group="AWT", radius=0.001),
        "penalty": make_run(**bert, method="penalty", penalty="kl", penalty_weight=3.0),
    }
    assert {name: run.key for name, run in keys.items()} == KEYS
    assert make_run(**TREX).key != make_run(benchmark="trex", relations=["P19"]).key == make_run(benchmark="trex", relations=("P19",)).key


KEYS = {
    "edit": "b3bfc3c051d5715a", "mixed": "9e29d558118c7335", "uniform": "f45e1e800346ecaa", "retrain": "148d581d046b6469",
    "kNN-LM": "10737683c96192d0", "FaE": "bbef85a5068d8048", "penalty": "7e8cc202d7cae139",
}

CHANGES = {
    "benchmark": "zsre", "num_subjects": 13, "style": WorldStyle(), "relations": ("P20",), "max_evidences": 4, "facts": "heldout", "drawn_from": "all",
    "object_frequency": "global", "min_evidences": 2, "num_modified": 31, "seed": 1, "model": "large", "start": "pretrained", "finetuning_steps": 599,
    "finetuning_batch_size": 63, "finetuning_learning_rate": 2e-3, "method": "uniform", "blocks": 3, "norm": "l2", "radius": 0.1,
    "unmodified_per_modified": 1.0, "learning_rate": 2e-3, "batch_size": 127, "epochs": 9.0, "min_steps": 71, "steps": 70,
    "warmup": 0.1, "schedule": "linear", "dropout": None, "penalty": "ewc", "penalty_weight": 2.0, "epsilon": 2.0, "epsilon_quantile": 0.6,
    "key_layer": "penultimate", "remembered": "all", "group": "all", "tables": True, "symbolic": False, "absent": "skip", "null_rate": 0.1,
    "fae_coverage": 0.5, "fae_null_rate": 0.1, "fae_entity_size": 32, "finetuning_pool": 8, "pool": 2, "max_gradient_norm": 2.0,
}
BASES = dict.fromkeys(("relations", "max_evidences"), TREX) | dict.fromkeys(("penalty", "penalty_weight"), {"method": "penalty", "penalty": "kl", "penalty_weight": 1.0})
BASES |= dict.fromkeys(("epsilon", "key_layer", "remembered"), {**KNN, "epsilon": math.inf}) | {"epsilon_quantile": {**KNN, "epsilon_quantile": 0.5}}
BASES |= dict.fromkeys((name for name in CHANGES if name.startswith("fae_")), FAE) | dict.fromkeys(("group", "tables", "symbolic", "absent", "null_rate"), FAE)


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_counts(name):
    base = BASES.get(name, {})
    assert make_run(**{**base, name: CHANGES[name]}).key != make_run(**base).key


@pytest.mark.parametrize(
    ("base", "idle"),
    [
        ({}, {"relations": ("P1",), "max_evidences": 2}), (TREX, {"num_subjects": 3, "style": WorldStyle()}), ({"benchmark": "zsre"}, {"num_subjects": 3}),
        ({}, {"drawn_from": "answered"}), ({}, {"min_evidences": 0}), ({"benchmark": "zsre"}, {"drawn_from": "all"}), ({**FAE, "group": "none"}, {"radius": 0.5, "learning_rate": 0.1, "norm": "l2"}),
    ],
)
def test_a_setting_without_effect_does_not_exist(base, idle):
    run, other = make_run(**base), make_run(**{**base, **idle})
    assert other == run and other.key == run.key and other.settings == run.settings
    assert "drawn_from" in idle or not set(idle) & set(run.settings)


def test_a_column_is_a_setting_by_its_name_and_names_are_those_listed():
    runs_of = {
        "edit": make_run(steps=9, dropout=None), "trex": make_run(**TREX), "FaE": make_run(**FAE, fae_coverage=0.5), "kNN-LM": make_run(**KNN, epsilon=1.0),
        "penalty": make_run(method="penalty", penalty="ewc", penalty_weight=0.5), "retrain": make_run(method="retrain", start="pretrained"),
    }
    for run in runs_of.values():
        assert set(run.settings) <= set(list_columns()) and None not in run.settings.values()
    told = make_run(style=WorldStyle(contexts=(0, 2)))
    assert set(told.settings) <= set(list_columns()) and told.settings["style_contexts"] == "0 2" and told.settings["style_num_tests"] == 2
    assert make_run(**read_columns(told.settings)) == told and not any(name.startswith("style") for name in runs_of["edit"].settings)
    assert runs_of["trex"].settings["relations"] == "P19" and "num_subjects" not in runs_of["trex"].settings
    assert runs_of["FaE"].settings["fae_coverage"] == 0.5 and not {"fae_null_rate", "fae_steps", "blocks", "finetuning_steps"} & set(runs_of["FaE"].settings)
    assert not {"norm", "radius", "learning_rate", "blocks"} & set(runs_of["kNN-LM"].settings) and runs_of["kNN-LM"].settings["remembered"] == "modified"
    assert runs_of["penalty"].settings["penalty_weight"] == 0.5 and runs_of["penalty"].settings["radius"] == math.inf
    assert runs_of["retrain"].settings["retraining_steps"] == 600 and "finetuning_steps" not in runs_of["retrain"].settings
    assert {"epochs", "min_steps"} <= set(RUN.settings) and "epochs" not in runs_of["edit"].settings and runs_of["edit"].settings["steps"] == 9
    assert make_run(blocks=(0, 3)).settings["blocks"] == "[0, 3]" and RUN.settings["blocks"] == "0"


COMMITTED = [Path(__file__).parents[1] / "figures" / scale / "rows.csv" for scale in ("synthetic", "small", "minilm", "tiny")]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_the_key_of_a_committed_row_is_that_of_its_settings(path):
    rows = load_results(rows=path)
    others = rows["method"].isin(["MEMIT", "AlphaEdit", "neurons", "sequence"]) | (rows["part"].fillna("").ne("") if "part" in rows else False)  # `make_run` knows none of them
    if others.any():
        [editors] = choose_artefacts(["editors"], file=parameter_file(path.parent.name))
        assert set(rows.loc[others, "key"]) <= {run.key for run in list_runs(editors).runs}
    rows = rows[~others]
    rebuilt = [make_run(**read_columns(row)).key for row in rows.reindex(columns=list(list_columns())).to_dict("records")]
    assert rebuilt == rows["key"].tolist()


@pytest.mark.parametrize("scale", ["small", "minilm", "tiny"])
def test_real_facts_are_drawn_from_their_committed_rows_alone(scale):
    artefacts = [list_runs(artefact) for artefact in choose_artefacts([], file=parameter_file(scale))]
    keys = load_results(rows=COMMITTED[0].parents[1] / scale / "rows.csv")["key"]
    assert {run.key for artefact in artefacts for run in artefact.runs} <= set(keys)
    assert {artefact.name for artefact in artefacts if not artefact.runs} <= {"claims"}  # what has no rows and is no reading of them needs data


def test_equal_settings_have_one_key_however_they_are_written():
    assert make_run(blocks=[0, 2], radius=1).key == make_run(blocks=(0, 2), radius=1.0).key and make_run(blocks=[0, 2]) == make_run(blocks=(0, 2))


def test_a_made_model_counts_by_its_recipe_and_not_by_its_name(monkeypatch):
    monkeypatch.setitem(RECIPES, "alias", RECIPES["base"])
    assert make_run(model="alias").key == (before := make_run(model="base").key)
    monkeypatch.setitem(RECIPES, "base", RECIPES["tiny"])
    assert make_run(model="base").key == make_run(model="tiny").key != before


@pytest.mark.parametrize(
    ("name", "value"),
    [("benchmark", "lama"), ("start", "ft"), ("facts", "all"), ("drawn_from", "some"), ("object_frequency", "uniform"),
     ("num_modified", 0), ("num_modified", 8.0), ("num_modified", True), ("min_evidences", -1), ("min_evidences", 1.5), ("seed", -1), ("seed", "0"), ("num_subjects", 0), ("max_evidences", 0),
     ("min_steps", 0), ("steps", 0), ("steps", 2.5), ("blocks", "first"), ("blocks", -1), ("blocks", ()), ("blocks", (1, 1)), ("blocks", True),
     ("blocks", None), ("norm", "linfinity"), ("radius", 0), ("radius", "1e-3"), ("radius", None), ("radius", math.nan), ("model", ""), ("model", 3),
     ("relations", "P19"), ("epochs", 0), ("epochs", math.inf), ("learning_rate", -1.0), ("batch_size", 0), ("schedule", "cosine"),
     ("finetuning_steps", 0), ("unmodified_per_modified", -1.0)],
)
def test_settings_that_no_row_has_are_refused_with_their_value(name, value):
    base = TREX if name in ("max_evidences", "relations") else {}
    with pytest.raises(ValueError, match=f"{name}|{name.removeprefix('finetuning_')}") as error:
        make_run(**{**base, name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("settings", "value"),
    [({"method": "kNN-LM"}, "None and None"), ({"method": "kNN-LM", "epsilon": 1.0, "epsilon_quantile": 0.5}, "1.0 and 0.5"),
     ({"method": "kNN-LM", "epsilon": -1.0}, "-1.0"), ({"method": "kNN-LM", "epsilon": math.nan}, "nan"), ({"method": "kNN-LM", "epsilon_quantile": 1.1}, "1.1"),
     ({"method": "kNN-LM", "epsilon": 1.0, "key_layer": "first"}, "'first'"), ({"method": "kNN-LM", "epsilon": 1.0, "remembered": "some"}, "'some'"),
     ({"method": "FaE", "group": "awt", "radius": 1.0}, "'awt'"), ({"method": "penalty", "penalty": "kl", "penalty_weight": 0.0}, "0.0"),
     ({"method": "penalty", "penalty": "l1", "penalty_weight": 1.0}, "'l1'")],
)
def test_settings_of_a_method_are_refused_with_their_values(settings, value):
    with pytest.raises(ValueError) as error:
        make_run(**settings)
    assert value in str(error.value)


def test_parts_that_do_not_go_together_are_refused():
    fae, edit = make_run(**FAE), make_run()
    for start, method in ((edit.start, fae.method), (fae.start, edit.method)):
        with pytest.raises(ValueError, match="FaeStart"):
            Run(edit.sample, start, method)
    with pytest.raises(ValueError, match="one seed, not 1 and 0"):
        Run(replace(edit.sample, seed=1), edit.start, edit.method)
    with pytest.raises(ValueError, match="settings of one of.*'edit'"):
        Run(edit.sample, edit.start, "edit")


@pytest.mark.parametrize(
    ("settings", "evidences", "steps"),
    [({}, 5 * 32, 70), ({}, 5 * 512, 200), ({"min_steps": 1}, 5 * 32, 20), ({"steps": 33}, 5 * 512, 33), ({"epochs": 0.1, "min_steps": 2}, 128, 2)],
)
def test_steps_are_ten_epochs_but_at_least_seventy_unless_they_are_given(settings, evidences, steps):
    assert make_run(**settings).method.finetuning.count_steps(evidences) == steps


# what is in a row


def test_a_row_is_the_trial_of_its_settings(places):
    row = compute_row(make_run(**SHORT, seed=1), places)
    allowed = {fact.id for fact in WORLD.facts if not is_heldout(fact.id)}
    modified = sample_modifications(WORLD, 4, 1, "answered", answered_by=allowed)
    trial = run_trial(tiny_bert(), modified, ModificationConfig(0, "linf", 0.005, learning_rate=3e-3, steps=2, batch_size=16, seed=1)).row
    assert {name: row[name] for name in trial} == trial
    assert row["modified_accuracy_before"] == 0 and row["start_hash"] == row["pretrained_hash"]
    assert row["unmodified_accuracy_before"] == pytest.approx(100 * sum(tiny_bert().answers(modified.unmodified_test)) / 92)


def test_facts_to_choose_by_are_never_modified_in_a_reported_row_and_are_measured_apart(places):
    drawn = {}
    benchmark = WORLD.facts
    for facts in ("reported", "heldout"):
        for seed in range(4):
            modified = runs._draw(make_run(**SHORT, facts=facts, seed=seed).sample, "mine", places)
            drawn.setdefault(facts, set()).update(fact.id for fact in modified.modified_facts)
    assert all(is_heldout(fact_id) for fact_id in drawn["heldout"]) and not any(is_heldout(fact_id) for fact_id in drawn["reported"])
    assert len(drawn["heldout"]) > 4 and len(drawn["reported"]) > 4

    knows = [question.fact.id for number, question in enumerate(WORLD.test) if is_heldout(question.fact.id) or number % 2]
    modified = runs._draw(RUN.sample, "mine", places)
    accuracy = fake_accuracy(modified, knows)
    measured = runs._split_unmodified(accuracy) | {"unmodified_accuracy": accuracy.unmodified}
    held = sum(is_heldout(fact.id) for fact in benchmark)
    assert measured["unmodified_accuracy_heldout"] == 100
    parts = held * 100 + (92 - held) * measured["unmodified_accuracy_reported"]
    assert parts / 92 == pytest.approx(measured["unmodified_accuracy"]) and 30 < measured["unmodified_accuracy_reported"] < 70
    assert 0.1 < held / len(benchmark) < 2 * HELDOUT_SHARE


def test_a_row_that_only_chooses_asks_the_held_out_facts_and_nothing_else(places, monkeypatch):
    run, asked = make_run(**SHORT, facts="heldout", seed=1), []
    method = METHODS[type(run.method)]

    def measure(edited, modified):
        asked.extend(modified.unmodified_test)
        return method.measure(edited, modified)

    monkeypatch.setitem(METHODS, type(run.method), replace(method, measure=measure))
    row = compute_row(run, places)
    allowed = {fact.id for fact in WORLD.facts if is_heldout(fact.id)}
    whole = sample_modifications(WORLD, 4, 1, "answered", answered_by=allowed)
    assert {question.fact.id for question in asked} == allowed - {fact.id for fact in whole.modified_facts}
    edited = modify_facts(tiny_bert(), whole, run.method).apply_to_copy(tiny_bert())
    accuracy = evaluate(edited, whole)
    assert row["modified_accuracy"] == accuracy.modified
    assert row["unmodified_accuracy_heldout"] == runs._split_unmodified(accuracy)["unmodified_accuracy_heldout"]
    assert [name for name in row if "unmodified_accuracy" in name or name.startswith(("lost", "average_"))] == ["unmodified_accuracy_heldout"]


def test_facts_may_be_drawn_among_those_with_enough_evidence(places, monkeypatch):
    evidence = {fact: [sentence for sentence in WORLD.train if sentence.fact == fact] for fact in WORLD.facts}
    rich = WORLD.facts[::2]
    train = [sentence for fact, some in evidence.items() for sentence in (some if fact in rich else [some[0], *some[:2]])]  # three, but two distinct
    monkeypatch.setattr(runs, "load_benchmark", lambda *_: (replace(WORLD, train=tuple(train)), "hash"))
    runs._draw.cache_clear()
    drawn = {fact.id for seed in range(4) for fact in runs._draw(make_run(**SHORT, min_evidences=3, seed=seed).sample, "mine", places).modified_facts}
    runs._draw.cache_clear()
    assert len(drawn) > 4 and drawn <= {fact.id for fact in rich}


def test_what_was_known_and_is_lost_is_counted_with_and_without_guesses(places):
    modified = runs._draw(RUN.sample, "mine", places)
    table = list_questions(modified)
    unmodified = table[~table["modified"]]
    commonest = unmodified.groupby("relation")["expected"].transform(lambda names: names.value_counts().index[0])
    guessed = set(unmodified.loc[unmodified["expected"] == commonest, "fact_id"])
    before = [number % 3 > 0 for number in range(len(unmodified))]
    accuracy = EditAccuracy(0.0, 0.0, 0.0, 0.0, 0.0, table.assign(correct=table["fact_id"].isin(guessed)))
    known = unmodified["fact_id"][before]
    lost = runs._measure_lost(accuracy, before)
    assert lost == {"lost": pytest.approx(100 * (~known.isin(guessed)).mean()), "lost_uncommon": 100}
    assert 0 < lost["lost"] < 100


def fake_accuracy(modified, knows):
    evidence = [*modified.modified_test, *modified.unmodified_test]
    count = len(modified.modified_test)
    table = pd.DataFrame({"fact_id": [question.fact.id for question in evidence], "modified": [k < count for k in range(len(evidence))]})
    table["correct"] = table["fact_id"].isin(knows)
    unmodified = 100 * table.loc[~table["modified"], "correct"].mean()
    return EditAccuracy(0.0, unmodified, unmodified / 2, 0.0, unmodified, table)


def test_drawn_from_answered_asks_the_pretrained_model_whatever_the_start(places, monkeypatch):
    wanted = frozenset(fact.id for fact in WORLD.facts[::2])
    monkeypatch.setattr(runs, "find_answered", lambda data, model, places: wanted)
    runs._draw.cache_clear()
    asked = [make_run(**{**SHORT, "drawn_from": "answered", "start": start, "num_modified": 9}) for start in ("RI", "FT", "pretrained")]
    chosen = [set(runs._draw(run.sample, run.start.model, places).modified_facts) for run in asked]
    runs._draw.cache_clear()
    assert chosen[0] == chosen[1] == chosen[2] and {fact.id for fact in chosen[0]} <= wanted


def test_starts_differ_in_their_weights_and_share_the_pretrained_one(places):
    starts = [make_run(**{**SHORT, "start": start, "finetuning_steps": 2}).start for start in ("RI", "pretrained", "FT")]
    model_hashes = [find_start(start, places)[1] for start in starts]
    assert len({hashes["start_hash"] for hashes in model_hashes}) == 2  # the tiny model is as random as RI
    assert len({hashes["pretrained_hash"] for hashes in model_hashes}) == 1


def test_uniform_trains_the_chosen_blocks_on_all_of_the_modified_benchmark(monkeypatch):
    seen, model = [], tiny_bert()
    monkeypatch.setattr(runs, "finetune", lambda *args, **options: seen.append(args[1]) or finetune(*args, **options))
    modified = sample_modifications(WORLD, 4, 0)
    edited, outcome = modify(make_run(**{**SHORT, "method": "uniform", "blocks": 1, "radius": 1e-3}), model, modified)
    assert outcome["steps"] == 2 and seen == [modified.modified_train + modified.unmodified_train]
    names, before = set(select_parameters(model, 1)), dict(model.model.named_parameters())
    for name, weight in edited.model.named_parameters():
        assert same_bits(weight, before[name]) == (name not in names), name
        assert (weight - before[name]).abs().max() <= 1e-3 + 1e-7


def test_retrain_is_ft_on_the_modified_benchmark():
    modified, run = sample_modifications(WORLD, 4, 0), make_run(**SHORT, method="retrain", finetuning_steps=3)
    edited, outcome = modify(run, tiny_bert(), modified)
    again, _ = finetune(tiny_bert(), modified.modified_train + modified.unmodified_train, run.method.finetuning)
    assert outcome["steps"] == 3 and same_weights(edited, again)


# memories


@pytest.fixture(scope="module")
def four():
    return sample_modifications(WORLD, 4, 0)


def test_a_memory_that_always_answers_gives_remembered_objects_and_one_that_never_does_changes_nothing(four):
    model, remembered = tiny_bert(), {one.fact.object for one in four.modified_train}
    always, outcome = modify(make_run(**KNN, epsilon=math.inf), model, four)
    assert isinstance(always, NeighborLM) and outcome["num_keys"] == len(four.modified_train) and outcome["epsilon_used"] == math.inf
    claimed = [[replace(one, fact=replace(one.fact, object=name)) for name in remembered] for one in four.modified_test]
    assert all(any(always.answers(names)) for names in claimed) and not all(any(model.answers(names)) for names in claimed)
    never, outcome = modify(make_run(**KNN, epsilon=0.0), model, four)
    assert never.answers(WORLD.test) == model.answers(WORLD.test) and outcome["within_epsilon"] == 0


def test_a_quantile_is_the_share_of_unmodified_sentences_within_epsilon(four):
    outcomes = [modify(make_run(**KNN, epsilon_quantile=quantile), tiny_bert(), four)[1] for quantile in (0.0, 0.25, 1.0)]
    shares = [one["within_epsilon"] for one in outcomes]
    assert shares[:2] == pytest.approx([0, 25], abs=1) and 80 < shares[2] < 100, "objects of as many pieces as no remembered one has are out of reach"
    assert outcomes[0]["epsilon_used"] < outcomes[1]["epsilon_used"] < outcomes[2]["epsilon_used"]
    again = modify(make_run(**KNN, epsilon=outcomes[1]["epsilon_used"]), tiny_bert(), four)[1]
    assert again == outcomes[1], "one threshold, written in two ways"


def test_a_row_of_knn_lm_says_whose_answers_were_lost(places):
    never, always, everything = (
        compute_row(make_run(**{**KNN, "epsilon": math.inf, **more}), places) for more in ({"epsilon": 0.0}, {}, {"remembered": "all", "key_layer": "penultimate"})
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
    monkeypatch.setattr(runs, "find_model", lambda start, places: asked.append(start.recipe) or (model, {"start_hash": "f", "pretrained_hash": "p"}))
    runs._answered_before.cache_clear()
    yield model, asked
    runs._answered_before.cache_clear()


def test_a_row_of_fae_is_measured_before_and_after_its_edit(places, fae):
    model, asked = fae
    none, trained = compute_row(make_run(**{**FAE, "group": "none"}), places), compute_row(make_run(**FAE, fae_coverage=0.5), places)
    modified = runs._draw(make_run(**FAE).sample, "mine", places)
    before = evaluate_fae(model, modified)
    for row in (none, trained):
        assert row["modified_accuracy_before"] == pytest.approx(before.modified) and row["unmodified_accuracy_before"] == pytest.approx(before.unmodified)
        assert row["relinked"] == 4 and row["inserted"] == row["skipped"] == 0 and 0 <= row["modified_null_probability"] <= 1
        assert row["start_hash"] == "f" and row["pretrained_hash"] == "p"
    assert not {"radius", "steps", "final_loss", "fae_coverage"} & set(none) and none["group"] == "none"
    assert trained["radius"] == 0.005 and trained["steps"] == 2 and trained["fae_coverage"] == 0.5
    assert {recipe.coverage for recipe in asked} == {make_run(**FAE).start.recipe.coverage, 0.5}
    edited, _ = modify(make_run(**FAE), model, modified)
    moved = {name for name, weight in edited.model.named_parameters() if not same_bits(weight, dict(model.model.named_parameters())[name])}
    assert moved and evaluate_fae(model, modified).per_fact.equals(before.per_fact), "the start is shared, and stays as it was"


def test_facts_that_the_memory_of_fae_lacks_are_inserted_and_counted():
    from modmem.fact_memory import build_memory, name_entities

    half = tiny_fae(memory=build_memory(WORLD, name_entities(WORLD), 0.5, 0))
    modified = sample_modifications(WORLD, 40, 0)
    _, outcome = modify(make_run(**{**FAE, "group": "none", "num_modified": 40}), half, modified)
    assert outcome["relinked"] + outcome["inserted"] == 40 and min(outcome["relinked"], outcome["inserted"]) > 5


def test_a_warning_of_the_edit_stands_in_its_row(places):
    assert "hardly reach the radius" in compute_row(make_run(**{**SHORT, "radius": 5.0}), places)["warning"]
    assert compute_row(make_run(**{**SHORT, "radius": 1e-3}), places)["warning"] == ""
