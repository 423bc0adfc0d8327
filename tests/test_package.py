"""What others install: the built package works in an empty environment, outside the checkout."""
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
LOCAL = (".git", ".venv", "_runs", "_proc", "_site", "build", "dist", "*.egg-info", "__pycache__", ".pytest_cache", ".ipynb_checkpoints")
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def files_below(folder, *patterns):
    "Relative path -> content, of the files that match."
    return {path.relative_to(folder).as_posix(): path.read_bytes() for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "Folder with the source distribution, and the wheel that was built from it."
    copy, built = tmp_path_factory.mktemp("build") / "copy", tmp_path_factory.mktemp("built")
    shutil.copytree(TOP, copy, ignore=shutil.ignore_patterns(*LOCAL))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return built


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment in which this package comes from the wheel alone.

    It borrows the third-party packages that are installed already: a path in a .pth file adds a folder, but does not
    process that folder's own .pth files, so that the editable installation of the checkout stays out of sight.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    command = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True, env=CLEAN)
    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text("\n".join(sorted(paths)))
    return folder


@pytest.fixture
def run(environment, tmp_path):
    "Run a program of the environment, in an empty folder."
    return lambda program, *arguments: subprocess.run(
        [environment / "bin" / program, *arguments], cwd=tmp_path, env=CLEAN, capture_output=True, text=True
    )


def test_the_wheel_holds_code_data_and_notebooks_and_nothing_else(wheel):
    expected = {f"modmem/{name}": content for name, content in files_below(TOP / "modmem", "*.py", "py.typed", "data/**/*").items()}
    notebooks = files_below(TOP / "nbs", *(f"{folder}/*.{kind}" for folder in ("paper", "guides") for kind in ("ipynb", "yaml")))
    expected |= {f"modmem/notebooks/{name}": content for name, content in notebooks.items()}
    expected |= {f"modmem/published/{name}": content for name, content in files_below(TOP / "figures" / "published", "*").items()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {Path(name).name for name in archive.namelist()} - {Path(name).name for name in held}
    assert sorted(held) == sorted(expected)
    assert held == expected
    assert {"modmem/data/synthetic/model.safetensors", "modmem/published/table_1.csv"} <= set(held)
    assert {"LICENSE", "METADATA", "entry_points.txt"} <= metadata


def test_the_source_distribution_is_the_whole_project(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "settings.ini", "setup.py", "constraints.txt", "LICENSE", "CITATION.cff", "CHANGELOG.md", ".ci/run"} <= held
    for folder in ("modmem", "nbs", "tests", "figures"):
        names = {f"{folder}/{name}" for name in files_below(TOP / folder, "**/*") if not re.search(r"__pycache__|_checkpoints", name)}
        assert not names - held


def test_the_package_comes_from_the_wheel(run, environment):
    done = run("python", "-c", "import modmem; print(modmem.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(environment), done.stderr
    assert not Path(done.stdout.strip()).is_relative_to(TOP)


def test_the_declared_requirements_are_met(run):
    done = run("python", "-c", "from importlib.metadata import requires; print(*requires('modmem'), sep='\\n')")
    assert "torch>=" in done.stdout.replace(" ", ""), done.stderr
    done = run("python", "-m", "pip", "check")
    assert "modmem" not in done.stdout, done.stdout


def test_the_installed_command_evaluates_the_shipped_checkpoint(run):
    done = run("modmem", "evaluate", "synthetic", "--synthetic")
    assert done.returncode == 0, done.stderr
    recorded = json.loads((TOP / "modmem" / "data" / "synthetic" / "recipe.json").read_text())["accuracy"]["all"]
    assert re.search(rf"^accuracy +{recorded:.2f}$", done.stdout, re.M), done.stdout


def test_the_installed_command_reproduces(run, tmp_path, tiny):
    shutil.copytree(tiny, tmp_path / "_runs" / "paper" / "cache" / tiny.name)
    small = {
        "benchmark": "world-questions", "num_subjects": 24, "style": "plain", "model": "tiny", "starts": ["pretrained"], "blocks": [0, 1], "positions": ["first", "last"],
        "num_modified": 4, "batch_size": 8, "epochs": 0.5, "min_steps": 10, "seeds": [0],
    }
    done = run("modmem", "reproduce", "table_3", *(word for name, value in small.items() for word in ("-p", name, str(value))))
    assert done.returncode == 0, done.stderr
    table, rows = done.stdout.splitlines()
    assert table.split()[0] == "table_3" and rows.startswith("2 rows, in ")
    written = {path.name for path in (tmp_path / "figures" / "synthetic").iterdir()}
    assert written == {"table_3.csv", "table_3.md", "table_3.json", "rows.csv", "report.html"} >= set(table.split()[1:])
