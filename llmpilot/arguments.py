"""The command line before Hydra composes it: what it cannot read or find is refused, with a cure.

Hydra's grammar takes `key=value`, lists, mappings and sweeps; a value with other signs in it has to be quoted
for Hydra, and its quotes for the shell. What is shown as a cure is ready to be pasted.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString
from hydra.errors import HydraException

from llmpilot import catalog
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.secrets import secret_values

MULTIRUN = ("-m", "--multirun")
CONFIG_DIR = ("-cd", "--config-dir")
KEY = re.compile(r"(\+\+|\+|~)?([A-Za-z_][\w-]*)((?:[./@:][\w.@:-]+)*)")
"""Of `+gpu.count`: the mark, the group, and the rest of the key."""


def refuse_unreadable(arguments: Sequence[str]) -> None:
    """Refuse what Hydra's grammar does not take, and several values without a sweep.

    Raises:
        ConfigError: names the argument, and shows how to quote it.
    """
    sweep = is_sweep(arguments)
    for before, argument in zip(("", *arguments), arguments, strict=False):
        key, equals, value = argument.partition("=")
        of_a_flag = (
            before.startswith("-") and before not in MULTIRUN and not equals
        )  # as `job` of `--cfg job`
        if argument.startswith("-") or of_a_flag:
            continue
        override = _parsed(argument)
        if not (equals or (override is not None and override.is_delete())) or not KEY.fullmatch(key):
            raise ConfigError(
                f"{shlex.quote(argument)} is not key=value",
                cure=f"give a value: {key}=..." if KEY.fullmatch(key) else "as in gpu.count=2",
            )
        if override is None:
            raise _unreadable(key, value, sweep=sweep)
        if override.is_sweep_override() and not sweep:
            as_text = "" if _group(argument) else f"; as one text: {_line(key, _quoted(value))}"
            if as_text and _parsed(f"{key}=[{value}]"):
                as_text = f"; as one list: {_line(key, f'[{value}]')}{as_text}"
            raise ConfigError(
                f"{key} has several values, and this is no sweep",
                given=_shown(key, value),
                cure=f"-m tries each: python -m llmpilot -m {_line(key, value)} ...{as_text}",
            )


def refuse_unknown_options(arguments: Sequence[str]) -> None:
    """Refuse an option that a group does not have, in a sweep's list too; ids of LLMs are not looked at here.

    Options of one's own are those in the folder of `--config-dir`; where `hydra.searchpath` names others,
    Hydra itself looks for them.

    Raises:
        ConfigError: says which there are, and which may have been meant.
    """
    if any(key_of(argument) == "hydra.searchpath" for argument in arguments):
        return
    folder = _folder_of_ones_own(arguments)
    for argument in arguments:
        group = _group(argument)
        known = catalog.options(group, with_hf=True) if group else []
        if known and folder is not None:
            known = [*known, *(file.stem for file in sorted((folder / group).glob("*.y*ml")))]
        pattern = _pattern(argument) if known else None
        if pattern is not None and not pattern.filter(known):
            raise ConfigError(
                f"no {group} is called so",
                given=argument,
                cure=f"the options are {', '.join(catalog.options(group))}",
            )
        for choice in _choices(argument) if known else ():
            if choice not in known and "/" not in choice:
                alike = re.sub(r"[^a-z0-9]+", "_", choice.lower())
                raise ConfigError(
                    f"there is no {group} {choice!r}",
                    given=argument,
                    cure=f"{did_you_mean(alike, known)}the options are {', '.join(catalog.options(group))}",
                )


def is_sweep(arguments: Sequence[str]) -> bool:
    """Return whether these are the arguments of a sweep."""
    return any(argument in MULTIRUN for argument in arguments)


def fixed_in_each_cell(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a sweep with keys that go with a swept group put into each of its cells.

    Before its cells Hydra composes once without what is swept, and a key of a swept group (`gpu.count=2`
    beside `+gpu=h100,h200`) is not there then. As a sweep over its one value it waits for the cells, where it
    is checked; a value that does not survive this is forced, and checked by the group's schema alone.

    Raises:
        ConfigError: a key is to be taken away from a swept group, which Hydra would try before its cells.
    """
    if not is_sweep(arguments):
        return list(arguments)
    groups = {_group(argument) for argument in arguments if is_swept(argument)} - {""}
    for argument in arguments:
        found = KEY.fullmatch(argument.partition("=")[0])
        if argument.startswith("~") and found and found.group(2) in groups and found.group(3):
            raise ConfigError(
                f"{key_of(argument)} cannot be taken away while {found.group(2)} is swept",
                given=argument,
                cure=f"set it to nothing: {key_of(argument)}=null",
            )
    return [_waiting(argument) if _belongs_to(argument, groups) else argument for argument in arguments]


def is_swept(argument: str) -> bool:
    """Return whether an argument has several values to try."""
    override = None if argument.startswith("-") else _parsed(argument)
    return override is not None and override.is_sweep_override()


def key_of(argument: str) -> str:
    """Return the key that an argument sets, without the marks before it."""
    return argument.partition("=")[0].lstrip("+~")


def unknown_key(key: str, arguments: Sequence[str]) -> ConfigError:
    """Return the error for a key that the composed configuration does not have."""
    group = key.partition(".")[0]
    there = catalog.options(group, with_hf=True)
    chosen = [name for name in _chosen(arguments, group) if name in there] or there
    keys = {name: catalog.option_keys(group, name) for name in chosen}
    having = [name for name in chosen if key in keys[name]]
    if having and chosen == there:
        options = " or ".join(f"{group}={name}" for name in having)
        return ConfigError(f"{key} is a key of {options} only", cure=f"add {options}")
    if having and len(having) < len(chosen):
        lacking = ", ".join(f"{group}={name}" for name in chosen if name not in having)
        return ConfigError(
            f"{key} is not a key of {lacking}",
            cure=f"it is one of {', '.join(f'{group}={name}' for name in having)}: try these by themselves",
        )
    known = list(dict.fromkeys(name for found in keys.values() for name in found))
    if not known:
        tasks = [task for task in _chosen(arguments, "task") if task in catalog.options("task")]
        known = [
            *catalog.config_keys(),
            *(name for task in tasks for name in catalog.option_keys("task", task)),
        ]
    parent = key.rpartition(".")[0]
    siblings = list(dict.fromkeys(name for name in known if name.rpartition(".")[0] == parent))
    # What the keys of other tasks are called may be what was meant.
    alike = [*known, *sorted(set().union(*map(catalog.root_keys, catalog.options("task"))) - set(known))]
    shown = siblings or [name for name in known if "." not in name or name.startswith(f"{group}.")]
    return ConfigError(
        f"{key} is not a key of the configuration",
        cure=f"{did_you_mean(key, alike)}there are {', '.join(shown)}",
    )


def refers_to_nothing(name: str, key: str, arguments: Sequence[str]) -> ConfigError:
    """Return the error for a value that refers, as `${name}`, to a key that is not there."""
    typed = next((value for one in arguments if (value := _value_of(one, key)) is not None), "")
    as_text = f"; a text with ${{ in it is quoted: {_line(key, _quoted(typed))}" if typed else ""
    return ConfigError(
        f"{key} refers to {name}, which is no key of the configuration",
        given=_shown(key, typed) if typed else None,
        cure=f"${{KEY}} is the value of another key, ${{oc.env:NAME}} of the environment{as_text}",
    )


def _value_of(argument: str, key: str) -> str | None:
    return argument.partition("=")[2] if key_of(argument) == key and "=" in argument else None


def _chosen(arguments: Sequence[str], group: str) -> list[str]:
    return [choice for argument in arguments if _group(argument) == group for choice in _choices(argument)]


def _belongs_to(argument: str, groups: set[str]) -> bool:
    found = KEY.fullmatch(argument.partition("=")[0])
    if argument.startswith(("-", "~")) or found is None or _group(argument) or is_swept(argument):
        return False
    # The keys of a task are not below `task`.
    return found.group(2) != "hydra" and ("task" in groups or found.group(2) in groups)


def _waiting(argument: str) -> str:
    key, _, value = argument.partition("=")
    for element in (value, _quoted(value)):
        swept = _parsed(f"{key}=choice({element})")
        if swept is None or not swept.is_sweep_override():
            continue
        (cell,) = swept.sweep_string_iterator()
        if _value(f"{key}={cell}") == _value(argument):
            return f"{key}=choice({element})"
    return f"++{key.lstrip('+')}={value}"


def _value(argument: str) -> Any:
    override = _parsed(argument)
    return (None, None) if override is None else (type(override.value()), override.value())


def _folder_of_ones_own(arguments: Sequence[str]) -> Path | None:
    """Return the folder of `--config-dir`, if there is one."""
    for flag, following in zip(arguments, (*arguments[1:], ""), strict=True):
        name, equals, value = flag.partition("=")
        if name in CONFIG_DIR:
            return Path(value if equals else following).expanduser()
    return None


def _group(argument: str) -> str:
    """Return the group of which an argument chooses an option, or an empty text."""
    key, equals, _ = argument.partition("=")
    found = KEY.fullmatch(key)
    if not equals or found is None or found.group(3).startswith("."):
        return ""
    return found.group(2) if catalog.options(found.group(2)) else ""


def _choices(argument: str) -> list[str]:
    override = _parsed(argument)
    if override is None:
        return []
    value = override.value()
    several = value.list if isinstance(value, ChoiceSweep) else [value]
    texts = [choice.text if isinstance(choice, QuotedString) else choice for choice in several]
    return [text for text in texts if isinstance(text, str)]


def _pattern(argument: str) -> Glob | None:
    override = _parsed(argument)
    value = None if override is None else override.value()
    return value if isinstance(value, Glob) else None


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _unreadable(key: str, value: str, *, sweep: bool) -> ConfigError:
    as_text = _quoted(value)
    if sweep:
        parts = [part if _parsed(f"{key}={part}") else _quoted(part) for part in value.split(",")]
        if _parsed(f"{key}={','.join(parts)}"):
            as_text = ",".join(parts)
    cure = f"quote it, for Hydra and for the shell: {_line(key, as_text)}"
    if value.lstrip().startswith(("[", "{")):
        cure = f"a list is [1,2], a mapping {{p50: 40}}; a text is quoted: {_line(key, as_text)}"
    return ConfigError(f"{key} has a value that cannot be read", given=_shown(key, value), cure=cure)


def _shown(key: str, value: str) -> str:
    return f"{key}=(not shown)" if secret_values({key.lstrip("+"): value}) else f"{key}={value}"


def _line(key: str, value: str) -> str:
    """Return an argument as it is typed into a shell."""
    if secret_values({key.lstrip("+"): value}):
        return f"'{key}=\"...\"'"
    return shlex.quote(f"{key}={value}")


def _quoted(value: str) -> str:
    """Return a text as Hydra's grammar takes it, as one text that stands for itself.

    Hydra reads a backslash as one, but those before a quote; OmegaConf takes `${` for a reference.
    """
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    mark = "'" if '"' in text and "'" not in text else '"'
    text = re.sub(rf"(\\*){mark}", rf"\1\1\\{mark}", text)
    tail = re.search(r"\\*$", text)
    return f"{mark}{text}{tail.group() if tail else ''}{mark}"
