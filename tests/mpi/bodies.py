"""What holds between the ranks of any world: each function is run by every rank, `python -m tests.mpi.bodies NAME`."""

from __future__ import annotations

import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from socket import gethostname
from types import TracebackType
from typing import Any
from unittest.mock import patch

import numpy as np

from hpcstress import ranks, tree
from hpcstress.clocks import Offset
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.ranks import World
from hpcstress.record import RECORD

_PIECE = 1 << 16


def everybody_hears_what_rank_0_says(world: World) -> None:
    for value in (0, False, "", (), {"a": [1.5]}, b"x" * 5_000_000, range(3)):
        told: Any = world.tell(value if world.rank == 0 else None)
        assert told == value
        assert type(told) is type(value)


def rank_0_hears_everybody_in_the_order_of_the_ranks(world: World) -> None:
    for late in (range(world.size), range(world.size)[::-1]):
        time.sleep(0.02 * late[world.rank])
        heard = world.collect((world.rank, "x" * 100_000 * world.rank))
        assert heard == ([(rank, "x" * 100_000 * rank) for rank in range(world.size)] if world.rank == 0 else [])


def each_gets_its_own(world: World) -> None:
    shares = [[rank] * rank for rank in range(world.size)]
    assert world.deal(shares if world.rank == 0 else None) == shares[world.rank]
    assert world.deal([None] * world.size if world.rank == 0 else None) is None


def _pieces(scene: int, rank: int) -> list[np.ndarray[Any, Any]]:
    """Return the pieces that a rank has to hand over in a scene: none, empty ones, small ones, one of full size."""
    random = np.random.default_rng([scene, rank])
    kinds = {0: [], 1: [0, 1, 0], 2: random.integers(1, 500, 7).tolist(), 3: [_PIECE, 3]}
    pieces = []
    for length in kinds[int(random.integers(0, 4))]:
        piece = np.frombuffer(random.bytes(length * RECORD.itemsize), RECORD).copy()
        piece["rank"] = rank
        pieces.append(piece)
    return pieces


def every_row_comes_to_rank_0_in_pieces_of_bounded_size(world: World) -> None:
    for scene in range(12):
        stored: list[np.ndarray[Any, Any]] = []
        world.gather_rows(iter(_pieces(scene, world.rank)), stored.append)
        if world.rank:
            assert stored == []
            continue
        assert all(len(piece) <= _PIECE for piece in stored)
        for rank in range(world.size):
            mine = [piece for piece in stored if len(piece) and piece["rank"][0] == rank]
            sent = [piece for piece in _pieces(scene, rank) if len(piece)]
            # The pieces of one rank keep their order.
            assert [piece.tobytes() for piece in mine] == [piece.tobytes() for piece in sent]


def rank_0_stays_small_while_many_rows_arrive(world: World) -> None:
    def rows(pieces: int) -> Iterator[np.ndarray[Any, Any]]:
        for _ in range(pieces):
            yield np.ones(_PIECE, RECORD)

    grown = []
    for pieces in (1, 1, 12):
        world.gather_rows(rows(pieces), lambda _: None)
        grown.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    # Twelve times as much, of which less than one more of each rank is ever there.
    assert grown[2] - grown[1] < _PIECE * RECORD.itemsize * max(2, world.size)


def rows_are_asked_for_before_they_are_made(world: World) -> None:
    made = 0

    def rows() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal made
        for _ in range(5):
            made += 1
            yield np.zeros(10, RECORD)

    length = 0

    def store(piece: np.ndarray[Any, Any]) -> None:
        nonlocal length
        length += len(piece)

    world.gather_rows(rows(), store)
    assert made == 5
    assert length == (50 * world.size if world.rank == 0 else 0)


def the_clock_of_one_machine_is_the_same_for_all(world: World) -> None:
    for _ in range(3):
        offset = world.offset()
        assert (offset.offset_ns, offset.error_ns) == (0, 0)
        assert offset.at <= time.monotonic_ns()


def clocks_that_may_differ_are_measured_within_the_error(world: World) -> None:
    # Every second rank believes that it has one of its own, the others that they share one.
    name = f"{world.rank}" if world.rank % 2 else "shared"
    with patch.object(ranks, "clock_name", lambda: name):
        for _ in range(3):
            offset = world.offset()
            # The clock is the same for all of them: what is measured is the error.
            assert abs(offset.offset_ns) <= offset.error_ns
            assert (offset.error_ns > 0) == (world.rank % 2 == 1)


def who_measures_against_a_rank_that_has_measured_long_ago_is_as_unsure_as_it_is_now(world: World) -> None:
    # Each asks the one before it, and all believe that they have measured ten seconds ago.
    def long_ago(_: object) -> Offset:
        return Offset(0, 10, time.monotonic_ns() - 10_000_000_000)

    with (
        patch.object(ranks, "clock_name", lambda: f"{world.rank}"),
        patch.object(tree, "FAN_OUT", 1),
        patch.object(ranks, "offset_of", long_ago),
    ):
        error = world.anew().offset().error_ns
    # Clocks may part by a millisecond in each second; nobody but rank 0 is sure of its own.
    before = max(0, world.rank - 1)
    assert 10 * world.rank + 10_000_000 * before <= error
    assert (error == 0) == (world.rank == 0)
    world.collect(None)


def a_refusal_on_any_rank_is_everybodys(world: World) -> None:
    for refusing in range(world.size):

        def check(refusing: int = refusing) -> int:
            # Those that come after it refuse, too: the first is told.
            if world.rank >= refusing:
                raise UsageRefusal(f"no {world.rank}")
            return world.rank

        refusal = _refused(lambda check=check: world.first_refusal(check))  # type: ignore[misc]
        place = f"Rank {refusing} on {gethostname()}: " if world.size > 1 else ""
        assert str(refusal) == f"{place}no {refusing}"
        assert refusal.exit_code == 2
        assert refusal.shared
        # Nobody is left waiting.
        assert world.tell("on" if world.rank == 0 else None) == "on"


def where_nobody_refuses_each_has_its_own_value(world: World) -> None:
    assert world.first_refusal(lambda: world.rank) == world.rank


def rank_0_acts_for_all_and_refuses_for_all(world: World) -> None:
    acted = []

    def act() -> str:
        acted.append(world.rank)
        return "done"

    def refuse() -> None:
        raise Refusal("no")

    assert world.only_first(act) == "done"
    assert acted == [0] * (world.rank == 0)
    assert world.only_first(lambda: None) is None
    refusal = _refused(lambda: world.only_first(refuse))
    assert (str(refusal), refusal.exit_code, refusal.shared) == ("no", 1, True)


def rank_0_sees_how_far_the_others_are(world: World) -> None:
    for word in range(100):
        world.beat(word)
    # Words and beats are different conversations: neither takes the other's messages.
    assert world.tell("between" if world.rank == 0 else None) == "between"
    heard = world.beat(100)
    if world.rank == 0:
        # Also of those of whom nothing was heard so far.
        while heard != dict.fromkeys(range(world.size), 100):
            heard = world.beat(100)
    else:
        assert heard == {}
    world.collect(None)


def everybody_hears_of_the_stop_once(world: World) -> None:
    assert not world.stopped()
    world.collect(None)
    if world.rank == 0:
        world.stop_all()
    else:
        while not world.stopped():
            world.beat("waiting")
        assert not world.stopped()
    world.collect(None)


BODIES: dict[str, Callable[[World], None]] = {
    body.__name__: body
    for body in (
        everybody_hears_what_rank_0_says,
        rank_0_hears_everybody_in_the_order_of_the_ranks,
        each_gets_its_own,
        every_row_comes_to_rank_0_in_pieces_of_bounded_size,
        rank_0_stays_small_while_many_rows_arrive,
        rows_are_asked_for_before_they_are_made,
        the_clock_of_one_machine_is_the_same_for_all,
        clocks_that_may_differ_are_measured_within_the_error,
        who_measures_against_a_rank_that_has_measured_long_ago_is_as_unsure_as_it_is_now,
        a_refusal_on_any_rank_is_everybodys,
        where_nobody_refuses_each_has_its_own_value,
        rank_0_acts_for_all_and_refuses_for_all,
        rank_0_sees_how_far_the_others_are,
        everybody_hears_of_the_stop_once,
    )
}


def _refused(act: Callable[[], object]) -> Refusal:
    try:
        act()
    except Refusal as refusal:
        return refusal
    raise AssertionError("nobody refused")


# What is not to be outlived.


def one_rank_trips_while_the_others_wait(world: World) -> None:
    if world.rank == world.size - 1:
        raise RuntimeError("tripped over a wire")
    if world.rank == 0:
        world.collect(None)
    else:
        world.tell(None)


def one_rank_refuses_alone(world: World) -> None:
    if world.rank == world.size - 1:
        raise Refusal("This machine has no room.")
    world.tell(None) if world.rank else world.collect(None)


def all_refuse_together(world: World) -> None:
    world.only_first(lambda: (_ for _ in ()).throw(UsageRefusal("Nobody goes on.")))


def _tell_in_one_piece(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
    # The interpreter writes a traceback in pieces, and between those other ranks write theirs.
    sys.stderr.write("".join(traceback.format_exception(error)))


def main() -> None:
    """Run one function on this rank; a failed assertion ends the job on all of them."""
    act = globals()[sys.argv[1]]
    sys.excepthook = _tell_in_one_piece
    with ranks.world() as world:
        assert str(world.size) == sys.argv[2]
        act(world)
        if world.rank == 0:
            print("it holds")


if __name__ == "__main__":
    main()
