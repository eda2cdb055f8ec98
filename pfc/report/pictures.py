"""Figures on a page: small pictures in the file itself, each with a text in its stead."""

from base64 import b64encode
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

from pfc.figures.axes import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
COLOURS = 24  # of a picture, which keeps it at about 10 kB; ours


def picture(figure: "Figure", words: str, dpi: int = DPI) -> str:
    """A figure as HTML, and what a reader is told who does not see it."""
    from PIL import Image

    drawn, small = BytesIO(), BytesIO()
    with style():
        figure.savefig(drawn, format="png", dpi=dpi)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(small, format="png", optimize=True)
    data = b64encode(small.getvalue()).decode()
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{data}">'
