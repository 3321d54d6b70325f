from __future__ import annotations

import pytest

from hpcstress.errors import UsageRefusal
from hpcstress.plan import Plan
from hpcstress.record import Operation
from hpcstress.workloads import check
from tests.workloads.paper import names, played, run_of

PARAMETERS = Plan(workload="parameters", params=250)


def test_each_method_has_an_mlflow_run_of_its_own() -> None:
    client = played(PARAMETERS)
    created = [payload[0] for operation, payload in client.requests if operation is Operation.create_run]
    assert created == [run_of(PARAMETERS).part(number)[0] for number in range(3)]
    assert names(client).count("finish_run") == 3


@pytest.mark.parametrize(("method", "requests"), [("log_param", 250), ("log_params", 3), ("log_batch", 3)])
def test_a_method_sends_all_parameters_in_as_many_requests_as_the_stock_client(method: str, requests: int) -> None:
    plan = PARAMETERS.with_options({"method": method})
    client = played(plan)
    assert names(client) == ["create_run", *[method] * requests, "get_run", "finish_run"]
    logged = [payload for operation, payload in client.requests if operation is Operation[method]]
    pairs = {
        "log_param": lambda: logged,
        "log_params": lambda: [pair for piece in logged for pair in piece],
        "log_batch": lambda: [pair for batch in logged for pair in batch.params],
    }[method]()
    assert pairs == run_of(plan).params[:]
    assert len(set(pairs)) == 250


def test_all_methods_come_one_after_the_other() -> None:
    order = list(dict.fromkeys(name for name in names(played(PARAMETERS)) if name.startswith("log")))
    assert order == ["log_param", "log_params", "log_batch"]


@pytest.mark.parametrize("options", [{"method": "log_artifact"}, {"sweep": "method=log_param,log_artifacts"}])
def test_a_method_of_another_workload_is_refused_on_any_rung(options: dict[str, str]) -> None:
    with pytest.raises(UsageRefusal, match=r"^--method: parameters knows log_param, log_params, log_batch and all"):
        check(PARAMETERS.with_options(options))
    check(PARAMETERS.with_options({"sweep": "method=log_param,all"}))


def test_a_failure_ends_all_methods() -> None:
    whole = played(PARAMETERS).requests
    for number in (0, 7, len(whole) - 1):
        assert played(PARAMETERS, fails_at=number).requests == whole[: number + 1]
