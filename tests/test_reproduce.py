"""`modmem reproduce` on notebooks of the least size: what is computed, what is written, and what survives a kill."""
import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from forks import start_fork
from mini_notebooks import PLACES, here, notebooks, run, start_command, whole, write_notebook  # noqa: F401
from paper_notebooks import execute_here

from modmem import artefacts, cli, reproduce, sweep
from modmem.artefacts import choose_artefacts, list_artefacts, list_runs
from modmem.files import exclusively
from modmem.rows import COSTS, load_results


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


def results(folder="figures/synthetic"):
    "The rows, without what they cost."
    return load_results(rows=Path(folder) / "rows.csv").drop(columns=[*COSTS])


def in_session(process, leader):
    try:
        return os.getsid(process) == leader
    except ProcessLookupError:
        return False


def stamps(folder="."):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.json")}


@pytest.fixture
def without_kernel(monkeypatch):
    "Run notebooks in this process, one at a time: where a kernel, which imports torch anew, is not what is tested."
    import papermill

    one_at_a_time = threading.Lock()

    def execute(path, copy, parameters, **options):
        with one_at_a_time:
            return execute_here(path, parameters)

    monkeypatch.setattr(papermill, "execute_notebook", execute)


# From one end to the other

def test_one_command_makes_every_artefact_its_rows_and_the_report(whole):
    files = contents(whole / "figures" / "synthetic")
    assert set(files) == {
        "table_3.csv", "tradeoff.csv", "claims.md", "rows.csv", "report.html"
    }
    rows = load_results(rows=whole / "figures" / "synthetic" / "rows.csv")
    assert len(rows) == 6, "two rows are shared"
    assert (rows[[*COSTS]] > 0).all(axis=None) and rows["key"].is_monotonic_increasing and (rows["status"] == "done").all()
    assert b"6 rows" in files["claims.md"] and b"6 rows" in files["report.html"]
    assert {path.name for path in (whole / "_runs").glob("*.ipynb")} == {f"{name}.ipynb" for name in list_artefacts() if name != "edit_synthetic"}
    told = (whole / "stdout").read_text().splitlines()
    assert [line.split()[0] for line in told] == ["table_3", "tradeoff", "claims", "6"]
    assert re.search("6 rows, in [0-9]+ s", told[-1])


def test_progress_is_told_off_a_terminal(run, monkeypatch, without_kernel):
    from modmem import finetuning

    monkeypatch.setattr(finetuning, "_SILENCE", -1.0)
    code, output, errors = run("table_3", "-p", "seeds", "[0]")
    assert code == 0 and "rows:" not in output
    assert "modmem: rows: 0 done, 0 failed, 2 left; first 1 starting points\n" in errors and "modmem: rows: 2 done, 0 failed, 0 left\n" in errors
    assert "modmem: notebooks: 1 of 1\n" in errors


def test_the_second_time_nothing_is_computed_and_every_byte_stays(whole, run, monkeypatch, notebooks):
    monkeypatch.chdir(whole)
    before, rows = contents(), stamps("_runs")
    code, output, errors = run("--jobs", "2")
    assert code == 0, errors
    assert output.count("(as it was)") == 3 and stamps("_runs") == rows and contents() == before


def test_an_artefact_that_is_made_anew_has_the_same_bytes(whole, run, monkeypatch, without_kernel):
    monkeypatch.chdir(whole)
    before, rows = contents(), stamps("_runs")
    Path("figures/synthetic/table_3.csv").write_text("by hand\n")
    Path("_runs/tradeoff.ipynb").write_text("{")  # as if it had been interrupted
    code, output, errors = run("--jobs", "2")
    assert code == 0 and output.count("(as it was)") == 1, errors
    assert stamps("_runs") == rows and contents() == before


def assert_among(rows, every):
    "The rows are those of a larger table, without what only others of it measure, such as half of a change that answers nothing."
    every = every[every["key"].isin(rows["key"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, every.dropna(axis=1, how="all"))


def test_what_a_notebook_saves_under_another_name_is_its_too(run, monkeypatch, tmp_path, without_kernel):
    save = """from pathlib import Path
Path(places["output"]).mkdir(parents=True, exist_ok=True)
for name in ("figure_3", "questions_rates"):
    (Path(places["output"]) / f"{name}.csv").write_text(name)"""
    write_notebook(tmp_path / "nbs" / "paper" / "figure_3.ipynb", parameters=PLACES, save=save)
    monkeypatch.setattr(artefacts, "_notebooks", lambda: tmp_path / "nbs")
    for left, note in ((), ""), (["figure_3.csv", "questions_rates.csv"], " (as it was)"), (["figure_3.csv"], ""):
        for path in Path("figures/synthetic").glob("*.csv"):
            path.unlink() if path.name not in left else None
        code, output, errors = run("figure_3")
        assert code == 0 and re.search(f"^figure_3 +figure_3.csv questions_rates.csv{re.escape(note)}$", output, flags=re.MULTILINE), (output, errors)


def test_killed_in_the_middle_and_started_again_it_ends_with_the_same_files(whole, run, monkeypatch, without_kernel):
    for sign in ("_runs/paper/*.json", "figures/synthetic/rows.csv"):  # during the rows, and during the notebook
        with monkeypatch.context() as patch:
            patch.setattr("papermill.execute_notebook", lambda *arguments, **options: time.sleep(60))
            command = start_fork(lambda: cli.main(["reproduce", "tradeoff"]))
        while not list(Path().glob(sign)):
            assert os.waitpid(command, os.WNOHANG) == (0, 0)
            time.sleep(0.01)
        os.kill(command, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]) == -signal.SIGKILL
        assert not Path("figures/synthetic/tradeoff.csv").exists()
    left = Path("figures/synthetic/.tradeoff.json.a1b2c3d4.json")  # what a kill can leave of a file that is being written
    left.touch()
    os.utime(left, (0, 0))
    code, _, errors = run("tradeoff")
    files, expected = contents(), contents(whole / "figures" / "synthetic")
    assert code == 0 and set(files) == {"tradeoff.csv", "rows.csv", "report.html"}, errors
    assert files["tradeoff.csv"] == expected["tradeoff.csv"]
    assert_among(results(), results(whole / "figures" / "synthetic"))


def test_what_a_kill_has_left_goes_and_nothing_of_the_users_or_of_another_process(tmp_path):
    ours = [".rows.csv.a1b2c3d4.csv", ".report.html.________.html", ".table_3.json.abcdefgh.json", ".tradeoff_dial.svg.abcd1234.svg", ".questions_rates.md.abcdefgh.md"]
    others = [".env.template", ".env.defaults", ".npmrc.settings.json", ".notes.csv.abcdefgh.csv", ".table_3.csv.ABCDEFGH.csv", ".table_3.csv.abcdefgh.md", "table_3.csv"]
    for name in (*ours, *others, ".rows.csv.iswritin.csv"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0)) if name != ".rows.csv.iswritin.csv" else None
    (tmp_path / ".rows.csv.a_folder.csv").mkdir()
    os.utime(tmp_path / ".rows.csv.a_folder.csv", (0, 0))
    reproduce._tidy_up(tmp_path, tmp_path / "rows.csv")
    assert {path.name for path in tmp_path.iterdir()} == {*others, ".rows.csv.iswritin.csv", ".rows.csv.a_folder.csv"}


def test_a_full_disk_stops_a_sweep_in_one_line_and_no_row_is_lost(whole, run, small_disk):
    disk, fill = small_disk
    shutil.move("_runs", disk / "_runs")
    Path("_runs").symlink_to(disk / "_runs")
    fill()
    code, output, errors = run("tradeoff", "--shard", "1/2")
    assert code == 2 and not output and errors.count("\n") == 1 and "cannot be written, No space left on device" in errors, errors
    assert not list(Path("_runs/paper").glob("*.json"))
    (disk / "filler").unlink()
    assert run("tradeoff", "--shard", "1/2")[0] == 0
    ours, every = (load_results(**place).drop(columns=[*COSTS]) for place in ({"store": Path("_runs/paper")}, {"rows": whole / "figures" / "synthetic" / "rows.csv"}))
    assert_among(ours, every)


@pytest.mark.slow
def test_killed_at_random_moments_no_row_is_lost(whole, notebooks, run, tmp_path, without_kernel, kills=30):
    expected, draw, killed, lost, before = contents(whole / "figures" / "synthetic"), random.Random(0), 0, 0, {}
    for _ in range(kills):
        command = start_command(notebooks, tmp_path, "tradeoff")
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(draw.uniform(1, 25))
        killed += command.poll() is None
        os.killpg(command.pid, signal.SIGKILL) if command.poll() is None else None
        command.communicate()
        rows = {path.name: path.read_bytes() for path in Path("_runs/paper").glob("[!.]*.json")}
        assert all(json.loads(row)["status"] == "done" for row in rows.values())
        lost += sum(rows.get(name) != row for name, row in before.items())
        table, before = Path("figures/synthetic/tradeoff.csv"), rows
        if table.exists():  # finished: once more, from the beginning
            lost += table.read_bytes() != expected["tradeoff.csv"]
            before = {}
            shutil.rmtree("figures")
            for path in Path("_runs/paper").glob("*.json"):
                path.unlink()
    code, _, errors = run("tradeoff")
    assert code == 0 and contents()["tradeoff.csv"] == expected["tradeoff.csv"] and killed and lost == 0, errors
    print(f"reproduce: {killed} of {kills} killed, {lost} files lost")


def test_shards_compute_all_rows_and_then_the_command_computes_none(whole, run, monkeypatch):
    for index in (1, 2, 3):
        code, output, errors = run("--shard", f"{index}/3")
        assert code == 0 and f"part {index} of 3: 2 rows" in output and "without --shard" in output, errors
        assert not Path("figures").exists()
    rows = stamps("_runs/paper")
    options = {"output": str(Path("figures").absolute()), "store": str(Path("_runs/paper").absolute())}
    artefacts = [list_runs(artefact) for artefact in choose_artefacts([], options=options)]
    monkeypatch.setattr(reproduce, "_run_notebooks", lambda *arguments: {})
    reproduce.reproduce(artefacts, Path("figures").absolute(), Path("_runs/paper").absolute())
    assert stamps("_runs/paper") == rows
    pd.testing.assert_frame_equal(results("figures"), results(whole / "figures" / "synthetic"))


def test_known_rows_are_not_computed_and_rows_of_others_are_kept(whole, run, monkeypatch):
    monkeypatch.setattr(reproduce, "_run_notebooks", lambda *arguments: {})
    known = whole / "figures" / "synthetic" / "rows.csv"
    shutil.copytree(known.parent, "figures/mine")
    code, output, errors = run("table_3", "--rows", known, "--output", "figures/mine")
    assert code == 0 and "4 rows, in" in output, errors
    assert not list(Path("_runs/paper").glob("*.json"))
    assert Path("figures/mine/rows.csv").read_bytes() == known.read_bytes()


def test_rows_that_fail_are_counted_and_the_first_error_is_told(run, monkeypatch):
    monkeypatch.setattr(reproduce, "_run_notebooks", lambda *arguments: {})
    code, output, _ = run("table_3", "-p", "num_modified", "100000")
    assert code == 0 and "0 rows; 4 failed, the first with ValueError" in output
    assert (load_results(rows="figures/synthetic/rows.csv")["status"] == "failed").all()


def test_a_row_that_fails_takes_no_finished_ones_place(run, without_kernel, monkeypatch):
    assert run("table_3")[0] == 0
    before, files = results(), contents()
    shutil.copytree("_runs/paper/cache", "new/cache")
    Path("figures/synthetic/table_3.csv").write_text("by hand\n")
    monkeypatch.setattr(sweep, "compute_row", lambda run, places: 1 / 0)
    code, output, _ = run("table_3", "--store", "new")
    assert code == 0 and "0 rows; 4 failed, the first with ZeroDivisionError" in output
    pd.testing.assert_frame_equal(results(), before)
    assert contents()["table_3.csv"] == files["table_3.csv"]


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


LOOK = """import os, sys
import pandas as pd
import matplotlib.pyplot as plt
print(number, os.getcwd(), os.environ["OF_THE_TEST"], __name__, sys.flags.interactive)
pd.DataFrame({f"a long name of column {column}": [column] for column in range(30)})"""
DRAW = "figure = plt.figure(figsize=(1, 1))\n_ = plt.plot([0, 1])"


def test_a_forked_kernel_shows_what_a_kernel_of_its_own_shows_and_nothing_of_another(tmp_path, monkeypatch):
    import papermill

    monkeypatch.setenv("OF_THE_TEST", "7")
    monkeypatch.delenv("MPLBACKEND")
    write_notebook(tmp_path / "seen.ipynb", parameters="number: int = 1", look=LOOK, draw=DRAW, loaded="'modmem.paper' in sys.modules, 'left' in globals()", leave="left = 1")
    with reproduce._kernel_of_this_python() as kernel:
        forked, again, alone = (papermill.execute_notebook(tmp_path / "seen.ipynb", None, {"number": 2}, kernel_name=name, progress_bar=False, cwd=tmp_path) for name in (kernel, kernel, "python3"))
    assert forked.cells[1].outputs == again.cells[1].outputs and forked.cells[2].outputs[0].text.startswith(f"2 {tmp_path} 7 __main__")
    for ours, usual in zip(forked.cells[:-2], alone.cells[:-2], strict=True):
        assert ours.get("outputs") == usual.get("outputs") and ours.get("execution_count") == usual.get("execution_count")
    assert "image/png" in forked.cells[3].outputs[-1].data
    loaded = [notebook.cells[4].outputs[0].data["text/plain"] for notebook in (forked, again, alone)]
    assert loaded == [f"({sys.platform == 'linux'}, False)"] * 2 + ["(False, False)"]


def test_a_kernel_that_dies_is_a_failure_and_ends_with_its_notebook(tmp_path):
    import papermill

    write_notebook(tmp_path / "dies.ipynb", parameters="number: int = 1", die="import os\nos.kill(os.getpid(), 9)")
    with reproduce._kernel_of_this_python() as kernel, pytest.raises(Exception, match="Kernel died"):
        papermill.execute_notebook(tmp_path / "dies.ipynb", None, {}, kernel_name=kernel, progress_bar=False)
    assert not [process for process in multiprocessing.active_children() if isinstance(process, reproduce._KernelProcess)]


def test_what_rows_cost_makes_no_other_fingerprint(whole):
    known, artefacts = whole / "figures" / "synthetic" / "rows.csv", [list_runs(artefact) for artefact in choose_artefacts(["table_3", "claims"])]
    table, other = load_results(rows=known), Path("rows.csv")
    table.assign(seconds=7.0, peak_gb=7.0).to_csv(other, index=False)
    for artefact in artefacts:
        prints = [reproduce._fingerprint(artefact, load_results(rows=path)) for path in (known, other)]
        assert prints[0] == prints[1] != reproduce._fingerprint(artefact, table[:0])


def test_sigterm_ends_it_and_its_processes_and_says_how_to_go_on(notebooks, run, tmp_path):
    command = start_command(notebooks, tmp_path, "--jobs", "2", "table_3", "-p", "seeds", "[0, 1, 2]")
    while not list(tmp_path.glob("_runs/paper/[!.]*.json")):
        assert command.poll() is None, command.communicate()
        time.sleep(0.01)
    command.terminate()  # it alone
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 143, errors
    assert "modmem: stopped; this goes on: modmem reproduce --jobs 2 table_3 -p 'seeds=[0, 1, 2]'" in errors.splitlines()  # joblib's tracker may have a last word
    rows = stamps("_runs/paper")
    for _ in range(50):  # the last of its processes cleans up behind the others
        left = [process for process in psutil.process_iter() if process.pid != command.pid and in_session(process.pid, command.pid)]
        if not left:
            break
        time.sleep(0.1)
    assert not left and stamps("_runs/paper") == rows
    told = json.loads(run("table_3", "-p", "seeds", "[0, 1, 2]", "--status", "--json")[1])
    assert told["rows"] == 6 == told["done"] + told["left"] and told["done"] > 0 and told["running"] == told["failed"] == 0


# Beside the shipped results

@pytest.fixture
def checkout(whole, tmp_path, monkeypatch):
    "A checkout with results, and rows that need not be computed: options of the command."
    shutil.copytree(whole / "figures", "figures")
    monkeypatch.setattr(reproduce, "_run_notebooks", lambda *arguments: {})
    monkeypatch.setattr(cli, "_checkout", lambda: tmp_path)
    return ["--rows", str(whole / "figures" / "synthetic" / "rows.csv")]


def test_in_a_checkout_results_go_elsewhere_and_are_compared(checkout, run):
    before = contents()
    code, output, errors = run("table_3", *checkout)
    assert code == 0 and not errors and contents() == before
    assert len(results("_runs/figures/synthetic")) == 4
    assert output.splitlines()[-3:-1] == ["rows: 4 and 6", "4 rows, 4 equal"]


def test_a_difference_is_told_and_a_failure_only_if_asked(checkout, run):
    path = Path("figures/synthetic/rows.csv")
    rows = load_results(rows=path)
    rows.assign(modified_accuracy=rows["modified_accuracy"] + 1.0).to_csv(path, index=False)
    code, output, errors = run("table_3", *checkout)
    assert code == 0 and "4 rows, 0 equal" in output and "modified_accuracy: other in 4 rows, by at most 1" in output
    assert errors.startswith("modmem: the results differ") and errors.count("\n") == 1
    assert run("table_3", *checkout, "--check", "exact")[0] == 1


def test_the_shipped_results_are_written_over_if_asked(checkout, run):
    Path("figures/synthetic/rows.csv").unlink()
    code, output, _ = run("table_3", *checkout, "--refresh")
    assert code == 0 and "compared" not in output and len(results()) == 4 and not Path("_runs/figures").exists()


def test_a_folder_of_ones_own_is_compared_too_and_elsewhere_nothing_is(checkout, run, monkeypatch):
    assert "4 rows, 4 equal" in run("table_3", *checkout, "--output", "mine")[1]
    monkeypatch.undo()
    assert cli._checkout() is None or Path.cwd() == cli._checkout()


# What it would do

def test_status_is_read_from_the_store_alone(whole, run, monkeypatch):
    code, output, errors = run("--status")
    assert code == 0 and not errors and not Path("figures").exists()
    assert dict(line.rsplit(maxsplit=1) for line in output.splitlines())["left"] == "6"
    runs = list_runs(choose_artefacts(["table_3"], options={"store": "_runs/paper"})[0]).runs
    with exclusively(Path("_runs/paper/locks") / runs[0].key):
        assert json.loads(run("--status", "--json")[1])["running"] == 1
    monkeypatch.chdir(whole)
    told = json.loads(run("--status", "--json", "-p", "seeds", "[0, 1, 2]")[1])
    assert (told["done"], told["left"]) == (6, 3) and told["seconds_to_go"] > 0


def test_artefacts_are_listed_with_their_rows(run):
    code, output, errors = run("--list", "--json")
    assert code == 0 and not errors and not Path("figures").exists()
    assert json.loads(output) == {"artefacts": [{"artefact": name, "rows": rows, "there": 0} for name, rows in (("table_3", 4), ("tradeoff", 4), ("claims", 0))], "rows": 6, "there": 0}
    assert [line.split(" | ") for line in run("--list")[1].splitlines()[1:4]] == [["  table_3", "4", "0"], ["  tradeoff", "4", "0"], ["  claims", "0", "0"]]


def test_the_list_counts_the_rows_that_are_there(whole, run):
    listed = json.loads(run("--list", "--json", "--rows", str(whole / "figures" / "synthetic" / "rows.csv"))[1])
    assert [(one["rows"], one["there"]) for one in listed["artefacts"]] == [(4, 4), (4, 4), (0, 0)] and listed["there"] == listed["rows"] == 6


def test_a_dry_run_as_json(run):
    plan = json.loads(run("--dry-run", "--json")[1])
    assert (plan["rows"], plan["there"], plan["unknown"]) == (6, 0, False) and plan["TFLOPs"] > 0 and len(plan["kinds"]) > 1


def test_a_dry_run_counts_rows_and_computes_none(whole, run, monkeypatch):
    code, output, errors = run("--dry-run")
    assert code == 0 and not Path("figures").exists() and not list(Path("_runs/paper").glob("*.json")), errors
    assert [line.split() for line in output.splitlines()[1:4]] == [["table_3", "4", "0"], ["tradeoff", "4", "0"], ["claims", "0", "0"]]
    assert "6 distinct rows, 0 of them there already" in output
    assert "6 distinct rows, 6 of them there already" in run("--dry-run", "--rows", whole / "figures" / "synthetic" / "rows.csv")[1]
    monkeypatch.chdir(whole)
    code, output, _ = run("--dry-run", "-p", "seeds", "[0, 1, 2]")
    assert "9 distinct rows, 6 of them there already" in output and "pretrained" in output


# What is refused

@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["tabel_3"], "there is no artefact 'tabel_3'; did you mean table_3"),
        (["xyz"], "there is no artefact 'xyz'; there are table_3, tradeoff"),
        (["-p", "num_modifed", "3"], "-p num_modifed: there is no parameter 'num_modifed'; did you mean num_modified"),
        (["edit_synthetic", "-p", "seeds", "[1]"], "no parameter 'seeds'"),
        (["-p", "output", "x"], "no parameter 'output': where things are, and what computes, is said by --output, --store, --rows, --trex"),
        (["-p", "places", "{'store': 'x'}"], "no parameter 'places': where things are, and what computes, is said by --output, --store"),
        (["-p", "num_modified", "many"], "-p num_modified: expected int, found 'many'"),
        (["-p", "num_modified", "0.5"], "-p num_modified: expected int, found '0.5'"),
        (["-p", "seeds", "3"], "-p seeds: expected list, found 3"),
        (["-p", "seeds", "['1e-3']"], "write 0.001"),
        (["-p", "seeds"], "-p seeds: expected list"),
        (["-p", "learning_rate", "-1"], "table_3: these parameters make no rows: learning_rate must be a number above 0"),
        *((["table_3", "-p", "num_subjects", number, *look], "table_3: these parameters make no rows: " + reason)
          for look in ([], ["--dry-run"]) for number, reason in (("400000", "expected between 1 subject and as many people as there are names"), ("0", "num_subjects must be"))),
        (["-p", "benchmark", "trex"], "table_3 asks for rows on trex, which needs --trex"),
        (["--scale", "huge"], "'--scale': 'huge' is not one of 'synthetic', 'tiny', 'minilm', 'small', 'paper'"),
        (["--scale", "small", "--full"], "--full goes with --scale synthetic"),
        (["--full"], "synthetic.yaml: no such parameter file"),
        (["--shard", "0/2"], "expected i/n with i from 1 to n, found '0/2'"),
        (["--shard", "3/2"], "expected i/n with i from 1 to n, found '3/2'"),
        (["--jobs", "0"], "Invalid value for '--jobs'"),
        (["--threads", "many"], "Invalid value for '--threads'"),
        (["--list", "--status"], "expected at most one of --dry-run, --list and --status"),
        (["--json"], "--json goes with --dry-run, --list or --status"),
        (["--refresh", "--output", "mine"], "expected either --refresh or --output"),
        (["--retries", "-1"], "Invalid value for '--retries'"),
        (["--row-timeout", "0"], "expected a number above 0, found '0'"),
        (["--check", "nearly"], "'--check': 'nearly' is not one of 'exact', 'se'"),
        (["--engine", "dask"], "--engine dask and --scheduler ADDRESS go together"),
        (["--scheduler", "tcp://here:1"], "--engine dask and --scheduler ADDRESS go together"),
        (["--engine", "ray"], "'--engine': 'ray' is not one of 'local', 'dask'"),
        (["--rows", "absent.csv"], "'absent.csv' does not exist"),
        (["--trex", "absent"], "absent: no such file"),
    ],
)
def test_what_makes_no_sense_is_one_line(one_line, arguments, reason):
    assert reason in one_line(*arguments).replace("Value error, ", "")


def test_places_that_cannot_be_written_are_told_before_any_work(one_line):
    Path("file").write_text("")
    assert "file/tables/rows.csv: cannot be written, Not a directory" in one_line("--output", "file/tables")
    assert "cannot be written" in one_line("--store", "file/store")


def test_a_csv_that_holds_no_rows_is_told_before_any_work(one_line):
    Path("old").mkdir()
    for content in (b"a,b\n1,2\n", b"", b"\xff\xfe\x00", b'"'):
        Path("old/rows.csv").write_bytes(content)
        assert "rows.csv: expected rows of a sweep" in one_line("table_3", "--output", "old")
        assert "rows.csv: expected rows of a sweep" in one_line("table_3", "--rows", "old/rows.csv")


def test_mistakes_are_told_without_torch(notebooks, tmp_path):
    script = f"""
import sys
from pathlib import Path
from modmem import artefacts, cli
artefacts._notebooks = lambda: Path({str(notebooks)!r})
for arguments in (["tabel_3"], ["-p", "x", "1"], ["-p", "seeds", "1"], ["--full"], ["--shard", "0/2"]):
    assert cli.main(["reproduce", *arguments]) == 2
assert not {{"torch", "transformers", "papermill"}} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
