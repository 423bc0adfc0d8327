"""`modmem reproduce` on notebooks of the least size: what is computed, what is written, and what survives a kill."""
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from modmem import cli, reproduce
from modmem.reproduce import choose_artefacts, describe_plan, estimate_run, list_artefacts, list_runs
from modmem.starts import RECIPES, Places, load_pretrained
from modmem.sweep import Run, load_results

OPTIONS = """output: str = "figures"  # folder for the results
store: str = "_runs/paper"  # folder for the rows
known_rows: str = ""  # csv with rows that need not be computed
trex: str = ""  # LAMA's data folder
device: str = "cpu"  # of torch
jobs: int = 1  # processes
engine: str = "local"  # or dask
scheduler: str = ""  # of Dask"""
SETTINGS = """benchmark: str = "world-questions"  # the form of the world
num_modified: int = 4  # facts to change
learning_rate: float = 0.01  # of FTM
seeds: list = [0, 1]  # runs
"""
RUNS = """from pathlib import Path
from modmem.starts import Places
from modmem.sweep import expand_grid, run_sweep
places = Places(Path(store) / "cache", trex or None, device=device)
runs = expand_grid(
    benchmark=[benchmark], num_subjects=[24], model=["tiny"], start=["pretrained"], num_modified=[num_modified], seed=seeds,
    learning_rate=[learning_rate], batch_size=[8], epochs=[0.5], min_steps=[10], blocks=BLOCKS, radius=RADII,
)"""
SAVE = """from modmem.files import write_atomically
rows = run_sweep(runs, store, places, known_rows or None, jobs, engine, scheduler or None)
with write_atomically(Path(output) / "NAME.csv") as temporary:
    rows[["blocks", "radius", "seed", "status", "modified_accuracy"]].to_csv(temporary, index=False)"""
CLAIMS = """from pathlib import Path
rows = Path(known_rows).read_text().splitlines()
Path(output).mkdir(parents=True, exist_ok=True)
(Path(output) / "claims.md").write_text(f"# Claims\\n\\n{len(rows) - 1} rows\\n")"""
EDIT = """from pathlib import Path
Path(output).mkdir(parents=True, exist_ok=True)
(Path(output) / "edit_synthetic.csv").write_text(f"radii,steps\\n{radii},{steps}\\n")
(Path(output) / "edit_synthetic_rows.csv").write_text("row\\n")"""


def write_notebook(path, **sources):
    cells = [nbformat.v4.new_code_cell(source, id=name) for name, source in sources.items()]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "no-such-kernel", "display_name": "of another machine", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    "Two artefacts that share rows, one without, and the claims."
    folder = tmp_path_factory.mktemp("notebooks")
    for name, more, blocks, radii in (("table_3", "", "[0, 1]", "[float('inf')]"), ("tradeoff", "radii: list = [0.1]  # of the ball\n", "[1]", "[*radii, float('inf')]")):
        runs = RUNS.replace("BLOCKS", blocks).replace("RADII", radii)
        write_notebook(folder / "paper" / f"{name}.ipynb", parameters=SETTINGS + more + OPTIONS, runs=runs, save=SAVE.replace("NAME", name))
    write_notebook(folder / "paper" / "claims.ipynb", parameters=OPTIONS, runs="runs, places = [], None", save=CLAIMS)
    edit = 'output: str = "figures"  # folder\nradii: list = [0.1]  # radii\nsteps = 3'
    write_notebook(folder / "guides" / "edit_synthetic.ipynb", parameters=edit, save=EDIT)
    return folder


@pytest.fixture(autouse=True)
def here(notebooks, monkeypatch, tmp_path):
    "Work in an empty folder, with these notebooks for those of the package."
    monkeypatch.setattr(reproduce, "_notebooks", lambda: notebooks)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    "The model that all rows start from, made once."
    folder = tmp_path_factory.mktemp("cache")
    load_pretrained("tiny", Places(folder))
    return folder


@pytest.fixture
def run(capsys, cache):
    "Run the command: exit code, standard output, standard error."
    if not Path("_runs").exists():
        shutil.copytree(cache, "_runs/paper/cache")

    def run(*arguments):
        capsys.readouterr()
        code = cli.main(["reproduce", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def one_line(run):
    "Run a command that is refused: in one line, with exit code 2, and nothing written."

    def one_line(*arguments):
        before = sorted(Path().rglob("*"))
        code, output, errors = run(*arguments)
        assert code == 2 and not output and errors.startswith("modmem: ") and errors.count("\n") == 1, errors
        assert sorted(Path().rglob("*")) == before
        return errors

    return one_line


def contents(folder="figures/synthetic"):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def stamps(folder="."):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.json")}


# From one end to the other

@pytest.fixture(scope="module")
def whole(notebooks, cache, tmp_path_factory):
    "Everything, made in one go: the folder."
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(cache, folder / "_runs" / "paper" / "cache")
    done = start_command(notebooks, folder, "--jobs", "2")
    output, errors = done.communicate()
    assert done.returncode == 0, errors
    (folder / "stdout").write_text(output)
    return folder


def start_command(notebooks, folder, *arguments):
    script = (
        "import sys; from pathlib import Path; from modmem import cli, reproduce\n"
        f"reproduce._notebooks = lambda: Path({str(notebooks)!r})\n"
        "sys.exit(cli.main(['reproduce', *sys.argv[1:]]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_one_command_makes_every_artefact_its_rows_and_the_report(whole):
    files = contents(whole / "figures" / "synthetic")
    assert set(files) == {
        "table_3.csv", "tradeoff.csv", "claims.md", "rows.csv", "report.html"
    }
    rows = load_results(rows=whole / "figures" / "synthetic" / "rows.csv")
    assert len(rows) == 6, "two rows are shared"
    assert b"seconds" not in files["rows.csv"] and rows["key"].is_monotonic_increasing and (rows["status"] == "done").all()
    assert b"6 rows" in files["claims.md"] and b"6 rows" in files["report.html"]
    assert {path.name for path in (whole / "_runs").glob("*.ipynb")} == {f"{name}.ipynb" for name in list_artefacts() if name != "edit_synthetic"}
    told = (whole / "stdout").read_text().splitlines()
    assert [line.split()[0] for line in told] == ["table_3", "tradeoff", "claims", "6"]
    assert re.search("6 rows, in [0-9]+ s", told[-1])


def test_the_second_time_nothing_is_computed_and_every_byte_stays(whole, run, monkeypatch, notebooks):
    monkeypatch.chdir(whole)
    before, rows = contents(), stamps("_runs")
    code, output, errors = run("--jobs", "2")
    assert code == 0, errors
    assert output.count("(as it was)") == 3 and stamps("_runs") == rows and contents() == before


def test_an_artefact_that_is_made_anew_has_the_same_bytes(whole, run, monkeypatch):
    monkeypatch.chdir(whole)
    before, rows = contents(), stamps("_runs")
    Path("figures/synthetic/table_3.csv").write_text("by hand\n")
    Path("_runs/tradeoff.ipynb").write_text("{")  # as if it had been interrupted
    code, output, errors = run("--jobs", "2")
    assert code == 0 and output.count("(as it was)") == 1, errors
    assert stamps("_runs") == rows and contents() == before


def test_killed_in_the_middle_and_started_again_it_ends_with_the_same_files(whole, notebooks, run, tmp_path):
    for sign in ("_runs/paper/*.json", "figures/synthetic/rows.csv"):  # during the rows, and during the notebook
        command = start_command(notebooks, tmp_path, "tradeoff")
        while not list(tmp_path.glob(sign)):
            assert command.poll() is None, command.communicate()
            time.sleep(0.01)
        os.killpg(command.pid, signal.SIGKILL)
        command.communicate()
        assert not Path("figures/synthetic/tradeoff.csv").exists()
    Path("figures/synthetic/.tradeoff.json.a1b2c3d4.json").touch()  # what a kill can leave of a file that is being written
    code, _, errors = run("tradeoff")
    files, expected = contents(), contents(whole / "figures" / "synthetic")
    assert code == 0 and set(files) == {"tradeoff.csv", "rows.csv", "report.html"}, errors
    assert files["tradeoff.csv"] == expected["tradeoff.csv"]
    assert set(files["rows.csv"].splitlines()) < set(expected["rows.csv"].splitlines())


def test_shards_compute_all_rows_and_then_the_command_computes_none(whole, run, monkeypatch):
    for index in (1, 2, 3):
        code, output, errors = run("--shard", f"{index}/3")
        assert code == 0 and f"part {index} of 3: 2 rows" in output and "without --shard" in output, errors
        assert not Path("figures").exists()
    rows = stamps("_runs/paper")
    artefacts = [list_runs(one) for one in choose_artefacts([], places={"output": str(Path("figures").absolute()), "store": str(Path("_runs/paper").absolute())})]
    monkeypatch.setattr(reproduce, "_run_notebooks", lambda *arguments: ({}, {}))
    reproduce.reproduce(artefacts, Path("figures").absolute(), Path("_runs/paper").absolute())
    assert stamps("_runs/paper") == rows
    assert Path("figures/rows.csv").read_bytes() == (whole / "figures" / "synthetic" / "rows.csv").read_bytes()


def test_known_rows_are_not_computed_and_rows_of_others_are_kept(whole, run, monkeypatch):
    monkeypatch.setattr(reproduce, "_run_notebooks", lambda *arguments: ({}, {}))
    known = whole / "figures" / "synthetic" / "rows.csv"
    shutil.copytree(known.parent, "figures/mine")
    code, output, errors = run("table_3", "--rows", known, "--output", "figures/mine")
    assert code == 0 and "4 rows, in" in output, errors
    assert not list(Path("_runs/paper").glob("*.json"))
    assert Path("figures/mine/rows.csv").read_bytes() == known.read_bytes()


def test_rows_that_fail_are_counted_and_the_first_error_is_told(run, monkeypatch):
    monkeypatch.setattr(reproduce, "_run_notebooks", lambda *arguments: ({}, {}))
    code, output, _ = run("table_3", "-p", "num_modified", "100000")
    assert code == 0 and "0 rows; 4 failed, the first with ValueError" in output
    assert (load_results(rows="figures/synthetic/rows.csv")["status"] == "failed").all()


def test_a_notebook_that_fails_is_ours_and_stops_no_other(run, monkeypatch):
    def break_one(artefact, *arguments):
        if artefact.name == "table_3":
            raise OSError("no kernel")
        return 1.0

    monkeypatch.setattr(reproduce, "_run_notebook", break_one)
    with pytest.raises(RuntimeError, match="table_3 failed"):
        run("table_3", "edit_synthetic", "-p", "seeds", "[0]")
    assert Path("figures/synthetic/report.html").exists() and Path("figures/synthetic/rows.csv").exists()


def test_a_notebook_that_writes_nothing_is_a_failure(run, monkeypatch):
    import papermill

    monkeypatch.setattr(papermill, "execute_notebook", lambda *arguments, **options: nbformat.v4.new_notebook())
    Path("tables").mkdir()
    Path("tables/edit_synthetic.csv").write_text("of,an,earlier,run\n")
    with pytest.raises(RuntimeError) as caught:
        run("edit_synthetic", "--output", "tables")
    assert "ended without writing edit_synthetic" in str(caught.value.__cause__)


def test_notebooks_run_with_this_python_and_their_parameters(run, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "elsewhere")
    code, _, errors = run("edit_synthetic", "--output", "tables/new", "-p", "radii", "[2.5, 1]", "-p", "steps", "7")
    assert code == 0, errors
    assert Path("tables/new/edit_synthetic.csv").read_text() == "radii,steps\n[2.5, 1],7\n"
    assert os.environ["JUPYTER_PATH"] == "elsewhere" and not Path("tables/new/rows.csv").exists()


# What is asked for

def test_artefacts_share_rows_and_come_in_order_with_the_claims_last(notebooks):
    assert list_artefacts() == ["table_3", "tradeoff", "edit_synthetic", "claims"]
    table_3, tradeoff, edit, claims = map(list_runs, choose_artefacts([]))
    assert [one.name for one in choose_artefacts(["claims", "table_3"])] == ["table_3", "claims"]
    assert len({run.key for run in (*table_3.runs, *tradeoff.runs)}) == 6 < len(table_3.runs) + len(tradeoff.runs)
    assert edit.runs == claims.runs == () and edit.places is claims.places is None


def test_a_parameter_reaches_every_artefact_that_has_it_in_its_type():
    given = ["num_modified=8", "learning_rate=1e-3", "radii=[0.5, 1]", "steps=7"]
    values = {one.name: dict(one.parameters) for one in choose_artefacts([], given)}
    assert values["table_3"] == {"num_modified": 8, "learning_rate": 0.001}
    assert values["tradeoff"] == values["table_3"] | {"radii": [0.5, 1]}
    assert values["edit_synthetic"] == {"radii": [0.5, 1], "steps": 7} and values["claims"] == {}
    assert {run.num_modified for run in list_runs(choose_artefacts(["table_3"], given[:1])[0]).runs} == {8}


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["tabel_3"], "there is no artefact 'tabel_3'; did you mean table_3"),
        (["xyz"], "there is no artefact 'xyz'; there are table_3, tradeoff"),
        (["-p", "num_modifed", "3"], "no parameter 'num_modifed'; did you mean num_modified"),
        (["edit_synthetic", "-p", "seeds", "[1]"], "no parameter 'seeds'"),
        (["-p", "output", "x"], "no parameter 'output'"),
        (["-p", "num_modified", "many"], "-p num_modified: expected int, found 'many'"),
        (["-p", "num_modified", "0.5"], "-p num_modified: expected int, found '0.5'"),
        (["-p", "seeds", "3"], "-p seeds: expected list, found 3"),
        (["-p", "seeds", "['1e-3']"], "write 0.001"),
        (["-p", "seeds"], "-p seeds: expected list"),
        (["-p", "learning_rate", "-1"], "table_3: these parameters make no rows: learning_rate must be a number above 0"),
        (["-p", "benchmark", "trex"], "table_3 asks for rows on trex, which needs --trex"),
        (["--scale", "tiny"], "'--scale': expected one of synthetic, small, paper, found 'tiny'"),
        (["--scale", "small", "--full"], "--full goes with --scale synthetic"),
        (["--full"], "synthetic.yaml: no such parameter file"),
        (["--shard", "0/2"], "expected i/n with i from 1 to n, found '0/2'"),
        (["--shard", "3/2"], "expected i/n with i from 1 to n, found '3/2'"),
        (["--jobs", "0"], "'--jobs': expected a whole number from 1"),
        (["--engine", "dask"], "--engine dask and --scheduler ADDRESS go together"),
        (["--scheduler", "tcp://here:1"], "--engine dask and --scheduler ADDRESS go together"),
        (["--engine", "ray"], "'--engine': expected one of local, dask"),
        (["--rows", "absent.csv"], "absent.csv: no such file"),
        (["--trex", "absent"], "absent: no such file"),
    ],
)
def test_what_makes_no_sense_is_one_line(one_line, arguments, reason):
    assert reason in one_line(*arguments)


def test_places_that_cannot_be_written_are_told_before_any_work(one_line):
    Path("file").write_text("")
    assert "file/tables/rows.csv: cannot be written, Not a directory" in one_line("--output", "file/tables")
    assert "cannot be written" in one_line("--store", "file/store")


def test_a_csv_that_holds_no_rows_is_told_before_any_work(one_line):
    Path("old").mkdir()
    Path("old/rows.csv").write_text("a,b\n1,2\n")
    assert "rows.csv: expected rows of a sweep" in one_line("table_3", "--output", "old")
    assert "rows.csv: expected rows of a sweep" in one_line("table_3", "--rows", "old/rows.csv")


def test_mistakes_are_told_without_torch(notebooks, tmp_path):
    script = f"""
import sys
from pathlib import Path
from modmem import cli, reproduce
reproduce._notebooks = lambda: Path({str(notebooks)!r})
for arguments in (["tabel_3"], ["-p", "x", "1"], ["-p", "seeds", "1"], ["--full"], ["--shard", "0/2"]):
    assert cli.main(["reproduce", *arguments]) == 2
assert not {{"torch", "transformers", "papermill"}} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# Parameter files

def choose_by(tmp_path, text, given=()):
    (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
    return {one.name: dict(one.parameters) for one in choose_artefacts([], given, tmp_path / "small.yaml")}


def test_a_file_sets_parameters_of_all_and_of_each(tmp_path):
    text = "all: {seeds: [0, 1, 2], learning_rate: 0.5, radii: [.inf]}\ntable_3:\n  num_modified: 8\n  learning_rate: 1\n"
    values = choose_by(tmp_path, text, ["num_modified=9"])
    assert values["table_3"] == {"seeds": [0, 1, 2], "learning_rate": 1.0, "num_modified": 9}
    assert values["tradeoff"] == {"seeds": [0, 1, 2], "learning_rate": 0.5, "num_modified": 9, "radii": [math.inf]}
    assert values["edit_synthetic"] == {"radii": [math.inf]} and choose_by(tmp_path, "")["table_3"] == {}


@pytest.mark.parametrize(
    "text, reason",
    [
        ("table_3: {learning_rate: 1e-3}", "field 'table_3.learning_rate': '1e-3' is text, not a number: write 0.001"),
        ("tradeoff: {radii: [0.1, 1e-5]}", "field 'tradeoff.radii': '1e-5' is text, not a number: write 0.00001"),
        ("tradeoff: {radii: [{best: 1e-3}]}", "field 'tradeoff.radii': '1e-3' is text"),
        ("tradeoff: {radii: [inf]}", "'inf' is text, not a number: write .inf"),
        ("table_3: {num_modified: 0.5}", "field 'table_3.num_modified': expected int, found 0.5"),
        ("table_3: {num_modified: true}", "field 'table_3.num_modified': expected int, found True"),
        ("table_3: {benchmark: 3}", "field 'table_3.benchmark': expected str, found 3"),
        ("all: {seeds: 3}", "field 'all.seeds': expected list, found 3"),
        ("tabel_3: {seeds: [1]}", "field 'tabel_3': there is no such artefact; did you mean table_3"),
        ("table_3: {seed: [1]}", "field 'table_3.seed': there is no such parameter; did you mean seeds"),
        ("table_3: {radii: [1]}", "field 'table_3.radii': there is no such parameter"),
        ("all: {output: here}", "field 'all.output': there is no such parameter"),
        ("table_3: [1]", "field 'table_3': expected artefacts with their parameters, found [1]"),
        ("- 1", "expected artefacts with their parameters"),
        ("all: {}\ntable_3: {", "small.yaml:2: expected YAML"),
        ("all: {1: 2}", "field 'all.1': there is no such parameter"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, text, reason):
    with pytest.raises(ValueError) as caught:
        choose_by(tmp_path, text)
    assert "small.yaml" in str(caught.value) and reason in str(caught.value) and "\n" not in str(caught.value)


# What it would cost

def test_a_dry_run_counts_rows_and_computes_none(whole, run, monkeypatch):
    code, output, errors = run("--dry-run")
    assert code == 0 and not Path("figures").exists() and not list(Path("_runs/paper").glob("*.json")), errors
    assert [line.split() for line in output.splitlines()[1:4]] == [["table_3", "4", "0"], ["tradeoff", "4", "0"], ["claims", "0", "0"]]
    assert "6 distinct rows, 0 of them there already" in output
    assert "6 distinct rows, 6 of them there already" in run("--dry-run", "--rows", whole / "figures" / "synthetic" / "rows.csv")[1]
    monkeypatch.chdir(whole)
    code, output, _ = run("--dry-run", "-p", "seeds", "[0, 1, 2]")
    assert "9 distinct rows, 6 of them there already" in output and "pretrained" in output


BLOCK, HEAD, WEIGHTS = 111_840, 59_362, 513_250  # of Base, counted by hand
PLACES = Places("cache")


def test_flops_and_memory_of_a_row_by_hand():
    fta = Run(num_subjects=64, blocks=(1, 2), num_modified=8, batch_size=16, unmodified_per_modified=0.5)
    flops, memory = estimate_run(fta, PLACES)
    forward, backward = 2 * (11 * 4 * BLOCK + HEAD), 4 * (11 * 3 * BLOCK + HEAD)
    assert flops == 70 * 24 * (forward + backward) + 8 * 64 * forward
    activations = 24 * 11 * 3 * (8 * 96 + 2 * 384 + 2 * 3 * 11)
    assert memory == 4 * (WEIGHTS + 4 * 2 * BLOCK + activations)
    every, first, last = (estimate_run(Run(blocks=one), PLACES) for one in ("all", 0, 3))
    assert every[0] == first[0] > last[0] and every[1] > first[1] > last[1]


def test_steps_follow_the_evidence_of_the_modified_facts():
    costs = {size: estimate_run(Run(benchmark="trex", num_modified=size, relations=("P19",)), PLACES)[0] for size in (32, 512)}
    few = 2 * (40 * 4 * BLOCK + HEAD) * 34_039 / 41
    assert (costs[512] - few) / (costs[32] - few) == pytest.approx(1510 / 100), "10 epochs of 151 and of 10 batches"


@pytest.mark.parametrize("name", ["base", "large", "albert", "tiny"])
def test_shapes_are_those_of_the_models(name):
    from modmem.synthetic import make_blank_model

    shape = reproduce._find_shape(name, PLACES)
    assert shape.weights == sum(weight.numel() for weight in make_blank_model(RECIPES[name]).model.parameters())


def test_a_model_is_known_by_its_name_or_by_its_folder_or_not_at_all(tmp_path):
    run = Run(model="google-bert/bert-base-uncased", benchmark="trex", blocks=11, start="pretrained")
    assert estimate_run(run, PLACES)[0] > 1e13
    shape = {"model_type": "bert", "num_hidden_layers": 4, "hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 3,
             "vocab_size": 514, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    assert reproduce._find_shape("mine", Places("cache", models={"mine": str(tmp_path)})).weights == WEIGHTS
    assert reproduce._find_shape("google/bert_uncased_L-4_H-256_A-4", PLACES).block == 4 * 256**2 + 2 * 256 * 1024 + 9 * 256 + 1024
    artefact = reproduce.Artefact("table_3", tmp_path, {}, (Run(model="fae", start="pretrained"),), PLACES)
    assert "unknown" in describe_plan([artefact], tmp_path / "store")
