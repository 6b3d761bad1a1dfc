"""What the hub refuses, said in one sentence that says what to do, within seconds.

Without a network, transformers and datasets ask for one file after the other and wait after each:
half a minute to two for one model. Here the hub is asked once, briefly, before anything is loaded;
if it does not answer, only what was fetched before is looked for.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

Kind = Literal["model", "dataset"]

WAIT = 4.0  # seconds; the hub answers in a fraction of one
WORDS = {"model": "model", "dataset": "data set"}
# By name, as httpx, requests and Python have classes of their own.
UNREACHED = {"TransportError", "ConnectionError", "Timeout", "TimeoutError"}


@contextmanager
def asking_hub(name: str, kind: Kind, revision: str | None = None) -> Iterator[None]:
    """Load something of the hub inside: what it refuses becomes one sentence.

    Args:
        name: a hub id; what lies here, or can be no id, is left to the code inside.
        kind: what it is the id of.
        revision: a branch, a tag or a commit; the newest one if left out.

    Raises:
        ValueError: gated, unknown, without a token, or not reached; says what to do.
    """
    if not is_hub_id(name):
        yield
        return
    answers = True
    try:
        answers = _answers(name, kind, revision)
        with nullcontext() if answers else _offline():
            yield
    except Exception as error:
        sentence = explain(error, name, kind, revision)
        if sentence is None and not answers and _is_missing(error):
            sentence = explain(ConnectionError(), name, kind, revision)
        if sentence is None:
            raise
        raise ValueError(sentence) from error


def is_hub_id(name: str) -> bool:
    """Whether a name can be one on the hub, and is nothing that lies here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def explain(error: BaseException, name: str, kind: Kind, revision: str | None = None) -> str | None:
    """One sentence for an error of the hub, or of a library that met one.

    Args:
        error: what was raised; what caused it is looked at too.
        name, kind, revision: as in `asking_hub`.

    Returns:
        What is wrong and what would be valid; None if it is no error of the hub.
    """
    sentences = (_explain_one(cause, name, kind, revision) for cause in _list_causes(error))
    return next(filter(None, sentences), None)


def _explain_one(error: BaseException, name: str, kind: Kind, revision: str | None) -> str | None:
    what, hub = f"{WORDS[kind]} {name!r}", constants.ENDPOINT
    page = f"{hub}/datasets/{name}" if kind == "dataset" else f"{hub}/{name}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError):
        found = "the token's account has not accepted its terms" if get_token() else "no token"
        return (
            f"{what} is gated ({found}); valid is to accept its terms at {page}, and HF_TOKEN set "
            f"to a token of that account, from {hub}/settings/tokens"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{what} has no revision {revision!r}; valid are those of {page}/commits"
    if isinstance(error, LocalTokenNotFoundError) or (
        status in (401, 403) and not isinstance(error, RepositoryNotFoundError)
    ):
        found = "the token that is set is not accepted" if get_token() else "none is set"
        return (
            f"{what} needs a token ({found}); valid is HF_TOKEN set to one from "
            f"{hub}/settings/tokens"
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return (
            f"{what} is not on the hub, or private; valid are an id that {page} shows, a folder "
            "here, or HF_TOKEN set to a token that may read it"
        )
    if isinstance(error, LocalEntryNotFoundError) or _is_unreached(error):
        if constants.HF_HUB_OFFLINE:
            return (
                f"{what} was never fetched whole, and HF_HUB_OFFLINE is set; valid are a folder "
                "here, or to unset it where there is a network"
            )
        return (
            f"{what} cannot be fetched, as {hub} does not answer; valid are a network that reaches "
            "it, HF_ENDPOINT set to a mirror, or a folder here"
        )
    return None


def _answers(name: str, kind: Kind, revision: str | None) -> bool:
    """Whether the hub answers; what it refuses is raised as its own error."""
    try:
        _ask(name, kind, revision)
    except Exception as error:
        if not _is_unreached(error):
            raise
        if not constants.HF_HUB_OFFLINE:
            print(f"{constants.ENDPOINT} does not answer; looking for what was fetched before")
        return False
    return True


@cache
def _ask(name: str, kind: Kind, revision: str | None) -> None:
    """One question, or two where there is a gate; what has been granted is not asked again."""
    api = HfApi()
    told = api.repo_info(name, repo_type=kind, revision=revision, timeout=WAIT)
    if getattr(told, "gated", False):
        api.auth_check(name, repo_type=kind)


@contextmanager
def _offline() -> Iterator[None]:
    """As with HF_HUB_OFFLINE: what was fetched before, at once, or an error, at once."""
    modules = [m for m in (constants, sys.modules.get("datasets.config")) if m]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _is_unreached(error: BaseException) -> bool:
    """Whether nobody answered, or only to say that the hub is out of order."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return bool(UNREACHED & {kind.__name__ for kind in type(error).__mro__})


def _is_missing(error: BaseException) -> bool:
    """Whether a library says in its own words that it found no file; the system's have a number."""
    return isinstance(error, OSError) and error.errno is None


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
