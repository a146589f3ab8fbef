"""Files that others wrote, of any format, to texts and rows: below all that read them. What they hold is never trusted.

| file | reason |
|---|---|
| `files.py` | one file to read, and its name as text |
| `discover.py` | arguments of a command to files |
| `formats.py` | the table of formats: suffixes, and who reads the rows |
| `streams.py` | bytes, counted, unpacked, to UTF-8 and to lines of bounded length |
| `encodings.py` | other encodings, and how they are recognised |
| `binary.py` | what is no text at all, by its first bytes |
| `rows.py` | what a row is, and how the columns of a table are chosen |
| `json_rows.py`, `delimited_rows.py`, `parquet_rows.py` | the readers |

Importing it imports nothing outside the standard library; Parquet is read with pyarrow when there is such a file.
"""
