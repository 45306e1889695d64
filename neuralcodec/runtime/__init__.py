"""The backends that run a network: one protocol (session.py) and one file per library; import from those files."""
