"""The seam to Ray Serve: one replica is an `Answerer` behind the routes.

Serve starts it, asks for its health and routes requests to it; everything else happens in files that know no Ray.
"""

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

from cluster.storage import Storage
from serving.answerer import Answerer
from serving.ending import EndsWithItsEngine
from serving.engines.cache import cache_folder
from serving.engines.fork_server import ForkServer
from serving.engines.kept import Keep
from serving.engines.own_process import OwnProcess, start_anew
from serving.errors import NotReady
from serving.follower import Follower
from serving.keys.ring import KeyRing
from serving.keys.store import KeyStore
from serving.listening import listen_to_this_machine_alone
from serving.observing.logs import log_with_serve
from serving.observing.metrics import PUBLISH_EVERY_S, Figures, gather
from serving.observing.tracing import Traced, add_tracing, make_tracer
from serving.predictor import Predictor
from serving.routes import build_app
from serving.scaling.reported import report
from serving.settings import CODE_VARIABLE, Arguments
from training.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI


_SWITCH_S = 0.0005


class Replica:
    """One process that answers; Serve makes it from `serving.app.build`."""

    async def __init__(self, arguments: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        # The thread that hands batches to the engine must not wait for the event loop's longest turn, 5 ms by default, at every step.
        sys.setswitchinterval(_SWITCH_S)
        import ray

        # It imports while this one does.
        start = start_anew if ray.get_runtime_context().get_accelerator_ids().get("GPU") else ForkServer().start
        listen_to_this_machine_alone(ray.util.get_node_ip_address())
        checked = Arguments.model_validate(arguments)
        settings = checked.settings

        keep = Keep(cache_folder("calibration"), os.environ.get(CODE_VARIABLE, "")) if settings.keep_calibration else None

        def load(folder: "Path", version: int) -> Predictor:
            return Predictor.load(
                folder, version, settings.threads, settings.precision, keep, OwnProcess(start, lambda: self._ending.look())
            )

        reference = settings.name if checked.version is None else checked.version
        registry = Registry(Storage(checked.storage), checked.trusted_keys)
        self._follower = Follower(registry, reference, load)
        self._ending = EndsWithItsEngine(self._follower)
        log_with_serve((lambda: self._follower.version) if settings.log_format == "json" else None)
        self._answerer = Answerer(settings, self._follower, lambda version: Follower(registry, version, load), checked.trial)
        self._tracer = make_tracer() if settings.tracing else None
        self._ring = KeyRing(KeyStore(Storage(checked.storage))) if settings.require_keys else None
        if self._ring is not None:
            await self._ring.start()
        await self._answerer.start()
        self._figures = Figures()
        self._loops = {"figures are not published": asyncio.create_task(self._publish())}
        if self._ring is not None:
            self._loops["keys are not followed"] = asyncio.create_task(self._ring.follow(settings.follow_s))

    def __serve_build_asgi_app__(self) -> "FastAPI":
        # Serve's proxies announce the ids.
        if self._tracer is None:
            return build_app(self._answerer, gather, announce_ids=False, ring=self._ring)
        app = build_app(Traced(self._answerer), gather, announce_ids=False, ring=self._ring)
        add_tracing(app, self._tracer)
        return app

    def __del__(self) -> None:
        # Serve calls it before it ends a replica. Ray ends a process's children first, and must find time to send its last figures.
        if (ending := getattr(self, "_ending", None)) is not None:
            ending.stop()

    def check_health(self) -> None:
        """Tell Serve whether this replica works; Serve replaces it when this raises.

        Raises:
            NotReady: A loop ended.
        """
        # Of one that was lost in the moment in which its version was taken into service nobody is told.
        self._ending.look()
        self._answerer.require_health()
        for lost, loop in self._loops.items():
            if loop.done():
                raise NotReady(f"{lost} any more")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve what `serving.scaling.policy` decides by."""
        return report(self._answerer.scheduler)

    async def _publish(self) -> None:
        while True:
            self._figures.publish(self._answerer.scheduler, self._answerer.abstained, self._answerer.seen, self._follower.current)
            self._figures.publish_candidate(self._answerer.candidate)
            await asyncio.sleep(PUBLISH_EVERY_S)
