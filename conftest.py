"""Run the Python blocks of a Markdown file as one test: `pytest README.md docs`."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Page(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        if BLOCK.search(self.path.read_text(encoding="utf-8")):
            yield Blocks.from_parent(self, name="python blocks")


class Blocks(pytest.Item):
    """The blocks of one page, in order and in one namespace, in an empty working directory."""

    def runtest(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        namespace: dict[str, object] = {"__name__": "__main__"}
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for block in BLOCK.finditer(text):
                # Padding keeps the page's own line numbers in a traceback.
                padding = "\n" * text.count("\n", 0, block.start(1))
                exec(compile(padding + block[1], str(self.path), "exec"), namespace)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"python blocks of {self.path.name}"


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Page | None:
    return Page.from_parent(parent, path=file_path) if file_path.suffix == ".md" else None
