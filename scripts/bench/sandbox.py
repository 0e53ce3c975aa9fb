#!/usr/bin/env python3
"""The sandbox: what 1,000 runs leave behind, what one costs over a bare interpreter, what share of the cores runs get.

A run is started by a small process of its own (the host). What it would cost without one is shown too, from this
process when it holds as much memory as one that trains.

scripts/bench/sandbox.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil
from common import finish, table

from parl_envs.coding import confine
from parl_envs.coding.run import Call, run
from parl_envs.coding.sandbox import require, run_python, run_python_async

CODE = "print(sum(range(10)))"
BUSY = "import time\nwhile time.process_time() < {seconds}: pass"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="CPU seconds of each concurrent run"
    )
    parser.add_argument(
        "--gigabytes", type=float, default=2.0, help="memory that this process holds in the end"
    )
    args = parser.parse_args()
    require()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        tempfile.tempdir = folder  # of the runs
        run_python(CODE)  # what the first run opens for good
        before = descriptors()
        inside, bare = alternate(args.runs)
        share = asyncio.run(busy(args.concurrent, args.seconds))
        time.sleep(1)  # a thread of the host ends just after its result is here
        leaked = (processes(folder), len(os.listdir(folder)), descriptors() - before)
        large = [
            held(args.gigabytes, args.runs // 10, folder, by_host=by_host)
            for by_host in (True, False)
        ]
        tempfile.tempdir = None
    times = {
        "run": inside,
        "bare": bare,
        "run, large process": large[0],
        "the same without a host": large[1],
    }
    table(
        ["", "median ms", "5 %", "95 %"],
        [
            [name, statistics.median(t), *statistics.quantiles(t, n=20)[::18]]
            for name, t in times.items()
        ],
    )
    table(
        ["leaked", "processes", "folders", "descriptors"],
        [[f"of {args.runs + args.concurrent + 1} runs", *leaked]],
    )
    table(["concurrent runs", "share of all cores"], [[args.concurrent, share]])
    median, bare_median, hosted, forked = map(statistics.median, times.values())
    leak_names = ("leaked_processes", "leaked_folders", "leaked_descriptors")
    result: dict[str, float] = dict(zip(leak_names, leaked, strict=True))
    result |= {"run_ms": median, "bare_ms": bare_median, "overhead_ms": median - bare_median}
    finish(
        {
            "runs": args.runs,
            **result,
            "large_ms": hosted,
            "large_no_host_ms": forked,
            "cores_share": share,
        }
    )


def alternate(num: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each run in the sandbox and of each bare interpreter, in turns: both meet the same machine."""
    inside, bare = [], []
    for _ in range(num):
        began = time.perf_counter()
        assert run_python(CODE).stdout == "45\n"
        between = time.perf_counter()
        subprocess.run(
            [confine.interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", CODE],
            capture_output=True,
            check=True,
        )
        inside.append(1000 * (between - began))
        bare.append(1000 * (time.perf_counter() - between))
    return inside, bare


async def busy(num: int, seconds: float) -> float:
    """CPU time of concurrent runs that only compute, over wall time times cores."""
    cpu, began = children_cpu(), time.perf_counter()
    runs = (
        run_python_async(BUSY.format(seconds=seconds), timeout_s=60 * num * seconds)
        for _ in range(num)
    )
    results = await asyncio.gather(*runs)
    assert all(r.exit_code == 0 for r in results), results
    return (children_cpu() - cpu) / (time.perf_counter() - began) / len(os.sched_getaffinity(0))


def held(gigabytes: float, num: int, folder: str, *, by_host: bool) -> list[float]:
    """Milliseconds of each run while this process holds memory: a fork copies its page tables."""
    memory = bytearray(int(gigabytes * (1 << 30)))
    memory[::4096] = b"1" * len(range(0, len(memory), 4096))  # every page is there
    call, took = Call(CODE, "", {}, None, 5.0, 256, folder), []
    for _ in range(num):
        began = time.perf_counter()
        result = run_python(CODE) if by_host else run(call, threading.Event())
        assert result.stdout == "45\n"
        took.append(1000 * (time.perf_counter() - began))
    return took


def host() -> psutil.Process:
    """The process that starts the runs."""
    (found,) = (
        child
        for child in psutil.Process().children()
        if "parl_envs.coding.host" in str(child.cmdline())
    )
    return found


def children_cpu() -> float:
    used = host().cpu_times()
    return float(used.children_user + used.children_system)


def descriptors() -> int:
    """Of this process and of the host."""
    return sum(process.num_fds() for process in (psutil.Process(), host()))


def processes(mark: str) -> int:
    """Processes, zombies among them, that are children of the host or have `mark` in their environment."""
    num, parent_pid = 0, host().pid
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            num += parent == parent_pid or mark.encode() in (folder / "environ").read_bytes()
        except OSError:
            continue
    return num


if __name__ == "__main__":
    main()
