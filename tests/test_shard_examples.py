"""The examples of recipes/shardtensor, and the generated page of operations."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def losses(example: str, ranks: int) -> list[float]:
    """Runs two steps of an example in float64, as its docstring says or as one process without torchrun."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] * (ranks > 1)
    done = subprocess.run(
        [sys.executable, *start, "-m", f"recipes.shardtensor.{example}", "--double", "--steps", "2"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sent = [float(n) for n in re.findall(r"sent ([\d.]+) kB", done.stdout)]
    assert all((n > 0) == (ranks > 1) for n in sent)
    return [float(n) for n in re.findall(r"loss ([\d.]+)", done.stdout)]


@pytest.mark.parametrize("example", ["vit", "atlas_block"])
def test_any_number_of_ranks_has_the_same_losses(example: str) -> None:
    alone = losses(example, 1)
    assert len(alone) == 2
    assert alone[1] < alone[0]
    for ranks in (2, 4):
        assert losses(example, ranks) == pytest.approx(alone, rel=1e-9)


def test_page_of_operations_is_current() -> None:
    """What docs/shard_operations.py prints; to renew it: python docs/shard_operations.py > the page."""
    printed = subprocess.run(
        [sys.executable, "docs/shard_operations.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed == (ROOT / "docs/shardtensor-operations.md").read_text()
