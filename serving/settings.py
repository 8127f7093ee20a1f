"""The section `serving` of ray_config.yaml, validated when it is read.

It does not know the model: heads, classes, token limit and text template stand in the manifest of the version that is served.
"""

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from cluster.settings import Section, read_settings_file, validate_section

# Where a replica finds the digest of our own code.
CODE_VARIABLE = "TWOHEAD_CODE"

Positive = Annotated[float, Field(gt=0.0)]


class ReplicaResources(Section):
    """What one replica reserves; `gpu: 0.5` puts two replicas on one GPU."""

    cpu: float = Field(default=1.0, ge=0.0)
    gpu: float = Field(default=0.0, ge=0.0)


class AutoscalingSettings(Section):
    """When replicas come and go between `min_replicas` and `max_replicas`.

    Attributes:
        policy: `backlog` decides by seconds of work that wait and tokens that arrive (see `serving.scaling.policy`); `requests` is Ray
            Serve's own, which counts requests.
        target_p95_ms: `backlog` wants 95 % of the answers within this.
        idle_s: Where `min_replicas` is 0, the last replica goes after nothing was asked for so long; the next request waits for a new one.
            So does one for `/metrics`: whoever reads that every ten seconds has a replica come back as often as one goes.
        target_ongoing_requests: Requests in a replica, waiting ones included, that `requests` aims at.
        upscale_delay_s: More replicas are wanted for this long before they are started.
        downscale_delay_s: Replicas that were needed within this time stay.
        look_back_period_s: Window over which arrivals and ongoing requests are averaged.
        metrics_interval_s: How often replicas report; must be below the window.
    """

    policy: Literal["backlog", "requests"] = "backlog"
    target_p95_ms: Positive = 1_000.0
    idle_s: Positive = 300.0
    target_ongoing_requests: Positive = 16.0
    upscale_delay_s: float = Field(default=0.0, ge=0.0)
    downscale_delay_s: float = Field(default=240.0, ge=0.0)
    metrics_interval_s: Positive = 1.0
    look_back_period_s: float = Field(default=5.0, validate_default=True)

    @field_validator("look_back_period_s")
    @classmethod
    def _spans_reports(cls, value: float, info: ValidationInfo) -> float:
        interval_s = info.data.get("metrics_interval_s", 0.0)
        if value <= interval_s:
            raise ValueError(f"must be above serving.autoscaling.metrics_interval_s ({interval_s:g})")
        return value


class CandidateSettings(Section):
    """A version on trial beside the one that answers.

    Attributes:
        version: Its number.
        fraction: Share of the requests that it answers itself, or of which it gets a copy.
    """

    version: int = Field(ge=1)
    fraction: float = Field(gt=0.0, le=1.0)


class CanarySettings(CandidateSettings):
    """A version that answers some requests itself."""

    fraction: float = Field(default=0.05, gt=0.0, le=0.5)


class ShadowSettings(CandidateSettings):
    """A version that is asked what others answer."""

    fraction: float = Field(default=1.0, gt=0.0, le=1.0)


class ServingSettings(Section):
    """How versions are served.

    Attributes:
        name: The registry's name whose version is served; replicas follow it when it moves.
        require_keys: Answer only who has a key of `python -m serving keys create`; health checks need none, nor the page at `/`, which
            asks for one.
        host: Address the proxies listen on; others than loopback only with `require_keys`.
        port: Port the proxies listen on.
        min_replicas: Replicas that are always there; 0 lets the last one go when nobody asks.
        max_replicas: Replicas under load.
        autoscaling: When replicas come and go.
        resources_per_replica: CPUs and GPUs of one replica.
        threads: Threads of one forward pass on the CPU.
        precision: How precisely the encoder computes. `auto` tries what the machine has on the version's golden texts and takes the
            fastest that answers alike. Another is taken as it is asked for, and a version whose golden texts it answers otherwise is not
            served; one without golden texts is.
        keep_calibration: What a replica finds out about precisions and batches is kept for a week in the cache folder of the machine's user
            (`~/.cache/twohead`), so that the next one with that version need not.
        batch_tokens: Most tokens in a batch, padding included where the engine computes any; null: as few as keep the engine as fast as it
            can be, measured when a version is loaded.
        max_queue_s: A replica refuses a request (503) before which work comes for longer than this.
        deadline_ms: A request not computed within this is answered 504.
        max_texts: Most texts in a request.
        max_characters: Most characters in a text.
        max_body_bytes: Largest request body.
        receipt_ms: A request whose body did not come within this is answered 408. HAProxy itself waits ten seconds for its first 16 kB.
        max_ongoing_requests: Requests that may wait in one replica; the gate is `max_queue_s`.
        cache_answers: So many answers are kept in each replica, and equal texts are computed once; 0 keeps none.
        canary: A version that answers a share of the requests, compared with the one that answers the others; both cost engine time.
        shadow: A version that is asked about copies of requests; callers never see its answers.
        follow_s: How often a replica looks where `name` points.
        ready_timeout_s: How long `deploy` waits for the first answer; on a cluster elsewhere until Serve tells that it and its proxies run.
        log_format: Replicas' log lines as text, or each as a JSON object; see `serving.observing.logs`.
        tracing: Begin a span of OpenTelemetry for each request about texts; see `serving.observing.tracing`.
    """

    name: str = Field(default="production", pattern=r"^[a-z][a-z0-9-]{0,62}$")
    require_keys: bool = False
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=2, validate_default=True)
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    resources_per_replica: ReplicaResources = ReplicaResources()
    threads: int = Field(default=1, ge=1)
    precision: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "auto"
    keep_calibration: bool = True
    batch_tokens: int | None = Field(default=None, ge=8)
    max_queue_s: Positive = 4.0
    deadline_ms: int = Field(default=30_000, ge=1)
    max_texts: int = Field(default=256, ge=1)
    max_characters: int = Field(default=20_000, ge=1)
    max_body_bytes: int = Field(default=2_097_152, ge=1024)
    receipt_ms: int = Field(default=20_000, ge=1)
    max_ongoing_requests: int = Field(default=2_000, ge=1)
    cache_answers: int = Field(default=0, ge=0)
    canary: CanarySettings | None = None
    shadow: ShadowSettings | None = Field(default=None, validate_default=True)
    follow_s: Positive = 2.0
    ready_timeout_s: Positive = 180.0
    log_format: Literal["text", "json"] = "text"
    tracing: bool = False

    @field_validator("max_replicas")
    @classmethod
    def _not_below_min(cls, value: int, info: ValidationInfo) -> int:
        minimum = info.data.get("min_replicas", 1)
        if value < minimum:
            raise ValueError(f"must be at least serving.min_replicas ({minimum})")
        if value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("shadow")
    @classmethod
    def _one_candidate(cls, value: ShadowSettings | None, info: ValidationInfo) -> ShadowSettings | None:
        if value is not None and info.data.get("canary") is not None:
            raise ValueError("must be left out where there is a serving.canary: one version is tried at a time")
        return value

    @field_validator("host")
    @classmethod
    def _only_with_keys(cls, value: str, info: ValidationInfo) -> str:
        # Everybody who reaches it may ask.
        if not info.data.get("require_keys") and value != "localhost" and not _is_loopback(value):
            raise ValueError("must be a loopback address like 127.0.0.1 unless serving.require_keys is true")
        return value

    @property
    def url(self) -> str:
        """Where the endpoint is, without a final slash."""
        return url_of(self.host, self.port)

    @property
    def url_from_here(self) -> str:
        """Where this machine reaches it: what listens at every address is asked at one."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  # where it listens, not we
        return url_of(host, self.port)


def url_of(host: str, port: int) -> str:
    """Return the URL of an HTTP server, without a final slash."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_ROLLOUT_ONLY = {
    "host",
    "port",
    "min_replicas",
    "max_replicas",
    "autoscaling",
    "resources_per_replica",
    "max_ongoing_requests",
    "ready_timeout_s",
}


class Arguments(Section):
    """What a replica is started with.

    Attributes:
        storage: Where the registry is; absolute, because a replica may run elsewhere.
        version: Stay with this version; null follows `settings.name`.
        trusted_keys: Of the section `cluster`.
        trial: Another one whenever a canary or a shadow is deployed, so that what is counted about it is not what earlier ones left.
        settings: The section `serving`, without what only the rollout reads.
    """

    storage: str
    version: int | None = None
    trusted_keys: tuple[str, ...] = ()
    trial: str = ""
    settings: ServingSettings = ServingSettings()

    def dump(self) -> dict[str, Any]:
        """Return them as JSON."""
        return self.model_dump(mode="json", exclude={"settings": _ROLLOUT_ONLY})


def load_settings(path: Path, overrides: list[str]) -> ServingSettings:
    """Read and validate the section `serving`.

    Raises:
        SettingsError: With every finding.
    """
    return validate_section(ServingSettings, read_settings_file(path, overrides), "serving", str(path))
