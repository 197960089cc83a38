"""Loads a saved model of bytes and goes on with a text, character by character as they come."""
import argparse
import sys

import moenn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a saved model, as train_tiny.py writes it")
    parser.add_argument("--prompt", default="\n")
    parser.add_argument("--tokens", type=int, default=0, help="at most; 0: as many as fit")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest token")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:0")
    settings = parser.parse_args()
    with moenn.Device(settings.device) as device, \
            moenn.Model.load(device, settings.folder) as model, \
            moenn.Session(model) as session, moenn.Tokenizer() as tokenizer:
        sampling = moenn.Sampling(temperature=settings.temperature, seed=settings.seed)
        print(settings.prompt, end="")
        for piece in session.write(tokenizer, settings.prompt, sampling=sampling,
                                   max_tokens=settings.tokens):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    try:
        main()
    except moenn.MoennError as error:
        sys.exit(f"generate: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
