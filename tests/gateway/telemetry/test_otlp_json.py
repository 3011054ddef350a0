"""gateway/telemetry/otlp_json.py: parts of spans, read back as JSON."""

import msgspec

from gateway.telemetry.otlp_json import error_status, interval, number_attribute, quote_once, text_attribute


def test_times_are_nanoseconds_as_texts() -> None:
    assert msgspec.json.decode(f"{{{interval(1001.5, 1002.0)}}}") == {
        "startTimeUnixNano": "1001500000000",
        "endTimeUnixNano": "1002000000000",
    }


def test_attributes() -> None:
    text = 'a"b\\c\n\u2028\U0001f600'
    assert msgspec.json.decode(text_attribute("k", text)) == {"key": "k", "value": {"stringValue": text}}
    assert msgspec.json.decode(number_attribute("k", 2**40)) == {"key": "k", "value": {"intValue": str(2**40)}}
    assert msgspec.json.decode(number_attribute("k", 0.25)) == {"key": "k", "value": {"doubleValue": 0.25}}


def test_the_status_of_an_error() -> None:
    assert msgspec.json.decode(f"{{{error_status('engine_failed')}}}") == {
        "status": {"code": 2, "message": "engine_failed"}
    }


def test_a_text_that_is_not_unicode() -> None:
    assert msgspec.json.decode(quote_once("a\ud800b")) == "a?b"
