"""What servers really send: hand-written samples of each one's wire format, with the source they follow.

Ids, times and texts are made up; fields, their order and the framing are the servers' own.
"""

import pytest

from llmpilot.openai_client.reading import Reading, read_answer

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def read(events: list[bytes], output_tokens: int, sequences: int = 1) -> Reading:
    """Read events of which each came as a chunk and a piece of its own, event i at i milliseconds."""
    pieces = [HEAD] + [b"%x\r\n%b\r\n" % (len(e), e) for e in events] + [b"0\r\n\r\n"]
    ends = [sum(map(len, pieces[: i + 1])) for i in range(len(pieces))]
    times_ns = [(i - 1) * 1_000_000 for i in range(len(pieces))]
    return read_answer(
        b"".join(pieces),
        ends,
        times_ns,
        output_tokens=output_tokens,
        sequences=sequences,
    )


def token_ms(answer: Reading) -> list[float]:
    return [t / 1e6 for t in answer.token_ns]


# vLLM 0.11, vllm/entrypoints/openai/serving_completion.py: completion_stream_generator dumps every field;
# with stream_options.continuous_usage_stats each chunk's usage counts its own choice so far, and with
# return_token_ids each choice holds the ids that its chunk carries (protocol.py:
# CompletionResponseStreamChoice). The text is empty while a token is only part of a character.
def vllm(text: str, ids: list[int], so_far: int, index: int = 0, finish: str = "null") -> bytes:
    return (
        'data: {"id":"cmpl-5f0","object":"text_completion","created":1760000000,"model":"m","choices":'
        f'[{{"index":{index},"text":"{text}","logprobs":null,"finish_reason":{finish},"stop_reason":null,'
        f'"token_ids":{ids},"prompt_token_ids":null}}],"usage":{{"prompt_tokens":4,'
        f'"total_tokens":{4 + so_far},"completion_tokens":{so_far}}}}}\n\n'
    ).encode()


VLLM_USAGE = (
    b'data: {"id":"cmpl-5f0","object":"text_completion","created":1760000000,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":4,"total_tokens":%d,"completion_tokens":%d}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def test_vllm_counts_tokens_not_chunks() -> None:
    events = [
        vllm(" a", [11], 1),
        vllm("", [12], 2),
        vllm(" bc", [13, 14, 15], 5),
        vllm(" d", [16], 6, finish='"length"'),
        VLLM_USAGE % (10, 6),
        DONE,
    ]
    answer = read(events, 6)
    assert answer.failure == ""
    assert answer.method == "token_ids"
    assert token_ms(answer) == [0, 1, 2, 2, 2, 3]
    assert (answer.chunks, answer.merged, answer.input_tokens) == (4, 1, 4)
    assert answer.response_id == "cmpl-5f0"


def test_vllm_without_token_ids_counts_by_running_usage() -> None:
    events = [
        e.replace(b'"token_ids":[11]', b'"token_ids":null').replace(b'"token_ids":[12]', b'"token_ids":null')
        for e in (vllm("", [11], 1), vllm(" ab", [12], 3, finish='"length"'))
    ]
    answer = read([*events, VLLM_USAGE % (7, 3), DONE], 3)
    assert (answer.failure, answer.method) == ("", "usage")
    assert token_ms(answer) == [0, 1, 1]


def test_vllm_sequences_are_counted_each_by_itself() -> None:
    events = [
        vllm(" a", [1], 1, index=1),
        vllm(" b", [2], 1, index=0),
        vllm(" c", [3], 2, index=0, finish='"length"'),
        vllm(" d", [4], 2, index=1, finish='"length"'),
        VLLM_USAGE % (12, 4),
        DONE,
    ]
    answer = read(events, 2, sequences=2)
    assert answer.failure == ""
    assert token_ms(answer) == [1, 2]
    assert answer.last_ns == 3_000_000
    short = read(events[:3] + events[4:], 2, sequences=2)
    assert (short.failure, short.ended_early, token_ms(short)) == ("", True, [1, 2])


def test_vllm_chat_role_chunk_is_no_token() -> None:
    # serving_chat.py: the role comes first, by itself, with usage 0 when usage is continuous.
    shared = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
    shared += b'"choices":[{"index":0,'
    events = [
        shared + b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
        b'"usage":{"prompt_tokens":9,"total_tokens":9,"completion_tokens":0}}\n\n',
        shared + b'"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}],'
        b'"usage":{"prompt_tokens":9,"total_tokens":10,"completion_tokens":1}}\n\n',
        shared + b'"delta":{"reasoning_content":"so"},"logprobs":null,"finish_reason":"length"}],'
        b'"usage":{"prompt_tokens":9,"total_tokens":11,"completion_tokens":2}}\n\n',
        DONE,
    ]
    answer = read(events, 2)
    assert (answer.failure, answer.method, token_ms(answer)) == ("", "usage", [1, 2])


def test_vllm_error_mid_stream() -> None:
    # serving_engine.py: create_streaming_error_response, sent as data of its own before [DONE].
    error = b'data: {"error": {"message": "EngineCore encountered an issue.", "type": "X", "code": 500}}\n\n'
    answer = read([vllm(" a", [1], 1), error, DONE], 8)
    assert answer.failure == "error_in_stream"
    assert "EngineCore" in answer.message
    assert token_ms(answer) == [0]


# llama.cpp, tools/server: server_task_result_cmpl_partial / _final::to_json_oaicompat. The final chunk has
# no new text and carries usage and timings; with timings_per_token every chunk carries timings.
def llamacpp(text: str, predicted: int | None, finish: str = "null", usage: str = "") -> bytes:
    timings = "" if predicted is None else f',"timings":{{"prompt_n":4,"predicted_n":{predicted}}}'
    return (
        f'data: {{"choices":[{{"text":"{text}","index":0,"logprobs":null,"finish_reason":{finish}}}],'
        f'"created":1760000000,"model":"m","system_fingerprint":"b6500-abc","object":"text_completion"{usage},'
        f'"id":"chatcmpl-Xy"{timings}}}\n\n'
    ).encode()


USAGE = ',"usage":{"completion_tokens":4,"prompt_tokens":4,"total_tokens":8}'


def test_llamacpp_last_chunk_is_no_token() -> None:
    events = [llamacpp(" a", None), llamacpp(" b", None), llamacpp(" c", None), llamacpp(" d", None)]
    answer = read([*events, llamacpp("", 4, '"length"', USAGE), DONE], 4)
    assert (answer.failure, answer.method, token_ms(answer)) == ("", "chunks_confirmed", [0, 1, 2, 3])


def test_llamacpp_timings_count_tokens_that_hide_behind_partial_characters() -> None:
    events = [
        llamacpp(" a", 1),
        llamacpp("é", 3),
        llamacpp(" d", 4),
        llamacpp("", 4, '"length"', USAGE),
        DONE,
    ]
    answer = read(events, 4)
    assert (answer.failure, answer.method, token_ms(answer)) == ("", "timings", [0, 1, 1, 2])


def test_llamacpp_without_timings_spreads_what_only_the_total_counts() -> None:
    answer = read([llamacpp(" a", None), llamacpp("é", None), llamacpp("", None, '"length"', USAGE), DONE], 4)
    assert (answer.failure, answer.method, token_ms(answer)) == ("", "total", [0, 0, 1, 1])


@pytest.mark.parametrize("field", [b"data: ", b"error: "])  # `error:` until 2025
def test_llamacpp_error_mid_stream(field: bytes) -> None:
    error = b'{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}\n\n'
    answer = read([llamacpp(" a", None), field + error], 4)
    assert answer.failure == "error_in_stream"
    assert "Context size" in answer.message


# text-generation-inference 3, router/src/server.rs, completions: `finish_reason` is "" until the last
# token, which carries its text and the usage in one.
def tgi(text: str, finish: str = "", usage: str = "null") -> bytes:
    return (
        'data: {"object":"text_completion","id":"","created":1,"model":"m","system_fingerprint":"3.3.0-a1",'
        f'"choices":[{{"index":0,"text":"{text}","logprobs":null,"finish_reason":"{finish}"}}],"usage":{usage}}}\n\n'
    ).encode()


def test_tgi_last_token_carries_the_usage() -> None:
    usage = '{"prompt_tokens":4,"completion_tokens":3,"total_tokens":7}'
    answer = read([tgi(" a"), tgi(" b"), tgi(" c", "length", usage), DONE], 3)
    assert (answer.failure, answer.method, token_ms(answer), answer.input_tokens) == (
        "",
        "chunks_confirmed",
        [0, 1, 2],
        4,
    )


def test_tgi_error_mid_stream_may_be_out_of_memory() -> None:
    # router/src/infer: an error in the stream is an event whose data is an ErrorResponse: `error` is a text.
    error = b'data: {"error":"Request failed: CUDA out of memory.","error_type":"generation"}\n\n'
    assert read([tgi(" a"), error], 3).failure == "out_of_memory"


# OpenAI, platform.openai.com/docs/api-reference/completions and chat/streaming: `usage` is null until a last
# chunk without choices; a chat's first chunk has only the role, its last only the reason to finish.
def test_openai_completion_counts_chunks_and_may_stop_early() -> None:
    shared = b'data: {"id":"cmpl-7","object":"text_completion","created":1,"model":"m","choices":'
    events = [
        shared + b'[{"text":" a","index":0,"logprobs":null,"finish_reason":null}],"usage":null}\n\n',
        shared + b'[{"text":" b","index":0,"logprobs":null,"finish_reason":"stop"}],"usage":null}\n\n',
        shared + b'[],"usage":{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6}}\n\n',
        DONE,
    ]
    answer = read(events, 5)
    assert (answer.failure, answer.method, token_ms(answer)) == ("", "chunks_confirmed", [0, 1])
    assert answer.ended_early


def test_openai_chat() -> None:
    shared = (
        b'data: {"id":"chatcmpl-9","object":"chat.completion.chunk","created":1,"model":"gpt-4o","choices":'
    )
    tail = b',"logprobs":null,"finish_reason":%b}],"usage":null}\n\n'
    events = [
        shared + b'[{"index":0,"delta":{"role":"assistant","content":"","refusal":null}' + tail % b"null",
        shared + b'[{"index":0,"delta":{"content":"Hel"}' + tail % b"null",
        shared + b'[{"index":0,"delta":{"content":"lo"}' + tail % b"null",
        shared + b'[{"index":0,"delta":{}' + tail % b'"length"',
        shared + b'[],"usage":{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10}}\n\n',
        DONE,
    ]
    answer = read(events, 2)
    assert (answer.failure, answer.method, token_ms(answer)) == ("", "chunks_confirmed", [1, 2])


# sse-starlette, in front of many Python servers: lines end in CRLF, comments keep the connection alive.
def test_crlf_and_pings() -> None:
    events = [
        b": ping - 2025-10-01\r\n\r\n",
        vllm(" a", [1], 1).replace(b"\n", b"\r\n"),
        b"event: x\r\nid: 3\r\n\r\n",
        DONE,
    ]
    answer = read(events, 1)
    assert (answer.failure, token_ms(answer)) == ("", [1])
