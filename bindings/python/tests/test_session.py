import unittest

import moenn
import numpy as np
from common import Case

PROMPT = [5, 6, 7]


class SessionTest(Case):
    def setUp(self) -> None:
        super().setUp()
        self.session = moenn.Session(self.model, max_len=24)

    def test_prefill_and_decode_are_the_forward_pass(self) -> None:
        whole = self.model.forward([5, 6, 7, 8])[0]
        np.testing.assert_allclose(self.session.prefill(PROMPT), whole[2], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(self.session.decode([8])[0], whole[3], rtol=1e-4, atol=1e-5)
        self.assertEqual(self.session.length(), 4)
        self.session.truncate(1)
        self.assertEqual(self.session.length(), 1)

    def test_several_sequences(self) -> None:
        session = moenn.Session(self.model, batch=2, max_len=8)
        session.prefill([1, 2])
        session.prefill([3], 1)
        logits = session.decode([4, -1])
        self.assertEqual((session.length(0), session.length(1)), (3, 1))
        self.assertTrue(logits[0].any())
        self.assertFalse(logits[1].any())
        with self.assertRaises(moenn.ArgumentError):
            session.decode([1])

    def test_sample(self) -> None:
        logits = self.session.prefill(PROMPT)
        self.assertEqual(self.session.sample(), int(logits.argmax()))
        hot = moenn.Sampling(temperature=5.0, seed=3)
        self.assertEqual(self.session.sample(hot), self.session.sample(hot))
        self.assertEqual(self.session.sample(moenn.Sampling(temperature=5.0, top_k=1)),
                         int(logits.argmax()))
        with self.assertRaises(moenn.ArgumentError):
            self.session.sample(moenn.Sampling(temperature=-1))

    def test_generate_is_complete(self) -> None:
        sampling = moenn.Sampling(temperature=1.0, top_p=0.9, min_p=0.001, repetition_penalty=1.1,
                                  seed=9)
        whole = self.session.complete(PROMPT, sampling=sampling, max_tokens=6)
        self.assertEqual((whole.reason, len(whole.tokens)), (moenn.Stop.LENGTH, 6))
        self.session.truncate()
        tokens = self.session.generate(PROMPT, sampling=sampling, max_tokens=6)
        self.assertIsNone(tokens.reason)
        self.assertEqual(list(tokens), whole.tokens.tolist())
        self.assertEqual(tokens.reason, moenn.Stop.LENGTH)
        self.assertEqual(self.session.length(), 3 + 5)

    def test_generate_fills_the_context(self) -> None:
        whole = self.session.complete(PROMPT)
        self.session.truncate()
        tokens = self.session.generate(PROMPT)
        self.assertEqual(list(tokens), whole.tokens.tolist())
        self.assertEqual((tokens.reason, whole.reason), (moenn.Stop.CONTEXT, moenn.Stop.CONTEXT))
        self.assertEqual(len(whole.tokens), 24 - 3 + 1)

    def test_stop_ids(self) -> None:
        first = list(self.session.generate(PROMPT, max_tokens=4))
        self.session.truncate()
        tokens = self.session.generate(PROMPT, stop_ids=[first[2]])
        made = list(tokens)
        self.assertEqual(made, first[:first.index(first[2])])
        self.assertEqual(tokens.reason, moenn.Stop.ID)
        self.assertEqual(self.session.length(), 3 + len(made))

    def test_generate_goes_on_after_a_break(self) -> None:
        whole = list(self.session.generate(PROMPT, max_tokens=6))
        self.session.truncate()
        made = []
        for token in self.session.generate(PROMPT):
            made.append(token)
            if len(made) == 3:
                break
        made += self.session.generate(made[-1:], max_tokens=3)
        self.assertEqual(made, whole)

    def test_generate_without_a_prompt(self) -> None:
        logits = self.session.prefill(PROMPT)
        self.assertEqual(next(self.session.generate()), int(logits.argmax()))
        self.session.truncate()
        with self.assertRaises(moenn.StateError):
            next(self.session.generate())

    def test_generate_after_a_failure(self) -> None:
        tokens = self.session.generate(PROMPT, max_tokens=3)
        self.device.cancel()
        with self.assertRaises(moenn.CancelledError):
            next(tokens)
        self.device.cancel(False)
        again = list(tokens)
        self.session.truncate()
        self.assertEqual(again, list(self.session.generate(PROMPT, max_tokens=3)))

    def test_on_token(self) -> None:
        heard = []
        made = self.session.complete(PROMPT, on_token=lambda token, index: heard.append(token))
        self.assertEqual(heard, made.tokens.tolist())
        self.session.truncate()
        made = self.session.complete(PROMPT, on_token=lambda token, index: index == 1)
        self.assertEqual((len(made.tokens), made.reason), (2, moenn.Stop.CALLBACK))

    def test_on_token_that_raises(self) -> None:
        def on_token(token: int, index: int) -> None:
            raise KeyError(index)
        with self.assertRaises(KeyError):
            self.session.complete(PROMPT, on_token=on_token)
        self.assertEqual(self.session.length(), 3)

    def test_a_callback_uses_other_handles_but_not_its_own(self) -> None:
        other, seen = moenn.Session(self.model), []

        def on_token(token: int, index: int) -> bool:
            other.prefill([token])
            with self.assertRaises(moenn.StateError):
                self.session.length()
            seen.append(other.length())
            return index == 2
        self.session.complete(PROMPT, on_token=on_token)
        self.assertEqual(seen, [1, 2, 3])

    def test_a_callback_closes_its_session(self) -> None:
        made = self.session.complete(PROMPT, max_tokens=4,
                                     on_token=lambda token, index: self.session.close())
        self.assertEqual(len(made.tokens), 4)
        self.assertTrue(self.session.closed)

    def test_text_streams(self) -> None:
        config = self.model.config
        config.vocab_size = moenn.ByteToken.VOCAB
        with moenn.Model(self.device, config, seed=2) as model, moenn.Session(model) as session, \
                moenn.Tokenizer() as tokenizer:
            pieces = list(session.write(tokenizer, "hé", max_tokens=20))
            session.truncate()
            ids = list(session.generate(tokenizer.encode("hé"), max_tokens=20))
            self.assertEqual("".join(pieces), tokenizer.decode(ids))

    def test_expert_stats(self) -> None:
        self.session.prefill(PROMPT)
        self.assertEqual(self.session.expert_stats(0).counts.sum(), 6)

    def test_past_the_end(self) -> None:
        with self.assertRaises(moenn.CapacityError):
            self.session.prefill(np.zeros(25, np.int32))
        self.assertEqual(self.session.length(), 0)
        with self.assertRaises(moenn.CapacityError):
            self.session.complete(np.zeros(25, np.int32))


if __name__ == "__main__":
    unittest.main()
