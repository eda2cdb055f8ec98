"""Runs and profiles of which tests make pages: small, and odd in every way that a page must bear."""

from dataclasses import replace

import numpy as np

import pfc

TINY = replace(
    pfc.RECIPES["digits"], epochs=4, width=16, blocks=(3,), limit=200, learning_rate=0.05, batch_size=32
)
MARKUP = "<img src=x onerror=alert(1)>"
NAMES = ("</script><b>x", "<!--", "a.very.long.name.of.a.layer.encoder.layers.11.attention.output")


def trained(folder, seed=0, **changes):
    """A run, and what was measured of data kept apart."""
    recipe = replace(TINY, **changes)
    digits = pfc.data.load("digits", "fit", limit=recipe.limit, seed=seed)
    net = recipe.build(digits, seed)
    for _ in pfc.train(net, digits, recipe, folder=folder, seed=seed, progress=False):
        pass
    run = pfc.Run(folder)
    held_out = run.data("held-out").batches()
    test = pfc.measure(net, held_out, means=run.profiles[recipe.epochs], progress=False)
    test.save(run.folder / "profiles" / "held-out.json")
    return run


def features(classes, samples, names=NAMES, noise=1.0, seed=0):
    """Features at some layers, and labels; without noise they have collapsed."""
    rng = np.random.default_rng(seed)
    y = np.arange(samples) % classes
    means = rng.normal(size=(classes, 6))
    return {
        name: np.maximum(0, means[y] * (1 + l) + noise * rng.normal(size=(samples, 6)))
        for l, name in enumerate(names)
    }, y


def odd(folder):
    """Profiles without epochs, each lacking something or strange in something."""
    X, y = features(3, 60)
    measured = {
        MARKUP: pfc.measure_features(X, y, progress=False),
        "one-pass": pfc.measure_features(X, y, progress=False, passes=1),
        "one-layer": pfc.measure_features({"x": X["<!--"]}, y, progress=False),
        "two-classes": pfc.measure_features(X, y % 2, progress=False, segments=False),
        "collapsed": pfc.measure_features(*features(3, 30, ("h", "c"), noise=0), progress=False),
        "many": pfc.measure_features(*features(60, 240, ("h", "c")), progress=False),
    }
    few, labels = features(3, 30, seed=1)
    about = measured[MARKUP]
    measured["other-means"] = pfc.measure_features(few, labels, means=about, progress=False)
    for name, profile in measured.items():
        profile.save(folder / f"{name}.json")
    return measured
