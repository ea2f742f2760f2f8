"""Prints docs/shardtensor-operations.md, from the registry and from the samples that test it.

python docs/shard_operations.py > docs/shardtensor-operations.md
"""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import shardtensor as st

TESTS = Path(__file__).parents[1] / "packages/shardtensor/tests"
RANKS = 4
HEAD = f"""\
# Operations of shardtensor

<!-- Made by docs/shard_operations.py: do not edit. -->

What `shardtensor.operations()` lists: every torch function, method and functional that sharded tensors know.
*Collectives* are those of one call on {RANKS} ranks, as the tests assert them, from the tested layout that
needs fewest to that which needs most: 0 where the sharded dimension does not take part. The backward pass
includes the sums of the gradients of plain tensors. *Layouts* is the least number of layouts on which an
operation of the row is compared with one process: 1, 2, 3 and 4 ranks and a mesh of 2 x 2, with even and with
random uneven sizes, empty shards among them. A dash: the operation is refused, or tested in another way.
"""


def samples() -> dict[str, list[Any]]:
    """Returns the samples of the package's tests by the name of their operation."""
    sys.path.insert(0, str(TESTS))
    found = defaultdict(list)
    for file in sorted(TESTS.glob("shard_samples_*.py")):
        for sample in importlib.import_module(file.stem).SAMPLES:
            found[sample.op].append(sample)
    sys.path.remove(str(TESTS))
    return found


def counts(limits: Iterable[int | Callable[[int], int]]) -> str:
    """Returns numbers of collectives as "0" or "0-2"; a dash for none."""
    known = {limit(RANKS) if callable(limit) else limit for limit in limits}
    if not known:
        return "–"
    return f"{min(known)}" if len(known) == 1 else f"{min(known)}–{max(known)}"


def layouts(sample: Any) -> int:
    """Returns on how many layouts a sample is checked: two sizes on every mesh, one on a single rank."""
    return 7 * len(sample.dims) + 2 * len(sample.grid)


def rows(operations: Iterable[st.Operation], known: dict[str, list[Any]]) -> Iterator[str]:
    """Yields the lines of a table; operations that differ in their names alone share one."""
    alike: dict[tuple[str, str, str], list[tuple[str, int]]] = defaultdict(list)
    for operation in operations:
        mine = known.get(operation.name.rpartition(".")[2], [])
        key = (counts(s.forward for s in mine), counts(s.backward for s in mine), operation.note)
        alike[key].append((operation.name, sum(map(layouts, mine))))
    yield "| operations | forward | backward | layouts | note |"
    yield "|---|---|---|---|---|"
    for (forward, backward, note), found in sorted(alike.items(), key=lambda item: item[1]):
        names = " ".join(f"`{name}`" for name, _ in found)
        yield f"| {names} | {forward} | {backward} | {min(n for _, n in found) or '–'} | {note} |"


def page() -> str:
    known, parts = samples(), [HEAD]
    for kind, group in groupby(st.operations(), key=lambda operation: operation.kind):
        parts.append("\n".join([f"## {kind.capitalize()}", "", *rows(group, known), ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
