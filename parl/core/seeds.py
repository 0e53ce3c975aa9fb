"""Seeds derived from names."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_for(*parts: object) -> int:
    """One 63-bit seed from any parts, stable over processes: a random stream per (episode, agent, turn)."""

    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int(np.frombuffer(digest, dtype=np.uint64)[0] >> np.uint64(1))
