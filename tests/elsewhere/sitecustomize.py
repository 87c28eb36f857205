"""Makes Python on Linux show vggexp what it would find on Windows; other packages see the system as it is.

Python runs this file when it starts with this folder on PYTHONPATH, also in the processes that a run starts.
"""

import builtins
import errno
import fcntl
import itertools
import multiprocessing
import os
import signal
import stat
import sys
import types
from pathlib import Path
from typing import Any

MISSING = {
    "os": (
        *("fork", "setsid", "getuid", "geteuid", "killpg", "sched_getaffinity", "posix_fadvise", "set_blocking"),
        *("O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "WNOHANG", "mkfifo", "uname", "sysconf"),
    ),
    "signal": ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGKILL", "pthread_sigmask", "pthread_kill"),
}
ABSENT = ("resource", "fcntl", "pwd", "grp", "termios", "pty")
STOP = int(os.environ.get("ELSEWHERE_STOP", 0))
"""At which attempt to replace its last checkpoint a run gets Ctrl-C; 0: at none."""


def _replace(source: Any, target: Any) -> None:
    """Refuses a file that this process has open, and each once, as if another process read it."""
    if Path(target).name == "last.ckpt" and next(_attempts) == STOP:
        signal.raise_signal(signal.SIGINT)
    here = {os.path.realpath(source), os.path.realpath(target)}
    if here & {os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()}:
        raise AssertionError(f"{source} or {target} is open while it is replaced")
    if (key := (str(source), str(target))) not in _refused:
        _refused.add(key)
        raise PermissionError(errno.EACCES, "Permission denied", str(source))
    os.replace(source, target)


_attempts, _refused = itertools.count(1), set[tuple[str, str]]()


def _open(path: Any, flags: int, *args: Any) -> int:
    if Path(path).is_dir():
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return os.open(path, flags, *args)


def _fsync(descriptor: int) -> None:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    os.fsync(descriptor)


def _kill(pid: int, _: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _set_wakeup_fd(descriptor: int, **options: Any) -> int:
    if descriptor != -1 and not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise ValueError("a pipe, which Windows does not take")
    return signal.set_wakeup_fd(descriptor, **options)


OTHER: dict[str, dict[str, Any]] = {
    "os": {"name": "nt", "replace": _replace, "open": _open, "fsync": _fsync, "kill": _kill},
    "signal": {"set_wakeup_fd": _set_wakeup_fd},
    "sys": {"platform": "win32"},
}


class _Seen(types.ModuleType):
    """A module as vggexp sees it."""

    def __getattr__(self, name: str) -> Any:
        module = self.__name__
        if name in MISSING.get(module, ()):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return OTHER[module][name] if name in OTHER[module] else getattr(sys.modules[module], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(sys.modules[self.__name__], name, value)


SEEN = {name: _Seen(name) for name in OTHER}
_import, _open_file = builtins.__import__, builtins.open


def _imported(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    if not str((globals or {}).get("__name__")).startswith("vggexp"):
        return _import(name, globals, locals, fromlist, level)
    if name in ABSENT:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = _import(name, globals, locals, fromlist, level)
    if name == "psutil":
        used = module.Process().memory_info().rss
        module.Process.memory_info = lambda self: types.SimpleNamespace(rss=used, peak_wset=used)
    return SEEN.get(name, module)


def _no_proc(path: Path, *args: Any, **options: Any) -> Any:
    if str(path).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
    return _open_file(path, *args, **options)


def _no_links(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, "A required privilege is not held by the client")


builtins.__import__ = _imported
Path.open = _no_proc  # type: ignore[assignment, method-assign]  # which its other methods call
os.symlink = _no_links
multiprocessing.get_all_start_methods = lambda: ["spawn"]  # type: ignore[method-assign]
multiprocessing.set_start_method("spawn")
