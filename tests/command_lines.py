"""How tests read the command lines of servers."""


def flag(argv: tuple[str, ...], name: str) -> str:
    """Return what follows a flag."""
    return argv[argv.index(name) + 1]
