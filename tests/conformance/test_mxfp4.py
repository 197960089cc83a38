"""gpt_oss with experts in MXFP4, as published: blocks of 32 numbers of four bits under one scale.
transformers' own decoder says what they are worth; the model must be the one of those numbers."""

import json
import re
import tempfile
import unittest
from pathlib import Path

import cases
import choices
import compare
import here
import moenn
import peer
import steps
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

# Widths of whole blocks.
CASE = cases.Case("gpt_oss MXFP4", dict(hidden_size=64, intermediate_size=32))
EXPERTS = re.compile(r".*\.mlp\.experts\.(gate_up_proj|down_proj)")


def random_blocks(shape: torch.Size, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks [E, rows, columns / 32, 16] and scales, of a tensor kept as [E, columns, rows]."""
    experts, columns, rows = shape
    size = experts, rows, columns // 32
    blocks = torch.randint(256, (*size, 16), generator=random, dtype=torch.uint8)
    # exponents of 2^-7 to 2^-4: sums of some ten such products are near one
    return blocks, torch.randint(120, 124, size, generator=random, dtype=torch.uint8)


class Mxfp4Test(unittest.TestCase):
    def test_blocks_are_decoded(self) -> None:
        theirs, packed = peer.build(CASE), {}
        random = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if EXPERTS.fullmatch(name):
                    blocks, scales = random_blocks(parameter.shape, random)
                    packed |= {name + "_blocks": blocks, name + "_scales": scales}
                    decoded = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
                    parameter.copy_(decoded)
        self.assertEqual(len(packed), 2 * 2 * CASE.config["num_hidden_layers"])
        batch = choices.choose_batch(theirs, CASE)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            peer.write(theirs, folder)
            self.pack(folder, packed)
            ours = here.read(folder, moenn.DType.F32)
            compare.same_bits("decoded", here.parameters(ours), peer.parameters(theirs))
            steps.passes(ours, theirs, batch)
            ours.save(folder / "saved")
            compare.same_bits("saved", peer.tensors(folder / "saved"), peer.parameters(theirs))

    def pack(self, folder: Path, packed: dict[str, torch.Tensor]) -> None:
        file = folder / "model.safetensors"
        rest = {n: t for n, t in load_file(file).items() if not EXPERTS.fullmatch(n)}
        save_file(rest | packed, file, metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        }
        (folder / "config.json").write_text(json.dumps(config))

    def test_another_quantization_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            peer.write(peer.build(CASE), Path(name))
            self.pack(Path(name), {})
            path = Path(name) / "config.json"
            path.write_text(path.read_text().replace('"mxfp4"', '"gptq"'))
            with self.assertRaisesRegex(moenn.UnsupportedError, "quantization_config|quant_method"):
                here.read(Path(name))


if __name__ == "__main__":
    unittest.main()
