"""The way that control takes through a kernel in the common case: its instructions, loops as often as they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.sass.listing import Block, Instruction, Loop, blocks, loops, reachable

Counts = tuple[int, ...]


@dataclass(frozen=True)
class Walk:
    """A loop of the common path: the `nth`, in the order of the code, of the innermost ones that can meet `has`.

    `has` says what one iteration holds at least, by opcode: {"LDG.E.128": 1, "MUFU.EX2": 4}. Of the ways through the
    loop that do, the shortest counts. `times` is how often it runs in one iteration of what is around it. `cached`: its
    loads find in a cache what was read before.
    """

    has: Mapping[str, int]
    times: int
    nth: int = 0
    cached: bool = False
    inside: tuple[Walk, ...] = ()


@dataclass(frozen=True)
class Part:
    """Instructions that run `times` over; a part of a part where loops are in loops."""

    items: tuple[Instruction | Part, ...]
    times: int = 1
    walk: Walk | None = None

    @property
    def instructions(self) -> int:
        """Issued for a warp."""
        return self.times * sum(item.instructions if isinstance(item, Part) else 1 for item in self.items)

    def expanded(self, cached: bool = False) -> Iterator[tuple[Instruction, bool]]:
        """Every instruction as often as it runs, and whether what it loads is in a cache."""
        cached = cached or (self.walk is not None and self.walk.cached)
        for _ in range(self.times):
            for item in self.items:
                if isinstance(item, Part):
                    yield from item.expanded(cached)
                else:
                    yield item, cached

    def walks(self) -> Iterator[tuple[Part, int]]:
        """The innermost walks, and how often the whole of each runs."""
        for item in self.items:
            if isinstance(item, Part):
                deeper = [(part, times * self.times) for part, times in item.walks()]
                if deeper:
                    yield from deeper
                elif item.walk is not None:
                    yield item, self.times


class NoSuchPathError(Exception):
    """The listing has no loop, or no way through one, as it is described."""


@dataclass
class Code:
    """One kernel's instructions, with its blocks and loops."""

    instructions: list[Instruction]
    graph: dict[int, Block] = field(init=False)
    loops: list[Loop] = field(init=False)

    def __post_init__(self) -> None:
        self.graph = blocks(self.instructions)
        self.loops = loops(self.graph)
        self.place = {address: i for i, address in enumerate(reachable(self.graph))}

    def children(self, loop: Loop | None) -> list[Loop]:
        return [other for other in self.loops if other.parent is loop]

    def within(self, loop: Loop | None) -> list[Loop]:
        found: list[Loop] = []
        for child in self.children(loop):
            found += [child, *self.within(child)]
        return found

    def unit(self, walks: tuple[Walk, ...], has: Mapping[str, int]) -> Part:
        """One iteration of the outermost loop around `walks`, or all of the kernel where nothing is around them.

        Without walks, of the outermost loop that can meet `has`.
        """
        if not walks:
            around = next((loop for loop in self.children(None) if self._can(loop, has)), None)
            return Part(self.shortest(around, has, {}))
        chosen: dict[int, Walk] = {}
        self._choose(None, walks, chosen)
        tops = set()
        for header in chosen:
            loop = next(other for other in self.loops if other.header == header)
            while loop.parent is not None:
                loop = loop.parent
            tops.add(loop.header)
        around = None
        if len(tops) == 1 and not (tops & chosen.keys()):
            around = next(loop for loop in self.loops if loop.header in tops)
        return Part(self.shortest(around, has, chosen))

    def _choose(self, around: Loop | None, walks: tuple[Walk, ...], chosen: dict[int, Walk]) -> None:
        for walk in walks:
            fitting = [loop for loop in self.within(around) if self._can(loop, walk.has)]
            inner = [a for a in fitting if not any(b is not a and b.header in a.body for b in fitting)]
            inner.sort(key=lambda loop: loop.header)
            if walk.inside:  # what is around the loops inside
                found: dict[int, Walk] = {}
                for loop in sorted(fitting, key=lambda loop: len(loop.body)):
                    try:
                        found = {}
                        self._choose(loop, walk.inside, found)
                        chosen[loop.header] = walk
                        break
                    except NoSuchPathError:
                        continue
                else:
                    raise NoSuchPathError(f"no loop with {dict(walk.has)} around others as described")
                chosen.update(found)
                continue
            if len(inner) <= walk.nth:
                raise NoSuchPathError(
                    f"{len(inner)} loops with {dict(walk.has)}, wanted number {walk.nth + 1}"
                )
            chosen[inner[walk.nth].header] = walk

    def _can(self, loop: Loop, has: Mapping[str, int]) -> bool:
        try:
            self.shortest(loop, has, {})
        except NoSuchPathError:
            return False
        return True

    def shortest(
        self, region: Loop | None, has: Mapping[str, int], chosen: Mapping[int, Walk]
    ) -> tuple[Any, ...]:
        """The shortest way through one iteration of a loop, or through the kernel, that has what it must.

        Other loops on the way run once where nothing leads around them.
        """
        children = self.children(region)
        inside = {address: child for child in children for address in child.body}
        required = [child for child in children if any(header in child.body for header in chosen)]
        wanted = [*has.values(), *(1 for _ in required)]
        start = region.header if region is not None else next(iter(self.graph))
        best: dict[int, dict[Counts, tuple[int, tuple[Any, ...]]]] = {start: {(0,) * len(wanted): (0, ())}}
        done: list[tuple[int, tuple[Any, ...]]] = []
        members = region.body if region is not None else self.place.keys()
        for node in sorted(
            (a for a in members if a not in inside or inside[a].header == a), key=self.place.__getitem__
        ):
            if node not in best:
                continue
            child = inside.get(node)
            if child is not None:
                walk = chosen.get(child.header)
                items = self.shortest(child, walk.has if walk else {}, chosen)
                content: tuple[Any, ...] = (Part(items, walk.times if walk else 1, walk),)
                cost = content[0].instructions
                gain = [0] * len(has) + [int(child is other) for other in required]
                if walk is None and child not in required:
                    gain[: len(has)] = [
                        sum(at.isa(key) for at in items if isinstance(at, Instruction)) for key in has
                    ]
                after = [s for a in child.body for s in self.graph[a].successors if s not in child.body]
                ends = [at for a in child.body for at in self.graph[a].instructions if at.opcode == "EXIT"]
            else:
                content = tuple(self.graph[node].instructions)
                cost = len(content)
                gain = [sum(at.isa(key) for at in content) for key in has] + [0] * len(required)
                after = self.graph[node].successors
                ends = [at for at in content if at.opcode == "EXIT"]
            for counts, (so_far, way) in best.pop(node).items():
                new = tuple(min(a + b, c) for a, b, c in zip(counts, gain, wanted, strict=True))
                here = (so_far + cost, (*way, content))
                if region is None and ends and new == tuple(wanted):
                    done.append(here)
                for other in after:
                    if region is not None and other == region.header:
                        if new == tuple(wanted):
                            done.append(here)
                        continue
                    if other not in members:
                        continue
                    key = inside[other].header if other in inside else other
                    if self.place[key] <= self.place[node]:
                        continue  # into the middle of a loop: none that a compiler makes of ours
                    states = best.setdefault(key, {})
                    if new not in states or states[new][0] > here[0]:
                        states[new] = here
        if not done:
            raise NoSuchPathError(
                f"no way through {'the kernel' if region is None else 'the loop'} with {dict(has)}"
            )
        way = min(done, key=lambda found: found[0])[1]
        return tuple(item for content in way for item in content)
