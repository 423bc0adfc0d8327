"""Measure real T-REx, once: python tests/measure_trex.py DATA TOKENIZER > modmem/data/trex_statistics.csv

DATA is a folder in LAMA's layout, TOKENIZER a folder with BERT's WordPiece vocabulary."""
import sys

from transformers import AutoTokenizer

from modmem.facts import evidence_statistics
from modmem.trex import load_trex

if __name__ == "__main__":
    data, vocabulary = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(vocabulary)
    measured = evidence_statistics(load_trex(data, keep_duplicates=True), lambda text: len(tokenizer(text)["input_ids"]))
    measured.round(2).to_csv(sys.stdout)
