"""A recorded campaign whose truth is known: simulated, and written as the paper's table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmpilot import catalog
from llmpilot.simulator import simulate_closed
from llmpilot.simulator.calibration import Calibration
from llmpilot.workload import Requests, from_lengths

SLOW = Calibration(
    model="starcoder",
    gpu="A100-40GB",
    count=1,
    decode_ms=150.0,
    decode_ms_per_sequence=9.0,
    prefill_ms=120.0,
    prefill_ms_per_request=8.0,
    prefill_ms_per_token=1.5,
    join_ms=10.0,
    join_ms_per_sequence=2.0,
    max_batch_weight=3_000.0,
    request_overhead_ms=20.0,
)
"""Slow, so that two minutes hold few requests."""


class Endless:
    """The same forty requests again and again."""

    def __init__(self) -> None:
        random = np.random.Generator(np.random.PCG64(5))
        self.lengths = random.integers(5, 400, 40), random.integers(1, 40, 40)
        self.taken = 0

    def take(self, n: int) -> Requests:
        rows = np.arange(self.taken, self.taken + n) % 40
        self.taken += n
        return from_lengths(self.lengths[0][rows], self.lengths[1][rows])


def write_campaign(path: Path, levels: tuple[int, ...], calibration: Calibration = SLOW) -> None:
    """Write one pair's levels, each a row group; times in whole ms, as the paper's clients noted them."""
    model = catalog.models(["starcoder"])["starcoder"]
    service = calibration.service(model, catalog.gpus(["a100"])["a100"])
    writer = None
    for users in levels:
        result = simulate_closed(service, Endless(), users, 120e3, 30e3, keep_load=False)
        rows = []
        for i in range(len(result.outcome)):
            gaps = result.gap_us[result.gap_offsets[i] : result.gap_offsets[i + 1]]
            tokens_ms = (result.first_token_us[i] + np.concatenate([[0], np.cumsum(gaps)])) // 1000
            opened_ms = (result.sent_us[i] + 20_000) // 1000
            ok = result.outcome[i] == 0
            reports = [20, int(tokens_ms[0] - opened_ms), *np.diff(tokens_ms).tolist()] if ok else []
            rows.append(
                {
                    "model": "bigcode/starcoder",
                    "gpu": "A100",
                    "n_gpus": 1,
                    "users": users,
                    "status": 200 if ok else 408,
                    "sample_id": i % 40,
                    "input_tokens": int(result.requests.input_tokens[i]) if ok else None,
                    "output_tokens": int(result.requests.output_tokens[i]) if ok else None,
                    "start_ms": int(result.sent_us[i] // 1000),
                    "token_gaps_ms": reports,
                }
            )
        table = pa.Table.from_pylist(rows)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def off(calibration: Calibration, share: float) -> Calibration:
    """Return a calibration whose steps take `share` longer."""
    return replace(calibration, decode_ms=calibration.decode_ms * (1 + share))
