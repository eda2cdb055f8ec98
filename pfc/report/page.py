"""The page of runs and profiles: one HTML file that needs nothing beside itself."""

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from importlib import import_module
from importlib.resources import files as resources
from pathlib import Path
from string import Template

from pfc.files import check_place, expanded, write_text
from pfc.profile import Prediction
from pfc.profile.page_data import block
from pfc.report import data, words
from pfc.report.acting import acting
from pfc.report.comparison import of_sources
from pfc.report.hardest import sheet
from pfc.report.sources import Source, sources

SCRIPTS = [f"{name}.js" for name in ("state", "scales", "charts", "geometry", "numbers", "start")]
FEW = 2  # runs whose theory is unfolded at once; ours


def write(paths: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one self-contained page of runs and profiles, to be opened in any browser.

    It shows the verdict, what theory says, every metric over layers and over epochs beside the straight
    line's prediction, cosines and confusion of the class means, maps of them, and how to make each run
    again. It loads nothing: scripts, styles and numbers are in the file. `pfc.load` reads the numbers of
    the page back.

    Args:
        paths: Folders of runs, .json files of profiles, and globs of them; or one of these.
        out: The file, which ends in .html; by default `report.html` in the run's folder, or beside
            the profile, and of several in the current folder.

    Returns:
        The file.

    Raises:
        ValueError: If there is no run, a file of one is damaged, or `out` is a folder or no .html file.

    Examples:
        >>> import pfc, tempfile
        >>> X, y = [[k % 7, k % 5 + k % 2] for k in range(70)], [0, 1] * 35
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     profile = pfc.measure_features({"x": X}, y, progress=False)
        ...     profile.save(f"{folder}/x.json")
        ...     page = write(f"{folder}/x.json")
        ...     print(page.name, pfc.load(page)["x"][0].columns["pfc3"])
        report.html (0.6,)
    """
    found = sources([paths] if isinstance(paths, str | Path) else paths)
    if not found:
        raise ValueError("a report needs a run's folder or a profile's .json file, got none")
    path = _default(found) if out is None else expanded(out)
    if path.suffix.lower() not in {".html", ".htm"}:
        raise ValueError(f"a report's path ends in .html, got {path}")
    check_place(path)
    write_text(path, html(found))
    return path


def _default(found: Sequence[Source]) -> Path:
    """Where the page of these stands if nobody says."""
    if len(found) > 1:
        return Path("report.html")
    return (found[0].path if found[0].run is not None else found[0].path.parent) / "report.html"


def html(found: Sequence[Source]) -> str:
    """The page, as text."""
    version = import_module("pfc").__version__  # of the package above, which imports what is below it
    script = f'"use strict";\n{{\n{"".join(map(_own, SCRIPTS))}}}\n'
    style, page = _own("report.css"), _own("report.html")
    content = {
        "version": version,
        "columns": data.columns(found),
        "runs": [data.of_source(source) for source in found],
    }
    return Template(page).substitute(
        title=escape(_title(found)),
        hash=_hash(script),
        style=style,
        compared=_compared(found),
        verdicts="".join(_article(i, each, len(found) <= FEW) for i, each in enumerate(found)),
        made="".join(_made(source) for source in found),
        version=version,
        data=block(content),
        script=script,
    )


def _own(name: str) -> str:
    """A file of the package, scripts and styles without indents and lines of comment."""
    text = (resources("pfc.report") / "browser" / name).read_text(encoding="utf-8")
    return text if name.endswith(".html") else re.sub(r"(?m)^\s*(//.*\n)?", "", text)


def _hash(script: str) -> str:
    """By which a browser knows the page's own script, and runs no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _title(found: Sequence[Source]) -> str:
    names = ", ".join(source.name for source in found[:3])
    return names if len(found) <= 3 else f"{names} and {len(found) - 3} more"


def _article(i: int, source: Source, unfolded: bool) -> str:
    """What was found of one run."""
    verdict, predictions = words.verdict(source), words.predictions(source)
    lead = "".join(f"<p>{escape(sentence)}</p>" for sentence in verdict)
    theory = [_theory(p, source.name, unfolded and p is predictions[-1]) for p in reversed(predictions)]
    return (
        f'<article class="run"><h2><span class="key" data-run="{i}"></span>{escape(source.name)}</h2>'
        f'<div class="verdict">{lead}</div>{words.defined([*words.tiles(source)], "tiles")}'
        f"{''.join(theory)}{acting(source, unfolded=unfolded)}{sheet(source)}</article>"
    )


def _compared(found: Sequence[Source]) -> str:
    """What differs between the runs, and all differences in a table."""
    comparison = of_sources(found)
    if comparison is None:
        return ""
    notes = [f"{note[0].upper()}{note[1:]}." for note in comparison.notes()]
    told = comparison.table().drop(columns=[comparison.column(group) for group in comparison.groups])
    rows = told.dropna(axis=1, how="all").unstack("metric", sort=False)  # no interval of single networks
    table = re.sub(r">\s+<", "><", rows.to_html(float_format="{:.4g}".format, na_rep="-", border=0))
    return (
        '<section class="compared" aria-labelledby="h-compared"><h2 id="h-compared">What differs</h2>'
        f"{words.listed([*comparison.sentences(), *notes], 'differences')}"
        "<details><summary>Differences layer by layer</summary>"
        '<div class="wide" tabindex="0" role="region" aria-label="Differences layer by layer">'
        f"{table}</div></details></section>"
    )


def _theory(prediction: Prediction, name: str, unfolded: bool) -> str:
    """What theory says of one segment."""
    span = escape(f"{prediction.layers[0]} to {prediction.layers[-1]}")
    return (
        f"<details{' open' * unfolded}><summary>What theory says, {span}</summary>"
        f"{words.listed(prediction.sentences(), 'theory')}"
        f'<div class="wide" tabindex="0" role="region" aria-label="Certificates of {escape(name)}, '
        f'{span}">{words.certificates(prediction)}</div></details>'
    )


def _made(source: Source) -> str:
    """How one run was made."""
    told = words.defined([*words.facts(source)], "facts")
    return f"<section><h3>{escape(source.name)}</h3>{told}</section>"
