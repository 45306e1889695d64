"""``python -m neuralcodec``: the command line of cli.py."""

from .cli import program

program()
