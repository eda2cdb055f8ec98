"""`python -m pfc` is `pfc`."""

from pfc.cli import main

main()
