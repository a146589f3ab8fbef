"""Files that survive a crash. Imports nothing of thalweg but its errors.

| file | reason |
|---|---|
| `durable.py` | a file that is there whole or not at all |
| `checked.py` | a file whose name says what it must hold |
| `lock.py` | one process at a time in a folder |
| `work_folder.py` | the folder of an unfinished run: begun, continued, published, dropped |
| `lines.py` | a log of JSON lines that is only ever appended to |
"""
