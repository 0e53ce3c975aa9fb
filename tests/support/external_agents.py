"""Agents written with the `openai` client, as somebody who does not know PARL would write them."""

from __future__ import annotations

from typing import Any

import openai


async def calls_tools(task: Any, base_url: str, api_key: str, env: Any) -> str:
    """The usual loop: ask, run the tools that were called, ask again, until there is a text."""
    messages: list[Any] = [
        {"role": "system", "content": "solve"},
        {"role": "user", "content": task.prompt},
    ]
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        while True:
            done = await client.chat.completions.create(
                model="any", messages=messages, tools=env.tools, temperature=0.3, logprobs=True
            )
            said = done.choices[0].message
            messages.append(said)
            if not said.tool_calls:
                return said.content or ""
            for call in said.tool_calls:
                assert call.type == "function"
                text = await env.call(call.function.name, call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": text})


async def chats(task: Any, base_url: str, api_key: str, env: Any) -> str:
    """Speaks three times, whatever it hears: a model that knows nothing never calls a tool by itself."""
    messages: list[Any] = [{"role": "user", "content": task.prompt}]
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        for _ in range(3):
            done = await client.chat.completions.create(
                model="any", messages=messages, tools=env.tools
            )
            messages += [done.choices[0].message, {"role": "user", "content": "sum :"}]
    return str(messages[-2].content)


async def answers_at_limits(task: Any, base_url: str, api_key: str, env: Any) -> str:
    """Gives what it has when a limit ends it."""
    try:
        return await calls_tools(task, base_url, api_key, env)
    except openai.BadRequestError as error:
        return f"{error.code}"


async def rewrites(task: Any, base_url: str, api_key: str, env: Any) -> str:
    """Summarises its own words, and swallows the error."""
    messages: list[Any] = [{"role": "user", "content": task.prompt}]
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        await client.chat.completions.create(model="any", messages=messages)
        messages += [
            {"role": "assistant", "content": "a summary"},
            {"role": "user", "content": "go on"},
        ]
        try:
            await client.chat.completions.create(model="any", messages=messages)
        except openai.BadRequestError:
            return "blue"
    return "not reached"


async def swallows(task: Any, base_url: str, api_key: str, env: Any) -> str:
    """Goes on when a tool has raised."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        await client.chat.completions.create(
            model="any", messages=[{"role": "user", "content": task.prompt}]
        )
    try:
        await env.call("peek", {"at": "x"})
    except Exception:
        return "blue"
    return "not reached"


async def raises(task: Any, base_url: str, api_key: str, env: Any) -> str:
    raise KeyError("a bug of its own")


async def silent(task: Any, base_url: str, api_key: str, env: Any) -> str:
    return "blue"


async def knocks_next_door(task: Any, base_url: str, api_key: str, env: Any) -> str:
    """Uses its key for another agent."""
    other = base_url.replace("/0/v1", "/1/v1")
    async with openai.AsyncOpenAI(base_url=other, api_key=api_key) as client:
        await client.models.list()
    return "not reached"


async def never_ends(task: Any, base_url: str, api_key: str, env: Any) -> str:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        await client.chat.completions.create(
            model="any", messages=[{"role": "user", "content": task.prompt}]
        )
    import asyncio

    await asyncio.sleep(3600)
    return "not reached"


def no_coroutine(task: Any, base_url: str, api_key: str, env: Any) -> str:
    return "blue"


async def tells_what_it_got(task: Any, base_url: str, api_key: str, env: Any) -> str:
    """Asks once, and answers with what it knows of its task."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        await client.chat.completions.create(
            model="any", messages=[{"role": "user", "content": task.prompt}]
        )
    return f"{task.id} {task.prompt} {dict(task.data)}"
