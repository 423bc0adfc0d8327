"""Rows that are computed once: stores, failures, kills, and the same rows wherever they are computed."""
import json
import math
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from forks import start_fork
from hypothesis import given
from hypothesis import strategies as st
from joblib.externals.loky import get_reusable_executor
from runs_by_column import make_run
from test_runs import RUN, SHORT
from tiny_models import tiny_bert

from modmem import sweep
from modmem.files import DataError
from modmem.masked_lm import save_masked_lm
from modmem.rows import COSTS, load_results
from modmem.runs import Run
from modmem.starts import Places
from modmem.sweep import run_sweep, shard
from modmem.world import WorldStyle

GRID = [make_run(**{**SHORT, "blocks": blocks, "radius": radius, "seed": seed}) for blocks in (0, 2) for radius in (0.01, math.inf) for seed in (0, 1)]
LONG = [make_run(**{**SHORT, "blocks": run.method.blocks, "radius": run.method.radius, "seed": run.sample.seed, "steps": 40}) for run in GRID[:6]]


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
        if run.sample.seed == 13:
            raise RuntimeError("no luck,\ntoday")
        number = float(run.sample.seed) / 3 if run.sample.seed < 100 else math.nan
        return {**run.settings, "modified_accuracy": number, "largest": -math.inf, "steps": 7, "warning": "", "start_hash": "12e4"}

    monkeypatch.setattr(sweep, "compute_row", compute)
    monkeypatch.setattr(sweep, "find_model", lambda start, places: None)
    return asked


def without_time(table):
    return table.drop(columns=[*COSTS])


def files(store):
    return sorted(path.name for path in Path(store).iterdir() if path.is_file())


# shards


@given(st.integers(0, 30), st.integers(1, 12))
def test_shards_are_a_partition_into_even_parts(number, count):
    runs = [make_run(**SHORT, seed=seed) for seed in range(number)]
    parts = [shard(runs, index, count) for index in range(count)]
    assert sorted((run.sample.seed for part in parts for run in part)) == list(range(number))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 and parts[0] == shard(tuple(runs), 0, count)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_shard_that_does_not_exist_is_refused(index):
    with pytest.raises(ValueError, match=str(index)):
        shard(GRID, index, 3)


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
    runs = [make_run(**SHORT, seed=seed) for seed in (12, 13, 14)]
    table = run_sweep(runs, tmp_path)
    assert table["status"].tolist() == ["done", "failed", "done"] and table["error"].tolist()[::2] == ["", ""]
    assert table["error"][1].startswith("RuntimeError: no luck, today (test_sweep.py:") and math.isnan(table["modified_accuracy"][1])
    assert run_sweep(runs, tmp_path)["status"].tolist() == ["done", "failed", "done"]
    assert [run.sample.seed for run in invented].count(13) == 2 and len(invented) == 4
    monkeypatch.setattr(sweep, "compute_row", lambda run, places: run.settings)
    assert run_sweep(runs, tmp_path)["status"].tolist() == ["done"] * 3


def test_a_row_that_fails_is_tried_again_as_often_as_asked_or_not_at_all(invented, tmp_path):
    runs = [make_run(**SHORT, seed=seed) for seed in (12, 13, 14)]
    table = run_sweep(runs, tmp_path, retries=2)
    assert table["status"].tolist() == ["done", "failed", "done"] and [run.sample.seed for run in invented].count(13) == 3
    assert run_sweep(runs, tmp_path, retries=None)["status"].tolist() == ["done", "failed", "done"] and len(invented) == 5


def test_a_row_that_recovers_is_done(invented, tmp_path, monkeypatch):
    compute = sweep.compute_row
    monkeypatch.setattr(sweep, "compute_row", lambda run, places: compute(run, places) if len(invented) < 1 else run.settings)
    assert run_sweep([make_run(**SHORT, seed=13)], tmp_path, retries=1)["status"].tolist() == ["done"]


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_row_that_takes_too_long_is_given_up_with_that_reason(invented, tmp_path, monkeypatch, in_thread):
    compute = sweep.compute_row

    def linger(run, places):
        while run.sample.seed == 1:
            try:
                time.sleep(0.01)
            except Exception:
                pass
        return compute(run, places)

    monkeypatch.setattr(sweep, "compute_row", linger)
    runs, tables = [make_run(**SHORT, seed=seed) for seed in (0, 1, 2)], []
    work = threading.Thread(target=lambda: tables.append(run_sweep(runs, tmp_path, row_timeout=0.2)))
    work.start() if in_thread else work.run()
    work.join() if in_thread else None
    assert tables[0]["status"].tolist() == ["done", "failed", "done"]
    assert tables[0]["error"][1].startswith("TimeoutError: took longer than 0.2 s (sweep.py:") and 0.2 <= tables[0]["seconds"][1] < 2


def test_a_limit_that_passes_as_the_row_ends_stops_nothing_else():
    for number in range(40):
        try:
            with sweep._at_most(0.001):
                time.sleep(0.0002 * (number % 10))
        except TimeoutError:
            pass
        time.sleep(0.001)


def test_a_row_says_what_it_cost(invented, tmp_path, monkeypatch):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux sets the mark of a process back")
    monkeypatch.setattr(sweep, "compute_row", lambda run, places: run.settings | {"length": len(b"x" * (run.sample.seed << 28))})
    table = run_sweep([make_run(**SHORT, seed=seed) for seed in (0, 1)], tmp_path)
    assert table["peak_gb"].max() - table["peak_gb"].min() > 0.2 and (table["seconds"] >= 0).all()
    assert run_sweep([make_run(**{**SHORT, "radius": 1.0}, seed=0)], tmp_path)["peak_gb"][0] < table["peak_gb"].max() - 0.2, "the mark was set back"


def test_rows_stay_when_the_sweep_is_interrupted(invented, tmp_path, monkeypatch):
    compute = sweep.compute_row

    def interrupt(run, places):
        if len(invented) == 5:
            raise KeyboardInterrupt
        return compute(run, places)

    monkeypatch.setattr(sweep, "compute_row", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(GRID, tmp_path)
    assert len(files(tmp_path)) == 5 
    monkeypatch.setattr(sweep, "compute_row", compute)
    run_sweep(GRID, tmp_path)
    assert len(invented) == 8


def test_a_saved_table_is_the_table(invented, tmp_path):
    runs = [
        make_run(), make_run(radius=0.1 + 0.2, blocks=3, seed=1), make_run(blocks=[0, 3], radius=1, seed=2, epochs=10), make_run(seed=100), make_run(seed=13),
        make_run(benchmark="trex", relations=["P19", "P20"], seed=4), make_run(benchmark="zsre", steps=9, start="RI", dropout=None), make_run(style=WorldStyle(), seed=5),
    ]
    table = run_sweep(runs, tmp_path / "store")
    table.to_csv(tmp_path / "rows.csv", index=False)
    loaded = load_results(rows=tmp_path / "rows.csv")
    pd.testing.assert_frame_equal(loaded, load_results(tmp_path / "store"))
    pd.testing.assert_frame_equal(loaded.set_index("key").loc[table["key"]].reset_index(), table)
    assert table["radius"].tolist() == [math.inf, 0.1 + 0.2, 1.0, *5 * [math.inf]] and table["blocks"].tolist()[:3] == ["all", "3", "[0, 3]"]
    assert table["relations"].tolist()[4:] == ["", "P19 P20", "", ""] and table["num_subjects"].isna().tolist() == 5 * [False] + 2 * [True] + [False]
    assert table["largest"].min() == -math.inf and table["modified_accuracy"].isna().tolist() == [False] * 3 + [True, True, False, False, False]
    assert set(table["start_hash"]) == {"12e4", ""} and "13,13" not in (tmp_path / "rows.csv").read_text() and len(table) == 8
    assert table["style_contexts"].tolist() == 7 * [""] + ["0 1 2"] and table["style_num_tests"].dropna().tolist() == [2]


def test_rows_of_a_dataset_whose_files_have_changed_are_not_mixed(invented, tmp_path, monkeypatch):
    compute, files = sweep.compute_row, {0: "old", 1: "new"}
    monkeypatch.setattr(sweep, "compute_row", lambda run, places: compute(run, places) | {"data_hash": files[run.sample.seed]})
    runs = [make_run(benchmark=benchmark, seed=seed) for benchmark in ("trex", "world") for seed in (0, 1)]
    run_sweep(runs[2:], tmp_path / "world")  # is made from a seed, not read
    run_sweep(runs[:1], tmp_path / "real")
    with pytest.raises(DataError, match=f"found rows of other files beside them.*{runs[1].key}"):
        run_sweep(runs[:2], tmp_path / "real")
    files[1] = "old"
    assert len(run_sweep(runs[:2], tmp_path / "anew")) == 2


def test_rows_of_a_csv_are_skipped_unless_they_failed(invented, tmp_path):
    runs = [make_run(**SHORT, seed=seed) for seed in (12, 13)]
    table = run_sweep(runs, tmp_path / "store")
    table.to_csv(tmp_path / "rows.csv", index=False)
    invented.clear()
    again = run_sweep([*runs, make_run(**SHORT, seed=14)], tmp_path / "other", rows=tmp_path / "rows.csv")
    assert [run.sample.seed for run in invented] in ([13, 14], [14, 13]) and again["seed"].tolist() == [12, 13, 14]
    pd.testing.assert_frame_equal(again.head(1).drop(columns="error"), table.head(1).drop(columns="error"))
    assert files(tmp_path / "other") == sorted(f"{make_run(**SHORT, seed=seed).key}.json" for seed in (13, 14))


def test_a_table_does_not_depend_on_what_else_is_in_the_store(invented, tmp_path):
    alone = run_sweep(GRID, tmp_path / "alone")
    run_sweep([make_run(benchmark="trex", relations=("P19",)), make_run(seed=13), make_run(**SHORT, steps=3)], tmp_path / "shared")
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
    for text, message in {
        "a,b\n1,2\n": ": expected rows", "": ": expected rows", "key,status\na,done\nb,done,1\n": ": expected rows",
        "key,status,radius,warning\na,done,inf,x\nb,done,wide,\n": ":3: field 'radius': expected a number, found 'wide'",
    }.items():
        (tmp_path / "rows.csv").write_text(text)
        with pytest.raises(DataError, match=f"rows.csv{message}"):
            load_results(rows=tmp_path / "rows.csv")


@pytest.mark.parametrize("left", [0, 9, -3])
def test_a_row_that_was_cut_is_computed_again(invented, tmp_path, left):
    expected = run_sweep(GRID, tmp_path)
    path = tmp_path / f"{GRID[0].key}.json"
    path.write_text(path.read_text()[:left])
    invented.clear()
    with pytest.warns(UserWarning, match=f"{GRID[0].key}.json: this row was cut"):
        again = run_sweep(GRID, tmp_path)
    assert [run.key for run in invented] == [GRID[0].key]
    pd.testing.assert_frame_equal(without_time(again), without_time(expected))


def test_rows_are_json_that_any_program_reads(invented, tmp_path):
    run_sweep([make_run(**{**SHORT, "radius": math.inf, "seed": 100})], tmp_path)
    text = (tmp_path / files(tmp_path)[0]).read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert row["radius"] == "inf" and row["modified_accuracy"] == "nan"


def test_a_row_finished_by_somebody_else_meanwhile_is_not_computed(invented, tmp_path):
    run_sweep(GRID[:1], tmp_path)
    assert sweep._attempt(GRID[0], tmp_path, Places(tmp_path), wait=True) == "done" and len(invented) == 1


def test_torch_threads_and_standard_error_are_as_they_were(invented, tmp_path):
    stderr, before = sys.stderr, torch.get_num_threads()
    seen = {}

    def look(at):
        seen[at] = (torch.get_num_threads(), sys.stderr is stderr)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "find_model", lambda start, places: look("start"))
        patch.setattr(sweep, "compute_row", lambda run, places: look("row"))
        run_sweep(GRID[:1], tmp_path, Places(tmp_path / "cache", threads=2))
    assert seen == {"start": (2, True), "row": (2, False)}  # the training of a start tells how far it is
    assert torch.get_num_threads() == before and sys.stderr is stderr


def test_rows_of_one_start_and_one_draw_come_together(invented, tmp_path):
    runs = [make_run(radius=radius, seed=seed, start=start) for radius in (0.1, 0.2) for seed in (0, 1) for start in ("FT", "RI")]
    run_sweep(runs, tmp_path)
    groups = [(run.start.kind, run.sample.seed) for run in invented]
    assert len(groups) == 8 and sum(one != other for one, other in zip(groups, groups[1:])) == 3


def test_the_bar_counts_done_failed_and_left(invented, tmp_path, capsys):
    run_sweep(GRID[:2], tmp_path)
    assert capsys.readouterr().err == ""
    run_sweep([*GRID[:4], make_run(**SHORT, seed=13)], tmp_path, progress=True)
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
            if isinstance(item, Run) and item.sample.seed == 1:
                task(item)
            yield item, None

    monkeypatch.setitem(sweep._ENGINES, "local", engine)
    table = run_sweep([make_run(**SHORT, seed=seed) for seed in (0, 1)], tmp_path)
    assert table["status"].tolist() == ["failed", "done"] and table["error"][0] == "the process that computed it died"


def test_local_processes_compute_the_same_rows(places, expected, tmp_path):  # before others end the processes that test_reproduce may have left: they have torch
    table = run_sweep(LONG, tmp_path, places, jobs=2)
    pd.testing.assert_frame_equal(without_time(table), without_time(expected))


def test_an_item_that_kills_its_process_is_found_out_and_the_others_are_done():
    def work(item):
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return -item

    results = dict(sweep._locally(work, range(7), 2, None))
    assert results == {0: 0, 1: -1, 2: -2, 3: None, 4: -4, 5: -5, 6: -6}


def test_a_process_that_has_loaded_much_keeps_it_for_the_next_row():
    def work(item):
        loaded = vars(sys).setdefault("loaded", [])
        time.sleep(1.2)  # joblib looks at the memory once a second
        loaded.append(bytes(bytearray(b"x") * 200_000_000) if item > 1 and len(loaded) < 4 else b"")
        return os.getpid()

    processes = dict(sweep._locally(work, range(8), 2, None))
    get_reusable_executor().shutdown(wait=True)  # they are large
    assert len(set(processes.values())) == 2


def test_dask_computes_the_same_rows_though_a_worker_is_killed(places, expected, tmp_path):
    file, processes = tmp_path / "scheduler.json", []

    def start(module, *arguments):
        def work():
            sys.argv = [module, *arguments, "--scheduler-file", str(file), "--no-dashboard"]
            runpy.run_module(module, run_name="__main__")

        processes.append(start_fork(work))
        return processes[-1]

    try:
        start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        first, _ = [start("distributed.cli.dask_worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny") for _ in range(2)]
        while not file.exists() or not file.read_text().endswith("}"):  # it is there before it is written
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        left = []

        def kill():
            while not (rows := list(tmp_path.glob("rows/*.json"))):
                time.sleep(0.005)
            os.kill(first, signal.SIGKILL)
            left.append(len(LONG) - len(rows))

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        table = run_sweep(LONG, tmp_path / "rows", places, engine="dask", scheduler=address)
        killer.join(1)
        assert os.WTERMSIG(os.waitpid(processes.pop(processes.index(first)), 0)[1]) == signal.SIGKILL and left[0] > 1
        pd.testing.assert_frame_equal(without_time(table), without_time(expected))
    finally:
        for process in processes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def test_two_processes_share_a_store_and_its_work(places, expected, tmp_path, monkeypatch):
    computed, original = [], sweep.compute_row
    monkeypatch.setattr(sweep, "compute_row", lambda run, places: computed.append(run) or original(run, places))

    def share():
        run_sweep(LONG, tmp_path, places)
        return len(computed)

    other = start_fork(share)
    while not list(tmp_path.glob("[!.]*.json")):
        time.sleep(0.005)
    table = run_sweep(LONG, tmp_path, places)
    theirs = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
    assert len(computed) + theirs == len(LONG) and 0 < len(computed) < len(LONG)
    pd.testing.assert_frame_equal(without_time(table), without_time(expected))
