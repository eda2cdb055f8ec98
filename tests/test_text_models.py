"""Layers of transformers for text are the hidden states that these tell of."""

import numpy as np
import pytest
import torch

import pfc
from pfc.evaluation import undisturbed
from pfc.taps import pooled
from tests.models import randomised, seeded
from tests.oracles import naive_row

transformers = pytest.importorskip("transformers")

SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
TEXT = dict(vocab_size=30, max_position_embeddings=16, pad_token_id=0, num_labels=3)
GPT = dict(vocab_size=30, n_positions=16, n_embd=16, n_layer=2, n_head=2, pad_token_id=0, num_labels=3)
DISTIL = dict(dim=16, n_layers=2, n_heads=2, hidden_dim=24)

MODELS = {
    "Bert": (SMALL | TEXT, ["bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1"]),
    "Roberta": (
        SMALL | TEXT,
        ["roberta.embeddings", "roberta.encoder.layer.0", "roberta.encoder.layer.1"],
    ),
    "DistilBert": (
        DISTIL | TEXT,
        [
            *("distilbert.embeddings", "distilbert.transformer.layer.0"),
            "distilbert.transformer.layer.1",
        ],
    ),
    "GPT2": (GPT, ["transformer.drop", "transformer.h.0", "transformer.h.1"]),
    "Llama": (SMALL | TEXT, ["model.embed_tokens", "model.layers.0", "model.layers.1"]),
    "Mistral": (
        SMALL | TEXT | dict(num_key_value_heads=2),
        ["model.embed_tokens", "model.layers.0", "model.layers.1"],
    ),
    "Qwen2": (
        SMALL | TEXT | dict(num_key_value_heads=2),
        ["model.embed_tokens", "model.layers.0", "model.layers.1"],
    ),
    "GPTNeoX": (SMALL | TEXT, ["gpt_neox.embed_in", "gpt_neox.layers.0", "gpt_neox.layers.1"]),
}


def built(name, kind="ForSequenceClassification"):
    config = getattr(transformers, f"{name}Config")(**MODELS[name][0])
    make = getattr(transformers, f"{name}{kind}")
    return seeded(lambda: randomised(make(config))).eval()


def sentences(n=40, T=6):
    make = torch.Generator().manual_seed(3)
    y = torch.arange(n) % 3
    ids = torch.randint(2, 30, (n, T), generator=make)
    return [{"input_ids": ids[i : i + 8], "labels": y[i : i + 8]} for i in range(0, n, 8)], ids, y


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pool", ["flatten", "mean"])
def test_rows_are_the_hidden_states_that_the_model_tells_of(name, pool):
    model, (data, ids, y) = built(name), sentences()
    profile = pfc.measure(model, data, pool=pool, progress=False)
    names = MODELS[name][1]
    assert list(profile.layers) == [*names, "classifier.input"]
    assert profile.about["chosen"].partition(";")[0] == "residual blocks"
    seen = []
    model.get_submodule(names[-1]).register_forward_hook(
        lambda _m, _x, out: seen.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    with torch.no_grad():
        told = model(input_ids=ids, output_hidden_states=True)
    hidden = [*told.hidden_states[: len(names) - 1], seen[0]]  # the last one may be normalised
    for layer, H in zip(names, hidden, strict=True):
        row = naive_row(pooled(H, pool).flatten(1).double().numpy(), y.numpy())
        for column in ("pfc1", "pfc2", "nc1", "cdnv"):
            np.testing.assert_allclose(profile.table().loc[layer, column], row[column], rtol=1e-4)
    assert profile.accuracy == int((told.logits.argmax(1) == y).sum()) / len(y)


def test_of_a_last_token_the_classifiers_input_is_a_row_but_not_of_what_it_reads():
    profile = pfc.measure(built("GPT2"), sentences()[0], pool="mean", progress=False)
    assert profile.about["classifier"] == "score"
    assert profile.about["at_classifier"] is None
    assert "the classifier does not read what pool= makes of its input" in profile.about["chosen"]


def test_a_language_model_answers_for_tokens_not_for_samples():
    model, (data, *_) = built("GPT2", "LMHeadModel"), sentences()
    profile = pfc.measure(model, data, pool="mean", classes=3, progress=False)
    assert profile.accuracy is None
    assert "what the classifier answers to a sample is not known" in str(profile).splitlines()[0]
    named = pfc.measure(model, data, pool="mean", classes=3, classifier="lm_head", progress=False)
    assert named.accuracy is None
    tokens = [{**batch, "labels": batch["input_ids"]} for batch in data]
    profile = pfc.measure(model, tokens, pool="tokens", shift=1, progress=False)
    assert profile.about["classifier"] == "lm_head"  # tied to the embedding
    assert profile.layers[-1] == profile.about["at_classifier"] == "classifier.input"
    assert 0 < profile.table().nc3.iloc[-1] < 2


def test_of_a_model_whose_train_does_more_not_all_weights_are_copied(monkeypatch):
    model, copied = built("Bert"), []
    clone = torch.Tensor.clone

    def counted(tensor, *args, **kwargs):
        copied.append(tensor.numel())
        return clone(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "clone", counted)
    with undisturbed(model, torch.device("cpu")):
        pass
    assert sum(copied) < sum(p.numel() for p in model.parameters()) / 10
