"""A model whose weights do not all fit: which stay in memory, and in which parts a step runs for the rest.

A step's phases are cut into parts. Before a part runs, the weights of its phases that are not in memory are brought
from the file into one buffer, the slot, which all parts use in turn; the pages of the next are asked for meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from engine.backends.opencl.lowering import Step
from engine.errors import OutOfMemoryError
from engine.graph import Weight


@dataclass
class Part:
    """The phases first .. last - 1 of a program, and the weights that they find in the slot, at these offsets."""

    first: int
    last: int
    weights: dict[Weight, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Streaming:
    """parts: in order. slot_bytes: of the largest; 0 where every weight stays in memory."""

    parts: list[Part]
    slot_bytes: int = 0

    @property
    def weights(self) -> set[Weight]:
        return {weight for part in self.parts for weight in part.weights}


def cut_program(
    phases: Sequence[Sequence[Step]],
    weights: Collection[Weight],
    movable: Collection[Weight],
    bytes_of: Callable[[Weight], int],
    budget: int | None,
) -> Streaming:
    """Keeps as many weights in memory as `budget` bytes hold beside the slot, those of the first phases first.

    movable: the weights that may come from the file each time; of these only such as one phase alone reads.

    Raises OutOfMemoryError where even the others and the slot need more.
    """
    whole = Streaming([Part(0, len(phases))])
    total = sum(bytes_of(weight) for weight in weights)
    if budget is None or total <= budget:
        return whole
    reads = [[place for step in phase for place in step.places if isinstance(place, Weight)] for phase in phases]
    readers = Counter(weight for read in reads for weight in set(read))
    wanted = [[w for w in dict.fromkeys(read) if w in movable and readers[w] == 1] for read in reads]
    sizes = [sum(bytes_of(weight) for weight in some) for some in wanted]
    slot = max(sizes, default=0)
    room = budget - slot - (total - sum(sizes))
    if room < 0:
        raise OutOfMemoryError(
            f"{(budget - room) / 1e9:.2f} GB of memory are the least that its weights need, even if most of them are "
            f"read from the file again and again; there are {budget / 1e9:.2f} GB for them."
        )
    parts, filled = [Part(0, 0)], 0
    for index, (some, size) in enumerate(zip(wanted, sizes, strict=True)):
        if size <= room:
            room -= size
        else:
            if filled + size > slot:
                parts.append(Part(index, index))
                filled = 0
            for weight in some:
                parts[-1].weights[weight] = filled
                filled += bytes_of(weight)
        parts[-1].last = index + 1
    return Streaming(parts, slot)
