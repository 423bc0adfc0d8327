"""Notebooks of the least size in place of the package's, and the command that runs them: fixtures to import."""
import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from modmem import artefacts, cli

PLACES = "places: dict = {}  # where things are, and what computes\n"
SETTINGS = """benchmark: str = "world-questions"  # the form of the world
num_subjects: int = 24  # subjects of a world
model: str = "tiny"  # a model of the world
start: str = "pretrained"  # model to modify
num_modified: int = 4  # facts to change
learning_rate: float = 0.01  # of FTM
batch_size: int = 8  # evidences a step
epochs: float = 0.5  # of FTM
min_steps: int = 10  # of FTM, at least
seeds: list = [0, 1]  # runs
folders: dict = {}  # where real models lie
"""
RUNS = """from modmem.paper import Paper
from modmem.runs import Run
paper = Paper("NAME", globals())
runs = [Run(paper.sample(seed), paper.start(), paper.edit(block, seed, radius)) for block in BLOCKS for radius in RADII for seed in seeds]"""
SAVE = """from pathlib import Path
from modmem.files import write_atomically
rows = paper.compute(runs)
with write_atomically(Path(paper.at["output"]) / "NAME.csv") as temporary:
    rows[["blocks", "radius", "seed", "status", "modified_accuracy"]].to_csv(temporary, index=False)"""
CLAIMS = """from pathlib import Path
rows, output = Path(places["known_rows"]).read_text().splitlines(), Path(places["output"])
output.mkdir(parents=True, exist_ok=True)
(output / "claims.md").write_text(f"# Claims\\n\\n{len(rows) - 1} rows\\n")"""
EDIT = """from pathlib import Path
output = Path(places["output"])
output.mkdir(parents=True, exist_ok=True)
(output / "edit_synthetic.csv").write_text(f"radii,steps\\n{radii},{steps}\\n")
(output / "edit_synthetic_rows.csv").write_text("row\\n")"""


def write_notebook(path, **sources):
    cells = [nbformat.v4.new_code_cell(source, id=name) for name, source in sources.items()]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "no-such-kernel", "display_name": "of another machine", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    "Two artefacts that share rows, one without any, and the claims."
    folder = tmp_path_factory.mktemp("notebooks")
    for name, more, blocks, radii in (("table_3", "", "[0, 1]", "[float('inf')]"), ("tradeoff", "radii: list = [0.1]  # of the ball\n", "[1]", "[*radii, float('inf')]")):
        runs, save = (source.replace("BLOCKS", blocks).replace("RADII", radii).replace("NAME", name) for source in (RUNS, SAVE))
        write_notebook(folder / "paper" / f"{name}.ipynb", parameters=SETTINGS + more + PLACES, runs=runs, save=save)
    write_notebook(folder / "paper" / "claims.ipynb", parameters=PLACES, save=CLAIMS)
    edit = PLACES + "radii: list = [0.1]  # radii\nsteps = 3"
    write_notebook(folder / "guides" / "edit_synthetic.ipynb", parameters=edit, save=EDIT)
    return folder


@pytest.fixture(autouse=True)
def here(notebooks, monkeypatch, tmp_path):
    "Work in an empty folder, with these notebooks for those of the package."
    monkeypatch.setattr(artefacts, "_notebooks", lambda: notebooks)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(notebooks, tiny, tmp_path_factory):
    "Everything, made in one go by two processes: the folder."
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(tiny, folder / "_runs" / "paper" / "cache" / tiny.name)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        patch.setattr(artefacts, "_notebooks", lambda: notebooks)
        patch.chdir(folder)
        assert cli.main(["reproduce", "--jobs", "2"]) == 0
    (folder / "stdout").write_text(output.getvalue())
    return folder


@pytest.fixture
def run(capsys, tiny):
    "Run the command: exit code, standard output, standard error."
    if not Path("_runs").exists():
        shutil.copytree(tiny, f"_runs/paper/cache/{tiny.name}")

    def run(*arguments):
        capsys.readouterr()
        code = cli.main(["reproduce", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def start_command(notebooks, folder, *arguments):
    script = (
        "import sys; from pathlib import Path; from modmem import artefacts, cli\n"
        f"artefacts._notebooks = lambda: Path({str(notebooks)!r})\n"
        "sys.exit(cli.main(['reproduce', *sys.argv[1:]]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
