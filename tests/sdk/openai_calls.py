#!/usr/bin/env python3
"""Every call the openai SDK has for the routes the gateway serves.

    openai_calls.py http://HOST:PORT llama|mock|engine

`llama` and `mock` say what stands behind the gateway; `engine` is for an engine itself, without a gateway.
"""
import asyncio
import sys

import openai

from checks import check, raises, run

MESSAGES = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Say hello, twice."}]
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
GATEWAY = ("llama", "mock")


@check()
def chat(client):
    answer = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=8)
    assert answer.object == "chat.completion" and answer.choices[0].message.role == "assistant"
    assert answer.usage.prompt_tokens > 0 and answer.usage.completion_tokens <= 8


@check()
def chat_with_newer_limit(client):
    answer = client.chat.completions.create(model="m", messages=MESSAGES, max_completion_tokens=3)
    assert answer.usage.completion_tokens <= 3


@check()
def chat_with_parts(client):
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]
    answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": parts}], max_tokens=4)
    assert answer.choices


@check()
def chat_stream(client):
    text, reasons = "", []
    for chunk in client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=8, stream=True):
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons.append(choice.finish_reason)
    assert text and [reason for reason in reasons if reason] in (["length"], ["stop"]), (text, reasons)


@check()
def chat_stream_with_usage(client):
    usage = None
    for chunk in client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=8, stream=True,
                                                stream_options={"include_usage": True}):
        usage = chunk.usage or usage
    assert usage and usage.prompt_tokens > 0 and usage.prompt_tokens_details.cached_tokens >= 0, usage


@check()
def chat_stream_helper(client):
    with client.chat.completions.stream(model="m", messages=MESSAGES, max_tokens=8) as stream:
        kinds = {event.type for event in stream}
        try:
            final = stream.get_final_completion()
        except openai.LengthFinishReasonError as cut:  # the SDK's word for "max_tokens was reached"
            final = cut.completion
    assert "chunk" in kinds and final.choices[0].finish_reason in ("length", "stop"), kinds


@check()
def chat_stream_closed_early(client):
    stream = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=400, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=2).choices


@check()
def chat_with_tools(client):
    answer = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=32, tools=TOOLS)
    assert answer.choices[0].message is not None


@check()
def chat_with_tool_results(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}
    messages = MESSAGES + [{"role": "assistant", "content": "", "tool_calls": [call]},
                           {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]
    assert client.chat.completions.create(model="m", messages=messages, max_tokens=4).choices


@check("llama", "engine")
def chat_several_choices(client):
    answer = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=4, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]


@check("llama", "engine")
def chat_logprobs(client):
    answer = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2,
                                            temperature=0)
    content = answer.choices[0].logprobs.content
    # A random model may end early, or begin with half a character.
    assert 1 <= len(content) <= 4 and max(len(token.top_logprobs) for token in content) == 2


@check("llama", "engine")
def chat_as_json(client):
    answer = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=24,
                                            response_format={"type": "json_object"})
    assert answer.choices[0].message.content.lstrip().startswith("{")


@check()
def chat_with_vendor_fields(client):
    answer = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=2, user="tenant-7", seed=1,
                                            extra_body={"cache_prompt": True, "x_vendor": {"deep": [1, 2, {"a": None}]}})
    assert answer.choices


@check(*GATEWAY)
def raw_answer_names_the_replica(client):
    raw = client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES, max_tokens=2)
    assert raw.headers["x-emberlane-replica"] and raw.parse().choices


@check()
def completions(client):
    answer = client.completions.create(model="m", prompt="Once upon a time", max_tokens=6)
    assert answer.object == "text_completion" and answer.usage.completion_tokens <= 6


@check()
def completions_stream(client):
    pieces = list(client.completions.create(model="m", prompt="Once upon a time", max_tokens=6, stream=True))
    assert "".join(choice.text for piece in pieces for choice in piece.choices)


@check()
def completions_of_token_ids(client):
    assert client.completions.create(model="m", prompt=[101, 102, 103, 104], max_tokens=2).choices


@check()
def completions_of_many_prompts(client):
    answer = client.completions.create(model="m", prompt=["Once upon", "a time"], max_tokens=2)
    assert len(answer.choices) >= 1


@check()
def responses(client):
    answer = client.responses.create(model="m", input="Say hello.", max_output_tokens=8)
    assert answer.object == "response" and answer.output and answer.usage.input_tokens > 0


@check()
def responses_with_instructions(client):
    answer = client.responses.create(model="m", instructions="Be terse.", max_output_tokens=8,
                                     input=[{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}])
    assert answer.output_text is not None


@check()
def responses_stream(client):
    kinds = [event.type for event in
             client.responses.create(model="m", input="Say hello.", max_output_tokens=8, stream=True)]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete"), kinds
    assert "response.output_text.delta" in kinds, kinds


@check("mock")  # llama.cpp leaves out `content_index`, which the helper needs
def responses_stream_helper(client):
    with client.responses.stream(model="m", input="Say hello.", max_output_tokens=8) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output


@check("mock")
def embeddings(client):
    answer = client.embeddings.create(model="m", input="hello")
    assert len(answer.data) == 1 and len(answer.data[0].embedding) > 0
    answer = client.embeddings.create(model="m", input=["hello", "there"], encoding_format="float")
    assert [item.index for item in answer.data] == [0, 1]


@check()
def models_list(client):
    assert [model.id for model in client.models.list()] == ["m"]


@check(*GATEWAY)
def unknown_model(client):
    error = raises(openai.NotFoundError,
                   lambda: client.chat.completions.create(model="nobody", messages=MESSAGES, max_tokens=2))
    assert error.code == "model_not_found" and error.param == "model" and error.body["message"], error.body


@check()
def bad_request(client):
    error = raises(openai.BadRequestError,
                   lambda: client.chat.completions.create(model="m", messages="hello", max_tokens=2))
    assert error.status_code == 400 and error.body["message"]


@check(*GATEWAY)
def empty_messages(client):
    error = raises(openai.BadRequestError,
                   lambda: client.chat.completions.create(model="m", messages=[], max_tokens=2))
    assert error.param == "messages", error.body


@check("mock")
def rate_limited(client):
    error = raises(openai.RateLimitError, lambda: client.with_options(max_retries=0).chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=2, extra_headers={"x-mock-status": "429"}))
    assert error.status_code == 429


@check()
def asynchronous_calls_at_once(client):
    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as other:
            return await asyncio.gather(*(other.chat.completions.create(
                model="m", max_tokens=4, messages=[{"role": "user", "content": f"Number {n}"}]) for n in range(8)))
    assert len(asyncio.run(all_at_once())) == 8


if __name__ == "__main__":
    run(openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0, timeout=60), sys.argv[2])
