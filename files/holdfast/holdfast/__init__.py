"""The programs that a Holdfast host runs: standard library only, one subcommand a module."""
