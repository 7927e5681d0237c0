"""A full disk ends no replica through its metrics."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from serve_apps.service.reserved_file import ReservedDict

COUNTING = """
import os, subprocess, sys
folder = sys.argv[1]
from serve_apps.service.metrics import ServingMetrics
first = sys.argv[2] == "metrics first"
def fill():
    with open(f"{folder}/fill", "wb", buffering=0) as file:
        try:
            while file.write(b"0" * 4096): pass
        except OSError: pass
if not first: fill()
metrics = ServingMetrics()
metrics.requests.labels("/v1/rank", "200").inc()
if first: fill()
for i in range(6000):
    metrics.requests.labels("/v1/rank", str(i)).inc()
    metrics.seconds.labels("/v1/rank").observe(0.01)
os.remove(f"{folder}/fill")
metrics.requests.labels("/v1/rank", "200").inc()
print("survived", b"rayrec_requests_total" in metrics.page().body)
"""


@pytest.mark.parametrize("order", ["metrics first", "disk full first"])
@pytest.mark.parametrize("small_disk", [2], indirect=True)
def test_metrics_on_a_full_disk_leave_their_process_alive(small_disk: Path, order: str) -> None:
    (small_disk / "m").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, str(small_disk), order],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(small_disk / "m")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["survived", str(order == "metrics first")]


def test_values_are_those_of_the_plain_file_and_outlive_a_disk_that_gives_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ReservedDict(str(tmp_path / "counter_1.db"))
    kept.write_value("a", 3.0, 0.0)
    assert os.stat(tmp_path / "counter_1.db").st_blocks * 512 >= 256 * 1024

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for i in range(5000):
        kept.write_value(f"key {i} {'x' * 50}", float(i), 0.0)
    assert kept.read_value("a") == (3.0, 0.0)
    assert kept.read_value(f"key 4999 {'x' * 50}") == (4999.0, 0.0)
    shared = {key: value for key, value, *_ in MmapedDict.read_all_values_from_file(str(tmp_path / "counter_1.db"))}
    assert shared["a"] == 3.0
    assert len(shared) < 5000
    alone = ReservedDict(str(tmp_path / "counter_2.db"))
    alone.write_value("b", 4.0, 0.0)
    assert alone.read_value("b") == (4.0, 0.0)
    assert not (tmp_path / "counter_2.db").exists()
