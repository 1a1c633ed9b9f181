"""Imports only point left along the data flow; tasks and the command line may see everything."""

import ast
from pathlib import Path

import llmpilot

PACKAGE = Path(llmpilot.__file__).parent
ORDER = [
    "errors interrupts processes secrets files console profile_gpu",
    "schema",
    "architecture",
    "config",
    "hf_config",
    "hub",
    "prices",
    "catalog",
    "workload",
    "sizing precision",
    "operators",
    "simulator",
    "openai_client",
    "engine emulator",
    "deploy",
    "loadtest",
    "metrics",
    "boundary",
    "search",
    "runfolder",
    "tracking_store tracking_left tracking",
    "tune",
    "dataset",
    "predict",
    "recommendation",
    "serving",
    "report progress sla_overrides",
    "deployment_overrides",
    "arguments sweep",
    "tasks",
    "hub_overrides",
    "cli",
    "__main__",
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names.split()}


def room_of(module: str) -> str | None:
    """`llmpilot.workload.joint` lives in `workload`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "llmpilot" and len(parts) > 1 else None


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {room_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "llmpilot":
            found |= {alias.name for alias in node.names if alias.name in RANK}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(room_of(node.module))
    return {room for room in found if room}


def test_imports_only_point_left() -> None:
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in RANK, f"{room} has no place in the data flow yet: add it to ORDER"
        wrong += [f"{file.name}: {room} -> {other}" for other in imports_of(file) if RANK[other] > RANK[room]]
    assert not wrong
