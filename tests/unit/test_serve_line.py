"""The line that starts an engine gives the service that was simulated: parallelism, limits and formats."""

import json
import shlex

import pytest

from llmpilot import catalog
from llmpilot.config import Gpu
from llmpilot.errors import ConfigError
from llmpilot.recommendation.serve_line import longest_request, require_servable, serve_line
from llmpilot.simulator.service_settings import ENGINE_NAMES, EngineName, service_settings

MODELS, GPUS = catalog.models(), catalog.gpus()
LLAMA, H100 = MODELS["llama_3_1_8b"], GPUS["h100"]


def eight(gpu: Gpu) -> Gpu:
    return gpu.model_copy(update={"count": 8})


def after(argv: tuple[str, ...], flag: str) -> str:
    assert argv.count(flag) == 1
    return argv[argv.index(flag) + 1]


def test_vllm_is_told_all_that_was_simulated() -> None:
    settings = service_settings("vllm", H100, max_num_seqs=96, max_num_batched_tokens=3072, memory_share=0.85)
    argv = serve_line(LLAMA, H100, settings, host="0.0.0.0").argv
    assert argv[:3] == ("vllm", "serve", "meta-llama/Llama-3.1-8B-Instruct")
    assert after(argv, "--tensor-parallel-size") == "1"
    assert after(argv, "--max-num-seqs") == "96"
    assert after(argv, "--max-num-batched-tokens") == "3072"
    assert after(argv, "--gpu-memory-utilization") == "0.85"
    assert after(argv, "--max-model-len") == str(LLAMA.max_positions)
    assert after(argv, "--host") == "0.0.0.0"
    assert not {"--quantization", "--kv-cache-dtype", "--no-enable-prefix-caching"} & set(argv)
    default = service_settings("vllm", H100)
    argv = serve_line(LLAMA, H100).argv
    assert after(argv, "--max-num-seqs") == str(default.max_num_seqs)
    assert after(argv, "--max-num-batched-tokens") == str(default.max_num_batched_tokens)
    assert "--gpu-memory-utilization" not in argv  # its own default
    plain = default.model_copy(update={"prefix_caching": False, "chunked_prefill": False})
    told = set(serve_line(LLAMA, H100, plain).argv)
    assert {"--no-enable-prefix-caching", "--no-enable-chunked-prefill"} <= told


def test_kinds_of_parallelism_are_told() -> None:
    model, gpu = MODELS["deepseek_v3"], eight(GPUS["h200"])
    settings = service_settings("vllm", gpu, data_parallel=8, expert_parallel=8)
    argv = serve_line(model, gpu, settings).argv
    assert after(argv, "--tensor-parallel-size") == "1"
    assert after(argv, "--data-parallel-size") == "8"
    assert "--enable-expert-parallel" in argv
    odd = service_settings("vllm", gpu, expert_parallel=4)
    with pytest.raises(ConfigError, match="spreads experts over all GPUs"):
        serve_line(model, gpu, odd)

    # SGLang shares the limits out among replicas of the attention layers.
    settings = service_settings("sglang", gpu, data_parallel=8, expert_parallel=8, max_num_seqs=64)
    argv = serve_line(model, gpu, settings).argv
    assert (after(argv, "--tp-size"), after(argv, "--dp-size"), after(argv, "--ep-size")) == ("8", "8", "8")
    assert "--enable-dp-attention" in argv
    assert after(argv, "--max-running-requests") == str(8 * 64)
    assert after(argv, "--chunked-prefill-size") == str(8 * settings.max_num_batched_tokens)
    dense = service_settings("sglang", gpu, data_parallel=2, max_num_seqs=64)
    argv = serve_line(LLAMA, gpu, dense).argv
    assert (after(argv, "--tp-size"), after(argv, "--dp-size")) == ("4", "2")
    assert "--enable-dp-attention" not in argv
    assert after(argv, "--max-running-requests") == "64"

    settings = service_settings("trtllm", gpu, data_parallel=8, expert_parallel=8)
    line = serve_line(model, gpu, settings)
    assert (after(line.argv, "--tp_size"), after(line.argv, "--ep_size")) == ("8", "8")
    assert json.loads(line.files[after(line.argv, "--config")])["enable_attention_dp"] is True


def test_sglang_is_told_in_its_own_words() -> None:
    settings = service_settings("sglang", H100, max_num_seqs=96, block_size=64, prefix_caching=False)
    argv = serve_line(LLAMA.at_precision("fp8", "fp8"), H100, settings).argv
    assert argv[:3] == ("python", "-m", "sglang.launch_server")
    assert after(argv, "--model-path") == LLAMA.hf_id
    assert after(argv, "--quantization") == "fp8"
    assert after(argv, "--kv-cache-dtype") == "fp8_e4m3"
    assert after(argv, "--page-size") == "64"
    assert after(argv, "--mem-fraction-static") == f"{settings.memory_share:g}"
    assert "--disable-radix-cache" in argv
    whole = settings.model_copy(update={"chunked_prefill": False})
    argv = serve_line(LLAMA, H100, whole).argv
    assert after(argv, "--chunked-prefill-size") == "-1"
    assert after(argv, "--max-prefill-tokens") == str(settings.max_num_batched_tokens)


def test_trtllm_reads_its_cache_from_a_file() -> None:
    gpu = GPUS["h100"].model_copy(update={"count": 2})
    settings = service_settings("trtllm", gpu, max_num_seqs=96, prefix_caching=False)
    line = serve_line(LLAMA.at_precision(None, "fp8"), gpu, settings, folder="/tmp/")
    assert line.argv[:2] == ("trtllm-serve", LLAMA.hf_id)
    assert (after(line.argv, "--tp_size"), after(line.argv, "--max_batch_size")) == ("2", "96")
    path = after(line.argv, "--config")
    assert path == "/tmp/trtllm.json"
    assert json.loads(line.files[path]) == {
        "kv_cache_config": {"free_gpu_memory_fraction": 0.9, "enable_block_reuse": False, "dtype": "fp8"}
    }
    words = shlex.split(line.shell())
    assert words[words.index(">") + 1] == path
    assert json.loads(words[2]) == json.loads(line.files[path])
    assert tuple(words[words.index("&&") + 1 :]) == line.argv
    with pytest.raises(ConfigError, match="do not bring"):
        serve_line(LLAMA.at_precision("fp8"), gpu, settings)


def test_the_served_context_fits_the_memory() -> None:
    a10 = GPUS["a10"]
    for engine in ENGINE_NAMES:
        settings = service_settings(engine, a10)
        capacity = settings.memory(LLAMA, a10).kv_capacity_tokens
        assert 0 < longest_request(LLAMA, a10, settings) < capacity < 131072
    halves = service_settings("vllm", eight(a10), data_parallel=2)
    one = service_settings("vllm", a10.model_copy(update={"count": 4}))
    assert longest_request(LLAMA, eight(a10), halves) == pytest.approx(
        longest_request(LLAMA, a10.model_copy(update={"count": 4}), one), rel=0.01
    )
    with pytest.raises(ConfigError, match="no room for a KV cache"):
        serve_line(MODELS["llama_3_1_70b"], a10)
    four = GPUS["v100"].model_copy(update={"count": 4})
    argv = serve_line(LLAMA, four).argv
    assert after(argv, "--tensor-parallel-size") == "4"
    assert after(argv, "--dtype") == "half"


def test_the_served_precision_is_what_was_asked_for() -> None:
    argv = serve_line(LLAMA.at_precision("fp8", "fp8"), H100).argv
    assert after(argv, "--quantization") == after(argv, "--kv-cache-dtype") == "fp8"
    with pytest.raises(ConfigError, match=r"do not bring .* to nvfp4"):
        serve_line(LLAMA.at_precision("nvfp4"), H100)
    packaged = catalog.model_of_hf_id("nvidia/DeepSeek-R1-NVFP4")
    assert packaged is not None
    assert packaged.precision == "nvfp4"
    assert "--quantization" not in serve_line(packaged, eight(GPUS["b200"])).argv


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_what_no_engine_serves_is_refused_early(engine: EngineName) -> None:
    require_servable(LLAMA, engine)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        require_servable(MODELS["flan_t5_xl"], engine)
    with pytest.raises(ConfigError, match="would find this model is not known"):
        serve_line(LLAMA.model_copy(update={"hf_id": "mine"}), H100, service_settings(engine, H100))
    with pytest.raises(ConfigError, match="takes 1 GPUs, which are not those"):
        serve_line(LLAMA, eight(H100), service_settings(engine, H100))
