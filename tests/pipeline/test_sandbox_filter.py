"""The filter of system calls, run here step by step as the kernel runs it: for machines that are not this one, too."""

from __future__ import annotations

import ctypes
import errno
import operator
import os
import platform
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.decode import sandbox

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CALLS = {
    "x86_64": {"read": 0, "open": 2, "socket": 41, "execve": 59, "unlink": 87, "tgkill": 234, "openat": 257},
    "aarch64": {"unlinkat": 35, "openat": 56, "read": 63, "tgkill": 131, "socket": 198, "execve": 221},
}
"""From the kernel's own tables."""
WRITING = (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT, os.O_RDONLY | os.O_TRUNC)


class Kernel(ctypes.CDLL):
    """Keeps what a process asks of its kernel, which is one of `landlock` as its version; 0: without Landlock."""

    def __init__(self, landlock: int = 5) -> None:
        super().__init__(None)
        self.landlock = landlock
        self.program: list[tuple[int, int, int, int]] = []
        self.rights: int | None = None
        self.readable: dict[str, int] = {}
        self.is_restricted = False

    def prctl(self, option: int, mode: object, program: object = None, *_: object) -> int:
        if option == 22:  # PR_SET_SECCOMP
            content = ctypes.string_at(ctypes.cast(program, ctypes.c_void_p).value or 0, 16)  # pyright: ignore
            count, address = struct.unpack("HxxxxxxP", content)
            self.program = list(struct.iter_unpack("HBBI", ctypes.string_at(address, 8 * count)))
        return 0

    def syscall(self, number: int, *arguments: object) -> int:
        if number == 444:  # landlock_create_ruleset, which says its version when it is given no attributes
            if arguments[0] is None:
                return self.landlock or -1
            (self.rights,) = struct.unpack("Q", arguments[0])  # pyright: ignore[reportArgumentType]
            return os.open(os.devnull, os.O_RDONLY)
        if number == 445:  # landlock_add_rule
            rights, folder = struct.unpack("=Qi", arguments[2])  # pyright: ignore[reportArgumentType]
            self.readable[os.readlink(f"/proc/self/fd/{folder}")] = rights
        else:
            self.is_restricted = number == 446
        return 0

    def verdict(self, machine: str, number: int, arguments: tuple[int, ...] = ()) -> int:
        """Run the filter on a call, as in `linux/filter.h`."""
        words = (*arguments, *[0] * (6 - len(arguments)))
        data = struct.pack("=IIQ6Q", number, ARCHITECTURES[machine], 0, *words)
        compared: dict[int, Callable[[int, int], object]] = {0x15: operator.eq, 0x35: operator.ge, 0x45: operator.and_}
        place = loaded = 0
        while True:
            code, if_true, if_false, value = self.program[place]
            if code == 0x06:
                return value
            if code == 0x20:
                (loaded,) = struct.unpack_from("=I", data, value)
            else:
                place += if_true if compared[code](loaded, value) else if_false
            place += 1


def sealed(monkeypatch: pytest.MonkeyPatch, machine: str, kernel: Kernel, *, may_use_devices: bool = False) -> Kernel:
    monkeypatch.setattr(sandbox.ctypes, "CDLL", lambda *_, **__: kernel)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    sandbox.seal(may_use_devices=may_use_devices)
    return kernel


@pytest.mark.parametrize("may_use_devices", [False, True])
@pytest.mark.parametrize("machine", CALLS)
def test_the_filter_refuses_what_reaches_outside_and_nothing_else(machine, may_use_devices, monkeypatch) -> None:
    kernel, numbers = sealed(monkeypatch, machine, Kernel(), may_use_devices=may_use_devices), CALLS[machine]
    column = list(CALLS).index(machine)
    of_files = {number for name, row in sandbox._FILES.items() if (number := row[column]) is not None}
    refused = {row[column] for row in sandbox._OUTSIDE.values()} | (set() if may_use_devices else of_files)
    special = {numbers["tgkill"], numbers["openat"], numbers.get("open")}
    for number in set(range(460)) - special:
        assert kernel.verdict(machine, number) == (REFUSE if number in refused else ALLOW), number
    assert {numbers["socket"], numbers["execve"]} <= refused
    assert numbers["read"] not in refused
    other = next(name for name in CALLS if name != machine)
    assert kernel.verdict(other, numbers["read"]) == KILL
    assert kernel.verdict(machine, 0x40000000) == REFUSE  # the numbers of x32, which begin there


@pytest.mark.parametrize("machine", CALLS)
def test_a_process_may_abort_itself_and_signal_nobody_else(machine, monkeypatch) -> None:
    kernel, number = sealed(monkeypatch, machine, Kernel()), CALLS[machine]["tgkill"]
    assert kernel.verdict(machine, number, (os.getpid(), 1, 6)) == ALLOW
    assert kernel.verdict(machine, number, (os.getppid(), 1, 6)) == REFUSE


@pytest.mark.parametrize("may_use_devices", [False, True])
@pytest.mark.parametrize(("machine", "name"), [("x86_64", "open"), ("x86_64", "openat"), ("aarch64", "openat")])
def test_files_are_opened_to_be_read(machine, name, may_use_devices, monkeypatch) -> None:
    kernel = sealed(monkeypatch, machine, Kernel(), may_use_devices=may_use_devices)
    before = (0, 0)[: 1 if name == "open" else 2]
    assert kernel.verdict(machine, CALLS[machine][name], (*before, os.O_RDONLY | os.O_CLOEXEC)) == ALLOW
    for flags in WRITING:
        assert kernel.verdict(machine, CALLS[machine][name], (*before, flags)) == (ALLOW if may_use_devices else REFUSE)


@pytest.mark.parametrize(("version", "num_rights"), [(1, 13), (2, 14), (3, 15), (4, 15), (5, 16), (7, 16)])
def test_landlock_keeps_out_all_rights_that_its_version_knows(version, num_rights, monkeypatch) -> None:
    kernel = sealed(monkeypatch, "x86_64", Kernel(version))
    assert kernel.rights == 2**num_rights - 1
    assert kernel.is_restricted
    assert {Path(path) for path in kernel.readable} == {Path(path).resolve() for path in sandbox.library_folders()}
    assert {rights for path, rights in kernel.readable.items() if Path(path).is_dir()} == {0b1100}  # files and lists


def test_a_library_that_is_gone_meanwhile_or_a_single_file_is_no_folder_to_read(monkeypatch, tmp_path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    monkeypatch.setattr(sandbox, "library_folders", lambda: [str(tmp_path / "gone"), str(tmp_path / "cache")])
    assert sealed(monkeypatch, "aarch64", Kernel()).readable == {str(tmp_path / "cache"): 0b0100}


def test_where_the_system_has_no_such_guard_the_other_stays(monkeypatch) -> None:
    without_landlock = sealed(monkeypatch, "x86_64", Kernel(landlock=0))
    assert (without_landlock.is_restricted, len(without_landlock.program) > 0) == (False, True)
    elsewhere = sealed(monkeypatch, "riscv64", Kernel())
    assert (elsewhere.is_restricted, elsewhere.program) == (True, [])
    with_devices = sealed(monkeypatch, "x86_64", Kernel(), may_use_devices=True)
    assert (with_devices.is_restricted, len(with_devices.program) > 0) == (False, True)


def test_nothing_is_asked_of_a_kernel_that_keeps_no_process_from_new_privileges(monkeypatch) -> None:
    class Old(Kernel):
        def prctl(self, option: int, *_: object) -> int:
            return -1

    old = sealed(monkeypatch, "x86_64", Old())
    assert (old.is_restricted, old.program) == (False, [])
    monkeypatch.setattr(sys, "platform", "darwin")
    mac = sealed(monkeypatch, "x86_64", Kernel())
    assert (mac.is_restricted, mac.program) == (False, [])


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_of_calls_are_those_of_the_kernels_headers(machine: str) -> None:
    if not Path(HEADERS[machine]).exists():
        pytest.skip(f"{HEADERS[machine]} is not installed (linux-libc-dev)")
    text, column = Path(HEADERS[machine]).read_text(), list(CALLS).index(machine)
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    opening = {name: numbers for name, (numbers, _) in sandbox._OPENING.items()}
    tables = sandbox._OUTSIDE | sandbox._FILES | opening | {"tgkill": sandbox._TGKILL}
    ours = {name: number for name, row in tables.items() if (number := row[column]) is not None}
    older = ours.keys() - known.keys()  # than these headers
    assert {name: known[name] for name in ours.keys() - older} == {name: ours[name] for name in ours.keys() - older}
    assert older <= {"fchmodat2", "openat2", "pidfd_getfd"}
