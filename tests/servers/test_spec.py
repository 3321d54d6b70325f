"""The text of a server and its value: what is written is read, and what cannot be is refused with a way out."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.errors import UsageRefusal
from hpcstress.plan import USUAL_SERVER
from hpcstress.servers.spec import DEFAULTS, OPTIONS, SERVERS, Spec, read

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "workers": st.integers(1, 64),
    "pool": st.integers(0, 500),
    "gunicorn": st.booleans(),
    "workspaces": st.booleans(),
}


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    name = draw(st.sampled_from([*SERVERS]))
    named = SERVERS[name]
    version = draw(st.sampled_from(["", "2.22.5", "3.1.0rc2"])) if named.versions else ""
    choices = {**VALUES, "auth": st.sampled_from(named.auth)}
    return Spec(name, version, **{option: draw(choices[option]) for option in named.options if option in choices})


@given(specs())
def test_what_is_written_is_read_again(spec: Spec) -> None:
    assert read(str(spec)) == spec


@given(specs(), st.randoms())
def test_the_order_of_options_and_blanks_do_not_matter(spec: Spec, shuffler: Any) -> None:
    first, *words = str(spec).split(",")
    shuffler.shuffle(words)
    assert read(" , ".join([first, *words])) == spec


@given(st.text())
def test_any_other_text_is_a_server_or_a_refusal(text: str) -> None:
    with suppress(UsageRefusal):
        assert read(str(read(text))) == read(text)


def test_the_text_says_only_what_is_not_as_usual() -> None:
    assert str(read("mlflow-postgres,workers=4,auth=basic,gunicorn=no")) == "mlflow-postgres"
    assert str(read("mlflow-postgres@2.22.5,pool=80,workers=1,gunicorn,workspaces,auth=none")) == (
        "mlflow-postgres@2.22.5,workers=1,pool=80,gunicorn,auth=none,workspaces"
    )


def test_the_default_of_a_plan_is_a_server_with_all_as_usual() -> None:
    assert read(USUAL_SERVER) == Spec()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mlflow", r"There is no server 'mlflow' .*Did you mean mlflow-"),
        ("mlflow-postgers", r"Did you mean mlflow-postgres"),
        ("", r"There is no server ''"),
        ("mlflow-sqlite,worker=1", r"mlflow-sqlite has no option 'worker'\. Did you mean workers"),
        ("mlflow-sqlite,", r"mlflow-sqlite has no option ''"),
        ("fasttrackml-sqlite,workers=1", r"fasttrackml-sqlite has no option 'workers'\. Known are: pool, auth\."),
        ("mlflow-sqlite,workers=0", r"mlflow-sqlite: workers: 0 is too small"),
        ("mlflow-sqlite,workers=many", r"mlflow-sqlite: workers: 'many' is not a whole number"),
        ("mlflow-sqlite,workers", r"mlflow-sqlite: workers needs a value: write workers=VALUE"),
        ("mlflow-sqlite,workers=1,workers=2", r"gives workers twice"),
        ("mlflow-sqlite,auth=basics", r"mlflow-sqlite: auth: 'basics' is not known here. Did you mean basic\?"),
        ("fasttrackml-sqlite,auth=uncached", r"auth=uncached is not possible. Known are: basic, none"),
        ("mlflow-sqlite,gunicorn=perhaps", r"gunicorn: 'perhaps' is neither yes nor no"),
        ("mlflow-sqlite@", r"names no version behind its @: write mlflow-sqlite@"),
        ("mlflow-sqlite@newest", r"'newest' is not a version such as 3\.17\.2"),
        ("mlflow-sqlite@3;rm -rf", r"is not a version"),
        ("fasttrackml-sqlite@0.5", r"there is one version of it only"),
    ],
)
def test_what_cannot_be_is_refused_with_a_way_out(text: str, sentence: str) -> None:
    with pytest.raises(UsageRefusal, match=sentence):
        read(text)


@pytest.mark.parametrize("name", SERVERS)
def test_every_option_of_a_server_is_one_that_is_told_of_and_has_a_usual_value_there(name: str) -> None:
    named = SERVERS[name]
    assert set(named.options) <= OPTIONS.keys() == DEFAULTS.keys()
    assert ("auth" in named.options) == bool(named.auth)
    assert not named.auth or named.auth[0] == DEFAULTS["auth"]
