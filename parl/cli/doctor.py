"""What this machine can do for PARL: one `Finding` per part, with the fix where something is missing.

In: nothing but the machine. Out: a list that `parl doctor` prints. The heavy libraries are imported here, one by
one, because a library that is installed and cannot be imported is just what a user wants to be told.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from parl.core.errors import ConfigError
from parl.core.finding import Finding
from parl.env import registry as plugins
from parl.rewards import terms

GB = 1e9
INSTALL = "make install   (or: pip install -c constraints.txt -e .)"


def findings() -> list[Finding]:
    """All checks, in the order in which they should be fixed."""
    checks = (
        python,
        packages,
        torch,
        gpu,
        transformers,
        ray,
        cpus,
        memory,
        shared_memory,
        disk,
        installed_plugins,
    )
    return [finding for check in checks if (finding := check()) is not None] + plugin_findings()


def python() -> Finding:
    ok = (3, 11) <= sys.version_info[:2] <= (3, 12)
    value = f"{sys.version.split()[0]} ({sys.executable})"
    return Finding("python", value, ok, "make install PYTHON=python3.12")


def packages() -> Finding:
    """Whether everything that the distribution requires is installed."""
    try:
        required = requires("parl-swarm") or []
    except PackageNotFoundError:
        return Finding("packages", "parl-swarm is not installed (only on the path)", False, INSTALL)
    names = [re.split(r"[^\w.-]", r, maxsplit=1)[0] for r in required if "extra ==" not in r]
    missing = [name for name in names if not _version(name)]
    if missing:
        return Finding("packages", f"missing: {', '.join(missing)}", False, INSTALL)
    return Finding(
        "packages", f"all {len(names)} that parl-swarm {version('parl-swarm')} requires", True
    )


def torch() -> Finding:
    def describe(module: Any) -> str:
        return f"{module.__version__}, {module.get_num_threads()} threads (a run takes `threads` of its config)"

    return _library("torch", describe)


def gpu() -> Finding:
    try:
        import torch
    except Exception:
        return Finding("gpu", "unknown without torch", None)
    if torch.cuda.is_available():
        num = torch.cuda.device_count()
        return Finding("gpu", f"{num} x {torch.cuda.get_device_name(0)}", True)
    fix = "none is needed for the quickstart; larger models want a CUDA build of torch: pytorch.org/get-started"
    return Finding("gpu", "none: everything runs on the CPU", None, fix)


def transformers() -> Finding:
    return _library("transformers", lambda module: str(module.__version__))


def ray() -> Finding:
    return _library("ray", lambda module: str(module.__version__))


def cpus() -> Finding:
    """The CPUs that this process may use: affinity and, in a container, the quota."""
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = _quota()
    value = f"{usable} usable" + (f", quota {quota:g}" if quota else "")
    return Finding(
        "cpus",
        value,
        usable >= 2,
        "PARL runs on one CPU, slowly: give the machine or container two or more",
    )


def memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    return Finding(
        "memory", f"{total:.1f} GB", total >= 4, "4 GB or more, or a smaller train.tokens_per_batch"
    )


def shared_memory() -> Finding | None:
    """Ray keeps its objects in /dev/shm, which containers make small."""
    if not Path("/dev/shm").is_dir():
        return None
    free = shutil.disk_usage("/dev/shm").free / GB
    return Finding(
        "shared memory",
        f"{free:.1f} GB free in /dev/shm",
        free >= 1,
        "docker run --shm-size=2g ...",
    )


def disk() -> Finding:
    free = shutil.disk_usage(".").free / GB
    fix = "free some space, or put runs elsewhere: run_dir=/large/disk/NAME"
    return Finding("disk", f"{free:.1f} GB free in {Path.cwd()}", free >= 5, fix)


def installed_plugins() -> Finding:

    try:
        num_envs = len(plugins.env_ids())
    except ConfigError as error:
        return Finding("plugins", str(error).splitlines()[0], False, str(error).splitlines()[-1])
    return Finding(
        "plugins", f"{num_envs} environments, {len(terms.registered())} reward terms", True
    )


def plugin_findings() -> list[Finding]:
    """What plugins say about this machine: a module named by an entry point may have `doctor() -> list[Finding]`."""
    try:
        modules = plugins.modules()
    except ConfigError:  # the line about plugins says so
        return []
    return [
        finding for module in modules if hasattr(module, "doctor") for finding in module.doctor()
    ]


def _library(name: str, describe: Callable[[Any], str]) -> Finding:
    try:
        return Finding(name, describe(importlib.import_module(name)), True)
    except Exception as error:  # a broken binary raises OSError, a version clash nearly anything
        return Finding(name, f"cannot be imported: {type(error).__name__}: {error}", False, INSTALL)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _quota() -> float | None:
    """CPUs that a Linux container may use (cgroup v2), None without a limit."""
    path = Path("/sys/fs/cgroup/cpu.max")
    if not path.is_file():
        return None
    limit, period = path.read_text().split()
    return None if limit == "max" else int(limit) / int(period)
