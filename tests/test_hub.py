"""What the hub refuses: one sentence that says what to do, within seconds."""

import socket
import time
from pathlib import Path

import httpx
import pytest
import requests
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoTokenizer

from ffmerge import hub
from ffmerge.hub import asking_hub, explain
from study.config import load_params
from study.pretrained import load_pretrained, load_pretrained_tokenizer
from study.sections import Base, Data
from study.tasks.data import load_split
from study.tasks.images import Task as Images
from workflow.inputs import ask_hub

IMAGENET = Data(path="ILSVRC/imagenet-1k", streaming=True)
VIT = Base(hub="google/vit-base-patch16-224", revision="v9")
LOADERS = {
    "data": lambda: load_split(IMAGENET, "train"),
    "model": lambda: load_pretrained(VIT),
    "tokenizer": lambda: load_pretrained_tokenizer(VIT),
    "images": lambda: Images(VIT, IMAGENET, Path("none")),
}
WHAT = "(data set 'ILSVRC/imagenet-1k'|model 'google/vit-base-patch16-224')"


@pytest.fixture(autouse=True)
def stranger(monkeypatch):
    """Nothing was asked before, and no token is set."""
    hub._ask.cache_clear()
    monkeypatch.setattr(hub, "get_token", lambda: None)


def answer(kind, status):
    """An error of the hub, as it makes one from the answer to a request."""
    request = httpx.Request("GET", "https://huggingface.co/api/x")
    return kind("refused", response=httpx.Response(status, request=request))


def refuse(monkeypatch, error):
    def raise_it(*args, **kwargs):
        raise error

    monkeypatch.setattr(HfApi, "repo_info", raise_it)


REFUSALS = [
    (answer(GatedRepoError, 403), r"is gated \(no token\); valid is to accept its terms at https"),
    (answer(HfHubHTTPError, 401), r"needs a token \(none is set\); valid is HF_TOKEN set to one"),
    (LocalTokenNotFoundError("no"), r"needs a token \(none is set\); valid is HF_TOKEN"),
    (answer(RepositoryNotFoundError, 401), "is not on the hub, or private; valid are an id"),
    (answer(RevisionNotFoundError, 404), r"has no revision .*; valid are those of https.*/commits"),
    (answer(HfHubHTTPError, 503), "cannot be fetched, as https://huggingface.co does not answer"),
    (
        httpx.ConnectError("no"),
        "cannot .* does not answer; valid are a network that reaches it, HF_ENDPOINT",
    ),
    (httpx.ReadTimeout("no"), "cannot .* does not answer; valid are a network"),
    (requests.ConnectionError("no"), "cannot .* does not answer; valid are a network"),
]


@pytest.mark.parametrize(("error", "words"), REFUSALS)
@pytest.mark.parametrize("loader", LOADERS)
def test_every_refusal_is_one_sentence_that_says_what_to_do(monkeypatch, loader, error, words):
    refuse(monkeypatch, error)
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"^{WHAT} {words}") as told:
        LOADERS[loader]()
    assert "\n" not in str(told.value) and str(told.value).count("; valid") == 1
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("kind", "words"), [("model", "google/vit-b"), ("dataset", "ILSVRC")])
def test_make_repro_asks_before_a_stage_runs_and_only_for_what_it_will_fetch(
    monkeypatch, repository, kind, words
):
    def told(self, name, repo_type, **kwargs):
        if repo_type == kind:
            raise answer(GatedRepoError, 403)

    params = load_params(repository)
    monkeypatch.setattr(HfApi, "repo_info", told)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **kwargs: None)
    ask_hub(params, ["activations@vit-base", "fetch@smollm2"])
    with pytest.raises(ValueError, match=rf"'{words}.* is gated \(no token\); valid is"):
        ask_hub(params, ["fetch@vit-base"])


def test_a_token_without_the_terms_is_told_from_no_token(monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(HfApi, "repo_info", lambda *args, **kwargs: type("Told", (), {"gated": 1}))
    asked = []

    def check(self, name, repo_type):
        asked.append((name, repo_type))
        raise answer(GatedRepoError, 403)

    monkeypatch.setattr(HfApi, "auth_check", check)
    with pytest.raises(ValueError, match=r"gated \(the token's account has not accepted its terms"):
        load_split(IMAGENET, "train")
    assert asked == [("ILSVRC/imagenet-1k", "dataset")]  # before anything is downloaded


@pytest.mark.parametrize("loader", LOADERS)
def test_offline_what_was_never_fetched_is_told_at_once(monkeypatch, loader):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    start = time.monotonic()
    words = f"^{WHAT} was never fetched whole, and HF_HUB_OFFLINE is set; valid are"
    with pytest.raises(ValueError, match=words):
        LOADERS[loader]()
    assert time.monotonic() - start < 5


def test_a_hub_that_never_answers_is_waited_for_once_and_briefly(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(HfApi, "repo_info", _asking(endpoint))
        monkeypatch.setattr(hub, "WAIT", 0.3)
        start = time.monotonic()
        with pytest.raises(ValueError, match="does not answer"):
            LOADERS["tokenizer"]()
        assert 0.3 < time.monotonic() - start < 3


def _asking(endpoint):
    """`HfApi.repo_info` of another hub."""
    real = HfApi.repo_info
    return lambda self, *args, **kwargs: real(HfApi(endpoint=endpoint), *args, **kwargs)


def test_what_was_fetched_before_is_there_without_a_network(monkeypatch, tmp_path):
    """As after a reboot on a train: the cache of the hub holds the tokenizer's files."""
    from strangers import make_tokenizer

    cache = tmp_path / "models--someone--words"
    make_tokenizer().save_pretrained(cache / "snapshots" / ("1" * 40))
    (cache / "snapshots" / ("1" * 40) / "config.json").write_text('{"model_type": "gpt2"}')
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("1" * 40)
    refuse(monkeypatch, httpx.ConnectError("no"))
    with asking_hub("someone/words", "model"):
        tokenizer = AutoTokenizer.from_pretrained("someone/words", cache_dir=tmp_path)
    assert tokenizer("word3 word1")["input_ids"] == make_tokenizer()("word3 word1")["input_ids"]
    assert not constants.HF_HUB_OFFLINE


def test_what_lies_here_asks_nobody_and_other_errors_are_not_touched(monkeypatch, tmp_path):
    refuse(monkeypatch, AssertionError("asked"))
    with asking_hub(str(tmp_path), "dataset"), asking_hub("/no/such/folder", "model"):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(hub, "_ask", lambda *told: None)
    with pytest.raises(ZeroDivisionError), asking_hub("someone/words", "model"):
        raise ZeroDivisionError
    with pytest.raises(OSError, match="No space"), asking_hub("someone/words", "model"):
        raise OSError(28, "No space left on device")


def test_libraries_hide_the_hubs_errors_inside_their_own():
    for inner in (LocalEntryNotFoundError("no"), OfflineModeIsEnabled("no")):
        try:
            try:
                raise inner
            except OSError as error:
                raise OSError("We couldn't connect, and more lines of advice\n") from error
        except OSError as error:
            assert "'a/b' cannot be fetched" in explain(error, "a/b", "model")
    assert explain(KeyError("x"), "a/b", "model") is None
