"""`python -m llmpilot`."""

import sys

if __name__ == "__main__":
    try:
        # Worker processes import this module under another name: they need no command line.
        from llmpilot.cli import main

        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
