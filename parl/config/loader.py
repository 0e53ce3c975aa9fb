"""From a YAML file to a validated `Config`: extends -> YAML -> dotted overrides -> validate.

In: a path and overrides such as `train.num_steps=5`. Out: a frozen `Config`, or one `ConfigError` that says
what was given, what is allowed and what to type next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from parl.config.renamed import refuse_old_names
from parl.config.schema import Config
from parl.config.shipped import find_config, nearest_config
from parl.core.errors import ConfigError, did_you_mean


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice: YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice; keep one", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, merge and validate a config.

    Args:
        path: a YAML file, or the name of a shipped config. Its `extends` names a base: a file, relative to it, or
            a shipped config.
        overrides: dotted assignments, values parsed as YAML: `loss.tau=0.1`, `reward.terms.finish.weight=0`.
    Raises:
        ConfigError: anything that is wrong with the input.
    """
    raw = load_raw(path)
    for item in overrides:
        override(raw, item)
    return parse(raw, source=str(path))


def load_raw(path: str | Path) -> dict[str, Any]:
    """The merged mapping of a file and its bases, before validation. Relative paths become absolute."""
    return _read(find_config(path), ())


def parse(raw: Mapping[str, Any], source: str = "config") -> Config:
    """Validate a mapping. Raises ConfigError with one line per problem."""
    refuse_old_names(raw, source)
    try:
        return Config.model_validate(_without_nulls(raw))
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in _explain(error, raw)[:8])
        raise ConfigError(f"{source} is not a valid config:\n{lines}") from None


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise ConfigError(
            f"`extends` goes round in a circle: {' -> '.join(p.name for p in (*seen, path))}"
        )
    if not path.is_file():
        raise ConfigError(f"There is no config file {path}.{nearest_config(path)}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path} holds {type(raw).__name__}; a config is a mapping such as `name: my-run`."
        )
    _resolve_paths(raw, path.parent)
    raw.pop("schema_version", None)  # a run's config.resolved.yaml is a config as well
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError(
            f"{path}: `extends` names one file, relative to this one (given: {base!r})"
        )
    return merge(_read(find_config(base, path.parent), (*seen, path)), raw)


def _resolve_paths(raw: dict[str, Any], folder: Path) -> None:
    """Paths inside a config are relative to the file that names them, not to the working directory."""
    if isinstance(raw.get("baseline"), str):
        raw["baseline"] = str(find_config(raw["baseline"], folder))
    env = raw.get("env")
    parts = env.get("mix") if isinstance(env, dict) else None
    for part in (env, *parts) if isinstance(parts, list) else (env,):
        _resolve_env(part, folder)


def _resolve_env(env: Any, folder: Path) -> None:
    tasks = env.get("tasks") if isinstance(env, dict) else None
    if isinstance(tasks, dict):
        for split in tasks.values():
            if isinstance(split, dict) and isinstance(split.get("path"), str):
                split["path"] = str(folder / split["path"])
    tools = env.get("tools") if isinstance(env, dict) else None
    sql = tools.get("sql") if isinstance(tools, dict) else None
    if isinstance(sql, dict) and isinstance(sql.get("database"), str):
        sql["database"] = str(folder / sql["database"])
    if isinstance(env, dict) and isinstance(env.get("kwargs"), dict):
        corpus = env["kwargs"].get("corpus")
        if isinstance(corpus, str) and corpus.endswith(".jsonl"):
            env["kwargs"]["corpus"] = str(folder / corpus)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge of mappings; anything else in `over` replaces."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def _without_nulls(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`reward.terms.NAME: null` removes a term that a base file has; so does `cold_start.demonstrator.NAME: null` a knob."""
    out = dict(raw)
    for section, key in (("reward", "terms"), ("cold_start", "demonstrator")):
        node = out.get(section)
        if isinstance(node, Mapping) and isinstance(node.get(key), Mapping):
            out[section] = {**node, key: {k: v for k, v in node[key].items() if v is not None}}
    return out


def override(raw: dict[str, Any], item: str) -> None:
    """Set one value of a merged mapping, such as `train.num_steps=5`.

    Raises:
        ConfigError: it is no assignment, or no mapping is where it leads through.
    """
    path, sep, text = item.partition("=")
    keys = path.split(".")
    if not sep or not all(keys):
        raise ConfigError(
            f"'{item}' is not an override; write key.path=value, such as train.num_steps=5."
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value in '{item}' is not YAML: {error}") from None
    node: Any = raw
    for key in keys[:-1]:
        place = _place(node, key, item)
        child = node[place] if isinstance(node, list) else node.get(key)
        if child is not None and not isinstance(child, dict | list):
            raise ConfigError(
                f"'{item}': {key} is {child!r}, not a mapping, so nothing can be set below it."
            )
        node[place] = list(child) if isinstance(child, list) else dict(child or {})
        node = node[place]
    node[_place(node, keys[-1], item)] = value


def _place(node: Any, key: str, item: str) -> Any:
    """A key of a mapping, or the number of an entry of a list."""
    if not isinstance(node, list):
        return key
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(
            f"'{item}': '{key}' is no entry of a list of {len(node)}; count them from 0."
        )
    return int(key)


# --- errors in the terms of the file ---------------------------------------------------------------------


def _explain(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """One line per problem. Of a union (say, a weight: number or schedule) only the branch that was meant."""
    all_errors = error.errors()
    meant = [e for e in all_errors if not _other_branch(e, raw)]
    return [_line(e, raw) for e in meant or all_errors]


def _other_branch(error: Any, raw: Mapping[str, Any]) -> bool:
    in_union = len(_path(error, raw)) < len(error["loc"])
    wants_container = error["type"] in ("model_type", "tuple_type", "dict_type")
    wants_scalar = error["type"].endswith("_type") and not wants_container
    is_container = isinstance(error["input"], Mapping | Sequence) and not isinstance(
        error["input"], str
    )
    return in_union and (wants_scalar if is_container else wants_container)


def _path(error: Any, raw: Mapping[str, Any]) -> list[str]:
    """Where the error is in the file: pydantic's location without its names of a union's branches."""
    node: Any = raw
    path = []
    for i, part in enumerate(error["loc"]):
        is_absent = error["type"] == "missing" and i == len(error["loc"]) - 1
        known = part in node if isinstance(node, Mapping) else _has_item(node, part)
        if known or is_absent:
            path.append(str(part))
            node = node[part] if known else None
    return path


def _has_item(node: Any, part: Any) -> bool:
    return isinstance(node, list) and isinstance(part, int) and part < len(node)


def _line(error: Any, raw: Mapping[str, Any]) -> str:
    where = _path(error, raw)
    path = ".".join(where) or "(top)"
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key.{did_you_mean(where[-1], _fields(where[:-1], error['loc']))}"
    if error["type"] == "missing":
        return f"{path}: missing. Add it."
    if error["type"] == "model_type":
        return f"{path}: a section with keys below it: {', '.join(_fields(where))} (given: {error['input']!r})"
    message = error["msg"].removeprefix("Value error, ")
    # A check of a whole section says itself what is wrong in it.
    shown = "" if error["type"] == "value_error" else f" (given: {repr(error['input'])[:80]})"
    return f"{path}: {message}{shown}"


def _fields(where: Sequence[str], tags: Sequence[Any] = ()) -> list[str]:
    """Names that are allowed below a path of the tree, for suggestions; in a union, of what `tags` name."""
    node: Any = Config
    for key in where:
        node = _below(node, key)
    models = [
        a for a in (node, *get_args(node)) if isinstance(a, type) and issubclass(a, BaseModel)
    ]
    meant = [
        m
        for m in models
        if "type" in m.model_fields and set(get_args(m.model_fields["type"].annotation)) & {*tags}
    ]
    return [name for model in meant or models for name in model.model_fields]


def _below(annotation: Any, key: str) -> Any:
    """The type of a key (a field, a name of a mapping, an index of a list) below a type; None where there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields[key].annotation if key in annotation.model_fields else None
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    return next(
        (found for a in get_args(annotation) if (found := _below(a, key)) is not None), None
    )
