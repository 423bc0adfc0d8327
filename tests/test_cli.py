"""The command `modmem`: what other programs rely on."""
import gzip
import json
import lzma
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
from forks import run_fork

import modmem
from modmem import cli, editing, inputs

SYNTHETIC = Path(modmem.__file__).parent / "data" / "synthetic"
EDIT = ["--blocks", "0", "--radius", "0.01"]
FEW = [*EDIT, "--steps", "15", "--learning-rate", "3e-3"]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    "Run the command in this process, in an empty folder: exit code, standard output, standard error."
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def small_world(monkeypatch):
    "Let --synthetic be a world of 24 subjects."
    import modmem.world

    monkeypatch.setattr(modmem.world, "make_world", partial(modmem.world.make_world, 24))
    return modmem.world.make_world()


def write_edits(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def edit_line(world, number=0, new_object="calton", **fields):
    "Move the birthplace of one of the world's subjects."
    fact = world.facts[8 * number]
    evidence = [evidence.text for evidence in world.train if evidence.fact == fact]
    line = {"id": fact.id, "subject": fact.subject, "relation": fact.relation, "object": fact.object, "new_object": new_object}
    return line | {"evidence": evidence, "test": [world.test[8 * number].text]} | fields


@pytest.fixture
def edits(tmp_path, small_world):
    return write_edits(tmp_path / "edits.jsonl", edit_line(small_world), edit_line(small_world, 1, "dorton"))


@pytest.fixture
def saved(edits, run):
    "An edit of the synthetic model, made by the command."
    path = edits.with_name("edit.safetensors")
    code, _, errors = run("edit", "synthetic", edits, *FEW, "--output", path)
    assert code == 0, errors
    return path


def one_line(code, output, errors):
    "Check for bad input said in one line, and give the line."
    assert code == 2 and not output
    assert errors.startswith("modmem: ") and errors.endswith("\n") and errors.count("\n") == 1
    return errors.removeprefix("modmem: ").rstrip("\n")


# What is refused, and when

BAD = {  # arguments -> what the line says; "E" is a good list of edits, "O" an output
    (): "Missing command",
    ("edti",): "No such command 'edti'",
    ("edit", "synthetic"): "Missing argument 'EDITS.jsonl'",
    ("edit", "synthetic", "E", "--blocks", "0", "--output", "O"): "Missing option '--radius'",
    ("edit", "synthetic", "E", "--radius", "1", "--output", "O"): "Missing option '--blocks'",
    **{("edit", "synthetic", "E", "--blocks", "0", "--radius", radius, "--output", "O"): f"'--radius': expected a number above 0, found {radius!r}"
       for radius in ("0", "nan", "-1", "-inf", "abc", "", "None")},
    **{("edit", "synthetic", "E", "--blocks", blocks, "--radius", "1", "--output", "O"): "'--blocks': "
       for blocks in ("-1", "first", "0,0", "0,", "1.0", "4", "0,4", "")},
    ("edit", "synthetic", "E", "--method", "rome", *EDIT, "--output", "O"): "'rome' is not one of 'ftm', 'locft', 'lora', 'memit', 'alphaedit'",
    **{("edit", "synthetic", "E", "--method", method, *EDIT, "--output", "O"): f"--radius and --norm go with --method ftm: {method} has no ball"
       for method in ("locft", "lora", "memit", "alphaedit")},
    ("edit", "synthetic", "E", "--method", "lora", "--blocks", "0", "--norm", "l2", "--output", "O"): "--radius and --norm go with --method ftm",
    ("edit", "synthetic", "E", "--method", "lora", "--blocks", "0", "--radius", "auto", "--guard", "synthetic", "--output", "O"): "--radius and --norm go with --method ftm",
    ("edit", "synthetic", "E", "--method", "lora", "--output", "O"): "Missing option '--blocks'",
    ("edit", "synthetic", "E", "--method", "locft", "--blocks", "auto", "--guard", "synthetic", "--output", "O"): "--blocks auto goes with --method ftm, not locft",
    ("edit", "synthetic", "E", "--method", "locft", "--blocks", "0", "--onto", "E", "--output", "O"): "--onto goes with --method ftm",
    ("edit", "synthetic", "E", "--method", "memit", "--blocks", "0,3", "--output", "O"): "--method memit edits one block: expected its index as --blocks, found [0, 3]",
    ("edit", "synthetic", "E", "--method", "alphaedit", "--blocks", "all", "--output", "O"): "--method alphaedit edits one block",
    ("edit", "synthetic", "E", "--method", "memit", "--blocks", "0", "--steps", "5", "--output", "O"): "--steps belongs to training, and --method memit does not train",
    ("edit", "synthetic", "E", *EDIT, "--norm", "l1", "--output", "O"): "'l1' is not one of 'linf', 'l2'",
    ("edit", "synthetic", "E", *EDIT, "--steps", "0", "--output", "O"): "'--steps': Input should be greater than or equal to 1",
    ("edit", "synthetic", "E", *EDIT, "--seed", "-1", "--output", "O"): "'--seed': Input should be greater than or equal to 0",
    ("edit", "synthetic", "E", *EDIT, "--seed", "1" * 20, "--output", "O"): "'--seed': Input should be less than or equal to",
    ("edit", "synthetic", "E", *EDIT, "--batch-size", "1.5", "--output", "O"): "'--batch-size': Input should be a valid integer",
    ("edit", "synthetic", "E", *EDIT, "--learning-rate", "inf", "--output", "O"): "'--learning-rate': expected a finite number",
    ("edit", "synthetic", "E", *EDIT, "--device", "gpu", "--output", "O"): "'--device': expected cpu, cuda",
    ("edit", "synthetic", "E", *EDIT, "--output", "O", "extra"): "unexpected extra argument",
    ("edit", "synthetic", "E", *EDIT, "--output", "E"): "edits.jsonl: is there already, and is no edit",
    ("edit", "synthetic", "E", *EDIT, "--output", "."): "Invalid value for '--output': file '.' is a directory",
    ("edit", "synthetic", "E", *EDIT, "--output", "E/edit.safetensors"): "cannot be written, Not a directory",
    ("edit", "synthetic", "E", *EDIT, "--output", "x" * 250): "cannot be written, File name too long",
    ("edit", "synthetic", "absent.jsonl", *EDIT, "--output", "O"): "absent.jsonl: no such file",
    ("edit", "synthetic", "x" * 5000, *EDIT, "--output", "O"): "File name too long",
    ("edit", "./absent", "E", *EDIT, "--output", "O"): "./absent: no such model",
    ("edit", "E", "E", *EDIT, "--output", "O"): "edits.jsonl: no such model",
    ("edit", "two words", "E", *EDIT, "--output", "O"): "two words: no such model",
    ("edit", ".", "E", *EDIT, "--output", "O"): "expected a model's folder, with a config.json",
    ("evaluate", "nobody/nothing", "E"): "nobody/nothing: no such folder, no model of this name in the cache, and https://",
    ("evaluate", "synthetic"): "expected exactly one of --trex DIR, --zsre FILE and --synthetic",
    ("evaluate", "synthetic", "--synthetic", "--zsre", "E"): "expected exactly one of",
    ("evaluate", "synthetic", "E", "--synthetic"): "expected either EDITS.jsonl or one of",
    ("evaluate", "synthetic", "E", "--relations", "P19", "--download"): "--download and --relations go with a dataset",
    ("edit", "synthetic", "E", *EDIT, "--max-drop", "1", "--output", "O"): "--max-drop goes with --guard",
    ("evaluate", "synthetic", "--synthetic", "--edit", "absent"): "'--edit': file 'absent' does not exist",
    ("evaluate", "synthetic", "--synthetic", "--edit", "E"): "edits.jsonl: expected a safetensors file",
    ("evaluate", "synthetic", "--zsre", "E"): "edits.jsonl:1: field 'input': missing",
    ("statistics", "--synthetic", "--download"): "--download goes with --trex or --zsre",
    ("statistics", "--synthetic", "--relations", "P19"): "--relations goes with --trex",
    ("statistics", "--trex", "absent"): "relations.jsonl: no such file",
    ("pretrain", "--output", "O"): "expected either --synthetic, or --corpus FILE with --init MODEL",
    ("pretrain", "--corpus", "E", "--output", "O"): "expected either --synthetic, or --corpus FILE with --init MODEL",
    ("pretrain", "--synthetic", "--init", "synthetic", "--output", "O"): "expected either --synthetic",
    ("pretrain", "--synthetic", "--recipe", "huge", "--output", "O"): "'huge' is not one of 'base', 'large', 'albert', 'plain'",
    ("pretrain", "--corpus", "E", "--init", "synthetic", "--recipe", "large", "--output", "O"): "--recipe goes with --synthetic",
    ("pretrain", "--synthetic", "--block-pattern", "a.b", "--output", "O"): "--block-pattern go with --corpus",
    ("pretrain", "--synthetic", "--lenient", "--output", "O"): "--lenient goes with --trex",
    ("edit", "synthetic", "E", *EDIT, "--lenient", "--output", "O"): "--lenient goes with a dataset: --guard trex:DIR or zsre:FILE",
    ("edit", "synthetic", "E", *EDIT, "--lenient", "--guard", "E", "--output", "O"): "--lenient goes with a dataset",
    ("reproduce", "tabel_3"): "there is no artefact 'tabel_3'; did you mean table_3",
    ("reproduce", "table_3", "-p", "num_modifed", "8"): "no parameter 'num_modifed'; did you mean num_modified",
    ("reproduce", "table_3", "-p", "num_modified", "many"): "-p num_modified: expected int, found 'many'",
    ("reproduce", "table_3", "--output", "E/tables"): "cannot be written, Not a directory",
    ("reproduce", "--full", "--scale", "paper"): "--full goes with --scale synthetic",
    ("compare", "absent", "absent"): "dir 'absent' does not exist",
    ("why", "table_3", "FT", "--results", "absent"): "dir 'absent' does not exist",
    ("pretrain", "--corpus", "absent.txt", "--init", "synthetic", "--output", "O"): "'--corpus': file 'absent.txt' does not exist",
    ("pretrain", "--synthetic", "--output", "."): "expected a new or an empty folder",
    ("finetune", "synthetic", "--synthetic", "--output", "O", "--steps", "1", "--epochs", "1"): "expected either --steps or --epochs",
    ("finetune", "synthetic", "--synthetic", "--output", "E"): "Invalid value for '--output': dir 'edits.jsonl' is a file",
    ("apply", "synthetic", "E", "--output", "O"): "edits.jsonl: expected a safetensors file",
    ("show", "absent"): "Invalid value for 'edit.safetensors': file 'absent' does not exist",
    ("show", str(SYNTHETIC / "model.safetensors")): "expected the record of modmem's edit in the header, found none",
}


def put_in_place(arguments):
    return [{"E": "edits.jsonl", "O": "output"}.get(argument, argument.replace("E/", "edits.jsonl/")) for argument in arguments]


@pytest.mark.parametrize("arguments", BAD, ids=lambda arguments: " ".join(arguments)[:70] or "nothing")
def test_bad_input_is_one_line_exit_2_and_nothing_written(run, edits, arguments):
    assert BAD[arguments] in one_line(*run(*put_in_place(arguments)))
    assert [path.name for path in edits.parent.iterdir()] == ["edits.jsonl"]


def test_bad_input_is_found_before_torch_is_imported(edits):
    script = f"""
import sys
from modmem.cli import main
assert not {{"torch", "transformers", "pandas"}} & set(sys.modules)
for arguments in {[put_in_place(arguments) for arguments in BAD]!r}:
    assert main(arguments) == 2, arguments
    assert not {{"torch", "transformers"}} & set(sys.modules), arguments
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=edits.parent)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == len(BAD)


@pytest.mark.parametrize(
    "field, value, reason",
    [
        ("subject", None, "edits.jsonl:2: field 'subject': expected str, found NoneType"),
        ("new_object", "", "edits.jsonl:2: field 'new_object': expected a str that is not empty"),
        ("evidence", ["no slot"], "edits.jsonl:2: field 'evidence[0]': an evidence needs exactly one [MASK], found 0"),
        ("evidence", ["[MASK] [MASK]"], "edits.jsonl:2: field 'evidence[0]': an evidence needs exactly one [MASK], found 2"),
        ("object", "baker " * 70, "edits.jsonl:2: field 'object': the object 'baker"),
        ("object", "\u200b", "edits.jsonl:2: field 'object': the object '\\u200b' takes 0 pieces; there is room for 1 to 62; null stands for an object that nobody knows"),
        ("new_object", "xylophone \N{SNOWMAN}", "edits.jsonl:2: field 'new_object': this model's vocabulary cannot say"),
    ],
)
def test_a_bad_line_among_the_edits_is_named(run, edits, small_world, field, value, reason):
    write_edits(edits, edit_line(small_world), edit_line(small_world, 1) | {field: value})
    for command in (["edit", "synthetic", edits, *EDIT, "--output", "output"], ["evaluate", "synthetic", edits]):
        assert one_line(*run(*command)).removeprefix(f"{edits.parent}/").startswith(reason)
    assert [path.name for path in edits.parent.iterdir()] == ["edits.jsonl"]


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda folder: (folder / "config.json").unlink(), "expected a model's folder, with a config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'), "config.json: field 'model_type': expected"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: expected one JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "expected weights in *.safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "expected a tokenizer"),
        (lambda folder: os.truncate(folder / "model.safetensors", 1000), "model.safetensors: expected a safetensors file"),
    ],
)
def test_a_broken_model_folder_is_refused(run, tmp_path, damage, reason):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in SYNTHETIC.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    assert reason in one_line(*run("evaluate", "model", "--synthetic"))


def test_a_hub_id_is_no_path(run, tmp_path, monkeypatch):
    monkeypatch.setattr("modmem.hub.check_hub", lambda _: None)
    assert inputs.check_model("bert-base-uncased") == inputs.check_model("google/albert-base-v2") == {}
    (tmp_path / "models").mkdir()
    assert "no such model" in one_line(*run("evaluate", "models/bert", "--synthetic"))


def test_names_known_without_torch_are_the_librarys():
    from modmem.constraints import CONSTRAINTS
    from modmem.architectures import ARCHITECTURES

    need_unmodified_evidence = {norm for norm in CONSTRAINTS if norm.startswith("fisher")}  # which a list of edits has not
    assert set(get_args(editing._Norm)) == set(CONSTRAINTS) - need_unmodified_evidence and set(inputs._FAMILIES) == set(ARCHITECTURES)


def test_a_document_is_not_quoted_whole(run, edits, small_world):
    write_edits(edits, edit_line(small_world, evidence=["calton " * 10_000 + "[MASK] ."], test=[]))
    code, _, errors = run("evaluate", "synthetic", edits)
    lines = errors.splitlines()
    assert code == 0 and any("contains its own answer, 'calton'" in line for line in lines) and all(len(line) < 1100 for line in lines), errors[:3000]


def test_the_command_says_its_version(run):
    assert run("--version") == (0, f"{modmem.__version__}\n", "")


# Edits from end to end

def test_an_edit_is_made_measured_applied_and_shown(run, edits, saved, tmp_path):
    from modmem.editor import Edit, hash_weights
    from modmem.masked_lm import load_masked_lm

    code, output, _ = run("evaluate", "synthetic", edits, "--edit", saved, "--json")
    results = json.loads(output)
    assert code == 0 and results["facts"] == 2 and results["evidence_accuracy"] == {"before": 0.0, "after": 100.0}
    assert {answer["after"] for answer in results["answers"][2:]} == {"calton", "dorton"}

    assert run("apply", "synthetic", saved, "--output", "new/edited") == (0, "", "")
    record = Edit.load(saved).record
    assert hash_weights(load_masked_lm(tmp_path / "new" / "edited")) == record["edited_hash"]
    code, output, _ = run("evaluate", "new/edited", edits, "--json")
    assert json.loads(output)["evidence_accuracy"] == 100.0

    code, output, _ = run("show", saved, "--json")
    assert code == 0 and json.loads(output) == json.loads(json.dumps(dict(record)))
    code, output, _ = run("show", saved)
    assert "radius 0.01" in output and "birthplace" in output and "calton" in output and "steps 15" in output


def test_edit_reports_what_happened(run, edits):
    code, output, _ = run("edit", "synthetic", edits, "--blocks", "0,3", "--radius", "inf", "--steps", "2", "--output", "e.safetensors")
    assert code == 0
    lines = dict(re.findall(r"^(\w[\w ]*\w)  +(.*)$", output, flags=re.MULTILINE))
    assert lines["steps"] == "2" and float(lines["share on face"]) == 0 and lines["evidence accuracy"].startswith("before 0, after ")
    assert set(lines) >= {"final loss", "max change", "l2 change", "test accuracy"}
    assert " | " in output.splitlines()[-1]


def test_an_edit_of_a_datasets_facts_is_scored_on_the_dataset(run, saved, small_world):
    code, output, errors = run("evaluate", "synthetic", "--synthetic", "--edit", saved, "--json")
    results = json.loads(output)
    assert code == 0 and errors == "" and results["modified_facts"] == 2 and results["questions"] == len(small_world.test)
    for side in ("before", "after"):
        modified, unmodified = results["modified_accuracy"][side], results["unmodified_accuracy"][side]
        assert results["average_accuracy"][side] == (modified + unmodified) / 2
    assert results["modified_accuracy"]["before"] < results["modified_accuracy"]["after"]


def test_an_edit_of_other_facts_is_scored_as_a_whole(run, edits, small_world):
    write_edits(edits, edit_line(small_world, id="another"))
    run("edit", "synthetic", edits, *FEW, "--output", "edit.safetensors")
    code, output, errors = run("evaluate", "synthetic", "--synthetic", "--edit", "edit.safetensors", "--json")
    assert set(json.loads(output)["accuracy"]) == {"before", "after"} and "modified_accuracy" not in output
    assert errors == "modmem: none of the edit's facts is in this dataset\n"


def test_a_dataset_is_scored_per_question_and_per_fact_beside_the_majority(run, small_world):
    from modmem.evaluation import measure_accuracy
    from modmem.facts import majority_accuracy
    from modmem.masked_lm import load_masked_lm

    code, output, _ = run("evaluate", "synthetic", "--synthetic", "--json")
    results = json.loads(output)
    assert results["accuracy"] == results["accuracy_by_fact"] == pytest.approx(measure_accuracy(load_masked_lm("synthetic"), small_world.test))
    assert results["majority_accuracy"] == majority_accuracy(small_world)


def test_an_old_object_may_be_unknown(run, edits, small_world):
    write_edits(edits, edit_line(small_world, object=None, test=[]))
    assert run("edit", "synthetic", edits, *FEW, "--output", "edit.safetensors")[0] == 0
    code, output, _ = run("show", "edit.safetensors", "--json")
    assert json.loads(output)["evidence"][0]["object"] == "unknown"
    code, output, _ = run("evaluate", "synthetic", edits, "--json")
    assert json.loads(output)["test_accuracy"] is None


def test_an_edit_belongs_to_its_model(run, saved):
    run("apply", "synthetic", saved, "--output", "edited")
    assert "edit.safetensors: does not belong to this model" in one_line(*run("apply", "edited", saved, "--output", "twice"))
    assert "does not belong to this model" in one_line(*run("evaluate", "edited", "--synthetic", "--edit", saved))


def test_an_edit_that_was_cut_is_refused(run, saved):
    os.truncate(saved, saved.stat().st_size - 1)
    for arguments in (["show"], ["apply", "synthetic", "--output", "edited"], ["evaluate", "synthetic", "--synthetic", "--edit"]):
        assert "edit.safetensors: expected a safetensors file" in one_line(*run(*arguments, saved))


def test_an_edit_may_replace_an_edit(run, edits, saved):
    before = saved.read_bytes()
    assert run("edit", "synthetic", edits, *FEW, "--seed", "1", "--output", saved)[0] == 0
    assert saved.read_bytes() != before


def test_json_is_alone_on_standard_output(edits, small_world):
    leak = "calton , calton , [MASK] !"
    write_edits(edits, edit_line(small_world, evidence=[leak], test=[]))
    done = run_fork(lambda: cli.main(["evaluate", "synthetic", str(edits), "--json"]))
    assert done.returncode == 0 and done.stdout.count(b"\n") == 1
    assert json.loads(done.stdout)["answers"][0]["text"] == leak
    assert b"modmem: warning: " in done.stderr and b"contains its own answer" in done.stderr


# Methods other than the paper's

@pytest.mark.parametrize("method, more", [("locft", FEW[4:]), ("lora", FEW[4:]), ("memit", []), ("alphaedit", [])])
def test_an_edit_by_another_method_is_the_librarys_and_is_neither_stacked_nor_replayed(run, edits, method, more):
    from modmem.constraints import modify_constrained
    from modmem.editor import Edit, ModificationConfig
    from modmem.edits import read_edits
    from modmem.low_rank import LowRankConfig, modify_low_rank
    from modmem.masked_lm import load_masked_lm
    from modmem.memit import AlphaEditConfig, KeyConfig, MemitConfig, modify_by_keys

    training, keys = {"steps": 15, "learning_rate": 3e-3, "batch_size": 128, "seed": 0}, KeyConfig(statistics="modified")
    modify, config = {
        "locft": (modify_constrained, ModificationConfig(3, radius=float("inf"), part="ffn_out", **training)), "lora": (modify_low_rank, LowRankConfig(3, **training)),
        "memit": (modify_by_keys, MemitConfig(3, keys=keys)), "alphaedit": (modify_by_keys, AlphaEditConfig(3, keys=keys)),
    }[method]
    code, output, errors = run("edit", "synthetic", edits, "--method", method, "--blocks", "3", *more, "--card", "--json", "--output", "e.safetensors")
    assert code == 0, errors
    assert json.loads(output)["blocks"] == 3 and json.loads(output)["evidence_accuracy"]["after"] > 0
    made = modify(load_masked_lm("synthetic"), read_edits(edits), config)
    assert Edit.load("e.safetensors").record["edited_hash"] == made.record["edited_hash"]
    assert run("apply", "synthetic", "e.safetensors", "--output", "edited")[0] == 0 and run("show", "e.safetensors")[0] == 0
    assert "only edits by training inside a ball" in one_line(*run("edit", "synthetic", edits, "--onto", "e.safetensors", "--output", "o"))
    assert "only edits by training inside a ball" in one_line(*run("remove", "synthetic", "e.safetensors", "1", "--output", "o"))


def test_sentences_without_other_words_have_no_second_moment(run, edits, small_world):
    write_edits(edits, edit_line(small_world, evidence=["[MASK]"], test=[]))
    code, output, errors = run("edit", "synthetic", edits, "--method", "memit", "--blocks", "3", "--output", "o")
    assert (code, output) == (2, "") and errors.splitlines()[-1].startswith("modmem: --method memit cannot make these edits: ")  # after a warning


def test_names_of_methods_need_no_torch_but_are_made_by_the_library():
    from modmem.editors import EDITORS

    settings = {"blocks": 0, "norm": "linf", "radius": 1.0, "learning_rate": 1e-3, "steps": 1, "batch_size": 1, "seed": 0}
    assert all(type(editing._configure(settings | {"method": method})) in EDITORS for method in get_args(editing._Method))


# Interruptions and failures

@pytest.mark.parametrize("failure, code", [(KeyboardInterrupt, 130), (RuntimeError, None)])
def test_an_interrupted_edit_leaves_nothing_behind(run, edits, monkeypatch, failure, code):
    import modmem.editors

    def fail(*arguments):
        raise failure

    monkeypatch.setattr(modmem.editors, "edit_facts", fail)
    command = ["edit", "synthetic", edits, *EDIT, "--output", "new/edit.safetensors"]
    if code is None:
        with pytest.raises(failure):  # the interpreter prints a traceback and exits with 1
            run(*command)
    else:
        assert run(*command) == (code, "", "")
    assert [path.name for path in edits.parent.iterdir()] == ["edits.jsonl"]


def test_a_model_that_diverged_is_not_saved(run, edits):
    command = ["edit", "synthetic", edits, "--blocks", "0", "--radius", "inf", "--learning-rate", "1e30", "--steps", "4"]
    assert "training diverged" in one_line(*run(*command, "--output", "edit.safetensors"))
    assert [path.name for path in edits.parent.iterdir()] == ["edits.jsonl"]


def test_a_reader_that_has_seen_enough_is_no_failure():
    reading, writing = os.pipe()
    os.close(reading)
    script = "import sys; from modmem.cli import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


# Models

@pytest.fixture
def checkpoint_often(monkeypatch):
    import modmem.pretraining

    monkeypatch.setattr(modmem.pretraining, "PretrainingConfig", partial(modmem.pretraining.PretrainingConfig, checkpoint_every=2))


def interrupt():
    raise KeyboardInterrupt


def interrupt_in_step(monkeypatch, step):
    import modmem.pretraining

    slot_loss, steps = modmem.pretraining.slot_loss, iter(range(1, 10**6))

    def interrupted(masked_lm, batch):
        if next(steps) == step:
            raise KeyboardInterrupt
        return slot_loss(masked_lm, batch)

    monkeypatch.setattr(modmem.pretraining, "slot_loss", interrupted)


def test_interrupted_pretraining_continues_to_the_same_model(run, tmp_path, monkeypatch, checkpoint_often):
    (tmp_path / "corpus.txt").write_text("the sport of ada is chess .\n\nshe is a painter .\n", encoding="utf-8")
    command = ["pretrain", "--corpus", "corpus.txt", "--init", "synthetic", "--steps", "5", "--batch-size", "2", "--output"]
    assert run(*command, "whole")[0] == 0
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 4)
        assert run(*command, "interrupted") == (130, "", "modmem: 2 of 5 steps\n")
    assert not (tmp_path / "interrupted").exists() and (tmp_path / "interrupted.unfinished.safetensors").exists()
    other = [*command[:6], "6", *command[7:]]
    assert "other settings" in one_line(*run(*other, "interrupted"))
    with monkeypatch.context() as patch:  # after the last state, and before the model is there
        patch.setattr("modmem.masked_lm.save_masked_lm", lambda *arguments: interrupt())
        assert run(*command, "interrupted") == (130, "", "modmem: 2 of 5 steps\nmodmem: 4 of 5 steps\nmodmem: 5 of 5 steps\n")
    assert not (tmp_path / "interrupted").exists()
    code, output, errors = run(*command, "interrupted")
    assert code == 0 and re.search("^sentences +2\nleft out +0\nsteps +5$", output, flags=re.MULTILINE) and errors == "modmem: 5 of 5 steps\n"
    for name in ("model.safetensors", "pretraining.json"):
        assert (tmp_path / "interrupted" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.glob("*.unfinished.*"))


def test_an_interrupted_course_goes_on_with_its_losses_and_its_accuracies(run, tmp_path, monkeypatch, checkpoint_often):
    (tmp_path / "corpus.txt").write_text("the sport of ada is chess .\n\nshe is a painter .\n", encoding="utf-8")
    write_trex(tmp_path / "lama")
    command = ["pretrain", "--corpus", "corpus.txt", "--init", "synthetic", "--steps", "6", "--trex", "lama", "--dropout", "0.2", "--output"]
    assert run(*command, "whole")[0] == 0
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 6)
        assert run(*command, "interrupted")[0] == 130
    assert run(*command, "interrupted")[0] == 0
    course, whole = (json.loads((tmp_path / name / "pretraining.json").read_text())["course"] for name in ("interrupted", "whole"))
    assert course == whole and [point["step"] for point in course] == [2, 4, 6] and None not in course[0].values()


def test_sentences_with_a_mask_of_their_own_are_left_out_and_counted(run, tmp_path):
    command = ["pretrain", "--corpus", "corpus.txt", "--init", "synthetic", "--steps", "2", "--output", "made"]
    (tmp_path / "corpus.txt").write_text("ada is [MASK] .\n\u200b\n", encoding="utf-8")
    assert "corpus.txt: expected sentences that have pieces and no mask token to this model, found none" in one_line(*run(*command))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]
    (tmp_path / "corpus.txt").write_text("ada is [MASK] .\nshe is a painter .\n", encoding="utf-8")
    code, output, errors = run(*command, "--json")
    assert code == 0 and (json.loads(output)["sentences"], json.loads(output)["left_out"]) == (1, 1), errors


def test_pretraining_tells_its_course_and_may_halve_the_weights(run, tmp_path, checkpoint_often):
    (tmp_path / "corpus.txt").write_text("the sport of ada is chess .\n\nshe is a painter .\n", encoding="utf-8")
    write_trex(tmp_path / "lama")
    command = ["pretrain", "--corpus", "corpus.txt", "--init", "synthetic", "--steps", "5", "--batch-size", "2", "--output"]
    code, _, errors = run(*command, "half", "--half", "--trex", "lama", "--workers", "1")
    assert code == 0 and re.search("^modmem: 4 of 5 steps, [0-9.]+ % of the questions answered$", errors, flags=re.MULTILINE), errors
    record = json.loads((tmp_path / "half" / "pretraining.json").read_text())
    assert [point["step"] for point in record["course"]] == [2, 4, 5] and record["config"]["steps"] == 5
    assert all(0 <= point["accuracy"] <= 100 and 0 < point["loss"] < 50 for point in record["course"])
    code, output, _ = run(*command, "whole", "--json")
    assert code == 0 and json.loads(output)["sentences"] == 2 and output.count("\n") == 1
    from modmem.masked_lm import load_masked_lm

    half, whole = (load_masked_lm(tmp_path / name) for name in ("half", "whole"))
    for ours, theirs in zip(half.model.parameters(), whole.model.parameters()):
        assert ours.dtype is theirs.dtype and ours.equal(theirs.half().float())
    assert run(*command, "rounded", "--bfloat16")[0] == 0
    assert [json.loads((tmp_path / name / "pretraining.json").read_text())["config"]["bfloat16"] for name in ("whole", "rounded")] == [False, True]
    assert (tmp_path / "rounded" / "model.safetensors").read_bytes() != (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["base", "large", "albert", "plain"])
def test_pretraining_the_synthetic_world_follows_the_recipe(run, tmp_path, monkeypatch, name):
    from modmem.starts import RECIPES

    small = {"num_sentences": 64, "num_background": 4, "num_subjects": 4}
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], **small))
    chosen = [] if name == "base" else ["--recipe", name]
    code, output, errors = run("pretrain", "--synthetic", *chosen, "--steps", "2", "--batch-size", "4", "--output", "made")
    assert code == 0 and "not shown" in output, errors
    recipe = json.loads((tmp_path / "made" / "recipe.json").read_text())["recipe"]
    pretraining = replace(RECIPES[name].pretraining, steps=2, batch_size=4, seed=0)
    assert recipe == json.loads(json.dumps(asdict(replace(RECIPES[name], pretraining=pretraining))))
    assert run("evaluate", "made", write_edits(tmp_path / "e.jsonl", edit_line(modmem.world.make_world(4))))[0] == 0


def test_a_corpus_may_be_packed(tmp_path):
    from modmem.pretraining import read_sentences

    text = "Ada paints.\n\n  Ben sings.  \n".encode()
    for name, packed in (("a.txt", text), ("a.txt.xz", lzma.compress(text)), ("a.txt.gz", gzip.compress(text, mtime=0))):
        (tmp_path / name).write_bytes(packed)
        assert read_sentences(tmp_path / name) == ["Ada paints.", "Ben sings."]


def test_of_a_document_in_a_corpus_only_what_a_model_can_read_is_held(tmp_path):
    from modmem.pretraining import read_sentences

    (tmp_path / "a.txt").write_text("Ada\n" + "Ada paints . " * 1000)
    assert read_sentences(tmp_path / "a.txt") == ["Ada", " . ".join(["Ada paints"] * 256)]


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.txt", b"fine\nb\xe9\n", "a.txt:2: expected UTF-8 text, found byte 0xe9"),
        ("a.txt", b"\n \n", "a.txt: expected a sentence a line, found none"),
        ("a.xz", lzma.compress(b"fine\n" * 99)[:-9], "a.xz:100: cannot be unpacked"),
        ("a.gz", gzip.compress(b"fine\n" * 99, mtime=0)[:-9], "cannot be unpacked"),
        ("a.xz", b"plain text", "a.xz:1: cannot be unpacked"),
        ("a.gz", b"plain text", "a.gz:1: cannot be unpacked"),
    ],
)
def test_a_damaged_corpus_is_refused(run, tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    assert reason in one_line(*run("pretrain", "--corpus", name, "--init", "synthetic", "--output", "made"))


def test_finetuning_saves_a_better_model_with_its_record(run, small_world, tmp_path):
    code, output, errors = run("finetune", "synthetic", "--synthetic", "--steps", "30", "--output", "ft")
    record = json.loads((tmp_path / "ft" / "finetuning.json").read_text())
    assert code == 0 and record["accuracy"]["after"] > record["accuracy"]["before"], errors
    assert record["config"]["steps"] == record["steps"] == 30 and "majority accuracy" in output
    code, output, _ = run("evaluate", "ft", "--synthetic", "--json")
    assert json.loads(output)["accuracy"] == pytest.approx(record["accuracy"]["after"])
    assert "expected a new or an empty folder" in one_line(*run("finetune", "ft", "--synthetic", "--output", "ft"))


def test_finetuning_by_epochs(run, small_world, tmp_path):
    assert run("finetune", "synthetic", "--synthetic", "--epochs", "0.5", "--output", "ft")[0] == 0
    assert json.loads((tmp_path / "ft" / "finetuning.json").read_text())["steps"] == round(0.5 * 24 * 8 * 5 / 64)


# Datasets

TREX_LINE = {"predicate_id": "P19", "sub_uri": "Q1", "sub_label": "Ada", "obj_uri": "Q2", "obj_label": "Oslo"}
TREX_LINE |= {"evidences": [{"sub_surface": "Ada", "masked_sentence": "Ada left [MASK]."}] * 2}
ZSRE_LINE = {"id": "1", "input": "Ada [SEP] born", "output": [{"answer": "Oslo"}], "meta": {"template_questions": ["Where?", "Where, then?"]}}


def write_trex(folder):
    (folder / "TREx").mkdir(parents=True)
    write_edits(folder / "relations.jsonl", *({"relation": name, "template": "[X] was born in [Y] ."} for name in ("P19", "P20")))
    for name in ("P19", "P20"):
        write_edits(folder / "TREx" / f"{name}.jsonl", TREX_LINE | {"predicate_id": name})
    return folder


def test_statistics_count_every_dataset(run, tmp_path, small_world):
    write_trex(tmp_path / "LAMA")
    write_edits(tmp_path / "zsre.jsonl", ZSRE_LINE)
    for arguments, training in (
        (["--trex", "LAMA"], "T-REx (training) +4 +2 +2"),
        (["--trex", "LAMA", "--relations", "P20"], "T-REx (training) +2 +1 +1"),
        (["--zsre", "zsre.jsonl"], "zsRE (training) +1 +1 +1"),
        (["--synthetic"], "world (cloze) (training) +960 +192 +960"),
    ):
        code, output, errors = run("statistics", *arguments)
        assert code == 0 and errors == ""
        assert re.search(training.replace("(", r"\(").replace(")", r"\)"), output)


def test_download_puts_data_where_later_calls_look(run, tmp_path, monkeypatch):
    from modmem import download

    asked = []
    monkeypatch.setattr(download, "download", lambda url, path, start: asked.append(url) or write_edits(path, ZSRE_LINE))
    monkeypatch.setattr(download, "download_trex", lambda folder, url: asked.append(url) or write_trex(Path(folder) / "LAMA" / "data"))
    for option, place in (("--zsre", "zsre.jsonl"), ("--trex", "data")):
        assert "no such file" in one_line(*run("statistics", option, place))
        downloaded = run("statistics", option, place, "--download")
        assert downloaded[0] == 0 and run("statistics", option, place) == downloaded
    assert asked == [download.ZSRE_URL, download.TREX_URL]


def test_statistics_and_finetuning_answer_in_json(run, tmp_path, small_world):
    code, output, _ = run("statistics", "--synthetic", "--json")
    assert code == 0 and json.loads(output)["world (cloze) (training)"] == {"questions": 960, "facts": 192, "distinct_questions": 960}
    code, output, _ = run("finetune", "synthetic", "--synthetic", "--steps", "1", "--output", "ft", "--json")
    assert code == 0 and json.loads(output)["steps"] == 1 and set(json.loads(output)["accuracy"]) == {"before", "after"}
