"""`python -m llmpilot`."""

from llmpilot.cli import main

if __name__ == "__main__":
    main()
