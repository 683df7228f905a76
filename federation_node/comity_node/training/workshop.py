"""Where apps work: for each run a folder with the granted data, and one warm ClientApp process.

Rules:
1. The process sees the app, the copies of the granted columns and its own scratch folder, nothing else.
2. It is started before the node says that it is ready, so that the first round pays for no import.
3. At most `runs_at_once` processes; a run beyond that is refused with `BUSY` until another ends.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.workers import ClientWorker, ConfigValue, HostSettings, ServerAppProcess, node_number
from comity_agents.sandbox import IsolationLevel, Limits, best_isolation
from comity_node.abilities import Abilities
from comity_node.attestation.trust import able
from comity_node.context import NodeContext
from comity_node.training.datasets import Copy, DatasetCatalogue
from comity_node.training.enforcement import own_datasets
from comity_node.training.kinds import Kinds, LeadWork, PartyWork
from comity_node.training.led import LedRun
from comity_node.training.ports import Agreements
from comity_node.training.profiles.base import Profiles
from comity_policies.documents import Agreement, Step, TrainStep
from comity_policies.steps import TRAIN


@dataclass(slots=True)
class Station:
    """One run's place of work. `cohort` is the smallest number of records of its datasets, 0 without any."""

    run: str
    worker: PartyWork
    cohort: int


class Workshop:
    """Stations by run."""

    def __init__(
        self, node: NodeContext, agreements: Agreements, catalogue: DatasetCatalogue, kinds: Kinds | None = None
    ) -> None:
        self._node = node
        self._kinds: Kinds = kinds or {}
        self._agreements = agreements
        self._catalogue = catalogue
        self._stations: dict[str, Station] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    def offered(self) -> IsolationLevel:
        """Return the isolation that this node uses unless terms ask for more."""
        wanted = self._node.settings.isolation
        return best_isolation() if wanted == "best" else IsolationLevel.for_term(wanted)

    def abilities(self, profiles: Profiles) -> Abilities:
        """Return what this node can do: profiles of aggregation, isolation, kinds of steps."""
        kinds = frozenset({TRAIN, *self._kinds})
        own = frozenset(profiles) - kinds
        return Abilities(own, self.offered().term, kinds, attests=able(self._node.settings))

    async def station(self, run: str, agreement: Agreement, step: Step) -> Station:
        """Return the run's station, made if it is not there: data copied, process started.

        Raises:
            ComityError: `APP_INVALID`, `DATASET_MISSING`, `DATASET_COLUMNS`, `ISOLATION_TOO_WEAK`, `WORKER_DIED`,
                `WORKER_TIMEOUT`, `BUSY`.
        """
        async with self._turns.setdefault(run, asyncio.Lock()):
            found = self._stations.get(run)
            if found is not None:
                return found
            if len(self._stations) >= self._node.settings.limits.runs_at_once:
                raise ComityError(ErrorCode.BUSY, "this node works on as many runs as it may")
            station = await self._make(run, agreement, step)
            self._stations[run] = station
            try:
                await station.worker.start()
            except BaseException:  # also a cancelled start leaves no station
                del self._stations[run]
                raise
            return station

    def host_settings(self, run: str, agreement: Agreement, step: Step, role: str) -> HostSettings:
        """Return what a process of the run needs; `role` names its scratch folder: `client` or `server`.

        Raises:
            ComityError: `APP_INVALID`; `UNSUPPORTED` if the step runs no app.
        """
        if not isinstance(step, TrainStep):
            raise ComityError(ErrorCode.UNSUPPORTED, f"a step of kind {step.kind} runs no app", field="kind")
        limits = self._node.settings.limits
        needed = IsolationLevel.for_term(agreement.terms.get("isolation"))
        folder = self.folder(run)
        scratch = folder / role
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        return HostSettings(
            run=run,
            app_dir=self._agreements.app_folder(step.app.digest),
            scratch=scratch,
            log=folder / f"{role}.log",
            isolation=max(needed, self.offered()),
            run_config=dict(step.run_config),
            readonly=(self._data(run),) if role == "client" else (),
            limits=Limits(
                memory_bytes=limits.worker_memory_bytes,
                file_bytes=limits.worker_file_bytes,
                processes=limits.worker_processes,
                open_files=limits.worker_open_files,
            ),
        )

    async def asker(self, led: LedRun, *, blob_bytes_max: int) -> LeadWork:
        """Return what asks in a run that this node leads: its ServerApp, or what the step's kind brings.

        Raises:
            ComityError: as `host_settings`, and for another kind `DATASET_MISSING`, `DATASET_COLUMNS`.
        """
        if led.step.kind in self._kinds:
            return self._kinds[led.step.kind].lead(led, await self._copies(led.run, led.agreement))
        return ServerAppProcess(
            self.host_settings(led.run, led.agreement, led.step, "server"),
            node_ids=tuple(sorted(led.node_ids)),
            results_min=led.results_min,
            sums=str(led.agreement.terms.get("aggregation", "plain")) != "plain",
            blob_bytes_max=blob_bytes_max,
        )

    def folder(self, run: str) -> Path:
        """Return the run's folder."""
        return self._node.settings.runs_folder / ids.name(run)

    async def close(self, run: str) -> None:
        """End the run's process; its folder stays until `forget`."""
        self._turns.pop(run, None)
        station = self._stations.pop(run, None)
        if station is not None:
            await station.worker.close()

    async def forget(self, run: str) -> None:
        """End the run's process and remove its data and scratch space; the owner's logs stay."""
        await self.close(run)
        for each in ("data", "client", "server"):
            await asyncio.to_thread(shutil.rmtree, self.folder(run) / each, ignore_errors=True)

    async def stop(self) -> None:
        """End every process."""
        for run in list(self._stations):
            await self.close(run)

    async def _make(self, run: str, agreement: Agreement, step: Step) -> Station:
        me = self._node.settings.org
        config: dict[str, ConfigValue] = {
            "partition-id": agreement.parties.index(me),
            "num-partitions": len(agreement.parties),
        }
        copies = await self._copies(run, agreement)
        for copy, ask in zip(copies, own_datasets(agreement, me), strict=True):
            config[f"dataset.{ask.dataset}"] = str(copy.path.absolute())
        cohort = min((copy.cohort for copy in copies), default=0)
        if step.kind in self._kinds:
            return Station(run, self._kinds[step.kind].party(run, agreement, step, copies), cohort)
        settings = self.host_settings(run, agreement, step, "client")
        worker = ClientWorker(settings, node_id=node_number(agreement.digest, me), node_config=config)
        return Station(run, worker, cohort)

    async def _copies(self, run: str, agreement: Agreement) -> list[Copy]:
        """Return the run's copies of our datasets, made if they are not there."""
        data = self._data(run)
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        asks = own_datasets(agreement, self._node.settings.org)
        return [await asyncio.to_thread(self._catalogue.materialise, ask.dataset, ask.columns, data) for ask in asks]

    def _data(self, run: str) -> Path:
        return self.folder(run) / "data"
