"""What a server is called where several are drawn side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.units import plain


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
