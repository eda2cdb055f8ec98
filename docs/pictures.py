"""Make the pictures of the pages: run the Python blocks of a page, keep what `figure` holds.

`python docs/pictures.py [PAGE ...]` writes, for every picture of a page that stands above a block, the
figure that this block leaves in the variable `figure`.
"""

import re
import sys
from pathlib import Path

import pfc

DOCS = Path(__file__).parent
PARTS = re.compile(
    r"!\[[^\]]*\]\((pictures/[\w-]+\.png)\)|^```python\n(.*?)^```", re.DOTALL | re.MULTILINE
)


def draw(page: Path) -> None:
    """Run a page's blocks in order, and keep the figures of those that stand under a picture."""
    known: dict[str, object] = {}
    picture = None
    for found in PARTS.finditer(page.read_text()):
        if found[1]:
            picture = found[1]
            continue
        exec(compile(found[2], page.name, "exec"), known)
        if picture is not None:
            print(*pfc.figures.save(known["figure"], DOCS / picture))
            picture = None


if __name__ == "__main__":
    for name in sys.argv[1:] or ("gallery.md", "columns.md", "scores.md"):
        draw(DOCS / name)
