"""The process that watches over one program; :mod:`mixsd_lightning.evaluation.sandbox` starts it as a script.

With namespaces there are three processes: this supervisor, which the program cannot reach; the first process of the
namespaces, whose end ends all others in them; and the program. Without, the program is the supervisor's own child.

Arguments are ``name=number``, the program is ``program.py`` in the working folder, and the nonce waits on standard input.
The report gets a line when the program is about to start, the nonce at its end, and its exit code.
"""
# To import pathlib would make every start slower.
# ruff: noqa: PTH101, PTH103, PTH109, PTH112, PTH120, PTH123

import _posixsubprocess
import ctypes
import functools
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from os import _exit, getpid, write  # a program may replace the module's own
from types import ModuleType, TracebackType
from typing import NoReturn

_LINUX = sys.platform == "linux"
_LIBC = ctypes.CDLL(None, use_errno=True)
_READABLE = [
    *("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"),
    *(f"{sys.base_prefix}/lib", f"{sys.base_exec_prefix}/{sys.platlibdir}"),
]


# Of each machine: its number for seccomp, its system call `socket`, and those that are refused. Key rings and the sockets of a
# virtual machine to its host belong to no namespace; the others have been ways around, and no program needs them.
_SYSTEM_CALLS = {
    # add_key, request_key, keyctl, perf_event_open, bpf, userfaultfd, io_uring_setup
    "x86_64": (0xC000003E, 41, (248, 249, 250, 298, 321, 323, 425)),
    "aarch64": (0xC00000B7, 198, (217, 218, 219, 241, 280, 282, 425)),
}
_SOCKETS = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK, all of which a network namespace holds."""


def main() -> None:
    """Prepare the surroundings, have the program run in them, and report its exit code."""
    settings = {name: int(value) for name, value in (argument.split("=") for argument in sys.argv[1:])}
    report = settings["report"]
    with open("program.py", encoding="utf-8", errors="surrogatepass", newline="") as file:
        source = file.read()
    os.environ.clear()
    os.umask(0o022)
    # Ids that systems set aside for passing users. With one of its own, the limit on processes counts the program's only.
    user = 61184 + getpid() % 4336

    def run_program() -> None:
        _give_up_rights(user)
        _set_limits(settings)
        if not settings["namespaces"]:
            _guard_interpreter()
        _run_to_end(source, report)

    def watch_program() -> None:
        write(report, b"%d\n" % _watch(run_program))

    if _LINUX:
        _die_with_parent(signal.SIGTERM)
        if os.getppid() != settings["caller"]:
            return  # it was gone before
    if settings["namespaces"]:
        _enter_namespaces()
        _enter_tree(os.getcwd(), settings["file_mib"], source)
        _watch(watch_program)
    else:
        if os.getuid() == 0:
            os.chown(".", user, user)
        watch_program()


def _watch(body: Callable[[], None]) -> int:
    """Run ``body`` in a child process and return its exit code, negative for a signal; SIGTERM kills the child."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is someone to kill
    child = os.fork()
    if child == 0:
        if _LINUX:
            _die_with_parent(signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.setsid()
        body()
        _exit(0)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    while True:  # the first process of the namespaces also inherits orphans
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            return os.waitstatus_to_exitcode(status)


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library.

    Raises:
        OSError: if it fails.
    """
    if getattr(_LIBC, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def _die_with_parent(number: int) -> None:
    _call("prctl", 1, number)  # PR_SET_PDEATHSIG


def _enter_namespaces() -> None:
    """Leave the machine's mounts, network, message queues and, for processes to come, its process ids."""
    user, group = os.getuid(), os.getgid()
    flags = 0x00020000 | 0x08000000 | 0x20000000 | 0x40000000  # CLONE_NEWNS, NEWIPC, NEWPID, NEWNET
    if user == 0:
        _call("unshare", flags)
        return
    _call("unshare", flags | 0x10000000)  # CLONE_NEWUSER: within it, an ordinary user may do the rest
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _enter_tree(tree: str, mib: int, source: str) -> None:
    """Build a file tree on a memory disk of ``mib`` MiB, from what a program may read, and make it the root.

    From a changed root, no process can make a user namespace, in which it would have the rights to change mounts.
    """
    bind, recursive, private, nosuid_nodev = 0x1000, 0x4000, 0x40000, 0x6
    _call("mount", None, b"/", None, recursive | private, None)
    _call("mount", b"tmpfs", os.fsencode(tree), b"tmpfs", nosuid_nodev, b"size=%dm,nr_inodes=4096,mode=755" % mib)
    for path in filter(os.path.exists, _READABLE):
        target = tree + path
        os.makedirs(target if os.path.isdir(path) else os.path.dirname(target), exist_ok=True)
        if not os.path.isdir(path):
            os.close(os.open(target, os.O_CREAT))
        _call("mount", os.fsencode(path), os.fsencode(target), None, bind | recursive, None)
        # mount_setattr, with all mounts below: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID
        attributes = (ctypes.c_uint64 * 4)(0x3)
        _call("syscall", 442, -1, os.fsencode(target), 0x8000, attributes, ctypes.sizeof(attributes))
    for folder in ("/tmp", "/dev/shm"):
        os.makedirs(tree + folder, exist_ok=True)
        os.chmod(tree + folder, 0o1777)
    os.chroot(tree)
    os.chdir("/tmp")
    with open("program.py", "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        file.write(source)  # for tracebacks


def _give_up_rights(user: int) -> None:
    """Become ``user`` if root, and for good a process without capabilities."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if _LINUX:
        _die_with_parent(signal.SIGKILL)  # forgotten with the change of user
        _call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        _call("capset", (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)())
        _refuse_system_calls()
    if not os.access(os.__file__, os.R_OK):  # no import would work, and every program would look wrong
        raise PermissionError(f"only root can read {os.__file__}")


def _refuse_system_calls() -> None:
    """Have the kernel refuse what namespaces do not cover, for good; nothing on machines whose numbers are not known here."""
    machine, socket, refused = _SYSTEM_CALLS.get(os.uname().machine, (0, 0, ()))
    if not machine:
        return
    load, equals, at_least, end = 0x20, 0x15, 0x35, 0x06
    allow, refuse = (end, 0, 0, 0x7FFF0000), (end, 0, 0, 0x00050001)  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM
    # Each is a code, how many of the next to skip if so and if not, and a number. Offsets are of `struct seccomp_data`.
    program = [
        *((load, 0, 0, 4), (equals, 1, 0, machine), refuse),
        *((load, 0, 0, 0), (at_least, 0, 1, 0x40000000), refuse),  # x32, where every number is another
    ]
    for number in refused:
        program += [(equals, 0, 1, number), refuse]
    program += [(equals, 1, 0, socket), allow, (load, 0, 0, 16)]
    for family in _SOCKETS:
        program += [(equals, 0, 1, family), allow]
    program.append(refuse)
    packed = b"".join(struct.pack("HBBI", *step) for step in program)
    held = ctypes.create_string_buffer(packed)
    header = struct.pack("HP", len(program), ctypes.addressof(held))
    with suppress(OSError):  # a kernel without seccomp
        _call("prctl", 22, 2, header)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _set_limits(settings: dict[str, int]) -> None:
    """Set the limits that the kernel keeps, or those in force where they are lower."""
    limits = {
        resource.RLIMIT_CPU: (settings["cpu_seconds"], settings["cpu_seconds"] + 1),
        resource.RLIMIT_FSIZE: (settings["file_mib"] << 20,) * 2,
        resource.RLIMIT_NPROC: (settings["processes"],) * 2,
        resource.RLIMIT_NOFILE: (settings["open_files"],) * 2,
        resource.RLIMIT_CORE: (0, 0),
    }
    if _LINUX:  # macOS refuses to set it
        limits[resource.RLIMIT_AS] = (settings["memory_mib"] << 20,) * 2
    for kind, (soft, hard) in limits.items():
        highest = resource.getrlimit(kind)[1]
        if highest != resource.RLIM_INFINITY:
            soft, hard = min(soft, highest), min(hard, highest)
        resource.setrlimit(kind, (soft, hard))


def _guard_interpreter() -> None:
    """Have the interpreter itself refuse what namespaces would have put out of reach."""
    work = os.path.realpath(".")
    readable = [work, *map(os.path.realpath, _READABLE)]
    # fmt: off
    readers = {"os.chdir", "os.getxattr", "os.listdir", "os.listxattr", "os.scandir"}
    writers = {"os.chflags", "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.removexattr", "os.rename",
               "os.rmdir", "os.setxattr", "os.symlink", "os.truncate", "os.utime", "sqlite3.connect"}
    refused = {"os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn", "os.system",
               "resource.prlimit", "subprocess.Popen"}
    # fmt: on
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def refuse(event: str, *_: object) -> NoReturn:
        raise PermissionError(f"{event} is refused in the sandbox")

    def guard(event: str, arguments: tuple) -> None:
        kind = event.partition(".")[0]
        if event in refused or kind == "ctypes" or (kind == "socket" and event != "socket.__new__"):
            refuse(event)
        if event == "open":
            path, _, flags = arguments
            folders = [work] if flags & writing else readable
            arguments = (path,)
        elif event in readers or event in writers:
            folders = readable if event in readers else [work]
        else:
            return
        for path in arguments:
            if isinstance(path, (str, bytes, os.PathLike)):
                real = os.path.realpath(os.fsdecode(path))
                if not any(real == folder or real.startswith(f"{folder}/") for folder in folders):
                    refuse(f"{event} of {real}")

    for name in [name for name in sys.modules if "ctypes" in name]:
        del sys.modules[name]
    for module, name in ((_posixsubprocess, "fork_exec"), (signal, "pidfd_send_signal")):  # they raise no event
        setattr(module, name, functools.partial(refuse, name))
    sys.addaudithook(guard)


def _run_to_end(source: str, report: int) -> None:
    """Run the program as ``__main__`` and report the nonce after its last statement."""
    module = ModuleType("__main__")
    module.__file__ = "program.py"
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    sys.excepthook = _print_error
    write(report, b"started\n")
    try:
        program = compile(source, "program.py", "exec", dont_inherit=True)
        # While the program runs, the nonce is an argument of a call to come: no variable holds it.
        _finish(report, getpid(), _take_nonce(), eval(program, module.__dict__))
    except MemoryError:
        write(report, b"memory\n")
        raise


def _print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback that begins in the program."""
    while trace and trace.tb_frame.f_code.co_filename != "program.py":
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


def _take_nonce() -> bytes:
    """Drain standard input and leave it empty."""
    nonce = os.read(0, 1024)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return nonce


def _finish(report: int, process: int, nonce: bytes, _: None) -> NoReturn:
    """Report the end, unless a process reaches it that the program has forked. Threads end here as well."""
    if getpid() == process:
        write(report, nonce + b"\n")
    _exit(0)


if __name__ == "__main__":
    main()
