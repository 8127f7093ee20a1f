"""How a checkpoint computes: token ids in, logits of all heads out.

Files in floor order:
`engine`, `costs`, `cache`, `kernels` (and `kernels.c`), `linear`, `int8`, `graphs`, `torch_engine`, `own_process`, `child`,
`fork_server`, `fork_server_child`, `calibration`, `kept`.
"""
