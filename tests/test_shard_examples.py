"""The examples of recipes/shardtensor, the cookbook on several ranks, the generated page of operations."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RANKS = (1, 2, 4)
STEPS = 2


@pytest.mark.parametrize("example", ["vit", "atlas_block"])
def test_any_number_of_ranks_has_the_same_losses(example: str) -> None:
    done = subprocess.run(
        [sys.executable, __file__, example],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(n) for n in re.findall(r"loss ([\d.]+)", done.stdout)]
    sent = [float(n) for n in re.findall(r"sent ([\d.]+) kB", done.stdout)]
    assert len(losses) == len(sent) == len(RANKS) * STEPS
    alone = losses[:STEPS]
    assert alone[-1] < alone[0]
    assert not any(sent[:STEPS])
    assert all(sent[STEPS:])
    assert losses == pytest.approx(alone * len(RANKS), rel=1e-9)


def test_cookbook_runs_on_many_ranks(tmp_path: Path) -> None:
    """The page test runs its blocks on one rank; that the words say "one rank or many" is shown here."""
    page = (ROOT / "docs/shardtensor-cookbook.md").read_text()
    program = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    program, found = re.subn(
        r"dist\.init_process_group\(\n.*?\n\)", 'dist.init_process_group("gloo")', program, flags=re.DOTALL
    )
    assert found == 1
    (tmp_path / "cookbook.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "cookbook.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_page_of_operations_is_current() -> None:
    """To renew it: python docs/shard_operations.py > docs/shardtensor-operations.md."""
    printed = subprocess.run(
        [sys.executable, "docs/shard_operations.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed == (ROOT / "docs/shardtensor-operations.md").read_text()


def launch(example: str, ranks: int) -> bool:
    """Runs an example as torchrun would, on processes that need not import torch anew."""
    main = importlib.import_module(f"recipes.shardtensor.{example}").main
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]

    def run(rank: int) -> None:
        place = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        sys.argv = [example, "--double", "--steps", str(STEPS)]
        main()

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return all(process.exitcode == 0 for process in processes)


if __name__ == "__main__":
    sys.exit(not all(launch(sys.argv[1], ranks) for ranks in RANKS))
