"""JSON form of the configuration dataclasses."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, ClassVar, Protocol, Self, TypeVar


class _IsDataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T")


class JsonConfig:
    """Mixin of a frozen dataclass whose fields are numbers, strings, booleans and tuples of them."""

    def to_dict(self: _IsDataclass) -> dict[str, Any]:
        """Returns JSON data that `from_dict` turns back into an equal object."""
        return {name: _as_lists(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Builds the configuration from `to_dict` output.

        Raises:
            ValueError: an unknown key, or a value that the class refuses.
        """
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(
                f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        return cls(**{name: _as_tuples(value) for name, value in data.items()})


def check_positive(owner: object, *names: str) -> None:
    """Raises ValueError unless each named field (an int, or a tuple of ints) is positive."""
    for name in names:
        value = getattr(owner, name)
        if min(value if isinstance(value, tuple) else (value,)) < 1:
            raise ValueError(f"{type(owner).__name__}.{name} must be positive, got {value}")


def check_choice(owner: object, name: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless the named field is one of `choices`."""
    value = getattr(owner, name)
    if value not in choices:
        raise ValueError(f"{type(owner).__name__}.{name} must be one of {choices}, got {value!r}")


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value
