#!/usr/bin/env python3
"""The sandbox: what 1,000 runs leave behind, what one costs over a bare interpreter, what share of the cores runs get.

scripts/bench/sandbox.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from common import finish, table

from parl_envs.coding import confine
from parl_envs.coding.sandbox import require, run_python, run_python_async

CODE = "print(sum(range(10)))"
BUSY = "import time\nwhile time.process_time() < {seconds}: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU seconds of each concurrent run")
    args = parser.parse_args()
    require()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        tempfile.tempdir = folder  # of the runs
        run_python(CODE)  # what the first run opens for good
        before = descriptors()
        inside, bare = alternate(args.runs)
        share = asyncio.run(busy(args.concurrent, args.seconds))
        leaked = (processes(folder), len(os.listdir(folder)), descriptors() - before)
        tempfile.tempdir = None
    rows = [
        [n, statistics.median(t), *statistics.quantiles(t, n=20)[::18]] for n, t in (("run", inside), ("bare", bare))
    ]
    table(["", "median ms", "5 %", "95 %"], rows)
    table(["leaked", "processes", "folders", "descriptors"], [[f"of {args.runs + args.concurrent + 1} runs", *leaked]])
    table(["concurrent runs", "share of all cores"], [[args.concurrent, share]])
    median, bare_median = rows[0][1], rows[1][1]
    result = dict(zip(("leaked_processes", "leaked_folders", "leaked_descriptors"), leaked, strict=True))
    times = {"run_ms": median, "bare_ms": bare_median, "overhead_ms": median - bare_median}
    finish({"runs": args.runs, **result, **times, "cores_share": share})


def alternate(num: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each run in the sandbox and of each bare interpreter, in turns: both meet the same machine."""
    inside, bare = [], []
    for _ in range(num):
        began = time.perf_counter()
        assert run_python(CODE).stdout == "45\n"
        between = time.perf_counter()
        subprocess.run(
            [confine.interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", CODE], capture_output=True, check=True
        )
        inside.append(1000 * (between - began))
        bare.append(1000 * (time.perf_counter() - between))
    return inside, bare


async def busy(num: int, seconds: float) -> float:
    """CPU time of concurrent runs that only compute, over wall time times cores."""
    cpu, began = children_cpu(), time.perf_counter()
    runs = (run_python_async(BUSY.format(seconds=seconds), timeout_s=60 * num * seconds) for _ in range(num))
    results = await asyncio.gather(*runs)
    assert all(r.exit_code == 0 for r in results), results
    return (children_cpu() - cpu) / (time.perf_counter() - began) / len(os.sched_getaffinity(0))


def children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def processes(mark: str) -> int:
    """Processes, zombies among them, that are children of this one or have `mark` in their environment."""
    num = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            num += parent == os.getpid() or mark.encode() in (folder / "environ").read_bytes()
        except OSError:
            continue
    return num


if __name__ == "__main__":
    main()
