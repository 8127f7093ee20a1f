from serving.metrics import merge

PAGE = """# HELP ray_node_cpu Not ours.
# TYPE ray_node_cpu gauge
ray_node_cpu{Component="raylet"} 3.0
# HELP ray_twohead_batches_total Batches computed.
# TYPE ray_twohead_batches_total counter
ray_twohead_batches_total{Component="core_worker",NodeAddress="10.0.0.1",Version="2.60.0",deployment="Replica",replica="a"} 4.0
# HELP ray_serve_latency_ms Latency.
# TYPE ray_serve_latency_ms histogram
ray_serve_latency_ms_bucket{WorkerId="ab",le="1.0"} 1.0
ray_serve_latency_ms_count{WorkerId="ab"} 1.0
"""
OTHER = PAGE.replace("10.0.0.1", "10.0.0.2").replace('replica="a"', 'replica="b"').replace("4.0", "6.0")


def test_figures_of_all_nodes_in_one_block_each() -> None:
    assert merge([PAGE, OTHER]).splitlines() == [
        "# HELP serve_latency_ms Latency.",
        "# TYPE serve_latency_ms histogram",
        'serve_latency_ms_bucket{le="1.0"} 1.0',
        "serve_latency_ms_count{} 1.0",
        'serve_latency_ms_bucket{le="1.0"} 1.0',
        "serve_latency_ms_count{} 1.0",
        "# HELP twohead_batches_total Batches computed.",
        "# TYPE twohead_batches_total counter",
        'twohead_batches_total{NodeAddress="10.0.0.1",deployment="Replica",replica="a"} 4.0',
        'twohead_batches_total{NodeAddress="10.0.0.2",deployment="Replica",replica="b"} 6.0',
    ]


def test_a_page_without_ours_is_empty() -> None:
    assert merge(["# HELP ray_node_cpu Not ours.\nray_node_cpu 1.0\n"]) == ""
