"""All options of the gpu and model groups as typed objects, and the way from a composed node to one object.

The folder of configuration files is found here. What Hydra composes is none of this module's business.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from omegaconf import DictConfig

from llmpilot.architecture import KvFormat, Precision
from llmpilot.config import Gpu, Model, parse, plain
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.hf_config import model_from_hf_config
from llmpilot.hub import option_of
from llmpilot.prices import KnownType, PriceList, find, shipped

FROM_HF_CONFIG = "hf"  # the option of the model group that describes no model, but derives one


def conf_dir() -> Path:
    """Return the folder of the configuration groups: in an installed wheel, or the checkout's `conf`."""
    package = Path(__file__).resolve().parent
    packed = package / "conf"
    return packed if packed.is_dir() else package.parent / "conf"


def gpus(names: Sequence[str] | None = None, prices: PriceList | None = None) -> dict[str, Gpu]:
    """Return option name -> GPU profile of one GPU; all options, or those named, in the order given.

    Their prices are those of one list, by default the one of `conf/config.yaml`.

    Raises:
        ConfigError: a name is no option of the gpu group, or its file is wrong.
    """
    used = price_list() if prices is None else prices
    return {
        name: parse(Gpu, _at_prices(_load("gpu", name) | {"count": 1}, name, used), "gpu")
        for name in _chosen("gpu", names)
    }


def gpu_profiles(names: Sequence[str] | None = None, prices: PriceList | None = None) -> list[Gpu]:
    """Return every GPU profile that a list of prices has: each GPU type in each count with a price.

    Raises:
        ConfigError: a name is no option of the gpu group, its file is wrong, or none of those has a price.
    """
    used = price_list() if prices is None else prices
    profiles = [
        gpu.model_copy(update={"count": count})
        for gpu in gpus(names, used).values()
        for count in sorted(gpu.price_per_hour)
    ]
    if names and not profiles:
        others = [f"prices={name}" for name in shipped() if set(names) & set(price_list(name).options)]
        file = "prices=FILE, a CSV file with the header gpu,count,price_per_hour"
        raise ConfigError(
            f"no price of {', '.join(names)} is known",
            given=f"prices={used.name} ({used.label})",
            cure=", or ".join([*others, file]),
        )
    return profiles


def price_list(
    prices: str | Path | None = None, kind: str | None = None, region: str | None = None
) -> PriceList:
    """Return the list of prices of that name or in that file; None: the default one.

    `kind` (on_demand, spot) and `region` are for files in the format of SkyPilot's catalogue.

    Raises:
        ConfigError: no such list or file, or one that cannot be used.
    """
    chosen = str(_read(conf_dir() / "config.yaml")["prices"]) if prices is None else prices
    return find(chosen, _types(), kind, region)


def composed_prices(config: DictConfig) -> PriceList:
    """Return the list of prices that a composed configuration names.

    Raises:
        ConfigError: as `price_list`.
    """
    return price_list(config.get("prices"), config.get("prices_kind"), config.get("prices_region"))


def models(names: Sequence[str] | None = None) -> dict[str, Model]:
    """Return option name -> model; all options but `hf`, or those named, in the order given.

    Raises:
        ConfigError: a name is no option of the model group, or its file is wrong.
    """
    return {name: parse(Model, _load("model", name), "model") for name in _chosen("model", names)}


def model_by_hf_id(hf_id: str) -> tuple[str, Precision | None] | None:
    """Return the option that a Hugging Face id names and the precision it is repackaged in, or None.

    E.g. `nvidia/DeepSeek-R1-NVFP4` is deepseek_v3 in nvfp4; a precision of None is that of the option's own
    checkpoint.
    """
    return option_of(hf_id, models().items())


def model_of_hf_id(hf_id: str) -> Model | None:
    """Return the model that a Hugging Face id names, in the precision it is repackaged in, or None."""
    found = model_by_hf_id(hf_id)
    if found is None:
        return None
    option, precision = found
    return (
        models([option])[option]
        .at_precision(precision)
        .model_copy(update={"hf_id": hf_id, "quantize_to": None})
    )


def models_in_folder(path: str | Path) -> tuple[dict[str, Model], dict[str, ConfigError]]:
    """Return Hugging Face id -> model for a folder of config.json files, and id -> why for those refused.

    A file is called `org--name.json`, or lies as `config.json` in a folder of that name.

    Raises:
        ConfigError: there is no such folder, or none of these files is in it.
    """
    folder = Path(path).expanduser()
    files = [file for file in sorted(folder.glob("*.json")) if "--" in file.stem]
    files += [file.parent for file in sorted(folder.glob("*--*/config.json"))]
    if not files:
        wrong = "has no files called org--name.json" if folder.is_dir() else "is no folder"
        raise ConfigError(
            f"{folder} {wrong}", cure="give a folder of config.json files, each as Qwen--Qwen3-32B.json"
        )
    found: dict[str, Model] = {}
    refused: dict[str, ConfigError] = {}
    for file in files:
        hf_id = (file.stem if file.suffix == ".json" else file.name).replace("--", "/", 1)
        try:
            found[hf_id] = model_from_hf_config(file).model_copy(update={"hf_id": hf_id})
        except ConfigError as error:
            refused[hf_id] = error
    return found, refused


def build_gpu(node: DictConfig | dict[str, Any], prices: PriceList | None = None) -> Gpu:
    """Return the GPU profile that the composed `gpu` node describes.

    Its prices are those of a list, by default the default one; a price in the node wins over the list's.

    Raises:
        ConfigError: an unknown key, an impossible value, or a count that there is not.
    """
    facts = plain(node)
    if not isinstance(facts, dict):
        return parse(Gpu, node, "gpu")
    option = {kind.name: option for option, kind in _types().items()}.get(str(facts.get("name")), "")
    return parse(Gpu, _at_prices(facts, option, price_list() if prices is None else prices), "gpu")


def composed_gpu(config: DictConfig) -> Gpu:
    """Return the GPU profile of a composed configuration at the prices that it names.

    Raises:
        ConfigError: as `build_gpu` and `price_list`.
    """
    return build_gpu(config.gpu, composed_prices(config))


def build_model(node: DictConfig | dict[str, Any]) -> Model:
    """Return the model that the composed `model` node describes, facts or `+model=hf` alike.

    With `hf`, `config` is the path of a config.json, relative to the current directory; all other keys that
    are not null win over what it says.

    Raises:
        ConfigError: an unknown key, an impossible value, or a config.json that is missing or unusable.
    """
    facts = plain(node)
    if not (isinstance(facts, dict) and "config" in facts):
        return parse(Model, node, "model")
    path = facts.pop("config")
    if not isinstance(path, str) or not path:
        raise ConfigError(
            "model=hf needs the config.json of a Hugging Face model",
            given=f"model.config={'null' if path is None else path}",
            cure="+model=hf model.config=path/to/config.json",
        )
    return model_from_hf_config(path, overrides=facts)


def served_model(config: DictConfig) -> Model:
    """Return the model of a composed configuration in the number formats that it asks for.

    Raises:
        ConfigError: as `build_model`, or there is no such precision.
    """
    asked = {key: plain(config.get(key)) for key in ("precision", "kv_precision")}
    for key, known in (("precision", get_args(Precision)), ("kv_precision", get_args(KvFormat))):
        if asked[key] is not None and asked[key] not in known:
            raise ConfigError(
                f"there is no {key} {asked[key]!r}",
                given=f"{key}={asked[key]}",
                cure=f"{did_you_mean(str(asked[key]), known)}there are {', '.join(known)}; "
                "null is what the checkpoint says",
            )
    return build_model(config.model).at_precision(asked["precision"], asked["kv_precision"])


def _at_prices(facts: dict[str, Any], option: str, prices: PriceList) -> dict[str, Any]:
    """Return the facts of a GPU type with the prices of a list; those that they have themselves stay."""
    given = facts.get("price_per_hour")
    if given is not None and not isinstance(given, dict):
        return facts  # which its schema refuses
    own = {_count(count): price for count, price in (given or {}).items()}
    listed = {count: price for count, price in prices.of(option).items() if count not in own}
    source = facts.get("price_source")
    if source is None or facts.get("count") not in own:
        source = prices.label if listed else f"no price in {prices.label}"
        if facts.get("count") in own:
            source = "given: gpu.price_per_hour"
    return facts | {"price_per_hour": listed | own, "price_source": source}


def _count(text: Any) -> Any:
    """Return a count as the number it is: `+gpu.price_per_hour.3=` makes a text of it."""
    return int(text) if isinstance(text, str) and text.isdecimal() else text


def _types() -> dict[str, KnownType]:
    """Return what a list of prices has to know of each GPU type."""
    found = {}
    for option in options("gpu"):
        facts = _load("gpu", option)
        found[option] = KnownType(str(facts.get("name")), tuple(facts.get("counts") or ()))
    return found


def root_keys(task: str) -> set[str]:
    """Return the top-level keys that the configuration of a task may have."""
    groups = {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}
    files = (conf_dir() / "config.yaml", conf_dir() / "task" / f"{task}.yaml")
    return groups | {key for file in files for key in _read(file) if key not in ("defaults", "hydra")}


def config_keys() -> list[str]:
    """Return the dotted names of all keys of the default configuration."""
    config = _read(conf_dir() / "config.yaml")
    keys = [key for key in config if key not in ("defaults", "hydra")]
    for entry in config["defaults"]:
        for group, option in entry.items() if isinstance(entry, dict) else ():
            if not group.startswith("override"):
                keys += option_keys(group, option)
    return keys


def _dotted(values: dict[str, Any], prefix: str) -> list[str]:
    keys = []
    for key, value in values.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, dict):
            keys += _dotted(value, f"{prefix}{key}.")
    return keys


def option_keys(group: str, option: str) -> list[str]:
    """Return the dotted names of the keys that an option of a group brings; a task's are at the root."""
    file = _read(conf_dir() / group / f"{option}.yaml")
    values = {key: value for key, value in file.items() if key != "defaults"}
    return _dotted(values, "" if group == "task" else f"{group}.")


def options(group: str, *, with_hf: bool = False) -> list[str]:
    """Return the names of a group's options, but `hf` unless it is wanted; of what is no group, none."""
    names = sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
    return names if with_hf else [name for name in names if name != FROM_HF_CONFIG]


def option(group: str, name: str) -> dict[str, Any]:
    """Return what an option's file says, interpolations as they are.

    Raises:
        ConfigError: there is no such option.
    """
    (known,) = _chosen(group, [name])
    return _load(group, known)


def _chosen(group: str, names: Sequence[str] | None) -> Sequence[str]:
    known = options(group)
    for name in names if names is not None else []:
        if name not in known:
            raise ConfigError(
                f"there is no {group} {name!r}",
                given=f"{group}={name}",
                cure=f"{did_you_mean(name, known)}the options are {', '.join(known)}",
            )
    return known if names is None else names


def _load(group: str, name: str) -> dict[str, Any]:
    return dict(_read(conf_dir() / group / f"{name}.yaml"))


@cache
def _read(file: Path) -> dict[str, Any]:
    try:
        facts = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML", given=str(error), cure="correct it") from None
    if not isinstance(facts, dict):
        raise ConfigError(f"{file} is not a mapping of keys to values", cure="its neighbours are examples")
    return facts
