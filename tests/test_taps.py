"""Watching a model changes nothing, leaves nothing behind, and refuses what it would see wrongly."""

import random
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pfc
from pfc.evaluation import undisturbed
from pfc.layers import choose
from pfc.taps import first_tensor, pooled, unwrapped
from tests.models import AddInPlace, Net, Plain, Wrapped, batched, collected, randomised, samples, seeded

X, Y = samples()
POINTS = batched(X, Y)
LABELS = torch.cat([y for _, y in POINTS]).numpy()


def measured(model, data=POINTS, **options):
    return pfc.measure(model, data, progress=False, **options)


def fc_resnet():
    return seeded(lambda: randomised(pfc.FCResNet(6, 3, width=8, blocks=2)))


FC_ROWS = ["stem", "blocks.0", "blocks.1"]


def sees(model, names, *, plain=None, data=POINTS, **options):
    """Check that means and scatters of `names` are those of the outputs that plain hooks clone."""
    profile = measured(model, data, layers=names, **options)
    H = collected(plain if plain is not None else model, data, names)
    for name in names:
        moments, rows = profile.moments[name], H[name]
        for k in range(3):
            mean = rows[k == LABELS].mean(0)
            np.testing.assert_allclose(moments.mean[k], mean, rtol=1e-12, atol=1e-12)
            scatter = ((rows[k == LABELS] - mean) ** 2).sum()
            np.testing.assert_allclose(moments.scatter[k], scatter, rtol=1e-12)
    return profile


# Nothing is left behind


def content(tensor):
    return None if tensor is None else tensor.detach().numpy().tobytes()


def hooks(model):
    """Every registered hook of every module, whatever its kind."""
    return {
        (name, kind): list(found.items())
        for name, module in model.named_modules()
        for kind, found in vars(module).items()
        if kind.endswith(("hooks", "hooks_with_kwargs", "hooks_always_called")) and found
    }


def state(model):
    """All that measuring might disturb, in a form that compares."""
    dynamo = torch._dynamo.eval_frame
    return {
        "tensors": {name: content(t) for name, t in model.state_dict(keep_vars=True).items()},
        "identities": [id(p) for p in model.parameters()],
        "versions": [p._version for p in model.parameters()],
        "grads": [content(p.grad) for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": hooks(model),
        "torch": content(torch.get_rng_state()),
        "numpy": str(np.random.get_state()),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "stance": dynamo._stance.stance,
        "grad_mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "inference": torch.is_inference_mode_enabled(),
    }


class Restless:
    """Data that draw from every source of random numbers, in another order each time.

    Args:
        stop: What is raised after two batches, or `None`.
    """

    def __init__(self, stop=None):
        self.stop = stop

    def __iter__(self):
        order = torch.randperm(len(POINTS)).tolist()
        random.shuffle(order)
        np.random.shuffle(order)
        for i, number in enumerate(order):
            if self.stop is not None and i == 2:
                raise self.stop
            yield POINTS[number]


class Breaks(nn.Module):
    """Passes its input on, until it has run some times.

    Args:
        error: What is then raised.
        after: How often it runs before.
    """

    def __init__(self, error=None, after=3):
        super().__init__()
        self.error, self.left = error, after

    def forward(self, x):
        self.left -= 1
        if self.error is not None and self.left < 0:
            raise self.error
        torch.rand(3), random.random(), np.random.rand()
        return x


def lived_in(error=None, after=3):
    """A model with mixed modes, frozen and graded parameters, dropout and batch statistics."""
    parts = {
        **dict(a=nn.Linear(6, 8), norm=nn.BatchNorm1d(8), drop=nn.Dropout(0.5)),
        **dict(breaks=Breaks(error, after), act=nn.ReLU(inplace=True), b=nn.Linear(8, 8)),
    }
    model = seeded(lambda: randomised(Net(parts)))
    model.train()
    model.norm.eval()
    model.b.eval()
    model.a.weight.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    return model


@pytest.mark.parametrize(
    "options",
    [{}, dict(layers=["a", "b"]), dict(passes=1), dict(segments=False), dict(limit=13)],
    ids=str,
)
def test_nothing_is_left_behind(options):
    model = lived_in()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before, data = state(model), POINTS if "limit" in options else Restless()
    measured(model, data, **options)
    assert state(model) == before


@pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
def test_random_states_are_put_back(error):
    # by itself, since the type checker of the tests draws from `random` as well
    def states():
        return random.getstate(), str(np.random.get_state()), content(torch.get_rng_state())

    def disturbed():
        with undisturbed(model, torch.device("cpu")):
            random.seed(5), np.random.seed(5), torch.manual_seed(5)
            if error is not None:
                raise error

    model, before = fc_resnet(), states()
    if error is None:
        disturbed()
    else:
        with pytest.raises(type(error)):
            disturbed()
    assert states() == before


class Interrupted(BaseException):
    """Like KeyboardInterrupt, no Exception, but harmless to the test run."""


@pytest.mark.parametrize("after", [0, 1, 2, 7])
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), Interrupted()], ids=repr)
def test_nothing_is_left_behind_after_an_error_in_the_forward_pass(error, after):
    model = lived_in(error, after)
    before = state(model)
    told = ValueError if isinstance(error, Exception) else type(error)
    with pytest.raises(told) as caught:
        measured(model, Restless())
    assert error in {caught.value, caught.value.__cause__}
    assert state(model) == before


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
def test_nothing_is_left_behind_after_an_error_in_the_data(error):
    model = lived_in()
    before = state(model)
    kind = ValueError if isinstance(error, Exception) else type(error)
    with pytest.raises(kind) as caught:
        measured(model, Restless(error))
    assert error in {caught.value, caught.value.__cause__}
    assert state(model) == before


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(layers="nothing"), "no layer matches"),
        (dict(pool="max"), "pool must be"),
        (dict(classes=2), "but there are 2 classes"),
        (dict(classifier="norm"), "classifier 'norm' is no linear layer"),
    ],
    ids=str,
)
def test_nothing_is_left_behind_after_a_refusal(options, match):
    model = lived_in()
    before = state(model)
    with pytest.raises(ValueError, match=match):
        measured(model, Restless(), **options)
    assert state(model) == before


def test_a_shuffled_loader_leaves_the_random_state():
    loader = DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True)
    model = fc_resnet()
    before = state(model)
    measured(model, loader)
    assert state(model) == before


def test_data_are_read_once_a_pass():
    class Counted(list):
        read = 0

        def __iter__(self):
            self.read += 1
            return super().__iter__()

    once, twice = Counted(POINTS), Counted(POINTS)
    measured(fc_resnet(), once, passes=1)
    measured(fc_resnet(), twice)
    assert twice.read - once.read == 1


def test_features_leave_nothing_behind():
    model = lived_in()
    before = state(model)
    pfc.features(model, Restless(), ["a", "b"])
    assert state(model) == before


def test_logits_are_the_same_before_while_and_after():
    model = fc_resnet().eval()
    with torch.no_grad():
        before = [model(x) for x, _ in POINTS]
        during = []
        handle = model.register_forward_hook(lambda _m, _x, out: during.append(out.clone()))
        measured(model, layers="**")
        handle.remove()
        after = [model(x) for x, _ in POINTS]
    passes = during[1:]  # the first run is a look at two samples
    assert len(passes) == 2 * len(POINTS)
    for i, logits in enumerate(before):
        assert torch.equal(logits, after[i])
        assert torch.equal(logits, passes[i])
        assert torch.equal(logits, passes[i + len(POINTS)])


def test_a_pending_backward_pass_survives():
    model = fc_resnet()
    loss = model(X).square().mean()
    want = torch.autograd.grad(loss, model.classifier.weight, retain_graph=True)[0]
    measured(model)
    loss.backward()
    assert torch.equal(model.classifier.weight.grad, want)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_measuring_inside_other_gradient_modes(mode):
    want = measured(fc_resnet()).table()
    with mode():
        profile = measured(fc_resnet(), [(x + 0, y + 0) for x, y in POINTS])
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert profile.table().equals(want)
    assert not profile.moments["stem"].mean.is_inference()


def test_a_model_that_runs_in_inference_mode_by_itself():
    class Sealed(pfc.FCResNet):
        @torch.inference_mode()
        def forward(self, x):
            return super().forward(x)

    sealed = Sealed(6, 3, width=8, blocks=2)
    sealed.load_state_dict(fc_resnet().state_dict())
    profile, want = measured(sealed), measured(fc_resnet())
    assert (
        profile.table().loc[FC_ROWS, "pfc1":"fuzziness"].equals(want.table().loc[:, "pfc1":"fuzziness"])
    )
    assert profile.table()["nc3"].iloc[-1] == want.table()["nc3"].iloc[-1]


def test_autocast_around_it_is_off():
    want = measured(fc_resnet()).table()
    with torch.autocast("cpu", torch.bfloat16):
        got = measured(fc_resnet()).table()
        assert torch.is_autocast_enabled("cpu")
    assert got.equals(want)


# A user's own hooks


def test_own_hooks_stay_and_run():
    model, calls = fc_resnet(), []
    kinds = [
        model.blocks[0].register_forward_hook(lambda *_: calls.append("after")),
        model.blocks[0].register_forward_pre_hook(lambda *_: calls.append("before")),
        model.blocks[0].register_full_backward_hook(lambda *_: calls.append("back")),
        model.classifier.register_forward_hook(lambda *_: calls.append("logits"), always_call=True),
        model.classifier.register_forward_pre_hook(lambda *_: calls.append("input")),
    ]
    before = state(model)
    measured(model, layers=["blocks.0", "classifier.input"])
    assert state(model) == before
    assert calls[:4] == ["before", "after", "input", "logits"]
    assert len(calls) == 4 * (1 + 2 * len(POINTS))
    calls.clear()
    model(X).sum().backward()
    assert calls == ["before", "after", "input", "logits", "back"]
    for handle in kinds:
        handle.remove()
    assert not hooks(model)


@pytest.mark.parametrize("prepend", [False, True])
def test_an_output_changed_by_an_own_hook_is_seen_as_the_next_layer_sees_it(prepend):
    model = fc_resnet()
    model.blocks[0].register_forward_hook(lambda _m, _x, out: out.sin() * 3, prepend=prepend)
    H = []
    model.blocks[1].register_forward_pre_hook(lambda _m, x: H.append(x[0].clone()))
    profile = sees(model, FC_ROWS)
    rows = torch.cat(H[1 : 1 + len(POINTS)]).double()
    for k in range(3):
        want = rows[torch.cat([y for _, y in POINTS]) == k].mean(0)
        torch.testing.assert_close(profile.moments["blocks.0"].mean[k], want, rtol=1e-12, atol=1e-12)


def test_an_input_changed_by_an_own_hook_is_the_classifiers_input():
    model = fc_resnet()
    model.classifier.register_forward_pre_hook(lambda _m, x: (x[0] + 1,))
    profile = measured(model, layers=["blocks.1", "classifier.input"])
    apart = profile.moments["classifier.input"].mean - profile.moments["blocks.1"].mean
    torch.testing.assert_close(apart, torch.ones(3, 8).double(), rtol=0, atol=1e-6)
    assert measured(model).layers[-1] == "classifier.input"


# Outputs that are awkward to see


@pytest.mark.parametrize(
    "act",
    [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True), nn.Dropout(inplace=True), AddInPlace()],
    ids=lambda act: type(act).__name__,
)
@pytest.mark.parametrize("segments", [True, False])
def test_outputs_are_those_before_an_in_place_layer(act, segments):
    model = seeded(lambda: Net(dict(a=nn.Linear(6, 8), act=act, b=nn.Linear(8, 8), last=AddInPlace())))
    sees(model, ["a", "act", "b", "last"], segments=segments)
    if not isinstance(act, nn.Dropout):
        rows = measured(model, segments=segments).moments
        assert not torch.equal(rows["a"].mean, rows["act"].mean)


def test_residual_sums_in_place_all_the_way():
    model = seeded(lambda: Net(dict(a=nn.Linear(6, 8), **{f"r{i}": AddInPlace() for i in range(4)})))
    names = ["a", "r0", "r1", "r2", "r3"]
    profile = sees(model, names)
    H = collected(model, POINTS, names)
    steps = [
        np.mean([((H[b] - H[a])[k == LABELS] ** 2).sum(1).mean() for k in range(3)])
        for a, b in pairwise(names)
    ]
    path = np.concatenate([[0], np.cumsum(np.sqrt(steps))])
    np.testing.assert_allclose(profile.table()["position"], path / path[-1], rtol=1e-12)
    assert profile.about["at_classifier"] == "r3"
    assert measured(model, layers=names[:3]).about["at_classifier"] is None


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda h: (h, None), lambda out: out[0]),
        (lambda h: [None, (h, h + 1)], lambda out: out[1][0]),
        (lambda h: {"none": None, "hidden": h}, lambda out: out["hidden"]),
    ],
    ids=["tuple", "nested", "dict"],
)
def test_outputs_in_containers(wrap, unwrap):
    model = seeded(lambda: Wrapped(wrap, unwrap))
    profile = sees(model, ["inner"])
    inside = measured(model, layers="inner.linear")
    assert torch.equal(profile.moments["inner"].mean, inside.moments["inner.linear"].mean)
    assert profile.about["classifier"] == "fc"


def test_first_tensor_looks_into_containers():
    a, b = torch.zeros(1), torch.ones(1)
    assert first_tensor(a) is a
    assert first_tensor((None, [], {"x": (b,)}, a)) is b
    assert first_tensor({"x": 3, "y": "text"}) is None


@pytest.mark.parametrize(
    ("wrap", "match"),
    [
        (lambda h: h.argmax(1), r"layer 'inner' gave torch.int64, not floating-point numbers"),
        (lambda h: "text", r"layer 'inner' gave no tensor, not floating-point numbers"),
        (lambda h: h.mean(), r"layer 'inner' gave torch.float32, not floating-point numbers of each"),
    ],
)
def test_outputs_that_are_no_features_are_refused(wrap, match):
    model = seeded(lambda: Wrapped(wrap, lambda out: torch.zeros(len(X), 8)[:2]))
    with pytest.raises(ValueError, match=match):
        measured(model, [(X, Y)], layers="inner")


def test_an_output_that_turns_into_no_features_is_refused():
    turns = [0]

    def wrap(h):
        turns[0] += 1
        return h if turns[0] < 3 else None

    model = Wrapped(wrap, lambda out: X[:10].repeat(1, 2)[:, :8] if out is None else out)
    with pytest.raises(
        ValueError, match="layer 'inner' gave no tensor of floating-point numbers but None"
    ):
        measured(model, layers="inner")


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
    parts = dict(embed=nn.Unflatten(1, (3, 2)), up=nn.Linear(2, 8))
    tower = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Net(dict(**parts, tower=tower, flat=nn.Flatten()), width=24)


def test_the_fast_path_of_transformer_layers_is_off_and_back_on():
    model = seeded(encoder).eval()
    names = ["tower.layers.0.linear1", "tower.layers.0", "tower.layers.1.norm2", "tower.layers.1"]
    assert torch.backends.mha.get_fastpath_enabled()
    sees(model, names)
    assert torch.backends.mha.get_fastpath_enabled()
    assert measured(model).layers == ("tower.layers.0", "tower.layers.1")
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        measured(model)
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


# Wrappers


def test_data_parallel_is_looked_through():
    model = fc_resnet()
    wrapper = nn.DataParallel(model)
    before = state(wrapper)
    assert measured(wrapper).table().equals(measured(model).table())
    assert state(wrapper) == before
    assert list(choose(wrapper, wrapper.module.stem)[0]) == ["stem"]


@pytest.fixture
def process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_distributed_data_parallel_is_looked_through(process_group):
    model = fc_resnet()
    wrapper = nn.parallel.DistributedDataParallel(model)
    before = state(wrapper)
    profile = measured(wrapper, layers=["blocks.*", "classifier.input"])
    want = measured(model, layers=["blocks.*", "classifier.input"])
    assert profile.table().equals(want.table())
    assert profile.about["model"] == "FCResNet"
    assert state(wrapper) == before
    wrapper(X).sum().backward()  # its own hooks still average the gradients


@pytest.fixture
def compiled():
    """Compiles with a backend that counts the graphs it is given and runs them as they are."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    yield lambda model, **options: torch.compile(model, backend=backend, **options), graphs
    torch._dynamo.reset()


def as_module(compile, model):
    return compile(model)


def child(compile, model):
    model.blocks[1] = compile(model.blocks[1])
    return model


def nested(compile, model):
    return nn.DataParallel(compile(child(compile, model)))


@pytest.mark.parametrize("called", [False, True], ids=["new", "called"])
@pytest.mark.parametrize("how", [as_module, child, nested])
def test_compiled_models_are_seen_and_stay_compiled(how, called, compiled):
    compile, graphs = compiled
    plain, model = seeded(Plain), how(compile, seeded(Plain))
    model.eval()
    with torch.no_grad():
        if called:
            model(X)
        before, known = state(model), len(graphs)
        assert bool(known) == called
        names = ["stem", "blocks.0", "blocks.1.f.0", "blocks.1"]
        assert sees(model, names, plain=plain).table().equals(measured(plain, layers=names).table())
        assert measured(model).layers == tuple(FC_ROWS)
        assert state(model) == before
        assert len(graphs) == known  # it ran eagerly
        logits = model(X)
        assert len(graphs) == known if called else graphs  # and what was compiled is used again
    torch.testing.assert_close(logits, plain.eval()(X))


@pytest.mark.parametrize("called", [False, True], ids=["new", "called"])
def test_models_compiled_in_place_are_seen(called, compiled):
    _, graphs = compiled
    plain, model = seeded(Plain), seeded(Plain).eval()
    model.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    with torch.no_grad():
        if called:
            model(X)
        known = len(graphs)
        assert measured(model).table().equals(measured(plain).table())
        assert len(graphs) == known
        model(X)
        assert len(graphs) == known if called else graphs


def test_a_stance_of_ones_own_is_put_back(compiled):
    compile, _ = compiled
    model = compile(seeded(Plain))
    with torch.compiler.set_stance("eager_on_recompile"):
        measured(model)
        assert torch._dynamo.eval_frame._stance.stance == "eager_on_recompile"
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_wrappers_come_off(compiled):
    compile, _ = compiled
    model = seeded(Plain)
    assert unwrapped(model) is model
    assert unwrapped(nn.DataParallel(compile(nn.DataParallel(model)))) is model


# Refused by name


class Reuses(nn.Module):
    """A network in which one layer runs twice and one not at all."""

    def __init__(self):
        super().__init__()
        self.a, self.twice, self.never, self.fc = (
            *(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        return self.fc(self.twice(self.twice(self.a(x))))


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ("twice", r"layer 'twice' ran twice in one forward pass, .* tap the modules around it"),
        (["a", "never"], r"layer 'never' never ran: tap a layer that the forward pass uses"),
    ],
)
def test_layers_that_run_twice_or_never_are_refused(layers, match):
    with pytest.raises(ValueError, match=match):
        measured(Reuses(), layers=layers)
    assert measured(Reuses()).layers == ("a", "classifier.input")


class Sometimes(nn.Module):
    """Runs a layer of its own only where `runs` says so for a call.

    Args:
        runs: How often the layer runs in each call.
    """

    def __init__(self, runs):
        super().__init__()
        self.part, self.runs = nn.Linear(8, 8), iter(runs)

    def forward(self, x):
        for _ in range(next(self.runs)):
            x = self.part(x)
        return x


@pytest.mark.parametrize(
    ("runs", "match"),
    [
        ([1, 1, 1, 0, 1, 1], r"layer 'some.part' did not run on batch 2; tap layers that do"),
        ([1, 1, 2], r"layer 'some.part' ran twice in one forward pass"),
        ([0], r"layer 'some.part' never ran"),
        ([2], r"layer 'some.part' ran twice"),
    ],
)
def test_layers_that_run_on_some_batches_only_are_refused(runs, match):
    model = Net(dict(a=nn.Linear(6, 8), some=Sometimes(runs)))
    with pytest.raises(ValueError, match=match):
        measured(model, layers=["a", "some.part"])
    assert not hooks(model)


@pytest.mark.parametrize("layers", ["blocks.0", ["stem", "blocks.*"], None])
def test_an_extracted_graph_is_refused_by_name(layers):
    graph = torch.fx.symbolic_trace(seeded(Plain))
    match = "no layer with features" if layers is None else r"layer '(stem|blocks.0)' never ran"
    with pytest.raises(ValueError, match=rf"{match}.*torch.fx graph.* measure the original model"):
        measured(graph, layers=layers)


def test_the_innermost_modules_of_an_extracted_graph_are_seen():
    model = seeded(Plain)
    graph = torch.fx.symbolic_trace(model)
    sees(graph, ["stem.1", "blocks.0.f.0", "blocks.1.f.1"], plain=model)


@pytest.mark.parametrize("layers", [None, "0"])
def test_a_scripted_model_is_refused(layers):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
        model = torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)))
    with pytest.raises(
        ValueError, match="the model is a ScriptModule, which takes no hooks: measure the"
    ):
        measured(model, layers=layers)


# The choice of layers


def test_a_star_stands_for_one_part_of_a_name():
    model = pfc.ConvResNet(3, (8, 8), 3, blocks=(2, 1), width=2)

    def chosen(layers):
        return list(choose(model, layers)[0])

    assert chosen("*") == ["stem", "stages", "head", "classifier"]
    assert chosen("stages.*") == ["stages.0", "stages.1"]
    assert chosen("stages.*.blocks.*") == [
        f"stages.{b}" for b in ("0.blocks.0", "0.blocks.1", "1.blocks.0")
    ]
    assert chosen("stages.?.reduce") == ["stages.1.reduce"]
    assert chosen(["head", "stem"]) == ["stem", "head"]
    assert len(chosen("stages.**")) == len(list(model.stages.named_modules())) - 1
    assert choose(model, ["stem", "classifier.input"]) == ({"stem": model.stem}, True)
    assert choose(model, "stem") == ({"stem": model.stem}, False)
    assert choose(model, None) == ({name: model.get_submodule(name) for name in model.taps}, True)


def test_a_message_lists_some_of_many_layers():
    model = nn.Sequential(*(nn.ReLU() for _ in range(50)))
    with pytest.raises(
        ValueError, match=r"no layer matches 'relu'; the model has 0, 1, .*, 39 and 10 more"
    ):
        choose(model, "relu")


def test_a_model_of_no_modules_is_refused():
    with pytest.raises(ValueError, match="the model ReLU has no modules to tap"):
        choose(nn.ReLU(), None)


def test_outer_blocks_of_known_nets_are_chosen_and_not_the_inner():
    class BasicBlock(nn.Sequential):
        pass

    inner = BasicBlock(nn.Linear(8, 8))
    model = Net(
        dict(stem=nn.Linear(6, 8), stage=nn.Sequential(BasicBlock(inner), BasicBlock(nn.Tanh())))
    )
    assert list(choose(model, None)[0]) == ["stage.0", "stage.1"]
    assert measured(model).about["chosen"] == "residual blocks"
    flat = Net(dict(stem=BasicBlock(nn.Linear(6, 8)), last=BasicBlock(nn.Tanh())))
    assert measured(flat).layers == ("stem", "last")
    assert measured(flat).about["chosen"] == "residual blocks"


def test_tap_points_that_do_not_exist_are_no_tap_points():
    model = Net(dict(a=nn.Linear(6, 8)))
    model.taps = ("a", "b")
    assert measured(model).layers == ("a",)
    assert measured(model).about["chosen"] == "direct children"


@pytest.mark.parametrize(
    ("shape", "pool", "want"),
    [
        ((2, 3, 4), "mean", (2, 4)),
        ((2, 3, 4, 5), "mean", (2, 3)),
        ((2, 3, 4, 5, 6), "mean", (2, 3)),
        ((2, 3), "mean", (2, 3)),
        ((2, 3), "cls", (2, 3)),
        ((2, 3, 4), "cls", (2, 4)),
        ((2, 3, 4), "flatten", (2, 3, 4)),
    ],
)
def test_pools(shape, pool, want):
    H = torch.randn(shape)
    got = pooled(H, pool)
    assert got.shape == want
    if pool == "mean" and H.ndim > 2:
        axes = (1,) if H.ndim == 3 else tuple(range(2, H.ndim))
        torch.testing.assert_close(got, H.mean(axes))
    elif pool == "cls" and H.ndim == 3:
        assert torch.equal(got, H[:, 0])
    else:
        assert got is H


def test_the_mean_of_half_precision_is_taken_in_float32():
    H = torch.full((1, 3000, 1), 2049.0, dtype=torch.float16)
    assert pooled(H, "mean").dtype == torch.float32
    assert pooled(H.double(), "mean").dtype == torch.float64
    assert float(pooled(H, "mean")) == 2048
