"""`python -m llmpilot`."""

import sys

if __name__ == "__main__":
    try:
        # Worker processes import this module under another name: they need no command line.
        from llmpilot.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()
