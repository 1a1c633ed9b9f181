"""Every file of conf/gpu and conf/model is usable, plausible, and says where its figures come from."""

import csv
import json
from pathlib import Path

import pytest
from hf_configs import CONFIGS, MODERN
from hydra import compose, initialize_config_dir

from llmpilot import catalog
from llmpilot.config import Gpu, Model
from llmpilot.errors import ConfigError

GPUS, MODELS = catalog.gpus(), catalog.models()
PAPER_MODELS = {  # name in the paper's data, flash attention there
    "flan_t5_xl": ("google/flan-t5-xl", False),
    "flan_t5_xxl": ("google/flan-t5-xxl", False),
    "flan_ul2": ("google/flan-ul2", False),
    "mpt_7b": ("ibm/mpt-7b-instruct2", False),
    "mt0_xxl": ("bigscience/mt0-xxl", False),
    "codegen2_16b": ("Salesforce/codegen2-16B", False),
    "llama_7b": ("huggyllama/llama-7b", True),
    "llama_13b": ("huggyllama/llama-13b", True),
    "gpt_neox_20b": ("EleutherAI/gpt-neox-20b", True),
    "starcoder": ("bigcode/starcoder", True),
}
PAPER_PRICES = """GPU,price
1 x V100,3.06
2 x V100,6.12
4 x V100,12.24
1 x A100-40GB,4.09625
2 x A100-40GB,8.1925
4 x A100-40GB,16.385
1 x H100,12.29
2 x H100,24.58
4 x H100,49.16
1 x A10,2.448
2 x A10,4.896
1 x T4,2.176
2 x T4,2.754666667
4 x T4,3.912"""


def test_options_are_all_there() -> None:
    assert set(GPUS) == {
        "t4",
        "v100",
        "a10",
        "a100",
        "a100_80gb",
        "h100",
        "h200",
        "b200",
        "b300",
        "gb200",
        "gb300",
        "gh200",
        "h20",
        "l4",
        "l40s",
        "mi250",
        "mi300x",
        "mi325x",
        "rtx_4090",
        "rtx_pro_6000",
    }
    assert len(MODELS) == 71
    assert set(PAPER_MODELS) <= set(MODELS)
    assert (catalog.conf_dir() / "model" / "hf.yaml").is_file()


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_gpu_is_plausible(gpu: Gpu) -> None:
    assert 16 <= gpu.memory_gb <= 288
    assert 250 <= gpu.bandwidth_gb_s <= 10_000
    # dense throughput per byte of bandwidth: a figure with sparsity would stand out
    least = 35 if gpu.name == "H20" else 100  # whose compute is cut
    assert least <= 1000 * gpu.tflops_fp16 / gpu.bandwidth_gb_s <= 430
    for slower, faster in ((gpu.tflops_fp16, gpu.tflops_fp8), (gpu.tflops_fp8, gpu.tflops_fp4)):
        assert faster is None or slower is not None
        assert faster is None or faster / slower in (pytest.approx(2, rel=0.02), 3)  # Blackwell Ultra's FP4
    expected = {"pcie3": 32, "pcie4": 64, "pcie5": 128}
    assert gpu.link_gb_s == expected.get(gpu.link, gpu.link_gb_s)
    assert "http" in gpu.datasheet or "does not publish" in gpu.datasheet
    assert gpu.counts
    assert gpu.priced == bool(gpu.price_per_hour)
    assert gpu.price_source == ("" if gpu.priced else "no price in ") + catalog.price_list().label


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_more_gpus_cost_more(gpu: Gpu) -> None:
    prices = [gpu.price_per_hour[count] for count in sorted(gpu.price_per_hour)]
    assert prices == sorted(set(prices))
    assert gpu.count == 1
    assert set(gpu.price_per_hour) <= {1, 2, 4, 8}


@pytest.mark.parametrize(
    ("name", "with_sparsity"),
    [
        ("a10", 250),
        ("a100", 624),
        ("a100_80gb", 624),
        ("h100", 1979),
        ("h200", 1979),
        ("b200", 4500),
        ("l4", 242),
        ("l40s", 733),
        ("mi300x", 2615),
    ],
)
def test_tflops_are_dense(name: str, with_sparsity: float) -> None:
    assert GPUS[name].tflops_fp16 == pytest.approx(with_sparsity / 2, rel=0.02)


def test_prices_of_the_paper_are_the_papers() -> None:
    ours = {gpu.label: gpu.cost_per_hour for gpu in catalog.gpu_profiles(prices=catalog.price_list("paper"))}
    for row in csv.DictReader(PAPER_PRICES.splitlines()):
        assert ours[row["GPU"]] == float(row["price"])


def test_profiles_are_every_count_that_is_sold() -> None:
    profiles = catalog.gpu_profiles(["l4", "b300"], catalog.price_list("runpod"))
    assert [gpu.label for gpu in profiles] == ["1 x L4", "2 x L4", "4 x L4", "8 x L4", "1 x B300", "2 x B300"]
    names = [gpu.label for gpu in catalog.gpu_profiles()]
    assert len(set(names)) == len(names) == sum(len(gpu.price_per_hour) for gpu in GPUS.values())


@pytest.mark.parametrize("option", MODELS)
def test_model_is_plausible(option: str) -> None:
    model = MODELS[option]
    assert model.name == option
    assert model.hf_id.count("/") == 1
    assert model.source
    longer, long = (model.sequence_bytes(tokens, "bf16") for tokens in (2_000_001, 2_000_000))
    assert longer - long == pytest.approx(model.kv_bytes_per_token)
    alike = all(mixer.kind == "attention" and not mixer.window for _, mixer in model._mixers)
    if alike and len(model.layers) <= 1:
        assert model.kv_bytes_per_token == 4 * model.n_layers * model.n_kv_heads * model.head_dim
    assert model.n_heads % model.n_kv_heads == 0
    assert (model.active_parameters_b < model.parameters_b) == (model.n_experts > 1)
    assert (model.encoder_parameters_b > 0) == model.encoder_decoder
    assert model.encoder_parameters_b < 0.5 * model.parameters_b


@pytest.mark.parametrize(
    ("option", "gigabytes"), [("gpt_oss_20b", 13.76), ("gpt_oss_120b", 65.25), ("llama_3_1_8b", 16.06)]
)
def test_weights_are_those_of_the_checkpoint(option: str, gigabytes: float) -> None:
    assert MODELS[option].weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.005)


@pytest.mark.parametrize("option", PAPER_MODELS)
def test_papers_models_are_as_deployed(option: str) -> None:
    model = MODELS[option]
    assert (model.hf_id, model.flash_attention) == PAPER_MODELS[option]
    assert model.weight_bytes_per_parameter == 2


def test_unknown_names_show_the_options() -> None:
    with pytest.raises(ConfigError, match=r"no gpu 'h10'[\s\S]*did you mean 'h100'[\s\S]*a100_80gb"):
        catalog.gpus(["h10"])
    with pytest.raises(ConfigError, match=r"no model 'starcode'[\s\S]*did you mean 'starcoder'"):
        catalog.models(["starcode"])
    with pytest.raises(ConfigError, match="no model 'hf'"):
        catalog.models(["hf"])


def test_names_keep_their_order() -> None:
    assert list(catalog.gpus(["t4", "a10"])) == ["t4", "a10"]
    assert catalog.models([]) == {}


def test_composed_nodes_become_objects() -> None:
    with initialize_config_dir(str(catalog.conf_dir()), version_base=None):
        config = compose(overrides=["+gpu=a100", "gpu.count=4", "+model=starcoder"])
        repriced = compose(overrides=["+gpu=a100", "gpu.price_per_hour={1: 2.5}"])
        three = compose("config", overrides=["+gpu=a100", "gpu.count=3", "+gpu.price_per_hour.3=7"])
        rented = compose("config", overrides=["+gpu=h100", "gpu.count=8", "prices=runpod"])
    assert catalog.build_gpu(config.gpu).label == "4 x A100-40GB"
    assert catalog.build_gpu(config.gpu).cost_per_hour == catalog.price_list().price("a100", 4)
    assert catalog.build_gpu(config.gpu).price_source == catalog.price_list().label
    assert catalog.build_model(config.model) == MODELS["starcoder"]
    assert catalog.build_gpu(repriced.gpu).cost_per_hour == 2.5
    assert catalog.build_gpu(repriced.gpu).price_source == "given: gpu.price_per_hour"
    assert catalog.composed_gpu(three).cost_per_hour == 7
    assert catalog.composed_gpu(rented).cost_per_hour == catalog.price_list("runpod").price("h100", 8)
    assert catalog.composed_gpu(rented).price_source == "RunPod secure cloud, on demand, all regions, 2026"


def test_a_gpu_without_a_price_is_simulated_but_not_ranked() -> None:
    gpu = catalog.build_gpu(GPUS["gb200"].model_dump() | {"count": 4})
    assert gpu.label == "4 x GB200"
    with pytest.raises(ConfigError, match=r"no price of 4 x GB200 is known[\s\S]*price_per_hour\.4="):
        _ = gpu.cost_per_hour
    assert "GB200" not in {profile.name for profile in catalog.gpu_profiles()}
    with pytest.raises(ConfigError, match="no price of gb200 is known"):
        catalog.gpu_profiles(["gb200"])
    with pytest.raises(ConfigError, match=r"gpu.count=5 is not sold for GB200: a pod has 1, 2"):
        catalog.build_gpu(GPUS["gb200"].model_dump() | {"count": 5})
    with pytest.raises(ConfigError, match="price_per_hour of GB200 is empty, and so is"):
        catalog.build_gpu(GPUS["gb200"].model_dump() | {"counts": []})


def test_count_without_a_price_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gpu.count=3 is not sold for T4"):
        catalog.build_gpu(GPUS["t4"].model_dump() | {"count": 3})


def test_hf_option_builds_from_a_config_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some.json").write_text(json.dumps(CONFIGS["llama_3_1_8b"]))
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(catalog.conf_dir()), version_base=None):
        overrides = ["+model=hf", "model.config=some.json", "model.name=mine", "model.flash_attention=false"]
        model = catalog.build_model(compose(overrides=overrides).model)
        empty = compose(overrides=["+model=hf"]).model
    assert (model.name, model.n_kv_heads, model.flash_attention) == ("mine", 8, False)
    with pytest.raises(ConfigError, match=r"needs the config.json[\s\S]*\+model=hf model.config="):
        catalog.build_model(empty)


def test_hf_option_offers_every_key_of_a_model() -> None:
    with initialize_config_dir(str(catalog.conf_dir()), version_base=None):
        offered = compose(overrides=["+model=hf"]).model
    assert set(offered) == {"config", *Model.model_fields}
    assert all(value is None for value in offered.values())


def test_folder_is_the_packed_one_when_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llmpilot"
    (package / "conf").mkdir(parents=True)
    monkeypatch.setattr(catalog, "__file__", str(package / "catalog.py"))
    assert catalog.conf_dir() == package / "conf"
    (package / "conf").rmdir()
    assert catalog.conf_dir() == tmp_path / "conf"


def test_a_folder_of_configs_is_read_and_what_is_not_understood_is_said(tmp_path: Path) -> None:
    for name in ("Qwen--Qwen3-32B", "nvidia--Nemotron-H-8B-Base-8K"):
        (tmp_path / f"{name}.json").write_text(json.dumps(MODERN[name]))
    nested = tmp_path / "org--odd"
    nested.mkdir()
    (nested / "config.json").write_text('{"model_type": "odd"}')
    found, refused = catalog.models_in_folder(tmp_path)
    assert set(found) == {"Qwen/Qwen3-32B", "nvidia/Nemotron-H-8B-Base-8K"}
    assert all(model.hf_id == hf_id for hf_id, model in found.items())
    assert list(refused) == ["org/odd"]
    assert "'odd' are not understood" in str(refused["org/odd"])
    with pytest.raises(ConfigError, match=r"no files called org--name\.json"):
        catalog.models_in_folder(nested)
    with pytest.raises(ConfigError, match="is no folder"):
        catalog.models_in_folder(tmp_path / "absent")


@pytest.mark.parametrize(
    ("hf_id", "option", "precision"),
    [
        ("Qwen/Qwen3-32B", "qwen3_32b", None),
        ("qwen/QWEN3-32b", "qwen3_32b", None),
        ("meta-llama/Llama-3.1-70B", "llama_3_1_70b", None),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama_3_1_70b", None),
        ("deepseek-ai/DeepSeek-R1", "deepseek_v3", None),
        ("nvidia/DeepSeek-R1-NVFP4", "deepseek_v3", "nvfp4"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama_3_1_8b", "fp8"),
        ("nvidia/Llama-3.3-70B-Instruct-FP4", "llama_3_1_70b", "nvfp4"),
        ("amd/Llama-3.1-405B-Instruct-FP8-KV", "llama_3_1_405b", "fp8"),
        ("RedHatAI/Meta-Llama-3.1-70B-Instruct-quantized.w4a16", "llama_3_1_70b", "int4"),
        ("RedHatAI/Llama-3.1-8B-Instruct-FP8-dynamic", "llama_3_1_8b", "fp8"),
        ("Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4", "qwen2_5_72b", "int4"),
        ("Qwen/Qwen3-235B-A22B-FP8", "qwen3_235b_a22b", "fp8"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4", "nemotron_3_nano_30b_a3b", "nvfp4"),
    ],
)
def test_a_hugging_face_id_names_its_option(hf_id: str, option: str, precision: str | None) -> None:
    assert catalog.model_by_hf_id(hf_id) == (option, precision)
    model = catalog.model_of_hf_id(hf_id)
    assert model is not None
    assert model.hf_id == hf_id
    assert precision in (None, model.precision)


@pytest.mark.parametrize("hf_id", ["nobody/nothing", "Qwen3-32B", "", "a/b/c", "RedHatAI/Llama-3.1-8B-w8a8"])
def test_what_names_no_option_is_not_guessed(hf_id: str) -> None:
    assert catalog.model_by_hf_id(hf_id) is None
    assert catalog.model_of_hf_id(hf_id) is None


def test_ids_are_of_one_option_each() -> None:
    ids = [known.lower() for model in MODELS.values() for known in (model.hf_id, *model.aliases)]
    assert len(set(ids)) == len(ids)


def test_precision_changes_what_convention_quantizes() -> None:
    dense, sparse = MODELS["qwen3_32b"], MODELS["deepseek_v3"]
    assert dense.at_precision(None) is dense
    assert sparse.at_precision("fp8") is sparse  # as its maker stores it
    assert (dense.precision, sparse.precision) == ("bf16", "fp8")
    half = dense.at_precision("fp8", "fp8")
    assert (half.name, half.kv_format) == ("qwen3_32b_fp8_kv_fp8", "fp8")
    assert half.formats.mlp == half.formats.attention == "fp8_block"
    embeddings = 4 * dense.vocabulary_size * dense.d_model
    assert half.weight_bytes == pytest.approx((dense.weight_bytes - embeddings) / 2 + embeddings, rel=0.001)
    assert half.sequence_bytes(1000) == dense.sequence_bytes(1000) / 2
    four = sparse.at_precision("nvfp4")
    assert (four.formats.experts, four.formats.mlp, four.formats.attention) == ("nvfp4", "nvfp4", "bf16")
    assert four.weight_bytes == pytest.approx(397e9, rel=0.01)  # of nvidia/DeepSeek-R1-NVFP4
    assert sparse.at_precision("bf16").weight_bytes_per_parameter == 2.0
    with pytest.raises(ConfigError, match="encoder-decoder"):
        MODELS["flan_t5_xl"].at_precision("fp8")
