"""Invented rows, and what is made of them."""
import math

import pandas as pd
import pytest

from modmem.tables import summarize

BY = ["position", "radius"]
RADII = [0.001, 0.002, math.inf]
PROVENANCE = {"parameters": {"radii": RADII}, "seeds": [0, 1, 2], "device": "cpu", "seconds": 1.0, "cuts": ["3 runs, not 5"], "versions": {}, "commit": None}


def invent(position="first", radius=0.001, values=(70.0, 76.0, 79.0)):
    for seed, value in enumerate(values):
        accuracies = {"modified_accuracy": value, "unmodified_accuracy": 100 - value, "average_accuracy": 50.0}
        yield {"position": position, "radius": radius, "seed": seed, "num_modified": 32, **accuracies}


@pytest.fixture
def rows():
    return pd.DataFrame([row for position in ("first", "last") for radius in RADII for row in invent(position, radius)])


@pytest.fixture
def summary(rows):
    return summarize(rows[rows["radius"] == 0.001], ["position"], pd.DataFrame({"position": ["first", "middle", "last"]}))


@pytest.fixture
def curves(rows):
    return summarize(rows, BY, pd.DataFrame({"position": ["first", "middle", "last"]}))
