"""Memory of commands that read documents, 1 MB and 110 MB of them: figures/benchmarks/document_memory.csv."""
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from modmem.world import make_world

WORLD, DOCUMENTS = make_world(), 110
MODMEM = [sys.executable, "-c", "import sys; from modmem.cli import main; sys.exit(main())"]
COMMANDS = {
    "edit": ["edit", "synthetic", "edits.jsonl", "--blocks", "0", "--radius", "0.01", "--steps", "2", "--output", "edit.safetensors"],
    "pretrain": ["pretrain", "--corpus", "corpus.txt", "--init", "synthetic", "--steps", "2", "--batch-size", "16", "--output", "model"],
}


def write_documents(folder, size):
    "A fact each, with one evidence in the middle of a document of so many characters; and the same as a corpus."
    words, draw = WORLD.train[0].text.split(), random.Random(0)
    with (folder / "edits.jsonl").open("w") as edits, (folder / "corpus.txt").open("w") as corpus:
        for fact in WORLD.facts[:DOCUMENTS]:
            half = " ".join(draw.choices([word for word in words if word.isalpha()], k=size // 10))[: size // 2]
            text = f"{half} {fact.subject} is a [MASK] . {half}"
            edits.write(json.dumps({"id": fact.id, "subject": fact.subject, "relation": "job", "object": None, "new_object": "lawyer", "evidence": [text]}) + "\n")
            corpus.write(text.replace("[MASK]", "lawyer") + "\n")


def measure(command, folder):
    "Largest memory in MB, and processor seconds."
    process = subprocess.Popen([*MODMEM, *command], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, command
    return used.ru_maxrss / 1024, used.ru_utime + used.ru_stime


if __name__ == "__main__":
    rows = []
    for size in (10_000, 1_000_000):
        with tempfile.TemporaryDirectory() as name:
            write_documents(folder := Path(name), size)
            for command, arguments in COMMANDS.items():
                peak, seconds = measure(arguments, folder)
                made = (folder / "edit.safetensors").stat().st_size / 1e6 if command == "edit" else None
                rows.append({"command": command, "documents": DOCUMENTS, "text_mb": DOCUMENTS * size // 10**6, "peak_mb": round(peak), "cpu_seconds": round(seconds), "edit_mb": made and round(made, 1)})
                print(rows[-1], flush=True)
    with Path("figures/benchmarks/document_memory.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
