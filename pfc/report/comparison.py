"""What differs between runs, or between groups of runs with different seeds."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from pfc.files import expanded
from pfc.intervals import Interval, student, welch
from pfc.profile import Profile
from pfc.profile.columns import COLUMNS, PFC
from pfc.profile.verdict import same
from pfc.report.groups import LAST, Group, measured_otherwise
from pfc.report.sources import Source, short_names, sources
from pfc.warning import warn

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two groups or more beside one another; differences are from the first.

    Args:
        groups: What is compared.
        level: Of the intervals over seeds.
    """

    groups: tuple[Group, ...]
    level: float = 0.95

    @cached_property
    def layers(self) -> list[str]:
        """Layers that all have, and the last ones where they are called otherwise."""
        first, *others = (group.layers for group in self.groups)
        common = [name for name in first if all(name in other for other in others)]
        last = {profile.layers[-1] for group in self.groups for profile in group.profiles}
        return common if len(last) == 1 else [*common, LAST]

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics that all have."""
        known = [profile.columns for group in self.groups for profile in group.profiles]
        return [metric for metric in COLUMNS if all(metric in columns for columns in known)]

    def table(self, metrics: Sequence[str] | None = None) -> "pd.DataFrame":
        """Metrics at the layers that all have.

        Args:
            metrics: Columns of the profiles' tables; by default PFC1-3.

        Returns:
            One row for each metric and layer. Columns: the mean of each group over its seeds; then for
            each group but the first its `difference` from the first, and the ends `low` and `high` of
            the difference's interval over seeds, NaN where a group has one network alone. Seeds are
            paired where both groups have the same ones, else the interval is Welch's.

        Raises:
            ValueError: If a metric is unknown, or not all have it.
        """
        import pandas as pd

        rows = {
            (metric, layer): self._row(layer, metric)
            for metric in self._chosen(metrics)
            for layer in self.layers
        }
        index = pd.MultiIndex.from_tuples(rows, names=["metric", "layer"])
        return pd.DataFrame([*rows.values()], index=index)

    def _chosen(self, metrics: Sequence[str] | None) -> list[str]:
        if metrics is None:
            return [metric for metric in PFC if metric in self.metrics]
        if not metrics or {*metrics} - {*self.metrics}:
            asked = ", ".join(metrics) or "none"
            raise ValueError(f"metrics must be some of {', '.join(self.metrics)}, got {asked}")
        return [*metrics]

    def _row(self, layer: str, metric: str) -> dict[str, float]:
        first, *others = self.groups
        row: dict[str, float] = {self.column(g): mean(g.values(metric, layer)) for g in self.groups}
        for group in others:
            of = "" if len(others) == 1 else f" of {group.name}"
            a, b = (each.values(metric, layer) for each in (first, group))
            row[f"difference{of}"] = _apart(mean(a), mean(b))
            row[f"low{of}"], row[f"high{of}"] = self._interval(first, group, a, b)
        return row

    def column(self, group: Group) -> str:
        """What the column of a group's means is called.

        Args:
            group: One of those compared.

        Returns:
            Its name; "mean of" it where another column is called so.
        """
        taken = ("difference", "low", "high")
        clash = group.name in taken or group.name.startswith(tuple(f"{each} of " for each in taken))
        return f"mean of {group.name}" if clash else group.name

    def _interval(self, a: Group, b: Group, of_a: Sequence[float], of_b: Sequence[float]) -> Interval:
        """Of the difference of two groups' means."""
        if (order := a.paired(b)) is None:
            return welch(of_a, of_b, self.level)
        apart = [of_b[j] - of_a[i] for i, j in enumerate(order)]
        return student(apart, self.level)

    def summary(self) -> "pd.DataFrame":
        """One row a group.

        Returns:
            Columns: `networks`; the means of accuracy, of `effective_depth` (an index into the layers;
            NaN where a network has none), of `layers`, of the last segment's `straightness`, and of
            PFC1-3 at the last layer.
        """
        import pandas as pd

        return pd.DataFrame.from_dict(
            {group.name: dict(self._numbers(group)) for group in self.groups}, orient="index"
        ).rename_axis("group")

    def _numbers(self, group: Group) -> Iterator[tuple[str, float]]:
        yield "networks", len(group.profiles)
        for name, number in NUMBERS.items():
            yield name, mean(number(profile) for profile in group.profiles)
        for metric in PFC:
            if metric in self.metrics:
                yield metric, mean(p.columns[metric][-1] for p in group.profiles)

    def sentences(self) -> list[str]:
        """What differs at the last layer, a sentence for each group but the first."""
        return [self._sentence(group) for group in self.groups[1:]]

    def _sentence(self, group: Group) -> str:
        first, layer = self.groups[0], self.layers[-1]
        told = [self._told(metric, layer, first, group) for metric in self._chosen(None)]
        at = "At their last layers" if layer == LAST else f"At {layer}"
        return f"{at}, {group.name} against {first.name}{self._seeds(group)}: {'; '.join(told)}."

    def _seeds(self, group: Group) -> str:
        """How sure the differences are."""
        first, sizes = self.groups[0], [len(each.profiles) for each in (self.groups[0], group)]
        if single := [each.name for each in (group, first) if len(each.profiles) < 2]:
            are = "are single networks" if len(single) > 1 else "is a single network"
            return f" ({' and '.join(single)} {are}: nothing is known of other seeds)"
        level = f" ({100 * self.level:g} % intervals over"
        if first.paired(group) is not None:
            return f"{level} {sizes[0]} paired seeds)"
        word = "seeds" if first.alike and group.alike else "networks"
        return f"{level} {sizes[0]} and {sizes[1]} {word})"

    def notes(self) -> list[str]:
        """What a reader must know: unfinished runs, networks or measurements that differ otherwise.

        Returns:
            A sentence each, without a full stop.
        """
        own = [note for group in self.groups for note in group.notes()]
        return [*own, *measured_otherwise(self.groups)]

    def _told(self, metric: str, layer: str, a: Group, b: Group) -> str:
        """A metric of two groups: more collapsed, less, or no different."""
        of_a, of_b = a.values(metric, layer), b.values(metric, layer)
        both = f"{mean(of_b):.4g} against {mean(of_a):.4g}"
        apart, (low, high) = _apart(mean(of_a), mean(of_b)), self._interval(a, b, of_a, of_b)
        name, sure = metric.upper(), not math.isnan(low)
        if math.isnan(apart):
            return f"{name} is not known of both"
        if same(COLUMNS[metric], mean(of_a), mean(of_b)) or (sure and low <= 0 <= high):
            beyond = " beyond what seeds do" if sure else ""
            return f"{name} does not differ{beyond} ({both})"
        more = "more" if (apart > 0) == COLUMNS[metric].rises else "less"
        interval = f", difference {apart:+.3g} in {low:+.3g} to {high:+.3g}" if sure else ""
        return f"{more} collapsed by {name} ({both}{interval})"

    def told(self, metrics: Sequence[str] | None = None) -> str:
        """Both tables and the sentences as text.

        Args:
            metrics: As for `table`.

        Returns:
            What `print` shows.
        """
        frames = (self.summary(), self.table(metrics))
        texts = [frame.to_string(float_format="{:.4g}".format, na_rep="-") for frame in frames]
        return "\n".join([*texts, *self.sentences()])

    def __str__(self) -> str:
        return self.told()


def _apart(a: float, b: float) -> float:
    """How much larger `b` is; nothing where both are infinite."""
    return 0.0 if a == b else b - a


def _effective_depth(profile: Profile) -> float:
    depth = profile.effective_depth() if "pfc3" in profile.columns else None
    return math.nan if depth is None else float(depth)


def _straightness(profile: Profile) -> float:
    return profile.segment().path().straightness if profile.segments else math.nan


def _accuracy(profile: Profile) -> float:
    return math.nan if profile.accuracy is None else profile.accuracy


NUMBERS: Mapping[str, Callable[[Profile], float]] = {
    "accuracy": _accuracy,
    "effective_depth": _effective_depth,
    "layers": lambda profile: len(profile.layers),
    "straightness": _straightness,
}


def compare(
    *groups: str | Path | Profile | Sequence[Profile],
    names: Sequence[str] | None = None,
    level: float = 0.95,
) -> Comparison:
    """Compare runs or profiles, or groups of them with different seeds.

    Args:
        groups: Two or more: a run's folder or a profile's .json file; a glob of such, whose matches are
            the seeds of one group; a profile, or profiles of several seeds.
        names: What the groups are called; by default their paths' last parts, or letters.
        level: Of the intervals over seeds, in (0, 1).

    Returns:
        The comparison, which prints itself.

    Raises:
        ValueError: If there are fewer than two groups, a group is empty, nothing is found at a path, or
            names do not tell the groups apart.

    Examples:
        >>> import pfc
        >>> X, y = [[k % 7, k % 5 + k % 2] for k in range(70)], [0, 1] * 35
        >>> a, b = (pfc.measure_features({"x": X[i:]}, y[i:], progress=False) for i in (0, 2))
        >>> compare(a, b, names=("all", "fewer")).sentences()[0][:24]
        'At x, fewer against all '
    """
    if len(groups) < 2:
        raise ValueError(f"need at least two groups to compare, got {len(groups)}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), such as 0.95, got {level}")
    found = _groups(groups)
    called = [group.name for group in found] if names is None else list(names)
    if len(called) != len(found) or len({*called}) < len(called):
        raise ValueError(f"names must be {len(found)} different ones, got {', '.join(called)}")
    renamed = (replace(group, name=name) for name, group in zip(called, found, strict=True))
    comparison = Comparison(tuple(renamed), level)
    for note in comparison.notes():
        warn(note, UserWarning)
    return comparison


def of_sources(found: Sequence[Source]) -> Comparison | None:
    """Compare what differs in more than its seed; `None` if there is nothing to compare."""
    alike: dict[str, list[Source]] = {}
    for source in found:
        alike.setdefault(source.kind or str(source.path), []).append(source)
    groups = [Group.of(_title(members), members) for members in alike.values()]
    return Comparison(tuple(groups)) if len(groups) > 1 else None


def _title(members: Sequence[Source]) -> str:
    more = len(members) - 1
    return f"{members[0].name}{f' and {more} more of other seeds' if more else ''}"


def _groups(given: Sequence[Any]) -> list[Group]:
    """The groups, each under a name that tells it from the others."""
    members = [sources([each]) if isinstance(each, str | Path) else None for each in given]
    paths = [
        found[0].path if len(found) == 1 else expanded(each)
        for each, found in zip(given, members, strict=True)
        if found is not None
    ]
    names = iter(short_names(paths))
    return [
        _of_profiles(each, chr(ord("a") + i) if i < 26 else str(i))
        if found is None
        else Group.of(next(names), found)
        for i, (each, found) in enumerate(zip(given, members, strict=True))
    ]


def _of_profiles(given: Any, name: str) -> Group:
    profiles = (given,) if isinstance(given, Profile) else given
    profiles = tuple(profiles) if isinstance(profiles, Iterable) else (profiles,)
    if not profiles or not all(isinstance(each, Profile) for each in profiles):
        kinds = ", ".join(sorted({type(each).__name__ for each in profiles})) or "nothing"
        raise ValueError(f"a group is of profiles, or a path of runs, got {kinds}")
    return Group(name, profiles, (None,) * len(profiles))
