"""Who sees what: pairs of models for every prompt, blocks of pairs for raters, sides, repeats and controls.

Every pair is judged once in each of `raters` sets; a set is cut into blocks, one for a rater, so that nobody meets a
pair twice but as a repeat. From set to set the sides change places.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from eval.human.bradley_terry import groups
from eval.human.errors import StudyError
from eval.human.gold import GoldKind, gold_kinds
from eval.human.study import Study

FEW = 3  # up to so many models every prompt is shown with all pairs
Kind = Literal["pair", "repeat", "gold"]


@dataclass(frozen=True)
class Unit:
    """What is judged: two models (by number) on a prompt (by number), or one model where `second` is None."""

    prompt: int
    first: int
    second: int | None


@dataclass(frozen=True)
class Place:
    """One item as shown: a unit with its sides, a repeat (`of`: the place of the original in the block), or a control.

    A control shows the prompt and first model of its unit; `other` is the prompt whose picture stands against it.
    """

    unit: Unit
    first_left: bool
    kind: Kind = "pair"
    of: int | None = None
    gold: GoldKind | None = None
    other: int = 0


@dataclass(frozen=True)
class Block:
    """The items of one rater in the order shown; no pair comes in two blocks of one set."""

    number: int
    set: int
    places: tuple[Place, ...]


def lay_out(study: Study, prompts: int, rng: np.random.Generator, *, truth: bool) -> list[Block]:
    """The blocks of a study; truth: whether real pictures are there for controls of relevance.

    Raises StudyError where models would not be linked by comparisons.
    """
    units = _units(study, prompts, rng)
    if study.mode == "pairwise":
        _check_linked(study, units)
    left = _sides(units, rng)
    kinds = gold_kinds(study, truth=truth and prompts > 1)
    blocks: list[Block] = []
    for number in range(study.raters):
        for part in _deal(units, study.block, rng):
            places = [Place(units[i], bool(left[i]) != (number % 2 == 1)) for i in part]
            places = _with_repeats(places, study.repeats, rng)
            places = _with_gold(places, study, kinds, prompts, rng, turn=len(blocks))
            blocks.append(Block(len(blocks) + 1, number + 1, tuple(places)))
    return blocks


def pair_order(models: int) -> list[tuple[int, int]]:
    """All pairs in the order of a round robin (circle method): neighbouring pairs share few models."""
    seats: list[int] = list(range(models + models % 2))  # an odd number has one seat empty
    order = []
    for _ in range(len(seats) - 1):
        facing = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        order += [(min(pair), max(pair)) for pair in facing if max(pair) < models]
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return order


def _units(study: Study, prompts: int, rng: np.random.Generator) -> list[Unit]:
    models = len(study.models)
    if study.mode == "likert":
        return [Unit(prompt, model, None) for prompt in range(prompts) for model in range(models)]
    pairs = pair_order(models) if models > FEW else list(combinations(range(models), 2))
    each = study.pairs_per_prompt or (models if models > FEW else len(pairs))
    each = min(each, len(pairs))
    units = []
    for place, prompt in enumerate(map(int, rng.permutation(prompts))):
        units += [Unit(prompt, *pairs[(place * each + i) % len(pairs)]) for i in range(each)]
    return units


def _check_linked(study: Study, units: Sequence[Unit]) -> None:
    met = np.zeros((len(study.models), len(study.models)))
    for unit in units:
        met[unit.first, unit.second or 0] += 1
    if len(parts := groups(met)) > 1:
        called = " | ".join(", ".join(study.models[i] for i in part) for part in parts)
        raise StudyError(
            f"the pairs of this study fall apart into {len(parts)} groups of models ({called}), which nobody would "
            "compare with one another: raise prompts.count or pairs_per_prompt"
        )


def _sides(units: Sequence[Unit], rng: np.random.Generator) -> list[bool]:
    """Whether the first model stands left in the first set: in half of the prompts of every pair."""
    left = [False] * len(units)
    of_pair: dict[tuple[int, int | None], list[int]] = {}
    for i, unit in enumerate(units):
        of_pair.setdefault((unit.first, unit.second), []).append(i)
    for members in of_pair.values():
        odd = int(rng.integers(2))
        for place, i in enumerate(rng.permutation(members)):
            left[int(i)] = (place + odd) % 2 == 0
    return left


def _deal(units: Sequence[Unit], size: int, rng: np.random.Generator) -> list[list[int]]:
    """Cut one set into blocks of at most `size`, pairs of one prompt apart as far as possible; each block shuffled.

    Which pair of a prompt goes to which block is drawn, else a rater would see the same models throughout.
    """
    rank = rng.permutation(max(unit.prompt for unit in units) + 1)
    drawn = rng.permutation(len(units))
    order = sorted(range(len(units)), key=lambda i: (rank[units[i].prompt], drawn[i]))
    count = -(-len(units) // size)
    return [[int(i) for i in rng.permutation(order[start::count])] for start in range(count)]


def _with_repeats(places: list[Place], share: float, rng: np.random.Generator) -> list[Place]:
    """Show some items of the first third again in the last third, with the sides swapped."""
    n = len(places)
    count = min(round(share * n), n // 3)
    made = list(places)
    for original in sorted(map(int, rng.permutation(max(n // 3, 1))[:count])):
        twin = places[original]
        again = replace(twin, first_left=not twin.first_left, kind="repeat", of=original)
        made.insert(int(rng.integers(max(2 * n // 3, n // 3 + 1), len(made) + 1)), again)
    return made


def _with_gold(
    places: list[Place], study: Study, kinds: Sequence[GoldKind], prompts: int, rng: np.random.Generator, *, turn: int
) -> list[Place]:
    """Put controls between the items: at least two in blocks of ten or more, since one slip proves nothing.

    turn: the kind with which a block begins, so that all kinds come equally often.
    """
    if not study.gold or not kinds:
        return places
    count = max(round(study.gold * len(places)), 2 if len(places) >= 10 else 1)
    made: list[Place | int] = list(range(len(places)))
    for i in range(count):
        prompt = int(rng.integers(prompts))
        other = int((prompt + 1 + rng.integers(prompts - 1)) % prompts) if prompts > 1 else 0
        unit = Unit(prompt, int(rng.integers(len(study.models))), None)
        gold = Place(unit, bool(rng.integers(2)), "gold", None, kinds[(turn + i) % len(kinds)], other)
        made.insert(int(rng.integers(1, len(made) + 1)), gold)
    moved = {old: new for new, old in enumerate(made) if isinstance(old, int)}
    kept = [places[one] if isinstance(one, int) else one for one in made]
    return [place if place.of is None else replace(place, of=moved[place.of]) for place in kept]
