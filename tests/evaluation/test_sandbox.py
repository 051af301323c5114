"""The sandbox: programs that try to escape from it, to outlive it, to use too much or to pass without reaching their end."""

import ctypes
import functools
import itertools
import json
import multiprocessing
import os
import platform
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import pytest

import mixsd_lightning
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation import sandbox
from mixsd_lightning.evaluation.sandbox import Limits, Outcome, run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the sandbox needs Linux or macOS")

Run = Callable[..., Outcome]
# A sandbox that runs as root gives up its rights, and may then not be able to read an interpreter in root's home.
PYTHONS = [sys.executable, "/usr/bin/python3"]
MARKS = itertools.count(1000 * os.getpid())  # tests may run in several processes


@functools.cache
def python_for(mode: str) -> str | UserError:
    """An interpreter with which the sandbox starts, or why there is none."""
    reason = UserError("no interpreter")
    for python in filter(os.path.exists, PYTHONS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", python)
            try:
                sandbox._run("", Limits(), mode)
                return python
            except UserError as error:
                reason = error
    return reason


def skip_what_is_refused(mode: str, error: str, user: int) -> NoReturn:
    if "unshare:" in error and shutil.which("unshare"):
        command = ["unshare", "--mount", "--ipc", "--pid", "--net", *(["--user"] if user else []), "true"]
        allowed = subprocess.run(command, user=user, capture_output=True, check=False).returncode == 0
        assert not allowed, f"another program may make namespaces: {error}"
    pytest.skip(f"no isolation by {mode} for this user here: {error}")


def sandbox_in(mode: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    python = python_for(mode)
    if isinstance(python, UserError):
        skip_what_is_refused(mode, str(python), os.getuid())
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setattr(sandbox, "isolation", lambda: mode)
    return run_python


@pytest.fixture(params=["namespaces", "interpreter"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The sandbox with either isolation."""
    return sandbox_in(request.param, monkeypatch)


@pytest.fixture
def namespaces(monkeypatch: pytest.MonkeyPatch) -> Run:
    return sandbox_in("namespaces", monkeypatch)


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Run:
    return sandbox_in("interpreter", monkeypatch)


@dataclass(frozen=True)
class Anyone:
    """The sandbox of a given user."""

    mode: str
    user: int
    run: Run


AS_OTHER_USER = """
import dataclasses, json, sys
from mixsd_lightning.evaluation import sandbox
code, limits, mode = json.load(sys.stdin)
print(json.dumps(dataclasses.astuple(sandbox._run(code, sandbox.Limits(**limits), mode))))
"""


@pytest.fixture(params=["namespaces", "interpreter", "namespaces, ordinary user", "interpreter, ordinary user"])
def anyone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Anyone]:
    """The sandbox with either isolation, of the user who runs the tests and, if that is root, of an ordinary user."""
    mode, _, other = request.param.partition(", ")
    if not other:
        yield Anyone(mode, os.getuid(), sandbox_in(mode, monkeypatch))
        return
    if os.getuid() != 0 or not Path(PYTHONS[1]).exists():
        pytest.skip("needs root, to become another user, and an interpreter that this user can run")
    user = 65534
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        library = Path(folder, "mixsd_lightning")
        (library / "evaluation").mkdir(parents=True)
        for name in ("errors.py", "evaluation/sandbox.py", "evaluation/sandbox_child.py"):
            shutil.copy(Path(mixsd_lightning.__file__).parent / name, library / name)

        def run(code: str, limits: Limits = sandbox.DEFAULT_LIMITS) -> Outcome:
            done = subprocess.run(
                [PYTHONS[1], "-c", AS_OTHER_USER],
                input=json.dumps([code, asdict(limits), mode]),
                env={},
                cwd=folder,  # where it finds the library
                user=user,
                group=user,
                extra_groups=[],
                capture_output=True,
                text=True,
                check=False,
            )
            if "cannot start" in done.stderr:
                skip_what_is_refused(mode, done.stderr.splitlines()[-1], user)
            assert done.returncode == 0, done.stderr
            return Outcome(*json.loads(done.stdout))

        yield Anyone(mode, user, run)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may read and write: only the sandbox keeps a program from it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "secret").write_text("SECRET")
        (folder / "secret").chmod(0o666)
        yield folder


@pytest.fixture
def mark() -> int:
    """A limit on processor time by which a test knows the processes of its sandbox."""
    return next(MARKS)


def survivors(mark: int) -> list[int]:
    """Process ids of sandboxes with the limit ``cpu_seconds=mark``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"cpu_seconds={mark}" in (process / "cmdline").read_text().split("\0"):
                found.append(int(process.name))
    return sorted(found)


def wait_until(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# What a program can expect


def test_program_that_reaches_its_end_passes(run: Run) -> None:
    code = """
import math, sys
from dataclasses import dataclass
import pickle, threading

@dataclass
class Point:
    x: float

assert __name__ == "__main__" and sys.argv == ["program.py"]
assert pickle.loads(pickle.dumps(Point(math.sqrt(4)))) == Point(2.0)
assert threading.current_thread() is threading.main_thread()
open("note", "w").write("kept")
assert open("note").read() == "kept"
print("done")
print("said", file=sys.stderr)
"""
    assert run(code) == Outcome(True, "passed", "done\nsaid\n")


def test_program_may_replace_what_the_sandbox_uses(run: Run) -> None:
    code = (
        "import os, sys\nos.write = os.getpid = os._exit = sys.exit = sys.stdout = None\nimport builtins; del builtins.print"
    )
    assert run(code).passed


def test_threads_do_not_hold_up_the_end(run: Run) -> None:
    start = time.monotonic()
    assert run("import threading, time\nthreading.Thread(target=time.sleep, args=[60]).start()").passed
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("code", "reason", "output"),
    [
        ("x = 1\nassert x == 2", "exit status 1", "    assert x == 2\n"),
        ("def f(:", "exit status 1", "SyntaxError"),
        ("x = '\0'", "exit status 1", "null bytes"),
        ("x = '\ud800'", "exit status 1", "surrogates not allowed"),
        ("raise SystemExit(3)", "exit status 3", ""),
        ("import os; os.abort()", "killed by signal 6", ""),
        ("def f(): f()\nf()", "exit status 1", "RecursionError"),
        ("import mixsd_lightning", "exit status 1", "ModuleNotFoundError"),
        ("import torch", "exit status 1", "ModuleNotFoundError"),
        ("input()", "exit status 1", "EOFError"),
    ],
)
def test_failure_is_explained(run: Run, code: str, reason: str, output: str) -> None:
    outcome = run(code)
    assert (outcome.passed, outcome.reason) == (False, reason)
    assert output in outcome.output


def test_traceback_begins_in_the_program(run: Run) -> None:
    output = run("def f():\n    assert False\nf()").output
    assert output.startswith('Traceback (most recent call last):\n  File "program.py", line 3, in <module>\n')


def test_output_is_whatever_text_can_be_made_of_it(run: Run) -> None:
    outcome = run("import sys\nprint('λ 🙂')\nsys.stdout.buffer.write(b'\\xff\\xed\\xa0\\x80')")
    assert outcome == Outcome(True, "passed", "λ 🙂\n" + "\ufffd" * 4)
    assert "UnicodeEncodeError" in run("print('\\ud800')").output


def test_programs_side_by_side_do_not_mix(run: Run) -> None:
    code = "import os\nassert os.listdir() == ['program.py']\nopen('mine', 'w').write('{0}')\nprint(open('mine').read())"
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(run, [code.format(number) for number in range(24)]))
    assert outcomes == [Outcome(True, "passed", f"{number}\n") for number in range(24)]


def test_working_folder_is_gone_afterwards(run: Run, monkeypatch: pytest.MonkeyPatch, open_folder: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(open_folder))
    before = list(open_folder.iterdir())
    assert run("import os\nos.mkdir('a')\nopen('a/b', 'w').write('c')\nos.chmod('a', 0)").passed
    assert list(open_folder.iterdir()) == before


# Passing without reaching the end

FIND_NONCE = r"""
import gc, re, sys
found = []
def look(thing):
    if isinstance(thing, (bytes, str)) and len(thing) >= 64 and re.fullmatch("[0-9a-f]{64}\\s*", str(thing, "latin-1") if isinstance(thing, bytes) else thing):
        found.append(thing)
    elif isinstance(thing, (dict, list, tuple)):
        for part in thing.values() if isinstance(thing, dict) else thing:
            if isinstance(part, (bytes, str)):
                look(part)
frame = sys._getframe()
while frame:
    look(frame.f_locals), look(frame.f_globals), look(gc.get_referents(frame))
    frame = frame.f_back
for thing in gc.get_objects():
    look(thing)
look(sys.stdin.read()), look(sys.argv), look(sys.orig_argv)
print("FOUND" if found else "nothing")
import os
os._exit(0)
"""


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit",
        "raise SystemExit(0)",
        "import sys; sys.exit()",
        "import sys; sys.exit(0)",
        "import site; site.setquit(); quit()",
        "import os; os._exit(0)",
        "import atexit, os; atexit.register(os._exit, 0); assert False",
        "import sys, os; sys.excepthook = lambda *_: os._exit(0); assert False",
        "import threading, os; threading.Thread(target=os._exit, args=[0]).start(); import time; time.sleep(5)",
        "print('started'); print('passed'); print('0'); raise SystemExit",
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'started\\n' + b'0' * 64 + b'\\n0\\n')\n    except OSError: pass\nos._exit(0)",
        "import os, sys; os.execv(sys.executable, ['python', '-c', ''])",
        "import os\nif os.fork(): os._exit(0)",
        "import os\nif os.fork(): os.wait(); assert False",
    ],
)
def test_leaving_early_does_not_pass(run: Run, code: str) -> None:
    assert not run(code).passed


def test_early_exit_with_status_0_is_named(run: Run) -> None:
    assert run("print('all tests passed')\nraise SystemExit").reason == "left before its end"


def test_proof_of_the_end_is_out_of_reach(run: Run) -> None:
    assert run(FIND_NONCE) == Outcome(False, "left before its end", "nothing\n")


# Using too much


@pytest.mark.parametrize(
    ("code", "limits", "reason"),
    [
        ("while True: pass", Limits(cpu_seconds=1), "cpu time"),
        ("import time\ntime.sleep(60)", Limits(wall_seconds=0.5), "timeout"),
        ("import os, time\nos.close(1), os.close(2)\ntime.sleep(60)", Limits(wall_seconds=0.5), "timeout"),
        ("while True: print('x' * 1000)", Limits(), "output limit"),
        ("print('x' * 100, end='')", Limits(output_bytes=99), "output limit"),
        ("print('x' * 100, end='')", Limits(output_bytes=100), "passed"),
    ],
)
def test_time_and_output_end_a_program(run: Run, code: str, limits: Limits, reason: str) -> None:
    start = time.monotonic()
    outcome = run(code, limits)
    assert (outcome.reason, outcome.passed) == (reason, reason == "passed")
    assert len(outcome.output) <= limits.output_bytes
    assert time.monotonic() - start < 8


def test_warning_about_time_cannot_be_ignored(namespaces: Run) -> None:
    code = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert namespaces(code, Limits(cpu_seconds=1)).reason == "killed by signal 9"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces a limit on memory")
@pytest.mark.parametrize(
    "code", ["x = bytearray(1 << 31)", "x = [0]\nwhile True: x += x", "x = []\nwhile True: x.append(bytes(999))"]
)
def test_memory_is_limited(run: Run, code: str) -> None:
    outcome = run(code, Limits(memory_mib=256))
    assert (outcome.passed, outcome.reason) == (False, "memory")


def test_memory_within_the_limit_is_there(run: Run) -> None:
    assert run("x = bytearray(128 << 20)", Limits(memory_mib=256)).passed


def test_file_is_limited(run: Run) -> None:
    outcome = run("open('x', 'wb').write(bytes(3 << 20))", Limits(file_mib=2))
    assert not outcome.passed
    assert "OSError" in outcome.output
    assert run("open('x', 'wb').write(bytes(1 << 20))", Limits(file_mib=2)).passed


def test_all_files_together_are_limited(namespaces: Run) -> None:
    outcome = namespaces("for i in range(9): open(str(i), 'wb').write(bytes(1 << 20))", Limits(file_mib=8))
    assert "No space left" in outcome.output
    assert "No space left" in namespaces("for i in range(9999): open(str(i), 'wb').close()").output


def test_open_files_are_limited(run: Run) -> None:
    assert "Too many open files" in run("files = [open('x', 'w') for _ in range(32)]", Limits(open_files=32)).output


def test_processes_are_limited(namespaces: Run) -> None:
    code = "import os, time\nfor _ in range(20):\n    if os.fork() == 0: time.sleep(60)"
    assert "BlockingIOError" in namespaces(code, Limits(processes=16)).output
    assert namespaces(code, Limits(processes=32)).passed


# Outliving the sandbox

DAEMON = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        for fd in range(64):
            try: os.close(fd)
            except OSError: pass
        time.sleep(60)
    os._exit(0)
os.wait()
"""
FORK_BOMB = """
import os
while True:
    try: os.fork()
    except OSError: pass
"""


@pytest.mark.parametrize(
    ("code", "seconds", "reason"),
    [
        (DAEMON, 10, "passed"),
        (DAEMON + "time.sleep(60)", 0.6, "timeout"),
        (DAEMON + "while True: print('x' * 1000)", 10, "output limit"),
        (DAEMON + "os.kill(os.getpid(), 9)", 10, "killed by signal 9"),
        (FORK_BOMB, 0.6, "timeout"),
        (FORK_BOMB.replace("OSError: pass", "OSError: break"), 10, "passed"),
    ],
    ids=["end", "timeout", "output", "signal", "fork bomb", "bomb that ends"],
)
def test_nothing_survives(namespaces: Run, mark: int, code: str, seconds: float, reason: str) -> None:
    assert namespaces(code, Limits(cpu_seconds=mark, wall_seconds=seconds)).reason == reason
    assert survivors(mark) == []


IDLE = "import threading, time\nfor _ in range(2): threading.Thread(target=time.sleep, args=[60]).start()\ntime.sleep(60)"


def idle(mark: int) -> bool:
    """Whether the program ``IDLE`` has started."""
    return any(len(list(Path(f"/proc/{process}/task").iterdir())) == 3 for process in survivors(mark))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
@pytest.mark.parametrize("moment", [survivors, idle])
def test_sandbox_ends_with_its_caller(run: Run, mark: int, moment: Callable[[int], object]) -> None:
    caller = multiprocessing.get_context("fork").Process(target=run, args=(IDLE, Limits(cpu_seconds=mark, wall_seconds=60)))
    caller.start()
    wait_until(lambda: moment(mark))
    caller.kill()
    caller.join()
    wait_until(lambda: not survivors(mark))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_nothing_outlives_a_killed_supervisor(run: Run, mark: int) -> None:
    with ThreadPoolExecutor() as pool:
        outcome = pool.submit(run, IDLE, Limits(cpu_seconds=mark))
        wait_until(lambda: idle(mark))
        os.kill(survivors(mark)[0], signal.SIGKILL)
        assert outcome.result().reason == "supervisor killed"
    wait_until(lambda: not survivors(mark))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_interrupted_caller_leaves_nothing(run: Run, mark: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        wait_until(lambda: idle(mark))
        raise KeyboardInterrupt

    monkeypatch.setattr(selectors.DefaultSelector, "select", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(IDLE, Limits(cpu_seconds=mark))
    assert survivors(mark) == []


# Reaching the rest of the machine


def test_environment_is_empty(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "SECRET")
    code = """
import os, subprocess
print(dict(os.environ))
for process in ("self", os.getppid(), CALLER):
    try: print(open(f"/proc/{process}/environ").read())
    except OSError: pass
"""
    outcome = run(code.replace("CALLER", str(os.getpid())))
    assert outcome == Outcome(True, "passed", "{}\n")


HOW_TO_REACH_FILES = [
    "print(open(path).read())",
    "print(os.listdir(folder))",
    "print(next(os.scandir(folder)))",
    "os.chdir(folder)",
    "os.symlink(path, 'link'); print(open('link').read())",
    "os.link(path, 'link'); print(open('link').read())",
    "print(open('../' * 20 + path).read())",
    "print(open('secret', opener=lambda name, flags: os.open(name, flags, dir_fd=os.open(folder, 0))).read())",
    "print(open('/proc/self/root' + path).read())",
    "print(open('/etc/passwd').read())",
    "print(os.getxattr(path, 'user.x'))",
    "print(os.listxattr(path))",
    "os.setxattr(path, 'user.x', b'x')",
    "os.removexattr(path, 'user.x')",
    "open(path, 'w').write('gone')",
    "open(path + '2', 'w').write('new')",
    "os.mkdir(path + '3')",
    "os.symlink('/', path + '4')",
    "os.link('program.py', path + '5')",
    "os.rename('program.py', path + '6')",
    "sqlite3.connect(path + '7').execute('create table t (x)')",
    "os.chmod(path, 0)",
    "os.utime(path, (0, 0))",
    "os.truncate(path, 0)",
    "os.chown(path, os.getuid(), -1)",
    "os.rename(path, 'here')",
    "os.remove(path)",
    "os.rmdir(folder + '/empty')",
    "open(os.__file__, 'r+')",
    "open('/usr/bin/new', 'w')",
    "os.chroot('/tmp')",
]


def test_other_files_are_out_of_reach(anyone: Anyone, open_folder: Path) -> None:
    secret = open_folder / "secret"
    (open_folder / "empty").mkdir()
    os.setxattr(secret, "user.x", b"x")
    os.chown(secret, anyone.user, -1)
    os.chown(open_folder / "empty", anyone.user, -1)
    before = secret.stat()
    code = f"""
import os, sqlite3
folder, path = {str(open_folder)!r}, {str(secret)!r}
for attempt in {HOW_TO_REACH_FILES}:
    try: exec(attempt)
    except (OSError, sqlite3.OperationalError): pass
    else: print("REACHED", attempt)
"""
    assert anyone.run(code) == Outcome(True, "passed", "")
    assert sorted(path.name for path in open_folder.iterdir()) == ["empty", "secret"]
    after = secret.stat()
    assert (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)
    assert secret.read_text() == "SECRET"


def test_network_is_out_of_reach(anyone: Anyone, open_folder: Path) -> None:
    code = """
import socket
def attempt(family, kind, address):
    try:
        with socket.socket(family, kind) as client:
            client.settimeout(2)
            if kind == socket.SOCK_STREAM: client.connect(address)
            client.send(b"hello") if kind == socket.SOCK_STREAM else client.sendto(b"hello", address)
        print("REACHED", address)
    except OSError:
        pass
attempt(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", PORT))
attempt(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", PORT))
attempt(socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80))
attempt(socket.AF_UNIX, socket.SOCK_STREAM, PATH)
attempt(socket.AF_UNIX, socket.SOCK_STREAM, NAME)
"""
    path, name = open_folder / "socket", f"\0{open_folder}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        port = server.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        local.bind(str(path))
        path.chmod(0o777)
        local.listen()
        if sys.platform == "linux":
            abstract.bind(name)
            abstract.listen()
        code = code.replace("PORT", str(port)).replace("PATH", repr(str(path))).replace("NAME", repr(name))
        assert anyone.run(code) == Outcome(True, "passed", "")
        for listener in (server, datagrams, local):
            listener.settimeout(0.01)
            with pytest.raises(TimeoutError):
                listener.recv(1) if listener is datagrams else listener.accept()


def test_the_host_of_a_virtual_machine_is_out_of_reach(run: Run) -> None:
    code = """
import socket
for family in (40, 17, 29, 31, 38, 44):  # to the host, raw, to cars, to radios, to ciphers, to the network card
    for kind in (socket.SOCK_STREAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        try: print("REACHED", socket.socket(family, kind))
        except OSError: pass
one, other = socket.socketpair()
one.send(b"a")
print(other.recv(1), socket.socket().family == socket.AF_INET)
"""
    assert run(code) == Outcome(True, "passed", "b'a' True\n")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")
def test_system_calls_that_no_namespace_covers_are_refused(namespaces: Run) -> None:
    """Each with arguments that the kernel would accept, or with which it would complain of something else."""
    calls = {"keyctl": (250, 0, -3, 0), "add_key": (248, 0, 0, 0, 0, -3), "request_key": (249, 0, 0, 0, 0), "bpf": (321, 0, 0, 0),
             "perf_event_open": (298, 0, 0, 0, 0, 0), "userfaultfd": (323, 1), "io_uring_setup": (425, 1, 0),
             "socket of x32": (0x40000000 + 41, 40, 1, 0), "vsock": (41, 40, 1, 0), "vsock, long": (41, (7 << 32) + 40, 1, 0)}  # fmt: skip
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, (number, *arguments) in {calls}.items():
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if (result, ctypes.get_errno()) != (-1, 1): print(name, result, ctypes.get_errno())
print(libc.syscall(ctypes.c_long(39)) > 0, libc.prctl(21, 0, 0, 0, 0))
"""
    assert namespaces(code) == Outcome(True, "passed", "True 2\n")  # others work; seccomp filters


def test_other_processes_are_out_of_reach(anyone: Anyone) -> None:
    user = None if anyone.user == os.getuid() else anyone.user
    with subprocess.Popen(["sleep", "60"], user=user) as bystander:
        code = f"""
import os, resource, signal
for kill in (os.kill, os.killpg, lambda process, number: signal.pidfd_send_signal(os.pidfd_open(process), number)):
    try: kill({bystander.pid}, signal.SIGKILL)
    except (OSError, AttributeError): pass
try: resource.prlimit({bystander.pid}, resource.RLIMIT_CPU, (0, 0))
except (OSError, AttributeError): pass
for number in (signal.SIGKILL, signal.SIGSTOP):
    try: os.kill(os.getppid() or 1, number)
    except OSError: pass
"""
        try:
            limits = Path(f"/proc/{bystander.pid}/limits")
            before = limits.exists() and limits.read_text()
            assert anyone.run(code) == Outcome(True, "passed", "")
            time.sleep(0.05)
            assert bystander.poll() is None
            assert (limits.exists() and limits.read_text()) == before
        finally:
            bystander.kill()


def test_fork_bomb_of_anyone(anyone: Anyone, mark: int) -> None:
    limits = Limits(cpu_seconds=mark, wall_seconds=0.6)
    assert anyone.run(FORK_BOMB, limits).reason == "timeout"
    if sys.platform == "linux":
        assert survivors(mark) == []


def test_rights_are_gone(anyone: Anyone) -> None:
    code = """
import ctypes, os, resource
libc = ctypes.CDLL(None, use_errno=True)
assert os.getresuid() == (os.getuid(),) * 3 and os.getresgid() == (os.getgid(),) * 3
assert os.getuid() != 0 and os.getgid() != 0 and 0 not in os.getgroups()
capabilities = (ctypes.c_uint32 * 6)()
assert libc.capget((ctypes.c_uint32 * 2)(0x20080522), capabilities) == 0
assert not any(capabilities), list(capabilities)
assert libc.prctl(39, 0, 0, 0, 0) == 1  # no new privileges
for flags in (0x10000000, 0x20000, 0x10020000):
    assert libc.unshare(flags) == -1, hex(flags)
assert libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) == -1
assert libc.ptrace(16, 1, 0, 0) == -1  # attach to the first process
assert libc.shmget(SHARED, 0, 0) == -1
assert not os.path.exists("/proc/self")
for path in ("/usr", os.__file__, "/dev/null"):
    assert os.statvfs(path).f_flag & os.ST_RDONLY and os.statvfs(path).f_flag & os.ST_NOSUID, path
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC):
    try: resource.setrlimit(limit, (resource.RLIM_INFINITY,) * 2)
    except ValueError: pass
    else: assert False, limit
"""
    if anyone.mode != "namespaces":
        pytest.skip("nothing but namespaces takes these rights")
    libc = ctypes.CDLL(None)
    key = os.getpid()
    segment = libc.shmget(key, 4096, 0o1666)
    groups = os.getgroups()
    try:
        if os.getuid() == 0:
            os.setgroups([0, 1])
        assert anyone.run(code.replace("SHARED", str(key))) == Outcome(True, "passed", "")
    finally:
        libc.shmctl(segment, 0, None)
        if os.getuid() == 0:
            os.setgroups(groups)


def test_interpreter_refuses(interpreter: Run) -> None:
    """What has no counterpart among the attempts above."""
    code = r"""
import multiprocessing, os, pty, socket, subprocess
for attempt in [
    "os.fork()",
    "os.forkpty()",
    "os.system('true')",
    "os.posix_spawn('/bin/true', ['true'], {})",
    "os.execv('/bin/true', ['true'])",
    "os.kill(os.getpid(), 0)",
    "subprocess.run(['true'])",
    "multiprocessing.get_context('spawn').Process().start()",
    "socket.getaddrinfo('localhost', 80)",
    "import ctypes",
    "import _ctypes; _ctypes.dlopen(None, 0)",
]:
    try: exec(attempt)
    except PermissionError as error: assert "refused in the sandbox" in str(error)
    else: print("REACHED", attempt)
"""
    assert interpreter(code) == Outcome(True, "passed", "")


# Where the sandbox cannot run


def test_isolation_is_the_best_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_without_namespaces(code: str, limits: Limits, mode: str) -> Outcome:
        if mode == "namespaces":
            raise UserError("Not allowed.")
        return Outcome(True, "passed", "")

    monkeypatch.setattr(sandbox, "_run", run_without_namespaces)
    with pytest.warns(UserWarning, match=r"the Python interpreter only.*Not allowed\."):
        assert sandbox.isolation.__wrapped__() == "interpreter"
    if not isinstance(python_for("namespaces"), UserError):
        monkeypatch.undo()
        assert sandbox.isolation.__wrapped__() == "namespaces"


def test_sandbox_that_cannot_start_is_no_failure_of_the_program(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="cannot start"):
        run("pass")


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="Linux and macOS only"):
        sandbox.isolation.__wrapped__()
