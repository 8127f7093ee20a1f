"""Ray and files: reach a cluster, submit jobs to it, keep what they make.

It does not know what a text, a model or an HTTP answer is, and imports neither `training` nor `serving`. Its room `machines` has several
machines started by Ray's own launcher; it stands between `dashboard` and `connection`.

Files in floor order: `errors`, `people`, `cause`, `uris`, `settings`, `console`, `whole_files`, `storage`, `runtime_env`, `kept`, `front`,
`processes`, `session`, `facts`, `dashboard`, `connection`, `everywhere`, `place`, `jobs`, `searches`, `served`, `state`, `screen`,
`launcher`, `draining`, `kubernetes`, `prometheus`, `grafana`.
"""
