"""The columns of a run's metrics that alarms read, to six digits: python record.py RUN OUT.jsonl.gz"""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path

COLUMNS = re.compile(
    r"step|outcome/score|reward/.*|swarm/(spawn_rate|num_(assigned|refused|duplicates|subagents)|finish_rate"
    r"|critical_steps)|tokens/subagent|swarm/tokens_per_episode|rollout/(tokens_finished|staleness_m.*)"
    r"|policy/.*/(loss|entropy|logp_mismatch_mean|weight_version)"
)


def main(run: Path, out: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: float(f"{v:.6g}") for k, v in row.items() if COLUMNS.fullmatch(k)} for row in rows]
    out.write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in kept).encode(), mtime=0)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
