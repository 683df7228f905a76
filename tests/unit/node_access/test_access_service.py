"""Who is let in, as whom, with which roles: tokens, ID tokens, the Unix user; and what the own policy says to it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_node.access import model, store
from comity_node.access.model import LOCAL, ROLES
from comity_node.access.service import AccessService
from comity_node.settings import ListenSettings, OidcSettings
from comity_policies import access
from comity_policies.access import Granted
from comity_policies.decisions import schema

API_TOKEN = "t" * 43


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(journal, engine, clock) -> AccessService:
    return AccessService(journal, engine(), clock)


def events(lines: str) -> list[str]:
    return [json.loads(line)["event"] for line in lines.splitlines()]


async def code_of(awaitable) -> ErrorCode:
    with pytest.raises(ComityError) as error:
        await awaitable
    return error.value.code


async def test_a_token_is_its_user_until_it_ends(service, clock) -> None:
    issued = await service.issue(LOCAL, "bob", frozenset({"auditor"}), 3_600)
    who = await service.over_port(issued.text)
    assert (who.user, who.roles, who.via) == ("bob", {"auditor"}, "token")
    assert who.until == clock.now + timedelta(hours=1)
    clock.now += timedelta(seconds=3_599)
    await service.over_port(issued.text)
    clock.now += timedelta(seconds=1)
    assert await code_of(service.over_port(issued.text)) is ErrorCode.UNAUTHENTICATED


async def test_a_revoked_token_ends_at_once(service) -> None:
    issued = await service.issue(LOCAL, "bob", frozenset({"auditor"}), 3_600)
    await service.revoke(LOCAL, issued.token.token_id)
    assert await code_of(service.over_port(issued.text)) is ErrorCode.UNAUTHENTICATED
    revoked_at = (await service.tokens())[0].revoked_at
    await service.revoke(LOCAL, issued.token.token_id)
    assert (await service.tokens())[0].revoked_at == revoked_at
    assert await code_of(service.revoke(LOCAL, "0" * 16)) is ErrorCode.NOT_FOUND


async def test_one_other_character_is_another_token(service) -> None:
    text = (await service.issue(LOCAL, "bob", frozenset({"auditor"}), 3_600)).text
    for place in (0, 10, 25, len(text) - 1):
        wrong = text[:place] + ("a" if text[place] != "a" else "b") + text[place + 1 :]
        assert await code_of(service.over_port(wrong)) is ErrorCode.UNAUTHENTICATED
    for wrong in ("", "comity_", text + "x", text[:-1], text.upper(), f" {text}"):
        assert await code_of(service.over_port(wrong)) is ErrorCode.UNAUTHENTICATED


async def test_api_token_opens_the_socket_and_not_the_port(service) -> None:
    at_socket = service.over_socket(API_TOKEN)
    assert await at_socket(API_TOKEN) == LOCAL
    assert await code_of(service.over_port(API_TOKEN)) is ErrorCode.UNAUTHENTICATED
    issued = await service.issue(LOCAL, "bob", frozenset({"auditor"}), 3_600)
    assert (await at_socket(issued.text)).user == "bob"
    assert await code_of(at_socket(API_TOKEN + "x")) is ErrorCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("user", "roles", "valid_s"),
    [
        ("local", {"admin"}, 3_600),
        ("group:board", {"admin"}, 3_600),
        ("", {"admin"}, 3_600),
        ("a\nb", {"admin"}, 3_600),
        ("bob", set(), 3_600),
        ("bob", {"operator"}, 3_600),
        ("bob", {"admin"}, 1),
        ("bob", {"admin"}, 400 * 86_400),
    ],
)
async def test_tokens_that_are_not_issued(service, user, roles, valid_s) -> None:
    assert await code_of(service.issue(LOCAL, user, frozenset(roles), valid_s)) is ErrorCode.MALFORMED
    assert await service.tokens() == []


async def test_tokens_are_bounded_and_old_ones_forgotten(service, clock, monkeypatch) -> None:
    monkeypatch.setattr(store, "TOKENS_MAX", 3)
    for _ in range(3):
        issued = await service.issue(LOCAL, "bob", frozenset({"auditor"}), 3_600)
    assert await code_of(service.issue(LOCAL, "bob", frozenset({"auditor"}), 3_600)) is ErrorCode.BUSY
    await service.revoke(LOCAL, issued.token.token_id)
    await service.issue(LOCAL, "bob", frozenset({"auditor"}), 3_600)
    clock.now += timedelta(days=store.KEPT_DAYS + 1)
    await service.issue(LOCAL, "bob", frozenset({"auditor"}), 3_600)
    assert len(await service.tokens()) == 1


async def test_no_secret_is_kept_logged_or_shown(service, journal, capsys) -> None:
    issued = await service.issue(LOCAL, "bob", frozenset({"auditor"}), 3_600)
    await service.over_port(issued.text)
    await code_of(service.over_port(issued.text[:-1] + "_"))
    await service.revoke(LOCAL, issued.token.token_id)
    secret, lines = issued.text[-43:], capsys.readouterr().err
    assert events(lines) == ["access.token_issued", "access.token_revoked"]
    for shown in (lines, repr(issued), repr(await service.tokens())):
        assert secret not in shown
        assert issued.token.digest not in shown
    journal.close()
    kept = [path.read_bytes() for path in journal.path.parent.iterdir()]
    assert any(issued.token.digest.encode() in data for data in kept)
    assert not any(secret.encode() in data for data in kept)


async def test_users_and_groups_of_the_settings_have_roles(journal, engine, clock, oidc, issuer) -> None:
    policy = engine({"reviewer": ["group:board"], "admin": ["ada"], "auditor": ["board"]})
    service = AccessService(journal, policy, clock, oidc)
    who = await service.over_port(issuer.token())
    assert (who.user, who.via, who.roles) == ("ada", "oidc", {"admin", "reviewer"})
    stranger = await service.over_port(issuer.token(sub="eve", groups=None))
    assert (stranger.user, stranger.roles) == ("eve", frozenset())
    assert await code_of(service.over_port(issuer.token(aud="other"))) is ErrorCode.UNAUTHENTICATED


async def test_id_tokens_need_a_provider(service, issuer) -> None:
    assert await code_of(service.over_port(issuer.token())) is ErrorCode.UNAUTHENTICATED


OWN = """
package comity.access

# Contractors never administrate, whatever is written elsewhere.
withhold contains "admin" if {
	"contractors" in input.groups
}

# Tokens of the robot user are for reading only.
withhold contains role if {
	input.via == "token"
	input.user == "robot"
	some role in ["admin", "proposer", "reviewer"]
}

grant contains "auditor" if "auditors" in input.groups

grant contains "admin" if input.user == "bob"
"""


async def test_an_organisation_writes_its_own_rules(journal, engine, clock, oidc, issuer) -> None:
    service = AccessService(journal, engine({"admin": ["ada"]}, OWN), clock, oidc)
    assert (await service.over_port(issuer.token(groups=["auditors"]))).roles == {"admin", "auditor"}
    assert (await service.over_port(issuer.token(groups=["contractors"]))).roles == frozenset()
    robot = await service.issue(LOCAL, "robot", ROLES, 3_600)
    assert (await service.over_port(robot.text)).roles == {"auditor"}
    # The policy makes bob an admin; his token says auditor: a token never gives more than what is written on it.
    bob = await service.issue(LOCAL, "bob", frozenset({"auditor"}), 3_600)
    assert (await service.over_port(bob.text)).roles == {"auditor"}


FAILING = ["x := 7", 'x := "NO SUCH"', "x := 1 / 0"]


@pytest.mark.parametrize("own", FAILING)
async def test_a_policy_that_fails_gives_no_role(journal, engine, clock, own, capsys) -> None:
    rule = f'grant contains x if {{\n\tinput.user == "bob"\n\t{own}\n}}\n'  # so that it shows when bob is asked for
    service = AccessService(journal, engine(own=f"package comity.access\n\n{rule}"), clock)
    issued = await service.issue(LOCAL, "bob", ROLES, 3_600)
    assert (await service.over_port(issued.text)).roles == frozenset()
    assert events(capsys.readouterr().err)[-1] == "access.undecided"
    other = await service.issue(LOCAL, "eve", ROLES, 3_600)
    assert (await service.over_port(other.text)).roles == ROLES


@pytest.mark.parametrize("own", FAILING)
def test_a_policy_that_fails_for_everybody_is_not_loaded(engine, own) -> None:
    with pytest.raises(ComityError, match=r"BUNDLE_INVALID.*access"):
        engine(own=f"package comity.access\n\ngrant contains x if {own}\n")


def test_the_published_example_holds_to_its_schema() -> None:
    jsonschema.validate(access.example(), schema("access"))
    asked = access.question("bob", ("board",), "token", roles=ROLES)
    jsonschema.validate(asked, schema("access"))
    for odd in ({"user": 7}, {"via": "local"}, {"groups": "board"}, {"roles": ["operator"]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**asked, **odd}, schema("access"))


async def test_an_engine_that_is_closed_gives_no_role(journal, engine, clock) -> None:
    policy = engine({"admin": ["closed"]})
    service = AccessService(journal, policy, clock)
    issued = await service.issue(LOCAL, "bob", ROLES, 3_600)
    policy.close()
    assert (await service.over_port(issued.text)).roles == frozenset()


async def test_an_engine_that_crashes_gives_no_role(journal, clock) -> None:
    class Broken:
        def roles(self, document: dict) -> Granted:
            from comity_policies.access import roles_with

            return roles_with(lambda _package, _document: 1 / 0, document)

    service = AccessService(journal, Broken(), clock)
    issued = await service.issue(LOCAL, "bob", ROLES, 3_600)
    assert (await service.over_port(issued.text)).roles == frozenset()


def test_tokens_are_random_and_long() -> None:
    texts = {model.new_secret()[1] for _ in range(100)}
    assert len(texts) == 100
    assert {len(text) for text in texts} == {len("comity_") + 16 + 1 + 43}


def blocks(kind: str) -> list[str]:
    """Code blocks of docs/access.md."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "access.md").read_text()
    return re.findall(rf"```{kind}\n(.*?)```", page, re.S)


async def test_the_page_s_settings_and_rules_hold(journal, engine, clock, oidc, issuer) -> None:
    documents = [json.loads("{" + each + "}") for each in blocks("json")]
    (roles,) = (each["access"]["roles"] for each in documents if "access" in each)
    (provider,) = (each["oidc"] for each in documents if "oidc" in each)
    (port,) = (each["listen"] for each in documents if "listen" in each)
    OidcSettings(**provider)
    ListenSettings(**port)
    (own,) = blocks("rego")
    service = AccessService(journal, engine(roles, own), clock, oidc)

    async def of(user: str, *groups: str) -> frozenset[str]:
        return (await service.over_port(issuer.token(sub=user, groups=list(groups)))).roles

    assert await of("ada@hospital.example") == {"admin"}
    assert await of("ada@hospital.example", "contractors") == frozenset()
    assert await of("bob@hospital.example", "data-science", "auditors") == {"reviewer", "proposer", "auditor"}
    assert await of("eve", "ethics-board") == {"reviewer"}
