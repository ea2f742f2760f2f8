"""Checkpoints without pickled code: a safetensors file whose JSON header holds all that is not a tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

Tensors = dict[str, Tensor]


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write atomically: a reader, or a rerun after `kill -9`, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    # Clones: safetensors refuses tensors that share memory.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(plain, partial, metadata={"json": json.dumps(meta)})
    os.replace(partial, path)


def save_json(path: Path, data: Any) -> None:
    """Write atomically, like `save`."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(partial, path)


def load(path: Path, expect: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Read a checkpoint of exactly this configuration.

    Raises:
        ValueError: it was written by another configuration; the first difference is named.
    """
    with safe_open(path, framework="pt") as file:
        meta = json.loads(file.metadata()["json"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    check_same(path, expect, meta["config"])
    return tensors, meta


def check_same(path: Path, expect: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise ValueError, naming every differing field, unless two configurations are equal."""
    expect = json.loads(json.dumps(expect))
    different = [
        f"{name} is {found.get(name)!r} there and {expect.get(name)!r} now"
        for name in sorted({*expect, *found})
        if expect.get(name) != found.get(name)
    ]
    if different:
        raise ValueError(
            f"{path} belongs to another configuration: {'; '.join(different)}. "
            "Use those settings, or another --out folder"
        )


def optimizer_tensors(optimizers: list[Optimizer]) -> Tensors:
    """The state of optimisers as a flat mapping; options such as learning rates follow from the step."""
    return {
        f"{place}.{index}.{name}": torch.as_tensor(value)
        for place, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizers(optimizers: list[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    for place, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            owner, index, name = key.split(".", 2)
            if int(owner) == place:
                state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Add `prefix.` to every name."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors whose names start with `prefix.`, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
