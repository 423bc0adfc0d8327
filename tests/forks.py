"""Another process where a test needs one: a copy of this process, which has torch and transformers loaded; importing them anew takes many seconds."""
import contextlib
import os
import subprocess
import sys
import tempfile
import traceback
import warnings

import pytest


def start_fork(work, stdin=None, stdout=None, stderr=None, encoding="utf-8"):
    "Call `work` in a copy of this process that reads and writes these files, or nothing: its number. What `work` returns is its exit code."
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)  # of threads, which the copy does without
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for number, file in enumerate((stdin, stdout, stderr)):
            os.dup2(silence if file is None else file, number)
        sys.stdin, sys.stdout, sys.stderr = (open(number, mode, encoding=encoding, closefd=False) for number, mode in enumerate("rww"))
        sys.stderr.reconfigure(errors="backslashreplace", write_through=True)
        code = work()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def run_fork(work, input=b"", encoding="utf-8"):
    "Call `work` in a copy of this process that reads from a pipe: what `subprocess.run` would tell of it."
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        reading, writing = os.pipe()
        os.write(writing, input)
        os.close(writing)
        child = start_fork(work, reading, output.fileno(), errors.fileno(), encoding)
        os.close(reading)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told = [file.seek(0) or file.read() for file in (output, errors)]
    return subprocess.CompletedProcess(work, code, *told)
