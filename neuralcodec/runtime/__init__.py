"""The backends that run a network: one protocol (session.py) and a file per library. Import from the files themselves."""
