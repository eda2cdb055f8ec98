"""`python -m pfc` is `pfc`."""

from pfc.cli import main

if __name__ == "__main__":
    main()
