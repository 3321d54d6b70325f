from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hpcstress import site
from hpcstress.errors import UsageRefusal
from hpcstress.site import Site, named, read, shipped

ROOT = Path(__file__).parent.parent


def test_every_shipped_profile_is_one() -> None:
    assert [*shipped()] == ["generic", "juwels-booster"]
    assert named("generic") == Site(mpi="pmi2")
    assert named("juwels-booster") == Site(
        partition="booster",
        modules=("GCC", "ParaStationMPI", "Python", "mpi4py"),
        cores_per_node=48,
        sbatch={"gres": "gpu:4"},
    )


def test_who_edits_a_script_finds_the_profiles_beside_it_and_there_is_one_copy() -> None:
    assert {path.stem for path in (ROOT / "slurm" / "sites").glob("*.toml")} == {*shipped()}
    assert (ROOT / "slurm" / "sites").is_symlink()


def test_what_the_generic_profile_shows_commented_out_can_be_written() -> None:
    lines = [line.removeprefix("# ") for line in shipped()["generic"].splitlines()[1:]]
    full = read("\n".join(lines), "all of it")
    assert (full.interface, full.cores_per_node, full.sbatch) == ("ib0", 48, {"exclusive": "user"})


def test_a_profile_of_one_s_own_is_read_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("partition = 'fast'\n[sbatch]\ngres = 'gpu:4'\nhold = true\nnice = 10\n")
    assert named(str(path)) == Site(partition="fast", sbatch={"gres": "gpu:4", "hold": True, "nice": "10"})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("juwels-boster", "There is no site 'juwels-boster', and it is no .toml file. Did you mean juwels-booster?"),
        ("mars", "Known are: generic, juwels-booster."),
        ("none.toml", "The profile none.toml cannot be read: No such file or directory."),
    ],
)
def test_an_unknown_site_is_refused_with_near_names(name: str, sentence: str) -> None:
    with pytest.raises(UsageRefusal) as refused:
        named(name)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("partitoin = 'x'", "mine.toml: There is no key 'partitoin'. Did you mean partition"),
        ("partition = 3", "mine.toml: partition: 3 is not a text."),
        ('partition = "a\\nb"', "mine.toml: partition: 'a\\nb' is not a plain line of text"),
        ("modules = 'GCC'", "mine.toml: modules: 'GCC' is no list of texts"),
        ("cores_per_node = 'many'", "mine.toml: cores_per_node: "),
        ("sbatch = 'gres'", "mine.toml: sbatch: 'gres' is no table"),
        ("[sbatch]\n'-p' = 'x'", "mine.toml: sbatch: '-p' is no option of sbatch"),
        ("[sbatch]\nexport = 'NONE'", "mine.toml: sbatch: export is what hpcstress itself tells sbatch"),
        *(
            (
                f"[sbatch]\n{name} = true",
                f"mine.toml: sbatch: {name} is what hpcstress itself tells sbatch, or cannot do",
            )
            for name in (
                *("array", "clusters", "cpus-per-task", "dependency", "error", "export-file", "get-user-env", "help"),
                *("job-name", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable"),
                *("quiet", "requeue", "signal", "test-only", "time-min", "usage", "version", "wait", "wrap"),
            )
        ),
        ("[sbatch]\nrequeu = true", "mine.toml: sbatch: requeue is what hpcstress itself tells sbatch"),
        (
            "[sbatch]\ntim = '1'",
            "sbatch: time is what hpcstress itself tells sbatch, or cannot do with: leave tim out.",
        ),
        (
            "[sbatch]\naccount = 'x'",
            "mine.toml: sbatch: account is a key of the profile itself: write it above [sbatch].",
        ),
        ("[sbatch]\npartition = 'x'", "sbatch: partition is a key of the profile itself: write it above [sbatch]."),
        ("[sbatch]\nhold = false", "mine.toml: sbatch: False is not a text."),
        ("partition = [", "mine.toml is not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_profile_is_told_with_its_place(text: str, sentence: str) -> None:
    with pytest.raises(UsageRefusal) as refused:
        read(text, "mine.toml")
    assert sentence in str(refused.value)


def test_a_profile_made_in_python_is_held_to_the_same_options() -> None:
    with pytest.raises(UsageRefusal, match="requeue is what hpcstress itself tells sbatch"):
        Site(sbatch={"requeue": True})


def test_a_password_of_a_proxy_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageRefusal, match="export HTTPS_PROXY before you submit") as refused:
        read("proxy = 'http://me:pa55word@proxy.example:3128'", "mine.toml")
    assert "pa55word" not in str(refused.value)


def test_a_profile_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff")
    with pytest.raises(UsageRefusal, match="not written in UTF-8"):
        named(str(tmp_path / "mine.toml"))


def run(made: Site, **environment: str) -> dict[str, str]:
    """Return the variables that the lines before srun leave behind, where `module` is a function of the shell."""
    shell = shutil.which("bash")
    assert shell is not None
    lines = ['module() { export MODULES="$*"; }', *made.preamble(), "/usr/bin/env"]
    told = subprocess.run([shell, "-c", "\n".join(lines)], env=environment, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in told.stdout.splitlines() if "=" in line)


def test_the_lines_before_srun_tell_it_cores_locks_modules_network_and_proxy() -> None:
    told = run(Site(modules=("GCC", "a b"), interface="ib0", proxy="socks5h://login1:1080", setup=("export MINE='1'",)))
    assert told["SRUN_CPUS_PER_TASK"] == "1"
    assert told["HDF5_USE_FILE_LOCKING"] == "FALSE"
    assert told["MODULES"] == "load GCC a b"
    assert (told["FI_TCP_IFACE"], told["FI_PROVIDER"]) == ("ib0", "tcp")
    assert told["HTTPS_PROXY"] == told["HTTP_PROXY"] == "socks5h://login1:1080"
    assert told["MINE"] == "1"


def test_what_the_shell_has_goes_before_the_profile() -> None:
    told = run(Site(proxy="socks5h://login1:1080"), HTTPS_PROXY="http://mine:1", SLURM_CPUS_PER_TASK="2")
    assert (told["HTTPS_PROXY"], told["SRUN_CPUS_PER_TASK"]) == ("http://mine:1", "2")
    assert "MODULES" not in told
    assert "FI_TCP_IFACE" not in told


def test_a_hostile_value_stays_a_value(tmp_path: Path) -> None:
    told = run(Site(interface="$(touch x)", proxy="http://h:1'; touch y;'"))
    assert told["FI_TCP_IFACE"] == "$(touch x)"
    assert told["HTTPS_PROXY"] == "http://h:1'; touch y;'"


def test_a_profile_is_part_of_an_installed_package() -> None:
    assert (Path(site.__file__).parent / "sites" / "generic.toml").is_file()
    assert '"sites/*.toml"' in (ROOT / "pyproject.toml").read_text()


def test_journals_of_a_site_are_where_its_nodes_variables_say_unless_somebody_says_otherwise() -> None:
    line = read('journals = "$TMPDIR"', "mine").preamble()[-1]
    assert line == "export HPCSTRESS_JOURNALS=${HPCSTRESS_JOURNALS:-'$TMPDIR'}"
    script = f"{line}; printenv HPCSTRESS_JOURNALS"
    for before, after in (({}, "$TMPDIR\n"), ({"HPCSTRESS_JOURNALS": "/disk"}, "/disk\n")):
        environment = {"PATH": os.environ["PATH"], "TMPDIR": "/here", **before}
        assert subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True).stdout == after
