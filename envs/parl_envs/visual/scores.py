"""What an answer is worth: pure functions of two texts, or of boxes. All scores are 0..1.

An answer in words may end in `answer: ...`; then only that part counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

UNKNOWN = "unknown"
"""The right answer to a question that cannot be answered."""

# Bounds on what one score may cost: agents in training write answers of any length.
MAX_ANSWER_CHARS = 4_000
MAX_BOXES = 100


def final(answer: str) -> str:
    """Return the answer itself, in small letters and with single blanks.

    The numbers of a list (`#1`) and a full stop are removed.

    Example: "It is this. Answer: #1 Seven #2 two." -> "seven two"
    """
    # The last one counts: an agent may think about `answer:` before it gives one.
    text = answer.casefold().rpartition("answer:")[2]
    words = [word for word in text.split() if not re.fullmatch(r"#\d+", word)]
    return " ".join(words).removesuffix(".").strip()


def abstains(answer: str) -> bool:
    """Whether the answer is that nothing can be told."""
    return final(answer) == UNKNOWN


def exact(answer: str, gold: str) -> float:
    """1 if both are equal, else 0."""
    return float(final(answer) == final(gold))


def count(answer: str, gold: str) -> float:
    """1 - relative error, at least 0. An answer that is no number scores 0."""
    text = final(answer)
    gold_number = float(gold)
    # `float` would also take `nan`, `inf` and `1e9`, which are no counts.
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return 0.0
    # Over at least 1, so that a gold count of 0 does not divide by zero.
    return max(0.0, 1 - abs(float(text) - gold_number) / max(gold_number, 1.0))


def transcribe(answer: str, gold: str) -> float:
    """1 - normalised edit distance, over characters."""
    return edit_score(final(answer), final(gold))


def listing(answer: str, gold: str) -> float:
    """1 - normalised edit distance, over words."""
    return edit_score(final(answer).split(), final(gold).split())


def locate(answer: str, gold: Sequence[Sequence[float]]) -> float:
    """F1 of the answer's boxes, each counted as its IoU with the gold box that it is matched with.

    Of one box on both sides this is its IoU.
    """
    # `pictures` imports pillow's helpers; scores of texts do without.
    from parl_envs.visual.pictures import read_bboxes

    text = final(answer)
    if len(text) > MAX_ANSWER_CHARS:
        return 0.0
    return soft_f1(read_bboxes(text), gold)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes (left, top, right, bottom)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0.0, width) * max(0.0, height)
    union = _area(a) + _area(b) - intersection
    return intersection / union if union > 0 else 0.0


def soft_f1(predicted: Sequence[Sequence[float]], gold: Sequence[Sequence[float]]) -> float:
    """Return twice the IoU of the best matching over the number of boxes on both sides."""
    if not predicted or not gold or len(predicted) > MAX_BOXES:
        return 0.0
    # Slow to import, and only `locate` needs them.
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    overlaps = np.zeros((len(predicted), len(gold)))
    for i, box in enumerate(predicted):
        for j, gold_box in enumerate(gold):
            overlaps[i, j] = iou(box, gold_box)
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    return float(2 * overlaps[rows, columns].sum() / (len(predicted) + len(gold)))


def edit_score(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Return 1 - edit distance / length of the longer one; 1 of two empty ones."""
    # Before the table: its cost is the product of both lengths.
    if max(len(a), len(b)) > MAX_ANSWER_CHARS:
        return 0.0
    # One row of Levenshtein's table: row[j] is the distance of a[:i] from b[:j].
    row = list(range(len(b) + 1))
    for i, item in enumerate(a, 1):
        diagonal = row[0]
        row[0] = i
        for j, other in enumerate(b, 1):
            substitution = diagonal + (item != other)
            diagonal = row[j]
            row[j] = min(row[j] + 1, row[j - 1] + 1, substitution)
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
"""The name that a task gives -> the score."""
