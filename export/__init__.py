"""Commands that turn trained networks and motion tracks into a model pack: `python -m export.NAME`."""
