"""The paper's notebooks on a world of two dozen people: how tests run them, and read what they write."""
import json
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pandas as pd
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from modmem.reproduce import _kernel_of_this_python
from modmem.rows import load_results

PAPER = Path(__file__).parents[1] / "nbs" / "paper"
TINY = {
    "benchmark": "world-questions", "num_subjects": 24, "style": "plain", "model": "tiny", "finetuning_steps": 60, "finetuning_batch_size": 32,
    "finetuning_learning_rate": 0.01, "learning_rate": 0.03, "batch_size": 8, "epochs": 0.5, "min_steps": 10, "seeds": [0, 1],
}
POSITIONS = {"blocks": [0, 1], "positions": ["first", "last"]}
MEANS = ["modified_accuracy", "unmodified_accuracy", "average_accuracy"]
CHOSEN = [*MEANS, "unmodified_accuracy_reported"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, store):
    "Where the notebooks work; they share a store."
    folder = tmp_path_factory.mktemp("paper")
    (folder / "rows").symlink_to(store)
    return folder


def execute_here(path, parameters):
    "Run a notebook as papermill does, but in this process, which has torch already; the notebook as it was run."
    notebook = parameterize_notebook(load_notebook_node(str(path)), parameters, kernel_name="python3", language="python")
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}), user_module=ModuleType(f"notebook_{Path(path).stem}"))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()
    return notebook


def execute_in_kernel(path, parameters):
    "Run a notebook as the command does."
    with _kernel_of_this_python() as kernel:
        papermill.execute_notebook(path, None, parameters, kernel_name=kernel, language="python", progress_bar=False)


def run(name, folder, execute=execute_here, **parameters):
    "Run a notebook; its csv, its markdown and its record."
    places = {"output": str(folder / "figures"), "store": str(folder / "rows"), **parameters.pop("places", {})}
    execute(PAPER / f"{name}.ipynb", {"places": places} | parameters)
    csv = pd.read_csv(folder / "figures" / f"{name}.csv", dtype={"blocks": str} | dict.fromkeys(MEANS, float))
    text = (folder / "figures" / f"{name}.md").read_text(encoding="utf-8")
    return csv, text, json.loads((folder / "figures" / f"{name}.json").read_text(encoding="utf-8"))


def list_runs(name, **parameters):
    "Execute a notebook here up to its list of runs."
    namespace = {"__annotations__": {}}
    for cell in (cell for cell in nbformat.read(PAPER / f"{name}.ipynb", as_version=4).cells if cell.cell_type == "code"):
        exec(compile(cell.source, name, "exec"), namespace)
        if cell.id == "parameters":
            namespace |= parameters
        if cell.id == "runs":
            return namespace["runs"]


def tables(text):
    "The markdown tables of an artefact, without the marks of footnotes."
    for block in re.findall(r"(?:^\|.*\n)+", re.sub(r"\[\^\d+\]", "", text), flags=re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in block.splitlines()]
        cells = [[cell.strip().replace("\\|", "|") for cell in line] for line in lines]
        yield pd.DataFrame(cells[2:], columns=cells[0])


def table(text):
    "The first of them."
    return next(tables(text))


def assert_heldout_beside(shown, csv, on, beside):
    "What held-out facts choose stands in the line of what reported ones choose: names in the text -> in the csv."
    lines = csv[csv["chosen_on"] == "held out"].set_index([*on.values()])
    for setting, line in shown.set_index([*on]).iterrows():
        for name, column in beside.items():
            told, expected = line[f"{name}, held out"].split(" ")[0], lines[column].get(setting)
            assert told == "" if expected is None else told == expected if isinstance(expected, str) else float(told) == pytest.approx(expected, abs=0.005)


def with_errors(columns, error="se"):
    return ["runs", *(name for column in columns for name in (column, f"{column}_{error}"))]


def load_rows(name, folder, **parameters):
    "The rows of a notebook, from the store."
    return load_results(folder / "rows", keys=[one.key for one in list_runs(name, **parameters)])


def assert_means(csv, rows, by):
    "Both seeds count, accuracies are percent and differ, and they are those of their rows."
    assert (csv["runs"] == 2).all()
    assert ((csv[MEANS] >= 0) & (csv[MEANS] <= 100)).all(axis=None) and (csv[MEANS].nunique() > 1).all()
    pd.testing.assert_frame_equal(csv.set_index(by)[MEANS].sort_index(), rows.groupby(by)[MEANS].mean(), check_index_type=False)


def assert_whole(name, folder, record, decisive, pictures=None):
    "Figures have pictures, and the record says what was run and what was cut, but not where on this machine."
    suffixes = {path.suffix for path in (folder / "figures").glob(f"{name}.*")}
    pictures = not name.startswith("table") if pictures is None else pictures
    assert suffixes == {".csv", ".md", ".json"} | ({".png", ".svg"} if pictures else set())
    assert json.loads(json.dumps(decisive)).items() <= record["parameters"].items()
    assert str(folder) not in json.dumps(record) and not {"output", "store", "jobs"} & set(record["parameters"])
    instead = f"the benchmark world-questions instead of {'zsRE' if name == 'figure_3' else 'T-REx'}"
    fewer = set() if name in ("table_5", "table_6") else {"2 of the paper's 5 runs"}  # there the paper has a single run
    assert {instead} | fewer <= set(record["cuts"])
    assert not [cut for cut in record["cuts"] if "failed" in cut]
