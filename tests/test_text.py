"""Networks of texts: pooling that obeys the attention mask, and tokens as samples."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import pfc
from tests.arrays import profile_of

transformers = pytest.importorskip("transformers")

VOCABULARY, HIDDEN = 23, 12
SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": VOCABULARY,
}


def texts(n=16, seed=0):
    """Sequences of token numbers of many lengths, and a class each."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (n,), generator=g).tolist()
    return [
        (torch.randint(2, 14 if i % 2 else VOCABULARY, (length,), generator=g), i % 2)
        for i, length in enumerate(lengths)
    ]


def batches(rows, size, *, side="right", more=0, tokens=False):
    """Padded batches with an attention mask; of tokens the labels are the inputs themselves."""
    found = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        T = max(len(ids) for ids, _ in part) + more
        ids, mask = (
            torch.ones(len(part), T, dtype=torch.int64),
            torch.zeros(len(part), T, dtype=torch.int64),
        )
        for i, (row, _) in enumerate(part):
            at = slice(0, len(row)) if side == "right" else slice(T - len(row), T)
            ids[i, at], mask[i, at] = row, 1
        batch = {"input_ids": ids, "attention_mask": mask}
        if side == "left":
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        batch["labels"] = ids.clone() if tokens else torch.tensor([label for _, label in part])
        found.append(batch)
    return found


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double().eval()


def bert():
    config = transformers.BertConfig(**SIZES, intermediate_size=16, num_labels=2)
    return transformers.BertForSequenceClassification(config)


def gpt2():
    sizes = {"n_embd": HIDDEN, "n_layer": 3, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def llama():
    config = transformers.LlamaConfig(**SIZES, intermediate_size=16, max_position_embeddings=32)
    return transformers.LlamaForCausalLM(config)


BLOCKS = {"bert": "bert.encoder.layer.*", "gpt2": "transformer.h.*", "llama": "model.layers.*"}
MAKE = {"bert": bert, "gpt2": gpt2, "llama": llama}


def hidden(model, name, rows):
    """The output of every block for each text by itself, T x D, by hooks."""
    kept = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _x, out, path=path: kept.setdefault(path, []).append(
                (out if isinstance(out, torch.Tensor) else out[0])[0].detach().clone()
            )
        )
        for path, module in model.named_modules()
        if path.rpartition(".")[0] == BLOCKS[name].removesuffix(".*")
    ]
    with torch.no_grad():
        for ids, _ in rows:
            model(input_ids=ids[None])
    for handle in handles:
        handle.remove()
    return kept


WAYS = {
    "one by one": dict(size=1),
    "seven": dict(size=7),
    "padded further": dict(size=7, more=5),
    "padded at the left": dict(size=7, side="left"),
}
POOLS = {"mean": lambda H: H.mean(0), "last": lambda H: H[-1], "cls": lambda H: H[0]}


def same(found, known, layers=None):
    for column in known.columns:
        for layer in layers or known.layers:
            a, b = (p.table()[column][layer] for p in (found, known))
            assert a == pytest.approx(b, rel=1e-9, abs=1e-12, nan_ok=True), (column, layer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_pooling_sees_no_padding(name, pool, way):
    if name == "bert" and way == "padded at the left":
        pytest.skip("BERT has absolute positions from the left")
    model, rows = seeded(MAKE[name]), texts()
    model = model if name == "bert" else model.transformer
    blocks = BLOCKS[name].removeprefix("transformer.")
    kept = hidden(model, name, rows) if name == "bert" else hidden_of_base(model, rows)
    features = {path: torch.stack([POOLS[pool](H) for H in each]) for path, each in kept.items()}
    known = profile_of(features, torch.tensor([label for _, label in rows]))
    found = pfc.measure(
        model, batches(rows, **WAYS[way]), layers=blocks, pool=pool, classes=2, progress=False
    )
    assert found.layers == known.layers
    same(found, known)
    assert found.coordinates(known.layers[0])["class"].tolist() == (
        pfc
        .measure(model, batches(rows, 3), layers=blocks, pool=pool, classes=2, progress=False)
        .coordinates(known.layers[0])["class"]
        .tolist()
    )


def hidden_of_base(model, rows):
    wrapped = nn.Module()
    wrapped.transformer = model
    wrapped.forward = lambda **how: model(**how)
    kept = hidden(wrapped, "gpt2", rows)
    return {path.removeprefix("transformer."): each for path, each in kept.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_next_token_at_every_layer(name, way):
    model, rows = seeded(MAKE[name]), texts()
    kept = hidden(model, name, rows)
    features = {path: torch.cat([H[:-1] for H in each]) for path, each in kept.items()}
    labels, y = torch.cat([ids[1:] for ids, _ in rows]).unique(return_inverse=True)
    known = profile_of(features, y)
    data = batches(rows, **WAYS[way], tokens=True)
    how = {"layers": BLOCKS[name], "pool": "tokens", "shift": 1, "progress": False}
    found = pfc.measure(model, data, **how)
    same(found, known, [*features])
    assert found.about["labels"] == labels.tolist()
    assert found.about["samples"] == len(y)
    assert found.classes(found.layers[0]).index.tolist() == labels.tolist()
    with torch.no_grad():
        answers = torch.cat([model(input_ids=ids[None]).logits[0, :-1].argmax(1) for ids, _ in rows])
    assert found.accuracy == pytest.approx(float((answers == labels[y]).double().mean()))


def test_tokens_with_the_label_left_out_are_no_samples():
    model, rows = seeded(bert), texts()
    model = (
        transformers
        .BertForTokenClassification(transformers.BertConfig(**SIZES, intermediate_size=16, num_labels=4))
        .double()
        .eval()
    )
    data = batches(rows, 7)
    kept, y = [], []
    for batch in data:
        g = torch.Generator().manual_seed(len(y))
        labels = torch.randint(0, 4, batch["input_ids"].shape, generator=g)
        labels[torch.rand(labels.shape, generator=g) < 0.3] = -100
        inputs = {name: part for name, part in batch.items() if name != "labels"}
        batch["labels"] = labels
        seen = (labels != -100) & (batch["attention_mask"] == 1)
        with torch.no_grad():
            kept.append(model.bert(**inputs).last_hidden_state[seen])
        y.append(labels[seen])
    found = pfc.measure(model, data, layers="bert.encoder.layer.1", pool="tokens", progress=False)
    known = profile_of({"bert.encoder.layer.1": torch.cat(kept)}, torch.cat(y), W=model.classifier)
    same(found, known, ["bert.encoder.layer.1"])
    H, z = pfc.features(model, data, "bert.encoder.layer.1", pool="tokens", progress=False)
    torch.testing.assert_close(H["bert.encoder.layer.1"], torch.cat(kept))
    assert z.tolist() == torch.cat(y).tolist()


def test_the_first_texts_may_have_no_label():
    model, data = seeded(gpt2), batches(texts(), 7, tokens=True)
    data[0]["labels"][:3] = -100
    turned = [{name: part.flip(0) for name, part in data[0].items()}, *data[1:]]
    how = {"layers": [BLOCKS["gpt2"], "classifier.input"], "pool": "tokens", "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some words occur once
        found, known = (pfc.measure(model, each, **how) for each in (data, turned))
    assert found.about["at_classifier"] == known.about["at_classifier"] == "classifier.input"
    same(found, known)


@pytest.mark.parametrize("shape", [(5, 6), (4500,)])
def test_tokens_are_told_apart_by_their_place_whatever_the_form_of_the_inputs(shape):
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6 * shape[0]).reshape(6, -1) % 3
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)) if shape[1:] else nn.Sequential(Pixels())
    how = {"layers": "0", "progress": False}
    found = pfc.measure(net, [(x[:4], y[:4]), (x[4:], y[4:])], pool="tokens", **how)
    with torch.no_grad():
        known = pfc.measure_features({"0": net[0](x).flatten(0, 1)}, y.flatten(), progress=False)
    assert found.columns["pfc1"] == pytest.approx(known.columns["pfc1"])


class Pixels(nn.Module):
    """Two features of each number."""

    def forward(self, x):
        return torch.stack([x, x.square()], dim=-1)


def test_a_head_on_tokens_laid_end_to_end_answers_each_of_them():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body = nn.Embedding(VOCABULARY, 32), nn.Linear(32, HIDDEN)
            self.head = nn.Linear(HIDDEN, VOCABULARY)

        def forward(self, input_ids, attention_mask):
            h = torch.tanh(self.body(self.embed(input_ids)))
            return self.head(h.flatten(0, 1)).unflatten(0, input_ids.shape)

    model, rows = seeded(Flat), texts(40)
    data = batches(rows, 7, tokens=True)
    found = pfc.measure(model, data, layers="body", pool="tokens", shift=1, progress=False)
    with torch.no_grad():
        answers = torch.cat([model(ids[None], None)[0, :-1].argmax(1) for ids, _ in rows])
    labels = torch.cat([ids[1:] for ids, _ in rows])
    assert found.accuracy == pytest.approx(float((answers == labels).double().mean()))
    assert found.about["classifier"] == "head"
    assert found.about["at_classifier"] is None


def test_the_monitor_sees_no_padding_either():
    model, rows = seeded(bert), texts()
    monitor = pfc.Monitor(model, layers="bert.encoder.layer.*", pool="mean")
    for batch in batches(rows, 7):
        with monitor.batch(batch.pop("labels")), torch.no_grad():
            model(**batch)
    how = {"layers": "bert.encoder.layer.*", "pool": "mean", "passes": 1, "progress": False}
    same(monitor.profile(), pfc.measure(model, batches(rows, 7), **how))


def test_test_texts_about_training_means():
    model = seeded(gpt2)
    how = {"layers": "transformer.h.*", "pool": "tokens", "shift": 1, "progress": False}
    own = pfc.measure(model, batches(texts(40), 9, tokens=True), **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not every word of the training set occurs
        about = pfc.measure(model, batches(texts(20, seed=1), 5, tokens=True), means=own, **how)
    assert about.about["labels"] == own.about["labels"]
    assert np.isfinite(about.columns["pfc1"]).all()
    rows = [(ids.clamp(max=VOCABULARY - 1), label) for ids, label in texts(5, seed=2)]
    rows[0][0][1:] = 0
    with pytest.raises(ValueError, match=r"labels \[0\] of batch 0 are of no class that is known"):
        pfc.measure(model, batches(rows, 5, tokens=True), means=own, **how)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        (
            dict(pool="tokens"),
            r"needs labels of shape \(B, T\), one a token, .* of batch 0 have shape \(7,\)",
        ),
        (dict(shift=1), "shift is for pool='tokens', got shift=1 with pool='flatten'"),
        (dict(pool="tokens", shift=-1), "shift must be at least 0, got -1"),
        (dict(pool="tokens", classes=3), "the classes are the labels that occur, got classes=3"),
        (dict(pool="flatten"), r"gave shape .* on batch 1 of 7 samples; .* take pool='mean'"),
    ],
)
def test_wrong_use_is_refused(how, match):
    rows = sorted(texts(), key=lambda row: len(row[0]))
    with pytest.raises(ValueError, match=match):
        pfc.measure(seeded(bert), batches(rows, 7), **{"layers": BLOCKS["bert"], **how}, progress=False)


def test_samples_of_tokens_have_their_labels():
    model, data = seeded(gpt2), batches(texts(), 8, tokens=True)
    data[0]["labels"][:3] = -100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a normalised stream has one dimension less
        profile = pfc.measure(model, data, pool="tokens", shift=1, progress=False)
    assert profile.layers == (
        "transformer.drop",
        *(f"transformer.h.{l}" for l in range(3)),
        "classifier.input",
    )
    assert profile.about["at_classifier"] == "classifier.input"
    assert set(profile.coordinates("transformer.h.0")["class"]) <= set(profile.about["labels"])


def test_warnings_name_tokens_by_their_labels():
    data = batches(texts(), 8, tokens=True)
    for batch in data:
        batch["labels"][batch["labels"] == 5] = -100
    data[0]["labels"][0, 1] = 5
    with pytest.warns(
        pfc.warning.CollapseWarning, match=r"classes \[5, 8, 15, 18, 22\] have one sample"
    ):
        pfc.measure(seeded(gpt2), data, pool="tokens", shift=1, layers="transformer.h.*", progress=False)


def test_labels_of_tokens_without_the_pool_get_its_name():
    with pytest.raises(ValueError, match="of tokens, one label each, take pool='tokens'"):
        pfc.measure(seeded(gpt2), batches(texts(), 8, tokens=True), progress=False)
