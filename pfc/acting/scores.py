"""How familiar samples are, layer by layer: scores about the class means that a profile keeps."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pfc.acting.gauges import KINDS, prediction_depth, settled
from pfc.acting.heldout import refuse_shared, refuse_trained
from pfc.acting.margins import pool_of
from pfc.acting.reading import Read, Reader
from pfc.acting.unknown import BASELINES, auroc, orthogonality
from pfc.evaluation import undisturbed
from pfc.foreign import workers_told
from pfc.measuring.calling import place_of
from pfc.measuring.head import Classifier
from pfc.profile import Profile
from pfc.taps import unwrapped
from pfc.theory.coefficients import at_least

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of samples at the layers of a network; rows are samples in the order of the data.

    Args:
        kind: Which score.
        table: A number a sample and layer; NaN where it is not defined.
        nearest: The class of the nearest class mean of each sample at each layer.
        samples: Of each sample its `label`; `depth`, its prediction depth: the number of the first of
            the layers from which on it is nearest to the mean of its own class, counted from 0, and as
            many as there are layers where it is not at the last; and where the logits are known
            `answer`, the classifier's class, and the baselines `max softmax`, `max logit` and `energy`
            (the logarithm of the summed exponentials of the logits). Unknown samples have neither label
            nor depth.
        unknown: The same of unknown data, where these were given.
        auroc: Where unknown data were given, how well each layer's scores and the baselines tell known
            from unknown: `auroc`, 1 where all known samples are the more familiar, 0.5 by chance, with
            the ends `low` and `high` of DeLong's 95 % interval.
        nc5: Where unknown data were given, NC5 of each layer: `nc5` of the vectors as they are, and
            `centred` of those less the mean of the class means.
    """

    kind: str
    table: "pd.DataFrame"
    nearest: "pd.DataFrame"
    samples: "pd.DataFrame"
    unknown: "Scores | None" = None
    auroc: "pd.DataFrame | None" = None
    nc5: "pd.DataFrame | None" = None

    def hardest(self, n: int = 24) -> "pd.DataFrame":
        """The samples that are decided last: those of the greatest prediction depth.

        Of equal depths those come first that are nearest to a wrong mean at more of the layers, then
        those that the data give first.

        Args:
            n: How many at most.

        Returns:
            A row a sample, by its number in the data: `label`, `depth`, and `nearest`, the class of the
            nearest mean at the last layer at which that is not its own; its own where there is none.

        Raises:
            ValueError: If `n` is no whole number from 1 on, or these are unknown data, which have no
                classes.
        """
        at_least(1, n=n)
        if "label" not in self.samples:
            raise ValueError("unknown data have no classes of their own, and so no prediction depth")
        wrong = self.nearest.to_numpy() != self.samples["label"].to_numpy()[:, None]
        told = self.samples[["label", "depth"]].assign(wrong=wrong.sum(1))
        last = (self.samples["depth"].to_numpy() - 1).clip(0)
        told["nearest"] = self.nearest.to_numpy()[range(len(told)), last]
        order = told.sort_values(["depth", "wrong"], ascending=False, kind="stable")
        return order.head(n)[["label", "depth", "nearest"]]

    def summary(self) -> "pd.DataFrame":
        """What is typical of each layer, and how well it tells known from unknown data.

        Returns:
            A row a layer, and one a baseline where the logits are known: `median`, and `q05` and `q95`,
            between which nine of ten samples are; where unknown data were given the same of these,
            `unknown_median` and so on, with the columns of `auroc` and `nc5`. Samples of which a score
            is not defined are left out of the quantiles.
        """
        table = self._quantiles()
        if self.unknown is None or self.auroc is None or self.nc5 is None:
            return table
        return table.join([self.unknown._quantiles().add_prefix("unknown_"), self.auroc, self.nc5])

    def _quantiles(self) -> "pd.DataFrame":
        """Of the layers' scores and of the baselines."""
        known = self.table.join(self.samples[[name for name in BASELINES if name in self.samples]])
        found = known.quantile([0.05, 0.5, 0.95]).T
        return found.set_axis(["q05", "median", "q95"], axis=1).rename_axis("layer")

    def __repr__(self) -> str:
        beside = "" if self.unknown is None else f" and {len(self.unknown.table)} unknown"
        return f"Scores({self.kind!r}: {len(self.table)} samples{beside}, {self.table.shape[1]} layers)"


def scores(
    net: nn.Module,
    data: Iterable[Any],
    profile: Profile,
    kind: str = "cosine",
    *,
    layers: str | Sequence[str] | None = None,
    unknown: Iterable[Any] | None = None,
    limit: int | None = None,
    device: str | torch.device | None = None,
    classifier: Classifier = None,
    progress: bool = True,
) -> Scores:
    r"""How familiar samples are at each layer, by where they lie to the class means of a profile.

    With the class means $\mu_c$, their unweighted mean $g$, and the nearest mean $\mu_k$ of a sample's
    features $h$, a score is

    - `"cosine"`: $\max_c \cos(h - g, \mu_c - g)$, in [-1, 1];
    - `"distance"`: $\|h - \mu_k\| / \sqrt{S_k / n_k}$, in the root mean squared distance of the class's
      own samples to their mean; NaN where these coincide, as of a class of one sample;
    - `"span"`: $\|P(h - g)\| / \|h - g\|$ with the projection $P$ on the span of the $\mu_c - g$, in
      [0, 1]. NECO (arXiv 2310.06823) is such a share, too, but in the leading principal components of
      all training features, of which this span is what remains at collapse, and for some networks times
      the largest logit;
    - `"depth"`: the number of the first layer from which on, up to this one, the nearest mean is that of
      the same class: 0 where all layers agree. With a sample's own class in place of the last layer's it
      is its prediction depth, in `samples` of every kind.

    The cosine and the share are large of known samples, the distance and the depth small. One forward
    pass; kept are K x D numbers a layer and a few a sample and layer. One process computes it.

    Args:
        net: The network that was measured.
        data: Batches of the known classes, as for `measure`.
        profile: What was measured of it, with its class means: as `measure` gives it, a run's last one,
            or saved with `means=True`.
        kind: Which score.
        layers: Names or globs of measured layers; all if `None`.
        unknown: Batches of data of none of the classes, with labels, which are not used, or without:
            `x`, `(x,)`, `(x, y)` or a dict. Then `auroc` and `nc5` say how well the two are told apart.
        limit: Use at most this many samples of each.
        device: Where to run; the network's own device if `None`.
        classifier: What gives the logits, as for `measure`; found by itself if `None`.
        progress: Show a progress bar on the standard error.

    Returns:
        The scores.

    Raises:
        ValueError: If the profile has no class means or those of one class alone, they are another
            network's, there is no such kind or layer, a label has no class mean, or the unknown data are
            of another form, or more than a tenth of them are among the known or the measured ones.

    Examples:
        >>> import pfc
        >>> digits, _ = pfc.data.load("digits", limit=100), torch.manual_seed(0)
        >>> net = pfc.FCResNet(features=64, classes=10, width=16, blocks=2)
        >>> profile = pfc.measure(net, digits.batches(), progress=False)
        >>> scores(net, digits.batches(), profile, "span", progress=False)
        Scores('span': 100 samples, 3 layers)
    """
    _check(profile, kind)
    names = _chosen(profile, layers)
    reader = Reader(net, profile, names, kind, place_of(net, device), classifier)
    with workers_told(), undisturbed(unwrapped(net), reader.device, profile.about.get("precision")):
        known = reader.read(data, limit, "scores", labelled=True, progress=progress)
        if unknown is None:
            return _scores(kind, known)
        with _of_unknown():
            others = reader.read(unknown, limit, "unknown", labelled=False, progress=progress)
    _refuse_same(known, others, profile)
    tables = _scores(kind, known), _scores(kind, others, labelled=False)
    return _against(*tables, _nc5(profile, others))


def _check(profile: Any, kind: str) -> None:
    """Refuse a kind that there is not, and a profile that is about nothing that scores can be about."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    pool_of(profile)
    if (classes := int((next(iter(profile.moments.values())).count > 0).sum())) < 2:
        raise ValueError(f"scores need the means of at least 2 classes, the profile has {classes}")


def _chosen(profile: Profile, layers: str | Sequence[str] | None) -> list[str]:
    """The measured layers that are named, in the order of the forward pass."""
    globs = ["*"] if layers is None else [layers] if isinstance(layers, str) else list(layers)
    for glob in globs:
        if not any(name == glob or fnmatchcase(name, glob) for name in profile.layers):
            raise ValueError(f"no layer matches {glob!r}; measured are {', '.join(profile.layers)}")
    if not globs:
        raise ValueError(f"layers are none; measured are {', '.join(profile.layers)}")
    return [n for n in profile.layers if any(n == glob or fnmatchcase(n, glob) for glob in globs)]


def _scores(kind: str, read: Read, *, labelled: bool = True) -> Scores:
    """What was read, as tables."""
    import pandas as pd

    names, index = list(read.nearest), pd.RangeIndex(len(read.y), name="sample")
    nearest = torch.stack([torch.cat(each) for each in read.nearest.values()], dim=1)
    if KINDS[kind].formula is None:
        values = settled(nearest).double()
    else:
        values = torch.stack([torch.cat(each) for each in read.values.values()], dim=1)
    columns = {"label": read.y, "depth": prediction_depth(nearest, read.y)} if labelled else {}
    if read.logits:
        answers, *baselines = torch.cat(read.logits).unbind(1)
        columns |= {"answer": answers.long(), **dict(zip(BASELINES, baselines, strict=True))}
    return Scores(
        kind=kind,
        table=pd.DataFrame(values.numpy(), index=index, columns=names),
        nearest=pd.DataFrame(nearest.numpy(), index=index, columns=names),
        samples=pd.DataFrame({name: column.numpy() for name, column in columns.items()}, index=index),
    )


def _against(known: Scores, unknown: Scores, nc5: "pd.DataFrame") -> Scores:
    """Known beside unknown data, and how well they are told apart."""
    import pandas as pd

    sign = 1 if KINDS[known.kind].rises else -1
    pairs = {name: (sign * known.table[name], sign * unknown.table[name]) for name in known.table}
    both = [name for name in BASELINES if name in known.samples and name in unknown.samples]
    pairs |= {name: (known.samples[name], unknown.samples[name]) for name in both}
    rows = {name: auroc(a.to_numpy(), b.to_numpy()) for name, (a, b) in pairs.items()}
    areas = pd.DataFrame.from_dict(rows, orient="index", columns=["auroc", "low", "high"])
    return replace(known, unknown=unknown, auroc=areas.rename_axis("layer"), nc5=nc5)


def _nc5(profile: Profile, others: Read) -> "pd.DataFrame":
    """NC5 at every layer that was read."""
    import pandas as pd

    rows = {}
    for name, total in others.sums.items():
        moments, mean = profile.moments[name], total / len(others.y)
        both = [orthogonality(moments, mean, centre=centre) for centre in (False, True)]
        rows[name] = dict(zip(("nc5", "centred"), both, strict=True))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")


def _refuse_same(known: Read, others: Read, profile: Profile) -> None:
    """Refuse unknown data of which more than some duplicates are among the known or measured ones."""
    hashes, give = torch.cat(others.hashes), "data of none of the known classes"
    refuse_shared(hashes, torch.cat(known.hashes), "those of data", "the unknown data", give)
    refuse_trained(hashes, profile, "the unknown data", give)


@contextmanager
def _of_unknown() -> Iterator[None]:
    """Say of which data a message is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the unknown data can't be scored beside the known: {error}") from error
