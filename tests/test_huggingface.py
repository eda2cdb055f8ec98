"""The callback of transformers' Trainer: the same bits with it and without, and metrics to choose by."""

import json
import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import pfc
from tests.models import seeded

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
with warnings.catch_warnings(action="ignore"):
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from pfc.integrations import huggingface as integration

Collapse = integration.Collapse
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
pytestmark = pytest.mark.filterwarnings("ignore")


def texts(n=24):
    """Words of two classes, of several lengths."""
    make = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 7, (n,), generator=make).tolist()
    rows = [torch.randint(1, 20 - 9 * (i % 2), (k,), generator=make) for i, k in enumerate(lengths)]
    return [{"input_ids": row, "labels": i % 2} for i, row in enumerate(rows)]


def collated(samples):
    ids = torch.nn.utils.rnn.pad_sequence([s["input_ids"] for s in samples], batch_first=True)
    labels = torch.tensor([s["labels"] for s in samples])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def bert():
    config = BertConfig(vocab_size=20, num_labels=2, **SIZES)
    return seeded(lambda: BertForSequenceClassification(config))


def trainer_of(folder, callbacks=(), evaluation=None, epochs=2, **options):
    arguments = TrainingArguments(
        **{"output_dir": folder, "use_cpu": True, "disable_tqdm": True, "num_train_epochs": epochs},
        **{"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "learning_rate": 1e-2},
        **{"report_to": "none", "eval_strategy": "epoch", "save_strategy": "no"} | options,
    )
    data = texts()
    evaluation = data if evaluation is None else evaluation
    return Trainer(
        bert(), arguments, collated, train_dataset=data, eval_dataset=evaluation, callbacks=[*callbacks]
    )


def bits(trainer):
    return {name: t.clone() for name, t in trainer.model.state_dict().items()}


def same(found, known):
    assert found.keys() == known.keys()
    for name, tensor in known.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    "options", [{}, {"bf16": True, "gradient_checkpointing": True}], ids=["plain", "bfloat16"]
)
def test_training_ends_with_the_same_bits(tmp_path, options):
    """With dropout, and activations that are computed again."""
    plain = trainer_of(tmp_path, **options)
    plain.train()
    collapse = Collapse(pool="cls")
    measured = trainer_of(tmp_path, [collapse], **options)
    measured.train()
    same(bits(measured), bits(plain))
    profiles = collapse.recorder.profiles
    assert list(profiles) == [3, 6]
    assert profiles[6].about["precision"] == ("bfloat16" if options else None)
    assert profiles[6].about["samples"] == 24
    model = measured.model.eval()
    how = {"pool": "cls", "precision": profiles[6].about["precision"], "progress": False}
    known = pfc.measure(model, [collated(texts()[i : i + 8]) for i in (0, 8, 16)], **how)
    np.testing.assert_allclose(profiles[6].table(), known.table(), rtol=1e-9, atol=1e-12)


def test_the_best_model_is_chosen_by_it(tmp_path):
    chosen = {"metric_for_best_model": "eval_pfc/pfc1", "greater_is_better": False}
    kept = {"save_strategy": "epoch", "load_best_model_at_end": True}
    collapse = Collapse(pool="cls", scalars="bert.encoder.layer.1", folder=tmp_path / "pfc")
    trainer = trainer_of(tmp_path / "out", [collapse], **chosen, **kept)
    trainer.train()
    pfc1 = {step: p.scalars()["pfc/pfc1"] for step, p in collapse.recorder.profiles.items()}
    assert trainer.state.best_metric == min(pfc1.values())
    best = min(pfc1, key=pfc1.get)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert list(pfc.load(tmp_path / "pfc").profiles) == [3, 6]
    history = [line for line in trainer.state.log_history if "eval_pfc/pfc1" in line]
    assert [(line["step"], line["eval_pfc/pfc1"]) for line in history] == [*pfc1.items()]
    layer = collapse.recorder.profiles[6].table().pfc1["bert.encoder.layer.1"]
    assert history[1]["eval_pfc/pfc1/bert.encoder.layer.1"] == layer
    state = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())
    assert any("eval_pfc/pfc1" in line for line in state["log_history"])


def test_each_process_measures_its_part_of_the_evaluation_data_in_order():
    loader = DataLoader(range(7), 3, shuffle=True, collate_fn=list)
    args = SimpleNamespace(world_size=2, process_index=1, eval_batch_size=2)
    assert list(integration._plain(loader, args)) == [[1, 3], [5, 0]], "7 is made even, and known to be"
    args.world_size = 1
    assert list(integration._plain(loader, args)) == [[0, 1], [2, 3], [4, 5], [6]]
    assert integration._plain([1], args) == [1]


class Heard(TrainerCallback):
    """What the integrations are told."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_with_the_trainer_all_that_it_reports_to_are_told(tmp_path):
    heard = Heard()
    trainer = trainer_of(tmp_path, [heard])
    trainer.add_callback(collapse := Collapse(trainer=trainer, pool="mean", every=2))
    trainer.train()
    metrics = trainer.evaluate()
    told = [logs for logs in heard.logs if "eval_pfc/pfc1" in logs]
    assert [logs["epoch"] for logs in told] == [1.0, 2.0], "the first evaluation and the third"
    assert metrics["eval_pfc/pfc1"] == told[-1]["eval_pfc/pfc1"]
    assert list(collapse.recorder.profiles) == [3, 6]


def test_of_several_evaluation_sets_the_first_is_measured(tmp_path):
    collapse = Collapse(pool="cls")
    trainer = trainer_of(tmp_path, [collapse], {"a": texts(), "b": texts(16)}, epochs=1)
    trainer.train()
    keys = {key for line in trainer.state.log_history for key in line if "pfc1" in key}
    assert keys == {"eval_a_pfc/pfc1", "eval_a_pfc/pfc1_unbiased"}
    assert collapse.recorder.profiles[3].about["samples"] == 24


def test_an_evaluation_that_fails_leaves_the_numbers_of_the_one_before(tmp_path, recwarn):
    data = [collated(texts())]
    collapse = Collapse(data, pool="cls")
    chosen = {"metric_for_best_model": "eval_pfc/pfc1", "greater_is_better": False}
    trainer = trainer_of(tmp_path, [collapse], **chosen, save_strategy="best")

    class Spoils(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                data[0] = {"input_ids": data[0]["input_ids"]}

    warnings.simplefilter("always")
    trainer.add_callback(Spoils())
    trainer.train()
    assert list(collapse.recorder.profiles) == [3]
    assert any("epoch 6 was not measured" in str(w.message) for w in recwarn.list)
    assert trainer.state.best_global_step == 3


def test_a_first_evaluation_that_fails_does_not_end_the_training(tmp_path, recwarn):
    data = [collated(texts())]
    good = dict(data[0])
    collapse = Collapse(data, pool="cls")
    chosen = {"metric_for_best_model": "pfc/pfc1", "greater_is_better": False}
    trainer = trainer_of(tmp_path, [collapse], **chosen, save_strategy="best")

    class Spoils(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            data[0] = good if state.global_step == 6 else {"input_ids": good["input_ids"]}

    warnings.simplefilter("always")
    trainer.add_callback(Spoils())
    trainer.train()
    assert any("epoch 3 was not measured" in str(w.message) for w in recwarn.list)
    assert trainer.state.best_global_step == 6
    assert trainer.state.best_metric == collapse.recorder.profiles[6].scalars()["pfc/pfc1"]


def test_wrong_use_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"pfc.measure has no argument 'pooling'"):
        Collapse(pooling="cls")
    trainer = trainer_of(tmp_path)
    trainer.add_callback(Collapse(trainer=trainer, pool="cls", layers="conv*"))
    before = bits(trainer)
    with pytest.raises(ValueError, match="conv"):
        trainer.train()
    same(bits(trainer), before)


def test_without_transformers_it_is_said_what_to_install(monkeypatch):
    for name in ("transformers", "transformers.trainer_callback"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"^transformers is not installed: pip install 'pfc\[hf\]'$"):
        runpy.run_path(str(Path(integration.__file__)))
