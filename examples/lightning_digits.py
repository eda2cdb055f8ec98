"""Keep the checkpoint whose last layer has collapsed most: the digits, trained by Lightning.

`python examples/lightning_digits.py` takes seconds; TensorBoard's files go to the folder of `--out`.
"""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pfc
from pfc.integrations.lightning import Collapse


class Digits(LightningModule):
    """A residual network of the package and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = pfc.FCResNet(features=64, classes=10, width=32, blocks=4)

    def training_step(self, batch, _number):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def main() -> None:
    """Train, measuring after every epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/lightning")
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    seed_everything(0)
    digits = pfc.data.load("digits")
    loader = DataLoader(TensorDataset(digits.normalised(), digits.labels), 64, shuffle=True)
    collapse = Collapse(digits.batches(), network="net", folder=f"{given.out}/pfc")
    best = ModelCheckpoint(given.out, monitor="pfc/pfc1/blocks.3", save_on_train_epoch_end=True)
    logger = TensorBoardLogger(given.out)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=given.epochs, callbacks=[collapse, best], logger=logger, **quiet)
    trainer.fit(Digits(), loader)
    print(f"PFC1 of the last block {best.best_model_score:.4f}, in {best.best_model_path}")


if __name__ == "__main__":
    main()
