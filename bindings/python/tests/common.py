"""What the tests share."""
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, Tuple

import numpy as np

import moenn

PACKAGE = Path(moenn.__file__).parent
SHAPE = {"batch": 2, "seq_len": 16}
SLOW = moenn.Config(vocab_size=512, context=512, layers=16, hidden=512, heads=8, ffn=1024,
                    experts=1, top_k=1)  # seconds a batch on one thread of plain C


def batch(seed: int = 0) -> Tuple[Any, Any]:
    ids = np.random.default_rng(seed).integers(0, 1000, (2, 17), np.int32)
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def python(code: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs code in a Python of its own; environment: variables that it has beside this one's."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True,
                          timeout=300, env={**os.environ, **environment})


class Case(unittest.TestCase):
    """A test with a device, a prepared tiny model and a folder."""

    device: moenn.Device

    @classmethod
    def setUpClass(cls) -> None:
        cls.device = moenn.Device(threads=2)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.device.close()

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.model = moenn.Model(self.device, "tiny", seed=1)
        self.addCleanup(self.model.close)
        self.model.prepare(**SHAPE)
