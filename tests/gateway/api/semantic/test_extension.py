"""gateway/api/semantic/extension.py: ids of sessions, headers, and transforms of requests."""

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from compat.openai.semantic import SessionId
from gateway.api.semantic.extension import is_session_id

_adapter = TypeAdapter(SessionId)


@given(text=st.one_of(st.text(st.sampled_from("..aZ9_:-/é\n"), max_size=5), st.text(max_size=4)))
def test_an_id_is_one_in_a_body_and_in_a_header(text: str) -> None:
    try:
        _adapter.validate_python(text)
    except ValidationError:
        assert not is_session_id(text)
    else:
        assert is_session_id(text)
        assert text not in (".", "..")
