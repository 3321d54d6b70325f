"""Servers for measurements, each a process of its own: they know what MLflow would answer, and what really happened."""

from __future__ import annotations

import json
import signal
import socket
import sys
from array import array
from types import FrameType

RUN_ID = "0123456789abcdef0123456789abcdef"

# One answer for every request that hpcstress makes: an experiment and a run, of the size that MLflow's have.
ANSWER_BODY = json.dumps(
    {
        "experiment": {"experiment_id": "1", "name": "bench", "lifecycle_stage": "active"},
        "run": {
            "info": {
                "run_uuid": RUN_ID,
                "experiment_id": "1",
                "run_name": "bench",
                "user_id": "unknown",
                "status": "RUNNING",
                "start_time": 1_700_000_000_000,
                "artifact_uri": f"mlflow-artifacts:/1/{RUN_ID}/artifacts",
                "lifecycle_stage": "active",
                "run_id": RUN_ID,
            },
            "data": {"tags": [{"key": "mlflow.runName", "value": "bench"}]},
            "inputs": {},
        },
    }
)
ANSWER = (
    f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(ANSWER_BODY)}\r\n\r\n{ANSWER_BODY}"
).encode()


def listen() -> socket.socket:
    """Listen on a free port of this machine, and say which on standard output."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    return listener


def tell_when_ended(noted: array[int]) -> None:
    """Let SIGTERM end this process after it has written what it noted to standard output."""

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        sys.stdout.buffer.write(noted.tobytes())
        sys.stdout.flush()
        raise SystemExit

    signal.signal(signal.SIGTERM, end)
