"""How far off offline batches are, of 2024's engines with the LLM left out and of all other rows as well.

    python offline.py [--models FOLDER] [--left_out model] [--workers 2]

prints the errors of throughput by source, engine, version and GPU type, and writes results/offline.json.
Rows that their source flags, and those in doubt, are left out.
"""

import argparse
from pathlib import Path

import pandas as pd

from llmpilot import catalog
from llmpilot.dataset.measurements import AT_ONCE, BATCH
from llmpilot.dataset.shipped import shipped_measurements
from llmpilot.files import to_json, write_text
from llmpilot.predict.service.validation import predict
from llmpilot.processes import workers

HERE = Path(__file__).parent
BY = (
    ["source"],
    ["source", "engine", "engine_version"],
    ["source", "engine", "gpu"],
    ["source", "engine", "gpu", "n_gpus"],
    ["source", "engine", "model"],
    ["source", "engine", "concurrency"],
    ["source", "engine", "input_tokens"],
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", help="a folder of config.json files that the catalogue lacks")
    parser.add_argument("--left_out", default="model", choices=("model", "gpu", "engine_version"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--source", default="", help="only sources whose names begin so")
    options = parser.parse_args()
    models = catalog.models_in_folder(options.models)[0] if options.models else {}
    shipped = shipped_measurements()
    table = shipped.table
    queued = table["load_kind"].isin([BATCH, AT_ONCE]) & ~shipped.in_doubt()
    # The source's own words for what makes a row no measurement of one synchronous batch.
    sound = ~table["flag"].fillna("").str.contains("batch_cliff|whole_batch_prefill")
    named = table["source"].str.startswith(options.source)
    rows = shipped.select(queued & sound & named)
    with workers(options.workers) as run:
        found = predict(rows, models, options.left_out, run, print)
    skipped = found.table["skipped"].dropna().value_counts()
    print(skipped.to_string())
    judged = found.judged[found.judged["metric"] == "throughput"].set_index("row")
    whole = found.table.loc[judged.index].fillna({"engine_version": "not stated", "concurrency": 0})
    whole["ratio"] = judged["predicted"] / judged["measured"]
    whole["error"] = (whole["ratio"] - 1).abs()
    whole["held"] = (judged["low"] <= judged["measured"]) & (judged["measured"] <= judged["high"])
    result = {}
    for by in BY:
        groups = whole.groupby(by, dropna=False)
        errors = groups.agg(
            rows=("error", "size"),
            median=("error", "median"),
            mean=("error", "mean"),
            bias=("ratio", "median"),
            within_80=("held", "mean"),
        ).round(3)
        print(errors.to_string(), end="\n\n")
        if len(by) <= 3:
            result[" ".join(by)] = errors.reset_index().to_dict("records")
    name = f"offline_{options.source}.json" if options.source else "offline.json"
    write_text(HERE / "results" / name, to_json(result | {"skipped": skipped.to_dict()}))
    columns = ["source", "engine", "engine_version", "model", "gpu", "n_gpus", "precision", "concurrency"]
    worst = pd.concat([whole[columns], whole[["input_tokens", "output_tokens", "ratio"]]], axis=1)
    print(worst.sort_values("ratio").iloc[[*range(10), *range(-10, 0)]].to_string())


if __name__ == "__main__":
    main()
