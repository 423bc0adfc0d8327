"""Guides that measure save what they show, when they are given a folder."""
from pathlib import Path

import pandas as pd
import papermill
import pytest

GUIDES = Path(__file__).parents[1] / "nbs" / "guides"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings", "saved"), [
    ("fae_cost", {"sizes": [100, 200], "repeats": 1}, {"fae_cost": 2}),
    ("last_bits", {"copies": 2}, {"last_bits": 2}),
    ("speed", {"questions": 16}, {"speed": 12, "speed_growth": 3, "speed_files": 1, "speed_radii": 2, "speed_slopes": 1, "speed_precision": 2, "speed_bound": 0, "speed_workers": 0}),
])
def test_a_guide_that_measures_saves_its_tables(name, settings, saved, tmp_path):
    papermill.execute_notebook(GUIDES / f"{name}.ipynb", None, {**settings, "output": str(tmp_path)}, kernel_name="python3", progress_bar=False, cwd=GUIDES)
    for table, lines in saved.items():
        assert len(pd.read_csv(tmp_path / f"{table}.csv")) == lines
        text = (tmp_path / f"{table}.md").read_text(encoding="utf-8")
        assert text.count("\n|") == lines + 2 and "nan" not in text
