"""VisualTools: what an overview hides, tools and their limits, tasks and splits, subagents, documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from parl.config.env import EnvConfig
from parl.core import images
from parl.core.abstention import Question, tally
from parl.core.errors import ConfigError
from parl.core.messages import assistant
from parl.core.types import Task, ToolCall
from parl.testing.check_env import check
from parl_envs.visual import documents, tasks
from parl_envs.visual.digits import CELLS, SPLITS, images_of
from parl_envs.visual.pictures import OPS, words
from parl_envs.visual.questions import DIGITS, MAKERS, SEVERAL
from parl_envs.visual.visual_tools import VisualTools
from tests.support.looking import picture, started


def right(task: Task) -> str:
    """The known answer as an agent would write it."""
    gold = task.data["gold"]
    return gold if isinstance(gold, str) else " ; ".join(words(box) for box in gold)


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"questions": ["list", "max"], "paged": True},
        {"tools": False},
        {"unanswerable": 0.5, "size": 128},
    ],
)
def test_it_keeps_every_promise_of_an_environment(kwargs: dict[str, Any]) -> None:
    found = list(check(EnvConfig(id="parl/VisualTools-v0", kwargs=kwargs)))
    assert [f for f in found if f.status not in ("ok", "slow")] == []


def test_the_same_seed_gives_the_same_images() -> None:
    made = VisualTools(unanswerable=0.3).generate_tasks("test", 30, 3)
    tasks._page_image.cache_clear()
    assert VisualTools(unanswerable=0.3).generate_tasks("test", 30, 3) == made
    assert VisualTools(unanswerable=0.3).generate_tasks("test", 30, 4) != made
    assert all(len(images.find(task.prompt)) == 1 for task in made)


def test_splits_share_no_digit_image_and_no_country() -> None:
    digits = {s: {i for d in range(10) for i in images_of(s, d)} for s in SPLITS}
    assert sum(map(len, digits.values())) == len(set.union(*digits.values())) == 1797
    assert all(len(images_of(s, d)) >= 10 for s in SPLITS for d in range(10))
    names: dict[str, set[str]] = {s: set() for s in SPLITS}
    drawn: dict[str, set[int]] = {s: set() for s in SPLITS}
    for split in SPLITS:
        for task in VisualTools().generate_tasks(split, 150, 0):
            for page in task.data["pages"]:
                drawn[split] |= {box["image"] for box in page.get("boxes", ())}
                names[split] |= {row[0] for row in page.get("rows", page.get("bars", ()))}
        assert drawn[split] <= digits[split]
    assert all(names[a].isdisjoint(names[b]) for a in SPLITS for b in SPLITS if a != b)


@pytest.mark.parametrize("question", MAKERS)
def test_the_known_answer_scores_1_and_nothing_0(question: str) -> None:
    for unanswerable in (0.0, 1.0):
        env = VisualTools(questions=[question], unanswerable=unanswerable)
        for task in env.generate_tasks("validation", 8, 0):
            env.reset(seed=0, options={"task": task})
            assert env.score(right(task))["score"] == env.score(right(task))["success"] == 1.0
            facts = env.facts()
            assert (facts["question"], facts["answerable"], facts["abstained"]) == (
                question,
                not unanswerable,
                bool(unanswerable),
            )
            assert env.score("")["score"] == env.score(" ")["score"] == 0.0
            assert env.score("unknown")["score"] == unanswerable
            assert env.facts()["abstained"]


def test_guessing_the_likeliest_answer_gains_nothing() -> None:
    for question in ("read", "sum", "max"):
        made = VisualTools(questions=[question]).generate_tasks("train", 600, 0)
        counts = np.bincount([int(t.data["gold"]) for t in made], minlength=10)
        assert 35 <= counts.min() <= counts.max() <= 90  # of 60 each


def test_answers_and_abstentions_are_counted_for_calibration() -> None:
    env = started(questions=["read"], unanswerable=1.0)
    env.score("7")
    assert env.facts()["calibration"] == tally([Question(False, "answer")])
    env.score("unknown")
    assert env.facts()["calibration"]["abstained_right"] == 1
    env.score("")
    assert env.facts()["calibration"] == tally([Question(False, "nothing")])
    plain = started(questions=["read"])
    plain.score(plain.task.data["gold"])
    assert "calibration" not in plain.facts()


def test_what_cannot_be_answered_is_a_share_of_the_tasks() -> None:
    made = VisualTools(questions=DIGITS, unanswerable=0.25).generate_tasks("train", 400, 0)
    assert 0.18 < np.mean([not t.data["answerable"] for t in made]) < 0.32
    assert all((t.data["gold"] == "unknown") == (not t.data["answerable"]) for t in made)


def test_questions_about_several_boxes_name_them_in_order() -> None:
    for task in VisualTools(questions=SEVERAL, n=[2, 8]).generate_tasks("train", 30, 0):
        named = task.prompt.split(" : ")[0].split("#")[1:]
        assert named[0].split()[0] == "1"
        assert [n.split()[1] for n in named] == [
            box.colour for _, box in tasks.boxes_in_question(task.data)
        ]


# --- what the overview hides -----------------------------------------------------------------------------------------


def features(split: str, num: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of boxes: what is inside of them in the overview, and enlarged; their digits."""
    env = VisualTools(questions=["read"], size=size)
    small, large, digits = [], [], []
    cell, side = size // CELLS, size // CELLS // 2
    middle = (side - 1) // 2
    for task in env.generate_tasks(split, num, 5):
        env.reset(seed=0, options={"task": task})
        (_, box) = tasks.boxes_in_question(task.data)[0]
        overview = np.asarray(images.from_uri(images.find(task.prompt)[0]), float)
        y, x = (place * cell + cell // 4 + middle for place in (box.row, box.column))
        small.append(overview[y, x, 1:2])
        zoomed = np.asarray(picture(env.zoom(words(box.bbox), "p1")), float)
        inside = slice(size * middle // side, size * (middle + 1) // side)
        large.append(zoomed[inside, inside, 1].ravel())
        digits.append(int(task.data["gold"]))
    return np.array(small), np.array(large), np.array(digits)


def nearest(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The label of the most similar of the known."""
    distance = (known**2).sum(1)[None] - 2 * asked @ known.T
    return labels[distance.argmin(1)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 128])
def test_a_digit_cannot_be_read_in_the_overview_and_can_be_when_it_is_enlarged(size: int) -> None:
    small, large, digits = features("train", 700, size)
    small_test, large_test, truth = features("test", 300, size)
    blind = np.mean(nearest(small, digits, small_test) == truth)
    seeing = np.mean(nearest(large, digits, large_test) == truth)
    assert 0.04 < blind < 0.17  # chance is 0.1
    assert seeing > 0.8


def test_all_digits_are_one_grey_pixel_in_the_overview() -> None:
    greys = set()
    for task in VisualTools(questions=["read"], size=64, unanswerable=0.5).generate_tasks(
        "train", 300, 0
    ):
        overview = np.asarray(images.from_uri(images.find(task.prompt)[0]))
        greys |= {
            tuple(overview[8 * b.row + 3, 8 * b.column + 3])
            for b in tasks.boxes_of(task.data["pages"][0])
        }
    assert len({g for g, *_ in greys}) <= 2  # rounding
    assert max(g for g, *_ in greys) - min(g for g, *_ in greys) <= 1


# --- tools -----------------------------------------------------------------------------------------------------------


def test_zooming_twice_is_as_sharp_as_zooming_once() -> None:
    env = started(questions=["read"], size=64)
    (_, box) = tasks.boxes_in_question(env.task.data)[0]
    x0, y0, x1, y1 = box.bbox
    left, top = min(x0, 50), min(y0, 50)
    env.zoom(f"{left} {top} {left + 50} {top + 50}", "p1")
    answer = env.zoom([2 * (x0 - left), 2 * (y0 - top), 2 * (x1 - left), 2 * (y1 - top)], "v1")
    assert answer.startswith("v2 data:image/png")
    once = env.zoom(f"{x0}, {y0}, {x1}, {y1}", "p1")
    assert np.array_equal(np.asarray(picture(answer)), np.asarray(picture(once)))
    assert env.score("?")["zoom_iou"] == pytest.approx(1.0)
    assert env.score("?")["tool_use"] == 1.0


def test_every_operation_gives_a_small_picture() -> None:
    env = started(size=64)
    values = {"crop": "0 0 50 25", "rotate": "30", "contrast": "300", "resize": "50", "grid": "4"}
    seen = {"p1": env.zoom("0 0 100 100", "p1").split()[1]}
    for number, op in enumerate(OPS, 2):
        name, uri = env.call("image_op", {"op": op, "image": "p1", "value": values[op]}).split()
        assert name == f"v{number}"
        seen[op] = uri
        assert all(side % 16 == 0 and 16 <= side <= 64 for side in images.from_uri(uri).size)
    assert len(set(seen.values())) == len(seen)
    assert picture(env.zoom("25 25 75 75", "v3")).size[0] <= 64  # of a result, too


@pytest.mark.parametrize(
    "name, arguments, told",
    [
        (
            "zoom",
            {"bbox": "10 10 5 20", "image": "p1"},
            "error: bbox is x0 y0 x1 y1 with 0 <= x0 < x1 <= 100",
        ),
        ("zoom", {"bbox": "0 0 101 50", "image": "p1"}, "error: bbox is"),
        ("zoom", {"bbox": "0 0 50", "image": "p1"}, "error: bbox is"),
        ("zoom", {"bbox": "red", "image": "p1"}, "error: bbox is"),
        ("zoom", {"bbox": "1.2.3 0 5 5", "image": "p1"}, "error: bbox is"),
        ("zoom", {"bbox": [0, 0, float("nan"), 5], "image": "p1"}, "error: "),
        ("zoom", {"bbox": [0, 0, 50], "image": "p1"}, "error: bbox is"),
        ("zoom", {"bbox": "0 0 0.01 0.01", "image": "p1"}, "error: there is nothing more to see"),
        ("zoom", {"bbox": "0 0 100 1", "image": "p1"}, "error: the part is a strip"),
        ("zoom", {"bbox": "0 0 50 50", "image": "p2"}, "error: no image p2 ; images : p1 to p1"),
        ("zoom", {"bbox": "0 0 50 50", "image": "v1"}, "error: no image v1"),
        ("zoom", {"bbox": "0 0 50 50", "image": "p0"}, "error: no image p0"),
        ("zoom", {"bbox": "0 0 50 50", "image": "/etc/passwd"}, "error: no image /etc/passwd"),
        ("zoom", {"bbox": "0 0 50 50"}, "error: zoom: image: Field required"),
        (
            "image_op",
            {"op": "blur", "image": "p1", "value": "1"},
            "error: image_op: op: Input should be 'crop'",
        ),
        (
            "image_op",
            {"op": "rotate", "image": "p1", "value": "north"},
            "error: the value of rotate is",
        ),
        (
            "image_op",
            {"op": "resize", "image": "p1", "value": "100000"},
            "error: the value of resize is",
        ),
        (
            "image_op",
            {"op": "grid", "image": "p1", "value": "1000000"},
            "error: the value of grid is",
        ),
    ],
)
def test_a_bad_call_is_answered_with_a_text(
    name: str, arguments: Mapping[str, Any], told: str
) -> None:
    env = started(questions=["read"])
    answer = env.call(name, arguments)
    assert answer.startswith(told)
    assert not images.find(answer)
    assert env.score("7")["tool_use"] == 0.0


def test_an_agent_gets_so_many_images_and_no_more() -> None:
    env = started(max_images=2)
    answers = [env.zoom("0 0 50 50", "p1") for _ in range(4)]
    assert [bool(images.find(a)) for a in answers] == [True, True, False, False]
    assert answers[2] == "error: at most 2 images ; answer"
    assert images.find(
        env.fork("p1").call("zoom", {"bbox": "0 0 50 50", "image": "p1"})
    )  # it has its own count


def test_without_tools_there_are_none() -> None:
    env = started(questions=["read"], tools=False)
    assert env.tool_specs() == ()
    step = env.step(assistant(calls=[ToolCall("zoom", {"bbox": "0 0 50 50", "image": "p1"})]))
    assert step[0][0]["content"] == "error: there are no tools; answer"
    assert env.score(env.task.data["gold"])["score"] == 1.0


@pytest.mark.parametrize(
    "kwargs",
    [
        {"questions": ["reed"]},
        {"questions": []},
        {"questions": ["read"], "paged": True},
        {"boxes": [0, 4]},
        {"boxes": [4, 9]},
        {"n": [3, 2]},
        {"size": 50},
        {"size": 16},
        {"size": 4096},
        {"unanswerable": 1.5},
        {"max_images": 0},
    ],
)
def test_bad_arguments_are_refused_with_what_is_allowed(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"env\.kwargs\.{next(iter(kwargs))}"):
        VisualTools(**kwargs)


# --- many pages, subagents -------------------------------------------------------------------------------------------


def test_several_pages_are_opened_one_by_one() -> None:
    env = started(questions=["list"], paged=True, n=[5, 5])
    assert images.find(env.task.prompt) == ()
    assert env.task.prompt.endswith(": 5 pages")
    for number in range(1, 6):
        assert images.find(env.zoom("0 0 100 100", f"p{number}"))
    assert env.num_parts() == 5
    assert env.score(env.task.data["gold"])["score"] == 1.0


def test_a_subagent_has_pictures_of_its_own_and_is_scored_by_what_its_prompt_names() -> None:
    env = started(questions=["list"], n=[3, 3])
    (_, box), (_, other), _ = tasks.boxes_in_question(env.task.data)
    env.zoom("0 0 50 50", "p1")
    by_place = env.fork("#1 p1 " + words(box.bbox))
    by_colour, nothing = env.fork(f"read {other.colour} , please"), env.fork("#1 p1 99 99 100 100")
    assert by_place.call("zoom", {"bbox": "0 0 9 9", "image": "v1"}).startswith(
        "error: no image v1"
    )
    assert by_place.subtask_score(f"#1 {box.text}") == 1.0
    assert by_place.subtask_score("#1 unknown") == 0.0
    assert by_colour.subtask_score(other.text) == 1.0
    assert nothing.subtask_score("7") is None
    assert not by_place.check_result(box.text)  # it has not looked
    by_place.zoom(words(box.bbox), "p1")
    assert by_place.check_result(box.text)
    assert not by_place.check_result(" ")
    assert len(env.views) == 1
    assert env.score("?")["zoom_iou"] >= 1 / 3  # what a subagent looked at counts


def test_what_a_subagent_states_of_numbered_boxes() -> None:
    env = started(questions=["list"])
    assert env.claims("#1 7 #2 unknown #3 5") == {"#1": "7", "#3": "5"}
    assert env.claims("7 , I think") == env.claims("#1 77") == {}


def test_a_subagent_that_is_sent_to_a_page_is_asked_for_what_is_there() -> None:
    env = started(questions=["list"], paged=True, n=[2, 2])
    (_, first), (_, second) = tasks.boxes_in_question(env.task.data)
    assert env.fork(f"#2 p2 {second.colour}").subtask_score(f"#2 {second.text}") == 1.0
    assert env.fork(f"#1 p1 {first.colour}").subtask_score(first.text) == 1.0


# --- documents -------------------------------------------------------------------------------------------------------


def test_where_a_bar_is_is_where_it_was_drawn() -> None:
    chart = documents.chart(np.random.default_rng(0), "train")
    page = np.asarray(documents.draw_chart(chart)).astype(int)
    blue = (page[..., 2] - page[..., 0]) > 80
    for place in range(len(chart.bars)):
        x0, y0, x1, y1 = chart.bar(place)
        assert blue[y0 : y1 + 1, x0 : x1 + 1].mean() > 0.95
    assert blue.sum() == pytest.approx(
        sum((b[2] - b[0]) * (b[3] - b[1]) for b in map(chart.bar, range(10))), rel=0.1
    )
