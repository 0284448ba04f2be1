"""How many cases a fuzzing test runs, and how they are counted.

`FUZZ_CASES` is the number of cases of all tests together, `FUZZ_SEED` chooses them.
"""

import contextlib
import os
import time
import zlib

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from keras import backend

SLOW = backend.backend() != "tensorflow"  # where each shape is compiled
CASES = int(os.environ.get("FUZZ_CASES", 100 if SLOW else 300))
SEED = int(os.environ.get("FUZZ_SEED", 0))
LEAST = 0 if SLOW else 4  # the first one is trivial
BLOCK = 250  # cases of one test of pytest, so that several processes share the work

SETTINGS = settings(
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def seed_of(name, block):
    return zlib.crc32(f"{name} {block} {SEED}".encode())


def blocks(share):
    """Returns `(block, cases)` for a share of all cases."""
    count = max(LEAST, round(share * CASES))
    return [(n, min(BLOCK, count - n * BLOCK)) for n in range(-(-count // BLOCK))]


@contextlib.contextmanager
def counted(record_property, cases):
    """Records the cases of a block and its processor time, also of one that fails."""
    begin = time.process_time()
    try:
        yield
    finally:
        record_property("cases", cases())
        record_property("seconds", time.process_time() - begin)


def fuzz(share, **strategies):
    """Runs a test on its share of the cases.

    Args:
        share: of all cases.
        **strategies: the arguments of the test.
    """

    def decorate(test):
        @pytest.mark.backends("tensorflow", "jax")
        @pytest.mark.parametrize("block,count", blocks(share))
        def run(block, count, record_property):
            ran = 0

            @hypothesis.seed(seed_of(test.__name__, block))
            @settings(SETTINGS, max_examples=count)
            @hypothesis.given(**strategies)
            def cases(**arguments):
                nonlocal ran
                ran += 1
                test(**arguments)

            with counted(record_property, lambda: ran):
                cases()

        run.__name__, run.__module__ = test.__name__, test.__module__
        return run

    return decorate
