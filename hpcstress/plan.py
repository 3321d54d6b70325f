"""Every option of a run, declared once: TOML, JSON, command line, help and the README's table derive from it."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from importlib import resources
from itertools import product
from math import prod
from typing import Any, NamedTuple

from hpcstress import quantity, thresholds
from hpcstress.errors import UsageRefusal
from hpcstress.quantity import Kind, Scalar, mask_password, nearest, shorten


def _option(default: Any, kind: Kind, group: str, help: str) -> Any:
    return field(default=default, metadata={"kind": kind, "group": group, "help": help})


# A row has two bytes for the number of its step, and the last two numbers are those of warm-up and prefill.
_MOST_STEPS = 0xFFFE
# Any plan has room there; tomllib takes seconds for a key of thousands of parts.
_LONGEST_PLAN = 64_000
_MOST_DOTS = 1000
# What is started where nothing says which server is meant.
USUAL_SERVER = "mlflow-sqlite"
_METHODS = ("all", "log_param", "log_params", "log_batch", "log_artifact", "log_artifacts", "forest", "linear")


@dataclass(frozen=True)
class Plan:
    """Say everything that decides what is sent where. It holds no secret and travels inside the result."""

    workload: str = _option(
        "parallel-runs", quantity.TEXT, "Load", "What one run does; `hpcstress workloads` lists them."
    )
    runs: tuple[int, ...] = _option(
        (10, 30, 100), quantity.LADDER, "Load", "The ladder: how many runs start at once, step by step."
    )
    users: tuple[int, ...] = _option(
        (), quantity.USERS, "Load", "Users that play one iteration after the other, step by step, instead of --runs."
    )
    duration: float = _option(
        0.0, quantity.DURATION, "Load", "How long the users of a step go on; 0 until their --iterations are over."
    )
    iterations: int = _option(
        0, quantity.COUNT, "Load", "Iterations of each user; 0 for one, or as many as the --duration allows."
    )
    rate: float = _option(
        0.0, quantity.RATE, "Load", "Iterations that become due each second, all users together; 0 for no schedule."
    )
    arrivals: str = _option(
        "poisson", quantity.choice("poisson", "constant"), "Load", "How the iterations of a --rate follow each other."
    )
    think_time: float = _option(0.0, quantity.DURATION, "Load", "Pause of a user between two iterations.")
    sweep: str = _option(
        "", quantity.SWEEP, "Load", "Options that vary from step to step, such as 'params=10,100 metrics=10,1000'."
    )
    repeats: int = _option(2, quantity.POSITIVE, "Load", "How often the whole ladder is climbed.")
    warmup: int = _option(
        20, quantity.COUNT, "Load", "Runs before the first step that wake the server up; they are in no figure."
    )
    params: int = _option(50, quantity.AMOUNT, "Load", "Parameters of each run.")
    metrics: int = _option(10, quantity.AMOUNT, "Load", "Metrics of each run.")
    points: int = _option(1, quantity.POSITIVE, "Load", "Points of each metric in one batch.")
    spans: int = _option(10, quantity.POSITIVE, "Load", "Spans of each trace.")
    tags: int = _option(0, quantity.AMOUNT, "Load", "Tags of each batch.")
    artifacts: int = _option(1, quantity.AMOUNT, "Load", "Artifacts of each run.")
    artifact_size: int = _option(10_000, quantity.SIZE, "Load", "Size of each artifact, such as 10kB, 100MB or 1GB.")
    artifact_folder: str = _option(
        "", quantity.PATH, "Load", "A folder of your own whose files are each run's artifacts, instead of made ones."
    )
    uploads: int = _option(
        1, quantity.POSITIVE, "Load", "How many files log_artifacts uploads at once; MLflow's client sends one by one."
    )
    method: str = _option(
        "all", quantity.choice(*_METHODS), "Load", "Which of its methods a workload takes: one, or all in turn."
    )
    split: bool = _option(
        True, quantity.SWITCH, "Load", "Split what is larger than a request may be, as MLflow's client does."
    )
    max_results: int = _option(100, quantity.POSITIVE, "Load", "How many a search returns at most.")
    prefill_runs: int = _option(
        0, quantity.COUNT, "Load", "Runs that are there before the load, for workloads that search them."
    )
    prefill_experiments: int = _option(
        0, quantity.COUNT, "Load", "Experiments that are there before the load, for workloads that search them."
    )
    tenants: int = _option(
        1, quantity.POSITIVE, "Load", "How many workspaces the users of the workload tenants are spread over."
    )
    seed: int = _option(1, quantity.COUNT, "Load", "What run i logs follows from this number and i alone.")
    sleep_time: float = _option(
        1.0, quantity.DURATION, "Load", "Pause between two steps; it lets the server come to rest."
    )
    timeout: float = _option(
        120.0, quantity.POSITIVE_DURATION, "Load", "A request that has no answer by then has failed."
    )
    client: str = _option(
        "wire",
        quantity.choice("wire", "stock", "null"),
        "Load",
        "Who sends: wire speaks HTTP itself, stock is MLflow's own client in threads, null sends nothing.",
    )
    retries: str = _option(
        "usual",
        quantity.choice("usual", "none", "stock"),
        "Load",
        "Whether a failed request is sent again as MLflow does it (stock); usual: by the stock client only.",
    )
    null_delay: float = _option(0.0, quantity.DURATION, "Load", "How long the null client takes to answer.")
    null_failures: float = _option(
        0.0, quantity.FRACTION, "Load", "The share of its requests that the null client lets fail."
    )
    uri: str = _option(
        "",
        quantity.URI,
        "Server",
        "The tracking server; without it and --server that of MLFLOW_TRACKING_URI, or Mantik's. The stock client takes "
        "a database, too.",
    )
    server: str = _option(
        "",
        quantity.SERVER,
        "Server",
        f"The server to start on this machine, whatever address the environment holds; {USUAL_SERVER} where there is "
        "none. `hpcstress servers` lists them.",
    )
    experiment: str = _option(
        "hpcstress", quantity.TEXT, "Server", "The experiment's name; MLFLOW_EXPERIMENT_ID goes before it."
    )
    prometheus: str = _option(
        "", quantity.ADDRESS, "Server", "A Prometheus that watches the server; it is asked after each step."
    )
    prometheus_queries: tuple[tuple[str, str], ...] = _option(
        (),
        quantity.QUERIES,
        "Server",
        "What Prometheus is asked, instead of what process-exporter and MLflow itself usually tell it.",
    )
    audit: int = _option(
        1000, quantity.COUNT, "Reading", "How many runs of a step are read back and compared; 0 for none."
    )
    objective: float = _option(
        1.0, quantity.POSITIVE_DURATION, "Reading", "A step is taken when the p99 of its requests stays below this."
    )
    threshold: str = _option(
        "",
        thresholds.KIND,
        "Reading",
        "Exit with 99 if a step breaks one: 'run_duration p95 < 10s, failed < 1%'.",
    )

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            try:
                object.__setattr__(self, name, kind.read(getattr(self, name)))
            except UsageRefusal as refusal:
                raise UsageRefusal(f"{flag(name)}: {refusal}") from None
        if quantity.is_store(self.uri) and self.client != "stock":
            raise UsageRefusal(f"--client: {self.uri} is a store without a server, which only --client stock can open.")
        # Counted before they are made: a few options with many values each would fill the memory.
        rungs = prod(len(values) for _, values in self._swept()) * len(self.users or self.runs)
        if rungs * self.repeats > _MOST_STEPS:
            raise UsageRefusal(f"--repeats: {self.repeats} times the ladder are more than {_MOST_STEPS} steps.")
        if self.artifact_folder:
            self._check_own_files()
        for variation in filter(None, self._variations()):
            try:
                self.varied(variation)
            except UsageRefusal as refusal:
                raise UsageRefusal(f"--sweep: {refusal}") from None
        if self.prometheus_queries and not self.prometheus:
            raise UsageRefusal("--prometheus-queries: give the address of the Prometheus with --prometheus.")
        if not self.users and (self.duration or self.rate or self.think_time):
            raise UsageRefusal("--users: --duration, --rate and --think-time are for users, say how many there are.")
        if self.rate and not self.duration:
            raise UsageRefusal("--rate: say for how long with --duration.")
        if self.rate and self.iterations:
            raise UsageRefusal("--rate: as many iterations become due as it says, leave --iterations out.")

    def _check_own_files(self) -> None:
        # All rungs would send the same files, under the names of sizes and numbers that were never sent.
        swept = self._swept()
        kept = [(name, values) for name, values in swept if name.replace("-", "_") not in _OF_MADE_ARTIFACTS]
        if kept != swept:
            rest = " ".join(f"{name}={','.join(values)}" for name, values in kept)
            raise UsageRefusal(f"--artifact-folder: number and sizes of its files cannot vary: write --sweep '{rest}'.")

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Return the rungs of the ladder from first to last: every variation of the sweep with every size."""
        return tuple(Rung(size, variation) for variation in self._variations() for size in self.users or self.runs)

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the size of every step, in the order in which they are played."""
        return tuple(rung.size for rung in self.rungs) * self.repeats

    @property
    def patient(self) -> bool:
        """Tell whether failed requests are sent again as MLflow's client does it."""
        return self.retries == "stock" or (self.retries == "usual" and self.client == "stock")

    def varied(self, variation: str) -> Plan:
        """Return this plan as it is on the rungs of one variation."""
        pairs = (pair.partition("=") for pair in variation.split())
        return self.with_options({"sweep": "", **{name: value for name, _, value in pairs}})

    def _variations(self) -> list[str]:
        words = ([f"{name}={value}" for value in values] for name, values in self._swept())
        return [" ".join(variation) for variation in product(*words)]

    def _swept(self) -> list[tuple[str, list[str]]]:
        options = [
            (name, values.split(",")) for name, _, values in (part.partition("=") for part in self.sweep.split())
        ]
        names = [name.replace("-", "_") for name, _ in options]
        for name in names:
            if name not in _SWEPT:
                raise UsageRefusal(f"--sweep: {name} cannot vary from step to step. {nearest(name, _SWEPT)}")
            if names.count(name) > 1:
                raise UsageRefusal(f"--sweep: {name} stands there twice, give all its values at once.")
        return options

    def with_options(self, options: Mapping[str, object]) -> Plan:
        """Return this plan with some options changed; refuse a name that is no option, offering near ones."""
        names = {name.replace("-", "_"): value for name, value in options.items()}
        for name in names:
            if name not in KINDS:
                known = [*map(flag, KINDS)]
                raise UsageRefusal(f"There is no option {shorten(flag(name))}. {nearest(flag(name), known)}")
        return replace(self, **names)  # type: ignore[arg-type]

    def as_mapping(self) -> dict[str, Scalar]:
        """Return the plan as plain values that TOML and JSON can hold."""
        return {name: kind.write(getattr(self, name)) for name, kind in KINDS.items()}

    def to_toml(self) -> str:
        """Write the plan as TOML."""
        import tomli_w

        return tomli_w.dumps(self.as_mapping())

    def to_json(self) -> str:
        """Write the plan as one JSON object."""
        return json.dumps(self.as_mapping(), indent=2)

    def to_argv(self) -> list[str]:
        """Write the options that differ from the defaults as command-line words."""
        default = Plan()
        changed = [(name, kind) for name, kind in KINDS.items() if getattr(self, name) != getattr(default, name)]
        return [_word(name, kind, getattr(self, name)) for name, kind in changed]


def _word(name: str, kind: Kind, value: Any) -> str:
    if kind is quantity.SWITCH:
        return flag(name) if value else negative(name)
    return f"{flag(name)}={kind.text(value)}"


class Rung(NamedTuple):
    """Hold one rung of the ladder: how many runs or users, and what varies, as `option=value` words."""

    size: int
    variation: str


OPTIONS: dict[str, Field[Any]] = {option.name: option for option in fields(Plan)}
KINDS: dict[str, Kind] = {name: option.metadata["kind"] for name, option in OPTIONS.items()}


# What a step can have for itself; all else belongs to the whole job.
_SWEPT = [
    *("params", "metrics", "points", "tags", "spans", "artifacts", "artifact_size", "uploads", "method", "max_results"),
    *("tenants", "iterations", "rate", "think_time"),
]

_OF_MADE_ARTIFACTS = ("artifacts", "artifact_size")


def flag(name: str) -> str:
    """Return an option's name as it is typed."""
    return "--" + name.replace("_", "-")


def negative(name: str) -> str:
    """Return how a switch is turned off."""
    return "--no-" + name.replace("_", "-")


def from_toml(text: str, source: str = "the plan") -> Plan:
    """Read a plan from TOML; what it does not name keeps its default."""
    try:
        return Plan().with_options(tomllib.loads(text))
    except UsageRefusal as refusal:
        raise UsageRefusal(f"{source}: {refusal}") from None
    except ValueError as error:
        raise UsageRefusal(f"{source} is not valid TOML: {shorten(str(error))}.") from None
    except RecursionError:
        raise UsageRefusal(f"{source} is nested too deep: a plan is a list of options and their values.") from None


def from_json(text: str) -> Plan:
    """Read a plan from a JSON object; what it does not name keeps its default."""
    try:
        options = json.loads(text)
    except ValueError as error:
        raise UsageRefusal(f"The plan is not valid JSON: {error}.") from None
    if not isinstance(options, dict):
        raise UsageRefusal("The plan is not a JSON object: write its options between { and }.")
    return Plan().with_options(options)


def shipped() -> dict[str, str]:
    """Return the TOML text of every plan that comes with hpcstress, by name."""
    folder = resources.files("hpcstress") / "plans"
    return {
        entry.name.removesuffix(".toml"): entry.read_text("utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }


def named(name: str, workloads: list[str], also: list[str]) -> Plan:
    """Find a plan by the name of a shipped plan, the name of a workload, or the path of a TOML file.

    A name that is none of these is refused; near names are offered, of `also`, too.
    """
    if name.endswith(".toml"):
        return from_toml(_text_of(name), source=name)
    plans = shipped()
    if name in plans:
        return from_toml(plans[name], source=f"the shipped plan {name}")
    if name in workloads:
        return Plan(workload=name)
    # It may be an address that was typed in the wrong place.
    shown, near = mask_password(name), nearest(name, [*plans, *workloads, *also])
    raise UsageRefusal(f"{shown!r} is no plan, workload or .toml file. {near}")


def _text_of(path: str) -> str:
    try:
        # A pipe has no end, and opening one waits for who writes to it: what is opened is looked at before it is read.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageRefusal(f"The plan {path} is no regular file: copy it into one.")
            text = file.read(_LONGEST_PLAN + 1)
    except OSError as error:
        raise UsageRefusal(f"The plan {path} cannot be read: {error.strerror}.") from None
    if len(text) > _LONGEST_PLAN:
        most = quantity.format_size(_LONGEST_PLAN)
        raise UsageRefusal(f"The plan {path} is longer than {most}: is it a plan? It holds options and their values.")
    if any(line.count(b".") > _MOST_DOTS for line in text.splitlines()):
        raise UsageRefusal(f"The plan {path} has a line with more than {_MOST_DOTS:,} dots: no plan needs as many.")
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise UsageRefusal(f"The plan {path} is not written in UTF-8: save it anew.") from None


def options_table() -> str:
    """Write the README's table of options as Markdown."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for name, option in OPTIONS.items():
        default = KINDS[name].text(option.default) or " "
        typed = f"{flag(name)} {KINDS[name].metavar}"
        if KINDS[name] is quantity.SWITCH:
            typed = f"{flag(name)}, {negative(name)}"
        rows.append(f"| `{typed}` | `{default}` | {option.metadata['help']} |")
    return "\n".join(rows) + "\n"
