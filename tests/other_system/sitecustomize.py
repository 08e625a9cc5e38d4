"""Imported by Python at its start: this process lacks what Windows, or macOS, lacks.

RDN_FAST_TEST_SYSTEM: "windows", or "macos". sys.platform stays: torch would load other libraries.
"""

import builtins
import errno
import fcntl
import io
import mmap
import os
import sys

WINDOWS = os.environ["RDN_FAST_TEST_SYSTEM"] == "windows"


def _refuse(function, refused, error):
    def instead(first, *arguments, **options):
        if refused(first):
            raise OSError(error, os.strerror(error), first)
        return function(first, *arguments, **options)

    return instead


def _is_linux_only(path) -> bool:
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(("/proc/", "/sys/"))


def _cannot_write(handle: int) -> bool:
    return fcntl_of(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


fcntl_of = fcntl.fcntl
io.open = builtins.open = _refuse(builtins.open, _is_linux_only, errno.ENOENT)
for name in ("sched_getaffinity", "preadv"):
    delattr(os, name)
if WINDOWS:
    for name in ("fcntl", "pwd", "resource"):
        sys.modules[name] = None
    for name in ("getuid", "geteuid", "sysconf", "fork", "killpg", "O_DIRECTORY"):
        delattr(os, name)
    delattr(mmap, "MADV_RANDOM")
    os.open = _refuse(os.open, os.path.isdir, errno.EACCES)
    os.fsync = _refuse(os.fsync, _cannot_write, errno.EBADF)
