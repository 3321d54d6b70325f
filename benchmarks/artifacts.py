"""Artifacts: how fast they are made, and how fast they are uploaded beside `curl -T`.

Both upload the same bytes to the same server, which reads them and forgets them, and whose clock counts: from the first
bytes of a request to its last. curl reads its file from memory; hpcstress makes the bytes while it sends them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.finding import Finding, NotMeasuredError, at_least
from benchmarks.machine import GENERATOR, Served, find, server, use
from benchmarks.rank import play
from benchmarks.rounds import Say, in_turn, medians
from benchmarks.servers import RUN_ID
from hpcstress.clients.requests import ARTIFACTS
from hpcstress.content import CHUNK, Artifact

SIZE = 1 << 29
ROUNDS = 5
GB = 1e9


def make() -> float:
    """Return how many GB of an artifact are made and copied into a buffer in a second."""
    buffer = memoryview(bytearray(CHUNK))
    began = perf_counter()
    for chunk in _artifact().chunks():
        buffer[: len(chunk)] = chunk
    return SIZE / GB / (perf_counter() - began)


def checksum() -> float:
    """Return how many GB of an artifact are made and summed up in a second."""
    began = perf_counter()
    _artifact().sha256()
    return SIZE / GB / (perf_counter() - began)


def hpcstress(sink: Served) -> float:
    """Upload with hpcstress, and return its CPU seconds for a GB."""
    return play(sink.uri, "upload", 1, 60, artifact_size=SIZE).load_cpu_seconds / (SIZE / GB)


def curl(program: str, file: Path, sink: Served) -> float:
    """Upload with curl, and return its CPU seconds for a GB."""
    address = f"{sink.uri}{ARTIFACTS}/1/{RUN_ID}/artifacts/artifact-0.bin"
    words = ("--silent", "--show-error", "--fail", "--output", "/dev/null", "--header", "Expect:")
    return use(GENERATOR, program, *words, "--upload-file", file, address).cpu_seconds / (SIZE / GB)


def measure(folder: Path, say: Say) -> Finding:
    """Make bytes, then upload in turn."""
    program = find("curl", "apt-get install curl")
    making = in_turn({"made": make, "made and summed up": checksum}, ROUNDS, say)
    file = folder / "artifact-0.bin"
    with file.open("wb") as written:
        written.writelines(_artifact().chunks())
    with server("sink") as sink:
        uploading = in_turn(
            {"hpcstress": partial(hpcstress, sink), "curl": partial(curl, program, file, sink)}, ROUNDS, say
        )
        noted = sink.stop()
    sizes, nanoseconds = noted[0::2], noted[1::2]
    if list(sizes) != [SIZE] * 2 * ROUNDS:
        raise NotMeasuredError(f"The server got uploads of {list(sizes)} bytes.")
    speeds = [SIZE / each for each in nanoseconds]
    rounds = {**making, "hpcstress": speeds[0::2], "curl": speeds[1::2]}
    middle, cpu = medians(rounds), medians(uploading)
    return Finding(
        question=f"How fast are artifacts made, and uploaded beside curl ({SIZE >> 20} MiB)?",
        columns=["", "GB/s", "CPU s/GB"],
        rows=[
            *([name, f"{middle[name]:.2f}", ""] for name in making),
            *([f"uploaded by {name}", f"{middle[name]:.2f}", f"{cpu[name]:.2f}"] for name in uploading),
        ],
        goals=[
            at_least("made on one core", middle["made"], 1.0, " GB/s"),
            at_least("upload, hpcstress / curl", middle["hpcstress"] / middle["curl"], 0.9),
        ],
        rounds={**rounds, **{f"{name} CPU s/GB": values for name, values in uploading.items()}},
    )


def _artifact() -> Artifact:
    return Artifact("artifact-0.bin", SIZE, seed=1, run=0, index=0)
