"""Every notebook runs, as nbdev_test would run it, each in a copy of this process: what a notebook sets stays with it."""
import os
from functools import partial
from pathlib import Path

import pytest
from forks import run_fork
from joblib.externals.loky import get_reusable_executor
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as execute

TOP = Path(__file__).parents[1]
PATHS = {path.relative_to(TOP / "nbs").as_posix(): path for path in sorted(nbglob(TOP / "nbs", as_path=True)) if not path.with_name(".notest").exists()}


def work(path, force_flags, parser):
    parser.undo()  # a notebook adds commands
    os.chdir(TOP / "nbs")
    return not execute(path, get_config().tst_flags.split(), force_flags, basepath=TOP)[0]


@pytest.fixture(scope="module")
def loaded():
    "Import what most notebooks do, once rather than in each copy."
    import matplotlib.pyplot  # noqa: F401
    import seaborn  # noqa: F401

    import modmem.editors  # noqa: F401
    import modmem.paper  # noqa: F401
    from modmem.masked_lm import load_masked_lm

    load_masked_lm("synthetic")  # transformers imports a family when it is asked for


def test_every_lesson_is_among_them():
    parts = {path.parent.name for path in (TOP / "nbs").glob("[0-9]_*/*.ipynb")}
    assert len(parts) == 6 and {path.relative_to(TOP / "nbs").as_posix() for part in parts for path in (TOP / "nbs" / part).glob("*.ipynb")} | {"index.ipynb"} == set(PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_a_notebook_runs(name, request, loaded, parser):
    get_reusable_executor().shutdown()  # a copy could neither use it nor see that it is not there
    done = run_fork(partial(work, PATHS[name], ["slow"] if request.config.getoption("--run-slow") else [], parser))
    assert done.returncode == 0, done.stderr.decode()
