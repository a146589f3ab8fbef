"""For all tests."""

from __future__ import annotations

import os
import tempfile

# Where transformers copies Python files of folders that are opened with trust_remote_code: not into the user's home. It
# is read when transformers is first imported, also by the processes that tests start.
_modules = tempfile.TemporaryDirectory(prefix="thalweg-tests-")
os.environ["HF_MODULES_CACHE"] = _modules.name

# What training data is made into.
_data_sets = tempfile.TemporaryDirectory(prefix="thalweg-tests-")
os.environ["HF_DATASETS_CACHE"] = _data_sets.name
