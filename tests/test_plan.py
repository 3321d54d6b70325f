from __future__ import annotations

import json
import os
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress import quantity
from hpcstress.errors import USAGE, UsageRefusal
from hpcstress.plan import KINDS, OPTIONS, Plan, flag, from_json, from_toml, named, options_table, shipped
from hpcstress.quantity import Kind
from hpcstress.workloads import MODULES

WORKLOADS = [*MODULES]
README = Path(__file__).parent.parent / "README.md"

COUNTS = st.integers(0, 2**32 - 1)
TEXTS = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" ")).filter(str.strip)
SECONDS = st.floats(0, 1e9)

VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    quantity.COUNT: COUNTS,
    quantity.AMOUNT: st.integers(0, 100_000),
    quantity.POSITIVE: st.integers(1, 5000),
    quantity.LADDER: st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=13).map(tuple),
    quantity.SIZE: st.integers(1, 9 * 10**15),
    quantity.DURATION: SECONDS,
    quantity.POSITIVE_DURATION: st.floats(0, 1e9, exclude_min=True),
    quantity.FRACTION: st.floats(0, 1),
    quantity.TEXT: TEXTS,
    quantity.URI: st.sampled_from(["", "http://host:5000", "https://[::1]/mlflow", "https://mlflow.example/a b"]),
    quantity.USERS: st.lists(st.integers(1, 2**32 - 1), max_size=13).map(tuple),
    quantity.RATE: st.just(0.0) | st.floats(1e-6, 1e6),
    quantity.SWEEP: st.sampled_from(
        ["", "params=10,100", "artifact-size=1kB,10MB", "artifact_size=7B  metrics=1,2 tags=0,100,3"]
    ),
    quantity.PATH: st.just("") | TEXTS,
    quantity.SERVER: st.just("") | TEXTS,
    quantity.ADDRESS: st.sampled_from(["", "http://host:9090", "https://prometheus.example/behind/a/path"]),
    quantity.QUERIES: st.dictionaries(
        st.from_regex("[a-z][a-z0-9_]{0,31}", fullmatch=True),
        st.sampled_from(
            ["up", 'sum by (job) (up{job=~"a;b|c=\\"d"})', "rate(x[5m]) > bool 2", "'it''s; quoted'", "`raw \\`"]
        ),
        max_size=20,
    ).map(lambda queries: tuple(queries.items())),
    quantity.SWITCH: st.booleans(),
    KINDS["method"]: st.sampled_from(["all", "log_param", "log_artifacts"]),
    KINDS["arrivals"]: st.sampled_from(["poisson", "constant"]),
    KINDS["client"]: st.sampled_from(["wire", "null"]),
    KINDS["threshold"]: st.sampled_from(["", "failed < 1%", "run_duration p95 < 10s, log_batch max < 1ms"]),
    KINDS["retries"]: st.sampled_from(["none", "stock"]),
}


@st.composite
def drawn(draw: st.DrawFn) -> Plan:
    """Draw any plan whose options do not contradict each other."""
    options = {name: draw(VALUES[kind], label=name) for name, kind in KINDS.items()}
    if not options["users"]:
        options |= {"duration": 0.0, "rate": 0.0, "think_time": 0.0}
    if not options["duration"] or options["iterations"]:
        options["rate"] = 0.0
    if not options["prometheus"]:
        options["prometheus_queries"] = ()
    if options["repeats"] > 500 or options["artifact_folder"]:
        options["sweep"] = ""
    return Plan(**options)


plans = drawn()

# For each option a value that it cannot have, and words of the sentence that says so.
IMPOSSIBLE: dict[str, tuple[object, str]] = {
    "workload": (7, "7 is not a text"),
    "runs": ("10;100", "'10;100' is not a list of numbers such as 10,100,1000"),
    "users": ("3,none", "'none' is not a whole number"),
    "duration": ("long", "'long' is not a duration such as"),
    "iterations": (-1, "-1 is too small for a count"),
    "rate": (1e7, "A rate of 10000000.0 per second is not possible: give 0.000001 to 1000000, or 0 for none"),
    "arrivals": ("poison", "'poison' is not known here. Did you mean poisson?"),
    "think_time": ("-1s", "'-1s' is not a duration"),
    "sweep": ("params", "'params' names no option and its values: write params=10,100,1000"),
    "repeats": (0, "0 is too small for this option: give at least 1"),
    "warmup": ("-1", "-1 is too small for a count"),
    "params": ("many", "'many' is not a whole number"),
    "metrics": (1.5, "1.5 is not a whole number"),
    "points": (0, "0 is too small for this option: give at least 1"),
    "spans": ("x", "'x' is not a whole number"),
    "tags": (None, "None is not a whole number"),
    "artifacts": (100_001, "100001 is too large for one run: give at most 100000"),
    "artifact_size": ("10 apples", "'10 apples' is not a size such as"),
    "artifact_folder": ("a\nb", "is not a plain line of text"),
    "uploads": (0, "0 is too small for this option: give at least 1"),
    "method": ("log_parm", "'log_parm' is not known here. Did you mean log_param"),
    "split": ("perhaps", "'perhaps' is neither yes nor no"),
    "max_results": (0, "0 is too small for this option: give at least 1"),
    "prefill_runs": (-1, "-1 is too small for a count"),
    "prefill_experiments": ("few", "'few' is not a whole number"),
    "tenants": (0, "0 is too small for this option: give at least 1"),
    "seed": (-1, "-1 is too small"),
    "sleep_time": ("soon", "'soon' is not a duration"),
    "timeout": (0, "A duration of 0 is too short"),
    "client": ("wires", "'wires' is not known here. Did you mean wire?"),
    "retries": ("some", "'some' is not known here"),
    "null_delay": (-1, "-1 is not a duration"),
    "null_failures": ("200%", "'200%' is not a share between 0 and 1"),
    "uri": ("mlflow.example", "'mlflow.example' does not begin with http:// or https://"),
    "server": ("ml\nflow", "is not a plain line of text"),
    "experiment": (None, "None is not a text"),
    "prometheus": ("http://me:secret@host:9090", "put them into PROMETHEUS_USERNAME and PROMETHEUS_PASSWORD"),
    "prometheus_queries": ("cpu", "'cpu' names no query: write name=PROMQL; name=PROMQL"),
    "audit": ([], "[] is not a whole number"),
    "objective": ("", "'' is not a duration"),
    "threshold": ("run_duration p95 < soon", "'run_duration p95 < soon': 'soon' is not a duration"),
}


def parsed(words: list[str]) -> dict[str, object]:
    """Read `--option=value`, `--switch` and `--no-switch` as a command line does."""
    told = {name.removeprefix("--"): (equals, value) for name, equals, value in (word.partition("=") for word in words)}
    return {
        name if equals else name.removeprefix("no-"): value if equals else not name.startswith("no-")
        for name, (equals, value) in told.items()
    }


# What comes back equal.


@given(plans)
def test_through_toml_a_plan_comes_back_equal(plan: Plan) -> None:
    assert from_toml(plan.to_toml()) == plan


@given(plans)
def test_through_json_a_plan_comes_back_equal(plan: Plan) -> None:
    assert from_json(plan.to_json()) == plan


@given(plans)
def test_through_the_command_line_a_plan_comes_back_equal(plan: Plan) -> None:
    assert Plan().with_options(parsed(plan.to_argv())) == plan


@given(plans, plans)
def test_what_is_written_names_every_option_so_that_nothing_depends_on_later_defaults(plan: Plan, other: Plan) -> None:
    assert other.with_options(tomllib.loads(plan.to_toml())) == plan
    assert other.with_options(json.loads(plan.to_json())) == plan


def test_on_the_command_line_stands_only_what_differs_from_the_defaults() -> None:
    assert Plan().to_argv() == []
    assert Plan(runs=(1, 2), artifact_size=10**8, null_failures=0.5).to_argv() == [
        "--runs=1,2",
        "--artifact-size=100MB",
        "--null-failures=0.5",
    ]


def test_a_switch_is_written_as_it_is_typed() -> None:
    assert Plan(split=False).to_argv() == ["--no-split"]
    assert Plan(split=False).as_mapping()["split"] is False
    assert "split = false" in Plan(split=False).to_toml()
    assert Plan().with_options({"split": "no"}) == Plan(split=False)


def test_toml_and_json_say_values_as_people_write_them() -> None:
    told = Plan(runs=(1, 10), artifact_size=10**8, timeout=120, sleep_time=0.5).as_mapping()
    assert told["runs"] == [1, 10]
    assert told["artifact_size"] == "100MB"
    assert told["timeout"] == 120
    assert isinstance(told["timeout"], int)
    assert told["sleep_time"] == 0.5


def test_a_plan_is_a_value() -> None:
    assert hash(Plan(runs=[1, 2])) == hash(Plan(runs="1,2"))  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        Plan().runs = (1,)  # type: ignore[misc]


# What is refused.


def test_every_option_has_an_impossible_value_in_this_test() -> None:
    assert list(IMPOSSIBLE) == list(OPTIONS)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_value_is_refused_with_a_sentence_that_begins_with_the_option(name: str) -> None:
    value, words = IMPOSSIBLE[name]
    with pytest.raises(UsageRefusal) as refusal:
        Plan(**{name: value})
    sentence = str(refusal.value)
    assert sentence.startswith(f"{flag(name)}: ")
    assert words in sentence
    assert refusal.value.exit_code == USAGE


JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.integers())


@given(st.sampled_from(sorted(OPTIONS)), JUNK)
def test_whatever_an_option_is_given_it_is_taken_or_refused_by_its_name(name: str, value: object) -> None:
    sentences = []
    try:
        plan = Plan(users=(1,), duration=1).with_options({name: value})
    except UsageRefusal as refusal:
        sentences.append(str(refusal))
        plan = Plan()
    assert all(sentence.startswith(f"{flag(name)}: ") for sentence in sentences)
    assert from_toml(plan.to_toml()) == plan


def test_more_steps_than_a_row_can_number_are_refused() -> None:
    assert len(Plan(runs=(1, 2), repeats=0xFFFE // 2).steps) == 0xFFFE
    with pytest.raises(UsageRefusal, match=r"^--repeats: 21845 times the ladder are more than 65534 steps\."):
        Plan(repeats=21845)


def test_a_misspelt_option_is_refused_and_near_ones_are_offered() -> None:
    with pytest.raises(UsageRefusal, match=r"^There is no option --parms\. Did you mean --params"):
        Plan().with_options({"parms": 1})


def test_an_option_that_is_near_to_none_is_refused_with_all_there_are() -> None:
    with pytest.raises(UsageRefusal, match=r"Known are: --workload, --runs, .*--threshold\."):
        Plan().with_options({"0000": 1})


def test_options_may_be_written_with_hyphens_or_underscores() -> None:
    assert from_toml('artifact-size = "1MB"') == from_toml('artifact_size = "1MB"') == Plan(artifact_size=10**6)


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:S3cr3t@mlflow.example",
        "https://me:S3c/r3t@mlflow.example",
        "https://me:S3c@r3t@mlflow.example",
        "https://me:1/S3cr3t@mlflow.example",
        "me:S3cr3t@mlflow.example",
        "ftp://me:S3cr3t@mlflow.example:port",
    ],
)
def test_a_password_in_the_address_is_refused_and_stands_in_no_sentence(uri: str) -> None:
    with pytest.raises(UsageRefusal, match=r"^--uri: .*\*\*\*@mlflow\.example.*MLFLOW_TRACKING_PASSWORD") as refusal:
        Plan(uri=uri)
    assert "3t" not in str(refusal.value)
    assert refusal.value.__suppress_context__


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("runs = [", r"^plan\.toml is not valid TOML: "),
        ("seed = " + "1" * 5000, r"^plan\.toml is not valid TOML: "),
        ("seed = 1\nseed = 2", r"^plan\.toml is not valid TOML: "),
        ("sead = 1", r"^plan\.toml: There is no option --sead\. Did you mean --seed"),
        ("seed = 1.5", r"^plan\.toml: --seed: 1\.5 is not a whole number"),
        ("seed = 2026-01-01", r"^plan\.toml: --seed: .* is not a whole number"),
        ("runs = [[1]]", r"^plan\.toml: --runs: The ladder \[\[1\]\] is not a list of numbers"),
        ("[load]\nruns = [1]", r"^plan\.toml: There is no option --load"),
    ],
)
def test_a_toml_file_that_is_no_plan_is_refused_by_its_name(text: str, sentence: str) -> None:
    with pytest.raises(UsageRefusal, match=sentence):
        from_toml(text, source="plan.toml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "^The plan is not valid JSON: "),
        ('{"seed": ' + "1" * 5000 + "}", "^The plan is not valid JSON: "),
        ("[]", "^The plan is not a JSON object"),
        ("null", "^The plan is not a JSON object"),
        ('{"seed": null}', "^--seed: None is not a whole number"),
    ],
)
def test_json_that_is_no_plan_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UsageRefusal, match=sentence):
        from_json(text)


def test_what_a_plan_does_not_name_keeps_its_default() -> None:
    assert from_toml("") == from_json("{}") == Plan()
    assert from_toml("params = 7") == Plan(params=7)


# Sweeps.

SWEPT = {
    "params": st.integers(0, 100_000),
    "metrics": st.integers(0, 100_000),
    "tags": st.integers(0, 100_000),
    "artifacts": st.integers(0, 100_000),
    "artifact_size": st.sampled_from(["1B", "10kB", "1MiB", "7"]),
}


@st.composite
def sweeps(draw: st.DrawFn) -> dict[str, list[object]]:
    """Draw options that vary and their values, some of them written with hyphens."""
    names = draw(st.lists(st.sampled_from(sorted(SWEPT)), unique=True, max_size=3))
    return {
        draw(st.sampled_from([name, name.replace("_", "-")])): draw(st.lists(SWEPT[name], min_size=1, max_size=4))
        for name in names
    }


def as_text(sweep: dict[str, list[object]]) -> str:
    return " ".join(f"{name}={','.join(map(str, values))}" for name, values in sweep.items())


@given(sweeps(), st.lists(st.integers(1, 100), min_size=1, max_size=3).map(tuple), st.booleans(), st.integers(1, 3))
def test_every_variation_is_played_on_the_whole_ladder(
    sweep: dict[str, list[object]], ladder: tuple[int, ...], closed: bool, repeats: int
) -> None:
    plan = Plan(**{"users" if closed else "runs": ladder}, sweep=as_text(sweep), repeats=repeats, seed=5)
    expected = [
        (size, plan.with_options({"sweep": "", **dict(zip(sweep, values, strict=True))}))
        for values in product(*sweep.values())
        for size in ladder
    ]
    assert [(rung.size, plan.varied(rung.variation)) for rung in plan.rungs] == expected
    assert plan.steps == tuple(size for size, _ in expected) * repeats


@given(sweeps())
def test_a_sweep_comes_back_equal_and_varies_the_same(sweep: dict[str, list[object]]) -> None:
    plan = Plan(sweep=as_text(sweep))
    for again in (from_toml(plan.to_toml()), from_json(plan.to_json()), Plan().with_options(parsed(plan.to_argv()))):
        assert again == plan
        assert again.rungs == plan.rungs


def test_without_a_sweep_the_plan_does_not_vary() -> None:
    plan = Plan(runs=(3, 7))
    assert [tuple(rung) for rung in plan.rungs] == [(3, ""), (7, "")]
    assert plan.varied("") == plan


def test_what_varies_is_said_in_the_order_and_the_words_of_the_sweep() -> None:
    plan = Plan(runs=(1,), sweep="  metrics=1,2   artifact-size=10kB ")
    assert [rung.variation for rung in plan.rungs] == ["metrics=1 artifact-size=10kB", "metrics=2 artifact-size=10kB"]
    assert plan.varied("metrics=2 artifact-size=10kB") == Plan(runs=(1,), metrics=2, artifact_size=10_000)


def test_the_load_of_users_varies_like_anything_else() -> None:
    plan = Plan(users=(2,), duration=10, sweep="rate=5,0 think-time=0,500ms")
    assert [(varied.rate, varied.think_time) for varied in (plan.varied(rung.variation) for rung in plan.rungs)] == [
        (5, 0),
        (5, 0.5),
        (0, 0),
        (0, 0.5),
    ]


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        ("params", r"'params' names no option and its values: write params=10,100,1000\.$"),
        ("=5", "'=5' names no option"),
        ("params=", "'params=' names no option and its values"),
        ("params=10,,100", "'params=10,,100' names no option and its values"),
        ("params 10,100", "'params' names no option and its values"),
        ("parms=10,100", r"parms cannot vary from step to step\. Did you mean params"),
        ("seed=1,2", r"seed cannot vary from step to step\. "),
        ("timeout=1,2", r"timeout cannot vary from step to step\. "),
        ("sweep=params", r"sweep cannot vary from step to step\. "),
        ("params=10,many", r"--params: 'many' is not a whole number\.$"),
        ("params=10,100001", "--params: 100001 is too large for one run"),
        ("params=10 params=100", "params stands there twice, give all its values at once"),
        ("artifact-size=1kB artifact_size=1MB", "artifact_size stands there twice"),
        ("rate=5,10", "--users: --duration, --rate and --think-time are for users"),
        ("params=10\tmetrics=1", "is not a plain line of text"),
        (5, "5 is not a text"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_before_anything_is_played(sweep: Any, sentence: str) -> None:
    with pytest.raises(UsageRefusal, match=f"^--sweep: .*{sentence}"):
        Plan(sweep=sweep)


def test_a_sweep_with_more_variations_than_steps_can_be_numbered_is_refused_at_once() -> None:
    values = ",".join(map(str, range(1000)))
    with pytest.raises(UsageRefusal, match="times the ladder are more than 65534 steps"):
        Plan(sweep=f"params={values} metrics={values} tags={values} artifacts={values}")
    assert len(Plan(runs=(1,), repeats=65, sweep=f"params={values}").steps) == 65_000
    with pytest.raises(UsageRefusal, match=r"^--repeats: 66 times the ladder"):
        Plan(runs=(1,), repeats=66, sweep=f"params={values}")


@pytest.mark.parametrize(
    ("sweep", "rest"),
    [
        ("artifact-size=1kB,1MB", ""),
        ("artifacts=1,2 uploads=1,8", "uploads=1,8"),
        ("params=1,2 artifact_size=5B method=log_artifact", "params=1,2 method=log_artifact"),
    ],
)
def test_sizes_and_numbers_of_ones_own_files_cannot_vary(sweep: str, rest: str) -> None:
    with pytest.raises(UsageRefusal, match=f"^--artifact-folder: .* cannot vary: write --sweep '{rest}'\\.$"):
        Plan(artifact_folder="mine", sweep=sweep)
    assert Plan(artifact_folder="mine", sweep=rest).sweep == rest


def test_the_shipped_plan_of_artifacts_says_how_it_takes_a_folder() -> None:
    plan = named("artifacts", WORKLOADS, [])
    with pytest.raises(UsageRefusal, match="write --sweep 'uploads=1,8'"):
        plan.with_options({"artifact_folder": "mine"})
    taken = plan.with_options({"artifact_folder": "mine", "sweep": "uploads=1,8"})
    assert [rung.variation for rung in taken.rungs] == ["uploads=1", "uploads=8"]


# Users and arrivals.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"duration": 5}, "--users: --duration, --rate and --think-time are for users, say how many there are"),
        ({"think_time": 5}, "--users: --duration, --rate and --think-time are for users"),
        ({"rate": 5}, "--users: "),
        ({"users": 3, "rate": 5}, "--rate: say for how long with --duration"),
        ({"users": 3, "rate": 5, "duration": 5, "iterations": 1}, "--rate: .* leave --iterations out"),
        ({"users": 3, "rate": 5, "duration": 5, "sweep": "iterations=1,2"}, "--sweep: --rate: .* --iterations out"),
        ({"users": 3, "rate": 1e-7}, "--rate: A rate of 1e-07 per second is not possible"),
        ({"users": 3, "rate": float("nan")}, "--rate: A rate of nan per second is not possible"),
        ({"users": 3, "rate": "inf"}, "--rate: A rate of inf per second is not possible"),
        ({"users": 3, "rate": "often"}, "--rate: 'often' is not a rate: write how many per second"),
        ({"users": 0}, "--users: .*0 is too small for a step"),
    ],
)
def test_a_load_that_contradicts_itself_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageRefusal, match=f"^{sentence}"):
        Plan(**options)


def test_users_go_before_runs() -> None:
    assert Plan(runs=(1, 2), users=(30, 40), repeats=1).steps == (30, 40)
    assert Plan(runs=(1, 2), users=(), repeats=1).steps == (1, 2)


@pytest.mark.parametrize("nobody", ["", [], ()])
def test_no_users_are_written_as_nothing(nobody: object) -> None:
    assert Plan().with_options({"users": nobody}).users == ()
    assert from_toml("users = []") == Plan()


def test_a_rate_may_be_written_with_its_unit() -> None:
    assert Plan(users=(1,), duration=1).with_options({"rate": " 2.5/s "}).rate == 2.5


# Plans by name.


def test_every_shipped_plan_can_be_read_and_says_in_its_first_line_what_it_is() -> None:
    plans = shipped()
    assert "mantik-parallel-runs" in plans
    for name, text in plans.items():
        assert named(name, WORKLOADS, []).workload in WORKLOADS
        assert text.startswith("# ")
        assert len(text.splitlines()[0]) > 10


def test_the_name_of_a_workload_is_the_default_plan_of_it() -> None:
    assert named("parallel-runs", WORKLOADS, []) == Plan(workload="parallel-runs")


def test_the_path_of_a_toml_file_is_the_plan_in_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    plan = Plan(experiment="größer", runs=(7,))
    path.write_text(plan.to_toml(), "utf-8")
    assert named(str(path), WORKLOADS, []) == plan


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageRefusal, match=r"absent\.toml cannot be read: No such file or directory\."):
        named(str(tmp_path / "absent.toml"), WORKLOADS, [])
    latin = tmp_path / "latin.toml"
    latin.write_bytes('experiment = "größer"'.encode("latin-1"))
    with pytest.raises(UsageRefusal, match=r"latin\.toml is not written in UTF-8"):
        named(str(latin), WORKLOADS, [])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("runs = " + "[" * 1000 + "]" * 1000, "is nested too deep"),
        ("runs = " + "[" * 300 + "]" * 300, r"--runs: The ladder \[\[\["),
        ("runs" + ".a" * 300 + " = 1", "--runs: The ladder {'a'"),
        ("runs" + ".a" * 1000 + " = 1", "is nested too deep"),
        ("a" * 50_000 + " = 1", "There is no option --aaa"),
        ("seed = '" + "a" * 50_000 + "'", "--seed: 'aaa"),
        ("a = {a.a = 1, " + "a" * 5000 + " = 1, " + "a" * 5000 + " = 1}", "is not valid TOML"),
        ("a" + ".a" * 30_000 + " = 1", "has a line with more than 1,000 dots"),
        ("seed = 1" + "\n" * 64_000, "is longer than 64kB"),
    ],
    ids=[
        "deep",
        "less deep",
        "deep keys",
        "deeper keys",
        "a long name",
        "a long value",
        "a long name twice",
        "dots",
        "a long file",
    ],
)
def test_a_hostile_file_is_refused_in_a_short_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageRefusal, match=sentence) as refusal:
        named(str(path), WORKLOADS, [])
    assert len(str(refusal.value)) < 2000


def test_a_plan_is_a_regular_file(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe.toml", tmp_path / "link.toml"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    for path in (pipe, link):
        with pytest.raises(UsageRefusal, match=f"{path.name} is no regular file"):
            named(str(path), WORKLOADS, [])


@pytest.mark.parametrize(
    ("name", "near"), [("paralel-runs", "parallel-runs"), ("mantik", "mantik-parameters"), ("docter", "doctor")]
)
def test_an_unknown_name_is_refused_and_near_ones_are_offered(name: str, near: str) -> None:
    with pytest.raises(UsageRefusal, match=f"^'{name}' is no plan, workload or .toml file.*{near}"):
        named(name, WORKLOADS, ["doctor", "serve"])


# Derived texts.


def test_the_steps_are_the_whole_ladder_again_and_again() -> None:
    assert Plan(runs=(1, 10), repeats=3).steps == (1, 10, 1, 10, 1, 10)


def test_every_option_says_what_it_means() -> None:
    for option in OPTIONS.values():
        assert option.metadata["help"].endswith(".")
        assert option.metadata["group"] in ("Load", "Server", "Reading")


def test_the_table_has_a_row_for_every_option_with_its_default() -> None:
    table = options_table().splitlines()
    assert table[:2] == ["| option | default | meaning |", "|---|---|---|"]
    assert len(table) == 2 + len(OPTIONS)
    assert "| `--artifact-size SIZE` | `10kB` | Size of each artifact, such as 10kB, 100MB or 1GB. |" in table
    assert all(line.count("|") == 4 for line in table)


def test_the_readme_holds_this_table() -> None:
    _, begin, rest = README.read_text("utf-8").partition("<!-- options -->\n")
    table, end, _ = rest.partition("<!-- /options -->")
    assert begin
    assert end
    assert table == options_table(), "write it again with `make readme`"
