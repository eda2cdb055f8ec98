"""Where things are kept that can be made anew."""

import os


def cache_folder() -> str | None:
    """The folder that `PFC_CACHE` names, or pfc's in the user's cache; `None` without a home folder."""
    from platformdirs import user_cache_path

    try:
        folder = os.environ.get("PFC_CACHE") or user_cache_path("pfc")
        return os.path.abspath(os.path.expanduser(folder))
    except RuntimeError:  # of a user without a home folder
        return None
