"""From a YAML file to a validated `Config`: YAML -> extends -> dotted overrides -> validate.

Every mistake in the input is one `ConfigError` that says what was given, what is allowed and what
to type next, in terms of the file.
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
    """A YAML loader that refuses a key given twice; YAML itself would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if key.value in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice; keep one", key.start_mark
                )
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, merge and validate a config.

    Args:
        path: a YAML file, or the name of a shipped config. Its `extends` names a base: a file,
            relative to it, or a shipped config.
        overrides: dotted assignments, values parsed as YAML: `loss.tau=0.1`,
            `reward.terms.finish.weight=0`.
    Raises:
        ConfigError: anything that is wrong with the input.
    """
    raw = load_raw(path)
    for item in overrides:
        override(raw, item)
    return parse(raw, source=str(path))


def load_raw(path: str | Path) -> dict[str, Any]:
    """Return the merged mapping of a file and its bases, before validation.

    Relative paths become absolute.

    Raises:
        ConfigError: a file is missing or is no YAML mapping.
    """
    return _read(find_config(path), ())


def parse(raw: Mapping[str, Any], source: str = "config") -> Config:
    """Validate a mapping.

    Args:
        raw: the merged tree.
        source: what errors call it.

    Raises:
        ConfigError: with one line per problem.
    """
    refuse_old_names(raw, source)
    try:
        return Config.model_validate(_without_nulls(raw))
    except ValidationError as error:
        # One wrong key can cause a problem in each branch of a union; the first eight are enough.
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
    """Make paths absolute, in place.

    They are relative to the file that names them, not to the working directory, so that a config
    can be used from any folder and extended from another one.
    """
    if isinstance(raw.get("baseline"), str):
        raw["baseline"] = str(find_config(raw["baseline"], folder))
    env = raw.get("env")
    if not isinstance(env, dict):
        return
    parts = env.get("mix")
    for part in [env, *parts] if isinstance(parts, list) else [env]:
        if isinstance(part, dict):
            _resolve_env_paths(part, folder)


def _resolve_env_paths(env: dict[str, Any], folder: Path) -> None:
    tasks = env.get("tasks")
    if isinstance(tasks, dict):
        for split in tasks.values():
            _resolve_path(split, "path", folder)
    tools = env.get("tools")
    if isinstance(tools, dict):
        _resolve_path(tools.get("sql"), "database", folder)
    kwargs = env.get("kwargs")
    if isinstance(kwargs, dict):
        # The name of a corpus that ships with an environment has no suffix and is no path.
        corpus = kwargs.get("corpus")
        if isinstance(corpus, str) and corpus.endswith(".jsonl"):
            _resolve_path(kwargs, "corpus", folder)


def _resolve_path(section: Any, key: str, folder: Path) -> None:
    """Make one path absolute, in place; a value that is no text is left to the validation."""
    if isinstance(section, dict) and isinstance(section.get(key), str):
        section[key] = str(folder / section[key])


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`, mapping by mapping; lists are replaced as one.

    Example:
        merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    """
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _without_nulls(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out reward terms and demonstrator knobs that are null.

    So a file removes a term that its base has: `reward.terms.NAME: null`. In other places null is a
    value.
    """
    out = dict(raw)
    for section, key in (("reward", "terms"), ("cold_start", "demonstrator")):
        node = out.get(section)
        if isinstance(node, Mapping) and isinstance(node.get(key), Mapping):
            values = {name: value for name, value in node[key].items() if value is not None}
            out[section] = {**node, key: values}
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
        # A copy: merged mappings share parts with the base they came from.
        node[place] = list(child) if isinstance(child, list) else dict(child or {})
        node = node[place]
    node[_place(node, keys[-1], item)] = value


def _place(node: Any, key: str, item: str) -> Any:
    """Return a key of a mapping, or the index of an entry of a list."""
    if not isinstance(node, list):
        return key
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(
            f"'{item}': '{key}' is no entry of a list of {len(node)}; count them from 0."
        )
    return int(key)


# --- errors in terms of the file -----------------------------------------------------------------


def _explain(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """Return one line per problem; for a union (a weight: number or schedule) of one branch only.

    Pydantic reports the problems of every branch. The branch that was meant is the one of the
    value's
    kind: a mapping was meant as a schedule.
    """
    all_errors = error.errors()
    of_meant_branch = [problem for problem in all_errors if not _other_branch(problem, raw)]
    return [_line(problem, raw) for problem in of_meant_branch or all_errors]


def _other_branch(error: Any, raw: Mapping[str, Any]) -> bool:
    """Return whether an error is about a branch of a union that the value was not meant as."""
    in_union = len(_path(error, raw)) < len(error["loc"])
    wants_container = error["type"] in ("model_type", "tuple_type", "dict_type")
    wants_scalar = error["type"].endswith("_type") and not wants_container
    value = error["input"]
    is_container = isinstance(value, Mapping | Sequence) and not isinstance(value, str)
    return in_union and (wants_scalar if is_container else wants_container)


def _path(error: Any, raw: Mapping[str, Any]) -> list[str]:
    """Return an error's place in the file.

    It is pydantic's location without the names that pydantic has for the branches of a union.
    """
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
        allowed = _fields(where[:-1], error["loc"])
        return f"{path}: unknown key.{did_you_mean(where[-1], allowed)}"
    if error["type"] == "missing":
        return f"{path}: missing. Add it."
    if error["type"] == "model_type":
        keys = ", ".join(_fields(where))
        return f"{path}: a section with keys below it: {keys} (given: {error['input']!r})"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        # A check of ours, whose message names the value already; the input is the entire section.
        return f"{path}: {message}"
    return f"{path}: {message} (given: {repr(error['input'])[:80]})"


def _fields(where: Sequence[str], tags: Sequence[Any] = ()) -> list[str]:
    """Return the keys that are allowed below a path of the tree, for suggestions.

    Args:
        where: the path, a key or index each.
        tags: pydantic's location. In a union whose branches have a `type`, it holds the type of the
            branch that was meant.
    """
    node: Any = Config
    for key in where:
        node = _below(node, key)
    branches: list[type[BaseModel]] = []
    of_meant_type: list[type[BaseModel]] = []
    for branch in (node, *get_args(node)):
        if not (isinstance(branch, type) and issubclass(branch, BaseModel)):
            continue
        branches.append(branch)
        type_field = branch.model_fields.get("type")
        if type_field is not None and set(get_args(type_field.annotation)) & set(tags):
            of_meant_type.append(branch)
    names: list[str] = []
    for branch in of_meant_type or branches:
        names += branch.model_fields
    return names


def _below(annotation: Any, key: str) -> Any:
    """Return the type of a key below a type, or None where there is none.

    Args:
        annotation: a section, a mapping, a list, or a union of these.
        key: a field, a key of the mapping, or an index of the list.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields[key].annotation if key in annotation.model_fields else None
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    for branch in get_args(annotation):
        below = _below(branch, key)
        if below is not None:
            return below
    return None
