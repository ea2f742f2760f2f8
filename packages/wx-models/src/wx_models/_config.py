"""JSON form and checks of the configuration dataclasses."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, ClassVar, Protocol, Self

POSITIONS = ("sincos", "learned")
LONGITUDE = ("periodic", "clamp")
POLES = ("clamp", "cross", "cross_pole_row")


class _IsDataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class JsonConfig:
    """Mixin of a frozen dataclass whose fields are numbers, strings, booleans, such classes and tuples."""

    def to_dict(self: _IsDataclass) -> dict[str, Any]:
        """Returns JSON data that `from_dict` turns back into an equal object."""
        data: dict[str, Any] = _as_lists(asdict(self))
        return data

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


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError unless the heads share the width evenly."""
    if width % heads:
        raise ValueError(f"heads {heads} must divide width {width}")


def check_window(kernel: tuple[int, int], tokens: tuple[int, int]) -> None:
    """Raises ValueError unless the attention window is odd and fits into the grid of tokens."""
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(f"kernel sizes must be odd, got {kernel}")
    if kernel[0] > tokens[0] or kernel[1] > tokens[1]:
        raise ValueError(f"kernel {kernel} is larger than the grid of {tokens} tokens")


def check_poles(poles: str, *columns: int) -> None:
    """Raises ValueError when meridians have to continue on the other side of the globe and none is there."""
    if poles != "clamp" and any(count % 2 for count in columns):
        raise ValueError(
            f'poles="{poles}" needs an even number of columns of points and of tokens, got {columns}'
        )


def _as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_lists(item) for name, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value
