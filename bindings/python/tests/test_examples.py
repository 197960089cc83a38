"""The examples run; train_tiny.py makes the same model as the C program, to the last bit."""
import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import List

import moenn

EXAMPLES = Path(os.environ.get("SOURCE_DIR", Path(__file__).resolve().parents[3])
                ) / "bindings/python/examples"


def steps(text: str) -> List[str]:
    return re.findall(r"^(?:step +\d+  loss [\d.]+|validation .*|layer .*)", text, re.MULTILINE)


class ExampleTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.text = self.folder / "text"
        self.text.write_text("the quick brown fox jumps over the lazy dog\n" * 200)

    def run_it(self, *command: object) -> str:
        run = subprocess.run([str(part) for part in command], cwd=self.folder, capture_output=True,
                             text=True, errors="replace")
        self.assertEqual(run.returncode, 0, run.stderr)
        return run.stdout

    def test_train_then_generate(self) -> None:
        said = self.run_it(sys.executable, EXAMPLES / "train_tiny.py", self.text, "--steps", 8,
                           "--seed", 5, "--out", "python")
        self.assertIn("reloaded, it gives the same logits, bit for bit", said)
        wrote = self.run_it(sys.executable, EXAMPLES / "generate.py", "python", "--prompt", "the",
                            "--tokens", 10)
        self.assertEqual(wrote[:3], "the")
        program = Path(os.environ.get("BUILD_DIR", "nothing")) / "train_tiny"
        if not program.exists():
            self.skipTest("BUILD_DIR has no train_tiny to compare with")
        c_said = self.run_it(program, self.text, "--steps", 8, "--seed", 5, "--out", "c")
        self.assertEqual(steps(said), steps(c_said))
        self.assertEqual((self.folder / "python/model.safetensors").read_bytes(),
                         (self.folder / "c/model.safetensors").read_bytes())

    def test_the_packages_own_example(self) -> None:
        code = "\n".join(line[4:] for line in (moenn.__doc__ or "").splitlines()
                         if line.startswith("    "))
        program = self.folder / "program.py"
        program.write_text(code.replace("range(1000)", "range(2)").replace(
            "book.txt", str(self.text)).replace("my-model", str(self.folder / "model")))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            runpy.run_path(str(program))
        self.assertEqual(len(said.getvalue().splitlines()), 2)
        self.assertTrue((self.folder / "model/config.json").exists())


if __name__ == "__main__":
    unittest.main()
