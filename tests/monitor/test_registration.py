import json
from typing import Any

import pytest

from harness.monitor.registration import MAX_BYTES, parse_registration

GOOD: dict[str, Any] = {
    "targets": ["10.0.0.7:9000"],
    "labels": {"run": "smol", "attempt": "0", "slurm_job_id": "412", "node": "n07"},
    "lease": 1700000000.5,
}


def encoded(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def test_good() -> None:
    registration = parse_registration(encoded())
    assert registration.targets == ("10.0.0.7:9000",)
    assert registration.labels == GOOD["labels"]
    assert registration.lease == 1700000000.5


@pytest.mark.parametrize("target", ["node-7:1", "node_7.cluster.example:65535", "[fe80::1]:9000", "127.0.0.1:80"])
def test_good_targets(target: str) -> None:
    assert parse_registration(encoded(targets=[target])).targets == (target,)


def test_withdrawn_and_without_slurm() -> None:
    labels = {**GOOD["labels"], "slurm_job_id": ""}
    assert parse_registration(encoded(targets=[], labels=labels)).targets == ()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "JSON"),
        (b'{"targets": ["a:1"', "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "object"),
        (encoded(targets="a:1"), "targets"),
        (encoded(targets=["a"]), "host:port"),
        (encoded(targets=["a:0"]), "host:port"),
        (encoded(targets=["a:65536"]), "host:port"),
        (encoded(targets=["http://a:1"]), "host:port"),
        (encoded(targets=["a:1/metrics"]), "host:port"),
        (encoded(targets=["a:1\n"]), "host:port"),
        (encoded(targets=[17]), "host:port"),
        (encoded(labels=[]), "labels"),
        (encoded(labels={**GOOD["labels"], "__scheme__": "https"}), "__scheme__"),
        (encoded(labels={**GOOD["labels"], "job": "other"}), "job"),
        (encoded(labels={**GOOD["labels"], "attempt": 0}), "attempt"),
        (encoded(labels={**GOOD["labels"], "node": ""}), "node"),
        (encoded(labels={"run": "smol"}), "attempt"),
        (encoded(lease=None), "lease"),
        (encoded(lease=True), "lease"),
        (encoded(lease="now"), "lease"),
        (b" " * (MAX_BYTES + 1), "bytes"),
    ],
)
def test_bad_ones_say_what_is_wrong(content: bytes, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_registration(content)
