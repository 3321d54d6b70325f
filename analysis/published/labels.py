"""What a result is called where several are drawn side by side: after its server, and its client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.frame import Frame
from analysis.units import plain


def label_of(frame: Frame) -> str:
    """Return the name of a result's server, and that MLflow's client was used if it was."""
    client = ", MLflow's client" if frame.plan.get("client") == "stock" else ""
    return server_label(frame.facts) + client


def server_label(facts: Mapping[str, Any]) -> str:
    """Return name, version and database of the server of a result, as far as they are known."""
    server = facts.get("server")
    if isinstance(server, Mapping):
        settings = server.get("settings")
        database = settings.get("database", "") if isinstance(settings, Mapping) else ""
        return plain(
            " ".join(filter(None, map(str, (server.get("name", ""), server.get("version", ""), database)))), 40
        )
    if facts.get("client") == "null":
        return "null client"
    return plain(facts.get("uri") or "a server", 40)
