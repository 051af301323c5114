"""Running Python code that a model has written, without trusting it.

A program runs in a process of its own, with an empty environment, an empty working folder, no standard input, nothing but
the standard library to import, and limits on time, memory, files, processes and output. What keeps it from the rest of the
machine depends on the system (:func:`isolation`):

=====================  ==============================================  ================================================
what a program tries   ``"namespaces"`` (Linux that permits them)      ``"interpreter"`` (other Linux, macOS)
=====================  ==============================================  ================================================
other files            a file tree of its own: system libraries and    the interpreter refuses to open, list or change
                       Python, read-only, and a small memory disk      them
network                no interface but a loopback that is down        the interpreter refuses
host, key rings        the kernel refuses (x86-64, ARM64)              the same
other processes        cannot see them; all it started end with it     the interpreter refuses to start or signal any
many processes         kernel limit                                    kernel limit that counts all the user's processes
filling the disk       kernel limit for all files together             kernel limit for each file
memory                 kernel limit for each process                   the same; macOS does not enforce it
time and output        kernel limit, deadline and cap                  the same
=====================  ==============================================  ================================================

Namespaces also hold against malice, as far as the kernel does; the interpreter's refusals hold against accidents and plain
attempts, not against code that goes around the interpreter. Started by root, both give up root's rights first.
"""

import functools
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mixsd_lightning.errors import UserError

_SUPERVISOR = Path(__file__).with_name("sandbox_child.py")
_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    cpu_seconds: int = 5
    """Processor time of each process. Unlike ``wall_seconds``, it does not depend on what else the machine does."""
    wall_seconds: float = 15.0
    """Time for the program and everything it starts, the start of the sandbox included."""
    memory_mib: int = 1024
    """Address space of each process, the interpreter's included."""
    file_mib: int = 16
    """Size of one file and, with namespaces, of all files together."""
    processes: int = 16
    """Processes and threads at any one time."""
    open_files: int = 64
    """Open files of each process."""
    output_bytes: int = 100_000
    """Standard output and standard error together. A program that prints more is ended."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    passed: bool
    """Whether the program ran to its end. To leave before, with whatever exit status, is not to pass."""
    reason: str
    """``passed``, or why not: ``timeout``, ``cpu time``, ``memory``, ``output limit``, ``exit status 1``,
    ``killed by signal 11``, ``left before its end``, ``supervisor killed`` (by the system)."""
    output: str
    """Standard output and standard error as they came, up to the limit. Bytes that are not UTF-8 are replaced."""


DEFAULT_LIMITS = Limits()


def run_python(code: str, limits: Limits = DEFAULT_LIMITS) -> Outcome:
    """Run a Python program in the sandbox. Several threads may do so at once.

    The proof that the program ran to its end is a random word. It waits in a pipe until just before the program's first
    statement, then lies where no Python name leads to it, and is reported after the last statement. So to exit, to print
    or to write to every open file does not pass. What still does is to cheat inside the program: to hand its own
    assertions an object that equals everything, to make the interpreter skip lines, or to search the memory of its own
    process. Read samples of what passed before trusting a score that looks too good.

    Raises:
        UserError: on Windows, or where the system does not let the sandbox start. This says nothing about the program.
    """
    return _run(code, limits, isolation())


@functools.cache
def isolation() -> str:
    """What holds programs back here: ``"namespaces"`` or, with a warning, ``"interpreter"``. Tried out on first use.

    Raises:
        UserError: where neither works.
    """
    if sys.platform == "win32":
        raise UserError("Code written by the model runs on Linux and macOS only; leave out the suites that run it.")
    try:
        _run("", DEFAULT_LIMITS, "namespaces")
        return "namespaces"
    except UserError as refusal:
        _run("", DEFAULT_LIMITS, "interpreter")
        warnings.warn(
            f"Code written by the model is held back by the Python interpreter only, which malice can get around. {refusal} "
            "On Linux, allow unprivileged user namespaces; in a container, add the capability SYS_ADMIN.",
            stacklevel=2,
        )
        return "interpreter"


def _run(code: str, limits: Limits, mode: str) -> Outcome:
    """:func:`run_python` with one kind of isolation."""
    nonce = secrets.token_hex(32).encode()
    # The report is a file, not a pipe: a program that fills it blocks nobody.
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder, tempfile.TemporaryFile() as report:
        Path(folder, "program.py").write_bytes(code.encode(errors="surrogatepass"))
        settings = {
            "caller": os.getpid(),
            "namespaces": int(mode == "namespaces"),
            "report": report.fileno(),
            "cpu_seconds": limits.cpu_seconds,
            "memory_mib": limits.memory_mib,
            "file_mib": limits.file_mib,
            "processes": limits.processes,
            "open_files": limits.open_files,
        }
        with subprocess.Popen(
            # Isolated, without site-packages, unbuffered so that a program that is killed has still printed.
            [sys.executable, "-I", "-S", "-B", "-u", "-X", "utf8", _SUPERVISOR, *(f"{k}={v}" for k, v in settings.items())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            cwd=folder,
            pass_fds=[report.fileno()],
            start_new_session=True,
        ) as process:
            try:
                output, stopped = _converse(process, nonce, limits)
            finally:
                # The supervisor first ends the program with all it started.
                process.terminate()
                try:
                    process.wait(_GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
        report.seek(0)
        reported = report.read(1 << 16).decode(errors="replace").split("\n")
    text = output[: limits.output_bytes].decode(errors="replace")
    if stopped:
        return Outcome(False, stopped, text)
    if reported[0] != "started":
        raise UserError(f"The sandbox for code written by the model cannot start: {(text.splitlines() or ['?'])[-1]}.")
    if reported == ["started", nonce.decode(), "0", ""]:
        return Outcome(True, "passed", text)
    return Outcome(False, _explain(reported), text)


def _converse(process: subprocess.Popen[bytes], nonce: bytes, limits: Limits) -> tuple[bytes, str]:
    """Hand over the nonce and gather the output until the sandbox ends; returns the output and the limit that was hit."""
    assert process.stdin is not None and process.stdout is not None
    deadline = time.monotonic() + limits.wall_seconds
    output = b""
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(nonce)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(deadline - time.monotonic(), 0)):
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            output += chunk
            if len(output) > limits.output_bytes:
                return output, "output limit"
            if not chunk:
                break
    try:
        process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return output, "timeout"
    return output, ""


def _explain(reported: list[str]) -> str:
    """Why a program did not pass: the last line reported is its exit code, negative for a signal."""
    code = reported[-2]
    if code == "started":
        return "supervisor killed"
    if "memory" in reported:
        return "memory"
    if code == f"-{signal.SIGXCPU}":
        return "cpu time"
    if code.startswith("-"):
        return f"killed by signal {code[1:]}"
    return "left before its end" if code == "0" else f"exit status {code}"
