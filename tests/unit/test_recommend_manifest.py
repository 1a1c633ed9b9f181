"""The Kubernetes manifest: every field is one that Kubernetes knows, and it asks for what was recommended."""

from typing import Any

import pytest
import yaml

from llmpilot import catalog
from llmpilot.config import parse
from llmpilot.errors import ConfigError
from llmpilot.recommendation.manifest import Pod, cache_gib, manifest, manifest_text
from llmpilot.recommendation.serve_line import serve_line
from llmpilot.simulator.service_settings import ENGINE_NAMES, NEWEST, EngineName, service_settings

MODEL = catalog.models(["llama_3_1_8b"])["llama_3_1_8b"]
TWO_A100 = catalog.gpus(["a100"])["a100"].model_copy(update={"count": 2})


def pod_spec(deployment: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def test_kubernetes_own_types_take_every_field() -> None:
    """The client's models drop what they do not know: nothing is lost on the way through them."""
    from kubernetes.client import ApiClient

    client = ApiClient()
    read = client._ApiClient__deserialize  # the public way wants an HTTP answer, of a form that changed
    profiles = [*catalog.gpu_profiles(), *catalog.gpu_profiles(["mi300x"], catalog.price_list("runpod"))]
    roomy = [gpu for gpu in profiles if gpu.count * gpu.memory_gb >= 24]
    assert {gpu.vendor for gpu in roomy} == {"nvidia", "amd"}
    for gpu in roomy:
        for pod in (Pod(namespace="llm", storage_class="nfs"), Pod(cache_claim="models"), Pod(cache="none")):
            documents = manifest(MODEL, gpu, 3, pod)
            kinds = ["V1Deployment", "V1Service", "V1PersistentVolumeClaim"][: len(documents)]
            for document, kind in zip(documents, kinds, strict=True):
                assert client.sanitize_for_serialization(read(document, kind)) == document
        deployment = documents[0]
        misspelt = deployment | {"spec": deployment["spec"] | {"replica": 1}}
        assert client.sanitize_for_serialization(read(misspelt, "V1Deployment")) != misspelt


def test_it_asks_for_what_was_recommended() -> None:
    text = manifest_text(MODEL, TWO_A100, 5, Pod())
    assert "$27.45 an hour" in text
    deployment, service, claim = yaml.safe_load_all(text)
    assert claim["kind"] == "PersistentVolumeClaim"
    assert deployment["metadata"]["name"] == "llama-3-1-8b-2xa100-40gb"
    assert "namespace" not in deployment["metadata"]
    assert deployment["spec"]["replicas"] == 5
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"]):
        assert selector.items() <= labels.items()

    spec = pod_spec(deployment)
    (container,) = spec["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert container["resources"]["requests"]["nvidia.com/gpu"] == "2"
    command = container["command"]
    assert command[:3] == ["vllm", "serve", MODEL.hf_id]
    assert command[command.index("--tensor-parallel-size") + 1] == "2"
    assert command[command.index("--host") + 1] == "0.0.0.0"
    (port,) = container["ports"]
    assert command[command.index("--port") + 1] == str(port["containerPort"])
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    products = required["nodeSelectorTerms"][0]["matchExpressions"][0]
    assert (products["key"], products["operator"]) == ("nvidia.com/gpu.product", "In")
    assert "NVIDIA-A100-SXM4-40GB" in products["values"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 1800
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert environment["HOME"] == mounts["home"]
    assert environment["HF_HOME"].startswith(mounts["cache"])


def volume_of(deployment: dict[str, Any]) -> dict[str, Any]:
    (cache,) = [volume for volume in pod_spec(deployment)["volumes"] if volume["name"] == "cache"]
    return {key: value for key, value in cache.items() if key != "name"}


def test_all_pods_share_the_weights() -> None:
    deployment, _, claim = manifest(MODEL, TWO_A100, 19, Pod(namespace="llm"))
    name = claim["metadata"]["name"]
    assert volume_of(deployment) == {"persistentVolumeClaim": {"claimName": name}}
    assert claim["metadata"]["namespace"] == "llm"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert "storageClassName" not in claim["spec"]
    size = claim["spec"]["resources"]["requests"]["storage"]
    assert size == f"{cache_gib(MODEL)}Gi"
    assert cache_gib(MODEL) * 2**30 > 1.2 * MODEL.weight_bytes
    assert "ReadWriteMany" in manifest_text(MODEL, TWO_A100, 19, Pod())
    own = manifest(MODEL, TWO_A100, 19, Pod(storage_class="nfs", cache_size="1Ti"))[2]["spec"]
    assert (own["storageClassName"], own["resources"]["requests"]["storage"]) == ("nfs", "1Ti")


def test_what_is_quantized_on_loading_is_downloaded_whole() -> None:
    assert cache_gib(MODEL.at_precision("fp8")) == cache_gib(MODEL)
    packaged = catalog.model_of_hf_id("nvidia/Llama-3.1-8B-Instruct-FP8")
    assert packaged is not None
    assert cache_gib(packaged) < cache_gib(MODEL)


def test_a_claim_of_ones_own_or_none_at_all() -> None:
    deployment, _ = manifest(MODEL, TWO_A100, 2, Pod(cache_claim="models"))
    assert volume_of(deployment) == {"persistentVolumeClaim": {"claimName": "models"}}
    deployment, _ = manifest(MODEL, TWO_A100, 2, Pod(cache="none"))
    assert volume_of(deployment) == {"emptyDir": {}}
    assert "every pod downloads" in manifest_text(MODEL, TWO_A100, 2, Pod(cache="none"))


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_it_starts_the_service_that_was_simulated(engine: EngineName) -> None:
    settings = service_settings(engine, TWO_A100, max_num_seqs=48, max_num_batched_tokens=4096)
    container = pod_spec(manifest(MODEL, TWO_A100, 1, Pod(), settings)[0])["containers"][0]
    line = serve_line(MODEL, TWO_A100, settings, host="0.0.0.0", folder="/tmp")
    if line.files:
        shell, flag, script = container["command"]
        assert (shell, flag) == ("/bin/sh", "-c")
        assert script == line.shell(becomes_it=True)
    else:
        assert container["command"] == list(line.argv)
    assert {"48", "4096"} <= set(line.argv)
    assert NEWEST[engine] in container["image"]


def test_engines_without_an_image_for_a_gpu_need_one() -> None:
    mi300x = catalog.gpus(["mi300x"], catalog.price_list("runpod"))["mi300x"]
    settings = service_settings("trtllm", mi300x)
    with pytest.raises(ConfigError, match="no image of trtllm"):
        manifest(MODEL, mi300x, 1, Pod(), settings)
    given = manifest(MODEL, mi300x, 1, Pod(image="mine:1"), settings)[0]
    assert pod_spec(given)["containers"][0]["image"] == "mine:1"


def test_it_runs_without_privileges_and_holds_no_secret() -> None:
    deployment, *_ = manifest(MODEL, TWO_A100, 1, Pod(token_secret="my-token"))
    spec = pod_spec(deployment)
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (token,) = [variable for variable in container["env"] if variable["name"] == "HF_TOKEN"]
    assert "value" not in token
    assert token["valueFrom"]["secretKeyRef"] == {"name": "my-token", "key": "token", "optional": True}


def test_amd_gpus_are_asked_for_by_their_own_names() -> None:
    mi300x = catalog.gpus(["mi300x"])["mi300x"]
    deployment, *_ = manifest(MODEL, mi300x, 1, Pod())
    spec = pod_spec(deployment)
    assert spec["containers"][0]["resources"]["limits"] == {"amd.com/gpu": "1"}
    assert "rocm" in spec["containers"][0]["image"]
    assert spec["tolerations"][0]["key"] == "amd.com/gpu"
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert terms["nodeSelectorTerms"][0]["matchExpressions"][0]["key"] == "amd.com/gpu.product-name"


def test_an_unknown_gpu_type_needs_its_label_said() -> None:
    own = TWO_A100.model_copy(update={"name": "X900"})
    with pytest.raises(ConfigError, match="label nodes with X900"):
        manifest(MODEL, own, 1, Pod())
    said, *_ = manifest(MODEL, own, 1, Pod(node_labels={"my/gpu": ["x900"]}))
    required = pod_spec(said)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["nodeSelectorTerms"] == [
        {"matchExpressions": [{"key": "my/gpu", "operator": "In", "values": ["x900"]}]}
    ]


def test_any_model_name_becomes_a_dns_label() -> None:
    for name in ("_Ünïcode/My.Model__v2!", "70b", "x" * 200):
        named = MODEL.model_copy(update={"name": name})
        for document in manifest(named, TWO_A100, 1, Pod()):
            label = document["metadata"]["name"]
            assert label.encode("ascii").decode()
            assert len(label) <= 63
            assert label[0].isalpha()
            assert label[-1].isalnum()
            assert set(label) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_secret": "My Secret"},
        {"memory": "lots"},
        {"cpu": "4 cores"},
        {"load_timeout_s": 0},
        {"cache": "mine"},
        {"cache_size": "big"},
    ],
)
def test_impossible_pods_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        parse(Pod, wrong, "pod")
