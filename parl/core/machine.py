"""What the process uses of the machine."""

from __future__ import annotations

import os
import resource
from pathlib import Path


def pin_threads(num: int) -> None:
    """Fix torch's threads, and quiet its friends.

    Two busy processes with unpinned threads run 30 to 100 times slower on one machine.
    """
    os.environ["OMP_NUM_THREADS"] = str(num)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from transformers.utils import logging

    torch.set_num_threads(num)
    logging.set_verbosity_error()  # its notes on missing kernels and its bars for saving would drown our own lines
    logging.disable_progress_bar()


def device() -> str:
    """Where this process has its models: the GPU that it can see (Ray hides those it has not given), else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def rss_now_mb() -> float:
    """Resident memory of the process now, in MB (where the system does not tell: its largest so far)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return rss_mb()
    return pages * resource.getpagesize() / 2**20


def rss_mb() -> float:
    """Largest resident memory of the process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
