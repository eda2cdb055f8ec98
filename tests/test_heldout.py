"""Held-out data: the interval of a change of accuracy, the parts, and what is refused."""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import multinomial, norm

import pfc
from pfc.acting.heldout import Change, dealt
from pfc.intervals import of_change
from pfc.measuring.loader import Batch
from pfc.measuring.subset import COPIES, hashes_of, identities_of
from tests.acting import batches, parts, trained

Z = norm.ppf(0.975)


def score(x, lost, won, n):
    """Won less lost, over its standard error where the change is x, by the likelihood's own equation."""

    def slope(q):
        return lost / q + won / (q + x) - 2 * (n - lost - won) / (1 - 2 * q - x)

    low, high = max(0.0, -x), (1 - x) / 2
    q = brentq(slope, low + 1e-15, high - 1e-15, xtol=1e-16, rtol=1e-15)
    return (won - lost - n * x) / math.sqrt(n * (2 * q + x - x * x))


@pytest.mark.parametrize(("lost", "won", "n"), [(5, 2, 100), (1, 9, 40), (30, 31, 1000), (3, 3, 25)])
def test_the_ends_of_the_interval_are_where_the_score_is_a_quantile(lost, won, n):
    low, high = of_change(lost, won, n)
    assert low < (won - lost) / n < high
    assert score(low, lost, won, n) == pytest.approx(Z, rel=1e-9)
    assert score(high, lost, won, n) == pytest.approx(-Z, rel=1e-9)


def test_known_intervals():
    low, high = of_change(0, 0, 100)  # no sample changes sides: in closed form
    assert (low, high) == pytest.approx((-(Z**2) / (100 + Z**2), Z**2 / (100 + Z**2)), rel=1e-10)
    assert of_change(5, 0, 5)[0] == -1
    assert of_change(0, 5, 5)[1] == 1
    a, b = of_change(7, 2, 60)
    assert of_change(2, 7, 60) == pytest.approx((-b, -a), rel=1e-10)
    assert all(map(math.isnan, of_change(0, 0, 0)))
    with pytest.raises(ValueError, match="level in"):
        of_change(1, 1, 10, level=95.0)


def intervals(interval, n):
    """The intervals of all outcomes of n samples."""
    known = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    return known, np.array([interval(b, c, n) for b, c in known])


def coverage(outcomes, n, lost, won):
    """How often the intervals hold the change, by the odds of the outcomes."""
    known, ends = outcomes
    odds = multinomial.pmf([[b, c, n - b - c] for b, c in known], n, [lost, won, 1 - lost - won])
    held = (ends[:, 0] <= won - lost + 1e-12) & (won - lost - 1e-12 <= ends[:, 1])
    return float(odds @ held)


def resampled(lost, won, n):
    """The percentile bootstrap, from 400 resamples."""
    drawn = np.random.default_rng(0).multinomial(n, [lost / n, won / n, 1 - (lost + won) / n], 400)
    return np.quantile((drawn[:, 1] - drawn[:, 0]) / n, [0.025, 0.975])


def test_the_interval_covers_and_the_bootstrap_does_not():
    changes = [(0.02, 0.01), (0.05, 0.02), (0.1, 0.1), (0.2, 0.05), (0.01, 0.0), (0.3, 0.1)]
    outcomes = intervals(inspect.unwrap(of_change), 25)
    assert min(coverage(outcomes, 25, *odds) for odds in changes) > 0.94
    assert coverage(intervals(resampled, 25), 25, *changes[0]) < 0.7


def test_a_change_counts_both_ways():
    before, after = (torch.tensor(each).bool() for each in ([1, 1, 0, 0, 1], [1, 0, 1, 1, 1]))
    change = Change.of(before, after)
    assert (change.samples, change.lost, change.won) == (5, 1, 2)
    assert (change.before, change.after) == (0.6, 0.8)
    assert (change.low, change.high) == of_change(1, 2, 5)
    assert "change +0.2000" in str(change)


def test_parts_are_apart_even_and_seeded():
    y = torch.arange(90) % 3
    found = dealt(y, 3, seed=0)
    assert sorted(torch.cat(found).tolist()) == [*range(90)]
    assert all((torch.bincount(y[part]) == 10).all() for part in found)
    again, other = dealt(y, 3, seed=0), dealt(y, 3, seed=1)
    assert all(map(torch.equal, found, again))
    assert not torch.equal(found[0], other[0])
    with pytest.raises(ValueError, match="3 held-out samples can't be dealt into 2 parts"):
        dealt(y[:3], 2, seed=0)


def test_a_profile_knows_the_samples_it_was_measured_on(tmp_path):
    net, profile = trained()
    fit, held = parts()
    assert profile.sample.hashes.shape == (300, 2)
    assert bool((profile.sample.hashes[:, 0].diff() >= 0).all())
    profile.save(tmp_path / "p.json")
    kept = pfc.load(tmp_path / "p.json")
    assert torch.equal(kept.sample.hashes, profile.sample.hashes)
    half = fit.rows(torch.arange(0, len(fit), 2))
    with pytest.raises(ValueError, match="are among the data that the profile was measured on"):
        pfc.prune(net, kept, batches(half), progress=False)
    mixed = batches(held) + batches(fit.rows(torch.arange(300)))
    with pytest.raises(ValueError, match="are among the data that the profile was measured on"):
        pfc.EarlyExit(net, kept).calibrate(mixed, progress=False)


def test_a_profile_of_few_samples_knows_them_all():
    net, _ = trained()
    few = parts()[0].rows(torch.arange(80))
    profile = pfc.measure(net, batches(few), progress=False)
    with pytest.raises(ValueError, match="80 of 80 samples"):
        pfc.prune(net, profile, batches(few), progress=False)
    old = replace(profile, sample=replace(profile.sample, hashes=None))
    pfc.prune(net, old, batches(few), head="own", progress=False)  # files of earlier versions know none


def test_texts_of_few_words_are_told_apart():
    make = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 12, (400, 6), generator=make).unique(dim=0)
    batch = Batch(0, (), {"input_ids": ids}, torch.zeros(len(ids)).long())
    hashes = hashes_of(batch)
    known = identities_of(batch, hashes)
    assert len(hashes.unique()) < len(ids) == len(known.unique())
    some = torch.tensor([3, 7])
    assert torch.equal(identities_of(batch, hashes, some), known[some])
    assert not len(identities_of(batch, hashes, some[:0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pfc.tiles.TILE, "cpu", COPIES * 6 * 7)
        assert len(ids) % 7
        assert torch.equal(identities_of(batch, hashes), known)


def twin(numbers):
    """The hash of a row by the definition, in whole numbers of any size."""
    total = 0
    for place, x in enumerate(numbers, start=1):
        x = (x - place * 7046029254386353131) % 2**64
        for shift in (31, 29, 32):
            signed = x - 2**64 * (x >= 2**63)
            x = (x ^ (signed >> shift)) * -7046029254386353131 % 2**64
        total += x
    return (total + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 2])
def test_identities_are_those_that_files_keep(engine, dtype, threads, monkeypatch):
    monkeypatch.setattr(pfc.fused.processor, "SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = (torch.randn(7, 2 * 30, generator=torch.Generator().manual_seed(0)) * 9).relu().to(dtype)
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    known = [twin(row) for row in (x.byte() if dtype == torch.bool else x).view(whole).tolist()]
    batch = Batch(0, (x,), {}, torch.arange(7) % 2)
    if engine == "compiled":
        assert pfc.fused.processor.loops()
    hashes = hashes_of(batch)
    assert identities_of(batch, hashes).tolist() == known
    assert identities_of(batch, hashes, torch.tensor([5, 2])).tolist() == [known[5], known[2]]
    if engine == "compiled":
        bits = x.byte().view(torch.int8) if dtype == torch.bool else x.view(whole)
        apart = torch.cat([bits, bits], 1)[:, : bits.shape[1]]
        for rows in (bits, apart, bits.mT.contiguous().mT):
            assert pfc.fused.processor.mix(rows).tolist() == known
        assert not len(pfc.fused.processor.mix(bits[:0]))


@pytest.mark.filterwarnings("ignore::pfc.warning.CollapseWarning")
@pytest.mark.parametrize("most", [60, 2, 0])
@pytest.mark.parametrize("sizes", [[900], [250, 100, 550], [1] * 3 + [897]], ids=str)
def test_no_more_samples_are_followed_than_are_kept(sizes, most, monkeypatch):
    """Their identities are of the inputs of least hash, however the data come in batches, many alike."""
    x = torch.randint(0, most + 1, (900, 3), generator=torch.Generator().manual_seed(1)).float()
    net, followed = pfc.FCResNet(3, 3, width=6, blocks=1), []

    def spied(batch, hashes, rows=slice(None)):
        found = identities_of(batch, hashes, rows)
        followed.append(len(found))
        return found

    monkeypatch.setattr("pfc.measuring.subset.identities_of", spied)
    data = [*zip(x.split(sizes), (torch.arange(900) % 3).split(sizes), strict=True)]
    found = pfc.measure(net, data, progress=False).sample.hashes
    whole = Batch(0, (x,), {}, torch.arange(900) % 3)
    hashes = hashes_of(whole)
    order = hashes.argsort(stable=True)[:300]
    assert found[:, 0].equal(hashes[order])
    assert {*map(tuple, found.tolist())} <= {
        *zip(hashes.tolist(), identities_of(whole, hashes).tolist(), strict=True)
    }
    assert all(n <= min(size, 300) for n, size in zip(followed, sizes, strict=True))
    assert sum(followed) >= 300
    if not most:
        assert sum(followed) == 300
