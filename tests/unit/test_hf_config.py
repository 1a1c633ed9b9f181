"""Facts derived from a config.json: the catalogue's, public totals, and clear errors for everything else."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hf_configs import CONFIGS, MODERN, OTHERS, PUBLISHED, PUBLISHED_ACTIVE, PUBLISHED_MODERN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmpilot import catalog
from llmpilot.config import Model, parse
from llmpilot.errors import ConfigError
from llmpilot.hf_config import FAMILIES, model_from_hf_config
from llmpilot.hf_config.__main__ import main

LLAMA = CONFIGS["llama_3_1_8b"]


def write(folder: Path, config: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return file


def derive(folder: Path, config: object, **overrides: Any) -> Model:
    return model_from_hf_config(write(folder, config), overrides=overrides)


def test_every_model_of_the_catalogue_has_its_config_here() -> None:
    models = catalog.models()
    newer = {name for name, model in models.items() if model.hf_id.replace("/", "--") in PUBLISHED_MODERN}
    assert set(CONFIGS) == set(PUBLISHED)
    assert set(CONFIGS) | newer == set(models)


@pytest.mark.parametrize("name", catalog.models())
def test_config_gives_the_facts_of_the_catalogue(name: str, tmp_path: Path) -> None:
    listed = catalog.models([name])[name]
    config = CONFIGS[name] if name in CONFIGS else MODERN[listed.hf_id.replace("/", "--")]
    derived = derive(tmp_path, config)
    exact = set(Model.model_fields) - {
        "name",
        "hf_id",
        "aliases",
        "source",
        "parameters_b",
        "active_parameters_b",
        "encoder_parameters_b",
        "weight_bytes_per_parameter",
        "fp8_format",  # follows from who made it, which the file does not tell
    }
    assert derived.model_dump(include=exact) == listed.model_dump(include=exact)
    assert derived.parameters_b == pytest.approx(listed.parameters_b, rel=0.02)
    assert derived.encoder_parameters_b == pytest.approx(listed.encoder_parameters_b, rel=0.02)
    assert derived.weight_bytes_per_parameter == pytest.approx(listed.weight_bytes_per_parameter, rel=0.005)


@pytest.mark.parametrize("name", PUBLISHED)
def test_count_is_the_published_one(name: str, tmp_path: Path) -> None:
    # to the digit where the checkpoint's total is public; the makers' own rounding elsewhere
    digits = len(str(PUBLISHED[name]).partition(".")[2])
    assert derive(tmp_path, CONFIGS[name]).parameters_b == pytest.approx(
        PUBLISHED[name], rel=1e-9 if digits > 3 else 0.005
    )


@pytest.mark.parametrize("name", PUBLISHED_ACTIVE)
def test_active_count_is_the_published_one(name: str, tmp_path: Path) -> None:
    derived, published = derive(tmp_path, CONFIGS[name]), PUBLISHED_ACTIVE[name]
    if name == "qwen3_30b_a3b":  # its maker counts the input embedding, the others do not
        published -= derived.vocabulary_size * derived.d_model / 1e9
    assert derived.active_parameters_b == pytest.approx(published, rel=0.025)


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_count_as_published(name: str, tmp_path: Path) -> None:
    config, published = OTHERS[name]
    assert derive(tmp_path, config).parameters_b == pytest.approx(published, rel=0.0005)


def modern(folder: Path, name: str) -> Model:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(MODERN[name]), encoding="utf-8")
    return model_from_hf_config(file)


@pytest.mark.parametrize("name", PUBLISHED_MODERN)
def test_llms_of_today_count_as_their_makers_say(name: str, tmp_path: Path) -> None:
    total, active = PUBLISHED_MODERN[name]
    model = modern(tmp_path, name)
    digits = len(str(total).partition(".")[2])
    # Makers round, and some count a vision tower or heads that only speculate.
    assert model.parameters_b == pytest.approx(total, rel=1e-9 if digits > 3 else 0.025)
    embedding = 2 * model.vocabulary_size * model.d_model / 1e9  # which some leave out and some count once
    assert model.active_parameters_b == pytest.approx(active, rel=0.06, abs=embedding)


def test_every_known_architecture_is_tested() -> None:
    configs = [*CONFIGS.values(), *MODERN.values(), *(config for config, _ in OTHERS.values())]
    texts = [config.get("text_config", config) for config in configs]
    tested = {
        (text | {"model_type": text["model_type"].removesuffix("_text")})["model_type"] for text in texts
    }
    untested = {
        "umt5",  # mt5 but for a bias per layer, below
        "deci",  # llama with KV heads by layer
        "minimax_text_01",  # minimax_m1
        "qwen3_moe",
    }
    assert set(FAMILIES) - tested <= untested


def test_umt5_has_a_position_bias_in_every_layer(tmp_path: Path) -> None:
    config, _ = OTHERS["mt5-small"]
    more = (
        derive(tmp_path, config | {"model_type": "umt5"}).parameters_b - derive(tmp_path, config).parameters_b
    )
    assert more == pytest.approx(14 * 32 * 6 / 1e9)


def test_weights_read_as_in_the_checkpoint(tmp_path: Path) -> None:
    # sizes of the published checkpoints [GB]
    assert derive(tmp_path, CONFIGS["gpt_oss_20b"]).weight_bytes == pytest.approx(13.76e9, rel=0.005)
    assert derive(tmp_path, CONFIGS["gpt_oss_120b"]).weight_bytes == pytest.approx(65.25e9, rel=0.005)


@pytest.mark.parametrize(
    ("quantization", "low", "high"),
    [
        (None, 2.0, 2.0),
        ({"quant_method": "fp8"}, 1.0, 1.2),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 0.6, 0.8),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, 0.6, 0.8),
        ({"quant_method": "gptq", "bits": 8}, 1.1, 1.2),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.6, 0.8),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"0": {"weights": {"num_bits": 8}}}},
            1.1,
            1.2,
        ),
    ],
)
def test_quantization_sets_the_bytes_of_a_weight(
    quantization: object, low: float, high: float, tmp_path: Path
) -> None:
    model = derive(tmp_path, LLAMA | {"quantization_config": quantization})
    assert low <= model.weight_bytes_per_parameter <= high


def test_unknown_quantization_asks_for_the_bytes(tmp_path: Path) -> None:
    config = LLAMA | {"quantization_config": {"quant_method": "novel"}}
    with pytest.raises(ConfigError, match=r"novel[\s\S]*model.weight_bytes_per_parameter="):
        derive(tmp_path, config)
    assert derive(tmp_path, config, weight_bytes_per_parameter=0.5).weight_bytes_per_parameter == 0.5


def test_overrides_win_and_nulls_do_not(tmp_path: Path) -> None:
    model = derive(tmp_path, LLAMA, name="mine", n_layers=None, flash_attention=False)
    assert (model.name, model.n_layers, model.flash_attention) == ("mine", 32, False)
    with pytest.raises(ConfigError, match="n_layer is not a key"):
        derive(tmp_path, LLAMA, n_layer=3)


def test_names_come_from_the_folder_the_file_or_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "my-llm"
    folder.mkdir()
    write(folder, LLAMA)
    assert model_from_hf_config(folder).name == model_from_hf_config(folder / "config.json").name == "my-llm"
    other = folder / "other.json"
    other.write_text(json.dumps(LLAMA | {"_name_or_path": "meta-llama/Llama-3.1-8B"}))
    assert model_from_hf_config(other).name == "other"
    assert model_from_hf_config(other).hf_id == "meta-llama/Llama-3.1-8B"


def test_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'brand_new' are not understood[\s\S]*llama_3_1_8b.yaml"):
        derive(tmp_path, LLAMA | {"model_type": "brand_new"})
    with pytest.raises(ConfigError, match="layer type 'hyena'"):
        derive(tmp_path, LLAMA | {"layer_types": ["hyena"] * 32})
    with pytest.raises(ConfigError, match="layer type \"\\['hyena'\\]\""):
        derive(tmp_path, LLAMA | {"layer_types": [["hyena"]] * 32})
    with pytest.raises(ConfigError, match="attn_layer_indices is not possible"):
        derive(tmp_path, MODERN["ibm-ai-platform--Bamba-9B-v1"] | {"attn_layer_indices": 9})


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in LLAMA.items() if k != key}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "not a JSON object"),
        ({}, "'unknown' are not understood"),
        (without("vocab_size"), "vocab_size is missing"),
        (without("intermediate_size"), "intermediate_size is missing"),
        (LLAMA | {"hidden_size": None}, "hidden_size is missing"),
        (LLAMA | {"hidden_size": 0}, "hidden_size is not possible"),
        (LLAMA | {"hidden_size": "4096"}, "hidden_size is not possible"),
        (LLAMA | {"hidden_size": 4096.5}, "hidden_size is not possible"),
        (LLAMA | {"hidden_size": True}, "hidden_size is not possible"),
        (LLAMA | {"num_hidden_layers": -1}, "num_hidden_layers is not possible"),
        (LLAMA | {"num_hidden_layers": 10**30}, "num_hidden_layers is not possible"),
        (LLAMA | {"num_attention_heads": 33}, "do not divide"),
        (LLAMA | {"num_key_value_heads": 5}, "cannot share"),
        (LLAMA | {"model_type": 7}, "model_type is not possible"),
        (LLAMA | {"tie_word_embeddings": "no"}, "tie_word_embeddings is not possible"),
        (LLAMA | {"quantization_config": 8}, "quantization_config is not"),
        (LLAMA | {"model_type": "bart", "is_encoder_decoder": True}, "'bart' are not understood"),
        (CONFIGS["mixtral_8x7b"] | {"num_experts_per_tok": 9}, "experts_per_token is larger"),
    ],
)
def test_impossible_config_is_named(config: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        derive(tmp_path, config)
    assert caught.value.exit_code == 2


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        model_from_hf_config(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match="no such file"):
        model_from_hf_config(tmp_path)
    for content in (b"", b"{", b"\xff\xfe\x00", b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match="is not JSON"):
            model_from_hf_config(tmp_path)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3)
)
known_configs = [*CONFIGS.values(), *MODERN.values(), *(config for config, _ in OTHERS.values())]
known_keys = sorted(
    {key for config in known_configs for key in config} | {"attn_config", "n_inner", "head_dim"}
)
objects = st.dictionaries(
    st.sampled_from(known_keys) | st.text(max_size=5), values | st.integers(0, 64), max_size=12
)
mutated = st.tuples(st.sampled_from(known_configs), objects).map(lambda pair: pair[0] | pair[1])
quantized = st.dictionaries(
    st.sampled_from(
        ["quant_method", "bits", "group_size", "weight_block_size", "config_groups", "load_in_4bit"]
    ),
    values | st.sampled_from(["fp8", "awq", "mxfp4", "bitsandbytes", "compressed-tensors"]),
).map(lambda settings: LLAMA | {"quantization_config": settings})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(objects | mutated | quantized)
def test_any_json_object_gives_a_model_or_a_config_error(config: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            model = derive(Path(folder), config)
        except ConfigError:
            return
    assert model.active_parameters_b <= model.parameters_b
    assert model.weight_bytes > 0


@pytest.mark.parametrize(
    ("name", "gigabytes", "formats", "kv_format"),
    [
        # attention, mlp, experts, head
        ("moonshotai--Kimi-K2.5", 594, "bf16 bf16 int4 bf16", "bf16"),
        ("MiniMaxAI--MiniMax-M2.5", 230, "fp8_block bf16 fp8_block bf16", "bf16"),
        ("Qwen--Qwen3-32B-FP8-Static-PerTensor", 34.3, "fp8 fp8 bf16 bf16", "fp8"),
        ("nvidia--Qwen3.6-35B-A3B-NVFP4", 20.8, "fp8 nvfp4 nvfp4 nvfp4", "bf16"),
        ("nvidia--Gemma-4-26B-A4B-NVFP4", 17.6, "bf16 bf16 nvfp4 bf16", "fp8"),
        ("nvidia--Gemma-4-31B-IT-NVFP4", 31.5, "bf16 nvfp4 bf16 bf16", "fp8"),
        ("deepseek-ai--DeepSeek-V4-Flash", 155.6, "fp8_block fp8_block mxfp4 bf16", "bf16"),
        ("nvidia--DeepSeek-V4-Flash-NVFP4", 164.3, "fp8_block fp8_block nvfp4 bf16", "bf16"),
        ("nvidia--DeepSeek-V3.1-NVFP4", 396.7, "bf16 nvfp4 nvfp4 bf16", "fp8"),
        ("nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8", 121.8, "fp8 fp8 fp8 bf16", "fp8"),
    ],
)
def test_only_what_is_not_spared_is_quantized(
    name: str, gigabytes: float, formats: str, kv_format: str, tmp_path: Path
) -> None:
    model = modern(tmp_path, name)
    assert model.weight_bytes == pytest.approx(gigabytes * 1e9, rel=0.005)
    held = model.formats
    assert f"{held.attention} {held.mlp} {held.experts} {held.head}" == formats
    assert model.kv_format == kv_format


def test_what_only_a_name_says_is_called_a_convention(tmp_path: Path) -> None:
    assert "by the convention of nvfp4 repackagings" in modern(tmp_path, "nvidia--DeepSeek-V3.1-NVFP4").source
    assert "convention" not in modern(tmp_path, "Qwen--Qwen3-32B").source


def test_nvidias_file_beside_is_read(tmp_path: Path) -> None:
    beside = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["*.self_attn*"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": beside}))
    model = derive(tmp_path, LLAMA)
    assert (model.formats.attention, model.formats.mlp, model.kv_format) == ("bf16", "nvfp4", "fp8")


def llama_sparing(folder: Path, *spared: str) -> float:
    quantization = {"quant_method": "compressed-tensors", "ignore": list(spared)}
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}
    quantization["config_groups"] = {"group_0": group}
    return derive(folder, LLAMA | {"quantization_config": quantization}).weight_bytes


def test_layers_are_spared_one_by_one(tmp_path: Path) -> None:
    nothing, all_attention = llama_sparing(tmp_path), llama_sparing(tmp_path, "re:.*self_attn.*")
    half = llama_sparing(tmp_path, *(f"model.layers.{at}.self_attn*" for at in range(16)))
    assert half == pytest.approx((nothing + all_attention) / 2, rel=1e-3)
    attention = 32 * 4096 * (2 * 4096 + 2 * 1024)  # 8 of 32 heads keep keys and values
    assert all_attention - nothing == pytest.approx(attention * (2 - 0.5 - 2 / 32), rel=1e-3)
    one = llama_sparing(tmp_path, "model.layers.3.self_attn.o_proj")
    assert one - nothing == pytest.approx(4096**2 * (2 - 0.5 - 2 / 32), rel=0.06)
    assert llama_sparing(tmp_path, "lm_head", "model.layers.99.mlp") == nothing


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "modelopt", "quant_algo": "FP3"},
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "odd"}}},
        {"quant_method": "fp8", "ignore": "lm_head"},
        {"quant_method": "fp8", "ignore": ["re:("]},
    ],
)
def test_quantization_that_is_not_understood_is_refused(quantization: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        derive(tmp_path, LLAMA | {"quantization_config": quantization})


def test_amds_repackaging(tmp_path: Path) -> None:
    quantization = {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}}
    model = derive(tmp_path, LLAMA | {"quantization_config": quantization | {"exclude": ["lm_head"]}})
    assert (model.formats.mlp, model.formats.head) == ("fp8", "bf16")


@pytest.mark.parametrize("name", MODERN)
def test_layers_have_the_parameters_that_are_counted(name: str, tmp_path: Path) -> None:
    model = modern(tmp_path, name)
    layers = sum(
        kind.count
        * (
            sum(mixer.parameters(model.d_model) for mixer in kind.mixers)
            + (kind.feed_forward.parameters(model.d_model) if kind.feed_forward else 0)
        )
        for kind in model.layers
    )
    embedding = model.vocabulary_size * model.d_model
    rest = model.parameters_b * 1e9 - layers
    assert embedding <= rest < 2 * embedding + 0.015 * layers  # beside norms, biases and routers


@pytest.mark.parametrize(
    ("name", "kv_bytes", "kept_mb"),
    [  # bytes of one more token, and MB that 10,000 tokens keep
        ("Qwen--Qwen3-Next-80B-A3B-Instruct", 2 * 2 * 12 * 2 * 256, 245.8 + 77.3),
        ("MiniMaxAI--MiniMax-M1-80k", 2 * 2 * 10 * 8 * 128, 409.6 + 293.6),
        ("nvidia--Nemotron-H-8B-Base-8K", 2 * 2 * 4 * 8 * 128, 163.8 + 102.1),
        ("ibm-granite--granite-4.0-h-small", 2 * 2 * 4 * 8 * 128, 163.8 + 152.8),
        ("XiaomiMiMo--MiMo-V2-Flash", 2 * 9 * 4 * (192 + 128), 230.4 + 128 * 39 * 8 * 320 * 2 / 1e6),
        ("meta-llama--Llama-4-Scout-17B-16E-Instruct", 2 * 2 * 12 * 8 * 128, 491.5 + 8192 * 147456 / 1e6),
    ],
)
def test_what_a_sequence_keeps(name: str, kv_bytes: float, kept_mb: float, tmp_path: Path) -> None:
    model = modern(tmp_path, name)
    assert model.kv_bytes_per_token == kv_bytes
    assert model.sequence_bytes(10_000) == pytest.approx(kept_mb * 1e6, rel=0.001)


def test_the_command_prints_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Qwen--Qwen3.5-27B", "nvidia--Gemma-4-26B-A4B-NVFP4", "google--gemma-3-4b-it"):
        model = modern(tmp_path, name)
        assert main([str(tmp_path / f"{name}.json")]) == 0
        printed = parse(Model, yaml.safe_load(capsys.readouterr().out), "model")
        assert printed.layers == model.layers
        assert (printed.formats, printed.kv_format) == (model.formats, model.kv_format)
        assert printed.parameters_b == pytest.approx(model.parameters_b, rel=1e-5)
    assert main([str(tmp_path / "absent.json")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main([]) == 2
