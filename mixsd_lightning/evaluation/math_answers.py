"""Whether two mathematical answers have the same value, decided by math-verify."""

import json
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO

from typing_extensions import Self

from mixsd_lightning.errors import UserError

_CHILD = Path(__file__).with_name("math_answers_child.py")


def math_verify_version() -> str:
    """Version of math-verify.

    Raises:
        UserError: if it is not installed.
    """
    if find_spec("math_verify") is None:
        raise UserError(
            "--retention.suites: answers to mathematics problems are compared by math-verify, which is not installed: "
            "pip install 'mixsd_lightning[eval]', or leave these suites out."
        )
    return version("math-verify")


class MathVerifier:
    r"""Compares answers in a process of its own.

    What a model puts into a box is arbitrary: ``9^{9^{9^9}}`` keeps the computer algebra busy for ever, inside code that no
    signal interrupts. A process can be ended, in any thread and on any system.

    ``with MathVerifier() as verifier: verifier.is_same(r"\frac{1}{2}", "0.5")``

    Attributes:
        num_undecided: Comparisons that failed or took too long.
    """

    num_undecided = 0

    def __init__(self, seconds: float = 10.0) -> None:
        """
        Args:
            seconds: Longest comparison.
        """
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._messages: IO[str]

    def __enter__(self) -> Self:
        self._messages = tempfile.TemporaryFile("w+")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()
        self._messages.close()

    def is_same(self, answer: str, gold: str) -> bool:
        """Whether two answers, as they stand in their boxes, are the same text or have the same value.

        What cannot be decided is not the same, and counted.

        Raises:
            UserError: if math-verify does not start.
        """
        if answer == gold:
            return True
        verdict = self._ask(answer, gold)
        self.num_undecided += verdict is None
        return bool(verdict)

    def _ask(self, answer: str, gold: str) -> bool | None:
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(self._seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps([gold, answer]) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except OSError:  # it ended while it was being asked
            reply = ""
        finally:
            timer.cancel()
        if not reply:
            self._stop()
            return None
        verdict: bool | None = json.loads(reply)
        return verdict

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, text=True
        )
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            process.wait()
            self._messages.seek(0)
            reason = (self._messages.read().splitlines() or ["it ended at once"])[-1]
            raise UserError(f"--retention.suites: math-verify does not start: {reason}. Install it again.")
        return process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(OSError), self._process:  # leaving closes the pipes, one of which may be broken
                pass
            self._process = None
