"""How does a trained network's own last layer compare with the MUFM solution of the same data?

    python records/mufm/compare.py digits-features runs/digits-0 mnist-features runs/mnist

Each folder of this record holds the sweep of `pfc mufm --sweep --features RUN`, whose data are the
features of the first layer of the run's last segment. The last layer of the same segment is put beside
the solutions: how collapsed it is, and how far it has moved from the same data; both centred.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pfc import features
from pfc.files import write_json, write_text
from pfc.theory.collapse import collapse, cosine
from pfc.training import Run

HERE = Path(__file__).parent
NUMBERS = ("pfc1", "pfc2", "pfc3", "cosine", "moved", "size")


def network(run: Run) -> dict[str, Any]:
    """The last layer of the last segment against its first."""
    images, net = run.data(), run.network()
    segment = run.profiles[max(run.profiles)].segment()
    ends = (segment.layers[0], segment.layers[-1])
    found, y = features(net, images.batches(), list(ends), progress=False)
    X, H = (found[name].double() for name in ends)
    X, H = X - X.mean(0), H - H.mean(0)
    row = collapse(H, y)
    return {
        "layer": ends[1],
        **{metric: getattr(row, metric) for metric in ("pfc1", "pfc2", "pfc3")},
        "cosine": cosine(H, X),
        "moved": float((H - X).norm() / X.norm()),
        "size": float(H.norm() / X.norm()),
    }


def at(solutions: Sequence[dict[str, Any]], key: str, value: float) -> dict[str, float] | None:
    """The solutions' numbers where `key` has a value, between neighbours on a logarithmic lambda."""
    lams = np.log10([row["lam"] for row in solutions])
    values = np.array([row[key] for row in solutions])
    order = values.argsort()
    if not values.min() <= value <= values.max():
        return None
    where = float(np.interp(value, values[order], lams[order]))
    told = {name: float(np.interp(where, lams, [row[name] for row in solutions])) for name in NUMBERS}
    return {"lam": 10**where, **told}


def table(folder: str, run: str) -> Iterator[str]:
    """The data, the network, and the solutions as far moved and as collapsed as it is."""
    sweep = json.loads((HERE / folder / "figure5.json").read_text())
    own = network(Run(run))
    rows: dict[str, Any] = {"the data": {**sweep["data"], "cosine": 1.0, "moved": 0.0, "size": 1.0}}
    rows[f"the network, {own.pop('layer')}"] = own
    for key, told in (("moved", "as far from the data"), ("pfc1", "as small a PFC1")):
        rows[f"MUFM with {told}"] = at(sweep["solutions"], key, own[key])
    write_json(HERE / folder / "network.json", rows)
    yield f"### {sweep['settings']['data'].replace(Path(run).name, 'the network', 1)}"
    yield ""
    yield f"| | lambda | {' | '.join(name.upper() if 'pfc' in name else name for name in NUMBERS)} |"
    yield "| --- " * (len(NUMBERS) + 2) + "|"
    for name, row in rows.items():
        if row is None:
            yield f"| {name} | outside the sweep |" + " |" * len(NUMBERS)
            continue
        lam = f"{row['lam']:.2g}" if "lam" in row else ""
        yield f"| {name} | {lam} | {' | '.join(f'{row[n]:.4g}' for n in NUMBERS)} |"
    yield ""


def main(pairs: Sequence[str]) -> None:
    """Write the tables behind the notes."""
    notes = (HERE / "NOTES.md").read_text(encoding="utf-8").rstrip()
    lines = [notes, "", "## The trained networks beside the solutions", ""]
    for folder, run in zip(pairs[::2], pairs[1::2], strict=True):
        lines += table(folder, run)
    write_text(HERE / "README.md", "\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) < 3 or len(sys.argv) % 2 == 0:
        sys.exit("usage: python records/mufm/compare.py FOLDER RUN [FOLDER RUN...]")
    main(sys.argv[1:])
