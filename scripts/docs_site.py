#!/usr/bin/env python3
"""What `mkdocs build` adds to the pages of docs/: generated references, navigation, links, llms.txt.

mkdocs loads this file as a hook (mkdocs.yml). A page asks for generated text with a line such as
`<!-- generated: configuration -->`, so on GitHub, where nothing is generated, it is still a page.
The navigation is that of docs/index.md: one heading for each folder, one link for each page.

    scripts/docs_site.py configuration      print a generated part
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BRANCH = "blob/main"

LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
MARKER = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
ENTRY = re.compile(r"^- \[([^\]]+)\]\(([^)\s#]+\.md)\)", re.MULTILINE)
GROUP = re.compile(r"^## (.+)$", re.MULTILINE)


# --- navigation


def groups(index: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield (heading, [(title, path from docs/)]) of an index page, in its order."""
    parts = GROUP.split(index.read_text("utf-8"))
    folder = index.parent.relative_to(DOCS)
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        yield heading, [(title, (folder / path).as_posix()) for title, path in ENTRY.findall(text)]


def navigation() -> list[dict[str, Any]]:
    """The site's navigation in mkdocs' form."""
    nav: list[dict[str, Any]] = [{"Home": "index.md"}]
    for heading, pages in groups(DOCS / "index.md"):
        entries: list[dict[str, Any]] = []
        for title, path in pages:
            if path.endswith("/index.md"):
                records = ENTRY.findall((DOCS / path).read_text("utf-8"))
                folder = Path(path).parent
                children = [{name: (folder / file).as_posix()} for name, file in records]
                entries.append({title: [{title: path}, *children]})
            else:
                entries.append({title: path})
        nav.append({heading: entries})
    return nav


def llms_txt(site_url: str) -> str:
    """The pages as llmstxt.org has it: a title, a summary, and a list of links for each group."""
    index = (DOCS / "index.md").read_text("utf-8")
    title, summary = index.split("\n\n")[:2]
    lines = [title, "", f"> {' '.join(summary.split())}"]
    for heading, pages in groups(DOCS / "index.md"):
        lines += ["", f"## {heading}", ""]
        for name, path in pages:
            lines.append(f"- [{name}]({site_url}{_url(path)})")
    return "\n".join(lines) + "\n"


def _url(path: str) -> str:
    """Example: how-to/evaluate.md -> how-to/evaluate/, as mkdocs serves it."""
    return f"{path.removesuffix('index.md').removesuffix('.md')}".rstrip("/") + "/"


# --- the configuration


def configuration() -> str:
    """Every section of the config: keys with type, default and meaning."""
    from parl.config.schema import Config

    return "\n".join(_section(Config, "", 2, set())).strip() + "\n"


def _section(
    model: type[BaseModel], path: str, level: int, shown: set[type[BaseModel]]
) -> Iterator[str]:
    """A heading, the model's own words, a table of its fields, then the sections below it.

    A section that several keys share (the limits of both roles, say) is shown once.
    """
    shown.add(model)
    if path:
        yield f"\n{'#' * min(level, 5)} `{path}`\n"
        if model.__doc__ and model.__doc__ != BaseModel.__doc__:
            yield _one_line(inspect.cleandoc(model.__doc__)) + "\n"
    fields = model.model_fields
    if fields:
        yield "| key | type | default | meaning |"
        yield "|---|---|---|---|"
    for name, field in fields.items():
        cells = (f"`{name}`", _type(field), _default(field), _one_line(field.description or ""))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    for name, field in fields.items():
        for key, child in _models(field.annotation, f"{path}.{name}".strip(".")):
            if child not in shown:
                yield from _section(child, key, level + 1, shown)


def _models(annotation: Any, path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield (path, model) of the models in a type; a mapping's values have the path `x.NAME`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield path, annotation
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        arguments = arguments[:1]
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        arguments, path = arguments[1:], f"{path}.NAME"
    elif origin in (tuple, list):
        path = f"{path}[]"
    elif origin is typing.Literal:
        return
    for argument in arguments:
        yield from _models(argument, path)


def _type(field: FieldInfo) -> str:
    text = _type_name(field.annotation)
    bounds = []
    for rule in field.metadata:
        for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            value = getattr(rule, attribute, None)
            if value is not None:
                bounds.append(f"{sign} {value}")
    return f"{text} ({', '.join(bounds)})" if bounds else text


def _type_name(annotation: Any) -> str:
    """Example: dict[str, int] | None -> map of int, or null."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if annotation in (Any, typing.Any):
        return "any"
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return " / ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        names = dict.fromkeys(_type_name(argument) for argument in arguments)
        return ", or ".join(names)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"map of {_type_name(arguments[1])}"
    if origin in (tuple, list) or (isinstance(origin, type) and "Sequence" in origin.__name__):
        items = dict.fromkeys(_type_name(item) for item in arguments if item is not Ellipsis)
        return f"list of {', '.join(items)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    scalars: dict[Any, str] = {
        str: "text",
        int: "int",
        float: "number",
        bool: "true / false",
        Path: "path",
    }
    return scalars.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if isinstance(value, Mapping) and any(isinstance(v, BaseModel) for v in value.values()):
        return ", ".join(f"`{name}`" for name in value)
    return f"`{json.dumps(value, default=str, ensure_ascii=False)}`"


def _one_line(text: str) -> str:
    return " ".join(text.split())


# --- the commands


def commands() -> str:
    """Every command of `parl`: what it does, its arguments and options."""
    from parl.cli.main import app

    root = typer.main.get_command(app)
    return "\n".join(_command(root, "parl")).strip() + "\n"


def _command(command: Any, name: str) -> Iterator[str]:
    """The sections of a command, or of all commands of a group."""
    children = getattr(command, "commands", None)
    if children is not None:
        for key, child in children.items():
            yield from _command(child, f"{name} {key}")
        return
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    yield f"\n## {name}\n"
    yield _plain(command.help or "") + "\n"
    yield f"```text\n{usage}\n```\n"
    rows = [_parameter(parameter) for parameter in command.params]
    visible = [row for row in rows if row and row[0] != "`--help`"]
    if visible:
        yield "| | default | |"
        yield "|---|---|---|"
        for row in visible:
            yield "| " + " | ".join(row) + " |"


def _parameter(parameter: Any) -> tuple[str, str, str] | None:
    if getattr(parameter, "hidden", False):
        return None
    if parameter.param_type_name == "argument":
        label = parameter.metavar or parameter.name.upper()
    else:
        label = ", ".join([*parameter.opts, *parameter.secondary_opts])
    default = parameter.default
    text = "" if default in (None, False, ()) or callable(default) else f"`{default}`"
    return f"`{label}`", text, _plain(getattr(parameter, "help", None) or "")


def _plain(text: str) -> str:
    """Help text as Markdown: a paragraph that typer leaves as it is (\\b) becomes a code block."""
    paragraphs = []
    for part in text.split("\n\n"):
        lines = part.replace("\b", "").strip("\n").splitlines()
        if "\b" in part:
            code = [line.strip() for line in lines if line.startswith("  ")]
            paragraphs.append("```text\n" + "\n".join(code or lines) + "\n```")
        else:
            paragraphs.append(_one_line(part).replace("|", "\\|"))
    return "\n\n".join(paragraphs)


# --- hooks of mkdocs

PARTS = {"configuration": configuration, "commands": commands}


def on_config(config: Any) -> Any:
    """Take the navigation from docs/index.md."""
    config.nav = navigation()
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Fill in generated parts, and let links that leave docs/ lead to the repository."""
    source = Path(page.file.src_uri)

    def outward(match: re.Match[str]) -> str:
        target = match[0]
        if "://" in target or target.startswith(("#", "mailto:")):
            return target
        path, hash_, anchor = target.partition("#")
        resolved = (DOCS / source.parent / path).resolve()
        if resolved.is_relative_to(DOCS):
            return target
        return f"{config.repo_url}{BRANCH}/{resolved.relative_to(ROOT)}{hash_}{anchor}"

    markdown = LINK.sub(outward, markdown)
    return MARKER.sub(lambda match: PARTS[match[1]](), markdown)


def on_post_build(*, config: Any) -> None:
    """Write llms.txt beside the pages."""
    (Path(config.site_dir) / "llms.txt").write_text(llms_txt(config.site_url), "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PARTS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(PARTS)}")
    print(PARTS[sys.argv[1]](), end="")
