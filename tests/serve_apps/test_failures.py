"""What the cascade promises when things fail: no wrong answer, and nothing lost that a client was told is kept."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_while_things_fail_no_answer_is_wrong_and_nothing_that_was_accepted_is_lost() -> None:
    command = [sys.executable, "-m", "benchmarks.failures", "--minutes", "2", "--rate", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["compared"] > 0.5 * found["requests"] > 0
    assert (found["wrong"], found["lost_feedback"], found["feedback_of_nobody"], found["lost_decisions"]) == (
        0,
        0,
        0,
        0,
    )
    assert found["other_statuses"] == {}
    assert found["feedback_kept"] > 20
