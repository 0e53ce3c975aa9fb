#!/usr/bin/env python3
"""Train while rollout workers, the inference actor and the driver are killed at random, on a misbehaving environment.

The run must end; every problem must be trained once, and every episode be there or counted as failed. The last line is
a JSON object; exit code 1 when something is missing.

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
"""A run that brings no new step for so long hangs. A task that freezes its worker costs about five restarts."""
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
    chaos.go(args.kills, args.every)
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
        own = self.run / "config.resolved.yaml"
        arguments = [str(own), "--resume", str(self.run)] if own.is_file() else self.fresh
        path = os.pathsep.join([str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])
        with (self.run.parent / f"{self.run.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "parl.cli", "train", *arguments],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )

    def go(self, kills: int, every: float) -> None:
        self.run.parent.mkdir(parents=True, exist_ok=True)
        driver = self.start()
        done, heard = 0, time.monotonic()
        strike = time.monotonic() + self.rng.expovariate(1 / every)
        while driver.poll() != 0:
            time.sleep(0.2)
            if lines(self.run) > done:
                done, heard = lines(self.run), time.monotonic()
                print(f"step {done}, kills {dict(self.kills)}", file=sys.stderr)
            if time.monotonic() - heard > SILENCE_S:
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
            elif done and sum(self.kills.values()) < kills and time.monotonic() > strike:
                self.strike(driver)
                strike = time.monotonic() + self.rng.expovariate(1 / every)

    def strike(self, driver: subprocess.Popen[bytes]) -> None:
        """SIGKILL a rollout worker or the inference actor; one time in five the driver with all that it started."""
        family = descendants(driver.pid)
        if self.rng.random() < 0.2:
            self.end(driver)
            self.kills["kills_driver"] += 1
            return
        actors = {"kills_worker": "RolloutWorker", "kills_inference": "InferenceServer"}
        found = [
            (kind, p)
            for p, name in family.items()
            for kind, actor in actors.items()
            if actor in name
        ]
        if found:
            kind, victim = self.rng.choice(found)
            os.kill(victim, signal.SIGKILL)
            self.kills[kind] += 1

    def end(self, driver: subprocess.Popen[bytes]) -> None:
        """Kill the driver. Ray's processes are its children and follow by themselves; those that do not are told of.

        Ray's own agents take a minute to notice; they hold nothing.
        """
        family = {pid: name for pid, name in descendants(driver.pid).items() if "Agent" not in name}
        driver.kill()
        driver.wait()
        until = time.monotonic() + 20
        while time.monotonic() < until and any(map(alive, family)):
            time.sleep(0.2)
        for pid in filter(alive, family):
            print(f"process {pid} outlived its driver by 20 s: {family[pid][:80]}", file=sys.stderr)
            os.kill(pid, signal.SIGKILL)


def account(run: Path, steps: int) -> dict[str, Any]:
    """Whether every problem was trained once, and every episode is stored, the failed ones as failed."""
    from parl.runs.folder import read_episodes

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    failures: Counter[str] = Counter()
    for row in rows:
        failures.update(
            {k: int(v) for k, v in row.items() if k.startswith(("failures/", "rollout/workers_"))}
        )
    seen: Counter[str] = Counter()
    missing = stored = 0
    for row in rows:
        episodes = read_episodes(run / "episodes" / f"step_{row['step']:06d}.jsonl.zst")
        seen.update({e["group"] for e in episodes})
        failed = sum(e["status"] == "failed" for e in episodes)
        stored += len(episodes) - failed
        missing += abs(TASKS * GROUP - len(episodes)) + abs(
            failed - int(row["failures/num_failed"])
        )
    expected = {f"{s}-{k}" for s in range(steps) for k in range(TASKS)}
    whole = [row["step"] for row in rows] == list(range(steps))
    once = set(seen) <= expected and max(seen.values(), default=0) <= 1
    return {
        "accounted": whole and once and missing == 0,
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
    """Processes below one, with their command lines (Linux)."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int(
                    (folder / "stat").read_text().rpartition(")")[2].split()[1]
                )
                names[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    found: dict[int, str] = {}
    for child in parents:
        at = child
        while at in parents and at != pid:
            at = parents[at]
        if at == pid and child != pid:
            found[child] = names.get(child, "")
    return found


if __name__ == "__main__":
    main()
