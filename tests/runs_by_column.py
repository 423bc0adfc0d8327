"""Runs from the columns of their rows: how the tests write settings in short, and how they check that a row's key is that of its settings."""
import itertools
import math
from dataclasses import replace

from modmem.constraints import PenalizedConfig
from modmem.editor import ModificationConfig
from modmem.fae import FaeConfig
from modmem.fae_editing import FaeEditConfig
from modmem.fae_starts import FaeStart
from modmem.fae_training import FaeRecipe
from modmem.finetuning import FinetuningConfig
from modmem.knn_lm import NeighborConfig
from modmem.runs import RetrainConfig, Run, Sample, UniformConfig
from modmem.starts import Data, Start
from modmem.world import WorldStyle

USUAL = {
    "benchmark": "world", "num_subjects": 512, "num_modified": 32, "seed": 0, "model": "plain", "start": "FT", "method": "edit", "blocks": "all", "norm": "linf",
    "radius": math.inf, "epochs": 10.0, "min_steps": 70, "warmup": 0.0, "schedule": "constant", "absent": "insert",
    "finetuning_steps": 600, "finetuning_batch_size": 64, "finetuning_learning_rate": 1e-3, "finetuning_pool": 16, "finetuning_max_gradient_norm": 1.0,
}


def take(kind, columns, prefix="", **more):
    "A settings object from the columns that its class has fields for."
    names = {name.removeprefix(prefix): value for name, value in columns.items() if name.startswith(prefix)}
    return kind(**{name: names[name] for name in kind.__dataclass_fields__ if name in names} | more)


def take_training(columns, prefix=""):
    "The training settings; with steps, neither epochs nor least steps count."
    fixed = columns.get(f"{prefix}steps") is not None
    ours = {name: value for name, value in columns.items() if not (fixed and name in (f"{prefix}epochs", f"{prefix}min_steps"))}
    return take(FinetuningConfig, ours, prefix)


def make_method(columns):
    "The settings of a method."
    method, settings = columns["method"], {name: columns[name] for name in ("blocks", "norm", "radius")}
    if method == "kNN-LM":
        return take(NeighborConfig, columns)
    if method == "retrain":
        training = columns | {f"finetuning_{name.removeprefix('retraining_')}": value for name, value in columns.items() if name.startswith("retraining_")}
        return RetrainConfig(take_training(training, "finetuning_"))
    if method == "FaE":
        return take(FaeEditConfig, columns, finetuning=take_training(columns))
    edit = ModificationConfig(**settings, finetuning=take_training(columns))
    if method == "penalty":
        return PenalizedConfig(edit, columns["penalty"], columns["penalty_weight"])
    return UniformConfig(edit) if method == "uniform" else edit


def make_recipe(columns):
    "The recipe of a FaE, whose shape and training have columns of their own."
    training = {name: columns[f"fae_{name}"] for name in FinetuningConfig.__dataclass_fields__ if f"fae_{name}" in columns}
    return take(FaeRecipe, columns, "fae_", shape=take(FaeConfig, columns, "fae_"), finetuning=replace(FaeRecipe().finetuning, **training))


def make_run(**columns):
    "A run from flat settings; what is not given is as usual in the world."
    columns = USUAL | columns
    style = {"style": take(WorldStyle, columns, "style_")} if any(name.startswith("style_") for name in columns) else {}
    data = take(Data, columns, **style)
    if columns["method"] == "FaE":
        start = FaeStart(columns["model"], data, make_recipe(columns))
    elif columns["start"] == "FT":
        start = Start(columns["model"], "FT", data, take_training(columns, "finetuning_"))
    else:
        start = Start(columns["model"], columns["start"])
    return Run(take(Sample, columns, data=data), start, make_method(columns))


def read_columns(row):
    "The settings in a row that was read from a file: no text or number is none at all, whole numbers are whole, lists are lists."
    settings = {}
    for name, value in row.items():
        if value == "" or value is None or value != value:
            continue
        settings[name] = int(value) if isinstance(value, float) and value.is_integer() and name not in FRACTIONS else value
    blocks = settings.get("blocks", "all")
    if blocks != "all":
        settings["blocks"] = tuple(map(int, blocks.strip("[]").split(",")))
        settings["blocks"] = settings["blocks"] if blocks.startswith("[") else settings["blocks"][0]
    for name in {"relations", "style_relations", "style_evidences", "style_contexts"} & set(settings):
        settings[name] = tuple(int(part) if part.isdigit() else part for part in settings[name].split())
    if "epochs" in settings or settings["method"] == "retrain":
        settings.pop("steps", None)  # of the outcome
    return settings | {name: bool(settings[name]) for name in ("tables", "symbolic") if name in settings}


FRACTIONS = ("epochs", "radius", "learning_rate", "unmodified_per_modified")


def expand_grid(**lists):
    "A dictionary of columns for every combination, the last list varying fastest."
    return [dict(zip(lists, values)) for values in itertools.product(*lists.values())]
