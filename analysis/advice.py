"""What each cause of failure means, and what to do about it: one table."""

from __future__ import annotations

from typing import NamedTuple

from hpcstress.record import Outcome


class Advice(NamedTuple):
    """Say what happened, as the rest of `at 100 runs ...`, and what to do about it, as a request."""

    happened: str
    remedy: str


ADVICE: dict[Outcome, Advice] = {
    Outcome.timeout: Advice(
        "requests had no answer in time",
        "give the server more workers or a faster database, or raise --timeout if such waiting is acceptable",
    ),
    Outcome.refused: Advice(
        "connections could not be made",
        "check that the server runs, that every node reaches it, and that its backlog is long enough "
        '(--uvicorn-opts "--backlog 4096")',
    ),
    Outcome.closed: Advice(
        "the server closed connections without an answer",
        "its workers were probably killed and started again under load: start it with "
        '--uvicorn-opts "--timeout-worker-healthcheck 120", and look into its log for "Child process died"',
    ),
    Outcome.auth: Advice(
        "the server did not accept the sign-in",
        "check user name, password and permissions; if only some requests failed, let the server remember sign-ins "
        "(auth_cache_ttl_seconds = 60 in its basic_auth.ini)",
    ),
    Outcome.not_supported: Advice(
        "the server did not know an operation that was asked for",
        "leave that operation out of the plan, or let the server have it (--serve-artifacts, --enable-workspaces)",
    ),
    Outcome.throttled: Advice(
        "the server or a gateway before it limited the rate of requests",
        "raise that limit, or spread the runs over a longer time",
    ),
    Outcome.pool_exhausted: Advice(
        "the server's connection pool was exhausted",
        "raise MLFLOW_SQLALCHEMYSTORE_POOL_SIZE (80 is enough for the 40 threads of a worker; a server started with "
        "--server has that with pool=80)",
    ),
    Outcome.client_error: Advice(
        "the server rejected requests as wrong",
        "read its reason in the notes of this result or in the server's log: client and server may not fit together",
    ),
    Outcome.gateway: Advice(
        "a gateway had no server that could answer",
        "give the servers behind it more workers, and the gateway a longer time to wait for them",
    ),
    Outcome.disk_full: Advice(
        "the disk of the server was full",
        "free some of it, or give the server another disk; one that was started with --server keeps its data in TMPDIR",
    ),
    Outcome.server_error: Advice(
        "the server failed inside",
        "read the reason in the notes of this result or in its log: its disk may be full, and a locked SQLite database "
        "calls for PostgreSQL",
    ),
    Outcome.malformed: Advice(
        "answers came that are not MLflow's",
        "check that the address is that of an MLflow server and that nothing on the way changes answers",
    ),
    Outcome.tls: Advice(
        "encrypted connections could not be made",
        "check the certificate (MLFLOW_TRACKING_SERVER_CERT_PATH), or the CPU that handshakes take if only some failed",
    ),
    Outcome.missing: Advice(
        "answers lacked what the server had acknowledged before",
        "read the server's log; a search that is answered by a replica of the database finds what is new only later",
    ),
    Outcome.interrupted: Advice(
        "the job was stopped while requests were under way",
        "give it more time and run it again",
    ),
}

UNKNOWN = Advice("requests failed in a way that this hpcstress does not know", "read the result with a newer hpcstress")


def advice(cause: str) -> Advice:
    """Return what is to be said about a cause, given by its name."""
    return ADVICE[Outcome[cause]] if cause in Outcome.__members__ else UNKNOWN
