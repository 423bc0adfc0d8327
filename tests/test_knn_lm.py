"""Eq. 10 to the letter, neighbours as exact as float64 finds them, and a memory that is the same from its file."""
import contextlib
import dataclasses
import math
import resource

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from tiny_families import FAMILIES, tiny_family
from tiny_models import TINY, WORLD, ask, tiny_bert

from modmem import knn_lm
from modmem.editor import ModificationConfig, modify_facts
from modmem.evaluation import evaluate, measure_accuracy
from modmem.files import DataError
from modmem.knn_lm import (
    NEIGHBORS,
    Interpolation,
    NearestWithin,
    NeighborConfig,
    NeighborLM,
    NeighborMemory,
    build_memory,
    count_lost,
    find_nearest,
    memory_evidence,
)
from modmem.masked_lm import copy_with_own, hash_weights, predict_pieces
from modmem.modification import sample_modifications
from modmem.trials import run_trial

MODIFIED = sample_modifications(WORLD, num_modified=6, seed=0)
ONE_PIECE = [sentence for sentence in MODIFIED.modified_train if " " not in sentence.fact.object]


@pytest.fixture(scope="module")
def bert():
    return tiny_bert()


@pytest.fixture(scope="module")
def memory(bert):
    return build_memory(bert, MODIFIED.modified_train)


def points(count, size=24, shift=0.0, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (shift + spread * torch.randn(count, size, generator=generator)).float()


def brute_force(queries, keys, k=1):
    "Distances and positions by subtraction in float64."
    distances = (queries.double()[:, None] - keys.double()[None]).square().sum(-1).sqrt()
    return distances.sort(dim=1, stable=True)[0][:, :k], distances.sort(dim=1, stable=True)[1][:, :k]


# the search


@pytest.mark.parametrize(("shift", "spread"), [(0, 1), (100, 1), (100, 0.1), (-1000, 1)])
@pytest.mark.parametrize("k", [1, 5])
def test_the_nearest_are_those_of_float64_however_far_from_zero(shift, spread, k, monkeypatch):
    monkeypatch.setattr(knn_lm, "_KEYS_AT_ONCE", 97)  # so that parts are merged
    queries, keys = points(40, shift=shift, spread=spread, seed=1), points(700, shift=shift, spread=spread)
    distances, positions = find_nearest(queries, keys, k)
    expected, where = brute_force(queries, keys, k)
    assert torch.equal(positions, where)
    torch.testing.assert_close(distances, expected, rtol=1e-12, atol=0)
    tree_distances, tree_positions = KDTree(keys.double().numpy()).query(queries.double().numpy(), k=[*range(1, k + 1)])
    assert np.array_equal(positions.numpy(), tree_positions)
    np.testing.assert_allclose(distances.numpy(), tree_distances, rtol=1e-9)


def test_scikit_learn_finds_the_same():
    neighbors = pytest.importorskip("sklearn.neighbors")
    queries, keys = points(30, shift=100, seed=1), points(500, shift=100)
    found = neighbors.NearestNeighbors(n_neighbors=3, algorithm="brute", metric="euclidean").fit(keys.double().numpy() - 100.0)
    expected, where = found.kneighbors(queries.double().numpy() - 100.0)
    distances, positions = find_nearest(queries, keys, 3)
    assert np.array_equal(positions.numpy(), where)
    np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-6)


def test_a_key_finds_itself_at_exactly_zero_and_of_equal_keys_the_first():
    keys = points(300, shift=100)
    distances, positions = find_nearest(keys, torch.cat([keys, keys[:5]]))
    assert (distances == 0).all() and torch.equal(positions[:, 0], torch.arange(300))


def test_distances_are_not_squared():
    distances, positions = find_nearest(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), k=7)
    assert distances.tolist() == [[5.0]] and positions.tolist() == [[0]]


def test_candidates_that_look_alike_are_told_apart_by_measuring():
    keys = torch.full((6, 4), 1000.0)
    keys[:, 0] += torch.tensor([4.0, 3.0, 1.0, 2.0, 5.0, 6.0]) * 2**-13
    assert find_nearest(torch.full((1, 4), 1000.0), keys)[1].item() == 2


def test_only_keys_of_the_own_group_count():
    keys, groups = points(60), torch.arange(60) % 3
    queries = keys[:12] + 1e-3
    distances, positions = find_nearest(queries, keys, 2, torch.full((12,), 2), groups)
    assert (positions % 3 == 2).all() and (distances.isfinite()).all()
    assert find_nearest(queries, keys, 2, torch.full((12,), 9), groups)[0].isinf().all()


def test_half_precision_keys_are_searched_as_stored():
    queries, keys = points(20, seed=1), points(400).half()
    distances, positions = find_nearest(queries, keys)
    expected, where = brute_force(queries, keys)
    assert torch.equal(positions, where)
    torch.testing.assert_close(distances, expected, rtol=1e-12, atol=0)


def test_no_keys_are_an_error():
    with pytest.raises(ValueError, match="no keys"):
        find_nearest(points(2), points(0))


# keys


@pytest.mark.parametrize("family", TINY)
def test_the_layers_are_the_states_of_transformers_own_forward_pass(family):
    masked_lm = TINY[family]()
    batch = masked_lm.batch(masked_lm.encode(ONE_PIECE[:3])[:3])
    assert set(knn_lm._KEY_LAYERS) == {"last_hidden", "penultimate", "last_ffn_input", "mlm_transform"}
    ffn = masked_lm.blocks[-1].intermediate if family == "bert" else masked_lm.blocks[-1].ffn
    seen = {"last_ffn_input": ffn, "mlm_transform": masked_lm.model.get_output_embeddings()}
    inputs = {}
    hooks = [module.register_forward_pre_hook(lambda _, given, name=name: inputs.__setitem__(name, given[0])) for name, module in seen.items()]
    with torch.no_grad():
        mask = None if batch.attention_mask is None else batch.attention_mask[:, 0, 0].long()
        hidden = masked_lm.model(batch.input_ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    expected = {"last_hidden": hidden[-1], "penultimate": hidden[-2], **inputs}
    for layer, states in expected.items():
        with torch.no_grad():
            slots = states[batch.rows, batch.columns]
            keys = torch.stack([slots[batch.rows == row].mean(0) for row in range(3)])
            found = knn_lm._compute_keys(masked_lm, batch, layer)[0]
        torch.testing.assert_close(found, keys, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_s_keys_are_what_its_own_layers_read(family):
    masked_lm = tiny_family(family)
    batch = masked_lm.batch(masked_lm.encode(MODIFIED.modified_train[:6]))
    layers, seen = {"last_ffn_input": masked_lm.blocks[-1].get_submodule(masked_lm.architecture.ffn_names[0])}, {}
    if family == "deberta-v3":  # whose head multiplies with the word embeddings, in no layer
        with pytest.raises(ValueError, match="expected a last layer of the head with 244 pieces"):
            knn_lm._compute_keys(masked_lm, batch, "mlm_transform")
    else:
        layers["mlm_transform"] = masked_lm.model.get_output_embeddings()
    with torch.no_grad(), contextlib.ExitStack() as hooks:
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_pre_hook(lambda _, given, name=name: seen.__setitem__(name, given[0])))
        masked_lm.model(batch.input_ids, attention_mask=None if batch.attention_mask is None else batch.attention_mask[:, 0, 0].long())
    for layer, states in seen.items():
        slots = states[batch.rows, batch.columns]
        keys = torch.stack([slots[batch.rows == row].mean(0) for row in range(6)])
        with torch.no_grad():
            torch.testing.assert_close(knn_lm._compute_keys(masked_lm, batch, layer)[0], keys, rtol=1e-4, atol=1e-5)


def test_a_block_without_a_layer_of_that_name_has_no_such_keys():
    masked_lm = tiny_bert()
    masked_lm.architecture = dataclasses.replace(masked_lm.architecture, ffn_names=("wide", "narrow"))
    with pytest.raises(ValueError, match="expected a last block with a layer 'wide', to take keys from 'last_ffn_input'; BertLayer has none"):
        build_memory(masked_lm, ONE_PIECE[:1], "last_ffn_input")


def test_dropout_is_off_while_a_memory_is_built_and_the_mode_is_left_as_found(bert, memory):
    bert.model.train()
    try:
        again = build_memory(bert, MODIFIED.modified_train)
        assert bert.model.training and torch.equal(again.keys, memory.keys)
    finally:
        bert.model.eval()


# the rule of Eq. 10


def scores_of(count, size=6):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(3))


def test_the_switch_is_strict_and_takes_the_nearest():
    scores, distances = scores_of(3), torch.tensor([[1.0], [0.999], [math.inf]])
    answers = NearestWithin(1.0)(scores, distances, torch.tensor([[2], [2], [2]])).argmax(-1)
    assert answers.tolist() == [scores[0].argmax().item(), 2, scores[2].argmax().item()]
    confident = torch.tensor([[1000.0, 0.0, 0.0]])  # whose log-probability is 0
    assert NearestWithin(1.0)(confident, torch.zeros(1, 1), torch.tensor([[2]])).argmax().item() == 2


def test_epsilon_zero_never_overrides_and_infinity_always(bert, memory):
    everything = [*MODIFIED.modified_test, *MODIFIED.unmodified_test]
    never = NeighborLM(bert, memory, NearestWithin(0))
    assert never.predict(everything) == bert.predict(everything)
    assert never.answers(MODIFIED.modified_train) == bert.answers(MODIFIED.modified_train)  # even at distance 0
    always, known = NeighborLM(bert, memory, NearestWithin(math.inf)), set(map(tuple, memory.values.tolist()))
    width = memory.values.shape[1]
    encoded = bert.encode(everything)
    for question, (best,) in zip(encoded, predict_pieces(always, encoded)):
        if any(sum(piece >= 0 for piece in value) == len(question.slots) for value in known):
            assert (*best, *[-1] * (width - len(best))) in known


def test_with_infinite_epsilon_the_model_s_own_scores_do_not_matter(bert, memory, monkeypatch):
    always = NeighborLM(bert, memory, NearestWithin(math.inf))
    before = always.predict(MODIFIED.modified_test)
    monkeypatch.setattr(NeighborLM, "score_slots", lambda self, slots: torch.zeros(len(slots), len(self.tokenizer)))
    assert always.predict(MODIFIED.modified_test) == before


def test_remembered_sentences_are_answered_with_the_remembered_objects(bert, memory):
    assert all(NeighborLM(bert, memory, NearestWithin(1e-3)).answers(MODIFIED.modified_train))
    assert memory.measure(bert, MODIFIED.modified_train).max() < 1e-5


def test_questions_overridden_grow_with_epsilon(bert, memory):
    distances = memory.measure(bert, MODIFIED.unmodified_test)
    own = bert.predict(MODIFIED.unmodified_test)
    inside = [set(range(0))]
    for epsilon in distances[distances.isfinite()].quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist():
        answers = NeighborLM(bert, memory, NearestWithin(epsilon)).predict(MODIFIED.unmodified_test)
        changed = {number for number, (now, before) in enumerate(zip(answers, own)) if now != before}
        assert changed <= set((distances < epsilon).nonzero().flatten().tolist())
        inside.append({number for number in range(len(own)) if distances[number] < epsilon})
        assert inside[-2] <= inside[-1]


def test_an_object_is_taken_whole_and_only_where_it_fits(bert):
    one, two = ask("ada works for [MASK] .", "chess", 1), ask("ada works for [MASK] .", "apex mills", 2)
    memory = build_memory(bert, [one, two])
    assert (memory.values >= 0).sum(1).tolist() == [1, 2]
    model = NeighborLM(bert, memory, NearestWithin(math.inf))
    assert model.predict([ask("bob works for [MASK] .", "golf", 3), ask("bob works for [MASK] .", "bolt bank", 4)]) == [["chess"], ["apex mills"]]
    three = ask("bob works for [MASK] .", "apex mills bank", 5)
    assert model.predict(three) == bert.predict(three)
    short = NeighborLM(bert, build_memory(bert, [one]), NearestWithin(math.inf))
    assert short.predict([two, three]) == bert.predict([two, three])
    long, golf = NeighborLM(bert, build_memory(bert, [two]), NearestWithin(math.inf)), ask("bob works for [MASK] .", "golf", 3)
    assert long.predict(golf) == bert.predict(golf) and long.memory.measure(bert, [golf]).isinf().all()


@pytest.mark.parametrize("bad", [-1, math.nan, "6", None, True])
def test_an_epsilon_that_is_no_distance_is_refused(bad):
    with pytest.raises(ValueError, match="epsilon"):
        NearestWithin(bad)


# interpolation


def test_weight_zero_is_the_model_one_the_neighbours_and_all_sum_to_one():
    scores, distances = scores_of(4), torch.rand(4, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64).sort(1).values
    pieces = torch.tensor([[1, 1, 2], [0, 1, 2], [5, 5, 5], [3, 3, 4]])
    own = scores.log_softmax(-1)
    assert torch.equal(Interpolation(3, weight=0.0)(scores, distances, pieces), own)
    neighbors = Interpolation(3, weight=1.0, temperature=0.7)(scores, distances, pieces).exp()
    votes = torch.exp(-distances.square() / 0.7)
    expected = torch.zeros(4, 6, dtype=torch.float64)
    for row in range(4):
        for vote, piece in zip(votes[row], pieces[row]):
            expected[row, piece] += vote / votes[row].sum()
    torch.testing.assert_close(neighbors.double(), expected, rtol=1e-5, atol=1e-7)
    mixed = Interpolation(3, weight=0.3, temperature=0.7)(scores, distances, pieces).exp()
    torch.testing.assert_close(mixed, (0.7 * own.exp() + 0.3 * expected.float()))
    torch.testing.assert_close(mixed.sum(-1), torch.ones(4))


def test_without_a_neighbour_that_fits_the_model_is_asked_even_at_weight_one():
    scores = scores_of(2)
    distances = torch.tensor([[1.0, math.inf], [math.inf, math.inf]])
    mixed = Interpolation(2, weight=1.0)(scores, distances, torch.tensor([[1, 4], [1, 4]])).exp()
    assert mixed[0].tolist() == [0, 1, 0, 0, 0, 0]
    assert torch.equal(mixed[1], scores[1].log_softmax(-1).exp())


def test_far_neighbours_do_not_vanish_in_the_exponential():
    mixed = Interpolation(2, weight=1.0)(scores_of(1), torch.tensor([[100.0, 100.0]]), torch.tensor([[1, 4]])).exp()
    assert mixed[0].tolist() == [0, 0.5, 0, 0, 0.5, 0]


@pytest.mark.parametrize("bad", [{"k": 0}, {"k": 1.5}, {"weight": 1.1}, {"weight": math.nan}, {"temperature": 0}, {"temperature": math.inf}])
def test_settings_of_the_interpolation_are_checked(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Interpolation(**bad)


def test_a_memory_smaller_than_k_and_evidence_of_the_entire_training_set(bert):
    memory = build_memory(bert, memory_evidence(MODIFIED, "all")[:50])
    model = NeighborLM(bert, memory, Interpolation(k=1024, weight=0.5))
    assert len(model.predict(MODIFIED.modified_test)) == len(MODIFIED.modified_test)


# the memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_memory_is_the_same_from_its_file_written_in_parts(bert, dtype, tmp_path, monkeypatch):
    whole = build_memory(bert, MODIFIED.modified_train, dtype=dtype)
    monkeypatch.setattr(knn_lm, "_EVIDENCES_AT_ONCE", 7)
    saved = build_memory(bert, MODIFIED.modified_train, dtype=dtype, directory=tmp_path / "new" / "memory")
    loaded = NeighborMemory.load(tmp_path / "new" / "memory")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["memory"]
    for found in (saved, loaded):
        assert found.keys.dtype == dtype and torch.equal(found.values, whole.values)
        torch.testing.assert_close(found.keys, whole.keys, rtol=1e-3 if dtype == torch.float16 else 1e-4, atol=2e-3 if dtype == torch.float16 else 1e-5)
        assert (found.layer, found.model_hash) == (whole.layer, hash_weights(bert))


def test_keys_and_values_stand_in_the_order_of_the_evidence(bert, memory):
    alone = [build_memory(bert, [sentence]) for sentence in MODIFIED.modified_train[:6]]
    for number, single in enumerate(alone):
        torch.testing.assert_close(single.keys[0], memory.keys[number], rtol=1e-4, atol=1e-5)
        pieces = bert.tokenizer(MODIFIED.modified_train[number].fact.object, add_special_tokens=False)["input_ids"]
        assert [piece for piece in memory.values[number].tolist() if piece >= 0] == pieces


def test_a_file_is_written_without_holding_it_and_searched(tmp_path):
    folder, base, parts = tmp_path / "memory", points(1000, 768), 80
    about = {"layer": "last_hidden", "model_hash": ""}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = torch.zeros(parts * 1000, 1, dtype=torch.int32)
    knn_lm._write_memory(folder, values, (base + number for number in range(parts)), torch.float16, about)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert (folder / "keys.npy").stat().st_size > 2 * parts * base.numel() > 120e6 and grown < 50e6
    distances, positions = NeighborMemory.load(folder).find(base[:5] + 7, torch.ones(5, dtype=torch.int64))
    assert positions[:, 0].tolist() == [7000, 7001, 7002, 7003, 7004] and distances.max() < 0.1


def test_opening_a_memory_does_not_read_its_keys(tmp_path):
    folder, parts = tmp_path / "memory", 80
    values = torch.zeros(parts * 1000, 1, dtype=torch.int32)
    knn_lm._write_memory(folder, values, (points(1000, 768) for _ in range(parts)), torch.float16, {"layer": "last_hidden", "model_hash": ""})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = NeighborMemory.load(folder)
    assert len(memory.keys) == parts * 1000 and memory.keys[-1].isfinite().all()
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 50e6


def test_a_memory_is_written_whole_or_not_at_all(bert, memory, tmp_path, monkeypatch):
    folder = tmp_path / "memory"

    def break_off(*chunk):
        yield torch.zeros(3, 32)
        raise KeyboardInterrupt

    for before in ([], ["memory"]):
        with pytest.raises(KeyboardInterrupt):
            knn_lm._write_memory(folder, memory.values, break_off(), torch.float32, {"layer": "last_hidden", "model_hash": ""})
        assert [path.name for path in tmp_path.iterdir()] == before
        build_memory(bert, MODIFIED.modified_train, directory=folder)
    assert torch.equal(NeighborMemory.load(folder).keys, memory.keys)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-ada.txt").write_text("dear ada")
    with pytest.raises(DataError, match="something else"):
        build_memory(bert, MODIFIED.modified_train, directory=tmp_path / "letters")


def test_what_is_no_memory_is_refused(bert, memory, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        NeighborMemory.load(tmp_path / "memory")
    build_memory(bert, MODIFIED.modified_train, directory=tmp_path / "memory")
    keys, values = tmp_path / "memory" / "keys.npy", tmp_path / "memory" / "values.safetensors"
    whole = keys.read_bytes()
    for content in (b"", b"nonsense", whole[:-4]):
        keys.write_bytes(content)
        with pytest.raises(DataError, match="expected the keys of a memory"):
            NeighborMemory.load(tmp_path / "memory")
    for array in (memory.keys[:-1].numpy(), memory.keys.double().numpy(), memory.keys[:, 0].numpy()):
        np.save(keys, array)
        with pytest.raises(DataError, match=f"expected the keys of a memory, {len(memory.keys)} of them"):
            NeighborMemory.load(tmp_path / "memory")
    keys.unlink()
    with pytest.raises(DataError, match="expected the keys of a memory"):
        NeighborMemory.load(tmp_path / "memory")
    values.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="expected a safetensors file"):
        NeighborMemory.load(tmp_path / "memory")
    with pytest.raises(ValueError, match="no evidence"):
        build_memory(bert, [])
    with pytest.raises(ValueError, match="bfloat16"):
        build_memory(bert, MODIFIED.modified_train, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="'logits'"):
        build_memory(bert, MODIFIED.modified_train, layer="logits")


def test_a_memory_of_another_model_is_refused(bert, memory):
    with pytest.raises(ValueError, match=memory.model_hash[:12]):
        NeighborLM(tiny_bert(seed=1), memory, NearestWithin(1.0))
    with pytest.raises(ValueError, match=memory.model_hash[:12]):
        memory.measure(tiny_bert(seed=1), MODIFIED.modified_test)


def test_a_memory_is_refused_once_its_model_is_edited_and_taken_back_when_that_is_undone():
    model = tiny_bert()
    neighbors = NeighborLM(model, build_memory(model, MODIFIED.modified_train), NearestWithin(1.0))
    expected = neighbors.answers(MODIFIED.modified_train)
    edit = modify_facts(neighbors, MODIFIED, ModificationConfig(1, radius=0.1, steps=2, learning_rate=0.1))
    edited, other = edit.apply_to_copy(neighbors), copy_with_own(neighbors)
    assert other.answers(MODIFIED.modified_train) == expected
    for _ in range(2):
        with pytest.raises(ValueError, match=f"states of the model with hash {hash_weights(model)[:12]}, not {hash_weights(edited)[:12]}"):
            edited.answers(MODIFIED.modified_train)
    edit.undo(edited)
    assert edited.answers(MODIFIED.modified_train) == expected == neighbors.answers(MODIFIED.modified_train)
    edit.apply(neighbors)
    with pytest.raises(ValueError, match="this memory has the states"):
        neighbors.answers(MODIFIED.modified_train)


def test_an_index_proposes_and_exact_distances_decide(bert, memory):
    class Index:
        "Proposes all keys in a wrong order, with wrong distances, and pads as faiss does."

        def search(self, queries, k):
            positions = np.tile(np.r_[np.arange(len(memory.keys))[::-1], -1, -1], (len(queries), 1))
            return np.zeros(positions.shape, dtype=np.float32), positions

    rule = NearestWithin(math.inf)
    exact, proposed = NeighborLM(bert, memory, rule), NeighborLM(bert, memory, rule, index=Index())
    assert proposed.predict(MODIFIED.modified_test) == exact.predict(MODIFIED.modified_test)
    assert all(NeighborLM(bert, memory, NearestWithin(1e-3), index=Index()).answers(MODIFIED.modified_train))


def test_what_an_index_does_not_propose_is_not_found(bert):
    class Index:
        def search(self, queries, k):
            return None, np.full((len(queries), k), 1)

    memory = build_memory(bert, [ask("ada works for [MASK] .", "chess", 1), ask("bob is fond of [MASK] .", "golf", 2)])
    assert NeighborLM(bert, memory, NearestWithin(math.inf), index=Index()).predict(ask("ada works for [MASK] .", "judo", 3)) == ["golf"]


# what is remembered, and what is lost


def test_memories_named_in_the_paper_are_those_evidences():
    assert memory_evidence(MODIFIED) == MODIFIED.modified_train
    assert memory_evidence(MODIFIED, "all") == MODIFIED.modified_train + MODIFIED.unmodified_train
    objects = {fact.id: fact.object for fact in WORLD.facts}
    for sentence in memory_evidence(MODIFIED, "all", edited=False):
        assert sentence.fact.object == objects[sentence.fact.id]
    with pytest.raises(ValueError, match="'none'"):
        memory_evidence(MODIFIED, "none")


def test_evaluation_measures_a_model_with_a_memory_like_any_other(bert, memory):
    model = NeighborLM(bert, memory, NearestWithin(math.inf))
    accuracy = evaluate(model, MODIFIED, baseline=bert)
    assert accuracy.modified == pytest.approx(measure_accuracy(model, MODIFIED.modified_test))
    assert accuracy.unmodified == pytest.approx(measure_accuracy(model, MODIFIED.unmodified_test))
    off = evaluate(NeighborLM(bert, memory, NearestWithin(0)), MODIFIED)
    assert (off.modified, off.unmodified) == (evaluate(bert, MODIFIED).modified, evaluate(bert, MODIFIED).unmodified)


def test_lost_answers_are_counted_among_those_that_were_right():
    table = evaluate(tiny_bert(), MODIFIED).per_fact
    unmodified = ~table["modified"]
    old = {fact.object for fact in MODIFIED.modified_facts}
    sharing = table.loc[unmodified, "expected"].isin(old).tolist()
    assert 0 < sum(sharing) < len(sharing)
    before = [True] * len(sharing)
    before[sharing.index(True)] = before[sharing.index(False)] = False
    table.loc[unmodified, "correct"] = [not shares for shares in sharing]  # exactly the sharing ones are wrong now
    lost = count_lost(table, before, MODIFIED)
    assert lost == {"lost_sharing": 100.0, "lost_others": 0.0, "num_sharing": sum(sharing) - 1, "num_others": len(sharing) - sum(sharing) - 1}


# as a method


def test_a_trial_with_a_memory_says_how_large_and_how_near(bert):
    own, scale = evaluate(bert, MODIFIED), build_memory(bert, MODIFIED.modified_train).measure(bert, MODIFIED.unmodified_train)
    trial = run_trial(bert, MODIFIED, NeighborConfig(epsilon=0.0), NEIGHBORS)
    assert (trial.accuracy.modified, trial.accuracy.unmodified) == (own.modified, own.unmodified)
    assert trial.outcome == {"num_keys": len(MODIFIED.modified_train), "epsilon_used": 0.0, "within_epsilon": 0.0}
    half = run_trial(bert, MODIFIED, NeighborConfig(epsilon_quantile=0.5), NEIGHBORS).outcome
    assert half["epsilon_used"] == scale.quantile(0.5, interpolation="lower").item()  # fewer sentences than would be drawn: all of them
    assert half["within_epsilon"] == 100 * (scale < half["epsilon_used"]).double().mean().item()
    all_sentences = run_trial(bert, MODIFIED, NeighborConfig("all", epsilon=0.0), NEIGHBORS).outcome
    assert all_sentences["num_keys"] == len(WORLD.train)


def test_an_epsilon_is_measured_on_some_sentences_that_the_seed_draws_in_the_layer_asked_for(bert, monkeypatch):
    monkeypatch.setattr(knn_lm, "_SCALE_QUESTIONS", 5)
    (model, first), (_, again), (_, other) = (NEIGHBORS.modify(bert, MODIFIED, NeighborConfig(epsilon_quantile=0.5, key_layer="penultimate", seed=seed)) for seed in (0, 0, 1))
    assert first == again and first["epsilon_used"] != other["epsilon_used"] and model.memory.layer == "penultimate"


def test_a_given_epsilon_needs_no_unmodified_sentence(bert):
    alone = dataclasses.replace(MODIFIED, unmodified_train=(), unmodified_test=())
    model, outcome = NEIGHBORS.modify(bert, alone, NeighborConfig(epsilon=1.0))
    assert all(model.answers(MODIFIED.modified_train)) and outcome["epsilon_used"] == 1.0 and math.isnan(outcome["within_epsilon"])
    with pytest.raises(ValueError, match="epsilon_quantile is a share of .* there are none: give epsilon"):
        NEIGHBORS.modify(bert, alone, NeighborConfig(epsilon_quantile=0.1))


@pytest.mark.parametrize(("bad", "message"), [
    ({}, "either epsilon or"), ({"epsilon": 1.0, "epsilon_quantile": 0.5}, "either epsilon or"), ({"epsilon": -1.0}, "epsilon"),
    ({"epsilon_quantile": 1.5}, "epsilon_quantile"), ({"epsilon_quantile": math.nan}, "epsilon_quantile"),
    ({"epsilon": 1.0, "remembered": "none"}, "'none'"), ({"epsilon": 1.0, "key_layer": "logits"}, "'logits'"),
    ({"epsilon": 1.0, "seed": -1}, "seed"), ({"epsilon": 1.0, "seed": True}, "seed"),
])
def test_settings_of_the_method_are_checked(bad, message):
    with pytest.raises(ValueError, match=message):
        NeighborConfig(**bad)
