"""Intervals of PFC1-3 over samples: the influence of each sample, and what the intervals cover."""

import math

import pytest
import torch
from torch import Tensor

import pfc

N, D, K = 90, 5, 4


def drawn(seed: int = 0, n: int = N, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features of unbalanced classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % K
    y[: n // 5] = 0
    M = 2 * torch.randn(K, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return M[y] + spread * torch.randn(n, D, generator=generator, dtype=torch.float64), y


def measured(H: Tensor, y: Tensor, **how) -> pfc.Profile:
    return pfc.measure_features({"h": H}, y, intervals=True, progress=False, **how)


def weighted(H: Tensor, y: Tensor, w: Tensor, weighting: str, about: Tensor | None = None) -> Tensor:
    """PFC1 and PFC2 of samples that count w within their class: by their definitions."""
    n = torch.stack([(y == k).sum() for k in range(K)]).double()
    pi = torch.full((K,), 1 / K, dtype=torch.float64) if weighting == "class" else n / n.sum()
    own = torch.stack([(w[y == k, None] * H[y == k]).sum(0) / w[y == k].sum() for k in range(K)])
    M = own if about is None else about
    square = (H - M[y]).square().sum(1)
    within = sum(pi[k] * (w * square)[y == k].sum() / w[y == k].sum() for k in range(K))
    between = (pi * (M - pi @ M).square().sum(1)).sum()
    C = own - own.mean(0)
    G = C @ C.T
    etf = (torch.eye(K, dtype=torch.float64) - 1 / K) / math.sqrt(K - 1)
    return torch.stack([within / between, (G / G.norm() - etf).norm()])


def jackknifed(H: Tensor, y: Tensor, weighting: str, about: Tensor | None = None) -> list[float]:
    """Standard errors by the derivative in each sample's weight, class by class."""
    ones = torch.ones(len(y), dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda w: weighted(H, y, w, weighting, about), ones)
    n = torch.bincount(y).double()[y]
    return (J.square() * n / (n - 1)).sum(1).sqrt().tolist()


@pytest.mark.parametrize("weighting", ["class", "sample"])
def test_the_errors_are_those_of_the_infinitesimal_jackknife(weighting):
    H, y = drawn()
    profile = measured(H, y, weighting=weighting)
    found = [profile.errors[metric][0] for metric in ("pfc1", "pfc2")]
    assert found == pytest.approx(jackknifed(H, y, weighting), rel=1e-10)


@pytest.mark.parametrize("weighting", ["class", "sample"])
def test_about_other_means_the_means_are_fixed(weighting):
    H, y = drawn()
    train = pfc.measure_features({"h": drawn(seed=1)[0]}, y, weighting=weighting, progress=False)
    profile = measured(H, y, weighting=weighting, means=train)
    found = [profile.errors[metric][0] for metric in ("pfc1", "pfc2")]
    known = jackknifed(H, y, weighting, about=train.moments["h"].mean)
    assert found == pytest.approx(known, rel=1e-10)


def test_moved_turned_and_scaled_features_have_the_same_errors():
    H, y = drawn()
    Q = torch.linalg.qr(
        torch.randn(D, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ).Q
    was, now = (measured(X, y).errors for X in (H, 300 * H @ Q + 1e4))
    for metric in was:
        assert now[metric] == pytest.approx(was[metric], rel=1e-9)


def test_features_of_any_size_have_the_same_errors():
    H, y = drawn()
    was, now = (measured(X, y).errors for X in (H, H * 2.0**700))
    assert now == was


def test_of_two_classes_pfc2_is_sure_and_a_single_sample_says_nothing():
    H, y = drawn()
    two = y < 2
    assert measured(H[two], y[two]).errors["pfc2"] == (0.0,)
    kept = (y != 3) | (torch.arange(N) == int((y == 3).nonzero()[0]))
    errors = measured(H[kept], y[kept]).errors
    assert all(math.isnan(errors[metric][0]) for metric in errors)
    table = measured(H[kept], y[kept]).table(interval=0.9)
    assert all(math.isnan(table[f"pfc{i}_{end}"]["h"]) for i in (1, 2) for end in ("low", "high"))
    assert table.pfc3_low["h"] < table.pfc3["h"]


def test_collapsed_features_have_no_spread():
    H, y = drawn(spread=0.0)
    table = measured(H, y).table(interval=0.9)
    assert table.pfc1_low["h"] == table.pfc1["h"] == table.pfc1_high["h"] == 0
    assert table.pfc2_high["h"] - table.pfc2_low["h"] == pytest.approx(0, abs=1e-12)
    assert 0.95 < table.pfc3_low["h"] < table.pfc3_high["h"] == 1


def test_intervals_cover_what_other_samples_would_give():
    """Of 120 draws, about 90 % of the 90 % intervals hold the value of the population."""
    draws, level = 120, 0.9
    M = 2 * torch.randn(K, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    C = M - M.mean(0)
    etf = (torch.eye(K, dtype=torch.float64) - 1 / K) / math.sqrt(K - 1)
    known = {
        "pfc1": float(D / C.square().sum(1).mean()),
        "pfc2": float((C @ C.T / (C @ C.T).norm() - etf).norm()),
    }
    y = torch.arange(60 * K) % K
    held = dict.fromkeys(known, 0)
    for seed in range(draws):
        noise = torch.randn(
            len(y), D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        row = measured(M[y] + noise, y).table(interval=level).loc["h"]
        for metric, value in known.items():
            held[metric] += row[f"{metric}_low"] <= value <= row[f"{metric}_high"]
    for metric, count in held.items():  # three standard deviations of a count, and some of bias
        assert 0.81 < count / draws < 0.97, (metric, count / draws)


def test_wilsons_interval_covers_the_fraction_about_fixed_means():
    """By the binomial law itself: the mean coverage over p of 95 % intervals of 50 samples."""
    from scipy.stats import binom

    from pfc.intervals import wilson

    ends = [wilson(k / 50, 50, 1.959964) for k in range(51)]
    covered = [
        sum(binom.pmf(k, 50, p) for k, (low, high) in enumerate(ends) if low <= p <= high)
        for p in torch.linspace(0.02, 0.98, 97).tolist()
    ]
    assert 0.945 < sum(covered) / len(covered) < 0.96


def test_intervals_are_kept_in_files_and_absent_where_not_asked_for(tmp_path):
    H, y = drawn()
    profile = measured(H, y)
    profile.save(tmp_path / "p.json")
    assert pfc.load(tmp_path / "p.json").table(interval=0.5).equals(profile.table(interval=0.5))
    assert [*profile.table().columns] == [*profile.columns]
    plain = pfc.measure_features({"h": H}, y, progress=False)
    with pytest.raises(ValueError, match="no intervals are known: measure with intervals=True"):
        plain.table(interval=0.95)
    with pytest.raises(
        ValueError, match=r"interval must be a level in \(0, 1\), such as 0.95, got 95.0"
    ):
        profile.table(interval=95.0)
    with pytest.raises(ValueError, match="intervals need both passes, got passes=1"):
        pfc.measure_features({"h": H}, y, intervals=True, passes=1, progress=False)


def test_a_model_has_the_errors_of_its_features():
    digits = pfc.data.load("digits", limit=120)
    torch.manual_seed(0)
    net = pfc.FCResNet(features=64, classes=10, width=16, blocks=2, zero_start=False)
    profile = pfc.measure(net, digits.batches(50), intervals=True, progress=False)
    found, y = pfc.features(net, digits.batches(), progress=False)
    again = pfc.measure_features(found, y, intervals=True, progress=False)
    for metric in profile.errors:
        assert profile.errors[metric] == pytest.approx(again.errors[metric], rel=1e-9)
