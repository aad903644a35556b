"""Asks a bundle in Triton through NVIDIA's own client.

python client.py localhost:8000 reviews "a gripping film" "dull" --budget 3
"""

import argparse

import numpy as np
import tritonclient.http as triton


def main() -> None:
    """A line for each text: what the model gives for it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("server")
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--budget", type=float, help="layers per input on average")
    given = parser.parse_args()
    client = triton.InferenceServerClient(given.server)
    texts = triton.InferInput("text", [len(given.texts), 1], "BYTES")
    texts.set_data_from_numpy(np.array([[text.encode()] for text in given.texts], object))
    # As text: Triton's parameters know no numbers with a fraction.
    parameters = {} if given.budget is None else {"budget": str(given.budget)}
    answer = client.infer(given.model, [texts], parameters=parameters)
    names = [output["name"] for output in answer.get_response()["outputs"]]
    for row in zip(*(answer.as_numpy(name).tolist() for name in names), strict=True):
        print(dict(zip(names, row, strict=True)))


if __name__ == "__main__":
    main()
