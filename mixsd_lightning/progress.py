"""Progress bars for the long work that happens outside of Lightning's own loops."""

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from typing_extensions import Self

from mixsd_lightning.ranks import rank_and_count


class Progress:
    """A rich progress bar with a free text at its end; of several ranks, the first has it.

    ``with Progress("Building targets", 100) as progress: progress.advance(note="12 accepted")``
    """

    def __init__(self, description: str, total: int) -> None:
        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=rank_and_count()[0] > 0,
        )
        self._task = self._bar.add_task(description, total=total, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, num_steps: int = 1, note: str = "") -> None:
        """More steps done."""
        self._bar.update(self._task, advance=num_steps, note=note)
