"""The few values of many that were asked for last."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """Values by number, for several threads; beyond `limit` the one that rested longest is let go."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._values: OrderedDict[int, V] = OrderedDict()

    def get(self, number: int, make: Callable[[int], V]) -> V:
        """The value of a number, made where it is not there."""
        with self._lock:
            if number in self._values:
                self._values.move_to_end(number)
                return self._values[number]
            self._make_room()  # first: a file that is open keeps its room
        self.put(number, value := make(number))
        return value

    def put(self, number: int, value: V) -> None:
        """Keep a value in place of the one that a number had."""
        with self._lock:
            self._values.pop(number, None)
            self._make_room()
            self._values[number] = value

    def _make_room(self) -> None:
        while self._values and len(self._values) >= self.limit:
            self._values.popitem(last=False)
