"""The few values of many that were asked for last."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """Values by number; beyond `limit` the one that rested longest is dropped."""

    def __init__(self, limit: int, drop: Callable[[V], object] = lambda _: None) -> None:
        self.limit = limit
        self._drop = drop
        self._values: OrderedDict[int, V] = OrderedDict()

    def get(self, number: int, make: Callable[[int], V]) -> V:
        """The value of a number, made where it is not there."""
        if number in self._values:
            self._values.move_to_end(number)
            return self._values[number]
        self._make_room()  # first: a file that is open keeps its room
        value = self._values[number] = make(number)
        return value

    def put(self, number: int, value: V) -> None:
        """Keep a value in place of the one that a number had."""
        self._values.pop(number, None)
        self._make_room()
        self._values[number] = value

    def _make_room(self) -> None:
        while self._values and len(self._values) >= self.limit:
            self._drop(self._values.popitem(last=False)[1])

    def clear(self) -> None:
        """Drop all."""
        while self._values:
            self._drop(self._values.popitem()[1])
