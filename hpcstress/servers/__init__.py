"""Servers that hpcstress starts, watches and stops itself: parts under guards, put together by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.servers.spec import DEFAULTS, OPTIONS, SERVERS, Spec, read

if TYPE_CHECKING:
    from hpcstress.servers.deployment import Deployment, Front

__all__ = ["NAMES", "Spec", "read", "start"]

NAMES: tuple[str, ...] = tuple(SERVERS)

# The room in which the parts of a server are put together, loaded when one is started: most ranks never do. What a
# server needs to be there is refused then.
_ROOMS = {
    **dict.fromkeys(("mlflow-sqlite", "mlflow-postgres"), "mlflow"),
    **dict.fromkeys(("fasttrackml-sqlite", "fasttrackml-postgres"), "fasttrackml"),
    **dict.fromkeys(("mlflow-go-sqlite", "mlflow-go-postgres"), "mlflow_go"),
    **dict.fromkeys(("local", "single-az", "multi-az", "multi-az-nfs"), "zones"),
}


def described() -> list[str]:
    """Return what can be started here: names, parts, options, and what this machine lacks."""
    wide = max(map(len, SERVERS)) + 2
    lines = ["Servers:"]
    for name, named in SERVERS.items():
        lines.append(f"  {name:{wide}}{named.told}")
        if named.parts:
            lines.append(f"  {'':{wide}}parts: {', '.join(named.parts)}")
        options = [*named.options, *(["@VERSION"] if named.versions else [])]
        lines.append(f"  {'':{wide}}options: {', '.join(options)}")
        if lacking := lack(name):
            lines.append(f"  {'':{wide}}not here: {lacking}")
    lines.append("Options, behind the name with commas between them, such as mlflow-postgres,workers=2,workspaces:")
    wide = max(map(len, OPTIONS)) + 2
    for option, told in OPTIONS.items():
        usual = told["kind"].text(DEFAULTS[option])
        lines.append(f"  {option:{wide}}{told['told']}{f' [{usual}]' if usual else ''}")
    lines.append(f"  {'@VERSION':{wide}}behind the name, another version of MLflow: mlflow-postgres@2.22.5")
    return lines


def lack(name: str) -> str:
    """Return why a server cannot be started here, as far as that shows before; empty where nothing does."""
    from hpcstress.servers import mlflow, zones

    # What refuses a server that this machine cannot have, without starting it.
    looks: dict[str, Callable[[], object]] = {
        "mlflow-sqlite": mlflow.own,
        **dict.fromkeys(("mlflow-postgres", "local"), mlflow.own_with_postgres),
        **dict.fromkeys(("single-az", "multi-az"), zones.own_with_s3),
        "multi-az-nfs": zones.own_with_mount,
    }
    try:
        if name in looks:
            looks[name]()
    except Refusal as refusal:
        return str(refusal)
    return ""


def start(
    server: Spec | str,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
    check: Callable[[], object] = lambda: None,
    *,
    keep: bool = False,
    host: str = "127.0.0.1",
    port: int = 0,
) -> Deployment:
    """Start a server and return it when it is ready.

    `folder` has to be new or empty, because it is removed in the end; if it is to be kept, it may hold what the same
    server has left there. Without one, a new folder for temporary files is taken. `check` is called while it is waited
    for, and may refuse. Refuse an unknown name, a server that is not installed, a port that is taken, a server that
    does not get ready.
    """
    from hpcstress.servers.deployment import Deployment
    from hpcstress.servers.port import take

    spec = read(server) if isinstance(server, str) else server
    if spec.name not in _ROOMS:
        raise UsageRefusal(
            f"{spec.name} is not started from here: hpcstress serve {spec} --write FOLDER writes its manifests."
        )
    # Its parts ask again when they come to it, which may be minutes of installing later.
    take(port, host)
    site = Deployment(spec.name, folder, say, check, keep=keep, host=host, port=port)
    try:
        site.front = _assembler(spec.name)(spec, site)
    except BaseException:
        site.stop()
        raise
    return site


def _assembler(name: str) -> Callable[[Spec, Deployment], Front]:
    assemble: Callable[[Spec, Deployment], Front] = import_module(f"{__name__}.{_ROOMS[name]}").assemble
    return assemble
