"""Seeds derived from names."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_for(*parts: object) -> int:
    """Return a 63-bit seed derived from the parts, such as (episode, agent, turn).

    It is the same in every process; `hash()` of a text is not.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int(np.frombuffer(digest, dtype=np.uint64)[0] >> np.uint64(1))
