"""Experiments of the paper, each a function that keeps what it found and draws its figure."""

from pfc.experiments import mufm as mufm
