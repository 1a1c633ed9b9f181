"""What is printed is printed as it is: brackets are units and lists, never markup."""

import pytest
from rich.table import Table

from llmpilot import console


@pytest.mark.parametrize("name", ["out", "err"])
def test_brackets_are_text(name: str) -> None:
    printer = getattr(console, name)
    table = Table("ITL [ms]", title="starcoder [bold]")
    table.add_row("gpu.count=[1,2]")
    with printer.capture() as printed:
        printer.print(table)
        printer.print("limit [s]")
    assert all(text in printed.get() for text in ("ITL [ms]", "starcoder [bold]", "[1,2]", "limit [s]"))
