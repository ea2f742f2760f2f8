"""Resumable work: one checkpoint per part beside the data set, gone when every part is done."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from wx_data.nature._restart import save_arrays
from wx_data.nature._state import State, from_arrays, to_arrays


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where one of ``parts`` processes stands.

    Attributes:
        path: the data set.
        part: this process, 0 to parts - 1.
        parts: number of processes that share the work.
    """

    path: Path
    part: int
    parts: int

    def __post_init__(self) -> None:
        """Refuse a part that does not exist."""
        if not 0 <= self.part < self.parts:
            raise ValueError(f"part must be (i, n) with 0 <= i < n, got ({self.part}, {self.parts})")

    @property
    def folder(self) -> Path:
        """Checkpoints live here until the data set is complete."""
        return self.path.with_name(self.path.name + ".progress")

    def open(self, identity: Mapping[str, Any], create: Callable[[], None]) -> zarr.Group | None:
        """The data set to write to, or None when it is complete already.

        Raises:
            ValueError: ``path`` holds something else, or was begun with another number of parts.
        """
        if not self.path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            create()
        group = self._matching(identity)
        if not self.folder.exists() or self._file("done").exists():
            return None
        others = [p.name for p in self.folder.glob("part-*") if f"-of-{self.parts}." not in p.name]
        if others:
            raise ValueError(
                f"{self.path} was begun with another number of parts ({others[0]}); keep that number"
            )
        return group

    def _matching(self, identity: Mapping[str, Any]) -> zarr.Group:
        try:
            group = zarr.open_group(self.path, mode="r+", zarr_format=3)
            found = json.loads(str(group.attrs["nature"]))
        except (FileNotFoundError, KeyError) as error:
            raise ValueError(f"{self.path} exists and is no nature run; choose another path") from error
        wanted = json.loads(json.dumps(identity))
        different = {key for key in {*found, *wanted} if found.get(key) != wanted.get(key)}
        if different:
            key = sorted(different)[0]
            raise ValueError(
                f"{self.path} holds another nature run: {key} is {_short(found.get(key), wanted.get(key))}; "
                "remove it or choose another path"
            )
        return group

    def load(self) -> tuple[int, State] | None:
        """Index of the next piece of work and the state it starts from."""
        if not self._file("npz").exists():
            return None
        with np.load(self._file("npz")) as arrays:
            content = {name: arrays[name] for name in arrays.files}
        return int(content.pop("next")), from_arrays(content)

    def save(self, following: int, state: State) -> None:
        """Remember that everything before ``following`` is written."""
        save_arrays(self._file("npz"), {"next": np.asarray(following), **to_arrays(state)})

    def finish(self) -> None:
        """This part is written; the last one removes the checkpoints."""
        self._file("done").touch()
        if all(self._file("done", part).exists() for part in range(self.parts)):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, suffix: str, part: int | None = None) -> Path:
        return self.folder / f"part-{self.part if part is None else part}-of-{self.parts}.{suffix}"


def _short(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        return ", ".join(f"{key} = {found.get(key)} there and {wanted.get(key)} here" for key in keys[:3])
    return f"{str(found)[:60]} there and {str(wanted)[:60]} here"
