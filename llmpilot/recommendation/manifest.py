"""The Kubernetes manifest of a recommendation: a Deployment of vLLM, a replica a pod, and its Service."""

import re
from typing import Annotated, Any

import yaml
from pydantic import Field, PositiveInt

from llmpilot.config import Facts, Gpu, Model
from llmpilot.errors import ConfigError
from llmpilot.recommendation.node_labels import labels_of
from llmpilot.recommendation.serve_line import PORT, vllm_argv

CACHE = "/cache"
USER_ID = 1000
LONGEST_NAME = 40
"""Of 63 characters, so that the names Kubernetes derives for pods fit as well."""
COMMENT = (
    "# {pods} x ({profile}) for {model}: {cost} an hour, written by `python -m llmpilot task=recommend`.\n"
    "# Apply with kubectl apply -f FILE. A gated model needs the secret once:\n"
    "#   kubectl create secret generic {secret} --from-literal=token=<your Hugging Face token>\n"
)
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([EPTGMk]i?|m)?$")]


class Pod(Facts):
    """What the manifest's pods are made of beside what the recommendation says.

    `image` and `node_labels` (label -> values, any of them) null: by the vendor and type of the GPU. Models
    are kept in the volume claim `cache_claim`, which must allow ReadWriteMany for pods on several nodes;
    null: each pod downloads its own. `token_secret` names a secret whose key `token` is a Hugging Face token;
    it may be absent.
    """

    namespace: Name | None = None
    image: str | None = None
    node_labels: dict[str, list[str]] | None = None
    token_secret: Name = "hf-token"
    cache_claim: Name | None = None
    cpu: Quantity = "4"
    memory: Quantity = "16Gi"
    load_timeout_s: PositiveInt = 1800


IMAGES = {"nvidia": "vllm/vllm-openai:v0.11.0", "amd": "vllm/vllm-openai-rocm:v0.17.1"}
"""Published by the vLLM project on Docker Hub."""


def manifest_text(model: Model, gpu: Gpu, pods: int, pod: Pod) -> str:
    """Return the manifest as YAML, two documents.

    Raises:
        ConfigError: vLLM does not serve the model, or it is not known how clusters label this GPU type.
    """
    head = COMMENT.format(
        pods=pods,
        profile=gpu.label,
        model=" ".join(model.name.split()),  # a line break would end the comment
        cost=f"${pods * gpu.cost_per_hour:,.2f}",
        secret=pod.token_secret,
    )
    return head + yaml.safe_dump_all(manifest(model, gpu, pods, pod), sort_keys=False, width=100)


def manifest(model: Model, gpu: Gpu, pods: int, pod: Pod) -> list[dict[str, Any]]:
    """Return the Deployment and the Service as plain values.

    Raises:
        ConfigError: as `manifest_text`.
    """
    name = _name(model, gpu)
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "llm-pilot"}
    metadata: dict[str, Any] = {"name": name, "labels": labels}
    if pod.namespace is not None:
        metadata = {"name": name, "namespace": pod.namespace, "labels": labels}
    selector = {"app.kubernetes.io/name": name}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": pods,
            "selector": {"matchLabels": selector},
            # GPUs for a pod more than there are users for are rarely free.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {"metadata": {"labels": labels}, "spec": _pod_spec(model, gpu, pod)},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": selector,
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }
    return [deployment, service]


def _pod_spec(model: Model, gpu: Gpu, pod: Pod) -> dict[str, Any]:
    resource = f"{gpu.vendor}.com/gpu"
    cache: dict[str, Any] = {"name": "cache", "emptyDir": {}}
    if pod.cache_claim is not None:
        cache = {"name": "cache", "persistentVolumeClaim": {"claimName": pod.cache_claim}}
    return {
        "affinity": {"nodeAffinity": _affinity(gpu, pod)},
        "tolerations": [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}],
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 120,
        "containers": [_container(model, gpu, pod, resource)],
        "volumes": [
            cache,
            {"name": "tmp", "emptyDir": {}},
            # The GPUs of a pod talk through shared memory; a container's own 64 MB are too few.
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _container(model: Model, gpu: Gpu, pod: Pod, resource: str) -> dict[str, Any]:
    health = {"path": "/health", "port": "http"}
    requests = {"cpu": pod.cpu, "memory": pod.memory}
    return {
        "name": "vllm",
        "image": pod.image or IMAGES[gpu.vendor],
        "command": list(vllm_argv(model, gpu, host="0.0.0.0")),
        "env": [
            # All that vLLM writes goes below; a user id without a name needs one for PyTorch's cache.
            {"name": "HOME", "value": CACHE},
            {"name": "USER", "value": "vllm"},
            {"name": "HF_HOME", "value": f"{CACHE}/huggingface"},
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
            {
                "name": "HF_TOKEN",
                "valueFrom": {"secretKeyRef": {"name": pod.token_secret, "key": "token", "optional": True}},
            },
        ],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": {
            "requests": requests | {resource: str(gpu.count)},
            "limits": {resource: str(gpu.count)},
        },
        "startupProbe": {
            "httpGet": health,
            "periodSeconds": 10,
            "failureThreshold": -(-pod.load_timeout_s // 10),
        },
        "readinessProbe": {"httpGet": health, "periodSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {"httpGet": health, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def _affinity(gpu: Gpu, pod: Pod) -> dict[str, Any]:
    """Return a node affinity: any one of the labels will do, as every kind of cluster has its own."""
    labels = pod.node_labels if pod.node_labels is not None else labels_of(gpu)
    if not labels:
        raise ConfigError(
            f"it is not known how clusters label nodes with {gpu.name}",
            cure="say it: 'pod.node_labels={nvidia.com/gpu.product: [NVIDIA-NAME]}', as `kubectl get nodes "
            "--show-labels` tells",
        )
    terms = [
        {"matchExpressions": [{"key": key, "operator": "In", "values": values}]}
        for key, values in labels.items()
    ]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}


def _name(model: Model, gpu: Gpu) -> str:
    """Return a DNS label: `llama-3-1-8b-2xa100-40gb`."""
    wanted = f"{model.name[:LONGEST_NAME]}-{gpu.count}x{gpu.name}".lower()
    name = re.sub(r"[^a-z0-9]+", "-", wanted).strip("-")
    return name if name[0].isalpha() else f"llm-{name}"
