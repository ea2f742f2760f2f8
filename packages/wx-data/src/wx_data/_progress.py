"""Progress of long work: a bar on a terminal, a plain line every half minute in a log."""

import sys
import time
from types import TracebackType

from tqdm.auto import tqdm

_LINE_SECONDS = 30.0


class Progress:
    """Counts steps; shown on stderr if `enabled`, as a bar where that is a terminal and as lines elsewhere.

    Args:
        what: name of the work, which begins each line.
        total: steps in all.
        done: steps that an earlier run did.
        enabled: show anything at all.
    """

    def __init__(self, what: str, total: int, *, done: int = 0, enabled: bool = True) -> None:
        self._what, self._total, self._done, self._first = what, total, done, done
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, desc=what, unit="step", disable=not (enabled and terminal)
        )
        self._lines = enabled and not terminal
        self._start = self._shown = time.monotonic()

    def update(self, steps: int = 1) -> None:
        """Some more steps are done."""
        self._done += steps
        self._bar.update(steps)
        if self._lines and time.monotonic() - self._shown > _LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        self._shown = time.monotonic()
        speed = (self._done - self._first) / max(self._shown - self._start, 1e-9)
        left = f", {(self._total - self._done) / speed / 60:.0f} min left" if speed else ""
        print(
            f"{self._what}: {self._done} of {self._total} steps, {speed:.2f} a second{left}", file=sys.stderr
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._lines and error is None:
            seconds = time.monotonic() - self._start
            print(
                f"{self._what}: {self._done} of {self._total} steps, done in {seconds:.1f} s", file=sys.stderr
            )
