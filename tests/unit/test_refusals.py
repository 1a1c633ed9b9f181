"""What is refused before anything is simulated, and the cures that fit what was given."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from llmpilot import catalog
from llmpilot.errors import ConfigError, DoesNotFitError
from llmpilot.hub_overrides import name_options
from llmpilot.tasks import cell, validate


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(catalog.conf_dir()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.mark.parametrize(
    ("engine", "setting"),
    [
        ("vllm", "gpu_memory_utilization"),
        ("sglang", "mem_fraction_static"),
        ("trtllm", "kv_cache_free_gpu_memory_fraction"),
        ("tgis", "memory_utilization"),
    ],
)
def test_too_small_a_share_of_the_memory_is_named(engine: str, setting: str) -> None:
    small = f"engine.{setting}=0.0001"
    with pytest.raises(DoesNotFitError) as wrong:
        cell.compose(composed("+gpu=h100", "+model=llama_3_1_8b", f"engine={engine}", small))
    assert wrong.value.cure == f"leave {small} out: with the engine's own default it fits"


def test_a_share_and_a_profile_that_are_too_small_are_both_named() -> None:
    small = "engine.gpu_memory_utilization=0.0001"
    with pytest.raises(DoesNotFitError) as wrong:
        cell.compose(composed("+gpu=t4", "+model=llama_3_1_8b", small))
    assert wrong.value.cure.startswith(f"leave {small} out, and take a profile that holds it")
    with pytest.raises(DoesNotFitError) as wrong:
        cell.compose(composed("+gpu=t4", "+model=llama_3_1_8b", "engine.gpu_memory_utilization=0.95"))
    assert wrong.value.cure.startswith("take a profile that holds it")


def test_a_table_of_measurements_is_not_fitted_to() -> None:
    with pytest.raises(ConfigError, match="refit fits TGIS anew") as wrong:
        validate.run(composed("task=validate", "measurements=shipped", "refit=true"))
    assert "data=PATH/requests.parquet" in wrong.value.cure


@pytest.mark.parametrize("name", ["/", "Qwen/", "/x", "../../etc/passwd", "~/models/x", "./x"])
def test_what_is_no_id_gets_no_link(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no Hugging Face id") as wrong:
        name_options([f"+model={name}"], tmp_path)
    assert "huggingface.co" not in str(wrong.value)
    with pytest.raises(ConfigError, match=r"huggingface\.co/nobody/Qwen3-33B/"):
        name_options(["+model=nobody/Qwen3-33B"], tmp_path)
