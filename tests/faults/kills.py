"""Kills processes that write files, resumes them, and compares what they end with.

    python -m tests.faults.kills [--kills 50] [--only fit basis train audit] [--moments]
        [--seed 0]

Each round starts from nothing (an audit: from an earlier report) and is killed and
resumed until it ends; what is on disk is checked after each kill, and the end is
compared with that of an uninterrupted run. `--moments` kills at the renaming of files,
before and after each, instead of at random times.

TensorFlow is imported once, by a process that never uses it: each run is a fork of it.
"""

import argparse
import collections
import os
import pathlib
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback

from tests.faults.jobs import JOBS, MOMENTS

_PATIENCE = 600  # seconds for what takes some


class Child:
    """A fork that does a job.

    Attributes:
        begun: when the part of interest began.
    """

    def __init__(self, job, folder, die_at=None):
        self._log = folder.with_name(f"{folder.name}.log")
        told, tell = os.pipe()
        self.number = os.fork()
        if self.number == 0:
            self._do(job, folder, die_at, tell)
        os.close(tell)
        ready = select.select([told], [], [], _PATIENCE)[0]
        assert ready, f"{job.name}: nothing happened\n{self._log.read_text()}"
        os.read(told, 1)  # at its end without a word, too
        os.close(told)
        self.begun = time.monotonic()

    def _do(self, job, folder, die_at, tell):
        code = 1
        try:
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if die_at is not None:
                _die_at_replace(die_at)
            job.run(folder, lambda: os.write(tell, b"1") if tell else None)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def kill(self):
        os.kill(self.number, signal.SIGKILL)

    def ended(self):
        """Waits for the end; returns whether it was not killed."""
        status = os.waitpid(self.number, 0)[1]
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            return False
        assert os.WEXITSTATUS(status) == 0, self._log.read_text()
        return True


def _die_at_replace(number):
    """Kills this process before (even numbers) or after (odd) a call of os.replace."""
    plain, calls = os.replace, 0

    def replace(*arguments):
        nonlocal calls
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(*arguments)
        if calls + 1 == number:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 2

    os.replace = replace


def whole(job, folder):
    """Runs a job without interruption; returns the seconds of the part of interest."""
    job.prepare(folder)
    child = Child(job, folder)
    assert child.ended()
    return time.monotonic() - child.begun


def at_random(job, folder, reference, seconds, kills, draw):
    """Returns what the kills met, counted."""
    met = collections.Counter()
    while met["kills"] < kills:
        _start(job, folder)
        ended = False
        while not ended:
            child = Child(job, folder)
            wait = draw.uniform(0, seconds) - (time.monotonic() - child.begun)
            if met["kills"] < kills:
                time.sleep(max(0, wait))
                child.kill()
            ended = child.ended()
            if not ended:
                met["kills"] += 1
                met.update(job.check(folder, reference))
        met["rounds"] += 1
        met.update(job.compare(folder, reference))
        print(f"  {met['kills']} of {kills}", flush=True)
    return met


def at_moments(job, folder, reference):
    """As `at_random`, once at each moment of `job.moments`."""
    met = collections.Counter()
    for number in job.moments:
        _start(job, folder)
        ended = Child(job, folder, die_at=number).ended()
        assert not ended, f"{job.name} ended before moment {number}"
        met["kills"] += 1
        met.update(job.check(folder, reference))
        assert Child(job, folder).ended()
        met["rounds"] += 1
        met.update(job.compare(folder, reference))
    return met


def _start(job, folder):
    shutil.rmtree(folder, ignore_errors=True)
    job.prepare(folder)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="of each kind")
    parser.add_argument("--only", nargs="+", choices=[*JOBS], default=[*JOBS])
    parser.add_argument("--moments", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    total = 0
    for kind in options.only:
        jobs = MOMENTS.get(kind, []) if options.moments else JOBS[kind]
        for job in jobs:
            draw = random.Random(f"{options.seed} {job.name}")
            with tempfile.TemporaryDirectory() as place:
                folder = pathlib.Path(place, "run")
                reference = pathlib.Path(place, "whole")
                seconds = whole(job, reference)
                if options.moments:
                    met = at_moments(job, folder, reference)
                else:
                    kills = round(options.kills * job.share)
                    met = at_random(job, folder, reference, seconds, kills, draw)
            total += met["kills"]
            counts = ", ".join(f"{n} {what}" for what, n in met.items())
            print(f"{job.name} ({seconds:.1f} s): {counts}", flush=True)
    print(f"{total} kills, nothing lost")


if __name__ == "__main__":
    main()
