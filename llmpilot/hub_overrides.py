"""Lets `+model=Qwen/Qwen3-32B` name an option: before Hydra composes, ids become options that it can find.

Hydra resolves options of groups before any code of ours runs. An id that is an option's own becomes its name;
for another checkpoint or a repackaging of one, an option is written to a folder where Hydra looks too.
"""

import re
from pathlib import Path
from typing import ClassVar

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from llmpilot import catalog
from llmpilot.errors import ConfigError, did_you_mean

HF_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


class OptionsOfIds(SearchPathPlugin):
    """Adds the folder of options made for ids to where Hydra looks."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder, where there is one."""
        if self.folder is not None:
            search_path.append("llmpilot", f"file://{self.folder}")


def name_options(arguments: list[str], folder: Path) -> list[str]:
    """Return the command line with options in place of Hugging Face ids; those to be made go to `folder`.

    Raises:
        ConfigError: an id that names no option of the catalogue.
    """
    named = [_named(argument, folder) for argument in arguments]
    OptionsOfIds.folder = folder if (folder / "model").is_dir() else None
    Plugins.instance().register(OptionsOfIds)
    return named


def _named(argument: str, folder: Path) -> str:
    key, _, value = argument.partition("=")
    if key.lstrip("+") != "model" or "/" not in value or "(" in value:
        return argument
    return f"{key}={','.join(_option(choice.strip(), folder) for choice in value.split(','))}"


def _option(choice: str, folder: Path) -> str:
    """Return the name of the option that `choice` means, if it is an id; else `choice`."""
    if "/" not in choice:
        return choice
    hf_id = choice.strip("'\"")
    found, model = catalog.model_by_hf_id(hf_id), catalog.model_of_hf_id(hf_id)
    if found is None or model is None:
        if not HF_ID.fullmatch(hf_id):
            raise ConfigError(
                "this is no option of the model group, and no Hugging Face id",
                given=f"model={choice}",
                cure="+model=ORGANIZATION/NAME, as +model=Qwen/Qwen3-32B; of an LLM in a folder: "
                "+model=hf model.config=PATH/config.json",
            )
        known = [model.hf_id for model in catalog.models().values()]
        raise ConfigError(
            f"there is no option for {hf_id}",
            given=f"model={choice}",
            cure=f"{did_you_mean(hf_id, known)}its facts follow from its config.json "
            f"(https://huggingface.co/{hf_id}/resolve/main/config.json): "
            "+model=hf model.config=path/to/config.json",
        )
    option, _ = found
    listed = catalog.models([option])[option]
    if model == listed.model_copy(update={"hf_id": hf_id}) and hf_id.lower() == listed.hf_id.lower():
        return option
    name = hf_id.replace("/", "--")
    file = folder / "model" / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    return name
