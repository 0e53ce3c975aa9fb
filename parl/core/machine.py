"""Threads, devices and memory of this process."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

PINNED_VARIABLES = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")


def pin_threads(num: int) -> None:
    """Fix torch's threads, and quiet its friends.

    Two busy processes with unpinned threads run 30 to 100 times slower on one machine.
    """
    os.environ["OMP_NUM_THREADS"] = str(num)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from transformers.utils import logging

    torch.set_num_threads(num)
    # Its notes on missing kernels and its bars for saving would drown our own lines.
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def restored_settings() -> Iterator[None]:
    """Put back, at the end, what a training changes in its process.

    These are the threads and the logging that `pin_threads` sets, and the global random states,
    which libraries seed. So a notebook goes on as before the training.
    """
    import torch
    from transformers.utils import logging

    variables = {name: os.environ.get(name) for name in PINNED_VARIABLES}
    threads = torch.get_num_threads()
    verbosity = logging.get_verbosity()
    bars_shown = logging.is_progress_bar_enabled()
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state()
    # On a GPU that was not used yet there is no state to put back.
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        torch.set_num_threads(threads)
        logging.set_verbosity(verbosity)
        if bars_shown:
            logging.enable_progress_bar()
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


def device() -> str:
    """Return where this process has its models: the GPU that it can see, else the CPU.

    Ray hides the GPUs that a worker did not ask for.
    """
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def rss_now_mb() -> float:
    """Return the resident memory of the process, in MB.

    Where the system does not tell, it is the largest so far.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return rss_mb()
    return pages * resource.getpagesize() / 2**20


def rss_mb() -> float:
    """Return the largest resident memory of the process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
