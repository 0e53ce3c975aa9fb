"""The checks of `parl doctor`: what this machine can do for PARL, and the fix for each gap.

Heavy libraries are imported here, one by one: a library that is installed and cannot be imported (a
clash of versions, a binary for another machine) is exactly what a user wants to be told.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parl.core.errors import ConfigError
from parl.core.extras import missing_modules
from parl.core.finding import Finding
from parl.env import registry
from parl.rewards import terms

GB = 1e9
DISTRIBUTION = "parl-swarm"
INSTALL = "make install   (or: pip install -c constraints.txt -e '.[all]')"
SHOWN_EXTRAS = ("train", "ray", "view", "envs", "wandb")
"""Those of `[all]`."""


def findings() -> list[Finding]:
    """Return the findings of all checks, in the order in which they should be fixed."""
    # A check may find that it does not apply here, and returns None.
    checks: tuple[Callable[[], Finding | None], ...] = (
        python,
        packages,
        extras,
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
    results = []
    for check in checks:
        finding = check()
        if finding is not None:
            results.append(finding)
    return results + plugin_findings()


def python() -> Finding:
    """Check the version of Python."""
    is_supported = (3, 11) <= sys.version_info[:2] <= (3, 12)
    value = f"{sys.version.split()[0]} ({sys.executable})"
    return Finding("python", value, is_supported, "make install PYTHON=python3.12")


def packages() -> Finding:
    """Check that the distribution and everything that its light core requires are installed."""
    try:
        required = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        value = f"{DISTRIBUTION} is not installed (only on the path)"
        return Finding("packages", value, False, INSTALL)
    names = []
    for requirement in required:
        # Of the form "numpy", "torch<2.14,>=2.13; extra == 'train'"; extras have a line.
        if "extra ==" not in requirement:
            names.append(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    missing = [name for name in names if not _version(name)]
    if missing:
        return Finding("packages", f"missing: {', '.join(missing)}", False, INSTALL)
    value = f"all {len(names)} that {DISTRIBUTION} {version(DISTRIBUTION)} requires"
    return Finding("packages", value, True)


def extras() -> Finding:
    """Report which extras are installed whole. None is required: the light core works without."""
    present: list[str] = []
    absent: list[str] = []
    for extra in SHOWN_EXTRAS:
        (absent if missing_modules(extra) else present).append(extra)
    value = ", ".join(present) or "none"
    if not absent:
        return Finding("extras", value, True)
    fix = f"pip install '{DISTRIBUTION}[{','.join(absent)}]', where you need them"
    return Finding("extras", f"{value}; without {', '.join(absent)}", None, fix)


def torch() -> Finding:
    """Check that torch can be imported."""

    def describe(module: Any) -> str:
        num_threads = module.get_num_threads()
        return f"{module.__version__}, {num_threads} threads (a run takes `threads` of its config)"

    return _library("torch", "train", describe)


def gpu() -> Finding:
    """Report the GPUs that torch can use."""
    try:
        import torch
    except Exception:  # absent or broken: the line about torch says so
        return Finding("gpu", "unknown without torch", None)
    if torch.cuda.is_available():
        num = torch.cuda.device_count()
        return Finding("gpu", f"{num} x {torch.cuda.get_device_name(0)}", True)
    fix = (
        "none is needed for the quickstart; larger models want a CUDA build of torch: "
        "pytorch.org/get-started"
    )
    return Finding("gpu", "none: everything runs on the CPU", None, fix)


def transformers() -> Finding:
    """Check that transformers can be imported."""
    return _library("transformers", "train", lambda module: str(module.__version__))


def ray() -> Finding:
    """Check that Ray can be imported."""
    return _library("ray", "ray", lambda module: str(module.__version__))


def cpus() -> Finding:
    """Count the CPUs that this process may use: affinity and, in a container, the quota."""
    # macOS has no affinity.
    if hasattr(os, "sched_getaffinity"):
        num_usable = len(os.sched_getaffinity(0))
    else:
        num_usable = os.cpu_count() or 1
    quota = _quota()
    value = f"{num_usable} usable" + (f", quota {quota:g}" if quota else "")
    fix = "PARL runs on one CPU, slowly: give the machine or container two or more"
    return Finding("cpus", value, num_usable >= 2, fix)


def memory() -> Finding:
    """Check the machine's memory."""
    total_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    fix = "4 GB or more, or a smaller train.tokens_per_batch"
    return Finding("memory", f"{total_gb:.1f} GB", total_gb >= 4, fix)


def shared_memory() -> Finding | None:
    """Check /dev/shm, where Ray keeps its objects and which containers make small.

    Returns:
        None on systems without it.
    """
    if not Path("/dev/shm").is_dir():
        return None
    free_gb = shutil.disk_usage("/dev/shm").free / GB
    value = f"{free_gb:.1f} GB free in /dev/shm"
    return Finding("shared memory", value, free_gb >= 1, "docker run --shm-size=2g ...")


def disk() -> Finding:
    """Check the space for runs below the working directory."""
    free_gb = shutil.disk_usage(".").free / GB
    fix = "free some space, or put runs elsewhere: run_dir=/large/disk/NAME"
    return Finding("disk", f"{free_gb:.1f} GB free in {Path.cwd()}", free_gb >= 5, fix)


def installed_plugins() -> Finding:
    """Check that all plugins can be imported."""
    try:
        num_envs = len(registry.env_ids())
    except ConfigError as error:
        # The first line of the message names the plugin, the last one the fix.
        problem, *_, fix = str(error).splitlines()
        return Finding("plugins", problem, False, fix)
    value = f"{num_envs} environments, {len(terms.registered())} reward terms"
    return Finding("plugins", value, True)


def plugin_findings() -> list[Finding]:
    """Return what plugins say about this machine.

    A module that an entry point names may have a function `doctor() -> list[Finding]`.
    """
    try:
        modules = registry.modules()
    except ConfigError:  # the line about plugins says so
        return []
    # The coding environment reports its sandbox in this way.
    results = []
    for module in modules:
        if hasattr(module, "doctor"):
            results.extend(module.doctor())
    return results


def _library(name: str, extra: str, describe: Callable[[Any], str]) -> Finding:
    """Check a library of an extra. To be absent is no mistake, to be broken is one."""
    if find_spec(name) is None:
        return Finding(name, "not installed", None, f"pip install '{DISTRIBUTION}[{extra}]'")
    try:
        return Finding(name, describe(importlib.import_module(name)), True)
    except Exception as error:  # a broken binary raises OSError, a version clash nearly anything
        value = f"cannot be imported: {type(error).__name__}: {error}"
        return Finding(name, value, False, INSTALL)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _quota() -> float | None:
    """Return the CPUs that a Linux container may use (cgroup v2); None without a limit."""
    path = Path("/sys/fs/cgroup/cpu.max")
    if not path.is_file():
        return None
    # Two numbers in microseconds, such as "200000 100000" for two CPUs.
    limit, period = path.read_text().split()
    return None if limit == "max" else int(limit) / int(period)
