"""What theory says of one segment: certificates, agreement with the line, path, law, transport."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import pairwise
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from pfc.files import expanded, read_json, write_json
from pfc.line import ENDS, End
from pfc.metrics import effective_depth
from pfc.profile.segment import KINDS, Position, Segment
from pfc.schema import TEXT, form_of, list_of, object_of, optional, rounded
from pfc.strict_json import sealed
from pfc.theory.geodesic import Agreement, Certificate, Theorem1, Theorem2
from pfc.theory.path import Path
from pfc.theory.separation import Law
from pfc.theory.turns import ZERO
from pfc.warning import renamed

if TYPE_CHECKING:
    import pandas as pd

    from pfc.profile.profile import Profile
    from pfc.theory.transport import Gap

FORMAT = "pfc-theory-1"
ENDS_IN_WORDS = {
    "measured": "the measured features",
    "means": "their class means",
    "etf": "the nearest simplex ETF",
}


@dataclass(frozen=True)
class Depth:
    """Effective depth on the straight line to the measured features (ours), beside that of the layers.

    Args:
        eps: The NCC error that is tolerated.
        t: The first t from which on PFC3 stays at least 1 - eps; `None` if it does not at the end.
        layer: The first layer whose position by the path reaches t; `None` if t is.
        position: Its position; NaN if there is none.
        measured: The layer of the segment from which on PFC3 stays so at the layers; `None` if none.
    """

    eps: float
    t: float | None
    layer: str | None
    position: float
    measured: str | None

    @classmethod
    def of(cls, segment: Segment, pfc3: Sequence[float], eps: float = 0.01) -> "Depth":
        """Of a segment whose layers have this PFC3; its curve is known."""
        t, position = segment.curves["measured"].effective_depth(eps), segment.position("path")
        at = None if t is None else next((l for l, s in enumerate(position) if s >= t), None)
        depth = effective_depth([1 - p for p in pfc3], eps)
        return cls(
            eps=eps,
            t=t,
            layer=None if at is None else segment.layers[at],
            position=math.nan if at is None else position[at],
            measured=None if depth is None else segment.layers[depth],
        )

    def __str__(self) -> str:
        t = "no t" if self.t is None else f"t = {_up(self.t)}"
        at = _up(self.position)
        reached = f", which {self.layer} (at {at}) is the first to reach"
        measured = "at no layer to the end" if self.measured is None else f"from {self.measured} on"
        return (
            "Effective depth: on the line to the measured features at least "
            f"{100 * (1 - self.eps):.12g} % of the samples are nearest to their own class mean from {t} "
            f"on{reached if self.layer else ''}; measured, they are {measured}."
        )


@dataclass(frozen=True, eq=False)
class Prediction:
    """What theory says of a segment, as verdicts with their numbers; prints itself.

    Args:
        layers: Names of the segment's layers.
        certificates: Theorems 1 and 2 on the straight line, for each of its ends.
        agreement: For each kind of position, how far the measured layers are from the line to the
            measured features.
        classes: Classes that have samples; with two PFC2 is 0 whatever they do.
        path: Length, straightness, energy and angles of the residual stream.
        laws: The law of data separation fitted to `"fuzziness"` (absent after one pass) and `"pfc1"`.
        depth: Effective depth on the line and measured; `None` after one pass.
        transport: Whether the map from the first to the last layer is an optimal transport; `None` if
            nobody asked.
    """

    layers: tuple[str, ...]
    certificates: Mapping[End, Certificate]
    agreement: Mapping[Position, Agreement]
    classes: int
    path: Path
    laws: Mapping[str, Law]
    depth: Depth | None = None
    transport: "Gap | None" = None

    @classmethod
    def of(cls, profile: "Profile", i: int = -1, transport: "Gap | None" = None) -> "Prediction":
        """Of a profile's segment, with its transport if that is known."""
        segment = profile.segment(i)
        pfc3 = profile.columns["pfc3"][segment.start :][: len(segment.layers)] if segment.curves else ()
        return cls(
            layers=segment.layers,
            certificates={end: segment.certify(end) for end in ENDS},
            agreement={kind: profile.agreement(kind, i=i) for kind in KINDS},
            classes=len(segment.count),
            path=segment.path(),
            laws={c: profile.law(c, i) for c in ("fuzziness", "pfc1") if c in profile.columns},
            depth=Depth.of(segment, pfc3) if segment.curves else None,
            transport=transport,
        )

    def table(self) -> "pd.DataFrame":
        """The certificates, one row for each end of the line.

        Returns:
            Columns: `align`, the cosine of Theorem 1's assumption; `pfc1_falls`, whether PFC1 falls
            everywhere, not so where it does not change; `pfc1_turns`; `pfc2_from`, t0 of Theorem 2, NaN
            where PFC2 does not change; `radius`, 1 - t0; `pfc2_turns`.
        """
        import pandas as pd

        rows = {
            end: {
                "align": c.theorem1.align,
                "pfc1_falls": c.theorem1.monotone and not c.theorem1.constant,
                "pfc1_turns": c.theorem1.turns,
                "pfc2_from": math.nan if c.theorem2.constant else c.theorem2.t0,
                "radius": math.nan if c.theorem2.constant else c.theorem2.radius,
                "pfc2_turns": c.theorem2.turns,
            }
            for end, c in self.certificates.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("end")

    def sentences(self) -> list[str]:
        """What was found, each in a plain sentence."""
        if not self.path.length > 0:
            nothing = ["Nothing moves between the layers: the line is a point, and theory says nothing."]
            return nothing if self.transport is None else [*nothing, str(self.transport)]
        found = [self._theorem(1, self._pfc1), self._theorem(2, self._pfc2)]
        if len(self.layers) > 2:  # the path of two layers is straight, whatever they do
            found += [self._agrees(), *self._of_path()]
        if self.depth is not None:
            found.append(str(self.depth))
        found += [_of_law(metric, law, len(self.layers)) for metric, law in self.laws.items()]
        return found if self.transport is None else [*found, str(self.transport)]

    def __str__(self) -> str:
        table = self._shown().to_string(float_format=_three, na_rep="-")
        return "\n".join([self._headline(), table, *self.sentences()])

    def __repr__(self) -> str:
        span = f"{self.layers[0]:.40} to {self.layers[-1]:.40}"
        return f"Prediction({span}: {len(self.layers)} layers, {self.classes} classes)"

    def _repr_html_(self) -> str:
        told = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.sentences())
        table: str = self._shown().to_html(float_format=_three, na_rep="-")
        return f"<p>{escape(self._headline())}</p>{table}<ul>{told}</ul>"

    def _headline(self) -> str:
        return f"What theory says of the straight line from {self.layers[0]} to {self.layers[-1]}:"

    def _shown(self) -> "pd.DataFrame":
        """The table as it is printed."""
        shown = self.table()
        for column in ("pfc1_turns", "pfc2_turns"):
            shown[column] = [_listed(turns) or "-" for turns in shown[column]]
        shown["pfc1_falls"] = [_falls(c.theorem1) for c in self.certificates.values()]
        return shown

    def save(self, path: str | FilePath, profile: "Profile") -> None:
        """Write all numbers and sentences as JSON; `load_transport` reads the transport again.

        Args:
            path: The file.
            profile: Whose prediction it is: the file keeps a checksum of its columns.
        """
        content = {"format": FORMAT, "profile": checksum(profile), **self.to_dict()}
        write_json(expanded(path), content)

    def to_dict(self) -> dict[str, Any]:
        """All numbers and sentences, as they are kept in a file."""
        return {
            "layers": list(self.layers),
            "certificates": {end: asdict(c) for end, c in self.certificates.items()},
            "agreement": {kind: asdict(a) for kind, a in self.agreement.items()},
            "path": self.path.to_dict(),
            "laws": {metric: asdict(law) for metric, law in self.laws.items()},
            "depth": None if self.depth is None else asdict(self.depth),
            "transport": None if self.transport is None else self.transport.to_dict(),
            "sentences": self.sentences(),
        }

    told = renamed("Prediction.told", "Prediction.to_dict")

    def _theorem(self, number: int, words: Callable[[End], str]) -> str:
        ends: tuple[End, End] = ("etf", "measured")
        told = [f"on the line to {ENDS_IN_WORDS[end]} {words(end)}" for end in ends]
        return f"Theorem {number}: {'; '.join(told)}."

    def _pfc1(self, end: End) -> str:
        theorem = self.certificates[end].theorem1
        if math.isnan(theorem.align):
            return "nothing is defined"
        if theorem.constant:
            return "PFC1 does not change"
        align = f" (align {theorem.align:+.3f})" if theorem.monotone else ""
        return f"PFC1 {_course(theorem)}{align}"

    def _pfc2(self, end: End) -> str:
        theorem = self.certificates[end].theorem2
        if math.isnan(self.certificates[end].theorem1.align):
            return "PFC2 is undefined"
        if self.classes == 2:
            return "PFC2 is 0 (two classes) everywhere"
        return "PFC2 does not change" if theorem.constant else f"PFC2 {_course(theorem)}"

    def _agrees(self) -> str:
        off = self.agreement["path"].off
        told = [f"{_percent(v)} of {m.upper()}'s change" for m, v in off.items() if math.isfinite(v)]
        if not told:
            return "Inner layers are not compared with the line: no metric changes, or none is defined."
        return f"Inner layers, placed by their path, stand off the line by {', '.join(told)}."

    def _of_path(self) -> list[str]:
        path = self.path
        some = path.over_samples("straightness")
        median = f" (median over samples {some:.3f})" if math.isfinite(some) else ""
        if not path.chord > ZERO * path.length:
            return ["Path: it ends where it began, so that it has no straightness."]
        told = [
            f"Path: straightness {path.straightness:.3f}{median}; energy "
            f"{path.speed * path.direction:.3g} times the least possible, {path.speed:.3g} from uneven "
            f"speed and {path.direction:.3g} from bends."
        ]
        turns = [(angle, i) for i, angle in enumerate(path.angles) if math.isfinite(angle)]
        if turns:
            angle, i = max(turns)
            told.append(f"Largest turn: {math.degrees(angle):.0f} degrees at {path.layers[i + 1]}.")
        return told


def load_transport(path: str | FilePath, profile: "Profile") -> "Gap | None":
    """Read the optimal transport that `Prediction.save` kept with a profile.

    Args:
        path: The file.
        profile: What was measured; a file of another profile is left out, with a warning.

    Returns:
        The verdict; `None` if there is no such file, none was computed, or the profile has no segment.

    Raises:
        ValueError: If the file is damaged, or of another format.
    """
    from pfc.theory.transport import Gap, restored

    path = expanded(path)
    if not path.exists() or not profile.segments:
        return None
    known = {"profile": TEXT, "transport": optional(form_of(Gap))}
    schema = object_of({"layers": list_of(TEXT), "sentences": list_of(TEXT)}, optional=known)
    content = read_json(path, FORMAT, schema)
    if content.get("profile") not in {None, checksum(profile)}:  # one of the two was written later
        message = f"{path} is of another profile, so its transport is left out: measure again"
        warnings.warn(message, stacklevel=2)
        return None
    numbers = content.get("transport")
    try:
        return None if numbers is None else restored(numbers)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def checksum(profile: "Profile") -> str:
    """What tells a profile from others."""
    return str(sealed({"layers": profile.layers, "columns": profile.columns})["checksum"])


def _falls(theorem: Theorem1) -> str:
    if theorem.constant:
        return "constant"
    return "yes" if theorem.monotone else "no"


def _course(theorem: Theorem1 | Theorem2) -> str:
    """Where a metric that changes falls and rises, in the order of t."""
    turns = theorem.turns
    if not turns:
        return "falls everywhere" if theorem.falls else "rises everywhere"
    ways = [
        "falls" if theorem.falls == (i % 2 == len(turns) % 2) else "rises" for i in range(len(turns))
    ]
    told = [f"{way} to t = {t}" for way, t in zip(ways, _told(turns), strict=True)]
    return f"{', '.join(told)} and {'falls' if theorem.falls else 'rises'} to the end"


def _of_law(metric: str, law: Law, layers: int) -> str:
    name = "fuzziness" if metric == "fuzziness" else metric.upper()
    if not math.isfinite(law.rate):
        return f"Law of data separation: {name} has no two values above zero to fit."
    some = (
        "" if law.layers == layers else f" of the {law.layers} of {layers} layers where it is above zero"
    )
    if not math.isfinite(law.half_life):
        return f"Law of data separation: {name}{some} does not change."
    half = f", halves every {law.half_life:.3g} layers" if law.half_life > 0 else ""
    fits = f" (correlation of its logarithm with depth {law.correlation:+.3f})" if law.layers > 2 else ""
    return (
        f"Law of data separation: {name}{some} changes by the factor {_factor(law.rate)} a layer"
        f"{half}{fits}."
    )


def _factor(rate: float) -> str:
    """A factor in the fewest digits, from three on, that tell it from 1."""
    texts = (f"{rate:.{digits}g}" for digits in range(3, 18))
    return next((text for text in texts if float(text) != 1), "1")


def _told(turns: tuple[float, ...]) -> list[str]:
    """The turns in the fewest digits, from three on, that keep them apart and inside (0, 1)."""
    texts = ([f"{t:.{digits}g}" for t in turns] for digits in range(3, 17))
    apart = (told for told in texts if all(a < b for a, b in pairwise([0.0, *map(float, told), 1.0])))
    return next(apart, [*map(repr, turns)])


def _listed(turns: tuple[float, ...]) -> str:
    return ", ".join(_told(turns))


def _up(t: float) -> str:
    """A time from which on something holds, in three digits, no earlier but for round-off."""
    return rounded(t * (1 - 1e-12), 3, up=True)


def _three(x: float) -> str:
    return f"{x:.3g}"


def _percent(part: float) -> str:
    """Two digits of a small one, all of a large one."""
    return f"{100 * part:.0f} %" if part >= 1 else f"{100 * part:.2g} %"
