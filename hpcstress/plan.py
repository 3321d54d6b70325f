"""Every option of a run, declared once: TOML, JSON, command line, help and the README's table derive from it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from hpcstress import quantity
from hpcstress.errors import UsageRefusal
from hpcstress.quantity import Kind, Scalar, mask_password, nearest


def _option(default: Any, kind: Kind, group: str, help: str) -> Any:
    return field(default=default, metadata={"kind": kind, "group": group, "help": help})


# A row has two bytes for the number of its step, and the last number is the warm-up's.
_MOST_STEPS = 0xFFFF


@dataclass(frozen=True)
class Plan:
    """Say everything that decides what is sent where. It holds no secret and travels inside the result."""

    workload: str = _option(
        "parallel-runs", quantity.TEXT, "Load", "What one run does; `hpcstress workloads` lists them."
    )
    runs: tuple[int, ...] = _option(
        (10, 30, 100), quantity.LADDER, "Load", "The ladder: how many runs start at once, step by step."
    )
    repeats: int = _option(2, quantity.POSITIVE, "Load", "How often the whole ladder is climbed.")
    warmup: int = _option(
        20, quantity.COUNT, "Load", "Runs before the first step that wake the server up; they are in no figure."
    )
    params: int = _option(50, quantity.AMOUNT, "Load", "Parameters of each run.")
    metrics: int = _option(10, quantity.AMOUNT, "Load", "Metrics of each run.")
    artifacts: int = _option(1, quantity.AMOUNT, "Load", "Artifacts of each run.")
    artifact_size: int = _option(10_000, quantity.SIZE, "Load", "Size of each artifact, such as 10kB, 100MB or 1GB.")
    seed: int = _option(1, quantity.COUNT, "Load", "What run i logs follows from this number and i alone.")
    sleep_time: float = _option(
        1.0, quantity.DURATION, "Load", "Pause between two steps; it lets the server come to rest."
    )
    timeout: float = _option(
        120.0, quantity.POSITIVE_DURATION, "Load", "A request that has no answer by then has failed."
    )
    client: str = _option(
        "wire", quantity.choice("wire", "null"), "Load", "Who sends: wire speaks HTTP itself, null sends nothing."
    )
    null_delay: float = _option(0.0, quantity.DURATION, "Load", "How long the null client takes to answer.")
    null_failures: float = _option(
        0.0, quantity.FRACTION, "Load", "The share of its requests that the null client lets fail."
    )
    uri: str = _option(
        "", quantity.URI, "Server", "The tracking server; MLFLOW_TRACKING_URI by default, else --server is started."
    )
    server: str = _option(
        "mlflow", quantity.TEXT, "Server", "The server to start on this machine when there is no address."
    )
    experiment: str = _option(
        "hpcstress", quantity.TEXT, "Server", "The experiment's name; MLFLOW_EXPERIMENT_ID goes before it."
    )
    audit: int = _option(
        1000, quantity.COUNT, "Reading", "How many runs of a step are read back and compared; 0 for none."
    )
    objective: float = _option(
        1.0, quantity.POSITIVE_DURATION, "Reading", "A step is taken when the p99 of its requests stays below this."
    )

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            try:
                object.__setattr__(self, name, kind.read(getattr(self, name)))
            except UsageRefusal as refusal:
                raise UsageRefusal(f"{flag(name)}: {refusal}") from None
        if len(self.runs) * self.repeats > _MOST_STEPS:
            raise UsageRefusal(f"--repeats: {self.repeats} times the ladder are more than {_MOST_STEPS} steps.")

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the size of every step, in the order in which they are played."""
        return self.runs * self.repeats

    def with_options(self, options: Mapping[str, object]) -> Plan:
        """Return this plan with some options changed; refuse a name that is no option, offering near ones."""
        names = {name.replace("-", "_"): value for name, value in options.items()}
        for name in names:
            if name not in KINDS:
                raise UsageRefusal(f"There is no option {flag(name)}. {nearest(flag(name), [*map(flag, KINDS)])}")
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
        return [
            f"{flag(name)}={kind.text(getattr(self, name))}"
            for name, kind in KINDS.items()
            if getattr(self, name) != getattr(default, name)
        ]


OPTIONS: dict[str, Field[Any]] = {option.name: option for option in fields(Plan)}
KINDS: dict[str, Kind] = {name: option.metadata["kind"] for name, option in OPTIONS.items()}


def flag(name: str) -> str:
    """Return an option's name as it is typed."""
    return "--" + name.replace("_", "-")


def from_toml(text: str, source: str = "the plan") -> Plan:
    """Read a plan from TOML; what it does not name keeps its default."""
    try:
        options = tomllib.loads(text)
    except ValueError as error:
        raise UsageRefusal(f"{source} is not valid TOML: {error}.") from None
    try:
        return Plan().with_options(options)
    except UsageRefusal as refusal:
        raise UsageRefusal(f"{source}: {refusal}") from None


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
        try:
            return from_toml(Path(name).read_text("utf-8"), source=name)
        except OSError as error:
            raise UsageRefusal(f"The plan {name} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise UsageRefusal(f"The plan {name} is not written in UTF-8: save it anew.") from None
    plans = shipped()
    if name in plans:
        return from_toml(plans[name], source=f"the shipped plan {name}")
    if name in workloads:
        return Plan(workload=name)
    # It may be an address that was typed in the wrong place.
    shown, near = mask_password(name), nearest(name, [*plans, *workloads, *also])
    raise UsageRefusal(f"{shown!r} is no plan, workload or .toml file. {near}")


def options_table() -> str:
    """Write the README's table of options as Markdown."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for name, option in OPTIONS.items():
        default = KINDS[name].text(option.default) or " "
        values = KINDS[name].metavar
        rows.append(f"| `{flag(name)} {values}` | `{default}` | {option.metadata['help']} |")
    return "\n".join(rows) + "\n"
