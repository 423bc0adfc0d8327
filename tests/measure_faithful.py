"""Measure what the faithful models know before and after FT, once: python tests/measure_faithful.py > modmem/data/faithful.csv

It takes the shipped models; FT of each takes a minute."""
import sys

import pandas as pd
import torch

from modmem.evaluation import measure_accuracy
from modmem.facts import majority_accuracy
from modmem.finetuning import finetune
from modmem.masked_lm import SYNTHETIC, load_masked_lm
from modmem.starts import RECIPES
from modmem.synthetic import FAITHFUL_FT, describe_world_model
from modmem.world import make_world


def measure(name):
    "What a model answers in percent: training evidence, then test questions; before FT and after."
    recipe, model = RECIPES[name], load_masked_lm(SYNTHETIC.with_name(f"{SYNTHETIC.name}_{name}"))
    world = make_world(recipe.num_subjects, recipe.world_seed, style=recipe.style)
    train = world.train[:]
    for start, each in (("pretrained", model), ("FT", finetune(model, train, FAITHFUL_FT)[0])):
        accuracy = {"evidence": round(measure_accuracy(each, train), 2), **describe_world_model(each, recipe)}
        yield {"model": name, "start": start, **accuracy, "majority": round(majority_accuracy(world), 2)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = [row for name in sorted(RECIPES) if name.startswith("base") for row in measure(name)]
    pd.DataFrame(rows).to_csv(sys.stdout, index=False)
