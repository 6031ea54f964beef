"""The server as its clients see it: OpenAI's own, a hundred at once, some that hang up, some that send nonsense."""

import asyncio
import json
import socket

import pytest

pytest.importorskip("transformers")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
pytest.importorskip("openai")

import httpx
import openai
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.conftest import KEY, served

HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120)


@pytest.fixture
def post(server):
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as http:
        yield lambda path, **given: http.post(path, **given)


def test_a_chat_whole_and_streamed_is_the_same(client):
    whole = client.chat.completions.create(model="small", messages=HI, temperature=0, max_tokens=10)
    assert whole.choices[0].message.role == "assistant" and whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.prompt_tokens == 4 and whole.usage.completion_tokens <= 10
    pieces = list(
        client.chat.completions.create(
            model="small",
            messages=HI,
            temperature=0,
            max_completion_tokens=10,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert "".join(texts) == whole.choices[0].message.content and len(texts) > 3
    assert pieces[-1].usage == whole.usage and pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert pieces[0].choices[0].delta.role == "assistant" and len({piece.id for piece in pieces}) == 1


def test_texts_token_ids_and_several_at_once(client):
    (one,) = client.completions.create(model="small", prompt="hello", temperature=0, max_tokens=6).choices
    ids = [ord(char) for char in "hello"]
    (same,) = client.completions.create(model="small", prompt=ids, temperature=0, max_tokens=6).choices
    both = client.completions.create(model="small", prompt=["hello", "you"], temperature=0, max_tokens=6)
    assert one.text == same.text == both.choices[0].text and [choice.index for choice in both.choices] == [0, 1]
    stop = one.text[2]
    cut = client.completions.create(model="small", prompt="hello", temperature=0, max_tokens=6, stop=[stop])
    assert cut.choices[0].text == one.text[: one.text.find(stop)] and cut.choices[0].finish_reason == "stop"
    streamed = client.completions.create(
        model="small", prompt=["hello", "you"], temperature=0, max_tokens=6, stream=True
    )
    texts = ["", ""]
    for piece in streamed:
        texts[piece.choices[0].index] += piece.choices[0].text
    assert texts == [choice.text for choice in both.choices]


def test_a_seed_gives_the_same_again(client):
    def drawn(seed: int) -> str:
        answer = client.chat.completions.create(
            model="small", messages=HI, seed=seed, temperature=1.5, max_tokens=12, extra_body={"top_k": 50}
        )
        return answer.choices[0].message.content

    assert drawn(5) == drawn(5) != drawn(6)


def test_models_health_and_the_page(client, server):
    assert [model.id for model in client.models.list()] == ["small"]
    health = httpx.get(f"{server.url}/health").json()
    assert health["status"] == "ok"
    page = httpx.get(server.url)
    assert "hasTemplate = true" in page.text and "default-src 'none'" in page.headers["content-security-policy"]


def test_a_hundred_streams_at_once(server):
    """All are answered whole; those that may share a batch give what one alone gives."""

    async def one(client, number: int) -> str:
        text = ""
        stream = await client.chat.completions.create(
            model="small",
            messages=[{"role": "user", "content": str(number % 10)}],
            temperature=0,
            max_tokens=5,
            stream=True,
        )
        async for piece in stream:
            text += piece.choices[0].delta.content or ""
            finish = piece.choices[0].finish_reason
        assert finish in ("stop", "length")
        return text

    async def hundred() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=300) as client:
            return await asyncio.gather(*(one(client, number) for number in range(100)))

    texts = asyncio.run(hundred())
    assert all(texts[number] == texts[number % 10] for number in range(100)) and len(set(texts)) > 3
    assert server.settled()


def test_clients_that_hang_up_leave_no_place_taken(server):
    body = json.dumps({"messages": HI, "max_tokens": 40, "temperature": 0, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    whole = head.encode() + body
    for cut in (len(head) // 2, len(head), len(whole) - 5, len(whole), len(whole)):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(whole[:cut])
            if cut == len(whole):
                connection.recv(200)
    assert server.settled()
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"


WRONG = [
    ({}, "messages: Field required", 400),
    ({"messages": []}, "messages: List should have at least 1", 400),
    ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role", 400),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", 400),
    ({"messages": HI, "temperature": 3}, "temperature", 400),
    ({"messages": HI, "temperature": "hot"}, "temperature", 400),
    ({"messages": HI, "max_tokens": "5"}, "max_tokens: Input should be a valid integer", 400),
    ({"messages": HI, "stream": 1}, "stream: Input should be a valid boolean", 400),
    ({"messages": HI, "n": 2}, "n: ", 400),
    ({"messages": HI, "tools": []}, "tools: Extra inputs", 400),
    ({"messages": HI, "max_tokens": 41}, "at most 40 tokens", 400),
    ({"messages": HI, "max_tokens": 61}, "the context is 64 tokens; 4 are in the messages and 61", 400),
    ({"messages": [{"role": "user", "content": "x" * 90}]}, "the context is 64 tokens", 400),
    ({"messages": HI, "stop": [""]}, "stop", 400),
    ([], "body: Input should be", 400),
]


@pytest.mark.parametrize(("body", "message", "status"), WRONG, ids=[words for _, words, _ in WRONG])
def test_what_is_wrong_is_said_in_openais_form(post, body, message, status):
    response = post(CHAT, json=body)
    error = response.json()["error"]
    assert response.status_code == status and message in error["message"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ({"content": b"\xff\xfe", "headers": {"Content-Type": "application/json"}}, 400),
        ({"content": b"[" * 9000, "headers": {"Content-Type": "application/json"}}, 400),
        ({"content": b'{"\\ud800": 1}', "headers": {"Content-Type": "application/json"}}, 400),
        ({"content": b"{}", "headers": {"Content-Type": "text/plain"}}, 415),
        ({"json": {"messages": [{"role": "user", "content": "x" * 30_000}]}}, 413),
        ({"json": {"messages": HI}, "headers": {"Authorization": "Bearer no"}}, 401),
        ({"json": {"messages": HI}, "headers": {"Host": "evil.example"}}, 403),
    ],
)
def test_bodies_and_heads_that_are_none(post, given, status):
    response = post(CHAT, **given)
    assert response.status_code == status and response.json()["error"]["message"]


def test_other_paths_and_methods(post, server):
    assert post("/v1/embeddings", json={}).status_code == 404
    response = httpx.get(f"{server.url}{CHAT}", headers={"Authorization": f"Bearer {KEY}"})
    assert response.status_code == 405 and "error" in response.json()
    headers = {"Authorization": f"Bearer {KEY}"}
    assert [httpx.post(f"{server.url}{path}", headers=headers).status_code for path in ("/health", "/v1/models")] == [
        405,
        405,
    ]


def test_chunks_beyond_the_limit(post):
    def chunks():
        for _ in range(30):
            yield b" " * 1000

    assert post(CHAT, content=chunks(), headers={"Content-Type": "application/json"}).status_code == 413


def test_a_body_that_never_comes():
    with served(body_timeout=0.5) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(120)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 50\r\n\r\n{{".encode())
        assert connection.recv(500).startswith(b"HTTP/1.1 408")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({}, optional={"role": st.sampled_from(["user", "assistant", "x"]) | JSON, "content": JSON}),
    max_size=3,
)
BODY = st.fixed_dictionaries(
    {},
    optional={
        "messages": MESSAGES | st.just(HI) | JSON,
        "prompt": JSON | st.lists(st.integers(-1, 400), max_size=4),
        "max_tokens": st.integers(-1, 3) | JSON,
        "stop": JSON,
        "stream": JSON,
        "temperature": JSON,
        "top_k": JSON,
        "seed": JSON,
        "stream_options": JSON,
    },
)


@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
@given(BODY, st.sampled_from([CHAT, "/v1/completions"]))
def test_no_body_brings_the_server_down(server, post, body, path):
    content = json.dumps({"max_tokens": 2} | body)  # NaN too
    response = post(path, content=content.encode(), headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400, 413), response.text
    if response.status_code == 400:
        assert response.json()["error"]["message"]


def test_no_places_are_lost_in_all_that(server):
    assert server.settled() and server.scheduler.is_alive


def test_more_than_the_limit_and_too_slow():
    with served(max_requests=3, timeout=0.0001, batch_size=1) as server, httpx.Client(base_url=server.url) as http:
        many = http.post("/v1/completions", json={"prompt": list("abcd"), "max_tokens": 2})
        assert many.status_code == 429 and many.json()["error"]["type"] == "rate_limit_error"
        assert many.headers["retry-after"] == "1"
        late = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 40})
        assert late.status_code == 504 and late.json()["error"]["code"] == "timeout"
        assert server.settled()


def test_a_failure_in_generation_is_an_error_and_no_end():
    with served() as server, httpx.Client(base_url=server.url, timeout=60) as http:
        engine = server.scheduler.engine
        before, engine.generate = engine.generate, lambda *_: 1 / 0
        broken = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
        assert broken.status_code == 500 and broken.json()["error"]["code"] == "generation_failed"
        stream = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2, "stream": True})
        assert "generation_failed" in stream.text and "[DONE]" not in stream.text
        engine.generate = before
        assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
