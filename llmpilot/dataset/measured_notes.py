"""Facts that a source states in words, not in columns: a client, a server's command line, an image.

They fill columns of the table of measurements where these are empty. What a row says in a column stays,
except where the command that started the server contradicts it.
"""

import re
from collections.abc import Callable
from typing import Any

from llmpilot.dataset.measured_words import kv_precision, precision

INFERENCEX_LEAST_SHARE = 0.8
"""InferenceX draws lengths uniformly from 80% of the nominal ones up (its benchmark's random-range-ratio)."""
CLIENTS_OF_SOURCES = {
    "argonne-LLM-Inference-Bench": "offline",
    "splitwise-sim": "offline",
    "tensorrt-llm-perf-overview": "trtllm-bench",
    "gpustack-performance-lab": "vllm-bench",
    "llmservingsim-bench": "in-process",
}
CORRECTED = "corrected_from_command;"

Row = dict[str, Any]


def filled(row: Row) -> Row:
    """Return the row [null is None] with columns filled from its `notes`, `flag` and `source`."""
    notes, flag, source = (str(row.get(name) or "") for name in ("notes", "flag", "source"))
    if not (notes or flag or source):
        return row
    found: Row = {"client": CLIENTS_OF_SOURCES.get(source)}
    labelled = dict(re.findall(r"(?:^|; )(\w+)=([^;]*)", notes))
    found |= _family(labelled.get("family", ""))
    found |= {
        "image": labelled.get("image", "").replace("#", "/") or None,
        "gemm_quant": labelled.get("gemm_quant") or None,
        "moe_quant": labelled.get("moe_quant") or None,
        "moe_tp": _at_least_one(labelled.get("moe_tp", "")),
    }
    checkpoint = labelled.get("checkpoint", "")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint):
        found["checkpoint"] = checkpoint
    if "benchmark_throughput.py" in notes:
        found["client"] = "offline"
    if source == "dstack-benchmarks" and "num-scheduler-steps" in notes:
        found["client"] = "vllm-bench"
    for name, pattern in {
        "max_num_seqs": r"\bmax_num_seqs (\d+)",
        "max_num_batched_tokens": r"\bmax_num_batched_tokens (\d+)",
    }.items():
        if stated := re.search(pattern, notes):
            found[name] = int(stated[1])
    if steps := re.search(r"num-scheduler-steps (\d+)", notes):
        found["server_options"] = f"--num-scheduler-steps {steps[1]}"
    if "attention_dp" in flag or re.search(r"\bDEP\d", notes):
        found["attention_dp"] = True
    if "speculative" in flag:
        found["spec_decode"] = "yes"
    if "ShareGPT" in str(row.get("length_kind") or ""):
        found["workload"] = "sharegpt"
    full = row | {name: value for name, value in found.items() if _empty(row.get(name)) and value is not None}
    if found.get("length_min_share"):
        full["length_kind"] = "uniform"
    if command := re.search(r"(?:^|; )cmd=(.*)$", notes, re.DOTALL):
        return _with_command(full, command[1])
    return full


def _family(family: str) -> Row:
    """Return what follows from the family of runs that aiconfigurator's sample names."""
    if family == "InferenceX":
        return {"client": "inferencex", "length_min_share": INFERENCEX_LEAST_SHARE}
    if family.startswith("NVIDIA"):
        return {"client": "nvidia"}
    return {}


OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    name: (column, read)
    for column, read, names in (
        ("tp", int, "-tp --tp --tp-size --tp_size --tensor-parallel-size"),
        ("pp", int, "-pp --pp-size --pp_size --pipeline-parallel-size"),
        ("ep", int, "--ep --ep-size --ep_size"),
        ("dp", int, "--dp --dp-size --data-parallel-size"),
        ("max_num_seqs", int, "--max-num-seqs --max-running-requests --max_batch_size"),
        (
            "max_num_batched_tokens",
            int,
            "--max-num-batched-tokens --chunked-prefill-size --max_num_tokens",
        ),
        ("max_model_len", int, "--max-model-len --context-length --max_seq_len"),
        ("memory_share", float, "--gpu-memory-utilization --mem-fraction-static"),
        ("kv_precision", kv_precision, "--kv-cache-dtype --kv_cache_dtype"),
        ("spec_tokens", int, "--speculative-num-draft-tokens"),
        ("checkpoint", str, "--model --model-path"),
    )
    for name in names.split()
}
SWITCHES: dict[str, tuple[str, Any]] = {
    "--enable-prefix-caching": ("prefix_caching", True),
    "--no-enable-prefix-caching": ("prefix_caching", False),
    "--disable-radix-cache": ("prefix_caching", False),
    "--enable-chunked-prefill": ("chunked_prefill", True),
    "--no-enable-chunked-prefill": ("chunked_prefill", False),
    "--enforce-eager": ("eager", True),
    "--disable-cuda-graph": ("eager", True),
    "--enable-dp-attention": ("attention_dp", True),
}
UNSAID = {"--tool-call-parser", "--reasoning-parser", "--host", "--port", "--chat-template"}
"""Options that tell nothing of speed."""


def command_facts(command: str) -> Row:
    """Return what the command that started a server says: columns of the table, and its other options.

    Knows the options of vLLM, SGLang and TensorRT-LLM that the table has columns for. `server_options` holds
    all options but those that name the model or say nothing of speed.
    """
    facts: Row = {}
    kept: list[str] = []
    words = command.split()
    while words:
        word = words.pop(0)
        name, _, value = word.partition("=")
        if not name.startswith("-") or name == "-m":
            if re.fullmatch(r"[A-Z_]+=\S+", word):
                kept.append(word)
            continue
        if not value and words and not re.match(r"--?[a-z]", words[0]):
            value = words.pop(0)
        if name in UNSAID:
            continue
        if name in OPTIONS:
            column, read = OPTIONS[name]
            try:
                facts[column] = read(value)
            except ValueError:  # a command that was cut off
                facts[column] = None
        elif name in SWITCHES:
            column, facts[column] = SWITCHES[name][0], SWITCHES[name][1]
        if name.startswith("--speculative"):
            facts["spec_decode"] = "yes"
            if tokens := re.search(r'"num_speculative_tokens":\s*(\d+)', value):
                facts["spec_tokens"] = int(tokens[1])
        if name not in ("--model", "--model-path"):
            kept.append(f"{name} {value}".rstrip())
    if "--enable-expert-parallel" in kept:
        facts["ep"] = (facts.get("tp") or 1) * (facts.get("dp") or 1)
    facts["server_options"] = " ".join(kept) or None
    checkpoint = facts.pop("checkpoint", None)
    if checkpoint is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint):
        facts["checkpoint"] = checkpoint
    return facts


def _with_command(row: Row, command: str) -> Row:
    """Return the row with its command read; what the command contradicts is corrected, and flagged."""
    facts = command_facts(command)
    full = dict(row)
    corrected = False
    for name, value in facts.items():
        if value is None:
            continue
        if name in ("pp", "ep") and not _empty(row.get(name)) and row[name] != value:
            corrected = True
            full[name] = value
        elif _empty(row.get(name)):
            full[name] = value
    at_least = (facts.get("tp") or 1) * (facts.get("pp") or 1)
    if not _empty(row.get("n_gpus")) and row["n_gpus"] < at_least:
        corrected = True
        full["n_gpus"] = at_least
    if facts.get("spec_decode") == "yes":
        full["spec_decode"] = "yes"
    if corrected:
        full["flag"] = f"{row.get('flag') or ''}{CORRECTED}"
    return full


def stated_precision(row: Row) -> str | None:
    """Return the precision of a row of which only the quantization of its GEMMs is stated, or None."""
    word = row.get("gemm_quant")
    return None if _empty(word) else precision(str(word), str(row.get("model")))


def _at_least_one(number: str) -> int | None:
    """Return the whole number, or None; 0 stands for unknown."""
    try:
        return int(float(number)) or None
    except ValueError:
        return None


def _empty(value: Any) -> bool:
    return value is None
