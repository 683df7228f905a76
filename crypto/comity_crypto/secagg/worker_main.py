"""One worker process: `python -m comity_crypto.secagg.worker_main FD MEMORY_BYTES`.

1. Requests and replies come by `bfv.channel`, on one inherited socket.
2. One request at a time, chunk by chunk: memory is one chunk per input, and rlimits bound the rest.
3. Secrets (seeds, secret keys) come by socket and descriptor, never by argv or environment, and are not logged.
4. Ends with its parent: at the end of the socket, or between chunks when the parent has changed.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator

import numpy as np

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import scheme as bfv
from comity_crypto.secagg.bfv.blobs import read_chunk, write_chunk
from comity_crypto.secagg.bfv.channel import SLOT_BYTES, Json, receive_frame, send_frame
from comity_crypto.secagg.bfv.digests import linear_digest
from comity_crypto.secagg.bfv.masks import PairSeed, mask_chunk
from comity_crypto.secagg.bfv.params import Parameters, parameter_set
from comity_crypto.secagg.threshold import jobs as threshold_jobs

_PARENT = os.getppid()


class _Jobs:
    """The jobs, each a method over (request, descriptors); the newest encrypter is kept for the round's other parts."""

    def __init__(self) -> None:
        self._encrypters: dict[str, bfv.Encrypter] = {}
        self._tested: set[str] = set()
        self._openers: dict[str, bfv.Decrypter] = {}

    def run(self, request: Json, fds: list[int]) -> Json:
        parameters = parameter_set(request["parameters"], request["digest"])
        if parameters.name not in self._tested:
            bfv.self_test(parameters)
            self._tested.add(parameters.name)
        jobs: dict[str, Callable[[Parameters, Json, list[int]], Json]] = {
            "warm": self.warm,
            "key": self.key,
            "encrypt": self.encrypt,
            "add": self.add,
            "digest": self.digest,
            "decrypt": self.decrypt,
            "draw": threshold_jobs.draw,
            "combine": threshold_jobs.combine,
            "deal": threshold_jobs.deal,
            "gather": threshold_jobs.gather,
            "share": self.share,
            "fuse": self.fuse,
        }
        return jobs[request["job"]](parameters, request, fds)

    def warm(self, parameters: Parameters, request: Json, fds: list[int]) -> Json:
        if fds:
            self._encrypter(parameters, request["key_id"], fds[0])
        return {}

    def key(self, parameters: Parameters, request: Json, fds: list[int]) -> Json:
        for fd, data in zip(fds, bfv.make_key(parameters), strict=True):
            os.truncate(fd, 0)
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(data)
        return {}

    def encrypt(self, parameters: Parameters, request: Json, fds: list[int]) -> Json:
        key, source, target = fds
        encrypter = self._encrypter(parameters, request["key_id"], key)
        pairs = [PairSeed(adds, bytes.fromhex(seed)) for adds, seed in request["pairs"]]
        slots_bytes = parameters.ring_degree * SLOT_BYTES
        for index in _chunks(request):
            slots = np.frombuffer(os.pread(source, slots_bytes, index * slots_bytes), np.uint64)
            masked = mask_chunk(slots, index, pairs, parameters)
            write_chunk(target, parameters, index, encrypter.encrypt(masked))
        return {}

    def add(self, parameters: Parameters, request: Json, fds: list[int]) -> Json:
        *sources, target = fds
        adder = bfv.Adder(parameters)
        for index in _chunks(request):
            total = adder.add([read_chunk(source, parameters, index) for source in sources])
            write_chunk(target, parameters, index, total)
        return {}

    def digest(self, parameters: Parameters, request: Json, fds: list[int]) -> Json:
        chunks = (read_chunk(fds[0], parameters, index) for index in _chunks(request))
        return {"values": linear_digest(parameters, bytes.fromhex(request["challenge"]), chunks, request["first"])}

    def decrypt(self, parameters: Parameters, request: Json, fds: list[int]) -> Json:
        secret, source, target = fds
        decrypter = bfv.Decrypter(parameters, os.pread(secret, os.fstat(secret).st_size, 0))
        for index in _chunks(request):
            slots = decrypter.decrypt(read_chunk(source, parameters, index))
            os.pwrite(target, slots.tobytes(), index * parameters.ring_degree * SLOT_BYTES)
        return {}

    def share(self, parameters: Parameters, request: Json, fds: list[int]) -> Json:
        return threshold_jobs.share(parameters, request, fds, _chunks)

    def fuse(self, parameters: Parameters, request: Json, fds: list[int]) -> Json:
        if parameters.name not in self._openers:  # any key decrypts what is fused; this one does nothing else
            self._openers[parameters.name] = bfv.Decrypter(parameters, bfv.make_key(parameters)[1])
        return threshold_jobs.fuse(parameters, request, fds, _chunks, self._openers[parameters.name], SLOT_BYTES)

    def _encrypter(self, parameters: Parameters, key_id: str, key: int) -> bfv.Encrypter:
        if key_id not in self._encrypters:
            while len(self._encrypters) >= 2:  # this round's and the next one's
                self._encrypters.pop(next(iter(self._encrypters)))
            self._encrypters[key_id] = bfv.Encrypter(parameters, os.pread(key, parameters.key_bytes + 1, 0))
        return self._encrypters[key_id]


def _chunks(request: Json) -> Iterator[int]:
    """Yield the request's chunk numbers; end the process when nobody waits for them any more."""
    for index in range(request["first"], request["last"]):
        if os.getppid() != _PARENT:
            os._exit(1)
        yield index


def _answer(jobs: _Jobs, request: Json, fds: list[int]) -> Json:
    try:
        return {"ok": jobs.run(request, fds)}
    except ComityError as error:
        return {"error": error.to_json()}
    except Exception as error:  # noqa: BLE001 - TenSEAL raises anything; the type is public, the text may hold data
        return {"error": ComityError(ErrorCode.INTERNAL, f"the worker met {type(error).__name__}").to_json()}


def main(fd: int, memory_bytes: int) -> None:
    """Serve until the socket ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    jobs = _Jobs()
    with socket.socket(fileno=fd) as channel:
        while (received := receive_frame(channel)) is not None:
            request, fds = received
            try:
                send_frame(channel, _answer(jobs, request, fds))
            finally:
                for each in fds:
                    os.close(each)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
