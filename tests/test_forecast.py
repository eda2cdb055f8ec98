"""What a measurement costs, told beforehand and at its first batches: words and arithmetic."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import pfc
from pfc import memory
from pfc.cli import main
from pfc.commands import measuring
from pfc.measuring import cost, forecast, outlook, passes, rehearsal
from pfc.measuring.forecast import Seconds
from pfc.measuring.opening import Asked
from pfc.measuring.outlook import in_bytes, in_time
from pfc.measuring.sums import GroupSums, Sums
from pfc.nearest import NearestMean
from pfc.warning import CollapseWarning, CostWarning
from tests.models import batched, samples


class Clock:
    """A time that passes only where it is told to."""

    now = 0.0

    def __call__(self):
        return self.now

    def passes(self, seconds, run):
        """`run`, which takes so long."""

        def taking(*args, **kwargs):
            self.now += seconds
            return run(*args, **kwargs)

        return taking


class Slow(nn.Module):
    """Two maps of one shape and a vector; each forward pass takes three seconds."""

    def __init__(self, clock):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)
        self.clock = clock

    def forward(self, x):
        self.clock.now += 3
        return self.head(self.b(self.a(x)).mean((2, 3)))


class Loader(list):
    """Batches that take half a second each to come."""

    def __init__(self, batches, clock):
        super().__init__(batches)
        self.clock = clock

    def __iter__(self):
        for batch in super().__iter__():
            self.clock.now += 0.5
            yield batch


@pytest.fixture
def clock(monkeypatch):
    """A clock for which a group of layers takes 1 s a layer in pass one, a layer 0.25 s in pass two."""
    clock = Clock()
    add, take = GroupSums.add, NearestMean.take

    def added(self, batch, labels, origin):
        clock.now += len(batch) ** 2
        add(self, batch, labels, origin)

    monkeypatch.setattr(GroupSums, "add", added)
    monkeypatch.setattr(NearestMean, "take", clock.passes(0.25, take))
    return clock


def told(clock, size=10, n=40, **asked):
    data = Loader(batched(*samples(n, (1, 6, 6)), size), clock)
    asked = Asked(layers=["a", "b", "classifier.input"], **asked)
    return forecast.forecast(Slow(clock), data, asked, clock=clock)


def test_the_parts_are_what_the_clock_says(clock):
    found = told(clock)
    each = found.per_batch
    assert (each.reading, each.forward, each.first, each.second) == (0.5, 3, 4 + 1, 3 * 0.25)
    assert found.batches == 4
    assert found.seconds == 4 * (2 * (0.5 + 3) + 5 + 0.75)
    assert found.savings["segments"].seconds == 4 * (4 - 2), "a layer by itself takes 1 s, two take 4"
    assert found.savings["pool"].seconds == 0, "which here takes as long"
    assert "limit" not in found.savings, "of so few samples none"


def test_one_pass_has_no_second(clock):
    found = told(clock, passes=1)
    assert found.seconds == 4 * (0.5 + 3 + 5)
    assert Seconds(1.0, 2.0, 3.0, 4.0, 5.0).of(10) == 10 * (2 * 3 + 3 + 4) + 5


def test_bytes_are_those_of_the_cost_model(clock):
    found = told(clock)
    shapes = [(4, 6, 6), (4, 6, 6), (4,)]
    want = cost(shapes, 3)
    assert found.bytes == want
    assert found.peak == want.peak + 10 * 4 * 2 * 144
    apart, pooled = cost(shapes, 3, segments=False), cost([(4,), (4,), (4,)], 3)
    assert found.savings["segments"].bytes == found.peak - apart.peak
    assert found.savings["pool"].bytes >= found.peak - pooled.peak - 10 * 4 * 3 * 4


def test_a_limit_saves_its_share(clock, monkeypatch):
    monkeypatch.setattr(outlook, "EACH", 5)  # 15 of three classes, less than half of 40
    found = told(clock)
    saving = found.savings["limit"]
    assert (saving.value, saving.bytes) == (15, 0)
    assert saving.seconds == pytest.approx((4 - 1.5) * (7 + 5.75))


def test_a_batch_is_timed_about_the_means_of_all_classes(clock, monkeypatch):
    take = NearestMean.take

    def taking(self, z, *rest):
        clock.now += z.shape[1]
        return take(self, z, *rest)

    monkeypatch.setattr(NearestMean, "take", taking)
    of_three = 2 * 3  # the rank of three means is 2 at each of three layers
    assert told(clock).per_batch.second == pytest.approx(of_three + 3 * 0.25)
    assert told(clock, size=1, classes=9).per_batch.second == pytest.approx(2 * 8 + 4 + 3 * 0.25)


@pytest.mark.parametrize("size", [1, 10])
def test_sorted_data_and_single_samples_have_a_forecast(clock, size):
    x, y = samples(40, (1, 6, 6))
    data = Loader(batched(x[y.argsort()], y.sort()[0], size), clock)
    found = forecast.forecast(Slow(clock), data, Asked(layers=["a", "b"]), clock=clock)
    assert found.per_batch.second == 2 * 0.25


def test_points_at_random_are_as_far_apart_as_those_there_are():
    M = 5 + 2 * torch.randn(50, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = torch.random.get_rng_state()
    found = rehearsal._strewn(M, 60)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.std().item() == pytest.approx(2, rel=0.05)
    assert found.mean().item() == pytest.approx(5, rel=0.05)
    alone = rehearsal._strewn(M[:1], 60) - M[:1]
    assert alone.std().item() == pytest.approx(M[0].square().mean().sqrt().item(), rel=0.05)
    assert rehearsal._strewn(torch.zeros_like(M), 60).std().item() == pytest.approx(1, rel=0.05)


def test_what_only_the_first_batch_takes_is_not_of_all(clock):
    net, calls = Slow(clock), []

    def compiles(_, args):
        if len(args[0]) == 10:  # no look at two samples
            clock.now += 100 * (not calls)
            calls.append(1)

    net.register_forward_pre_hook(compiles)
    data = batched(*samples(40, (1, 6, 6)))
    assert forecast.forecast(net, data, Asked(layers=["a"]), clock=clock).per_batch.forward == 3


def whole(*widths, classes):
    """What the seconds of pass one, pass two, and the bases are proportional to."""
    second = sum((D + classes) * min(D, classes) for D in widths)
    return sum(widths), second, sum(D * classes * min(D, classes) for D in widths)


@pytest.mark.parametrize(("classes", "most"), [(3, 36), (500, 63), (500, 8)])
def test_what_has_no_room_is_timed_in_part(clock, monkeypatch, classes, most):
    K, D = min(most, classes), min(most, 144)
    of_part = cost([(D,), (D,), (4, 1)], K)
    monkeypatch.setattr(rehearsal, "free_memory", lambda _: 10 * of_part.peak)
    shapes, empty = [], Sums.empty
    monkeypatch.setattr(
        Sums, "empty", lambda layout, K, *a: shapes.append((layout.features, K)) or empty(layout, K, *a)
    )
    about_means = clock.passes(7, rehearsal.about_means)
    monkeypatch.setattr(rehearsal, "about_means", about_means)
    found = told(clock, classes=classes)
    assert shapes[0] == ({"a": D, "b": D, "classifier.input": 4}, K)
    assert found.bytes == cost([(4, 6, 6), (4, 6, 6), (4,)], classes), "told of all"
    assert (found.most, found.classes) == (most, classes)
    pairs = zip(whole(144, 144, 4, classes=classes), whole(D, D, 4, classes=K), strict=True)
    first, second, once = (a / b for a, b in pairs)
    each = found.per_batch
    assert (each.forward, each.reading) == (3, 0.5)
    assert each.first == pytest.approx(5 * first)
    assert each.second == pytest.approx(0.75 * second)
    assert each.once == pytest.approx(7 * once)


def test_what_has_no_room_about_other_means_is_timed_in_part(clock, monkeypatch):
    data = batched(*samples(40, (1, 6, 6)))
    means = pfc.measure(Slow(clock), data, layers=["a", "b"], progress=False)
    monkeypatch.setattr(rehearsal, "free_memory", lambda _: 10 * cost([(2,), (2,)], 2).peak)
    found = forecast.forecast(Slow(clock), data, Asked(means=means), clock=clock)
    assert found.most == 2
    assert found.per_batch.second == pytest.approx(0.5 * (147 * 3) / (4 * 2))


def test_where_nobody_tells_what_is_free_there_is_some_room(clock, monkeypatch):
    monkeypatch.setattr(rehearsal, "free_memory", lambda _: None)
    assert told(clock).most is None
    monkeypatch.setattr(rehearsal, "BYTES", 1)
    assert told(clock).most == 2
    assert told(clock, passes=1).most == 2


def test_the_bases_take_seconds_at_most(clock, monkeypatch):
    monkeypatch.setattr(rehearsal, "WORK", 2 * 72 * 3 * 3 + 4 * 3 * 3)
    assert told(clock).most == 72
    assert told(clock, passes=1).most is None


def test_about_other_means_nothing_is_paired(clock):
    x, y = samples(40, (1, 6, 6))
    data = batched(x, y)
    means = pfc.measure(Slow(clock), data, layers=["a", "b"], progress=False)
    found = forecast.forecast(Slow(clock), data, Asked(means=means), clock=clock)
    assert found.savings == {}
    assert found.per_batch.second == 0.5


def test_what_measure_refuses_is_refused(clock):
    with pytest.raises(ValueError, match=r"no layer matches 'c\*'"):
        forecast.forecast(Slow(clock), batched(*samples(40, (1, 6, 6))), Asked(layers=["c*"]))
    with pytest.raises(ValueError, match="passes must be 1 or 2, got 3"):
        told(clock, passes=3)


def test_labels_that_measure_refuses_are_refused(clock):
    x, y = samples(40, (1, 6, 6))
    data = batched(x, torch.full_like(y, 7))  # sorted
    words = r"batch 0 has the label 7, but there are 3 classes \(0..2\)"
    with pytest.raises(ValueError, match=words):
        forecast.forecast(Slow(clock), data, Asked(layers=["a"]))
    features = {"a": x.flatten(1)}
    with pytest.raises(ValueError, match=words):
        forecast.forecast_features(features, data[0][1].repeat(4), torch.ones(3, 36), Asked())
    few = [(x[y < 2], y[y < 2])]
    with pytest.warns(CollapseWarning, match="have no sample"):
        means = pfc.measure(Slow(clock), few, layers=["a"], progress=False)
    with pytest.raises(ValueError, match=r"classes \[2\] have samples here, but none behind the means"):
        forecast.forecast(Slow(clock), batched(x, y), Asked(means=means))


def test_an_unknown_length_has_the_time_of_a_batch_only(clock):
    class Endless:
        def __iter__(self):
            yield from batched(*samples(40, (1, 6, 6)))

    found = forecast.forecast(Slow(clock), Endless(), Asked(layers=["a", "b"]), clock=clock)
    assert (found.batches, found.seconds, found.savings) == (None, None, {})
    found = forecast.forecast(Slow(clock), Endless(), Asked(layers=["a", "b"], limit=25), clock=clock)
    assert found.batches == 3


NETS = """
from tests.test_forecast import Clock, Slow
clock = Clock()
def slow():
    net = Slow(clock)
    net.head = __import__("torch").nn.Linear(4, 10)
    return net
"""


@pytest.fixture
def command(monkeypatch, tmp_path, clock):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slownets.py").write_text(NETS)
    monkeypatch.setattr(forecast, "free_memory", lambda _: 3 * 2**30)
    import sys

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    import slownets

    slownets.clock = clock
    for name in ("forecast", "forecast_features"):
        monkeypatch.setattr(measuring, name, partial(getattr(forecast, name), clock=clock))
    common = "--data digits --limit 200 --batch-size 100 --layers a b classifier.input --dry-run"
    return ["measure", "slownets:slow", *common.split()]


OUT = """\
Slow on digits: 2 batches of 100, 10 classes; layers: named
                      shape numbers segment
a                 4 x 8 x 8     256       1
b                 4 x 8 x 8     256       1
classifier.input          4       4       -
memory: {state} of state, {peak} at the peak with a batch's features; 3 GiB are free
time: about 24 s (reading 0 s, forward passes 12 s, statistics 12 s)
--no-segments would save about 4 s and {apart}
--pool mean would save about 0 s and {pooled}
nothing was measured
"""


def test_the_command_prints_a_table_and_sentences(command, capsys):
    main(command)
    shapes = [(4, 8, 8), (4, 8, 8), (4,)]
    whole, apart = cost(shapes, 10), cost(shapes, 10, segments=False)
    means, of_batch = cost([(4,)] * 3, 10), 100 * 4 * 512
    sizes = {
        "state": whole.state,
        "peak": whole.peak + of_batch,
        "apart": whole.peak + of_batch - apart.peak,
        "pooled": whole.peak + of_batch - means.peak - 100 * means.batch,
    }
    assert capsys.readouterr().out == OUT.format(**{k: in_bytes(n) for k, n in sizes.items()})


def test_the_command_gives_the_same_as_json(command, capsys):
    main([*command, "--json", "--no-segments"])
    found = json.loads(capsys.readouterr().out)
    assert found["layers"]["a"] == {"shape": [4, 8, 8], "numbers": 256, "segment": None}
    assert (found["batches"], found["batch_size"], found["classes"]) == (2, 100, 10)
    assert found["seconds"]["total"] == 2 * (2 * 3 + 3 + 0.75)
    assert found["seconds"]["of_a_batch"]["forward"] == 3
    assert found["bytes"]["free"] == 3 * 2**30
    assert list(found["savings"]) == ["--pool mean"]


def test_the_command_counts_what_is_read_besides(command, capsys):
    fewer = [{"200": "100"}.get(word, word) for word in command]
    main([*fewer, "--split", "fit", "--probe"])
    out = capsys.readouterr().out
    assert "1 batch of 100, 10 classes" in out
    assert "time: about 12 s more for split 'held-out' beside it, which --no-test leaves out" in out
    assert "time: about 12 s more for the probe" in out
    main([*command, "--means", "fit"])
    out = capsys.readouterr().out
    assert "more for the class means of split 'fit'" in out
    assert "--no-segments" not in out, "about other means nothing is paired"


def test_the_command_says_what_is_scaled_up(command, capsys, monkeypatch):
    monkeypatch.setattr(rehearsal, "WORK", 1)
    main(command)
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("time: "))
    assert lines[at + 1] == (
        "time: statistics of at most 2 classes and numbers a layer were tried, to be brief and spare "
        "memory; their time is scaled up from those, and rough"
    )
    main([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["seconds"]["tried_at_most"] == 2


@pytest.mark.parametrize("dry", [True, False])
def test_the_command_refuses_one_pass_about_other_means(command, capsys, clock, dry):
    with pytest.raises(SystemExit):
        main([*(command if dry else command[:-1]), "--means", "fit", "--passes", "1"])
    assert "about the means of other data both passes are needed" in capsys.readouterr().err
    assert clock.now == 0, "before anything is measured"


def test_nothing_is_saved(command, capsys, tmp_path):
    main([*command, "--out", "p.json"])
    assert sorted(p.name for p in tmp_path.glob("p*")) == []


def test_features_of_a_file_have_a_forecast(command, capsys, tmp_path):
    x, y = samples(40, (6,))
    np.savez(tmp_path / "f.npz", a=x.numpy(), b=x.numpy(), y=y.numpy())
    main(["measure", str(tmp_path / "f.npz"), "--labels", "y", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "features on f: 1 batch of 40, 3 classes; layers: named"
    assert lines[5] == "time: about 4.5 s (reading 0 s, forward passes 0 s, statistics 4.5 s)"
    assert lines[6].startswith("--no-segments would save about 2 s and ")
    assert lines[7:] == ["nothing was measured"]


LAYERS = ("a", "b", "classifier.input")


def measured(clock, monkeypatch, **options):
    """A measurement by this clock."""
    monkeypatch.setattr(outlook, "CLOCK", clock)
    data = Loader(batched(*samples(400, (1, 6, 6))), clock)
    return pfc.measure(Slow(clock), data, layers=LAYERS, progress=False, **options)


def test_a_long_measurement_says_so_once(clock, monkeypatch):
    with pytest.warns(CostWarning) as caught:
        measured(clock, monkeypatch)
    assert [str(w.message) for w in caught if w.category is CostWarning] == [
        "measuring takes about 11 min, by its first batches: pool='mean' has 24.3 times fewer numbers "
        "to sum, segments=False pairs no layers and keeps 16.8 KiB less"
    ]


def test_a_limit_is_named_where_it_would_do(clock, monkeypatch):
    monkeypatch.setattr(outlook, "EACH", 5)
    with pytest.warns(CostWarning, match=r"batches: limit=15 \(5 a class\) takes about 26 s, pool="):
        measured(clock, monkeypatch)


@pytest.mark.parametrize("options", [{"passes": 1}, {"limit": 200}])
def test_a_short_measurement_says_nothing(clock, monkeypatch, options):
    measured(clock, monkeypatch, **options)  # pytest makes an error of any warning


def test_the_first_batch_does_not_count(clock, monkeypatch):
    net, calls = Slow(clock), []
    monkeypatch.setattr(outlook, "CLOCK", clock)

    def loads(*_):
        clock.now += 500 * (len(calls) == 1)  # the first call is the look at two samples
        calls.append(1)

    net.register_forward_pre_hook(loads)
    pfc.measure(net, batched(*samples(40, (1, 6, 6))), layers=LAYERS, progress=False)


def test_compiling_does_not_count(clock, monkeypatch):
    add, calls = GroupSums.add, []

    def compiling(*args):
        clock.now += 500 * (not calls)
        calls.append(1)
        add(*args)

    monkeypatch.setattr(GroupSums, "add", compiling)
    monkeypatch.setattr(passes.fused, "compiles", lambda *_: True)
    monkeypatch.setattr(outlook, "CLOCK", clock)
    pfc.measure(Slow(clock), batched(*samples(40, (1, 6, 6))), layers=LAYERS, progress=False)


@pytest.mark.parametrize("arrays", [False, True])
def test_a_lack_of_memory_is_told_before_it_is_met(clock, monkeypatch, arrays):
    x, y = samples(40, (1, 6, 6))
    features = {"a": torch.randn(40, 4, 6, 6), "b": torch.randn(40, 4, 6, 6)}
    of_arrays = partial(pfc.measure_features, features, y)
    run = of_arrays if arrays else partial(pfc.measure, Slow(clock), batched(x, y), layers=["a", "b"])
    rows = 40 if arrays else 10
    shapes = [(4, 6, 6)] * 2
    need = cost(shapes, 3).peak + rows * 4 * 288
    monkeypatch.setattr(outlook, "free_memory", lambda _: need)
    run(progress=False)
    monkeypatch.setattr(outlook, "free_memory", lambda _: need - 1)
    apart = cost(shapes, 3, segments=False).peak
    pooled = cost([(4,)] * 2, 3).peak + rows * 4 * 8
    helps = "" if arrays else f"pool='mean' needs about {in_bytes(pooled)}, "
    want = (
        f"measuring needs about {in_bytes(need)} of memory, and {in_bytes(need - 1)} are free: {helps}"
        f"segments=False needs about {in_bytes(apart)}"
    )
    with pytest.warns(CostWarning) as caught:
        run(progress=False)
    assert [str(w.message) for w in caught if w.category is CostWarning] == [want]
    monkeypatch.setattr(outlook, "free_memory", lambda _: 1)
    with pytest.warns(CostWarning, match=r": name fewer layers with layers=$"):
        pfc.measure_features({"a": x}, y, progress=False)


def test_free_memory_is_what_the_system_says(tmp_path, monkeypatch):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:  90 kB\nMemFree:   7 kB\nMemAvailable:  12 kB\n")
    monkeypatch.setattr(memory, "MEMORY", str(told))
    monkeypatch.setattr(memory, "GROUP", str(tmp_path / "none"))
    assert memory.free_memory(torch.device("cpu")) == 12 * 1024
    monkeypatch.setattr(memory, "MEMORY", str(tmp_path / "none"))
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}.get)
    assert memory.free_memory(torch.device("cpu")) == 40960
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.free_memory(torch.device("cpu")) is None


def limited(folder, kind, limit, used, files):
    """A folder of a group with its limit, as Linux shows it."""
    _, *names, counted = memory.LIMITS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    for name, number in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{number}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{counted} {files}\n")


@pytest.mark.parametrize("kind", [*memory.LIMITS])
def test_free_memory_is_no_more_than_a_container_may_hold(tmp_path, monkeypatch, kind):
    told = tmp_path / "meminfo"
    told.write_text("MemAvailable:  12 kB\n")
    monkeypatch.setattr(memory, "MEMORY", str(told))
    monkeypatch.setattr(memory, "LIMITS", {kind: (str(tmp_path), *memory.LIMITS[kind][1:])})
    (tmp_path / "own").write_text(f"7:other:/\n0:{kind}:/job/step\n")
    monkeypatch.setattr(memory, "GROUP", str(tmp_path / "own"))

    def free():
        return memory.free_memory(torch.device("cpu"))

    assert free() == 12 * 1024  # no folder tells a limit
    limited(tmp_path / "job", kind, 9_000, 5_000, 300)
    assert free() == 9_000 - 5_000 + 300
    limited(tmp_path / "job" / "step", kind, "max", 5_000, 300)
    assert free() == 4_300
    limited(tmp_path / "job" / "step", kind, 5_500, 5_000, 300)
    assert free() == 800
    limited(tmp_path, kind, 5_000, 6_000, 10)
    assert free() == 0
    (tmp_path / "own").unlink()
    assert free() == 12 * 1024


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 s"), (0.0234, "0.023 s"), (99.7, "100 s"), (119, "119 s"), (150, "2 min"), (9000, "2.5 h")],
)
def test_times_in_words(number, words):
    assert in_time(number) == words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**41, "2048 GiB")]
)
def test_sizes_in_words(number, words):
    assert in_bytes(number) == words
