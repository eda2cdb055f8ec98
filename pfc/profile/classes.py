"""What a profile keeps of classes and of a few samples: small, so that it is in every file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from pfc.pairs import nearest_others
from pfc.schema import Array, check_arrays

if TYPE_CHECKING:
    import pandas as pd

CLASSES = {  # P classes that have samples
    "number": Array("P", torch.int64),
    **{name: Array("P") for name in ("count", "scatter", "norm")},
    "nearest": Array("P", torch.int64),
    "cosine": Array("P", finite=False),
}
LATER = {  # after the second pass, and of classes that are not too many
    "hits": Array("P"),
    "gram": Array("P P", torch.float32, finite=False),  # float32 may not hold it
    "confusion": Array("P Q"),
}


@dataclass(frozen=True, eq=False)
class ClassGeometry:
    """The P classes that have samples, at one layer.

    Args:
        number: Of each class.
        count: Samples of each class.
        scatter: Summed squared distances of each class's samples to their mean.
        norm: Length of each class mean less the unweighted mean of the means.
        nearest: The other class whose mean is the nearest, the lowest of those at one distance.
        cosine: Of the angle between the two, seen from the mean of the means; NaN if one is that mean.
        hits: Samples of each class that are nearest to its own mean; `None` after one pass.
        gram: Inner products of the centred class means; `None` of many classes.
        confusion: Samples of each class by the class of the nearest mean; `None` of many classes, and
            after one pass. About the means of other data, a column for each class of those.
    """

    number: Int64[Tensor, " P"]
    count: Float64[Tensor, " P"]
    scatter: Float64[Tensor, " P"]
    norm: Float64[Tensor, " P"]
    nearest: Int64[Tensor, " P"]
    cosine: Float64[Tensor, " P"]
    hits: Float64[Tensor, " P"] | None = None
    gram: Float32[Tensor, "P P"] | None = None
    confusion: Float64[Tensor, "P Q"] | None = None

    @classmethod
    def of(
        cls,
        number: Int64[Tensor, " P"],
        count: Float64[Tensor, " P"],
        scatter: Float64[Tensor, " P"],
        M: Float64[Tensor, "P R"],
        most: int,
        hits: Float64[Tensor, " P"] | None = None,
        confusion: Float64[Tensor, "P Q"] | None = None,
    ) -> "ClassGeometry":
        """Read it from class means in any orthonormal coordinates; pairs of at most so many classes."""
        M = M - M.mean(0)
        norm = torch.linalg.vector_norm(M, dim=1)
        place = nearest_others(M)
        few = len(M) <= most
        return cls(
            number=number.cpu(),
            count=count.cpu(),
            scatter=scatter.cpu(),
            norm=norm.cpu(),
            nearest=number[place].cpu(),
            cosine=((M * M[place]).sum(1) / norm / norm[place]).cpu(),
            hits=None if hits is None else hits.cpu(),
            gram=(M @ M.mT).float().cpu() if few else None,
            confusion=confusion.cpu() if few and confusion is not None else None,
        )

    def table(self, exponent: int = 0, labels: Sequence[int] | None = None) -> "pd.DataFrame":
        """One row a class; the features are larger by this power of two than the numbers here say."""
        import pandas as pd

        def named(classes: Tensor) -> list[int]:
            return [k if labels is None else labels[k] for k in classes.tolist()]

        columns = {
            "count": self.count.long().tolist(),
            "scatter": (self.scatter * 4.0**exponent).tolist(),
            "norm": (self.norm * 2.0**exponent).tolist(),
            "nearest": named(self.nearest),
            "cosine": self.cosine.tolist(),
            "accuracy": [math.nan] * len(self.count)
            if self.hits is None
            else (self.hits / self.count).tolist(),
        }
        index = pd.Index(named(self.number), name="class")
        return pd.DataFrame(columns, index=index)

    def arrays(self, *, pairs: bool = True) -> dict[str, Tensor]:
        """All that is kept in a file; without what is of pairs of classes if not asked for."""
        left_out = set() if pairs else {"gram", "confusion"}
        return {n: part for n, part in vars(self).items() if part is not None and n not in left_out}

    @classmethod
    def restored(cls, arrays: Mapping[str, Tensor], where: str) -> "ClassGeometry":
        """The classes that a file keeps."""
        known = CLASSES | {name: form for name, form in LATER.items() if name in arrays}
        check_arrays(arrays, known, {}, where)
        number, nearest = arrays["number"], arrays["nearest"]
        if not bool((number.diff() > 0).all() & torch.isin(nearest, number).all()):
            raise ValueError(f"{where}number must ascend, and nearest be among them")
        return cls(**{name: arrays[name] for name in known})


@dataclass(frozen=True, eq=False)
class SamplePoints:
    """Where a fixed sample of the data lies at each layer, in two directions that the class means span.

    Args:
        labels: Class of each of the n samples, in an order that their inputs decide.
        points: Of each layer the coordinates of the samples, from the mean of the means.
        means: Of each layer the coordinates of the P class means.
        hashes: Of the inputs: the least of all, ascending, and beside each another one, by which other
            data are known to hold the same sample; `None` in files of earlier versions.
    """

    labels: Int64[Tensor, " n"]
    points: Mapping[str, Float32[Tensor, "n 2"]]
    means: Mapping[str, Float32[Tensor, "P 2"]]
    hashes: Int64[Tensor, "n 2"] | None = None

    def table(
        self, layer: str, exponent: int = 0, labels: Sequence[int] | None = None
    ) -> "pd.DataFrame":
        """One row a sample: its two coordinates and its class."""
        import pandas as pd

        x, y = (self.points[layer].double() * 2.0**exponent).unbind(1)
        named = [k if labels is None else labels[k] for k in self.labels.tolist()]
        return pd.DataFrame({"x": x.tolist(), "y": y.tolist(), "class": named})

    def arrays(self) -> dict[str, Tensor]:
        """All that is kept in a file."""
        of_layers = {f"points/{name}": part for name, part in self.points.items()}
        of_means = {f"means/{name}": part for name, part in self.means.items()}
        known = {} if self.hashes is None else {"hashes": self.hashes}
        return {"labels": self.labels, **known, **of_layers, **of_means}

    @classmethod
    def restored(cls, arrays: Mapping[str, Tensor], where: str) -> "SamplePoints":
        """The sample that a file keeps."""
        forms = {"labels": Array("n", torch.int64)}
        forms |= {"hashes": Array("n 2", torch.int64)} if "hashes" in arrays else {}
        parts: dict[str, dict[str, Tensor]] = {"points": {}, "means": {}}
        for key, array in arrays.items():
            kind, _, layer = key.partition("/")
            if kind in parts:
                forms[key] = Array("n 2" if kind == "points" else "P 2", torch.float32, finite=False)
                parts[kind][layer] = array
        check_arrays(arrays, forms, {}, where)
        if parts["points"].keys() != parts["means"].keys():
            raise ValueError(f"{where}points and means must be of the same layers")
        return cls(arrays["labels"], **parts, hashes=arrays.get("hashes"))
