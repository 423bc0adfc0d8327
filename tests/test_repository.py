"""The promises that the repository makes about itself."""
import ast
import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import yaml
from notebook_metrics import long_cells
from packaging.requirements import Requirement
from readme import render_readme

TOP = Path(__file__).parents[1]
NBS, PACKAGE = TOP / "nbs", TOP / "modmem"
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(TOP / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:root|home|Users|work|tmp|var|opt|mnt)/\w|[A-Za-z]:\\+Users\\|\.\./shared/")


def named(folder, pattern="*.ipynb"):
    "One test parameter per notebook of a folder, named like the file."
    paths = [path for path in sorted(folder.glob(pattern)) if ".ipynb_checkpoints" not in path.parts]
    return [pytest.param(path, id=path.relative_to(NBS).as_posix()) for path in paths]


LIBRARY = named(NBS, "[0-9]_*/[0-9][0-9]_*.ipynb")
PAPER = named(NBS / "paper")
NOTEBOOKS = named(NBS, "**/*.ipynb")
SHOWN = {"table_3", "figure_2"}  # paper notebooks that keep their outputs, for readers on a forge
LONG_CELLS = {  # exported cells of more than 30 lines of code: (notebook, cell)
    ("14_masked_lm", "masked-lm"), ("19_projected_adam", "projected-adam"), ("10_paper", "paper"),
}


def read(path):
    return nbformat.read(path, as_version=4)


def parse(notebook):
    "Parse all code cells together; magics are left out."
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE))


def imported_modules(tree):
    "Yield the dotted name of each import; `from a import b` counts as a.b, since b may be a module."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{name.name}" for name in node.names)


def default_exp(notebook):
    "Name the module that the notebook exports to."
    return re.search(r"^#\|\s*default_exp (\w+)", "\n".join(cell.source for cell in notebook.cells), flags=re.MULTILINE)[1]


def place(path):
    "Where a library notebook stands: its part, and its number in it."
    return int(path.parent.name[0]), int(path.name[:2])


@pytest.fixture(scope="module")
def places():
    "Place of the notebook behind each module."
    return {default_exp(read(parameter.values[0])): place(parameter.values[0]) for parameter in LIBRARY}


@pytest.mark.parametrize("path", LIBRARY)
def test_a_library_notebook_imports_only_from_lower_parts_and_numbers(path, places):
    for name in imported_modules(parse(read(path))):
        assert not name.startswith("."), f"{name}: notebooks import by full name"
        package, *rest = name.split(".")
        if package == "modmem" and rest:
            assert places[rest[0]] < place(path), f"{path.name} imports {name}"


def test_every_module_comes_from_a_notebook(places):
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "_modidx"} == set(places)


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_a_notebook_is_small(path):
    assert len(read(path).cells) <= 60
    assert path.stat().st_size <= 100 * 1024


def test_an_exported_cell_has_at_most_thirty_lines_or_a_reason():
    found = {(parameter.values[0].stem, cell) for parameter in LIBRARY for cell, _ in long_cells(parameter.values[0])}
    assert found == LONG_CELLS


def next_links(path):
    "Where the last markdown cell of a notebook leads: the notebooks linked after `Next:`, in order."
    text = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"][-1]
    _, found, after = text.rpartition("Next: ")
    return [Path(os.path.normpath(path.parent / target)) for target in re.findall(r"\]\(([^)#:\s]+\.ipynb)", after)] if found else []


def test_next_leads_through_all_parts_in_order():
    notebooks = sorted((parameter.values[0] for parameter in LIBRARY), key=place)
    follower = {path: links[0] for path in notebooks if (links := next_links(path))}
    walked = [notebooks[0]]
    while (after := follower.get(walked[-1])) in notebooks and after not in walked:
        walked.append(after)
    assert [path.relative_to(NBS).as_posix() for path in walked] == [path.relative_to(NBS).as_posix() for path in notebooks]


@pytest.mark.parametrize("path", LIBRARY)
def test_a_library_notebook_exports_at_most_ten_names(path):
    tree = ast.parse((PACKAGE / f"{default_exp(read(path))}.py").read_text(encoding="utf-8"))
    public = next(node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    assert 0 < len(ast.literal_eval(public)) <= 10


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_cell_ids_are_unique_and_readable(path):
    ids = [cell.get("id", "") for cell in read(path).cells]
    assert len(set(ids)) == len(ids)
    for cell_id in ids:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cell_id), f"not a readable id: {cell_id!r}"
        assert not re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", cell_id), f"a random id: {cell_id!r}"


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_stored_outputs_are_clean(path):
    outputs = [output for cell in read(path).cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = json.dumps(outputs, ensure_ascii=False)
    assert not MACHINE_PATH.search(text)
    assert not re.search(r"\bat 0x[0-9a-f]{6,}", text), "a memory address changes with every run"


@pytest.mark.parametrize("path", PAPER)
def test_a_paper_notebook_has_parameters_and_no_outputs_but_two_that_are_shown(path):
    notebook = read(path)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert len(tagged) == 1
    assert not [cell for cell in notebook.cells if cell.get("execution_count")]
    assert any(cell.get("outputs") for cell in notebook.cells) == (path.stem in SHOWN)


@pytest.mark.parametrize("path", [*PAPER, *named(NBS / "guides")])
def test_papermill_sees_every_parameter(path):
    for cell in read(path).cells:
        if "parameters" in cell.metadata.get("tags", ()):
            nodes = [node for node in ast.parse(cell.source).body if isinstance(node, (ast.Assign, ast.AnnAssign))]
            written = {(node.target if isinstance(node, ast.AnnAssign) else node.targets[0]).id for node in nodes}
            assert set(papermill.inspect_notebook(str(path))) == written


def test_readme_is_in_step_with_the_index():
    assert (TOP / "README.md").read_text(encoding="utf-8") == render_readme(), "run make readme"


def test_readme_names_every_part_every_notebook_of_the_method_and_the_test_command_of_ci():
    readme = (TOP / "README.md").read_text(encoding="utf-8")
    parts = {parameter.values[0].parent.name for parameter in NOTEBOOKS} - {NBS.name}
    assert not [part for part in parts if f"| `{part}` | " not in readme]
    assert not [parameter.id for parameter in LIBRARY if parameter.id.startswith("1_") and f"](nbs/{parameter.id})" not in readme]
    script = TOP / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in readme and script.read_text(encoding="utf-8").rstrip().endswith(" test")


def test_what_the_first_page_found_is_said_in_short_points():
    readme = (TOP / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^- \*\*.*$", readme.partition(" In short, ")[2].partition("## The parts")[0], flags=re.MULTILINE)
    assert len(found) == 8 and not [point for point in found if len(point.split()) > 75]  # the numbers behind them are in a guide


def test_code_in_the_readme_fits_its_box():
    blocks = re.findall(r"^```\w*\n(.*?)^```", (TOP / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 3
    assert not [line for block in blocks for line in block.splitlines() if len(line) > 88]


def test_what_is_said_of_the_rows_of_real_facts_is_so():
    rows, said = pd.read_csv(TOP / "figures" / "small" / "rows.csv"), (TOP / "figures" / "README.md").read_text(encoding="utf-8")
    assert f"has {len(rows)} rows" in said and set(rows["status"]) == {"done"}
    choosing = rows[(rows["facts"] == "heldout") & (rows["seed"] == 0) & rows["blocks"].isin(["0", "all"]) & rows["radius"].isin([0.002, 0.008])]
    choosing = choosing[(choosing["num_modified"] == 32) & choosing["min_evidences"].isna() & (choosing["model"] == "minilm")]
    means = (choosing["modified_accuracy"] + choosing["unmodified_accuracy_heldout"]) / 2
    best = means.groupby([choosing["learning_rate"], choosing["blocks"]]).max().groupby("learning_rate").mean()
    assert len(best) == 3 and f"That was {best.idxmax():g} " in said
    assert set(rows.loc[rows["facts"] == "reported", "learning_rate"].dropna()) == {best.idxmax()}
    both = pd.read_csv(TOP / "figures" / "small" / "float32.csv").merge(rows, on="key", suffixes=("", "_rounded"))
    assert len(both) == 12 and (both["modified_accuracy"] == both["modified_accuracy_rounded"]).all()
    assert f"at most {(both['unmodified_accuracy_heldout'] - both['unmodified_accuracy_heldout_rounded']).abs().max():.2f} points of A_F" in said
    for record in (TOP / "figures" / "small").glob("[ft]*_[0-9].json"):
        assert json.loads(record.read_text(encoding="utf-8"))["device"] == " ".join(set(rows["device"]))


def test_what_is_said_of_another_processor_is_so():
    said, kept = (TOP / "figures" / "README.md").read_text(encoding="utf-8"), pd.read_csv(TOP / "figures" / "benchmarks" / "processors.csv")
    assert f"{len(kept)} rows moved on another processor" in (TOP / "CHANGELOG.md").read_text(encoding="utf-8")
    columns = ["key", "method", "radius", "modified_accuracy", "unmodified_accuracy"]
    rows = pd.read_csv(TOP / "figures" / "synthetic" / "rows.csv", usecols=columns)
    both = rows.merge(kept[kept["results"] == "synthetic"], on="key", suffixes=("", "_again"))
    modified, unmodified = ((both[name] - both[f"{name}_again"]).abs() for name in columns[3:])
    assert f"{((modified > 1e-6) | (unmodified > 1e-6)).sum()} of the {len(both)} reported ones in an accuracy" in said
    edits, bounded = both["method"] == "edit", both["radius"] < float("inf")
    assert f"by at most {modified[edits & bounded].max():.1f} points of A_M, without one once by {modified[edits & ~bounded].max():.1f}" in said


def test_links_lead_somewhere():
    texts = {path: path.read_text(encoding="utf-8") for path in (TOP / "README.md", TOP / "figures" / "README.md")}
    for parameter in NOTEBOOKS:
        path = parameter.values[0]
        texts[path] = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    links = [(path, target) for path, text in texts.items() for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)]
    assert not [f"{path.name}: {target}" for path, target in links if not (path.parent / target).exists()]


def required(kind):
    "Names of the distributions that a line of settings.ini requires."
    return {Requirement(text).name.lower().replace("_", "-") for text in SETTINGS[kind].split()}


def test_exported_code_imports_only_what_users_install_and_an_extra_inside_functions_only():
    always, extra, distributions = required("requirements"), required("cluster_requirements"), packages_distributions()
    for path in PACKAGE.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)}
        for node in (node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))):
            for package in {name.split(".")[0] for name in imported_modules(node)} - {"", "modmem", *sys.stdlib_module_names}:
                provided_by = {name.lower().replace("_", "-") for name in distributions.get(package, ())}
                allowed = always | extra if node in inside else always
                assert provided_by & allowed, f"{path.name} imports {package}, which settings.ini does not require"


@pytest.mark.parametrize("script", ["import modmem", "from modmem.cli import main; main()"], ids=["import", "help"])
def test_starting_is_fast_because_torch_waits(script):
    code = f"""
import sys
sys.argv = ["modmem", "--help"]
try:
    {script}
except SystemExit as stop:
    assert not stop.code
print("loaded:", *sorted({{"torch", "transformers"}} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TOP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_no_file_names_a_place_on_somebodys_machine():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = [TOP / name for name in listing.stdout.split("\0") if name]
    found = {path.name: MACHINE_PATH.findall(path.read_text(encoding="latin-1")) for path in paths if path.is_file()}
    assert not {name: places for name, places in found.items() if places}


def test_the_version_is_the_same_everywhere():
    import modmem

    citation = yaml.safe_load((TOP / "CITATION.cff").read_text(encoding="utf-8"))
    assert {modmem.__version__, str(citation["version"])} == {SETTINGS["version"]}
    assert SETTINGS["version"] in (TOP / "CHANGELOG.md").read_text(encoding="utf-8")


def test_pins_satisfy_the_floors_and_cover_them():
    text = (TOP / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for version in ("3.10", "3.11", "3.12", "3.13"):
        pins = {}
        for pin in map(Requirement, lines):
            if pin.marker is None or pin.marker.evaluate({"python_version": version}):
                assert pin.name not in pins
                pins[pin.name] = str(pin.specifier).removeprefix("==")
        for floor in (Requirement(text) for kind in ("", "cluster_", "dev_", "book_") for text in SETTINGS[f"{kind}requirements"].split()):
            assert floor.specifier.contains(pins[floor.name]), f"{floor} on Python {version}"
