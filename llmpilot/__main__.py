"""`python -m llmpilot`."""

if __name__ == "__main__":
    # Worker processes import this module under another name: they need no command line.
    from llmpilot.cli import main

    main()
