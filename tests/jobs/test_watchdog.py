"""A process that stands still ends with an error that says where it was, and one that moves does not."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from jobs.training.watchdog import EXIT_STATUS, Watchdog

STANDING = """
import sys, time
from jobs.training.watchdog import Watchdog
def standing_still():
    time.sleep(60)
watchdog = Watchdog(float(sys.argv[1]), lambda seconds: print(f"stood {seconds:.0f} s", flush=True))
for _ in range(int(sys.argv[2])):
    time.sleep(0.2)
    watchdog.alive()
if sys.argv[3] == "stop":
    watchdog.stop()
    time.sleep(1.5)
    sys.exit(0)
standing_still()
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STANDING, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_a_process_that_stands_still_ends_and_says_where() -> None:
    start = time.monotonic()
    done = run("1", "10", "stand")
    assert time.monotonic() - start < 20
    assert done.returncode == EXIT_STATUS
    assert done.stdout.startswith("stood 1 s")
    assert "standing_still" in done.stderr


def test_a_process_that_moves_or_is_done_goes_on() -> None:
    done = run("1", "10", "stop")
    assert (done.returncode, done.stdout) == (0, "")


def test_telling_may_fail_and_the_process_ends_all_the_same() -> None:
    script = STANDING.replace('print(f"stood {seconds:.0f} s", flush=True)', "1 / 0")
    done = subprocess.run(
        [sys.executable, "-c", script, "0.5", "0", "stand"], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == EXIT_STATUS
    assert "ZeroDivisionError" in done.stderr


def test_a_watchdog_of_this_process_can_be_stopped() -> None:
    watchdog = Watchdog(0.2, lambda _: pytest.fail("it barked"))
    watchdog.stop()
    time.sleep(0.5)
