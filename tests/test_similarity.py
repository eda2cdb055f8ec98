"""Linear CKA between the layers of two networks, against its definition by D x D matrices."""

import numpy as np
import pytest
import torch
from torch import nn

import pfc


def networks():
    torch.manual_seed(0)
    first = pfc.FCResNet(features=64, classes=10, width=16, blocks=2, zero_start=False)
    second = pfc.ConvResNet(1, (8, 8), 10, blocks=(1, 1), width=4, zero_start=False)
    return first, second


@pytest.fixture(scope="module")
def digits():
    return pfc.data.load("digits", limit=300)


def naive(X, Y):
    """By the cross-covariances, all at once."""
    X, Y = (np.asarray(H, dtype=np.float64) - np.asarray(H, dtype=np.float64).mean(0) for H in (X, Y))
    square = ((Y.T @ X) ** 2).sum()
    return square / np.linalg.norm(X.T @ X) / np.linalg.norm(Y.T @ Y)


def test_cka_is_its_definition_at_all_pairs_of_layers(digits, monkeypatch):
    monkeypatch.setattr("pfc.measuring.similarity.TILE", 70)
    a, b = networks()
    found = pfc.cka(a, b, digits.batches(130), progress=False)
    assert found.attrs["samples"] == 300
    rows = [pfc.features(net, digits.batches(), progress=False)[0] for net in (a, b)]
    assert [list(found.index), list(found.columns)] == [list(each) for each in rows]
    for one, X in rows[0].items():
        for other, Y in rows[1].items():
            assert found.loc[one, other] == pytest.approx(naive(X, Y), rel=1e-10)


def test_the_samples_are_those_of_least_hash_in_any_order(digits):
    a, b = networks()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    again = [(digits.normalised(i), digits.labels[i]) for i in order.split(47)]
    was, now = (pfc.cka(a, b, d, limit=100, progress=False) for d in (digits.batches(), again))
    assert was.attrs["samples"] == now.attrs["samples"] == 100
    np.testing.assert_allclose(now, was, rtol=1e-6)  # rows of a batch of another size, in float32


def test_a_turned_network_is_alike_and_a_constant_layer_is_undefined(digits):
    data = [(x.flatten(1), y) for x, y in digits.batches()]
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 10)).double()
    turned = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 10)).double()
    Q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    with torch.no_grad():
        turned[0].weight.copy_(3 * Q @ plain[0].weight)
        turned[0].bias.copy_(torch.ones(8))
    data = [(x.double(), y) for x, y in data]
    found = pfc.cka(plain, turned, data, layers=["0"], progress=False)
    assert found.loc["0", "0"] == pytest.approx(1, rel=1e-12)
    with torch.no_grad():
        turned[0].weight.zero_()
    assert np.isnan(pfc.cka(plain, turned, data, layers=["0"], progress=False).loc["0", "0"])


def test_what_has_no_meaning_is_refused(digits):
    a, b = networks()
    for limit in (1, 5001):
        with pytest.raises(ValueError, match=f"limit must be from 2 to 5000 samples, got {limit}"):
            pfc.cka(a, b, digits.batches(), limit=limit)
    with pytest.raises(ValueError, match="pool='tokens' makes samples of tokens"):
        pfc.cka(a, b, digits.batches(), pool="tokens")


def test_equal_inputs_do_not_crowd_out_others_in_any_order():
    torch.manual_seed(1)
    net = pfc.FCResNet(features=6, classes=3, width=8, blocks=2, zero_start=False).double()
    rest = torch.randn(3, 6, dtype=torch.float64)
    X = torch.cat([torch.randn(1, 6, dtype=torch.float64).repeat(50, 1), rest])
    y = torch.arange(len(X)) % 3
    for limit in (2, 3, 10, 51, 52):
        both = [
            pfc.cka(net, net, [(X[i], y[i])], limit=limit, progress=False)
            for i in (torch.arange(len(X)), torch.arange(len(X)).flip(0))
        ]
        assert [found.attrs["samples"] for found in both] == [limit, limit]
        np.testing.assert_allclose(both[0], both[1], rtol=1e-12)


def test_small_batches_cost_no_more_forward_passes_than_large_ones(digits):
    a, b = networks()
    passes = []
    for size in (3, 300):
        seen = []
        handle = a.register_forward_hook(lambda _net, args, _out, seen=seen: seen.append(len(args[0])))
        pfc.cka(a, b, digits.batches(size), limit=200, progress=False)
        handle.remove()
        passes.append(sum(seen))
    assert passes[0] == passes[1] <= 2.5 * 200


def test_data_that_change_are_read_once(digits):
    generator = torch.Generator().manual_seed(0)

    class Fresh:
        """Other inputs at every reading."""

        def __iter__(self):
            for _ in range(4):
                yield torch.randn(10, 1, 8, 8, generator=generator), torch.arange(10)

    found = pfc.cka(*networks(), Fresh(), limit=25, progress=False)
    assert found.attrs["samples"] == 25
    assert np.isfinite(found.to_numpy()).all()


def test_texts_of_several_lengths_stand_in_tiles_of_their_own():
    class Tokens(nn.Module):
        """Means of embeddings."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

        def forward(self, input_ids, flag):
            assert flag == 1
            return self.head(self.embed(input_ids).mean(1))

    data = [
        {"input_ids": torch.randint(20, (4, T)), "flag": torch.tensor(1), "labels": torch.arange(4) % 3}
        for T in (5, 7, 5)
    ]
    net = Tokens().double()
    found = pfc.cka(net, net, data, layers=["embed"], pool="mean", progress=False)
    assert found.attrs["samples"] == 12
    assert found.loc["embed", "embed"] == pytest.approx(1, rel=1e-12)
