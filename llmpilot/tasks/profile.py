"""Task `profile`: measure the operators of an LLM engine on the GPU at hand, with the stand-alone script."""

import json
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Annotated, Any

from omegaconf import DictConfig
from pydantic import Field
from rich.table import Table

from llmpilot import console, profile_gpu
from llmpilot.config import Facts, parse
from llmpilot.console import note, say
from llmpilot.errors import ConfigError, PilotError
from llmpilot.files import require_writable, write_result, write_text

SCRIPT = Path(profile_gpu.__file__)
LAST_WORDS_S = 30.0
"""How long an interrupted measurement may take to hand over what it has."""


class ProfilingFailedError(PilotError):
    """The GPU or the measuring process failed."""

    exit_code = 1


class Profiling(Facts):
    """The task's part of the configuration."""

    output: str = "my_gpu.json"
    device: str = "cuda"
    seconds: Annotated[float, Field(ge=profile_gpu.LEAST_SECONDS, le=profile_gpu.MOST_SECONDS)] = 120
    all_reduce: bool = False
    script: str | None = None


def run(cfg: DictConfig) -> dict[str, Any]:
    """Measure and write the profile, or write the script that does; return what it holds, as JSON values.

    Raises:
        ConfigError: an impossible option, no PyTorch, or no such device.
        ProfilingFailedError: the device failed; what was measured before is written.
    """
    settings = parse(Profiling, {key: cfg[key] for key in Profiling.model_fields}, "profile")
    if settings.script is not None:
        return _write_script(Path(settings.script).expanduser())
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", settings.device, re.ASCII):
        cure = "device=cuda, device=cuda:1 for the second GPU, or device=cpu"
        raise ConfigError("there is no such device", given=f"device={settings.device}", cure=cure)
    output = Path(settings.output).expanduser()
    require_writable(output, "output")
    if find_spec("torch") is None:
        raise ConfigError(
            "PyTorch is not installed beside LLM-Pilot",
            given=sys.executable,
            cure=f"pip install torch; or copy {SCRIPT} to a machine that has it (it needs nothing else) "
            "and run it there: python profile_gpu.py > my_gpu.json",
        )
    profile = _measured(settings, output)
    _show(profile)
    say(f"written to {settings.output}; to predict from it: +gpu=<its type> gpu.profile={settings.output}")
    keys = ("complete", "ended", "gpu", "software", "skipped", "left_out")
    return {"output": settings.output, "rows": len(profile["rows"])} | {key: profile[key] for key in keys}


def _write_script(path: Path) -> dict[str, Any]:
    require_writable(path, "script")
    write_text(path, SCRIPT.read_text(encoding="utf-8"))
    say(f"written to {path}; where PyTorch is installed: python {path.name} > my_gpu.json")
    return {"script": str(path)}


def _measured(settings: Profiling, output: Path) -> dict[str, Any]:
    """Run the script in a process of its own, write what it prints, and return that."""
    line = [sys.executable, str(SCRIPT), "--device", settings.device, "--seconds", f"{settings.seconds:g}"]
    line += ["--all-reduce"] if settings.all_reduce else []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        process = subprocess.Popen(line, stdout=printed, stderr=subprocess.PIPE, text=True)
        try:
            complaint = _relay(process)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # Ctrl-C has reached it already; a signal to us alone has not
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=LAST_WORDS_S)
            if _written(printed, output) is not None:
                note(f"what was measured is in {output}, marked as incomplete")
            raise
        finally:
            process.kill()
            code = process.wait()
        profile = _written(printed, output)
    if code == profile_gpu.EXIT_USAGE:
        raise ConfigError("nothing can be measured here", given=complaint, cure=f"python {SCRIPT} --help")
    if code or profile is None:
        kept = f"what was measured before is in {output}" if profile else "nothing was measured"
        cure = "end what else is running on the GPU, and give the same command again"
        raise ProfilingFailedError(
            f"profiling failed; {kept}", given=complaint or f"exit code {code}", cure=cure
        )
    return profile


def _relay(process: subprocess.Popen[str]) -> str:
    """Show the process's progress as it comes until it ends; return what it says is wrong."""
    assert process.stderr is not None
    complaint, last = "", ""
    for line in process.stderr:
        last = line.strip() or last
        if line.startswith("error: "):
            complaint = line.removeprefix("error: ").strip()
        else:
            note(line.rstrip())
    return complaint or (last if process.wait() else "")


def _written(printed: IO[str], output: Path) -> dict[str, Any] | None:
    """Write the profile that was printed, if it is whole, and return it."""
    printed.seek(0)
    try:
        profile: dict[str, Any] = json.loads(printed.read())
    except ValueError:
        return None
    write_result(output, profile, "output")
    return profile


def _show(profile: dict[str, Any]) -> None:
    """Print a line for each operator and format: how many shapes, and the best rates among them."""
    title = f"{profile['gpu']['name']}, PyTorch {profile['software']['torch']}"
    table = Table(title=title, title_justify="left")
    for name in ("operator", "format", "shapes", "shortest us", "most TFLOP/s", "most GB/s"):
        table.add_column(name, justify="left" if name in ("operator", "format") else "right")
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in profile["rows"]:
        kinds.setdefault((row["operator"], row["format"]), []).append(row)
    for kind, rows in kinds.items():
        shortest = min(row["time_us"] for row in rows)
        best = [max(row.get(rate, 0.0) for row in rows) for rate in ("tflops", "gb_s")]
        rates = (f"{rate:,.4g}" if rate else "" for rate in best)
        table.add_row(*kind, str(len(rows)), f"{shortest:.1f}", *rates)
    console.out.print(table)
    missing = {f"{one['operator']} in {one['format']}" for one in profile["skipped"]}
    missing -= {f"{operator} in {fmt}" for operator, fmt in kinds}
    left = sum(one["shapes"] for one in profile["left_out"] if one["reason"] == "time")
    if missing:
        note(f"not measured: {', '.join(sorted(missing))}; the reasons are in the file, under skipped")
    if left:
        note(f"{left} shapes were left out for want of time; a larger seconds= measures more of them")
