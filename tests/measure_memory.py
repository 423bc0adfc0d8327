"""Memory of an edit of block 0 of a BERT-Base-sized model with random weights, batch 128: figures/benchmarks/edit_memory.csv."""
import csv
import resource
import sys
import time
from pathlib import Path

import psutil
import torch
import transformers

from modmem.editor import ModificationConfig, modify_facts
from modmem.facts import Evidence, Fact
from modmem.masked_lm import MaskedLM
from modmem.modification import ModifiedBenchmark

MEGA = 2**20
NUM_EVIDENCES, LENGTH, STEPS = 128, 40, 2


def make_model():
    "BERT-Base's shape; a vocabulary of numbered words."
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(30517))]
    tokenizer = transformers.BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})
    torch.manual_seed(0)
    return MaskedLM(transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(words))), tokenizer)


def make_edits():
    "A fact for each evidence."
    evidence, facts = [], {}
    for number in range(NUM_EVIDENCES):
        old = Fact(f"f{number}", f"w{number}", "r", "w1000")
        facts[old] = new = Fact(old.id, old.subject, "r", f"w{2000 + number}")
        evidence.append(Evidence(new, " ".join(f"w{(number * 37 + place) % 900}" for place in range(LENGTH - 3)) + " [MASK]"))
    return ModifiedBenchmark(facts, tuple(evidence), (), (), (), {}, float("nan"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    masked_lm = make_model()
    if len(sys.argv) > 1 and sys.argv[1] == "whole":
        masked_lm.activations_budget = 2**60
    size = sum(weight.numel() * weight.element_size() for weight in masked_lm.model.parameters())
    loaded, began = psutil.Process().memory_info().rss, time.perf_counter()
    modify_facts(masked_lm, make_edits(), ModificationConfig(blocks=0, radius=1e-3, steps=STEPS))
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - loaded
    row = {
        "batch": "whole" if masked_lm.activations_budget > 2**50 else "in parts", "evidences": NUM_EVIDENCES, "tokens": LENGTH, "steps": STEPS,
        "model_mb": round(size / MEGA), "more_than_loaded_mb": round(more / MEGA), "share_of_model": round(more / size, 2), "seconds": round(time.perf_counter() - began),
    }
    path = Path("figures/benchmarks/edit_memory.csv")
    rows = [one for one in csv.DictReader(path.open())] if path.exists() else []
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*(one for one in rows if one["batch"] != row["batch"]), row])
    print(row)
