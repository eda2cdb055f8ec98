"""Train a small BERT from scratch on the sentences of SST-2, and measure how its two classes collapse.

    python records/sst2_sentiment.py FOLDER

FOLDER holds train-*.parquet and test-*.parquet with the columns text and label. Minutes a seed on one
core; the profiles and figures of the first seed are kept.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from pages import environment, keep, layers, page, seeds
from sentences import METRICS, Sentences, read, train
from transformers import BertConfig, BertForSequenceClassification

import pfc
from pfc.files import write_json

RECORD = Path(__file__).parent / "sst2-sentiment"
WORDS = 6000
NETWORK = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "num_labels": 2,
}
TRAINING = {"epochs": 12, "rate": 1e-3, "decay": 0.05}
MEASURED = (0, 1, 2, 4, 8, 12)
POOLS = {"cls": "The token that the classifier reads", "mean": "The mean over the words"}

Profiles = dict[str, pfc.Profile]


def run(data: Sentences, test: Sentences, seed: int) -> tuple[Profiles, dict[int, pfc.Profile], Any]:
    """Train once: profiles after training, those over the epochs, and the numbers of the seed."""
    torch.manual_seed(seed)
    model = BertForSequenceClassification(BertConfig(vocab_size=WORDS + 3, **NETWORK))
    started, epochs = time.process_time(), {}
    for epoch in train(model, data, seed=seed, **TRAINING):
        if epoch in MEASURED:
            epochs[epoch] = pfc.measure(model, data, pool="cls", progress=False)
    seconds, found = time.process_time() - started, {}
    for pool in POOLS:
        found[f"train-{pool}"] = own = pfc.measure(model, data, pool=pool)
        found[f"test-{pool}"] = pfc.measure(model, test, pool=pool, means=own)
    return found, epochs, line(seed, seconds, found["train-cls"], found["test-cls"])


def line(seed: int, seconds: float, own: pfc.Profile, test: pfc.Profile) -> dict[str, Any]:
    """The numbers of a seed."""
    cells: dict[str, Any] = {"seed": seed, "CPU s": round(seconds)}
    for name, profile in (("train", own), ("test", test)):
        cells[f"accuracy {name}"] = profile.accuracy
        for metric in ("pfc1", "pfc3"):
            cells[f"{metric.upper()} {name}"] = profile.columns[metric][-1]
    return cells | {"PFC1 steps back": ", ".join(own.non_monotone_layers("pfc1")) or "-"}


def main(folder: Path, chosen: list[int]) -> None:
    """Train with every seed, and write the record."""
    torch.set_num_threads(1)
    data, test, _ = read(folder, WORDS)
    runs = [run(data, test, seed) for seed in chosen]
    found, epochs, _ = runs[0]
    keep(RECORD, found, epochs, ("pfc1", "pfc3"))  # of two classes PFC2 is 0
    settings = environment(
        "torch", "transformers", words=WORDS, network=NETWORK, training=TRAINING, seeds=chosen
    )
    write_json(RECORD / "config.json", settings)
    parts = {"The classifier's input, seed by seed": seeds([cells for *_, cells in runs])}
    for pool, title in POOLS.items():
        pair = {name: found[f"{name}-{pool}"] for name in ("train", "test")}
        parts[title] = layers(pair, METRICS)
    pictures = {name: f"metrics over the layers, {name.replace('-', ' sentences, ')}" for name in found}
    page(RECORD, parts, pictures | {"training": "metrics over the epochs"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    main(given.folder, given.seeds)
