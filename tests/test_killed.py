"""Commands killed at random moments: what is there is whole, and the same command run again ends with the same result."""
import os
import random
import signal
import time
from itertools import count

import pytest
from forks import start_fork
from test_cli import edit_line, edits, run, small_world, write_edits  # noqa: F401: fixtures

from modmem import cli
from modmem.editor import Edit
from modmem.masked_lm import hash_weights, load_masked_lm

COMMANDS = {
    "edit": ["edit", "synthetic", "edits.jsonl", "--blocks", "0", "--radius", "0.01", "--steps", "8", "--card", "--output", "output"],
    "finetune": ["finetune", "synthetic", "--synthetic", "--steps", "8", "--batch-size", "16", "--output", "output"],
}


def start(command):
    "Run a command in a copy of this process."
    return start_fork(lambda: cli.main(command))


def identify(path):
    "The hash of the weights that a result gives; reading it fails if it is not whole."
    if path.is_dir():
        return hash_weights(load_masked_lm(path))
    return Edit.load(path).apply_to_copy(load_masked_lm("synthetic")) and Edit.load(path).record["edited_hash"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments_nothing_is_lost(run, edits, tmp_path, name, kills):
    output, inputs, draw = tmp_path / "output", edits.read_bytes(), random.Random(f"{name} {kills}")
    assert run(*COMMANDS[name])[0] == 0  # loads what the copies need
    began = time.perf_counter()
    assert os.waitstatus_to_exitcode(os.waitpid(start(COMMANDS[name] if name == "edit" else [*COMMANDS[name][:-1], "first"]), 0)[1]) == 0
    takes, expected, lost, killed = time.perf_counter() - began, identify(output), 0, 0
    for number in count():
        place = tmp_path / f"killed-{number}"
        child = start([*COMMANDS[name][:-1], str(place)])
        time.sleep(draw.uniform(0, takes))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        killed, takes = (killed + 1, takes) if code == -signal.SIGKILL else (killed, 0.9 * takes)  # ended before: others shall be killed earlier
        lost += place.exists() and identify(place) != expected
        if not place.exists():
            assert code == -signal.SIGKILL and run(*COMMANDS[name][:-1], place)[0] == 0
        lost += identify(place) != expected
        if killed == kills:
            break
    assert lost == 0 and edits.read_bytes() == inputs and identify(output) == expected
    print(f"{name}: killed {killed} times, {lost} results lost")
