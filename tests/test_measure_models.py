"""A profile's numbers are those of features collected in full, for every kind of model and data."""

import inspect
import math
import re
from dataclasses import dataclass
from inspect import unwrap
from itertools import groupby, pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pfc
from pfc.measuring import calling, opening
from pfc.measuring.loader import MeasuredBatches
from pfc.measuring.sums import Copies
from pfc.measuring.survey import Survey
from pfc.moments import ClassMoments
from pfc.warning import CollapseWarning
from tests.models import Net, SharedRelu, batched, collected, randomised, samples, seeded
from tests.oracles import naive_row

EXACT = {"pfc3", "nc4"}  # fractions of the samples
COLUMNS = (
    *("pfc1", "pfc2", "pfc3", "nc1", "fuzziness"),
    *("nc2_norm", "nc2_angle", "nc2_max_angle", "nc3", "nc4", "cdnv"),
)


def measured(model, data, **options):
    return pfc.measure(model, data, progress=False, **options)


def oracle(model, batches, names, at, head, pool=None, device=None, weighting="class"):
    """For each layer its naive metrics and its place on the path through the layers of its shape."""
    y = torch.cat([y for _, y in batches]).numpy()
    H = collected(model, batches, names, pool, head, device)
    linear = dict(model.named_modules())[head]
    Wb = (linear.weight.detach().cpu().numpy(), linear.bias.detach().cpu().numpy())
    rows = {name: naive_row(H[name], y, weighting, *(Wb if name == at else ())) for name in names}
    return rows, H, y


def positions(H, y, segments):
    """Root mean square steps, each class weighing the same, added up and divided by the last."""
    found = dict.fromkeys(H, math.nan)
    for names in segments:
        steps = [0.0]
        for a, b in pairwise(names):
            squares = ((H[b] - H[a]) ** 2).sum(1)
            steps.append(math.sqrt(np.mean([squares[y == k].mean() for k in np.unique(y)])))
        if len(names) > 1:
            found |= dict(zip(names, np.cumsum(steps) / sum(steps), strict=True))
    return found


def agrees(table, name, row, rtol=1e-9):
    for column in COLUMNS:
        got, want = table.loc[name, column], row.get(column, math.nan)
        if column in EXACT:
            assert got == want or (math.isnan(got) and math.isnan(want)), (name, column, got, want)
        else:
            np.testing.assert_allclose(got, want, rtol=rtol, err_msg=f"{name} {column}")


def check(model, batches, names, at, head, *, twin=None, device=None, rtol=1e-9, **options):
    """Measure, and compare every number with features collected in full and pooled by `twin`."""
    profile = measured(model, batches, device=device, **options)
    table = profile.table()
    rows, H, y = oracle(model, batches, names, at, head, twin, device=device)
    assert list(table.index) == names
    assert profile.about["at_classifier"] == at
    assert profile.about["classifier"] == head
    assert profile.about["samples"] == len(y)
    for name in names:
        agrees(table, name, rows[name], rtol)
    shapes = dict(zip(profile.layers, profile.shapes, strict=True))
    inner = [name for name in names if name != "classifier.input"]
    runs = [list(run) for _, run in groupby(inner, key=shapes.__getitem__)]
    path = positions(H, y, runs)
    np.testing.assert_allclose(table["position"], [path[name] for name in names], rtol=rtol)
    assert [list(s.layers) for s in profile.segments] == [run for run in runs if len(run) > 1]
    return profile


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def vit(transformers):
    config = transformers.ViTConfig(
        **dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20),
        **dict(image_size=16, patch_size=8, num_labels=3),
    )
    return seeded(lambda: randomised(transformers.ViTForImageClassification(config)))


@pytest.fixture(scope="session")
def resnet(transformers):
    config = transformers.ResNetConfig(
        embedding_size=6, hidden_sizes=[6, 10], depths=[2, 2], layer_type="basic", num_labels=3
    )
    return seeded(lambda: randomised(transformers.ResNetForImageClassification(config)))


IMAGES = batched(*samples(35, (3, 16, 16)), 12)
POINTS = batched(*samples())


def fc_resnet(blocks=3):
    return seeded(lambda: randomised(pfc.FCResNet(6, 3, width=8, blocks=blocks)))


def conv_resnet(**options):
    return seeded(lambda: randomised(pfc.ConvResNet(3, (16, 16), 3, blocks=(2, 1), width=2, **options)))


# Every model, with the layers that are chosen without being named


def test_a_perceptron_of_in_place_relus():
    parts = {
        **dict(a=nn.Linear(6, 9), relu=nn.ReLU(inplace=True)),
        **dict(b=nn.Linear(9, 8), act=nn.ReLU(inplace=True)),
    }
    model = seeded(lambda: Net(parts))
    profile = check(model, POINTS, ["a", "relu", "b", "act"], "act", "fc")
    assert profile.about["chosen"] == "direct children"


def test_a_plain_sequence_leaves_out_its_logits():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.Softmax(1)))
    check(model, POINTS, ["0", "1"], "1", "2")


def test_a_sequence_in_a_wrapper_is_looked_into():
    model = nn.ModuleDict({"net": seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)))})
    model.forward = lambda x: model["net"](x)
    profile = check(model, POINTS, ["net.0"], "net.0", "net.1")
    assert profile.about["chosen"] == "direct children"


def test_a_head_of_several_layers_is_no_row_but_its_last_input_is():
    head = seeded(lambda: nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)))
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 9), head))
    check(model, POINTS, ["0", "classifier.input"], "classifier.input", "1.2")


def test_a_linear_classifier_alone_has_its_input():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 3)))
    check(model, POINTS, ["classifier.input"], "classifier.input", "0")


def test_a_shared_relu_is_passed_over():
    model = seeded(SharedRelu)
    check(model, POINTS, ["first", "second", "classifier.input"], "classifier.input", "fc")


@pytest.mark.parametrize("form", ["relu(Wx)", "W relu(Vx)"])
def test_fc_resnet(form):
    zero = form != "relu(Wx)"
    model = randomised(pfc.FCResNet(6, 3, width=8, blocks=3, form=form, zero_start=zero))
    names = ["stem", "blocks.0", "blocks.1", "blocks.2"]
    profile = check(model, POINTS, names, "blocks.2", "classifier")
    assert profile.about["chosen"] == "the net's own tap points"


CONV_ROWS = ["stem", "stages.0.blocks.0", "stages.0.blocks.1", "stages.1.reduce", "stages.1.blocks.0"]


def test_conv_resnet_with_a_pooling_head():
    names = [*CONV_ROWS, "classifier.input"]
    profile = check(conv_resnet(), IMAGES, names, "classifier.input", "classifier")
    assert [len(s.layers) for s in profile.segments] == [3, 2]


def test_conv_resnet_with_a_flat_head_reads_the_last_block():
    check(conv_resnet(head="flatten"), IMAGES, CONV_ROWS, CONV_ROWS[-1], "classifier")


def test_a_mean_over_pixels_is_the_input_behind_a_pooling_head():
    twin = lambda H: H.mean((2, 3))  # noqa: E731
    check(conv_resnet(), IMAGES, CONV_ROWS, CONV_ROWS[-1], "classifier", pool="mean", twin=twin)


def test_transformers_resnet(resnet):
    blocks = [f"resnet.encoder.stages.{s}.layers.{l}" for s in (0, 1) for l in (0, 1)]
    names = [*blocks, "classifier.input"]
    profile = check(resnet, IMAGES, names, "classifier.input", "classifier.1")
    assert profile.about["chosen"] == "residual blocks"


VIT_ROWS = ["vit.embeddings", "vit.layers.0", "vit.layers.1", "classifier.input"]


def last_tokens(H):
    return H[:, 1:].amax(1)


@pytest.mark.parametrize(
    ("pool", "twin"),
    [
        ("flatten", None),
        ("mean", lambda H: H.mean(1)),
        ("cls", lambda H: H[:, 0]),
        (last_tokens, last_tokens),
    ],
    ids=["flatten", "mean", "cls", "callable"],
)
def test_transformers_vit_under_every_pool(vit, pool, twin):
    names = VIT_ROWS[1:] if pool == "cls" else VIT_ROWS  # the first token starts as the same in all
    profile = check(vit, IMAGES, names, "classifier.input", "classifier", pool=pool, twin=twin)
    assert profile.about["pool"] == (pool if isinstance(pool, str) else "last_tokens")


def test_a_normalised_token_is_the_classifiers_input(vit):
    names = ["vit.layers.1", "vit.layernorm"]
    options = dict(pool="cls", twin=lambda H: H[:, 0], layers=names)
    check(vit, IMAGES, names, "vit.layernorm", "classifier", **options)


@pytest.mark.parametrize("label", ["labels", "label"])
def test_batches_may_be_dicts(vit, label):
    dicts = [{label: y, "pixel_values": x} for x, y in IMAGES]
    assert measured(vit, dicts).table().equals(measured(vit, IMAGES).table())


def test_inputs_may_be_dicts_or_tuples(vit):
    dicts = [({"pixel_values": x}, y) for x, y in IMAGES]
    tuples = [([x], y) for x, y in IMAGES]
    table = measured(vit, IMAGES).table()
    assert measured(vit, dicts).table().equals(table)
    assert measured(vit, tuples).table().equals(table)


# Named layers


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("blocks.1", ["blocks.1"]),
        ("blocks.*", ["blocks.0", "blocks.1", "blocks.2"]),
        (["blocks.2", "stem", "blocks.2"], ["stem", "blocks.2"]),
        ("blocks.*.f.[02]", [f"blocks.{b}.f.{i}" for b in range(3) for i in (0, 2)]),
        (["blocks.0.**"], [f"blocks.0.f.{i}" for i in range(4)] + ["blocks.0.f"]),
        (["classifier.input"], ["classifier.input"]),
        (["classifier.input", "stem"], ["stem", "classifier.input"]),
        (["blocks.2", "classifier.input"], ["blocks.2", "classifier.input"]),
    ],
    ids=str,
)
def test_named_layers_are_the_rows_in_forward_order(layers, names):
    at = next((n for n in ("classifier.input", "blocks.2") if n in names), None)
    profile = check(fc_resnet(), POINTS, names, at, "classifier", layers=layers)
    assert profile.about["chosen"] == "named"


def test_modules_name_layers():
    model = fc_resnet()
    layers = [model.blocks[2], "stem", model.blocks[0].f]
    names = ["stem", "blocks.0.f", "blocks.2"]
    check(model, POINTS, names, "blocks.2", "classifier", layers=layers)
    check(model, POINTS, ["stem"], None, "classifier", layers=model.stem)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_named_classifier_gives_duality_at_its_input(by_name):
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(3, 3)))
    head = "1" if by_name else model[1]
    check(model, POINTS, ["0"], "0", "1", classifier=head)
    check(model, POINTS, ["0", "1"], "1", "2")


def test_a_classifier_used_twice_is_none():
    shared = nn.Linear(3, 3)
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 3), shared, nn.Tanh(), shared))
    profile = measured(model, POINTS)
    assert profile.layers == ("0", "2")
    assert profile.about["classifier"] is None
    assert profile.accuracy is None
    with pytest.raises(ValueError, match=r"classifier '1' did not run once"):
        measured(model, POINTS, classifier="1")


def test_a_layer_written_over_before_pooling_is_not_the_classifiers_input():
    parts = {
        **dict(conv=nn.Conv2d(3, 8, 3), act=nn.ReLU(inplace=True)),
        **dict(mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()),
    }
    model, batches = seeded(lambda: Net(parts)), batched(*samples(20, (3, 5, 5)))
    options = dict(layers=["conv", "act"], pool="mean", twin=lambda H: H.mean((2, 3)))
    check(model, batches, ["conv", "act"], "act", "fc", **options)
    check(model, batches, ["conv"], None, "fc", **options | {"layers": "conv"})


def test_a_layer_with_more_rows_than_samples_is_passed_over():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.pair, self.fc = nn.Linear(6, 6), nn.Linear(3, 4), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.pair(self.a(x).reshape(-1, 3)).reshape(len(x), 8))

    check(seeded(Halves), POINTS, ["a", "classifier.input"], "classifier.input", "fc")


def test_images_of_other_sizes_are_one_layer_once_pooled():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    sizes = [(x[..., : 16 - i], y) for i, (x, y) in enumerate(IMAGES)]
    profile = measured(model, sizes, layers="0", pool="mean")
    H = collected(model, sizes, ["0"], lambda H: H.mean((2, 3)))["0"]
    agrees(profile.table(), "0", naive_row(H, torch.cat([y for _, y in sizes])))


def test_a_model_without_a_classifier():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 10), nn.GLU()))
    table = measured(model, POINTS).table()
    for name, H in collected(model, POINTS, ["0", "1"]).items():
        agrees(table, name, naive_row(H, torch.cat([y for _, y in POINTS])))
    assert measured(model, POINTS).accuracy is None


def test_half_precision_features_are_read_exactly():
    model = fc_resnet().bfloat16()
    batches = [(x.bfloat16(), y) for x, y in POINTS]
    names = ["stem", "blocks.0", "blocks.1", "blocks.2"]
    table = measured(model, batches).table()
    H = collected(model, batches, names)
    for name in names:
        row = naive_row(H[name], torch.cat([y for _, y in batches]))
        agrees(table.drop(columns=["nc3", "nc4"]).assign(nc3=math.nan, nc4=math.nan), name, row)


@pytest.mark.gpu
def test_on_another_device():
    model = fc_resnet()
    names = ["stem", "blocks.0", "blocks.1", "blocks.2"]
    profile = measured(model, POINTS, device="cuda")
    assert all(p.device.type == "cpu" for p in model.parameters())
    here = measured(model, POINTS).table()[list(COLUMNS)]
    np.testing.assert_allclose(profile.table()[list(COLUMNS)], here, rtol=1e-4)
    check(model.cuda(), POINTS, names, "blocks.2", "classifier", device="cuda")
    moved = measured(model, [(x.cuda(), y.cuda()) for x, y in POINTS], device="cpu")
    np.testing.assert_allclose(moved.table()[list(COLUMNS)], here, rtol=1e-9)


# How many samples, how many classes, which batches


def precise():
    """A model and samples of float64, so that batches of other sizes round alike."""
    return fc_resnet().double(), *samples(dtype=torch.float64)


def same_numbers(a, b, rtol=1e-12):
    assert list(a.columns) == list(b.columns)
    assert list(a.index) == list(b.index)
    np.testing.assert_allclose(a, b, rtol=rtol)


@pytest.mark.parametrize("sizes", [[46, 1], [1] * 47, [3, 17, 2, 20, 5]], ids=["one", "ones", "odd"])
def test_batches_of_any_sizes_give_the_same_numbers(sizes):
    model, x, y = precise()
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    whole, cut = measured(model, [(x, y)]), measured(model, parts)
    same_numbers(cut.table(), whole.table())
    for a, b in zip(whole.segments, cut.segments, strict=True):
        for name in ("count", "scatter", "cross", "steps"):
            np.testing.assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-11, atol=1e-11)
        found, known = (s.means.flatten(0, 1) @ s.means.flatten(0, 1).T for s in (b, a))
        np.testing.assert_allclose(found, known, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("most", [0, 1, 3, 19, 20, 22, 47, 1000])
def test_samples_are_decided_alike_with_any_others(most, monkeypatch):
    model, x, y = precise()
    whole = measured(model, [(x, y)])
    monkeypatch.setattr("pfc.measuring.decisions.Decisions._most", most)
    sizes = [3, 17, 2, 20, 5]
    cut = measured(model, list(zip(x.split(sizes), y.split(sizes), strict=True)))
    same_numbers(cut.table(), whole.table())
    assert cut.accuracy == whole.accuracy
    for a, b in zip(whole.segments, cut.segments, strict=True):
        for end, curve in a.curves.items():
            torch.testing.assert_close(b.curves[end].starts, curve.starts, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(b.curves[end].stops, curve.stops, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [20, 25, 30, 47, 99])
def test_a_limit_takes_so_many_samples(limit):
    model, x, y = precise()
    profile = measured(model, batched(x, y), limit=limit)
    assert profile.about["samples"] == min(limit, 47)
    same_numbers(profile.table(), measured(model, [(x[:limit], y[:limit])]).table())


def test_a_limit_reads_no_further_batch():
    read = []

    class Data:
        def __iter__(self):
            for i, batch in enumerate(POINTS):
                read.append(i)
                yield batch

    measured(fc_resnet(), Data(), limit=20)
    assert read == [0, 1, 0, 1]


def test_shuffled_batches_of_the_same_samples_are_accepted():
    model, x, y = precise()
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True, generator=generator)
    assert not torch.equal(next(iter(loader))[1], next(iter(loader))[1])
    same_numbers(measured(model, loader).table(), measured(model, [(x, y)]).table(), rtol=1e-11)


def test_classes_are_the_classifiers_outputs():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)))
    with pytest.warns(CollapseWarning, match=r"classes \[3, 4\] have no sample and are left out"):
        profile = measured(model, POINTS)
    assert profile.about["classes"] == 5
    assert measured(model, POINTS, classes=3).about["classes"] == 3


def test_without_a_classifier_classes_are_the_datas_own_or_the_largest_label():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 10), nn.GLU()))
    x, y = samples()
    own = TensorDataset(x, y)
    assert measured(model, DataLoader(own, batch_size=10)).about["classes"] == 3
    own.classes = ["a", "b", "c", "d"]
    with pytest.warns(CollapseWarning, match=r"classes \[3\] have no sample"):
        assert measured(model, DataLoader(own, batch_size=10)).about["classes"] == 4


def test_classes_that_come_late_are_taken_in():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 10), nn.GLU(), nn.Tanh()))
    x, y = samples(dtype=torch.float64)
    order = y.argsort()
    late, model = batched(x[order], y[order], 6), model.double()
    assert late[0][1].max() == 0
    profile = measured(model, late, layers="*")
    assert profile.about["classes"] == 3
    for name, H in collected(model, late, ["0", "1", "2"]).items():
        agrees(profile.table(), name, naive_row(H, y[order]))


def test_a_missing_class_is_left_out_everywhere():
    model = seeded(lambda: randomised(pfc.FCResNet(6, 4, width=8, blocks=2)))
    x, y = samples()
    y = torch.where(y == 1, 3, y)  # classes 0, 2, 3
    batches, names = batched(x, y), ["stem", "blocks.0", "blocks.1"]
    with pytest.warns(CollapseWarning, match=r"classes \[1\] have no sample and are left out"):
        table = measured(model, batches).table()
    rows, *_ = oracle(model, batches, names, "blocks.1", "classifier")
    for name in names:
        agrees(table, name, rows[name])


def test_one_sample_a_class_warns():
    with pytest.warns(CollapseWarning, match="every class has one sample"):
        table = measured(fc_resnet(), [(torch.randn(3, 6), torch.arange(3))]).table()
    assert (table["pfc1"] == 0).all()
    assert (table["pfc3"] == 1).all()


@pytest.mark.parametrize("biased", [False, True])
def test_coinciding_means_warn_with_the_layers_name(biased):
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 3)))
    nn.init.zeros_(model[1].weight)
    if not biased:
        nn.init.zeros_(model[1].bias)
    with pytest.warns(CollapseWarning, match=r"layer '1': the class means span 0 dimensions, not 2"):
        table = measured(model, POINTS).table()
    assert math.isnan(table.loc["1", "nc1"])
    assert table.loc["1", "pfc3"] == sum(int((y == 0).sum()) for _, y in POINTS) / 47
    assert math.isnan(table.loc["1", "pfc1"])
    assert math.isnan(table.loc["1", "pfc2"])


@pytest.mark.parametrize("offset", [0, 1, 1e2, 1e3])
@pytest.mark.parametrize("width", [3, 8])
def test_an_offset_of_all_features_changes_nothing(width, offset):
    x, y = samples(shape=(width,), dtype=torch.float64)
    model = nn.Sequential(nn.Identity())
    near, far = (measured(model, batched(x + o, y), layers="0").table() for o in (0, offset))
    np.testing.assert_allclose(far[list(COLUMNS)], near[list(COLUMNS)], rtol=1e-9)


def test_one_pass_leaves_out_what_the_second_gives():
    model = fc_resnet()
    two, one = measured(model, POINTS), measured(model, POINTS, passes=1)
    left = [c for c in two.table().columns if c not in {"pfc3", "nc1", "fuzziness", "nc4"}]
    assert one.table().equals(two.table()[left])
    assert one.about["passes"] == 1
    assert one.accuracy is None
    assert len(one.segments) == 1
    with pytest.raises(ValueError, match=r"pfc3 was not measured; it needs passes=2"):
        one.effective_depth()


def test_one_pass_reads_random_data():
    data = Augmented(*samples(), lambda x: x + torch.randn_like(x))
    table = measured(fc_resnet(), DataLoader(data, batch_size=10), passes=1).table()
    assert table[["pfc1", "pfc2", "cdnv"]].notna().all(axis=None)


def test_without_segments_the_metrics_are_the_same():
    model = fc_resnet()
    whole, bare = measured(model, POINTS), measured(model, POINTS, segments=False)
    assert bare.segments == ()
    assert bare.table()["position"].isna().all()
    same_numbers(bare.table()[list(COLUMNS)], whole.table()[list(COLUMNS)])
    with pytest.raises(ValueError, match="no segment -1: the profile has 0"):
        bare.segment()


def test_accuracy_is_the_models():
    model = fc_resnet().eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in POINTS)
    assert measured(model, POINTS).accuracy == right / 47


def test_weighting_by_samples():
    names, model = ["stem", "blocks.0", "blocks.1", "blocks.2"], fc_resnet()
    profile = measured(model, POINTS, weighting="sample")
    rows, *_ = oracle(model, POINTS, names, names[-1], "classifier", weighting="sample")
    assert profile.about["weighting"] == "sample"
    for name in names:
        agrees(profile.table(), name, rows[name])


def test_features_are_collected_in_full():
    model = fc_resnet()
    want = collected(model, POINTS, ["stem", "blocks.0", "blocks.1", "blocks.2"])
    H, y = pfc.features(model, POINTS)
    few, y_few = pfc.features(model, POINTS, limit=33)
    assert list(H) == list(few) == list(want)
    for name in want:
        assert np.array_equal(H[name].double().numpy(), want[name]), name
        np.testing.assert_allclose(few[name], want[name][:33], rtol=1e-5, atol=1e-6)  # of other batches
    assert torch.equal(y, torch.cat([y for _, y in POINTS]))
    assert torch.equal(y_few, y[:33])


# What is refused, with a message that names it


class Augmented(Dataset):
    """Samples that are changed each time they are read.

    Args:
        x: Inputs.
        y: Labels.
        change: Is given one input.
    """

    def __init__(self, x, y, change):
        self.x, self.y, self.change = x, y, change

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.change(self.x[i]), self.y[i]


def flipped(x):
    return x.flip(-1) if torch.rand(()) < 0.5 else x


@pytest.mark.parametrize(
    "change",
    [lambda x: x + 1e-3 * torch.randn_like(x), flipped, lambda x: x.roll(int(torch.randint(4, ())), -1)],
    ids=["noise", "flips", "shifts"],
)
def test_augmented_data_are_refused(change):
    torch.manual_seed(4)
    loader = DataLoader(Augmented(*samples(35, (3, 16, 16)), change), batch_size=10)
    with pytest.raises(ValueError, match=r"the inputs of class \d differ; turn off random augmentation"):
        measured(conv_resnet(), loader, layers="stem")


class Alternating:
    """Data whose every reading is another one."""

    def __init__(self, *readings):
        self.readings, self.read = readings, 0

    def __iter__(self):
        self.read += 1  # at the first batch, since this is a generator
        yield from self.readings[(self.read - 1) % len(self.readings)]


def other_labels(count):
    """Labels of as many samples a class, or of others."""
    x, y = samples()
    if not count:
        return [(x, (y + 1) % 3)]
    a, b = (y == 0).nonzero()[0], (y == 1).nonzero()[0]
    y[a], y[b] = 1, 0
    return [(x, y)]


@pytest.mark.parametrize(
    ("again", "match"),
    [
        (other_labels(True), r"the inputs of class 0 differ"),
        (other_labels(False), r"saw different samples from the first: \d+ of class 0 after \d+"),
        ([(x, y) for x, y in POINTS[:-1]], r"saw different samples from the first: \d+ of class"),
        ([(-x, y) for x, y in POINTS], r"the inputs of class 0 differ"),
        ([(x.where(torch.arange(6) > 0, x[:1]), y) for x, y in POINTS], r"the inputs of class 0 differ"),
    ],
    ids=["swapped labels", "other labels", "fewer", "negated", "one feature"],
)
def test_a_second_pass_over_other_samples_is_refused(again, match):
    with pytest.raises(ValueError, match=match):
        measured(fc_resnet(), Alternating(POINTS, again))


def test_samples_that_moved_apart_are_other_samples():
    x, y = samples()
    x = (x * 64).round() / 64  # sums are exact, so that the class sum stays as it was
    apart, (i, j) = x.clone(), (y == 0).nonzero().flatten()[:2]
    apart[i] += 1
    apart[j] -= 1
    with pytest.raises(ValueError, match=r"the inputs of class 0 differ"):
        measured(fc_resnet(), Alternating([(x, y)], [(apart, y)]))


def test_a_class_that_comes_only_in_the_second_pass_is_refused():
    x, y = samples()
    first = [(x, y.clamp(max=1))]
    with (
        pytest.warns(CollapseWarning, match=r"classes \[2\]"),
        pytest.raises(ValueError, match=r"batch 0 has a class that had no sample before"),
    ):
        measured(fc_resnet(), Alternating(first, [(x, y)]))


def test_a_shuffled_loader_under_a_limit_is_refused():
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(*samples()), batch_size=10, shuffle=True, generator=generator)
    with pytest.raises(ValueError, match=r"different samples from the first.*shuffling, under a limit"):
        measured(fc_resnet(), loader, limit=25)


class Noise(nn.Module):
    """Adds noise also in evaluation mode."""

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


def test_a_model_that_is_random_in_evaluation_is_refused():
    model = seeded(lambda: Net({"a": nn.Linear(6, 8), "noise": Noise()}))
    with pytest.raises(
        ValueError, match=r"different features from the first at layer 'noise': the model is"
    ):
        measured(model, POINTS)
    assert measured(model, POINTS, passes=1).layers == ("a", "noise")


@pytest.mark.parametrize(
    "data",
    [iter(POINTS), (batch for batch in POINTS), zip(*zip(*POINTS, strict=True), strict=True)],
    ids=["iterator", "generator", "zip"],
)
def test_one_shot_iterators_are_refused_before_they_are_read(data):
    with pytest.raises(ValueError, match=r"data is a one-shot iterator \(\w+\)"):
        measured(fc_resnet(), data)
    assert len(list(data)) == 5


def relabelled(change):
    """The batches of POINTS, of which number 2 has other labels."""
    return [(x, change(y) if i == 2 else y) for i, (x, y) in enumerate(POINTS)]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([], "the data gave no batch at all"),
        (relabelled(lambda y: y.where(y > 0, 3)), r"batch 2 has the label 3, but there are 3 classes"),
        (
            relabelled(lambda y: y - 1),
            r"labels of batch 2 must not be negative, got -1; count",
        ),
        (relabelled(lambda y: y.float()), r"labels of batch 2 must be integer .* torch.float32"),
        (relabelled(lambda y: y > 0), r"labels of batch 2 must be integer .* torch.bool"),
        (relabelled(lambda y: torch.eye(3)[y]), r"labels of batch 2 .* of one-hot labels take y.argmax"),
        (relabelled(lambda y: torch.eye(3).long()[y]), r"labels of batch 2 .* one-hot"),
        (relabelled(lambda y: y[:0]), r"batch 2 has no sample"),
        ([(x, y * 0) for x, y in POINTS], r"need samples of at least 2 classes, got 1"),
        ([(*batch, 0) for batch in POINTS], r"batch 0 must be a pair .* got tuple of length 3"),
        ([POINTS[0], 7], r"batch 1 must be a pair .* got int"),
        ([{"x": POINTS[0][0]}], r"batch 0 is a dict without 'labels'; it has \['x'\]"),
        ([(POINTS[0][0][:7], POINTS[0][1])], r"layer '.*' gave shape \(7, 8\) on batch 0 of 10 samples"),
    ],
)
def test_wrong_data_are_refused(data, match):
    with pytest.raises(ValueError, match=match):
        measured(fc_resnet(), data)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("segments", [True, False])
def test_features_that_are_not_finite_are_refused_by_layer_and_batch(value, segments):
    class Breaks(nn.Module):
        def forward(self, x):
            return x.where(x != 77, value)

    model = seeded(lambda: Net({"a": nn.Identity(), "breaks": Breaks(), "c": nn.ReLU()}, width=6))
    data = [(x.clone(), y) for x, y in POINTS]
    data[3][0][4, 5] = 77
    with pytest.raises(ValueError, match=r"layer 'breaks' gave NaN or infinite features on batch 3"):
        measured(model, data, segments=segments)


def test_a_shape_that_changes_is_refused():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    data = [IMAGES[0], (IMAGES[1][0][..., :9], IMAGES[1][1])]
    match = r"layer '0' gave shape \(12, 4, 14, 7\) on batch 1 of 12 samples; .* \(4, 14, 14\) before"
    with pytest.raises(ValueError, match=match):
        measured(model, data)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(limit=0), "limit must be at least 1, got 0"),
        (dict(limit=-3), "limit must be at least 1, got -3"),
        (dict(passes=0), "passes must be 1 or 2, got 0"),
        (dict(passes=3), "passes must be 1 or 2, got 3"),
        (dict(classes=1), "classes must be at least 2, got 1"),
        (dict(classes=2), r"batch 0 has the label 2, but there are 2 classes \(0..1\)"),
        (
            dict(pool="max"),
            "pool must be 'flatten', 'mean', 'cls', 'last', 'tokens' or a callable, got 'max'",
        ),
        (dict(pool="cls"), r"pool='cls' needs tokens \(B, T, D\), got \(2, 2, 16, 16\)"),
        (dict(pool=torch.mean), r"pool must give one row a sample, got shape \(\) for shape \(2, 2,"),
        (dict(pool=len), r"pool must give one row a sample, got int"),
        (dict(layers="steam"), r"no layer matches 'steam'; the model has stem, stem.0, .*, classifier$"),
        (dict(layers=["stem", "stages.*.f"]), r"no layer matches 'stages.\*.f'"),
        (dict(layers=[]), "layers is empty"),
        (dict(layers=nn.ReLU()), "module ReLU is not a part of the model"),
        (dict(classifier="stem"), r"classifier 'stem' is no linear layer .* \['classifier'\]"),
        (dict(classifier=nn.Linear(2, 3)), r"classifier 'Linear' is no linear layer of the model"),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value)),  # the same in every process
)
def test_wrong_arguments_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        measured(conv_resnet(), IMAGES, **options)


@pytest.mark.parametrize("weighting", ["samples", "both"])
def test_an_unknown_weighting_is_refused(weighting, monkeypatch):
    # the types are checked in tests only, and would refuse it before pfc does
    for name in ("class_weights", "checked_how"):
        monkeypatch.setattr(opening, name, unwrap(getattr(opening, name)))
    monkeypatch.setattr(opening.Asked, "__init__", unwrap(opening.Asked.__init__))
    with pytest.raises(ValueError, match=f"weighting must be 'class' or 'sample', got '{weighting}'"):
        unwrap(pfc.measure)(fc_resnet(), POINTS, weighting=weighting, progress=False)


def test_the_classifiers_input_needs_a_classifier():
    model = nn.Sequential(nn.Linear(6, 10), nn.GLU())
    with pytest.raises(ValueError, match=r"no classifier .* was found, so 'classifier.input'"):
        measured(model, POINTS, layers="classifier.input")


def test_a_classifier_that_reads_many_vectors_is_refused():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    data = [(x[:, None], y) for x, y in POINTS]
    with pytest.raises(ValueError, match="classifier '0' did not run once, on one vector a sample"):
        measured(model, data, classifier="0")


def test_a_head_of_one_logit_answers_two_classes():
    """By the sign of the logit; which two vectors stand behind one is nobody's to say, so NC3 is not."""
    x, y = samples()
    y = y % 2
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)))
    profile = measured(model, batched(x, y))
    assert profile.about["classes"] == 2
    assert profile.accuracy == int(((model(x)[:, 0] > 0) == y).sum()) / len(y)
    assert profile.table()["nc3"].isna().all()
    assert profile.table()["nc4"].notna().tolist() == [False, True]
    assert profile.table()["pfc3"].notna().all()


def test_warnings_point_at_the_caller():
    unchecked = inspect.unwrap(pfc.measure)  # the type hook would be the caller
    with pytest.warns(CollapseWarning) as caught:
        unchecked(fc_resnet(), [(torch.randn(3, 6), torch.arange(3))], progress=False)
    assert caught[0].filename == __file__


def test_inference_mode_leaves_no_trace_on_later_work():
    x, y = samples()
    with torch.inference_mode():
        ClassMoments.of(x.flatten(1).repeat(1, 3000), y)
    ClassMoments.of(x.flatten(1).repeat(1, 3000), y)


class Returns(nn.Module):
    """A body, a head and an auxiliary head; `form` says what is returned."""

    def __init__(self, form):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
        self.head, self.aux = nn.Linear(5, 3), nn.Linear(5, 3)
        self.form = form

    def forward(self, x):
        f = self.body(x.flatten(1))
        return self.form(f, self.head(f), self.aux(f.tanh()))


@dataclass
class Answer:
    """An output as a dataclass."""

    loss: torch.Tensor
    logits: torch.Tensor


RETURNED = {
    "features and logits": lambda f, h, a: (f, h),
    "hidden and logits": lambda f, h, a: {"hidden": f, "logits": h, "aux": a},
    "a dataclass": lambda f, h, a: Answer(h.sum(), h),
    "log-probabilities": lambda f, h, a: h.log_softmax(1),
    "probabilities": lambda f, h, a: h.softmax(1),
    "logits": lambda f, h, a: h,
    "cast logits": lambda f, h, a: h.double(),
    "halved logits": lambda f, h, a: h.bfloat16(),
}


@pytest.mark.parametrize("form", RETURNED.values(), ids=list(RETURNED))
def test_the_classifier_is_the_layer_whose_output_is_returned(form):
    x, y = samples()
    profile = measured(seeded(lambda: Returns(form)), batched(x, y), layers=["body", "classifier.input"])
    assert profile.about["classifier"] == "head"
    assert profile.about["classes"] == 3
    assert profile.table()["nc3"].notna().any()


def test_two_heads_are_ambiguous_until_one_is_named():
    x, y = samples()
    model = seeded(lambda: Returns(lambda f, h, a: (h, a)))
    with pytest.warns(CollapseWarning, match="what head and aux gave: name one as classifier="):
        assert measured(model, batched(x, y), layers="body").about["classifier"] is None
    profile = measured(model, batched(x, y), layers="body", classifier="aux")
    assert profile.about["classifier"] == "aux"


def test_what_is_returned_otherwise_names_no_classifier():
    x, y = samples()
    model = seeded(lambda: Returns(lambda f, h, a: h * 2 + a))
    assert measured(model, batched(x, y), layers="body").about["classifier"] is None


class Wanders(nn.Module):
    """Runs its two layers in another order on every second batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.h = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = x.flatten(1)
        return self.h(self.b(self.a(x)) if self.calls < 3 else self.a(self.b(x)))


def test_layers_that_change_their_order_are_refused():
    x, y = samples()
    with pytest.raises(ValueError, match="layer 'a' did not run on batch 1 before 'b'"):
        measured(seeded(Wanders), batched(x, y), layers=["a", "b"])


def test_what_is_no_model_and_no_data_and_no_device_is_refused():
    x, y = samples()
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Module, got str"):
        inspect.unwrap(calling.place_of)("net", None)
    for device in ("foo", "cuda:77"):
        with pytest.raises(ValueError, match=f"no device '{device}' here"):
            measured(fc_resnet(), batched(x, y), device=device)
    with pytest.raises(ValueError, match="device 'meta' holds no numbers"):
        measured(fc_resnet(), batched(x, y), device="meta")
    with pytest.raises(ValueError, match=r"got Images; call its batches\(\)"):
        inspect.unwrap(MeasuredBatches.__init__)(
            object(), pfc.data.load("digits"), None, torch.device("cpu")
        )


def test_coinciding_means_leave_every_shape_metric_undefined():
    model = seeded(lambda: nn.Sequential(nn.Identity(), nn.Linear(8, 5)))
    with pytest.warns(CollapseWarning, match="span 0 dimensions, not 4"):
        table = measured(model, [(torch.ones(40, 8), torch.arange(40) % 5)]).table()
    names = ["pfc1", "pfc2", "nc1", "fuzziness", "nc2_norm", "nc2_angle", "nc2_max_angle", "nc3", "cdnv"]
    assert table.iloc[0][names].isna().all()


class Maps(nn.Module):
    """Blocks of maps, whose channels may lie last."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.narrow = nn.Conv2d(4, 6, 3, stride=2)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x):
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h).tanh()
        return self.classifier(self.narrow(h).mean((2, 3)))


MAPS = ["stem", "blocks.*", "narrow", "classifier.input"]


def maps_profile(memory_format, layers=MAPS, **how):
    net = seeded(Maps).double().to(memory_format=memory_format)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(60, 3, 7, 5, generator=g, dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format)
    return pfc.measure(net, batched(x, torch.arange(60) % 3, 13), layers=layers, progress=False, **how)


@pytest.mark.parametrize("how", [{}, {"intervals": True}, {"passes": 1}], ids=str)
def test_maps_are_read_as_they_lie_and_kept_in_their_order(how, monkeypatch):
    read = []
    original = Survey._rows

    def rows(self, name, output, batch):
        H = original(self, name, output, batch)
        read.append(H.data_ptr() == output.data_ptr())
        return H

    known = maps_profile(torch.contiguous_format, **how)
    monkeypatch.setattr(Survey, "_rows", rows)
    found = maps_profile(torch.channels_last, **how)
    assert all(read)
    for name, values in known.columns.items():
        assert found.columns[name] == pytest.approx(values, rel=1e-10, abs=1e-12, nan_ok=True), name
    for name, moments in known.moments.items():
        for part in ("count", "mean", "scatter"):
            torch.testing.assert_close(
                getattr(found.moments[name], part), getattr(moments, part), rtol=1e-10, atol=1e-12
            )
    if how.get("passes") != 1:
        a, b = (p.prediction(0).table().select_dtypes("number") for p in (found, known))
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_maps_about_other_means_or_with_a_probe_are_read_in_their_order():
    known, found = (maps_profile(f) for f in (torch.contiguous_format, torch.channels_last))
    about = [maps_profile(torch.channels_last, layers=None, means=means) for means in (known, found)]
    for name, values in about[0].columns.items():
        assert about[1].columns[name] == pytest.approx(values, rel=1e-9, abs=1e-12, nan_ok=True), name


class WritesOver(nn.Module):
    """Two layers of one shape; what the first gave is changed before the second runs."""

    def __init__(self, change):
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.change = change

    def forward(self, x):
        H = self.a(x)
        inside = H.sin()
        self.change(H)
        return self.fc(self.b(inside))


CHANGES = {
    "counted": lambda H: H.mul_(2),
    "uncounted": lambda H: H.data.mul_(2),
    "later samples": lambda H: H.data[2:].mul_(2),
    "some samples": lambda H: H.masked_fill_(H[:, :1] > 1, 0) if len(H) > 2 else H,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_layer_written_over_before_the_next_is_measured_as_it_was(change):
    model = seeded(lambda: WritesOver(change))
    check(model, POINTS, ["a", "b"], "b", "fc", layers=["a", "b"])


def test_copies_share_memory_only_with_those_that_are_done():
    copies, H = Copies(), torch.randn(4, 6)
    a, b = copies.of("a", H), copies.of("b", H + 1)
    assert torch.equal(a, H)
    assert torch.equal(b, H + 1)
    copies.done(["a", "b", "never copied"])
    smaller, other = copies.of("c", H[:2]), copies.of("a", H.double())
    assert smaller.data_ptr() == b.data_ptr()
    assert torch.equal(smaller, H[:2])
    assert other.dtype == torch.float64
    assert torch.equal(other, H.double())
    larger = copies.of("a", H.repeat(2, 1))
    assert torch.equal(larger, H.repeat(2, 1))
    assert torch.equal(smaller, H[:2])
