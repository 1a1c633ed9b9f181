"""What the trees see of a cell: its load, what the profile has for the model's needs, what physics says."""

from collections.abc import Sequence

import numpy as np

from llmpilot.predict.pilot.cells import ENCODER_DECODER, FLASH, Cells
from llmpilot.predict.prediction import Floats


def features_of(cells: Cells, physics: Sequence[Floats], missed: Sequence[Floats] = ()) -> Floats:
    """Return the features [n, 18 + 2 a physics + 2 a miss].

    Each of `physics` [n, 2] are logs of predicted latencies, each of `missed` [n, 2] what one of them missed
    of the LLM where it was measured.
    """
    n, users = cells.gpus, cells.users
    memory_gb, bandwidth, tflops = n * cells.memory_gb, n * cells.bandwidth_gb_s, n * cells.tflops
    room_gb = np.maximum(0.93 * memory_gb - cells.weights_gb, 0.5)
    capacity_tokens = 1e3 * room_gb / cells.kv_mb_per_token
    columns = [
        users,
        cells.weights_gb,
        cells.kv_mb_per_token,
        cells.layers,
        cells.kind == FLASH,
        cells.kind == ENCODER_DECODER,
        bandwidth,
        tflops,
        memory_gb / cells.weights_gb,
        memory_gb - cells.weights_gb,
        n,
        cells.nvlink,
        1e3 * cells.read_gb / bandwidth,
        cells.parameters_b / tflops,
        capacity_tokens,
        cells.kv_mb_per_token / bandwidth,
        users / capacity_tokens,
        users * cells.parameters_b / tflops,
    ]
    return np.column_stack([*columns, *physics, *missed]).astype(np.float32)
