"""The command that runs the conformance vectors."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._vectors import VectorCase

Arguments = argparse.Namespace

VECTORS_EXAMPLE = """\
examples:
  wx-eval vectors
  wx-eval vectors --kernel numba --json agreement.json

Prints to how many digits every named convention agrees with values that were computed with 50 digits by
another program. The inputs and values are in the file whose path is printed, to test other packages by it.
"""


def fill_vectors(command: argparse.ArgumentParser) -> None:
    """Options of `wx-eval vectors`."""
    command.add_argument("--kernel", choices=("numpy", "numba", "torch"), default="numpy", help="of scores")
    command.add_argument("--json", metavar="PATH", help="write the table there too")


def vectors(arguments: Arguments) -> int:
    """Run the suite; 1 when a case agrees to fewer digits than asked for."""
    import numpy as np

    from ._vectors import suite_file, suite_version
    from ._vectors import vectors as cases

    rows = [_row(case, arguments.kernel) for case in cases()]
    width = max(len(str(row["name"])) for row in rows)
    print(f"{'case':{width}} digits needed")
    for row in rows:
        mark = "" if row["passed"] else " FAILED"
        print(f"{row['name']:{width}} {row['digits']:6.1f} {row['needed']:6g}{mark}")
    failed = [row for row in rows if not row["passed"]]
    worst = min(rows, key=lambda row: row["digits"])
    print(
        f"\n{len(rows) - len(failed)} of {len(rows)} cases passed, worst {worst['digits']:.1f} digits "
        f"({worst['name']}); suite {suite_version()}, kernel {arguments.kernel}, numpy {np.__version__}\n"
        f"{suite_file()}"
    )
    for row in failed:
        print(f"FAILED {row['name']}: {row['digits']:.1f} of {row['needed']:g} digits{row['error']}")
    if arguments.json:
        settings = {"suite": suite_version(), "kernel": arguments.kernel, "numpy": np.__version__}
        Path(arguments.json).write_text(json.dumps({**settings, "cases": rows}, indent=1) + "\n")
    return 1 if failed else 0


def _row(case: VectorCase, kernel: str) -> dict[str, Any]:
    digits, error = 0.0, ""
    try:
        digits = case.agreement(case.compute(kernel))  # type: ignore[arg-type]
    except (ValueError, ArithmeticError, LookupError) as found:
        # One case that cannot be computed must not hide the others.
        error = f", {type(found).__name__}: {found}"
    needed = float(case.digits)
    passed = digits >= needed and not error
    return {"name": case.name, "digits": digits, "needed": needed, "passed": passed, "error": error}
