"""Many runs, one after the other or in several processes."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import keras

_TASKS = 25  # of a worker process


def run_all(
    jobs: list,
    measure: Callable[[Any], Any],
    workers: int = 1,
    tasks: int | None = _TASKS,
) -> Iterable[tuple[Any, Any]]:
    """Yields each job with its result as it ends; shows a progress bar.

    Args:
        jobs: arguments of `measure`, one for each call.
        measure: a module's function, so that another process can import it.
        workers: number of processes; several get one core each.
        tasks: jobs after which a process is replaced, because Keras and TensorFlow
            free little memory. `None` with one worker runs all jobs in this process.
    """
    progress = keras.utils.Progbar(len(jobs), unit_name="training")
    if workers == 1 and tasks is None:
        for number, job in enumerate(jobs):
            yield job, measure(job)
            progress.update(number + 1)
        return
    ended, tasks = 0, tasks or _TASKS
    for first in range(0, len(jobs), workers * tasks):
        with concurrent.futures.ProcessPoolExecutor(
            max_workers=workers,
            mp_context=multiprocessing.get_context("spawn"),  # TensorFlow does not fork
            initializer=_begin_worker,
            initargs=(workers > 1,),
        ) as pool:
            some = jobs[first : first + workers * tasks]
            running = {pool.submit(measure, job): job for job in some}
            try:
                for future in concurrent.futures.as_completed(running):
                    yield running[future], future.result()
                    ended += 1
                    progress.update(ended)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)  # what the worker is in the middle of has no reader any more


def workers(small: bool) -> dict[str, int | None]:
    """Arguments of `run_all`: a process for each core, or this one for small jobs."""
    if small:
        return {"workers": 1, "tasks": None}
    return {"workers": os.cpu_count() or 1}


def _begin_worker(one_thread: bool) -> None:
    """Lets a worker end with its parent, however that ends.

    Args:
        one_thread: whether to limit it to one core; small models are no faster on two.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if not one_thread:
        return
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
