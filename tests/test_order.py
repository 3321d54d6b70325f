from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from submitit import SlurmExecutor

import hpcstress
from hpcstress import executors
from hpcstress.errors import Interruption, Refusal, UsageRefusal
from hpcstress.order import CLUSTERS, _grown, submit
from hpcstress.plan import Plan
from hpcstress.site import Site
from hpcstress.submission import Submission
from tests.fake_slurm import FakeSlurm, install

SECRET = "correct-horse"
SERVER = "https://mlflow.example"


@pytest.fixture(autouse=True)
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Slurm's programs, an empty folder, and a shell with a sign-in."""
    for name in list(os.environ):
        if re.match(r"MLFLOW|MANTIK|PMI|OMPI|PALS|SLURM|SBATCH|MV2", name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.chdir(tmp_path)
    return install(tmp_path / "bin", monkeypatch)


def test_it_is_one_import_and_loads_nothing_before_it_is_asked_for() -> None:
    assert hpcstress.submit is submit
    with pytest.raises(AttributeError, match="no attribute 'submitt'"):
        hpcstress.submitt  # noqa: B018


# Jobs.


def test_a_plan_is_a_job_with_the_plan_in_its_words(tmp_path: Path) -> None:
    submission = submit("parallel-runs", nodes=4, ranks_per_node=8, uri=SERVER, runs="32,64", output="out")
    [job] = submission.jobs
    assert (job.label, job.nodes, job.ranks, job.id) == ("parallel-runs-4x8", 4, 32, "17")
    assert job.words == ["--output", str(tmp_path / "out"), "--runs=32,64", f"--uri={SERVER}"]
    assert submission.folder == tmp_path / "out"
    assert submission.results == []


def test_a_plan_in_a_file_travels_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("runs = [7]\nparams = 3")
    [job] = submit(str(path), uri=SERVER, output="out").jobs
    path.unlink()
    assert {"--runs=7", "--params=3"} <= {*job.words}
    assert not [word for word in job.words if "mine" in word]
    assert job.label == "mine-1x1"


def test_every_submission_has_a_fresh_folder(tmp_path: Path) -> None:
    one, two = (submit("parallel-runs", uri=SERVER).folder for _ in range(2))
    assert one != two
    assert one.parent == two.parent == tmp_path / "results"


def test_a_curve_over_nodes_is_a_chain_of_jobs_with_folders_of_their_own(tmp_path: Path, slurm: FakeSlurm) -> None:
    submission = submit("parallel-runs", nodes=[8, 1, 2], uri=SERVER, output="out")
    assert [(job.id, job.ranks, job.folder.path) for job in submission.jobs] == [
        ("17", 1, tmp_path / "out" / "parallel-runs-1x1"),
        ("18", 2, tmp_path / "out" / "parallel-runs-2x1"),
        ("19", 8, tmp_path / "out" / "parallel-runs-8x1"),
    ]
    after = [re.findall("dependency=(.*)", script) for script in slurm.scripts]
    assert after == [[], ["afterany:17"], ["afterany:18"]]


@pytest.mark.parametrize("nodes", ["1,8", (8, 1), [1, 8, 8], {1, 8}, range(1, 9, 7), "8, 1"])
def test_a_curve_over_nodes_is_read_as_on_the_command_line(nodes: Any) -> None:
    jobs = submit("parallel-runs", nodes=nodes, uri=SERVER, output="out").jobs
    assert [job.nodes for job in jobs] == [1, 8]


def test_a_text_is_one_number_of_nodes_and_not_its_digits() -> None:
    assert [job.nodes for job in submit("parallel-runs", nodes="12", uri=SERVER, output="out").jobs] == [12]


def test_several_plans_are_an_array_of_which_one_runs_at_a_time(slurm: FakeSlurm) -> None:
    submission = submit(["parallel-runs", "create-run"], nodes=[1, 2], uri=SERVER, output="out")
    assert [(job.label, job.id) for job in submission.jobs] == [
        ("parallel-runs-1x1", "17_0"),
        ("create-run-1x1", "17_1"),
        ("parallel-runs-2x1", "18_0"),
        ("create-run-2x1", "18_1"),
    ]
    assert ["--array=0-1%1" in script for script in slurm.scripts] == [True, True]


def test_the_same_plan_twice_has_two_names_and_odd_names_become_plain() -> None:
    submission = submit(["create-run", "create-run"], uri=SERVER, output="out")
    assert [job.label for job in submission.jobs] == ["1-create-run-1x1", "2-create-run-1x1"]
    [job] = submit(Plan(uri=SERVER), names=["a b\n$(touch x)"], output="other").jobs
    assert job.label == "a-b-touch-x--1x1"


def test_with_strong_scaling_every_job_plays_the_same() -> None:
    jobs = submit("parallel-runs", nodes=[1, 2], runs="10,20", uri=SERVER, output="out").jobs
    assert [job.plan.runs for job in jobs] == [(10, 20), (10, 20)]


def test_with_weak_scaling_runs_users_and_arrivals_grow_with_the_nodes() -> None:
    jobs = submit("parallel-runs", nodes=[2, 6], scaling="weak", runs="10,20", uri=SERVER, output="out").jobs
    assert [job.plan.runs for job in jobs] == [(10, 20), (30, 60)]
    plan = _grown(Plan(users=(4,), duration=5, rate=2.5), 3, 1)
    assert (plan.users, plan.rate, plan.duration) == ((12,), 7.5, 5)


@given(st.integers(1, 1000), st.integers(1, 64), st.integers(0, 64))
def test_with_weak_scaling_each_node_has_as_much_or_a_part_of_a_run_more(size: int, least: int, more: int) -> None:
    [grown] = _grown(Plan(runs=(size,)), least + more, least).runs
    assert size * (least + more) <= grown * least < size * (least + more) + least


@given(st.integers(1, 1000), st.integers(1, 64), st.integers(1, 64))
def test_with_weak_scaling_no_node_has_less_to_do_than_the_first(size: int, least: int, times: int) -> None:
    [grown] = _grown(Plan(runs=(size,)), least * times, least).runs
    assert grown == size * times


# What is refused, before anything is written or submitted.


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"cluster": "slrum"}, "--cluster: 'slrum' is not known here. Did you mean slurm?"),
        ({"scaling": "week"}, "--scaling: 'week' is not known here. Did you mean weak?"),
        ({"site": "juwels"}, "There is no site 'juwels', and it is no .toml file. Did you mean juwels-booster?"),
        ({"site": "juwels-booster", "ranks_per_node": 96}, "a node has 48 cores, 96 ranks would share them"),
        ({"ranks_per_node": 200}, "plan-1x200: 200 ranks are more than the largest step has: 100 runs."),
        (
            {"nodes": 8, "ranks_per_node": 2, "users": "3,9"},
            "plan-8x2: 16 ranks are more than",
        ),
        (
            {"scaling": "weak", "users": "5", "duration": 1, "sweep": "rate=1,2"},
            "--scaling weak: the rates of a --sweep would not grow with the nodes: give one --rate.",
        ),
        *(
            ({"nodes": nodes}, f"--nodes: {nodes!r} is no list of numbers such as 1,2,4.")
            for nodes in (0, [], "", "1;2", 2.5, [1, 2.5], None, True, b"12", ["1,2"])
        ),
        ({"cluster": None}, "--cluster: None is not known here. Known are: slurm, local, debug."),
        ({"site": None}, "--site: None is no profile: give its name, or a hpcstress.site.Site."),
        ({"account": "a\nb"}, "--account: 'a\\nb' is not a plain line of text"),
        ({"partition": 5}, "--partition: 5 is not a text."),
        ({"ranks_per_node": None}, "--ranks-per-node: None is not a whole number."),
        ({"time_limit": None}, "--time: None is not a duration"),
        ({"names": ["one", "two", "three"]}, "names: 3 names for 1 plan: give one for each."),
        ({"names": "plan"}, "names: 'plan' is no list of texts: give a name for each plan."),
        ({"names": [7]}, "names: [7] is no list of texts: give a name for each plan."),
        ({"ranks_per_node": 0}, "--ranks-per-node: 0 is too small"),
        ({"time_limit": "soon"}, "--time: 'soon' is not a duration"),
        ({"rums": "5"}, "There is no option --rums. Did you mean --runs"),
        ({"runs": "ten"}, "--runs: The ladder 'ten'"),
        ({"uri": "http://me:pa55word@h"}, "--uri: "),
        (
            {"uri": "", "server": "mlflow-go-sqlite", "nodes": 2},
            "mlflow-go-sqlite has no sign-in, and where other nodes reach it everybody in their network could write",
        ),
        (
            {"output": "q/p%j"},
            "--output: Slurm puts words of its own for a % in the name of a log: choose a path without",
        ),
        ({"output": Path("q\\p")}, "--output: Slurm puts words of its own for a \\ in the name of a log"),
        ({"output": "a\nb"}, "--output: 'a\\nb' is not a plain line of text"),
        ({"output": "a\0b", "cluster": "local"}, "--output: 'a\\x00b' is not a plain line of text"),
        ({"output": 5}, "--output: 5 is not a text."),
        ({"output": "~nobody-here/x"}, "--output: nobody knows the home of ~nobody-here here: give the whole path."),
        ({"cluster": "local", "account": "x"}, "are Slurm's: leave them out with --cluster local."),
        ({"cluster": "local", "site": "juwels-booster"}, "are Slurm's: leave them out with --cluster local."),
        ({"cluster": "debug", "ranks_per_node": 2}, "--cluster debug plays one plan as the only rank"),
        ({"cluster": "debug", "nodes": [1, 2]}, "--cluster debug plays one plan as the only rank"),
    ],
)
def test_wrong_usage_is_refused_in_a_sentence(
    tmp_path: Path, slurm: FakeSlurm, words: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageRefusal) as refused:
        submit(Plan(), **{"names": ["plan"], "uri": SERVER, **words})  # type: ignore[arg-type]
    assert sentence in str(refused.value)
    assert "pa55word" not in str(refused.value)
    assert slurm.scripts == []
    assert not (tmp_path / "results").exists()


def test_debug_inside_an_event_loop_such_as_a_notebook_s_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    async def cell() -> None:
        submit("parallel-runs", cluster="debug", client="null", output="out")

    with pytest.raises(UsageRefusal, match="where an event loop runs already, as in every notebook: take --cluster lo"):
        asyncio.run(cell())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ("paralel-runs", "'paralel-runs' is no plan, workload or .toml file. Did you mean parallel-runs"),
        ("none.toml", "The plan none.toml cannot be read: No such file or directory."),
        ([], "There is no plan to submit: name one, such as parallel-runs."),
        (None, "None is no plan: give a name such as parallel-runs, the path of a .toml file as a text"),
        (["parallel-runs", 7], "7 is no plan: give a name such as parallel-runs"),
        (Path("mine.toml"), "PosixPath('mine.toml') is no plan: give a name such as parallel-runs"),
    ],
)
def test_a_plan_that_is_not_there_is_refused(plan: Any, sentence: str) -> None:
    with pytest.raises(UsageRefusal) as refused:
        submit(plan, uri=SERVER)
    assert sentence in str(refused.value)


def test_without_slurm_somebody_is_sent_to_a_login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Refusal, match=r"no Slurm here \(sbatch, srun, squeue, scancel not on the PATH\): call this on"):
        submit("parallel-runs", uri=SERVER)


def test_without_submitit_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(Refusal, match="submitit is missing, which submits to Slurm: pip install submitit"):
        submit("parallel-runs", uri=SERVER)


def test_without_a_launcher_of_this_environment_several_ranks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "mpiexec", lambda: tmp_path / "mpiexec")
    with pytest.raises(Refusal, match=r"There is no .*/mpiexec: install an MPI beside this Python"):
        submit("parallel-runs", uri=SERVER, cluster="local", ranks_per_node=2)


def test_under_a_launcher_it_is_refused_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "4")
    with pytest.raises(UsageRefusal, match="starts the ranks itself: call it once, without mpiexec or srun"):
        submit("parallel-runs", uri=SERVER)


def test_an_environment_that_would_not_travel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    with pytest.raises(UsageRefusal, match="SBATCH_EXPORT keeps the environment, in which the sign-in travels"):
        submit("parallel-runs", uri=SERVER)
    monkeypatch.setenv("SBATCH_EXPORT", "ALL,MORE=1")
    assert submit("parallel-runs", uri=SERVER).jobs


@pytest.mark.parametrize("name", ["REQUEUE", "WAIT", "ARRAY_INX", "OUTPUT", "TIMELIMIT", "SIGNAL", "CLUSTERS"])
def test_a_variable_that_breaks_what_is_promised_is_refused(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"SBATCH_{name}", "1")
    with pytest.raises(UsageRefusal, match=f"sbatch would take SBATCH_{name} before what hpcstress tells it: unset it"):
        submit("parallel-runs", uri=SERVER)
    assert slurm.scripts == []


@pytest.mark.parametrize("option", ["account", "partition"])
def test_a_variable_names_account_and_partition_unless_an_option_says_something_else(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    name = f"SBATCH_{option.upper()}"
    monkeypatch.setenv(name, "x")
    for words in ({}, {option: "x"}):
        assert submit("parallel-runs", uri=SERVER, **words).jobs  # type: ignore[arg-type]
    with pytest.raises(UsageRefusal, match=f"take {name} before --{option}: unset it, or leave --{option} out"):
        submit("parallel-runs", uri=SERVER, **{option: "y"})  # type: ignore[arg-type]
    assert len(slurm.scripts) == 2


def test_a_folder_that_holds_something_is_never_used(tmp_path: Path, slurm: FakeSlurm) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(Refusal, match="is not empty, and a job has a folder of its own: choose another --output"):
        submit("parallel-runs", uri=SERVER, output="out")
    assert slurm.scripts == []


def test_a_path_that_slurm_would_change_is_refused_also_where_somebody_is(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "100%").mkdir()
    monkeypatch.chdir(tmp_path / "100%")
    with pytest.raises(UsageRefusal, match=r"choose a path without one, not .*/100%/out"):
        submit("parallel-runs", uri=SERVER, output="out")
    assert slurm.scripts == []
    assert [*(tmp_path / "100%").iterdir()] == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match=r"The output folder .*/file/out cannot be written \(Not a directory\)"):
        submit("parallel-runs", uri=SERVER, output="file/out")


def test_what_slurm_refuses_is_told_and_nothing_is_left(tmp_path: Path, slurm: FakeSlurm) -> None:
    reason = "Batch job submission failed: Invalid account or account/partition combination specified"
    slurm.refuse(f"sbatch: error: {reason}\n")
    with pytest.raises(Refusal) as refused:
        submit("parallel-runs", uri=SERVER, account="nobody", output="out")
    assert str(refused.value) == (
        f"Slurm refused the job: {reason}. If that is not it, "
        "correct --account, --partition, --time or --nodes, or the site's profile."
    )
    assert not (tmp_path / "out").exists()
    assert slurm.cancelled == []


@pytest.mark.parametrize("output", ["link", "mine", "new/deep", "mine/new"])
def test_where_slurm_refuses_what_somebody_had_made_himself_stays(
    tmp_path: Path, slurm: FakeSlurm, output: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to("mine")
    before = {*tmp_path.iterdir()}
    slurm.refuse("sbatch: error: no\n")
    with pytest.raises(Refusal, match="Slurm refused the job: no"):
        submit("parallel-runs", uri=SERVER, output=output)
    assert {*tmp_path.iterdir()} == before
    assert [*(tmp_path / "mine").iterdir()] == []


def test_where_slurm_refuses_a_job_of_somebody_else_in_the_same_results_stays(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(order: executors.Order) -> Submission:
        (tmp_path / "results" / "another").mkdir()
        raise Refusal("no")

    monkeypatch.setitem(CLUSTERS, "slurm", refuse)
    with pytest.raises(Refusal, match=r"^no$"):
        submit("parallel-runs", uri=SERVER)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["another"]


def test_where_slurm_refuses_one_of_several_jobs_all_before_it_are_cancelled(tmp_path: Path, slurm: FakeSlurm) -> None:
    slurm.refuse("sbatch: error: Node count specification invalid", accepts=2)
    with pytest.raises(Refusal, match="Node count specification invalid"):
        submit("parallel-runs", nodes=[1, 2, 4], uri=SERVER, output="out")
    assert slurm.cancelled == ["17", "18"]
    assert not (tmp_path / "out").exists()


def test_jobs_that_cannot_be_cancelled_are_told_with_the_command_that_ends_them(slurm: FakeSlurm) -> None:
    slurm.refuse("sbatch: error: Node count specification invalid", accepts=2)
    (slurm.folder / "scancel").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(Refusal, match="Those before it go on: `scancel 17 18` ends them"):
        submit("parallel-runs", nodes=[1, 2, 4], uri=SERVER, output="out")


def test_who_does_not_wait_for_an_sbatch_that_hangs_cancels_the_jobs_before_it(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = SlurmExecutor._make_submission_command

    def hang(executor: SlurmExecutor, script: Path) -> list[str]:
        if slurm.scripts:
            raise KeyboardInterrupt
        return submitted(executor, script)

    monkeypatch.setattr(SlurmExecutor, "_make_submission_command", hang)
    with pytest.raises(Interruption) as end:
        submit("parallel-runs", nodes=[1, 2], uri=SERVER, output="out")
    assert str(end.value) == (
        "sbatch had not answered: `squeue --me` shows whether there is a job all the same, and `scancel` ends it."
    )
    assert slurm.cancelled == ["17"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("plans", [["parallel-runs"], ["parallel-runs", "create-run"]], ids=["one", "array"])
def test_what_sbatch_says_instead_of_a_number_is_shown(tmp_path: Path, slurm: FakeSlurm, plans: list[str]) -> None:
    (slurm.folder / "sbatch").write_text("#!/bin/sh\necho Welcome; echo '17;cluster'\n")
    with pytest.raises(Refusal) as refused:
        submit(plans, uri=SERVER, output="out")
    assert str(refused.value) == (
        r"sbatch was content, but gave the job no number: it said 'Welcome\n17;cluster'. "
        "If there is a job all the same, `squeue --me` shows it, and `scancel` ends it."
    )
    assert not (tmp_path / "out").exists()


# Secrets.


def test_no_secret_is_in_any_file_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRET}@proxy.example")
    submit(["parallel-runs", "create-run"], nodes=[1, 2], uri=SERVER, site=Site(account="x"), output="out")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".pkl"]) == 4
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
