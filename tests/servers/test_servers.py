"""`start` by name, and what is told of the servers that there are."""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcstress import servers
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.servers import Spec
from hpcstress.servers.deployment import Deployment, Front
from hpcstress.servers.part import Recipe
from hpcstress.servers.spec import OPTIONS, SERVERS


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (temporary := tmp_path / "temporary files").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


def test_an_unknown_name_is_refused_with_the_nearest_names_and_leaves_nothing(temporary: Path) -> None:
    with pytest.raises(UsageRefusal, match=r"There is no server 'mlflow-sqlit'.* Did you mean mlflow-sqlite"):
        servers.start("mlflow-sqlit")
    assert list(temporary.iterdir()) == []


def test_a_port_that_is_taken_is_refused_before_anything_is_started(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcstress.servers.mlflow.assemble", lambda *_: pytest.fail("it was started"))
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(Refusal, match="Address already in use"):
        servers.start("mlflow-sqlite", port=server.getsockname()[1])
    assert list(temporary.iterdir()) == []


def test_a_server_is_put_together_by_its_name_with_its_options(
    little: Callable[..., Recipe], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Spec] = []

    def assemble(spec: Spec, site: Deployment) -> Front:
        asked.append(spec)
        site.add("tracking", little())
        return Front("http://127.0.0.1:7", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:7"}, {"name": site.name})

    monkeypatch.setattr("hpcstress.servers.mlflow.assemble", assemble)
    with servers.start("mlflow-sqlite,workers=2") as server:
        assert asked == [Spec(workers=2)]
        assert (server.uri, server.facts) == ("http://127.0.0.1:7", {"name": "mlflow-sqlite"})
        assert server.environment == {"MLFLOW_TRACKING_URI": "http://127.0.0.1:7"}
        assert len(server.pids()) == 1
    assert list(temporary.iterdir()) == []


def test_a_server_that_cannot_be_put_together_leaves_nothing(
    little: Callable[..., Recipe], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Deployment] = []

    def assemble(spec: Spec, site: Deployment) -> Front:
        site.add("database", little())
        started.append(site)
        raise Refusal("There is no tracking server.")

    monkeypatch.setattr("hpcstress.servers.mlflow.assemble", assemble)
    with pytest.raises(Refusal, match=r"There is no tracking server\."):
        servers.start("mlflow-sqlite")
    assert started[0].pids() == []
    assert list(temporary.iterdir()) == []


def test_every_name_can_be_put_together() -> None:
    # Manifests are written, not started.
    assert servers._ROOMS.keys() == SERVERS.keys() - {"kubernetes"}
    assert all(callable(servers._assembler(name)) for name in servers._ROOMS)


def test_the_list_tells_of_every_server_part_and_option_and_of_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise Refusal("It is not installed: install it.")

    for room, name in (("mlflow", "own"), ("zones", "own_with_s3"), ("zones", "own_with_mount")):
        monkeypatch.setattr(f"hpcstress.servers.{room}.{name}", lambda: None)
    monkeypatch.setattr("hpcstress.servers.mlflow.own_with_postgres", missing)
    told = "\n".join(servers.described())
    for name, named in SERVERS.items():
        assert f"  {name} " in told
        assert f"parts: {', '.join(named.parts)}\n" in told or not named.parts
        assert told.partition(f"  {name} ")[2].partition("options: ")[2].partition("\n")[0].split(", ") == [
            *named.options,
            *(["@VERSION"] if named.versions else []),
        ]
    for option in OPTIONS:
        assert f"\n  {option} " in told
    assert "[]" not in told
    # Two of them need PostgreSQL.
    assert told.count("not here: ") == 2
    assert told.index("mlflow-postgres ") < told.index("not here: It is not installed") < told.index("fasttrackml")


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Recipe]]:
    """Put a server together without installing or starting anything; return the recipes of its parts."""
    from hpcstress.servers import balancer, database, fasttrackml, mlflow, mlflow_go, mount, objects, zones

    for module in (fasttrackml, mlflow_go, objects):
        monkeypatch.setattr(module, "provide", lambda *_: tmp_path)
    for module in (mount, zones):
        monkeypatch.setattr(module, "lacking", lambda: None)
    monkeypatch.setattr(mlflow, "program", lambda *_: mlflow.Program(sys.executable, "3.17.2"))
    monkeypatch.setattr(database, "_programs", lambda _: (tmp_path, "18"))
    monkeypatch.setattr(database, "_open_to_all", lambda _: True)
    monkeypatch.setattr(balancer, "_program", lambda _: tmp_path / "nginx")
    monkeypatch.setattr(zones, "_need_boto3", lambda _: None)

    def put_together(text: str) -> dict[str, Recipe]:
        found: dict[str, Recipe] = {}
        monkeypatch.setattr(Deployment, "add", lambda _, name, recipe, **__: found.update({name: recipe}))
        spec = servers.read(text)
        with Deployment(spec.name) as site:
            servers._assembler(spec.name)(spec, site)
        return found

    return put_together


@pytest.mark.parametrize("name", sorted(servers._ROOMS))
def test_no_part_inherits_a_secret_of_clients_or_a_proxy_that_would_be_between_it_and_the_others(
    name: str, recipes: Callable[[str], dict[str, Recipe]], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (
        *("MLFLOW_TRACKING_TOKEN", "MANTIK_PASSWORD", "PROMETHEUS_TOKEN", "PGPASSFILE", "FML_AUTH_USERS_CONFIG"),
        *("AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN", "UVICORN_WORKERS", "WEED_MASTER"),
        *("HTTP_PROXY", "https_proxy", "ALL_PROXY", "no_proxy", "grpc_proxy"),
    ):
        monkeypatch.setenv(variable, "of somebody else")
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    made = recipes(name)
    assert made.keys() == set(SERVERS[name].parts)
    for recipe in made.values():
        assert "of somebody else" not in recipe.environment.values()
        assert recipe.environment["PATH"].endswith("/bin:/usr/bin")
