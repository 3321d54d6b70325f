"""Everything MPI: who am I, common words, common clock, rows to rank 0, and a failing rank that ends the job.

Nobody ever blocks in MPI while load runs: a blocked rank burns a core and falsifies its neighbours' latencies. Every
wait is a nonblocking request, a test and a sleep. Without a launcher there is one rank, and no MPI is loaded.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from time import monotonic_ns
from typing import Any, NoReturn, TypeVar

import numpy as np

from hpcstress.clocks import NO_OFFSET, Offset, Ping, Sources, aged, enough, offset_of, sources, through
from hpcstress.errors import FAILED, Refusal
from hpcstress.launcher import (
    clock_name,
    is_first_of_node,
    node_name,
    promised_rank,
    promised_size,
    seconds_since_start,
    wrong_size,
)
from hpcstress.leftovers import sweep
from hpcstress.quantity import count
from hpcstress.record import RECORD
from hpcstress.tree import branch
from hpcstress.watch import Watch

T = TypeVar("T")

_SENDERS_AT_ONCE = 32
_QUESTIONS = 32
_LAST_WORDS_SECONDS = 0.3
_UNHEARD_WORDS = 100
# What other jobs of this node are just making is younger.
_LEFTOVER_SECONDS = 600
# A rank that dies while MPI starts leaves the others waiting there, and none of them can watch it yet. Where files are
# read from a busy file system, the last rank may need so many times as long as this one.
_JOIN_SECONDS = 300
_STORMS = 10
# MPICH keeps 17 MB on every rank for messages of a kind that no word here belongs to (one-sided ones).
_FRUGAL = {"MPIR_CVAR_CH4_OFI_ENABLE_AM": "0"}


class Tag(IntEnum):
    """Tell messages of different conversations apart."""

    word = 1
    beat = 2
    stop = 3
    clock = 4
    turn = 5
    rows = 6


class World:
    """Be the only rank: what needs nobody else. `MpiWorld` says the same words to many."""

    rank = 0
    size = 1
    library = "none"

    def anew(self) -> World:
        """Return the same ranks, to whom nothing has been said yet: for one more job."""
        return self

    def tell(self, value: T | None) -> T:
        """Return rank 0's value on every rank."""
        assert value is not None
        return value

    def collect(self, value: T) -> list[T]:
        """Return everybody's values in the order of the ranks on rank 0, an empty list elsewhere."""
        return [value]

    def deal(self, values: list[T] | None) -> T:
        """Return to each rank its own one of rank 0's values."""
        assert values is not None
        return values[0]

    def offset(self) -> Offset:
        """Measure this rank's clock against rank 0's. Every rank calls this."""
        return NO_OFFSET._replace(at=monotonic_ns())

    def gather_rows(self, rows: Iterable[np.ndarray[Any, Any]], store: Callable[[np.ndarray[Any, Any]], None]) -> None:
        """Hand every rank's rows to `store` on rank 0, piece by piece."""
        for piece in rows:
            store(piece)

    def beat(self, word: object) -> dict[int, Any]:
        """Tell rank 0 how far this rank is; return the newest words of the others, by rank, on rank 0."""
        return {0: word}

    def stop_all(self) -> None:
        """Ask every rank to stop its load."""

    def stopped(self) -> bool:
        """Tell whether rank 0 has asked to stop."""
        return False

    def first_refusal(self, check: Callable[[], T]) -> T:
        """Run a check on every rank; if one refuses, all do, with the sentence of the first."""
        value: T | None = None
        refusal: Refusal | None = None
        try:
            value = check()
        except Refusal as refused:
            refusal = refused
        place = f"Rank {self.rank} on {node_name(os.environ)}: " if self.size > 1 else ""
        heard = self.collect((f"{place}{refusal}", refusal.exit_code) if refusal else None)
        said = next((word for word in heard if word), None)
        first = self.tell((said,))[0]
        if first is not None:
            sentence, code = first
            raise _refusal(sentence, code)
        return value  # type: ignore[return-value]

    def only_first(self, act: Callable[[], T]) -> T:
        """Let rank 0 act and give everybody what it returns; if it refuses, all do."""
        word: tuple[T | None, tuple[str, int] | None] | None = None
        if self.rank == 0:
            try:
                word = (act(), None)
            except Refusal as refusal:
                word = (None, (str(refusal), refusal.exit_code))
        value, refused = self.tell(word)
        if refused is not None:
            raise _refusal(*refused)
        return value  # type: ignore[return-value]


def _refusal(sentence: str, exit_code: int) -> Refusal:
    refusal = Refusal(sentence)
    refusal.exit_code = exit_code
    refusal.shared = True
    return refusal


class MpiWorld(World):
    """Speak with the other ranks over a communicator."""

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = comm.Dup()
        self.rank = comm.rank
        self.size = comm.size
        self.library = _library(MPI)
        self._parent, self._children = branch(self.rank, self.size)
        self._sources: Sources | None = None
        self._beats: dict[int, Any] = {}
        self._unsent: list[Any] = []

    def anew(self) -> World:
        # What was still under way of the job before stays with its communicator.
        return MpiWorld(self._comm)

    def _wait(self, request: Any) -> Any:
        return _poll(request.test, done=lambda answer: answer[0])[1]

    def _send(self, value: object, rank: int, tag: Tag) -> None:
        self._wait(self._comm.isend(value, rank, tag))

    def _send_down(self, words: Iterable[object]) -> None:
        # All at once: who is slow to listen keeps nobody else waiting.
        sent = [self._comm.isend(word, child[0], Tag.word) for child, word in zip(self._children, words, strict=True)]
        for request in sent:
            self._wait(request)

    def _receive(self, rank: int, tag: Tag) -> Any:
        message = _poll(lambda: self._comm.improbe(rank, tag), _is_there)
        return message.recv()

    def tell(self, value: T | None) -> T:
        told: T | None = value if self._parent is None else self._receive(self._parent, Tag.word)
        self._send_down([told] * len(self._children))
        assert told is not None or self.rank
        return told  # type: ignore[return-value]

    def collect(self, value: T) -> list[T]:
        heard = [value]
        for child in self._children:
            heard += self._receive(child[0], Tag.word)
        if self._parent is None:
            return heard
        self._send(heard, self._parent, Tag.word)
        return []

    def deal(self, values: list[T] | None) -> T:
        mine: list[T] | None = values if self._parent is None else self._receive(self._parent, Tag.word)
        assert mine is not None
        self._send_down(mine[child[0] - self.rank : child[-1] + 1 - self.rank] for child in self._children)
        return mine[0]

    def offset(self) -> Offset:
        if self._sources is None:
            clocks = self.collect(clock_name())
            self._sources = self.deal(sources(clocks) if self.rank == 0 else None)
        mine = self._measured(self._sources)
        for rank in self._sources.asked_by:
            self._tell_time(rank, mine)
        for rank in self._sources.read_with:
            self._send(mine, rank, Tag.clock)
        return mine

    def _measured(self, known: Sources) -> Offset:
        if known.same_as is not None:
            told: Offset = self._receive(known.same_as, Tag.clock)
            return told
        return NO_OFFSET._replace(at=monotonic_ns()) if known.asks is None else self._ask_time(known.asks)

    def _ask_time(self, rank: int) -> Offset:
        # A word wakes the other rank first, so that its sleep is not taken for distance. Only such a pair blocks, for a
        # few microseconds each time, while no load runs.
        self._receive(rank, Tag.clock)
        self._send(None, rank, Tag.clock)
        pings: list[Ping] = []
        while not enough(pings):
            sent = monotonic_ns()
            self._comm.send(True, rank, Tag.clock)
            remote = self._comm.recv(source=rank, tag=Tag.clock)
            pings.append(Ping(sent, remote, monotonic_ns()))
        self._send(False, rank, Tag.clock)
        return through(offset_of(pings), self._receive(rank, Tag.clock))

    def _tell_time(self, rank: int, mine: Offset) -> None:
        self._send(None, rank, Tag.clock)
        self._receive(rank, Tag.clock)
        while self._comm.recv(source=rank, tag=Tag.clock):
            self._comm.send(monotonic_ns(), rank, Tag.clock)
        # Rank 0's clock is never unsure of itself.
        self._send(aged(mine, monotonic_ns()) if self.rank else mine, rank, Tag.clock)

    def gather_rows(self, rows: Iterable[np.ndarray[Any, Any]], store: Callable[[np.ndarray[Any, Any]], None]) -> None:
        # A few ranks send at a time: rank 0 holds a few pieces at most, whatever the number of ranks.
        if self.rank != 0:
            self._receive(0, Tag.turn)
            for piece in rows:
                # An empty piece is the end.
                if len(piece):
                    self._wait(self._comm.Isend([piece, self._mpi.BYTE], 0, Tag.rows))
            self._wait(self._comm.Isend([np.zeros(0, np.uint8), self._mpi.BYTE], 0, Tag.rows))
            return
        for piece in rows:
            store(piece)
        waiting = list(range(self.size - 1, 0, -1))
        sending = 0
        while waiting or sending:
            while waiting and sending < _SENDERS_AT_ONCE:
                self._send(None, waiting.pop(), Tag.turn)
                sending += 1
            status = self._mpi.Status()
            message = _poll(
                lambda status=status: self._comm.Improbe(self._mpi.ANY_SOURCE, Tag.rows, status),  # type: ignore[misc]
                done=_is_there,
            )
            piece = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
            message.Recv([piece, self._mpi.BYTE])
            if len(piece):
                store(piece.view(RECORD))
            else:
                sending -= 1

    def beat(self, word: object) -> dict[int, Any]:
        if self.rank != 0:
            self._unsent = [request for request in self._unsent if not request.test()[0]]
            self._unsent.append(self._comm.isend((self.rank, word), 0, Tag.beat))
            return {}
        while (message := _ask(lambda: self._comm.improbe(self._mpi.ANY_SOURCE, Tag.beat), _is_there)) is not None:
            rank, heard = message.recv()
            self._beats[rank] = heard
        self._beats[0] = word
        return self._beats

    def stop_all(self) -> None:
        self._unsent += [self._comm.isend(None, rank, Tag.stop) for rank in range(1, self.size)]

    def stopped(self) -> bool:
        message = _ask(lambda: self._comm.improbe(0, Tag.stop), _is_there)
        if message is None:
            return False
        message.recv()
        return True


def _poll(ask: Callable[[], T], done: Callable[[T], object]) -> T:
    """Ask again and again, sleeping longer each time, until the answer is final."""
    pause = 0.0002
    while not done(answer := _ask(ask, done)):
        time.sleep(pause)
        pause = min(0.02, pause * 1.5)
    return answer


def _ask(ask: Callable[[], T], done: Callable[[T], object]) -> T:
    """Ask a few times in a row: at each question MPI looks at one message, and others may stand before ours."""
    for _ in range(_QUESTIONS):
        if done(answer := ask()):
            break
    return answer


def _is_there(message: object) -> bool:
    return message is not None


@contextmanager
def world(environment: Mapping[str, str] | None = None) -> Iterator[World]:
    """Join the other ranks. An exception that leaves the block ends the job on all ranks, with its traceback."""
    environment = os.environ if environment is None else environment
    promised = promised_size(environment)
    if promised is None:
        yield World()
        return
    with _at_most(_JOIN_SECONDS + _STORMS * seconds_since_start()):
        mpi = _load_mpi()
        comm = mpi.COMM_WORLD
        if comm.size != promised:
            # Every rank sees the same: one of them says it, and none goes on to overwrite the others' results.
            if promised_rank(environment) == 0:
                _say(wrong_size(promised, comm.size, _library(mpi)))
            raise SystemExit(FAILED)
        if is_first_of_node(environment):
            sweep(_LEFTOVER_SECONDS)
        place = f"rank {comm.rank} on {node_name(environment)}"
        watch = _watch(mpi, comm, place)
    try:
        yield MpiWorld(comm)
    except Exception as error:
        if isinstance(error, Refusal) and error.shared:
            raise
        if not isinstance(error, Refusal):
            _say(traceback.format_exc().rstrip("\n"))
        told = f"{error}\n" if isinstance(error, Refusal) else ""
        _end(comm, f"{told}{place} failed: the job of {count(comm.size, 'rank')} ends.")
    finally:
        if watch is not None:
            watch.close()


def _end(comm: Any, sentence: str) -> NoReturn:
    """End the job on all ranks."""
    _say(sentence)
    # A launcher passes on what ranks have said only while they live.
    time.sleep(_LAST_WORDS_SECONDS)
    comm.Abort(FAILED)
    # Some launchers end this process only a moment later: nothing of it may go on until then.
    os._exit(FAILED)


def _say(text: str) -> None:
    # In one piece, its end included: other ranks may speak at this moment.
    print(f"{text}\n", end="", file=sys.stderr, flush=True)


class _Neighbours:
    """Speak to the next rank and hear the one before."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm.Dup()
        self._next = (comm.rank + 1) % comm.size
        self._before = (comm.rank - 1) % comm.size
        self._unheard: list[Any] = []

    def speak(self, word: str) -> None:
        self._unheard = [request for request in self._unheard if not request.test()[0]]
        # One that does not listen any more needs no further words.
        if len(self._unheard) < _UNHEARD_WORDS:
            self._unheard.append(self._comm.isend(word, self._next))

    def listen(self) -> list[str]:
        heard = []
        while (message := _ask(lambda: self._comm.improbe(self._before), _is_there)) is not None:
            heard.append(message.recv())
        return heard


def _watch(mpi: Any, comm: Any, name: str) -> Watch | None:
    # Of a library that lets one thread speak nobody can listen while the rank is busy: the launcher has to.
    if comm.size == 1 or mpi.Query_thread() < mpi.THREAD_MULTIPLE:
        return None

    def end(silent: str, seconds: float) -> None:
        _end(
            comm,
            f"Nothing was heard of {silent} for {seconds:.0f} s: it was killed, its node is cut off, or it hangs in "
            "MPI because that happened to another one. The job of "
            f"{count(comm.size, 'rank')} ends; `hpcstress recover` makes the result of what was measured.",
        )

    def hang(seconds: float) -> None:
        # Not with a word of MPI's: that would hang, too.
        _say(
            f"{name} hangs in MPI for {seconds:.0f} s, as it does when a rank was killed or a node is cut off: "
            f"the job of {count(comm.size, 'rank')} ends; `hpcstress recover` makes the result of what was measured."
        )
        os._exit(FAILED)

    watch = Watch(_Neighbours(comm), name, f"rank {(comm.rank - 1) % comm.size}", end, hang)
    watch.start()
    return watch


def _library(mpi: Any) -> str:
    told: str = mpi.Get_library_version()
    return " ".join(told.split("\n", maxsplit=1)[0].strip("\0 ").split())[:60]


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End this process if it does not leave the block in time; what holds the interpreter there stops its threads."""
    # Not by sys.stderr, which may be no file.
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _load_mpi() -> Any:
    for name, value in _FRUGAL.items():
        os.environ.setdefault(name, value)
    try:
        import mpi4py

        # The main thread speaks, and the one that watches.
        mpi4py.rc.thread_level = "multiple"
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        first = str(error).split("\n", maxsplit=1)[0]
        raise Refusal(
            f"There is no MPI library for several ranks ({first}): load the site's MPI module, "
            "or install one with `pip install 'hpcstress[mpich]'`."
        ) from None
    return MPI
