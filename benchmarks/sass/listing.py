"""From the text of `cuobjdump -sass` to instructions, blocks and loops. No tool is run here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

FUNCTION = re.compile(r"^\s*Function : (\S+)")
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T]+) +)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
REGISTER = re.compile(r"\bR(\d+)(\.64)?")
WIDTH = re.compile(r"\.(128|64|U16|S16|U8|S8)\b")
BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str | None
    opcode: str  # with its suffixes
    operands: str

    def isa(self, prefix: str) -> bool:
        """Whether it is `prefix`, or that with more suffixes; words of a prefix that has gaps stand in this order."""
        words = prefix.split()
        return self.opcode.split(".")[0] == words[0].split(".")[0] and all(
            word in self.opcode for word in words
        )

    @property
    def target(self) -> int | None:
        found = re.search(r"(?<![\w\[])0x([0-9a-f]+)\s*$", self.operands.strip())
        return int(found[1], 16) if found else None

    @cached_property
    def load_bytes(self) -> int:
        """That a thread asks of global memory: 0 where it is no load of it into registers."""
        if self.opcode.split(".")[0] not in ("LDG", "LD"):
            return 0
        found = WIDTH.search(self.opcode)
        return BYTES[found[1]] if found else 4

    @cached_property
    def written(self) -> frozenset[int]:
        """The registers that a load fills."""
        first = REGISTER.search(self.operands)
        if not self.load_bytes or first is None:
            return frozenset()
        return frozenset(range(int(first[1]), int(first[1]) + max(1, self.load_bytes // 4)))

    @cached_property
    def touched(self) -> frozenset[int]:
        """Every register that is named, pairs of addresses as two."""
        found: set[int] = set()
        for number, wide in REGISTER.findall(self.operands):
            found.update(range(int(number), int(number) + (2 if wide else 1)))
        for width, size in ((".128", 4), (".64", 2), (".WIDE", 2)):
            if width in self.opcode and (first := REGISTER.search(self.operands)):
                found.update(range(int(first[1]), int(first[1]) + size))
        return frozenset(found | self.written)


@dataclass
class Block:
    instructions: list[Instruction]
    successors: list[int] = field(default_factory=list)  # addresses where blocks begin

    @property
    def address(self) -> int:
        return self.instructions[0].address


@dataclass
class Loop:
    """The natural loop of one header: addresses of its blocks, and of those that go back."""

    header: int
    body: set[int]
    latches: set[int]
    parent: Loop | None = None


def functions(text: str) -> dict[str, list[Instruction]]:
    """By mangled name. The padding behind the last branch to itself is left out."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if match := FUNCTION.match(line):
            current = found[match[1]] = []
        elif match := INSTRUCTION.match(line):
            current.append(Instruction(int(match[1], 16), match[2], match[3], match[4].strip()))
    for code in found.values():
        while code and (
            code[-1].opcode == "NOP" or (code[-1].opcode == "BRA" and code[-1].target == code[-1].address)
        ):
            code.pop()
    return found


def _next(code: list[Instruction], i: int, barriers: dict[str, set[int]]) -> tuple[bool, list[int]] | None:
    """Whether control may go on behind instruction i, and where else; None where it does not end a block."""
    at = code[i]
    name = at.opcode.split(".")[0]
    always = at.predicate in (None, "PT")
    if at.predicate == "!PT":
        return None
    if name == "BRA":
        conditional = (
            not always or at.opcode.startswith(("BRA.U", "BRA.DIV", "BRA.CONV")) or "," in at.operands
        )
        return conditional, [] if at.target is None else [at.target]
    if name in ("EXIT", "RET", "BRX", "JMX"):
        return not always, []
    if name == "BSYNC":  # threads meet where the BSSY of this barrier said
        meets = barriers.get(at.operands.strip(), set())
        behind = at.address + 16
        ahead = sorted(t for t in meets if t > at.address)
        return None if behind in meets or not ahead else (not always, ahead[:1])
    return None


def blocks(code: list[Instruction]) -> dict[int, Block]:
    """The blocks of a function, by address, in order; calls of subroutines count as one instruction."""
    barriers: dict[str, set[int]] = {}
    for at in code:
        if at.opcode.startswith("BSSY") and at.target is not None:
            barriers.setdefault(at.operands.split(",")[0].strip(), set()).add(at.target)
    ends = {i: found for i in range(len(code)) if (found := _next(code, i, barriers)) is not None}
    addresses = {at.address for at in code}
    leaders = {code[0].address}
    for i, (_, targets) in ends.items():
        leaders.update(t for t in targets if t in addresses)
        if i + 1 < len(code):
            leaders.add(code[i + 1].address)
    found: dict[int, Block] = {}
    block: Block | None = None
    for i, at in enumerate(code):
        if at.address in leaders:
            if block is not None and not (i and i - 1 in ends):
                block.successors.append(at.address)
            block = found[at.address] = Block([])
        assert block is not None
        block.instructions.append(at)
        if i in ends:
            falls, targets = ends[i]
            block.successors += [t for t in targets if t in addresses]
            if falls and i + 1 < len(code) and code[i + 1].address not in block.successors:
                block.successors.append(code[i + 1].address)
    return found


def reachable(graph: dict[int, Block]) -> list[int]:
    """In reverse postorder."""
    entry = next(iter(graph))
    order: list[int] = []
    seen = {entry}
    stack = [(entry, iter(graph[entry].successors))]
    while stack:
        at, rest = stack[-1]
        for other in rest:
            if other not in seen:
                seen.add(other)
                stack.append((other, iter(graph[other].successors)))
                break
        else:
            order.append(at)
            stack.pop()
    return order[::-1]


def loops(graph: dict[int, Block]) -> list[Loop]:
    """The natural loops, outer ones first, each with its parent."""
    order = reachable(graph)
    place = {address: i for i, address in enumerate(order)}
    before: dict[int, list[int]] = {address: [] for address in order}
    for address in order:
        for other in graph[address].successors:
            before[other].append(address)
    dominator = {order[0]: order[0]}

    def meet(a: int, b: int) -> int:
        while a != b:
            while place[a] > place[b]:
                a = dominator[a]
            while place[b] > place[a]:
                b = dominator[b]
        return a

    changed = True
    while changed:
        changed = False
        for address in order[1:]:
            known = [b for b in before[address] if b in dominator]
            new = known[0]
            for other in known[1:]:
                new = meet(new, other)
            if dominator.get(address) != new:
                dominator[address] = new
                changed = True

    def dominates(a: int, b: int) -> bool:
        while place[b] > place[a]:
            b = dominator[b]
        return a == b

    found: dict[int, Loop] = {}
    for address in order:
        for header in graph[address].successors:
            if not dominates(header, address):
                continue
            loop = found.setdefault(header, Loop(header, {header}, set()))
            loop.latches.add(address)
            stack = [address]
            while stack:
                at = stack.pop()
                if at not in loop.body:
                    loop.body.add(at)
                    stack += before[at]
    ordered = sorted(found.values(), key=lambda loop: (-len(loop.body), loop.header))
    for i, loop in enumerate(ordered):
        around = [other for other in ordered[:i] if loop.header in other.body]
        loop.parent = around[-1] if around else None
    return ordered
