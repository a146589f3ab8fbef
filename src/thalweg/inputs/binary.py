"""What is no text, by its first bytes, and how its text can be had. Signatures as specified."""

from __future__ import annotations

_CONVERT = "convert it to text first"

_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"%PDF-", "PDF", "convert it first: pdftotext FILE"),
    (0, b"{\\rtf", "RTF", "convert it first: pandoc FILE -t plain"),
    (0, b"%!PS", "PostScript", "convert it first: ps2ascii FILE"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file (.doc, .xls, .ppt)", "save it as text first"),
    (0, b"\x1f\x8b", "gzip", "give it a name that ends in .gz"),
    (0, b"BZh", "bzip2", "unpack it first: bunzip2"),
    (0, b"\xfd7zXZ\x00", "xz", "unpack it first: unxz"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard", "unpack it first: unzstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "7-Zip", "unpack it first"),
    (0, b"Rar!\x1a\x07", "RAR", "unpack it first"),
    (257, b"ustar", "tar", "unpack it first: tar -xf FILE"),
    (0, b"PAR1", "Parquet", "give it a name that ends in .parquet"),
    (0, b"ARROW1", "Arrow", "save it as Parquet first"),
    (0, b"\x93NUMPY", "NumPy", "it holds numbers, no text"),
    (0, b"SQLite format 3\x00", "an SQLite database", "export the table as CSV first"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture", _CONVERT),
    (0, b"\xff\xd8\xff", "a JPEG picture", _CONVERT),
    (0, b"GIF8", "a GIF picture", _CONVERT),
    (0, b"\x7fELF", "a program", "it holds no text"),
)

_ZIPPED = (
    (b"word/", "DOCX", "convert it first: pandoc FILE -t plain"),
    (b"xl/", "XLSX", "save its sheets as CSV first"),
    (b"ppt/", "PPTX", "convert it first: pandoc FILE -t plain"),
    (b"mimetypeapplication/epub", "EPUB", "convert it first: pandoc FILE -t plain"),
    (b"mimetypeapplication/vnd.oasis.opendocument", "an OpenDocument file", "convert it first: pandoc FILE -t plain"),
)
"""Names that stand among the first of a ZIP file, and what it then is."""

HEAD = 8 * 1024
"""Bytes to look at."""


def recognise(head: bytes) -> str | None:
    """What a file is that is no text, and what to do about it; None for what may be text."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        known = ((what, cure) for mark, what, cure in _ZIPPED if mark in head)
        what, cure = next(known, ("ZIP", "unpack it first: unzip"))
        return f"{what}, not text; {cure}"
    for at, mark, what, cure in _SIGNATURES:
        if head[at : at + len(mark)] == mark:
            return f"{what}, not text; {cure}"
    # A NUL byte among the first bytes marks a file as binary, as it does for grep and git.
    return f"looks binary: a NUL byte in its first {HEAD // 1024} KiB" if b"\0" in head else None
