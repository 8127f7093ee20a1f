"""What a URI of files may be: no web address where data is read, no password anywhere.

Whoever names a table names what the cluster's machines fetch; from inside, a web address may be somebody else's door (a cloud's metadata
service answers every machine with its secrets). A URI travels with jobs and stands in messages, so that a password in it is everybody's.

Source: OWASP, Server-Side Request Forgery Prevention Cheat Sheet (an allow-list of what may be reached, not a list of what may not).
"""

from urllib.parse import urlsplit

# Stores of files that fsspec and its extensions know by these names; none takes an address of a web page.
STORES = ("abfs", "abfss", "adl", "az", "file", "gcs", "gs", "hdfs", "hf", "local", "memory", "oci", "oss", "s3", "s3a")


def password_fault(uri: str) -> str | None:
    """Tell what is wrong with a URI that holds a password; nothing, where it holds none. The reason does not repeat it."""
    for part in uri.split("::"):
        if "://" in part and ":" in part.partition("://")[2].partition("/")[0].rpartition("@")[0]:
            return "holds a password, which would be shown wherever the URI is"
    return None


def source_fault(uri: str) -> str | None:
    """Tell why data is not read from a URI or a local path; nothing, where it is."""
    if fault := password_fault(uri):
        return fault
    if "://" not in uri:
        return None
    protocol = urlsplit(uri).scheme.lower()
    if "::" in uri or protocol not in STORES:
        found = "::" if "::" in uri else f"{protocol}://"
        return f"{found} is not read from; data comes from local files or one of {', '.join(STORES)}"
    return None
