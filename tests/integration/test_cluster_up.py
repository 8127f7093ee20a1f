"""A real cluster of this machine: up, jobs, stop, down."""

import getpass
import json
import os
import socket
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from cluster.processes import name_of, words_of
from cluster.session import free_port
from tests.ports import port_shift
from tests.running import running
from tests.unit.test_cluster_watching import TOLD
from tests.working_folder import SMALL, SOURCE, Place, request, told_with_token

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A working folder with a cluster that is up."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "ray_config.yaml").write_text(SMALL % free_port(18_265 + port_shift()))
    (folder / "say.py").write_text("import os\nprint('said', os.environ['TWOHEAD_STORAGE'], sorted(os.listdir()))\n")
    found = Place(folder)
    done = found.run("up")
    assert done.returncode == 0, done.stderr
    yield found
    found.run("down")


def _listening(pids: set[int]) -> set[str]:
    """The addresses that processes listen on, from the kernel's own tables."""
    links = []
    for link in (link for pid in pids for link in Path(f"/proc/{pid}/fd").glob("*")):
        with suppress(OSError):  # closed meanwhile
            links.append(link.readlink())
    sockets = {link.name.removeprefix("socket:[").rstrip("]") for link in links if link.name.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                found.add(fields[1].split(":")[0])
    return found


def test_up_again_finds_the_same_cluster(place: Place) -> None:
    before = place.facts()
    done = place.run("up")
    assert done.returncode == 0
    assert done.stdout.startswith("cluster is already running since ")
    assert place.facts() == before


def test_strangers_are_kept_out(place: Place) -> None:
    facts = place.facts()
    assert request(facts, "POST", "/api/jobs/", json.dumps({"entrypoint": "true"})) == 401
    assert request(facts, "PUT", "/api/serve/applications/", "{}") == 401
    assert request(facts, "GET", "/api/v0/nodes") == 401


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example:8265", "169.254.169.254"])
def test_a_page_whose_name_leads_here_gets_nothing(place: Place, name: str) -> None:
    facts, from_a_page = place.facts(), {"Host": name, "Origin": f"http://{name}", "User-Agent": "Mozilla/5.0"}
    before = told_with_token(facts, "/api/jobs/")
    job = json.dumps({"entrypoint": "true"})
    for method, path, body in (("POST", "/api/jobs/", job), ("PUT", "/api/serve/applications/", "{}"), ("GET", "/api/jobs/", "")):
        assert request(facts, method, path, body, **from_a_page) in (401, 403)
    # With the token too: a page does not start jobs, whoever it made its reader.
    token = f"Bearer {Path(facts.token_path).read_text().strip()}"
    assert request(facts, "POST", "/api/jobs/", job, **from_a_page, Authorization=token) in (401, 403, 405)
    assert told_with_token(facts, "/api/jobs/") == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_port_is_on_loopback(place: Place) -> None:
    facts = place.facts()
    addresses = _listening({process.pid for process in facts.session.processes()})
    # 127.0.0.1 as the kernel writes it, alone and mapped into IPv6.
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert addresses


def test_the_token_is_nowhere_but_in_its_file(place: Place) -> None:
    facts = place.facts()
    token = Path(facts.token_path).read_text()
    assert Path(facts.token_path).stat().st_mode & 0o777 == 0o600
    assert token not in (place.folder / ".twohead/cluster/facts.json").read_text()
    done = place.run("status", "--json")
    assert token not in done.stdout + done.stderr
    assert token not in " ".join(words_of(process) for process in facts.session.processes())


def test_a_job_runs_in_a_copy_of_the_folder_with_the_storage_of_its_submitter(place: Place) -> None:
    done = place.run("submit", "--name", "talk", "--", "python", "say.py")
    assert done.returncode == 0, done.stderr
    assert f"said {place.folder}/.twohead ['ray_config.yaml', 'say.py']\n" in done.stdout
    job_id = next(line.removeprefix("job ") for line in done.stdout.splitlines() if line.startswith("job "))
    assert done.stdout.splitlines()[-1] == f"job {job_id}: SUCCEEDED, exit code 0"
    assert "said" in place.run("logs", job_id.removeprefix("job-")[:6]).stdout
    row = next(line for line in place.run("jobs").stdout.splitlines() if line.startswith(job_id))
    assert row.split()[1:4] == ["talk", f"{getpass.getuser()}@{socket.gethostname()}", "SUCCEEDED"]


def test_a_job_is_connected_to_its_own_cluster(place: Place) -> None:
    code = """
        import ray
        from cluster.connection import connect
        from cluster.settings import load_settings
        with connect(load_settings()) as connection:
            print("connected", connection.address, connection.is_private, int(ray.cluster_resources()["CPU"]))
    """
    (place.folder / "drive.py").write_text(f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{textwrap.dedent(code)}")
    done = place.run("submit", "--", "python", "drive.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"connected {place.facts().address} False 2" in done.stdout


def test_a_command_here_attaches_to_the_cluster(place: Place) -> None:
    code = """
        from cluster.connection import connect
        from cluster.settings import load_settings
        import ray, os
        with connect(load_settings()) as connection:
            print(connection.address, connection.is_private, ray.get(ray.remote(lambda: 6 * 7).remote()))
    """
    (place.folder / "attach.py").write_text(textwrap.dedent(code))
    done = place.run(module="attach")
    assert done.stdout == f"{place.facts().address} False 42\n", done.stderr


def test_a_failed_job_is_a_failed_submit(place: Place) -> None:
    done = place.run("submit", "--", "python", "-c", "raise SystemExit(3)")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith(": FAILED, exit code 3")


def test_a_long_job_is_stopped_in_peace(place: Place) -> None:
    code = """
        import signal, sys, time
        def end(*_):
            print("put away", flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("at work")
        time.sleep(600)
    """
    (place.folder / "long.py").write_text(textwrap.dedent(code))
    job_id = place.run("submit", "--no-wait", "--", "python", "long.py").stdout.strip()
    command = [sys.executable, "-m", "cluster", "logs", "-f", job_id]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with running(command, cwd=place.folder, env=environment) as follower:
        assert follower.stdout
        while follower.stdout.readline() != "at work\n":
            assert follower.poll() is None
        assert place.run("stop", job_id).stdout == f"job {job_id}: STOPPED\n"
        rest = follower.communicate(timeout=60)[0].splitlines()
    # Ray writes the command into the log too, and on a busy machine it gets there after the command's first words.
    assert [line for line in rest if not line.startswith("Running entrypoint for job")] == ["put away", f"job {job_id}: STOPPED"]
    assert follower.returncode == 1


def test_status_shows_the_cluster(place: Place) -> None:
    done = place.run("status")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{place.facts().dashboard_url}, since ")
    assert lines[1] == "1 node, CPU 0 of 2 in use"
    assert lines[-1] == "nothing is served"


def test_a_job_waits_for_its_node_and_for_its_cpus(place: Place) -> None:
    runs = place.run("submit", "--cpus", "2", "--", "python", "-c", "print('has two')")
    assert (runs.returncode, "has two" in runs.stdout) == (0, True), runs.stdout + runs.stderr
    waits = place.run("submit", "--no-wait", "--on", "market=spot", "--", "true")
    assert waits.stderr == "no node has market=spot yet: the job waits for one\n"
    (job,) = [one for one in json.loads(place.run("status", "--json").stdout)["jobs"] if one["id"] == waits.stdout.strip()]
    assert job["state"] == "PENDING"
    assert place.run("stop", job["id"]).stdout == f"job {job['id']}: waits for room, and is stopped when it gets it\n"


def test_a_job_whose_supervisor_dies_is_failed(place: Place) -> None:
    job = place.run("submit", "--no-wait", "--", "python", "-c", "import signal; print('here', flush=True); signal.pause()").stdout.strip()
    command = [sys.executable, "-m", "cluster", "logs", "-f", job]
    with running(command, cwd=place.folder, env={**os.environ, "PYTHONPATH": str(SOURCE)}) as followed:
        assert followed.stdout
        # Ray's own lines about its start stand before.
        assert "here\n" in iter(followed.stdout.readline, "")
        (supervisor,) = [one for one in place.facts().session.processes() if name_of(one).startswith("ray::JobSupervisor")]
        supervisor.kill()
        assert f"job {job}: FAILED" in followed.communicate(timeout=120)[0]
    assert followed.returncode == 1
    # What it ran goes with it: Ray's watcher looks every second.
    deadline = time.monotonic() + 30
    while [one for one in place.facts().session.processes() if "signal.pause()" in words_of(one)]:
        assert time.monotonic() < deadline
        time.sleep(0.2)  # a process that ends tells nobody


def test_exporters_tell_what_the_dashboard_asks_for(place: Place) -> None:
    targets = targets_of(place)
    deadline = time.monotonic() + 90
    while missing := TOLD - told_by(targets):
        assert time.monotonic() < deadline, missing
        time.sleep(1)  # an exporter hears of most figures every ten seconds


def targets_of(place: Place) -> list[str]:
    configuration = yaml.safe_load(place.run("render", "prometheus").stdout)["scrape_configs"][0]
    (file,) = configuration["file_sd_configs"][0]["files"]
    return [target for one in json.loads(Path(file).read_text()) for target in one["targets"]]


def told_by(targets: list[str]) -> set[str]:
    pages = []
    for target in targets:
        with suppress(httpx.TransportError):  # it is asked again
            pages.append(httpx.get(f"http://{target}/metrics", timeout=30, trust_env=False).text)
    return {line.split()[2] for page in pages for line in page.splitlines() if line.startswith("# TYPE ")}


def test_an_unknown_job_is_said(place: Place) -> None:
    done = place.run("logs", "nope")
    assert done.returncode == 2
    assert done.stderr.startswith("error: job 'nope': is unknown")


def test_down_ends_this_cluster_and_leaves_another_alone(place: Place, tmp_path: Path) -> None:
    (tmp_path / "ray_config.yaml").write_text(SMALL % free_port(18_265 + port_shift()))
    other = Place(tmp_path)
    assert other.run("up").returncode == 0
    try:
        facts = place.facts()
        processes = facts.session.processes()
        assert len(processes) > 4
        assert not set(targets_of(place)) & set(targets_of(other))
        done = place.run("down")
        assert done.returncode == 0, done.stderr
        assert not any(words_of(process) for process in processes)
        assert not Path(facts.session_folder).exists()
        assert [entry.name for entry in (place.folder / ".twohead/cluster").iterdir()] == ["lock"]
        assert place.run("down").stdout == "no cluster was running\n"
        assert place.run("status").returncode == 2
        assert other.facts().is_alive()
    finally:
        assert other.run("down").returncode == 0


def test_up_takes_the_next_port_and_clears_away_a_dead_cluster(tmp_path: Path) -> None:
    with socket.socket() as taken:
        # Below those that connections take by themselves: the next ones are free, too.
        port = free_port(18_300 + port_shift())
        taken.bind(("127.0.0.1", port))
        taken.listen()
        (tmp_path / "ray_config.yaml").write_text(SMALL % port)
        place = Place(tmp_path)
        done = place.run("up")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"port {port} is taken; using ")
    try:
        before = place.facts()
        for process in before.session.processes():
            with suppress(psutil.NoSuchProcess):  # some end with the one before
                process.kill()
        done = place.run("up")
        assert done.returncode == 0, done.stderr
        assert "clearing away what is left of a cluster that died" in done.stdout
        assert not Path(before.session_folder).exists()
        assert place.facts().is_alive()
    finally:
        assert place.run("down").returncode == 0
