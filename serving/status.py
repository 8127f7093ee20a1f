"""What runs of us in a cluster, read from what Serve says about itself.

It changes nothing and asks nobody.
"""

from dataclasses import dataclass

from cluster.cause import cause
from serving.app import APPLICATION, DEPLOYMENT, Config
from serving.settings import Arguments, url_of


@dataclass(frozen=True)
class Status:
    """What runs of us in a cluster.

    Attributes:
        state: Serve's word: RUNNING, DEPLOYING, DEPLOY_FAILED, UNHEALTHY, DELETING.
        message: Why, where Serve says so.
        replicas: State → how many.
        min_replicas: Always there.
        max_replicas: Under load.
        url: Where it listens.
        version: The fixed version; None follows a name.
        name: The name that is followed.
    """

    state: str
    message: str
    replicas: dict[str, int]
    min_replicas: int
    max_replicas: int
    url: str
    version: int | None
    name: str

    @property
    def running(self) -> int:
        """Replicas that answer."""
        return self.replicas.get("RUNNING", 0)


def deployed(details: Config) -> Config | None:
    """Find our application in Serve's details; None when it is not there."""
    application: Config | None = details.get("applications", {}).get(APPLICATION)
    return application if application and application.get("deployed_app_config") else None


def present(details: Config) -> Config | None:
    """Find our application as `deployed` does, also while it ends: as what it was deployed Serve does not tell then."""
    application: Config | None = details.get("applications", {}).get(APPLICATION)
    return application if application and (application.get("deployed_app_config") or application["status"] == "DELETING") else None


def read_status(application: Config, details: Config) -> Status:
    """Read our application's status from Serve's details."""
    config = application["deployed_app_config"]
    deployment = application.get("deployments", {}).get(DEPLOYMENT, {})
    states = [replica["state"] for replica in deployment.get("replicas", ())]
    autoscaling = config["deployments"][0]["autoscaling_config"]
    arguments = Arguments.model_validate(config["args"])
    options = details["http_options"]
    return Status(
        state=application["status"],
        message=cause(deployment.get("message") or application.get("message") or ""),
        replicas={state: states.count(state) for state in sorted(set(states))},
        min_replicas=autoscaling["min_replicas"],
        max_replicas=autoscaling["max_replicas"],
        url=url_of(options["host"], options["port"]),
        version=arguments.version,
        name=arguments.settings.name,
    )


def progress(status: Status) -> str:
    """Say in one line how far a deployment is."""
    shown = ", ".join(f"{count} {state.lower()}" for state, count in status.replicas.items()) or "none yet"
    return f"serving: {status.state.lower().replace('_', ' ')}, replicas: {shown}"


def closed_doors(application: Config, details: Config) -> str:
    """Say which of Serve's proxies, through which requests come to replicas, do not answer yet; nothing where all needed do."""
    proxies = details.get("proxies") or {}
    healthy = {node for node, facts in proxies.items() if facts.get("status") == "HEALTHY"}
    needed: set[str] = set()
    if details.get("proxy_location") == "EveryNode":
        deployments = application.get("deployments", {}).values()
        replicas = [replica for deployment in deployments for replica in deployment.get("replicas", ())]
        needed = {replica["node_id"] for replica in replicas if replica["state"] == "RUNNING"}
    if needed:
        return f"{len(needed - healthy)} of {len(needed)} proxies of Serve do not answer yet" if needed - healthy else ""
    # Where none runs when nobody asks, whichever proxy is asked brings one.
    return "" if healthy else "no proxy of Serve answers yet"
