"""Captions by a server that speaks OpenAI's API, and does so badly at times."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from caption_server import MODEL, Asked, CaptionServer, Fault, answer, describe
from PIL import Image

from lotlip.data.scenes import make_sample
from lotlip.errors import ClusterError, ConfigError
from lotlip.relabel.asking import Answer, GenerationConfig, Place, PromptConfig, make_request
from lotlip_platform import endpoint
from lotlip_platform.endpoint import EndpointCaptioner, EndpointConfig, check_endpoint

PROMPTS = PromptConfig(texts={"one": "Describe it."})
Start = Callable[..., CaptionServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers; all are ended with the test."""
    servers: list[CaptionServer] = []

    def start(fault: Fault | None = None, **options: Any) -> CaptionServer:
        servers.append(CaptionServer(fault=fault, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(endpoint, "_LONGEST_PAUSE_S", 0.2)


def config_of(server: CaptionServer, **values: Any) -> EndpointConfig:
    return EndpointConfig(**{"url": server.url, "model": MODEL, "max_attempts": 4, **values})


def ask(
    config: EndpointConfig, num: int = 20, num_workers: int = 1, **settings: Any
) -> list[Answer]:
    """The answers about so many images, in the images' order."""
    captioner = EndpointCaptioner(
        config, GenerationConfig(**settings), system="", num_workers=num_workers
    )
    requests = (make_request(make_sample(0, i), "s", Place(0, i, 0), PROMPTS) for i in range(num))
    found: list[Answer] = []

    def keep(answers: list[Answer]) -> Future[None]:
        found.extend(answers)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    captioner.answer(([request] for request in requests), keep)
    return sorted(found, key=lambda answer: answer.place)


def once(*answers: tuple[int, dict[str, str], bytes]) -> Fault:
    """The first attempts at each question get these, the next the usual."""

    def fault(asked: Asked) -> tuple[int, dict[str, str], bytes] | None:
        return answers[asked.nth - 1] if asked.nth <= len(answers) else None

    return fault


def test_each_image_is_sent_once_and_gets_its_caption(start: Start):
    server = start(seconds=0.02)
    answers = ask(config_of(server, concurrency=8, extra={"top_k": 3}), max_tokens=77)
    assert [a.place.sample for a in answers] == list(range(20))
    said = {describe(asked.what) for asked in server.asked}
    assert {a.text for a in answers} == said
    assert len(said) == len(server.asked) == 20
    assert all(a.is_whole and a.num_attempts == 1 and a.input_tokens == 600 for a in answers)
    assert 2 <= server.most_in_flight <= 8
    body = server.asked[0].body
    assert (body["max_tokens"], body["temperature"], body["top_k"]) == (77, 0.0, 3)
    kind, _, image = server.asked[0].image.partition(";base64,")
    assert kind == "data:image/jpeg"
    assert base64.b64decode(image) in [make_sample(0, i).image for i in range(20)]


BROKEN = [
    pytest.param((500, {}, b"oh"), id="500"),
    pytest.param((503, {}, b"oh"), id="503"),
    pytest.param((429, {}, b"{}"), id="429"),
    pytest.param((429, {"Retry-After": "0.2"}, b"{}"), id="429 with Retry-After"),
    pytest.param((200, {}, b'{"id": "x", "choices": [{"mess'), id="truncated JSON"),
    pytest.param((200, {}, b""), id="nothing"),
    pytest.param((200, {}, b"null"), id="null"),
    pytest.param((200, {}, b'{"choices": "x"}'), id="another shape"),
    pytest.param((200, {}, b'{"choices": [null]}'), id="a choice of another shape"),
    pytest.param((200, {}, json.dumps(answer("a", choices=2)).encode()), id="two choices"),
    pytest.param((200, {}, json.dumps(answer("a", choices=0)).encode()), id="no choice"),
    pytest.param((200, {}, json.dumps(answer(" \n")).encode()), id="empty text"),
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_answer_is_asked_for_again(start: Start, broken):
    server = start(once(broken))
    answers = ask(config_of(server))
    assert [a.text for a in answers if a.error] == []
    assert len({a.text for a in answers}) == 20
    assert {a.num_attempts for a in answers} == {2}
    assert len(server.asked) == 40


def test_tokens_of_answers_that_were_no_use_are_counted_too(start: Start):
    server = start(once((200, {}, json.dumps(answer("a b", choices=2)).encode())))
    answers = ask(config_of(server), num=3)
    assert {a.input_tokens for a in answers} == {1200}
    assert all(a.output_tokens == 2 + len(a.text.split()) for a in answers)


def test_a_server_that_is_slow_is_asked_again(start: Start):
    def fault(asked: Asked) -> None:
        if asked.nth == 1:
            time.sleep(1.5)

    answers = ask(config_of(start(fault), timeout_s=0.5), num=4)
    assert [(bool(a.text), a.num_attempts) for a in answers] == [(True, 2)] * 4


def test_retry_after_holds_back_all_requests(start: Start):
    told_s: list[float] = []
    came_s: list[float] = []

    def fault(asked: Asked) -> tuple[int, dict[str, str], bytes] | None:
        if asked.number == 4:
            told_s.append(time.monotonic())
            return 429, {"Retry-After": "1"}, b"{}"
        if told_s:
            came_s.append(time.monotonic())
        return None

    answers = ask(config_of(start(fault, seconds=0.05), concurrency=2))
    assert all(a.text for a in answers)
    # The other one in flight may just have been sent.
    assert sorted(came_s)[1] - told_s[0] > 0.9


def test_a_question_that_is_refused_costs_one_attempt_and_tells_why(start: Start):
    def fault(asked: Asked) -> tuple[int, dict[str, str], bytes] | None:
        if asked.number != 3:
            return None
        return 400, {}, json.dumps({"error": {"message": "image is too small"}}).encode()

    answers = ask(config_of(start(fault)))
    errors = [a for a in answers if a.error]
    assert len(errors) == 1
    assert errors[0].num_attempts == 1
    assert errors[0].error.startswith("400: ")
    assert "image is too small" in errors[0].error


def test_a_refusal_of_the_model_is_no_caption(start: Start):
    refused = answer("")
    refused["choices"][0]["message"] = {"role": "assistant", "content": None, "refusal": "I won't."}
    server = start(lambda asked: (200, {}, json.dumps(refused).encode()))
    answers = ask(config_of(server), num=2)
    assert [(a.text, a.error) for a in answers] == [("", "refused: I won't.")] * 2
    assert len(server.asked) == 2


@pytest.mark.parametrize("status, told", [(500, "500"), (0, "disconnected")])
def test_a_question_that_breaks_the_server_each_time_does_not_stop_the_others(
    start: Start, status: int, told: str
):
    first: list[str] = []

    def fault(asked: Asked) -> tuple[int, dict[str, str], bytes] | None:
        first[:] = first or [asked.what]
        return (status, {}, b"CUDA error") if asked.what == first[0] else None

    answers = ask(config_of(start(fault)))
    assert sum(bool(a.error) for a in answers) == 1
    (error,) = (a for a in answers if a.error)
    assert error.num_attempts == 4
    assert told in error.error


def test_what_is_cut_at_the_most_tokens_is_told(start: Start):
    cut = json.dumps(answer("The image shows a", finish="length")).encode()
    answers = ask(config_of(start(lambda asked: (200, {}, cut))), num=1)
    assert (answers[0].text, answers[0].is_whole) == ("The image shows a", False)


def test_a_server_that_has_gone_ends_it_in_one_line(start: Start, dead_url: str):
    gone = EndpointConfig(url=f"{dead_url}/v1", model=MODEL, max_attempts=2)
    with pytest.raises(ClusterError, match=r"gave up after 2 attempts .* same command again") as e:
        ask(gone)
    assert "\n" not in str(e.value)
    busy = start(lambda asked: (429, {}, b"{}"))
    with pytest.raises(ClusterError, match=r"gave up after 4 attempts \(429"):
        ask(config_of(busy))


@pytest.mark.parametrize("code", [401, 403, 404])
def test_what_no_question_would_get_past_ends_it_at_once(start: Start, code: int):
    server = start(lambda asked: (code, {}, b'{"error": {"message": "no"}}'))
    with pytest.raises(ConfigError, match=f"refuses the requests \\({code}.*OPENAI_API_KEY"):
        ask(config_of(server, concurrency=2))
    assert len(server.asked) <= 4


def test_limits_are_kept_and_shared_among_workers(start: Start):
    server = start()
    began_s = time.monotonic()
    ask(config_of(server, requests_per_minute=1200), num=20, num_workers=2)  # 10 a second here
    assert 0.9 < time.monotonic() - began_s < 4
    began_s = time.monotonic()
    # 650 tokens an answer: 10 a second, the first second's worth at once
    ask(config_of(server, tokens_per_minute=390_000, concurrency=1), num=20)
    assert 0.7 < time.monotonic() - began_s < 4
    server = start(seconds=0.05)
    ask(config_of(server, concurrency=8), num=20, num_workers=4)
    assert server.most_in_flight == 2


def test_large_images_are_made_smaller_where_that_is_asked_for(start: Start):
    server = start()
    ask(config_of(server, longest_side_px=24), num=1)
    sent = server.asked[0].image.partition(";base64,")[2]
    assert max(Image.open(io.BytesIO(base64.b64decode(sent))).size) == 24


def test_an_answer_is_in_flight_until_it_is_kept(start: Start):
    server, kept = start(), threading.Semaphore(0)
    captioner = EndpointCaptioner(
        config_of(server, concurrency=3), GenerationConfig(), system="Be brief."
    )
    waiting: list[Future[None]] = []

    def keep(answers: list[Answer]) -> Future[None]:
        waiting.append(Future())
        kept.release()
        return waiting[-1]

    requests = (make_request(make_sample(0, i), "s", Place(0, i, 0), PROMPTS) for i in range(6))
    thread = threading.Thread(target=lambda: captioner.answer(([r] for r in requests), keep))
    thread.start()
    for _ in range(3):
        kept.acquire(timeout=10)
    time.sleep(0.3)
    assert len(server.asked) == 3
    while thread.is_alive():
        for future in waiting:
            if not future.done():
                future.set_result(None)
        thread.join(0.05)
    assert len(server.asked) == 6
    assert server.asked[0].body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_an_endpoint_is_checked_before_it_is_used(start: Start, dead_url: str):
    server = start()
    check_endpoint(config_of(server))
    with pytest.raises(ConfigError, match="has no model 'llava'; it has: tests/describer"):
        check_endpoint(config_of(server, model="llava"))
    with pytest.raises(ClusterError, match="can't be reached"):
        check_endpoint(EndpointConfig(url=f"{dead_url}/v1", model=MODEL))


@pytest.mark.parametrize(
    "values, key",
    [
        ({"url": "HOST:8000"}, "endpoint.url=HOST:8000 must be http"),
        ({"url": "http://x/v1"}, "endpoint.model is missing"),
        ({"concurrency": 0}, "endpoint.concurrency=0"),
        ({"max_attempts": 0}, "endpoint.max_attempts=0"),
        ({"requests_per_minute": -1.0}, r"endpoint.requests_per_minute=-1\.0"),
        ({"timeout_s": 0.0}, r"endpoint.timeout_s=0\.0"),
    ],
)
def test_a_wrong_value_names_its_key(values, key: str):
    with pytest.raises(ConfigError, match=key):
        EndpointConfig(**values)


def test_a_server_that_is_mostly_busy_is_waited_for_as_long_as_it_answers_some(start: Start):
    def fault(asked: Asked) -> tuple[int, dict[str, str], bytes] | None:
        return (429, {"Retry-After": "0.05"}, b"{}") if asked.number % 4 else None

    answers = ask(config_of(start(fault), concurrency=8, max_attempts=4), num=24)
    assert all(a.text for a in answers)
    assert max(a.num_attempts for a in answers) > 4


def test_an_outage_drops_no_captions(start: Start):
    def fault(asked: Asked) -> tuple[int, dict[str, str], bytes] | None:
        return (502, {}, b"bad gateway") if asked.number > 10 else None

    with pytest.raises(ClusterError, match=r"gave up after 4 attempts \(502.*same command again"):
        ask(config_of(start(fault), concurrency=4), num=24)


def test_half_a_surrogate_pair_in_a_caption_is_no_reason_to_end():
    sample = dataclasses.replace(make_sample(0, 0), short="a \ud800 castle")
    prompts = PromptConfig(texts={"hint": "It is {short}."})
    assert make_request(sample, "s", Place(0, 0, 0), prompts).text == "It is a ? castle."
