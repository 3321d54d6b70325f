"""One command per stage: parse, call, print. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter, Token

from hpcstress import __version__
from hpcstress.errors import (
    FAILED,
    INCOMPLETE,
    INTERRUPTED,
    OK,
    THRESHOLD,
    USAGE,
    Interruption,
    Refusal,
    UsageRefusal,
    while_read,
)
from hpcstress.launcher import promised_rank, seconds_since_start
from hpcstress.plan import KINDS, OPTIONS, USUAL_SERVER, Plan, flag, named, negative
from hpcstress.quantity import SWITCH, about_size, count, mask_addresses, read_folder

if TYPE_CHECKING:
    from hpcstress.clients.dial import Dialer
    from hpcstress.doctor import Finding, Node
    from hpcstress.ranks import World
    from hpcstress.target import Target

app = App(
    name="hpcstress",
    version=__version__,
    help="""Find out how many parallel runs an MLflow tracking server takes, at which latency, and what breaks first.

    `hpcstress` alone starts a server on this machine and climbs a small ladder of runs against it.
    `mpirun -n 4 python -m hpcstress --uri https://mlflow.example --runs 10,100,1000` takes 4 ranks and your server;
    sign in with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN;
    at Mantik with MANTIK_USERNAME and MANTIK_PASSWORD.

    Exit codes: 0 fine; 1 the tool failed and says what to do; 2 wrong usage; 3 incomplete, or the audit found losses.
    """,
    help_format="plaintext",
)

_GROUPS = {name: Group(name, sort_key=place) for place, name in enumerate(("Load", "Server", "Reading", "Output"), 1)}


def _planned(function: Callable[..., int], without: Sequence[str] = ()) -> Callable[..., int]:
    """Give a command the plan's options as its own: they are declared in `plan.py`, and nowhere else."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())
    options = []
    for name, option in OPTIONS.items():
        if name in without:
            continue
        default = KINDS[name].text(option.default)
        told = f"{option.metadata['help']}" + (f" [{default}]" if default else "")
        # The help shows a type's name: one that says what to write teaches more than STR.
        shown: type = type(KINDS[name].metavar, (str,), {})
        wording: dict[str, Any] = {"allow_leading_hyphen": True}
        if KINDS[name] is SWITCH:
            shown, wording = bool, {"negative": negative(name)}
        parameter = Parameter(name=flag(name), help=told, group=_GROUPS[option.metadata["group"]], **wording)
        options.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[shown | None, parameter]
            )
        )
    first, *rest = (parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD)
    function.__signature__ = inspect.Signature([first, *options, *rest], return_annotation=int)  # type: ignore[attr-defined]
    return function


def _folder(_type: object, words: Sequence[Token]) -> Path:
    return read_folder(words[0].value)


PlanName = Annotated[
    str | None,
    Parameter(help="A shipped plan by its name, a workload, or the path of a TOML file.", show_default=False),
]
Output = Annotated[
    Path | None,
    Parameter(
        help="The folder to write to; results/<time>-<workload>-<id> by default, an existing job is never overwritten.",
        converter=_folder,
        group=_GROUPS["Output"],
    ),
]


def _resolve(name: str | None, options: dict[str, Any]) -> Plan:
    from hpcstress.workloads import MODULES, check

    # Text comes as the type that the help shows, which other ranks do not know.
    plain = {option: str(value) if isinstance(value, str) else value for option, value in options.items()}
    given = {option: value for option, value in plain.items() if value is not None}
    for option, what in (("uri", "address"), ("server", "name")):
        if not given.get(option, "elsewhere").strip():
            # In a file it is the default. Who types it has a variable that is empty, and does not want another server.
            raise UsageRefusal(f"{flag(option)}: The {what} is empty: give one, or leave the option out.")
    for option, other in (("uri", "server"), ("server", "uri")):
        # What is typed goes before what a file says, also where that is its opposite.
        if option in given and other not in given:
            given[other] = ""
    plan = Plan() if name is None else named(name, [*MODULES], [word for word in app if not word.startswith("-")])
    plan = plan.with_options(given)
    check(plan)
    if plan.server and plan.uri:
        raise UsageRefusal(f"--server: {plan.server} would be started, and --uri names {plan.uri}: give one of them.")
    if plan.server:
        from hpcstress.servers.spec import read

        read(plan.server)
    return plan


@app.default
@_planned
def run(
    plan: PlanName = None,
    /,
    *,
    output: Output = None,
    dry_run: Annotated[
        bool, Parameter(help="Show what would be sent, and send nothing.", negative=(), group=_GROUPS["Output"])
    ] = False,
    **options: Any,
) -> int:
    """Run a plan: climb its ladder, read the server back, write the result and the report."""
    if dry_run:
        return _show_plan(_resolve(plan, options))
    from hpcstress.folder import RunFolder, default_path
    from hpcstress.job import run_job
    from hpcstress.progress import Progress, Shown
    from hpcstress.ranks import world

    import_seconds = seconds_since_start()
    with world() as ranks:
        # Rank 0 reads it for all: a rank that refused alone, before it has joined, would leave the others waiting.
        resolved = ranks.only_first(lambda: _resolve(plan, options))
        folder = RunFolder(ranks.tell(output or default_path(resolved.workload, time.time())))
        progress = Shown() if ranks.rank == 0 else Progress()
        code = run_job(resolved, ranks, folder, os.environ, progress, import_seconds)
        # The others wait asleep: in MPI's own end they would burn the cores that draw the report.
        kept = ranks.only_first(lambda: _conclude(folder.result, resolved.threshold))
    return code or (OK if kept else THRESHOLD)


def _conclude(result: Path, threshold: str) -> bool:
    """Write and show the report; tell whether the result has kept to its thresholds."""
    _report(result)
    if not threshold:
        return True
    from analysis.thresholds import kept

    return kept(result)


def _report(result: Path) -> None:
    try:
        from analysis.report import summary, write_report
    except ImportError as error:
        print(f"The result is {result}. No report: {error.name} is missing, `pip install 'hpcstress[analysis]'`.")
        return
    print(f"Result:   {result}", flush=True)
    try:
        report = write_report([result], None)
    except KeyboardInterrupt:
        raise Interruption(f"The report was not finished. The result is whole: hpcstress report {result}") from None
    except Refusal as refusal:
        raise Refusal(f"{refusal} The result is whole: hpcstress report {result} --output FOLDER") from None
    print(f"Report:   {report}\nPictures: {report.parent}/*.png\n")
    print(summary(result))


def _show_plan(plan: Plan) -> int:
    from hpcstress.estimate import estimate

    told = estimate(plan)
    surely = "about " if plan.rate else "at least " if plan.duration else ""
    parts = [count(len(plan.steps), "step"), surely + count(told.runs, "run"), count(told.requests, "request")]
    print(plan.to_toml())
    print(f"# {', '.join(parts)}, {about_size(told.body_bytes)} of data")
    if told.prefill:
        print(
            f"# before them {count(told.prefill, 'request')} to make what has to be there, unless it is there already"
        )
    for requests in told.requests_per_run:
        alike = (
            "each run" if len(told.requests_per_run) == 1 else f"a run of {count(sum(requests.values()), 'request')}"
        )
        for operation, times in requests.items():
            print(f"#   {times} x {operation} in {alike}")
    return OK


@app.command
@partial(_planned, without=("server", "uri"))
def compare(
    plan: PlanName = None,
    /,
    *,
    server: Annotated[
        list[str] | None,
        Parameter(
            help="A server to start, or the address of one that runs; give each with a --server of its own.",
            group=_GROUPS["Server"],
        ),
    ] = None,
    rounds: Annotated[
        int,
        Parameter(
            help="How often each server is deployed and tested, in changing order; fewer than 3 decide nothing.",
            group=_GROUPS["Load"],
        ),
    ] = 3,
    output: Output = None,
    **options: Any,
) -> int:
    """Compare servers: deploy, test and remove each in turn, several rounds; say which is faster, and by how much.

    The same command with the same --output goes on where it was interrupted, and adds rounds if there are to be more.
    """
    from hpcstress.compare import read_servers, run_comparison
    from hpcstress.folder import default_path
    from hpcstress.progress import Progress, Shown
    from hpcstress.quantity import read_positive
    from hpcstress.ranks import world

    import_seconds = seconds_since_start()
    with world() as ranks:

        def resolve() -> tuple[Plan, list[str]]:
            read_positive(rounds)
            resolved = replace(_resolve(plan, options), server=Plan.server, uri="")
            return resolved, read_servers(server or [], resolved)

        resolved, servers = ranks.only_first(resolve)
        path = ranks.tell(output or default_path(f"compare-{resolved.workload}", time.time()))
        progress = Shown() if ranks.rank == 0 else Progress()
        code = run_comparison(resolved, servers, rounds, ranks, path, os.environ, progress, import_seconds)
        kept = ranks.only_first(lambda: _conclude_comparison(path, resolved.threshold))
    return code or (OK if kept else THRESHOLD)


def _conclude_comparison(path: Path, threshold: str) -> bool:
    """Write and show what is to be said of the servers; tell whether all results have kept to their thresholds."""
    from hpcstress.rounds import find

    done = find(path).done()
    if len({one.turn.name for one in done}) < 2:
        return True
    try:
        from analysis.compare import write_comparison
        from analysis.thresholds import kept
    except ImportError as error:
        print(
            f"The results are in {path}. No comparison: {error.name} is missing, `pip install 'hpcstress[analysis]'`."
        )
        return True
    print(f"Results:    {path}", flush=True)
    try:
        page, told = write_comparison([path])
    except KeyboardInterrupt:
        raise Interruption(
            f"The page was not finished. The results are whole: python -m analysis compare {path}"
        ) from None
    print(f"Comparison: {page}\nPictures:   {page.parent}/*.png\n\n{told}", end="")
    return not threshold or all(kept(one.result) for one in done)


@app.command
@_planned
def plan(plan: PlanName = None, /, **options: Any) -> int:
    """Show the resolved plan, how many requests and bytes it sends; send nothing."""
    return _show_plan(_resolve(plan, options))


@app.command
def workloads() -> int:
    """List what a run can do, and the shipped plans."""
    from hpcstress.plan import shipped
    from hpcstress.workloads import describe

    print("Workloads:")
    for name, told in describe().items():
        print(f"  {name:31} {told}")
    print("Plans:")
    for name, text in shipped().items():
        print(f"  {name:31} {text.split(chr(10))[0].lstrip('# ')}")
    return OK


@app.command
def data(
    folder: Annotated[Path, Parameter(help="The folder to make; one that is there is never touched.")],
    /,
    *,
    sizes: Annotated[str, Parameter(help="The sizes, each a folder of its own, such as 1MB,10MB.")] = "1MB,10MB,100MB",
    files: Annotated[int, Parameter(help="How many files share each size.")] = 1,
    seed: Annotated[int, Parameter(help="What the bytes follow from.")] = 1,
) -> int:
    """Write files of exact sizes to disk, with their checksums: `--artifact-folder FOLDER/100MB` uploads them."""
    from hpcstress.dataset import sizes_of, write
    from hpcstress.quantity import read_count, read_positive

    write(folder, sizes_of(sizes), read_positive(files), read_count(seed), print)
    print(f"Checksums: {folder}/SHA256SUMS")
    return OK


@app.command
def serve(
    server: Annotated[str, Parameter(help="Which server to start, such as mlflow-postgres,workers=2.")] = USUAL_SERVER,
    /,
    *,
    host: Annotated[
        str, Parameter(help="The address to listen on; 0.0.0.0 lets all in, node those who reach this cluster's node.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="The port to listen on, 0 for a free one.")] = 0,
    keep: Annotated[
        Path | None,
        Parameter(help="The folder to keep its data in, and to go on with what is there.", show_default=False),
    ] = None,
    write: Annotated[
        Path | None, Parameter(help="The new folder to write the manifests of kubernetes into.", show_default=False)
    ] = None,
) -> int:
    """Start a server to play with on this machine; Ctrl-C stops it and, without --keep, removes its data."""
    if write is not None:
        return _write_manifests(server, write)
    import shlex
    import signal
    import threading

    from hpcstress import servers

    ended = threading.Event()

    def check() -> None:
        if ended.is_set():
            raise Interruption("Stopped before the server was ready.")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    host = _of_cluster(server) if host == "node" else host
    with servers.start(server, keep, _tell, check, keep=keep is not None, host=host, port=port) as started:
        print(f". {shlex.quote(str(started.exported()))}", flush=True)
        _tell(f"The server runs at {started.uri} until Ctrl-C. Put the line above into another shell.")
        while not ended.wait(1.0):
            obituary = started.obituary()
            if obituary is not None:
                raise Refusal(obituary)
            for event in started.news():
                _tell(f"{event.part} {event.told}.")
    return OK


def _of_cluster(server: str) -> str:
    """Return this node's address in its cluster, for a server that asks for a password."""
    from hpcstress.preflight import check_sign_in
    from hpcstress.servers import node, read

    check_sign_in(read(server))
    return node.address(os.environ)


@app.command(name="servers")
def servers_() -> int:
    """List the servers that can be started here, their parts and options."""
    from rich.console import Console

    from hpcstress.servers import described

    console = Console(highlight=False, soft_wrap=True)
    for line in described():
        console.print(line, markup=False)
    return OK


def _write_manifests(server: str, folder: Path) -> int:
    from hpcstress.servers import kubernetes, read

    spec = read(server)
    if spec.name != "kubernetes":
        raise UsageRefusal(f"--write is for the server kubernetes: leave it out to start {spec} here.")
    for path in kubernetes.write(spec, folder):
        print(path)
    _tell(f"{folder}/README.md says what to build and what to apply. The passwords are in secrets.yaml alone.")
    return OK


_JOB = Group("Job", sort_key=0)


@app.command
@_planned
def submit(
    plans: Annotated[
        list[str] | None, Parameter(help="Plans, each as for a run: several become an array.", show_default=False)
    ] = None,
    /,
    *,
    nodes: Annotated[
        str, Parameter(help="Nodes of the job, several numbers such as 1,2,4 for a scaling curve.", group=_JOB)
    ] = "1",
    ranks_per_node: Annotated[str, Parameter(help="MPI ranks on each node.", group=_JOB)] = "1",
    scaling: Annotated[
        str, Parameter(help="On more nodes: strong for the same runs, weak for as many more runs.", group=_JOB)
    ] = "strong",
    site: Annotated[
        str, Parameter(help="The profile of the cluster: generic, juwels-booster, or a TOML file.", group=_JOB)
    ] = "generic",
    cluster: Annotated[
        str,
        Parameter(help="slurm; local for mpiexec on this machine; debug for one rank in this process.", group=_JOB),
    ] = "slurm",
    account: Annotated[str, Parameter(help="Who pays; the profile's by default.", show_default=False, group=_JOB)] = "",
    partition: Annotated[
        str, Parameter(help="Which nodes; the profile's by default.", show_default=False, group=_JOB)
    ] = "",
    time_limit: Annotated[
        str, Parameter(name="--time", help="How long a job may take, such as 30m or 2h.", group=_JOB)
    ] = "30m",
    wait: Annotated[
        bool, Parameter(help="Tell how the jobs end, and end with their exit code.", negative=(), group=_JOB)
    ] = False,
    follow: Annotated[bool, Parameter(help="Wait, and show what the jobs write.", negative=(), group=_JOB)] = False,
    output: Output = None,
    **options: Any,
) -> int:
    """Submit plans as jobs of Slurm, one after the other; they sign in with the variables of this shell."""
    from hpcstress.order import submit as submit_plans

    submission = submit_plans(
        [_resolve(plan, options) for plan in plans] if plans else [_resolve(None, options)],
        names=[Path(plan).stem for plan in plans or ()],
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        site=site,
        cluster=cluster,
        scaling=scaling,
        time_limit=time_limit,
        account=account,
        partition=partition,
        output=output,
    )
    for job in submission.jobs:
        print(f"Job {job.id}: {job.label}, {count(job.ranks, 'rank')}, to {job.folder.path}")
    sys.stdout.flush()
    code = OK
    if wait or follow or cluster == "debug":
        code = submission.wait(_tell, _show if follow else None)
    if len(submission.results) > 1:
        print(f"Side by side: hpcstress report {' '.join(map(str, submission.results))}")
    return code


def _show(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.flush()


@app.command
@_planned
def doctor(plan: PlanName = None, /, **options: Any) -> int:
    """See from every node whether the server can be reached, lets in, and how good files, clocks and MPI are."""
    from hpcstress.doctor import examine
    from hpcstress.estimate import estimate
    from hpcstress.preflight import check_open_files
    from hpcstress.ranks import world

    import_seconds = seconds_since_start()
    with world() as ranks:
        resolved = ranks.only_first(lambda: _resolve(plan, options))
        dialer = ranks.first_refusal(lambda: None if resolved.server else _named_server(resolved.uri))
        if dialer is None and ranks.rank == 0:
            _tell("No server was named: give --uri or MLFLOW_TRACKING_URI to have it examined, too.")
        findings = examine(ranks, dialer, min(30.0, resolved.timeout), import_seconds)
        if ranks.rank == 0:
            _print_findings(findings, ranks, dialer.target if dialer else None)
        ranks.first_refusal(lambda: check_open_files(estimate(resolved).connections, ranks.size))
        trouble = ranks.tell((any(finding.trouble for finding in findings),) if ranks.rank == 0 else None)[0]
    return FAILED if trouble else OK


def _named_server(uri: str) -> Dialer | None:
    import asyncio

    from hpcstress.clients.dial import way_to
    from hpcstress.target import is_named

    if not is_named(uri, os.environ):
        return None
    return asyncio.run(way_to(uri, os.environ))


def _clock_of(node: Node) -> str:
    if not node.clock_error_ns:
        return "the same"
    return f"{node.clock_offset_ns / 1e3:.1f} ± {node.clock_error_ns / 1e3:.1f}"


def _print_findings(findings: list[Finding], world: World, target: Target | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from hpcstress.doctor import by_node

    nodes = by_node(findings)
    where = f", server {target.uri}" if target else ""
    table = Table(title=f"{count(world.size, 'rank')} on {count(len(nodes), 'node')}, MPI: {world.library}{where}")
    left = ("node", "ranks", "reached", "TLS", "proxy", "sign-in", "server")
    figures = ("round trip", "clock offset, µs", "open files", "start-up")
    for heading in (*left, *figures):
        table.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    for node in nodes:
        table.add_row(
            node.name,
            node.ranks,
            *(_way_of(node, target) if target else ["-"] * 6),
            _clock_of(node),
            str(node.open_files),
            f"{node.import_seconds:.2f} s",
        )
    console = Console()
    # What is piped through a launcher has no width of its own: a table that wraps is hard to read and to search.
    console = Console(width=console.width if console.is_terminal else 160)
    with console.capture() as drawn:
        console.print(table)
    print(drawn.get(), end="")
    if len(findings) > len(nodes):
        print("Of the ranks of a node, the worst figures are shown.")
    for node in nodes:
        for trouble in node.troubles:
            print(f"{node.name}: {trouble}")


def _way_of(node: Node, target: Target) -> list[str]:
    """Return the cells about a node's way to the server: reached, TLS, proxy, sign-in, server, round trip."""
    tls = f"{node.tls}{', unchecked' if target.insecure else ''}" if node.tls else "none"
    proxy = f"{target.proxy.scheme}://{target.proxy.host}:{target.proxy.port}" if target.proxy else "none"
    return [
        {0: "no", node.size: "yes"}.get(node.reached, f"{node.reached} of {node.size}"),
        tls if node.reached else "-",
        proxy,
        target.sign_in if node.server else "-",
        node.server or "-",
        f"{node.round_trip * 1e3:.1f} ms" if node.server else "-",
    ]


@app.command
def recover(directory: Annotated[Path, Parameter(help="The output folder of the job.")], /) -> int:
    """Make the result of a job that was killed from its journals, and say which ranks are incomplete."""
    from hpcstress.folder import RunFolder
    from hpcstress.recover import recover as recover_folder

    folder = RunFolder(directory)
    for note in recover_folder(folder):
        print(note)
    print(f"Result: {folder.result}")
    return INCOMPLETE


ResultPath = Annotated[Path, Parameter(help="A result.h5.")]


@app.command
def audit(result: ResultPath, /) -> int:
    """Read the server back once more and compare it with what a result says was acknowledged."""
    from hpcstress.audit import audit_result
    from hpcstress.ranks import world

    with world() as ranks:
        clean = audit_result(ranks, result, os.environ, print)
    return OK if clean else INCOMPLETE


@app.command
def clean(
    result: ResultPath,
    /,
    *,
    prefill: Annotated[
        bool,
        Parameter(
            help="Delete what was made to be there before the load, too, though other jobs may use it.", negative=()
        ),
    ] = False,
) -> int:
    """Delete on the server what the job of a result has created, and nothing else.

    What was made to be there before its load (--prefill-runs, --prefill-experiments) stays for other jobs, unless you
    say --prefill.
    """
    from hpcstress.clean import clean_result

    cleaned = clean_result(result, os.environ, _tell, prefill=prefill)
    gone = " and the experiment" if cleaned.experiment else ""
    print(f"Deleted {count(cleaned.runs, 'run')}, the artifacts of {cleaned.artifacts:,} of them{gone}.")
    kinds = {
        "experiment": cleaned.experiments,
        "registered model": cleaned.models,
        "logged model": cleaned.logged_models,
        "trace": cleaned.traces or 0,
        "workspace": cleaned.workspaces,
    }
    beside = [f"{count(number, kind)}" for kind, number in kinds.items() if number]
    if beside:
        print(f"Deleted what runs had created beside them: {', '.join(beside)}.")
    if cleaned.traces is None:
        print("The server cannot delete traces: if the job has created some, they stay.")
    if prefill:
        print(f"Deleted {count(cleaned.prefill, 'run')} that were there before the load.")
    elif cleaned.stays:
        print("What was made to be there before the load stays for other jobs; --prefill deletes it, too.")
    print("MLflow keeps deleted runs until `mlflow gc` is called where the server runs.")
    return OK


@app.command
def report(
    results: Annotated[list[Path], Parameter(help="Result files.")],
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(help="The folder to write to; `report` beside the result by default.", converter=_folder),
    ] = None,
) -> int:
    """Write one HTML page with pictures and tables from results."""
    from analysis.report import summary, write_report

    page = write_report(results, output)
    for result in results:
        print(summary(result))
    print(f"\nReport: {page}")
    return OK


def _tell(sentence: str) -> None:
    # An address that was typed in the wrong place may hold a password.
    print(mask_addresses(sentence), file=sys.stderr, flush=True)


def main(words: list[str] | None = None) -> None:
    """Run a command line and exit with its code; what cannot be done ends in one sentence, said by one rank."""
    sys.exit(while_read(lambda: _exit_code(words, speaks=promised_rank(os.environ) == 0)))


def _exit_code(words: list[str] | None, *, speaks: bool) -> int:
    try:
        command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        code = command(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        if speaks:
            _tell(f"{error}\nTry `hpcstress --help`.")
        return USAGE
    except Refusal as refusal:
        if speaks:
            _tell(str(refusal))
        return refusal.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return code if isinstance(code, int) else OK
