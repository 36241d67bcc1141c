"""deploy/kubernetes, without a cluster: built by kustomize, right by the schemas, restricted, and of one piece."""

from __future__ import annotations

import re
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from sqlalchemy import make_url

from receiver import metrics
from receiver import settings as configuration
from receiver.settings import Settings, host_and_port
from tests.deploy.programs import program
from tests.live.apart import DEPLOY
from workers.cli.main import app

KUBERNETES = DEPLOY / "kubernetes"
Manifest = dict[str, Any]
WRITTEN = {
    "seal_key": "seal-key-of-the-cluster",
    "api_key": "api-key-of-the-cluster",
    "quickstream_password": "password-of-quickstream",
    "ca.pem": "a certificate",
    "redis_url_accept": "rediss://postback-accept:pw-1@queue-1.internal:6380/0?ssl_ca_certs=/run/secrets/ca.pem",
    "redis_url_worker": "rediss://postback-worker:pw-2@queue-1.internal:6380/0?ssl_ca_certs=/run/secrets/ca.pem",
    "redis_url_console": "rediss://postback-console:pw-3@queue-1.internal:6380/0?ssl_ca_certs=/run/secrets/ca.pem",
    "redis_url_none": "rediss://queue-1.internal:6380/0",
    "database_url_none": "sqlite:////var/lib/postback/none.sqlite3",
    "database_url_owner": "postgresql+psycopg://postback_owner:pw-4@db.internal/postback",
    "database_url_worker": "postgresql+psycopg://postback_worker:pw-5@db.internal/postback",
    "database_url_console": "postgresql+psycopg://postback_console:pw-6@db.internal/postback",
}
"""The files that somebody puts beside the example, as README.md says."""
PROCESSES = ("serve", "work", "console", "migrate")
# The oldest that is still offered, and the newest that is known.
VERSIONS = ("1.30", kubernetes_validate.latest_version())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    folder = tmp_path_factory.mktemp("cluster") / "kubernetes"
    shutil.copytree(KUBERNETES, folder)
    (folder / "example" / "secrets").mkdir()
    for name, value in WRITTEN.items():
        (folder / "example" / "secrets" / name).write_text(f"{value}\n")
    done = subprocess.run(
        [program("kubectl"), "kustomize", str(folder / "example")], capture_output=True, text=True, timeout=60
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return list(yaml.safe_load_all(done.stdout))


def of_kind(built: list[Manifest], *kinds: str) -> dict[str, Manifest]:
    """By the name that the base has, which generators lengthen."""
    return {each["metadata"]["name"]: each for each in built if each["kind"] in kinds}


def pods(built: list[Manifest]) -> dict[str, Manifest]:
    """The pod templates by the name of the process."""
    owners = of_kind(built, "StatefulSet", "Deployment", "Job")
    return {name: owner["spec"]["template"] for name, owner in owners.items()}


def container(pod: Manifest) -> Manifest:
    (only,) = pod["spec"]["containers"]
    return dict(only)


def chosen(selector: Manifest, built: list[Manifest]) -> set[str]:
    """The processes whose pods a selector finds."""
    wanted = selector.get("matchLabels", selector).items()
    return {name for name, pod in pods(built).items() if wanted <= pod["metadata"]["labels"].items()}


# -- right by itself


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_allow_it(built: list[Manifest], version: str) -> None:
    for manifest in built:
        kubernetes_validate.validate(manifest, version, strict=True)
    (serve,) = of_kind(built, "StatefulSet").values()
    wrong = {**serve, "spec": {**serve["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_all_of_it_is_in_one_namespace(built: list[Manifest]) -> None:
    (namespace,) = of_kind(built, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {each["metadata"].get("namespace", "postback") for each in built} == {"postback"}
    assert pods(built).keys() == set(PROCESSES)


@pytest.mark.parametrize("name", PROCESSES)
def test_pods_are_restricted(built: list[Manifest], name: str) -> None:
    """What the restricted profile asks for, and a root that is not written."""
    pod = pods(built)[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {
        "configMap",
        "projected",
        "emptyDir",
    }
    assert container(pods(built)[name])["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert container(pods(built)[name])["resources"].keys() == {"requests", "limits"}
    assert "USER 10001:10001" in (DEPLOY / "container" / "Containerfile").read_text()


@pytest.mark.parametrize("name", PROCESSES)
def test_every_command_is_one(built: list[Manifest], name: str) -> None:
    group: Any = typer.main.get_command(app)
    called, *rest = container(pods(built)[name])["args"]
    assert called == name
    group.commands[called].make_context(called, rest)


# -- of one piece


def test_everything_that_is_named_is_there(built: list[Manifest]) -> None:
    secrets, maps = of_kind(built, "Secret"), of_kind(built, "ConfigMap")
    for pod in pods(built).values():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert volumes["configuration"]["configMap"]["name"] in maps
        sources = volumes["secrets"]["projected"]["sources"]
        assert {source["secret"]["name"] for source in sources} <= secrets.keys()
        claimed = {"data"} if "data" not in volumes else set()
        assert {mount["name"] for mount in container(pod)["volumeMounts"]} == volumes.keys() | claimed
    for name, service in of_kind(built, "Service").items():
        assert chosen(service["spec"]["selector"], built) == {name}
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]
        assert "http" in {port["name"] for port in container(pods(built)[name])["ports"]}
    for ingress in of_kind(built, "Ingress").values():
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert path["backend"]["service"]["name"] in of_kind(built, "Service")
    for name, budget in of_kind(built, "PodDisruptionBudget").items():
        assert chosen(budget["spec"]["selector"], built) == {name}
    for name, owner in of_kind(built, "StatefulSet", "Deployment").items():
        assert chosen(owner["spec"]["selector"], built) == {name}


def load(built: list[Manifest], name: str, folder: Path) -> Settings:
    """The configuration as a pod's process would read it, with nothing but the secrets that the pod gets."""
    volumes = {volume["name"]: volume for volume in pods(built)[name]["spec"]["volumes"]}
    for source in volumes["secrets"]["projected"]["sources"]:
        for file, value in of_kind(built, "Secret")[source["secret"]["name"]]["data"].items():
            assert not (folder / file).exists(), "one secret would hide another"
            (folder / file).write_bytes(b64decode(value))
    given = of_kind(built, "ConfigMap")[volumes["configuration"]["configMap"]["name"]]["data"]["postback.toml"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container(pods(built)[name])["volumeMounts"]}
    place = f"POSTBACK_CONFIG={mounts['configuration']}/postback.toml"
    assert place in (DEPLOY / "container" / "Containerfile").read_text()
    file = folder / "postback.toml"
    file.write_text(given.replace(f"file:{mounts['secrets']}/", "file:"))
    return configuration.load(file)


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_has_its_secrets_and_its_own_users(built: list[Manifest], name: str, tmp_path: Path) -> None:
    settings = load(built, name, tmp_path)
    assert settings.queue.redis_url is not None
    assert settings.store.database_url is not None
    user = {"serve": "accept", "work": "worker", "console": "console", "migrate": "none"}[name]
    assert settings.queue.redis_url.reveal().decode() == WRITTEN[f"redis_url_{user}"]
    role = {"serve": "none", "work": "worker", "console": "console", "migrate": "owner"}[name]
    assert settings.store.database_url.reveal().decode() == WRITTEN[f"database_url_{role}"]
    assert (make_url(WRITTEN[f"database_url_{role}"]).drivername == "sqlite") == (name == "serve")
    mounts = {mount["mountPath"] for mount in container(pods(built)[name])["volumeMounts"] if not mount.get("readOnly")}
    assert mounts == {str(settings.data_dir), "/tmp"}  # noqa: S108


def test_ports_and_sizes_agree(built: list[Manifest], tmp_path: Path) -> None:
    settings = load(built, "serve", tmp_path)
    assert settings.work.metrics_bind is not None
    for name, bind in (
        ("serve", settings.receive.bind),
        ("work", settings.work.metrics_bind),
        ("console", settings.console.bind),
    ):
        pod = pods(built)[name]
        (port,) = container(pod)["ports"]
        assert host_and_port(bind, name) == ("0.0.0.0", port["containerPort"])  # noqa: S104
        assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
        if name == "work":
            continue
        for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            assert container(pod)[probe]["httpGet"] == {"path": path, "port": "http"}
    (claim,) = of_kind(built, "StatefulSet")["serve"]["spec"]["volumeClaimTemplates"]
    assert size(claim["spec"]["resources"]["requests"]["storage"]) >= 2 * settings.receive.max_spool
    (waiting,) = [each for each in pods(built)["console"]["spec"]["volumes"] if each["name"] == "tmp"]
    assert size(waiting["emptyDir"]["sizeLimit"]) >= 2 * settings.console.max_upload
    limit = {
        name: each["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
        for name, each in of_kind(built, "Ingress").items()
    }
    assert size(limit["serve"]) > settings.receive.max_body
    assert size(limit["console"]) > settings.console.max_upload


def size(text: str) -> int:
    """Bytes; nginx means with `k` and `m` what Kubernetes means with `Ki` and `Mi`."""
    found = re.fullmatch(r"(\d+)([kmKMG])i?", text)
    assert found is not None
    return int(found[1]) << {"k": 10, "m": 20, "g": 30}[found[2].lower()]


def test_what_rests_in_the_spool_comes_back(built: list[Manifest]) -> None:
    """A 200 may be nowhere else: the volume is the pod's own, and outlives it and its number."""
    serve = of_kind(built, "StatefulSet")["serve"]["spec"]
    assert [claim["metadata"]["name"] for claim in serve["volumeClaimTemplates"]] == ["data"]
    assert serve["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert serve["replicas"] > of_kind(built, "PodDisruptionBudget")["serve"]["spec"]["minAvailable"]
    waited = int(container(serve["template"])["lifecycle"]["preStop"]["exec"]["command"][1])
    assert waited + 15 <= serve["template"]["spec"]["terminationGracePeriodSeconds"]


def test_workers_grow_with_the_age_of_the_queue(built: list[Manifest]) -> None:
    (scaler,) = of_kind(built, "HorizontalPodAutoscaler").values()
    target = scaler["spec"]["scaleTargetRef"]
    work = of_kind(built, target["kind"])[target["name"]]
    assert "replicas" not in work["spec"], "whoever applies it again would undo what was scaled"
    (measured,) = scaler["spec"]["metrics"]
    (gauge,) = metrics.QUEUE_OLDEST_SECONDS.describe()
    assert measured["external"]["metric"]["name"] == gauge.name
    assert f"max({gauge.name}" in (KUBERNETES / "README.md").read_text()


def test_the_network_lets_through_what_is_needed(built: list[Manifest]) -> None:
    policies = of_kind(built, "NetworkPolicy").values()
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in [policy["spec"] for policy in policies]
    redis, sentinel, postgresql = 6380, 26380, 5432
    mail_and_webhook = {443, 465, 587}
    assert {name: set(ports_of(built, name, "egress")) - {53} for name in PROCESSES} == {
        "serve": {redis, sentinel},
        "work": {redis, sentinel, postgresql},
        "console": {redis, sentinel, postgresql} | mail_and_webhook,
        "migrate": {postgresql},
    }
    assert {name: set(ports_of(built, name, "ingress")) for name in PROCESSES} == {
        "serve": {"http"},
        "work": {"metrics"},
        "console": {"http"},
        "migrate": set(),
    }


def ports_of(built: list[Manifest], name: str, way: str) -> Iterator[Any]:
    for policy in of_kind(built, "NetworkPolicy").values():
        if name in chosen(policy["spec"]["podSelector"], built):
            for rule in policy["spec"].get(way, ()):
                yield from (port["port"] for port in rule["ports"])
