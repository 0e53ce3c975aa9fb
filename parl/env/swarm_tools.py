"""The two tools that the swarm runtime answers itself (Kimi K2.5, section 3 and appendix E.8)."""

from __future__ import annotations

from parl.env.tools import ToolSpec

CREATE, ASSIGN = "create_subagent", "assign_task"
SWARM_TOOLS = (
    ToolSpec(
        name=CREATE,
        description="Create a reusable subagent configuration.",
        parameters={
            "type": "object",
            "properties": {"name": {"type": "string"}, "system_prompt": {"type": "string"}},
            "required": ["name", "system_prompt"],
        },
    ),
    ToolSpec(
        name=ASSIGN,
        description=(
            "Launch a subagent on a task in a context of its own. Returns its last message. "
            "Several assignments in one turn run concurrently."
        ),
        parameters={
            "type": "object",
            "properties": {"agent": {"type": "string"}, "prompt": {"type": "string"}},
            "required": ["agent", "prompt"],
        },
    ),
)
