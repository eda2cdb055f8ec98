"""Train by the recipes of Table I, resumably."""

from pfc.training.folder import fill as fill
from pfc.training.folder import history as history
from pfc.training.loop import measured_epochs as measured_epochs
from pfc.training.loop import train as train
from pfc.training.recipes import RECIPES as RECIPES
from pfc.training.recipes import Recipe as Recipe
from pfc.training.run import Run as Run
from pfc.training.run import load as load
from pfc.training.trainer import Epoch as Epoch
