"""The Kubernetes manifest of a recommendation: a Deployment, a replica a pod, its Service, a volume claim.

The volume holds the model's weights, which all pods share: the first one downloads them, the others wait.
"""

import re
from math import ceil
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveInt

from llmpilot.config import Facts, Gpu, Model
from llmpilot.errors import ConfigError
from llmpilot.recommendation.node_labels import labels_of
from llmpilot.recommendation.serve_line import PORT, ServeLine, serve_line
from llmpilot.simulator.service_settings import EngineName, ServiceSettings

CACHE = "/cache"
HOME = "/home/engine"
FILES = "/tmp"
CACHE_MARGIN, CACHE_GIB = 1.2, 10
"""Room in the volume beside the weights: a share for files of another form, and what a download leaves."""
USER_ID = 1000
LONGEST_NAME = 40
"""Of 63 characters, so that the names Kubernetes derives for pods fit as well."""
HEAD = (
    "# {pods} x ({profile}) for {model}: {cost} an hour, written by `python -m llmpilot task=recommend`.\n"
    "# Apply with kubectl apply -f FILE. A gated model needs the secret once:\n"
    "#   kubectl create secret generic {secret} --from-literal=token=<your Hugging Face token>\n"
)
SHARED = (
    "# All pods share the weights in a volume, which needs a storage class with ReadWriteMany (NFS, CephFS,\n"
    "# EFS, Filestore ...): pod.storage_class=NAME, pod.cache_claim=NAME for a claim that exists, or\n"
    "# pod.cache=none.\n"
)
EACH_ITS_OWN = "# pod.cache=none: every pod downloads the weights of its own, at each start.\n"
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([EPTGMk]i?|m)?$")]


class Pod(Facts):
    """What the manifest's pods are made of beside what the recommendation says.

    `image` and `node_labels` (label -> values, any of them) null: by the engine, and the vendor and type of
    the GPU. With `cache` shared all pods keep the weights in one volume: that of the claim `cache_claim`,
    which exists and allows ReadWriteMany, or without a name one that the manifest makes, of `cache_size`
    (null: what the weights take, and a margin) and `storage_class` (null: the cluster's default). With
    `cache` none each pod downloads its own. `token_secret` names a secret whose key `token` is a Hugging Face
    token; it may be absent.
    """

    namespace: Name | None = None
    image: str | None = None
    node_labels: dict[str, list[str]] | None = None
    token_secret: Name = "hf-token"
    cache: Literal["shared", "none"] = "shared"
    cache_claim: Name | None = None
    cache_size: Quantity | None = None
    storage_class: Name | None = None
    cpu: Quantity = "4"
    memory: Quantity = "16Gi"
    load_timeout_s: PositiveInt = 1800


IMAGES: dict[tuple[EngineName, str], str] = {
    ("vllm", "nvidia"): "vllm/vllm-openai:v0.19.1",
    ("vllm", "amd"): "vllm/vllm-openai-rocm:v0.19.1",
    ("sglang", "nvidia"): "lmsysorg/sglang:v0.5.10.post1",
    ("sglang", "amd"): "lmsysorg/sglang:v0.5.10.post1-rocm720-mi30x",
    ("trtllm", "nvidia"): "nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc5",
}
"""Of the releases whose speed is known (NEWEST of service_settings), as their projects publish them: vLLM and
SGLang on Docker Hub, NVIDIA in its documentation of trtllm-serve."""


def manifest_text(
    model: Model, gpu: Gpu, pods: int, pod: Pod, settings: ServiceSettings | None = None
) -> str:
    """Return the manifest as YAML, two documents, or three with a volume claim.

    Raises:
        ConfigError: the engine does not serve the model, or it is not known how clusters label this GPU type.
    """
    head = HEAD.format(
        pods=pods,
        profile=gpu.label,
        model=" ".join(model.name.split()),  # a line break would end the comment
        cost=f"${pods * gpu.cost_per_hour:,.2f}",
        secret=pod.token_secret,
    )
    if pod.cache == "none":
        head += EACH_ITS_OWN
    elif pod.cache_claim is None:
        head += SHARED
    documents = manifest(model, gpu, pods, pod, settings)
    return head + yaml.safe_dump_all(documents, sort_keys=False, width=100)


def manifest(
    model: Model, gpu: Gpu, pods: int, pod: Pod, settings: ServiceSettings | None = None
) -> list[dict[str, Any]]:
    """Return the Deployment, the Service and, where the pods' volume has none yet, its claim as plain values.

    `settings` are those of the service that was simulated; None: vLLM as it is by default.

    Raises:
        ConfigError: as `manifest_text`.
    """
    name = _name(model, gpu)
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "llm-pilot"}
    metadata: dict[str, Any] = {"name": name, "labels": labels}
    if pod.namespace is not None:
        metadata = {"name": name, "namespace": pod.namespace, "labels": labels}
    selector = {"app.kubernetes.io/name": name}
    claim = pod.cache_claim or f"{name}-cache"
    engine: EngineName = "vllm" if settings is None else settings.engine
    line = serve_line(model, gpu, settings, host="0.0.0.0", folder=FILES)
    spec = _pod_spec(gpu, pod, None if pod.cache == "none" else claim, _container(engine, line, gpu, pod))
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": pods,
            "selector": {"matchLabels": selector},
            # GPUs for a pod more than there are users for are rarely free.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
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
    if pod.cache == "none" or pod.cache_claim is not None:
        return [deployment, service]
    volume: dict[str, Any] = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": pod.cache_size or f"{cache_gib(model)}Gi"}},
    }
    if pod.storage_class is not None:
        volume["storageClassName"] = pod.storage_class
    claimed = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata | {"name": claim},
        "spec": volume,
    }
    return [deployment, service, claimed]


def cache_gib(model: Model) -> int:
    """Return what the model's checkpoint takes on disk, and a margin [GiB].

    What an engine quantizes while it loads is downloaded in 16 bits.
    """
    stored = model.weight_bytes if model.quantize_to is None else 2e9 * model.parameters_b
    return ceil(CACHE_MARGIN * stored / 2**30) + CACHE_GIB


def _pod_spec(gpu: Gpu, pod: Pod, claim: str | None, container: dict[str, Any]) -> dict[str, Any]:
    resource = f"{gpu.vendor}.com/gpu"
    cache: dict[str, Any] = {"name": "cache", "emptyDir": {}}
    if claim is not None:
        cache = {"name": "cache", "persistentVolumeClaim": {"claimName": claim}}
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
        "containers": [container],
        "volumes": [
            cache,
            {"name": "home", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            # The GPUs of a pod talk through shared memory; a container's own 64 MB are too few.
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _container(engine: EngineName, line: ServeLine, gpu: Gpu, pod: Pod) -> dict[str, Any]:
    resource = f"{gpu.vendor}.com/gpu"
    image = pod.image or IMAGES.get((engine, gpu.vendor))
    if image is None:
        raise ConfigError(
            f"there is no image of {engine} for GPUs of {gpu.vendor}",
            given=gpu.label,
            cure="pod.image=NAME:TAG, or another engine",
        )
    # What the engine reads from a file is written when the container starts.
    command = list(line.argv) if not line.files else ["/bin/sh", "-c", line.shell(becomes_it=True)]
    health = {"path": "/health", "port": "http"}
    requests = {"cpu": pod.cpu, "memory": pod.memory}
    return {
        "name": engine,
        "image": image,
        "command": command,
        "env": [
            # What else the engine writes is the pod's own; PyTorch needs a name for the user id.
            {"name": "HOME", "value": HOME},
            {"name": "USER", "value": "engine"},
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
            {"name": "home", "mountPath": HOME},
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
