"""Texts that grow: what has been read stays as a state, and only what is new goes through the model.

| file | purpose |
|---|---|
| `session.py` | `Session`, what a user holds |
| `sessions.py` | all sessions of a model: begun, restored, moved on together |
| `point.py` | where a text stands, as a value; the tokens that more text adds to it |
| `file.py` | a session on disk, checked when it is read |
| `memory.py` | idle sessions on disk, so that those in memory stay within a number of bytes |
"""
