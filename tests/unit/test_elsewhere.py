"""Workers on machines that are not in the inventory: their accounts, and what flow runs in a Kubernetes cluster become."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from .test_modules import work_pool
from .test_settings import load

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import _lint  # noqa: E402

access = load("prefect_access")
JOB = ROOT / "ansible/roles/workers/files/kubernetes-job.yml"
VALUES = yaml.safe_load((ROOT / "ansible/roles/workers/vars/main.yml").read_text())
CLUSTER_FILES = ROOT / "docs" / "kubernetes"

CLUSTER = {"name": "cluster-1", "kind": "service", "role": "worker", "pools": ["cluster"], "blocks": ["secret/own"]}


def test_a_worker_elsewhere_has_the_rights_of_one_of_the_kit():
    users = [{"name": "admin"}, {"name": "eve", "role": "viewer", "blocks": ["secret/x"]}, CLUSTER]
    rights = access.prefect_rights(access.prefect_user_accounts(users, ["secret/all", "secret/own"]))
    assert rights["admin"] == {"role": "admin"}
    # What the flows of all workers may read, no person gets by that.
    assert rights["eve"] == {"role": "viewer", "blocks": ["secret/x"]}
    (kit,) = access.prefect_worker_accounts(
        [{"name": "a", "pool": "cluster", "blocks": ["secret/own"]}], ["secret/all", "secret/own"]
    )
    assert rights["cluster-1"] == access.prefect_rights([kit])["worker-a"]


# --- a Kubernetes cluster ----------------------------------------------------------------------------------------


def test_the_kit_s_template_fits_the_server_s_and_names_what_the_cluster_has():
    """Placeholders are variables that the server's template has; Secret, account and ConfigMap those of docs/kubernetes/."""
    variables = template()["variables"]["properties"]
    assert set(re.findall(r"\{\{ (\w+) \}\}", JOB.read_text())) <= set(variables)
    assert set(VALUES["__workers_job_defaults"]["kubernetes"]) <= set(variables)
    pod = yaml.safe_load(JOB.read_text())["spec"]["template"]["spec"]
    there = objects()
    assert VALUES["__workers_job_defaults"]["kubernetes"]["service_account_name"] in there["ServiceAccount"]
    assert VALUES["__workers_job_defaults"]["kubernetes"]["namespace"] in there["Namespace"]
    worker = there["Deployment"]["prefect-worker"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["envFrom"][0] in worker["containers"][0]["envFrom"]
    # The path that the worker's PREFECT_API_SSL_CERT_FILE names leads to the same in its flow runs.
    assert mounted(pod, "ca") == mounted(worker, "ca") == ("/etc/prefect", {"name": "prefect-ca", "optional": True})


def test_a_job_is_what_kubernetes_takes():
    """With a value in the place of each variable, as Prefect's worker puts them in."""
    job = filled(yaml.safe_load(JOB.read_text()), {"env": [{"name": "A", "value": "1"}], "command": ["prefect"]})
    job["metadata"]["labels"] = {"a": "b"}
    job["spec"]["ttlSecondsAfterFinished"] = 60
    for extra in "parallelism", "completions":
        assert job["spec"]["template"]["spec"].pop(extra) == 1
    for version in _lint.KUBERNETES:
        kubernetes_validate.validate(job, version, strict=True)


def test_worker_and_flow_runs_are_what_a_restricted_namespace_takes():
    pods = {"flow run": yaml.safe_load(JOB.read_text()), "worker": objects()["Deployment"]["prefect-worker"]}
    assert objects()["Namespace"]["prefect"]["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }
    for name, one in pods.items():
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 64202, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]


def test_the_worker_may_make_jobs_and_look_at_pods_in_its_namespace_and_nothing_else():
    there = objects()
    assert not {"ClusterRole", "ClusterRoleBinding"} & set(there)
    (role,) = there["Role"].values()
    may = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    looks = {"get", "list", "watch"}
    assert may == {("jobs", verb) for verb in looks | {"create", "delete"}} | {
        (resource, verb) for resource in ("pods", "pods/log", "pods/status", "events") for verb in looks
    }
    (binding,) = there["RoleBinding"].values()
    assert [subject["name"] for subject in binding["subjects"]] == ["prefect-worker"]
    assert there["ServiceAccount"]["prefect-flow-run"]["automountServiceAccountToken"] is False


def test_both_ways_to_a_worker_start_the_same():
    """kubectl apply -k, and Prefect's chart: version of a new server, pool, name, account and authority."""
    container = objects()["Deployment"]["prefect-worker"]["spec"]["template"]["spec"]["containers"][0]
    chart = yaml.safe_load((CLUSTER_FILES / "helm-values.yaml").read_text())["worker"]
    version = yaml.safe_load((ROOT / "ansible/roles/prefect/vars/main.yml").read_text())["__prefect_new_host_version"]
    assert container["image"] == f"prefecthq/prefect:{version}-python3.13-kubernetes"
    assert container["image"].endswith(":" + chart["image"]["prefectTag"])
    named = dict(
        line.split("=", 1)
        for line in (CLUSTER_FILES / "worker.env").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert named == {
        "PREFECT_API_URL": chart["selfHostedServerApiConfig"]["apiUrl"],
        "WORK_POOL": chart["config"]["workPool"],
        "WORKER_NAME": chart["config"]["name"],
    }
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container["args"]))) == {"WORK_POOL", "WORKER_NAME"}
    (account,) = chart["extraEnvVars"]
    assert account["valueFrom"]["secretKeyRef"] == {"name": "prefect-worker", "key": account["name"]}
    assert account["name"] in VALUES["__workers_job_configurations"]["kubernetes"]["env"]


def template() -> dict[str, Any]:
    """The base job template that the server knows for the type kubernetes."""
    # A tenth of a second that most runs of this file need not: found without importing Prefect.
    origin = importlib.util.find_spec("prefect").origin
    path = Path(origin).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
    return work_pool.template_of_type(json.loads(path.read_text()), "kubernetes")


def objects() -> dict[str, dict[str, Any]]:
    """What docs/kubernetes/ makes, by kind and name."""
    found: dict[str, dict[str, Any]] = {}
    for name in yaml.safe_load((CLUSTER_FILES / "kustomization.yaml").read_text())["resources"]:
        for one in yaml.safe_load_all((CLUSTER_FILES / name).read_text()):
            found.setdefault(one["kind"], {})[one["metadata"]["name"]] = one
    return found


def mounted(pod: dict[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """Where a pod's container has the ConfigMap of this volume."""
    (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == name]
    (volume,) = [one for one in pod["volumes"] if one["name"] == name]
    return mount["mountPath"], volume["configMap"]


def filled(value: Any, values: dict[str, Any]) -> Any:
    """A manifest with values in the place of its variables; those that are not given are words."""
    if isinstance(value, dict):
        return {key: filled(one, values) for key, one in value.items()}
    if isinstance(value, list):
        return [filled(one, values) for one in value]
    found = re.fullmatch(r"\{\{ (\w+) \}\}", value) if isinstance(value, str) else None
    if found:
        return values.get(found[1], {"cpu_limit": "1", "image_pull_policy": "Always"}.get(found[1], "1"))
    return value
