"""Where a service's API is, what it calls its models and who may use it: as people have it."""

from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from picky_service import MODELS, Answer, Asked, picky, refused, stream, visited
from tracked import client_here, read

from llmpilot import tracking
from llmpilot.deploy.external import ServiceError
from llmpilot.engine.openai import OpenAIEngine

AZURE = "/openai/deployments/my-gpt/chat/completions"


def below(*bases: str, chat: bool = True, completions: bool = True, models: Any = MODELS) -> Any:
    """A server whose API is below these paths."""

    def answers(asked: Asked) -> Answer:
        path = asked.path.partition("?")[0]
        for base in bases:
            if path == f"{base}/models" and models is not None:
                return 200, models
            if (chat and path == f"{base}/chat/completions") or (
                completions and path == f"{base}/completions"
            ):
                return stream(asked.body)
        return 404, {"detail": "Not Found"}

    return answers


@pytest.mark.parametrize(
    ("base", "pasted", "path"),
    [
        ("/v1", "", "/v1/completions"),
        ("/v1", "/", "/v1/completions"),
        ("/v1", "/v1", "/v1/completions"),
        ("/v1", "/v1/", "/v1/completions"),
        ("/v1", "/v1/models", "/v1/completions"),
        ("/v1", "/v1/completions", "/v1/completions"),
        ("/v1", "/v1/chat/completions", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions/", "/v1/chat/completions"),
        ("/v3", "/v3", "/v3/completions"),
        ("/v3", "/v3/chat/completions", "/v3/chat/completions"),
        ("/v1beta", "/v1beta", "/v1beta/completions"),
        ("/openai/v1", "/openai", "/openai/v1/completions"),
        ("/api/v1", "/api/v1", "/api/v1/completions"),
        ("/openai", "/openai", "/openai/completions"),
        ("", "", "/completions"),
        ("", "/completions", "/completions"),
        ("", "/models", "/completions"),
        ("/models", "/models", "/models/completions"),
        ("/v1beta/openai", "/v1beta/openai/", "/v1beta/openai/completions"),
    ],
)
def test_any_url_is_taken(base: str, pasted: str, path: str) -> None:
    with picky(below(base)) as server:
        found = visited(server.url + pasted)
        assert found.url + found.path == server.url + path
        assert (found.engine.api == "chat") == ("chat" in path)
        assert {one.path for one in server.posts[-1:]} == {path}


@pytest.mark.parametrize("path", ["/endpoints/e/invocations", "/predict"])
@pytest.mark.parametrize("chat", [True, False])
def test_a_path_that_is_none_of_openai_s_is_posted_to_itself(path: str, chat: bool) -> None:
    def answers(asked: Asked) -> Answer:
        if asked.path != path or asked.method != "POST":
            return 404, {"detail": "Not Found"}
        if ("messages" in asked.body) != chat:
            return 400, {"message": f"the body has no {'messages' if chat else 'prompt'}"}
        return stream(asked.body)

    with picky(answers) as server:
        found = visited(server.url + path, model="m")
    assert found.url + found.path == server.url + path
    assert (found.engine.api == "chat") == chat
    assert found.wire.startswith(f"the URL itself, {found.engine.api}")


def test_a_path_that_takes_nothing_is_said_to() -> None:
    with (
        picky(lambda asked: (404, {"detail": "Not Found"})) as server,
        pytest.raises(ServiceError, match=r"takes no requests: .*the URL itself answered 404"),
    ):
        visited(f"{server.url}/predict", model="m")


@pytest.mark.parametrize(
    ("there", "cure"),
    [
        ("/openai/", "paste the URL that requests are posted to"),
        ("https://login.example.com/", "deployment.url=https://login.example.com/, if that is the service"),
    ],
)
def test_a_path_that_sends_elsewhere_is_said_with_what_to_type(there: str, cure: str) -> None:
    """As web servers do that have a folder of that name, or a login page before it."""

    def answers(asked: Asked) -> Answer:
        return (301, b"", {"Location": there}) if asked.path == "/openai" else (404, {"detail": "Not Found"})

    said = f"answered a request with 301: go to {there}"
    with picky(answers) as server, pytest.raises(ServiceError, match=said) as moved:
        visited(f"{server.url}/openai", model="m")
    assert moved.value.cure.startswith(cure)


@pytest.mark.parametrize("listed", [MODELS, None])
def test_a_base_is_found_with_and_without_a_list(listed: Any) -> None:
    with picky(below("/openai", models=listed)) as server:
        found = visited(f"{server.url}/openai", model="m")
    assert found.path == "/completions"
    assert found.url == f"{server.url}/openai"


def test_a_url_of_azure_is_taken_with_its_version_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-s3cret-key")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")

    def answers(asked: Asked) -> Answer:
        if asked.headers.get("api-key") != "azure-s3cret-key" or "authorization" in asked.headers:
            return 401, {"error": {"message": "Access denied due to invalid subscription key"}}
        if asked.path != f"{AZURE}?api-version=2024-10-21":
            return 404, {"error": {"code": "404", "message": "Resource not found"}}
        return stream(asked.body)

    with picky(answers) as server:
        url = f"{server.url}{AZURE}?api-version=2024-10-21"
        found = visited(url, headers={"api-key": "env:AZURE_OPENAI_API_KEY"})
        assert (found.model, found.engine.api) == ("my-gpt", "chat")
        assert found.path == "/chat/completions?api-version=2024-10-21"
        assert found.headers == {"api-key": "azure-s3cret-key"}
        assert "s3cret" not in repr(found)
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", "wrong-s3cret-key")
        with pytest.raises(ServiceError, match=r"refuses the key in deployment\.headers\.api-key \(401\)"):
            visited(url, headers={"api-key": "env:AZURE_OPENAI_API_KEY"})


def test_keys_in_a_query_go_with_every_request_and_are_not_shown() -> None:
    def answers(asked: Asked) -> Answer:
        assert asked.path.endswith("?code=s3cretcode")
        return refused("no quota left for s3cretcode", 402)

    with picky(answers) as server, pytest.raises(ServiceError, match="no quota left") as stopped:
        visited(f"{server.url}/v1?code=s3cretcode", model="m")
    assert "s3cret" not in str(stopped.value)
    assert {one.path.partition("?")[2] for one in server.asked} == {"code=s3cretcode"}


@pytest.mark.parametrize(
    "listed",
    [
        (404, {"detail": "Not Found"}),
        (405, b""),
        (500, b"Internal Server Error"),
        (401, {"error": "no"}),
        (403, b""),
        (200, b"<!doctype html><html>app</html>"),
        (200, {"data": []}),
        (200, {"data": [{"id": "*"}]}),
        (200, {"data": [{"id": "openai/*"}, {"id": "other"}]}),
        (200, ["one", "other"]),
        (200, [{"id": "one"}]),
        (200, {"models": [{"name": "one"}]}),
        (302, b"", {"Location": "/login"}),
        (429, b""),
    ],
)
def test_a_list_of_models_is_only_advice(listed: Any) -> None:
    with picky(lambda asked: listed if asked.path == "/v1/models" else None) as server:
        found = visited(server.url, model="openai/m")
    assert (found.model, found.path) == ("openai/m", "/v1/completions")


@pytest.mark.parametrize(
    "listed",
    [["one"], [{"id": "one"}], {"data": ["one"]}, {"models": [{"name": "one"}]}, {"data": [{"id": "one"}]}],
)
def test_the_only_model_is_taken_however_it_is_listed(listed: Any) -> None:
    with picky(lambda _: None, listed) as server:
        assert visited(server.url).model == "one"


def test_without_a_list_the_model_must_be_named() -> None:
    for listed in ((404, b""), (200, {"data": [{"id": "*"}]}), (200, b"<html>")):
        with (
            picky(lambda asked, listed=listed: listed if "/models" in asked.path else None) as server,
            pytest.raises(ServiceError) as stopped,
        ):
            visited(server.url)
        assert "deployment.model=" in stopped.value.cure, listed


@pytest.mark.parametrize(
    "answer",
    [
        refused("The model `starcode` does not exist.", 404, code="model_not_found"),
        refused("The model `starcode` does not exist or you do not have access to it.", 404),
        (404, {"error": 'model "starcode" not found, try pulling it first'}),
        refused("starcode is not a valid model ID", 400),
        refused("Invalid model name passed in model=starcode", 400),
        (404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}}),
    ],
)
def test_an_unknown_model_is_answered_with_those_there_are(answer: Answer) -> None:
    models = {"data": [{"id": "starcoder"}, {"id": "llama"}]}
    with (
        picky(lambda asked: answer if asked.method == "POST" else None, models) as server,
        pytest.raises(ServiceError, match="does not serve this model") as stopped,
    ):
        visited(server.url, model="starcode")
    assert "deployment.model=starcode" in str(stopped.value)
    assert "did you mean 'starcoder'? it lists starcoder, llama" in stopped.value.cure


def test_a_model_that_is_not_listed_and_answers_all_the_same_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with picky(lambda _: None) as server:
        assert visited(server.url, model="alias").model == "alias"
    assert "deployment.model=alias is not among the models that are listed (m)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"detail": "Not Found"}),
        (405, b"Method Not Allowed"),
        (501, b""),
        (403, {"message": "Missing Authentication Token"}),
        (200, b"<!DOCTYPE html><html><body>app</body></html>"),
        (200, {"error": "Unexpected endpoint or method. (POST /v1/completions)"}),
        refused("This is a chat model and not supported in the v1/completions endpoint. Did you mean to use "
                "v1/chat/completions?", 404),
        refused("The completion operation does not work with the specified model, gpt-4o.", 400),
        refused("The model does not support completions", 400),
        refused("Text completions are not supported", 500),
    ],
)  # fmt: skip
def test_chat_is_asked_where_only_chat_answers(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    with picky(lambda asked: answer if asked.path == "/v1/completions" else None) as server:
        found = visited(server.url)
        assert (found.engine.api, found.path, found.dialect) == ("chat", "/v1/chat/completions", "vllm")
        assert (
            "requests go to /v1/chat/completions as text: /v1/completions answered" in capsys.readouterr().err
        )
        with pytest.raises(ServiceError):
            visited(server.url, OpenAIEngine(api="completions"))
        assert visited(server.url, OpenAIEngine(api="chat")).engine.api == "chat"


def test_headers_of_ones_own_replace_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-usual-one")
    with picky(lambda _: None) as server:
        visited(server.url, headers={"X-Team": "blue", "authorization": "Token abc-123-def"})
        assert server.posts[0].headers["authorization"] == "Token abc-123-def"
        assert server.posts[0].headers["x-team"] == "blue"
        assert server.asked[0].headers["x-team"] == "blue"
        visited(server.url, headers={"X-Team": "blue"})
        assert server.posts[-1].headers["authorization"] == "Bearer sk-the-usual-one"


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"api-key": "env:NO_SUCH_VARIABLE"}, r"read from \$NO_SUCH_VARIABLE, which is not set"),
        ({"api-key": "env:sk-123456"}, "names no variable"),
        ({"api key": "s3cret-value"}, "none of an HTTP header"),
        ({"api-key": "s3cret\r\nX-Evil: 1"}, "not all printable ASCII"),
        ({"api-key": "s3cr\xe9t-value"}, "not all printable ASCII"),
        ({"Content-Length": "3"}, "cannot be set"),
    ],
)
def test_headers_that_cannot_be_sent_are_said(headers: dict[str, str], said: str) -> None:
    with pytest.raises(ServiceError, match=said) as stopped:
        visited("http://127.0.0.1:9", headers=headers)
    assert "s3cr" not in str(stopped.value)
    assert "123456" not in str(stopped.value)


SERVICE = ("+gpu=a100", "+model=starcoder", "engine=openai", "deployment=external")
QUICK = ("deployment.client.calibrate=false", "load.users=[1]", "load.duration_s=0.5", "load.warmup_s=0.1",
         "workload=fixed", "workload.input_tokens=64", "workload.output_tokens=4")  # fmt: skip


def everything_written(ran: Any) -> str:
    client, texts = client_here(), [ran.out, ran.err]
    for run in client.search_runs([one.experiment_id for one in client.search_experiments()]):
        texts += [str(run.data.params), str(run.data.tags), str(run.info.run_name)]
        todo = [one.path for one in client.list_artifacts(run.info.run_id)]
        for path in todo:
            file = Path(client.download_artifacts(run.info.run_id, path))
            texts += [part.read_text(errors="replace") for part in [file, *file.rglob("*")] if part.is_file()]
    return "\n".join(texts)


def test_a_gateway_with_a_key_of_its_own_is_measured_by_one_command(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a sweep of one cell, whose name holds the command line.
    monkeypatch.setenv("GATEWAY", "gate-s3cret-1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def answers(asked: Asked) -> Answer:
        key = asked.headers.get("ocp-apim-subscription-key"), asked.headers.get("x-team")
        if key != ("gate-s3cret-1", "team-s3cret-2") or not asked.path.endswith(
            "?api-version=2&sig=s3cretsig"
        ):
            return 401, {"error": "no"}
        path = asked.path.partition("?")[0]
        if path != "/openai/deployments/d/chat/completions":
            return 404, b""
        if "ignore_eos" in asked.fields:
            return refused("Unrecognized request argument supplied: ignore_eos for gate-s3cret-1")
        return stream(asked.body, prompt_tokens=7 + len(asked.body["messages"][0]["content"].split()))

    with picky(answers) as server:
        url = f"{server.url}/openai/deployments/d/chat/completions?api-version=2&sig=s3cretsig"
        keys = (
            "deployment.headers.Ocp-Apim-Subscription-Key=env:GATEWAY",
            "deployment.headers.X-Team=team-s3cret-2",
        )
        ran = run("-m", *SERVICE, *QUICK, f"deployment.url={url}", *keys, "result_file=r.json")
    assert ran.code == 0, ran.err
    assert "does not take ignore_eos" in ran.err
    assert "1.00 tokens for each word of a prompt and 7 besides" in ran.err
    result = read("r.json")
    level = result["cells"][0]["result"]["levels"][0]
    assert level["requests_ok"] > 0
    assert level["requests_failed"] == 0
    logged = client_here().search_runs(
        [one.experiment_id for one in client_here().search_experiments()], "params.`engine.name` = 'openai'"
    )[0]
    assert logged.data.tags[tracking.TAG_WIRE].endswith("dialect vllm; does not take ignore_eos")
    assert logged.data.params["deployment.headers.Ocp-Apim-Subscription-Key"] == "env:GATEWAY"
    written = everything_written(ran)
    assert "s3cret" not in written
    words = [len(one.body["messages"][0]["content"].split()) for one in server.posts[-1:]]
    assert words == [57], "64 tokens less 7 of the template"


def test_a_header_in_braces_is_taken_and_hidden(run: Run) -> None:
    def answers(asked: Asked) -> Answer:
        key = asked.headers.get("api-key", "")
        return (402, f"no quota left for {key}".encode()) if key == "xyz-s3cret" else (401, key.encode())

    with picky(answers) as server:
        where = ("deployment.model=m", f"deployment.url={server.url}")
        taken = run(*SERVICE, *where, "deployment.headers={api-key:xyz-s3cret}")
        wrong = run(*SERVICE, *where, "deployment.headers={api-key: wrong-s3cret}")
        misspelt = run(*SERVICE, *where, "deployment.headers={api-key: 'more-s3cret'}", "deployment.modell=n")
    assert "no quota left for ***" in taken.err
    assert "refuses the key in deployment.headers.api-key (401): ***" in wrong.err
    assert "deployment.modell is not a key" in misspelt.err
    for one in (taken, wrong, misspelt):
        assert one.code == 2
        assert "s3cret" not in one.out + one.err
