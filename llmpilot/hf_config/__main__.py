"""Prints the option of the catalogue that a config.json gives: `python -m llmpilot.hf_config FILE`."""

import sys

from llmpilot.errors import ConfigError, PilotError
from llmpilot.hf_config import model_from_hf_config
from llmpilot.hf_config.as_yaml import option_text


def main(arguments: list[str]) -> int:
    """Print the facts of each file given, and return the exit code."""
    try:
        if not arguments:
            raise ConfigError(
                "no config.json is given", cure="python -m llmpilot.hf_config path/to/config.json"
            )
        for path in arguments:
            print(option_text(model_from_hf_config(path)), end="")
    except PilotError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
