from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest

from hpcstress import __version__, cli
from hpcstress.errors import while_read
from hpcstress.folder import RunFolder
from hpcstress.plan import OPTIONS, flag
from hpcstress.progress import Progress
from hpcstress.result import Result
from tests.analysis.results import rows, write
from tests.fake_mantik import FakeMantik
from tests.fake_mlflow import FakeMlflow, Faults, served, serving
from tests.fake_slurm import install
from tests.jobs import SMALL, mortal, play

Command = Callable[..., tuple[int, str, str]]
LITTLE = [
    "--runs=3",
    "--repeats=1",
    "--warmup=0",
    "--params=2",
    "--metrics=1",
    "--artifact-size=100B",
    "--sleep-time=0",
    "--timeout=5",
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Be in an empty folder, under no launcher, with no server in the environment and no report at the end."""
    for name in list(os.environ):
        if re.match(r"MLFLOW|MANTIK|PMI|OMPI|PALS|SLURM|MV2|.*_proxy$", name, re.IGNORECASE):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "analysis.report", None)
    # Nobody else has to hear of the common start.
    monkeypatch.setattr("hpcstress.job._LEAD_NS", 5_000_000)


@pytest.fixture
def hpcstress(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command line in this process; return exit code, standard output, standard error."""

    def command(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([*words])
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return command


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeMlflow], None]:
    """Put a server into the environment."""

    def put(server: FakeMlflow) -> None:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)

    return put


# Help.


@pytest.mark.parametrize(
    "name", ["", "plan", "workloads", "serve", "doctor", "submit", "recover", "audit", "clean", "report"]
)
def test_every_command_explains_itself(hpcstress: Command, name: str) -> None:
    code, told, complaints = hpcstress(*name.split(), "--help")
    assert (code, complaints) == (0, "")
    assert f"Usage: hpcstress {name}".rstrip() in told


@pytest.mark.parametrize("name", ["", "plan", "doctor", "submit"])
def test_the_options_of_a_plan_are_explained_wherever_a_plan_is_taken(hpcstress: Command, name: str) -> None:
    told = hpcstress(*name.split(), "--help")[1]
    for option in OPTIONS:
        assert f" {flag(option)} " in told


def test_the_version_is_told(hpcstress: Command) -> None:
    assert hpcstress("--version") == (0, f"{__version__}\n", "")


def test_workloads_and_plans_are_listed(hpcstress: Command) -> None:
    code, told, _ = hpcstress("workloads")
    assert code == 0
    assert re.search(r"^  parallel-runs +\w", told, re.MULTILINE)
    assert re.search(r"^  mantik-parallel-runs +\w", told, re.MULTILINE)


# Wrong usage: 2, and a sentence that says what to write instead.


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rums=5"], "Did you mean --runs?"),
        (["paralel-runs"], "'paralel-runs' is no plan, workload or .toml file. Did you mean parallel-runs"),
        (["docter"], "Did you mean doctor"),
        (["--workload=paralel-runs"], "There is no workload 'paralel-runs'. Did you mean parallel-runs"),
        (["doctor", "--workload=paralel-runs"], "There is no workload 'paralel-runs'. Did you mean parallel-runs"),
        (["--client=nul"], "--client: 'nul' is not known here. Did you mean null?"),
        (["--runs=ten"], "--runs: The ladder 'ten' is not a list of numbers such as 10,100,1000"),
        (["--runs=10,,5"], "--runs: The ladder '10,,5' is not a list of numbers"),
        (["--runs=0"], "0 is too small for a step"),
        (["--runs", "-5"], "-5 is too small for a step"),
        (["--artifact-size=0"], "--artifact-size: A size of 0 is not possible"),
        (["--artifact-size", "-1MB"], "--artifact-size: '-1MB' is not a size such as 10kB"),
        (["--timeout=0"], "--timeout: A duration of 0 is too short"),
        (
            ["--seed=99999999999999999999"],
            "--seed: 999999999999999999… is too large for a count: give at most",
        ),
        (["--params=-1"], "--params: -1 is too small"),
        (["--runs"], "--runs requires an argument"),
        (["--dry-run=perhaps"], "--dry-run"),
        (["parallel-runs", "and", "more"], "'and', 'more'"),
        (["--uri=mlflow.example"], "--uri: The address 'mlflow.example' does not begin with http:// or https://"),
        (["--uri=http://h:99999"], "impossible port"),
        (["plan.toml"], "The plan plan.toml cannot be read: No such file or directory."),
        (["audit"], "requires an argument"),
        (["--output="], "--output: The folder has no name: give one, or leave the option out."),
        (["--output", "", "--dry-run"], "--output: The folder has no name"),
        (["report", "result.h5", "--output", " "], "--output: The folder has no name"),
        (["--uri="], "--uri: The address is empty: give one, or leave the option out."),
        (["plan", "--uri", " "], "--uri: The address is empty"),
        (["doctor", "--uri", ""], "--uri: The address is empty"),
        (["--experiment="], "--experiment: '' says nothing: write something, or leave the option out."),
        (["--client=null", "--server", ""], "--server: The name is empty: give one, or leave the option out."),
        (
            ["--server=mlflow-sqlite", "--uri=http://127.0.0.1:1"],
            "--server: mlflow-sqlite would be started, and --uri names http://127.0.0.1:1: give one of them.",
        ),
        (
            ["serve", "mlflow-go-sqlite", "--host=node"],
            "mlflow-go-sqlite has no sign-in, and where other nodes reach it everybody in their network could write",
        ),
        (
            ["serve", "mlflw"],
            "There is no server 'mlflw' that hpcstress can start. Did you mean mlflow-sqlite or mlflow-postgres?",
        ),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(hpcstress: Command, words: list[str], sentence: str) -> None:
    code, told, complaint = hpcstress(*words)
    assert code == 2
    assert told == ""
    assert sentence in complaint
    assert not Path("results").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--uri=http://me:pa55word@mlflow.example"],
        ["--uri=me:pa55word@mlflow.example"],
        ["--uri", "https://me:pa/55word@mlflow.example"],
        ["--dry-run", "--uri=http://me:pa55word@mlflow.example"],
        ["doctor", "--uri=http://me:pa55word@mlflow.example"],
        ["--urii=http://me:pa55word@mlflow.example"],
        ["http://me:pa55word@mlflow.example"],
        ["--dry-run=http://me:pa55word@mlflow.example"],
        ["me:pa 55word@mlflow.example"],
    ],
)
def test_a_password_in_an_address_is_never_repeated(hpcstress: Command, words: list[str]) -> None:
    code, told, complaint = hpcstress(*words)
    assert (code, told) == (2, "")
    assert "***@mlflow.example" in complaint
    assert "pa55" not in complaint
    assert "55word" not in complaint


@pytest.mark.parametrize("mark", ["/?token=", "#"])
@pytest.mark.parametrize("words", ["--uri={}", "doctor --uri={}", "plan --uri={}", "--urii={}", "{}", "--runs={}"])
def test_a_token_in_an_address_is_never_repeated(hpcstress: Command, words: str, mark: str) -> None:
    code, told, complaint = hpcstress(*words.format(f"http://mlflow.example{mark}pa55word").split())
    assert (code, told) == (2, "")
    assert f"http://mlflow.example{mark.partition('t')[0]}***" in complaint
    assert "pa55word" not in complaint


def test_an_address_in_place_of_a_file_does_not_give_its_password_away(hpcstress: Command) -> None:
    code, told, complaint = hpcstress("audit", "http://me:pa55word@mlflow.example/result.h5")
    assert (code, told) == (1, "")
    assert complaint.startswith("There is no result http:/***@mlflow.example/result.h5: ")


def test_in_a_file_the_address_may_be_left_empty(hpcstress: Command) -> None:
    Path("mine.toml").write_text("uri = ''")
    assert resolved(hpcstress("plan", "mine.toml")[1])["uri"] == ""


def test_a_file_with_a_server_to_start_and_the_address_of_another_is_refused(hpcstress: Command) -> None:
    Path("mine.toml").write_text("uri = 'http://127.0.0.1:1'\nserver = 'mlflow-postgres'")
    for words in (["plan"], [], ["doctor"], ["compare"]):
        code, _, complaint = hpcstress(*words, "mine.toml")
        assert code == 2
        assert complaint.startswith("--server: mlflow-postgres would be started, and --uri names http://127.0.0.1:1")


def test_what_is_typed_goes_before_the_server_of_a_file(hpcstress: Command) -> None:
    Path("here.toml").write_text("server = 'mlflow-postgres'")
    Path("there.toml").write_text("uri = 'http://127.0.0.1:1'")
    for words, uri, server in (
        (["here.toml", "--uri=http://127.0.0.1:2"], "http://127.0.0.1:2", ""),
        (["there.toml", "--server=fasttrackml-sqlite"], "", "fasttrackml-sqlite"),
    ):
        code, said, _ = hpcstress("plan", *words)
        assert code == 0
        assert f'uri = "{uri}"' in said
        assert f'server = "{server}"' in said


def test_who_names_a_server_to_start_does_not_have_that_of_the_environment_examined(
    hpcstress: Command, at: Callable[[FakeMlflow], None]
) -> None:
    with serving() as server:
        at(server)
        assert "No server was named" in hpcstress("doctor", "--server=mlflow-sqlite")[2]
        assert server.requests == []


def test_an_address_in_the_environment_is_checked_like_one_that_is_typed(
    hpcstress: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pa55word@mlflow.example")
    code, _, complaint = hpcstress(*LITTLE)
    assert code == 2
    assert complaint.startswith("MLFLOW_TRACKING_URI: ")
    assert "pa55word" not in complaint


# Which plan.


def resolved(told: str) -> dict[str, object]:
    return tomllib.loads(told)


def test_a_plan_is_found_by_its_name_its_workload_and_its_path(hpcstress: Command) -> None:
    Path("mine.toml").write_text("runs = [7]\nparams = 3")
    assert resolved(hpcstress("plan", "mantik-parallel-runs")[1])["artifact_size"] == "100MB"
    assert resolved(hpcstress("plan", "parallel-runs")[1]) == resolved(hpcstress("plan")[1])
    mine = resolved(hpcstress("plan", "mine.toml", "--params=4")[1])
    assert (mine["runs"], mine["params"]) == ([7], 4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("runs = [", "mine.toml is not valid TOML"),
        ("rums = [5]", "mine.toml: There is no option --rums. Did you mean --runs"),
        ("runs = ['x']", "mine.toml: --runs: "),
    ],
)
def test_a_plan_that_cannot_be_read_is_told_with_its_path(hpcstress: Command, text: str, sentence: str) -> None:
    Path("mine.toml").write_text(text)
    code, _, complaint = hpcstress("mine.toml")
    assert code == 2
    assert sentence in complaint


@pytest.mark.parametrize("words", [["plan"], ["--dry-run"]])
def test_what_would_be_sent_is_told_and_nothing_is_sent(
    hpcstress: Command, at: Callable[[FakeMlflow], None], words: list[str]
) -> None:
    with serving() as server:
        at(server)
        code, told, complaint = hpcstress(*words, *LITTLE)
        assert server.requests == []
    assert (code, complaint) == (0, "")
    assert resolved(told)["runs"] == [3]
    assert "# 1 step, 3 runs, 21 requests, " in told
    assert "#   2 x get_run in each run\n" in told
    assert [*Path().iterdir()] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("log-batch --duration=0 --iterations=2", "# 1 step, 3 runs, 15 requests, "),
        ("create-run --duration=0 --iterations=2", "# 1 step, 6 runs, 6 requests, "),
        ("create-run --duration=10", "# 1 step, at least 3 runs, 3 requests, "),
        ("create-run --duration=10 --rate=3", "# 1 step, about 30 runs, 30 requests, "),
        ("create-run --duration=0 --sweep=params=1,2", "# 2 steps, 6 runs, 6 requests, "),
    ],
)
def test_what_users_would_send_is_told_as_far_as_it_is_known(hpcstress: Command, words: str, told: str) -> None:
    assert told in hpcstress("plan", *words.split(), "--users=3", "--repeats=1", "--warmup=0")[1]


# A job, and what becomes of it.


def test_a_job_that_goes_well_ends_with_0_and_says_where_its_result_is(
    hpcstress: Command, at: Callable[[FakeMlflow], None]
) -> None:
    with serving(password="correct-horse") as server:
        at(server)
        code, told, progress = hpcstress(*LITTLE)
        assert len(server.load()) == 21
    assert code == 0
    [folder] = Path("results").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-parallel-runs-[0-9a-f]{8}", folder.name)
    assert told == (
        f"The result is {folder}/result.h5. No report: analysis.report is missing, "
        "`pip install 'hpcstress[analysis]'`.\n"
    )
    assert "3/3 runs finished, " in progress
    with Result(folder / "result.h5") as result:
        assert result.complete
        assert result.table("ranks")["import_seconds"][0] > 0


def test_losses_end_a_job_with_3(hpcstress: Command, at: Callable[[FakeMlflow], None]) -> None:
    with serving(Faults(forget_param=2)) as server:
        at(server)
        code, told, progress = hpcstress(*LITTLE, "--output=job")
    assert code == 3
    assert "The result is job/result.h5." in told
    assert "3 lack something acknowledged" in progress


@pytest.mark.parametrize(("limit", "code"), [("10s", 0), ("0.001ms", 99)])
def test_a_threshold_that_is_not_kept_ends_a_job_with_99(hpcstress: Command, limit: str, code: int) -> None:
    threshold = f"--threshold=run_duration p95 < {limit}"
    assert hpcstress(*LITTLE, "--client=null", "--null-delay=1ms", threshold, "--output=job")[0] == code


def test_losses_are_graver_than_a_threshold(hpcstress: Command, at: Callable[[FakeMlflow], None]) -> None:
    with serving(Faults(forget_param=2)) as server:
        at(server)
        assert hpcstress(*LITTLE, "--threshold=service max < 0.001ms", "--output=job")[0] == 3


def test_a_threshold_that_cannot_be_read_is_refused_before_any_load(hpcstress: Command, tmp_path: Path) -> None:
    code, told, complaint = hpcstress(*LITTLE, "--threshold=p95 of run_duration < 10s", "--output=job")
    assert (code, told) == (2, "")
    assert "--threshold: 'p95 of run_duration < 10s' is no threshold: write " in complaint
    assert not (tmp_path / "job").exists()


def test_a_wrong_password_ends_a_job_with_1_and_one_sentence(
    hpcstress: Command, at: Callable[[FakeMlflow], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(password="correct-horse") as server:
        at(server)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "battery-staple")
        code, told, complaint = hpcstress(*LITTLE, "--output=job")
        assert server.refused_sign_ins == len(server.requests) == 1
    assert (code, told) == (1, "")
    assert re.fullmatch(r"The server \S+ refused the sign-in .*\n", complaint)
    assert not Path("job").exists()


def test_at_mantik_every_command_signs_in_once_and_says_nothing_of_it(
    hpcstress: Command, at: Callable[[FakeMlflow], None]
) -> None:
    with served(FakeMantik()) as server:
        at(server)
        for count, words in enumerate(
            ([*LITTLE, "--output=job"], ["doctor"], ["audit", "job/result.h5"], ["clean", "job/result.h5"]), 1
        ):
            code, told, complaint = hpcstress(*words)
            assert code == 0, complaint
            assert len(server.sign_ins) == count
            assert not [secret for secret in server.secrets() if secret in told + complaint]
        assert server.refused_sign_ins == 0
        assert {run.stage for run in server.runs.values()} == {"deleted"}


def test_cleaning_up_may_take_longer_than_a_token_lives(
    hpcstress: Command, at: Callable[[FakeMlflow], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcstress.tokens._WINDOW", (0.7, 0.8))
    with served(FakeMantik(dated=False, faults=Faults(at="/delete"))) as server:
        at(server)
        assert hpcstress(*LITTLE, "--output=job")[0] == 0
        # Three runs and their experiment.
        server.life, server.faults.delay = 1.2, 0.5
        assert hpcstress("clean", "job/result.h5")[0] == 0
        assert server.renewals
        assert server.refused_sign_ins == 0


def test_a_wrong_password_of_mantik_s_ends_a_job_with_1_and_one_sentence(
    hpcstress: Command, at: Callable[[FakeMlflow], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(FakeMantik()) as server:
        at(server)
        monkeypatch.setenv("MANTIK_PASSWORD", "battery-staple")
        for words in ([*LITTLE, "--output=job"], ["doctor"]):
            server.requests.clear()
            code, told, complaint = hpcstress(*words)
            assert len(server.requests) == 1
            assert (code, told) == (1, "")
            assert re.fullmatch(r"The server \S+ refused the sign-in .* correct MANTIK_USERNAME and .*\n", complaint)
            assert "battery-staple" not in complaint
    assert not Path("job").exists()


def test_a_folder_with_a_job_is_not_written_to_again(hpcstress: Command) -> None:
    words = [*LITTLE, "--client=null", "--output=job"]
    assert hpcstress(*words)[0] == 0
    before = {path: path.read_bytes() for path in Path("job").rglob("*")}
    code, _, complaint = hpcstress(*words)
    assert code == 1
    assert complaint == "job already holds a job, which is never overwritten: choose another --output, or remove it.\n"
    assert {path: path.read_bytes() for path in Path("job").rglob("*")} == before


# The other commands.


def test_a_job_can_be_read_back_and_cleaned_up(hpcstress: Command, at: Callable[[FakeMlflow], None]) -> None:
    with serving() as server:
        at(server)
        hpcstress(*LITTLE, "--output=job")
        sound = "step 1 (3 runs): 3 of 3 runs read back are intact, no ghost run\n"
        assert hpcstress("audit", "job/result.h5") == (0, sound, "")
        code, told, _ = hpcstress("clean", "job/result.h5")
        assert code == 0
        assert told.startswith("Deleted 3 runs, the artifacts of 3 of them and the experiment.\n")
        code, told, _ = hpcstress("audit", "job/result.h5")
        assert code == 3
        assert "3 lack something acknowledged" in told


def test_a_job_without_a_server_has_nothing_to_read_back_or_to_clean_up(hpcstress: Command) -> None:
    hpcstress(*LITTLE, "--client=null", "--output=job")
    assert hpcstress("audit", "job/result.h5")[0] == 2
    assert hpcstress("clean", "job/result.h5")[:2] == (1, "")


@pytest.mark.parametrize("command", ["audit", "clean"])
def test_a_file_that_is_no_result_is_told(hpcstress: Command, command: str) -> None:
    hpcstress(*LITTLE, "--client=null", "--output=job")
    whole = Path("job/result.h5").read_bytes()
    Path("half.h5").write_bytes(whole[: len(whole) // 2])
    Path("text.h5").write_text("not HDF5")
    Path("newer.h5").write_bytes(whole)
    with h5py.File("newer.h5", "r+") as file:
        file.attrs["format_version"] = 99
    for name, sentence in [
        ("none.h5", "There is no result none.h5"),
        ("half.h5", "half.h5 is damaged"),
        ("text.h5", "text.h5 is damaged or no hpcstress result"),
        ("newer.h5", "newer.h5 has format 99, "),
    ]:
        code, told, complaint = hpcstress(command, name)
        assert (code, told) == (1, "")
        assert complaint.startswith(sentence)


def test_a_job_that_failed_is_recovered_once(hpcstress: Command) -> None:
    class Tripping(Progress):
        """Fail when the step begins."""

        def begin(self, *_: object) -> None:
            raise RuntimeError("tripped")

    with pytest.raises(RuntimeError, match="tripped"):
        play(Path("job"), replace(SMALL, client="null"), {}, Tripping())
    code, told, _ = hpcstress("recover", "job")
    assert code == 3
    assert told == "Recovered from journals. Incomplete ranks: 0 of 1.\nResult: job/result.h5\n"
    code, told, complaint = hpcstress("recover", "job")
    assert (code, told) == (1, "")
    assert complaint.startswith("job/result.h5 is there already")


def test_a_folder_without_journals_cannot_be_recovered(hpcstress: Command) -> None:
    code, told, complaint = hpcstress("recover", "nowhere")
    assert (code, told) == (1, "")
    assert complaint.startswith("There is no journal in nowhere/journals")


def test_the_doctor_finds_a_healthy_server_healthy(hpcstress: Command, at: Callable[[FakeMlflow], None]) -> None:
    with serving(password="correct-horse") as server:
        at(server)
        code, told, complaint = hpcstress("doctor")
        assert not server.load()
    assert (code, complaint) == (0, "")
    assert "1 rank on 1 node, MPI: none, server " + server.uri in told
    assert re.search(r"│ \S+ +│ 0 +│ yes +│ none │ none +│ password │ 3\.17\.2 │ .* ms │ .* s │\n", told)


def test_the_doctor_examines_the_machine_alone_if_there_is_no_server(hpcstress: Command) -> None:
    code, told, complaint = hpcstress("doctor")
    assert code == 0
    assert complaint == "No server was named: give --uri or MLFLOW_TRACKING_URI to have it examined, too.\n"
    assert "none" in told


def test_the_doctor_ends_with_1_when_it_finds_trouble(hpcstress: Command, at: Callable[[FakeMlflow], None]) -> None:
    with serving(Faults(unavailable=10)) as server:
        at(server)
        code, told, _ = hpcstress("doctor")
    assert code == 1
    assert re.search(r"│ yes +│ none │ none +│ - +│ - +│ +- │", told)
    assert re.search(r"^\S+: The server \S+ answered 503 ", told, re.MULTILINE)


def test_the_doctor_tells_when_too_few_files_can_be_opened(hpcstress: Command) -> None:
    for option in ("--runs=1000000000", "--warmup=1000000000"):
        code, _, complaint = hpcstress("doctor", option)
        assert code == 1
        assert "1,000,000,000 runs at once on 1 rank would open 1,000,000,200 files on each" in complaint


# Jobs of Slurm.


def test_what_is_submitted_is_told_and_not_waited_for(
    hpcstress: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = install(tmp_path / "bin", monkeypatch)
    words = ["--nodes=1,2", "--ranks-per-node=2", "--scaling=weak", "--runs=10", "--uri=https://mlflow.example"]
    code, told, complaint = hpcstress("submit", "parallel-runs", *words, "--time=2h", "--output=out")
    assert (code, complaint) == (0, "")
    assert told == (
        f"Job 17: parallel-runs-1x2, 2 ranks, to {tmp_path}/out/parallel-runs-1x2\n"
        f"Job 18: parallel-runs-2x2, 4 ranks, to {tmp_path}/out/parallel-runs-2x2\n"
    )
    assert ["#SBATCH --time=120\n" in script for script in slurm.scripts] == [True, True]


def test_the_default_plan_can_be_submitted_and_waited_for(
    hpcstress: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = install(tmp_path / "bin", monkeypatch)
    slurm.queue("17|CANCELLED||None")
    monkeypatch.setattr("hpcstress.submission._LOOK_SECONDS", 0)
    code, told, complaint = hpcstress("submit", "--wait", "--output=out")
    assert (code, told) == (1, f"Job 17: parallel-runs-1x1, 1 rank, to {tmp_path}/out\n")
    assert complaint == "Job 17 (parallel-runs-1x1) was cancelled while it waited in the queue: nothing was sent.\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--nodes=1,x"], "--nodes: '1,x' is no list of numbers such as 1,2,4."),
        (["--nodes=0"], "--nodes: '0' is no list of numbers such as 1,2,4."),
        (["--ranks-per-node=many"], "many"),
        (["--time=soon"], "--time: 'soon' is not a duration such as"),
        (["--site=juwels"], "There is no site 'juwels', and it is no .toml file. Did you mean juwels-booster"),
        (["paralel-runs"], "'paralel-runs' is no plan, workload or .toml file. Did you mean parallel-runs"),
        (["--cluster=slrum"], "--cluster: 'slrum' is not known here. Did you mean slurm?"),
        (["--uri=http://me:pa55word@h"], "--uri: "),
        (["--server=mlflw"], "There is no server 'mlflw'"),
    ],
)
def test_what_cannot_be_submitted_is_told_in_a_sentence(
    hpcstress: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    slurm = install(tmp_path / "bin", monkeypatch)
    code, told, complaint = hpcstress("submit", *words)
    assert (code, told) == (2, "")
    assert sentence in complaint
    assert "pa55word" not in complaint
    assert slurm.scripts == []


# Several ranks without MPI.


@pytest.mark.parametrize(
    ("error", "quoted"),
    [
        ("RuntimeError('cannot load MPI library\\na long list of paths')", "cannot load MPI library"),
        ("ImportError('libmpi.so.12: cannot open')", "libmpi.so.12: cannot open"),
    ],
)
def test_without_an_mpi_library_several_ranks_are_refused_by_one_of_them(
    hpcstress: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: str, quoted: str
) -> None:
    package = tmp_path / "stub" / "mpi4py"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from types import SimpleNamespace\nrc = SimpleNamespace()\n")
    (package / "MPI.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(package.parent)
    for module in ("mpi4py", "mpi4py.MPI"):
        # What is imported in its place is gone after the test.
        monkeypatch.setitem(sys.modules, module, None)
        del sys.modules[module]
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "0")
    code, told, complaint = hpcstress(*LITTLE, "--client=null")
    assert (code, told) == (1, "")
    assert complaint == (
        f"There is no MPI library for several ranks ({quoted}): "
        "load the site's MPI module, or install one with `pip install 'hpcstress[mpich]'`.\n"
    )
    monkeypatch.setenv("PMI_RANK", "1")
    assert hpcstress(*LITTLE, "--client=null") == (1, "", "")
    assert not Path("results").exists()


# Nobody reads on.


def unread(folder: Path, command: str, stream: str = "stdout", unbuffered: str = "") -> tuple[int, str]:
    """Run a command of which nobody reads one stream; return its exit code and what it said on the other."""
    ours, theirs = os.pipe()
    os.close(ours)
    other = "stderr" if stream == "stdout" else "stdout"
    with os.fdopen(theirs, "w") as broken:
        told = subprocess.run(
            [sys.executable, "-m", *command.split()],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            cwd=folder,
            text=True,
            **{stream: broken, other: subprocess.PIPE},
        )
    return told.returncode, getattr(told, other)


@pytest.mark.parametrize(
    "command", ["hpcstress workloads", "hpcstress plan", "hpcstress doctor", "analysis export r.h5"]
)
def test_a_command_whose_words_nobody_reads_ends_in_silence(tmp_path: Path, command: str) -> None:
    write(tmp_path / "r.h5", rows([]), {})
    code, complaint = unread(tmp_path, command)
    assert code == 128 + signal.SIGPIPE
    assert re.fullmatch(r"(No server was named: .*\n)?", complaint)


def test_nobody_reads_in_the_middle_of_a_command_or_its_complaint(tmp_path: Path) -> None:
    assert unread(tmp_path, "hpcstress workloads", unbuffered="1") == (128 + signal.SIGPIPE, "")
    assert unread(tmp_path, "hpcstress none.toml", "stderr") == (128 + signal.SIGPIPE, "")


def test_another_broken_pipe_is_no_silence() -> None:
    def act() -> int:
        raise BrokenPipeError("of a guard")

    with pytest.raises(BrokenPipeError, match="of a guard"):
        while_read(act)


# Ctrl-C.


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment in which no report is drawn."""
    stub = folder / "stub" / "analysis"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ImportError(name='analysis')\n")
    path = os.pathsep.join([str(stub.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path} | more


@contextmanager
def running(folder: Path, *words: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Run hpcstress as a process of its own; it is gone when the block ends."""
    process = subprocess.Popen(
        mortal([sys.executable, "-m", "hpcstress", *words]),
        env=environment(folder, **more),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(holds: Callable[[], object]) -> None:
    """Wait until something holds; the deadline is there to end a test that fails, not to measure."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.01)


def test_ctrl_c_ends_the_load_and_the_result_is_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "job")
    with running(tmp_path, *LITTLE, "--client=null", "--null-delay=1h", "--output=job") as process:
        until(lambda: any(event["event"] == "step" for event in folder.events()))
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
        assert process.returncode == 3
    assert told.startswith("The result is job/result.h5.")
    with Result(folder.result) as result:
        assert not result.complete
        assert result.notes == ["Stopped by a signal in step 1 of 1."]
        assert len(result.table("ranks")) == 1
    assert not folder.journals.exists()


def test_ctrl_c_in_the_report_leaves_the_result_and_says_so(
    hpcstress: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    drawing = SimpleNamespace(summary=str, write_report=interrupted)
    monkeypatch.setitem(sys.modules, "analysis.report", drawing)
    code, told, complaint = hpcstress(*LITTLE, "--client=null", "--output=job")
    assert (code, told) == (130, "Result:   job/result.h5\n")
    assert complaint.endswith("The result is whole: hpcstress report job/result.h5\n")
    with Result("job/result.h5") as result:
        assert result.complete


def test_a_second_ctrl_c_ends_everything_at_once(tmp_path: Path) -> None:
    with serving(Faults(delay=3600, at="get-by-name")) as server:
        with running(tmp_path, *LITTLE, "--output=job", **server.environment) as process:
            until(lambda: len(server.requests) == 2)

            def ended_by_signals() -> bool:
                process.send_signal(signal.SIGINT)
                return process.poll() is not None

            process.send_signal(signal.SIGINT)
            until(ended_by_signals)
            assert process.returncode == 130
        assert not server.load()
    assert not (tmp_path / "job" / "result.h5").exists()


def test_ctrl_c_ends_other_commands_at_once_and_without_a_traceback(tmp_path: Path) -> None:
    with (
        serving(Faults(delay=3600, at="version")) as server,
        running(tmp_path, "doctor", **server.environment) as process,
    ):
        until(lambda: len(server.requests) == 1)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)
        assert process.returncode == 130
        assert told == ("", "")
