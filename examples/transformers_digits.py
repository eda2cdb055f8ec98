"""Choose the best model by its collapse: the digits as texts, trained by transformers' Trainer.

`python examples/transformers_digits.py` takes seconds and fetches nothing: of a small BERT with random
weights each pixel is a token, its brightness the word.
"""

import argparse

import torch
from torch.utils.data import TensorDataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import pfc
from pfc.integrations.huggingface import Collapse

SIZE = {"vocab_size": 256, "max_position_embeddings": 64, "num_labels": 10}
WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def collated(samples):
    """The model's named arguments, and the labels."""
    x, y = zip(*samples, strict=True)
    return {"input_ids": torch.stack(x), "labels": torch.stack(y)}


def main() -> None:
    """Train, evaluating and measuring after every epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/transformers")
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    torch.manual_seed(0)
    digits = pfc.data.load("digits", limit=400)
    data = TensorDataset(digits.images.flatten(1).long(), digits.labels)
    arguments = TrainingArguments(
        **{"output_dir": given.out, "use_cpu": True, "report_to": "none", "disable_tqdm": True},
        **{"num_train_epochs": given.epochs, "per_device_train_batch_size": 20, "learning_rate": 3e-3},
        **{"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True},
        **{"metric_for_best_model": "eval_pfc/pfc1", "greater_is_better": False},
    )
    model = BertForSequenceClassification(BertConfig(**SIZE, **WIDTH))
    trainer = Trainer(model, arguments, collated, train_dataset=data, eval_dataset=data)
    collapse = Collapse(trainer=trainer, pool="cls", folder=f"{given.out}/pfc")
    trainer.add_callback(collapse)
    trainer.train()
    print(f"PFC1 {trainer.state.best_metric:.4f}, in {trainer.state.best_model_checkpoint}")


if __name__ == "__main__":
    main()
