from __future__ import annotations

from hpcstress.plan import Plan
from tests.workloads.paper import played, run_of

CREATE_RUN = Plan(workload="create-run")


def test_each_iteration_creates_one_run_and_leaves_it_as_it_is() -> None:
    run = run_of(CREATE_RUN)
    client = played(CREATE_RUN, turns=5)
    assert [(operation.name, payload) for operation, payload in client.requests] == [
        ("create_run", (run.name, run.tags))
    ]
    assert client.turns == 1
