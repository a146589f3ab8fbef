"""How many examples a property is tried on: all of them in `make test`, few with HYPOTHESIS_PROFILE=quick.

Time limits for single examples are off: machines are busy. A fixture that stays the same for all examples is meant to.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

settings.register_profile("full", max_examples=100, **COMMON)
settings.register_profile("quick", max_examples=3, **COMMON)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "full")
settings.load_profile(PROFILE)


def examples(most: int) -> settings:
    """A decorator: so many examples, or those of the quick profile if that has fewer."""
    return settings(max_examples=min(most, settings().max_examples) if PROFILE == "quick" else most)
