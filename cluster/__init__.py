"""Ray and files: reach a cluster, submit jobs to it, keep what they make.

It does not know what a text, a model or an HTTP answer is, and imports neither `training` nor `serving`.

Files in floor order: `errors`, `settings`, `console`, `storage`, `runtime_env`, `front`, `session`, `facts`, `dashboard`,
`connection`, `jobs`, `state`, `launcher`, `launcher_file`,
`kubernetes`.
"""
