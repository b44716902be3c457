"""Sandbox for a process that opens untrusted files: no network, programs or files, where the kernel supports it.

| blocked | by | needs |
|---|---|---|
| sockets, other programs and processes, changes of files | a seccomp filter | Linux on x86-64 or aarch64 |
| reading files, other than libraries | Landlock | Linux 5.13, enabled (`lsm=landlock`) |

Both apply to this process and its children, irrevocably. `reachable_resources` tests them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine → column of the tables below, AUDIT_ARCH of `linux/audit.h`."""
_OUTSIDE = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kill": (62, 129),
    "tkill": (200, 130),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425),  # would bypass the filter
    "mount": (165, 40),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
"""System call → its numbers on x86-64 and aarch64 (None: it does not exist there)."""
_FILES = {
    "openat2": (437, 437),  # flags behind a pointer, which no filter can follow; libc falls back to openat
    "open_by_handle_at": (304, 265),
    "creat": (85, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "link": (86, None),
    "linkat": (265, 37),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "truncate": (76, 45),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
}
_OPENING = {"open": ((2, None), 1), "openat": ((257, 56), 2)}
"""Calls that are allowed for reading only: numbers, and the position of the flags among the arguments."""
_TGKILL = (234, 131)
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
"""Return values of a filter: allow, EPERM, kill the process."""
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`."""
_X32 = 0x40000000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Version of Landlock → number of its file access rights; later versions have as many as version 5."""


def seal(*, may_use_devices: bool = False) -> None:
    """Restrict this process, which must be single-threaded, to its memory and its open files.

    Libraries stay readable, since decoders load some of theirs late. `may_use_devices`: file access stays allowed, for
    a decoder on a GPU. On a system without these mechanisms nothing happens; see `reachable_resources`.
    """
    if not sys.platform.startswith("linux"):
        return
    system = ctypes.CDLL(None, use_errno=True)
    if system.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))):
        return
    if not may_use_devices:
        _restrict_files(system, library_folders())
    if platform.machine() in _ARCHITECTURES:
        _filter_calls(system, _refused(may_use_devices))


def library_folders() -> list[str]:
    """Return the folders of this Python's libraries and of the system's."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {sysconfig.get_path(name) for name in names} | {str(Path(sys.base_prefix) / "lib")}
    folders |= {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    folders.add(str(Path(__file__).parents[1]))  # our own modules, in a checkout
    folders |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"}
    folders |= set(filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")))
    return sorted(folder for folder in folders if Path(folder).exists())


def reachable_resources(data: bytes = b"") -> list[str]:
    """Return which of network, programs and files this process can reach. `data` is ignored."""
    reachable = []
    try:
        socket.socket().close()
        reachable.append("network")
    except OSError:
        pass
    try:
        os.execv("/nonexistent", ["nonexistent"])
    except FileNotFoundError:
        reachable.append("programs")
    except OSError:
        pass
    try:
        os.listdir("/")
        reachable.append("files")
    except OSError:
        pass
    return reachable


def _refused(may_use_devices: bool) -> list[int]:
    column = _ARCHITECTURES[platform.machine()][0]
    calls = _OUTSIDE if may_use_devices else _OUTSIDE | _FILES
    return [number for numbers in calls.values() if (number := numbers[column]) is not None]


def _filter_calls(system: ctypes.CDLL, refused: Iterable[int]) -> None:
    """Block the system calls with the numbers `refused`, opening files for writing, and signals to other processes."""
    column, architecture = _ARCHITECTURES[platform.machine()]
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    steps += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _REFUSE)]
    for number in refused:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    # allow signals to itself, which `abort` needs
    steps += [(_EQUAL, 0, 4, _TGKILL[column]), (_LOAD, 0, 0, _ARGUMENTS), (_EQUAL, 0, 1, os.getpid())]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    for numbers, argument in _OPENING.values():
        if (number := numbers[column]) is not None and set(refused) & {_FILES["openat2"][column]}:
            steps += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_ANY_BIT, 0, 1, _WRITING)]
            steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    system.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.c_char_p(program))


def _restrict_files(system: ctypes.CDLL, readable: Iterable[str]) -> None:
    """Block access to files, except reading below the folders `readable`."""
    version = system.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    rights = (1 << _FILE_RIGHTS[min(version, 5)]) - 1
    attributes = struct.pack("Q", rights)
    ruleset = system.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return
    for path in readable:
        try:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed = _READ_FILE | (_READ_DIR if Path(path).is_dir() else 0)
        system.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, folder), 0)
        os.close(folder)
    system.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
