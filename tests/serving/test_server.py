"""The server and OpenAI's own client: the basic path, on every backend."""

import concurrent.futures
import json

import openai
import pytest
from served import END, FORBID_END, KEY, Server, write_causal

from kerasllm import CausalLM


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_causal(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(directory):
    return CausalLM.from_preset(directory)


@pytest.fixture(scope="module")
def server(directory):
    server = Server([directory], "--slots", "4").wait()
    yield server
    code, log = server.stop()
    assert code == 0, log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert "To be" not in json.dumps(lines) and any(line.get("prompt_tokens") == 6 for line in lines)


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def complete(client, prompt="To be,", **options):
    options = {"max_tokens": 24, "temperature": 0, "logit_bias": FORBID_END, **options}
    return client.completions.create(model="tiny", prompt=prompt, **options)


def test_a_completion_is_what_generate_makes_and_streams_the_same(client, model):
    expected = model.generate("To be,", 24, strip_prompt=True, logit_bias={END: -100.0})
    whole = complete(client)
    assert whole.choices[0].text == expected and whole.choices[0].finish_reason == "length"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (6, 24)
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == expected
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1


def test_sampled_answers_depend_on_the_seed_alone(client, model):
    made = complete(client, temperature=1, seed=7, n=3)
    expected = model.generate(
        "To be,", 24, sampler="temperature", seed=7, n=3, strip_prompt=True, logit_bias={END: -100.0}
    )
    assert [choice.text for choice in made.choices] == expected and len(set(expected)) == 3
    streamed = ["", "", ""]
    for chunk in complete(client, temperature=1, seed=7, n=3, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == expected


def test_greedy_answers_under_load_equal_the_answers_alone(client):
    prompts = [f"{number} is " * (1 + number % 5) for number in range(12)]
    sizes = [4 + 5 * (number % 4) for number in range(12)]
    alone = [complete(client, prompt, max_tokens=size).choices[0].text for prompt, size in zip(prompts, sizes)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(complete, client, prompt, max_tokens=size) for prompt, size in zip(prompts, sizes)]
        noise = [pool.submit(complete, client, temperature=1, n=2) for _ in range(4)]
        assert [call.result().choices[0].text for call in calls] == alone
        assert all(call.result().choices for call in noise)


def test_echo_and_logprobs_score_a_text(client, model):
    text = "whether 'tis nobler"
    answer = complete(client, text, max_tokens=0, echo=True, logprobs=2).choices[0]
    assert answer.text == text and "".join(answer.logprobs.tokens) == text
    assert answer.logprobs.token_logprobs[0] is None and answer.logprobs.text_offset == list(range(len(text)))
    [expected] = model.score([text])
    assert answer.logprobs.token_logprobs[1:] == pytest.approx(expected.tolist(), abs=1e-4)


def test_chat_answers_through_the_template_and_streams_the_same(client):
    options = {"messages": [{"role": "user", "content": "Hello"}], "model": "tiny", "temperature": 0}
    options |= {"max_completion_tokens": 12, "logit_bias": FORBID_END}
    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=3).choices[0]
    assert whole.finish_reason == "length" and whole.message.role == "assistant"
    assert bytes(b for token in whole.logprobs.content for b in token.bytes).decode("utf-8", "replace")
    assert all(token.logprob == token.top_logprobs[0].logprob for token in whole.logprobs.content)
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "length"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
