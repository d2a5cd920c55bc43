"""Memory maps of stamped files, a few at a time."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections import OrderedDict

from exporter.store.plainfile import Stamp, open_stamped

_OPEN = 16  # each map holds a descriptor; a model may have thousands of shards


class MapPool:
    """Read-only maps by file name. Safe to use from several threads."""

    def __init__(self) -> None:
        self._maps: OrderedDict[str, mmap.mmap] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, stamp: Stamp) -> mmap.mmap:
        """The map of a file that is not empty.

        Raises:
            InputRefused: `input-unreadable` where the file changed meanwhile.
        """
        with self._lock:
            found = self._maps.get(stamp.name)
            if found is None:
                fd = open_stamped(stamp)
                try:
                    found = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
                finally:
                    os.close(fd)
                self._maps[stamp.name] = found
            self._maps.move_to_end(stamp.name)
            while len(self._maps) > _OPEN:
                self._drop(self._maps.popitem(last=False)[1])
            return found

    def close(self) -> None:
        """Drop all maps; one that a view still needs goes with that view."""
        with self._lock:
            while self._maps:
                self._drop(self._maps.popitem()[1])

    @staticmethod
    def _drop(found: mmap.mmap) -> None:
        # BufferError: a view of it is alive, and it is unmapped when that goes.
        with contextlib.suppress(BufferError):
            found.close()
