"""Training steps get their blocks back from the process, and the system gets them back from a run that has ended."""

import os
import platform
import resource
import subprocess
import sys

import psutil
import pytest
import torch

from rayrec.freed_memory import freed_memory_kept

BYTES = 80 << 20  # above the 32 MiB up to which glibc may keep a block by itself
PAGES = BYTES // resource.getpagesize()

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def _faults_of_a_step() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(BYTES // 4).mul_(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_blocks_are_faulted_in_by_the_first_steps_and_no_more_until_the_end() -> None:
    with freed_memory_kept():
        _faults_of_a_step()
        with freed_memory_kept():
            _faults_of_a_step()
        faults = [_faults_of_a_step() for _ in range(30)]
        # An aligned block asks for a little more than the one freed before gives: at first some are new, until two are adjacent.
        assert max(faults[20:]) < PAGES / 20
    assert _faults_of_a_step() > PAGES / 600  # pages may be as large as 2 MiB


def test_what_was_kept_goes_back_at_the_end() -> None:
    process = psutil.Process()
    with freed_memory_kept():
        _faults_of_a_step()
        kept = process.memory_info().rss
    assert kept - process.memory_info().rss > BYTES / 2


@pytest.mark.parametrize("how", ["not asked for", "set by the user"])
def test_the_allocator_is_left_alone(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("ctypes.CDLL", asked.append)
    if how == "set by the user":
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    with freed_memory_kept(keep=how == "set by the user"):
        pass
    assert not asked


def test_a_process_keeps_it_to_its_end_whatever_ends_inside() -> None:
    steps = """
import resource
import numpy as np
from rayrec.freed_memory import freed_memory_kept, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(80 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(3)))
keep_freed_memory()
with freed_memory_kept():
    faults()
print(min(faults() for _ in range(3)))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    told = subprocess.run([sys.executable, "-c", steps], check=True, capture_output=True, text=True, env=environment)
    before, after = map(int, told.stdout.split())
    assert before > PAGES / 600  # pages may be as large as 2 MiB
    assert after < before / 10
