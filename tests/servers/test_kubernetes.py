"""Manifests: valid by the published schemas, consistent among each other, and silent about passwords."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.servers.kubernetes import manifests, write
from hpcstress.servers.spec import Spec, read

jsonschema = pytest.importorskip("jsonschema", reason="the extra dev is not installed")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="the extra dev is not installed")
yaml = pytest.importorskip("yaml", reason="the extra dev is not installed")

SPEC = Spec("kubernetes")
CLUSTERS = {
    "kubernetes": read(
        "kubernetes@3.18.0,replicas=3,namespace=stress,host=mlflow.example.com,registry=r.example:5000/a/b"
    ),
    "openshift": read("kubernetes,openshift,workers=2"),
}

# What the API server of OpenShift wants of a Route (route.openshift.io/v1).
ROUTE = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "route.openshift.io/v1"},
        "kind": {"const": "Route"},
        "metadata": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "labels": {"additionalProperties": {"type": "string"}},
                "annotations": {"additionalProperties": {"type": "string"}},
            },
        },
        "spec": {
            "type": "object",
            "required": ["to"],
            "additionalProperties": False,
            "properties": {
                "host": {"type": "string", "maxLength": 253},
                "path": {"type": "string", "pattern": "^/"},
                "to": {
                    "type": "object",
                    "required": ["kind", "name"],
                    "additionalProperties": False,
                    "properties": {
                        "kind": {"const": "Service"},
                        "name": {"type": "string", "minLength": 1},
                        "weight": {"type": "integer", "minimum": 0, "maximum": 256},
                    },
                },
                "port": {
                    "type": "object",
                    "required": ["targetPort"],
                    "properties": {"targetPort": {"type": ["string", "integer"]}},
                },
                "tls": {
                    "type": "object",
                    "required": ["termination"],
                    "properties": {
                        "termination": {"enum": ["edge", "passthrough", "reencrypt"]},
                        "insecureEdgeTerminationPolicy": {"enum": ["Allow", "Redirect", "None", ""]},
                    },
                },
                "wildcardPolicy": {"enum": ["None", "Subdomain"]},
            },
        },
    },
}

# What the MPI operator wants of an MPIJob (kubeflow.org/v2beta1); its pods are checked as Kubernetes' own.
MPI_JOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "kubeflow.org/v2beta1"},
        "kind": {"const": "MPIJob"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["mpiReplicaSpecs"],
            "additionalProperties": False,
            "properties": {
                "slotsPerWorker": {"type": "integer", "minimum": 1},
                "mpiImplementation": {"enum": ["OpenMPI", "Intel", "MPICH"]},
                "sshAuthMountPath": {"type": "string", "pattern": "^/"},
                "runPolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "cleanPodPolicy": {"enum": ["None", "Running", "All"]},
                        "backoffLimit": {"type": "integer", "minimum": 0},
                    },
                },
                "mpiReplicaSpecs": {
                    "type": "object",
                    "required": ["Launcher", "Worker"],
                    "additionalProperties": {
                        "type": "object",
                        "required": ["template"],
                        "additionalProperties": False,
                        "properties": {
                            "replicas": {"type": "integer", "minimum": 1},
                            "restartPolicy": {"enum": ["Never", "OnFailure"]},
                            "template": {"type": "object", "required": ["spec"]},
                        },
                    },
                },
            },
        },
    },
}


@pytest.fixture(params=CLUSTERS, scope="module")
def cluster(request: pytest.FixtureRequest) -> Spec:
    return CLUSTERS[request.param]


@pytest.fixture(scope="module")
def texts(cluster: Spec) -> dict[str, str]:
    return manifests(cluster)


@pytest.fixture(scope="module")
def objects(texts: dict[str, str]) -> list[dict[str, Any]]:
    return [each for name, text in texts.items() if name.endswith(".yaml") for each in yaml.safe_load_all(text)]


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [each for each in objects if each["kind"] == kind]


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return metadata's labels and the spec of every pod that anything makes."""
    for each in objects:
        templates = [each["spec"]["template"]] if "template" in each.get("spec", {}) else []
        templates += [replica["template"] for replica in each.get("spec", {}).get("mpiReplicaSpecs", {}).values()]
        for template in [each] if each["kind"] == "Pod" else templates:
            yield f"{each['kind']} {each['metadata']['name']}", template


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        container
        for _, pod in pods(objects)
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())]
    ]


@pytest.mark.parametrize("release", ["1.31", "1.37"])
def test_what_kubernetes_knows_is_valid_by_its_schemas(objects: list[dict[str, Any]], release: str) -> None:
    known = [each for each in objects if each["kind"] not in {"Route", "MPIJob"}]
    assert {each["kind"] for each in known} > {"Deployment", "StatefulSet", "Service", "Secret", "ConfigMap", "Job"}
    for each in known:
        kubernetes_validate.validate(each, release, strict=True)


def test_routes_and_mpi_jobs_are_valid_by_theirs(objects: list[dict[str, Any]], cluster: Spec) -> None:
    assert len(of_kind(objects, "Route")) == cluster.openshift
    assert len(of_kind(objects, "Ingress")) != cluster.openshift
    for route in of_kind(objects, "Route"):
        jsonschema.validate(route, ROUTE)
    (job,) = of_kind(objects, "MPIJob")
    jsonschema.validate(job, MPI_JOB)
    for replica in job["spec"]["mpiReplicaSpecs"].values():
        pod = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": "a"},
            "template": replica["template"],
        }
        kubernetes_validate.validate(pod, "1.37", strict=True)


def test_everything_is_in_the_namespace(objects: list[dict[str, Any]], cluster: Spec) -> None:
    assert {each["metadata"]["namespace"] for each in objects} == {cluster.namespace}


def test_every_secret_and_map_that_is_referred_to_exists(objects: list[dict[str, Any]]) -> None:
    there = {each["metadata"]["name"]: {*each["stringData"]} for each in of_kind(objects, "Secret")}
    asked = [
        variable["valueFrom"]["secretKeyRef"]
        for container in containers(objects)
        for variable in container.get("env", ())
        if "valueFrom" in variable
    ]
    assert len(asked) >= 8
    assert all(reference["key"] in there[reference["name"]] for reference in asked)
    maps = {each["metadata"]["name"] for each in of_kind(objects, "ConfigMap")}
    claims = {each["metadata"]["name"] for each in of_kind(objects, "PersistentVolumeClaim")}
    for _, pod in pods(objects):
        for volume in pod["spec"].get("volumes", ()):
            assert volume.get("configMap", {}).get("name") in {None, *maps}
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}
            for item in volume.get("secret", {}).get("items", ()):
                assert item["key"] in there[volume["secret"]["secretName"]]


def test_every_mount_has_its_volume(objects: list[dict[str, Any]]) -> None:
    claimed = {
        template["metadata"]["name"]
        for each in of_kind(objects, "StatefulSet")
        for template in each["spec"]["volumeClaimTemplates"]
    }
    for _, pod in pods(objects):
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", ())} | claimed
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())]:
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes


def test_no_two_pods_that_are_applied_together_wait_for_one_disk(texts: dict[str, str]) -> None:
    applied = [re.findall(r"-f (\S+)", line) for line in texts["README.md"].splitlines() if " apply " in line]
    assert len(applied) == 3
    for names in applied:
        together = [each for name in names for each in yaml.safe_load_all(texts[name])]
        claims = [
            volume["persistentVolumeClaim"]["claimName"]
            for _, pod in pods(together)
            for volume in pod["spec"].get("volumes", ())
            if "persistentVolumeClaim" in volume
        ]
        assert len(claims) == len({*claims})


def test_every_service_finds_pods_with_the_port_it_names(objects: list[dict[str, Any]]) -> None:
    for service in of_kind(objects, "Service"):
        selector = service["spec"]["selector"].items()
        chosen = [pod for _, pod in pods(objects) if selector <= pod["metadata"]["labels"].items()]
        names = {port["name"] for pod in chosen for each in pod["spec"]["containers"] for port in each["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_a_password_is_in_the_file_of_secrets_and_nowhere_else(texts: dict[str, str]) -> None:
    data = yaml.safe_load(texts["secrets.yaml"])["stringData"]
    words = [data[name] for name in data if name not in {"tracking-username", "s3.json"}]
    assert len({*words}) == 5
    assert min(map(len, words)) >= 16
    (identity,) = json.loads(data["s3.json"])["identities"]
    assert identity["credentials"] == [{"accessKey": data["s3-access-key"], "secretKey": data["s3-secret-key"]}]
    rest = "".join(text for name, text in texts.items() if name != "secrets.yaml")
    assert not any(word in rest for word in words)


def test_passwords_are_new_each_time(texts: dict[str, str], cluster: Spec) -> None:
    again = yaml.safe_load(manifests(cluster)["secrets.yaml"])["stringData"]
    before = yaml.safe_load(texts["secrets.yaml"])["stringData"]
    assert [name for name in again if again[name] == before[name]] == ["tracking-username"]


def test_all_replicas_together_cannot_open_more_connections_than_the_database_takes(
    objects: list[dict[str, Any]], cluster: Spec
) -> None:
    (tracking,) = of_kind(objects, "Deployment")
    assert tracking["spec"]["replicas"] == cluster.replicas
    (mlflow,) = tracking["spec"]["template"]["spec"]["containers"]
    settings = {variable["name"]: variable.get("value") for variable in mlflow["env"]}
    assert settings["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    pools = int(settings["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"]) + int(settings["MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW"])
    (database,) = [each for each in containers(objects) if each["name"] == "postgres"]
    most = int(re.search(r"max_connections=(\d+)", " ".join(database["args"]))[1])
    assert most >= cluster.replicas * cluster.workers * (pools + 15)


def test_mlflow_lets_every_name_in_by_which_it_is_reached(objects: list[dict[str, Any]], cluster: Spec) -> None:
    from fnmatch import fnmatch

    (mlflow,) = [each for each in containers(objects) if each["name"] == "mlflow"]
    (allowed,) = [each["value"].split(",") for each in mlflow["env"] if each["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS"]
    inside = f"tracking.{cluster.namespace}.svc.cluster.local:5000"
    for host in (cluster.host, f"{cluster.host}:443", "tracking:5000", inside, "localhost:5000"):
        assert any(fnmatch(host, pattern) for pattern in allowed), host
    assert not any(fnmatch("evil.example.com", pattern) for pattern in allowed)


def test_nothing_runs_as_root_and_openshift_chooses_its_users_itself(
    objects: list[dict[str, Any]], cluster: Spec
) -> None:
    for whose, pod in pods(objects):
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"]
        # ssh has to know who it is.
        assert ("runAsUser" in context) == (not cluster.openshift or whose.startswith("MPIJob")), whose
    for container in containers(objects):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert "memory" in container["resources"]["limits"]


def test_every_file_is_explained_and_every_explained_file_is_there(texts: dict[str, str]) -> None:
    told = {*re.findall(r"`([\w.-]+\.yaml|Containerfile\.\w+)`", texts["README.md"])}
    assert told == {*texts} - {"README.md"}


def test_the_folder_is_new_and_the_secrets_are_ones_own(tmp_path: Path) -> None:
    written = write(SPEC, tmp_path / "a" / "b")
    assert sorted(written) == sorted((tmp_path / "a" / "b").iterdir())
    modes: Mapping[str, int] = {path.name: stat.S_IMODE(path.stat().st_mode) for path in written}
    assert modes.pop("secrets.yaml") == 0o600
    assert {*modes.values()} == {0o644}
    with pytest.raises(Refusal, match=r"is not empty: give a new one"):
        write(SPEC, tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match=r"cannot be written to .*file/new \(Not a directory\)"):
        write(SPEC, tmp_path / "file" / "new")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"namespace": "My_Space"}, "no name of a namespace"),
        ({"namespace": "a" * 64}, "no name of a namespace"),
        ({"host": "mlflow.example.org:443"}, "no name of a host"),
        ({"host": "a: b"}, "no name of a host"),
        ({"registry": "Registry.example.org/Team"}, "no place of images"),
        ({"registry": "a b"}, "no place of images"),
    ],
)
def test_names_that_kubernetes_would_refuse_are_refused(wrong: dict[str, str], told: str) -> None:
    with pytest.raises(UsageRefusal, match=told):
        manifests(replace(SPEC, **wrong))


@given(
    st.sampled_from(["1", "1e3", "null", "true", "on", "0x1", "a" * 63])
    | st.from_regex(r"[a-z0-9]{1,4}", fullmatch=True)
)
def test_a_name_stays_the_text_it_is(name: str) -> None:
    texts = manifests(replace(SPEC, namespace=name, host=name))
    (ingress,) = yaml.load_all(texts["ingress.yaml"], yaml.CSafeLoader)
    assert (ingress["metadata"]["namespace"], ingress["spec"]["rules"][0]["host"]) == (name, name)
