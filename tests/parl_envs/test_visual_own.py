"""VisualTools with the user's own images and questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from parl.config import load
from parl.core import images
from parl.core.errors import ConfigError
from parl.core.types import Task
from parl.env.tasks import load_tasks
from parl_envs.visual.visual_tools import VisualTools
from tests.support.helpers import ROOT
from tests.support.looking import picture, started


def own(tmp_path: Path, **more: Any) -> Task:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((200, 100)).save(path)
    row = {"id": "mine", "question": "how bright is it ?", "image": str(path), "answer": "dark"}
    return VisualTools().load_task({**row, **more})


def test_own_images_and_questions(tmp_path: Path) -> None:
    task = own(tmp_path)
    env = started(task, size=64)
    assert picture(task.prompt).size == (64, 32)
    assert picture(env.zoom("0 0 10 10", "p1")).size == (64, 32)
    assert env.score("Dark.")["score"] == 1.0
    assert env.fork("look").subtask_score("dark") is None
    uri = images.to_uri(Image.new("RGB", (20, 20)))
    assert images.find(own(tmp_path, image=uri).prompt)
    assert images.find(
        own(tmp_path, image={"bytes": (tmp_path / "photo.png").read_bytes(), "path": None}).prompt
    )
    assert (
        own(tmp_path, images=[uri, str(tmp_path / "photo.png")]).prompt
        == "how bright is it ? : 2 pages"
    )
    assert started(own(tmp_path, answer="3", score="count")).score("4")["score"] == pytest.approx(
        2 / 3
    )
    boxes = own(tmp_path, answer="[[0, 0, 10, 10], [20, 20, 30, 30]]", score="locate")
    assert started(boxes).score("0 0 10 10")["score"] == pytest.approx(2 / 3)
    assert not own(tmp_path, answer="unknown").data["answerable"]


def test_own_tasks_from_a_file(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    rows = [
        {"id": f"t{i}", "question": "colour ?", "image": str(tmp_path / "a.png"), "answer": "red"}
        for i in (1, 2)
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = load(ROOT / "configs" / "visual_single.yaml", [f"env.tasks.train.path={path}"])
    loaded = load_tasks(config, VisualTools(), "train")
    assert [t.id for t in loaded] == ["t1", "t2"]
    assert all(images.find(t.prompt) for t in loaded)


@pytest.mark.parametrize(
    "more, told",
    [
        ({"image": "no/such.png"}, "cannot be read: No such file"),
        ({"image": None}, "A visual task has id, question, image"),
        ({"answer": None}, "A visual task has id, question, image"),
        ({"image": 7}, "an image is a file or a data URI, not int"),
        ({"score": "guess"}, "score is 'guess'; give one of read, count, locate"),
        ({"score": "count"}, "a count is a number"),
        ({"score": "locate"}, "to locate is to give x0 y0 x1 y1 in percent"),
        ({"score": "locate", "answer": "0 0 500 500"}, "bbox is x0 y0 x1 y1"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        own(tmp_path, **more)
    assert told in str(refused.value)


def test_huge_images_and_other_files_are_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("L", (20_000, 20_000)).save(bomb)  # some hundred kilobytes that unpack to 400 MB
    text = tmp_path / "text.png"
    text.write_text("no image")
    for path, told in ((bomb, "pixels"), (text, "cannot be read")):
        with pytest.raises(ConfigError, match=told):
            own(tmp_path, image=str(path))
