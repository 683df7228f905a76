"""Training, put together: what this organisation does as a party and as a lead, behind the node's link."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode
from comity_node.context import NodeContext
from comity_node.intersections.service import IntersectKind, library_here
from comity_node.negotiation import store as negotiation
from comity_node.reviews.model import Review
from comity_node.reviews.service import ReviewService
from comity_node.statistics.service import StatisticKind
from comity_node.training import sum_proofs
from comity_node.training.behind import WriteBehind
from comity_node.training.datasets import DatasetCatalogue
from comity_node.training.events import RunEvents
from comity_node.training.kinds import Kinds, StepKind
from comity_node.training.participant import Participant
from comity_node.training.ports import Agreements, People, Stored
from comity_node.training.profiles.base import AggregationProfile, Profiles
from comity_node.training.profiles.lead_key import LeadKeyProfile
from comity_node.training.profiles.masked import MaskedProfile
from comity_node.training.profiles.plain import PlainProfile
from comity_node.training.profiles.threshold import ThresholdProfile
from comity_node.training.receipts import ReceiptBook
from comity_node.training.replies import Replies
from comity_node.training.results import Results
from comity_node.training.runs import Runs
from comity_node.training.seen_sums import SeenSums
from comity_node.training.standing import Standing
from comity_node.training.workshop import Workshop
from comity_node.transport.model import Message

KNOWN_MAX = 256


class HeldAgreements:
    """The negotiation's store, as training needs it. An agreement is immutable: read once, its state every time."""

    def __init__(self, apps_folder: Path) -> None:
        self._apps = apps_folder
        self._known: dict[str, negotiation.StoredAgreement] = {}

    def find(self, conn: Connection, digest: str) -> Stored:
        """Return an agreement of this organisation. Raises `AGREEMENT_UNKNOWN`."""
        known = self._known.get(digest)
        if known is not None and negotiation.agreement_state(conn, digest) == known.state:
            return known
        found = negotiation.find_agreement(conn, digest)
        if len(self._known) >= KNOWN_MAX:
            self._known.pop(next(iter(self._known)))
        self._known[digest] = found
        return found

    def app_folder(self, digest: str) -> Path:
        """Return an unpacked app's folder. Raises `APP_INVALID`."""
        path = self._apps / ids.sha256_hex(digest)
        if not path.is_dir():
            raise ComityError(ErrorCode.APP_INVALID, "this node does not hold the app", digest=digest)
        return path


class TrainingService:
    """The capability. Build with `build`."""

    def __init__(self, node: NodeContext, agreements: Agreements, people: People) -> None:
        self._node = node
        self.catalogue = DatasetCatalogue(node.settings.home)
        self._behind = WriteBehind(node.journal)
        self.events = RunEvents(node.journal, self._behind, node.clock)
        self._receipts = ReceiptBook(node)
        kinds = _kinds(node)
        self._workshop = Workshop(node, agreements, self.catalogue, kinds)
        threshold = ThresholdProfile(node, agreements)
        self.sums = SeenSums(node, self._receipts, self.events)
        threshold.report_to(self.sums)
        profiles: tuple[AggregationProfile, ...] = (
            PlainProfile(node),
            LeadKeyProfile(node, agreements),
            MaskedProfile(node, agreements),
            threshold,
        )
        own = [kind.profile for kind in kinds.values() if kind.profile is not None]
        self._profiles: Profiles = {profile.name: profile for profile in (*profiles, *own)}
        self._profile_names: dict[str, str] = {}
        self._replies = Replies(node, self._behind, self._confirmed)
        self._standing = Standing(node)
        self._participant = Participant(
            node,
            agreements,
            self.catalogue,
            self._workshop,
            self._profiles,
            self._receipts,
            self._replies,
            self._standing,
            people,
        )
        people.on_news(self._on_review)
        self.abilities = self._workshop.abilities(self._profiles)
        self.results = Results(node, agreements, self.events)
        self.runs = Runs(
            node,
            agreements,
            self._workshop,
            self._participant,
            self._profiles,
            self._receipts,
            self._behind,
            self.events,
            self.results,
        )

    def register(self) -> None:
        """Take this capability's messages from the link."""
        link = self._node.link
        link.register("order", self._participant.on_order)
        link.register("reply", self._on_reply)
        link.register("reply.ack", self._replies.on_ack)
        link.register("secagg", self._on_secagg)
        link.register("secagg.notice", self._on_word)
        link.register("result", self.results.on_result)
        link.register("result.ack", self.results.on_ack)
        link.register("run.prepare", self.runs.on_prepare)
        link.register("run.start", self.runs.on_start)
        link.register("run.cancel", self.runs.on_cancel)
        link.register("run.closed", self.runs.on_closed)
        link.on_presence(self._on_presence)
        link.on_refused("receipts", self._receipts.refused)
        link.on_refused(sum_proofs.MESSAGE, partial(sum_proofs.refused, self._node))
        link.on_connected(self._standing.on_connected)

    async def start(self) -> None:
        """Take up what the journal says is unfinished."""
        self._node.settings.make_folders()
        self._behind.start()
        for profile in self._profiles.values():
            await profile.start()
        self._receipts.start()
        self._replies.start()
        self.results.start()
        await self.runs.start()

    async def stop(self) -> None:
        """End tasks and processes; what is unfinished stays in the journal."""
        await self._standing.stop()
        await self.runs.stop()
        await self._participant.stop()
        await self._replies.stop()
        await self.results.stop()
        await self._receipts.stop()
        for profile in self._profiles.values():
            await profile.stop()
        await self._workshop.stop()
        await self._behind.stop()

    async def _on_reply(self, message: Message) -> None:
        host = self.runs.host(str(message.statement("reply").body.get("run")))
        if host is not None:
            await host.desk.on_reply(message)

    async def _on_secagg(self, message: Message) -> None:
        profile = await self._profile_of(message)
        if profile is not None:
            await profile.on_message(message)

    async def _on_word(self, message: Message) -> None:
        profile = await self._profile_of(message)
        if profile is not None:
            await profile.on_word(message)

    async def _profile_of(self, message: Message) -> AggregationProfile | None:
        """Return the profile of a message's run; what the message says of the run is checked by the profile."""
        name = self._profile_names.get(message.run)
        if name is None:
            name = await self._node.journal.run(lambda conn: self.runs.profile_name(conn, message.run))
            if name:
                self._profile_names[message.run] = name
            while len(self._profile_names) > KNOWN_MAX:
                self._profile_names.pop(next(iter(self._profile_names)))
        return self._profiles.get(name)

    async def _confirmed(self, order_digest: str, outcome: str) -> None:
        for profile in self._profiles.values():
            await profile.confirmed(order_digest, outcome)

    def _on_review(self, review: Review, kind: str, facts: dict[str, Any]) -> None:
        """Tell who watches a run what happens to a review in it."""
        ask = review.ask
        if ask.run:
            told = {"review": ask.id, "stage": ask.stage, "what": kind, "title": ask.title, **facts}
            self.events.tell(ask.run, "review", **told)

    async def _on_presence(self, orgs: frozenset[str], here: bool) -> None:
        """Repeat what organisations may have missed; note that some are gone. The journal is read once for all."""
        for host in self.runs.hosts:
            for org in sorted(orgs & host.parties):
                if here:
                    await host.desk.resend(org)
                else:
                    host.desk.gone(org)
        for profile in self._profiles.values():
            for org in sorted(orgs):
                await profile.on_presence(org, here)
        if here:
            await self._replies.resend(orgs)
            await self.results.resend(orgs)


def _kinds(node: NodeContext) -> Kinds:
    """Return the kinds of steps, beside training, that this node can run."""
    found: list[StepKind] = [StatisticKind(node.settings.org)]
    if library_here():
        found.append(IntersectKind(node))
    return {kind.name: kind for kind in found}


def build(node: NodeContext) -> TrainingService:
    """Build the capability and register its handlers."""
    service = TrainingService(node, HeldAgreements(node.settings.apps_folder), node.services.get(ReviewService))
    service.register()
    node.services.add(service)
    node.services.add(service.abilities)
    return service
