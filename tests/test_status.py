"""How far a sweep has got, by its store alone."""
import math

from runs_by_column import make_run

from modmem.files import exclusively
from modmem.rows import write_row
from modmem.status import find_status

RUNS = {run.key: run for run in (make_run(seed=seed) for seed in range(6))}


def keep(store, run, status, seconds=math.nan):
    write_row(store, {"key": run.key, **run.settings, "status": status, "error": "no luck" * (status == "failed"), "seconds": seconds})


def test_an_empty_store_has_everything_left_and_no_guess(tmp_path):
    told = find_status(RUNS, tmp_path / "store")
    assert (told["rows"], told["left"], told["done"], told["running"]) == (6, 6, 0, 0) and math.isnan(told["seconds_to_go"])
    assert not (tmp_path / "store").exists(), "nothing is written"


def test_done_failed_running_and_left_are_all_rows(tmp_path):
    one, two, three, four, *_ = RUNS.values()
    keep(tmp_path, one, "done", 10.0)
    keep(tmp_path, two, "failed")
    keep(tmp_path, three, "failed")  # and is being tried again
    for run in (one, two):
        with exclusively(tmp_path / "locks" / run.key):
            pass
    with exclusively(tmp_path / "locks" / three.key), exclusively(tmp_path / "locks" / four.key), exclusively(tmp_path / "cache" / "locks" / "start"):
        told = find_status(RUNS, tmp_path)
    assert [told[name] for name in ("done", "failed", "running", "left")] == [1, 1, 2, 2]
    assert told["seconds_to_go"] == 20.0, "four rows, two at a time" 
    assert told["starts_in_the_making"] == 1 and told["first_error"] == "no luck"
    assert find_status(RUNS, tmp_path)["running"] == 0


def test_rows_are_guessed_by_their_kind(tmp_path):
    quick, slow = make_run(), make_run(method="retrain")
    keep(tmp_path, quick, "done", 2.0)
    keep(tmp_path, slow, "done", 100.0)
    ahead = [make_run(seed=1), make_run(method="retrain", seed=1)]
    told = find_status({run.key: run for run in (quick, slow, *ahead)}, tmp_path)
    assert told["seconds_to_go"] == 102.0
