"""What frozen layers say of texts, computed once and kept in memory-mapped files.

Every process of a machine reads the same pages; several fill a file side by side; later searches on the same texts find it filled. It
does not know models, heads or labels: who asks brings the computation.

Files in floor order: `wanted`, `shards`, `copies`, `cache`.
"""
