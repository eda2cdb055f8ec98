"""Train a small GPT-2 from scratch on the sentences of SST-2, and measure how next words collapse.

    python records/sst2_next_word.py FOLDER

FOLDER holds train-*.parquet and test-*.parquet with the columns text and label. A sample is a word of a
sentence whose next word is one of the most frequent ones; that one is its class. Minutes a seed on one
core; the profiles and figures of the first seed are kept.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from pages import environment, keep, layers, page, seeds
from sentences import METRICS, START, Sentences, read, train
from transformers import GPT2Config, GPT2LMHeadModel

import pfc
from pfc.files import write_json

RECORD = Path(__file__).parent / "sst2-next-word"
WORDS = 100
NETWORK = {
    "n_embd": 128,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": START,
    "eos_token_id": START,
}
TRAINING = {"epochs": 16, "rate": 2e-3, "decay": 0.01}
MEASURED = (0, 1, 2, 4, 8, 16)

Profiles = dict[str, pfc.Profile]


def measured(model: torch.nn.Module, data: Sentences, means: pfc.Profile | None = None) -> pfc.Profile:
    """The next words, at every layer of the residual stream."""
    return pfc.measure(model, data, pool="tokens", shift=1, means=means, progress=False)


def run(data: Sentences, test: Sentences, seed: int) -> tuple[Profiles, dict[int, pfc.Profile], Any]:
    """Train once: profiles before and after, those over the epochs, and the numbers of the seed."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS + 3, **NETWORK))
    started, epochs = time.process_time(), {}
    for epoch in train(model, data, seed=seed, **TRAINING):
        if epoch in MEASURED:
            epochs[epoch] = measured(model, data)
    seconds, own = time.process_time() - started, epochs[TRAINING["epochs"]]
    found = {"untrained": epochs[0], "train": own, "test": measured(model, test, own)}
    return found, epochs, line(seed, seconds, own, found["test"])


def line(seed: int, seconds: float, own: pfc.Profile, test: pfc.Profile) -> dict[str, Any]:
    """The numbers of a seed, at the last layer."""
    cells: dict[str, Any] = {"seed": seed, "CPU s": round(seconds)}
    for name, profile in (("train", own), ("test", test)):
        cells[f"accuracy {name}"] = profile.accuracy
        for metric in ("pfc1", "pfc2", "pfc3"):
            cells[f"{metric.upper()} {name}"] = profile.columns[metric][-1]
    return cells | {"PFC1 steps back": ", ".join(own.non_monotone_layers("pfc1")) or "-"}


def main(folder: Path, chosen: list[int]) -> None:
    """Train with every seed, and write the record."""
    torch.set_num_threads(1)
    data, test, _ = read(folder, WORDS, next_word=True)
    runs = [run(data, test, seed) for seed in chosen]
    found, epochs, _ = runs[0]
    keep(RECORD, found, epochs, METRICS[:3], segments=())
    settings = environment(
        "torch", "transformers", words=WORDS, network=NETWORK, training=TRAINING, seeds=chosen
    )
    write_json(RECORD / "config.json", settings)
    parts = {
        "The classifier's input, seed by seed": seeds([cells for *_, cells in runs]),
        "Layer by layer": layers(found, METRICS),
    }
    pictures = {name: f"metrics over the layers, {name}" for name in found}
    page(RECORD, parts, pictures | {"training": "metrics over the epochs"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    main(given.folder, given.seeds)
