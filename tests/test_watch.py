from __future__ import annotations

import threading

import pytest

from hpcstress.watch import _SILENT_BEATS, Watch


class Wire:
    """Be both neighbours: note what is said, and say what the test wants."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.words: list[str] = []

    def speak(self, word: str) -> None:
        self.said.append(word)

    def listen(self) -> list[str]:
        words, self.words = self.words, []
        return words


def watched() -> tuple[Wire, Watch, list[str]]:
    wire, ended = Wire(), list[str]()
    return wire, Watch(wire, "rank 4 on n2", "rank 3", lambda name, _: ended.append(name), lambda _: None), ended


def beat(watch: Watch, times: int) -> None:
    for _ in range(times):
        watch.beat()


def test_it_says_its_name_at_every_beat() -> None:
    wire, watch, _ = watched()
    beat(watch, 3)
    assert wire.said == ["rank 4 on n2"] * 3


def test_one_that_falls_silent_ends_the_job_under_the_name_that_it_has_said() -> None:
    wire, watch, ended = watched()
    wire.words = ["rank 3 on n1"]
    beat(watch, 1 + _SILENT_BEATS - 1)
    assert not ended
    beat(watch, 1)
    assert ended == ["rank 3 on n1"]


def test_one_that_was_never_heard_ends_it_too() -> None:
    _, watch, ended = watched()
    beat(watch, _SILENT_BEATS)
    assert ended == ["rank 3"]


def test_one_word_is_enough_to_be_waited_for_anew() -> None:
    wire, watch, ended = watched()
    for _ in range(3):
        beat(watch, _SILENT_BEATS - 1)
        wire.words = ["rank 3 on n1"]
        beat(watch, 1)
    assert not ended


def test_nobody_misses_one_that_has_said_goodbye() -> None:
    wire, watch, ended = watched()
    wire.words = ["rank 3 on n1", ""]
    beat(watch, 3 * _SILENT_BEATS)
    assert not ended


def test_when_it_is_closed_its_thread_is_over_and_goodbye_is_its_last_word() -> None:
    wire, watch, _ = watched()
    before = threading.enumerate()
    watch.start()
    assert wire.said[0] == "rank 4 on n2"
    watch.close()
    assert wire.said[-1] == ""
    assert threading.enumerate() == before


def test_one_that_hangs_in_its_own_words_is_seen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcstress.watch._BEAT_SECONDS", 0.001)
    hung, freed = threading.Event(), threading.Event()
    silent: list[float] = []

    class Stuck(Wire):
        """Never return from a word while the test goes on."""

        def listen(self) -> list[str]:
            freed.wait()
            return []

    def hang(seconds: float) -> None:
        silent.append(seconds)
        hung.set()
        freed.set()

    watch = Watch(Stuck(), "rank 4", "rank 3", lambda *_: None, hang)
    watch.start()
    assert hung.wait(30)
    watch.close()
    # It has as long as one that does not speak at all.
    assert silent[0] == pytest.approx(0.001 * (_SILENT_BEATS + 1))
