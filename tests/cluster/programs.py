"""Programs that tests send to hosts: they need nothing of the tests' own."""

# Tries everything that a stranger could call on one port: the Jobs API, and Ray's and Serve's own services over gRPC.
STRANGER = """
    import http.client, json, sys
    import grpc

    METHODS = ["rpc.NodeInfoGcsService/GetAllNodeInfo", "rpc.JobInfoGcsService/GetAllJobInfo", "rpc.NodeManagerService/GetNodeStats",
               "rpc.ObjectManagerService/Pull", "rpc.CoreWorkerService/PushTask", "rpc.RayletDriver/ClusterInfo",
               "rpc.ReporterService/HealthCheck", "rpc.LogService/ListLogs", "rpc.RuntimeEnvGcsService/PinRuntimeEnvURI",
               "serve.ASGIService/HandleRequest"]

    def over_http(host, port, headers):
        found = {}
        for method, path in [("POST", "/api/jobs/"), ("GET", "/api/v0/nodes"), ("PUT", "/api/serve/applications/"),
                             ("POST", "/get_or_create_runtime_env"), ("GET", "/metrics"), ("GET", "/api/local_raylet_healthz")]:
            connection = http.client.HTTPConnection(host, port, timeout=5)
            try:
                connection.request(method, path, "{}" if method != "GET" else None, {"Content-Type": "application/json", **headers})
                found[path] = connection.getresponse().status
            except (OSError, http.client.HTTPException) as error:
                found[path] = None
            finally:
                connection.close()
        return found

    def over_grpc(host, port, metadata):
        found = {}
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            for method in METHODS:
                try:
                    channel.unary_unary(f"/ray.{method}")(b"", timeout=5, metadata=metadata)
                    found[method] = "OK"
                except grpc.RpcError as error:
                    found[method] = error.code().name
        return found

    host, *ports = sys.argv[1:]
    told = {}
    for port in map(int, ports):
        wrong = "Bearer " + "0" * 64
        for who, headers, metadata in [("nobody", {}, []), ("liar", {"Authorization": wrong}, [("authorization", wrong)])]:
            http_said = over_http(host, port, headers)
            told[f"{port} {who}"] = {"http": http_said} if any(http_said.values()) else {"grpc": over_grpc(host, port, metadata)}
    print(json.dumps(told))
"""


CALLS = ("/api/jobs/", "/api/serve/applications/", "/get_or_create_runtime_env")
ASK = """
    import json, sys
    from serving.client import Client
    with Client(sys.argv[1]) as client:
        prediction = client.predict(["Night nurse (m/f/d) for our ward"])
    print(json.dumps({"version": prediction.version, "heads": sorted(prediction.answers[0].heads)}))
"""

# How many nodes live, as the head's dashboard tells whoever has the token; none where it does not answer just now.
NODES = """
    import http.client, json, sys
    from contextlib import closing
    from pathlib import Path

    def listed(address, token):
        try:
            with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
                connection.request("GET", "/api/v0/nodes", headers={"Authorization": f"Bearer {token}"})
                told = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return []
        # Where what it asks does not answer, there is a message in the list's place.
        return ((told.get("data") or {}).get("result") or {}).get("result") or []

    address, token_file = sys.argv[1:]
    print(sum(node["state"] == "ALIVE" for node in listed(address, Path(token_file).read_text().strip())))
"""

# Asks so often, by several addresses, until it is told to end, and prints what became of every request.
TRAFFIC = """
    import asyncio, collections, json, signal, sys, time
    from serving.client import AsyncClient
    from serving.errors import AnswerError

    async def main(rate, urls):
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        lost, waits, tasks, begun = [], [], set(), time.monotonic()

        async def ask(client, number):
            asked = time.monotonic()
            try:
                await client.predict([f"Night nurse {number} for our ward"])
            except AnswerError as error:
                lost.append(f"{asked - begun:.1f} s: {error.message}")
            waits.append(time.monotonic() - asked)
            if len(waits) == 20:
                print("asking", flush=True)

        async with AsyncClient(urls, timeout_s=30) as client:
            number = 0
            while not ended.is_set():
                task = asyncio.create_task(ask(client, number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
                try:
                    await asyncio.wait_for(ended.wait(), max(0.0, begun + number / rate - time.monotonic()))
                except TimeoutError:
                    pass
            await asyncio.gather(*tasks)
        print(json.dumps({"asked": number, "lost": lost, "longest_s": max(waits)}))

    asyncio.run(main(float(sys.argv[1]), sys.argv[2:]))
"""

# Begins a request every five seconds and ends none, until its host is lost: three are always on their way.
UNFINISHED = """
    import socket, time

    LINES = ["POST /v1/predict HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 100", "", "{"]

    def begin():
        begun = socket.create_connection(("127.0.0.1", 8000))
        begun.sendall("\\r\\n".join(LINES).encode())
        return begun

    kept = []
    while True:
        try:
            kept = [*kept[-2:], begin()]
        except OSError:
            # What answers there may be gone already, while its host is drained.
            pass
        print("begun", len(kept), flush=True)
        time.sleep(5)
"""
