"""The samples that a run's network decides last, as a picture, where its data are at hand."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from pfc.acting.scores import scores
from pfc.data.images import Images
from pfc.data.loading import bundled, subset
from pfc.figures import contact_sheet
from pfc.files import expanded
from pfc.report.pictures import picture
from pfc.report.sources import Source
from pfc.training import Run

if TYPE_CHECKING:
    import pandas as pd

LIMIT = 2000  # images that are looked through; ours, as is the next
SHOWN = 24


def sheet(source: Source) -> str:
    """The picture and what it shows, as HTML; empty where data, weights or means are not at hand."""
    run, last = source.run, source.last
    found = None if run is None or not last.moments or not _at_hand(run) else _hardest(run)
    if found is None:
        return ""
    images, hardest = found
    figure = contact_sheet(images.images, hardest, layers=last.layers, classes=images.classes)
    never = int((hardest["depth"] == len(last.layers)).sum())
    told = (
        f"{len(hardest)} of {len(images.labels)} images, each with its class, the class whose mean it "
        "was last nearest to in its stead, and the number of layers before it is nearest to its own for "
        f"good; {never} of them are not even at the last layer."
    )
    words = f"The {len(hardest)} images of {images.spec} that {source.name} decides last"
    return (
        '<details class="sheet"><summary>Which samples are decided last</summary>'
        f"<p>{told}</p>{picture(figure, words)}</details>"
    )


def _hardest(run: Run) -> "tuple[Images, pd.DataFrame] | None":
    """The images that were looked through, and which of them the network decides last."""
    epoch = max(run.profiles)
    try:
        with warnings.catch_warnings(action="ignore"):  # of the data: its training has told them
            images, net = run.data(), run.network(epoch)
            images = subset(images, min(LIMIT, len(images.labels)))
        found = scores(net, images.batches(), run.profiles[epoch], progress=False)
    except ValueError:  # the data have changed, or the weights of this epoch were not kept
        return None
    return images, found.hardest(SHOWN)


def _at_hand(run: Run) -> bool:
    """Whether the data of a run lie here, so that nothing is fetched."""
    spec = (run.config.get("data") or {}).get("spec")
    return spec is not None and (bundled(spec) or expanded(Path(spec)).is_dir())
