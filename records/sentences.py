"""Sentences as numbers of words, a training loop, and the page of a record: for the sst2 records.

The sentences are read in place from a folder of parquet files with the columns text and label, and are
kept nowhere; the vocabulary is the training set's most frequent words.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import transformers
from torch import Tensor, nn

PAD, START, UNKNOWN = range(3)  # then the words, the most frequent first
METRICS = ("pfc1", "pfc2", "pfc3", "nc4")


@dataclass(frozen=True)
class Sentences:
    """Batches of sentences of about one length, padded at the right; what `pfc.measure` reads.

    Args:
        name: What they are called.
        rows: The numbers of the words of each sentence, and its label.
        next_word: Label each word by itself, for `shift=1`; not in the vocabulary is left out.
    """

    name: str
    rows: Sequence[tuple[list[int], int]]
    next_word: bool = False
    size: int = 64

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self.rows), self.size):
            yield self._batch(self.rows[start : start + self.size])

    def _batch(self, rows: Sequence[tuple[list[int], int]]) -> dict[str, Tensor]:
        padded = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids, _ in rows], batch_first=True)
        labels = torch.tensor([label for _, label in rows])
        if self.next_word:
            labels = padded.where(padded > UNKNOWN, -100)
        return {"input_ids": padded, "attention_mask": (padded != PAD).long(), "labels": labels}


def read(folder: Path, words: int, *, next_word: bool = False) -> tuple[Sentences, Sentences, list[str]]:
    """Training and test sentences, and the vocabulary."""
    train, test = (
        pd.concat(map(pd.read_parquet, sorted(folder.glob(f"{s}-*.parquet")))) for s in ("train", "test")
    )
    counts = Counter(word for text in train.text for word in text.split())
    vocabulary = [word for word, _ in counts.most_common(words)]
    number = {word: k for k, word in enumerate(vocabulary, UNKNOWN + 1)}

    def encoded(name: str, table: pd.DataFrame) -> Sentences:
        texts = ([START, *(number.get(w, UNKNOWN) for w in text.split())] for text in table.text)
        rows = sorted(zip(texts, table.label.tolist(), strict=True), key=lambda row: -len(row[0]))
        return Sentences(f"sst2 {name}", rows, next_word)

    return encoded("train", train), encoded("test", test), vocabulary


def train(
    model: nn.Module, data: Sentences, *, epochs: int, rate: float, decay: float, seed: int
) -> Iterator[int]:
    """AdamW, the rate a cosine over all steps after a short rise; yields 0, then after every epoch."""
    batches, shuffle = list(data), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    steps = epochs * len(batches)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    yield 0
    for epoch in range(1, epochs + 1):
        model.train()
        shuffle.shuffle(batches)
        losses, started = [], time.process_time()
        for batch in batches:
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        mean, seconds = sum(losses) / len(losses), time.process_time() - started
        print(
            f"seed {seed}, epoch {epoch} of {epochs}: loss {mean:.4f}, {seconds:.1f} CPU seconds",
            flush=True,
        )
        yield epoch
