"""A progress bar for files that are sent or received.

Any function of (bytes done, bytes in all) will do as `progress` of `push_file` and `fetch_file`;
this one draws a bar on a terminal.
"""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class ProgressBar:
    """A context manager whose value is a `progress` function.

    `console` is where it is drawn, standard error by default; where that is no terminal, only the
    final state is printed.
    """

    def __init__(self, description: str, *, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        # Braces and brackets of a file name are no markup.
        self._task = self._progress.add_task(description.replace("[", r"\["), total=None)

    def __call__(self, done: int, total: int) -> None:
        """Draw that `done` of `total` bytes are there."""
        self._progress.update(self._task, completed=done, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
