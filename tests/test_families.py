"""Every model family: transformers' own logits, a pass that can be cut, exact blocks, and edits that come and go."""
import json
import warnings
from dataclasses import replace

import pytest
import torch
from tiny_families import FAMILIES, tiny_family, word_piece
from tiny_models import WORLD, ask, assert_cuts_change_nothing, same_weights

from modmem import cli, knn_lm
from modmem.architectures import ARCHITECTURES, find_architecture, find_block_lists, read_architecture
from modmem.batches import encode_evidence, find_mention
from modmem.blocks import select_parameters
from modmem.editor import Edit, ModificationConfig, modify_facts
from modmem.editors import edit_facts
from modmem.facts import MASK
from modmem.files import DataError
from modmem.finetuning import slot_loss
from modmem.keys_values import ValueConfig, find_values
from modmem.knowledge_neurons import NeuronConfig, attribute_neurons
from modmem.masked_lm import MaskedLM, copy_with_own, load_masked_lm, predict_pieces, save_masked_lm
from modmem.memit import AlphaEditConfig, MemitConfig
from modmem.modification import sample_modifications
from modmem.pretraining import reinitialize

MODIFIED = sample_modifications(WORLD, num_modified=6, seed=0)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def masked_lm(family):
    return tiny_family(family)


@torch.no_grad()
def score_plainly(masked_lm, encoded):
    "Ask transformers in the plain way, and look at the slots."
    batch = masked_lm.batch(encoded)
    present = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask[:, 0, 0].long()
    return masked_lm.model(input_ids=batch.input_ids, attention_mask=present).logits[batch.rows, batch.columns]


def of_one_length(masked_lm, evidence):
    "The encoded sentences of the commonest length."
    encoded = masked_lm.encode(evidence)
    lengths = [len(one.input_ids) for one in encoded]
    return [one for one in encoded if len(one.input_ids) == max(set(lengths), key=lengths.count)]


def test_every_family_is_tried():
    assert {model_type for model_type, _, _ in FAMILIES.values()} == set(ARCHITECTURES)


def test_the_slots_hide_the_pieces_that_the_object_has_inside_its_sentence(masked_lm):
    tokenizer, several = masked_lm.tokenizer, 0
    for evidence, encoded in zip(WORLD.test, masked_lm.encode(WORLD.test), strict=True):
        filled = list(encoded.input_ids)
        assert [filled[slot] for slot in encoded.slots] == [tokenizer.mask_token_id] * len(encoded.labels)
        for slot, label in zip(encoded.slots, encoded.labels):
            filled[slot] = label
        assert filled == tokenizer(evidence.text.replace(MASK, evidence.fact.object))["input_ids"]
        assert tokenizer.decode(encoded.labels).strip() == evidence.fact.object
        several += len(encoded.slots) > 1
    assert several > 5


@pytest.mark.parametrize("name", [name for name, (model_type, *_) in FAMILIES.items() if ARCHITECTURES[model_type].finish])
def test_what_the_slots_attend_to_has_the_dropout_of_the_family_s_own_attention(name):
    twin = tiny_family(name)
    twin.model.train()
    *_, dropout = twin.architecture.attention(twin.blocks[-1])
    for module in twin.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = twin.batch(twin.encode(WORLD.test[:4]))
    for rate, alike in ((0.0, True), (0.5, False)):
        dropout.p = rate
        with torch.no_grad():
            hidden = twin.run_blocks(twin.embed(batch), batch, stop=len(twin.blocks) - 1)
            assert torch.equal(*(twin.read_slots(hidden, batch, start=len(twin.blocks) - 1) for _ in range(2))) == alike


def test_a_name_is_found_at_the_start_of_a_sentence_and_within(masked_lm):
    tokenizer = masked_lm.tokenizer
    for text in (f"ada is in {MASK} .", f"in {MASK} is ada ."):
        ids = masked_lm.encode([ask(text, "barton")])[0].input_ids
        place = find_mention(tokenizer, "ada", ids)
        assert tokenizer.decode([ids[position] for position in place]).strip() == "ada"
    assert find_mention(tokenizer, "bob", ids) is None


def test_logits_are_those_of_transformers(masked_lm):
    encoded = masked_lm.encode([*WORLD.test, *WORLD.train[:40]])
    for part in (encoded, of_one_length(masked_lm, WORLD.test), encoded[:1]):
        with torch.no_grad():
            torch.testing.assert_close(masked_lm(masked_lm.batch(part)), score_plainly(masked_lm, part), rtol=0, atol=1e-5)


def test_long_sentences_are_cut_to_what_the_family_can_read(masked_lm, family):
    evidence = WORLD.test[0]
    words = " ".join(["barton"] * 80)
    long = type(evidence)(evidence.fact, f"{words} {evidence.text} {words}")
    [encoded] = masked_lm.encode([long])
    assert len(encoded.input_ids) == masked_lm.max_length == {"roberta": 62, "xlm-roberta": 62, "mpnet": 62}.get(family, 64)
    with torch.no_grad():
        torch.testing.assert_close(masked_lm(masked_lm.batch([encoded])), score_plainly(masked_lm, [encoded]), rtol=0, atol=1e-5)


def test_states_at_every_block_are_those_of_transformers(masked_lm, family):
    batch = masked_lm.batch(of_one_length(masked_lm, WORLD.test)[:4])
    with torch.no_grad():
        theirs = masked_lm.model(input_ids=batch.input_ids, attention_mask=torch.ones_like(batch.input_ids), output_hidden_states=True).hidden_states
        if family == "modernbert":  # whose last states are shown after the norm that belongs to the head
            theirs = theirs[:-1]
        for index, states in enumerate(theirs):
            torch.testing.assert_close(masked_lm.run_blocks(masked_lm.embed(batch), batch, stop=index), states, atol=1e-5, rtol=0)


def test_a_pass_cut_at_any_block_is_bitwise_the_whole_pass(masked_lm):
    assert_cuts_change_nothing(masked_lm, masked_lm.batch(masked_lm.encode(WORLD.test)[:16]))


def test_company_and_order_change_nothing(masked_lm):
    encoded = masked_lm.encode(WORLD.test)
    expected = predict_pieces(masked_lm, encoded)
    assert predict_pieces(masked_lm, encoded[::-1], batch_size=5)[::-1] == expected
    with torch.no_grad():
        together = masked_lm(masked_lm.batch(encoded[:12])).split([len(one.slots) for one in encoded[:12]])
        for scores, one in zip(together, encoded):
            torch.testing.assert_close(scores, masked_lm(masked_lm.batch([one])), atol=1e-5, rtol=0)


def test_a_block_is_chosen_exactly(masked_lm):
    if masked_lm.model.config.model_type == "albert":
        with pytest.raises(ValueError, match="must be 'all'"):
            select_parameters(masked_lm, 0)
        return
    [prefix] = [name for name, length in find_block_lists(masked_lm.model).items() if length == 3]
    silent = masked_lm.architecture.silent
    own = {name for name, _ in masked_lm.model.named_parameters() if name.startswith(f"{prefix}.1.")}
    assert set(select_parameters(masked_lm, 1)) == {name for name in own if not name.endswith(silent)}
    everything = select_parameters(masked_lm, "all")
    assert all(name.startswith(f"{prefix}.") for name in everything) and len(everything) >= 3 * len(select_parameters(masked_lm, 0))


def test_every_chosen_weight_can_change_an_answer_and_the_silent_ones_cannot(masked_lm):
    changed = copy_with_own(masked_lm)
    batch = changed.batch(changed.encode(WORLD.test[:24]))
    torch.nn.functional.cross_entropy(changed(batch), batch.labels).backward()
    chosen = select_parameters(changed, "all")
    gradients = {name: weight.grad.abs().max().item() for name, weight in chosen.items()}
    assert min(gradients.values()) > 1e-6, min(gradients, key=gradients.get)
    inside = {id(weight) for block in changed.blocks for weight in block.parameters()}
    silent = [weight for name, weight in changed.model.named_parameters() if id(weight) in inside and name not in chosen]
    with torch.no_grad():
        for weight in silent:
            weight.add_(1.0)
        torch.testing.assert_close(changed(batch), masked_lm(batch), atol=1e-4, rtol=0)


def test_an_edit_is_made_applied_saved_and_undone(masked_lm, family, tmp_path):
    masked_lm, blocks = tiny_family(family), "all" if family == "albert" else 1
    before = tiny_family(family)
    config = ModificationConfig(blocks, "linf", 0.05, steps=60, batch_size=16, learning_rate=1e-2)
    edit = modify_facts(masked_lm, MODIFIED, config)
    assert same_weights(masked_lm, before), "editing leaves the model as it was"
    edit.save(tmp_path / "edit.safetensors")
    edit = Edit.load(tmp_path / "edit.safetensors")
    trained = MODIFIED.modified_train
    assert sum(edit.apply_to_copy(masked_lm).answers(trained)) > sum(before.answers(trained)) + len(trained) / 4

    edit.apply(masked_lm)
    encoded = masked_lm.encode(WORLD.test)
    with torch.no_grad():
        torch.testing.assert_close(masked_lm(masked_lm.batch(encoded)), score_plainly(masked_lm, encoded), rtol=0, atol=1e-5)
    save_masked_lm(masked_lm, tmp_path / "applied")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_masked_lm(tmp_path / "applied")
    assert same_weights(loaded, masked_lm)
    assert loaded.predict(trained, top_k=3) == masked_lm.predict(trained, top_k=3)
    edit.undo(masked_lm)
    assert same_weights(masked_lm, before)


def test_an_applied_folder_answers_the_same_in_plain_transformers(masked_lm, family, tmp_path):
    import transformers

    save_masked_lm(masked_lm, tmp_path / "model")
    fill = transformers.pipeline("fill-mask", model=str(tmp_path / "model"), device="cpu")
    mask = masked_lm.tokenizer.mask_token
    asked = [one for one, encoded in zip(WORLD.test, masked_lm.encode(WORLD.test)) if len(encoded.slots) == 1][:20]
    if family == "bert-byte-level":  # whose mask token leaves the space before it behind: transformers' own encoding has a piece too many
        asked = [one for one in asked if one.text.startswith(MASK)]
    theirs = [fill(one.text.replace(MASK, mask), top_k=1)[0]["token_str"].strip() for one in asked]
    assert [answer for [answer] in masked_lm.predict(asked)] == theirs


def test_an_encoder_without_a_head_gets_a_fresh_one_and_lost_blocks_are_refused(masked_lm, tmp_path):
    masked_lm.model.base_model.save_pretrained(tmp_path)
    masked_lm.tokenizer.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no masked-LM head"):
        load_masked_lm(tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    last = max(int(part) for name in weights for part in name.split(".") if part.isdigit())
    kept = {name: weight for name, weight in weights.items() if f".{last}." not in f".{name}" or "albert" in name}
    kept.pop(next(name for name in weights if "albert_layers" in name), None) if len(kept) == len(weights) else None
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="lack"):
        load_masked_lm(tmp_path)


def test_an_unknown_family_is_named_with_its_lists_of_blocks(tmp_path):
    import transformers

    config = transformers.AutoConfig.for_model("roformer", vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2)
    config.save_pretrained(tmp_path)
    with pytest.raises(DataError) as caught:
        load_masked_lm(tmp_path)
    assert "found 'roformer'" in str(caught.value) and "roformer.encoder.layer (3)" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="found 'gpt2'.*: none"):
        find_architecture("gpt2")


# Objects inside their sentences


AROUND = ["ada was born in {} .", "{} is where ada was born", "({}), ada", "in 7{} ,", "{}s and more", "pre{}post", "ada's  {}\n.", "{}", "é{}é .", "u.{}-based", "vev{} .", "{}pow ."]


@pytest.mark.parametrize("answer", ["barton", "apex mills", "Barton's", "st . barton", "Ábarton", "東京", "vev", "pow"])  # vevpow is vev and ##pow
def test_with_word_piece_the_parts_can_as_well_be_tokenized_one_by_one(answer):
    tokenizer = tiny_family("bert").tokenizer
    for around in AROUND:
        evidence = ask(around.format(MASK), answer)
        left, right = (tokenizer(side.strip(), add_special_tokens=False)["input_ids"] for side in evidence.text.split(MASK))
        labels = tokenizer(answer, add_special_tokens=False)["input_ids"]
        [encoded] = encode_evidence(tokenizer, [evidence])
        assert encoded.labels == labels
        assert encoded.input_ids[1:-1] == [*left, *[tokenizer.mask_token_id] * len(labels), *right]


def test_a_leading_space_and_a_capital_are_the_objects_own():
    tokenizer = tiny_family("roberta").tokenizer
    inside, first, glued = encode_evidence(tokenizer, [ask(f"ada was born in {MASK} .", "barton"), ask(f"{MASK} is where", "barton"), ask(f"ada ({MASK}) .", "barton")])
    assert tokenizer.decode(inside.labels) == " barton" and tokenizer.decode(first.labels) == tokenizer.decode(glued.labels) == "barton"
    assert inside.labels != first.labels == glued.labels


def test_characters_without_spaces_between_them_are_cut_where_the_pieces_meet():
    import transformers

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<mask>", 0.0), ("▁我", -2.0), ("住在", -2.0), ("北京", -2.0), ("。", -2.0), ("▁", -3.0)]
    tokenizer = transformers.XLMRobertaTokenizer(vocab=pieces)
    [encoded] = encode_evidence(tokenizer, [ask(f"我住在{MASK}。", "北京")])
    assert tokenizer.convert_ids_to_tokens(encoded.labels) == ["北京"]
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids) == ["<s>", "▁我", "住在", "<mask>", "。", "</s>"]


def tiny_roformer(folder):
    "A family that has no entry."
    import transformers

    tokenizer = word_piece()
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 66}
    torch.manual_seed(0)
    config = transformers.RoFormerConfig(vocab_size=len(tokenizer), initializer_range=0.2, rotary_value=False, **shape)
    transformers.RoFormerForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_unknown_family_is_edited_by_the_name_of_its_blocks(tmp_path):
    folder, name = tiny_roformer(tmp_path / "model"), "roformer.encoder.layer"
    with pytest.raises(DataError, match="found 'roformer'; its lists of like modules: roformer.encoder.layer"):
        load_masked_lm(folder)
    with pytest.raises(DataError, match="expected the name of a list of like modules, one of roformer.encoder.layer"):
        load_masked_lm(folder, block_pattern="encoder")
    masked_lm = load_masked_lm(folder, block_pattern=name)
    batch = masked_lm.batch(masked_lm.encode(WORLD.test[:30]))
    with torch.no_grad():
        plain = masked_lm.model(batch.input_ids, attention_mask=None if batch.attention_mask is None else batch.attention_mask[:, 0, 0].long()).logits
        torch.testing.assert_close(masked_lm(batch), plain[batch.rows, batch.columns], rtol=1e-4, atol=1e-5)
    assert_cuts_change_nothing(masked_lm, batch)
    edits = sample_modifications(WORLD, 2, seed=0)
    edit = modify_facts(masked_lm, edits, ModificationConfig(blocks=1, radius=0.1, steps=30, learning_rate=0.01))
    with torch.no_grad():
        before = float(slot_loss(masked_lm, masked_lm.batch(masked_lm.encode(edits.modified_train))))
    assert edit.record["outcome"]["final_loss"] < 0.75 * before and all(f"{name}.1." in weight for weight in edit.bits)
    edited = edit.apply_to_copy(masked_lm)
    save_masked_lm(edited, tmp_path / "edited")
    assert load_masked_lm(tmp_path / "edited", block_pattern=name).predict(edits.modified_train) == edited.predict(edits.modified_train)
    broken = masked_lm.model
    broken.roformer.encoder.layer[0].register_forward_pre_hook(lambda module, args: (args[0] * torch.rand(1), *args[1:]))
    with pytest.raises(ValueError, match="cannot be run on their own"):
        read_architecture(broken, name)


def test_every_editor_and_a_memory_work_by_the_name_of_the_blocks_as_they_do_by_an_entry():
    known, one = tiny_family("bert"), tiny_family("bert")
    watched = MaskedLM(one.model, one.tokenizer, read_architecture(one.model, "bert.encoder.layer"))
    evidence = MODIFIED.modified_train
    few = ValueConfig(steps=3)
    for block in (1, 2):
        torch.testing.assert_close(*(attribute_neurons(model, evidence, block, 2) for model in (known, watched)), rtol=1e-3, atol=1e-6)
        values = [find_values(model, evidence, block, config=few) for model in (known, watched)]
        torch.testing.assert_close(values[0].changes, values[1].changes, rtol=1e-2, atol=1e-2)
        assert values[1].loss == pytest.approx(values[0].loss, rel=1e-3)
    for config in (MemitConfig(2, values=few), AlphaEditConfig(1, values=few), NeuronConfig(points=2, evidences=1)):
        assert edit_facts(watched, MODIFIED, config).apply_to_copy(watched).answers(evidence) == edit_facts(known, MODIFIED, config).apply_to_copy(known).answers(evidence)
    for layer in knn_lm._KEY_LAYERS:
        memories = [knn_lm.build_memory(model, evidence, layer) for model in (known, watched)]
        torch.testing.assert_close(memories[0].keys, memories[1].keys, rtol=1e-4, atol=1e-5)
        neighbors = knn_lm.NeighborLM(watched, memories[1], knn_lm.NearestWithin(1e-2))
        assert neighbors.architecture is watched.architecture and all(neighbors.answers(evidence))


def test_blocks_that_cannot_be_watched_or_lack_a_part_are_told_in_one_line():
    import transformers

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 40}
    squeezed = transformers.SqueezeBertForMaskedLM(transformers.SqueezeBertConfig(embedding_size=32, **shape)).eval()
    with pytest.raises(ValueError, match="^the blocks of 'transformer.encoder.layers' cannot be run on their own: a pass does not call the first of them as a module$"):
        read_architecture(squeezed, "transformer.encoder.layers")
    picky = tiny_family("bert").model

    def complain(*_):
        raise RuntimeError("expected\n 512 tokens")

    picky.bert.encoder.layer[0].register_forward_pre_hook(complain)
    with pytest.raises(ValueError, match="^the blocks of 'bert.encoder.layer' cannot be run on their own: expected 512 tokens$"):
        read_architecture(picky, "bert.encoder.layer")
    other = tiny_family("bert")
    masked_lm = MaskedLM(other.model, other.tokenizer, replace(other.architecture, ffn_names=("wide", "narrow")))
    for config in (MemitConfig(1), ModificationConfig(1, radius=0.1, steps=1, part="ffn")):
        with pytest.raises(ValueError, match="no part 'ffn.*: nothing in BertLayer is named .*narrow"):
            edit_facts(masked_lm, MODIFIED, config)


def test_every_command_takes_the_name_of_the_blocks_of_an_unknown_family(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("modmem.world.make_world", lambda *_, **__: WORLD)
    tiny_roformer(tmp_path / "model")
    (tmp_path / "corpus.txt").write_text("ada was born in barton .\n")
    fact = WORLD.facts[0]
    line = {"subject": fact.subject, "relation": fact.relation, "object": fact.object, "new_object": WORLD.facts[8].object, "evidence": [f"{fact.subject} was born in {MASK} ."]}
    (tmp_path / "edits.jsonl").write_text(json.dumps(line) + "\n")
    commands = [
        ["edit", "model", "edits.jsonl", "--blocks", "1", "--radius", "inf", "--steps", "1", "--output", "edit.safetensors"], ["evaluate", "model", "edits.jsonl", "--edit", "edit.safetensors"],
        ["apply", "model", "edit.safetensors", "--output", "edited"], ["finetune", "model", "--synthetic", "--steps", "1", "--output", "finetuned"],
        ["pretrain", "--init", "model", "--corpus", "corpus.txt", "--steps", "1", "--output", "pretrained"],
    ]
    for command in commands:
        assert cli.main(command) == 2 and "model_type" in capsys.readouterr().err, command
        assert cli.main([*command, "--block-pattern", "roformer.encoder.layer"]) == 0, capsys.readouterr().err
    one = reinitialize(load_masked_lm("finetuned", block_pattern="roformer.encoder.layer"))
    assert len(one.blocks) == 3
