"""Schemas refuse what is impossible, naming key, value and cure; every option of every group is valid."""

from typing import Annotated

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import Field

from llmpilot import catalog
from llmpilot.config import MOST_SEED, Facts, Load, Sla, Tracking, VariableName, build, parse, parse_seed
from llmpilot.engine.sglang import SglangEngine
from llmpilot.errors import ConfigError
from llmpilot.workload import load_conversations, load_workload

CONF = catalog.conf_dir()
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))],
)
def test_every_option_of_every_group_composes_and_parses(group: str, option: str) -> None:
    prefix = "+" if group in ("gpu", "model") else ""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        task = ["task=evaluate"] if group == "predictor" else []
        own = (
            ["workload.input_tokens=64", "workload.output_tokens=64"]
            if option in ("fixed", "lengths")
            else []
        )
        cfg = compose("config", overrides=[*task, f"{prefix}{group}={option}", *own])
    if group in ("engine", "deployment"):
        cfg[group].update({"url": "http://127.0.0.1:8000"} if option == "external" else {})
        build(cfg[group], group)
    elif group in ("load", "sla"):
        parse({"load": Load, "sla": Sla}[group], cfg[group], group)
    elif group == "gpu":
        assert catalog.build_gpu(cfg.gpu) == catalog.gpus([option])[option]
    elif group == "workload" and option == "sessions":
        assert cfg.workload.trace.path is None, "a trace of the user's own"
    elif group == "workload" and (conversations := load_conversations(cfg.workload, 42)) is not None:
        assert conversations.longest_tokens > 0
    elif group == "workload" and option != "file":
        assert load_workload(cfg.workload).longest()[0] > 0
    elif group == "task":
        assert cfg.task.name == option
    elif group == "predictor":
        assert build(cfg.predictor, "predictor").name == option


@pytest.mark.parametrize(
    ("schema", "key", "values", "words"),
    [
        (Sla, "sla", {"itl_ms": 0}, ["sla.itl_ms", "0", "greater than 0"]),
        (Sla, "sla", {"itl_ms": float("nan")}, ["sla.itl_ms", "nan", "finite"]),
        (Sla, "sla", {"percentile": 42}, ["sla.percentile", "42", "99"]),
        (Sla, "sla", {"max_failure_rate": 2}, ["sla.max_failure_rate", "2"]),
        (Sla, "sla", {"itl": 5}, ["sla.itl", "did you mean 'itl_ms'"]),
        (Load, "load", {"arrival": "closed"}, ["load.users", "is missing"]),
        (Load, "load", {"arrival": "closed", "users": [4, 2]}, ["load.users", "must rise"]),
        (Load, "load", {"arrival": "closed", "users": [0]}, ["load.users", "greater than 0"]),
        (Load, "load", {"arrival": "closed", "users": [1.5]}, ["load.users", "integer"]),
        (Load, "load", {"arrival": "closed", "users": []}, ["load.users", "at least 1"]),
        (Load, "load", {"arrival": "poisson", "users": [1]}, ["load.rates_per_s", "is missing"]),
        (Load, "load", {"arrival": "closed", "users": [1], "duration_s": -1}, ["load.duration_s", "-1"]),
        (Tracking, "tracking", {"uri": "ftp://x"}, ["ftp://x", "sqlite:///mlflow.db"]),
    ],
)
def test_impossible_values_name_key_value_and_cure(
    schema: type, key: str, values: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(schema, values, key)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("given", "cure"), [(0, "greater than 0 or -1"), (0.5, "integer")])
def test_a_value_of_several_types_is_named_by_its_key(given: float, cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(SglangEngine, {"chunked_prefill_size": given}, "engine")
    assert caught.value.wrong == "engine.chunked_prefill_size is not possible"
    assert cure in caught.value.cure
    assert caught.value.cure.endswith("or -1")


def test_a_key_within_a_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"load\.users\.1 is not possible"):
        parse(Load, {"arrival": "closed", "users": [1, -2, -2]}, "load")


def test_a_single_value_is_a_ladder_of_one() -> None:
    assert Load.model_validate({"arrival": "closed", "users": 8}).levels == [8]


def test_behaviour_is_checked_like_facts() -> None:
    node = {"_target_": "llmpilot.engine.tgis.TgisEngine", "max_waiting": 1}
    with pytest.raises(ConfigError, match=r"engine\.max_waiting is not a key"):
        build(OmegaConf.create(node), "engine")
    with pytest.raises(ConfigError, match="cannot be imported"):
        build(OmegaConf.create({"_target_": "llmpilot.nowhere.Engine"}), "engine")
    with pytest.raises(ConfigError, match="names no _target_"):
        build(OmegaConf.create({"a": 1}), "engine")


class Named(Facts):
    """A pattern, and the name of a variable."""

    namespace: Annotated[str, Field(pattern="^[a-z]+$")] = "a"
    api_key_env: VariableName = ""


def test_what_does_not_match_a_pattern_is_shown_unless_it_may_be_a_key() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Named, {"namespace": "A b"}, "pod")
    for word in ("pod.namespace is not possible", "given: A b", "^[a-z]+$"):
        assert word in str(caught.value)
    with pytest.raises(ConfigError, match="no name of a variable") as caught:
        parse(Named, {"api_key_env": "sk-12345"}, "deployment")
    assert "sk-12345" not in str(caught.value)


@pytest.mark.parametrize("seed", ["abc", None, -1, 1e20, 1.5, True, MOST_SEED + 1])
def test_an_impossible_seed_is_refused(seed: object) -> None:
    with pytest.raises(ConfigError, match="seed must be a whole number of 0 to 4294"):
        parse_seed(seed)


def test_seeds_and_those_that_follow_are_taken_by_numpy() -> None:
    for seed in (0, MOST_SEED):
        np.random.RandomState(parse_seed(seed) + 100_000)
