"""One thread, no network, the same draws in every run; tests marked `slow` wait for --run-slow."""
import os

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", MPLBACKEND="Agg")

import contextlib
import functools
import random
import shutil
import subprocess
import sys

import hypothesis
import numpy
import pytest

hypothesis.settings.register_profile("modmem", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("modmem")


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow, too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than a minute; runs with --run-slow only")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.stem != "test_notebooks")  # they take long: nobody shall wait for them in the end
    if config.getoption("--run-slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(autouse=True)
def same_draws():
    "Seed every generator before each test, so that no test depends on those that ran before it."
    random.seed(0)
    numpy.random.seed(0)
    if "torch" in sys.modules:  # slow to import: tests without a model do without
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def parser():
    "Let the command make its parser once for all that tests ask of it, which takes longer than to refuse a file."
    import typer

    import modmem.cli  # noqa: F401: every command is there

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield patch


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    "A store of rows, with its cache of models, for all tests in whichever process: the package makes each once, under a lock."
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "store"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny(store):
    "The folder of the world's smallest model, pretrained: to copy into a cache."
    from modmem.starts import Places, Start, load_pretrained

    load_pretrained("tiny", Places(store / "cache"))
    return store / "cache" / Start("tiny", "pretrained").key


@pytest.fixture
def small_disk(tmp_path):
    "A disk of eight megabytes, and what fills it to the last byte."
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("may not mount a disk")

    def fill():
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass

    yield folder, fill
    subprocess.run(["umount", "--lazy", folder], check=True)
