"""Coding: tasks and splits, scores that cannot be forged, forks and merges, the expert."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from parl.config import load
from parl.config.env import EnvConfig
from parl.core.errors import ConfigError
from parl.core.messages import assistant
from parl.core.types import Task, ToolCall
from parl.env.base import Demonstration
from parl.policy.base import PolicyHandle
from parl.policy.engines.scripted import CharRenderer, ScriptedEngine
from parl.rollout.swarm import SwarmRunner
from parl.testing.check_env import check
from parl_envs.coding import functions
from parl_envs.coding.coding_env import Coding
from parl_envs.coding.merge import merge
from parl_envs.coding.tasks import load_task
from parl_envs.coding.testing import Case, equal, run_cases
from tests.support.helpers import ROOT, env_section

SPLITS = ("train", "validation", "test")
ADD = "def add(a, b):\n    return a - b\n"
MUL = "def mul(a, b):\n    return a + b\n"


def calc(**more: Any) -> Task:
    row = {
        "id": "t",
        "prompt": "Correct calc.py and mul.py",
        "files": {"calc.py": ADD, "mul.py": MUL},
        "tests": "from calc import add\nassert add(1, 1) == 2",
        "hidden_tests": "from calc import add\nfrom mul import mul\nassert add(2, 3) == 5\nassert add(4, 4) == 8\n"
        "assert mul(2, 3) == 6\nassert mul(5, 5) == 25",
    }
    return load_task({**row, **more})


def started(task: Task | None = None, **kwargs: Any) -> Coding:
    env = Coding(**kwargs)
    env.reset(seed=0, options={"task": task} if task else None)
    return env


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("style", ["python", "words"])
def test_it_keeps_every_promise_of_an_environment(style: str) -> None:
    found = list(check(EnvConfig(id="parl/Coding-v0", kwargs={"style": style, "n": [2, 3]})))
    assert [f for f in found if f.status not in ("ok", "slow")] == []


def test_the_same_seed_gives_the_same_tasks_and_no_function_is_in_two_splits() -> None:
    shapes = {}
    for split in SPLITS:
        env = Coding(style="words")
        tasks = env.generate_tasks(split, 40, 3)
        assert Coding(style="words").generate_tasks(split, 40, 3) == tasks
        assert env.generate_tasks(split, 40, 4) != tasks
        rng = np.random.default_rng(0)
        shapes[split] = {
            functions.draw(rng, "f1", (1, 2, 3), split, 6).right.shape() for _ in range(150)
        }
    assert not shapes["train"] & shapes["test"]
    assert not shapes["train"] & shapes["validation"]
    assert not shapes["validation"] & shapes["test"]


@pytest.mark.parametrize("style", ["python", "words"])
def test_a_solution_scores_1_and_what_is_empty_or_untouched_0(style: Any) -> None:
    task = Coding(style=style, levels=(1, 2, 3), n=(3, 3)).generate_tasks("test", 1, 0)[0]
    env = started(task, style=style)
    assert env.score("done")["score"] == 0.0
    for path, text in task.data["solution"].items():
        env.write_file(path, text)
    assert env.score("done")["score"] == 1.0
    for path, text in task.data["solution"].items():
        env.write_file(path, text + "\n# not the same text: it is run")
    assert env.score("done") == {
        "score": 1.0,
        "tests_passed": 1.0,
        "files_solved": 1.0,
        "success": 1.0,
    }
    assert env.score(" ")["score"] == 0.0  # it went on until a limit
    for path in task.data["solution"]:
        env.write_file(path, "")
    assert env.score("done")["score"] == 0.0


def test_generated_values_are_those_of_python() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        drawn = functions.draw(rng, "f3", (1, 2, 3), "train", 4)
        scope: dict[str, Any] = {}
        exec(drawn.solution, scope)  # a text of ours
        assert [scope["f3"](*args) for args in drawn.inputs] == [
            drawn.right(*args) for args in drawn.inputs
        ]
        assert functions.correct(drawn.source) == drawn.solution
        assert functions.correct(drawn.solution) == drawn.solution
        assert drawn.wrong.statements[drawn.at] in drawn.source
        assert drawn.source != drawn.solution


@pytest.mark.parametrize(
    "kwargs", [{"n": [0, 3]}, {"n": [5, 2]}, {"n": [2, 99]}, {"levels": [4]}, {"style": "word"}]
)
def test_bad_arguments_are_refused_with_what_is_allowed(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"env\.kwargs\."):
        Coding(**kwargs)


# --- scores that cannot be forged ------------------------------------------------------------------------------------

TRICKS = {
    "prints the expected output": 'print(\'[0, {"value": "5"}]\')\nprint(5)\n',
    "prints answers of the runner's form": "import os, json\n"
    "for fd in range(1, 9):\n"
    '    try: os.write(fd, b\'\\n[0, {"value": "5"}]\\n[1, {"value": "8"}]\\n\')\n'
    "    except OSError: pass\n",
    "exits early": "import os\nos._exit(0)\n",
    "exits early by sys": "import sys\nsys.exit(0)\n",
    "raises": "raise SystemExit(0)\n",
    "returns what equals everything": "class Any:\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n"
    "def add(a, b):\n    return Any()\n",
    "returns what calls itself passed": "class Any:\n    def __repr__(s): return 'passed'\n"
    "def add(a, b):\n    return Any()\n",
    "patches repr and json": "import builtins, json\nbuiltins.repr = lambda x: 'True'\njson.dumps = lambda x: "
    "'[0, {\"value\": true}]'\n" + ADD,
    "patches unittest and pytest": "import sys, unittest\nunittest.TestCase.assertEqual = lambda *a: None\n"
    "sys.modules['pytest'] = sys\n" + ADD,
    "makes eval agree": "import builtins\nbuiltins.eval = lambda *a: True\n" + ADD,
    "reads the caller": "import sys\ndef add(a, b):\n    f = sys._getframe()\n    seen = []\n    while f:\n"
    "        seen += [v for v in f.f_globals.values() if isinstance(v, int)]\n        f = f.f_back\n"
    "    return seen[0] if seen else None\n",
    "looks for the tests": "import glob, os\ndef add(a, b):\n    for p in glob.glob('**', recursive=True):\n"
    "        if 'test' in p: return open(p).read()\n",
    "raises in every call": "def add(a, b):\n    raise AssertionError('passed')\n",
    "counts too much": "def add(a, b):\n    return [a - b] * 10**6\n",
}


@pytest.mark.parametrize("trick", TRICKS, ids=str)
def test_a_trick_gains_nothing(trick: str) -> None:
    env = started(calc())
    env.write_file("calc.py", TRICKS[trick])
    assert env.score("all tests pass")["score"] == 0.0


def test_editing_the_tests_or_the_answer_gains_nothing() -> None:
    env = started(calc())
    for path in (
        "tests.py",
        "hidden_tests.py",
        "conftest.py",
        "sitecustomize.py",
        "json.py",
        "unittest.py",
    ):
        assert (
            env.write_file(
                path, "assert True\ndef dumps(x): return 'passed'\ndef loads(x): return '', []"
            )
            == "ok"
        )
    assert env.score("5 8 6 25")["score"] == 0.0
    env.write_file("calc.py", ADD.replace("-", "+"))
    assert env.score("done")["score"] == 0.5
    env.write_file("mul.py", "import os\nos._exit(0)")  # and spoils no other file
    assert env.score("done")["score"] == 0.5


def test_values_are_read_and_never_run() -> None:
    assert equal("(1, [2.0, 'x'])", "(1, [2, 'x'])")
    assert not equal("[1]", "(1,)")
    for text in ("__import__('os')", "-" * 100_000 + "1", "(" * 10_000, "9" * 10_000, "", "5 5"):
        assert not equal(text, "5")


def test_a_file_that_hangs_is_wrong_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parl_envs.coding.testing.TIMEOUT_S", 1.0)
    env = started(calc())
    env.write_file("calc.py", "def add(a, b):\n    while a != 4: a += 0\n    return a + b\n")
    env.write_file("mul.py", "from calc import add\ndef mul(a, b):\n    return sum([a] * b)\n")
    assert env.score("done")["score"] == 0.5
    assert "timed out" in env.run_tests("calc.py")


def test_a_check_runs_without_the_code() -> None:
    case = Case("m.py", "from m import f", "f(2)", "", "abs(got - 1.5) < 0.01")
    good = {"m.py": "def f(x): return 1.501"}
    bad = {"m.py": "import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 9"}
    assert [v.passed for files in (good, bad) for v in run_cases(files, [case])] == [True, False]


# --- tools -----------------------------------------------------------------------------------------------------------


def test_the_tools() -> None:
    env = started(calc())
    assert env.read_file("calc.py") == ADD
    assert env.read_file("calk.py") == "error: no file calk.py ; files : calc.py mul.py"
    assert env.run_tests() == "0 of 1 passed\nadd(1, 1) : expected 2 got 0"
    assert env.run_tests("mul.py") == "no tests"
    assert env.python("from calc import add\nprint(add(9, 2))") == "7"
    assert "ZeroDivisionError" in env.python("1 / 0")
    assert env.write_file("calc.py", ADD.replace("-", "+")) == "ok"
    assert env.run_tests() == "1 of 1 passed"
    for path in ("../x.py", "/etc/passwd", "", "a//../../b", "a b.py"):
        assert env.write_file(path, "x").startswith("error:"), path
    heard, *_ = env.step(
        assistant(calls=[ToolCall("merge", {}), ToolCall("run_tests", {"path": "calc.py"})])
    )
    assert [m["content"] for m in heard] == ["nothing to merge", "1 of 1 passed"]


def test_what_a_program_writes_is_not_kept() -> None:
    env = started(calc())
    env.python("open('calc.py', 'w').write('x')")
    assert env.read_file("calc.py") == ADD


# --- forks and merges ------------------------------------------------------------------------------------------------


def test_changes_of_subagents_come_back_by_merge_only() -> None:
    env = started(calc())
    first, second = env.fork("fix calc.py"), env.fork("fix mul.py")
    first.write_file("calc.py", ADD.replace("-", "+"))
    second.write_file("mul.py", MUL.replace("+", "*"))
    assert second.read_file("calc.py") == ADD
    assert [w.check_result("done") for w in (first, second)] == [True, True]
    assert not first.check_result(" ")
    assert (
        first.subtask_score(""),
        second.subtask_score(""),
        env.fork("look").subtask_score(""),
    ) == (1.0, 1.0, None)
    assert env.score("done")["score"] == 0.0
    assert env.facts() == {"files_changed": [], "conflicts": 0, "unmerged": 3}
    assert env.merge() == "merged calc.py mul.py"
    assert env.score("done")["score"] == 1.0
    assert env.facts() == {"files_changed": ["calc.py", "mul.py"], "conflicts": 0, "unmerged": 0}
    assert env.merge() == "nothing to merge"


def test_a_conflict_is_told_and_nothing_is_lost() -> None:
    env = started(calc())
    for text, prompt in (("return 1", "one"), ("return 2", "two")):
        child = env.fork(prompt)
        assert not child.check_result("done")  # it has changed nothing
        child.write_file("calc.py", ADD.replace("return a - b", text))
    assert (
        env.merge() == "merged calc.py\nconflict : calc.py ; yours is kept , the other is calc.py.2"
    )
    assert "return 1" in env.read_file("calc.py")
    assert "return 2" in env.read_file("calc.py.2")
    assert env.facts()["conflicts"] == 1


@pytest.mark.parametrize(
    "base, ours, theirs, merged",
    [
        ("a\nb\nc\nd\n", "A\nb\nc\nd\n", "a\nb\nc\nD\n", ("A\nb\nc\nD\n", True)),
        ("a\nb\nc\nd\n", "a\nb\nc\nd\ne\n", "0\na\nb\nc\nd\n", ("0\na\nb\nc\nd\ne\n", True)),
        ("a\nb\nc\n", "a\nc\n", "a\nB\nc\n", ("a\nc\n", False)),
        ("a\n", "b\n", "b\n", ("b\n", True)),
        ("a\n", "a\n", "b\n", ("b\n", True)),
        ("a\nb\nc\nd\n", "A\nb\nc\nD\n", "A\nb\nc\nd\n", ("A\nb\nc\nD\n", True)),
        (None, "x\n", "y\n", ("x\n", False)),
        (None, None, "y\n", ("y\n", True)),
        ("a\n", "a\nx\n", "a\ny\n", ("a\nx\n", False)),
    ],
)
def test_merging_lines(
    base: str | None, ours: str | None, theirs: str | None, merged: tuple[str, bool]
) -> None:
    assert merge(base, ours, theirs) == merged


# --- the expert, through the swarm runtime ---------------------------------------------------------------------------


def play(parallel: float, **knobs: Any) -> Any:
    config = load(ROOT / "configs" / "coding_swarm.yaml")
    env = Coding(**env_section(config).kwargs)
    demo = env.demonstrate("episode", np.random.default_rng(5), delegate_prob=parallel, **knobs)
    assert isinstance(demo, Demonstration)
    renderer = CharRenderer()
    handle = PolicyHandle("expert", renderer, ScriptedEngine(demo.script, renderer), False)
    roles = config.roles.model_copy(
        update={
            name: config.roles.of(name).model_copy(
                update={
                    "limits": config.roles.of(name).limits.model_copy(
                        update={"context_tokens": 100_000}
                    ),
                    "sampling": config.roles.of(name).sampling.model_copy(
                        update={"max_tokens": 10_000}
                    ),
                }
            )
            for name in ("orchestrator", "subagent")
        }
    )
    swarm = config.swarm.model_copy(update={"critical_step_budget": None})
    runner = SwarmRunner({"orchestrator": handle, "subagent": handle}, roles, swarm, config.clock)
    return asyncio.run(runner.run(demo.env, demo.task, episode_id="e", group="g", step=0, seed="s"))


def test_the_expert_repairs_everything_alone_and_in_a_swarm() -> None:
    alone, swarm = play(0.0), play(1.0)
    n = alone.facts["num_parts"]
    assert (alone.outcome["score"], swarm.outcome["score"]) == (1.0, 1.0)
    assert (alone.critical_steps, swarm.critical_steps) == (2 * n + 1, 6)
    assert [t.score for t in swarm.subagents] == [1.0] * n
    assert all(t.accepted for t in swarm.subagents)
    assert play(1.0, give_up_prob=1.0).outcome["score"] == 0.0


def test_every_word_of_an_episode_is_in_the_vocabulary() -> None:
    env = Coding(style="words", levels=(1, 2, 3))
    words = set(env.vocabulary())
    rng = np.random.default_rng(0)
    for _ in range(30):
        task = env.generate_tasks("train", 1, int(rng.integers(1000)))[0]
        for text in (task.prompt, *task.data["files"].values(), *task.data["solution"].values()):
            assert set(text.split()) <= words
    with pytest.raises(ConfigError, match="style: words"):
        Coding().vocabulary()


@pytest.mark.parametrize("kind", ["recall", "enumerate", "copy", "locate", "repair"])
def test_practice_texts_train_something_and_need_no_other_words(kind: str) -> None:
    env = Coding(style="words")
    made = env.demonstrate(kind, np.random.default_rng(0))
    assert not isinstance(made, Demonstration)
    assert any(s.train for s in made)
    assert any(not s.train for s in made)
    with pytest.raises(ConfigError, match="Did you mean"):
        env.demonstrate("repare", np.random.default_rng(0))


def test_repair_asks_for_what_changes_and_no_more() -> None:
    made = Coding(style="words").demonstrate("repair", np.random.default_rng(2))
    assert not isinstance(made, Demonstration)
    assert 1 <= sum(s.train for s in made) <= 2  # two where the order was wrong
