"""Channels that can only go together, in all the layers that give or read them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

# By layer: which of its outputs and which of its inputs go, both sorted.
Removal = dict[str, tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Member:
    """A layer that gives or reads the channels of a group.

    outputs : whether they are outputs of the layer; of one that has the same channels on both
        sides, such as a batch normalisation, they are
    mixes : whether the layer makes others of its inputs
    places : for each channel of the group, which channels of the layer it is: several behind a
        flattening, none where the layer sees another part of the group
    """

    layer: str
    outputs: bool
    mixes: bool
    places: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Resize:
    """A number that a module holds and that has to follow, such as that of attention heads.

    per_unit : what each unit that stays counts
    """

    module: str
    attribute: str
    per_unit: int


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that torch-pruning's dependency graph ties together.

    name : of the first layer that gives them
    units : the least that can go, as channels of the group that only go together: one channel;
        those at one place of every group of a grouped convolution; those of an attention head
    reason : why none of them goes; None where they may
    """

    name: str
    members: tuple[Member, ...]
    units: tuple[tuple[int, ...], ...]
    resizes: tuple[Resize, ...] = ()
    reason: str | None = None

    @property
    def givers(self) -> list[str]:
        """Layers that have these channels as outputs."""
        return list(dict.fromkeys(m.layer for m in self.members if m.outputs))

    @property
    def readers(self) -> list[Member]:
        """Layers that make others of these channels."""
        return [m for m in self.members if m.mixes and not m.outputs]

    def places(self, member: Member, unit: int) -> list[int]:
        """Which channels of a member one unit is."""
        return [place for channel in self.units[unit] for place in member.places[channel]]


def removal(chosen: Iterable[tuple[ChannelGroup, Collection[int]]]) -> Removal:
    """List what goes of each layer when these units of each group go."""
    sides: dict[str, tuple[set[int], set[int]]] = {}
    for group, units in chosen:
        for member in group.members:
            gone = {place for unit in units for place in group.places(member, unit)}
            if gone:
                sides.setdefault(member.layer, (set(), set()))[not member.outputs].update(gone)
    return {layer: (sorted(out), sorted(read)) for layer, (out, read) in sides.items()}
