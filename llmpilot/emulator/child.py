"""The process of `in_process`: it reads what to serve from stdin, answers with its URL on stdout, and serves
until stdin ends."""

import asyncio
import gc
import json
import pickle
import sys

from llmpilot.emulator.options import Options
from llmpilot.emulator.process import serve
from llmpilot.emulator.service import EmulatedService
from llmpilot.errors import PilotError


async def _serve_for(service: EmulatedService, options: Options) -> None:
    async with serve(service, options) as emulator:
        gc.collect()
        gc.freeze()
        print(json.dumps({"url": emulator.url}), flush=True)
        hung_up, loop, stdin = asyncio.Event(), asyncio.get_running_loop(), sys.stdin.fileno()
        loop.add_reader(stdin, hung_up.set)
        await hung_up.wait()
        loop.remove_reader(stdin)


def _main() -> None:
    try:
        asyncio.run(_serve_for(*pickle.load(sys.stdin.buffer)))
    except PilotError as error:
        print(json.dumps({"error": str(error)}), flush=True)


if __name__ == "__main__":
    _main()
