"""Kinds of faults that users of such tools have reported, each rebuilt here, with the outcome that is right."""
import io
import json
import os
import time

import pytest
import torch
import transformers
from forks import run_fork
from tiny_families import byte_level
from tiny_models import ask

from modmem import cli
from modmem.batches import keep_unseen
from modmem.facts import MASK, Benchmark
from modmem.files import DataError
from modmem.masked_lm import MaskedLM, load_masked_lm, save_masked_lm
from modmem.stack import load_edit

WORDS = "paris rome the is capital of in italy france spain a tower by agnes . , - new york".split()
LINE = {
    "subject": "Paris", "relation": "capital of", "object": "France", "new_object": "Italy",
    "evidence": ["Paris is the capital of [MASK]."], "test": ["The capital of [MASK] is Paris."],
}


def build(folder, cased=False):
    "A tiny BERT with WordPiece."
    words = [*(word.capitalize() for word in WORDS), *WORDS] if cased else WORDS
    letters = [chr(code) for code in range(97, 123)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*words, *letters, *(f"##{letter}" for letter in letters)])]
    tokenizer = transformers.BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)}, do_lower_case=not cased)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    torch.manual_seed(0)
    masked_lm = MaskedLM(transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(pieces), **shape)), tokenizer)
    save_masked_lm(masked_lm, folder)
    return masked_lm


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*lines):
    with open("edits.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def refused(capsys, *arguments):
    "Run a command that must refuse its input: the one line it says."
    code, output, error = run(capsys, *arguments)
    assert (code, output) == (2, "") and len(error.splitlines()) == 1, error
    return error.strip()


EDIT = ("--blocks", "0", "--radius", "inf", "--steps", "2", "--output", "edit.safetensors")
COMMANDS = [("evaluate", "model", "edits.jsonl"), ("edit", "model", "edits.jsonl", *EDIT)]


@pytest.mark.parametrize("command", COMMANDS, ids=["evaluate", "edit"])
def test_a_tokenizer_with_more_pieces_than_the_model_has_embeddings(place, capsys, command):
    masked_lm = build("model")
    masked_lm.tokenizer.add_tokens(["frodonium"])
    masked_lm.tokenizer.save_pretrained("model")
    write(LINE)
    rows = len(masked_lm.tokenizer) - 1
    assert refused(capsys, *command) == f"modmem: model: the tokenizer has {rows + 1} pieces, the model's vocabulary {rows}"


@pytest.mark.parametrize("name", ["mask_token", "pad_token", "cls_token", "sep_token"])
def test_a_tokenizer_without_one_of_the_special_tokens(place, capsys, name):
    masked_lm = build("model")
    special = {kind: getattr(masked_lm.tokenizer, kind) for kind in ("mask_token", "pad_token", "cls_token", "sep_token", "unk_token") if kind != name}
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=masked_lm.tokenizer.backend_tokenizer, **special)
    bare.save_pretrained("model")
    write(LINE)
    assert f"expected a tokenizer with a {name}" in refused(capsys, "evaluate", "model", "edits.jsonl")


@pytest.mark.parametrize("command", COMMANDS, ids=["evaluate", "edit"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_numbers(place, capsys, command, value):
    masked_lm = build("model")
    masked_lm.model.bert.encoder.layer[0].output.dense.bias.data[3] = value
    save_masked_lm(masked_lm, "model")
    write(LINE)
    assert "bert.encoder.layer.0.output.dense.bias has values that are nan or infinite" in refused(capsys, *command)


def test_a_cased_vocabulary_that_would_be_lower_cased(place, capsys):
    pieces = build("model", cased=True).tokenizer.get_vocab()
    (place / "model" / "vocab.txt").write_text("\n".join(sorted(pieces, key=pieces.get)) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / "model" / name).unlink()
    write(LINE)
    code, _, error = run(capsys, "evaluate", "model", "edits.jsonl")
    assert code == 0 and "warning: model: the tokenizer lower-cases, but" in error and "do_lower_case" in error
    (place / "model" / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}')
    assert run(capsys, "evaluate", "model", "edits.jsonl")[2] == ""
    build("uncased")
    assert run(capsys, "evaluate", "uncased", "edits.jsonl")[2] == ""


def test_a_bert_with_byte_level_pieces_is_asked_for_the_pieces_in_its_sentence(place, capsys):
    tokenizer = byte_level(mask_takes_space=False)
    evidence = ask(f"ada was born in {MASK} .", "barton")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    save_masked_lm(MaskedLM(transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(tokenizer), **shape)), tokenizer), "model")
    [encoded] = load_masked_lm("model").encode([evidence])
    assert tokenizer.decode(encoded.labels) == " barton"
    filled = [encoded.labels[encoded.slots.index(place)] if place in encoded.slots else piece for place, piece in enumerate(encoded.input_ids)]
    assert filled == tokenizer("ada was born in barton .")["input_ids"]
    write(LINE)
    assert run(capsys, "evaluate", "model", "edits.jsonl")[0] == 0


SAME = {  # evidence, test that the uncased tokenizer cannot tell from it
    "a space before the full stop": ("Paris is the capital of [MASK].", "Paris is the capital of [MASK] ."),
    "capitals": ("Paris is the capital of [MASK].", "paris is the capital of [MASK]."),
    "accents": ("paris is the capital of [MASK]", "pàris is the capital of [MASK]"),
    "unknown subjects": ("\u6771 is in [MASK]", "\u4eac is in [MASK]"),
}


@pytest.mark.parametrize("command", COMMANDS, ids=["evaluate", "edit"])
@pytest.mark.parametrize("kind", SAME)
def test_a_test_that_the_model_cannot_tell_from_an_evidence(place, capsys, command, kind):
    build("model")
    evidence, test = SAME[kind]
    write(LINE | {"subject": evidence.split(" is ")[0], "evidence": [evidence], "test": [test]})
    message = refused(capsys, *command)
    assert message.startswith("modmem: edits.jsonl:1: field 'test': expected a phrasing that is not trained on") and repr(evidence) in message


def test_one_sentence_to_the_model_with_two_answers(place, capsys):
    build("model")
    write(LINE, LINE | {"subject": "paris", "new_object": "Spain", "evidence": ["paris is the capital of [MASK] ."], "test": []})
    assert refused(capsys, "evaluate", "model", "edits.jsonl").startswith("modmem: edits.jsonl:2: field 'evidence': expected one answer to one sentence")


def test_capitals_are_a_difference_to_a_cased_model(place, capsys):
    build("model", cased=True)
    write(LINE | {"subject": "the tower", "evidence": ["The tower is in [MASK]."], "test": ["the tower is in [MASK]."]})
    assert run(capsys, "evaluate", "model", "edits.jsonl")[0] == 0


def test_a_benchmark_loses_the_questions_that_are_training_evidence(place, capsys):
    tokenizer = build("model").tokenizer
    train, test = ([ask(pair[side], "Italy", number) for number, pair in enumerate(SAME.values())] for side in (0, 1))
    other = ask("the tower is in [MASK].", "Italy", 9)
    facts = tuple(one.fact for one in (*test, other))
    benchmark = Benchmark(facts, tuple(train), (*test, other))
    assert keep_unseen(tokenizer, benchmark).test == (other,)
    clean = Benchmark(facts, tuple(train), (other,))
    assert keep_unseen(tokenizer, clean) is clean


def test_questions_that_are_training_evidence_are_counted(place, capsys):
    build("model")
    questions = ["what is the capital of paris ?", "what is the capital of paris?", "where is paris ?", "paris is the capital of ?"]
    records = [
        {"id": str(number), "input": f"{name} [SEP] capital", "output": [{"answer": "italy"}], "meta": {"template_questions": [one.replace("paris", name) for one in questions]}}
        for number, name in enumerate(["paris", "rome", "new york", "agnes"])
    ]
    with open("zsre.jsonl", "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    code, output, error = run(capsys, "evaluate", "model", "--zsre", "zsre.jsonl", "--json")
    left_out = [line for line in error.splitlines() if "test questions that to this tokenizer are training evidence" in line]
    assert code == 0 and len(left_out) == 1 and json.loads(output)["questions"] == 8 - int(left_out[0].split()[3])


def test_answers_that_the_terminal_cannot_print_are_escaped(place):
    masked_lm = build("model")
    with torch.no_grad():  # answers one piece whatever is asked
        masked_lm.model.cls.predictions.bias[20] = 1e4
    tokens = json.loads(masked_lm.tokenizer.backend_tokenizer.to_str())
    pieces = {piece: number for piece, number in tokens["model"]["vocab"].items() if number != 20} | {"\u6771": 20}
    masked_lm.tokenizer = transformers.BertTokenizerFast(vocab=dict(sorted(pieces.items(), key=lambda entry: entry[1])))
    save_masked_lm(masked_lm, "model")
    write(LINE)
    done = run_fork(lambda: cli.main(["evaluate", "model", "edits.jsonl"]), encoding="cp1252")
    assert (done.returncode, done.stderr) == (0, b"") and rb"\u6771" in done.stdout


def test_a_dask_scheduler_that_is_not_there(place, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_plan", lambda *_: [])
    began = time.monotonic()
    message = refused(capsys, "reproduce", "table_3", "--engine", "dask", "--scheduler", "tcp://127.0.0.1:1", "--output", "out", "--store", "store")
    assert message == "modmem: no Dask scheduler answers at tcp://127.0.0.1:1" and time.monotonic() - began < 10
    assert "no Dask scheduler answers at here" in refused(capsys, "reproduce", "table_3", "--engine", "dask", "--scheduler", "here", "--output", "out")


@pytest.mark.parametrize("lacking", ["sentencepiece", "protobuf"])
def test_a_sentencepiece_file_without_what_reads_it(place, monkeypatch, lacking):
    monkeypatch.setattr(transformers.utils, f"is_{lacking}_available", lambda: False)
    masked_lm = build("model")

    def fail(*_, **__):
        raise ValueError("`tiktoken` is required to read a `tiktoken` file.\nInstall it with `pip install tiktoken`.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(DataError, match="takes two packages: pip install sentencepiece protobuf$"):
        load_masked_lm("model")
    assert masked_lm


def change(**settings):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def keep_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def point_to_large_file(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


def add_relative_keys(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"bert.encoder.layer.0.attention.self.distance_embedding.weight": torch.zeros(3, 8)}, folder / "model.safetensors", metadata={"format": "pt"})


FOLDERS = {
    "a pickle alone": (keep_pickle, "expected weights in *.safetensors, not in pytorch_model.bin alone; whoever trusts that file can load it"),
    "a Git LFS pointer": (point_to_large_file, "model.safetensors: expected a safetensors file: this is a Git LFS pointer to it, git lfs pull fetches it"),
    "code of its own": (change(auto_map={"AutoModelForMaskedLM": "modeling.Model"}), "config.json: field 'auto_map': expected a model that transformers has"),
    "alibi": (change(position_embedding_type="alibi"), "config.json: field 'position_embedding_type': expected absolute positions, found 'alibi'"),
    "relative keys": (change(position_embedding_type="relative_key"), "expected absolute positions, found 'relative_key'"),
    "relative keys in the weights alone": (add_relative_keys, "the weights have more in their blocks than the configuration says, bert.encoder.layer.0.attention.self.distance_embedding.weight"),
    "another family": (change(model_type="roformer"), "config.json: field 'model_type': expected a model of type bert, roberta,"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_only_looks_like_a_model_of_ours(place, capsys, kind):
    build("model")
    spoil, said = FOLDERS[kind]
    spoil(place / "model")
    write(LINE)
    assert said in refused(capsys, "evaluate", "model", "edits.jsonl")


def test_a_broken_file_that_is_not_read_is_no_matter(place, capsys):
    build("model")
    (place / "model" / "other.safetensors").write_text("broken")
    write(LINE)
    assert run(capsys, "evaluate", "model", "edits.jsonl")[0] == 0


def test_a_hub_id_without_a_network(place, capsys, monkeypatch):
    write(LINE)
    assert "no model of this name in the cache" in refused(capsys, "evaluate", "somebody/something", "edits.jsonl")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    began = time.monotonic()
    assert "http://127.0.0.1:1 does not answer" in refused(capsys, "evaluate", "somebody/something", "edits.jsonl")
    with pytest.raises(DataError, match="http://127.0.0.1:1 does not answer"):
        load_masked_lm("somebody/something")
    assert time.monotonic() - began < 4


def test_edits_are_read_from_a_pipe(place):
    build("model")
    bad = LINE | {"subject": "Rome", "evidence": ["Rome is the capital of [MASK]."], "test": ["Rome is the capital of [MASK] ."]}
    good, refused = (run_fork(lambda: cli.main(["evaluate", "model", "/dev/stdin", "--json"]), json.dumps(line).encode() + b"\n") for line in (LINE, bad))
    assert good.returncode == 0 and json.loads(good.stdout)["facts"] == 1
    assert refused.returncode == 2 and refused.stderr.startswith(b"modmem: /dev/stdin:1: field 'test': expected a phrasing that is not trained on")


# Hostile files

class Payload:
    def __reduce__(self):
        return os.mkdir, ("was_here",)


def put_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save(Payload(), folder / "pytorch_model.bin")


def put_pickle_under_a_good_name(folder):
    torch.save(Payload(), folder / "model.safetensors")


def lie_about_sizes(folder):
    "A header that promises a tensor far beyond the end of the file."
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    begin = header[name]["data_offsets"][0]
    header[name] |= {"shape": [2**40], "data_offsets": [begin, begin + 2**42]}
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + raw[8 + length :])


def lie_about_the_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def put_code(folder):
    "Code beside the model, and a tokenizer and a configuration that ask for it."
    (folder / "hostile.py").write_text("import os\nos.mkdir('was_here')\nclass Tokenizer: pass\n")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["hostile.Tokenizer", "hostile.Tokenizer"]}}))


HOSTILE = {"a pickle": put_pickle, "a pickle under a good name": put_pickle_under_a_good_name, "a header that lies about a tensor": lie_about_sizes, "a header that lies about itself": lie_about_the_header, "a tokenizer with code": put_code}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("command", ["evaluate", "edit"])
def test_a_hostile_model_is_refused_and_none_of_its_code_runs(place, capsys, kind, command):
    build("model")
    HOSTILE[kind](place / "model")
    write(LINE)
    refused(capsys, command, "model", "edits.jsonl", *(["--blocks", "0", "--radius", "0.1", "--output", "output"] if command == "edit" else []))
    assert sorted(path.name for path in place.iterdir()) == ["edits.jsonl", "model"]


@pytest.mark.parametrize("spoil", [put_pickle_under_a_good_name, lie_about_the_header])
def test_a_hostile_edit_is_refused(place, capsys, spoil):
    build("model")
    write(LINE)
    assert run(capsys, "edit", "model", "edits.jsonl", "--blocks", "0", "--radius", "0.1", "--steps", "1", "--output", "kept/model.safetensors")[0] == 0
    spoil(place / "kept")
    for arguments in (["show", "kept/model.safetensors"], ["apply", "model", "kept/model.safetensors", "--output", "applied"]):
        assert "kept/model.safetensors: expected a safetensors file" in refused(capsys, *arguments)
    assert not (place / "was_here").exists() and not (place / "applied").exists()


def test_a_model_that_was_removed_and_a_place_where_nothing_can_be_written(place, capsys):
    build("model")
    write(LINE)
    command = ["edit", "model", "edits.jsonl", "--blocks", "0", "--radius", "0.1", "--steps", "1"]
    if os.path.isdir("/proc/self"):  # a folder that not even root can write to
        assert "/proc/self/edit.safetensors: cannot be written" in refused(capsys, *command, "--output", "/proc/self/edit.safetensors")
    assert run(capsys, *command, "--output", "edit.safetensors")[0] == 0
    before = (place / "edit.safetensors").read_bytes()
    (place / "model" / "model.safetensors").unlink()
    assert "expected weights in *.safetensors" in refused(capsys, *command, "--output", "edit.safetensors")
    assert (place / "edit.safetensors").read_bytes() == before


# Full disks

def test_a_full_disk_is_told_in_one_line_and_what_was_there_stays(place, capsys, small_disk):
    build("model")
    write(LINE)
    disk, fill = small_disk
    edit = ["edit", "model", "edits.jsonl", *EDIT[:-1]]
    assert run(capsys, *edit, "edit.safetensors")[0] == run(capsys, *edit, disk / "edit.safetensors", "--seed", "1")[0] == 0
    kept = (disk / "edit.safetensors").read_bytes()
    fill()
    for command in ([*edit, disk / "edit.safetensors"], [*edit, disk / "new.safetensors"], ["apply", "model", "edit.safetensors", "--output", disk / "new"]):
        message = refused(capsys, *command)
        assert message.endswith(": cannot be written, No space left on device") and str(command[-1]) in message
    assert (disk / "edit.safetensors").read_bytes() == kept and sorted(path.name for path in disk.iterdir()) == ["edit.safetensors", "filler"]
    (disk / "filler").unlink()
    assert run(capsys, *edit, disk / "edit.safetensors")[0] == 0
    assert load_edit(disk / "edit.safetensors").record["edited_hash"] == load_edit("edit.safetensors").record["edited_hash"]
