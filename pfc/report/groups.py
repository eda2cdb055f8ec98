"""Groups of networks that are compared: one with each seed, or a single one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pfc.profile import Profile
from pfc.report.sources import Source

LAST = "last layer"  # the row of networks whose last layers have different names
HOW = ("weighting", "pool", "means", "passes")  # of measuring: what must be the same to compare


@dataclass(frozen=True, eq=False)
class Group:
    """Networks that differ in their seed alone, or one network.

    Args:
        name: What it is called.
        profiles: One a network.
        seeds: Of each; `None` where it is not known.
        members: The runs behind them; empty of profiles that were given as they are.
    """

    name: str
    profiles: tuple[Profile, ...]
    seeds: tuple[int | None, ...]
    members: tuple[Source, ...] = ()

    @classmethod
    def of(cls, name: str, members: Sequence[Source]) -> "Group":
        """Of runs, their last profiles."""
        seeds = tuple(member.seed for member in members)
        return cls(name, tuple(member.last for member in members), seeds, tuple(members))

    @property
    def layers(self) -> list[str]:
        """Layers that all have, in the order of the first."""
        first, *others = self.profiles
        return [name for name in first.layers if all(name in other.layers for other in others)]

    @property
    def epochs(self) -> list[int]:
        """At which the networks were measured, where that is known."""
        return [max(member.profiles) for member in self.members if member.run is not None]

    @property
    def mixed(self) -> bool:
        """Whether its networks are known to differ in more than their seed."""
        return len({member.kind for member in self.members} - {None}) > 1

    @property
    def repeated(self) -> bool:
        """Whether some of them have the same seed."""
        known = [seed for seed in self.seeds if seed is not None]
        return len({*known}) < len(known)

    @property
    def alike(self) -> bool:
        """Whether they may stand for seeds."""
        return not (self.mixed or self.repeated)

    def values(self, metric: str, layer: str) -> list[float]:
        """A metric at a layer, of each network."""
        at = [-1 if layer == LAST else p.layers.index(layer) for p in self.profiles]
        return [p.columns[metric][l] for p, l in zip(self.profiles, at, strict=True)]

    def paired(self, other: "Group") -> list[int] | None:
        """Which of the other's networks has the seed of each of these; `None` if not all have one."""
        known = {seed: i for i, seed in enumerate(other.seeds)}
        if None in self.seeds or not (self.alike and other.alike) or {*self.seeds} != {*known}:
            return None
        return [known[seed] for seed in self.seeds]

    def notes(self) -> Iterator[str]:
        """What a reader of its mean must know."""
        if self.mixed:
            yield f"the networks of {self.name} differ in more than their seed: {self._how()}"
        elif self.repeated:
            yield f"some networks of {self.name} have the same seed"
        for member in self.members:
            if member.unfinished:
                yield f"{member.name} has reached {member.unfinished}"

    def _how(self) -> str:
        """In what the networks differ, by name."""
        each = [member.settings for member in self.members]
        names = dict.fromkeys(name for settings in each for name in settings)
        return ", ".join(n for n in names if any(one.get(n) != each[0].get(n) for one in each))


def measured_otherwise(groups: Sequence[Group]) -> Iterator[str]:
    """What differs in how the networks of all groups were measured."""
    every = [profile for group in groups for profile in group.profiles]
    for name in HOW:
        if len(values := dict.fromkeys(profile.about.get(name) for profile in every)) > 1:
            yield f"the profiles differ in {name}: {', '.join(map(str, values))}"
    epochs = sorted({epoch for group in groups for epoch in group.epochs})
    if len(epochs) > 1:
        yield f"the networks were measured at different epochs: {', '.join(map(str, epochs))}"
