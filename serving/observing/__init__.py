"""What can be seen of a server from outside: figures, drift, dashboards, log lines, spans.

What is counted knows no Ray and no HTTP: `histogram` stands below `counted`, `drift` and `seen` below `answerer`; the others stand
above it.

Files in floor order: `histogram`, `names`, `drift`, `seen`, `metrics`, `grafana`, `prometheus`, `logs`, `tracing`.
"""
