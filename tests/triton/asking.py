"""Runs in Triton's environment: questions as JSON on standard input, one list of requests, all in flight together;
answers as JSON on standard output, in the same order.

    asking.py HTTP-ADDRESS GRPC-ADDRESS
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http


def ask(question: dict[str, Any], address: dict[str, str]) -> dict[str, Any]:
    library = {"http": tritonclient.http, "grpc": tritonclient.grpc}[question["by"]]
    client = library.InferenceServerClient(address[question["by"]])
    inputs = []
    for name, values in question["inputs"].items():
        inputs.append(library.InferInput(name, [len(values), 1], "BYTES"))
        rows = [[bytes.fromhex(value["hex"]) if isinstance(value, dict) else value.encode()] for value in values]
        inputs[-1].set_data_from_numpy(np.array(rows, object))
    outputs = [library.InferRequestedOutput(name, class_count=count) for name, count in question["classes"].items()]
    try:
        answer = client.infer(
            question["model"], inputs, outputs=outputs or None, parameters=question["parameters"] or None
        )
    except Exception as error:
        return {"error": str(error)}
    names = [output["name"] if question["by"] == "http" else output.name for output in all_of(answer, question["by"])]
    return {name: plain(answer.as_numpy(name)) for name in names}


def all_of(answer: Any, by: str) -> Any:
    return answer.get_response()["outputs"] if by == "http" else answer.get_response().outputs


def plain(array: np.ndarray) -> Any:
    return [plain(row) if isinstance(row, np.ndarray) else row.decode() if isinstance(row, bytes) else row.item()
            for row in array]  # fmt: skip


def main() -> None:
    address = dict(zip(("http", "grpc"), sys.argv[1:], strict=True))
    with ThreadPoolExecutor(32) as pool:
        print(json.dumps(list(pool.map(lambda question: ask(question, address), json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
