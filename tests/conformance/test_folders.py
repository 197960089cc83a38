"""What lies in a folder beside a model; and folders that must not load: the error has the right
class and names what is wrong, and the process goes on."""

import json
import shutil
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional

import cases
import here
import moenn
import numpy as np
import peer
import torch
from batch import Batch, Training
from safetensors.torch import load_file, save_file

CASE = cases.Case("mixtral", {})
GATE = "model.layers.1.block_sparse_moe.gate.weight"


class FolderTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.holder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.holder.cleanup)
        cls.good = Path(cls.holder.name) / "good"
        peer.write(peer.build(CASE), cls.good, max_shard_size="20KB")
        cls.tensors = {}
        for path in cls.good.glob("*.safetensors"):
            cls.tensors |= load_file(path)

    def setUp(self) -> None:
        self.folder = Path(self.holder.name) / "bad"
        shutil.copytree(self.good, self.folder)
        self.addCleanup(shutil.rmtree, self.folder)

    def refused(self, error: type[moenn.MoennError], *words: str) -> None:
        """Loading fails with a message in which all of the words stand."""
        with self.assertRaises(error) as raised:
            here.read(self.folder)
        for word in words:
            self.assertIn(word, raised.exception.message)
        here.read(self.good)

    def one_file(self, **changes: Optional[torch.Tensor]) -> None:
        """The tensors in one file, some of them changed, added or (None) left out."""
        for path in [
            *self.folder.glob("*.safetensors"),
            self.folder / "model.safetensors.index.json",
        ]:
            path.unlink()
        tensors = {
            name: value for name, value in (self.tensors | changes).items() if value is not None
        }
        save_file(tensors, self.folder / "model.safetensors", metadata={"format": "pt"})

    def config(self, **changes: Any) -> None:
        path = self.folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def test_good_as_it_is(self) -> None:
        here.read(self.folder)
        self.one_file()
        here.read(self.folder)

    def test_what_lies_beside_a_model_goes_with_it(self) -> None:
        beside = (
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "tokenizer.model",
            "chat_template.jinja",
        )
        for name in beside[1:]:
            (self.folder / name).write_text(f"{name}, as it is")
        saved = self.folder / "saved"
        here.read(self.folder).save(saved)
        for name in beside:
            self.assertEqual((saved / name).read_bytes(), (self.folder / name).read_bytes())

    def test_training_leaves_the_file_as_it_is(self) -> None:
        """Its pages may be the parameters themselves."""
        here.read(self.folder).save(self.folder / "saved")
        file = self.folder / "saved" / "model.safetensors"
        before = file.read_bytes()
        model = here.read(file.parent)
        batch = Batch(np.arange(20).reshape(2, 10), np.arange(20).reshape(2, 10))
        changes = here.train(model, batch, Training())
        self.assertTrue(all(np.any(change) for name, change in changes.items() if "norm" in name))
        self.assertEqual(file.read_bytes(), before)

    def test_missing_tensor(self) -> None:
        self.one_file(**{GATE: None})
        self.refused(moenn.FormatError, GATE, "missing")

    def test_unknown_tensor(self) -> None:
        self.one_file(**{"model.layers.1.self_attn.rotary": torch.zeros(3)})
        self.refused(moenn.FormatError, "model.layers.1.self_attn.rotary")

    def test_wrong_shapes(self) -> None:
        for shape in ([5, 31], [30, 5], [150], [5, 30, 1]):
            with self.subTest(shape=shape):
                shutil.rmtree(self.folder)
                shutil.copytree(self.good, self.folder)
                self.one_file(**{GATE: torch.zeros(shape)})
                self.refused(moenn.FormatError, GATE, "[5, 30]")

    def test_wrong_types(self) -> None:
        for dtype, name in ((torch.float64, "F64"), (torch.int8, "I8"), (torch.int64, "I64")):
            with self.subTest(dtype=name):
                shutil.rmtree(self.folder)
                shutil.copytree(self.good, self.folder)
                self.one_file(**{GATE: torch.zeros([5, 30], dtype=dtype)})
                self.refused(moenn.UnsupportedError, GATE, name)

    def test_missing_shard(self) -> None:
        shard = sorted(self.folder.glob("*.safetensors"))[1]
        shard.unlink()
        self.refused(moenn.NotFoundError, shard.name)

    def test_cut_shard(self) -> None:
        shard = sorted(self.folder.glob("*.safetensors"))[1]
        shard.write_bytes(shard.read_bytes()[:-100])
        self.refused(moenn.FormatError, shard.name)

    def test_index_of_another_file(self) -> None:
        path = self.folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        files = sorted(set(index["weight_map"].values()))
        index["weight_map"][GATE] = next(
            file for file in files if file != index["weight_map"][GATE]
        )
        path.write_text(json.dumps(index))
        self.refused(moenn.FormatError, GATE)

    def test_no_weights(self) -> None:
        self.one_file()
        (self.folder / "model.safetensors").unlink()
        self.refused(moenn.MoennError, "model.safetensors")

    def test_no_config(self) -> None:
        (self.folder / "config.json").unlink()
        self.refused(moenn.NotFoundError, "config.json")

    def test_unknown_architectures(self) -> None:
        self.config(model_type="mamba2")
        self.refused(moenn.UnsupportedError, "model_type", "mamba2")
        self.config(model_type="mixtral", architectures=["MixtralForSequenceClassification"])
        self.refused(moenn.UnsupportedError, "architectures", "MixtralForSequenceClassification")

    def test_unknown_key(self) -> None:
        self.config(attention_temperature=0.7)
        self.refused(moenn.UnsupportedError, "attention_temperature")

    def test_keys_that_would_change_the_numbers(self) -> None:
        for wrong in (
            dict(hidden_act="relu"),
            dict(router_jitter_noise=0.1),
            dict(quantization_config={"quant_method": "fp8"}),
            dict(rope_parameters={"rope_type": "mrope", "rope_theta": 1e4}),
        ):
            with self.subTest(**wrong):
                shutil.copy(self.good / "config.json", self.folder)
                self.config(**wrong)
                self.refused(moenn.UnsupportedError, next(iter(wrong)))

    def test_sizes_that_the_tensors_have_not(self) -> None:
        for key, value in (
            ("hidden_size", 32),
            ("num_hidden_layers", 3),
            ("num_local_experts", 6),
            ("vocab_size", 60),
        ):
            with self.subTest(key=key):
                shutil.copy(self.good / "config.json", self.folder)
                self.config(**{key: value})
                self.refused(moenn.FormatError)

    def test_keys_of_a_wrong_kind(self) -> None:
        for key, value in (
            ("hidden_size", "30"),
            ("num_hidden_layers", -2),
            ("rms_norm_eps", None),
            ("vocab_size", 2**70),
        ):
            with self.subTest(key=key):
                shutil.copy(self.good / "config.json", self.folder)
                self.config(**{key: value})
                self.refused(moenn.FormatError, "config.json")


if __name__ == "__main__":
    unittest.main()
