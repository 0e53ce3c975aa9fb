"""Guesses of what comes next."""

from __future__ import annotations

import pytest

from parl.policy import drafts
from parl.policy.drafts import Drafts


def test_what_followed_last_is_guessed_and_followed_on() -> None:
    known = Drafts(5)
    known.learn([1, 2, 3, 4, 5, 6, 7, 8], 0)
    assert known.guess([9, 2, 3], 10) == [4, 5, 6, 7, 8]
    assert known.guess([2, 3], 2) == [4, 5]
    assert known.guess([2, 3], 0) == []
    assert known.guess([3], 10) == known.guess([8, 2], 10) == []


def test_a_longer_context_decides_before_a_shorter_one() -> None:
    known = Drafts(1)
    known.learn([1, 2, 3, 4, 50], 0)
    known.learn([9, 9, 3, 4, 60], 0)
    assert known.guess([1, 2, 3, 4], 1) == [50]
    assert known.guess([7, 7, 3, 4], 1) == [60]


def test_tokens_before_the_start_are_context_only() -> None:
    known = Drafts(3)
    known.learn([1, 2, 3, 4], 3)
    assert known.guess([1, 2], 3) == []
    assert known.guess([2, 3], 3) == [4]


def test_it_forgets_rather_than_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "MOST", 10)
    known = Drafts(1)
    known.learn(range(20), 0)
    known.learn([50, 51, 52], 0)
    assert known.guess([1, 2], 1) == []
    assert known.guess([50, 51], 1) == [52]


def test_none_are_made_where_none_are_wanted() -> None:
    known = Drafts(0)
    known.learn([1, 2, 3], 0)
    assert known.guess([1, 2], 4) == []
