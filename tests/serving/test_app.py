"""Every route against the predictor itself, asked over HTTP and by clients of others."""

import concurrent.futures
import contextlib
import gzip
import math
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import InferenceClient

from hadskip_export.runtime.predictor import Predictor
from hadskip_export.serving.limits import Limits
from hadskip_export.serving.metrics import Metrics
from hadskip_export.serving.server import listen
from hadskip_export.support.errors import DataError
from tests.conftest import sentences
from tests.serving.conftest import Served, serving

TEXTS = [text for text, _ in sentences(20, 9)]


@pytest.fixture(scope="module")
def predictor(points_bundle: Path):
    with Predictor.load(points_bundle, threads=1) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests forbid the hub, and with it its client all hosts, this one too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def as_probabilities(scores: list[dict]) -> dict[str, float]:
    assert [score["score"] for score in scores] == sorted((score["score"] for score in scores), reverse=True)
    return {score["label"]: score["score"] for score in scores}


def test_predict_gives_the_predictors_answers_for_one_text_a_pair_and_many(served: Served, predictor: Predictor):
    for inputs, asked in (
        (TEXTS[0], TEXTS[0]),
        ([TEXTS[0]], TEXTS[0]),
        (TEXTS[:2], tuple(TEXTS[:2])),
    ):
        answer = served.ask("/predict", {"inputs": inputs})
        wanted = predictor(asked)
        assert answer.status == 200
        assert as_probabilities(answer.json) == pytest.approx(wanted.probabilities, abs=1e-5)
        assert answer.headers["x-layers-run"] == str(len(wanted.layers))
    many = [[TEXTS[0]], [TEXTS[1], TEXTS[2]], *([text] for text in TEXTS[3:])]
    answer = served.ask("/predict", {"inputs": many})
    wanted = predictor([tuple(item) if len(item) == 2 else item[0] for item in many])
    assert len(answer.json) == len(many)
    for scores, prediction in zip(answer.json, wanted, strict=True):
        assert as_probabilities(scores) == pytest.approx(prediction.probabilities, abs=1e-5)
    assert answer.headers["x-layers-run"] == ",".join(str(len(prediction.layers)) for prediction in wanted)
    assert len({prediction.layers for prediction in wanted}) > 1


def test_raw_scores_are_logits(served: Served, predictor: Predictor):
    logits, _ = predictor.run(predictor.tokenizer.encode([TEXTS[0]]))
    answer = served.ask("/predict", {"inputs": TEXTS[0], "raw_scores": True})
    wanted = dict(zip(("no", "yes"), logits[0].tolist(), strict=True))
    assert as_probabilities(answer.json) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("budget", [1.0, 1.5, 4])
def test_a_budget_holds_for_one_request(served: Served, predictor: Predictor, budget):
    inputs = [[text] for text in TEXTS]
    before = served.ask("/predict", {"inputs": inputs})
    answer = served.ask("/predict", {"inputs": inputs, "budget": budget})
    wanted = predictor(TEXTS, budget=budget)
    assert answer.headers["x-layers-run"] == ",".join(str(len(prediction.layers)) for prediction in wanted)
    assert served.ask("/predict", {"inputs": inputs}).headers["x-layers-run"] == before.headers["x-layers-run"]


def test_hugging_faces_client_gets_the_predictors_answers(served: Served, predictor: Predictor):
    client = InferenceClient(model=served.url)
    for text in TEXTS[:5]:
        found = client.text_classification(text)
        assert {each.label: each.score for each in found} == pytest.approx(predictor(text).probabilities, abs=1e-5)
    (best,) = client.text_classification(TEXTS[0], top_k=1)
    assert best.label == predictor(TEXTS[0]).label
    logits = predictor.run(predictor.tokenizer.encode([TEXTS[0]]))[0][0].tolist()
    raw = client.text_classification(TEXTS[0], function_to_apply="none")
    assert [each.score for each in raw] == pytest.approx(sorted(logits, reverse=True), abs=1e-5)
    assert served.ask("/", {"inputs": TEXTS[0], "parameters": None}).json == served.ask("/", {"inputs": TEXTS[0]}).json
    answer = served.ask("/", {"inputs": TEXTS[0], "parameters": {"function_to_apply": "sigmoid"}})
    assert answer.status == 422 and "softmax" in answer.json["error"]


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (
            b'{"inputs": "one"}',
            {"Content-Type": "application/x-www-form-urlencoded"},
            "say Content-Type: application/json",
        ),
        ('{"inputs": "caf\u00e9"}'.encode("latin-1"), {}, "no JSON in UTF-8"),
        (gzip.compress(b'{"inputs": "one"}', mtime=0), {"Content-Encoding": "gzip"}, "not compressed"),
        (b'{"inputs": "one", "budget": true}', {}, "budget"),
    ],
)
def test_a_body_that_cannot_be_read_is_told_why(served: Served, body: bytes, headers: dict[str, str], said: str):
    answer = served.ask("/predict", body, **headers)
    assert answer.status == 422 and said in answer.json["error"] and "\n" not in answer.json["error"]


def test_what_was_refused_is_counted_as_no_batch(served: Served):
    served.ask("/predict", {"inputs": "one"})
    before = served.metric("hadskip_batch_inputs_sum")
    assert served.ask("/predict", {"inputs": "one", "budget": 77}).status == 422
    assert served.metric("hadskip_batch_inputs_sum") == before
    assert served.ask("/predict", {"inputs": [["one"], ["two"]]}).status == 200
    assert served.metric("hadskip_batch_inputs_sum") == before + 2


def test_a_bundle_of_other_layers_has_buckets_of_its_own(points_bundle: Path):
    metrics = Metrics(2)
    with Predictor.load(points_bundle) as predictor:
        metrics.serves(predictor)
        metrics.saw(np.ones((1, 4), bool), [False])
    told = metrics.text()[0].decode()
    assert 'hadskip_layers_run_bucket{le="4.0"} 1.0' in told and 'hadskip_layers_run_bucket{le="3.0"} 0.0' in told


def test_a_score_is_given_through_the_function_its_model_has(ranking_bundle: Path):
    with serving(ranking_bundle) as served:

        def ask(function: str | None):
            return served.ask("/", {"inputs": ["one", "two"], "parameters": {"function_to_apply": function}})

        assert ask("sigmoid").json == ask(None).json
        (((raw,),), ((score,),)) = ask("none").json, ask(None).json
        assert score["score"] == pytest.approx(1 / (1 + math.exp(-raw["score"])), abs=1e-5)
        refused = ask("softmax")
        assert refused.status == 422 and "this model's is sigmoid" in refused.json["error"]


def test_of_several_labels_each_has_a_probability_of_its_own(labels_bundle: Path):
    with serving(labels_bundle) as served, Predictor.load(labels_bundle, threads=1) as predictor:
        scores = served.ask("/predict", {"inputs": TEXTS[0]}).json
        assert as_probabilities(scores) == pytest.approx(predictor(TEXTS[0]).probabilities, abs=1e-5)
        assert len(scores) == 3 and not math.isclose(sum(score["score"] for score in scores), 1, abs_tol=1e-3)


def test_documents_are_ranked_as_the_predictor_ranks_them(ranking_bundle: Path):
    query, *documents = TEXTS
    with serving(ranking_bundle) as served, Predictor.load(ranking_bundle, threads=1) as predictor:
        wanted = predictor.rank(query, documents)
        logits = predictor.run(predictor.tokenizer.encode([(query, document) for document in documents]))[0][:, 0]
        answer = served.ask("/rerank", {"query": query, "texts": documents})
        assert [place["index"] for place in answer.json] == [place.index for place in wanted]
        assert [place["score"] for place in answer.json] == pytest.approx([place.score for place in wanted], abs=1e-5)
        assert all(place.keys() == {"index", "score"} for place in answer.json)
        raw = served.ask("/rerank", {"query": query, "texts": documents, "raw_scores": True, "return_text": True})
        for place in raw.json:
            assert place["text"] == documents[place["index"]]
            assert place["score"] == pytest.approx(float(logits[place["index"]]), abs=1e-5)
        ours = served.ask("/rank", {"query": query, "documents": documents, "top": 3}).json
        assert [(place["index"], place["layers"]) for place in ours] == [
            (place.index, list(place.layers)) for place in wanted[:3]
        ]
        assert all(place["document"] == documents[place["index"]] for place in ours)


def test_vllms_classification_gives_the_predictors_answers(served: Served, labels_bundle: Path, predictor: Predictor):
    for question, texts in ((TEXTS[0], TEXTS[:1]), (TEXTS[:5], TEXTS[:5])):
        answer = served.ask("/classify", {"model": "any", "input": question}).json
        assert answer["object"] == "list" and [one["index"] for one in answer["data"]] == list(range(len(texts)))
        for one, wanted in zip(answer["data"], predictor(texts), strict=True):
            assert one["label"] == wanted.label and one["num_classes"] == len(predictor.labels)
            assert one["probs"] == pytest.approx([wanted.probabilities[label] for label in predictor.labels], abs=1e-5)
    with serving(labels_bundle) as several, Predictor.load(labels_bundle, threads=1) as own:
        (one,) = several.ask("/classify", {"input": TEXTS[0]}).json["data"]
        assert one["probs"] == pytest.approx(list(own(TEXTS[0]).probabilities.values()), abs=1e-5)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_jinas_and_coheres_reranking_gives_the_predictors_answers(path: str, ranking_bundle: Path):
    query, *documents = TEXTS
    with serving(ranking_bundle) as served, Predictor.load(ranking_bundle, threads=1) as predictor:
        wanted = predictor.rank(query, documents, top=3)
        question = {"model": "any", "query": query, "documents": documents, "top_n": 3}
        results = served.ask(path, question).json["results"]
        assert [one["index"] for one in results] == [place.index for place in wanted]
        assert [one["relevance_score"] for one in results] == pytest.approx([one.score for one in wanted], abs=1e-5)
        assert all("document" not in one for one in results)
        with_text = served.ask(path, question | {"return_documents": True}).json["results"]
        assert [one["document"]["text"] for one in with_text] == [place.document for place in wanted]
        as_objects = question | {"documents": [documents[0], *({"text": one} for one in documents[1:])]}
        assert served.ask(path, as_objects).json["results"] == results
        assert served.ask("/classify", {"input": "a"}).status == 422


LONG = "a " * 500


@pytest.mark.parametrize(
    ("path", "question", "status", "said"),
    [
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, "a list of 3 texts"),
        ("/predict", {"inputs": []}, 422, "a list of 0 texts"),
        ("/predict", {"inputs": [["a"], []]}, 422, "input 2: a list of 0 texts"),
        ("/predict", {"inputs": 3}, 422, "inputs"),
        ("/predict", {}, 422, "inputs: Field required"),
        ("/predict", {"inputs": [1] * 100_000}, 422, "inputs"),
        ("/predict", {"inputs": [[1]] * 100_000}, 422, "inputs"),
        ("/rank", {"query": "a", "documents": [1] * 100_000}, 422, "documents"),
        ("/predict", b"{", 422, "JSON"),
        ("/predict", {"inputs": "a", "max_layers": 1}, 422, "max_layers"),
        ("/predict", {"inputs": "a", "truncation_direction": "Left"}, 422, "this model's tokenizer cuts on the right"),
        ("/", {"inputs": "a", "parameters": {"max_length": 8}}, 422, "max_length"),
        ("/classify", {"input": "a", "truncate_prompt_tokens": 3}, 422, "truncate_prompt_tokens"),
        ("/rerank", {"query": "a", "texts": ["b"], "raw_score": True}, 422, "raw_score"),
        ("/rerank", {"query": "a", "texts": ["b"], "truncation_direction": "Left"}, 422, "cuts on the right"),
        ("/predict", {"inputs": "a", "budget": 9}, 422, "budget"),
        ("/predict", {"inputs": "a", "budget": 0.1}, 422, "budget"),
        ("/predict", {"inputs": LONG, "truncate": False}, 422, "input 1: longer than the model's 32 tokens"),
        ("/predict", {"inputs": [["a"]] * 129}, 413, "129 inputs; at most 128"),
        ("/predict", b'"' + b"a" * 4_000_001 + b'"', 413, "more than 4,000,000 bytes"),
        ("/predict", {"inputs": "\ud800"}, 422, "Unicode"),
        ("/rerank", {"query": "a", "texts": ["b"]}, 422, "documents need a score"),
        ("/rank", {"query": "a", "documents": ["b"]}, 422, "documents need a score"),
        ("/v2/rerank", {"query": "a", "documents": ["b"]}, 422, "documents need a score"),
        ("/v1/rerank", {"query": "a", "documents": [1] * 100_000}, 422, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"text": "b", "title": "c"}]}, 422, "documents.0"),
        ("/classify", {"input": []}, 422, "no inputs"),
        ("/classify", {"input": [["a", "b"]]}, 422, "input"),
        ("/nowhere", {}, 404, "Not Found"),
        ("/predict", None, 405, "Method Not Allowed"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_line(served: Served, path, question, status, said):
    answer = served.ask(path, question)
    assert answer.status == status, answer.body
    assert said in answer.json["error"] and answer.json["error_type"]
    assert served.ask("/predict", {"inputs": LONG}).status == 200  # and goes on


def test_a_body_that_does_not_say_how_long_it_is_is_cut_off_too(points_bundle: Path):
    with serving(points_bundle, Limits(body=1000)) as served:
        client = socket.create_connection(("127.0.0.1", served.port), timeout=30)
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n" + b"a\r\n" + b" " * 10 + b"\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
        client.close()


@pytest.mark.parametrize("bytes_more", [0, 8], ids=["never", "byte by byte"])
def test_a_body_that_does_not_come_is_not_waited_for(points_bundle: Path, bytes_more):
    with serving(points_bundle, Limits(timeout=1.0)) as served:
        client = socket.create_connection(("127.0.0.1", served.port), timeout=30)
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
        for _ in range(bytes_more):
            time.sleep(0.25)
            with contextlib.suppress(OSError):
                client.sendall(b" ")
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")
        client.close()


def test_no_more_waits_to_be_tokenised_than_may_wait(points_bundle: Path):
    """Nor is any of them waited for longer than it may."""
    with serving(points_bundle, Limits(queue=40, timeout=20)) as served:
        inputs = [[text] for text in TEXTS]
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda _: served.ask("/predict", {"inputs": inputs}), range(64)))
        assert {answer.status for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status == 429)
        assert int(refused.headers["retry-after"]) >= 1 and refused.json["error_type"] == "Overloaded"
        assert served.metric("hadskip_queue_inputs") == 0


def test_with_a_token_nobody_else_is_answered(points_bundle: Path):
    with serving(points_bundle, token="s3cret") as served:
        for path in ("/predict", "/", "/info", "/metrics"):
            question = {"inputs": "a"} if path in ("/predict", "/") else None
            assert served.ask(path, question).status == 401
            assert served.ask(path, question, Authorization="Bearer other").status == 401
            assert served.ask(path, question, Authorization="Bearer s3cret").status == 200
        assert served.ask("/health").status == served.ask("/ready").status == 200
        assert served.ask("/docs").status == served.ask("/openapi.json").status == 404
        assert InferenceClient(model=served.url, token="s3cret").text_classification("a")


def test_metrics_say_what_was_asked_and_what_ran(points_bundle: Path):
    with serving(points_bundle) as served, Predictor.load(points_bundle, threads=1) as predictor:
        inputs = [*([text] for text in TEXTS), [LONG]]
        layers = served.ask("/predict", {"inputs": inputs}).headers["x-layers-run"].split(",")
        served.ask("/predict", {"inputs": 3})
        text = served.ask("/metrics").body.decode()
        assert 'hadskip_requests_total{route="/predict",status="200"} 1.0' in text
        assert 'hadskip_requests_total{route="/predict",status="422"} 1.0' in text
        assert served.metric("hadskip_layers_run_count") == len(inputs)
        assert served.metric("hadskip_layers_run_sum") == sum(map(int, layers))
        assert served.metric("hadskip_layer_runs_total") == sum(map(int, layers))
        assert served.metric("hadskip_truncated_total") == 1
        assert served.metric("hadskip_batch_inputs_count") == 1
        assert served.metric("hadskip_budget") == predictor.budget == 2.0
        assert served.metric("hadskip_queue_inputs") == 0
        assert 'engine="ort-fp32-whole"' in text


def test_the_routes_are_documented(served: Served):
    schema = served.ask("/openapi.json").json
    known = {"/predict", "/", "/rerank", "/rank", "/classify", "/v1/rerank", "/v2/rerank", "/health", "/ready", "/info"}
    assert known == set(schema["paths"])
    assert served.ask("/docs").status == 200
    info = served.ask("/info").json
    assert (info["labels"], info["layers"], info["budget"]) == (["no", "yes"], 4, 2.0)


def test_an_empty_host_is_not_all_hosts():
    for host in ("", " "):
        with pytest.raises(DataError, match="--host: is empty"):
            listen(host, 0)
