"""Bytes that no one would think of, guided by the lines that they reach: until the time is up, or one is neither taken nor refused.

    python -m tests.fuzz manifest --seconds 60

What reaches a new line is added to `corpus`, which `tests/unit/test_fuzzed.py` reads again each time; what breaks a reader is left in the
working folder as `crash-…`. `make fuzz` does it for all readers, and installs Atheris, which is no dependency.

Source: Google, Atheris (a libFuzzer for Python).
"""

import argparse
import sys

import atheris


def main() -> None:
    with atheris.instrument_imports(include=["cluster", "training", "serving", "yaml", "json"]):
        from tests.fuzz.readers import CORPUS, READERS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=list(READERS))
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    flags = [f"-max_total_time={options.seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *flags, str(CORPUS / options.reader)], READERS[options.reader])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
