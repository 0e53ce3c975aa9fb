"""The base class of every section of the config, and the number types that sections share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from parl.core.errors import did_you_mean

PositiveInt = Annotated[int, Field(gt=0)]
NonNegInt = Annotated[int, Field(ge=0)]
NonNegFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class ConfigModel(BaseModel):
    """Base class of every section: frozen, and strict about unknown keys.

    The text below a field is its documentation; `parl config explain` prints it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values, validated (pydantic's `model_copy` does not validate).

        Raises:
            pydantic.ValidationError: a value is not allowed, or a key is unknown.
        """
        # Not model_dump, which would turn sections into dicts and lose their classes.
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**values, **(self.model_extra or {}), **changes})


def refuse_unknown_keys(section: ConfigModel, shipped: Collection[str]) -> None:
    """Refuse further keys in a section whose `type` is one of ours.

    Where `type` names a plugin's function, further keys are its knobs and are checked with it.

    Raises:
        ValueError: there is such a key.
    """
    extra = section.model_extra or {}
    if not extra or getattr(section, "type") not in shipped:  # noqa: B009
        return
    key = next(iter(extra))
    hint = did_you_mean(key, type(section).model_fields)
    raise ValueError(f"unknown key '{key}'.{hint}")
