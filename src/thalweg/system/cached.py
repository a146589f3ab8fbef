"""cached_property without a lock.

Python 3.10 and 3.11 compute a property of any object under one lock for all. A process that is forked while another
thread computes one never gets it; and threads wait for each other without need. As in Python 3.12, two threads may
compute a value at the same time: what is cached here depends on nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from functools import cached_property  # noqa: TID251
else:

    class cached_property:
        """A property that is computed once and kept in the object's `__dict__`."""

        def __init__(self, function):
            self.function = function
            self.__doc__ = function.__doc__

        def __set_name__(self, owner, name):
            self.name = name

        def __get__(self, instance, owner=None):
            if instance is None:
                return self
            value = instance.__dict__[self.name] = self.function(instance)
            return value


__all__ = ["cached_property"]
