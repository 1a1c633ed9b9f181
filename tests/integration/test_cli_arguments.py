"""What is typed: keys beside swept groups, misspelt options and keys, values that have to be quoted."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tracked import read, runs

from llmpilot.arguments import fixed_in_each_cell, refuse_unreadable
from llmpilot.deployment_overrides import as_hydra_takes_it
from llmpilot.errors import ConfigError

QUICK = ("tuner=none", "load.users=[1]", "load.duration_s=2", "load.warmup_s=0")
STRANGE = (
    *(
        "my(1)=x.json",
        "a=b.json",
        "my#x.json",
        "my{x.json",
        "a}b",
        "my x,y.json",
        "it's.json",
        'say "so".json',
    ),
    *(
        'it\'s "so".json',
        "${a",
        "a${b}c",
        "cost$5.json",
        "~/x,y",
        "back\\slash=",
        "end\\",
        "a:b=c",
        "[1,2",
        "x]",
        "é=è",
    ),
)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that the task was called with; it does nothing."""
    configurations: list[Any] = []

    def task(cfg: Any, **_: Any) -> dict[str, Any]:
        configurations.append(cfg)
        return {}

    monkeypatch.setattr("llmpilot.tasks.characterize.run", task)
    monkeypatch.setattr("llmpilot.sweep.print_sweep", lambda _: None)
    return configurations


def cells(path: str = "s.json") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(path)["cells"]
    return found


def test_a_fixed_key_beside_a_swept_group_is_in_each_cell(run: Run) -> None:
    ran = run("-m", "+gpu=h100,h200", "gpu.count=2", "+model=starcoder", *QUICK, "result_file=s.json")
    assert ran.code == 0, ran.err
    assert [cell["cell"] for cell in cells()] == ["+gpu=h100", "+gpu=h200"]
    assert [(cell["result"]["gpu"], cell["result"]["count"]) for cell in cells()] == [
        ("H100", 2),
        ("H200", 2),
    ]
    parent = next(found for found in runs() if "mlflow.parentRunId" not in found.data.tags)
    assert parent.info.run_name == " ".join(
        ["sweep: +gpu=h100,h200 gpu.count=2 +model=starcoder", *QUICK, "result_file=s.json"]
    )


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        # Swept keys beside swept groups, and keys before their groups.
        (
            ("gpu.count=1,2", "engine.tensor_parallel=1", "+gpu=h100", "engine=vllm,sglang"),
            [("gpu.count", [1, 1, 2, 2]), ("engine.tensor_parallel", [1] * 4)],
        ),
        (
            ("+gpu=h100", "load=poisson,gamma", "load.rates_per_s=[0.5,1]"),
            [("load.rates_per_s", [[0.5, 1]] * 2), ("load.arrival", ["poisson", "gamma"])],
        ),
        (
            ("+gpu=h100", "workload=fixed,fixed", "workload.input_tokens=9", "workload.output_tokens=8"),
            [("workload.input_tokens", [9] * 2)],
        ),
        (
            ("+gpu=h100,h200", "+gpu.price_per_hour.3=9.5", "gpu.profile=null", "gpu.count=3"),
            [("gpu.price_per_hour", [{"3": 9.5}] * 2), ("gpu.profile", [None] * 2), ("gpu.count", [3] * 2)],
        ),
        (
            ("+gpu=h100", "sla=default,interactive", "sla.ttft_ms.p95=700", "sla.percentile=90"),
            [("sla.ttft_ms", [{"p95": 700}] * 2), ("sla.percentile", [90] * 2)],
        ),
        (
            ("+gpu=h100,h200", "gpu.name='a, b'", "gpu.datasheet=https://x.org:1/a", "seed=5"),
            [("gpu.name", ["a, b"] * 2), ("gpu.datasheet", ["https://x.org:1/a"] * 2), ("seed", [5] * 2)],
        ),
    ],
)
def test_every_group_and_order(
    run: Run, seen: list[Any], arguments: tuple[str, ...], wanted: list[tuple[str, list[Any]]]
) -> None:
    ran = run("-m", *arguments, "+model=starcoder")
    assert ran.code == 0, ran.err
    for key, values in wanted:
        found = [OmegaConf.select(cfg, key) for cfg in seen]
        assert [OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for v in found] == values


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("+gpu=h10", "+model=starcoder"),
            ["there is no gpu 'h10'", "given: +gpu=h10", "did you mean 'h100'?"],
        ),
        (("-m", "+gpu=h100,H200S", "+model=starcoder"), ["there is no gpu 'H200S'", "did you mean 'h200'?"]),
        (("+gpu=h100", "+model=starcodr"), ["did you mean 'starcoder'?"]),
        (("+gpu=h100", "+model=Qwen3-32B"), ["did you mean 'qwen3_32b'?"]),
        (("-m", "+gpu=h100", "+model=starcoder,lama_7b"), ["did you mean 'llama_7b'?"]),
        (("engine=vlm",), ["there is no engine 'vlm'", "did you mean 'vllm'?"]),
        (("load=poison",), ["did you mean 'poisson'?"]),
        (("-m", "workload=azure_code,azure_con"), ["there is no workload 'azure_con'", "'azure_conv'?"]),
        (("sla=interactiv",), ["did you mean 'interactive'?"]),
        (("task=recomend",), ["did you mean 'recommend'?"]),
        (("deployment=extrenal",), ["did you mean 'external'?"]),
        (("gpu=h100", "+model=starcoder"), ["gpu has no default option", "to mend it: use +gpu=h100"]),
        (("+engine=vllm", "+gpu=h100"), ["engine is chosen already", "engine=..."]),
        (
            ("+gpu=h100", "gpu.cuont=2", "+model=starcoder"),
            ["gpu.cuont is not a key", "did you mean 'gpu.count'?"],
        ),
        (("-m", "gpu.cuont=2", "+gpu=h100,h200", "+model=starcoder"), ["did you mean 'gpu.count'?"]),
        (
            ("-m", "engine=vllm,tgi", "engine.max_num_seqs=4", "+gpu=h100", "+model=starcoder"),
            ["engine.max_num_seqs is not a key of engine=tgi", "it is one of engine=vllm"],
        ),
        (
            ("-m", "~gpu.count", "+gpu=h100,h200"),
            ["cannot be taken away while gpu is swept", "gpu.count=null"],
        ),
        (("+gpu=h100", "+model=starcoder", "~gpu.cuont"), ["did you mean 'gpu.count'?"]),
        (
            ("+gpu=h100", "+model=starcoder", "result_file=${x}.json"),
            ["result_file refers to x, which is no key", "'result_file=\"\\${x}.json\"'"],
        ),
        (
            ("+gpu=h100", "+model=starcoder", "deployment.url=http://h/v1"),
            ["deployment.url is a key of deployment=external only", "add deployment=external"],
        ),
        (("-m", "+gpu=glob(zz*)", "+model=starcoder"), ["no gpu is called so", "given: +gpu=glob(zz*)"]),
        (
            ("-m", "+model=hf,starcoder", "model.config=c.json", "+gpu=h100"),
            ["model.config is not a key of model=starcoder", "it is one of model=hf"],
        ),
        (("task=workload", "trace.pth=x"), ["did you mean 'trace.path'?", "there are trace.path,"]),
        (
            ("+gpu=h100,h200", "+model=starcoder"),
            ["+gpu has several values", "python -m llmpilot -m +gpu=h100,h200"],
        ),
        (("gpu.count",), ["gpu.count is not key=value", "gpu.count=..."]),
        (("load.users=1,2",), ["this is no sweep", "-m load.users=1,2", "as one list: 'load.users=[1,2]'"]),
        (("load.users=[1,2",), ["load.users has a value that cannot be read", "a list is [1,2]"]),
    ],
)
def test_what_is_misspelt_gets_a_suggestion(run: Run, arguments: tuple[str, ...], says: list[str]) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    for said in says:
        assert said in ran.err
    for noise in ("Traceback", "search path", "hydra.cc", "Lexer", "In 'config'"):
        assert noise not in ran.out + ran.err


def refusal(argument: str) -> str:
    """Return why an argument is refused, or an empty text."""
    try:
        refuse_unreadable([argument])
    except ConfigError as error:
        return str(error)
    return ""


def cure_of(message: str) -> str:
    found = re.search(r"(?:for the shell|as one text|a text is quoted): (.*)", message)
    assert found is not None, message
    return found.group(1)


def by_the_shell(line: str) -> list[str]:
    """Return the arguments that a shell makes of a line."""
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


def test_what_the_grammar_refuses_is_shown_as_it_is_typed(run: Run, seen: list[Any]) -> None:
    refused = {name: refusal(f"model.config={name}") for name in STRANGE}
    assert all(f"given: model.config={name}" in message for name, message in refused.items() if message)
    cured = {name: cure_of(message) for name, message in refused.items() if message}
    assert len(cured) > len(STRANGE) / 2
    assert cured["my(1)=x.json"] == "'model.config=\"my(1)=x.json\"'"
    typed = by_the_shell(" ".join(cured.values()))
    for name, argument in zip(cured, typed, strict=True):
        override = OverridesParser.create().parse_override(argument)
        assert OmegaConf.create({"config": override.value()}).config == name
        if name not in (*STRANGE[:2], 'it\'s "so".json', "${a"):
            continue  # a composition takes its time
        ran = run("+gpu=h100", "+model=hf", argument)
        assert ran.code == 0, ran.err
        assert seen.pop().model.config == name
    assert run("--cfg", "job", "+gpu=h100").code == 0  # what follows a flag is no argument


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12))
def test_any_text_can_be_quoted(text: str) -> None:
    if message := refusal(f"a.b={text}"):
        (argument,) = shlex.split(cure_of(message))
        assert not refusal(argument)


def test_a_file_of_a_strange_name_in_a_sweep(run: Run) -> None:
    for name in ("my(1)=x.json", "plain.json"):
        Path(name).write_text("{}")
    sweep = ("-m", "+gpu=h100,h200", "+model=hf")
    ran = run(*sweep, "model.config=my(1)=x.json,plain.json")
    assert ran.code == 2
    (argument,) = by_the_shell(cure_of(ran.err))
    assert argument == 'model.config="my(1)=x.json",plain.json'
    ran = run(*sweep, argument)
    assert ran.err.count("my(1)=x.json") >= 2  # both cells of it fail: an empty file is no model
    assert "no such file" not in ran.err


def test_a_secret_is_not_shown_to_be_quoted(run: Run) -> None:
    ran = run("deployment=external", "deployment.api_key=sk-plan(ted", "+model=starcoder")
    assert ran.code == 2
    assert "deployment.api_key" in ran.err
    assert "plan(ted" not in ran.err


URL = "deployment.url=http://h/v1"


@pytest.mark.parametrize(
    ("typed", "sweep", "values"),
    [
        (f"{URL}?a=1,2&b=3", False, ["http://h/v1?a=1,2&b=3"]),
        ("deployment.headers.X-Team=blue,red", False, ["blue,red"]),
        (f"{URL}?a=1,http://g/v1", True, ["http://h/v1?a=1", "http://g/v1"]),
        ("deployment.headers.X-Team=blue,red", True, ["blue", "red"]),
        (f"{URL},http://g/v1", False, ["http://h/v1", "http://g/v1"]),
    ],
)
def test_a_comma_parts_urls_and_headers_in_a_sweep_only(typed: str, sweep: bool, values: list[str]) -> None:
    *_, argument = as_hydra_takes_it([*(["-m"] if sweep else []), typed])
    override = OverridesParser.create().parse_override(argument)
    if len(values) > 1:
        swept = override.sweep_iterator(transformer=Transformer.str)
        assert [value.replace("\\", "").strip("'") for value in swept] == values
        return
    assert OmegaConf.create({"it": override.value()}).it == values[0]


def test_nothing_waits_without_a_swept_group() -> None:
    for line in (["+gpu=h100", "gpu.count=2"], ["-m", "+gpu=h100", "gpu.count=1,2", "gpu.profile=x"]):
        assert fixed_in_each_cell(line) == line
