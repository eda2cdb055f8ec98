"""Claims of the paper: each judged against networks of which the answer is known."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy import stats

import pfc
from pfc.experiments import claims, judges
from pfc.experiments.claims import CLAIMS, answer, ask
from pfc.experiments.judges import Finding, Network
from pfc.files import write_json
from pfc.theory import transport

K, N, D = 4, 80, 12
BY_NAME = {claim.name: claim for claim in CLAIMS}


def features(shrink, scale=3.0, seed=0):
    """Layers whose residuals shrink about class means that go to a simplex frame on a straight line."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(N) % K
    frame = torch.eye(K, D, dtype=torch.float64) - 1 / K * torch.ones(K, 1) @ torch.eye(K, D).sum(
        0, keepdim=True
    )
    start = frame + 0.4 * torch.randn(K, D, generator=g, dtype=torch.float64)
    noise = torch.randn(N, D, generator=g, dtype=torch.float64)
    t = torch.linspace(0, 1, len(shrink)).tolist()
    return {
        f"l{i}": ((1 - s) * start + s * scale * frame)[y] + r * noise
        for i, (s, r) in enumerate(zip(t, shrink, strict=True))
    }, y


def profile(shrink, **how):
    found = pfc.measure_features(*features(shrink, **how), progress=False)
    return replace(found, about={**found.about, "accuracy": 1.0})


@pytest.fixture(scope="module")
def collapsing():
    return Network(profile([2, 1.5, 1, 0.5, 0.05]), random=profile([4, 5, 4.5, 6, 5.5], scale=0.1))


@pytest.fixture(scope="module")
def stalling():
    return Network(profile([1, 1.5, 1.2, 2, 2.5], scale=0.5))


def judged(name, network):
    return BY_NAME[name].judge(network)


def test_a_collapsing_network_keeps_the_claims(collapsing):
    for m in ("PFC1", "PFC2"):
        assert judged(f"order of {m}", collapsing).holds
    assert judged("order of PFC1", collapsing).value == pytest.approx(-1)
    assert judged("order of PFC3", collapsing).holds
    assert judged("learned", collapsing) == Finding(True, 1.0)
    assert judged("last-layer collapse", collapsing).holds
    assert judged("Theorem 2's radius", collapsing).holds
    assert judged("no order of PFC1 at the start", collapsing).holds


def test_a_network_that_does_not_collapse_breaks_them(stalling):
    assert judged("order of PFC1", stalling).holds is False
    assert judged("last-layer collapse", stalling).holds is False
    assert judged("effective depth is the depth", stalling).holds is False
    assert math.isnan(judged("effective depth is the depth", stalling).value)
    assert judged("learned", stalling) is judges.NOTHING


@pytest.mark.parametrize("metric", ["pfc1", "pfc2", "pfc3"])
def test_order_is_scipys_tau_and_the_profiles_own_steps_back(metric, collapsing, stalling):
    for network in (collapsing, stalling):
        found = judges.order(metric)(network)
        p = network.last
        assert found.value == pytest.approx(stats.kendalltau(range(5), p.columns[metric]).statistic)
        assert found.holds == (not p.non_monotone_layers(metric, -1))


def test_depth_is_the_last_block_alone():
    """The error stays within 1 % from a layer on; the claim is that none before the last block is it."""
    base = profile([2, 1.5, 1, 0.5, 0.05])
    for pfc3, holds in (
        ((0.5, 0.6, 0.7, 0.98, 1.0), True),
        ((0.5, 0.6, 0.7, 0.99, 1.0), False),
        ((0.5, 0.6, 0.7, 0.8, 0.9), False),
        ((1.0, 1.0, 1.0, 0.98, 1.0), True),  # from the last one on
    ):
        network = Network(replace(base, columns={**base.columns, "pfc3": pfc3}))
        assert judged("effective depth is the depth", network).holds is holds


def test_the_line_is_judged_by_certificates(collapsing):
    segment = collapsing.last.segment()
    for end, said in (("etf", "the nearest frame"), ("measured", "the last features")):
        certificate = segment.certify(end)
        assert (
            judged(f"PFC1 falls on the line to {said}", collapsing).holds
            == certificate.theorem1.monotone
        )
        found = judged(f"PFC2 falls on the line to {said}", collapsing)
        assert found.holds == (certificate.theorem2.t0 == 0)
    align = segment.certify("etf").theorem1.align
    assert judged("Theorem 1's assumption", collapsing) == Finding(align >= 0, align)
    off = collapsing.last.agreement("path").off
    assert judged("PFC1 near the line", collapsing) == Finding(off["pfc1"] <= 0.1, off["pfc1"])


def test_transport_is_the_exact_part():
    (first, *_, last), y = features([2, 1.5, 1]), torch.arange(N) % K
    first, *_, last = first.values()
    network = Network(profile([2, 1.5, 1]), gap=transport.gap(first, last, y))
    found = judged("optimal transport", network)
    assert found.value == network.gap.exact.ratio - 1
    assert found.holds == (network.gap.exact.moved == 0)
    swapped = last.clone()
    swapped[[0, 40]] = swapped[[40, 0]] + torch.tensor([[9.0], [-9.0]])
    assert (
        judged("optimal transport", replace(network, gap=transport.gap(first, swapped, y))).holds
        is False
    )


def test_over_seeds_all_is_confirmed_none_refuted_and_a_part_undecided():
    def verdict(*holds):
        return answer("order of PFC1", "k", "w", [Finding(h, math.nan) for h in holds]).verdict

    assert verdict(True, True) == "confirmed"
    assert verdict(False, False) == "refuted"
    assert verdict(True, False) == verdict(True, None) == verdict(False, None) == "undecided"


def test_the_interval_is_students():
    values = [0.1, 0.4, 0.25, 0.7]
    found = answer("c", "k", "w", [Finding(True, v) for v in [*values, math.nan]])
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert (found.held, found.of) == (5, 5)
    assert math.isnan(answer("c", "k", "w", [Finding(True, 1.0)]).low)


def test_an_answer_needs_a_network():
    with pytest.raises(
        ValueError, match="claim 'order' needs at least one network, got none for 'mnist'"
    ):
        answer("order", "paper", "mnist", [])


def test_what_is_not_known_is_left_out(collapsing):
    names = {each.claim for each in ask("k", "w", [Network(collapsing.last)])}
    assert names.isdisjoint({"learned", "optimal transport", "order of PFC1, test"})
    assert {"order of PFC1", "effective depth is the depth", "last-layer collapse"} <= names
    bare = replace(collapsing.last, about={**collapsing.last.about, "accuracy": None})
    assert "last-layer collapse" not in {each.claim for each in ask("k", "w", [Network(bare)])}


def test_of_two_classes_nothing_is_said_of_their_frame():
    y = torch.arange(60) % 2
    g = torch.Generator().manual_seed(0)
    H = {f"l{i}": torch.randn(60, 3, generator=g) / (i + 1) + y[:, None] for i in range(4)}
    found = {each.claim for each in ask("k", "w", [Network(pfc.measure_features(H, y, progress=False))])}
    assert "PFC1 falls on the line to the nearest frame" in found
    assert not {name for name in found if name.startswith(("PFC2", "order of PFC2", "Theorem 2"))}


def test_what_is_undefined_or_can_not_be_better_is_no_refutation(collapsing):
    base = collapsing.last
    nan = Network(base, random=replace(base, columns={**base.columns, "pfc2": (math.nan,) * 5}))
    assert judged("learned", nan) is judges.NOTHING
    done = replace(base, columns={**base.columns, "pfc3": (1.0,) * 5})
    before = replace(collapsing.random, columns={**collapsing.random.columns, "pfc3": (1.0,) * 5})
    assert judged("learned", Network(done, random=before)).holds
    assert (
        judged(
            "effective depth is the depth",
            Network(replace(base, columns={**base.columns, "pfc3": (math.nan,) * 5})),
        )
        is judges.NOTHING
    )
    one = pfc.measure_features({"a": torch.randn(20, 3)}, torch.arange(20) % 2, progress=False)
    assert ask("k", "w", [Network(one)]) == []
    still = {name: features([1, 1], scale=0)[0]["l0"] for name in "abc"}
    found = ask("k", "w", [Network(pfc.measure_features(still, torch.arange(N) % K, progress=False))])
    assert not [each for each in found if each.claim.endswith("to the last features")]


def test_a_profile_of_one_pass_has_fewer_answers():
    once = pfc.measure_features(*features([2, 1.5, 1]), passes=1, progress=False)
    names = {each.claim for each in ask("k", "w", [Network(once, random=once)])}
    assert "order of PFC1" in names
    assert not {name for name in names if "PFC3" in name or "depth" in name or "learned" in name}


def test_profiles_that_do_not_belong_together_are_refused(collapsing):
    X, y = features([2, 1.5, 1, 0.5, 0.05])
    test = pfc.measure_features(X, y, means=collapsing.last, progress=False)
    with pytest.raises(ValueError, match="last must be about its own class means"):
        Network(test)
    few = pfc.measure_features({"l0": X["l0"]}, y, progress=False)
    with pytest.raises(ValueError, match="random must have the layers of last, it lacks l1, l2, l3, l4"):
        Network(collapsing.last, random=few)


def test_answers_are_read_as_they_were_kept(tmp_path, collapsing):
    found = ask("k", "w", [collapsing, collapsing])
    path = tmp_path / "claims.json"
    write_json(path, {"format": claims.FORMAT, "answers": [asdict(each) for each in found]})
    assert repr(claims.read(path)) == repr(found)
    content = json.loads(path.read_text())
    del content["checksum"], content["answers"][0]["held"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"claims.json: .*held"):
        claims.read(path)


def test_decay_is_compared_seed_by_seed():
    bent = [Network(profile([2, 1, 1.5, 0.5, 1], seed=s)) for s in (0, 1)]
    straight = [Network(profile([2, 1.5, 1, 0.5, 0.1], seed=s)) for s in (0, 1)]
    (found, *rest) = claims.decay({0.0: bent, 5e-3: straight})
    values = [s.last.segment().path().straightness for s in (*bent, *straight)]
    assert found.verdict == "confirmed"
    assert found.where == "0.005 after 0"
    assert found.value == pytest.approx((values[2] - values[0] + values[3] - values[1]) / 2)
    assert [each.verdict for each in rest] == ["undecided"]  # nothing is known of transport


def test_figures_of_the_models():
    ends = {
        "data": {"pfc1": 3.0, "pfc2": 0.9, "pfc3": 0.8},
        "MUFM, ours": {"pfc1": 1.0, "pfc2": 0.5, "pfc3": 0.9},
        "UFM, closed form": {"pfc1": 0.0, "pfc2": 0.0, "pfc3": 1.0},
    }
    assert {each.verdict for each in claims.figure4(ends, "toy data")} == {"confirmed"}
    ends["UFM, closed form"] = {"pfc1": 2.0, "pfc2": 0.6, "pfc3": 0.85}
    found = {each.claim: each.verdict for each in claims.figure4(ends, "toy data")}
    assert found["UFM is more collapsed than MUFM: PFC1"] == "refuted"
    assert found["MUFM is more collapsed than the data: PFC3"] == "confirmed"


def rows(**columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_the_trade_off():
    data = {"pfc1": 3.0, "pfc2": 0.9, "pfc3": 0.8}
    own = {"lam": [1e-3, 1e-2, 1e-1], "pfc1": [0.1, 1.0, 2.0], "pfc2": [0.1, 0.4, 0.8]}
    own |= {"moved": [2.0, 1.0, 0.1], "objective": [1.0, 2.0, 3.0]}
    worse = rows(lam=own["lam"], objective=[1.5, 2.0, 3.0])
    found = {each.claim: each for each in claims.figure5(rows(**own), data, worse, "toy data")}
    assert found["Theorem 4"].verdict == "confirmed"
    assert found["Theorem 4"].value == 1e-3
    assert found["descent reaches the minimum"].verdict == "refuted"
    assert found["descent reaches the minimum"].value == pytest.approx(0.5)
    assert all(found[f"PFC{i} rises with lambda"].verdict == "confirmed" for i in (1, 2))
    assert found["nearer to the data with lambda"].verdict == "confirmed"
    own["pfc1"] = [4.0, 1.0, 3.5]
    found = {each.claim: each for each in claims.figure5(rows(**own), data, [], "toy data")}
    assert found["Theorem 4"].verdict == found["PFC1 rises with lambda"].verdict == "refuted"
    assert "descent reaches the minimum" not in found


def test_every_claim_of_the_page_has_words():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.words
        assert claim.number
