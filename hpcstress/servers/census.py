"""What the processes below one process use, counted from /proc, and the lines in which a guard writes it down.

A line is a census: its time, a word for each process, and a full stop, without which a full disk has cut it off. It has
the names of commands and never their arguments, which may hold secrets. Like the guard this is run by its path: it
imports nothing of hpcstress, but to read the lines.
"""

from __future__ import annotations

import os
import re
import resource
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

# Those that have ended, as if they were one process more.
ENDED = 0
UNKNOWN = -1
# What is dear to count may take this share of a core, whatever number of connections there is.
_SHARE = 0.02
_LOOK_AGAIN = 60.0
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_UNFIT = re.compile(r"[^!-~]|:")
_SOCKET = "socket:["

# sock_diag(7): a dump of the TCP sockets of a family that are established. Unlike /proc/net/tcp it costs nothing for
# the thousands that only wait for their end.
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _REQUEST_AND_DUMP = 4, 20, 0x301
_ERROR, _DONE = 2, 3
_ONLY_ESTABLISHED = 1 << 1
_HEADER = struct.Struct("=IHHII")
_QUESTION = struct.Struct("=BBBBI48x")
_INODE = struct.Struct("=I")
_INODE_AT = _HEADER.size + 68


class Use(NamedTuple):
    """Hold what one process uses: CPU seconds since its start, resident bytes, and what it has open.

    `connections` are TCP connections that are established. What cannot be counted, or has not been this time, is -1.
    """

    pid: int
    command: str
    cpu: float
    rss: int
    threads: int
    files: int
    connections: int


class _Stat(NamedTuple):
    parent: int
    command: str
    own: int
    inherited: int
    rss: int
    threads: int


class Census:
    """Count the processes below one process, again and again, and cheaply: of all others only the numbers are read.

    A process comes into the tree by birth alone. So whoever was found outside once, stays outside, as long as the
    number is in use; all are looked at again each minute, in case a number was used again in between.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._outside: set[int] = set()
        self._look_again = 0.0
        self._spent = 0.0
        self._next_sockets = 0.0

    def take(self) -> list[Use]:
        """Return what each process uses, and first, as pid 0, what those have used that have ended.

        The seconds of processes that have ended are those their parents, at last the root, which has to be this
        process, have inherited by waiting for them. A process that ends while it is being counted may be missed once:
        the sum must not fall for that, so it is made up for at pid 0.
        """
        now = time.monotonic()
        if now >= self._look_again:
            self._outside.clear()
            self._look_again = now + _LOOK_AGAIN
        tree = self._tree()
        waited = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = waited.ru_utime + waited.ru_stime + sum(stat.inherited for stat in tree.values()) / _TICK
        living = sum(stat.own for stat in tree.values()) / _TICK
        self._spent = max(self._spent, ended + living)
        opened = self._opened(tree, now)
        return [
            Use(ENDED, "", self._spent - living, 0, 0, 0, 0),
            *(
                Use(pid, stat.command, stat.own / _TICK, stat.rss, stat.threads, *opened[pid])
                for pid, stat in tree.items()
            ),
        ]

    def _tree(self) -> dict[int, _Stat]:
        numbers = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        self._outside &= numbers
        found = {pid: stat for pid in numbers - self._outside - {self._root} if (stat := _stat(pid)) is not None}
        tree: dict[int, _Stat] = {}
        for pid in sorted(found):
            line = [pid]
            # A parent that has ended since is not known: its children are not judged this time.
            while line[-1] in found and line[-1] not in tree:
                line.append(found[line[-1]].parent)
            if line[-1] == self._root or line[-1] in tree:
                tree.update({member: found[member] for member in line[:-1]})
            elif line[-1] in self._outside or line[-1] in (0, 1):
                self._outside.update(line[:-1])
        return tree

    def _opened(self, tree: dict[int, _Stat], now: float) -> dict[int, tuple[int, int]]:
        """Return the number of open files and of connections of each process."""
        if now < self._next_sockets:
            return {pid: (_files(pid), UNKNOWN) for pid in tree}
        began = time.thread_time()
        sockets = {pid: _sockets(pid) for pid in tree}
        established = _established()
        counted = {
            pid: (_files(pid), UNKNOWN if mine is None or established is None else len(mine & established))
            for pid, mine in sockets.items()
        }
        self._next_sockets = now + (time.thread_time() - began) / _SHARE
        return counted


def _stat(pid: int) -> _Stat | None:
    """Return what the kernel says of a process, None of one that is gone or has ended and is not waited for yet."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            told = file.read(4096)
    except OSError:
        return None
    # The command stands in brackets, and may hold blanks and brackets itself.
    before, _, after = told.rpartition(b") ")
    fields = after.split()
    if len(fields) < 22:
        return None
    user, system, user_below, system_below = map(int, fields[11:15])
    command = before.partition(b" (")[2].decode("utf-8", "replace")
    # A zombie still holds the seconds that its parent has not inherited.
    return _Stat(
        int(fields[1]), command, user + system, user_below + system_below, int(fields[21]) * _PAGE, int(fields[17])
    )


def _files(pid: int) -> int:
    try:
        # Since Linux 6.2 the size of this folder is the number of its entries.
        return os.stat(f"/proc/{pid}/fd").st_size or len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return UNKNOWN


def _sockets(pid: int) -> set[int] | None:
    """Return the inodes of a process's sockets, None if it may not be looked into."""
    inodes = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return None
    for name in names:
        try:
            link = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if link.startswith(_SOCKET):
            inodes.add(int(link[len(_SOCKET) : -1]))
    return inodes


def _established() -> set[int] | None:
    """Return the inodes of all TCP connections of this machine, None where the kernel does not tell them."""
    inodes: set[int] = set()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(1.0)
            for family in (socket.AF_INET, socket.AF_INET6):
                question = _QUESTION.pack(family, socket.IPPROTO_TCP, 0, 0, _ONLY_ESTABLISHED)
                length = _HEADER.size + len(question)
                kernel.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _REQUEST_AND_DUMP, 0, 0) + question)
                while _read_inodes(kernel.recv(1 << 18), inodes):
                    pass
    except OSError:
        return None
    return inodes


def _read_inodes(told: bytes, inodes: set[int]) -> bool:
    """Read the inodes in a part of the kernel's answer, and tell whether there is more to come."""
    at = 0
    while at < len(told):
        length, kind, *_ = _HEADER.unpack_from(told, at)
        if kind == _DONE:
            return False
        if kind == _ERROR:
            raise OSError("the kernel does not tell of its sockets")
        inodes.add(_INODE.unpack_from(told, at + _INODE_AT)[0])
        at += length + 3 & ~3
    return True


def written(uses: list[Use], at: float) -> str:
    """Write a census as a line."""
    words = " ".join(
        f"{use.pid}:{use.cpu:.2f}:{use.rss}:{use.threads}:{use.files}:{use.connections}:{_UNFIT.sub('?', use.command)}"
        for use in uses
    )
    return f"{at:.3f} {words} ."


def read(text: str, part: str) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the lines of a part's guard as rows of `TABLES["server"]`, without those that were cut off."""
    import numpy as np

    from hpcstress.result import TABLES

    rows = []
    for line in text.splitlines():
        at, *words = line.split(" ")
        if words and words.pop() == ".":
            rows += [(float(at), part, *_numbers(word)) for word in words]
    return np.array(rows, TABLES["server"])


def _numbers(word: str) -> tuple[Any, ...]:
    pid, cpu, rss, threads, files, connections, command = word.split(":")
    return int(pid), command, float(cpu), int(rss), int(threads), int(files), int(connections)
