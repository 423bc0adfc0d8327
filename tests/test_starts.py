"""Starting points by recipe: the same settings find the same model, made once, whoever asks."""
import json
import math
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
from tiny_models import same_weights, tiny_bert

import modmem.fae_training
import modmem.finetuning
from modmem import checkpoint, starts
from modmem.checkpoint import Checkpoint, make_once
from modmem.editor import hash_weights
from modmem.facts import Benchmark
from modmem.files import DataError
from modmem.finetuning import FinetuningConfig
from modmem.masked_lm import SYNTHETIC, load_masked_lm, save_masked_lm
from modmem.pretraining import reinitialize
from modmem.files import exclusively
from modmem.fae import FaeConfig
from modmem.fae_starts import FaeStart, find_fae
from modmem.fae_training import FaeRecipe
from modmem.starts import RECIPES, Data, Places, Start, find_answered, find_start, hash_settings, load_benchmark, load_pretrained
from modmem.world import WorldStyle, make_world

DATA = Data(num_subjects=6)
TRAINING = FinetuningConfig(steps=2, batch_size=16)
FT = Start("mine", "FT", DATA, TRAINING)


def forget():
    "What a new process knows."
    for cached in (load_pretrained, load_benchmark, find_start, find_fae, find_answered):
        cached.cache_clear()


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    save_masked_lm(tiny_bert(seed=1), folder)
    return str(folder)


@pytest.fixture
def places(tmp_path, mine):
    forget()
    yield Places(tmp_path, models={"mine": mine})
    forget()


@pytest.fixture
def count(monkeypatch):
    "Count the calls of a function of the module."

    def spy(name):
        calls, original = [], getattr(starts, name)
        monkeypatch.setattr(starts, name, lambda *args, **options: calls.append(args) or original(*args, **options))
        return calls

    return spy


# keys


def test_equal_settings_have_one_key_however_they_are_written():
    key = hash_settings({"radius": 1, "blocks": [0, 3], "model": {"steps": 2}})
    assert key == hash_settings({"model": {"steps": 2.0}, "blocks": (0, 3), "radius": 1.0}) == "776931ac0351ca23"
    others = [{"radius": math.inf}, {"radius": "1"}, {"blocks": [3, 0]}, {"model": {"steps": 3}}, {"more": None}]
    assert len({key, *(hash_settings({"radius": 1, "blocks": [0, 3], "model": {"steps": 2}} | other) for other in others)}) == 6


def test_a_start_is_keyed_by_recipe_data_and_training(monkeypatch):
    keys = {
        start.key: start
        for start in (
            FT, Start("mine", "RI"), Start("mine", "pretrained"), Start("base", "pretrained"), Start("large", "pretrained"),
            replace(FT, model="base"), replace(FT, data=Data(num_subjects=7)), replace(FT, data=Data("world-questions", num_subjects=6)),
            replace(FT, finetuning=replace(TRAINING, steps=3)), replace(FT, finetuning=replace(TRAINING, learning_rate=2e-3)),
            replace(FT, data=Data("trex")), replace(FT, data=Data("trex", relations=("P19",))), replace(FT, data=Data("trex", max_evidences=3)),
        )
    }
    assert len(keys) == 13
    before = Start("base", "pretrained").key
    monkeypatch.setitem(RECIPES, "alias", RECIPES["base"])
    assert Start("alias", "pretrained").key == before
    monkeypatch.setitem(RECIPES, "base", replace(RECIPES["base"], initial_std=0.02))
    assert Start("base", "pretrained").key != before


KEYS = {  # made before a world had a style
    "plain": "5212a4aa366c3e44", "tiny": "10db8b75c8c26e66",
    "world": "8d9c649d43c4b90a", "world-questions": "2e2eda6afbcd6b0c", "trex": "8499465a08eace9c", "FaE": "5f3b3e01b8ec5e6f",
}


def test_keys_from_before_there_were_styles_stand():
    training = FinetuningConfig(1e-3, 64, steps=600, pool=16, max_gradient_norm=1.0)
    keys = {name: Start(name, "pretrained").key for name in RECIPES if name in KEYS} | {"FaE": hash_settings(FaeStart("plain").settings)}
    for data in (Data(), Data("world-questions", num_subjects=64), Data("trex", relations=("P19",))):
        keys[data.benchmark] = Start("plain", "FT", data, training).key
    assert keys == KEYS


def test_a_style_counts_in_every_key():
    styles = (None, WorldStyle(), WorldStyle(contexts=(0, 1)), WorldStyle(num_tests=1))
    assert len({replace(FT, data=Data(num_subjects=6, style=style)).key for style in styles}) == 4
    assert Data("trex", style=WorldStyle()) == Data("trex") and hash_settings({"style": None}) == hash_settings({})


def test_a_benchmark_is_told_in_its_style(places):
    plain, told = (load_benchmark(Data(num_subjects=2, style=style), "base", places) for style in (None, WorldStyle()))
    assert [sentence.text for sentence in told[0].train] == [sentence.text for sentence in make_world(2, style=WorldStyle()).train]
    assert plain[1] != told[1] and len(told[0].train) > 3 * len(plain[0].train) and len(told[0].test) == 2 * len(told[0].facts)


def test_settings_without_effect_on_the_data_do_not_count():
    assert Data("zsre", num_subjects=3, relations=("P19",)) == Data("zsre") and Data("zsre").num_subjects is None
    assert Data("world", relations=("P19",)) == Data("world")


@pytest.mark.parametrize("bad", [{"kind": "ft"}, {"kind": "RI"}, {"data": None}, {"finetuning": None}])
def test_a_start_that_cannot_be_made_is_refused(bad):
    with pytest.raises(ValueError, match="'ft'|FT needs data and finetuning"):
        replace(FT, **bad)


def test_an_unknown_benchmark_and_one_without_a_place_are_named(places):
    with pytest.raises(ValueError, match="'squad'"):
        Data("squad")
    with pytest.raises(ValueError, match=r"'zsre' has no place: Places\(zsre="):
        load_benchmark(Data("zsre"), "mine", places)


# found or made


def test_ft_is_made_once_and_found_by_the_next_process(places, count):
    trained = count("finetune")
    first, hashes = find_start(FT, places)
    forget()
    second, again = find_start(FT, places)
    assert len(trained) == 1 and hashes == again and same_weights(first, second) and first is not second
    record = json.loads((places.cache / FT.key / "start.json").read_text())
    assert hashes["start_hash"] == hash_weights(second) != hashes["pretrained_hash"] == record["pretrained_hash"]
    assert record["settings"] == json.loads(json.dumps(FT.settings))
    find_start(replace(FT, finetuning=replace(TRAINING, seed=1)), places)
    assert len(trained) == 2


@pytest.mark.parametrize("lost", ["model.safetensors", "."])
def test_a_checkpoint_that_was_removed_is_made_again(places, lost):
    _, hashes = find_start(FT, places)
    path = places.cache / FT.key / lost
    path.unlink() if path.is_file() else shutil.rmtree(path)
    forget()
    assert find_start(FT, places)[1] == hashes and (places.cache / FT.key / "model.safetensors").is_file()


def test_pretrained_is_the_model_as_it_is_and_ri_has_its_shape_only(places, mine):
    pretrained, hashes = find_start(Start("mine", "pretrained"), places)
    assert hashes["start_hash"] == hashes["pretrained_hash"] == hash_weights(pretrained) == hash_weights(tiny_bert(seed=1))
    random, hashes = find_start(Start("mine", "RI"), places)
    assert same_weights(random, reinitialize(pretrained)) and hashes["start_hash"] != hashes["pretrained_hash"]
    assert not any(places.cache.iterdir())


def test_a_process_loads_a_model_once(places):
    assert find_start(FT, places)[0] is find_start(FT, places)[0]




def test_ft_that_diverges_is_an_error_and_is_not_kept(places, monkeypatch):
    real = starts.finetune
    monkeypatch.setattr(starts, "finetune", lambda masked_lm, evidence, config, checkpoint: real(masked_lm, evidence, replace(config, learning_rate=1e30)))
    with pytest.raises(FloatingPointError, match="diverged"):
        find_start(FT, places)
    assert [path.name for path in places.cache.iterdir()] == ["locks"]


class Stopped(Exception):
    "Stands for whatever ends a process."


def count_losses(monkeypatch, module, name, stop=None):
    "Note each loss that training asks for; the training dies at the one with this number."
    asked, compute = [], getattr(module, name)

    def counted(*arguments):
        if len(asked) == stop:
            raise Stopped
        asked.append(arguments)
        return compute(*arguments)

    monkeypatch.setattr(module, name, counted)
    return asked


def other_data(places, monkeypatch):
    "The benchmark lacks a sentence."
    whole = starts._load_data(DATA, places)
    monkeypatch.setattr(starts, "_load_data", lambda data, places: Benchmark(whole.facts, whole.train[1:], whole.test))
    return places


def other_weights(places, monkeypatch):
    "The encoder was made anew, under its old name."
    save_masked_lm(tiny_bert(seed=2), places.cache / "anew")
    return replace(places, models={"mine": str(places.cache / "anew")})


FAE = FaeStart("mine", DATA, FaeRecipe(FaeConfig(first_blocks=1, entity_size=8, relation_size=8, key_size=8, top_entities=4), finetuning=FinetuningConfig(steps=4, batch_size=8)))


@pytest.mark.parametrize(("start", "find"), [(FT, find_start), (FAE, find_fae)])
@pytest.mark.parametrize(("change", "told"), [(other_data, "other data"), (other_weights, "another pretrained model")])
def test_a_model_made_of_something_else_is_refused(places, monkeypatch, start, find, change, told):
    find(start, places)
    forget()
    with pytest.raises(DataError, match=f"{hash_settings(start.settings)}: was made from {told}, [0-9a-f]{{12}} and not [0-9a-f]{{12}}; remove it"):
        find(start, change(places, monkeypatch))


@pytest.mark.parametrize(
    ("start", "loss", "found_by"),
    [(replace(FT, finetuning=replace(TRAINING, steps=4)), (modmem.finetuning, "part_losses"), find_start), (FAE, (modmem.fae_training, "fae_loss"), find_fae)],
)
def test_ft_that_was_interrupted_goes_on_to_the_same_weights(places, tmp_path, monkeypatch, start, loss, found_by):
    monkeypatch.setattr(checkpoint, "Checkpoint", partial(Checkpoint, every=2))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        count_losses(patch, *loss, stop=3)
        found_by(start, places)
    assert [path.name.endswith(".unfinished.safetensors") for path in places.cache.iterdir() if path.is_file()] == [True]
    with monkeypatch.context() as patch:
        left = count_losses(patch, *loss)
        _, hashes = found_by(start, places)
    assert len(left) == 2 and not [path for path in places.cache.iterdir() if path.is_file()]
    forget()
    _, whole = found_by(start, replace(places, cache=tmp_path / "another"))
    assert hashes == whole


def test_ft_that_was_interrupted_does_not_go_on_with_other_data(places, monkeypatch):
    monkeypatch.setattr(checkpoint, "Checkpoint", partial(Checkpoint, every=1))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        count_losses(patch, modmem.finetuning, "part_losses", stop=1)
        find_start(FT, places)
    forget()
    other_data(places, monkeypatch)
    with pytest.raises(DataError, match="unfinished.safetensors: a run with other settings"):
        find_start(FT, places)


def test_the_shipped_model_is_used_for_its_own_recipe_only(places, monkeypatch):
    recipe = json.loads((SYNTHETIC / "recipe.json").read_text())
    assert hash_weights(load_pretrained("plain", places)) == recipe["weights"] != hash_weights(load_pretrained("base", places))
    forget()
    built = []
    monkeypatch.setattr(starts, "build_world_model", lambda recipe, checkpoint: built.append(recipe) or tiny_bert())
    other = replace(RECIPES["base"], world_seed=1)
    monkeypatch.setitem(RECIPES, "base", other)
    assert hash_weights(load_pretrained("base", places)) == hash_weights(tiny_bert()) and built == [other]


def test_a_worlds_model_is_built_once_and_goes_on_after_an_interruption(places, monkeypatch):
    calls = []

    def build(recipe, checkpoint):
        calls.append(checkpoint.exists())
        checkpoint.write_text("state")
        if len(calls) == 1:
            raise KeyboardInterrupt
        return tiny_bert()

    monkeypatch.setattr(starts, "build_world_model", build)
    with pytest.raises(KeyboardInterrupt):
        load_pretrained("tiny", places)
    load_pretrained("tiny", places)
    forget()
    load_pretrained("tiny", places)
    assert calls == [False, True]
    assert {path.name for path in places.cache.iterdir()} == {"locks", Start("tiny", "pretrained").key}


def test_what_the_pretrained_model_answers_is_asked_once_for_a_model_and_its_data(places, count):
    asked = count("answered_facts")
    answered = find_answered(DATA, "mine", places)
    find_start.cache_clear(), find_answered.cache_clear()
    assert find_answered(DATA, "mine", places) == answered and len(asked) == 1
    benchmark, _ = load_benchmark(DATA, "mine", places)
    right = dict(zip((one.fact.id for one in benchmark.test), load_pretrained("mine", places).answers(benchmark.test)))
    assert answered == {fact_id for fact_id, answer in right.items() if answer}
    find_answered(Data(num_subjects=5), "mine", places)
    assert len(asked) == 2


# two at once


def test_the_lock_is_one_processes_and_ends_with_it(tmp_path):
    path = tmp_path / "locks" / "one"
    path.parent.mkdir()
    code = "import fcntl, sys, time; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with exclusively(path, wait=False) as ours:
            assert not ours
        threading.Timer(0.2, other.kill).start()
        with exclusively(path) as ours:
            assert ours and other.wait() == -9
    finally:
        other.kill()


def test_nobody_shares_a_lock_while_its_file_comes_and_goes(tmp_path):
    inside, most = [], []

    def hold():
        for _ in range(50):
            with exclusively(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0002)
                inside.pop()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    _ = [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert len(most) == 200 and max(most) == 1


def test_two_that_need_one_model_get_one(tmp_path):
    made, model = [], tiny_bert()

    def make(unfinished):
        made.append(1)
        time.sleep(0.1)
        return model

    threads = [threading.Thread(target=make_once, args=(tmp_path / "model", {"a": 1}, {}, make, save_masked_lm)) for _ in range(2)]
    _ = [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert len(made) == 1 and same_weights(load_masked_lm(tmp_path / "model"), model)
    assert {path.name for path in tmp_path.iterdir()} == {"locks", "model"}


def test_a_model_that_could_not_be_saved_leaves_nothing(tmp_path):
    def fail(masked_lm, directory):
        (directory / "config.json").write_text("{}")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_once(tmp_path / "model", {}, {}, lambda unfinished: tiny_bert(), fail)
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]
