"""Writes an InferenceService, KServe's description of a served model, in one of two forms.

- With Onward's own image, the pod runs `onward serve`. It follows its environment, so a promotion needs no new file.
- With Triton, KServe's runtime `kserve-tritonserver` serves a model repository that `onward export-triton` wrote and
  that was uploaded to a storage address. It serves this version only.

Source: KServe's API reference (serving.kserve.io/v1beta1, InferenceService) and its open inference protocol, v2.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from onward.registry.errors import UsageError
from onward.registry.other_servers.exported import Exported
from onward.registry.uri import scheme, without_credentials

API = "serving.kserve.io/v1beta1"
PORT = 8080
# KServe's rule for the names of InferenceServices. It appends "-predictor" for the service, whose names have at most 63
# characters.
_NAME = re.compile("[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST = 53
# Names of other Kubernetes objects (RFC 1123).
_OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_STORAGES = ("s3", "gs", "pvc", "hf", "https", "http", "azure", "hdfs", "webhdfs", "oci")
_PARAMS = "/etc/onward"


@dataclass(frozen=True)
class Pod:
    """How Onward's own image runs.

    Attributes:
        image: the image that deploy/Dockerfile makes.
        store: the address of the MLflow server.
        secret: the Secret with MLflow's user and password as environment variables; "" for none.
        params: the ConfigMap with the params.yaml that names environments and signers; "" for none.
    """

    image: str
    store: str
    secret: str = ""
    params: str = ""


def service_name(name: str) -> str:
    """Make a model's name valid for an InferenceService. A long name ends with a part of its digest.

    Args:
        name: the model's name.
    """
    made = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    if not made[:1].isalpha():
        made = f"model-{made}".rstrip("-")
    if len(made) > _LONGEST:
        made = f"{made[: _LONGEST - 9].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return made


def with_triton(version: Exported, storage: str, name: str = "", namespace: str = "") -> dict[str, Any]:
    """An InferenceService that serves an uploaded model repository with Triton.

    Args:
        version: the version.
        storage: the address of the model repository, such as s3://bucket/models.
        name: the name of the InferenceService; "" for one made of the model's name.
        namespace: its namespace; "" for the one that kubectl uses.

    Raises:
        UsageError: a name or the address is not valid.
    """
    if scheme(storage) not in _STORAGES or without_credentials(storage) != storage:
        raise UsageError(
            f"--storage-uri {without_credentials(storage)}: give an address that KServe downloads from, without user "
            f"and password: {', '.join(f'{known}://' for known in _STORAGES)}"
        )
    model: dict[str, Any] = {
        "modelFormat": {"name": "triton", "version": "2"},
        "runtime": "kserve-tritonserver",
        "protocolVersion": "v2",
        "storageUri": storage,
        **_resources(version),
    }
    return _service(version, name, namespace, {"model": model})


def with_onward(version: Exported, pod: Pod, name: str = "", namespace: str = "") -> dict[str, Any]:
    """An InferenceService that runs `onward serve`.

    Args:
        version: the version.
        pod: how the image runs.
        name: the name of the InferenceService; "" for one made of the model's name.
        namespace: its namespace; "" for the one that kubectl uses.

    Raises:
        UsageError: a name or an address is not valid, or the target is a file.
    """
    if "@" not in version.target and not re.fullmatch(r"[\w-]+/\d+", version.target):
        raise UsageError(f"{version.target}: with --image, the target must be MODEL@ENVIRONMENT or MODEL/VERSION")
    if scheme(pod.store) not in ("http", "https") or without_credentials(pod.store) != pod.store:
        raise UsageError(
            f"--tracking-uri {without_credentials(pod.store)}: the pod needs the http(s) address of an MLflow server, "
            "without user and password; put those into a Secret, and name it with --secret"
        )
    if not re.fullmatch(r"[A-Za-z0-9][\w.:/@-]*", pod.image):
        raise UsageError(f"--image {pod.image!r} is not the name of an image")
    for option, value in (("--secret", pod.secret), ("--params", pod.params)):
        if value and not (_OBJECT.fullmatch(value) and len(value) <= 253):
            raise UsageError(f"{option} {value!r} is not the name of a Kubernetes object: use a-z, 0-9, - and .")
    # Not /cache itself: all users may write to an emptyDir, and Onward refuses a cache in such a folder.
    environment = [
        {"name": "MLFLOW_TRACKING_URI", "value": pod.store},
        {"name": "XDG_CACHE_HOME", "value": "/cache/home"},
    ]
    mounts = [{"name": "cache", "mountPath": "/cache"}, {"name": "temporary", "mountPath": "/tmp"}]
    volumes: list[dict[str, Any]] = [{"name": "cache", "emptyDir": {}}, {"name": "temporary", "emptyDir": {}}]
    if pod.params:
        environment.append({"name": "ONWARD_PARAMS", "value": f"{_PARAMS}/params.yaml"})
        mounts.append({"name": "params", "mountPath": _PARAMS})
        volumes.append({"name": "params", "configMap": {"name": pod.params}})
    container: dict[str, Any] = {
        "name": "kserve-container",
        "image": pod.image,
        "args": ["serve", version.target, "--host", "0.0.0.0", "--port", str(PORT), "--json"],
        "env": environment,
        **({"envFrom": [{"secretRef": {"name": pod.secret}}]} if pod.secret else {}),
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": PORT}, "periodSeconds": 5},
        "livenessProbe": {"httpGet": {"path": "/v2/health/live", "port": PORT}, "initialDelaySeconds": 60},
        **_resources(version),
        "securityContext": {
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    return _service(version, name, namespace, {"containers": [container], "volumes": volumes})


def _service(version: Exported, name: str, namespace: str, predictor: dict[str, Any]) -> dict[str, Any]:
    name = name or service_name(version.name)
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise UsageError(
            f"--name {name!r} is not the name of an InferenceService: use a-z, 0-9 and -, beginning with a letter, and "
            f"at most {_LONGEST} characters"
        )
    if namespace and not (re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", namespace) and len(namespace) <= 63):
        raise UsageError(f"--namespace {namespace!r} is not the name of a namespace: use a-z, 0-9 and -")
    known = {"onward-target": version.target, "onward-version": str(version.version), "onward-sha256": version.sha256}
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    metadata["annotations"] = {key: value for key, value in known.items() if value}
    return {"apiVersion": API, "kind": "InferenceService", "metadata": metadata, "spec": {"predictor": predictor}}


def _resources(version: Exported) -> dict[str, Any]:
    """The processors that the version was tuned to."""
    threads = version.served.options.threads
    if threads is None:
        return {}
    return {"resources": {kind: {"cpu": str(threads)} for kind in ("requests", "limits")}}
