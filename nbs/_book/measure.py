"""Measure how long each notebook takes to run, for the head of its page: `python nbs/_book/measure.py [PAGE ...]` writes seconds.csv.

Seconds are processor time of one thread, the start of the kernel included, so that another program beside it does not count.
"""
import csv
import os
import resource
import sys

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")

from build import HERE, read_measured  # noqa: E402
from names import list_notebooks, read_notebook  # noqa: E402
from nbclient import NotebookClient  # noqa: E402

NEEDS_DATA = "guides/edit_trex"  # its time stands in figures/small/edit_trex.json
PAGES = [page for page in list_notebooks() if page != NEEDS_DATA and not page.startswith("paper/")]  # building the book runs the paper's


def spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(page: str) -> float:
    "Run a notebook without its plumbing; the seconds it took."
    path, before = list_notebooks()[page], spent()
    notebook = read_notebook(path)
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith("#| hide\n")]
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    return spent() - before


if __name__ == "__main__":
    seconds = read_measured()
    for page in sys.argv[1:] or PAGES:
        seconds[page] = measure(page)
        with (HERE / "seconds.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["notebook", "seconds"])
            writer.writerows((page, round(seconds[page])) for page in sorted(seconds) if page in list_notebooks())
