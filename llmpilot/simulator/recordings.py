"""Recorded load tests of real services, one a level: what was sent, and what the clients measured.

Reads the LLM-Pilot paper's request table (IBM/LLM-performance-prediction, CDLA-Permissive-2.0) a row group
at a time. Knows nothing of simulation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmpilot.errors import TraceError

WINDOW_S = 120.0
"""Every level of the published campaign sent requests for two minutes, from a cold start."""
OK = 200
COLUMNS = (
    "model",
    "gpu",
    "n_gpus",
    "users",
    "status",
    "sample_id",
    "input_tokens",
    "output_tokens",
    "start_ms",
    "token_gaps_ms",
)
CATALOGUE = {
    "EleutherAI/gpt-neox-20b": "gpt_neox_20b",
    "Salesforce/codegen2-16B": "codegen2_16b",
    "bigcode/starcoder": "starcoder",
    "bigscience/mt0-xxl": "mt0_xxl",
    "google/flan-t5-xl": "flan_t5_xl",
    "google/flan-t5-xxl": "flan_t5_xxl",
    "google/flan-ul2": "flan_ul2",
    "ibm/mpt-7b-instruct2": "mpt_7b",
    "llama-13b": "llama_13b",
    "llama-7b": "llama_7b",
}
"""The data's model names, as options of the model group; its GPU names in lower case are those of `gpu`."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Summary:
    """One level's figures as the paper defines them, over the requests that succeeded; latencies in ms.

    Throughput is all of their output tokens over the window, those that came after its end included.
    """

    itl_ms_p50: float
    itl_ms_p95: float
    itl_ms_step: float
    """Mean of the gaps up to 1.25 medians: a bare decode step, smoother than a median of whole ms."""
    ttft_ms_p50: float
    ttft_ms_p95: float
    nttft_ms_p50: float
    throughput_tok_s: float
    requests: int

    def __getitem__(self, name: str) -> float:
        return float(getattr(self, name))


@dataclass(frozen=True)
class Recording:
    """One level of one pair: the requests in the order of sending, and what became of them.

    `silent_first` marks requests whose first output token carried no text, so that their stream began with
    the second; `unanswered` those whose whole answer was empty, which the clients counted as failures on
    every service. Both are facts of the recorded answers, not of their timing.
    """

    model: str
    gpu: str
    count: int
    users: int
    input_tokens: Ints
    output_tokens: Ints
    silent_first: NDArray[np.bool_]
    unanswered: NDArray[np.bool_]
    failure_rate: float
    overhead_ms: float
    """Median wait before the stream opened: not part of the paper's TTFT, but of a user's period."""
    truth: Summary
    window_s: float = WINDOW_S
    """How long the users kept sending, from a cold start."""

    @property
    def pair(self) -> tuple[str, str, int]:
        """(model, gpu, count), the names as in the catalogue."""
        return self.model, self.gpu, self.count


def summarize(
    ttft_ms: NDArray[Any],
    gaps_ms: NDArray[Any],
    input_tokens: Ints,
    output_tokens: Ints,
    window_s: float = WINDOW_S,
) -> Summary:
    """Return a level's figures from its successful requests' TTFTs [n] and all of their gaps [m]."""
    itl = np.percentile(gaps_ms, (50, 95)) if len(gaps_ms) else (np.nan, np.nan)
    ttft = np.percentile(ttft_ms, (50, 95)) if len(ttft_ms) else (np.nan, np.nan)
    return Summary(
        itl_ms_p50=float(itl[0]),
        itl_ms_p95=float(itl[1]),
        itl_ms_step=float(gaps_ms[gaps_ms <= 1.25 * itl[0]].mean()) if len(gaps_ms) else np.nan,
        ttft_ms_p50=float(ttft[0]),
        ttft_ms_p95=float(ttft[1]),
        nttft_ms_p50=float(np.median(ttft_ms / input_tokens)) if len(ttft_ms) else np.nan,
        throughput_tok_s=float(output_tokens.sum()) / window_s,
        requests=len(ttft_ms),
    )


def read_recordings(path: Path) -> Iterator[Recording]:
    """Yield every level in the file; memory holds one row group and a table of the request list.

    Raises:
        TraceError: no such file, not Parquet, columns missing, or a level that is not one row group.
    """
    file = _open(path)
    samples = _Samples(file)
    seen = set()
    for index in range(file.num_row_groups):
        table = file.read_row_group(index, columns=list(COLUMNS))
        for key, rows in _levels(table):
            if key in seen:
                raise TraceError(
                    "a level is spread over several row groups",
                    given=f"{path}: {key}",
                    cure="sort the file by model, gpu, n_gpus and users, one row group a level",
                )
            seen.add(key)
            yield _recording(key, rows, samples)


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise TraceError(
            "there is no such file",
            given=path,
            cure="data=PATH of the paper's requests.parquet, one row a request (see the experiment's README)",
        )
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise TraceError("this is no Parquet file", given=f"{path}: {error}", cure="data=PATH") from None
    missing = sorted(set(COLUMNS) - set(file.schema_arrow.names))
    if missing:
        raise TraceError(
            f"columns are missing: {', '.join(missing)}",
            given=f"{path} has {', '.join(file.schema_arrow.names)}",
            cure="the columns of the paper's requests.parquet are needed, with their names",
        )
    return file


class _Samples:
    """The request list that all levels replay, and which of its answers were silent or empty, by model."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self.tokens: dict[int, tuple[int, int]] = {}
        self.silent: dict[tuple[str, int], list[int]] = {}
        for index in range(file.num_row_groups):
            table = file.read_row_group(
                index,
                columns=["model", "status", "sample_id", "input_tokens", "output_tokens", "token_gaps_ms"],
            )
            lengths = _lengths(table["token_gaps_ms"].combine_chunks())
            rows = zip(
                table["model"].to_pylist(),
                table["status"].to_pylist(),
                table["sample_id"].to_pylist(),
                table["input_tokens"].to_pylist(),
                table["output_tokens"].to_pylist(),
                lengths.tolist(),
                strict=True,
            )
            for model, status, sample, inputs, outputs, reports in rows:
                votes = self.silent.setdefault((model, sample), [0, 0])
                if status == OK:
                    self.tokens[sample] = (int(inputs), int(outputs))
                    # The wait before the stream and one entry per token, unless one carried no text.
                    votes[outputs > 1 and reports <= outputs] += 1

    def silent_first(self, model: str, sample: int) -> bool:
        spoken, silent = self.silent[model, sample]
        return silent > spoken

    def unanswered(self, model: str, sample: int) -> bool:
        return not any(self.silent[model, sample])


def _levels(table: pa.Table) -> Iterator[tuple[tuple[str, str, int, int], pa.Table]]:
    keys = table.select(["model", "gpu", "n_gpus", "users"])
    distinct = keys.group_by(["model", "gpu", "n_gpus", "users"]).aggregate([])
    if len(distinct) == 1:
        yield tuple(distinct.to_pylist()[0].values()), table
        return
    frame = keys.to_pandas()
    for key, positions in frame.groupby(["model", "gpu", "n_gpus", "users"], sort=False).indices.items():
        yield key, table.take(pa.array(positions))


def _recording(key: tuple[str, str, int, int], table: pa.Table, samples: _Samples) -> Recording:
    model, gpu, count, users = key
    order = np.argsort(table["start_ms"].to_numpy(), kind="stable")
    sample_ids = table["sample_id"].to_numpy()[order].tolist()
    known = [sample in samples.tokens for sample in sample_ids]
    sample_ids = [sample for sample, usable in zip(sample_ids, known, strict=True) if usable]
    tokens = np.array([samples.tokens[sample] for sample in sample_ids], dtype=np.int64).reshape(-1, 2)

    ok = table["status"].to_numpy() == OK
    good = table.filter(pa.array(ok))
    gaps = good["token_gaps_ms"].combine_chunks()
    values, lengths = gaps.flatten().to_numpy(), _lengths(gaps)
    starts = np.cumsum(lengths) - lengths
    within = np.arange(len(values)) - np.repeat(starts, lengths)
    opened = lengths > 1
    inputs, outputs = good["input_tokens"].to_numpy(), good["output_tokens"].to_numpy()
    truth = summarize(
        values[starts[opened] + 1],
        values[within >= 2],
        inputs[opened].astype(np.int64),
        outputs.astype(np.int64),
    )
    return Recording(
        model=CATALOGUE.get(model, model),
        gpu=gpu.lower(),
        count=int(count),
        users=int(users),
        input_tokens=tokens[:, 0],
        output_tokens=tokens[:, 1],
        silent_first=np.array([samples.silent_first(model, s) for s in sample_ids], dtype=bool),
        unanswered=np.array([samples.unanswered(model, s) for s in sample_ids], dtype=bool),
        failure_rate=float(1 - ok.mean()),
        overhead_ms=float(np.median(values[starts[opened]])) if opened.any() else 0.0,
        truth=truth,
    )


def _lengths(lists: Any) -> Ints:
    return np.asarray(np.diff(lists.offsets.to_numpy()), dtype=np.int64)
