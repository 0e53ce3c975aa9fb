"""What an answer is worth: pure functions of two texts, or of boxes.

In: an answer and what is right. Out: 0..1. An answer in words may end in `answer: ...`; then only that counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

UNKNOWN = "unknown"
"""The answer to what cannot be told."""
LONGEST_ANSWER = 4_000
"""Characters of an answer that is compared; a longer one is worth 0."""
MOST_BOXES = 100


def final(answer: str) -> str:
    """The answer itself: small letters, single blanks, without the numbers of a list (`#1`) and a full stop."""
    text = answer.casefold().rpartition("answer:")[2]
    words = [word for word in text.split() if not re.fullmatch(r"#\d+", word)]
    return " ".join(words).removesuffix(".").strip()


def abstains(answer: str) -> bool:
    return final(answer) == UNKNOWN


def exact(answer: str, gold: str) -> float:
    """1 or 0."""
    return float(final(answer) == final(gold))


def count(answer: str, gold: str) -> float:
    """1 - relative error, at least 0. An answer that is no number is worth 0."""
    text, right = final(answer), float(gold)
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return 0.0
    return max(0.0, 1 - abs(float(text) - right) / max(right, 1.0))


def transcribe(answer: str, gold: str) -> float:
    """1 - normalised edit distance, over characters."""
    return edit_score(final(answer), final(gold))


def listing(answer: str, gold: str) -> float:
    """1 - normalised edit distance, over words."""
    return edit_score(final(answer).split(), final(gold).split())


def locate(answer: str, gold: Sequence[Sequence[float]]) -> float:
    """F1 of the answer's boxes, each worth its IoU with the box that it is matched with. Of one box: its IoU."""
    from parl_envs.visual.pictures import read_bboxes

    text = final(answer)
    return soft_f1(read_bboxes(text) if len(text) <= LONGEST_ANSWER else [], gold)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    either = _area(a) + _area(b) - both
    return both / either if either > 0 else 0.0


def soft_f1(found: Sequence[Sequence[float]], gold: Sequence[Sequence[float]]) -> float:
    """Twice the IoU of the best matching over the number of boxes on both sides."""
    if not found or not gold or len(found) > MOST_BOXES:
        return 0.0
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    table = np.array([[iou(a, b) for b in gold] for a in found])
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(2 * table[rows, columns].sum() / (len(found) + len(gold)))


def edit_score(a: Sequence[Any], b: Sequence[Any]) -> float:
    """1 - edit distance / length of the longer; 1 of two empty ones."""
    if max(len(a), len(b)) > LONGEST_ANSWER:
        return 0.0
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return 1 - row[-1] / max(len(a), len(b), 1)


def _area(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


SCORES: Mapping[str, Callable[[str, Any], float]] = {
    "read": exact,
    "count": count,
    "locate": locate,
    "transcribe": transcribe,
    "list": listing,
}
"""By the name that a task gives."""
