"""`pfc compare`: what differs between runs, or between groups of them with different seeds."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from torch import nn

from pfc import figures as draw
from pfc.files import check_place, expanded, write_text
from pfc.measuring import cka as layers_alike
from pfc.report.comparison import Comparison
from pfc.report.comparison import compare as compare_groups
from pfc.report.sources import Source, sources
from pfc.training import Run
from pfc.warning import warn

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def compare(
    *groups: str,
    metrics: Annotated[list[str] | None, Parameter(negative_iterable="", consume_multiple=True)] = None,
    names: Annotated[list[str] | None, Parameter(negative_iterable="", consume_multiple=True)] = None,
    level: float = 0.95,
    cka: bool = False,
    samples: int = 1_000,
    data: str | None = None,
    out: Path | None = None,
) -> None:
    """Compare runs or profiles, or groups of runs with different seeds, layer by layer.

    Args:
        groups: Two or more: a run's folder, a profile's .json file, or a quoted glob such as
            "runs/wd0-*", whose matches are the seeds of one group. Differences are from the first.
        metrics: Columns of the profiles' tables; PFC1-3 if not given.
        names: What the groups are called, one each; by default the last parts of their paths.
        level: Of the intervals over seeds; seeds are paired where both groups have the same ones.
        cka: Also say how alike the layers of the first two groups' first runs are, by linear CKA; takes
            forward passes of both networks on the first one's data.
        samples: Of CKA, at most 5000.
        data: Where the first run's data lie now, if they have been moved.
        out: Folder for the figures and the tables as CSV; nothing is written if not given.

    Raises:
        ValueError: If an argument has no meaning.
    """
    if data is not None and not cka:
        raise ValueError("--data are those that both networks are shown for --cka: give both")
    found = compare_groups(*groups, names=names, level=level)
    found.table(metrics)  # refuses metrics that not all have
    pair = [_with_network(sources([group])[0]) for group in groups[:2]] if cka else []
    figure = None
    if out is not None:
        check_place(expanded(out) / "compare.csv")
        figure = draw.compared({g.name: g.profiles for g in found.groups}, metrics=metrics)
    print(found.told(metrics))
    alike = _alike(pair, found, samples, data) if cka else None
    if out is not None and figure is not None:
        print(*_written(expanded(out), found, metrics, figure, alike), sep="\n")


def _with_network(source: Source) -> tuple[Run, nn.Module]:
    """A run and its network; what keeps none is refused."""
    if source.run is None:
        raise ValueError(f"--cka needs networks, so runs' folders, not {source.path}")
    return source.run, source.run.network()


def _alike(
    pair: Sequence[tuple[Run, nn.Module]], found: Comparison, samples: int, data: str | None
) -> "pd.DataFrame":
    """Linear CKA of two runs' networks on the first one's data, printed."""
    (first, a), (second, b) = pair
    images, constants = first.data(spec=data), second.config["data"]["normalisation"]
    own = (images.normalisation.mean, images.normalisation.std)
    if own != tuple(tuple(constants[name]) for name in ("mean", "std")):
        warn(f"{second.folder} was trained on images of another mean and deviation", UserWarning)
    alike = layers_alike(a, b, images.batches(), limit=samples)
    names, used = [group.name for group in found.groups[:2]], alike.attrs["samples"]
    print(f"Linear CKA of {names[0]} (rows) and {names[1]} (columns), {used:,} samples:")
    print(alike.to_string(float_format="{:.2f}".format, na_rep="-"))
    return alike


def _written(
    out: Path,
    found: Comparison,
    metrics: Sequence[str] | None,
    figure: "Figure",
    alike: "pd.DataFrame | None",
) -> Iterator[Path]:
    """Tables as CSV, and figures."""
    write_text(table := out / "compare.csv", found.table(metrics).to_csv())
    yield table
    yield from draw.save(figure, out / "compare")
    if alike is not None:
        write_text(table := out / "cka.csv", alike.to_csv())
        yield table
        names = [group.name for group in found.groups[:2]]
        yield from draw.save(draw.similarity(alike, names=names), out / "cka")
