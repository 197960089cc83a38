import unittest
from dataclasses import replace

import moenn
from common import Case


class ConfigTest(Case):
    def test_preset_and_defaults(self) -> None:
        config = moenn.Config.preset("small")
        self.assertEqual(config.family, moenn.Family.MIXTRAL)
        self.assertGreater(config.experts, 1)
        self.assertEqual(config.validated(), config)

    def test_json_round_trip(self) -> None:
        for name in ("tiny", "gpt2-124m"):
            config = moenn.Config.preset(name)
            self.assertEqual(moenn.Config.from_json(config.to_json()), config)
            self.assertEqual(moenn.Config.from_json(config.to_json().encode()), config)

    def test_members_by_hand(self) -> None:
        config = moenn.Config(vocab_size=10, context=8, layers=1, hidden=8, heads=2, ffn=4,
                              experts=2, top_k=1).validated()
        self.assertEqual((config.kv_heads, config.head_dim), (2, 4))
        with self.assertRaisesRegex(moenn.ArgumentError, "heads"):
            replace(config, heads=-1).validated()

    def test_lists_of_factors(self) -> None:
        text = """{"model_type": "llama", "head_dim": 4, "rope_scaling": {
                   "type": "longrope", "short_factor": [1, 1.5], "long_factor": [2, 64]}}"""
        config = moenn.Config.from_json(text)
        self.assertEqual(config.rope_scaling, moenn.RopeScaling.LONG)
        self.assertEqual((config.rope_short_factors, config.rope_long_factors), ((1, 1.5), (2, 64)))
        self.assertEqual(moenn.Config.from_json(config.to_json()), config)
        with self.assertRaisesRegex(moenn.ArgumentError, "rope_long_factors has 129 values"):
            replace(config, rope_long_factors=(1.0,) * 129).validated()

    def test_a_number_too_large_for_its_member(self) -> None:
        with self.assertRaisesRegex(moenn.ArgumentError, "layers"):
            moenn.Config(layers=2**63).validated()

    def test_plan_is_what_is_taken(self) -> None:
        with moenn.Device(threads=1) as device:
            plan = moenn.Plan.training(device, "tiny", batch=2, seq_len=16)
            with moenn.Model(device, "tiny") as model:
                model.prepare(batch=2, seq_len=16)
                with moenn.Optimizer(model):
                    self.assertEqual(device.memory.current_bytes, plan.total_bytes)
            plan = moenn.Plan.inference(device, moenn.Config.preset("tiny"), max_len=32,
                                        dtype=moenn.DType.BF16)
            with moenn.Model(device, "tiny", dtype=moenn.DType.BF16) as model, \
                    moenn.Session(model, max_len=32):
                self.assertEqual(device.memory.current_bytes, plan.total_bytes)

    def test_schedule(self) -> None:
        schedule = moenn.Schedule(moenn.ScheduleKind.LINEAR, lr=1.0, min_lr=0.0, warmup_steps=2,
                                  total_steps=4)
        self.assertEqual([schedule(step) for step in range(5)], [0.5, 1.0, 1.0, 0.5, 0.0])
        with self.assertRaises(moenn.ArgumentError):
            schedule(-1)


if __name__ == "__main__":
    unittest.main()
