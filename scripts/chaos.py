#!/usr/bin/env python3
"""Train on a misbehaving environment while parts of the run are killed at random.

Victims are rollout workers, the inference actor and the driver. The run must end, every problem must be
trained once, and every episode must be stored or counted as failed. The last line of the output is a JSON
object; the exit code is 1 when something is missing.

    scripts/chaos.py --kills 50 --steps 60
    scripts/chaos.py --kills 4 --steps 6 --mode async        the short form of CI
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TASKS, GROUP = 4, 4
STALL_S, DEADLINE_S = 10, 8
SILENCE_S = 240
"""Seconds without a new step after which a run hangs. A task that freezes its worker costs five restarts."""
OVERRIDES = [
    "baseline=null",
    "env.id=chaos_env:chaos/WideSearch-v0",
    "env.tasks={train: {num: 400}, validation: {num: 2, seed: 7}, test: {num: 2, seed: 9}}",
    "eval={num_tasks: 2, every: null, split: validation}",
    f"train.tasks_per_step={TASKS}",
    f"train.group_size={GROUP}",
    "train.checkpoint_every=1",
    "rollout={backend: ray, num_workers: 2, max_worker_mb: 900, inference: {main: {instances: 1}}}",
    f"rollout.hang_timeout_s={STALL_S}",
    f"rollout.episode_deadline_s={DEADLINE_S}",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--mode", choices=("sync", "async"), default="async")
    parser.add_argument("--every", type=float, default=6.0, help="mean seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--run", type=Path, default=Path("runs/chaos"), help="folder of the run; deleted first"
    )
    args = parser.parse_args()
    shutil.rmtree(args.run, ignore_errors=True)
    chaos = Chaos(args.run, args.steps, args.mode, random.Random(args.seed))
    chaos.play(args.kills, args.every)
    result = account(args.run, args.steps) | {
        "kills": sum(chaos.kills.values()),
        **chaos.kills,
        "hangs": chaos.hangs,
    }
    print(json.dumps(result))
    sys.exit(0 if result["accounted"] and not chaos.hangs else 1)


class Chaos:
    """Starts the run, kills parts of it, and starts it again until it has ended."""

    def __init__(self, run: Path, steps: int, mode: str, rng: random.Random) -> None:
        self.run, self.rng = run, rng
        self.kills: Counter[str] = Counter(kills_worker=0, kills_inference=0, kills_driver=0)
        self.hangs = 0
        self.fresh = [
            str(ROOT / "configs" / "smoke.yaml"),
            *OVERRIDES,
            f"run_dir={run}",
            f"train.num_steps={steps}",
        ]
        self.fresh.append(f"train.mode={mode}")

    def start(self) -> subprocess.Popen[bytes]:
        resolved = self.run / "config.resolved.yaml"
        arguments = self.fresh
        if resolved.is_file():
            arguments = [str(resolved), "--resume", str(self.run)]
        path = os.pathsep.join([str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])
        with (self.run.parent / f"{self.run.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "parl.cli", "train", *arguments],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )

    def play(self, kills: int, every: float) -> None:
        """Run to the end, with `kills` kills, one in `every` seconds on average."""
        self.run.parent.mkdir(parents=True, exist_ok=True)
        driver = self.start()
        num_steps = 0
        last_step_at = time.monotonic()
        strike = time.monotonic() + self.rng.expovariate(1 / every)
        while driver.poll() != 0:
            time.sleep(0.2)
            if lines(self.run) > num_steps:
                num_steps = lines(self.run)
                last_step_at = time.monotonic()
                print(f"step {num_steps}, kills {dict(self.kills)}", file=sys.stderr)
            if time.monotonic() - last_step_at > SILENCE_S:
                print(f"no step for {SILENCE_S} s: a hang", file=sys.stderr)
                self.hangs += 1
                self.end(driver)
                return
            if driver.poll() is not None:
                if driver.returncode == 0:
                    return
                if driver.returncode != -signal.SIGKILL:
                    print(
                        f"the driver ended with {driver.returncode}; see its log", file=sys.stderr
                    )
                    self.hangs += 1
                    return
                driver = self.start()
            elif num_steps and sum(self.kills.values()) < kills and time.monotonic() > strike:
                self.strike(driver)
                strike = time.monotonic() + self.rng.expovariate(1 / every)

    def strike(self, driver: subprocess.Popen[bytes]) -> None:
        """Kill a rollout worker or the inference actor; one time in five the driver and its children."""
        family = descendants(driver.pid)
        if self.rng.random() < 0.2:
            self.end(driver)
            self.kills["kills_driver"] += 1
            return
        actors = {"kills_worker": "RolloutWorker", "kills_inference": "InferenceServer"}
        victims = []
        for pid, name in family.items():
            for kind, actor in actors.items():
                if actor in name:
                    victims.append((kind, pid))
        if victims:
            kind, victim = self.rng.choice(victims)
            os.kill(victim, signal.SIGKILL)
            self.kills[kind] += 1

    def end(self, driver: subprocess.Popen[bytes]) -> None:
        """Kill the driver. Ray's processes are its children and end by themselves; others are reported."""
        # Ray's agents take a minute to notice; they hold nothing.
        family = {pid: name for pid, name in descendants(driver.pid).items() if "Agent" not in name}
        driver.kill()
        driver.wait()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and any(map(alive, family)):
            time.sleep(0.2)
        for pid in filter(alive, family):
            print(f"process {pid} outlived its driver by 20 s: {family[pid][:80]}", file=sys.stderr)
            os.kill(pid, signal.SIGKILL)


def account(run: Path, steps: int) -> dict[str, Any]:
    """Count what was stored: was every problem trained once, and is every episode there?"""
    from parl.runs.folder import read_episodes

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    failures: Counter[str] = Counter()
    for row in rows:
        for name, value in row.items():
            if name.startswith(("failures/", "rollout/workers_")):
                failures[name] += int(value)
    groups: Counter[str] = Counter()
    missing = 0
    stored = 0
    for row in rows:
        episodes = read_episodes(run / "episodes" / f"step_{row['step']:06d}.jsonl.zst")
        groups.update({episode["group"] for episode in episodes})
        failed = sum(episode["status"] == "failed" for episode in episodes)
        stored += len(episodes) - failed
        missing += abs(TASKS * GROUP - len(episodes))
        missing += abs(failed - int(row["failures/num_failed"]))
    expected = {f"{s}-{k}" for s in range(steps) for k in range(TASKS)}
    all_steps = [row["step"] for row in rows] == list(range(steps))
    once = set(groups) <= expected and max(groups.values(), default=0) <= 1
    return {
        "accounted": all_steps and once and missing == 0,
        "steps": len(rows),
        "episodes": stored,
        "failed": failures.pop("failures/num_failed", 0),
        "failures": {k.partition("/")[2]: n for k, n in sorted(failures.items())},
        "worst_rss_mb": max(row["system/rss_mb"] for row in rows),
    }


def lines(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) if file.is_file() else 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> dict[int, str]:
    """Return the processes that descend from one, with their command lines (Linux)."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        process = int(folder.name)
        try:
            # The name in brackets may hold anything, so fields are counted after it.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[process] = int(fields[1])
            names[process] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            # It has just ended.
            continue
    family: dict[int, str] = {}
    for child in parents:
        ancestor = child
        while ancestor in parents and ancestor != pid:
            ancestor = parents[ancestor]
        if ancestor == pid and child != pid:
            family[child] = names.get(child, "")
    return family


if __name__ == "__main__":
    main()
