"""A short name for the contents of a checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

SAMPLE, SAMPLES = 4096, 512
"""A fingerprint reads at most so many samples of so many bytes of a file, evenly spread."""


def fingerprint(folder: Path, source: Path, head: str | None, special_tokens: str | None = None) -> str:
    """16 hexadecimal digits that tell vectors of this model from others': small files whole, weights by samples.

    Of several `.pth` files only the one that was loaded (`source`) counts, and so does the head. `special_tokens`: how
    they are read, where that is not as the folder says.
    """
    digest = hashlib.sha256("".join(choice for choice in (head, special_tokens) if choice).encode())
    suffixes = [".json", ".safetensors", ".bin", ".model", ".txt"]
    suffixes += [".pth"] if source == folder else []
    for path in sorted(folder.rglob("*")):
        if (path.suffix in suffixes or path == source) and path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder)}:{size}\n".encode())
            with path.open("rb") as file:
                for start in range(0, size, max(SAMPLE, size // SAMPLES)):
                    file.seek(start)
                    digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:16]
