"""Prints results/left_out.csv as the tables of README.md: median errors by operator, format and GPU."""

from pathlib import Path

import pandas as pd

COLUMNS = {
    "combination_out": "shapes left out, whole combinations",
    "shape_out": "shapes left out, at random",
    "roofline_alone": "the same combinations, a roofline of the GPU type's own without correction",
    "gpu_out": "GPU type left out",
}
GPUS = ["a100_80gb", "l40s", "h100", "h200", "b200"]


def main() -> None:
    scores = pd.read_csv(Path(__file__).resolve().parent / "results" / "left_out.csv")
    for column, title in COLUMNS.items():
        print(f"\n{title}: median, and root mean square of the log\n")
        print("| operator | format | " + " | ".join(GPUS) + " |\n|---|---|" + "---|" * len(GPUS))
        for (operator, fmt), rows in scores.groupby(["operator", "format"]):
            of_gpu = rows.set_index("gpu")
            cells = [_cell(of_gpu.loc[gpu], column) if gpu in of_gpu.index else "" for gpu in GPUS]
            print(f"| {operator} | {fmt} | " + " | ".join(cells) + " |")
    few = pd.read_csv(Path(__file__).resolve().parent / "results" / "few_rows.csv")
    print("\nGPU type left out but for few rows: median error, mean over operators, formats and GPU types\n")
    for column in few.columns[few.columns.str.endswith("_median")]:
        print(f"{column.removesuffix('_median')}: {100 * few[column].mean():.1f}%")


def _cell(row: pd.Series, column: str) -> str:
    median, rms = row[f"{column}_median"], row[f"{column}_rms"]
    return "" if pd.isna(median) else f"{100 * median:.1f} ({rms:.2f})"


if __name__ == "__main__":
    main()
